"""A database in memory in which untrusted calls can do bounded, repeatable work.

What would make two runs differ (the clock, random numbers, the version of the
library) and what would reach beyond the database (other files, extensions, settings)
is refused. Work is bounded by SQLite's virtual machine steps and by the size of
values, never by seconds, so that a result does not depend on the machine's load. Time
is a last resort: what it stops counts as a failure of the environment.
"""

import contextlib
import functools
import sqlite3
import time
from collections.abc import Iterator
from typing import Any

from agentflow_jax.agents.environments.sqlite import functions, seeds

# Steps of SQLite's virtual machine that one call, or the query of one check, may take.
MAX_STEPS = 2_000_000
_STEPS_BETWEEN_LOOKS = 1_000
MAX_ROWS = 10_000
# One step may work on a whole value, so that values are small, too.
_MAX_VALUE_BYTES = 20_000
_MAX_RESULT_BYTES = 4_000_000
_MAX_STATEMENT_BYTES = 20_000
# Time limit of one call [s]; only a call that is broken, or a machine, reaches it.
_MAX_SECONDS = 5.0
_TOO_LONG = f'a call took longer than {_MAX_SECONDS:g} s'
_ROWS_AT_ONCE = 64

# Functions that read the clock where a time is missing or is 'now'; these are
# replaced by ones that refuse it.
_DATES = ('date', 'time', 'datetime', 'julianday', 'strftime', 'unixepoch')
# Functions of the clock by their place of the time among the arguments.
_PLACE = {'strftime': 1}
_READS = frozenset(
  {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_RECURSIVE}
)
_WRITES = frozenset(
  {sqlite3.SQLITE_INSERT, sqlite3.SQLITE_UPDATE, sqlite3.SQLITE_DELETE}
)


class Refused(Exception):
  """A statement that is not allowed, or that asks for too much; for the caller."""


class OutOfTime(Exception):
  """A call took so long that something is wrong with it or with the machine."""


class Database:
  """A database in memory; use it from one thread, and close it.

  Args:
    pages: database as `sqlite3.Connection.serialize` returns it.
    read_only: whether statements that write are refused.

  Attributes:
    written: names of the tables that statements could have written so far.
  """

  def __init__(self, pages: bytes, read_only: bool = False):
    self._connection = sqlite3.connect(':memory:', isolation_level=None)
    try:
      self._connection.deserialize(pages)
      self._connection.execute('pragma foreign_keys = on')
      self._connection.execute('pragma trusted_schema = off')
    except BaseException:
      self._connection.close()
      raise
    self._read_only = read_only
    self._steps = 0
    self._since = time.monotonic()
    self._reason = ''
    self._trusts = False
    self.written: set[str] = set()
    for limit, most in (
      (sqlite3.SQLITE_LIMIT_LENGTH, _MAX_VALUE_BYTES),
      (sqlite3.SQLITE_LIMIT_SQL_LENGTH, _MAX_STATEMENT_BYTES),
      (sqlite3.SQLITE_LIMIT_EXPR_DEPTH, 200),
      (sqlite3.SQLITE_LIMIT_COMPOUND_SELECT, 50),
      (sqlite3.SQLITE_LIMIT_ATTACHED, 0),
      (sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH, 100),
      (sqlite3.SQLITE_LIMIT_TRIGGER_DEPTH, 10),
    ):
      self._connection.setlimit(limit, most)
    # SQLite makes these tables at their first use, which the authorizer would refuse.
    for name in ('json_each', 'json_tree'):
      self._connection.execute(f"select 1 from {name}('[]')").fetchall()
    for name in _DATES:
      self._connection.create_function(
        name, -1, functools.partial(self._dated, name), deterministic=True
      )
    self._connection.set_authorizer(self._authorize)
    self._connection.set_progress_handler(self._look, _STEPS_BETWEEN_LOOKS)

  def close(self) -> None:
    """Frees the memory; closing twice is harmless."""
    self._connection.close()

  def rows(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
    """Returns the rows of one statement.

    Args:
      sql: one statement, with a question mark for each value.
      values: values of the question marks.

    Raises:
      Refused: it is not allowed, it is no valid SQL, a constraint fails, or it asks
        for too many steps, bytes or rows.
    """
    return self.described(sql, *values)[1]

  def described(
    self, sql: str, *values: Any
  ) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
    """Returns the column names and the rows of one statement, see `rows`."""
    self._reason = ''
    try:
      with contextlib.closing(self._connection.execute(sql, values)) as cursor:
        names = tuple(c[0] for c in cursor.description or ())
        found, size = [], 0
        while some := cursor.fetchmany(_ROWS_AT_ONCE):
          found += some
          size += sum(
            len(v) for row in some for v in row if isinstance(v, (str, bytes))
          )
          if len(found) > MAX_ROWS or size > _MAX_RESULT_BYTES:
            raise Refused(
              f'more than {MAX_ROWS:,} rows or {_MAX_RESULT_BYTES:,} characters:'
              ' ask for less'
            )
    except (
      sqlite3.Error,
      sqlite3.Warning,
      MemoryError,
      OverflowError,
      ValueError,
    ) as e:
      if self._reason == _TOO_LONG:
        raise OutOfTime(_TOO_LONG) from e
      raise Refused(self._reason or str(e)) from e
    return names, found

  def row(self, sql: str, *values: Any) -> tuple[Any, ...] | None:
    """Returns the first row of one statement, or None; see `rows`."""
    found = self.rows(sql, *values)
    return found[0] if found else None

  def value(self, sql: str, *values: Any) -> Any:
    """Returns the first value of the first row, or None; see `rows`."""
    found = self.row(sql, *values)
    return found[0] if found else None

  def table(self, name: str) -> list[tuple[Any, ...]]:
    """Returns all rows of a table, in any order; not for untrusted callers."""
    self._connection.set_progress_handler(None, 0)
    try:
      return self._connection.execute(f'select * from {seeds.quoted(name)}').fetchall()
    finally:
      self._connection.set_progress_handler(self._look, _STEPS_BETWEEN_LOOKS)

  @contextlib.contextmanager
  def call(self) -> Iterator[None]:
    """Bounds the work in the body, and takes back what it wrote where it raises."""
    self._steps, self._since = 0, time.monotonic()
    self._plainly('savepoint call')
    try:
      yield
    except BaseException:
      # Where a statement was stopped, SQLite has taken back all of it already.
      if self._connection.in_transaction:
        self._plainly('rollback to call')
        self._plainly('release call')
      raise
    if not self._connection.in_transaction:
      raise Refused('a statement took back what the call wrote')
    self._plainly('release call')

  @property
  def changes(self) -> int:
    """Number of rows that were written so far, including writes taken back since."""
    return self._connection.total_changes

  def pages(self) -> bytes:
    """Returns the database as bytes, which `Database` opens again."""
    return self._connection.serialize()

  def _plainly(self, sql: str) -> None:
    """Executes a statement of this class, which needs no leave."""
    # Another authorizer, even none, would make SQLite compile every statement anew.
    self._trusts = True
    try:
      self._connection.execute(sql)
    finally:
      self._trusts = False

  def _look(self) -> int:
    self._steps += _STEPS_BETWEEN_LOOKS
    if time.monotonic() - self._since > _MAX_SECONDS:
      self._reason = _TOO_LONG
      return 1
    if self._steps <= MAX_STEPS:
      return 0
    self._reason = f'more than {MAX_STEPS:,} steps of work: ask for less'
    return 1

  def _dated(self, name: str, *values: Any) -> Any:
    """Computes SQLite's date function `name` without the clock and time zones."""
    place = _PLACE.get(name, 0)
    # SQLite reads bytes as text, and a text up to its first NUL.
    said = [
      ''
      if isinstance(value, bytes) or '\0' in str(value)
      else str(value).strip().lower()
      for value in values
    ]
    if '' in said:
      self._reason = f'{name} takes texts and numbers that are not empty'
      raise ValueError(self._reason)
    if len(values) <= place or said[place] in ('now', 'subsec', 'subsecond'):
      self._reason = f'{name} would read the clock: give it a date'
      raise ValueError(self._reason)
    if {'localtime', 'utc'} & set(said):
      self._reason = f'{name} would read the time zone of the machine'
      raise ValueError(self._reason)
    with contextlib.closing(sqlite3.connect(':memory:')) as connection:
      marks = ','.join('?' * len(values))
      return connection.execute(f'select {name}({marks})', values).fetchone()[0]

  def _authorize(self, action, first, second, *_) -> int:
    if action in _READS or self._trusts:
      return sqlite3.SQLITE_OK
    if action in _WRITES and not self._read_only:
      if not first.startswith('sqlite_'):
        self.written.add(first)
        return sqlite3.SQLITE_OK
    if action == sqlite3.SQLITE_FUNCTION:
      name = second.lower()
      if name in functions.ALLOWED or name in _DATES:
        return sqlite3.SQLITE_OK
      self._reason = f'the function {second} is not allowed'
    elif action in _WRITES and self._read_only:
      self._reason = f'{first} cannot be written here'
    else:
      self._reason = 'only statements that read and write rows are allowed'
    return sqlite3.SQLITE_DENY
