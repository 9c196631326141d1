"""Makes a tool from a user's own function: its docstring and types are the card."""

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
  str: 'string',
  int: 'integer',
  float: 'number',
  bool: 'boolean',
  list: 'array',
  tuple: 'array',
  dict: 'object',
}
_EXAMPLES = {
  'string': '...',
  'integer': 1,
  'number': 1.5,
  'boolean': True,
  'array': [],
  'object': {},
}
# Longest wait of a call for an idle process; it is not part of the call's time limit.
_QUEUE_SECONDS = 120.0


def make(path: str, name: str, *, seconds: float, processes: int) -> base.Tool:
  """Makes a tool of a function.

  The function's name is the tool's name. The first paragraph of the docstring is the
  tool's purpose, the following paragraphs are its limits, and the section Args
  describes the arguments. The annotations are the types of the arguments: str, int,
  float, bool, list, dict, a Literal, a union with None, and lists and dicts of these.
  The result is a text, or a value that becomes JSON. The message of a ValueError or a
  base.BadArguments is shown to the model; every other error counts as a failure of the
  tool, not of the policy.

  Args:
    path: path of the file that holds the function.
    name: name of the function.
    seconds: time limit of one call [s].
    processes: number of calls of a synchronous function at a time.

  Raises:
    own_functions.LoadError: the function cannot be loaded, or its docstring or an
      annotation is missing.
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
    card, call, timeout=seconds + _QUEUE_SECONDS, close=own.aclose, version=own.version
  )


def card_of(function: Callable[..., Any], name: str, bound: int = 0) -> base.Card:
  """Returns the card of a function.

  Args:
    function: function with a docstring and annotations.
    name: name of the tool.
    bound: number of leading parameters that a call does not give, such as the state
      that a tool of a world acts on.

  Raises:
    ValueError: the docstring or an annotation is missing, or an annotation is not
      supported.
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
  for parameter in list(inspect.signature(function).parameters.values())[bound:]:
    where = f'{name}: the argument {parameter.name!r}'
    if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
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
    return {'type': 'object', 'additionalProperties': _schema(parts[1], where)}
  raise ValueError(
    f'{where} is annotated with {hint}; str, int, float, bool, list, dict,'
    ' Literal and unions of these are supported'
  )


def _example(arguments: list[base.Argument]) -> str:
  needed = [a for a in arguments if a.required] or arguments[:1]
  values = []
  for argument in needed:
    said = argument.schema.said if argument.schema else {}
    value = said['enum'][0] if 'enum' in said else _EXAMPLES.get(argument.type, '...')
    shown = json.dumps(value) if isinstance(value, str) else repr(value)
    values.append(f'{argument.name}={shown}')
  return f'execution = tool.execute({", ".join(values)})'
