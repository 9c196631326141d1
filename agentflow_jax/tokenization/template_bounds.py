"""Bounds on the time and memory that a chat template can take.

A template is somebody else's program. `'x' * 10**10`, `'%9999999999d' % 1`,
`'x'|center(10**10)` and `9**(9**9)` each take more memory or time than a machine has,
in one operation that cannot be interrupted. Loops, and texts that are doubled again and
again, take as much in many operations. Released templates stay far below these bounds.
"""

import contextlib
import contextvars
import functools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

# Characters of a text, and entries of a list, that one operation makes.
_MOST_CHARACTERS = 1 << 22
_MOST_ENTRIES = 1 << 18
# Iterations of loops, and characters of all texts, of one rendered prompt.
_MOST_STEPS = 100_000
_MOST_WRITTEN = 1 << 26
# Columns that a text is padded to, or its lines are indented by.
_WIDEST = 10_000
_MOST_BITS = 1 << 14
_DIGITS = len(str(_WIDEST))
_WIDE_PERCENT = re.compile(rf'%(?:\([^)]*\))?[^%a-zA-Z(]*\d{{{_DIGITS}}}')
_WIDE_BRACES = re.compile(rf'\{{[^{{}}]*:[^{{}}]*\d{{{_DIGITS}}}')
_NESTED_BRACES = re.compile(r'\{[^}]*\{')
# Methods of str that pad; each makes as many characters as an argument says.
_PADDING = frozenset({'center', 'expandtabs', 'ljust', 'rjust', 'zfill'})
_REFUSED = frozenset({'maketrans', 'translate'})


class TooMuch(ValueError):
  """An operation whose result would exceed a bound."""


class _Budget:
  """Remaining loop iterations and characters of one prompt."""

  def __init__(self):
    self.steps, self.characters = _MOST_STEPS, _MOST_WRITTEN


_LEFT: contextvars.ContextVar[_Budget | None] = contextvars.ContextVar(
  'left', default=None
)


@contextlib.contextmanager
def budget() -> Iterator[None]:
  """Bounds the loops and texts of the one prompt that is rendered in its body."""
  token = _LEFT.set(_Budget())
  try:
    yield
  finally:
    _LEFT.reset(token)


def tick() -> str:
  """Counts one iteration of a loop; returns an empty text for the template.

  Raises:
    TooMuch: the loops of the prompt have taken too many iterations.
  """
  left = _LEFT.get()
  if left is not None:
    left.steps -= 1
    if left.steps < 0:
      raise TooMuch(f'loops of more than {_MOST_STEPS} iterations')
  return ''


def check_operation(operator: str, left: Any, right: Any) -> None:
  """Checks a binary operation before it is done.

  Args:
    operator: one of '+', '*', '**' and '%'.
    left: left operand.
    right: right operand.

  Raises:
    TooMuch: the result would be too long, too wide or too large a number.
  """
  if operator == '%':
    if isinstance(left, str):
      check_percent(left, right if isinstance(right, tuple) else (right,))
  elif operator == '+':
    if _is_sequence(left) and _is_sequence(right):
      _check_length(left, len(left) + len(right))
  elif operator == '*':
    for one, times in ((left, right), (right, left)):
      if _is_sequence(one) and isinstance(times, int):
        _check_length(one, len(one) * times)
    if isinstance(left, int) and isinstance(right, int):
      _check_bits(left.bit_length() + right.bit_length())
  elif isinstance(left, int) and isinstance(right, int):
    _check_bits(left.bit_length() * abs(right))


def check_method(
  text: str, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> None:
  """Checks the call of a method of a text.

  Args:
    text: text whose method is called.
    name: name of the method.
    args: arguments by place.
    kwargs: arguments by name.

  Raises:
    TooMuch: the result would be too long, or the method is refused.
  """
  values = [*args, *kwargs.values()]
  if name in _REFUSED:
    raise TooMuch(f'str.{name} is not for chat templates')
  if name in _PADDING:
    check_widths(values)
    _check_length(
      '',
      len(text)
      + max(filter(_is_number, values), default=8)
      * (text.count('\t') if name == 'expandtabs' else 1),
    )
  elif name == 'replace':
    old, new = (list(filter(lambda v: isinstance(v, str), values)) + ['', ''])[:2]
    check_replacement(text, kwargs.get('old', old), kwargs.get('new', new))


def check_replacement(text: Any, old: Any, new: Any) -> None:
  """Raises TooMuch where text.replace(old, new) would be too long."""
  if all(isinstance(part, str) for part in (text, old, new)) and new:
    _check_length(text, len(text) + text.count(old) * len(new))


def check_widths(values: Iterable[Any]) -> None:
  """Raises TooMuch where a value is a number of columns that is too large."""
  for value in values:
    if isinstance(value, int) and value > _WIDEST:
      raise TooMuch(f'a width or a number of {value:.3g}; {_WIDEST} at most')


def check_percent(pattern: str, values: Iterable[Any]) -> None:
  """Raises TooMuch where pattern % values would be padded too much, or too long."""
  if '*' in pattern or _WIDE_PERCENT.search(pattern):
    raise TooMuch(f'a width of more than {_WIDEST}, or one that is a value')
  _check_filled(pattern, pattern.count('%'), values)


def check_braces(pattern: str, values: Iterable[Any]) -> None:
  """Raises TooMuch where pattern.format(*values) would be too wide or too long."""
  fields = pattern.replace('{{', '').replace('}}', '')
  if _NESTED_BRACES.search(fields) or _WIDE_BRACES.search(pattern):
    raise TooMuch(f'a width of more than {_WIDEST}, or one that is a value')
  _check_filled(pattern, fields.count('{'), values)


def check_parts(parts: Iterable[Any]) -> None:
  """Raises TooMuch where the joined texts would be too long."""
  _check_length('', sum(len(part) for part in parts))


def check_added(values: Iterable[Any]) -> None:
  """Raises TooMuch where the sum of lists or texts would be too long."""
  parts = [value for value in values if _is_sequence(value)]
  if parts:
    _check_length(parts[0], sum(map(len, parts)))


def check_written(value: Any) -> Any:
  """Returns a value that is about to be written as text, if that is short enough.

  The text of a list that holds one list twice, which holds another one twice, and so
  on, doubles in length with each level.

  Raises:
    TooMuch: the text would be too long.
  """
  if isinstance(value, list | tuple | dict | set):
    waiting, length = [value], 0
    while waiting:
      one = waiting.pop()
      if isinstance(one, dict):
        waiting += [*one.keys(), *one.values()]
      elif isinstance(one, list | tuple | set):
        waiting += one
      length += len(one) if isinstance(one, str) else 1
      if length + len(waiting) > _MOST_ENTRIES:
        raise TooMuch(f'the text of a value of more than {_MOST_ENTRIES} parts')
  return value


def bounded(a_filter: Callable[..., Any]) -> Callable[..., Any]:
  """Returns a filter of jinja whose numbers, values and result are checked."""

  @functools.wraps(a_filter)
  def checked(*args, **kwargs):
    values = [*args, *kwargs.values()]
    check_widths(values[1:])  # The first value is the one that is filtered.
    for value in values:
      check_written(value)
    result = a_filter(*args, **kwargs)
    if _is_sequence(result):
      _check_length(result, len(result))
    return result

  return checked


def _check_filled(pattern: str, fields: int, values: Iterable[Any]) -> None:
  """Checks the length of a pattern whose fields are filled with values."""
  longest = 0
  for value in values:
    check_written(value)
    within = value.values() if isinstance(value, Mapping) else (value,)
    longest = max(longest, *(len(v) for v in within if isinstance(v, str)), 0)
  _check_length('', len(pattern) + fields * longest)


def _is_number(value: Any) -> bool:
  return isinstance(value, int) and not isinstance(value, bool)


def _is_sequence(value: Any) -> bool:
  return isinstance(value, str | bytes | list | tuple)


def _check_length(kind: Any, length: int) -> None:
  is_text = isinstance(kind, str | bytes)
  most = _MOST_CHARACTERS if is_text else _MOST_ENTRIES
  if length > most:
    raise TooMuch(
      f'a {"text" if is_text else "list"} of length {length:.3g}; {most} at most'
    )
  left = _LEFT.get()
  if left is not None:
    left.characters -= length
    if left.characters < 0:
      raise TooMuch(f'texts of more than {_MOST_WRITTEN} characters in all')


def _check_bits(bits: int) -> None:
  if bits > _MOST_BITS:
    raise TooMuch(f'a number of {bits:.3g} bits; {_MOST_BITS} at most')
