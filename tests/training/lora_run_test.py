"""A run that trains adapters: it resumes, exports whole, and keeps its base."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from agentflow_jax.assembly import model_files
from agentflow_jax.config import schema, unread
from agentflow_jax.training import run
from agentflow_jax.weights import checkpoints, host_copies
from tests.config import mini

_PLANNER = mini.ROOT / 'experiments' / 'geohop_planner'


class _Killed(BaseException):
  """Ends a run without any of its own clean-up counting."""


def _config(directory, **lora):
  base = mini.config(directory, steps=2, checkpoint_every=1)
  planner = dataclasses.replace(base.planner, lora=schema.LoraConfig(rank=2, **lora))
  batch = dataclasses.replace(base.batch, shorter_rows=(176,))
  return dataclasses.replace(base, planner=planner, batch=batch)


def _bytes(params):
  return [np.asarray(x).tobytes() for x in jax.tree.leaves(params)]


@pytest.mark.slow
def test_adapters_are_trained_and_exported_as_one_planner(tmp_path, monkeypatch):
  config = _config(tmp_path / 'in', alpha=64.0)
  config = dataclasses.replace(
    config, optimizer=dataclasses.replace(config.optimizer, learning_rate=1e-2)
  )
  run.train(config, str(tmp_path / 'whole'), quiet=True)
  lines = (tmp_path / 'whole' / 'metrics.jsonl').read_text().splitlines()
  steps = [json.loads(line) for line in lines]
  # The engine samples the merged parameters: after an update, too.
  assert all(s['update/logprob_gap/max'] <= 1e-5 for s in steps)
  assert steps[1]['update/kl'] > 0
  for step in steps:
    places = step['batch/tokens'] + step['batch/padding']
    assert places in {step['batch/micro'] * 8 * n for n in (176, 192)}
  before = model_files.load(str(_PLANNER))
  after = model_files.load(str(tmp_path / 'whole' / 'planner'))
  assert after.config == before.config
  assert jax.tree.structure(after.params) == jax.tree.structure(before.params)
  changed = {
    jax.tree_util.keystr(path)
    for (path, x), y in zip(
      jax.tree_util.tree_leaves_with_path(after.params),
      jax.tree.leaves(before.params),
      strict=True,
    )
    if not np.array_equal(x, y)
  }
  kernels = {
    jax.tree_util.keystr(path)
    for path, x in jax.tree_util.tree_leaves_with_path(before.params)
    if path[-1].key == 'kernel'
  }
  assert changed == kernels
  # A commit holds the adapters and their moments, not the base.
  sizes = []
  original = checkpoints.Checkpoints.save

  def save(self, step, state, run_):
    sizes.append(sum(x.size for x in jax.tree.leaves(state.params)))
    original(self, step, state, run_)
    raise _Killed  # After the commit of step 1.

  with monkeypatch.context() as patch:
    patch.setattr(checkpoints.Checkpoints, 'save', save)
    with pytest.raises(_Killed):
      run.train(config, str(tmp_path / 'cut'), quiet=True)
  assert sizes[0] < sum(x.size for x in jax.tree.leaves(before.params)) / 4
  run.train(config, str(tmp_path / 'cut'), quiet=True)
  again = model_files.load(str(tmp_path / 'cut' / 'planner'))
  assert _bytes(again.params) == _bytes(after.params)


def test_flags_of_adapters_that_are_not_there_are_refused(tmp_path):
  config = mini.config(tmp_path)
  with pytest.raises(schema.ConfigError, match='lora.rank > 0'):
    unread.check_flags(config, ['planner.lora.alpha'])
  unread.check_flags(_config(tmp_path), ['planner.lora.alpha'])
  inside = dataclasses.replace(
    config.planner,
    directory='',
    model=schema.ModelConfig(
      vocab_size=8,
      d_model=8,
      n_layers=1,
      n_heads=1,
      n_kv_heads=1,
      head_dim=8,
      d_ff=8,
      max_positions=8,
      lora=schema.LoraConfig(rank=2),
    ),
  )
  with pytest.raises(schema.ConfigError, match='planner.model.lora'):
    unread.check_values(dataclasses.replace(config, planner=inside))


@pytest.mark.slow
def test_the_digest_of_a_run_is_of_the_merged_planner(tmp_path):
  config = _config(tmp_path / 'in', targets=('q', 'v'))
  run.train(config, str(tmp_path / 'out'), quiet=True)
  summary = json.loads((tmp_path / 'out' / 'summary.json').read_text())
  planner = model_files.load(str(tmp_path / 'out' / 'planner'))
  assert summary['compiles/after_warmup'] == 0
  assert summary['params_digest'] == host_copies.params_digest(planner.params)
