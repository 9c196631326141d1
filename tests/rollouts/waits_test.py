"""What rollouts waited for, by hand."""

import pytest

from agentflow_jax import records
from agentflow_jax.rollouts import waits


def _rollout(i, seconds, queue=()):
  turns = tuple(
    records.Turn(records.Completion('', queue_seconds=q), records.SamplingSpec())
    for q in queue
  )
  return records.Trajectory('t', i, records.Status.ANSWERED, turns, seconds=seconds)


_SLOW = _rollout(
  0, {'planner': 3.0, 'tool/search': 5.0, 'total': 9.0}, queue=(0.5, 1.5)
)


def test_the_parts_of_a_rollout_add_up_and_the_queue_is_one_of_them():
  found = waits.parts(_SLOW)
  assert list(found.items()) == [
    ('tool/search', 5.0),
    ('planner_queue', 2.0),
    ('other', 1.0),
    ('planner', 1.0),
  ]
  assert sum(found.values()) == waits.total(_SLOW) == 9.0
  assert waits.in_words(_SLOW) == (
    '9.00 s: tool/search 5.00, planner_queue 2.00, other 1.00, planner 1.00'
  )


def test_a_queue_is_at_most_the_planner():
  # A request that was asked again after a failure waited outside of the last one.
  found = waits.parts(_rollout(0, {'planner': 1.0, 'total': 1.0}, queue=(3.0,)))
  assert found == {'planner_queue': 1.0, 'planner': 0.0}


def test_an_aborted_rollout_took_no_time():
  assert waits.total(_rollout(0, {})) == 0
  assert waits.parts(_rollout(0, {})) == {}
  assert waits.in_words(_rollout(0, {})) == ''


def test_the_slowest_twentieth_is_averaged():
  quick = [_rollout(i, {'planner': 1.0, 'total': 1.0}) for i in range(1, 20)]
  second = _rollout(99, {'verifier': 7.0, 'total': 7.0})
  assert waits.of_slowest([*quick, _SLOW]) == {
    'seconds/slowest/total': 9.0,
    'seconds/slowest/tool/search': 5.0,
    'seconds/slowest/planner_queue': 2.0,
    'seconds/slowest/other': 1.0,
    'seconds/slowest/planner': 1.0,
  }
  # 21 rollouts: two of them.
  found = waits.of_slowest([second, *quick, _SLOW])
  assert found['seconds/slowest/total'] == pytest.approx(8.0)
  assert found['seconds/slowest/verifier'] == 3.5
  assert waits.of_slowest([]) == {}
