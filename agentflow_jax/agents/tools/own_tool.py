"""Tools of a user's own: a typed function with a docstring is a card and a call."""

import inspect
import json
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

import docstring_parser

from agentflow_jax.agents import own_functions
from agentflow_jax.agents.tools import base, json_schema

_KINDS = {
    str: 'string', int: 'integer', float: 'number', bool: 'boolean',
    list: 'array', tuple: 'array', dict: 'object',
}
_EXAMPLES = {
    'string': '...', 'integer': 1, 'number': 1.5, 'boolean': True, 'array': [],
    'object': {},
}
# A call may wait so long for a process, which is not the function's time.
_QUEUE_SECONDS = 120.0


def make(path: str, name: str, *, seconds: float, processes: int) -> base.Tool:
  """Makes a tool of a function.

  The function's name is the tool's, the first paragraph of its docstring says what
  it is for, the next ones are its limits, and the section Args describes the
  arguments. Their annotations are their types: str, int, float, bool, list, dict,
  a Literal, a union with None, and lists and dicts of these. What the function
  returns is the result: a text, or a value that becomes JSON. ValueError, or
  base.BadArguments, is text for the model; every other error counts as a failure
  of the tool, whatever the model did.

  Args:
    path: path of the file that holds the function.
    name: name of the function.
    seconds: time limit of one call [s].
    processes: number of calls of a synchronous function at a time.

  Raises:
    own_functions.LoadError: it cannot be loaded, or lacks its docstring or an
      annotation.
  """
  own = own_functions.Own(path, name, 'tool', seconds, processes)
  try:
    card = card_of(own.function, name)
  except ValueError as e:
    raise own_functions.LoadError(f'{path}: {e}') from e

  async def call(arguments: Mapping[str, Any]) -> str:
    try:
      return await own(arguments)
    except own_functions.Refused as e:
      raise base.BadArguments(str(e)) from e
    except (own_functions.Failed, own_functions.TimedOut) as e:
      raise base.ToolUnreachable(str(e)) from e

  return base.Tool(
      card, call, timeout=seconds + _QUEUE_SECONDS, close=own.aclose,
      version=own.version,
  )


def card_of(function: Callable[..., Any], name: str) -> base.Card:
  """Returns the card of a function.

  Args:
    function: function with a docstring and annotations.
    name: name of the tool.

  Raises:
    ValueError: the docstring, or an annotation, is missing or is of no use.
  """
  docs = docstring_parser.parse(inspect.getdoc(function) or '')
  purpose, limits = _paragraphs(docs)
  if not purpose:
    raise ValueError(
        f'{name} needs a docstring: its first paragraph tells the planner what the'
        ' tool is for'
    )
  try:
    hints = typing.get_type_hints(function)
  except (AttributeError, NameError, SyntaxError, TypeError) as e:
    raise ValueError(f'{name}: an annotation cannot be resolved: {e}') from e
  described = {p.arg_name: p.description or '' for p in docs.params}
  arguments = []
  for parameter in inspect.signature(function).parameters.values():
    where = f'{name}: the argument {parameter.name!r}'
    if parameter.kind not in (
        parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY
    ):
      raise ValueError(f'{where}: *args and **kwargs are not supported')
    if parameter.name not in hints:
      raise ValueError(f'{where} needs an annotation, such as str')
    said = _schema(hints[parameter.name], where)
    schema = json_schema.Schema(said)
    arguments.append(
        base.Argument(
            parameter.name,
            ' '.join(described.get(parameter.name, '').split()),
            schema.kind(),
            parameter.default is parameter.empty,
            schema if set(said) - {'type'} else None,
        )
    )
  return base.Card(
      name=name,
      purpose=purpose,
      arguments=tuple(arguments),
      examples=(_example(arguments),),
      limits=limits,
  )


def _paragraphs(docs: docstring_parser.Docstring) -> tuple[str, str]:
  """Returns the first paragraph of a docstring, and the others, each on one line."""
  first, rest = docs.short_description or '', docs.long_description or ''
  if not docs.blank_after_short_description:
    more, _, rest = rest.partition('\n\n')
    first = f'{first} {more}'
  return ' '.join(first.split()), ' '.join(rest.split())


def _schema(hint: Any, where: str) -> dict[str, Any]:
  """Returns the JSON schema of an annotation."""
  origin, parts = typing.get_origin(hint), typing.get_args(hint)
  if hint is Any:
    return {}
  if hint in _KINDS:
    return {'type': _KINDS[hint]}
  if hint is type(None):
    return {'type': 'null'}
  if origin is typing.Literal:
    return {'enum': list(parts)}
  if origin in (typing.Union, types.UnionType):
    return {'anyOf': [_schema(part, where) for part in parts]}
  if origin is list and len(parts) == 1:
    return {'type': 'array', 'items': _schema(parts[0], where)}
  if origin is dict and len(parts) == 2 and parts[0] is str:
    return {
        'type': 'object', 'additionalProperties': _schema(parts[1], where)
    }
  raise ValueError(
      f'{where} is annotated with {hint}; str, int, float, bool, list, dict,'
      ' Literal and unions of these are understood'
  )


def _example(arguments: list[base.Argument]) -> str:
  needed = [a for a in arguments if a.required] or arguments[:1]
  values = []
  for argument in needed:
    said = argument.schema.said if argument.schema else {}
    value = said['enum'][0] if 'enum' in said else _EXAMPLES.get(
        argument.type, '...'
    )
    shown = json.dumps(value) if isinstance(value, str) else repr(value)
    values.append(f'{argument.name}={shown}')
  return f'execution = tool.execute({", ".join(values)})'
