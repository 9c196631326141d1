"""The one scoring function, against NumPy float64 and by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agentflow_jax.core import logprobs
from tests.core import oracle


def _logits(shape, seed=0):
  return 4 * jax.random.normal(jax.random.key(seed), shape)


def test_log_prob_equals_the_oracle_at_every_temperature():
  logits = _logits((3, 5, 17))
  targets = jax.random.randint(jax.random.key(1), (3, 5), 0, 17)
  temperature = np.array([[0.5], [1.0], [1.7]], np.float32) * np.ones((3, 5))
  got = logprobs.log_prob_of(logits, targets, temperature)
  np.testing.assert_allclose(
      got, oracle.log_prob_of(logits, targets, temperature), atol=3e-6
  )


def test_temperature_zero_scores_at_one():
  logits, targets = _logits((4, 9)), np.array([0, 3, 8, 1])
  np.testing.assert_array_equal(
      logprobs.log_prob_of(logits, targets, 0.0),
      logprobs.log_prob_of(logits, targets, 1.0),
  )


def test_kept_set_renormalises():
  logits, targets = _logits((4, 9)), np.array([0, 3, 8, 1])
  keep = np.zeros((4, 9), bool)
  keep[:, [0, 3, 5]] = True
  got = logprobs.log_prob_of(logits, targets, 0.8, keep)
  expected = oracle.log_prob_of(
      logits[:2], targets[:2], np.full(2, 0.8), keep[:2]
  )
  np.testing.assert_allclose(got[:2], expected, atol=3e-6)
  assert np.isneginf(got[2:]).all()  # Ids 8 and 1 are not in the set.


def test_gradient_is_one_hot_minus_softmax_over_temperature():
  logits, targets = _logits((2, 6)), np.array([1, 4])
  keep = np.array([[1, 1, 1, 0, 0, 1], [1] * 6], bool)
  grad = jax.grad(
      lambda z: logprobs.log_prob_of(z, targets, 0.5, keep).sum()
  )(logits)
  z = np.where(keep, np.asarray(logits, np.float64) / 0.5, -np.inf)
  probs = np.exp(z - z.max(-1, keepdims=True))
  probs /= probs.sum(-1, keepdims=True)
  expected = (np.eye(6)[targets] - probs) / 0.5
  np.testing.assert_allclose(grad, expected, atol=1e-6)


def test_entropy_by_hand():
  # p = (1/2, 1/4, 1/4): H = 1.5 ln 2.
  logits = jnp.log(jnp.array([[0.5, 0.25, 0.25]]))
  got = logprobs.statistics(logits, jnp.array([1]), jnp.ones(1))
  expected = -np.log(4), 1.5 * np.log(2), 0.0
  for x, y in zip(got, expected, strict=True):
    np.testing.assert_allclose(x, [y], rtol=1e-6, atol=1e-7)


PROBS = np.array([0.1, 0.4, 0.2, 0.25, 0.05])


@pytest.mark.parametrize(
    'top_k, top_p, min_p, kept',
    [
        (0, 1.0, 0.0, {0, 1, 2, 3, 4}),
        (2, 1.0, 0.0, {1, 3}),
        (9, 1.0, 0.0, {0, 1, 2, 3, 4}),
        (0, 0.3, 0.0, {1}),
        (0, 0.6, 0.0, {1, 3}),  # 0.4 < 0.6, 0.65 >= 0.6.
        (0, 0.9, 0.0, {1, 3, 2, 0}),  # 0.85 < 0.9.
        (0, 1.0, 0.45, {1, 2, 3}),  # At least 0.18.
        (0, 1.0, 1.0, {1}),
        (3, 0.6, 0.0, {1, 3}),
        (1, 0.9, 0.2, {1}),
    ],
)
def test_truncation_by_hand(top_k, top_p, min_p, kept):
  keep = logprobs.truncation_mask(
      jnp.log(PROBS)[None], np.ones(1, np.float32), np.array([top_k]),
      np.array([top_p], np.float32), np.array([min_p], np.float32),
  )
  assert set(np.flatnonzero(keep[0])) == kept


def test_truncation_acts_after_the_temperature_and_per_row():
  # At temperature 0.5: p^2 / sum = 0.0345, 0.552, 0.138, 0.216, ...
  logits = jnp.log(np.stack([PROBS, PROBS]))
  keep = logprobs.truncation_mask(
      logits, np.array([1.0, 0.5], np.float32), np.zeros(2, np.int32),
      np.array([0.5, 0.5], np.float32), np.zeros(2, np.float32),
  )
  assert [set(np.flatnonzero(row)) for row in keep] == [{1, 3}, {1}]


def test_ties_keep_the_lower_ids():
  keep = logprobs.truncation_mask(
      jnp.zeros((1, 5)), np.ones(1, np.float32), np.array([2]),
      np.ones(1, np.float32), np.zeros(1, np.float32),
  )
  assert np.flatnonzero(keep[0]).tolist() == [0, 1]


@pytest.mark.parametrize('shards', [1, 4])
def test_statistics_are_those_of_the_one_definition(shards):
  logits, temperature = 30 * _logits((3, 5, 64)), np.full((3, 5), 0.7)
  targets = jax.random.randint(jax.random.key(1), (3, 5), 0, 64)
  spec = jax.sharding.PartitionSpec
  got = jax.shard_map(
      lambda x: logprobs.statistics(x, targets, temperature, 'v'),
      mesh=jax.sharding.Mesh(np.array(jax.devices()[:shards]), ('v',)),
      in_specs=spec(None, None, 'v'), out_specs=spec(), check_vma=False,
  )(logits)
  expected = (
      logprobs.log_prob_of(logits, targets, temperature),
      oracle.entropy_of(logits, temperature),
      jax.nn.logsumexp(logprobs.scale(logits, temperature), axis=-1),
  )
  for x, y in zip(got, expected, strict=True):
    np.testing.assert_allclose(x, y, rtol=2e-6, atol=3e-5)
