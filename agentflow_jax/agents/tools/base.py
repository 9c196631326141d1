"""What a tool is: a card for the planner and an asynchronous call."""

import contextlib
import contextvars
import dataclasses
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any

from agentflow_jax import records
from agentflow_jax.agents.tools import json_schema

# The request that a tool call belongs to, set by whoever makes the call around
# it. A tool that samples derives its own randomness from this (contract 4).
request_key: contextvars.ContextVar[records.RequestKey | None] = contextvars.ContextVar(
  'request_key', default=None
)
# What the call under way counts, for reports; set likewise.
_counts: contextvars.ContextVar[dict[str, int] | None] = contextvars.ContextVar(
  'counts', default=None
)
# Calls that a program makes inside the current call; set by the caller of a tool.
_inner: contextvars.ContextVar[
  list[tuple[records.ToolCall, records.ToolResult]] | None
] = contextvars.ContextVar('inner', default=None)


class BadArguments(Exception):
  """The call's arguments caused the error; its text is for the model."""


class ToolUnreachable(Exception):
  """The tool's host failed; the rollout leaves the statistics."""


class ToolUnavailable(Exception):
  """The tool cannot work on this machine; names the remedy. At start only."""


@contextlib.contextmanager
def counting() -> Iterator[dict[str, int]]:
  """Yields what tool calls inside `count`, by name."""
  counts: dict[str, int] = {}
  with _set(_counts, counts):
    yield counts


@contextlib.contextmanager
def _set(variable: contextvars.ContextVar, value: Any) -> Iterator[None]:
  """Sets a variable for the body."""
  token = variable.set(value)
  try:
    yield
  finally:
    variable.reset(token)


def count(name: str, times: int = 1) -> None:
  """Counts something of the call under way that reports should show."""
  counts = _counts.get()
  if counts is not None and times:
    counts[name] = counts.get(name, 0) + times


@contextlib.contextmanager
def noting_calls() -> Iterator[list[tuple[records.ToolCall, records.ToolResult]]]:
  """Yields what tools inside `note_call`, in order: ToolResult.inner."""
  inner = []
  with _set(_inner, inner):
    yield inner


def note_call(call: records.ToolCall, result: records.ToolResult) -> None:
  """Notes a call that a program made inside the call under way."""
  inner = _inner.get()
  if inner is not None:
    inner.append((call, result))


@dataclasses.dataclass(frozen=True)
class Argument:
  """One argument of a tool.

  Attributes:
    name: name of the argument in a call.
    description: text for the modules: what the argument means.
    type: 'string', 'number', 'integer', 'boolean', 'array', 'object' or 'any'.
    required: False where a call may leave the argument out.
    schema: JSON schema of the argument where a type says too little, such as
      "a string or null"; None for the type alone.
  """

  name: str
  description: str
  type: str = 'string'
  required: bool = True
  schema: json_schema.Schema | None = dataclasses.field(
    default=None, hash=False, repr=False
  )


@dataclasses.dataclass(frozen=True)
class Card:
  """What the planner and the executor read of a tool.

  Attributes:
    name: name of the tool in plans.
    purpose: one sentence: what it is for.
    arguments: the schema; the first one takes a rule executor's text.
    examples: calls in the form `execution = tool.execute(name="...")`.
    limits: restrictions of the tool, and its bounds (seconds, characters).
    functions: cards of the tools that a program given to it may call; empty for a
      tool that runs no program.
  """

  name: str
  purpose: str
  arguments: tuple[Argument, ...]
  examples: tuple[str, ...] = ()
  limits: str = ''
  functions: 'tuple[Card, ...]' = ()


def schema_of(card: Card) -> dict[str, Any]:
  """Returns the JSON schema of the object of a tool's arguments."""
  properties = {}
  for argument in card.arguments:
    said = argument.schema.said if argument.schema else None
    if not isinstance(said, dict):  # A schema may also be true or false.
      said = {} if argument.type == 'any' else {'type': argument.type}
    described = {'description': argument.description} if argument.description else {}
    properties[argument.name] = {**said, **described}
  return {
    'type': 'object',
    'properties': properties,
    'required': [a.name for a in card.arguments if a.required],
  }


@dataclasses.dataclass(frozen=True)
class Tool:
  """A card and the call behind it.

  Attributes:
    card: description of the tool for the modules.
    call: function that takes checked arguments and returns the text of the result;
      raises `BadArguments` (text for the model) or `ToolUnreachable`. Any other error
      is a bug in the tool.
    timeout: seconds after which the rollout gives the call up.
    close: function that releases processes and files; awaited once, at the end.
    arguments_set_time: True where a call that runs out of time does so because
      of its arguments (a program that loops), so that the policy answers for
      it; False where the time is the host's.
    version: everything that a result depends on besides the arguments (settings, the
      collection that is searched): part of the name of a recorded call.
    notice: sentence for the user about how the tool runs on this machine, which
      commands show at start; '' for none.
  """

  card: Card
  call: Callable[[Mapping[str, Any]], Awaitable[str]]
  timeout: float = 30.0
  close: Callable[[], Awaitable[None]] | None = None
  arguments_set_time: bool = False
  version: str = ''
  notice: str = ''


def check_arguments(card: Card, arguments: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the arguments in the types of the card's schema: 5.0 becomes 5.

  Raises:
    BadArguments: the arguments do not fit the schema.
  """
  known = {a.name: a for a in card.arguments}
  checked = {}
  for name, value in arguments.items():
    if name not in known:
      raise BadArguments(
        f'{card.name} has no argument {name!r}; it takes {sorted(known)}'
      )
    said = known[name].type
    schema = known[name].schema or json_schema.Schema(
      {} if said == 'any' else {'type': said}
    )
    try:
      checked[name] = schema.checked(value, name)
    except json_schema.Mismatch as error:
      can_lack = value is None and not known[name].required
      remedy = '; leave it out instead' if can_lack else ''
      raise BadArguments(f'{card.name}: {error}{remedy}') from error
  for argument in card.arguments:
    if argument.required and argument.name not in arguments:
      raise BadArguments(f'{card.name} needs the argument {argument.name!r}')
  return checked
