"""Chunked target logits against the whole [tokens, vocabulary] array."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agentflow_jax.core import batch as batch_lib
from agentflow_jax.core import logprobs
from agentflow_jax.core import model
from agentflow_jax.core import scoring
from agentflow_jax.core import sharding
from tests.core import networks


@functools.cache
def _config(tied=True):
  return model.ModelConfig(
    vocab_size=64,
    d_model=16,
    n_layers=1,
    n_heads=2,
    n_kv_heads=2,
    head_dim=8,
    d_ff=32,
    max_positions=64,
    tie_embeddings=tied,
  )


def _sets(rng, responses):
  """Up to 5 ids for each token, itself among them."""
  kept = np.full((len(responses), 5), -1)
  for row, token in zip(kept, responses, strict=True):
    others = rng.permutation(np.delete(np.arange(64), token))
    ids = [token, *others[: rng.integers(0, 5)]]
    row[: len(ids)] = rng.permutation(ids)
  return kept


def _micro(rows=8, seed=0, truncated=False):
  rng = np.random.default_rng(seed)
  turns = [
    batch_lib.TurnRow(
      rng.integers(0, 64, 6),
      rng.integers(0, 64, n),
      1.0,
      temperature=float(rng.choice([0.7, 1.0, 1.3])),
    )
    for n in rng.integers(0, 12, rows)
  ]
  if truncated:  # But for one, whose prompt is scored, too.
    turns[1:] = [
      dataclasses.replace(t, kept=_sets(rng, t.response_ids)) for t in turns[1:]
    ]
    turns[0] = dataclasses.replace(turns[0], prompt_weight=1.0)
  batch, _ = batch_lib.pack(
    turns,
    tokens_per_row=18,
    rows_per_micro=rows,
    max_micro=1,
    layout='forest',
    max_kept=6 if truncated else 0,
  )
  return batch.micro(0)


def _keep(micro):
  """bool[B, N, V] by plain loops; None where there are no sets."""
  if micro.kept is None:
    return None
  keep = np.ones((*micro.targets.shape, 64), bool)
  for at in np.ndindex(*micro.targets.shape):
    ids = [i for i in np.asarray(micro.kept)[at] if i >= 0]
    if ids:
      keep[at] = np.isin(np.arange(64), ids)
  return keep


def _whole(config, params, micro):
  """logprobs, log normaliser and entropy by way of all logits."""
  keep = _keep(micro)
  logits = model.forward(
    config, params, micro.token_ids, micro.positions, micro.subtree_end
  )
  logits = jnp.take_along_axis(logits, micro.parents[..., None], axis=1)
  scaled = logprobs.scale(logits, micro.temperature)
  terms = jax.nn.softmax(scaled) * jax.nn.log_softmax(scaled)
  if keep is not None:
    scaled = jnp.where(keep, scaled, -1e30)
    terms = jax.nn.softmax(scaled) * jax.nn.log_softmax(scaled)
    terms = jnp.where(keep, terms, 0.0)
  return (
    logprobs.log_prob_of(logits, micro.targets, micro.temperature, keep),
    jax.nn.logsumexp(scaled, axis=-1),
    -jnp.sum(terms, axis=-1),
  )


def _value_and_gradient(score, params, micro):
  """Scores, and the gradient of a random sum of them."""
  is_target = micro.responses > 0
  a, b = np.random.default_rng(1).normal(size=(2, *is_target.shape))

  def loss(params):
    lp, log_normalizer, entropy = (
      jnp.where(is_target, x, 0.0) for x in score(params, micro)
    )
    return jnp.sum(a * lp + b * log_normalizer), (lp, log_normalizer, entropy)

  grads, values = jax.jit(jax.grad(loss, has_aux=True))(params)
  return values, grads


@pytest.mark.parametrize(
  'axes, chunk',
  [
    ((2, 2, 2), 4),
    *(
      pytest.param(*x, marks=pytest.mark.slow)
      for x in (((1, 1, 1), None), ((1, 1, 1), 7), ((1, 1, 2), 1))
    ),
  ],
)
@pytest.mark.parametrize('tied', [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize('truncated', [False, True])
def test_scores_and_gradients_equal_those_of_all_logits(axes, truncated, tied, chunk):
  config, micro = _config(tied), _micro(truncated=truncated)
  mesh = sharding.make_mesh(*axes, jax.devices()[: int(np.prod(axes))])
  params = networks.params(config)

  def score(params, micro):
    s = scoring.score_micro(config, params, micro, sharding.make_constrain(mesh), chunk)
    return s.logprobs, s.log_normalizer, s.entropy

  expected, expected_grads = _value_and_gradient(
    functools.partial(_whole, config), params, micro
  )
  placed = jax.device_put(params, sharding.param_shardings(config, mesh))
  got, grads = _value_and_gradient(score, placed, micro)
  for x, y in zip(got, expected, strict=True):
    assert np.abs(y).max() > 0.1
    np.testing.assert_allclose(x, y, atol=3e-6)
  for x, y in zip(jax.tree.leaves(grads), jax.tree.leaves(expected_grads), strict=True):
    assert np.linalg.norm(x - y) <= 2e-6 * np.linalg.norm(y)


def test_the_gradient_of_logits_stays_in_the_kept_set():
  # An untied output kernel's row is one id's: what no set holds gets nothing.
  config, micro = _config(False), _micro(truncated=True)
  whole = micro.replace(kept=np.full_like(micro.kept, -1))
  sets = micro.replace(
    kept=np.where(
      np.asarray(micro.kept[..., :1]) < 0, [7, 8, 9, -1, -1, -1], micro.kept
    ),
    targets=np.where(np.asarray(micro.kept[..., 0]) < 0, 7, micro.targets),
  )
  params = networks.params(config)

  def touched(micro):
    grads = jax.grad(
      lambda p: jnp.sum(
        jnp.where(
          micro.responses > 0,
          scoring.score_micro(config, p, micro, model.Constrain()).logprobs,
          0.0,
        )
      )
    )(params)
    return set(np.flatnonzero(np.abs(grads['head']).max(axis=0)))

  kept = np.asarray(sets.kept)[np.asarray(micro.responses) > 0]
  # Who is alone in its set is certain, whatever the logits.
  kept = kept[(kept >= 0).sum(axis=-1) > 1]
  assert touched(whole) == set(range(64))
  assert touched(sets) == set(kept.ravel()) - {-1} < set(range(64))


def test_a_chunk_without_a_target_is_left_out():
  config, micro = _config(), _micro()
  first = micro.responses * (np.arange(micro.responses.shape[1]) < 9)
  params = networks.params(config)
  scores = scoring.score_micro(
    config, params, micro.replace(responses=first), model.Constrain(), 9
  )
  assert np.asarray(scores.logprobs[:, :9]).any()
  assert not np.asarray(scores.logprobs[:, 9:]).any()


def test_chunks_are_of_about_one_size():
  assert scoring.chunk_of(1, 5760, 49152) == 640  # Of 682 at most: 9 chunks.
  assert scoring.chunk_of(2, 5761, 49152) == 339  # Of 341: 17 chunks, 2 over.
  assert scoring.chunk_of(4, 128, 512) == 128
  assert scoring.chunk_of(4, 128, 512, 50) == 50
