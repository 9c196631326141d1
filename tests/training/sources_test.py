import asyncio
import collections
import types

import pytest

from agentflow_jax import records
from agentflow_jax.training import collect
from agentflow_jax.training import config as config_lib
from agentflow_jax.training import processes
from agentflow_jax.training import sources
from agentflow_jax.training import task_sets
from tests.training import mini


def test_every_item_comes_once_an_epoch_and_epochs_differ():
  # 7 items, 3 a step: 14 steps of 3 are 6 epochs.
  seen = [
      i for step in range(14) for i in sources.epoch_indices(7, 0, step, 3)
  ]
  epochs = [tuple(seen[i : i + 7]) for i in range(0, 42, 7)]
  assert all(sorted(e) == list(range(7)) for e in epochs)
  assert len(set(epochs)) > 1


def test_a_step_depends_on_the_seed_and_the_step_alone():
  first = sources.epoch_indices(100, 3, 17, 8)
  assert first == sources.epoch_indices(100, 3, 17, 8)
  assert first != sources.epoch_indices(100, 4, 17, 8)
  assert first != sources.epoch_indices(100, 3, 18, 8)


def test_a_step_may_be_longer_than_an_epoch():
  counts = collections.Counter(sources.epoch_indices(3, 0, 0, 7))
  assert sum(counts.values()) == 7
  assert set(counts.values()) <= {2, 3}


def _group(task, rewards):
  return records.Group(task, tuple(
      records.Trajectory(task.id, i, records.Status.ANSWERED, (), reward=r)
      for i, r in enumerate(rewards)
  ))


@pytest.fixture(name='asked')
def _asked(monkeypatch):
  """Calls of collect.groups, answered by what `rewards` says of the place."""
  asked = types.SimpleNamespace(calls=[], rewards={})

  async def groups(agent, tasks, *, before, key, group_size, **unused):
    asked.calls.append(([t.id for t in before], [t.id for t in tasks], key))
    return [
        _group(t, asked.rewards.get(len(before) + i, [1.0] * group_size))
        for i, t in enumerate(tasks)
    ]

  monkeypatch.setattr(collect, 'groups', groups)
  return asked


def _task_set(tasks):
  return task_sets.TaskSet(train=tuple(tasks), validation=(), test=())


def _step(directory, asked, rounds, step=0, mini_batches=1):
  config = mini.config(
      directory, refill_rounds=rounds, queries_per_step=4,
      mini_batches=mini_batches,
  )
  tasks = [records.Task(f't{i}', 'q', ('a',), 'r') for i in range(20)]
  parts = types.SimpleNamespace(
      config=config, tasks=_task_set(tasks), agent=None,
      processes=processes.Processes(),
  )
  return asyncio.run(sources.RolloutSource(parts, None).step(step, None))


def test_groups_without_variance_are_replaced_by_other_queries(asked, tmp_path):
  # Of four, the second and the third differ; of two more, the second.
  asked.rewards |= {1: [0.0, 1.0, 0.0], 2: [0.0, None, 1.0], 5: [1.0, 0.0, 0.0]}
  data = _step(tmp_path, asked, rounds=2)
  (_, first, key), (before, second, _), (before3, third, _) = asked.calls
  assert [len(c[1]) for c in asked.calls] == [4, 2, 1]
  assert before == first and before3 == first + second
  assert key.step == 0
  # In the order in which they were asked, and one without variance makes four.
  assert [g.task.id for g in data.groups] == [
      first[0], first[1], first[2], second[1], first[3], second[0], third[0]
  ]
  assert {place for place, _ in data.extras} == {0, 1, 2, 3}
  assert [data.extras[0, i]['advantage'] for i in range(3)] == [0, 0, 0]
  assert data.extras[3, 0]['advantage'] > 0
  assert data.metrics['groups/requested'] == 7
  assert data.metrics['groups/no_variance'] == 4
  assert data.metrics['groups/dropped'] == 3
  assert data.metrics['rollouts/requested'] == 21


def test_nothing_is_drawn_again_where_all_groups_teach(asked, tmp_path):
  asked.rewards |= {i: [0.0, 1.0, 0.0] for i in range(4)}
  data = _step(tmp_path, asked, rounds=3)
  assert len(asked.calls) == 1 and data.metrics['groups/dropped'] == 0


def test_the_default_trains_on_all_groups_as_they_come(asked, tmp_path):
  asked.rewards[3] = [0.0, 1.0, 0.0]
  data = _step(tmp_path, asked, rounds=0, mini_batches=2)
  ((_, names, _),) = asked.calls
  assert [g.task.id for g in data.groups] == names
  assert data.metrics['groups/dropped'] == 0


def test_refills_are_a_function_of_the_step_and_leave_the_queries_as_they_are(
    asked, tmp_path
):
  for rounds in (1, 1, 0):
    for step in (0, 1):
      _step(tmp_path, asked, rounds, step)
  names = [call[1] for call in asked.calls]
  assert names[:4] == names[4:8]
  assert names[0] == names[8] and names[2] == names[9]  # With and without.
  assert names[1] != names[3]


def test_a_negative_number_of_rounds_is_refused():
  with pytest.raises(config_lib.ConfigError, match='refill_rounds'):
    config_lib.TrainConfig(refill_rounds=-1)
