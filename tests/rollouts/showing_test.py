"""Rollouts of a run are found, shown to people, and written as JSON lines."""

import dataclasses
import json
import math

import pytest
from etils import epath

from agentflow_jax import records
from agentflow_jax.rollouts import rollout_files, showing


def _turn(text, **more):
  completion = records.Completion(
    text=text, prompt_ids=(1,), response_ids=(2,), logprobs=(-1.0,)
  )
  return records.Turn(completion, records.SamplingSpec(), **more)


def test_a_reward_is_found_as_it_is_shown():
  one = records.Trajectory('a', 0, records.Status.ANSWERED, (), reward=1 / 3)
  assert 'reward 0.333333' in showing.in_words(1, records.Task('a', 'q', (), ''), one)
  assert showing.Wanted(reward=0.333333).fits(one)
  assert not showing.Wanted(reward=0.3333).fits(one)


def test_rollouts_are_found_by_the_mistake_that_they_failed_of(tmp_path):
  directory = epath.Path(tmp_path) / 'rollouts'
  rollout_files.write(directory / 'step_000001.p0.jsonl.zst', [_group('t')])

  def found(cause):
    wanted = showing.Wanted(first_cause=cause)
    return [t.rollout for _, _, t in showing.find(epath.Path(tmp_path), wanted)]

  assert found('') == [0, 1, 2]
  assert found('late') == [1], 'a prompt that is too long'
  assert found('format') == [], 'the first rollout succeeded all the same'
  rows = [
    row
    for one in showing.find(epath.Path(tmp_path), showing.Wanted())
    for row in showing.rows(*one)
  ]
  assert [(r['first_cause'], r['mistakes']) for r in rows] == [
    (None, ['selection']),
    (None, ['selection']),
    ('late', ['late']),
    (None, []),
  ]
  assert 'First cause: late' in showing.in_words(
    1, *((g.task, g.trajectories[1]) for g in [_group('t')]).__next__()
  )


def _group(task_id):
  task = records.Task(task_id, f'What of {task_id}?', ('42', 'forty-two'), 'f1')
  good = records.Trajectory(
    task_id,
    0,
    records.Status.ANSWERED,
    (
      _turn('Sub-Goal: a\nTool Name: bash', parse_error='no tool bash'),
      _turn(
        'Sub-Goal: find\nTool Name: search',
        call=records.ToolCall('search', {'query': 'of it'}),
        result=records.ToolResult('It is 42.\x1b[2J'),
        modules=(records.ModuleCall('verifier', 'stop'),),
      ),
    ),
    answer='42',
    reward=1.0,
    score=records.Score({'form': records.Term(0.5, 0.5), 'answer': records.Term(0.75)}),
  )
  bad = records.Trajectory(
    task_id, 1, records.Status.PROMPT_TOO_LONG, (), reward=0.0, detail='300 tokens'
  )
  lost = records.Trajectory(
    task_id, 2, records.Status.MODEL_UNREACHABLE, (), detail='down'
  )
  return records.Group(task, (good, bad, lost))


@pytest.fixture(name='workdir')
def _workdir(tmp_path):
  workdir = epath.Path(tmp_path)
  (workdir / 'rollouts').mkdir()
  for step in (1, 2, 10):
    rollout_files.write(
      workdir / 'rollouts' / f'step_{step:06d}.p0.jsonl.zst',
      [_group(f's{step}/a'), _group(f's{step}/b')],
    )
  return workdir


@pytest.mark.parametrize(
  ('wanted', 'found'),
  [
    ({}, [(10, f's10/{t}', i) for t in 'ab' for i in range(3)]),
    ({'step': 2, 'reward': 1.0}, [(2, 's2/a', 0), (2, 's2/b', 0)]),
    ({'step': 2, 'reward': math.nan}, [(2, 's2/a', 2), (2, 's2/b', 2)]),
    ({'step': 0, 'task': 's1/b', 'reward': 0.0}, [(1, 's1/b', 1)]),
    (
      {'step': 0, 'status': records.Status.PROMPT_TOO_LONG, 'task': 's2/a'},
      [(2, 's2/a', 1)],
    ),
    ({'step': 1, 'task': 's2/a'}, []),
  ],
)
def test_rollouts_are_found_by_step_status_reward_and_task(workdir, wanted, found):
  got = showing.find(workdir, showing.Wanted(**wanted))
  assert [(step, task.id, t.rollout) for step, task, t in got] == found


def test_the_slowest_rollouts_come_first_and_say_what_they_waited_for(tmp_path):
  group = _group('t')
  seconds = ({'planner': 1.0, 'total': 2.0}, {}, {'tool/search': 4.0, 'total': 4.0})
  group = records.Group(
    group.task,
    tuple(
      dataclasses.replace(t, seconds=s)
      for t, s in zip(group.trajectories, seconds, strict=True)
    ),
  )
  for step in (1, 2):
    rollout_files.write(
      epath.Path(tmp_path) / 'rollouts' / f'step_{step:06d}.p0.jsonl.zst', [group]
    )
  found = list(showing.find(epath.Path(tmp_path), showing.Wanted(step=0, slowest=2)))
  assert [(step, t.rollout) for step, _, t in found] == [(1, 2), (1, 0), (2, 2), (2, 0)]
  assert 'Time: 4.00 s: tool/search 4.00' in showing.in_words(*found[0])
  (row, *_) = showing.rows(*found[1])
  assert row['seconds'] == {'planner': 1.0, 'other': 1.0, 'total': 2.0}
  assert 'Time' not in showing.in_words(1, group.task, group.trajectories[1])


def test_what_is_not_there_is_said(workdir, tmp_path):
  with pytest.raises(rollout_files.RecordError, match='steps 1 to 10'):
    list(showing.find(workdir, showing.Wanted(step=11)))
  (tmp_path / 'empty').mkdir()
  with pytest.raises(rollout_files.RecordError, match='no rollouts below'):
    list(showing.find(epath.Path(tmp_path / 'empty'), showing.Wanted()))


def test_every_turn_is_a_row_that_stands_alone(workdir):
  found = list(showing.find(workdir, showing.Wanted(step=2, task='s2/a')))
  rows = [json.loads(json.dumps(r)) for one in found for r in showing.rows(*one)]
  assert [(r['rollout'], r['turn']) for r in rows] == [
    (0, 1),
    (0, 2),
    (1, None),
    (2, None),
  ]
  assert len({tuple(r) for r in rows}) == 1  # The same fields in all.
  assert all(r['step'] == 2 and r['task'] == 's2/a' for r in rows)
  first, second, failed, lost = rows
  assert first['parse_error'] == 'no tool bash' and first['tool'] is None
  assert second['tool'] == 'search' and second['arguments'] == {'query': 'of it'}
  assert second['result'] == 'It is 42.\x1b[2J' and second['verdict'] == 'stop'
  assert second['answers'] == ['42', 'forty-two'] and second['answer'] == '42'
  assert second['reward_parts'] == {'form': 0.25, 'answer': 0.75}
  assert failed['status'] == 'prompt_too_long' and failed['reward'] == 0
  assert lost['reward'] is None and lost['detail'] == 'down'


def test_calls_of_a_program_are_shown_behind_it():
  found = records.ToolResult('found')
  failed = records.ToolResult('no b', records.ToolErrorKind.ARGUMENTS)
  ran = records.ToolResult(
    '1',
    inner=(
      (records.ToolCall('find', {'name': 'a'}), found),
      (records.ToolCall('find', {'name': 'b'}), failed),
    ),
  )
  turn = _turn('x', call=records.ToolCall('code', {'code': 'y'}), result=ran)
  done = records.Trajectory('t', 0, records.Status.ANSWERED, (turn,), reward=1.0)
  task = records.Task('t', 'q', ('a',), 'f1')
  (row,) = showing.rows(1, task, done)
  assert row['calls'] == [
    {'tool': 'find', 'arguments': {'name': 'a'}, 'result': 'found', 'tool_error': None},
    {
      'tool': 'find',
      'arguments': {'name': 'b'},
      'result': 'no b',
      'tool_error': 'arguments',
    },
  ]
  text = showing.in_words(1, task, done)
  assert '     find {"name": "a"} -> found\n     find {"name": "b"} ! no b\n' in text


def test_people_read_plans_calls_results_and_the_answer(workdir):
  (one, *_) = showing.find(workdir, showing.Wanted(step=2))
  text = showing.in_words(*one)
  for words in (
    'step 2, task s2/a, rollout 0: answered, reward 1',
    'Right: 42 | forty-two',
    'unreadable: no tool bash',
    'search {"query": "of it"}',
    'result: It is 42.',
    'verdict: stop',
    'Answer: 42',
  ):
    assert words in text
  task = records.Task('\x1b[2J', '\x1b[2J', (), '')
  text += showing.in_words(1, task, one[2])
  assert '\x1b' not in text  # Nothing steers the terminal.
