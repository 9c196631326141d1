"""What rollouts add up to, against counts by hand."""

import dataclasses

import pytest

from agentflow_jax import records
from agentflow_jax.rollouts import totals


def _turn(length, tool='', result=None):
  completion = records.Completion(
    text='',
    prompt_ids=(1, 2),
    response_ids=tuple(range(length)),
    logprobs=(-0.5,) * length,
  )
  call = records.ToolCall(tool, {}) if tool else None
  return records.Turn(
    completion, records.SamplingSpec(temperature=0.7), call=call, result=result
  )


def _group(rewards, lengths, source=None):
  """lengths[i] are the response lengths of rollout i's turns."""
  tags = {} if source is None else {'source': source}
  return records.Group(
    records.Task('t', 'q', ('a',), 'f1', tags=tags),
    tuple(
      records.Trajectory(
        't', i, records.Status.ANSWERED, tuple(_turn(n) for n in lengths[i]), reward=r
      )
      for i, r in enumerate(rewards)
    ),
  )


def test_counts_of_calls_inside_programs_are_added():
  call = records.ToolCall('search', {})
  inner = tuple(
    (call, records.ToolResult('', counts={'web_fetched': n})) for n in (1, 2)
  )
  ran = records.ToolResult('', counts={'web_fetched': 4, 'faults': 1}, inner=inner)
  done = records.Trajectory(
    't', 0, records.Status.ANSWERED, (_turn(1, 'code', ran),), reward=1.0
  )
  assert totals.tool_counts([done]) == {'faults': 1, 'web_fetched': 7}
  assert totals.tool_calls([done]) == {'code': 1, 'search': 2}


def test_statuses_add_up_and_denominators_say_what_they_hold():
  lost = records.Trajectory('t', 2, records.Status.MODEL_UNREACHABLE, (), reward=None)
  group = _group([1.0, 0.0], [[3], [2, 2]])
  group = records.Group(group.task, group.trajectories + (lost,))
  metrics = totals.collected([group])
  assert metrics['rollouts/requested'] == 3
  assert metrics['rollouts/scored'] == 2
  # Over scored rollouts: (1 + 0) / 2, not / 3.
  assert metrics['reward/mean'] == 0.5
  assert metrics['rollouts/status/answered'] == 2
  assert metrics['rollouts/status/model_unreachable'] == 1
  assert sum(v for k, v in metrics.items() if k.startswith('rollouts/status/')) == 3
  assert metrics['rollouts/turns'] == 3
  assert metrics['rollouts/turns_mean'] == 1.0
  assert metrics['groups/no_variance'] == 0
  # One that was stopped because enough were done says nothing of their length.
  late = dataclasses.replace(lost, rollout=3, status=records.Status.ABORTED_LATE)
  group = records.Group(group.task, group.trajectories + (late,))
  metrics = totals.collected([group])
  assert metrics['rollouts/requested'] == 4
  assert metrics['rollouts/turns_mean'] == 1.0


def test_calls_counts_and_errors_of_tools_add_up():
  blocked = records.ToolResult('', counts={'web_blocked_host': 2})
  failed = records.ToolResult('no', error=records.ToolErrorKind.ARGUMENTS)
  done = records.Trajectory(
    't',
    0,
    records.Status.ANSWERED,
    (
      _turn(1, 'web_page', blocked),
      _turn(1, 'search', failed),
      _turn(1, 'web_page', blocked),
      _turn(1),
    ),
    reward=1.0,
  )
  assert totals.tool_errors([done]) == (1, 3)
  assert totals.tool_calls([done]) == {'search': 1, 'web_page': 2}
  assert totals.tool_counts([done]) == {'web_blocked_host': 4}
  group = records.Group(records.Task('t', 'q', ('a',), 'f1'), (done,))
  metrics = totals.of_step([group])
  assert metrics['rollouts/tool_error_rate'] == 1 / 3
  assert metrics['tools/web_page'] == 2
  assert metrics['tool_counts/web_blocked_host'] == 4


def test_a_step_of_several_sources_says_what_each_came_to():
  groups = [
    _group([1.0, 0.0], [[1], [1]], 'nq'),
    _group([1.0, 1.0], [[1], [1]], 'nq'),
    _group([0.0, None], [[1], [1]], 'math'),
  ]
  metrics = totals.of_step(groups)
  assert metrics['sources/nq/groups'] == 2
  assert metrics['sources/math/groups'] == 1
  assert metrics['sources/nq/reward'] == 0.75  # (1/2 + 1) / 2.
  assert metrics['sources/math/reward'] == 0.0


def _score(parts):
  terms = {name: records.Term(2 * value, 0.5) for name, value in parts.items()}
  return records.Score(terms) if parts else None


def test_parts_of_rewards_are_means_over_all_scored_rollouts():
  """So that they add up to the mean reward."""
  task = records.Task('t', 'q', ('a',), 'r')
  ended = records.Status
  rollouts = [
    records.Trajectory('t', i, status, (), reward=reward, score=_score(parts))
    for i, (status, reward, parts) in enumerate(
      [
        (ended.ANSWERED, 1.25, {'right': 1.0, 'brief': 0.25}),
        (ended.ANSWERED, 0.0, {'right': 0.0}),
        (ended.UNPARSEABLE_PLAN, 0.0, {}),
        (ended.MODEL_UNREACHABLE, None, {}),
      ]
    )
  ]
  metrics = totals.collected([records.Group(task, tuple(rollouts))])
  assert metrics['reward/part/right'] == pytest.approx(1 / 3)
  assert metrics['reward/part/brief'] == pytest.approx(0.25 / 3)
  assert metrics['reward/mean'] == pytest.approx(1.25 / 3)


def test_means_are_over_scored_rollouts_or_over_all():
  groups = [
    _group([1.0, None], [[1], [1]]),
    _group([1.0, 0.0], [[1], [1]]),
    _group([None], [[1]]),
  ]
  assert totals.rewards(groups[0]) == [1.0]
  assert totals.group_means(groups) == [1.0, 0.5]
  # (0.5 + 0.5 + 0) / 3.
  assert totals.mean_over_requested(groups) == pytest.approx(1 / 3)
  assert totals.group_means([]) == [] and totals.mean_over_requested([]) == 0.0


def test_metrics_are_added_up_over_steps():
  lines = [
    {'step': 1, 'rollouts/a': 2, 'rollouts/a/b': 1, 'x': float('nan'), 'y': 'text'},
    {'step': 2, 'rollouts/a': 3, 'x': 0.5, 'z': True},
  ]
  assert totals.over_steps(lines) == {
    'step': 3,
    'rollouts/a': 5,
    'rollouts/a/b': 1,
    'x': 0.5,
  }
  assert totals.over_steps(lines, 'rollouts/') == {'a': 5, 'a/b': 1}
  assert totals.over_steps(lines, 'rollouts/', nested=False) == {'a': 5}
