"""Meshes and the rule table on eight virtual devices."""

import dataclasses

import jax
import numpy as np
import pytest

from agentflow_jax.core import model
from agentflow_jax.core import sharding

CONFIG = model.ModelConfig(
  vocab_size=64,
  d_model=16,
  n_layers=2,
  n_heads=4,
  n_kv_heads=2,
  head_dim=8,
  d_ff=32,
  max_positions=64,
)


def test_minus_one_fills():
  assert dict(sharding.make_mesh().shape) == {'data': 8, 'fsdp': 1, 'tensor': 1}
  assert dict(sharding.make_mesh(2, -1, 2).shape) == {'data': 2, 'fsdp': 2, 'tensor': 2}
  mesh = sharding.make_mesh(1, 1, 1, jax.devices()[:1])
  assert mesh.size == 1
  assert set(mesh.axis_types) == {jax.sharding.AxisType.Auto}


@pytest.mark.parametrize('sizes', [(3, 1, 1), (-1, -1, 1), (0, 8, 1), (16, 1, -1)])
def test_axes_that_do_not_fit_are_refused(sizes):
  with pytest.raises(ValueError, match='mesh'):
    sharding.make_mesh(*sizes)


def test_parameters_follow_the_table():
  shardings = sharding.param_shardings(CONFIG, sharding.make_mesh(2, 2, 2))
  q = shardings['layers']['attention']['q']['kernel']
  assert q.spec == jax.P(None, 'fsdp', 'tensor', None)
  # [2 layers, 16, 4, 8] over fsdp = 2 and tensor = 2.
  assert q.shard_shape((2, 16, 4, 8)) == (2, 8, 2, 8)
  assert shardings['embedding'].spec == jax.P('tensor', 'fsdp')
  assert shardings['final_norm']['scale'].is_fully_replicated


@pytest.mark.parametrize(
  'changes, axis',
  [
    ({'n_kv_heads': 1}, 'kv_heads'),
    ({'vocab_size': 63}, 'vocab'),
    ({'d_ff': 33}, 'mlp'),
    ({'d_model': 15}, 'embed'),
  ],
)
def test_what_does_not_divide_is_named(changes, axis):
  config = dataclasses.replace(CONFIG, **changes)
  with pytest.raises(ValueError, match=f"axis '{axis}'.*does not divide"):
    sharding.param_shardings(config, sharding.make_mesh(2, 2, 2))


def test_rows_are_split_over_data_and_fsdp():
  mesh = sharding.make_mesh(2, 2, 2)
  batch = {'x': np.zeros((3, 8, 5), np.float32), 'n': np.int32(3)}
  put = sharding.put_batch(batch, mesh)
  assert put['x'].sharding.shard_shape(put['x'].shape) == (3, 2, 5)
  assert put['n'].sharding.is_fully_replicated
  with pytest.raises(ValueError, match='6 rows'):
    sharding.check_rows(mesh, 6)


class _Device:
  """A device of another process, as far as shapes of meshes go."""

  def __init__(self, process_index):
    self.process_index = process_index


def _owned(owners):
  return np.vectorize(_Device, otypes=[object])(np.array(owners))


@pytest.mark.parametrize(
  'owners, box',
  [
    ([[[0], [0], [1], [1]]], (1, 2, 1)),
    ([[[0, 0], [0, 0]], [[1, 1], [1, 1]]], (1, 2, 2)),
    ([[[0, 1], [0, 1]], [[2, 3], [2, 3]]], (1, 2, 1)),
    ([[[0, 0]], [[1, 1]]], (1, 1, 2)),
  ],
)
def test_a_process_s_part_of_the_mesh_is_found(owners, box):
  assert sharding.process_box(_owned(owners), 0) == box


@pytest.mark.parametrize(
  'owners',
  [
    [[[0], [1], [0], [1]]],  # Apart.
    [[[0], [0], [0], [1], [1], [1], [1], [1]]],  # Uneven.
    [[[1], [0], [0], [1]]],  # At no multiple of its size.
  ],
)
def test_a_process_may_have_no_box(owners):
  assert sharding.process_box(_owned(owners), 0) is None
