"""Calls that carry out a goal of the desk, and the checks of what they wrote."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from agentflow_jax import records
from agentflow_jax.data import desk_rules


@dataclasses.dataclass(frozen=True)
class Call:
  """A call of a tool with the texts of its arguments.

  Attributes:
    tool: name of the tool.
    arguments: names and texts of the arguments, in order.
    why: thoughts before the call, each a name or a rule with its facts. They play no
      part in comparing two calls.
  """

  tool: str
  arguments: tuple[tuple[str, str], ...]
  why: tuple[str, ...] = dataclasses.field(default=(), compare=False)

  @classmethod
  def of(cls, tool: str, **arguments: str) -> 'Call':
    """Returns a call."""
    return cls(tool, tuple(arguments.items()))

  def said(self) -> dict[str, Any]:
    """Returns the call as an object of JSON."""
    why = {'why': list(self.why)} if self.why else {}
    return {'tool': self.tool, 'arguments': dict(self.arguments)} | why

  def because(self, *why: str) -> 'Call':
    """Returns this call with thoughts before it."""
    return dataclasses.replace(self, why=tuple(filter(None, why)))


@dataclasses.dataclass(frozen=True)
class Effect:
  """A call with what it has to change.

  Attributes:
    call: call.
    check: check of the change; None for a call that only reads.
    allowed: change that the check of side effects allows, see
      environments.checks; None for a call that only reads.
  """

  call: Call
  check: records.Check | None = None
  allowed: Mapping[str, Any] | None = None


def of_goal(
  goal: desk_rules.Goal,
  tables: desk_rules.Tables,
  rules: Mapping[str, Mapping[str, Any]],
  start: desk_rules.Tables,
  why: Sequence[str] = (),
) -> Iterator[Effect]:
  """Yields the calls that carry out a goal.

  Args:
    goal: goal that is to be carried out.
    tables: rows before the goal.
    rules: parameters of the rules in force.
    start: rows at the start of the task.
    why: thoughts before the first call.
  """
  effects = _of_goal(goal, tables, rules, start)
  first = next(effects)
  yield dataclasses.replace(first, call=first.call.because(*why))
  yield from effects


def _of_goal(goal, tables, rules, start) -> Iterator[Effect]:
  event = ''
  if goal.verb in ('lend', 'grant'):
    yield _lend(goal, tables)
  elif goal.verb == 'extend':
    yield _extend(goal, tables)
  elif goal.verb == 'return':
    yield _return(goal)
    reason = desk_rules.repair_reason(goal, tables, rules)
    if reason:
      yield _open_repair(goal, reason)
      event = 'opened'
  elif goal.verb == 'transfer':
    yield _transfer(goal, tables)
    event = 'moved'
  elif goal.verb == 'repair':
    yield _close_repair(goal)
    event = 'closed'
  if goal.verb == 'grant':
    yield _grant(goal)
  if event and rules.get('notice', {}).get('event') == event:
    after = desk_rules.after(goal, tables, rules)
    yield from _notify(goal.item, after, rules['notice']['role'], start)


def _lend(goal, tables) -> Effect:
  return Effect(
    Call.of('create_loan', person=goal.person, item=goal.item, days=str(goal.days)),
    _counted(
      'lent',
      'loan',
      person=goal.person,
      item=goal.item,
      returned=None,
      due=tables.day(goal.days),
    ),
    {'table': 'loan', 'change': 'added', 'most': 1},
  )


def _extend(goal, tables) -> Effect:
  loan = tables.rows['loan'][goal.loan]
  return Effect(
    Call.of('extend_loan', loan=goal.loan, days=str(goal.days)),
    _counted(
      'extended',
      'loan',
      id=goal.loan,
      due=desk_rules.extended(loan, goal.days),
      extensions=loan['extensions'] + 1,
    ),
    _changed('loan', goal.loan, 'due', 'extensions'),
  )


def _return(goal) -> Effect:
  return Effect(
    Call.of('return_item', item=goal.item),
    records.Check(
      'returned',
      'state',
      {
        'query': (
          f"select count(*) from loan where id = '{goal.loan}' and returned is null"
        ),
        'expected_value': 0,
        'comparison_type': 'equals',
      },
    ),
    _changed('loan', goal.loan, 'returned'),
  )


def _open_repair(goal, reason) -> Effect:
  return Effect(
    Call.of('open_repair', item=goal.item, reason=reason),
    _counted('repair opened', 'repair', item=goal.item, state='open', reason=reason),
    {'table': 'repair', 'change': 'added', 'most': 1},
  )


def _transfer(goal, tables) -> Effect:
  site = tables.rows['site'][goal.site]
  return Effect(
    Call.of('transfer_item', item=goal.item, site=site['name']),
    _counted('moved', 'item', id=goal.item, site=goal.site),
    _changed('item', goal.item, 'site'),
  )


def _close_repair(goal) -> Effect:
  return Effect(
    Call.of('close_repair', repair=goal.repair, result=goal.result),
    _counted(
      'repair closed', 'repair', id=goal.repair, state='closed', result=goal.result
    ),
    _changed('repair', goal.repair, 'state', 'closed', 'result'),
  )


def _grant(goal) -> Effect:
  return Effect(
    Call.of('set_request_state', request=goal.request, state='granted'),
    _counted('granted', 'request', id=goal.request, state='granted'),
    _changed('request', goal.request, 'state'),
  )


def _notify(item, tables, role, start) -> Iterator[Effect]:
  unit = tables.unit_of(item)
  yield Effect(get_unit(tables, unit).because(f'notice {role}'))
  person = tables.holder(unit, role)
  before = sum(
    n['person'] == person and n['about'] == item for n in start.rows['notice'].values()
  )
  yield Effect(
    Call.of('send_notice', person=person, about=item).because(role),
    _counted('notified', 'notice', before + 1, person=person, about=item),
    {'table': 'notice', 'change': 'added', 'most': 1},
  )


def _counted(name: str, table: str, times: int = 1, **values: Any) -> records.Check:
  """Returns the check that a table has some rows with these values."""
  said = ' and '.join(
    f'{column} is null'
    if value is None
    else f'{column} = {value}'
    if isinstance(value, int)
    else f"{column} = '{value}'"
    for column, value in values.items()
  )
  return records.Check(
    name,
    'state',
    {
      'query': f'select count(*) from {table} where {said}',
      'expected_value': times,
      'comparison_type': 'equals',
    },
  )


def _changed(table: str, key: str, *columns: str) -> dict[str, Any]:
  return {'table': table, 'change': 'changed', 'keys': [key], 'columns': list(columns)}


def unchanged(effects: Sequence[Effect]) -> records.Check:
  """Returns the check that nothing else changed."""
  allowed: list[Mapping[str, Any]] = [{'table': 'event_log', 'change': 'added'}]
  allowed += [e.allowed for e in effects if e.allowed is not None]
  return records.Check('nothing else', 'unchanged', {'allowed': allowed})


def refused(rules: Sequence[str], about: Sequence[str]) -> records.Check:
  return records.Check(
    'ending', 'ending', {'ended': 'refuse', 'rule': list(rules), 'about': list(about)}
  )


def get_unit(tables, unit) -> Call:
  return Call.of('get_unit', unit=tables.rows['unit'][unit]['name'])


_WORDS = {
  'find_person': 'Find the person {name}.',
  'get_person': 'Look at the person {person}.',
  'find_item': 'Find the {model} at {site}.',
  'get_item': 'Look at the item {item}.',
  'list_loans': 'List the loans of {of}.',
  'list_requests': 'List the open requests for the {model} at {site}.',
  'get_training': 'Look up the {category} training of {person}.',
  'get_unit': 'Look up who runs {unit}.',
  'get_repair': 'Look at the repair {repair}.',
  'create_loan': 'Lend {item} to {person} for {days} days.',
  'extend_loan': 'Extend the loan {loan} by {days} days.',
  'return_item': 'Take {item} back.',
  'transfer_item': 'Move {item} to {site}.',
  'open_repair': 'Send {item} to repair, reason {reason}.',
  'close_repair': 'Close the repair {repair} as {result}.',
  'set_request_state': 'Set the request {request} to {state}.',
  'send_notice': 'Send {person} a notice about {about}.',
  'finish': 'Finish.',
  'refuse': 'Refuse by the rule {rule}, about {about}.',
}


def in_words(call: Call) -> str:
  arguments = dict(call.arguments)
  if call.tool == 'find_person' and 'unit' in arguments:
    return 'Find the person {name} of {unit}.'.format(**arguments)
  return _WORDS[call.tool].format(**arguments)
