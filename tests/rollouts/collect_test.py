"""How rollouts are shared between processes, and put together again."""

import asyncio
import dataclasses

import pytest
from etils import epath

from agentflow_jax import records
from agentflow_jax.agents import rollout
from agentflow_jax.rollouts import collect, journal as journal_lib
from agentflow_jax.runtime import processes


@pytest.mark.parametrize('count', [1, 2, 4, 7, 30])
@pytest.mark.parametrize('tasks, group_size', [(3, 3), (1, 8), (5, 1)])
def test_parts_of_all_processes_are_all_rollouts_in_order(count, tasks, group_size):
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
    (0, range(2, 3)),
    (1, range(0, 3)),
    (2, range(0, 2)),
  ]


def test_groups_are_whole_again():
  tasks = [records.Task(f't{i}', 'q', ('a',), 'r') for i in range(2)]
  trajectory = lambda i, r: records.Trajectory(f't{i}', r, records.Status.ANSWERED, ())
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


def _run_groups(monkeypatch, ends, **options):
  """Runs one group whose rollouts end as `ends` says: a reward, or not at all."""
  cancelled = []

  async def analyse(agent, task, key):
    return '', None

  async def one(agent, task, key, analysis):
    if ends[key.rollout] == 'never':
      try:
        await asyncio.Event().wait()
      except asyncio.CancelledError:
        cancelled.append(key.rollout)
        raise
    if isinstance(ends[key.rollout], Exception):
      raise ends[key.rollout]
    await asyncio.sleep(0)
    reward = ends[key.rollout]
    status = records.Status.ANSWERED
    if reward is None:
      status = records.Status.TOOL_UNREACHABLE
    return records.Trajectory(task.id, key.rollout, status, (), reward=reward)

  monkeypatch.setattr(rollout, 'analyse', analyse)
  monkeypatch.setattr(rollout, 'rollout', one)
  seen = []
  (group,) = asyncio.run(
    asyncio.wait_for(
      collect.groups(
        None,
        [records.Task('t', 'q', ('a',), 'r')],
        key=records.RequestKey(0, records.Purpose.TRAIN, 0, '', 0),
        limit=asyncio.Semaphore(8),
        processes=processes.Processes(),
        on_done=seen.append,
        **options,
      ),
      10,
    )
  )
  assert sorted(t.rollout for t in seen) == list(range(len(ends)))
  return group, cancelled


def test_late_rollouts_are_aborted_when_enough_are_scored(monkeypatch):
  group, cancelled = _run_groups(
    monkeypatch, [None, 1.0, 'never', 0.0, 'never'], group_size=2, extra=3
  )
  # One without a reward is not one of the two.
  assert sorted(cancelled) == [2, 4]
  assert [t.reward for t in group.trajectories] == [None, 1.0, None, 0.0, None]
  assert [t.status.value for t in group.trajectories] == [
    'tool_unreachable',
    'answered',
    'aborted_late',
    'answered',
    'aborted_late',
  ]


def test_of_those_that_end_at_once_no_more_than_enough_count(monkeypatch):
  group, cancelled = _run_groups(
    monkeypatch, [1.0, 0.0, 1.0, 0.0], group_size=2, extra=2
  )
  assert not cancelled
  assert [t.reward for t in group.trajectories] == [1.0, 0.0, None, None]


def test_without_extra_rollouts_all_are_waited_for(monkeypatch):
  group, _ = _run_groups(monkeypatch, [1.0, None, 0.0], group_size=3)
  assert [t.reward for t in group.trajectories] == [1.0, None, 0.0]


def test_an_error_ends_a_group_that_waits(monkeypatch):
  with pytest.raises(BaseExceptionGroup) as failed:
    _run_groups(
      monkeypatch, ['never', RuntimeError('a bug'), 1.0], group_size=2, extra=1
    )
  assert failed.group_contains(RuntimeError, match='a bug')


def _keys(monkeypatch, tasks, before):
  """The keys of two rollouts of each task, in order."""
  keys = []

  async def analyse(agent, task, key):
    return '', None

  async def one(agent, task, key, analysis):
    keys.append(key)
    return records.Trajectory(
      task.id, key.rollout, records.Status.ANSWERED, (), reward=1.0
    )

  monkeypatch.setattr(rollout, 'analyse', analyse)
  monkeypatch.setattr(rollout, 'rollout', one)
  task = lambda name: records.Task(name, 'q', ('a',), 'r')
  asyncio.run(
    collect.groups(
      None,
      [task(n) for n in tasks],
      group_size=2,
      key=records.RequestKey(5, records.Purpose.TRAIN, 7, '', 0),
      limit=asyncio.Semaphore(8),
      processes=processes.Processes(),
      before=[task(n) for n in before],
    )
  )
  return keys


def test_a_task_that_is_asked_again_in_a_step_draws_anew(monkeypatch):
  first = _keys(monkeypatch, ['a', 'b', 'a'], before=[])
  assert [(k.query, k.rollout) for k in first] == [
    ('a', 0),
    ('a', 1),
    ('b', 0),
    ('b', 1),
    ('a@2', 0),
    ('a@2', 1),
  ]
  # In a refill, too; and only there does it depend on what came before.
  again = _keys(monkeypatch, ['c', 'b', 'a'], before=['a', 'b', 'a'])
  assert [k.query for k in again[::2]] == ['c', 'b@2', 'a@3']
  assert len({k.words() for k in first + again}) == 12
  assert {(k.seed, k.step) for k in first} == {(5, 7)}


def test_a_journal_gives_back_what_the_step_s_parameters_sampled(tmp_path):
  task = records.Task('t', 'q', ('a',), 'r')

  def group(*versions):
    return records.Group(
      task,
      tuple(
        records.Trajectory(
          't',
          i,
          records.Status.ANSWERED,
          reward=1.0,
          turns=(
            records.Turn(
              records.Completion('x', params_version=version), records.SamplingSpec()
            ),
          ),
        )
        for i, version in enumerate(versions)
      ),
    )

  journal = journal_lib.Journal(epath.Path(tmp_path))
  for step, (versions, is_kept) in enumerate(
    [((0, 0), True), ((0, 1), False), ((2, 2), True), ((2, 2), False)]
  ):
    journal.save(step, 0, range(2), group(*versions))
    found = journal.load(step, 0, task, range(2))
    assert (found is not None) == is_kept
  # Nor what was sampled for another query, or for others of its rollouts.
  other = dataclasses.replace(task, query='another')
  assert journal.load(0, 0, other, range(2)) is None
  assert journal.load(0, 0, task, range(1, 3)) is None


@pytest.mark.parametrize(
  'rewards, keeps_unscored, is_kept',
  [
    ((1.0, 0.0), True, True),
    ((1.0, None), True, True),
    ((1.0, None), False, False),
    # A host was unreachable for all of them: a run that goes on tries again.
    ((None, None), True, False),
  ],
)
def test_a_group_that_nobody_could_score_is_sampled_again(
  tmp_path, rewards, keeps_unscored, is_kept
):
  task = records.Task('t', 'q', ('a',), 'f1')
  group = records.Group(
    task,
    tuple(
      records.Trajectory('t', i, records.Status.ANSWERED, (), reward=reward)
      for i, reward in enumerate(rewards)
    ),
  )
  journal = journal_lib.Journal(epath.Path(tmp_path), keeps_unscored)
  journal.save(0, 0, range(2), group)
  assert (journal.load(0, 0, task, range(2)) is not None) == is_kept
