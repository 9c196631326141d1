"""Facts about the rows of a desk, which tools show and act on."""

import datetime
import re
from typing import Any

from agentflow_jax.agents.environments.desk import schema
from agentflow_jax.agents.environments.sqlite import database
from agentflow_jax.agents.tools import base

# Key of a table -> SQL that orders by the number in it.
NUMBER = 'cast(substr({}, 2) as integer)'
_KEY = re.compile(r'[A-Z][1-9]\d{0,8}', re.ASCII)
_FINDERS = {
  'person': 'find_person finds the id of a name',
  'item': 'find_item finds the id of a model at a site',
  'loan': 'list_loans shows the loans of a person or of an item',
  'request': 'list_requests shows the requests for a model',
  'repair': 'get_item shows the repair that an item is in',
}


def today(db: database.Database) -> datetime.date:
  """Returns the date of the world, which stands still."""
  said = db.value("select date from event_log where kind = 'today'")
  return datetime.date.fromisoformat(said)


def days_until(db: database.Database, date: str) -> int:
  """Returns the days from the world's date to another one; negative before it."""
  return (datetime.date.fromisoformat(date) - today(db)).days


def row(db: database.Database, table: str, key: str) -> dict[str, Any]:
  """Returns a row by its key, as an object of columns.

  Args:
    db: database of the world.
    table: table of the row.
    key: key that a caller gave.

  Raises:
    BadArguments: the key is malformed, belongs to another table, or is unknown.
  """
  letter = next(k for k, v in schema.LETTERS.items() if v == table)
  help_ = _FINDERS.get(table, '')
  if not _KEY.fullmatch(key) or key[0] != letter:
    raise base.BadArguments(
      f'{key!r} is no id of a {table}: such an id is {letter} and a number;'
      f' {help_}'.rstrip('; ')
    )
  names, found = db.described(f'select * from {table} where id = ?', key)
  if not found:
    raise base.BadArguments(f'there is no {table} {key}; {help_}'.rstrip('; '))
  return dict(zip(names, found[0]))


def existing(db: database.Database, key: str) -> str:
  """Returns a key of any table; raises BadArguments where no row has it."""
  table = schema.LETTERS.get(key[:1])
  if not _KEY.fullmatch(key) or table is None:
    raise base.BadArguments(
      f'{key!r} is no id: an id is a capital letter and a number, such as P3'
    )
  return row(db, table, key)['id']


def unit_named(db: database.Database, name: str) -> dict[str, Any]:
  """Returns the unit of a name; raises BadArguments where there is none."""
  return _named(db, 'unit', name)


def site_named(db: database.Database, name: str) -> dict[str, Any]:
  """Returns the site of a name; raises BadArguments where there is none."""
  return _named(db, 'site', name)


def model_named(db: database.Database, name: str) -> dict[str, Any]:
  """Returns the model of a name; raises BadArguments where there is none."""
  return _named(db, 'model', name, say=False)


def _named(db, table, name, say=True):
  names, found = db.described(f'select * from {table} where name = ?', name)
  if found:
    return dict(zip(names, found[0]))
  known = [n for (n,) in db.rows(f'select name from {table} order by name')]
  said = f'; there are {", ".join(known)}' if say else '; check its spelling'
  raise base.BadArguments(f'no {table} is called {name!r}{said}')


def name_of(db: database.Database, table: str, key: str) -> str:
  """Returns the name of a unit, person, site or model that is known to exist."""
  return db.value(f'select name from {table} where id = ?', key)


def item(db: database.Database, key: str) -> dict[str, Any]:
  """Returns what is known of an item that is known to exist.

  Returns:
    name (of the model), category, worth, site, unit (names), service_due and status.
  """
  names, found = db.described(
    'select model.name as name, category, worth, site.name as site,'
    ' unit.name as unit, service_due,'
    " coalesce((select 'lent to ' || person || ' as ' || id from loan"
    ' where loan.item = item.id and returned is null),'
    " (select 'in repair ' || id from repair"
    " where repair.item = item.id and state = 'open'), 'free') as status"
    ' from item join model on model.id = item.model join site on site.id = item.site'
    ' join unit on unit.id = site.unit where item.id = ?',
    key,
  )
  return dict(zip(names, found[0]))


def person(db: database.Database, key: str) -> dict[str, Any]:
  """Returns what is known of a person who is known to exist.

  Returns:
    name, role, unit (its name), loans (open ones) and late (those due before today).
  """
  names, found = db.described(
    'select person.name as name, role, unit.name as unit,'
    ' count(loan.id) as loans, coalesce(sum(loan.due < ?), 0) as late'
    ' from person join unit on unit.id = person.unit left join loan'
    ' on loan.person = person.id and loan.returned is null where person.id = ?',
    today(db).isoformat(),
    key,
  )
  return dict(zip(names, found[0]))


def open_loan(db: database.Database, item: str) -> dict[str, Any] | None:
  """Returns the open loan of an item, or None."""
  found = db.value('select id from loan where item = ? and returned is null', item)
  return row(db, 'loan', found) if found else None


def status(db: database.Database, key: str) -> str:
  """Returns in words whether an item is free, lent or in repair."""
  return item(db, key)['status']


def trained(db: database.Database, person: str) -> list[str]:
  """Returns the categories of a person's trainings that are valid today."""
  found = db.rows(
    'select category from training where person = ? and expires >= ? order by category',
    person,
    today(db).isoformat(),
  )
  return [category for (category,) in found]


def holders(db: database.Database, unit: str, role: str) -> list[str]:
  """Returns the ids of the people with a role of a unit, in order."""
  found = db.rows(
    f'select id from person where unit = ? and role = ? order by {NUMBER.format("id")}',
    unit,
    role,
  )
  return [key for (key,) in found]


def new_key(db: database.Database, table: str) -> str:
  """Returns the key of a new row of a table, which is the largest one plus 1."""
  letter = next(k for k, v in schema.LETTERS.items() if v == table)
  largest = db.value(f'select max({NUMBER.format("id")}) from {table}')
  return f'{letter}{(largest or 0) + 1}'


def log(db: database.Database, kind: str, about: str) -> None:
  """Appends an event of today to the log."""
  db.rows(
    'insert into event_log values (?, ?, ?, ?)',
    new_key(db, 'event_log'),
    today(db).isoformat(),
    kind,
    about,
  )
