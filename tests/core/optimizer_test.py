"""Schedules by hand, and one AdamW step against NumPy float64."""

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
        (
            {'schedule': 'linear', 'total_steps': 4},
            [2.0, 1.5, 1.0, 0.5, 0.0, 0.0],
        ),
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
      learning_rate=0.1, b1=0.8, b2=0.9, eps=1e-3, weight_decay=0.5,
      max_grad_norm=1.0,
  )
  params = {
      'a': {'kernel': jnp.array([1.0, -2.0])}, 'n': {'scale': jnp.ones(1)}
  }
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
        {k: {n: jnp.asarray(a, jnp.float32) for n, a in leaf.items()}
         for k, leaf in g.items()},
        opt_state, params,
    )
    params = optax.apply_updates(params, updates)
    for name, leaf in {**g['a'], **g['n']}.items():
      leaf = leaf / clip
      m[name] = 0.8 * m[name] + 0.2 * leaf
      v[name] = 0.9 * v[name] + 0.1 * leaf**2
      step = m[name] / (1 - 0.8**n) / (
          np.sqrt(v[name] / (1 - 0.9**n)) + 1e-3
      )
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


@pytest.mark.parametrize(
    'fields, message',
    [
        ({'learning_rate': -1.0}, 'learning_rate'),
        ({'schedule': 'step'}, 'schedule'),
        ({'schedule': 'cosine'}, 'total_steps'),
        ({'total_steps': 5}, 'total_steps'),
        (
            {'schedule': 'linear', 'total_steps': 5, 'warmup_steps': 5},
            'must exceed',
        ),
        ({'b1': 1.0}, 'b1'),
        ({'max_grad_norm': 0.0}, 'max_grad_norm'),
        ({'mu_dtype': 'float16'}, 'mu_dtype'),
    ],
)
def test_bad_options_are_refused(fields, message):
  with pytest.raises(ValueError, match=message):
    optimizer.OptimizerConfig(**{'learning_rate': 1.0} | fields)


def test_adapters_decay_too():
  tx = optimizer.make_tx(
      optimizer.OptimizerConfig(learning_rate=0.1, weight_decay=0.5)
  )
  params = {'q': {'lora_a': jnp.ones(2), 'lora_b': jnp.ones(2)}}
  zeros = jax.tree.map(jnp.zeros_like, params)
  updates, _ = tx.update(zeros, tx.init(params), params)
  for update in jax.tree.leaves(updates):
    np.testing.assert_allclose(update, -0.05 * np.ones(2), rtol=1e-6)
