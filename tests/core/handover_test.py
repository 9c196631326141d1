"""Parameters from the training mesh to a process's samplers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agentflow_jax.core import handover
from agentflow_jax.core import model
from agentflow_jax.core import sharding
from tests.core import networks

CONFIG = model.ModelConfig(
  vocab_size=64,
  d_model=32,
  n_layers=2,
  n_heads=8,
  n_kv_heads=4,
  head_dim=8,
  d_ff=48,
  max_positions=32,
)


def _placed(mesh):
  params = jax.device_get(networks.params(CONFIG))
  return params, jax.tree.map(
    sharding.put, params, sharding.param_shardings(CONFIG, mesh)
  )


@pytest.mark.parametrize(
  'axes',
  [
    (8, 1, 1),
    (2, 2, 2),
    *(pytest.param(axes, marks=pytest.mark.slow) for axes in ((1, 8, 1), (1, 2, 4))),
  ],
)
@pytest.mark.parametrize('split', [True, False])
def test_values_are_the_same_on_this_process_s_devices(axes, split):
  mesh = sharding.make_mesh(*axes)
  params, placed = _placed(mesh)
  give = handover.Handover(CONFIG, mesh, split)
  got = give(placed)
  jax.tree.map(np.testing.assert_array_equal, got, params)
  for x, where in zip(jax.tree.leaves(got), jax.tree.leaves(give.local), strict=True):
    assert x.sharding == where
    assert len(x.sharding.device_set) == (8 if split else 1)
  if split:
    parts = got['layers']['mlp']['down']['kernel'].addressable_shards
    assert parts[0].data.size * 8 == params['layers']['mlp']['down']['kernel'].size


def test_what_is_handed_over_outlives_what_it_was_made_from():
  mesh = sharding.make_mesh(8, 1, 1)  # Whole on every device in both layouts.
  params, placed = _placed(mesh)
  got = handover.Handover(CONFIG, mesh, split=False)(placed)
  for x in jax.tree.leaves(placed):
    x.delete()
  jax.tree.map(np.testing.assert_array_equal, got, params)


def test_nothing_passes_through_the_host(monkeypatch):
  mesh = sharding.make_mesh(2, 4, 1)
  _, placed = _placed(mesh)
  give = handover.Handover(CONFIG, mesh, split=False)
  read = []
  array = type(placed['embedding'])
  value = array._value
  monkeypatch.setattr(
    array, '_value', property(lambda x: read.append(x) or value.__get__(x))
  )
  jax.block_until_ready(give(placed))
  assert not read
  np.asarray(placed['embedding'])
  assert len(read) == 1  # So it is seen.


@pytest.mark.exact
def test_what_is_rounded_samples_the_same_bits():
  config = dataclasses.replace(CONFIG, dtype='bfloat16')
  mesh = sharding.make_mesh(1, 8, 1)
  params, placed = _placed(mesh)
  got = handover.Handover(config, mesh, split=False)(placed)
  assert got['embedding'].dtype == jnp.bfloat16
  assert got['final_norm']['scale'].dtype == jnp.float32
  ids = np.arange(24, dtype=np.int32).reshape(2, 12)
  positions = np.broadcast_to(np.arange(12, dtype=np.int32), ids.shape)
  ends = np.full((2, 12), 12, np.int32)
  forward = jax.jit(model.forward, static_argnums=0)
  np.testing.assert_array_equal(
    np.asarray(forward(config, got, ids, positions, ends), np.float32),
    np.asarray(forward(config, params, ids, positions, ends), np.float32),
  )


def test_a_process_without_a_box_is_an_error_with_a_remedy(monkeypatch):
  monkeypatch.setattr(sharding, 'process_box', lambda *unused: None)
  with pytest.raises(ValueError, match='make mesh.tensor'):
    handover.Handover(CONFIG, sharding.make_mesh(1, 8, 1), split=True)
