"""The part of JSON Schema that arguments of tools need.

A schema comes from a server, which checks the arguments again. So a keyword that
is unknown here, or that makes no sense, allows every value. The package jsonschema
is not used, because it matches the regular expressions of a schema in this process
without a limit of time, and a schema is untrusted text.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from typing import Any

_KINDS = ('string', 'number', 'integer', 'boolean', 'array', 'object', 'null')
# Schemas may refer to themselves, and alternatives of alternatives multiply.
_MOST_DEPTH = 64
_MOST_STEPS = 20_000
_SHOWN_DEPTH = 3
_SHOWN_PARTS = 8
_SHOWN_CHARACTERS = 300


class Mismatch(ValueError):
  """A value that a schema does not allow; the text says where and why.

  Args:
    text: function that returns the text. Most errors are caught where another
      alternative allows the value, and their text is never made.
  """

  def __init__(self, text: Callable[[], str]):
    super().__init__(text)
    self._text = text

  def __str__(self) -> str:
    return self._text()


@dataclasses.dataclass(frozen=True)
class Schema:
  """The schema of one value.

  Attributes:
    said: the schema, as JSON; anything but an object allows every value.
    root: the document that holds it; `$ref` names places in this document.
  """

  said: Any
  root: Any = None

  def kind(self) -> str:
    """Returns the type of the allowed values beside null, 'any' for several."""
    kinds = _kinds(self, 0)
    kinds = None if kinds is None else kinds - {'null'}
    if kinds == {'integer', 'number'}:
      return 'number'
    return kinds.pop() if kinds and len(kinds) == 1 else 'any'

  def shape(self) -> str:
    """Returns the allowed values in short words, such as 'array of integer'."""
    return _shape(self, 0)

  def checked(self, value: Any, name: str) -> Any:
    """Returns the value, integers that are written as 5.0 made integers.

    Args:
      value: JSON value.
      name: name of the value in messages.

    Raises:
      Mismatch: the schema does not allow the value.
    """
    return _Check().value(value, self, name, 0)

  def properties(self) -> tuple[dict[str, 'Schema'], frozenset[str]]:
    """Returns the schemas of an object's fields, and the required ones' names."""
    return _properties(self, 0)


def _parts(schema: Schema, *keywords: str) -> list[Schema]:
  """Returns the schemas in the lists of some keywords."""
  found = []
  for keyword in keywords:
    options = schema.said.get(keyword)
    if isinstance(options, list):
      found += [Schema(option, schema.root) for option in options]
  return found


def _target(schema: Schema) -> Schema | None:
  """Returns the schema that `$ref` names; None where there is none."""
  reference = schema.said.get('$ref')
  if not isinstance(reference, str) or not reference.startswith('#'):
    return None
  found = schema.root
  for step in reference[1:].split('/')[1:]:
    step = step.replace('~1', '/').replace('~0', '~')
    if not isinstance(found, Mapping) or step not in found:
      return None
    found = found[step]
  return Schema(found, schema.root)


def _choices(said: Mapping[str, Any]) -> list[Any] | None:
  """Returns the values of `const` or `enum`; None where there are none."""
  if 'const' in said:
    return [said['const']]
  return said['enum'] if isinstance(said.get('enum'), list) else None


def _types(said: Mapping[str, Any]) -> tuple[str, ...]:
  """Returns the types that `type` names; () where all are allowed."""
  given = said.get('type')
  types: list[Any] = given if isinstance(given, list) else [given]
  if not all(isinstance(t, str) and t in _KINDS for t in types):
    return ()
  is_nullable = said.get('nullable') is True  # As OpenAPI says it.
  return tuple(dict.fromkeys([*types, *(['null'] if is_nullable else [])]))


def _kinds(schema: Schema, depth: int) -> set[str] | None:
  """Returns the types of the allowed values; None for all."""
  if not isinstance(schema.said, Mapping) or depth > _SHOWN_DEPTH:
    return None
  if types := _types(schema.said):
    return set(types)
  if (choices := _choices(schema.said)) is not None:
    return {_kind_of(choice) for choice in choices}
  if options := _parts(schema, 'anyOf', 'oneOf'):
    found = [_kinds(option, depth + 1) for option in options]
    known = [kinds for kinds in found if kinds is not None]
    return set().union(*known) if len(known) == len(found) else None
  target = _target(schema)
  for part in ([target] if target else []) + _parts(schema, 'allOf'):
    if (kinds := _kinds(part, depth + 1)) is not None:
      return kinds
  return None


def _kind_of(value: Any) -> str:
  """Returns the JSON type of a value; that of 5.0 is 'number'."""
  if value is None:
    return 'null'
  for kind, types in (
    ('boolean', bool),
    ('integer', int),
    ('number', float),
    ('string', str),
    ('array', list),
  ):
    if isinstance(value, types):
      return kind
  return 'object'


def _shape(schema: Schema, depth: int) -> str:
  said = schema.said
  if not isinstance(said, Mapping) or depth > _SHOWN_DEPTH:
    return 'any'
  if (choices := _choices(said)) is not None:
    return f'one of {_json(choices)}'
  if types := _types(said):
    return ' or '.join(_shape_of(kind, schema, depth) for kind in types)
  if options := _parts(schema, 'anyOf', 'oneOf')[:_SHOWN_PARTS]:
    return ' or '.join(dict.fromkeys(_shape(option, depth + 1) for option in options))
  target = _target(schema)
  parts = ([target] if target else []) + _parts(schema, 'allOf')
  return _shape(parts[0], depth + 1) if parts else 'any'


def _shape_of(kind: str, schema: Schema, depth: int) -> str:
  said = schema.said
  if kind == 'array' and isinstance(said.get('items'), Mapping):
    return f'array of {_shape(Schema(said["items"], schema.root), depth + 1)}'
  if kind == 'object':
    fields, required = schema.properties()
    shown = [
      f'{_json(name)}: {_shape(field, depth + 1)}'
      + ('' if name in required else ' (optional)')
      for name, field in list(fields.items())[:_SHOWN_PARTS]
    ]
    if shown:
      more = ', ...' if len(fields) > _SHOWN_PARTS else ''
      return f'object {{{", ".join(shown)}{more}}}'
  return kind


def _properties(schema: Schema, depth: int) -> tuple[dict[str, Schema], frozenset[str]]:
  if not isinstance(schema.said, Mapping) or depth > _SHOWN_DEPTH:
    return {}, frozenset()
  fields, required = {}, set()
  target = _target(schema)
  for part in ([target] if target else []) + _parts(schema, 'allOf'):
    more, needed = _properties(part, depth + 1)
    fields |= more
    required |= needed
  own = schema.said.get('properties')
  if isinstance(own, Mapping):
    fields |= {str(k): Schema(v, schema.root) for k, v in own.items()}
  named = schema.said.get('required')
  if isinstance(named, list):
    required |= {name for name in named if isinstance(name, str)}
  return fields, frozenset(required)


class _Check:
  """One check of a value, within a bound on its steps."""

  def __init__(self):
    self._steps = 0

  def value(self, value: Any, schema: Schema, name: str, depth: int) -> Any:
    """Returns a value that the schema allows, as `Schema.checked`."""
    self._steps += 1
    said = schema.said
    if (
      not isinstance(said, Mapping) or self._steps > _MOST_STEPS or depth > _MOST_DEPTH
    ):
      return value
    if value is None and said.get('nullable') is True:
      return None
    if (choices := _choices(said)) is not None:
      for choice in choices:
        if _equal(choice, value):
          return choice
      raise _mismatch(value, name, schema)
    if types := _types(said):
      value = _of_types(value, types, name, schema)
    target = _target(schema)
    for part in ([target] if target else []) + _parts(schema, 'allOf'):
      value = self.value(value, part, name, depth + 1)
    for keyword in ('anyOf', 'oneOf'):
      value = self._any_of(value, _parts(schema, keyword), name, schema, depth)
    if isinstance(value, list):
      items = Schema(said.get('items'), schema.root)
      return [
        self.value(item, items, f'{name}[{i}]', depth + 1)
        for i, item in enumerate(value)
      ]
    if isinstance(value, dict):
      return self._object(value, schema, name, depth)
    return value

  def _any_of(self, value, options, name, schema, depth) -> Any:
    """Returns the value as the first option that allows it converts it."""
    failed = []
    for option in options:
      try:
        return self.value(value, option, name, depth + 1)
      except Mismatch as error:
        # The reason within an option of the value's own type says more.
        if _kind_of(value) in (_kinds(option, 0) or ()):
          failed.append(error)
    if len(failed) == 1:
      raise failed[0]
    if options:
      raise _mismatch(value, name, schema)
    return value

  def _object(self, value, schema, name, depth) -> dict[str, Any]:
    said = schema.said
    own = said.get('properties')
    own = own if isinstance(own, Mapping) else {}
    needed = said.get('required')
    for field in needed if isinstance(needed, list) else ():
      if field not in value:
        raise Mismatch(lambda field=field: f'{name} needs the field {_json(field)}')
    others = said.get('additionalProperties')
    return {
      key: self.value(
        item,
        Schema(own.get(key, others), schema.root),
        f'{name}[{_json(key)}]',
        depth + 1,
      )
      for key, item in value.items()
    }


def _of_types(value: Any, types: tuple[str, ...], name: str, schema: Schema) -> Any:
  """Returns a value of one of the types; 5.0 becomes the integer 5."""
  kind = _kind_of(value)
  if kind in types or (kind == 'integer' and 'number' in types):
    return value
  if kind == 'number' and 'integer' in types and _is_whole(value):
    return int(value)
  raise _mismatch(value, name, schema)


def _is_whole(value: float) -> bool:
  return math.isfinite(value) and value == int(value)


def _mismatch(value: Any, name: str, schema: Schema) -> Mismatch:
  def text():
    shown = schema.shape()[:_SHOWN_CHARACTERS]
    article = (
      ''
      if shown.startswith(('one of ', 'any', 'null'))
      else ('an ' if shown[:1] in 'aio' else 'a ')
    )
    given = 'null' if value is None else f'the {_kind_of(value)} {_json(value)}'
    return f'{name} must be {article}{shown}, not {given}'

  return Mismatch(text)


def _equal(a: Any, b: Any) -> bool:
  """Says whether two JSON values are the same: 1 is 1.0, and not true."""
  if isinstance(a, bool) or isinstance(b, bool):
    return a is b
  if isinstance(a, list) and isinstance(b, list):
    return len(a) == len(b) and all(map(_equal, a, b))
  if isinstance(a, dict) and isinstance(b, dict):
    return a.keys() == b.keys() and all(_equal(a[k], b[k]) for k in a)
  return a == b


def _json(value: Any) -> str:
  text = json.dumps(value, ensure_ascii=False)
  return text if len(text) <= _SHOWN_CHARACTERS else (f'{text[:_SHOWN_CHARACTERS]} ...')
