"""What the rows of a desk say, and which rules forbid a goal.

This is a reading of rows and rules of its own; the tools of the desk are another one.
"""

import dataclasses
import datetime
import functools
from collections.abc import Mapping
from typing import Any

from agentflow_jax.data import desk_worlds

# A rule and the key of the row that it is about.
Break = tuple[str, str]


class Tables:
  """Rows by table and key; they never change.

  Args:
    rows: rows by table and key.
    date: date of the world.
  """

  def __init__(
    self, rows: Mapping[str, Mapping[str, desk_worlds.Row]], date: datetime.date
  ):
    self.rows, self.date = rows, date
    self.today = date.isoformat()

  def changed(self, table: str, key: str, **values: Any) -> 'Tables':
    """Returns tables in which a row has other values, or is new."""
    row = {**self.rows[table].get(key, {'id': key}), **values}
    return Tables({**self.rows, table: {**self.rows[table], key: row}}, self.date)

  def day(self, days: int) -> str:
    """Returns the date that is some days after today."""
    return (self.date + datetime.timedelta(days)).isoformat()

  def days_until(self, date: str) -> int:
    """Returns the days from today to a date."""
    return (datetime.date.fromisoformat(date) - self.date).days

  @functools.cached_property
  def open_loans(self) -> dict[str, desk_worlds.Row]:
    """Open loans by the key of their item."""
    return {x['item']: x for x in self.rows['loan'].values() if x['returned'] is None}

  @functools.cached_property
  def loans_of(self) -> dict[str, list[desk_worlds.Row]]:
    """Open loans by the key of their person."""
    found: dict[str, list[desk_worlds.Row]] = {}
    for loan in self.open_loans.values():
      found.setdefault(loan['person'], []).append(loan)
    return found

  @functools.cached_property
  def open_repairs(self) -> dict[str, desk_worlds.Row]:
    """Open repairs by the key of their item."""
    return {x['item']: x for x in self.rows['repair'].values() if x['state'] == 'open'}

  @functools.cached_property
  def approvals_of(self) -> dict[str, list[desk_worlds.Row]]:
    """Approvals by the key of their item."""
    found: dict[str, list[desk_worlds.Row]] = {}
    for approval in self.rows['approval'].values():
      found.setdefault(approval['item'], []).append(approval)
    return found

  @functools.cached_property
  def trainings(self) -> frozenset[tuple[str, str]]:
    """Person and category of every training that is valid."""
    return frozenset(
      (x['person'], x['category'])
      for x in self.rows['training'].values()
      if x['expires'] >= self.today
    )

  def is_free(self, item: str) -> bool:
    """Says whether an item is neither lent nor in repair."""
    return item not in self.open_loans and item not in self.open_repairs

  def is_late(self, person: str) -> bool:
    """Says whether a person has a late loan."""
    return any(x['due'] < self.today for x in self.loans_of.get(person, ()))

  def model_of(self, item: str) -> desk_worlds.Row:
    """Returns the model of an item."""
    return self.rows['model'][self.rows['item'][item]['model']]

  def site_of(self, item: str) -> desk_worlds.Row:
    """Returns the site of an item."""
    return self.rows['site'][self.rows['item'][item]['site']]

  def unit_of(self, item: str) -> str:
    """Returns the key of the unit that runs the site of an item."""
    return self.site_of(item)['unit']

  def holder(self, unit: str, role: str) -> str:
    """Returns the key of the one person with a role of a unit."""
    (key,) = (
      p['id']
      for p in self.rows['person'].values()
      if p['unit'] == unit and p['role'] == role
    )
    return key

  def named(self, table: str, name: str) -> list[str]:
    """Returns the keys of the rows of a name."""
    return [r['id'] for r in self.rows[table].values() if r['name'] == name]


@dataclasses.dataclass(frozen=True)
class Goal:
  """Something that is to be done to rows.

  Attributes:
    verb: 'lend', 'extend', 'return', 'transfer', 'repair' (close one) or 'grant' (a
      request).
    person: key of the person; '' where the verb has none, as in all fields below.
    item: key of the item.
    loan: key of the loan that is extended or ends.
    request: key of the request.
    repair: key of the repair.
    site: key of the site that the item goes to.
    days: days of a loan, or of an extension.
    reason: 'fault' where an item comes back broken.
    result: result of a repair.
  """

  verb: str
  person: str = ''
  item: str = ''
  loan: str = ''
  request: str = ''
  repair: str = ''
  site: str = ''
  days: int = 0
  reason: str = ''
  result: str = ''


@dataclasses.dataclass(frozen=True)
class Weighed:
  """A rule in force that a goal had to be held against.

  Attributes:
    rule: name of the rule.
    about: key of the row that the rule is about.
    facts: compared values, in words: the value of the row, then that of the rule.
    broken: whether the rule forbids the goal.
  """

  rule: str
  about: str
  facts: str
  broken: bool

  def in_words(self, obeyed: bool = True) -> str:
    """Returns the rule, its facts and the judgement.

    Args:
      obeyed: whether the rule is obeyed; otherwise the judgement is always "ok".
    """
    judged = 'no' if self.broken and obeyed else 'ok'
    return f'{self.rule} {self.facts} {judged}'


def breaks(
  goal: Goal, tables: Tables, rules: Mapping[str, Mapping[str, Any]]
) -> list[Break]:
  """Returns the rules in force that forbid a goal, each with what it is about."""
  return [(w.rule, w.about) for w in weighed(goal, tables, rules) if w.broken]


def weighed(
  goal: Goal, tables: Tables, rules: Mapping[str, Mapping[str, Any]]
) -> list[Weighed]:
  """Returns the rules in force that may forbid a goal, held against it."""
  if goal.verb in ('lend', 'grant'):
    return _of_lending(goal, tables, rules)
  if goal.verb == 'extend':
    return _of_extending(goal, tables, rules)
  if goal.verb == 'transfer':
    return _of_moving(goal, tables, rules)
  if goal.verb == 'repair' and 'test' in rules:
    tested = tables.rows['repair'][goal.repair]['tested'] == 'yes'
    return [Weighed('test', goal.repair, 'tested' if tested else 'not', not tested)]
  return []


def _of_lending(goal, tables, rules) -> list[Weighed]:
  person, item = tables.rows['person'][goal.person], goal.item
  model, site = tables.model_of(item), tables.site_of(item)
  found = []
  if 'limit' in rules:
    count, most = len(tables.loans_of.get(goal.person, ())), rules['limit']['loans']
    found.append(Weighed('limit', goal.person, f'{count} {most}', count >= most))
  if 'late' in rules:
    found.append(_lateness(goal.person, tables))
  if 'approval' in rules:
    high = model['worth'] >= desk_worlds.HIGH_VALUE
    right = tables.holder(site['unit'], rules['approval']['role'])
    given = any(
      a['person'] == goal.person and a['approver'] == right
      for a in tables.approvals_of.get(item, ())
    )
    found.append(
      Weighed('approval', item, 'high' if high else 'low', high and not given)
    )
  if 'service' in rules:
    found.append(service(item, tables, rules))
  if 'training' in rules:
    needed, category = rules['training']['category'], model['category']
    lacks = (goal.person, category) not in tables.trainings
    found.append(
      Weighed(
        'training', goal.person, f'{category} {needed}', category == needed and lacks
      )
    )
  if 'visitor' in rules:
    visits, most = person['role'] == 'visitor', rules['visitor']['days']
    found.append(
      Weighed(
        'visitor',
        goal.person,
        f'visitor {goal.days} {most}' if visits else person['role'],
        visits and goal.days > most,
      )
    )
  if 'home' in rules:
    found.append(_home(item, person['unit'], tables, rules))
  return found


def _of_extending(goal, tables, rules) -> list[Weighed]:
  found = []
  if 'late' in rules:
    found.append(_lateness(goal.person, tables))
  if 'extension' in rules:
    times = tables.rows['loan'][goal.loan]['extensions']
    most = rules['extension']['times']
    found.append(Weighed('extension', goal.loan, f'{times} {most}', times >= most))
  return found


def _of_moving(goal, tables, rules) -> list[Weighed]:
  found = []
  if 'service' in rules:
    found.append(service(goal.item, tables, rules))
  if 'home' in rules:
    target = tables.rows['site'][goal.site]['unit']
    found.append(_home(goal.item, target, tables, rules))
  return found


def _lateness(person, tables) -> Weighed:
  count = sum(x['due'] < tables.today for x in tables.loans_of.get(person, ()))
  return Weighed('late', person, str(count), count > 0)


def _home(item, unit, tables, rules) -> Weighed:
  """Holds the rule on a site against a unit that an item of it would go to."""
  site, units = tables.site_of(item), tables.rows['unit']
  facts, broken = f'{site["name"]} {rules["home"]["site"]}', False
  if site['name'] == rules['home']['site']:
    facts += f' {units[unit]["name"]} {units[site["unit"]]["name"]}'
    broken = unit != site['unit']
  return Weighed('home', item, facts, broken)


def service(
  item: str, tables: Tables, rules: Mapping[str, Mapping[str, Any]]
) -> Weighed:
  """Holds the rule on services, which is in force, against an item."""
  left = tables.days_until(tables.rows['item'][item]['service_due'])
  most = rules['service']['days']
  said = left if left >= 0 else 'overdue'
  return Weighed('service', item, f'{said} {most}', left <= most)


def is_due(item: str, tables: Tables, rules: Mapping[str, Mapping[str, Any]]) -> bool:
  """Says whether the rule on services keeps an item from being lent or moved."""
  return 'service' in rules and service(item, tables, rules).broken


def after(goal: Goal, tables: Tables, rules: Mapping[str, Mapping[str, Any]]) -> Tables:
  """Returns the tables after a goal was reached, without notices and events."""
  if goal.verb in ('lend', 'grant'):
    tables = tables.changed(
      'loan',
      _new(tables, 'loan', 'L'),
      person=goal.person,
      item=goal.item,
      start=tables.today,
      due=tables.day(goal.days),
      returned=None,
      extensions=0,
    )
  elif goal.verb == 'extend':
    loan = tables.rows['loan'][goal.loan]
    tables = tables.changed(
      'loan',
      goal.loan,
      due=extended(loan, goal.days),
      extensions=loan['extensions'] + 1,
    )
  elif goal.verb == 'return':
    tables = tables.changed('loan', goal.loan, returned=tables.today)
    reason = repair_reason(goal, tables, rules)
    if reason:
      tables = tables.changed(
        'repair',
        _new(tables, 'repair', 'W'),
        item=goal.item,
        reason=reason,
        tested='no',
        opened=tables.today,
        state='open',
        closed=None,
        result=None,
      )
  elif goal.verb == 'transfer':
    tables = tables.changed('item', goal.item, site=goal.site)
  elif goal.verb == 'repair':
    tables = tables.changed(
      'repair', goal.repair, state='closed', closed=tables.today, result=goal.result
    )
  if goal.verb == 'grant':
    tables = tables.changed('request', goal.request, state='granted')
  return tables


def repair_reason(
  goal: Goal, tables: Tables, rules: Mapping[str, Mapping[str, Any]]
) -> str:
  """Returns why a returned item goes to repair; '' where it does not."""
  if goal.reason:
    return goal.reason
  return 'service' if is_due(goal.item, tables, rules) else ''


def extended(loan: desk_worlds.Row, days: int) -> str:
  """Returns the day on which a loan is due after an extension."""
  due = datetime.date.fromisoformat(loan['due']) + datetime.timedelta(days)
  return due.isoformat()


def can_be_done(goal: Goal, tables: Tables) -> bool:
  """Says whether the tools could carry out a goal, allowed by the rules or not."""
  if goal.verb in ('lend', 'grant'):
    return tables.is_free(goal.item)
  if goal.verb == 'transfer':
    moves = tables.rows['item'][goal.item]['site'] != goal.site
    return moves and tables.is_free(goal.item)
  if goal.verb == 'repair':
    return tables.rows['repair'][goal.repair]['state'] == 'open'
  return tables.rows['loan'][goal.loan]['returned'] is None


def _new(tables: Tables, table: str, letter: str) -> str:
  return f'{letter}{max(int(key[1:]) for key in tables.rows[table]) + 1}'
