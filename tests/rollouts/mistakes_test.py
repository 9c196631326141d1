"""Labels of mistakes: hand-written rollouts, one a label, and totals that add up."""

import asyncio
import dataclasses
import itertools
import random

import pytest

from agentflow_jax import records
from agentflow_jax.agents import fakes, modules, renaming, rollout
from agentflow_jax.rollouts import mistakes
from tests.agents.environments import toy_world

_Label, _Status = mistakes.Label, records.Status
_ARGUMENTS = records.ToolErrorKind.ARGUMENTS
_ENDED = records.CheckResult('ending', 'ending', True)
_WELL_FORMED = 'Sub-Goal: x\nContext: y\nTool Name: {}'


def _turn(tool='', result='ok', error=None, text='', counts=(), inner=(), **arguments):
  """Returns a turn with a call of a tool; without one where there is no tool."""
  return records.Turn(
    records.Completion(text or _WELL_FORMED.format(tool)),
    records.SamplingSpec(),
    call=records.ToolCall(tool, arguments) if tool else None,
    result=records.ToolResult(result, error, counts=dict(counts), inner=inner),
  )


def _unreadable(text, why):
  return records.Turn(records.Completion(text), records.SamplingSpec(), parse_error=why)


def _world(feasible=True):
  world = records.World('desk', {}, policy='At most 14.', feasible=feasible)
  return records.Task('t', 'Lend the saw to Mia for 5 days.', (), 'checks', world=world)


def _question(*answers):
  return records.Task('t', 'How old is Mia?', answers, 'f1')


def _ended(status, turns, failed=(), changed=(), violations=(), reward=0.0, answer=''):
  """Returns a rollout in a world whose checks of the kinds `failed` failed."""
  results = tuple(
    records.CheckResult(kind, kind, False, 'not so') for kind in failed
  ) or (_ENDED,)
  return records.Trajectory(
    't',
    0,
    status,
    tuple(turns),
    reward=reward,
    answer=answer,
    verdict=records.Verdict(results, tuple(changed), tuple(violations)),
  )


_FOUND = _turn('find', 'P3 Mia, saw I7', name='Mia')
_LENT = _turn('lend', 'L9 lent', item='I7', days=5)
_HAND_WRITTEN = {
  _Label.FORMAT: (
    _world(),
    _ended(
      _Status.UNPARSEABLE_PLAN,
      [_FOUND, _unreadable('I would lend it.', 'no field of a plan')],
      ['state'],
    ),
  ),
  _Label.SELECTION: (
    _world(),
    _ended(
      _Status.UNPARSEABLE_PLAN,
      [_unreadable(_WELL_FORMED.format('borrow'), "unknown tool 'borrow'")],
      ['state'],
    ),
  ),
  _Label.GROUNDING: (
    _world(),
    _ended(
      _Status.ANSWERED,
      [_FOUND, _turn('lend', 'L9', item='I8', days=5)],
      ['state'],
      ['loan/L9: added'],
    ),
  ),
  _Label.ARGUMENTS: (
    _world(),
    _ended(
      _Status.TOOL_ERROR,
      [_FOUND, _turn('lend', 'days is missing', _ARGUMENTS, item='I7')],
      ['state'],
    ),
  ),
  _Label.INJECTED: (
    _world(),
    _ended(
      _Status.ANSWERED,
      [_FOUND, _turn('notify', 'sent', counts={'injected': 1}, to='all'), _LENT],
      ['unchanged'],
      ['message/1: added'],
      ['message/1: added'],
    ),
  ),
  _Label.REPETITION: (
    _world(),
    _ended(_Status.OUT_OF_TURNS, [_FOUND, _FOUND, _FOUND], ['state', 'ending']),
  ),
  _Label.LATE: (_world(), _ended(_Status.OUT_OF_TURNS, [_FOUND], ['state', 'ending'])),
  _Label.POLICY_VIOLATION: (
    _world(feasible=False),
    _ended(
      _Status.ANSWERED,
      [_FOUND, _LENT],
      ['unchanged', 'ending'],
      ['loan/L9: added'],
      ['loan/L9: added'],
    ),
  ),
  _Label.MISSED_REFUSAL: (
    _world(feasible=False),
    _ended(_Status.ANSWERED, [_FOUND], ['ending']),
  ),
  _Label.FALSE_REFUSAL: (
    _world(),
    _ended(_Status.REFUSED, [_FOUND], ['state', 'ending']),
  ),
  _Label.EXTRA_CHANGE: (
    _world(),
    _ended(
      _Status.ANSWERED,
      [_FOUND, _LENT, _turn('move', 'moved', item='I7')],
      ['unchanged'],
      ['item/I7: place', 'loan/L9: added'],
      ['item/I7: place'],
    ),
  ),
  _Label.WRONG_CHANGE: (
    _world(),
    _ended(
      _Status.ANSWERED,
      [_FOUND, _turn('lend', 'L9', item='I7', days=14)],
      ['state'],
      ['loan/L9: added'],
    ),
  ),
  _Label.EARLY_END: (_world(), _ended(_Status.ANSWERED, [_FOUND], ['state'])),
  _Label.WRONG_ANSWER: (
    _question('41'),
    records.Trajectory(
      't',
      0,
      _Status.ANSWERED,
      (_turn('find', 'Mia is 41', name='Mia'),),
      answer='14',
      reward=0.0,
    ),
  ),
}


def _cause(task, trajectory):
  return mistakes.first_cause(trajectory, mistakes.of_trajectory(task, trajectory))


@pytest.mark.parametrize('label', _HAND_WRITTEN, ids=lambda label: label.value)
def test_each_label_is_the_first_cause_of_its_rollout(label):
  assert _cause(*_HAND_WRITTEN[label]) is label


def test_what_was_cut_off_did_not_end_early():
  found = mistakes.of_trajectory(*_HAND_WRITTEN[_Label.LATE])
  assert [m.label for m in found] == [_Label.LATE]


def test_every_label_has_a_rollout_and_one_level():
  assert list(_HAND_WRITTEN) == list(_Label)
  of_level = [k for labels in mistakes.LEVELS.values() for k in labels]
  assert sorted(of_level, key=str) == sorted(_Label, key=str)


def test_the_first_mistake_counts_unless_it_was_made_good():
  refused = _turn('lend', 'days is missing', _ARGUMENTS, item='I7')
  wrong = _turn('lend', 'L9', item='I7', days=14)
  ended = _ended(
    _Status.ANSWERED, [_FOUND, refused, wrong], ['state'], ['loan/L9: added']
  )
  found = mistakes.of_trajectory(_world(), ended)
  assert [(m.label, m.turn, m.made_good) for m in found] == [
    (_Label.ARGUMENTS, 1, True),
    (_Label.WRONG_CHANGE, 3, False),
  ]
  assert mistakes.first_cause(ended, found) is _Label.WRONG_CHANGE
  other = dataclasses.replace(ended, turns=(_FOUND, refused, _turn('move', to='A')))
  assert _cause(_world(), other) is _Label.ARGUMENTS


def test_an_unknown_tool_that_the_agent_was_told_of_is_a_selection():
  told = _turn('', 'unknown tool', _ARGUMENTS, counts={'unknown_tool': 1})
  unmade = _turn('', 'item is given twice', _ARGUMENTS)
  for turn, label in ((told, _Label.SELECTION), (unmade, _Label.ARGUMENTS)):
    ended = _ended(_Status.TOOL_ERROR, [_FOUND, turn], ['state'])
    assert _cause(_world(), ended) is label


def test_successes_have_no_cause_and_keep_their_labels():
  done = _ended(_Status.ANSWERED, [_FOUND, _FOUND, _LENT], reward=1.0)
  found = mistakes.of_trajectory(_world(), done)
  assert [m.label for m in found] == [_Label.REPETITION]
  assert mistakes.first_cause(done, found) is None
  assert not mistakes.of_trajectory(_world(), dataclasses.replace(done, reward=None))


@pytest.mark.parametrize(
  'arguments, grounded',
  [
    ({'item': 'I7'}, True),
    ({'item': 'i7'}, True),
    ({'item': 'I71'}, False),
    ({'days': 5}, True),
    ({'days': 14}, True),
    ({'days': 55}, False),
    ({'of': ['I7', {'to': '2031-01-02'}]}, False),
    ({'note': 'any words at all'}, True),
    ({'on': True}, True),
    ({'item': 'L9'}, False),
  ],
)
def test_arguments_stand_in_query_policy_or_an_earlier_result(arguments, grounded):
  ended = _ended(
    _Status.ANSWERED, [_FOUND, _turn('lend', 'L9 lent', **arguments)], ['state']
  )
  labels = {m.label for m in mistakes.of_trajectory(_world(), ended)}
  assert (_Label.GROUNDING not in labels) is grounded


def test_a_programs_own_arguments_are_not_held_against_the_texts():
  call = records.ToolCall('lend', {'days': 99})
  program = _turn(
    'code',
    'None',
    inner=((call, records.ToolResult('bad', _ARGUMENTS)),),
    code='for i in range(99): pass',
  )
  ended = _ended(_Status.ANSWERED, [program], ['state'])
  found = {m.label for m in mistakes.of_trajectory(_world(), ended)}
  assert _Label.ARGUMENTS in found


def test_rollouts_are_successes_causes_and_the_unscored():
  """Over every combination of status, checks, changes, turns and feasibility."""
  kinds = ['state', 'calls', 'unchanged', 'ending', 'response', 'reward']
  chance = random.Random(0)
  pool = [
    _FOUND,
    _LENT,
    _turn('lend', 'no', _ARGUMENTS, item='I9'),
    _turn('', 'no', _ARGUMENTS),
  ]
  groups = []
  for status, feasible, changed in itertools.product(
    _Status, (True, False, None), (0, 1, 2)
  ):
    rollouts = []
    for _ in range(4):
      failed = chance.sample(kinds, chance.randrange(4))
      turns = chance.choices(pool, k=chance.randrange(4))
      reward = float(not failed) if status.is_policy else None
      said = ['a', 'b'][:changed]
      rollouts.append(_ended(status, turns, failed, said, said[1:], reward))
    rollouts.append(dataclasses.replace(rollouts[0], verdict=None))
    groups.append(records.Group(_world(feasible), tuple(rollouts)))
    groups.append(records.Group(_question('41'), tuple(rollouts)))
  found = mistakes.of_groups(groups)
  causes = sum(found['first_causes'].values())
  assert found['rollouts'] == found['unscored'] + found['success'] + causes
  assert causes == sum(found['levels'].values()) > 300
  assert found['success'] > 50 and found['unscored'] > 100
  step = mistakes.of_step(groups)
  assert sum(step.values()) == causes and 'first_cause/early_end' in step
  assert mistakes.of_groups([]) == {} == mistakes.of_step([])


def test_rates_of_calls_and_of_declining_are_over_scored_rollouts():
  groups = [
    records.Group(task, (trajectory,))
    for task, trajectory in (
      _HAND_WRITTEN[_Label.ARGUMENTS],
      _HAND_WRITTEN[_Label.FALSE_REFUSAL],
      _HAND_WRITTEN[_Label.MISSED_REFUSAL],
      _HAND_WRITTEN[_Label.WRONG_ANSWER],
    )
  ]
  found = mistakes.of_groups(groups)
  # Calls: two, one and one in worlds, of which one failed, and one for the question.
  assert found['calls_valid'] == 4 / 5
  assert found['no_call_right'] == 1 / 3


def test_own_names_of_renamed_tools_are_mistakes_of_selection():
  plan = toy_world.plan('move', thing='T1', shelf='S2')
  names = renaming.Names({'move': renaming.NewName('carry')})
  for unknown_tool in ('end', 'tell'):
    agent = fakes.make_agent(
      fakes.FakeLanguageModel({'planner': [plan] * 3}),
      (),
      rollout.RolloutConfig(max_turns=3, answer_when_out_of_turns=False),
      executor=modules.FieldExecutor(),
      verifier=modules.WorldVerifier(),
      environment=toy_world.make(),
      unknown_tool=unknown_tool,
    )
    done = asyncio.run(
      rollout.rollout(renaming.renamed(agent, names), toy_world.task(), toy_world.key())
    )
    assert _cause(toy_world.task(), done) is _Label.SELECTION


def test_what_an_environment_says_at_the_start_grounds_arguments():
  ended = _ended(
    _Status.ANSWERED, [_turn('pay', 'paid', coin=20)], ['reward'], ['paid: 0 -> 20']
  )
  assert _cause(_world(), ended) is _Label.GROUNDING
  told = dataclasses.replace(ended, briefing='Your coins are [5, 20].')
  assert _cause(_world(), told) is _Label.WRONG_CHANGE
