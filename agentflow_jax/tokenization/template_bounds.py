"""Bounds on what a few characters of a chat template may ask for.

A template is somebody else's program. `'x' * 10**10`, `'%9999999999d' % 1`,
`'x'|center(10**10)` and `9**9**9` each ask for more memory or time than there is,
in one operation that nothing can interrupt. No template that was released comes near
these bounds.
"""

import functools
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

# Characters of a text, and entries of a list, that one operation makes.
_MOST_CHARACTERS = 1 << 24
_MOST_ENTRIES = 1 << 20
# Columns that a text is padded to, or its lines are indented by.
_WIDEST = 10_000
_MOST_BITS = 1 << 14
_DIGITS = len(str(_WIDEST))
_WIDE_PERCENT = re.compile(rf'%[^%a-zA-Z]*\d{{{_DIGITS}}}')
_WIDE_BRACES = re.compile(rf'\{{[^{{}}]*:[^{{}}]*\d{{{_DIGITS}}}')
# Methods of str that pad; each makes as many characters as an argument says.
_PADDING = frozenset({'center', 'expandtabs', 'ljust', 'rjust', 'zfill'})
_REFUSED = frozenset({'maketrans', 'translate'})


class TooMuch(ValueError):
  """An operation whose result would exceed a bound."""


def check_operation(operator: str, left: Any, right: Any) -> None:
  """Checks a binary operation before it is done.

  Args:
    operator: '+', '*', '**' or '%'.
    left: the left operand.
    right: the right operand.

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
    text: the text.
    name: the method's name.
    args: arguments by place.
    kwargs: arguments by name.

  Raises:
    TooMuch: the result would be too long, or the method is refused.
  """
  if name in _REFUSED:
    raise TooMuch(f'str.{name} is not for chat templates')
  if name in _PADDING:
    check_widths([*args, *kwargs.values()])
  elif name == 'replace' and len(args) >= 2:
    check_replacement(text, *args[:2])


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
  """Raises TooMuch where pattern % values would be padded too much."""
  if _WIDE_PERCENT.search(pattern):
    raise TooMuch(f'a width of more than {_WIDEST} in a format')
  if '*' in pattern:
    check_widths(values)


def check_braces(pattern: str, values: Iterable[Any]) -> None:
  """Raises TooMuch where pattern.format(*values) would be padded too much."""
  if _WIDE_BRACES.search(pattern):
    raise TooMuch(f'a width of more than {_WIDEST} in a format')
  if re.search(r':[^{}]*\{', pattern):  # A width that is a value.
    check_widths(values)


def check_parts(parts: Iterable[Any]) -> None:
  """Raises TooMuch where the joined texts would be too long."""
  _check_length('', sum(len(part) for part in parts))


def narrow(a_filter: Callable[..., Any]) -> Callable[..., Any]:
  """Returns a filter of jinja that refuses widths and numbers that are too large."""

  @functools.wraps(a_filter)
  def checked(*args, **kwargs):
    check_widths([*args, *kwargs.values()])
    return a_filter(*args, **kwargs)

  return checked


def _is_sequence(value: Any) -> bool:
  return isinstance(value, str | bytes | list | tuple)


def _check_length(kind: Any, length: int) -> None:
  is_text = isinstance(kind, str | bytes)
  most = _MOST_CHARACTERS if is_text else _MOST_ENTRIES
  if length > most:
    raise TooMuch(
        f'a {"text" if is_text else "list"} of length {length:.3g}; {most} at most'
    )


def _check_bits(bits: int) -> None:
  if bits > _MOST_BITS:
    raise TooMuch(f'a number of {bits:.3g} bits; {_MOST_BITS} at most')
