"""Chunked target logits against the whole [tokens, vocabulary] array."""

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


@functools.cache
def _config(tied=True):
  return model.ModelConfig(
      vocab_size=64, d_model=16, n_layers=1, n_heads=2, n_kv_heads=2,
      head_dim=8, d_ff=32, max_positions=64, tie_embeddings=tied,
  )


def _micro(rows=8, seed=0):
  rng = np.random.default_rng(seed)
  turns = [
      batch_lib.TurnRow(
          rng.integers(0, 64, 6), rng.integers(0, 64, n), 1.0,
          temperature=float(rng.choice([0.7, 1.0, 1.3])),
      )
      for n in rng.integers(0, 12, rows)
  ]
  batch, _ = batch_lib.pack(
      turns, tokens_per_row=18, rows_per_micro=rows, max_micro=1,
      layout='forest',
  )
  return batch.micro(0)


def _whole(config, params, micro):
  """logprobs, log normaliser and entropy by way of all logits."""
  logits = model.forward(
      config, params, micro.token_ids, micro.positions, micro.subtree_end
  )
  logits = jnp.take_along_axis(logits, micro.parents[..., None], axis=1)
  scaled = logprobs.scale(logits, micro.temperature)
  return (
      logprobs.log_prob_of(logits, micro.targets, micro.temperature),
      jax.nn.logsumexp(scaled, axis=-1),
      -jnp.sum(jax.nn.softmax(scaled) * jax.nn.log_softmax(scaled), axis=-1),
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
        ((1, 1, 1), None), ((2, 2, 2), 4),
        *(
            pytest.param(*x, marks=pytest.mark.slow)
            for x in (((1, 1, 1), 7), ((1, 1, 2), 1))
        ),
    ],
)
@pytest.mark.parametrize(
    'tied', [True, pytest.param(False, marks=pytest.mark.slow)]
)
def test_scores_and_gradients_equal_those_of_all_logits(axes, tied, chunk):
  config, micro = _config(tied), _micro()
  mesh = sharding.make_mesh(*axes, jax.devices()[: int(np.prod(axes))])
  params = model.init_params(config, jax.random.key(0))

  def score(params, micro):
    s = scoring.score_micro(
        config, params, micro, sharding.make_constrain(mesh), chunk
    )
    return s.logprobs, s.log_normalizer, s.entropy

  expected, expected_grads = _value_and_gradient(
      functools.partial(_whole, config), params, micro
  )
  placed = jax.device_put(params, sharding.param_shardings(config, mesh))
  got, grads = _value_and_gradient(score, placed, micro)
  for x, y in zip(got, expected, strict=True):
    assert np.abs(y).max() > 0.1
    np.testing.assert_allclose(x, y, atol=3e-6)
  for x, y in zip(
      jax.tree.leaves(grads), jax.tree.leaves(expected_grads), strict=True
  ):
    assert np.linalg.norm(x - y) <= 2e-6 * np.linalg.norm(y)


def test_a_chunk_without_a_target_is_left_out():
  config, micro = _config(), _micro()
  first = micro.responses * (np.arange(micro.responses.shape[1]) < 9)
  params = model.init_params(config, jax.random.key(0))
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
