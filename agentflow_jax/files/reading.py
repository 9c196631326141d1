r"""JSON and JSON lines, read the same way everywhere.

JSON is what RFC 8259 says: UTF-8, where a byte order mark is accepted at the
start, and without NaN and Infinity, which Python's own reader accepts, and also
makes of a number that no float holds, such as 1e999. A line of a JSON lines file
ends at "\n" and nowhere else: a text may hold U+2028, U+0085
and the other characters at which `str.splitlines` would cut it.

A reader that does more with a file's content does it inside `boundary`, which turns
every error of a broken file into one line that names the file.
"""

import contextlib
import dataclasses
import json
import math
import os
import stat
import struct
from collections.abc import Iterator
from typing import Any

from etils import epath

from agentflow_jax.files import paths

_BYTE_ORDER_MARK = b'\xef\xbb\xbf'
# Errors that the content of a file, or the operating system, may cause in a reader.
_BROKEN = (
  ArithmeticError,
  AttributeError,
  EOFError,
  LookupError,
  OSError,
  RecursionError,
  TypeError,
  ValueError,
  struct.error,
)
_LONGEST_REASON = 300


class FileError(ValueError):
  """A file that cannot be read as JSON; names the file, and the line if any."""


@contextlib.contextmanager
def boundary(
  path: str | os.PathLike[str],
  error: type[ValueError] = FileError,
  *others: type[Exception],
  what: str = '',
) -> Iterator[None]:
  """Turns the errors of reading a broken file into one line that names the file.

  Args:
    path: file that the body reads.
    error: error class that the reader documents; the body may raise it, too.
    *others: further error classes that pass unchanged, because they name the file.
    what: name of the part of the file that is read, for the message.

  Raises:
    FileNotFoundError: there is no such file.
    error: the path is not a regular file (a socket, a FIFO, a directory), or its
      content is broken; the message names the path.
  """
  try:
    refuse_special(path)
    yield
  except (error, *others, FileNotFoundError):
    raise
  except FileError as e:  # Names the file.
    raise error(str(e)) from e
  except _BROKEN as e:
    part = f'{what}: ' if what else ''
    raise error(f'{path}: {part}{_reason(e)}') from e


def refuse_special(path: str | os.PathLike[str]) -> None:
  """Refuses sockets, FIFOs, devices and directories; reading may wait for ever.

  Raises:
    FileError: the path is not a regular file.
  """
  if not paths.is_local(path):
    return
  try:
    mode = os.stat(path).st_mode
  except (OSError, ValueError):  # Opening the file gives the better message.
    return
  if not stat.S_ISREG(mode):
    kinds = {
      stat.S_IFDIR: 'a directory',
      stat.S_IFIFO: 'a FIFO',
      stat.S_IFSOCK: 'a socket',
    }
    kind = kinds.get(stat.S_IFMT(mode), 'a device')
    raise FileError(f'{path} is {kind}, not a file')


@dataclasses.dataclass(frozen=True)
class Line:
  """One line of a JSON lines file that is not blank.

  Attributes:
    where: file and line number, such as 'tasks.jsonl:3', for error messages.
    number: line number, from 1; blank lines count.
    start: offset of the line in the file [bytes].
    length: length of the line, with its line end [bytes].
    value: parsed JSON value.
  """

  where: str
  number: int
  start: int
  length: int
  value: Any


def parse(data: bytes, *, allows_nan: bool = False) -> Any:
  """Parses one JSON text.

  Args:
    data: UTF-8 text; a byte order mark at its start is skipped.
    allows_nan: whether NaN, Infinity and -Infinity are read as floats, as in
      files that Python's `json` wrote.

  Raises:
    ValueError: the bytes are not UTF-8, or not JSON.
  """
  try:
    text = data.removeprefix(_BYTE_ORDER_MARK).decode('utf-8')
  except UnicodeDecodeError as e:
    raise ValueError(
      f'not UTF-8 text: byte {data[e.start]:#04x} at offset {e.start}; save'
      ' the file as UTF-8'
    ) from e
  try:
    if allows_nan:
      return json.loads(text)
    return json.loads(text, parse_constant=_refuse, parse_float=_finite)
  except RecursionError as e:
    raise ValueError('not JSON that can be read: nested too deeply') from e
  except json.JSONDecodeError as e:
    place = f'column {e.colno}'
    if '\n' in text:
      place = f'line {e.lineno}, {place}'
    raise ValueError(f'not JSON: {e.msg} ({place})') from e


def read_json(path: str | os.PathLike[str], *, allows_nan: bool = False) -> Any:
  """Reads a file that holds one JSON value.

  Args:
    path: local file, or gs:// object.
    allows_nan: whether NaN and Infinity are read as floats, see `parse`.

  Raises:
    FileNotFoundError: there is no such file.
    FileError: the file cannot be read, or is not JSON; names it.
  """
  with boundary(path):
    return parse(epath.Path(path).read_bytes(), allows_nan=allows_nan)


def json_lines(
  path: str | os.PathLike[str], *, may_be_torn: bool = False, allows_nan: bool = False
) -> Iterator[Line]:
  """Reads a JSON lines file, one line at a time; blank lines are skipped.

  Args:
    path: local file, or gs:// object.
    may_be_torn: whether a last line without a line end is left out where it is
      not JSON, because the program that wrote it may have been killed.
    allows_nan: whether NaN and Infinity are read as floats, see `parse`.

  Yields:
    The lines, in order.

  Raises:
    FileNotFoundError: there is no such file.
    FileError: the file cannot be read, or a line is not JSON; names the line.
  """
  path, start, number = epath.Path(path), 0, 0
  refuse_special(path)
  try:
    with path.open('rb') as lines:
      for number, data in enumerate(lines, 1):
        if data.removeprefix(_BYTE_ORDER_MARK).strip():
          where = f'{path}:{number}'
          try:
            value = parse(data.rstrip(b'\r\n'), allows_nan=allows_nan)
          except ValueError as e:
            if may_be_torn and not data.endswith(b'\n'):
              return
            raise FileError(f'{where}: {e}') from e
          yield Line(where, number, start, len(data), value)
        start += len(data)
  except FileNotFoundError:
    raise
  except OSError as e:
    raise FileError(f'{path}: {_reason(e)}') from e


def _refuse(name: str):
  raise ValueError(
    f'not JSON: {name} is no JSON number; leave the field out, or write null'
  )


def _finite(number: str) -> float:
  value = float(number)
  if math.isinf(value):
    raise ValueError(
      f'not JSON that can be read: no float holds {number:.40}; write a number'
      ' up to 1.7e308'
    )
  return value


def _reason(error: Exception) -> str:
  """Says why in one line, without the path that an OSError repeats."""
  if isinstance(error, OSError):
    return f'cannot be read: {error.strerror or error}'
  if isinstance(error, RecursionError):
    return 'nested too deeply to be read'
  said = ' '.join(str(error).split())
  if len(said) > _LONGEST_REASON:
    said = f'{said[:_LONGEST_REASON]} ...'
  if isinstance(error, FileError) or type(error) is ValueError:
    return said
  if isinstance(error, KeyError):
    return f'it lacks {said}'
  return f'broken ({type(error).__name__}: {said})' if said else 'broken'


def number(value: Any) -> float:
  """Returns a number of JSON; nan for null, for text and for what is absent."""
  if isinstance(value, (int, float)) and not isinstance(value, bool):
    return float(value)
  return math.nan


def whole(value: Any) -> int:
  """Returns a whole number of JSON; 0 for what is absent or no number."""
  found = number(value)
  return int(found) if math.isfinite(found) else 0


def text(value: Any) -> str:
  """Returns a text of JSON; of a list its texts between bars, and of null ''."""
  if value is None:
    return ''
  if isinstance(value, (list, tuple)):
    return ' | '.join(map(text, value))
  return str(value)
