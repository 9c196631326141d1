"""Exports for servers: a head that stands apart, and adapters alone."""

import pathlib

import jax
import numpy as np
import pytest

from agentflow_jax.assembly import model_export, model_files
from agentflow_jax.config import schema
from agentflow_jax.core import lora, model
from agentflow_jax.weights import adapter_files, model_directory

_PLANNER = str(pathlib.Path(__file__).parents[2] / 'experiments' / 'geohop_planner')


def test_an_untied_head_is_the_embedding(tmp_path):
  said = model_export.export(
    model=_PLANNER,
    workdir='',
    out=str(tmp_path / 'out'),
    dtype='stored',
    shard_bytes=10**9,
    untied=True,
  )
  before = model_files.load(_PLANNER)
  after = model_files.load(str(tmp_path / 'out'))
  assert before.config.tie_embeddings and not after.config.tie_embeddings
  np.testing.assert_array_equal(after.params['head'], before.params['embedding'].T)
  more = before.params['embedding'].size
  count = sum(x.size for x in jax.tree.leaves(before.params)) + more
  assert f'{count:,}' in said
  # A head that is apart already stays as it is.
  assert model_directory.untied(after.config, after.params)[1] is after.params


def test_adapters_of_a_finished_run_are_exported(tmp_path):
  network = model.ModelConfig(
    vocab_size=32,
    d_model=8,
    n_layers=1,
    n_heads=2,
    n_kv_heads=1,
    head_dim=4,
    d_ff=8,
    max_positions=16,
  )
  config = lora.LoraConfig(rank=1, targets=('up',))
  factors = {
    lora.A: np.ones((1, 8, 1), np.float32),
    lora.B: np.ones((1, 1, 8), np.float32),
  }
  adapter_files.save(
    tmp_path / 'run' / 'adapter', network, config, {'layers': {'mlp': {'up': factors}}}
  )
  options = dict(out=str(tmp_path / 'out'), dtype='bfloat16')
  said = model_export.export_adapter(workdir=str(tmp_path / 'run'), **options)
  assert '16 parameters in bfloat16' in said
  assert {p.name for p in (tmp_path / 'out').iterdir()} == {
    'adapter_config.json',
    'adapter_model.safetensors',
  }
  with pytest.raises(schema.ConfigError, match='--workdir'):
    model_export.export_adapter(workdir='', **options)
  with pytest.raises(schema.ConfigError, match='--untied'):
    model_export.export_adapter(workdir='x', others=True, **options)
  with pytest.raises(model_directory.CheckpointError, match='planner.lora.rank'):
    model_export.export_adapter(workdir=str(tmp_path), **options)
  with pytest.raises(schema.ConfigError, match='what is read'):
    model_export.export_adapter(
      workdir=str(tmp_path / 'run'),
      out=str(tmp_path / 'run' / 'adapter'),
      dtype='stored',
    )
