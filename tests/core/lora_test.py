"""Adapters: what is trained is what is merged, and the base is never written."""

import dataclasses
import functools

import jax
import numpy as np
import optax
import pytest

from agentflow_jax.core import batch as batch_lib
from agentflow_jax.core import flow_grpo
from agentflow_jax.core import lora
from agentflow_jax.core import model
from agentflow_jax.core import optimizer
from agentflow_jax.core import sharding
from agentflow_jax.core import update
from tests.core import networks

BASE = model.ModelConfig(
  vocab_size=64,
  d_model=16,
  n_layers=2,
  n_heads=4,
  n_kv_heads=2,
  head_dim=8,
  d_ff=32,
  max_positions=64,
  qkv_bias=True,
)
CONFIG = dataclasses.replace(BASE, lora=lora.LoraConfig(rank=3, alpha=6.0))
PLAIN = optimizer.OptimizerConfig(1e-2, b1=0.0, b2=0.0, max_grad_norm=None)
LOSS = flow_grpo.FlowGrpoConfig(kl_coef=0.1)
INF = np.float32(np.inf)


@functools.cache
def _mesh(axes=(1, 1, 1)):
  return sharding.make_mesh(*axes, jax.devices()[: int(np.prod(axes))])


@functools.cache
def _base(dtype='float32'):
  config = dataclasses.replace(BASE, param_dtype=dtype)
  return jax.device_get(networks.params(config))


def _adapters(config=CONFIG, b_scale=0.3):
  """Adapters whose B is not 0."""
  params = networks.params(config, 1)
  adapters = jax.device_get(lora.split(params)[1])
  rng = np.random.default_rng(0)
  return jax.tree_util.tree_map_with_path(
    lambda path, x: (
      x
      if path[-1].key == lora.A
      else (b_scale * rng.normal(size=x.shape).astype(np.float32))
    ),
    adapters,
  )


def _batch(rows_per_micro=4):
  rng = np.random.default_rng(0)
  rows = [
    batch_lib.TurnRow(
      rng.integers(0, 64, 5),
      rng.integers(0, 64, 4),
      0.1,
      behavior_logprobs=rng.normal(-4, 0.3, 4).astype(np.float32),
      advantage=float(rng.normal()),
    )
    for _ in range(8)
  ]
  return batch_lib.pack(
    rows, tokens_per_row=16, rows_per_micro=rows_per_micro, max_micro=2
  )[0]


def _state(adapters, axes=(1, 1, 1)):
  state = update.init_train_state(
    CONFIG, PLAIN, _mesh(axes), jax.random.key(1), _base()
  )
  shardings = update.state_shardings(CONFIG, PLAIN, _mesh(axes)).params
  return state.replace(params=jax.device_put(adapters, shardings))


def _updated(adapters, axes=(1, 1, 1)):
  return update.make_update_fn(CONFIG, PLAIN, LOSS, _mesh(axes))(
    _state(adapters, axes), _base(), _batch(), INF
  )


def test_adapters_begin_as_nothing():
  state = update.init_train_state(CONFIG, PLAIN, _mesh(), jax.random.key(1), _base())
  names = {
    path[-1].key for path, _ in jax.tree_util.tree_leaves_with_path(state.params)
  }
  assert names == {lora.A, lora.B}
  for x, y in zip(
    jax.tree.leaves(lora.merge(CONFIG.lora, _base(), state.params)),
    jax.tree.leaves(_base()),
    strict=True,
  ):
    np.testing.assert_array_equal(x, y)


@pytest.mark.exact
@pytest.mark.parametrize(
  'dtype', ['float32', pytest.param('bfloat16', marks=pytest.mark.slow)]
)
def test_what_is_merged_is_what_is_trained(dtype):
  config = dataclasses.replace(CONFIG, param_dtype=dtype)
  ids = np.random.default_rng(0).integers(0, 64, (2, 12))
  inputs = ids, np.arange(12)[None].repeat(2, 0), np.full((2, 12), 12)
  adapters = _adapters(config)
  joined = lora.join(_base(dtype), adapters)
  trained = jax.jit(functools.partial(model.forward, config))(joined, *inputs)
  merged = jax.jit(functools.partial(lora.merge, config.lora))(_base(dtype), adapters)
  update.check_params(BASE, merged)
  plain = jax.jit(functools.partial(model.forward, update.base_of(config)))
  np.testing.assert_array_equal(trained, plain(merged, *inputs))
  base = plain(_base(dtype), *inputs)
  assert np.abs(trained - base).max() > 0.1
  # And the merged kernel is W + alpha / rank A B.
  down = merged['layers']['mlp']['down']['kernel'][1]
  factors = adapters['layers']['mlp']['down']
  a, b = (np.asarray(factors[n][1], np.float64) for n in (lora.A, lora.B))
  w = np.asarray(_base(dtype)['layers']['mlp']['down']['kernel'][1], np.float64)
  tolerance = 1e-6 if dtype == 'float32' else 2**-8
  np.testing.assert_allclose(
    np.asarray(down, np.float64), w + 2 * a @ b, rtol=tolerance, atol=1e-6
  )


@pytest.mark.slow
def test_the_gradient_is_that_of_the_merged_kernel_by_the_chain_rule():
  adapters = _adapters()
  state, _ = _updated(adapters)
  got = jax.device_get(optax.tree_utils.tree_get(state.opt_state, 'mu'))
  merged = lora.merge(CONFIG.lora, _base(), adapters)
  whole = update.init_train_state(BASE, PLAIN, _mesh(), jax.random.key(1), merged)
  whole, _ = update.make_update_fn(BASE, PLAIN, LOSS, _mesh())(
    whole, _base(), _batch(), INF
  )
  full = jax.device_get(optax.tree_utils.tree_get(whole.opt_state, 'mu'))
  for block, name, n_in in (
    ('attention', 'q', 1),
    ('attention', 'o', 2),
    ('mlp', 'gate', 1),
  ):
    dw = np.asarray(full['layers'][block][name]['kernel'], np.float64)
    a, b = (adapters['layers'][block][name][n] for n in (lora.A, lora.B))
    d_in = int(np.prod(dw.shape[1 : 1 + n_in]))
    dw = dw.reshape(2, d_in, -1)
    a, b = a.reshape(2, d_in, 3), b.reshape(2, 3, -1)
    found = got['layers'][block][name]
    for leaf, expected in (
      (found[lora.A], 2 * dw @ b.swapaxes(1, 2)),
      (found[lora.B], 2 * a.swapaxes(1, 2) @ dw),
    ):
      leaf = leaf.reshape(expected.shape)
      error = np.linalg.norm(leaf - expected)
      assert error <= 1e-5 * np.linalg.norm(expected)


@pytest.mark.slow
@pytest.mark.parametrize('axes', [(2, 2, 2), (2, 1, 1), (1, 2, 2)])
def test_the_update_does_not_depend_on_the_mesh(axes):
  one, _ = _updated(_adapters())
  many, metrics = _updated(_adapters(), axes)
  assert metrics['refused'] == 0
  got, expected = (
    jax.device_get(optax.tree_utils.tree_get(s.opt_state, 'mu')) for s in (many, one)
  )
  for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
    assert np.linalg.norm(x - y) <= 1e-5 * np.linalg.norm(y)
  merged = update.make_merge_fn(CONFIG, _mesh(axes))(_base(), many.params)
  update.check_params(BASE, merged)


@pytest.mark.slow
def test_the_reference_is_the_base():
  _, metrics = _updated(_adapters())
  assert metrics['kl'] > 1e-3
  _, metrics = _updated(_adapters(b_scale=0.0))
  assert metrics['kl'] == 0


def test_only_targets_have_adapters():
  config = dataclasses.replace(
    BASE, lora=lora.LoraConfig(rank=2, targets=('q', 'down'))
  )
  params = model.param_shapes(config)
  base, adapters = lora.split(params)
  layers = adapters['layers']
  assert set(layers) == {'attention', 'mlp'}
  assert set(layers['attention']) == {'q'} and set(layers['mlp']) == {'down'}
  assert layers['attention']['q'][lora.B].shape == (2, 2, 4, 8)
  update.check_params(BASE, base)
  assert jax.tree.structure(lora.join(base, adapters)) == jax.tree.structure(params)


@pytest.mark.parametrize(
  'fields, said',
  [
    ({'rank': -1}, 'rank'),
    ({'alpha': 0.0}, 'alpha'),
    ({'targets': ('q', 'head')}, 'targets'),
    ({'targets': ()}, 'targets'),
  ],
)
def test_what_cannot_be_is_refused(fields, said):
  with pytest.raises(ValueError, match=said):
    lora.LoraConfig(**fields)


def test_a_kernel_knows_what_it_reads_from():
  # o reads heads x head_dim and writes d_model.
  _, adapters = lora.split(model.param_shapes(CONFIG))
  shapes = {k: x.shape for k, x in adapters['layers']['attention']['o'].items()}
  assert shapes == {lora.A: (2, 4, 8, 3), lora.B: (2, 3, 16)}
