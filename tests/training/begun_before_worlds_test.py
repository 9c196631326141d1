"""A run that an earlier version began, before there were worlds, goes on."""

import dataclasses
import json
import pathlib
import tarfile

import pytest

from agentflow_jax import records
from agentflow_jax.config import schema
from agentflow_jax.rollouts import rollout_files
from agentflow_jax.training import run
from etils import epath
from tests.config import mini

# Made by commit 107fe28 with the config below and train.steps=1.
_STORED = pathlib.Path(__file__).with_name('begun_before_worlds.tar.xz')


def _config(**train) -> schema.Config:
  base = mini.config(
      pathlib.Path('mini'), queries_per_step=2, group_size=2, checkpoint_every=1,
      **train,
  )
  return dataclasses.replace(
      base,
      name='begun_before_worlds',
      planner=dataclasses.replace(
          base.planner, directory='', vocab_size=420,
          sampling=dataclasses.replace(base.planner.sampling, max_new_tokens=8),
          model=schema.ModelConfig(
              vocab_size=420, d_model=16, n_layers=1, n_heads=2, n_kv_heads=2,
              head_dim=8, d_ff=16, max_positions=256, qk_norm=True,
          ),
      ),
      mesh=schema.MeshConfig(data=8, fsdp=1, tensor=1),
      evaluation=schema.EvaluationConfig(
          every=0, start_and_final=False, controls=False
      ),
  )


@pytest.fixture
def stored(tmp_path, monkeypatch):
  """A directory with the run's tasks and its workdir, which is the current one."""
  with tarfile.open(_STORED) as archive:
    archive.extractall(tmp_path, filter='data')
  monkeypatch.chdir(tmp_path)
  return tmp_path


def test_it_resumes(stored):
  written = json.loads((stored / 'run' / 'config.json').read_text())
  assert not any(name.startswith('agent.environment') for name in written)
  run.train(_config(steps=2), 'run')
  lines = (stored / 'run' / 'metrics.jsonl').read_text().splitlines()
  assert [json.loads(line)['step'] for line in lines] == [1, 2]
  assert json.loads((stored / 'run' / 'summary.json').read_text())['steps'] == 2


def test_its_rollouts_are_read(stored):
  (path,) = (stored / 'run' / 'rollouts').iterdir()
  groups = rollout_files.read(epath.Path(path))
  assert len(groups) == 2
  for group in groups:
    assert group.task.world is None
    for trajectory in group.trajectories:
      assert trajectory.status is records.Status.TRUNCATED_RESPONSE
      assert trajectory.verdict is None and trajectory.score is None


def test_other_tasks_are_still_refused(stored):
  tasks = stored / 'mini' / 'tasks.jsonl'
  config = _config(steps=2)
  tasks.write_text(tasks.read_text().replace('Lisbon', 'Porto'))
  with pytest.raises(schema.ConfigError, match='tasks that this run began with'):
    run.train(config, 'run')
