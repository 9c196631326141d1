"""Changes of one row after which a rule forbids a goal, or words fit two rows."""

import dataclasses
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from agentflow_jax.data import desk_goals, desk_rules, desk_worlds

# A changed row: table, key, and the new values of its columns.
Change = tuple[str, str, dict[str, Any]]
# Verbs that a rule can forbid.
FORBIDS: Mapping[str, tuple[str, ...]] = {
  'limit': ('lend', 'grant'),
  'late': ('lend', 'grant', 'extend'),
  'approval': ('lend', 'grant'),
  'service': ('lend', 'grant', 'transfer'),
  'training': ('lend', 'grant'),
  'visitor': ('lend', 'grant'),
  'extension': ('extend',),
  'home': ('lend', 'grant', 'transfer'),
  'test': ('repair',),
}
AMBIGUOUS = 'ambiguous'


@dataclasses.dataclass(frozen=True)
class Twins:
  """Finds changes in a world, in a drawn order.

  Attributes:
    rng: source of randomness.
    world: world.
    tables: rows of the world.
  """

  rng: random.Random
  world: desk_worlds.World
  tables: desk_rules.Tables

  def changes(
    self,
    rule: str,
    saids: Sequence[desk_goals.Said],
    goals: Sequence[desk_rules.Goal],
    at_once: bool,
  ) -> list[Change]:
    """Returns changes after which the rule may forbid a goal, in a drawn order.

    Args:
      rule: rule, or AMBIGUOUS for words that fit two rows.
      saids: goals as they are said.
      goals: goals by their keys.
      at_once: whether the goals are one, see desk_goals.plan.
    """
    found: list[Change] = []
    for said, goal in zip(saids, goals):
      if rule == AMBIGUOUS:
        found += self._doubles(said, goal)
      elif goal.verb in FORBIDS[rule]:
        found += _BREAKING[rule](self, said, goal)
    if rule == AMBIGUOUS and len(saids) > 1 and not at_once and not saids[1].same:
      # Another row's goal would be lawful; the person belongs to both goals.
      found = [c for c in found if c[0] == 'person']
    self.rng.shuffle(found)
    return found

  def _over_limit(self, said, goal) -> Iterator[Change]:
    del said
    for loan in self.tables.open_loans.values():
      if loan['person'] != goal.person and loan['due'] >= self.tables.today:
        yield 'loan', loan['id'], {'person': goal.person}

  def _late(self, said, goal) -> Iterator[Change]:
    del said
    for loan in self.tables.loans_of.get(goal.person, ()):
      yield 'loan', loan['id'], {'due': self._day(-self.rng.randint(1, 9))}

  def _unapproved(self, said, goal) -> Iterator[Change]:
    del said
    tables = self.tables
    right = self.world.rules['approval']['role']
    unit = tables.unit_of(goal.item)
    wrong = tables.holder(unit, 'steward' if right == 'head' else 'head')
    others = [
      p['id']
      for p in tables.rows['person'].values()
      if p['role'] == 'member' and p['id'] != goal.person
    ]
    for approval in tables.approvals_of.get(goal.item, ()):
      if approval['person'] == goal.person:
        yield 'approval', approval['id'], {'approver': wrong}
        yield 'approval', approval['id'], {'person': self.rng.choice(others)}

  def _due(self, said, goal) -> Iterator[Change]:
    del said
    days = self.rng.randint(1, self.world.rules['service']['days'])
    yield 'item', goal.item, {'service_due': self._day(days)}

  def _untrained(self, said, goal) -> Iterator[Change]:
    del said
    category = self.world.rules['training']['category']
    for training in self.tables.rows['training'].values():
      if (training['person'], training['category']) == (goal.person, category):
        yield (
          'training',
          training['id'],
          {'expires': self._day(-self.rng.randint(1, 90))},
        )

  def _visiting(self, said, goal) -> Iterator[Change]:
    del said
    if self.tables.rows['person'][goal.person]['role'] == 'member':
      yield 'person', goal.person, {'role': 'visitor'}

  def _extended(self, said, goal) -> Iterator[Change]:
    del said
    times = self.world.rules['extension']['times']
    yield 'loan', goal.loan, {'extensions': times}

  def _away(self, said, goal) -> Iterator[Change]:
    tables = self.tables
    if goal.verb == 'transfer':
      units = [
        u for u in tables.rows['unit'] if u != tables.rows['site'][goal.site]['unit']
      ]
      yield 'site', goal.site, {'unit': self.rng.choice(units)}
    elif tables.rows['person'][goal.person]['role'] == 'member' and not said.unit:
      units = [u for u in tables.rows['unit'] if u != tables.unit_of(goal.item)]
      yield 'person', goal.person, {'unit': self.rng.choice(units)}

  def _untested(self, said, goal) -> Iterator[Change]:
    del said
    yield 'repair', goal.repair, {'tested': 'no'}

  def _doubles(self, said, goal) -> Iterator[Change]:
    """Yields changes after which words fit two rows."""
    tables = self.tables
    if said.person:
      unit = tables.rows['person'][goal.person]['unit']
      others = [
        p['id']
        for p in tables.rows['person'].values()
        if p['role'] == 'member' and p['id'] != goal.person
      ]
      yield (
        'person',
        self.rng.choice(others),
        {'name': said.person, **({'unit': unit} if said.unit else {})},
      )
    if said.verb in ('return', 'extend'):
      model = tables.rows['item'][goal.item]['model']
      for loan in tables.open_loans.values():
        same = tables.rows['item'][loan['item']]['model'] == model
        if same and loan['person'] != goal.person:
          yield 'loan', loan['id'], {'person': goal.person}
    elif said.verb == 'grant':
      oldest = tables.rows['request'][goal.request]
      for request in tables.rows['request'].values():
        if (
          request['id'] != oldest['id']
          and request['state'] == 'open'
          and all(request[c] == oldest[c] for c in ('model', 'site'))
        ):
          yield 'request', request['id'], {'made': oldest['made']}
    elif said.model:
      yield from self._twin_items(goal.item)

  def _twin_items(self, key: str) -> Iterator[Change]:
    """Yields items in the same state that could be at the same place."""
    item, tables = self.tables.rows['item'][key], self.tables
    for other in tables.rows['item'].values():
      if other['id'] == key or other['model'] != item['model']:
        continue
      if tables.is_free(key) == tables.is_free(other['id']) and (
        key in tables.open_repairs
      ) == (other['id'] in tables.open_repairs):
        yield 'item', other['id'], {'site': item['site']}

  def _day(self, days: int) -> str:
    return self.tables.day(days)


_BREAKING: Mapping[str, Callable[..., Iterator[Change]]] = {
  'limit': Twins._over_limit,
  'late': Twins._late,
  'approval': Twins._unapproved,
  'service': Twins._due,
  'training': Twins._untrained,
  'visitor': Twins._visiting,
  'extension': Twins._extended,
  'home': Twins._away,
  'test': Twins._untested,
}
