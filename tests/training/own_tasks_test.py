"""The two commands of docs/tasks.md for own tasks, with small sizes."""

import json

import pytest

from agentflow_jax.config import loading
from agentflow_jax.training import run
from tests.assembly import released
from tests.config import mini

_QUESTIONS, _FILES = 30, 20


def _write(directory):
  articles = directory / 'articles'
  articles.mkdir(parents=True)
  for i in range(_FILES):
    (articles / f'{i}.txt').write_text(
      f'Town {i} has {1000 + i} inhabitants.\n\nThe mayor of town {i} is Ann {i}.\n'
    )
  for name, first in (('train', 0), ('test', _QUESTIONS)):
    rows = []
    for i in range(first, first + _QUESTIONS):
      town = i % _FILES
      row = {'query': f'Who is mayor of {town}? ({i})', 'answer': f'Ann {town}'}
      if name == 'train' and i < 6:
        row['plans'] = [{'sub_goal': f'answer mayor {town}', 'tool': 'search'}]
      rows.append(json.dumps(row) + '\n')
    (directory / f'{name}.jsonl').write_text(''.join(rows))


@pytest.mark.slow
def test_the_commands_of_the_readme_run_whole(tmp_path):
  _write(tmp_path)
  flags = {
    'task_set.train': str(tmp_path / 'train.jsonl'),
    'task_set.evaluation': str(tmp_path / 'test.jsonl'),
    'agent.tools.corpus': str(tmp_path / 'articles'),
    'planner.max_prompt_tokens': '480',  # A token is about a byte here.
    'planner.sampling.max_new_tokens': '96',
    'train.steps': '2',
    'mesh.data': '1',
    'mesh.fsdp': '-1',
    'batch.rows_per_micro': '8',
    'optimizer.total_steps': '2',
    'optimizer.warmup_steps': '0',
  }
  small = released.write(tmp_path / 'small')

  def config(name, **changes):
    path = str(mini.ROOT / 'experiments' / f'{name}.py')
    return loading.load(path, list((flags | changes).items()))

  warm = config('own_tasks_warm_start', **{'planner.directory': str(small)})
  run.train(warm, str(tmp_path / 'warm'), quiet=True)
  del flags['optimizer.total_steps'], flags['optimizer.warmup_steps']
  trained = config(
    'own_tasks',
    **{
      'planner.directory': str(tmp_path / 'warm' / 'planner'),
      'task_set.reward': 'contains',
    },
  )
  table = run.train(trained, str(tmp_path / 'out'), quiet=True)
  assert 'trained planner' in table and 'random planner' in table
  summary = json.loads((tmp_path / 'out' / 'summary.json').read_text())
  assert summary['rollouts/requested'] == 2 * 64
  for name in ('eval/accuracy_start', 'eval/accuracy_final'):
    assert summary[f'{name}/items_requested'] == _QUESTIONS
  for name in ('random', 'empty', 'frozen'):
    assert f'control/{name}_planner' in summary
