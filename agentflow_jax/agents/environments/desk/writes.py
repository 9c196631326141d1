"""Tools of the desk that write, and the endings.

They are strict in form and know no policy: a loan that a rule forbids is made.
"""

import datetime
import re
from typing import Literal

from agentflow_jax.agents.environments.desk import facts
from agentflow_jax.agents.environments.sqlite import database
from agentflow_jax.agents.tools import base

_DAYS = re.compile(r'[1-9]\d?', re.ASCII)
_MOST_DAYS = 60


def create_loan(db: database.Database, person: str, item: str, days: int | str) -> str:
  """Lends a free item to a person from today on.

  Args:
    person: id of the person, such as P3.
    item: id of the item, such as I3.
    days: number of days, from 1 to 60.
  """
  facts.row(db, 'person', person)
  _need_free(db, item)
  key, today = facts.new_key(db, 'loan'), facts.today(db)
  due = today + datetime.timedelta(_days(days))
  db.rows(
    'insert into loan values (?, ?, ?, ?, ?, null, 0)',
    key,
    person,
    item,
    today.isoformat(),
    due.isoformat(),
  )
  facts.log(db, 'lent', key)
  return f'{key}: {_named(db, item)} lent to {person} until {due}'


def extend_loan(db: database.Database, loan: str, days: int | str) -> str:
  """Extends an open loan.

  Args:
    loan: id of the loan, such as L3.
    days: number of days that are added, from 1 to 60.
  """
  said = facts.row(db, 'loan', loan)
  if said['returned'] is not None:
    raise base.BadArguments(
      f'{loan} ended on {said["returned"]}: only an open loan can be extended'
    )
  due = datetime.date.fromisoformat(said['due']) + datetime.timedelta(_days(days))
  db.rows(
    'update loan set due = ?, extensions = extensions + 1 where id = ?',
    due.isoformat(),
    loan,
  )
  facts.log(db, 'extended', loan)
  return f'{loan}: {_named(db, said["item"])} extended until {due}'


def return_item(db: database.Database, item: str) -> str:
  """Takes an item back that is lent.

  Args:
    item: id of the item, such as I3.
  """
  facts.row(db, 'item', item)
  loan = facts.open_loan(db, item)
  if loan is None:
    raise base.BadArguments(
      f'{item} is not lent: only an item with an open loan can be returned'
    )
  db.rows(
    'update loan set returned = ? where id = ?', facts.today(db).isoformat(), loan['id']
  )
  facts.log(db, 'returned', loan['id'])
  return f'{loan["id"]}: {_named(db, item)} returned by {loan["person"]}'


def transfer_item(db: database.Database, item: str, site: str) -> str:
  """Moves a free item to another site.

  Args:
    item: id of the item, such as I3.
    site: name of the site that the item goes to.
  """
  said = facts.row(db, 'item', item)
  target = facts.site_named(db, site)
  if said['site'] == target['id']:
    raise base.BadArguments(
      f'{item} is at {site} already: give another site, or leave it there'
    )
  _need_free(db, item)
  db.rows('update item set site = ? where id = ?', target['id'], item)
  facts.log(db, 'moved', item)
  return f'{_named(db, item)} moved to {site} of {facts.item(db, item)["unit"]}'


def open_repair(
  db: database.Database, item: str, reason: Literal['service', 'fault']
) -> str:
  """Sends a free item to repair.

  Args:
    item: id of the item, such as I3.
    reason: why the item goes to repair.
  """
  _need_free(db, item)
  key = facts.new_key(db, 'repair')
  db.rows(
    "insert into repair values (?, ?, ?, 'no', ?, 'open', null, null)",
    key,
    item,
    reason,
    facts.today(db).isoformat(),
  )
  facts.log(db, 'repair opened', key)
  return f'{key}: {_named(db, item)} of {facts.item(db, item)["unit"]} is in repair'


def close_repair(
  db: database.Database, repair: str, result: Literal['fixed', 'fine']
) -> str:
  """Closes an open repair, which frees its item.

  Args:
    repair: id of the repair, such as W3.
    result: finding of the repair: 'fine' where nothing was broken.
  """
  said = facts.row(db, 'repair', repair)
  if said['state'] == 'closed':
    raise base.BadArguments(
      f'{repair} is closed already: only an open repair can be closed'
    )
  db.rows(
    "update repair set state = 'closed', closed = ?, result = ? where id = ?",
    facts.today(db).isoformat(),
    result,
    repair,
  )
  facts.log(db, 'repair closed', repair)
  unit = facts.item(db, said['item'])['unit']
  return f'{repair}: {_named(db, said["item"])} of {unit} is free, {result}'


def set_request_state(
  db: database.Database,
  request: str,
  state: Literal['open', 'granted', 'declined', 'hold'],
) -> str:
  """Sets the state of a request.

  Args:
    request: id of the request, such as R3.
    state: new state.
  """
  said = facts.row(db, 'request', request)
  if said['state'] == state:
    raise base.BadArguments(
      f'{request} is {state} already: give another state, or leave it'
    )
  db.rows('update request set state = ? where id = ?', state, request)
  facts.log(db, 'request', request)
  return f'{request} of {said["person"]} is {state}'


def send_notice(db: database.Database, person: str, about: str, text: str = '') -> str:
  """Sends a notice to a person.

  Args:
    person: id of the person, such as P3.
    about: id of what the notice is about, such as I3.
    text: words of the notice; may be empty.
  """
  facts.row(db, 'person', person)
  facts.existing(db, about)
  today = facts.today(db).isoformat()
  sent = db.value(
    'select count(*) from notice where person = ? and about = ? and sent = ?',
    person,
    about,
    today,
  )
  if sent:
    raise base.BadArguments(f'{person} got a notice about {about} today: one is enough')
  key = facts.new_key(db, 'notice')
  db.rows('insert into notice values (?, ?, ?, ?, ?)', key, person, about, text, today)
  facts.log(db, 'notice', key)
  return f'{key}: {person} has a notice about {about}'


def finish(db: database.Database, summary: str = '') -> str:
  """Ends the task when everything that was asked for is done.

  Args:
    summary: report of the work in a few words; may be empty.
  """
  del db, summary
  return 'finished'


def refuse(
  db: database.Database,
  rule: Literal[
    'limit',
    'late',
    'approval',
    'service',
    'training',
    'visitor',
    'extension',
    'home',
    'test',
    'notice',
    'ambiguous',
  ],
  about: str,
) -> str:
  """Ends the task when a rule forbids a part of it, or its words fit two rows.

  Args:
    rule: name of the rule; 'ambiguous' where the words fit two rows.
    about: id of the person, item, loan, request or repair that the rule is about.
  """
  facts.existing(db, about)
  return f'refused: {rule} {about}'


def _need_free(db: database.Database, item: str) -> None:
  """Raises BadArguments where an item is unknown, lent or in repair."""
  facts.row(db, 'item', item)
  status = facts.status(db, item)
  if status.startswith('lent'):
    raise base.BadArguments(
      f'{item} is {status}: it has to be returned first, or choose another item'
    )
  if status != 'free':
    raise base.BadArguments(
      f'{item} is {status}: the repair has to be closed first, or choose another item'
    )


def _named(db: database.Database, item: str) -> str:
  return f'{item} {facts.item(db, item)["name"]}'


def _days(said: int | str) -> int:
  """Returns a number of days; raises BadArguments where it is none."""
  text = str(said)
  if not _DAYS.fullmatch(text) or int(text) > _MOST_DAYS:
    raise base.BadArguments(
      f'days must be a whole number from 1 to {_MOST_DAYS}, not {said!r}'
    )
  return int(text)
