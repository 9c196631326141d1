"""The fields of a config: names, types, defaults, and what they mean.

All of it is read from the dataclasses of the schema, and the meaning from the
"Attributes:" of their docstrings.
"""

import dataclasses
import difflib
import inspect
import re
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from agentflow_jax.config import schema

_ENTRY = re.compile(r'    (\w+(?:, \w+)*): (.*)')
# A full stop, but not the dots of a list that goes on.
_SENTENCE_END = re.compile(r'(?<!\.)\.\s')


@dataclasses.dataclass(frozen=True)
class Field:
  """A field that a flag can set.

  Attributes:
    name: dotted name, without 'config.'.
    type: values that it takes, in words.
    default: value that it has where nothing sets it; None where it has to be given.
    meaning: first sentence of its description.
  """

  name: str
  type: str
  default: Any
  meaning: str


def every() -> dict[str, Field]:
  """Returns all fields by name, in the order of the schema."""
  return {field.name: field for field in _below(schema.Config, None, '')}


def _below(cls: type, default: Any, prefix: str) -> Iterator[Field]:
  meanings, hints = _meanings(cls), typing.get_type_hints(cls)
  for field in dataclasses.fields(cls):
    name, kind = f'{prefix}{field.name}', hints[field.name]
    if default is not None:
      value = getattr(default, field.name)
    elif field.default_factory is not dataclasses.MISSING:
      value = field.default_factory()
    else:
      value = None if field.default is dataclasses.MISSING else field.default
    inner = _part(kind)
    if inner is not None:
      yield from _below(inner, value, f'{name}.')
    else:
      yield Field(name, _in_words(kind), value, meanings.get(field.name, ''))


def _part(kind: Any) -> type | None:
  """Returns the dataclass that a field holds, if it holds one."""
  for one in (kind, *typing.get_args(kind)):
    if isinstance(one, type) and dataclasses.is_dataclass(one):
      return one
  return None


def _in_words(kind: Any) -> str:
  origin, arguments = typing.get_origin(kind), typing.get_args(kind)
  if origin is Literal:
    return '|'.join(str(a) or "''" for a in arguments)
  if origin in (typing.Union, types.UnionType):
    return ' or '.join('none' if a is type(None) else _in_words(a) for a in arguments)
  if origin is tuple:
    return f'comma list of {_in_words(arguments[0])}'
  if kind is bool:
    return 'true|false'
  return {int: 'integer', float: 'number', str: 'text'}.get(kind, 'JSON object')


def _meanings(cls: type) -> Mapping[str, str]:
  """Returns the first sentence of every entry of a docstring's "Attributes:"."""
  _, _, listed = (inspect.getdoc(cls) or '').partition('Attributes:\n')
  found, names = {}, ()
  for line in listed.splitlines():
    # inspect.getdoc has taken the docstring's own two spaces away.
    if (entry := _ENTRY.match(f'  {line}')) and line.startswith('  '):
      names, text = entry[1].split(', '), entry[2]
      found |= dict.fromkeys(names, text)
    elif line.startswith('   '):
      found |= {name: f'{found[name]} {line.strip()}' for name in names}
  return {
    name: _SENTENCE_END.split(text)[0].removesuffix('.') for name, text in found.items()
  }


def nearest(name: str, count: int = 3) -> list[str]:
  """Returns the fields that a mistaken name may mean, the likeliest first.

  Args:
    name: dotted name that is no field, such as 'lr' or 'learning_rate'.
    count: largest number of names to return.
  """
  fields, leaf = every(), name.rpartition('.')[2].lower()
  by_leaf: dict[str, list[str]] = {}
  for field in fields:
    by_leaf.setdefault(field.rpartition('.')[2], []).append(field)
  if leaf in by_leaf:  # Those in a part that is spelt like the one named come first.
    close = difflib.SequenceMatcher(b=name)

    def likeness(field: str) -> float:
      close.set_seq1(field)
      return close.ratio()

    return sorted(by_leaf[leaf], key=likeness, reverse=True)[:count]
  words = set(leaf.split('_'))
  leaves = [
    one for one in by_leaf if leaf == ''.join(word[:1] for word in one.split('_'))
  ]
  leaves += difflib.get_close_matches(leaf, by_leaf, n=count, cutoff=0.75)
  leaves += [one for one in by_leaf if len(leaf) >= 4 and leaf in one]
  leaves += [one for one in by_leaf if words & set(one.split('_'))]
  found = [field for one in dict.fromkeys(leaves) for field in by_leaf[one]]
  return found[:count]
