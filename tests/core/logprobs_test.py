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
  expected = oracle.log_prob_of(logits[:2], targets[:2], np.full(2, 0.8), keep[:2])
  np.testing.assert_allclose(got[:2], expected, atol=3e-6)
  assert np.isneginf(got[2:]).all()  # Ids 8 and 1 are not in the set.


def test_gradient_is_one_hot_minus_softmax_over_temperature():
  logits, targets = _logits((2, 6)), np.array([1, 4])
  keep = np.array([[1, 1, 1, 0, 0, 1], [1] * 6], bool)
  grad = jax.grad(lambda z: logprobs.log_prob_of(z, targets, 0.5, keep).sum())(logits)
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
    jnp.log(PROBS)[None],
    np.ones(1, np.float32),
    np.array([top_k]),
    np.array([top_p], np.float32),
    np.array([min_p], np.float32),
  )
  assert set(np.flatnonzero(keep[0])) == kept


def test_truncation_acts_after_the_temperature_and_per_row():
  # At temperature 0.5: p^2 / sum = 0.0345, 0.552, 0.138, 0.216, ...
  logits = jnp.log(np.stack([PROBS, PROBS]))
  keep = logprobs.truncation_mask(
    logits,
    np.array([1.0, 0.5], np.float32),
    np.zeros(2, np.int32),
    np.array([0.5, 0.5], np.float32),
    np.zeros(2, np.float32),
  )
  assert [set(np.flatnonzero(row)) for row in keep] == [{1, 3}, {1}]


def test_ties_keep_the_lower_ids():
  keep = logprobs.truncation_mask(
    jnp.zeros((1, 5)),
    np.ones(1, np.float32),
    np.array([2]),
    np.ones(1, np.float32),
    np.zeros(1, np.float32),
  )
  assert np.flatnonzero(keep[0]).tolist() == [0, 1]


_SPECS = [
  (0, 1.0, 0.0),
  (3, 1.0, 0.0),
  (0, 0.5, 0.0),
  (0, 0.95, 0.0),
  (0, 1.0, 0.1),
  (7, 0.8, 0.02),
  (0, 1e-6, 0.0),
  (200, 1.0, 1.0),
]


@pytest.mark.parametrize('size', [1, 3, 40])
@pytest.mark.parametrize('ties', [False, True])
def test_kept_ids_are_the_most_likely_of_the_mask(ties, size):
  logits = np.array(_logits((len(_SPECS) * 20, 40)))
  if ties:  # Whole numbers, and a 0 of either sign.
    logits = np.round(logits / 4)
    assert np.signbit(logits[logits == 0]).any()
    assert not np.signbit(logits[logits == 0]).all()
  temperature = np.resize(np.array([1, 0.6, 0, 2], np.float32), len(logits))
  top_k, top_p, min_p = (
    np.repeat(np.array(x, kind), 20)
    for x, kind in zip(zip(*_SPECS), (np.int32, np.float32, np.float32), strict=True)
  )
  spec = temperature, top_k, top_p, min_p
  mask = np.asarray(logprobs.truncation_mask(logits, *spec))
  got = np.asarray(logprobs.kept_ids(logits, *spec, size))
  assert got.shape == (len(logits), size) and got.dtype == np.int32
  for row, ids, kept in zip(logits, got, mask, strict=True):
    order = sorted(range(40), key=lambda i: (-row[i], i))
    expected = [i for i in order if kept[i]][:size]
    assert ids.tolist() == expected + [-1] * (size - len(expected))


def test_mass_is_counted_over_all_of_the_vocabulary():
  # 0.4 < 0.45 of all: 1 and 3. Of those two alone 1 would have 0.62.
  got = logprobs.kept_ids(
    jnp.log(PROBS)[None], np.ones(1), np.zeros(1, int), np.full(1, 0.45), np.zeros(1), 2
  )
  assert got.tolist() == [[1, 3]]


def test_sets_of_ids_as_masks():
  kept = np.array([[[2, 0, -1], [-1, -1, -1]], [[5, -1, 1], [3, 3, 3]]])
  mask = logprobs.mask_of(kept, 6)
  assert mask.shape == (2, 2, 6)
  assert np.flatnonzero(mask[0, 0]).tolist() == [0, 2]
  assert mask[0, 1].all()
  assert np.flatnonzero(mask[1, 0]).tolist() == [1, 5]
  assert np.flatnonzero(mask[1, 1]).tolist() == [3]
  # Parts of the vocabulary side by side are the whole of it.
  parts = [logprobs.mask_of(kept, 2, offset) for offset in (0, 2, 4)]
  np.testing.assert_array_equal(np.concatenate(parts, axis=-1), mask)


def _sets(shape, targets, size, seed=0):
  """Sets of up to `size` of 64 ids with their target, a few of them all ids."""
  rng = np.random.default_rng(seed)
  kept = np.full((*shape, size), -1, np.int32)
  keep = np.ones((*shape, 64), bool)
  for at in np.ndindex(*shape):
    if rng.random() < 0.2:
      continue
    others = rng.permutation(np.delete(np.arange(64), targets[at]))
    ids = rng.permutation([targets[at], *others[: rng.integers(0, size)]])
    kept[at][: len(ids)] = ids
    keep[at] = np.isin(np.arange(64), ids)
  return kept, keep


@pytest.mark.parametrize('shards', [pytest.param(1, marks=pytest.mark.slow), 4])
def test_statistics_over_kept_sets(shards):
  logits, temperature = 30 * _logits((5, 9, 64)), np.full((5, 9), 0.7)
  targets = np.random.default_rng(0).integers(0, 64, (5, 9))
  kept, keep = _sets((5, 9), targets, 6)
  # Some shard holds nothing of some set.
  assert not keep.reshape(5, 9, 4, 16).any(-1).all()
  spec = jax.sharding.PartitionSpec
  got = jax.shard_map(
    lambda x: logprobs.statistics(x, targets, temperature, 'v', kept),
    mesh=jax.sharding.Mesh(np.array(jax.devices()[:shards]), ('v',)),
    in_specs=spec(None, None, 'v'),
    out_specs=spec(),
    check_vma=False,
  )(logits)
  masked = np.where(keep, np.asarray(logits, np.float64), -np.inf)
  top = (masked / 0.7).max(axis=-1)
  expected = (
    oracle.log_prob_of(logits, targets, temperature, keep),
    oracle.entropy_of(masked, temperature),
    top + np.log(np.exp(masked / 0.7 - top[..., None]).sum(axis=-1)),
  )
  for x, y in zip(got, expected, strict=True):
    np.testing.assert_allclose(x, y, rtol=2e-6, atol=3e-5)


def test_sampler_and_trainer_round_alike_over_kept_sets():
  logits, temperature = _logits((64, 64)), np.full(64, 0.7, np.float32)
  targets = np.random.default_rng(0).integers(0, 64, 64)
  kept, keep = _sets((64,), targets, 6)
  np.testing.assert_array_equal(
    jax.jit(logprobs.statistics)(logits, targets, temperature, kept=kept)[0],
    jax.jit(logprobs.log_prob_of)(logits, targets, temperature, keep),
  )


def test_a_target_outside_its_set_is_impossible():
  got = logprobs.statistics(
    jnp.zeros((1, 4)), np.array([2]), np.ones(1), kept=np.array([[0, 1]])
  )
  assert np.isneginf(got[0]).all()


@pytest.mark.parametrize('shards', [1, 4])
def test_statistics_are_those_of_the_one_definition(shards):
  logits, temperature = 30 * _logits((3, 5, 64)), np.full((3, 5), 0.7)
  targets = jax.random.randint(jax.random.key(1), (3, 5), 0, 64)
  spec = jax.sharding.PartitionSpec
  got = jax.shard_map(
    lambda x: logprobs.statistics(x, targets, temperature, 'v'),
    mesh=jax.sharding.Mesh(np.array(jax.devices()[:shards]), ('v',)),
    in_specs=spec(None, None, 'v'),
    out_specs=spec(),
    check_vma=False,
  )(logits)
  expected = (
    logprobs.log_prob_of(logits, targets, temperature),
    oracle.entropy_of(logits, temperature),
    jax.nn.logsumexp(logprobs.scale(logits, temperature), axis=-1),
  )
  for x, y in zip(got, expected, strict=True):
    np.testing.assert_allclose(x, y, rtol=2e-6, atol=3e-5)
