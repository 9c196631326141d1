"""Rows of verl and OpenEnv say all that a rollout's training needs, and come back."""

import dataclasses
import json

import pytest
from etils import epath

from agentflow_jax import records
from agentflow_jax.rollouts import exchange, rollout_files, showing

_SAMPLING = records.SamplingSpec(temperature=0.7, top_k=3, stop=('\n',))


def _turn(prompt, response, kept=None):
  logprobs = tuple(-0.1 * i - 1 / 3 for i in range(len(response)))
  done = records.Completion(
    f'said {response}', tuple(prompt), tuple(response), logprobs, kept=kept
  )
  return records.Turn(dataclasses.replace(done, params_version=2), _SAMPLING)


def _groups():
  task = records.Task('t', 'What?', ('a', 'b'), 'contains')
  kept = records.KeptSets.of((2, 1), (5, 6, 7))
  turns = (_turn([1, 2], [5, 7], kept), _turn([1, 9], [3]), _turn([4], []))
  good = records.Trajectory(
    't', 0, records.Status.ANSWERED, turns, answer='a', reward=0.25
  )
  lost = records.Trajectory(
    't', 1, records.Status.MODULE_FAILED, turns[:1], undelivered=(_turn([1, 2], [8]),)
  )
  return [records.Group(task, (good, lost))]


def _written(tmp_path, form, groups, step=3):
  path = epath.Path(tmp_path / 'rows.jsonl')
  lines = [
    json.dumps(row) + '\n'
    for group in groups
    for one in group.trajectories
    for row in exchange.rows(form, step, group.task, one)
  ]
  path.write_text(''.join(lines))
  return path


@pytest.mark.parametrize('form', ['verl', 'openenv'])
def test_rows_come_back_as_they_were(tmp_path, form):
  groups = _groups()
  rows = _written(tmp_path, form, groups)
  found = exchange.read(rows, form)
  if form == 'verl':  # It has no place for what is not trained on.
    good, lost = groups[0].trajectories
    lost = dataclasses.replace(lost, undelivered=())
    groups = [dataclasses.replace(groups[0], trajectories=(good, lost))]
  assert found == {3: groups}
  workdir = epath.Path(tmp_path / 'run')
  (path,) = exchange.import_rows(rows, form, workdir)
  assert rollout_files.read(path) == groups
  shown = list(showing.find(workdir, showing.Wanted(step=3)))
  assert [one for _, _, one in shown] == list(groups[0].trajectories)
  with pytest.raises(rollout_files.RecordError, match='holds rollouts already'):
    exchange.import_rows(rows, form, workdir)


def test_the_fields_are_those_of_the_formats():
  group = _groups()[0]
  first, second, third = exchange.rows('verl', 3, group.task, group.trajectories[0])
  assert (first['prompt_ids'], first['response_ids']) == ([1, 2], [5, 7])
  assert first['response_mask'] == [1, 1] and third['response_mask'] == []
  assert first['response_logprobs'] == [-1 / 3, -0.1 - 1 / 3]
  assert (second['reward_score'], second['num_turns']) == (0.25, 3)
  (document,) = exchange.rows('openenv', 3, group.task, group.trajectories[1])
  agent, discarded = document['sequences']
  assert agent['input_ids'] == [1, 2, 5, 7] and agent['loss_mask'] == [0, 0, 1, 1]
  assert agent['logprobs'] == [0.0, 0.0, -1 / 3, -0.1 - 1 / 3]
  assert (agent['role'], discarded['role']) == ('agent', 'discarded')
  assert not document['trainable']  # It has no reward.
  assert [turn['discarded'] for turn in document['turns']] == [False, True]


def test_rows_of_other_programs_need_no_more_than_the_format(tmp_path):
  path = epath.Path(tmp_path / 'rows.jsonl')
  row = {
    'prompt_ids': [1],
    'response_ids': [2, 3],
    'response_mask': [1, 1],
    'response_logprobs': [-0.5, -0.25],
    'reward_score': 1,
  }
  path.write_text(f'{json.dumps(row)}\n{json.dumps(row | {"reward_score": None})}\n')
  (group,) = exchange.read(path, 'verl')[1]
  assert [t.reward for t in group.trajectories] == [1.0, None]
  assert group.trajectories[0].turns[0].completion.logprobs == (-0.5, -0.25)
  # A path of OpenEnv with two turns is two turns, each with all that is before it.
  sequence = {
    'role': 'agent',
    'node_ids': ['a', 'b'],
    'input_ids': [1, 2, 3, 4, 5],
    'loss_mask': [0, 1, 0, 1, 1],
    'logprobs': [0.0, -1.0, 0.0, -2.0, -3.0],
  }
  document = {'metadata': {'reward': 0.5}, 'turns': [], 'sequences': [sequence]}
  path.write_text(json.dumps(document) + '\n')
  (group,) = exchange.read(path, 'openenv')[1]
  (done,) = group.trajectories
  assert [
    (t.completion.prompt_ids, t.completion.response_ids, t.completion.logprobs)
    for t in done.turns
  ] == [((1,), (2,), (-1.0,)), ((1, 2, 3), (4, 5), (-2.0, -3.0))]


@pytest.mark.parametrize(
  'change, said',
  [
    ({'response_logprobs': [-1.0]}, '2 ids and 1 log'),
    ({'response_logprobs': None}, ':1: not a row of verl'),
    ({'response_mask': [1, 0]}, 'response_mask has a 0'),
    ({'prompt_ids': [-1]}, 'not negative'),
    ({'prompt_ids': [True]}, 'whole numbers'),
    ({'response_logprobs': [-1.0, 'x']}, 'not a row of verl'),
    ({'reward_score': 'high'}, 'not a row of verl'),
    ({'extra_fields': {'status': 'odd'}}, ':1: .*odd'),
  ],
)
def test_a_row_that_cannot_be_trained_on_is_refused_by_its_line(tmp_path, change, said):
  row = {
    'prompt_ids': [1],
    'response_ids': [2, 3],
    'response_mask': [1, 1],
    'response_logprobs': [-0.5, -0.25],
    'reward_score': 1,
  }
  path = epath.Path(tmp_path / 'rows.jsonl')
  path.write_text(json.dumps(row | change) + '\n')
  with pytest.raises(rollout_files.RecordError, match=said):
    exchange.read(path, 'verl')
