"""Tasks of the desk: feasible ones, and twins in which one row is another one.

A twin has the words and the world of a feasible task, and one changed row, after which
one rule forbids a goal, or the words fit two rows. So a task that cannot be carried out
is not to be told from its words.
"""

import collections
import dataclasses
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from agentflow_jax import records
from agentflow_jax.data import (
  desk_goals,
  desk_rules,
  desk_samples,
  desk_twins,
  desk_words,
  desk_worlds,
)

SPLIT_SIZES = {'train': 8000, 'validation': 200, 'test': 400}
ENVIRONMENT = 'desk'
# Families with their compositions and shares of the draws.
FAMILIES: Mapping[str, tuple[float, tuple[str, ...]]] = {
  'lend': (0.16, ('lend',)),
  'extend': (0.12, ('extend',)),
  'return': (0.16, ('return', 'return', 'return broken')),
  'swap': (0.12, ('swap',)),
  'request': (0.12, ('request',)),
  'transfer': (0.08, ('transfer',)),
  'repair': (0.10, ('repair',)),
  'two': (
    0.14,
    (
      'return+lend',
      'extend+lend',
      'return+extend',
      'repair+lend',
      'return+transfer',
      'repair+transfer',
    ),
  ),
}
# Share of the tasks that cannot be carried out.
_INFEASIBLE = 0.275
# Share of the test split's wordings that are held out.
_HELD_OUT = 0.4
_TRIES = 40
# Draws for each task, after which the worlds count as used up.
_TURNS = 50
# Fewest and most calls of a feasible task, by tier.
_CALLS = {'easy': (2, 9), 'plain': (2, 12), 'long': (6, 12)}
_MOST_WORDS = 30


@dataclasses.dataclass(frozen=True)
class Draft:
  """A task that has no id yet.

  Attributes:
    composition: key of desk_samples.COMPOSITIONS.
    query: words.
    held_out: whether the wording is held out.
    world: world.
    changes: changed rows.
    plan: right way to carry it out.
    tempting: solution of the feasible task of these words; '' where this is one.
  """

  composition: str
  query: str
  held_out: bool
  world: desk_worlds.World
  changes: tuple[desk_twins.Change, ...]
  plan: desk_goals.Plan
  tempting: str = ''

  @property
  def family(self) -> str:
    """The family of the composition."""
    return next(f for f, (_, found) in FAMILIES.items() if self.composition in found)

  @property
  def rule(self) -> str:
    """The rule of the right refusal; '' where the task is feasible."""
    if self.plan.kind == 'feasible':
      return ''
    return self.plan.broken[0][0] if self.plan.broken else desk_twins.AMBIGUOUS

  def words(self) -> tuple[Any, ...]:
    """Returns what no two tasks of a split share."""
    return self.query, self.world.name, json.dumps(self.changes)


def generate(
  split: str,
  worlds: Sequence[desk_worlds.World],
  count: int | None = None,
  tier: desk_goals.Tier = 'easy',
) -> list[Draft]:
  """Returns the drafts of a split, the same ones every time.

  Args:
    split: 'train', 'validation' or 'test'.
    worlds: worlds of the split, which are used in turn.
    count: number of drafts; None for the size of the split.
    tier: difficulty, which decides what the reading tools show.

  Raises:
    ValueError: the worlds are too few for so many different tasks.
  """
  count = SPLIT_SIZES[split] if count is None else count
  rng = random.Random(f'desk/tasks/{split}/{tier}')
  makers = [_Maker(rng, world, tier) for world in worlds]
  used: collections.Counter[str] = collections.Counter()
  drafts: list[Draft] = []
  seen = set()
  turn = 0
  while len(drafts) < count:
    maker = makers[turn % len(makers)]
    turn += 1
    if turn > _TURNS * (count + len(makers)):
      raise ValueError(
        f'{len(makers)} worlds give {len(drafts)} different tasks, not {count}:'
        ' ask for more worlds, or for fewer tasks'
      )
    twin = used.total() < _INFEASIBLE * len(drafts) and len(drafts) + 1 < count
    found = maker.pair(used) if twin else maker.single()
    if found and not any(d.words() in seen for d in found):
      seen.update(d.words() for d in found)
      drafts += found
      used.update(d.rule for d in found if d.rule)
  rng.shuffle(drafts)
  return drafts


class _Maker:
  """Draws the tasks of one world."""

  def __init__(self, rng, world, tier):
    self._rng, self._world, self._tier = rng, world, tier
    self._tables = desk_rules.Tables(world.rows, world.date)
    self._sampler = desk_samples.Sampler(rng, world, self._tables)
    self._twins = desk_twins.Twins(rng, world, self._tables)

  def single(self) -> list[Draft]:
    """Draws a feasible task, which may be near the edge of a rule."""
    composition = self._composition(tuple(FAMILIES))
    rule = self._rng.choice(('', *self._rules_of(composition)))
    found = self._feasible(composition, rule)
    return [self._draft(composition, found[0], found[1])] if found else []

  def pair(self, used: Mapping[str, int]) -> list[Draft]:
    """Draws a feasible task and its twin, by the rule that was used least."""
    rules = [*(r for r in desk_twins.FORBIDS if r in self._world.rules)]
    rules.append(desk_twins.AMBIGUOUS)
    self._rng.shuffle(rules)
    rule = min(rules, key=lambda r: used[r])
    families = tuple(
      family
      for family, (_, compositions) in FAMILIES.items()
      if any(rule in (*self._rules_of(c), desk_twins.AMBIGUOUS) for c in compositions)
    )
    for _ in range(_TRIES):
      composition = self._composition(families)
      if rule not in (*self._rules_of(composition), desk_twins.AMBIGUOUS):
        continue
      found = self._feasible(composition, rule)
      twin = found and self._twin(composition, rule, *found)
      if found and twin:
        draft = self._draft(composition, *found)
        return [
          draft,
          dataclasses.replace(
            draft,
            changes=(twin[0],),
            plan=twin[1],
            tempting=self._tempting(composition, found, twin).solution(),
          ),
        ]
    return []

  def _rules_of(self, composition: str) -> tuple[str, ...]:
    """Returns the rules in force that can forbid a composition."""
    verbs = desk_samples.COMPOSITIONS[composition]
    return tuple(
      rule
      for rule, forbidden in desk_twins.FORBIDS.items()
      if rule in self._world.rules
      and any(v in forbidden for v in verbs)
      # An exchange that the limit forbids would start above the limit.
      and not (rule == 'limit' and verbs[0] == 'return')
    )

  def _composition(self, families: Sequence[str]) -> str:
    weights = [FAMILIES[family][0] for family in families]
    (family,) = self._rng.choices(families, weights)
    compositions = FAMILIES[family][1]
    # Those that are held out come twice as often in the test split, else never.
    times = 2 if self._world.split == 'test' else 0
    weights = [times if c in desk_words.HELD_OUT else 1 for c in compositions]
    return self._rng.choices(compositions, weights)[0]

  def _feasible(
    self, composition, rule
  ) -> tuple[desk_samples.Saids, desk_goals.Plan] | None:
    """Returns goals with their plan, or None."""
    for _ in range(_TRIES):
      saids = self._sampler.saids(composition, rule)
      if saids is None:
        continue
      plan = self._plan(composition, saids, self._tables)
      if plan and plan.kind == 'feasible':
        return saids, plan
    return None

  def _twin(self, composition, rule, saids, plan):
    """Returns a change and the plan after it, or None."""
    wanted = [] if rule == desk_twins.AMBIGUOUS else [rule]
    changes = self._twins.changes(rule, saids, plan.goals, composition == 'swap')
    for change in changes[:_TRIES]:
      table, key, values = change
      tables = self._tables.changed(table, key, **values)
      found = self._plan(composition, saids, tables)
      if found is None or [rule for rule, _ in found.broken] != wanted:
        continue
      if found.kind != 'feasible' and (wanted or found.kind == 'ambiguous'):
        return change, found
    return None

  def _tempting(self, composition, found, twin) -> desk_goals.Plan:
    """Returns the forbidden way: a twin is carried out as if no rule forbade it."""
    saids, feasible = found
    (table, key, values), plan = twin
    if plan.kind == 'ambiguous':
      return feasible
    tables = self._tables.changed(table, key, **values)
    tempting = self._plan(composition, saids, tables, obeys=False)
    same = tempting is not None and tempting.calls == feasible.calls
    return tempting if same and tempting is not None else feasible

  def _plan(self, composition, saids, tables, obeys=True) -> desk_goals.Plan | None:
    try:
      plan = desk_goals.plan(
        saids, tables, self._world.rules, self._tier, composition == 'swap', obeys
      )
    except desk_goals.Missing:
      return None
    fewest, most = _CALLS[self._tier]
    fits = len(plan.calls) >= fewest or plan.kind != 'feasible'
    return plan if fits and len(plan.calls) <= most else None

  def _draft(self, composition, saids, plan) -> Draft:
    wordings = desk_words.WORDINGS[composition]
    held_out = self._world.split == 'test' and self._rng.random() < _HELD_OUT
    text = self._rng.choice(wordings.held_out if held_out else wordings.known)
    query = desk_words.fill(text, saids)
    if len(query.split()) > _MOST_WORDS:
      raise AssertionError(f'{len(query.split())} words: {query}')
    return Draft(composition, query, held_out, self._world, (), plan)


def tasks(
  split: str,
  drafts: Sequence[Draft],
  digests: Mapping[str, str],
  policies: Mapping[str, str],
) -> Iterator[records.Task]:
  """Yields the tasks of drafts, in order.

  Args:
    split: split of the tasks.
    drafts: drafts.
    digests: SHA-256 of every world, by its name.
    policies: text of every world's policy, by its name.
  """
  for i, draft in enumerate(drafts):
    feasible = draft.plan.kind == 'feasible'
    name = draft.world.name
    yield records.Task(
      id=f'{split}/{i:06d}',
      query=draft.query,
      answers=(),
      reward='checks',
      tags=_tags(draft),
      world=records.World(
        environment=ENVIRONMENT,
        state={
          'seed': name,
          'sha256': digests[name],
          'changes': [
            {'table': table, 'key': [key], 'set': values}
            for table, key, values in draft.changes
          ],
          'date': draft.world.date.isoformat(),
        },
        policy=policies[name],
        checks=draft.plan.checks,
        plan=draft.plan.text(),
        feasible=feasible,
      ),
    )


def _tags(draft: Draft) -> dict[str, str]:
  plan = draft.plan
  composition = draft.composition in desk_words.HELD_OUT
  new = {
    (True, True): 'both',
    (True, False): 'wording',
    (False, True): 'composition',
    (False, False): 'nothing',
  }[draft.held_out, composition]
  tags = {
    'family': draft.family,
    'kind': plan.kind,
    'feasible': 'yes' if plan.kind == 'feasible' else 'no',
    'rule': draft.rule,
    'calls': str(len(plan.calls)),
    'composition': draft.composition,
    'held_out': 'no' if new == 'nothing' else 'yes',
    'new': new,
    'solution': plan.solution(),
  }
  if draft.tempting:
    tags['tempting'] = draft.tempting
  return tags
