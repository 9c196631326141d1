"""Schedules by hand; steps of AdamW and Muon against NumPy float64."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from agentflow_jax.core import optimizer


@pytest.mark.parametrize(
  'fields, expected',
  [
    ({}, [2.0, 2.0, 2.0]),
    ({'warmup_steps': 4}, [0.5, 1.0, 1.5, 2.0, 2.0]),
    ({'schedule': 'linear', 'total_steps': 4}, [2.0, 1.5, 1.0, 0.5, 0.0, 0.0]),
    (
      {'schedule': 'linear', 'warmup_steps': 2, 'total_steps': 6},
      [1.0, 2.0, 2.0, 1.5, 1.0, 0.5, 0.0],
    ),
    (
      {'schedule': 'cosine', 'total_steps': 4},
      [1 + math.cos(math.pi * n / 4) for n in range(5)],
    ),
  ],
)
def test_schedules_by_hand(fields, expected):
  config = optimizer.OptimizerConfig(learning_rate=2.0, **fields)
  schedule = optimizer.make_schedule(config)
  got = [float(schedule(n)) for n in range(len(expected))]
  np.testing.assert_allclose(got, expected, atol=1e-6)


def test_cosine_agrees_with_optax():
  config = optimizer.OptimizerConfig(
    learning_rate=1.0, schedule='cosine', total_steps=50
  )
  reference = optax.cosine_decay_schedule(1.0, 50)
  for n in (0, 7, 25, 49, 50, 80):
    np.testing.assert_allclose(
      optimizer.make_schedule(config)(n), reference(n), atol=1e-6
    )


def test_two_steps_against_float64():
  config = optimizer.OptimizerConfig(
    learning_rate=0.1, b1=0.8, b2=0.9, eps=1e-3, weight_decay=0.5, max_grad_norm=1.0
  )
  params = {'a': {'kernel': jnp.array([1.0, -2.0])}, 'n': {'scale': jnp.ones(1)}}
  # Norm 13: scaled by 1 / 13; then norm 0.5: left alone.
  grads = [
    {'a': {'kernel': np.array([3.0, 4.0])}, 'n': {'scale': np.array([12.0])}},
    {'a': {'kernel': np.array([0.3, 0.0])}, 'n': {'scale': np.array([0.4])}},
  ]
  tx = optimizer.make_tx(config)
  opt_state = tx.init(params)
  x = {'kernel': np.array([1.0, -2.0]), 'scale': np.ones(1)}
  m = {name: 0.0 for name in x}
  v = {name: 0.0 for name in x}
  for n, (g, clip) in enumerate(zip(grads, (13.0, 1.0), strict=True), start=1):
    updates, opt_state = tx.update(
      {
        k: {n: jnp.asarray(a, jnp.float32) for n, a in leaf.items()}
        for k, leaf in g.items()
      },
      opt_state,
      params,
    )
    params = optax.apply_updates(params, updates)
    for name, leaf in {**g['a'], **g['n']}.items():
      leaf = leaf / clip
      m[name] = 0.8 * m[name] + 0.2 * leaf
      v[name] = 0.9 * v[name] + 0.1 * leaf**2
      step = m[name] / (1 - 0.8**n) / (np.sqrt(v[name] / (1 - 0.9**n)) + 1e-3)
      if name == 'kernel':  # Norm scales do not decay.
        step = step + 0.5 * x[name]
      x[name] = x[name] - 0.1 * step
  np.testing.assert_allclose(params['a']['kernel'], x['kernel'], rtol=1e-5)
  np.testing.assert_allclose(params['n']['scale'], x['scale'], rtol=1e-5)


def test_the_first_moment_may_be_bfloat16():
  params = {'a': {'kernel': jnp.array([1.0, -2.0, 0.5])}}
  grads = {'a': {'kernel': jnp.array([0.3, -0.123456, 1e-4])}}
  updates = {}
  for dtype in ('float32', 'bfloat16'):
    config = optimizer.OptimizerConfig(learning_rate=0.1, mu_dtype=dtype)
    tx = optimizer.make_tx(config)
    state = tx.init(params)
    for _ in range(3):
      updates[dtype], state = tx.update(grads, state, params)
    mu, nu = (optax.tree_utils.tree_get(state, n) for n in ('mu', 'nu'))
    assert mu['a']['kernel'].dtype == dtype
    assert nu['a']['kernel'].dtype == jnp.float32
  full, half = (updates[d]['a']['kernel'] for d in ('float32', 'bfloat16'))
  error = np.abs(np.asarray(half / full) - 1)
  assert 0 < error.max() < 2**-7  # Eight bits, rounded three times.


def _orthogonal(matrix: np.ndarray) -> np.ndarray:
  """Returns five Newton-Schulz steps of the matrix, by its singular values.

  Each step maps a singular value s to a s + b s^3 + c s^5 and leaves the vectors.
  """
  left, values, right = np.linalg.svd(matrix, full_matrices=False)
  values = values / np.sqrt((values**2).sum())
  for _ in range(5):
    values = 3.4445 * values - 4.775 * values**3 + 2.0315 * values**5
  return left * values @ right


def test_two_steps_of_muon_against_float64():
  config = optimizer.OptimizerConfig(
    learning_rate=0.1,
    b1=0.8,
    b2=0.9,
    eps=1e-3,
    weight_decay=0.5,
    max_grad_norm=None,
    kind='muon',
  )
  # A matrix a layer: how many of its axes are summed over, and its shape as one.
  shapes = {
    'q': ((2, 6, 2, 4), (6, 8)),
    'o': ((2, 2, 4, 6), (8, 6)),
    'up': ((2, 6, 10), (6, 10)),
    'down': ((2, 10, 6), (10, 6)),
  }
  rng = np.random.default_rng(0)
  draw = lambda: {name: rng.normal(size=shape) for name, (shape, _) in shapes.items()}
  values, grads = draw(), [draw(), draw()]
  table, table_grads = rng.normal(size=(5, 6)), rng.normal(size=(2, 5, 6))
  as_tree = lambda kernels, table: {
    'embedding': jnp.asarray(table, jnp.float32),
    'layers': {k: {'kernel': jnp.asarray(v, jnp.float32)} for k, v in kernels.items()},
  }
  tx = optimizer.make_tx(config)
  params = as_tree(values, table)
  state = tx.init(params)
  for g, t in zip(grads, table_grads, strict=True):
    updates, state = tx.update(as_tree(g, t), state, params)
    params = optax.apply_updates(params, updates)

  for name, (shape, flat) in shapes.items():
    x, momentum = values[name], np.zeros(shape)
    for n, g in enumerate((grads[0][name], grads[1][name]), start=1):
      momentum = 0.95 * momentum + 0.05 * g
      ahead = 0.95 * momentum / (1 - 0.95 ** (n + 1)) + 0.05 * g / (1 - 0.95**n)
      step = np.stack([_orthogonal(a) for a in ahead.reshape(2, *flat)])
      step = 0.2 * np.sqrt(max(flat)) * step.reshape(shape)
      x = x - 0.1 * (step + 0.5 * x)
    np.testing.assert_allclose(
      params['layers'][name]['kernel'], x, rtol=1e-5, atol=1e-5
    )
  m, v, x = 0.0, 0.0, table
  for n, g in enumerate(table_grads, start=1):
    m, v = 0.8 * m + 0.2 * g, 0.9 * v + 0.1 * g**2
    step = m / (1 - 0.8**n) / (np.sqrt(v / (1 - 0.9**n)) + 1e-3)
    x = x - 0.1 * (step + 0.5 * x)
  np.testing.assert_allclose(params['embedding'], x, rtol=1e-5)


@pytest.mark.parametrize(
  'fields, message',
  [
    ({'learning_rate': -1.0}, 'learning_rate'),
    ({'schedule': 'step'}, 'schedule'),
    ({'schedule': 'cosine'}, 'total_steps'),
    ({'total_steps': 5}, 'total_steps'),
    ({'schedule': 'linear', 'total_steps': 5, 'warmup_steps': 5}, 'must exceed'),
    ({'b1': 1.0}, 'b1'),
    ({'max_grad_norm': 0.0}, 'max_grad_norm'),
    ({'mu_dtype': 'float16'}, 'mu_dtype'),
    ({'kind': 'sgd'}, "kind: unknown 'sgd'; adam or muon"),
  ],
)
def test_bad_options_are_refused(fields, message):
  with pytest.raises(ValueError, match=message):
    optimizer.OptimizerConfig(**{'learning_rate': 1.0} | fields)


def test_adapters_decay_too():
  tx = optimizer.make_tx(optimizer.OptimizerConfig(learning_rate=0.1, weight_decay=0.5))
  params = {'q': {'lora_a': jnp.ones(2), 'lora_b': jnp.ones(2)}}
  zeros = jax.tree.map(jnp.zeros_like, params)
  updates, _ = tx.update(zeros, tx.init(params), params)
  for update in jax.tree.leaves(updates):
    np.testing.assert_allclose(update, -0.05 * np.ones(2), rtol=1e-6)
