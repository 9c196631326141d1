"""The transformer against NumPy float64."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agentflow_jax.core import attention
from agentflow_jax.core import model
from agentflow_jax.core import sharding
from tests.core import oracle
from tests.core import networks

CONFIG = model.ModelConfig(
  vocab_size=61,
  d_model=24,
  n_layers=3,
  n_heads=4,
  n_kv_heads=2,
  head_dim=8,
  d_ff=40,
  max_positions=64,
)
_FORWARD = jax.jit(model.forward, static_argnums=0)
FAMILIES = {
  'llama': {'rope_theta': 5e5, 'norm_eps': 1e-5},
  'qwen2': {'qkv_bias': True, 'rope_theta': 1e6},
  'qwen3': {'qk_norm': True, 'tie_embeddings': False},
  'one_kv_head': {'n_kv_heads': 1},
  'no_groups': {'n_kv_heads': 4},
}


def _forward(config, params, token_ids, positions, segment_ids):
  ends = oracle.ends(segment_ids)
  return _FORWARD(config, params, token_ids, positions, ends)


@functools.cache
def _make(seed=0, **changes):
  """Returns a config and parameters that are nowhere 0 or 1 by chance."""
  config = dataclasses.replace(CONFIG, **changes)
  params = networks.params(config, seed)
  leaves, treedef = jax.tree.flatten(params)
  keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
  leaves = [
    x + 0.2 * jax.random.normal(key, x.shape)
    for x, key in zip(leaves, keys, strict=True)
  ]
  return config, jax.tree.unflatten(treedef, leaves)


def _packed_inputs():
  """Two rows of 12: segments of 5, 4 and 3 padding; and of 12."""
  rng = np.random.default_rng(0)
  token_ids = rng.integers(0, CONFIG.vocab_size, (2, 12))
  positions = np.array([[*range(5), *range(4), 0, 0, 0], [*range(12)]])
  segment_ids = np.array([[1] * 5 + [2] * 4 + [0] * 3, [1] * 12])
  return (
    token_ids.astype(np.int32),
    positions.astype(np.int32),
    segment_ids.astype(np.int32),
  )


@pytest.mark.parametrize(
  'family',
  [
    'qwen2',
    'qwen3',
    'one_kv_head',
    *(pytest.param(f, marks=pytest.mark.slow) for f in ('llama', 'no_groups')),
  ],
)
def test_forward_equals_the_float64_oracle(family):
  config, params = _make(**FAMILIES[family])
  inputs = _packed_inputs()
  logits = _forward(config, params, *inputs)
  expected = oracle.transformer(config, params, *inputs)
  real = inputs[2] > 0
  assert logits.dtype == jnp.float32
  assert np.abs(expected[real]).max() > 1
  np.testing.assert_allclose(logits[real], expected[real], atol=2e-5)


def test_long_rows_equal_the_float64_oracle():
  # Float32 attention sums more than attention.SLOT_BLOCK slots block by block.
  config, params = _make()
  rng = np.random.default_rng(5)
  length = 2 * attention.SLOT_BLOCK + 44
  token_ids = rng.integers(0, config.vocab_size, (1, length), np.int32)
  # The second segment begins inside a block and ends inside another.
  first = attention.SLOT_BLOCK - 20
  positions = np.r_[np.arange(first), np.arange(length - first)][None]
  segment_ids = np.r_[np.ones(first), np.full(length - first, 2)][None]
  inputs = token_ids, positions.astype(np.int32), segment_ids.astype(np.int32)
  expected = oracle.transformer(config, params, *inputs)
  logits = _forward(config, params, *inputs)
  np.testing.assert_allclose(logits, expected, atol=2e-5)


@pytest.mark.parametrize('remat', ['full', 'dots'])
def test_remat_changes_no_gradient(remat):
  _, params = _make()
  inputs = _packed_inputs()

  def gradient(config):
    loss = lambda p: jnp.sum(
      jnp.sin(model.forward(config, p, *inputs[:2], oracle.ends(inputs[2])))
    )
    return jax.jit(jax.grad(loss))(params)

  expected = gradient(CONFIG)
  got = gradient(dataclasses.replace(CONFIG, remat=remat))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), got, expected
  )


def test_no_product_wants_a_kernel_laid_out_anew():
  _, params = _make()
  inputs = _packed_inputs()
  loss = lambda p: model.forward(CONFIG, p, *inputs[:2], oracle.ends(inputs[2])).sum()
  jaxpr = str(jax.make_jaxpr(jax.grad(loss))(params))
  summed = re.findall(r'dimension_numbers=\(\(\[([\d, ]*)\], \[([\d, ]*)\]\)', jaxpr)
  sides = [[int(n) for n in re.findall(r'\d+', x)] for y in summed for x in y]
  assert max(map(len, sides)) > 1  # Heads and their dimensions.
  assert all(axes == sorted(axes) for axes in sides), summed


def test_remat_dots_makes_attentions_products_again_alone():
  _, params = _make()
  inputs = _packed_inputs()

  def products(remat):
    config = dataclasses.replace(CONFIG, remat=remat)
    jaxpr = jax.make_jaxpr(
      jax.grad(
        lambda p: model.forward(config, p, *inputs[:2], oracle.ends(inputs[2])).sum()
      )
    )(params)
    return str(jaxpr).count('dot_general[')

  none, dots, full = (products(r) for r in ('none', 'dots', 'full'))
  # Of q, k, v, o, gate and up none; what down gives is never needed again.
  assert none < dots == full - 6


@pytest.mark.slow
@pytest.mark.parametrize('axes', [(2, 1, 2), (1, 1, 1)])
def test_a_kernel_in_a_whole_model_changes_no_gradient(axes):
  config = model.ModelConfig(
    vocab_size=32,
    d_model=16,
    n_layers=2,
    n_heads=4,
    n_kv_heads=2,
    head_dim=64,
    d_ff=16,
    max_positions=256,
    remat='full',
    attention='dense',
  )
  params = networks.params(config)
  rng = np.random.default_rng(0)
  ids = rng.integers(0, 32, (2, 256))
  ends = np.repeat([[256] * 100 + [200] * 90 + [256] * 66], 2, axis=0)
  ends[1, 230:] = 0  # Padding.
  weights = rng.normal(size=(2, 256, 16)) * (ends > 0)[..., None]
  mesh = sharding.make_mesh(*axes, jax.devices()[: int(np.prod(axes))])

  def gradient(attention):
    network = dataclasses.replace(config, attention=attention)

    def loss(params):
      hidden = model.hidden_states(
        network,
        params,
        ids,
        np.arange(256)[None].repeat(2, 0),
        ends,
        sharding.make_constrain(mesh),
      )
      return jnp.sum(hidden * weights)

    return jax.jit(jax.grad(loss))(params)

  for x, y in zip(
    jax.tree.leaves(gradient('pallas')), jax.tree.leaves(gradient('dense')), strict=True
  ):
    assert np.linalg.norm(x - y) <= 1e-5 * np.linalg.norm(y)


def test_segments_and_padding_do_not_see_each_other():
  config, params = _make()
  token_ids, positions, segment_ids = _packed_inputs()
  base = _forward(config, params, token_ids, positions, segment_ids)
  changed = token_ids.copy()
  changed[0, 2] = (changed[0, 2] + 1) % config.vocab_size  # Segment 1.
  changed[0, 10] = (changed[0, 10] + 1) % config.vocab_size  # Padding.
  other = _forward(config, params, changed, positions, segment_ids)
  differs = np.abs(np.asarray(base - other)).max(axis=-1) > 0
  # Token 2 and the rest of its segment; outputs at padding mean nothing.
  assert differs[0, :9].tolist() == [False] * 2 + [True] * 3 + [False] * 4
  assert not differs[1].any()


def test_an_id_outside_the_vocabulary_is_loud():
  config, params = _make()
  token_ids, positions, segment_ids = _packed_inputs()
  token_ids[1, 3] = config.vocab_size
  logits = _forward(config, params, token_ids, positions, segment_ids)
  assert np.isnan(logits[1, 3:]).all()
  assert np.isfinite(logits[0]).all()


def test_bfloat16_activations_keep_float32_parameters_and_logits():
  config, params = _make(dtype='bfloat16')
  inputs = _packed_inputs()
  logits = _forward(config, params, *inputs)
  expected = oracle.transformer(config, params, *inputs)
  real = inputs[2] > 0
  assert logits.dtype == jnp.float32
  error = np.abs(logits - expected)[real].max()
  # 8 bits of mantissa, 3 layers: clearly not float32, and not wrong either.
  assert 1e-4 < error < 0.05 * np.abs(expected[real]).max()


@pytest.mark.slow
def test_bfloat16_runs_on_cpu_at_real_sizes():
  # Beyond toy sizes XLA's CPU hands products to a library that has none of
  # bfloat16 operands with a float32 result.
  config = dataclasses.replace(CONFIG, d_model=128, n_layers=1, head_dim=64, d_ff=128)
  params = networks.params(config)
  half = dataclasses.replace(config, dtype='bfloat16')
  rng = np.random.default_rng(3)
  ids = rng.integers(0, config.vocab_size, (16, 64), np.int32)
  positions = np.broadcast_to(np.arange(64, dtype=np.int32), ids.shape)
  inputs = ids, positions, np.ones_like(ids)
  whole = _forward(config, params, *inputs)
  # 8 bits of mantissa, a few roundings in a row.
  limit = 0.03 * np.abs(whole).max()
  np.testing.assert_allclose(_forward(half, params, *inputs), whole, atol=limit)

  def loss(params, config):
    ends = oracle.ends(inputs[2])
    return model.forward(config, params, ids, positions, ends)[..., 0].sum()

  gradients = [
    jax.jit(jax.grad(loss), static_argnums=1)(params, c) for c in (half, config)
  ]
  for found, wanted in zip(*map(jax.tree.leaves, gradients), strict=True):
    error = np.linalg.norm(found - wanted) / np.linalg.norm(wanted)
    assert error < 0.03


@pytest.mark.exact
def test_layers_are_taken_apart_in_the_place_of_the_stack():
  config, params = _make()
  mesh = sharding.make_mesh(data=1, fsdp=2, devices=jax.devices()[:2])
  params = jax.tree.map(
    lambda x, where: jax.device_put(jnp.copy(x), where),
    params,
    sharding.param_shardings(config, mesh),
  )
  expected = model.make_unrolled_fn(config, params)(params)
  assert expected['embedding'] is params['embedding']  # No copy.
  found = model.take_apart(config, params)
  assert all(x.is_deleted() for x in jax.tree.leaves(params['layers']))
  assert found['embedding'] is params['embedding']  # And still there.
  assert jax.tree.structure(found) == jax.tree.structure(expected)
  for x, y in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
    assert x.sharding.is_equivalent_to(y.sharding, x.ndim)
    np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize('param_dtype', ['float32', 'bfloat16'])
def test_shapes_are_those_of_the_parameters_and_belong_to_the_caller(param_dtype):
  config = dataclasses.replace(CONFIG, param_dtype=param_dtype)
  drawn = networks.params(config)
  struct = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype)
  assert model.param_shapes(config) == jax.tree.map(struct, drawn)
  # They are traced once, and yet nobody sees a change that another caller makes.
  model.param_shapes(config)['layers'].clear()
  model.logical_axes(config)['layers'].clear()
  assert model.param_shapes(config) == jax.tree.map(struct, drawn)
  assert model.logical_axes(config)['layers']


def test_logical_axes_match_the_parameters():
  for changes in FAMILIES.values():
    config, params = _make(**changes)
    axes = model.logical_axes(config)
    ranks = jax.tree.map(
      lambda _, leaf: leaf.ndim, axes, params, is_leaf=lambda x: isinstance(x, tuple)
    )
    names = jax.tree.map(len, axes, is_leaf=lambda x: isinstance(x, tuple))
    assert ranks == names
    assert axes['layers']['mlp']['down']['kernel'] == jax.P('layers', 'mlp', 'embed')


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'n_kv_heads': 3}, 'must divide n_heads'),
    ({'head_dim': 7}, 'must be even'),
    ({'d_ff': 0}, 'd_ff'),
    ({'dtype': 'float16'}, 'dtype'),
    ({'remat': 'some'}, 'remat'),
    ({'rope_theta': float('nan')}, 'rope_theta'),
  ],
)
def test_bad_configs_are_refused(changes, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(CONFIG, **changes)
