"""A warm start from plans that a user's rows demonstrate, and the shipped example."""

import dataclasses
import json
import pathlib

import pytest
from etils import epath

from agentflow_jax import records
from agentflow_jax.agents.rewards import text
from agentflow_jax.agents.tools.search import bm25_index, passages
from agentflow_jax.config import consistency, loading, schema
from agentflow_jax.rollouts import rollout_files
from agentflow_jax.training import run, step_data
from tests.config import mini

_EXAMPLE = mini.ROOT / 'experiments' / 'own_tasks'


def _with_plans(tmp_path, plans):
  config = mini.config(tmp_path / 'in', steps=2)
  path = pathlib.Path(config.task_set.train)
  rows = [json.loads(line) for line in path.read_text().splitlines()]
  for row, said in zip(rows, plans):
    row['plans'] = said
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return dataclasses.replace(
    config,
    algorithm='sft',
    sft=schema.SftConfig(rows_per_step=2),
    evaluation=schema.EvaluationConfig(every=0, start_and_final=False, controls=False),
  )


def test_what_is_trained_on_is_what_the_rows_demonstrate(tmp_path):
  plans = [
    [{'sub_goal': 'answer capital Portugal', 'tool': 'search'}],
    [
      {'sub_goal': 'find capital Spain', 'tool': 'search'},
      {'sub_goal': 'answer value', 'context': '1 + 1', 'tool': 'python'},
    ],
  ]
  config = _with_plans(tmp_path, plans)
  run.train(config, str(tmp_path / 'out'), quiet=True)
  (path,) = (tmp_path / 'out').rglob('traces.jsonl.zst')
  groups = rollout_files.read(epath.Path(path))
  said = [
    [turn.completion.text for turn in group.trajectories[0].turns] for group in groups
  ]
  assert said == [
    ['Sub-Goal: answer capital Portugal\nContext: \nTool Name: search'],
    [
      'Sub-Goal: find capital Spain\nContext: \nTool Name: search',
      'Sub-Goal: answer value\nContext: 1 + 1\nTool Name: python',
    ],
  ]
  # With real tools: the first plan finds its passage.
  assert 'Lisbon' in groups[0].trajectories[0].turns[0].result.text


def test_rows_without_plans_teach_nothing(tmp_path):
  with pytest.raises(schema.ConfigError, match='give some rows "plans"'):
    run.train(_with_plans(tmp_path, []), str(tmp_path / 'out'), quiet=True)


def test_benchmarks_cannot_teach(tmp_path):
  config = dataclasses.replace(
    mini.config(tmp_path),
    algorithm='sft',
    task_set=schema.TaskSetConfig(kind='benchmark', benchmark='gaia', evaluation='x'),
  )
  with pytest.raises(schema.ConfigError, match='geohop, desk or jsonl'):
    consistency.check(config)


def _rows(name):
  return [
    json.loads(line)
    for line in (_EXAMPLE / name).read_text(encoding='utf-8').splitlines()
  ]


def test_the_example_has_what_it_promises():
  train, test = _rows('train.jsonl'), _rows('test.jsonl')
  assert len(train) >= 400 and len(test) >= 200
  countries = [{row['id'].partition('/')[0] for row in rows} for rows in (train, test)]
  assert not countries[0] & countries[1]
  assert not {r['query'] for r in train} & {r['query'] for r in test}
  # Each answer stands in a passage, and the questions' own words rarely find it.
  corpus = passages.load_corpus(_EXAMPLE / 'articles', 0)
  index = bm25_index.Index(corpus)
  found = 0
  for row in test:
    assert any(text.contains([row['answer']], p.text) for p in corpus.passages)
    (best,) = index.search(row['query'], 1)
    found += text.contains([row['answer']], best.text)
  assert 0.1 < found / len(test) < 0.4


def test_its_demonstrations_know_the_form_and_seldom_the_words():
  shown = [row for row in _rows('train.jsonl') if 'plans' in row]
  index = bm25_index.Index(passages.load_corpus(_EXAMPLE / 'articles', 0))
  found = 0
  for row in shown:
    ((plan,), answer) = row['plans'], row['answer']
    assert plan['tool'] == 'search' and plan['sub_goal'].startswith('answer ')
    (best,) = index.search(plan['sub_goal'].removeprefix('answer '), 1)
    found += text.contains([answer], best.text)
  assert len(shown) == 84 and 0.2 < found / len(shown) < 0.45


@pytest.mark.parametrize(
  'name',
  [
    'own_tasks',
    'own_tasks_warm_start',
    'local_model',
    'own_tasks_code',
    'own_tasks_code_warm_start',
  ],
)
def test_its_configs_are_consistent(name):
  config = loading.load(str(mini.ROOT / 'experiments' / f'{name}.py'))
  consistency.check(config)


def test_its_programs_are_its_plans():
  plans = {row['id']: row for row in _rows('train.jsonl')}
  programs = {row['id']: row for row in _rows('train_code.jsonl')}
  assert programs.keys() == plans.keys()
  for name, row in programs.items():
    assert row['query'] == plans[name]['query']
    assert row['answer'] == plans[name]['answer']
    assert ('plans' in row) == ('plans' in plans[name])
    if 'plans' in row:
      (program,), (plan,) = row['plans'], plans[name]['plans']
      words = plan['sub_goal'].removeprefix('answer ')
      assert program == {'code': f'final_answer(search({words!r}))'}


def _group(*turns):
  task = records.Task('t', 'q', ('a',), 'f1', {'plans': '["one", "two"]'})
  done = records.Trajectory('t', 0, records.Status.OUT_OF_TURNS, turns)
  return records.Group(task, (done,))


def _turn(text, **others):
  return records.Turn(records.Completion(text), records.SamplingSpec(), **others)


def test_plans_that_were_repeated_are_not_learned():
  turns = step_data._demonstrated(_group(*map(_turn, ['one', 'two', 'two', 'two'])))
  assert [turn.completion.text for turn in turns] == ['one', 'two']


def test_a_plan_that_cannot_be_carried_out_names_its_task():
  group = _group(_turn('one', parse_error='no tool serach'))
  with pytest.raises(schema.ConfigError, match="'t'.*no tool serach"):
    step_data._demonstrated(group)
