"""What sandboxes with a namespace that lives on over programs have in common.

A session is a value: the bytes that a program left, which the next one begins with. So
nothing is lost with a process, and a fork is a copy.
"""

import dataclasses
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol

from agentflow_jax.agents.tools.python import sandbox

# Longest text of a program's last value, and most names that an observation lists.
_SHOWN_VALUE = 2000
_SHOWN_NAMES = 20
# Bounds of the arguments of a call: they become records.
_DEEPEST = 20
_MOST_ITEMS = 20_000
_MOST_CHARACTERS = 20_000
_MOST_BITS = 1024


class CallFailed(Exception):
  """A call of a program failed: the exception that the program sees."""


class Finished(Exception):
  """A call of a program ended the episode: the program does not go on."""


# Function that a program's call goes to: name, positional and named arguments.
Caller = Callable[[str, Sequence[Any], Mapping[str, Any]], Awaitable[str]]


@dataclasses.dataclass(frozen=True)
class Limits:
  """Bounds of a session.

  Attributes:
    program: bounds of one program.
    state_bytes: largest size of the namespace between programs [bytes].
    calls: largest number of calls that one program makes.
  """

  program: sandbox.Limits = sandbox.Limits()
  state_bytes: int = 2**20
  calls: int = 200

  def __post_init__(self):
    for name in ('state_bytes', 'calls'):
      if getattr(self, name) < 1:
        raise ValueError(f'{name} must be at least 1: {getattr(self, name)}')


@dataclasses.dataclass(frozen=True)
class Start:
  """The beginning of a session, which all its programs share.

  Attributes:
    functions: names of the functions that a program may call.
    seed: seed of the module random.
    date: date of the clock, YYYY-MM-DD; it stands still.
  """

  functions: tuple[str, ...]
  seed: str
  date: str = '2000-01-01'


@dataclasses.dataclass(frozen=True)
class Outcome:
  """The outcome of a program.

  Attributes:
    state: namespace after it; the one before it where the program was stopped.
    output: text that it printed, at most the limit's bytes.
    cut: whether it printed more.
    value: text of the value of its last expression; '' where that is no expression,
      or None.
    error: sentence on why it failed; '' where it did not.
    stopped: whether it was stopped at a limit, so that its names are lost.
    forgotten: whether all names are lost, because earlier programs could not be
      repeated as they were.
    finished: whether a call of it ended the episode.
    variables: type by name, of what the namespace holds.
  """

  state: bytes
  output: str = ''
  cut: bool = False
  value: str = ''
  error: str = ''
  stopped: bool = False
  forgotten: bool = False
  finished: bool = False
  variables: Mapping[str, str] = dataclasses.field(default_factory=dict)


class Sessions(Protocol):
  """A sandbox that was tried and found working.

  Attributes:
    name: 'monty' or 'bubblewrap'.
    card_limits: restrictions of its programs, in words for the tool's card.
  """

  name: str
  card_limits: str

  async def run(
    self, state: bytes, program: str, call: Caller, start: Start
  ) -> Outcome:
    """Runs a program.

    Args:
      state: namespace that an earlier program left; b'' for an empty one.
      program: text of the program.
      call: function that the program's calls go to. What it raises, other than
        CallFailed and Finished, ends the program and is raised here.
      start: beginning of the session, the same for all its programs.

    Raises:
      tools.base.ToolUnreachable: the sandbox failed.
    """
    ...

  async def close(self) -> None:
    """Ends its processes."""


class OutputBuffer:
  """The text that a program prints, up to a limit."""

  def __init__(self, most_bytes: int):
    self._most, self._size, self._pieces = most_bytes, 0, []
    self.cut = False

  def add(self, text: str) -> None:
    """Keeps what of a text is within the limit."""
    said = text.encode('utf-8', 'replace')
    if len(said) > self._most - self._size:
      self.cut = True
      said = said[: self._most - self._size]
    self._size += len(said)
    self._pieces.append(said)

  @property
  def text(self) -> str:
    """The text so far; a character that is cut in two is left out."""
    return b''.join(self._pieces).decode('utf-8', 'ignore')


def observation(outcome: Outcome, limits: Limits, written: Sequence[str]) -> str:
  """Returns the text of a program's outcome for the model.

  Args:
    outcome: outcome of the program.
    limits: bounds of the session.
    written: calls that were made, in words; listed where the program was stopped,
      because what they wrote stays written.
  """
  lines = [outcome.output.rstrip('\n')] if outcome.output.strip('\n') else []
  if outcome.cut:
    lines.append(
      f'... (cut: the program printed over {limits.program.output_bytes} bytes)'
    )
  if outcome.value:
    lines.append(outcome.value[:_SHOWN_VALUE])
  if outcome.error:
    lines.append(f'The program failed: {outcome.error[:500]}')
  if outcome.stopped:
    lines.append(
      'All names are lost.'
      if outcome.forgotten
      else 'Its names are lost; those from before are as they were.'
    )
    if written:
      lines.append(f'These calls were made, and stay made: {"; ".join(written)}')
  names = [f'{name} ({kind})' for name, kind in sorted(outcome.variables.items())]
  more = len(names) - _SHOWN_NAMES
  said = ', '.join(names[:_SHOWN_NAMES]) + (f' and {more} more' if more > 0 else '')
  return '\n'.join([*lines, f'Names: {said or "none"}'])


def plain(value: Any) -> Any:
  """Returns a program's value as one that JSON holds: tuples become lists.

  Raises:
    CallFailed: it is of another type, or too large.
  """
  items, characters = _MOST_ITEMS, _MOST_CHARACTERS

  def text(said):
    nonlocal characters
    characters -= len(said)
    if characters < 0:
      raise CallFailed(f'an argument holds more than {_MOST_CHARACTERS:,} characters')
    return said.encode('utf-8', 'replace').decode()

  def read(value, depth):
    nonlocal items
    items -= 1
    if depth > _DEEPEST or items < 0:
      raise CallFailed('an argument is too large or too deep')
    if value is None or isinstance(value, bool):
      return value
    if isinstance(value, str):
      return text(value)
    if isinstance(value, int):
      if value.bit_length() > _MOST_BITS:
        raise CallFailed('an argument holds a number that is too large')
      return value
    if isinstance(value, float) and math.isfinite(value):
      return value
    if isinstance(value, (list, tuple)):
      return [read(item, depth + 1) for item in value]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
      return {text(key): read(item, depth + 1) for key, item in value.items()}
    raise CallFailed(
      'arguments are texts, numbers, booleans, None, and lists and dicts with'
      f' texts as keys of these; this one holds a {type(value).__name__}'
    )

  return read(value, 0)


def shown(value: Any) -> str:
  """Returns the text of a program's value, as repr has it, up to a bound.

  A value may share its parts, so that its text is far larger than itself; sets are
  sorted, because their order differs between processes.
  """
  pieces, left = [], _SHOWN_VALUE

  def write(text):
    nonlocal left
    pieces.append(text[: max(left, 0)])
    left -= len(text)

  def several(items, begin, end, depth):
    write(begin)
    for i, item in enumerate(items):
      if left <= 0:
        break
      write(', ' if i else '')
      read(item, depth + 1)
    write(end)

  def read(value, depth):
    if left <= 0:
      return
    if depth > _DEEPEST:
      write('...')
    elif isinstance(value, str):
      write(repr(value[:_SHOWN_VALUE]))
    elif isinstance(value, int) and value.bit_length() > _MOST_BITS:
      write(f'<a number of {value.bit_length()} bits>')
    elif isinstance(value, list):
      several(value, '[', ']', depth)
    elif isinstance(value, tuple):
      several(value, '(', ',)' if len(value) == 1 else ')', depth)
    elif isinstance(value, (set, frozenset)):
      several(_sorted(value), '{' if value else 'set(', '}' if value else ')', depth)
    elif isinstance(value, dict):
      write('{')
      for i, (key, item) in enumerate(value.items()):
        if left <= 0:
          break
        write(', ' if i else '')
        read(key, depth + 1)
        write(': ')
        read(item, depth + 1)
      write('}')
    elif isinstance(value, (bytes, bytearray)):
      write(repr(value[:_SHOWN_VALUE]))
    elif value is None or isinstance(value, (bool, int, float)):
      write(repr(value))
    else:
      write(f'<{type(value).__name__} {str(value)[:100]}>')

  read(value, 0)
  return ''.join(pieces) + (' ...' if left < 0 else '')


def _sorted(values: Any) -> list[Any]:
  """Returns the items of a set in the order of their texts."""
  return sorted(list(values)[:_MOST_ITEMS], key=lambda v: (type(v).__name__, shown(v)))
