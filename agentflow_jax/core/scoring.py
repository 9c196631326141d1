"""Scores packed rows with a model: the trainer's only forward pass.

Logits are formed for targets alone, and only so many at a time that no array of
[tokens, vocabulary] exists where that would be large.
"""

import functools

import jax
import jax.numpy as jnp

from agentflow_jax.core import batch as batch_lib
from agentflow_jax.core import logprobs
from agentflow_jax.core import losses
from agentflow_jax.core import model

Array = jax.Array

# Logits that may exist at one time: 256 MiB in float32.
_MAX_LOGITS = 1 << 26


def score_micro(
    config: model.ModelConfig,
    params: model.Params,
    micro: batch_lib.TurnBatch,
    constrain: model.Constrain,
    logits_chunk: int | None = None,
) -> losses.Scores:
  """Scores the targets of one micro-batch.

  Args:
    config: the network.
    params: its parameters; gradients flow to them through the logprobs.
    micro: fields [B, T] and [B, N].
    constrain: pins activations to the mesh.
    logits_chunk: targets of a row whose logits exist at one time; divides N.
      None for as many as 256 MiB hold. Where that is not all, logits are formed
      again in the backward pass, and chunks without a target are left out.

  Returns:
    Scores [B, N]; where there is no target they are finite and mean nothing.

  Raises:
    ValueError: logits_chunk does not divide N.
  """
  hidden = model.hidden_states(
      config, params, micro.token_ids, micro.positions, micro.subtree_end,
      constrain,
  )
  hidden = jnp.take_along_axis(hidden, micro.parents[..., None], axis=1)
  hidden = constrain(hidden, ('batch', 'length', None))
  kernel = model.output_kernel(config, params)
  rows, length = micro.targets.shape
  chunk = chunk_of(rows, length, config.vocab_size, logits_chunk)
  if chunk == length:
    return _score(
        config, constrain, kernel, hidden, micro.targets, micro.temperature
    )
  return _score_chunks(
      config, constrain, chunk, kernel, hidden, micro.targets,
      micro.temperature, micro.responses > 0,
  )


def chunk_of(
    rows: int, length: int, vocab_size: int, logits_chunk: int | None = None
) -> int:
  """Returns how many targets of each of B rows have logits at one time.

  Args:
    rows: B.
    length: N.
    vocab_size: V.
    logits_chunk: what was asked for; None for as many as 256 MiB hold.

  Raises:
    ValueError: it does not divide N.
  """
  if logits_chunk is None:
    most = max(1, min(length, _MAX_LOGITS // (rows * vocab_size)))
    return next(n for n in range(most, 0, -1) if length % n == 0)
  if logits_chunk < 1 or length % logits_chunk:
    raise ValueError(f'logits_chunk {logits_chunk} must divide N = {length}')
  return logits_chunk


def _score(
    config, constrain, kernel, hidden, targets, temperature
) -> losses.Scores:
  """Scores targets[B, n] by the states hidden[B, n, D] of their parents."""
  logits = model.logits_of(config, kernel, hidden)
  logits = constrain(logits, ('batch', 'length', 'vocab'))
  return losses.Scores(
      logprobs=logprobs.log_prob_of(logits, targets, temperature),
      entropy=logprobs.entropy_of(jax.lax.stop_gradient(logits), temperature),
      log_normalizer=jax.nn.logsumexp(
          logprobs.scale(logits, temperature), axis=-1
      ),
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _score_chunks(
    config, constrain, chunk, kernel, hidden, targets, temperature, is_target
) -> losses.Scores:
  """Like _score, `chunk` targets of every row at a time.

  is_target is bool[B, N]; a chunk without any is left out and scores 0.
  """
  which, count = _chunks_in_use(is_target, chunk)

  def body(i, scores):
    start = which[i] * chunk
    piece = _score(
        config, constrain, kernel,
        *(_slice(x, start, chunk) for x in (hidden, targets, temperature)),
    )
    return jax.tree.map(functools.partial(_write, start=start), scores, piece)

  zeros = jnp.zeros(targets.shape, jnp.float32)
  return jax.lax.fori_loop(0, count, body, losses.Scores(zeros, zeros, zeros))


def _forward(config, constrain, chunk, *arrays):
  return _score_chunks(config, constrain, chunk, *arrays), arrays


def _backward(config, constrain, chunk, arrays, cotangents):
  """The gradients of the kernel, summed in float32, and of the states."""
  kernel, hidden, targets, temperature, is_target = arrays
  which, count = _chunks_in_use(is_target, chunk)

  def body(i, carry):
    d_kernel, d_hidden = carry
    start = which[i] * chunk
    inputs = [_slice(x, start, chunk) for x in (targets, temperature)]
    _, pull = jax.vjp(
        lambda k, h: _score(config, constrain, k, h, *inputs),
        kernel, _slice(hidden, start, chunk),
    )
    dk, dh = pull(
        jax.tree.map(lambda x: _slice(x, start, chunk), cotangents)
    )
    return d_kernel + dk.astype(jnp.float32), _write(d_hidden, dh, start)

  d_kernel, d_hidden = jax.lax.fori_loop(
      0, count, body,
      (jnp.zeros(kernel.shape, jnp.float32), jnp.zeros_like(hidden)),
  )
  return d_kernel.astype(kernel.dtype), d_hidden, None, None, None


_score_chunks.defvjp(_forward, _backward)


def _chunks_in_use(is_target: Array, chunk: int) -> tuple[Array, Array]:
  """Returns the numbers of the chunks with a target, first, and how many."""
  used = is_target.reshape(is_target.shape[0], -1, chunk).any(axis=(0, 2))
  return jnp.argsort(~used, stable=True), jnp.sum(used, dtype=jnp.int32)


def _slice(x: Array, start: Array, size: int) -> Array:
  return jax.lax.dynamic_slice_in_dim(x, start, size, axis=1)


def _write(whole: Array, piece: Array, start: Array) -> Array:
  return jax.lax.dynamic_update_slice_in_dim(whole, piece, start, axis=1)
