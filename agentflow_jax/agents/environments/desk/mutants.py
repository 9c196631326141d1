"""Wrong ways to carry out a task of the desk, made from the right one.

A mutant is a list of calls, of which a few are not those of the right way. It is wrong
on purpose, so checks that pass it are too weak.
"""

import dataclasses
import functools
import json
import random
from collections.abc import Iterator, Mapping, Sequence

from agentflow_jax import records
from agentflow_jax.agents.environments.desk import actions, schema
from agentflow_jax.agents.environments.sqlite import seeds

Calls = tuple[records.ToolCall, ...]
# Other values of arguments that are no keys.
_OTHERS: Mapping[str, Sequence[str]] = {
  'reason': ('service', 'fault'),
  'result': ('fixed', 'fine'),
  'state': ('granted', 'declined', 'hold'),
  'days': ('2', '3', '5', '9', '14'),
}
_RULES = (
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
)
_KINDS = {'person': 'P', 'item': 'I', 'loan': 'L', 'repair': 'W', 'request': 'R'}


@dataclasses.dataclass(frozen=True)
class Mutant:
  """A wrong way.

  Attributes:
    operator: name of what was made wrong.
    calls: calls in order; the last one ends the task.
  """

  operator: str
  calls: Calls


def solution_of(task: records.Task, tag: str = 'solution') -> Calls:
  """Returns the calls that a tag of a task holds as JSON."""
  return tuple(
    records.ToolCall(said['tool'], said['arguments'])
    for said in json.loads(task.tags[tag])
  )


def of(task: records.Task, start: seeds.Seed) -> list[Mutant]:
  """Returns mutants of a task's right way, the same ones every time.

  Args:
    task: task with its solution in the tags.
    start: state at the start of the task.
  """
  maker = _Maker(task, start)
  found = maker.feasible() if task.its_world.feasible else maker.infeasible()
  return list(found)


def other_orders(task: records.Task) -> list[Calls]:
  """Returns other right ways: more reads, and reads in another order."""
  calls = solution_of(task)
  doubled = tuple(
    call for c in calls for call in ((c, c) if c.tool in actions.READS else (c,))
  )
  reads = tuple(c for c in calls if c.tool in actions.READS)
  rest = tuple(c for c in calls if c.tool not in actions.READS)
  found = [doubled, (*reversed(reads), *rest)]
  composition = task.tags.get('composition')
  if task.its_world.feasible and composition in ('extend+lend', 'return+extend'):
    # The last write is the second goal, which does not need the first one.
    found.append((*reads, rest[-2], *rest[:-2], rest[-1]))
  return found


class _Maker:
  """Makes the mutants of one task."""

  def __init__(self, task: records.Task, start: seeds.Seed):
    self._rng = random.Random(f'desk/mutants/{task.id}')
    self._task = task
    self._tables = {
      t.name: [dict(zip(t.columns, row)) for row in start.rows[t.name]]
      for t in start.tables
    }
    self._calls = solution_of(task)
    self._writes = [i for i, c in enumerate(self._calls) if c.tool in actions.WRITES]

  def feasible(self) -> Iterator[Mutant]:
    """Yields the mutants of a task that can be carried out."""
    yield from self._changed_writes()
    yield from self._side_effects()
    reads = tuple(c for c in self._calls if c.tool in actions.READS)
    for i in self._writes:
      yield Mutant('finish early', (*self._calls[:i], self._calls[-1]))
    for rule in ('limit', self._rng.choice(_RULES)):
      refusal = _refusal(rule, self._mentioned())
      yield Mutant('refuse instead', (*reads, refusal))
      yield Mutant('refuse afterwards', (*self._calls[:-1], refusal))
    yield Mutant('do not end', self._calls[:-1])

  def infeasible(self) -> Iterator[Mutant]:
    """Yields the mutants of a task that cannot be carried out."""
    yield from self._changed_writes()
    yield from self._side_effects()
    before, end = self._calls[:-1], self._calls[-1]
    yield Mutant('finish instead', (*before, records.ToolCall('finish', {})))
    for rule in self._rng.sample(_RULES, 3):
      if rule != end.arguments['rule']:
        yield Mutant('wrong rule', (*before, _refusal(rule, end.arguments['about'])))
    for about in (self._other(end.arguments['about']), self._key('E'), self._key('M')):
      yield Mutant('wrong about', (*before, _refusal(end.arguments['rule'], about)))
    if 'tempting' in self._task.tags:
      tempting = solution_of(self._task, 'tempting')
      yield Mutant('do it anyway', tempting)
      yield Mutant('do it and refuse', (*tempting[:-1], end))
    yield Mutant('do not end', before)

  def _changed_writes(self) -> Iterator[Mutant]:
    """Yields mutants that leave a writing call out, or change an argument."""
    for i in self._writes:
      call = self._calls[i]
      yield Mutant('drop a write', (*self._calls[:i], *self._calls[i + 1 :]))
      for name, value in call.arguments.items():
        kind = 'wrong value'
        if name in _OTHERS:
          other = self._rng.choice([v for v in _OTHERS[name] if v != value])
        elif name == 'site':
          other = self._rng.choice([n for n in self._names('site') if n != value])
        else:
          kind, other = 'wrong entity', self._other(value)
        changed = records.ToolCall(call.tool, {**call.arguments, name: other})
        yield Mutant(kind, (*self._calls[:i], changed, *self._calls[i + 1 :]))

  def _side_effects(self) -> Iterator[Mutant]:
    """Yields mutants that do more than they should."""
    item, person = self._unnamed(self._in_state('free')), self._key('P')
    site = self._rng.choice(self._names('site'))
    extras = {
      'extra loan': [_call('create_loan', person=person, item=item, days='3')],
      'extra move': [_call('transfer_item', item=item, site=site)],
      'extra repair': [_call('open_repair', item=item, reason='fault')],
      'extra request': [
        _call(
          'set_request_state',
          state='hold',
          request=self._unnamed(
            [str(r['id']) for r in self._rows('request') if r['state'] == 'open']
          ),
        )
      ],
      'extra return': [
        _call('return_item', item=self._unnamed(self._in_state('lent')))
      ],
      'notify everybody': [
        _call('send_notice', person=p, about=item) for p in self._keys('P')[:8]
      ],
    }
    for name in self._rng.sample(sorted(extras), 4):
      yield Mutant(name, (*self._calls[:-1], *extras[name], self._calls[-1]))

  def _mentioned(self) -> str:
    """Returns a key that the right way uses."""
    for call in reversed(self._calls):
      for name in _KINDS:
        if name in call.arguments:
          return call.arguments[name]
    return self._key('P')

  def _other(self, key: str) -> str:
    """Returns another key of the same table, of a row in a like state."""
    allowed = {
      v
      for check in self._task.its_world.checks
      if check.kind == 'ending'
      for v in check.spec.get('about', ())
    }
    keys = self._keys(key[0])
    if key[0] == 'I':
      keys = sorted(self._in_state(self._state(key)))
    keys = [k for k in keys if k != key and k not in allowed]
    return self._rng.choice(keys or [k for k in self._keys(key[0]) if k != key])

  def _state(self, item: str) -> str:
    lent, repaired = self._taken
    return 'lent' if item in lent else 'repair' if item in repaired else 'free'

  def _in_state(self, state: str) -> list[str]:
    return [i for i in self._keys('I') if self._state(i) == state]

  def _unnamed(self, keys: Sequence[str]) -> str:
    """Returns one of the keys that no call names, or any where all are named."""
    named = {value for c in self._calls for value in c.arguments.values()}
    return self._rng.choice([k for k in keys if k not in named] or keys)

  @functools.cached_property
  def _taken(self) -> tuple[set[str], set[str]]:
    """The items that are lent, and those that are in repair."""
    lent = {str(x['item']) for x in self._rows('loan') if x['returned'] is None}
    repaired = {str(x['item']) for x in self._rows('repair') if x['state'] == 'open'}
    return lent, repaired

  def _keys(self, letter: str) -> list[str]:
    return sorted(str(r['id']) for r in self._rows(schema.LETTERS[letter]))

  def _key(self, letter: str) -> str:
    return self._rng.choice(self._keys(letter))

  def _names(self, table: str) -> list[str]:
    return sorted(str(r['name']) for r in self._rows(table))

  def _rows(self, table: str) -> list[dict[str, seeds.Value]]:
    return self._tables[table]


def _call(tool: str, **arguments: str) -> records.ToolCall:
  return records.ToolCall(tool, arguments)


def _refusal(rule: str, about: str) -> records.ToolCall:
  return records.ToolCall('refuse', {'rule': rule, 'about': about})
