"""Applies `--config.a.b=v` to configs, and flattens configs."""

import dataclasses
import json
import types
import typing
from collections.abc import Sequence
from typing import Any, Literal

from agentflow_jax.config import fields, roles, schema
from agentflow_jax.files import old_names


def override(
  config: Any, overrides: Sequence[tuple[str, str]], prefix: str = ''
) -> Any:
  """Returns `config` with dotted fields set to parsed values, all at once.

  All at once, because fields that belong together (a schedule and its length)
  may only be valid together.

  Args:
    config: a frozen dataclass.
    overrides: ('a.b', 'value') pairs; of the same name the last one counts.
    prefix: dotted name of `config` within the whole config, for error messages.

  Raises:
    ConfigError: no such field (the nearest is suggested), or a value that does
      not parse as the field's type or that the config refuses.
  """
  below: dict[str, list[tuple[str, str]]] = {}
  changes: dict[str, Any] = {}
  hints = typing.get_type_hints(type(config))
  for name, value in overrides:
    head, _, rest = name.partition('.')
    whole = f'--config.{prefix}{name}'
    if prefix + name in old_names.FIELDS:
      raise schema.ConfigError(
        f'{whole}: the field was renamed to {old_names.FIELDS[prefix + name]}'
      )
    if head not in hints:
      near = fields.nearest(prefix + name)
      hint = 'train --config=X --help lists all fields'
      if near:
        hint = 'did you mean ' + ' or '.join(f'--config.{n}' for n in near) + '?'
      raise schema.ConfigError(f'{whole}: there is no such field; {hint}')
    nested = dataclasses.is_dataclass(getattr(config, head))
    if rest:
      if not nested:
        raise schema.ConfigError(f'{whole}: {head!r} has no fields')
      below.setdefault(head, []).append((rest, value))
    elif nested and value.lower() != 'none':
      raise schema.ConfigError(f'{whole}: name one of its fields')
    else:
      try:
        changes[head] = _parse(value, hints[head])
      except ValueError as e:
        raise schema.ConfigError(f'{whole}={value}: {e}') from e
  for head, pairs in below.items():
    changes[head] = override(getattr(config, head), pairs, f'{prefix}{head}.')
  try:
    return dataclasses.replace(config, **changes)
  except schema.ConfigError:
    raise
  except ValueError as e:
    names = ', '.join(f'--config.{prefix}{n}={v}' for n, v in overrides)
    raise schema.ConfigError(f'{names}: {e}') from e


def _parse(value: str, kind: Any) -> Any:
  """Parses a flag's text as a field's type."""
  origin, arguments = typing.get_origin(kind), typing.get_args(kind)
  if origin is Literal:
    if value not in arguments:
      raise ValueError(f'must be one of {list(arguments)}')
    return value
  if origin in (typing.Union, types.UnionType):
    if value.lower() == 'none' and type(None) in arguments:
      return None
    kind = next(a for a in arguments if a is not type(None))
    if dataclasses.is_dataclass(kind):
      raise ValueError('must be none, or name one of its fields')
    return _parse(value, kind)
  if origin is tuple:
    return tuple(_parse(v, arguments[0]) for v in value.split(',') if v)
  if kind is bool:
    if value.lower() not in ('true', 'false'):
      raise ValueError('must be true or false')
    return value.lower() == 'true'
  if dataclasses.is_dataclass(kind):
    raise ValueError('name one of its fields')
  if kind in (int, float, str):
    try:
      return kind(value)
    except ValueError:
      raise ValueError(f'is not a {kind.__name__}') from None
  try:
    parsed = json.loads(value)
  except json.JSONDecodeError as e:
    raise ValueError(f'is not JSON ({e})') from None
  if not isinstance(parsed, dict):
    raise ValueError('must be a JSON object')
  return parsed


def split_overrides(argv: Sequence[str]) -> tuple[list[str], list[tuple[str, str]]]:
  """Separates `--config.a.b=v` from the other flags.

  Raises:
    ConfigError: an override without '='.
  """
  others, overrides = [], []
  for argument in argv:
    stripped = argument.lstrip('-')
    if argument.startswith('-') and stripped.startswith('config.'):
      name, equals, value = stripped[len('config.') :].partition('=')
      if not equals:
        raise schema.ConfigError(f'{argument}: write --config.{name}=VALUE')
      overrides.append((name, value))
    else:
      others.append(argument)
  return others, overrides


def flatten(config: Any, prefix: str = '') -> dict[str, Any]:
  """Returns dotted name -> value, for records and comparisons."""
  flat = {}
  for field in dataclasses.fields(config):
    value = getattr(config, field.name)
    name = f'{prefix}{field.name}'
    if dataclasses.is_dataclass(value):
      flat.update(flatten(value, f'{name}.'))
    else:
      flat[name] = value
  return flat


def defaults(config: Any, default: Any = None, prefix: str = '') -> dict[str, Any]:
  """Returns dotted name -> default, for the names that `flatten` returns.

  A field without a default is left out.

  Args:
    config: config whose nested parts say which fields there are.
    default: config that the default is read from; None for the fields' own.
    prefix: beginning of every name.
  """
  flat = {}
  for field in dataclasses.fields(config):
    name = f'{prefix}{field.name}'
    if default is not None:
      value = getattr(default, field.name)
    elif field.default_factory is not dataclasses.MISSING:
      value = field.default_factory()
    else:
      value = field.default
    part = getattr(config, field.name)
    if dataclasses.is_dataclass(part):
      same = value if isinstance(value, type(part)) else None
      flat.update(defaults(part, same, f'{name}.'))
    elif value is not dataclasses.MISSING:
      flat[name] = value
  return flat


def with_planner(config: schema.Config, directory: str) -> schema.Config:
  """Returns the config with `directory` as the planner's model.

  Raises:
    ConfigError: no module of the config uses a model in this process.
  """
  if not roles.uses_engine(config):
    raise schema.ConfigError(
      '--planner names weights, and no module of this config reads any'
    )
  planner = dataclasses.replace(config.planner, directory=directory, model=None)
  return dataclasses.replace(config, planner=planner)
