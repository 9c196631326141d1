"""Bfloat16 parameters train as float32 ones do: a float32 master keeps them."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from agentflow_jax.core import batch as batch_lib
from agentflow_jax.core import flow_grpo
from agentflow_jax.core import handover
from agentflow_jax.core import lora
from agentflow_jax.core import masters
from agentflow_jax.core import model
from agentflow_jax.core import optimizer
from agentflow_jax.core import sharding
from agentflow_jax.core import update
from tests.core import networks

FLOAT32 = model.ModelConfig(
  vocab_size=38,
  d_model=12,
  n_layers=2,
  n_heads=6,
  n_kv_heads=2,
  head_dim=6,
  d_ff=20,
  max_positions=128,
)
CONFIG = dataclasses.replace(FLOAT32, param_dtype='bfloat16')
# The paper's learning rate; released models have weights near 0.02, from which
# so much decay takes a fifth of what Adam adds.
TX = optimizer.OptimizerConfig(
  1e-6, max_grad_norm=1.0, weight_decay=10.0, schedule='linear', total_steps=200
)
LOSS = flow_grpo.FlowGrpoConfig(kl_coef=0.0)
INF = np.float32(np.inf)


@functools.cache
def _mesh(axes=(1, 1, 1)):
  return sharding.make_mesh(*axes, jax.devices()[: int(np.prod(axes))])


@functools.cache
def _update_fn(config=CONFIG, tx=TX, axes=(1, 1, 1)):
  return update.make_update_fn(config, tx, LOSS, _mesh(axes))


@functools.cache
def _start():
  """Float32 weights of about 0.02, which bfloat16 cannot hold."""
  params = jax.device_get(networks.params(FLOAT32))
  return jax.tree.map(lambda x: x * np.float32(0.1), params)


def _state(config=CONFIG, tx=TX, axes=(1, 1, 1), params=None):
  return update.init_train_state(
    config, tx, _mesh(axes), jax.random.key(1), _start() if params is None else params
  )


def _batch(weight=1 / 24, rows_per_micro=1):
  rng = np.random.default_rng(0)
  rows = [
    batch_lib.TurnRow(
      rng.integers(37, size=8),
      rng.integers(37, size=6),
      weight,
      np.full(6, -3.6, np.float32),
      advantage=advantage,
    )
    for advantage in (1, -1, 1, -1)
  ]
  return batch_lib.pack(rows, tokens_per_row=64, rows_per_micro=rows_per_micro)[0]


def _rounding(tree):
  """Rounds on the host, by another library."""
  return jax.tree.map(
    lambda x: np.asarray(x).astype(jnp.bfloat16), jax.device_get(tree)
  )


def _assert_same_bits(a, b):

  def check(x, y):
    x, y = np.asarray(x), np.asarray(y)
    assert x.dtype == y.dtype
    assert x.tobytes() == y.tobytes()

  jax.tree.map(check, jax.device_get(a), jax.device_get(b))


def _flat(tree):
  leaves = jax.tree.leaves(jax.device_get(tree))
  return np.concatenate([np.asarray(x, np.float64).ravel() for x in leaves])


@functools.cache
def _trained(config, n_updates=100):
  """Returns (what the optimizer works on, state, metrics) per update."""
  state, batch, found = _state(config), _batch(), []
  for _ in range(n_updates):
    state, metrics = _update_fn(config)(state, None, batch, INF)
    is_kept = isinstance(state.opt_state, masters.MasterState)
    worked_on = state.opt_state.master if is_kept else state.params
    found.append(jax.device_get((worked_on, state.params, metrics)))
  return found


@pytest.mark.slow
def test_a_hundred_equal_gradients_move_the_master_as_float32_moves():
  moved = {}
  for config in (CONFIG, FLOAT32):
    master, _, metrics = _trained(config)[-1]
    assert metrics['refused'] == 0
    moved[config.param_dtype] = _flat(master) - _flat(_start())
  full, norm = moved['float32'], np.linalg.norm(moved['float32'])
  # Adam's steps are about the rate while the gradient stays what it is: 75e-6.
  assert 40e-6 < np.sqrt(np.mean(full**2)) < 100e-6
  assert abs(np.linalg.norm(moved['bfloat16']) / norm - 1) <= 0.01
  # The gradients are those of rounded weights, so not quite the same.
  assert np.linalg.norm(moved['bfloat16'] - full) <= 0.05 * norm
  assert np.count_nonzero(moved['bfloat16']) >= np.count_nonzero(full)
  # And what is sampled from has moved as far, by whole spacings: at most half
  # a spacing is left out, or added, a weight.
  _, params, _ = _trained(CONFIG)[-1]
  applied = _flat(params) - _flat(_rounding(_start()))
  along = applied @ full / norm**2
  assert 0.8 < along < 1.2


def test_equal_gradients_decay_and_schedule_add_up_by_hand():
  # The forward pass reads the parameters: where those are put back after each
  # update, every gradient is the same g, and Adam's steps are all
  # -lr g / (|g| + eps). Kernels and embeddings decay besides.
  state = _state()
  start = jax.device_get(state.params)
  for n in range(100):
    state, metrics = _update_fn()(
      state.replace(params=jax.device_put(start)), None, _batch(), INF
    )
    assert abs(float(metrics['lr']) - 1e-6 * (1 - n / 200)) < 1e-12
  moments = optax.tree_utils.tree_get(state.opt_state, 'mu')
  gradient = _flat(moments) / (1 - 0.9**100)
  assert np.count_nonzero(gradient) > 4000
  decays = _flat(
    jax.tree_util.tree_map_with_path(
      lambda path, x: np.full(x.shape, path[-1].key != 'scale'), _start()
    )
  )
  expected = _flat(_start())
  for n in range(100):
    adam = gradient / (np.abs(gradient) + 1e-8)
    expected -= 1e-6 * (1 - n / 200) * (adam + 10.0 * decays * expected)
  # Each update may be off by half the spacing of float32 values there.
  half = np.spacing(np.abs(expected).astype(np.float32) + 1e-4) / 2
  allowed = 100 * half + 1e-3 * np.abs(expected - _flat(_start()))
  assert np.all(np.abs(_flat(state.opt_state.master) - expected) <= allowed)


@pytest.mark.exact
def test_the_parameters_are_the_rounding_of_the_master_bit_for_bit():
  state = _state()
  _assert_same_bits(state.opt_state.master, _start())
  _assert_same_bits(state.params, _rounding(_start()))
  for master, params, _ in _trained(CONFIG):
    _assert_same_bits(params, _rounding(master))


@pytest.mark.exact
def test_drawn_parameters_are_bfloat16_from_the_start():
  drawn = update.init_train_state(CONFIG, TX, _mesh((2, 2, 2)), jax.random.key(4))
  _assert_same_bits(drawn.params, model.init_params(CONFIG, jax.random.key(4)))
  np.testing.assert_array_equal(_flat(drawn.opt_state.master), _flat(drawn.params))


def test_norms_are_those_of_the_master_and_of_what_is_sampled_from():
  old_master, old_params = _start(), _rounding(_start())
  for master, params, metrics in _trained(CONFIG)[:8]:
    for name, new, old in (
      ('update_norm', master, old_master),
      ('applied_norm', params, old_params),
    ):
      expected = np.linalg.norm(_flat(new) - _flat(old))
      assert expected > 0
      np.testing.assert_allclose(metrics[name], expected, rtol=1e-5)
    np.testing.assert_allclose(
      metrics['param_norm'], np.linalg.norm(_flat(params)), rtol=1e-5
    )
    old_master, old_params = master, params
  # Float32 parameters are both.
  old = _start()
  for params, _, metrics in _trained(FLOAT32)[:2]:
    expected = np.linalg.norm(_flat(params) - _flat(old))
    np.testing.assert_allclose(metrics['update_norm'], expected, rtol=1e-5)
    assert metrics['applied_norm'] == metrics['update_norm']
    old = params


def test_a_refused_update_leaves_the_master():
  state, _ = _update_fn()(_state(), None, _batch(), INF)
  before = jax.device_get(state)
  spoilt = _batch()
  spoilt.advantages[tuple(np.argwhere(spoilt.weights > 0)[0])] = np.nan
  for batch, bound, reason in (
    (_batch(), 1e-12, update.REFUSED_GAP),
    (spoilt, np.inf, update.REFUSED_NONFINITE),
  ):
    state, metrics = _update_fn()(state, None, batch, np.float32(bound))
    assert metrics['refused'] == reason
    assert metrics['update_norm'] == metrics['applied_norm'] == 0
    _assert_same_bits(state, before)


def test_the_master_is_split_as_its_parameters_are_and_handed_over_rounded():
  many = _state(axes=(2, 2, 2))
  for x, y in zip(
    jax.tree.leaves(many.opt_state.master), jax.tree.leaves(many.params), strict=True
  ):
    assert x.sharding == y.sharding and x.dtype == np.float32
  up = many.opt_state.master['layers']['mlp']['up']['kernel']
  assert up.addressable_shards[0].data.shape == (2, 6, 10)
  give = handover.Handover(CONFIG, _mesh((2, 2, 2)), split=True)
  _assert_same_bits(give(many.params), _rounding(_start()))


@pytest.mark.slow
@pytest.mark.parametrize('axes', [(2, 2, 2), (2, 1, 1), (1, 2, 1)])
def test_the_master_does_not_depend_on_the_mesh(axes):
  many, _ = _update_fn(axes=axes)(
    _state(axes=axes), None, _batch(rows_per_micro=4), INF
  )
  one, _, _ = _trained(CONFIG)[0]
  moved = _flat(many.opt_state.master) - _flat(_start())
  expected = _flat(one) - _flat(_start())
  # Where a gradient is nearly 0 its sign may differ, and so Adam's first step.
  assert np.linalg.norm(moved - expected) <= 0.1 * np.linalg.norm(expected)
  _assert_same_bits(many.params, _rounding(many.opt_state.master))


def test_the_state_is_donated_and_shares_no_array_with_what_it_started_from():
  start = jax.tree.map(jnp.asarray, _start())
  state = _state(params=start)
  after, _ = _update_fn()(state, None, _batch(), INF)
  assert all(x.is_deleted() for x in jax.tree.leaves(state.opt_state.master))
  for tree in (start, after):
    assert not any(x.is_deleted() for x in jax.tree.leaves(tree))


@pytest.mark.parametrize(
  'dtype', ['float32', pytest.param('bfloat16', marks=pytest.mark.slow)]
)
def test_adapters_need_no_master_and_report_what_they_add_to_the_base(dtype):
  config = dataclasses.replace(
    FLOAT32, param_dtype=dtype, lora=lora.LoraConfig(rank=3, alpha=6.0)
  )
  base = jax.tree.map(lambda x: np.asarray(x, dtype), _start())
  tx = dataclasses.replace(TX, learning_rate=1e-2)
  state = _state(config, tx, params=base)
  assert not masters.is_needed(config)
  assert not isinstance(state.opt_state, masters.MasterState)
  for _ in range(2):  # B is 0 before the first.
    before = jax.device_get(state.params)
    state, metrics = _update_fn(config, tx)(state, base, _batch(), INF)
  merged = [
    _flat(jax.jit(functools.partial(lora.merge, config.lora))(base, x))
    for x in (before, state.params)
  ]
  np.testing.assert_allclose(
    metrics['applied_norm'], np.linalg.norm(merged[1] - merged[0]), rtol=1e-4
  )
  np.testing.assert_allclose(
    metrics['update_norm'],
    np.linalg.norm(_flat(state.params) - _flat(before)),
    rtol=1e-4,
  )
