"""Totals over rollouts in worlds, by hand."""

import pytest

from agentflow_jax import records
from agentflow_jax.rollouts import totals, world_totals

_REFUSED, _ANSWERED = records.Status.REFUSED, records.Status.ANSWERED


def _group(task_id, family, feasible, *rollouts):
  """A group; each rollout is (status, reward, passed checks, violations, calls)."""
  world = records.World('w', {}, feasible=feasible)
  task = records.Task(task_id, 'q', (), 'checks', {'family': family}, world)
  done = []
  for i, (status, reward, passed, violations, calls) in enumerate(rollouts):
    call = records.ToolCall('move', {})
    turn = records.Turn(
      records.Completion(''),
      records.SamplingSpec(),
      call=call,
      result=records.ToolResult('', inner=((call, records.ToolResult('')),) * calls),
    )
    verdict = records.Verdict(
      tuple(records.CheckResult('c', 'state', p) for p in passed),
      ('x',) * violations,
      ('x',) * violations,
    )
    done.append(
      records.Trajectory(
        task_id,
        i,
        status,
        (turn,),
        reward=reward,
        verdict=verdict,
        seconds={'environment/open': 0.25, 'tool/move': 0.5, 'planner': 9.0},
      )
    )
  return records.Group(task, tuple(done))


_GROUPS = [
  _group(
    'a',
    'lend',
    True,
    (_ANSWERED, 1.0, [True, True], 0, 0),
    (_REFUSED, 0.0, [True, False], 2, 1),
  ),
  _group(
    'b', 'lend', False, (_REFUSED, 1.0, [True], 0, 0), (_ANSWERED, 0.0, [False], 1, 2)
  ),
  _group(
    'c', 'swap', True, (records.Status.ENVIRONMENT_UNREACHABLE, None, [False], 9, 9)
  ),
  records.Group(
    records.Task('d', 'q', ('a',), 'f1'),
    (records.Trajectory('d', 0, _ANSWERED, (), reward=1.0),),
  ),
]


def test_totals_are_over_scored_rollouts_in_worlds():
  found = world_totals.of_groups(_GROUPS)
  assert found.pop('by_family') == {
    'lend': {'rollouts': 4, 'success': 0.5, 'pass_fraction': 0.625}
  }
  assert found.pop('by_feasible') == {
    'yes': {'rollouts': 2, 'success': 0.5, 'pass_fraction': 0.75},
    'no': {'rollouts': 2, 'success': 0.5, 'pass_fraction': 0.5},
  }
  assert found.pop('by_held_out') == {}
  assert found == pytest.approx(
    {
      'rollouts': 4,
      'success': 0.5,
      'pass_fraction': (1 + 0.5 + 1 + 0) / 4,
      'refusal_recall': 0.5,
      'false_refusals': 0.5,
      'violations': 0.75,
      'violating': 0.5,
      'calls': (1 + 2 + 1 + 3) / 4,
      'environment_seconds': 0.75,
    }
  )


def test_a_step_without_worlds_says_nothing_of_them():
  assert world_totals.of_groups(_GROUPS[3:]) == {}
  assert not any(k.startswith('world/') for k in totals.of_step(_GROUPS[3:]))
  line = totals.of_step(_GROUPS)
  assert line['world/success'] == 0.5 and 'world/by_family' not in line
  assert not any('seconds' in k for k in line if k.startswith('world/'))


def test_what_has_no_denominator_is_unknown():
  found = world_totals.of_groups(_GROUPS[:1])
  assert found['refusal_recall'] is None and found['false_refusals'] == 0.5
  assert 'world/refusal_recall' not in world_totals.of_step(_GROUPS[:1])


def test_calls_made_inside_a_program_count_by_tool():
  trajectories = [t for g in _GROUPS for t in g.trajectories]
  assert totals.tool_calls(trajectories) == {'move': 1 + 2 + 1 + 3 + 10}
