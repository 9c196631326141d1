"""Draws and scores against the exact distribution in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from agentflow_jax.core import hlo
from agentflow_jax.inference import sampling

_V = 12
_LOGITS = np.random.default_rng(0).normal(size=_V).astype(np.float32) * 1.5

_SPECS = {
  'plain': dict(),
  'cold': dict(temperature=0.5),
  'hot': dict(temperature=2.0),
  'top_k': dict(top_k=4),
  'top_p': dict(top_p=0.7, temperature=1.3),
  'min_p': dict(min_p=0.2),
  'all': dict(temperature=0.8, top_k=6, top_p=0.9, min_p=0.05),
  'top_1': dict(top_k=1),
}


def _exact(logits, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0):
  """The distribution over V in float64, by plain loops."""
  x = logits.astype(np.float64) / (temperature or 1.0)
  probs = np.exp(x - x.max())
  probs /= probs.sum()
  kept, mass = [], 0.0
  for rank, token in enumerate(sorted(range(len(x)), key=lambda i: -x[i])):
    in_k = top_k == 0 or rank < top_k
    in_p = top_p == 1.0 or mass < top_p
    if rank == 0 or (in_k and in_p and probs[token] >= min_p * probs.max()):
      kept.append(token)
    mass += probs[token]
  out = np.zeros_like(probs)
  out[kept] = probs[kept] / probs[kept].sum()
  return out


def _rows(n, seed=0, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0):
  words = np.random.default_rng(seed).integers(2**32, size=(n, 2))
  return sampling.RowSampling(
    temperature=np.full((n,), temperature, np.float32),
    top_k=np.full((n,), top_k, np.int32),
    top_p=np.full((n,), top_p, np.float32),
    min_p=np.full((n,), min_p, np.float32),
    key_words=words.astype(np.uint32),
  )


def _sampled(rows, index=0, truncates=True, logits=_LOGITS, max_kept=0):
  n = rows.temperature.shape[0]
  return jax.device_get(
    jax.jit(sampling.sample, static_argnames=('truncates', 'max_kept'))(
      jnp.broadcast_to(logits, (n, logits.shape[-1])),
      rows,
      jnp.full(n, index, jnp.int32),
      truncates=truncates,
      max_kept=max_kept,
    )
  )


def _sample(rows, **kwargs):
  return _sampled(rows, **kwargs)[:2]


def _p_value(tokens, exact):
  """Chi-square of counts against an exact distribution."""
  counts = np.bincount(tokens, minlength=len(exact))
  assert not counts[exact == 0].any(), 'a token outside the kept set'
  support = exact > 0
  if support.sum() == 1:
    return 1.0
  expected = exact[support] * len(tokens)
  return stats.chisquare(counts[support], expected).pvalue


@pytest.mark.parametrize('name', _SPECS)
def test_draws_follow_the_exact_distribution(name):
  spec = _SPECS[name]
  tokens, _ = _sample(_rows(20000, **spec))
  assert _p_value(tokens, _exact(_LOGITS, **spec)) > 1e-3


@pytest.mark.parametrize('size', [128, 300, 1024])
def test_draws_from_a_vocabulary_of_many_blocks_are_exact(size):
  rng = np.random.default_rng(size)
  logits = (rng.normal(size=size) * 2).astype(np.float32)
  logits[rng.choice(size, size // 3, replace=False)] = -np.inf
  tokens, logprobs = _sample(_rows(50000), truncates=False, logits=logits)
  exact = _exact(logits)
  np.testing.assert_allclose(logprobs, np.log(exact[tokens]), atol=1e-5)
  # Tokens that are rarely seen are counted together.
  common = exact * len(tokens) > 20
  bins = np.where(common, np.arange(size), size)
  bins[exact == 0] = size + 1
  pooled = np.bincount(bins, exact, minlength=size + 2)
  assert common.sum() > 30
  assert _p_value(bins[tokens], pooled) > 1e-3


@pytest.mark.parametrize('uniform', [0.0, 0.3, 0.5, 1 - 2**-24])
def test_what_has_no_weight_is_never_drawn(uniform):
  rng = np.random.default_rng(1)
  weights = rng.uniform(size=(400, 257)).astype(np.float32)
  weights[rng.uniform(size=weights.shape) < 0.5] = 0
  weights[:, -3:] = 0
  weights[:50, 1:] = 0
  weights[:50, 0] = 1e-30
  got = jax.jit(sampling._first_beyond)(
    weights, np.full(len(weights), uniform, np.float32)
  )
  assert (weights[np.arange(len(weights)), got] > 0).all()
  sums = np.cumsum(weights.astype(np.float64), axis=1)
  share = sums / sums[:, -1:]
  rows = np.arange(len(weights))
  assert (share[rows, got] > uniform - 1e-5).all()
  before = np.where(got > 0, share[rows, np.maximum(got - 1, 0)], 0)
  assert (before < uniform + 1e-5).all()


def test_sums_that_are_rounded_apart_draw_nothing_without_weight(monkeypatch):
  sums = np.array([[1, 1 + 2**-23, 2, 2 + 2**-22]], np.float32)
  monkeypatch.setattr(jnp, 'cumsum', lambda *_, **__: jnp.asarray(sums))
  weights = np.array([[1, 0, 1, 0]], np.float32)
  for uniform, expected in ((0.5, 2), (1 - 2**-24, 2), (0.0, 0)):
    got = sampling._first_beyond(weights, np.array([uniform], np.float32))
    assert got.tolist() == [expected]


def test_the_chi_square_notices_a_wrong_temperature():
  tokens, _ = _sample(_rows(20000, temperature=1.1))
  assert _p_value(tokens, _exact(_LOGITS)) < 1e-6


@pytest.mark.parametrize('name', _SPECS)
def test_logprobs_are_of_the_distribution_drawn_from(name):
  spec = _SPECS[name]
  tokens, logprobs = _sample(_rows(500, **spec))
  np.testing.assert_allclose(
    logprobs, np.log(_exact(_LOGITS, **spec)[tokens]), atol=1e-5
  )


def test_greedy_takes_the_argmax_and_scores_it_at_temperature_1():
  tokens, logprobs = _sample(_rows(8, temperature=0.0), truncates=False)
  best = int(np.argmax(_LOGITS))
  assert tokens.tolist() == [best] * 8
  np.testing.assert_allclose(logprobs, np.log(_exact(_LOGITS)[best]), atol=1e-6)


def test_greedy_takes_the_lowest_id_of_a_tie():
  logits = np.array([0.0, 3.0, 1.0, 3.0], np.float32)
  tokens, _ = _sample(_rows(4, temperature=0.0), truncates=False, logits=logits)
  assert tokens.tolist() == [1] * 4


def test_successive_tokens_of_one_key_are_independent():
  n = 20000
  rows = _rows(n)
  first, _ = _sample(rows, index=0)
  second, _ = _sample(rows, index=1)
  exact = _exact(_LOGITS)
  joint = np.outer(exact, exact).ravel()
  assert _p_value(first * _V + second, joint) > 1e-3


def test_both_key_words_matter_and_equal_ones_draw_alike():
  flat = np.zeros((64,), np.float32)
  drawn = []
  for words in ((5, 9), (5, 10), (6, 9), (9, 5), (5, 9)):
    rows = _rows(16).replace(key_words=np.tile(np.array(words, np.uint32), (16, 1)))
    tokens = [_sample(rows, index=i, logits=flat)[0] for i in range(6)]
    assert all(len(set(row.tolist())) == 1 for row in tokens)
    drawn.append(tuple(int(row[0]) for row in tokens))
  assert drawn[0] == drawn[4]
  assert len(set(drawn)) == 4


@pytest.mark.parametrize('name', _SPECS)
def test_the_set_that_is_returned_is_what_was_drawn_from(name):
  spec = _SPECS[name]
  tokens, logprobs, kept = _sampled(_rows(20000, **spec), max_kept=5)
  exact = _exact(_LOGITS, **spec)
  ids = [i for i in np.argsort(-exact, kind='stable') if exact[i]]
  if name in ('plain', 'cold', 'hot'):  # Nothing is truncated, nor cut.
    assert (kept == -1).all()
  else:
    ids = ids[:5]
    assert (kept == ids + [-1] * (5 - len(ids))).all()
    outside = np.setdiff1d(np.arange(_V), ids)
    exact[outside] = 0
    exact /= exact.sum()
  assert _p_value(tokens, exact) > 1e-3
  np.testing.assert_allclose(logprobs, np.log(exact[tokens]), atol=1e-5)


def test_nothing_is_returned_where_nothing_is_recorded_or_truncates():
  assert _sampled(_rows(4, top_k=2))[2] is None
  assert _sampled(_rows(4), truncates=False, max_kept=5)[2] is None


def test_greedy_takes_the_argmax_of_its_set():
  tokens, logprobs, kept = _sampled(_rows(4, temperature=0.0, top_k=3), max_kept=5)
  best = np.argsort(-_LOGITS)[:3]
  assert tokens.tolist() == [best[0]] * 4
  assert kept[0].tolist() == [*best, -1, -1]
  exact = _exact(_LOGITS, top_k=3)
  np.testing.assert_allclose(logprobs, np.log(exact[best[0]]), atol=1e-6)


@pytest.mark.parametrize('max_kept', [0, 12])
def test_a_row_that_truncates_nothing_draws_alike_in_both_programs(max_kept):
  rows = _rows(500, temperature=0.9)
  plain, plain_logprobs = _sample(rows, truncates=False)
  tokens, logprobs = _sample(rows, truncates=True, max_kept=max_kept)
  assert (plain == tokens).all()
  np.testing.assert_allclose(plain_logprobs, logprobs, atol=1e-6)


def test_rows_of_different_specs_do_not_mix():
  names = list(_SPECS)
  n = 2000
  specs = [_SPECS[name] for name in names]
  parts = [_rows(n, seed=i, **spec) for i, spec in enumerate(specs)]
  rows = jax.tree.map(lambda *x: np.concatenate(x), *parts)
  tokens, logprobs = _sample(rows)
  for i, part in enumerate(parts):
    alone, alone_logprobs = _sample(part)
    here = slice(i * n, (i + 1) * n)
    assert (tokens[here] == alone).all(), names[i]
    np.testing.assert_allclose(logprobs[here], alone_logprobs, atol=1e-6)


@pytest.mark.parametrize('size', [7, 128, 640])
def test_the_first_of_the_largest_is_found(size):
  rng = np.random.default_rng(size)
  x = rng.integers(0, 20, (40, size)).astype(np.float32)  # Many are equal.
  x[3], x[4, size // 2 :], x[5, -1] = -np.inf, -np.inf, 99
  got = jax.jit(sampling._argmax)(x)
  assert got.dtype == np.int32
  assert got.tolist() == x.argmax(axis=1).tolist()


def test_devices_that_share_a_vocabulary_draw_alike_and_send_no_logits():
  n, size = 6, 128 * 24
  logits = np.random.default_rng(0).normal(size=(n, size)).astype(np.float32)
  rows = _rows(n).replace(temperature=np.array([0, 1] * 3, np.float32))
  mesh = jax.sharding.Mesh(np.array(jax.devices()[:8]), ('tensor',))
  shared = jax.device_put(
    logits, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, 'tensor'))
  )
  index = np.arange(n, dtype=np.int32)
  sample = jax.jit(sampling.sample, static_argnames='truncates')
  compiled = sample.lower(shared, rows, index, truncates=False).compile()
  tokens, logprobs, _ = compiled(shared, rows, index)
  alone, alone_logprobs, _ = sample(logits, rows, index, truncates=False)
  assert tokens.tolist() == alone.tolist()
  np.testing.assert_allclose(logprobs, alone_logprobs, atol=1e-6)
  sent = hlo.collectives(compiled.as_text())
  assert sent and sum(kind.bytes for kind in sent.values()) < logits.nbytes / 8
