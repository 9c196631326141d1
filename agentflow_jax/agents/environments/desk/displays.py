"""What the reading tools of the desk show, by tier.

The tier 'easy' shows facts that are computed for the policy's rules (days until a
service, whether a training is valid, the role of an approver). The tier 'plain' shows
dates and counts as they are stored, and lists only name rows.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

from agentflow_jax.agents.environments.desk import facts, schema
from agentflow_jax.agents.environments.sqlite import database

MOST = 5


class Display(Protocol):
  """Texts of rows that exist; each method takes the database and a row's key."""

  # Order of a list of requests, as SQL.
  requests_by: str
  # Whether a search that finds one row shows all of the row.
  whole: bool

  def person(self, db: database.Database, key: str) -> str:
    """Returns a person's text."""
    ...

  def item(self, db: database.Database, key: str) -> str:
    """Returns an item's text."""
    ...

  def loan(self, db: database.Database, key: str) -> str:
    """Returns a loan's text in a list."""
    ...

  def request(self, db: database.Database, key: str) -> str:
    """Returns a request's text in a list."""
    ...

  def repair(self, db: database.Database, key: str) -> str:
    """Returns a repair's text."""
    ...

  def training(self, db: database.Database, person: str, category: str) -> str:
    """Returns the text of a person's training in a category."""
    ...


def listed(
  db: database.Database,
  keys: Sequence[str],
  shown: Callable[[database.Database, str], str],
) -> str:
  """Returns the texts of at most 5 rows, and how many more there are."""
  texts = [shown(db, key) for key in keys[:MOST]]
  if len(keys) > MOST:
    texts.append(f'... {len(keys) - MOST} more')
  return '; '.join(texts)


def person_in_list(db: database.Database, key: str) -> str:
  """Returns what tells a person from others of the same name."""
  said = facts.person(db, key)
  return f'{key} {said["name"]} of {said["unit"]}'


def item_in_list(db: database.Database, key: str) -> str:
  """Returns what tells an item from others of the same model."""
  said = facts.item(db, key)
  return f'{key} {said["name"]} at {said["site"]}, {said["status"]}'


def unit(db: database.Database, key: str) -> str:
  """Returns a unit's text, which is the same in every tier."""
  sites = db.rows(
    f'select name from site where unit = ? order by {facts.NUMBER.format("id")}', key
  )
  people = [
    f'{role} {" ".join(facts.holders(db, key, role)) or "none"}'
    for role in ('head', 'steward')
  ]
  names = ' '.join(name for (name,) in sites) or 'none'
  return f'{facts.name_of(db, "unit", key)}: {", ".join(people)}, sites {names}'


def _approvals(db: database.Database, item: str) -> list[tuple[str, ...]]:
  """Returns an item's approvals: key, borrower, approver, and role and unit of that."""
  return db.rows(
    'select approval.id, approval.person, approver, role, unit.name from approval'
    ' join person on person.id = approver join unit on unit.id = person.unit'
    f' where item = ? order by {facts.NUMBER.format("approval.id")}',
    item,
  )[:MOST]


class Easy:
  """Shows computed facts as small numbers, see Display."""

  requests_by = f'made, {facts.NUMBER.format("id")}'
  whole = True

  def person(self, db: database.Database, key: str) -> str:
    """See Display.person."""
    said, trained = facts.person(db, key), facts.trained(db, key)
    return (
      f'{key} {said["name"]}, {said["role"]} of {said["unit"]},'
      f' {said["loans"]} open loans, {said["late"]} late,'
      f' trained in {" and ".join(trained) or "nothing"}'
    )

  def item(self, db: database.Database, key: str) -> str:
    """See Display.item."""
    said = facts.item(db, key)
    value = 'high' if said['worth'] >= schema.HIGH_VALUE else 'low'
    days = facts.days_until(db, said['service_due'])
    service = f'service in {days} days' if days >= 0 else 'service overdue'
    approvals = [
      f'by {role}{"" if unit_name == said["unit"] else f" of {unit_name}"} for {person}'
      for _, person, _, role, unit_name in _approvals(db, key)
    ]
    return (
      f'{key} {said["name"]}, {said["category"]}, {value} value,'
      f' at {said["site"]} of {said["unit"]}, {said["status"]}, {service}'
      + (f', approved {", ".join(approvals)}' if approvals else '')
    )

  def loan(self, db: database.Database, key: str) -> str:
    """See Display.loan."""
    said = facts.row(db, 'loan', key)
    item, days = facts.item(db, said['item']), facts.days_until(db, said['due'])
    return (
      f'{key} {said["item"]} {item["name"]}'
      f' {f"due {days}" if days >= 0 else f"late {-days}"}'
      f' extended {said["extensions"]}'
      f' service {facts.days_until(db, item["service_due"])}'
    )

  def request(self, db: database.Database, key: str) -> str:
    """See Display.request."""
    said = facts.row(db, 'request', key)
    waited = -facts.days_until(db, said['made'])
    return f'{key} of {said["person"]} waits {waited} wants {said["days"]} days'

  def repair(self, db: database.Database, key: str) -> str:
    """See Display.repair."""
    said = facts.row(db, 'repair', key)
    tested = 'tested' if said['tested'] == 'yes' else 'not tested'
    return (
      f'{key} of {said["item"]} {facts.item(db, said["item"])["name"]},'
      f' {said["state"]}, {said["reason"]}, {tested}'
    )

  def training(self, db: database.Database, person: str, category: str) -> str:
    """See Display.training."""
    said = 'trained' if category in facts.trained(db, person) else 'not trained'
    return f'{person} is {said} in {category}'


class Plain:
  """Shows dates and counts as they are stored, see Display."""

  requests_by = facts.NUMBER.format('id')
  whole = False

  def person(self, db: database.Database, key: str) -> str:
    """See Display.person."""
    said = facts.person(db, key)
    return (
      f'{key} {said["name"]}, {said["role"]} of {said["unit"]},'
      f' {said["loans"]} open loans'
    )

  def item(self, db: database.Database, key: str) -> str:
    """See Display.item."""
    said = facts.item(db, key)
    approvals = ''.join(
      f', approval {approval} for {person} by {approver}'
      for approval, person, approver, _, _ in _approvals(db, key)
    )
    return (
      f'{key} {said["name"]}, {said["category"]}, worth {said["worth"]},'
      f' at {said["site"]} of {said["unit"]}, {said["status"]},'
      f' service due {said["service_due"]}{approvals}'
    )

  def loan(self, db: database.Database, key: str) -> str:
    """See Display.loan."""
    said = facts.row(db, 'loan', key)
    return (
      f'{key} {said["item"]} {facts.item(db, said["item"])["name"]} to'
      f' {said["person"]} due {said["due"]} extended {said["extensions"]}'
    )

  def request(self, db: database.Database, key: str) -> str:
    """See Display.request."""
    said = facts.row(db, 'request', key)
    return f'{key} of {said["person"]} made {said["made"]} wants {said["days"]} days'

  def repair(self, db: database.Database, key: str) -> str:
    """See Display.repair."""
    said = facts.row(db, 'repair', key)
    return (
      f'{key} of {said["item"]} {facts.item(db, said["item"])["name"]},'
      f' {said["state"]}, {said["reason"]}, tested {said["tested"]},'
      f' opened {said["opened"]}'
    )

  def training(self, db: database.Database, person: str, category: str) -> str:
    """See Display.training."""
    until = db.value(
      'select expires from training where person = ? and category = ?', person, category
    )
    if until is None:
      return f'{person} has no {category} training'
    return f'{person} has {category} training until {until}'
