"""How rollouts are shared between processes, and put together again."""

import pytest

from agentflow_jax import records
from agentflow_jax.training import collect
from agentflow_jax.training import processes


@pytest.mark.parametrize('count', [1, 2, 4, 7, 30])
@pytest.mark.parametrize('tasks, group_size', [(3, 3), (1, 8), (5, 1)])
def test_parts_of_all_processes_are_all_rollouts_in_order(
    count, tasks, group_size
):
  found = [
      (place, rollout)
      for i in range(count)
      for place, rollouts in collect._parts(
          processes.Processes(i, count).share(tasks * group_size), group_size
      )
      for rollout in rollouts
  ]
  assert found == [(p, r) for p in range(tasks) for r in range(group_size)]


def test_parts_are_as_large_as_they_can_be():
  assert collect._parts(range(2, 8), 3) == [
      (0, range(2, 3)), (1, range(0, 3)), (2, range(0, 2))
  ]


def test_groups_are_whole_again():
  tasks = [records.Task(f't{i}', 'q', ('a',), 'r') for i in range(2)]
  trajectory = lambda i, r: records.Trajectory(
      f't{i}', r, records.Status.ANSWERED, ()
  )
  parts = [
      records.Group(tasks[0], (trajectory(0, 0),)),
      records.Group(tasks[0], (trajectory(0, 1), trajectory(0, 2))),
      records.Group(tasks[1], tuple(trajectory(1, r) for r in range(3))),
  ]
  joined = collect._joined(tasks, 3, parts)
  assert [g.task for g in joined] == tasks
  assert [[(t.task_id, t.rollout) for t in g.trajectories] for g in joined] == [
      [(f't{i}', r) for r in range(3)] for i in range(2)
  ]
