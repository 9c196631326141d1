"""What the words of a task of the desk mean, and how they are carried out.

A goal is said with names (`Said`) and never with keys. Reading a goal means to make the
calls that find its rows; carrying it out means to make the calls that write.
"""

import dataclasses
import json
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any, Literal

from agentflow_jax import records
from agentflow_jax.data import desk_effects, desk_rules, desk_worlds

Tier = Literal['easy', 'plain', 'long']
Kind = Literal['feasible', 'forbidden', 'partial', 'ambiguous']
_call = desk_effects.Call.of


class Ambiguous(Exception):
  """Words that fit several rows.

  Attributes:
    keys: keys of which each names one of the rows.
  """

  def __init__(self, keys: Sequence[str]):
    super().__init__(', '.join(keys))
    self.keys = tuple(keys)


class Missing(Exception):
  """Words that fit no row."""


@dataclasses.dataclass(frozen=True)
class Said:
  """A goal as a task says it, with names.

  Attributes:
    verb: kind of the goal, see desk_rules.Goal.
    person: name of a person; '' where it plays no part, as in all fields below.
    unit: name of the person's unit, where the words tell it.
    model: name of the item's model.
    site: name of the item's site.
    to: name of the site that the item goes to.
    days: days of a loan, or of an extension.
    reason: reason of a repair, see desk_rules.Goal.
    result: finding of a repair, see desk_rules.Goal.
    same: whether the item is the one of the first goal.
  """

  verb: str
  person: str = ''
  unit: str = ''
  model: str = ''
  site: str = ''
  to: str = ''
  days: int = 0
  reason: str = ''
  result: str = ''
  same: bool = False


@dataclasses.dataclass(frozen=True)
class Plan:
  """The right way to carry out a task.

  Attributes:
    kind: 'feasible'; 'forbidden' where nothing of it is lawful; 'partial' where
      another goal is; 'ambiguous' where the words fit several rows.
    calls: calls in order; the last one ends the task.
    checks: conditions on the end.
    goals: goals by their keys; empty where the words are ambiguous.
    broken: rules that forbid a goal, each with what it is about, sorted.
  """

  kind: Kind
  calls: tuple[desk_effects.Call, ...]
  checks: tuple[records.Check, ...]
  goals: tuple[desk_rules.Goal, ...]
  broken: tuple[desk_rules.Break, ...] = ()

  def solution(self) -> str:
    """Returns the calls as JSON."""
    return json.dumps([call.said() for call in self.calls])

  def text(self) -> str:
    """Returns the calls as numbered lines in words."""
    return '\n'.join(
      f'{i}. {desk_effects.in_words(call)}' for i, call in enumerate(self.calls, 1)
    )


def plan(
  saids: Sequence[Said],
  tables: desk_rules.Tables,
  rules: Mapping[str, Mapping[str, Any]],
  tier: Tier = 'easy',
  at_once: bool = False,
  obeys: bool = True,
) -> Plan:
  """Returns the right way to carry out goals in their order.

  Args:
    saids: goals.
    tables: rows at the start.
    rules: parameters of the rules in force.
    tier: difficulty, which decides what the reading tools show.
    at_once: whether the goals are one: nothing is done where a part is forbidden.
    obeys: whether rules are obeyed; otherwise every goal is judged to be lawful.

  Raises:
    Missing: the words fit no row, or a goal cannot be carried out for a reason other
      than a rule.
  """
  calls: list[desk_effects.Call] = []
  effects: list[desk_effects.Effect] = []
  goals: list[desk_rules.Goal] = []
  waiting: list[desk_effects.Effect] = []
  broken: set[desk_rules.Break] = set()
  why: list[str] = []
  refusing: list[str] = []
  state = tables
  try:
    for said in saids:
      if said.same and broken:  # It depends on what was not done.
        break
      first = goals[0] if goals else None
      goal = _collect(_reads(said, tables, rules, tier, first), calls)
      goals.append(goal)
      thoughts = _thoughts(said, goal, state, rules, obeys)
      why = [*why, *thoughts] if at_once else thoughts
      found = desk_rules.breaks(goal, state, rules) if obeys else []
      broken |= set(found)
      if found:
        refusing = why
        continue
      if not desk_rules.can_be_done(goal, state):
        raise Missing(f'{goal} cannot be carried out')
      made = list(
        desk_effects.of_goal(goal, state, rules, tables, () if at_once else why)
      )
      waiting += made
      state = desk_rules.after(goal, state, rules)
      if not at_once:
        effects += _made(waiting, calls)
        waiting = []
  except Ambiguous as e:
    if effects or broken:
      raise Missing('another goal came before the ambiguous one') from e
    calls.append(
      _call('refuse', rule='ambiguous', about=e.keys[0]).because('two match')
    )
    checks = (desk_effects.unchanged(()), desk_effects.refused(('ambiguous',), e.keys))
    return Plan('ambiguous', tuple(calls), checks, ())
  if not broken:
    if waiting:
      call = waiting[0].call.because(*why)
      waiting[0] = dataclasses.replace(waiting[0], call=call)
    effects += _made(waiting, calls)
  return _ended(calls, effects, tuple(goals), tuple(sorted(broken)), refusing)


def _thoughts(said, goal, state, rules, obeys) -> list[str]:
  """Returns what is thought before a goal is carried out: a name, and the rules."""
  weighed = desk_rules.weighed(goal, state, rules)
  if goal.verb == 'return' and 'service' in rules and not goal.reason:
    weighed.append(desk_rules.service(goal.item, state, rules))
    obeys = True  # What is due is repaired, and not forbidden.
  name = said.model if goal.verb in ('return', 'extend') else ''
  return [name, *(w.in_words(obeys) for w in weighed)]


def _ended(calls, effects, goals, broken, refusing) -> Plan:
  """Returns the plan with its end and its checks."""
  checks = [effect.check for effect in effects if effect.check is not None]
  checks.append(desk_effects.unchanged(effects))
  if not broken:
    calls.append(_call('finish'))
    checks.append(records.Check('ending', 'ending', {'ended': 'finish'}))
    kind = 'feasible'
  else:
    rule, about = broken[0]
    calls.append(_call('refuse', rule=rule, about=about).because(*refusing))
    checks.append(desk_effects.refused((rule,), (about,)))
    kind = 'partial' if effects else 'forbidden'
  return Plan(kind, tuple(calls), tuple(checks), goals, broken)


def _collect(
  reads: Generator[desk_effects.Call, None, desk_rules.Goal],
  calls: list[desk_effects.Call],
) -> desk_rules.Goal:
  """Appends the calls that are not made yet, and returns the goal."""
  while True:
    try:
      call = next(reads)
    except StopIteration as e:
      return e.value
    if call not in calls:
      calls.append(call)


def _made(
  effects: Sequence[desk_effects.Effect], calls: list[desk_effects.Call]
) -> Sequence[desk_effects.Effect]:
  """Appends the calls of effects; what was read already is not read again."""
  for effect in effects:
    if effect.check is not None or effect.call not in calls:
      calls.append(effect.call)
  return effects


def _reads(
  said: Said,
  tables: desk_rules.Tables,
  rules: Mapping[str, Mapping[str, Any]],
  tier: Tier,
  first: desk_rules.Goal | None,
) -> Generator[desk_effects.Call, None, desk_rules.Goal]:
  """Yields the calls that find the rows of a goal, and returns the goal.

  Args:
    said: goal as it is said.
    tables: rows at the start.
    rules: parameters of the rules in force.
    tier: difficulty; where the tools show dates, more calls are needed.
    first: first goal of the task; None where this is it.
  """
  easy = tier == 'easy'
  goal = desk_rules.Goal(
    said.verb, days=said.days, reason=said.reason, result=said.result
  )
  if said.verb == 'lend':
    person = yield from _person(said, tables, rules, easy, lends=True)
    item = yield from _item(said, tables, easy, first)
    yield from _for_lending(person, item, tables, rules, easy)
    return dataclasses.replace(goal, person=person, item=item)
  if said.verb in ('extend', 'return'):
    person = yield from _person(said, tables, rules, easy, lends=False)
    loan = yield from _loan(said, tables, person)
    if said.verb == 'return' and not easy and 'service' in rules:
      yield _call('get_item', item=loan['item'])
    return dataclasses.replace(goal, person=person, loan=loan['id'], item=loan['item'])
  if said.verb == 'transfer':
    item = yield from _item(said, tables, easy, first)
    (site,) = tables.named('site', said.to)
    yield from _for_moving(item, tables, rules)
    return dataclasses.replace(goal, item=item, site=site)
  if said.verb == 'repair':
    item = yield from _item(said, tables, easy, None)
    repair = tables.open_repairs.get(item)
    if repair is None:
      raise Missing(f'{item} is in no repair')
    yield _call('get_repair', repair=repair['id'])
    return dataclasses.replace(goal, item=item, repair=repair['id'])
  request = yield from _request(said, tables)
  person = request['person']
  yield _call('get_person', person=person)
  if not easy and 'late' in rules:
    yield _call('list_loans', of=person)
  item = yield from _item(said, tables, easy, None)
  yield from _for_lending(person, item, tables, rules, easy)
  return dataclasses.replace(
    goal, person=person, item=item, request=request['id'], days=request['days']
  )


def _person(said, tables, rules, easy, lends):
  unit = {'unit': said.unit} if said.unit else {}
  yield _call('find_person', name=said.person, **unit)
  rows, units = tables.rows['person'], tables.rows['unit']
  person = _one(
    [
      key
      for key in tables.named('person', said.person)
      if not said.unit or units[rows[key]['unit']]['name'] == said.unit
    ]
  )
  if not easy and lends:
    yield _call('get_person', person=person)
    if 'late' in rules:
      yield _call('list_loans', of=person)
  return person


def _item(said, tables, easy, first):
  if said.same:
    item = first.item
    if first.verb == 'return':  # Only its loan is known so far.
      yield _call('get_item', item=item)
    return item
  yield _call('find_item', model=said.model, site=said.site)
  item = _one(
    [
      key
      for key, row in tables.rows['item'].items()
      if tables.rows['model'][row['model']]['name'] == said.model
      and tables.rows['site'][row['site']]['name'] == said.site
    ]
  )
  if not easy:
    yield _call('get_item', item=item)
  return item


def _loan(said, tables, person):
  yield _call('list_loans', of=person)
  found = [
    x
    for x in tables.loans_of.get(person, ())
    if tables.model_of(x['item'])['name'] == said.model
  ]
  if len(found) > 1:
    raise Ambiguous([x['id'] for x in found] + [x['item'] for x in found])
  _one(found)
  return found[0]


def _request(said, tables):
  yield _call('list_requests', model=said.model, site=said.site)
  models, sites = tables.rows['model'], tables.rows['site']
  found = [
    x
    for x in tables.rows['request'].values()
    if x['state'] == 'open'
    and models[x['model']]['name'] == said.model
    and sites[x['site']]['name'] == said.site
  ]
  oldest = min((x['made'] for x in found), default='')
  key = _one([x['id'] for x in found if x['made'] == oldest])
  return tables.rows['request'][key]


def _for_lending(person, item, tables, rules, easy) -> Iterator[desk_effects.Call]:
  """Yields the calls that show whether a loan is lawful, where dates are shown."""
  if easy:
    return
  model = tables.model_of(item)
  if 'training' in rules and model['category'] == rules['training']['category']:
    yield _call('get_training', person=person, category=model['category'])
  if 'approval' in rules and model['worth'] >= desk_worlds.HIGH_VALUE:
    yield desk_effects.get_unit(tables, tables.unit_of(item))


def _for_moving(item, tables, rules) -> Iterator[desk_effects.Call]:
  """Yields the call that shows the sites of a unit whose items stay at home."""
  if 'home' in rules and tables.site_of(item)['name'] == rules['home']['site']:
    yield desk_effects.get_unit(tables, tables.unit_of(item))


def _one(found: Sequence[Any]) -> Any:
  if len(found) > 1:
    raise Ambiguous(found)
  if not found:
    raise Missing('the words fit no row')
  return found[0]
