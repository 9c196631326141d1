"""Configs as JSON: the config.json of a workdir, which may be run again."""

import contextlib
import dataclasses
import json
import os
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal

from agentflow_jax.config import overrides, schema
from agentflow_jax.files import old_names, reading

FILE = 'config.json'


def flat(config: schema.Config) -> dict[str, Any]:
  """Returns a config as config.json holds it: dotted name -> JSON value."""
  return _plain(overrides.flatten(config))


def text(config: schema.Config) -> str:
  """Returns the text of the config.json of a config."""
  return json.dumps(flat(config), indent=1, sort_keys=True)


def read_flat(path: str | os.PathLike[str]) -> dict[str, Any]:
  """Returns what a config.json says, with the names of today.

  Raises:
    FileNotFoundError: there is no such file.
    ConfigError: it is no JSON object.
  """
  with reading.boundary(path, schema.ConfigError):
    values = reading.read_json(path, allows_nan=True)
    if not isinstance(values, dict):
      raise schema.ConfigError(f'{path} holds no config: it is no JSON object')
  return old_names.config(values)


def read(path: str | os.PathLike[str]) -> schema.Config:
  """Returns the config of a config.json.

  A field that is missing there was added by a later version; it has its default.

  Raises:
    FileNotFoundError: there is no such file.
    ConfigError: it is no config, or a value does not fit its field; names both.
  """
  tree: dict[str, Any] = {}
  values = read_flat(path)
  for name, value in values.items():
    *parts, last = name.split('.')
    node = tree
    for part in parts:
      node = node.setdefault(part, _Node())
      if not isinstance(node, _Node):
        raise schema.ConfigError(f'{path}: {name}: {part!r} is a value')
    node[last] = value
  with reading.boundary(path, schema.ConfigError):
    return _build(schema.Config, tree, str(path))


def differences(
  config: schema.Config, written: Mapping[str, Any]
) -> dict[str, tuple[Any, Any]]:
  """Returns dotted name -> (value written, value now) where these differ.

  Args:
    config: config now.
    written: content of a config.json, see `read_flat`. A field that is missing
      there counts as its default.
  """
  now = flat(config)
  before = _plain(overrides.defaults(config)) | dict(written)
  return {
    name: (before.get(name), now.get(name))
    for name in sorted(now.keys() | before.keys())
    if now.get(name) != before.get(name)
  }


class _Node(dict):
  """Fields of a part of a config, apart from a field whose value is a mapping."""


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
  return json.loads(json.dumps(values, default=str))


def _build(cls: type, tree: Mapping[str, Any], where: str, prefix: str = '') -> Any:
  """Makes a dataclass of its fields' JSON values."""
  hints = typing.get_type_hints(cls)
  unknown = sorted(tree.keys() - hints.keys())
  if unknown:
    raise schema.ConfigError(
      f'{where}: there is no field {prefix}{unknown[0]}: a newer version may have'
      ' written it'
    )
  fields = {}
  for field in dataclasses.fields(cls):
    if field.name in tree:
      name = f'{prefix}{field.name}'
      fields[field.name] = _value(tree[field.name], hints[field.name], where, name)
    elif (
      field.default is dataclasses.MISSING
      and field.default_factory is dataclasses.MISSING
    ):
      raise schema.ConfigError(f'{where}: {prefix}{field.name} is missing')
  try:
    return cls(**fields)
  except schema.ConfigError as e:  # Names the field.
    raise schema.ConfigError(f'{where}: {e}') from e
  except ValueError as e:
    raise schema.ConfigError(f'{where}: {prefix.rstrip(".")}: {e}') from e


def _value(value: Any, kind: Any, where: str, name: str) -> Any:
  """Returns a JSON value as a field's type has it."""
  origin, arguments = typing.get_origin(kind), typing.get_args(kind)
  if origin in (typing.Union, types.UnionType):
    if value is None and type(None) in arguments:
      return None
    kind = next(a for a in arguments if a is not type(None))
    return _value(value, kind, where, name)
  if isinstance(kind, type) and dataclasses.is_dataclass(kind):
    if isinstance(value, _Node):
      return _build(kind, value, where, f'{name}.')
  elif origin is Literal:
    if value in arguments:
      return value
  elif origin is tuple:
    if isinstance(value, list):
      return tuple(_value(one, arguments[0], where, name) for one in value)
  elif kind is float:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
      with contextlib.suppress(OverflowError):  # Of an integer that no float holds.
        return float(value)
  elif kind in (int, bool, str):
    if type(value) is kind:  # A bool is an int to isinstance.
      return value
  elif isinstance(value, dict) and not isinstance(value, _Node):
    return value
  raise schema.ConfigError(
    f'{where}: {name} cannot be {json.dumps(value, default=str)[:80]}'
  )
