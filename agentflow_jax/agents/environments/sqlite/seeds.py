"""Seeds of SQLite worlds: canonical rows, and the pages that are made of them.

The header of a database file stores the version of the library that wrote it, so the
same rows are not the same bytes everywhere: rows are kept and digested, and pages are
made from them when a run starts.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import re
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from agentflow_jax.agents.environments.sqlite import functions

# Steps of SQLite's virtual machine that the script of a schema may take.
_SCHEMA_STEPS = 1_000_000
# One value of a row. Floats are finite, because SQLite stores NaN as NULL.
Value = int | float | str | None
Row = tuple[Value, ...]

_TEXTS = re.compile(
  r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|`[^`]*`|\[[^\]]*\]|--[^\n]*|/\*.*?\*/", re.DOTALL
)
# What would make a row depend on the clock, on rows that are gone, or on more than
# the statement that is executed.
_REFUSED = (
  (r'\bcurrent_(?:timestamp|date|time)\b', 'reads the clock: store dates as text'),
  # SQLite asks no authorizer about the functions of a default.
  (
    r'\b(?:random|randomblob|date|time|datetime|julianday|strftime|unixepoch'
    r'|timediff|sqlite_\w+)\s*\(',
    'depends on chance, the clock or the machine',
  ),
  (r'\bautoincrement\b', 'numbers rows by rows that are gone: take max + 1'),
  (r'\bvirtual\b', 'a virtual table has no rows of its own'),
  (r'\b(?:temp|temporary)\b', 'a temporary table is no part of the world'),
)
_SPREADS = re.compile(
  r'\btrigger\b|\bcascade\b|\bset\s+null\b|\bset\s+default\b', re.IGNORECASE
)


class SeedError(ValueError):
  """Rows or a schema that no world can be made of; names the place."""


@dataclasses.dataclass(frozen=True)
class Table:
  """A table of a schema.

  Attributes:
    name: name of the table.
    columns: names of its columns, in order.
    key: places of the primary key's columns; empty where there is none.
  """

  name: str
  columns: tuple[str, ...]
  key: tuple[int, ...]

  def name_of(self, row: Row) -> str:
    """Returns the key of a row as text; the whole row where there is no key."""
    parts = [row[i] for i in self.key] if self.key else row
    return ','.join('' if p is None else str(p) for p in parts)

  def by_key(self, rows: Iterable[Row]) -> dict[Row, Row]:
    """Returns rows by the values of their primary key."""
    return {self.key_of(row): row for row in rows}

  def key_of(self, row: Row) -> Row:
    """Returns the values of a row's primary key."""
    return tuple(row[i] for i in self.key)


@dataclasses.dataclass(frozen=True)
class Seed:
  """The state in which worlds start; make it with `Seed.of`.

  Attributes:
    schema: SQL script that creates the tables, their constraints and indices.
    rows: rows of every table by its name, in canonical order.
    origin: seed that this one differs from in a few rows; None for one of its own.
  """

  schema: str
  rows: Mapping[str, tuple[Row, ...]]
  origin: 'Seed | None' = None

  @classmethod
  def of(cls, schema: str, rows: Mapping[str, Sequence[Sequence[Value]]]) -> 'Seed':
    """Returns a seed of rows in any order; a table that is missing has none.

    Raises:
      SeedError: the schema is refused, a table is unknown, or a value is neither a
        text, a finite number, bytes nor None.
    """
    names = [t.name for t in tables_of(schema)]
    unknown = sorted(rows.keys() - set(names))
    if unknown:
      raise SeedError(f'rows of {unknown[0]!r}: the schema has no such table')
    seed = cls(schema, {name: _canonical(rows.get(name, ())) for name in names})
    for table in seed.tables:
      for row in seed.rows[table.name]:
        if any(row[i] is None for i in table.key if i < len(row)):
          raise SeedError(f'rows of {table.name!r}: {_text(row)} has a key of null')
    return seed

  @property
  def tables(self) -> tuple[Table, ...]:
    """The tables, in the order of their names."""
    return tables_of(self.schema)

  @property
  def spreads(self) -> bool:
    """Whether a statement may write other tables than those that it names."""
    return _spreads(self.schema)

  @functools.cached_property
  def digests(self) -> Mapping[str, str]:
    """SHA-256 of each table's rows, by table."""
    known = self.origin
    return {
      name: known.digests[name]
      if known is not None and known.rows[name] is rows
      else digest_rows(rows)
      for name, rows in self.rows.items()
    }

  @functools.cached_property
  def sha256(self) -> str:
    """SHA-256 of schema and rows, the same for every version of SQLite."""
    return digest_of(self.schema, self.digests)

  @functools.cached_property
  def pages(self) -> bytes:
    """A database of the rows, as SQLite lays it out in memory.

    Raises:
      SeedError: a row breaks a constraint of the schema.
    """
    with contextlib.closing(sqlite3.connect(':memory:')) as connection:
      if self.origin is not None:
        connection.deserialize(self.origin.pages)
      else:
        connection.executescript(self.schema)
      table = None
      try:
        for table in (changed := self._changed_tables()):
          connection.execute(f'delete from {quoted(table.name)}')
          marks = ','.join('?' * len(table.columns))
          connection.executemany(
            f'insert into {quoted(table.name)} values ({marks})', self.rows[table.name]
          )
        connection.commit()
        # A trigger may have written elsewhere.
        for table in self.tables if self.spreads else changed:
          self._check_stored(table, connection)
        broken = connection.execute('pragma foreign_key_check').fetchone()
      except (sqlite3.Error, OverflowError) as e:
        raise SeedError(f'rows of {table and table.name!r}: {e}') from e
      if broken:
        raise SeedError(f'rows of {broken[0]!r}: a foreign key points at no row')
      return connection.serialize()

  def _changed_tables(self) -> list[Table]:
    """Returns the tables whose rows are not those of the origin."""
    known = self.origin.rows if self.origin is not None else {}
    return [t for t in self.tables if known.get(t.name) is not self.rows[t.name]]

  def _check_stored(self, table: Table, connection: sqlite3.Connection) -> None:
    """Raises SeedError where the table does not hold the rows as they were given."""
    stored = _canonical(connection.execute(f'select * from {quoted(table.name)}'))
    if len(stored) != len(self.rows[table.name]):
      raise SeedError(
        f'rows of {table.name!r}: there are {len(stored)} instead of'
        f' {len(self.rows[table.name])}: the schema itself writes rows'
      )
    for row, found in zip(self.rows[table.name], stored):
      if _text(row) != _text(found):
        raise SeedError(
          f'rows of {table.name!r}: {_text(row)} is stored as {_text(found)}:'
          ' write values in the types of their columns'
        )

  def changed(self, changes: Sequence[Mapping[str, Any]]) -> 'Seed':
    """Returns the seed with some rows changed.

    Args:
      changes: changes in order, each {"table": name, "key": list of the primary
        key's values, "set": object of column -> value}. "set": null removes the row;
        a key that is new adds a row, whose "set" has every other column.

    Raises:
      SeedError: a change does not fit the schema; names it.
    """
    tables = {t.name: t for t in self.tables}
    found: dict[str, dict[Row, Row]] = {}
    for change in changes:
      try:
        table, key = tables[change['table']], tuple(change['key'])
        if not table.key or len(key) != len(table.key):
          raise ValueError('the key does not fit the table')
        if table.name not in found:
          found[table.name] = table.by_key(self.rows[table.name])
        rows, values = found[table.name], change['set']
        if values is None:
          del rows[key]
          continue
        unknown = sorted(values.keys() - set(table.columns))
        if unknown:
          raise ValueError(f'there is no column {unknown[0]!r}')
        before = dict(zip((table.columns[i] for i in table.key), key))
        if key in rows:
          before = dict(zip(table.columns, rows[key]))
        after = before | dict(values)
        rows[key] = tuple(after[c] for c in table.columns)
      except (AttributeError, KeyError, TypeError, ValueError) as e:
        raise SeedError(
          f'{json.dumps(change, default=str)}: {type(e).__name__}: {e}'
        ) from e
    rows = {name: _canonical(rows.values()) for name, rows in found.items()}
    return Seed(self.schema, dict(self.rows) | rows, self)


def digest_of(schema: str, digests: Mapping[str, str]) -> str:
  """Returns the SHA-256 of a state, of its schema and of its tables' digests."""
  said = json.dumps([schema, dict(digests)], sort_keys=True)
  return hashlib.sha256(said.encode()).hexdigest()


def digest_rows(rows: Iterable[Row]) -> str:
  """Returns the SHA-256 of rows; their order does not matter."""
  texts = '\n'.join(sorted(map(_text, rows)))
  return hashlib.sha256(texts.encode('utf-8', 'surrogatepass')).hexdigest()


def _canonical(rows: Iterable[Sequence[Value]]) -> tuple[Row, ...]:
  """Returns rows in the order of their JSON texts."""
  return tuple(tuple(row) for row in sorted(rows, key=_text))


def _text(row: Sequence[Value]) -> str:
  return json.dumps(row, ensure_ascii=False, allow_nan=False, default=_blob)


def _blob(value: Any) -> Any:
  if isinstance(value, bytes):
    return {'blob': value.hex()}
  raise SeedError(f'{type(value).__name__} is no value of a row: {value!r}')


@functools.lru_cache(maxsize=256)
def tables_of(schema: str) -> tuple[Table, ...]:
  """Returns the tables that a schema creates, in the order of their names.

  Raises:
    SeedError: the schema is no valid SQL, reads the clock, or numbers rows by rows
      that are gone.
  """
  plain = _without_texts(schema)
  for pattern, why in _REFUSED:
    found = re.search(pattern, plain, re.IGNORECASE)
    if found:
      raise SeedError(f'schema: {found.group()} {why}')
  with contextlib.closing(sqlite3.connect(':memory:')) as connection:
    connection.set_authorizer(_of_schemas)
    connection.set_progress_handler(lambda: 1, _SCHEMA_STEPS)
    try:
      connection.executescript(schema)
    except sqlite3.Error as e:
      raise SeedError(f'schema: {e}') from e
    connection.set_authorizer(None)
    connection.set_progress_handler(None, 0)
    names = [
      name
      for (name,) in connection.execute(
        "select name from sqlite_master where type = 'table'"
        " and name not like 'sqlite_%' order by name"
      )
    ]
    tables = []
    for name in names:
      columns = connection.execute(f'pragma table_info({quoted(name)})').fetchall()
      key = sorted((c[5], i) for i, c in enumerate(columns) if c[5])
      tables.append(Table(name, tuple(c[1] for c in columns), tuple(i for _, i in key)))
  return tuple(tables)


@functools.lru_cache(maxsize=256)
def _spreads(schema: str) -> bool:
  return bool(_SPREADS.search(_without_texts(schema)))


def _of_schemas(action, first, second, *_) -> int:
  """Allows what creates tables, indices, views and triggers, and writes no row."""
  if action in (sqlite3.SQLITE_ATTACH, sqlite3.SQLITE_DETACH, sqlite3.SQLITE_PRAGMA):
    return sqlite3.SQLITE_DENY
  if action == sqlite3.SQLITE_FUNCTION:
    allowed = second.lower() in functions.ALLOWED
    return sqlite3.SQLITE_OK if allowed else sqlite3.SQLITE_DENY
  writes = (sqlite3.SQLITE_INSERT, sqlite3.SQLITE_UPDATE, sqlite3.SQLITE_DELETE)
  if action in writes and not first.startswith('sqlite_'):
    return sqlite3.SQLITE_DENY
  return sqlite3.SQLITE_OK


def _without_texts(sql: str) -> str:
  """Returns SQL without its texts, quoted names and comments."""
  return _TEXTS.sub(' ', sql)


def quoted(name: str) -> str:
  """Returns a name as an identifier of SQL."""
  return '"' + name.replace('"', '""') + '"'
