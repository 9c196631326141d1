"""A run in an environment of one's own."""

import json
import shutil

import pytest
from etils import epath

from agentflow_jax.config import overrides, schema
from agentflow_jax.rollouts import rollout_files
from agentflow_jax.training import run
from tests.config import mini

_ROWS = [
  {'query': 'Pay the coffee.', 'price': 35, 'coins': [20, 10, 5, 5]},
  {'query': 'Pay the tea.', 'price': 15, 'coins': [10, 5, 1]},
  {'query': 'Pay the cake.', 'price': 40, 'coins': [20, 20, 10]},
]


def _config(directory, **changes):
  base = mini.config(directory, steps=2, queries_per_step=2, group_size=2)
  path = directory / 'mine.py'
  shutil.copy(mini.ROOT / 'experiments' / 'own_environment.py', path)
  rows = directory / 'rows.jsonl'
  rows.write_text(''.join(json.dumps(row) + '\n' for row in _ROWS))
  settings = {
    'task_set.train': str(rows),
    'task_set.evaluation': str(rows),
    'task_set.reward': 'environment',
    'agent.environment.kind': f'{path}:Till',
    'agent.tools.enabled': '',
    'agent.tools.corpus': '',
    'agent.executor.backend': 'fields',
    'agent.verifier.backend': 'world',
    'evaluation.every': '0',
  }
  return overrides.override(base, list((settings | changes).items()))


@pytest.fixture(scope='module', name='made')
def _made(tmp_path_factory):
  directory = tmp_path_factory.mktemp('own')
  config = _config(directory)
  run.train(config, str(directory / 'out'), quiet=True)
  return config, directory / 'out'


def test_every_rollout_is_judged_by_the_class(made):
  _, workdir = made
  found = [
    trajectory
    for file in sorted((workdir / 'rollouts').iterdir())
    for group in rollout_files.read(epath.Path(file))
    for trajectory in group.trajectories
  ]
  assert len(found) == 2 * 2 * 2
  for trajectory in found:
    assert trajectory.status.is_policy
    assert trajectory.verdict.reward is not None
    assert [r.name for r in trajectory.verdict.results] == [
      'paid in full',
      'left',
      'not a coin too many',
    ]


def test_evaluations_and_the_summary_know_of_it(made):
  _, workdir = made
  final = json.loads((workdir / 'evaluations' / 'final.json').read_text())
  assert final['world']['rollouts'] == final['rollouts_scored'] == len(_ROWS)
  assert {c['name'] for c in final['items'][0]['checks']} == {
    'paid in full',
    'left',
    'not a coin too many',
  }
  summary = json.loads((workdir / 'summary.json').read_text())
  assert summary['eval/accuracy_final/world/success'] == final['accuracy']


def test_a_class_that_changed_is_refused_by_name(made):
  config, workdir = made
  path = config.agent.environment.kind.rpartition(':')[0]
  text = open(path).read()
  try:
    with open(path, 'a') as file:
      file.write('# Another version.\n')
    with pytest.raises(schema.ConfigError, match='own code .*mine.py.* changed'):
      run.train(config, str(workdir), quiet=True)
  finally:
    with open(path, 'w') as file:
      file.write(text)


@pytest.mark.parametrize(
  'changes, match',
  [
    ({'agent.environment.kind': 'desks'}, 'or PATH.py:CLASS for a class of your own'),
    ({'agent.environment.kind': ''}, 'set agent.environment.kind=PATH.py:CLASS'),
    ({'task_set.kind': 'geohop'}, 'set task_set.kind=jsonl'),
    ({'task_set.reward': 'match_or_number'}, 'needs answers that are not blank'),
    ({'agent.environment.faults': '0.1'}, 'agent.environment.faults'),
  ],
)
def test_mistakes_at_start_name_the_remedy(tmp_path, changes, match):
  with pytest.raises(schema.ConfigError, match=match):
    run.train(_config(tmp_path, **changes), str(tmp_path / 'out'), quiet=True)


def test_what_the_trial_at_start_made_is_not_the_runs(tmp_path):
  """Such as a client, which lives in one event loop."""
  config = _config(tmp_path)
  (tmp_path / 'mine.py').write_text('''
import asyncio

LOOP = None


class Till:
  async def reset(self, price, coins):
    global LOOP
    LOOP = LOOP or asyncio.get_running_loop()

  async def pay(self, coin: int) -> str:
    """Pays."""

  def verify(self):
    return not LOOP.is_closed()
''')
  run.train(config, str(tmp_path / 'out'), quiet=True)
  found = [
    trajectory
    for file in (tmp_path / 'out' / 'rollouts').iterdir()
    for group in rollout_files.read(epath.Path(file))
    for trajectory in group.trajectories
  ]
  assert found and all(t.verdict.reward == 1.0 for t in found)


@pytest.mark.parametrize(
  'class_text, match',
  [
    (
      '  def reset(self, price, coins):\n    self.lock = open(__file__)\n',
      'lock cannot be kept between two calls',
    ),
    ('  def reset(self, price):\n    pass\n', "reset takes no argument 'coins'"),
    ('  def reset(self, price, coins):\n    1 / 0\n', 'ZeroDivisionError'),
    ('  def reset(self, price, coins):\n    return 3\n', 'reset returned int'),
    (
      '  def reset(self, price, coins):\n    pass\n',
      'or the attribute reward, is None',
    ),
  ],
)
def test_a_class_is_tried_before_anything_compiles(tmp_path, class_text, match):
  config = _config(tmp_path)
  path = tmp_path / 'mine.py'
  path.write_text(
    f'class Till:\n{class_text}  def pay(self, coin: int) -> str:\n    """Pays."""\n'
  )
  with pytest.raises(schema.ConfigError, match=match):
    run.train(config, str(tmp_path / 'out'), quiet=True)
