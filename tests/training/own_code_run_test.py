"""A run with a tool, a reward and a generator of one's own."""

import json
import shutil

import pytest
from etils import epath

from agentflow_jax.config import overrides, schema
from agentflow_jax.rollouts import rollout_files
from agentflow_jax.training import run
from tests.config import mini


@pytest.fixture(scope='module', name='made')
def _made(tmp_path_factory):
  directory = tmp_path_factory.mktemp('own')
  path = directory / 'mine.py'
  shutil.copy(mini.ROOT / 'experiments' / 'own_code.py', path)
  config = overrides.override(
    mini.config(directory / 'in', steps=2),
    [
      ('agent.tools.own', f'{path}:count_letters'),
      ('agent.generator.own', f'{path}:LastResult'),
      ('task_set.reward', f'{path}:right_and_brief'),
      ('evaluation.every', '0'),
      ('evaluation.start_and_final', 'false'),
    ],
  )
  run.train(config, str(directory / 'out'), quiet=True)
  return config, directory / 'out', path


def test_its_rewards_are_the_sums_of_named_parts(made):
  _, workdir, _ = made
  parts = []
  for file in sorted((workdir / 'rollouts').iterdir()):
    for group in rollout_files.read(epath.Path(file)):
      for rollout in group.trajectories:
        if rollout.score is not None:
          parts.append({k: t.value for k, t in rollout.score.terms.items()})
          assert rollout.reward == sum(parts[-1][name] for name in sorted(parts[-1]))
  assert parts and {name for one in parts for name in one} == {'right', 'brief'}
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  assert any('reward/part/brief' in json.loads(line) for line in lines)


def test_code_that_changed_is_refused_by_name(made):
  config, workdir, path = made
  text = path.read_text()
  try:
    path.write_text(text + '\n# Another version.\n')
    with pytest.raises(schema.ConfigError, match='own code .*mine.py.* changed'):
      run.train(config, str(workdir), quiet=True)
  finally:
    path.write_text(text)
