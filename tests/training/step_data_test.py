import asyncio
import dataclasses
import types

import pytest
from etils import epath

from agentflow_jax import records
from agentflow_jax.agents import fakes
from agentflow_jax.assembly import task_sets
from agentflow_jax.config import schema
from agentflow_jax.core import flow_grpo
from agentflow_jax.evaluation import evaluate
from agentflow_jax.rollouts import collect, rollout_files
from agentflow_jax.runtime import exits, processes
from agentflow_jax.training import difficulty, step_data, task_order
from tests.config import mini


def _group(task, rewards):
  return records.Group(
    task,
    tuple(
      records.Trajectory(task.id, i, records.Status.ANSWERED, (), reward=r)
      for i, r in enumerate(rewards)
    ),
  )


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
    directory, refill_rounds=rounds, queries_per_step=4, mini_batches=mini_batches
  )
  tasks = [records.Task(f't{i}', 'q', ('a',), 'r') for i in range(20)]
  system = types.SimpleNamespace(
    config=config,
    tasks=_task_set(tasks),
    agent=None,
    trained_agent=None,
    processes=processes.Processes(),
  )
  return asyncio.run(step_data.RolloutSource(system, None).step(step, None))


def test_groups_without_variance_are_replaced_by_other_queries(asked, tmp_path):
  # Of four, the second and the third differ; of two more, the second. A rollout
  # without a reward differs from none that has one.
  asked.rewards |= {
    0: [1.0, None, 1.0],
    1: [0.0, 1.0, 0.0],
    2: [0.0, None, 1.0],
    3: [None, None, None],
    4: [0.0, None, None],
    5: [1.0, 0.0, 0.0],
  }
  data = _step(tmp_path, asked, rounds=2)
  (_, first, key), (before, second, _), (before3, third, _) = asked.calls
  assert [len(c[1]) for c in asked.calls] == [4, 2, 1]
  assert before == first and before3 == first + second
  assert key.step == 0
  # In the order in which they were asked, and one without variance makes four.
  assert [g.task.id for g in data.groups] == [
    first[0],
    first[1],
    first[2],
    second[1],
    first[3],
    second[0],
    third[0],
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
  with pytest.raises(schema.ConfigError, match='refill_rounds'):
    schema.TrainConfig(refill_rounds=-1)


_PARTS = (
  task_sets.Part('large', 100, 3),
  task_sets.Part('small', 7, 1),
)  # Items 0 to 99, and 100 to 106.


def _mixed_source(directory, tags=True):
  tasks = [
    records.Task(
      f't{i}',
      'q',
      ('a',),
      'r',
      {'source': 'large' if i < 100 else 'small'} if tags else {},
    )
    for i in range(107)
  ]
  system = types.SimpleNamespace(
    config=mini.config(directory, queries_per_step=8, refill_rounds=1),
    tasks=dataclasses.replace(_task_set(tasks), mixture=_PARTS),
    agent=None,
    trained_agent=None,
    processes=processes.Processes(),
  )
  return step_data.RolloutSource(system, None)


def test_refills_of_one_query_take_from_every_source(asked, tmp_path):
  # A step's 8 places begin with the same source every time.
  asked.rewards |= {i: [0.0, 1.0, 0.0] for i in range(7)}
  source = _mixed_source(tmp_path)
  for step in range(80):
    asyncio.run(source.step(step, None))
  refills = [int(name[1:]) for _, (name, *_), _ in asked.calls[1::2]]
  assert len(refills) == 80
  # Binomial(80, 1/4): 20 on average, 3.9 its deviation.
  assert 8 <= sum(i >= 100 for i in refills) <= 32


def test_an_evaluation_shares_no_randomness_with_training():
  model = fakes.FakeLanguageModel({'planner': ['Sub-Goal: find x\nTool Name: search']})
  agent = fakes.make_agent(model, [fakes.make_tool(fakes.echo)])
  tasks = [records.Task(f't{i}', 'q', ('a',), 'r') for i in range(3)]

  def evaluated(trials):
    model.requests.clear()
    asyncio.run(
      evaluate.evaluate(
        agent,
        tasks,
        name='n',
        split='test',
        seed=5,
        trials=trials,
        processes=processes.Processes(),
      )
    )
    return [key for _, _, key in model.requests]

  keys = evaluated(trials=4)
  assert {(k.seed, k.purpose, k.step) for k in keys} == {
    (5, records.Purpose.EVALUATE, 0)
  }
  words = {key.words() for key in keys}
  assert len(words) == len(keys) >= 3 * 4  # Tasks, trials and turns differ.
  # Evaluated once more they are the same, with fewer trials a part of them.
  assert {key.words() for key in evaluated(trials=4)} == words
  assert {key.words() for key in evaluated(trials=1)} < words
  # The same tasks and rollouts, of the same seed, in training.
  system = types.SimpleNamespace(
    config=types.SimpleNamespace(
      seed=5,
      train=schema.TrainConfig(queries_per_step=3, group_size=4, steps=2),
      flow_grpo=flow_grpo.FlowGrpoConfig(),
      queue=schema.QueueConfig(),
    ),
    tasks=task_sets.TaskSet(train=tuple(tasks), validation=(), test=()),
    agent=agent,
    trained_agent=agent,
  )
  for step in range(2):
    model.requests.clear()
    system.processes = processes.Processes()  # One an event loop.
    source = step_data.RolloutSource(system, None)
    asyncio.run(source._groups(step, tasks, None, before=[]))
    trained = {key.words() for _, _, key in model.requests}
    assert len(trained) == len(words)
    assert not trained & words


def test_a_step_of_a_mix_asks_it_and_says_how_each_source_did(asked, tmp_path):
  # All groups of the first asking teach but the last.
  asked.rewards |= {i: [0.0, 1.0, 0.0] for i in range(7)}
  source = _mixed_source(tmp_path)
  data = asyncio.run(source.step(5, None))
  (_, first, _), (_, second, _) = asked.calls
  order = task_order.mixture_indices(_PARTS, 0, 5, 8)
  assert first == [f't{i}' for i in order] and len(second) == 1
  small = sum(int(n[1:]) >= 100 for n in first + second)
  assert data.metrics['sources/small/groups'] == small
  assert data.metrics['sources/large/groups'] == 9 - small
  rewards = {True: [], False: []}
  for place, name in enumerate(first + second):
    rewards[int(name[1:]) >= 100].append(1 / 3 if place < 7 else 1.0)
  for is_small, name in ((True, 'small'), (False, 'large')):
    assert data.metrics[f'sources/{name}/reward'] == pytest.approx(
      sum(rewards[is_small]) / len(rewards[is_small])
    )


def _traced(tmp_path, **sft):
  """A source of traces that are there: three rollouts of 1, 2 and 3 turns."""
  config = dataclasses.replace(
    mini.config(tmp_path), algorithm='sft', sft=schema.SftConfig(**sft)
  )
  system = types.SimpleNamespace(config=config, processes=processes.Processes())
  source = step_data.TraceSource(system, tmp_path)
  source._rollouts = [
    [
      records.Turn(
        records.Completion('', (10 * size + i,), (1, 2)), records.SamplingSpec()
      )
      for i in range(size)
    ]
    for size in (1, 2, 3)
  ]
  return source


def _prompts(source, *steps):
  async def main():
    return [await source.step(step, None) for step in steps]

  return [
    [row.prompt_ids.item() for row in data.mini_batches[0]]
    for data in asyncio.run(main())
  ]


def test_supervised_steps_draw_single_turns_or_whole_rollouts(tmp_path):
  turns = _traced(tmp_path, rows_per_step=3)
  drawn = _prompts(turns, 0, 1)
  assert sorted(drawn[0] + drawn[1]) == [10, 20, 21, 30, 31, 32], 'an epoch is all six'
  steps = _prompts(_traced(tmp_path, rollouts_per_step=1), 0, 1, 2)
  assert sorted(steps) == [[10], [20, 21], [30, 31, 32]]
  again = _prompts(_traced(tmp_path, rollouts_per_step=1), 2, 1, 0)
  assert again == steps[::-1], 'a pure function of the step'


def test_a_supervised_run_that_is_told_to_stop_stops_at_its_next_step(tmp_path):
  source = _traced(tmp_path, rows_per_step=3)

  async def main():
    await source.step(0, None)
    source._system.processes._stop.set()
    await source.step(1, None)

  with pytest.raises(exits.Preempted):
    asyncio.run(main())


def _filtered(directory, records_of=None, **train):
  config = mini.config(directory, **({'queries_per_step': 4} | train))
  tasks = [records.Task(f't{i}', 'q', ('a',), 'r') for i in range(8)]
  system = types.SimpleNamespace(
    config=config,
    tasks=_task_set(tasks),
    agent=None,
    trained_agent=None,
    processes=processes.Processes(),
  )
  return step_data.RolloutSource(system, None, records_of)


def test_tasks_that_are_solved_or_hopeless_are_asked_no_more(asked, tmp_path):
  # In every step the first task is solved, the second hopeless, the others neither.
  asked.rewards |= {
    0: [1.0, None, 1.0],
    1: [0.0, 0.0, None],
    2: [0.0, 1.0, 0.0],
    3: [None, None, None],
  }
  source = _filtered(tmp_path, drop_solved=1, drop_hopeless=1)
  data = [asyncio.run(source.step(step, None)) for step in range(3)]
  first, second, third = ([t for t in c[1]] for c in asked.calls)
  order = [
    f't{i}' for step in range(4) for i in task_order.epoch_indices(8, 0, step, 4)
  ]
  assert first + second == order[:8]
  gone = {first[0], first[1], second[0], second[1]}
  assert third == [name for name in order[8:] if name not in gone]
  assert [d.metrics['tasks/left'] for d in data] == [6, 4, 2]
  assert data[1].metrics['tasks/dropped_solved'] == 2
  with pytest.raises(exits.RunStopped, match='fewer are left'):
    asyncio.run(source.step(3, None))


def test_a_run_that_goes_on_asks_what_it_would_have_asked(asked, tmp_path):
  asked.rewards |= {
    0: [1.0, 1.0, 1.0],
    1: [0.0, 0.0, 0.0],
    2: [0.0, 1.0, 0.0],
    3: [0.5, 1.0, 0.0],
  }
  whole = _filtered(tmp_path, drop_solved=1)
  data = [asyncio.run(whole.step(step, None)) for step in range(4)]
  wanted = [c[1] for c in asked.calls]
  asked.calls.clear()
  later = _filtered(tmp_path, lambda step: data[step], drop_solved=1)
  again = [asyncio.run(later.step(step, None)) for step in (2, 3)]
  assert [c[1] for c in asked.calls] == wanted[2:]
  assert [d.metrics['tasks/left'] for d in again] == [
    d.metrics['tasks/left'] for d in data[2:]
  ]


def test_several_groups_in_a_row_are_needed(asked, tmp_path):
  asked.rewards |= {i: [1.0, 1.0, 1.0] for i in range(4)}
  source = _filtered(tmp_path, drop_solved=2)
  for step in range(2):
    assert asyncio.run(source.step(step, None)).metrics['tasks/left'] == 8
  assert asyncio.run(source.step(2, None)).metrics['tasks/left'] == 4


def test_success_decides_where_a_reward_has_terms():
  terms = {'success': records.Term(1.0), 'calls': records.Term(0.4, -0.1)}
  rollout = records.Trajectory(
    't0', 0, records.Status.ANSWERED, (), reward=0.96, score=records.Score(terms)
  )
  group = records.Group(records.Task('t0', 'q', ('a',), 'r'), (rollout,))
  found = difficulty.Filter(lambda place: 0, ['t0'], 1, 0)
  found.note([group])
  assert found.is_dropped('t0')


def test_a_step_that_asks_more_tasks_than_there_are_is_refused(tmp_path):
  with pytest.raises(schema.ConfigError, match='there are 8 tasks'):
    _filtered(tmp_path, drop_solved=1, queries_per_step=9)


def _sampled(task, rewards, step):
  """A group whose rollouts have one turn of two tokens."""
  completion = records.Completion('', (1, 2), (3, 4), (-0.1, -0.2), params_version=step)
  turn = records.Turn(completion, records.SamplingSpec())
  return records.Group(
    task,
    tuple(
      records.Trajectory(task.id, i, records.Status.ANSWERED, (turn,), reward=r)
      for i, r in enumerate(rewards)
    ),
  )


def _queued(directory, rewards, monkeypatch, records_of=None, **queue):
  """A source whose steps sample groups of `rewards[step]`, with a queue."""

  async def groups(agent, tasks, *, key, **unused):
    return [
      _sampled(task, r, key.step)
      for task, r in zip(tasks, rewards[key.step], strict=True)
    ]

  monkeypatch.setattr(collect, 'groups', groups)
  config = mini.config(directory, queries_per_step=4, group_size=2, mini_batches=2)
  config = dataclasses.replace(
    config, queue=schema.QueueConfig(**({'size': 8} | queue))
  )
  tasks = [records.Task(f't{i}', 'q', ('a',), 'r') for i in range(20)]
  system = types.SimpleNamespace(
    config=config,
    tasks=_task_set(tasks),
    agent=None,
    trained_agent=None,
    processes=processes.Processes(),
  )
  score = lambda rows: [row.behavior_logprobs + 0.01 for row in rows]
  return step_data.RolloutSource(system, None, records_of, score)


_BOTH, _NONE = [1.0, 0.0], [0.0, 0.0]


def _two_steps(source):
  return [asyncio.run(source.step(step, None)) for step in range(2)]


def test_queued_groups_replace_the_last_groups_without_variance(monkeypatch, tmp_path):
  source = _queued(tmp_path, [[_BOTH] * 4, [_NONE, _BOTH, _NONE, _NONE]], monkeypatch)
  first, second = _two_steps(source)
  # Half of four at most; fresh groups fill the first mini-batch.
  assert [[row.fresh for row in rows] for rows in second.mini_batches] == [
    [True] * 4,
    [False] * 4,
  ]
  assert [g.task.id for g in second.groups] == [
    f't{i}' for i in _places(1, (0, 1, 2, 3))
  ]
  assert second.metrics['queue/reused'] == 2
  assert second.metrics['queue/saved'] == 4
  assert second.metrics['queue/age_mean'] == 1
  assert second.metrics['queue/gap_max'] == pytest.approx(0.01, rel=1e-3)
  assert second.metrics['groups/dropped'] == 2
  # What was sampled is counted, and nothing else.
  assert second.metrics['rollouts/requested'] == 8
  assert second.metrics['groups/requested'] == 4
  assert second.metrics['groups/no_variance'] == 3
  assert {place for place, _ in second.extras} == {0, 1}
  # Advantages and weights are those of whole groups: 1 / (2 groups x 2 x 1 x 2).
  rows = second.mini_batches[1]
  assert [row.target_weight for row in rows] == [1 / 8] * 4
  assert [row.advantage for row in rows] == [
    row.advantage for row in first.mini_batches[0]
  ]
  # The groups of step 0 were used; those of step 1 with variance came in.
  assert second.header == {'queue': [[0, 2, 0], [0, 3, 0], [1, 1, 0]]}
  assert first.header == {'queue': [[0, i, 0] for i in range(4)]}


def _places(step, which):
  order = task_order.epoch_indices(20, 0, step, 4)
  return [order[i] for i in which]


def test_a_first_update_without_a_fresh_target_takes_nothing(monkeypatch, tmp_path):
  unscored = [None, None]
  source = _queued(
    tmp_path, [[_BOTH] * 4, [unscored] * 3 + [_NONE]], monkeypatch, share=1.0
  )
  _, second = _two_steps(source)
  assert second.metrics['queue/reused'] == 0
  assert second.metrics['groups/dropped'] == 0
  assert len(second.groups) == 4
  assert second.header['queue'] == [[0, i, 0] for i in range(4)]


def test_an_old_group_beyond_its_bound_is_evicted_with_its_reason(
  monkeypatch, tmp_path
):
  source = _queued(
    tmp_path, [[_BOTH] * 4, [_BOTH, _NONE, _NONE, _NONE]], monkeypatch, max_gap=0.005
  )
  _, second = _two_steps(source)
  assert second.metrics['queue/reused'] == 0
  assert second.metrics['queue/evicted/gap'] == 4
  assert second.metrics['queue/size'] == 1  # What this step sampled.
  assert all(row.fresh for rows in second.mini_batches for row in rows)


def test_a_run_that_goes_on_trains_on_what_it_would_have(monkeypatch, tmp_path):
  rewards = [[_BOTH] * 4, [_NONE, _BOTH, _NONE, _NONE], [_NONE, _BOTH, _BOTH, _NONE]]
  whole = _queued(tmp_path, rewards, monkeypatch, uses=2)
  data = [asyncio.run(whole.step(step, None)) for step in range(3)]
  path = lambda step: tmp_path / f'{step}.zst'
  for step, one in enumerate(data[:2]):
    rollout_files.write(
      epath.Path(path(step)), one.groups, one.extras, header=one.header
    )
  later = _queued(
    tmp_path,
    rewards,
    monkeypatch,
    lambda step: rollout_files.read_all(epath.Path(path(step))),
    uses=2,
  )
  again = asyncio.run(later.step(2, None))
  assert again.metrics == data[2].metrics and again.metrics['queue/reused'] == 2
  assert again.header == data[2].header
  for mine, theirs in zip(
    sum(again.mini_batches, ()), sum(data[2].mini_batches, ()), strict=True
  ):
    assert repr(mine) == repr(theirs)
