"""Scores packed rows with a model: the trainer's only forward pass.

Logits are formed for targets alone, and only so many at a time that no array of
[tokens, vocabulary] exists where that would be large.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import sharding as jax_sharding

from agentflow_jax.core import batch as batch_lib
from agentflow_jax.core import logprobs
from agentflow_jax.core import losses
from agentflow_jax.core import model
from agentflow_jax.core import primitives

Array = jax.Array
_Spec = jax_sharding.PartitionSpec

# Logits that a device may hold at one time: 128 MiB in float32.
_MAX_LOGITS = 1 << 25


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
    logits_chunk: targets of a row whose logits exist at one time; None for as
      many as 128 MiB a device hold. Chunks without a target are left out, and
      logits are formed again in the backward pass.

  Returns:
    Scores [B, N]; where there is no target they are finite and mean nothing.

  Raises:
    ValueError: logits_chunk is less than 1.
  """
  as_jax = jnp.asarray
  hidden = model.hidden_states(
    config,
    params,
    as_jax(micro.token_ids),
    as_jax(micro.positions),
    as_jax(micro.subtree_end),
    constrain,
  )
  hidden = constrain.pick(hidden, as_jax(micro.parents))
  kernel = model.output_kernel(config, params)
  if not config.tie_embeddings:
    kernel = kernel.T
  mesh = constrain.mesh
  rows, length = micro.targets.shape
  vocab_size = kernel.shape[0]
  spread = None
  if mesh is not None and mesh.size > 1:
    spread = (mesh, constrain.rows)
    rows //= math.prod(mesh.shape[axis] for axis in constrain.rows)
    vocab_size //= mesh.shape['tensor']
  chunk = chunk_of(rows, length, vocab_size, logits_chunk)
  arrays = (hidden, micro.targets, micro.temperature, micro.responses > 0, micro.kept)
  short = -length % chunk
  if short:
    arrays = jax.tree.map(
      lambda x: jnp.pad(x, [(0, 0), (0, short)] + [(0, 0)] * (x.ndim - 2)), arrays
    )
  scores = _score(config, spread, chunk, kernel, *arrays)
  return jax.tree.map(lambda x: x[:, :length], scores)


def chunk_of(
  rows: int, length: int, vocab_size: int, logits_chunk: int | None = None
) -> int:
  """Returns how many targets of each of a device's B rows have logits at once.

  Args:
    rows: B.
    length: N; the last chunk is padded.
    vocab_size: V.
    logits_chunk: number that the caller asks for; None for as many as 128 MiB hold, in
      chunks of about one size.

  Raises:
    ValueError: it is less than 1.
  """
  if logits_chunk is None:
    most = max(1, min(length, _MAX_LOGITS // (rows * vocab_size)))
    return -(-length // -(-length // most))
  if logits_chunk < 1:
    raise ValueError(f'logits_chunk must be at least 1: {logits_chunk}')
  return min(logits_chunk, length)


def _mapped(f, spread, takes, gives):
  """Returns f of every device's part; f itself where there is one device.

  Args:
    f: the function.
    spread: the mesh and its axes that rows are split over, or None.
    takes: PartitionSpecs of the arguments of f; 'rows' stands for those axes.
    gives: PartitionSpecs of its results, in the same notation.
  """
  if spread is None:
    return f
  mesh, rows = spread
  of_rows = lambda x: _Spec(rows) if x == 'rows' else x
  return jax.shard_map(
    f,
    mesh=mesh,
    in_specs=tuple(map(of_rows, takes)),
    out_specs=tuple(map(of_rows, gives)) if isinstance(gives, list) else of_rows(gives),
    axis_names={*rows, 'tensor'},
    check_vma=False,
  )


# Of the kernel, the states, and four arrays of targets.
_TAKES = [_Spec('tensor'), *['rows'] * 5]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _score(
  config, spread, chunk, kernel, hidden, targets, temperature, is_target, kept
) -> losses.Scores:
  """Scores targets[B, N] by the states hidden[B, N, D] of their parents.

  The kernel is [V, D]; V is split over 'tensor'. Every device goes over its own
  rows and its own part of V; the kernel's other axis is gathered once before.
  kept[B, N, S] are sets as logprobs.mask_of takes them, or None.
  """

  def local(kernel, hidden, targets, temperature, is_target, kept):
    which, count = _chunks_in_use(is_target, chunk)

    def body(i, scores):
      start = which[i] * chunk
      logits = _logits(config, kernel, _slice(hidden, start, chunk))
      piece = losses.Scores(
        *logprobs.statistics(
          logits,
          _slice(targets, start, chunk),
          _slice(temperature, start, chunk),
          spread and 'tensor',
          None if kept is None else _slice(kept, start, chunk),
        )
      )
      return jax.tree.map(functools.partial(_write, start=start), scores, piece)

    zeros = jnp.zeros(targets.shape, jnp.float32)
    return jax.lax.fori_loop(0, count, body, losses.Scores(zeros, zeros, zeros))

  return _mapped(local, spread, _TAKES, 'rows')(
    kernel, hidden, targets, temperature, is_target, kept
  )


def _forward(config, spread, chunk, *arrays):
  scores: Any = _score(config, spread, chunk, *arrays)
  return scores, (arrays, scores.log_normalizer)


def _backward(config, spread, chunk, saved, cotangents):
  """The gradients of the kernel and of the states, each added up in float32.

  d logits = (d logprob (1[target] - p) + d log_normalizer p) / temperature,
  where p is 0 outside the kept set.
  """
  arrays, log_normalizer = saved

  def local(
    kernel,
    hidden,
    targets,
    temperature,
    is_target,
    kept,
    log_normalizer,
    d_logprob,
    d_normalizer,
  ):
    which, count = _chunks_in_use(is_target, chunk)
    ids = jnp.arange(kernel.shape[0])
    first = logprobs.first_id(spread and 'tensor', kernel.shape[0])
    if spread is not None:
      ids += first
    product = functools.partial(primitives.float32_product, config.dtype)

    def body(i, carry):
      d_kernel, d_hidden = carry
      start = which[i] * chunk
      piece = functools.partial(_slice, start=start, size=chunk)
      states = piece(hidden)
      scaled = logprobs.scale(_logits(config, kernel, states), piece(temperature))
      probs = jnp.exp(scaled - piece(log_normalizer)[..., None])
      if kept is not None:
        keep = logprobs.mask_of(piece(kept), kernel.shape[0], first)
        probs = jnp.where(keep, probs, 0.0)
      d_chosen = jnp.where(
        ids == piece(targets)[..., None], piece(d_logprob)[..., None], 0.0
      )
      d_all = (piece(d_normalizer) - piece(d_logprob))[..., None]
      d_logits = logprobs.scale(d_chosen + d_all * probs, piece(temperature))
      d_logits = d_logits.astype(config.dtype)
      # States first: in this order nothing of V's size is transposed.
      d_kernel += product('bnd,bnv->dv', states, d_logits)
      d_states = product('bnv,vd->bnd', d_logits, kernel.astype(config.dtype))
      return d_kernel, _write(d_hidden, d_states, start)

    d_kernel, d_hidden = jax.lax.fori_loop(
      0,
      count,
      body,
      (
        jnp.zeros(kernel.shape[::-1], jnp.float32),
        jnp.zeros(hidden.shape, jnp.float32),
      ),
    )
    if spread is not None:
      # Once a micro-batch, not once a chunk.
      if 'data' in spread[1]:
        d_kernel = jax.lax.psum(d_kernel, 'data')
      d_kernel = jax.lax.psum_scatter(d_kernel, 'fsdp', scatter_dimension=0, tiled=True)
      d_hidden = jax.lax.psum(d_hidden, 'tensor')
    return d_kernel.T.astype(kernel.dtype), d_hidden.astype(hidden.dtype)

  mapped: Any = _mapped(
    local, spread, [*_TAKES, *['rows'] * 3], [_Spec('tensor', 'fsdp'), 'rows']
  )
  d_kernel, d_hidden = mapped(
    *arrays, log_normalizer, cotangents.logprobs, cotangents.log_normalizer
  )
  return d_kernel, d_hidden, None, None, None, None


_score.defvjp(_forward, _backward)


def _logits(config: model.ModelConfig, kernel: Array, hidden: Array) -> Array:
  """Returns float32[B, n, V]."""
  return primitives.float32_product(
    config.dtype, 'bnd,vd->bnv', hidden, kernel.astype(config.dtype)
  )


def _chunks_in_use(is_target: Array, chunk: int) -> tuple[Array, Array]:
  """Returns the numbers of the chunks with a target, first, and how many."""
  used = is_target.reshape(is_target.shape[0], -1, chunk).any(axis=(0, 2))
  return jnp.argsort(~used, stable=True), jnp.sum(used, dtype=jnp.int32)


def _slice(x: Array, start: Array, size: int) -> Array:
  return jax.lax.dynamic_slice_in_dim(x, start, size, axis=1)


def _write(whole: Array, piece: Array, start: Array) -> Array:
  return jax.lax.dynamic_update_slice_in_dim(whole, piece, start, axis=1)
