"""Draws goals that a world allows."""

import dataclasses
import random
from collections.abc import Mapping
from typing import Any

from agentflow_jax.data import desk_goals, desk_rules, desk_worlds

Saids = tuple[desk_goals.Said, ...]
_DAYS = range(2, 13)
# Share of the returns that prefer an item whose service is due.
_DUE = 0.3
# Most open loans of a person whose loans are listed, so that lists stay short.
_MOST_LISTED = 2

# Verbs of the goals of every composition; a family of one composition has its name.
COMPOSITIONS: Mapping[str, tuple[str, ...]] = {
  'lend': ('lend',),
  'extend': ('extend',),
  'return': ('return',),
  'return broken': ('return',),
  'swap': ('return', 'lend'),
  'request': ('grant',),
  'transfer': ('transfer',),
  'repair': ('repair',),
  'return+lend': ('return', 'lend'),
  'extend+lend': ('extend', 'lend'),
  'return+extend': ('return', 'extend'),
  'repair+lend': ('repair', 'lend'),
  'return+transfer': ('return', 'transfer'),
  'repair+transfer': ('repair', 'transfer'),
}


@dataclasses.dataclass(frozen=True)
class Sampler:
  """Draws goals in a world.

  Attributes:
    rng: source of randomness.
    world: world.
    tables: rows of the world.
  """

  rng: random.Random
  world: desk_worlds.World
  tables: desk_rules.Tables

  def saids(self, composition: str, rule: str = '') -> Saids | None:
    """Draws goals that can be carried out within the rules.

    Args:
      composition: key of COMPOSITIONS.
      rule: rule that the goals should nearly break; '' for any goals.

    Returns:
      The goals, or None where this draw found none.
    """
    verbs = COMPOSITIONS[composition]
    said = self._first(verbs[0], rule, composition)
    if said is None or len(verbs) == 1:
      return None if said is None else (said,)
    if composition in ('repair+lend', 'repair+transfer', 'return+transfer'):
      second = self._same_item(said, verbs[1], rule)
    else:
      second = self._same_person(said, verbs[1], rule)
    return None if second is None else (said, second)

  def _first(self, verb, rule, composition) -> desk_goals.Said | None:
    if verb == 'lend':
      return self._lend(rule)
    if verb == 'grant':
      return self._grant(rule)
    if verb == 'transfer':
      return self._transfer(rule)
    if verb == 'repair':
      return self._repair()
    return self._of_loan(verb, rule, composition)

  def _lend(self, rule, person='') -> desk_goals.Said | None:
    """Draws a loan; the person is given where it shares one with another goal."""
    items = [i for i in self.tables.rows['item'] if self.tables.is_free(i)]
    items = self._fitting(items, rule)
    if not items:
      return None
    item = self.rng.choice(items)
    days = self.rng.choice(_DAYS)
    if rule == 'visitor':
      days = self.world.rules['visitor']['days'] + self.rng.randint(1, 5)
    key = person or self._borrower(item, days, rule)
    if not key:
      return None
    return desk_goals.Said(
      'lend', **self._person_of(key, rule), **self._item_of(item), days=days
    )

  def _borrower(self, item: str, days: int, rule: str) -> str:
    """Draws a person to whom an item may be lent; '' where there is none."""
    people = list(self.tables.rows['person'])
    if item in self.tables.approvals_of and 'approval' in self.world.rules:
      people = [a['person'] for a in self.tables.approvals_of[item]]
    self.rng.shuffle(people)
    for person in people[:25]:
      goal = desk_rules.Goal('lend', person=person, item=item, days=days)
      if self._near(person, rule) and not self._breaks(goal):
        return person
    return ''

  def _near(self, person: str, rule: str) -> bool:
    """Says whether a change of one row could make a rule forbid a loan."""
    loans = len(self.tables.loans_of.get(person, ()))
    row = self.tables.rows['person'][person]
    if rule == 'limit':
      return loans == self.world.rules['limit']['loans'] - 1
    if rule == 'late':
      return loans > 0
    return rule not in ('visitor', 'home') or row['role'] == 'member'

  def _fitting(self, items: list[str], rule: str) -> list[str]:
    """Returns the items of which a rule speaks."""
    rules, tables = self.world.rules, self.tables
    if rule == 'home':
      return [i for i in items if tables.site_of(i)['name'] == rules['home']['site']]
    if rule == 'training':
      category = rules['training']['category']
      return [i for i in items if tables.model_of(i)['category'] == category]
    if rule == 'approval':
      return [i for i in items if i in tables.approvals_of]
    return items

  def _grant(self, rule) -> desk_goals.Said | None:
    places = {
      (r['model'], r['site'])
      for r in self.tables.rows['request'].values()
      if r['state'] == 'open'
    }
    items = [
      key
      for key, row in self.tables.rows['item'].items()
      if (row['model'], row['site']) in places and self.tables.is_free(key)
    ]
    items = self._fitting(items, rule)
    if not items:
      return None
    return desk_goals.Said('grant', **self._item_of(self.rng.choice(items)))

  def _transfer(self, rule) -> desk_goals.Said | None:
    items = [i for i in self.tables.rows['item'] if self.tables.is_free(i)]
    items = self._fitting(items, rule)
    if not items:
      return None
    item = self.rng.choice(items)
    return desk_goals.Said(
      'transfer', **self._item_of(item), to=self._target(item, rule)
    )

  def _target(self, item: str, rule: str) -> str:
    site = self.tables.site_of(item)
    names = [
      s['name']
      for s in self.tables.rows['site'].values()
      if s['id'] != site['id'] and (rule != 'home' or s['unit'] == site['unit'])
    ]
    return self.rng.choice(names)

  def _repair(self) -> desk_goals.Said | None:
    item = self.rng.choice(list(self.tables.open_repairs))
    return desk_goals.Said(
      'repair', **self._item_of(item), result=self.rng.choice(('fixed', 'fine'))
    )

  def _of_loan(self, verb, rule, composition) -> desk_goals.Said | None:
    """Draws an extension or a return of an open loan."""
    loans = list(self.tables.open_loans.values())
    if verb == 'return' and self.rng.random() < _DUE:
      due = [
        x for x in loans if desk_rules.is_due(x['item'], self.tables, self.world.rules)
      ]
      loans = due or loans
    loan = self.rng.choice(loans)
    person, item = loan['person'], loan['item']
    if len(self.tables.loans_of[person]) > _MOST_LISTED:
      return None
    if composition in ('return+lend', 'swap') and self.tables.is_late(person):
      return None  # It would depend on the order of the goals.
    if verb == 'extend' and self._unclear(person):
      return None
    broken = composition == 'return broken'
    if broken and desk_rules.is_due(item, self.tables, self.world.rules):
      return None  # It would have two reasons.
    return desk_goals.Said(
      verb,
      **self._person_of(person, rule),
      model=self.tables.model_of(item)['name'],
      days=self.rng.choice(_DAYS) if verb == 'extend' else 0,
      reason='fault' if broken else '',
    )

  def _unclear(self, person: str) -> bool:
    """Says whether rules leave open what they mean for an extension."""
    role = self.tables.rows['person'][person]['role']
    return role == 'visitor' and 'visitor' in self.world.rules

  def _same_person(self, first, verb, rule) -> desk_goals.Said | None:
    """Draws a second goal for the person of the first one."""
    people = [
      p
      for p in self.tables.named('person', first.person)
      if not first.unit or self._unit(p) == first.unit
    ]
    if len(people) != 1:
      return None
    (person,) = people
    if verb == 'lend':
      second = self._lend(rule, person)
      if second is None or second.model == first.model:
        return None
      return dataclasses.replace(second, person=first.person, unit=first.unit)
    models = [
      self.tables.model_of(x['item'])['name']
      for x in self.tables.loans_of.get(person, ())
    ]
    models = [m for m in models if m != first.model]
    if not models or self._unclear(person):
      return None
    return desk_goals.Said(
      'extend',
      person=first.person,
      unit=first.unit,
      model=self.rng.choice(models),
      days=self.rng.choice(_DAYS),
    )

  def _same_item(self, first, verb, rule) -> desk_goals.Said | None:
    """Draws a second goal for the item of the first one."""
    tables = self.tables
    try:
      plan = desk_goals.plan((first,), tables, {})
    except desk_goals.Missing:
      return None
    if not plan.goals:
      return None
    item = plan.goals[0].item
    if item not in self._fitting([item], rule):
      return None
    if verb == 'transfer':
      return desk_goals.Said('transfer', to=self._target(item, rule), same=True)
    days = self.rng.choice(_DAYS)
    person = self._borrower(item, days, rule)
    if not person:
      return None
    return desk_goals.Said(
      'lend', **self._person_of(person, rule), days=days, same=True
    )

  def _person_of(self, key: str, rule: str) -> dict[str, Any]:
    """Returns the words for a person; the unit is told where it is needed."""
    name = self.tables.rows['person'][key]['name']
    needed = len(self.tables.named('person', name)) > 1
    told = needed or (rule != 'home' and self.rng.random() < 0.15)
    return {'person': name, 'unit': self._unit(key) if told else ''}

  def _item_of(self, key: str) -> dict[str, Any]:
    return {
      'model': self.tables.model_of(key)['name'],
      'site': self.tables.site_of(key)['name'],
    }

  def _unit(self, person: str) -> str:
    row = self.tables.rows['person'][person]
    return self.tables.rows['unit'][row['unit']]['name']

  def _breaks(self, goal: desk_rules.Goal) -> list[desk_rules.Break]:
    return desk_rules.breaks(goal, self.tables, self.world.rules)
