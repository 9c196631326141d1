"""Attention over forests, block by block, without what no token sees.

Token j is seen by token i exactly when j <= i < subtree_end[j]. A block of keys
whose subtrees all end before a block of queries is skipped, so side by side
sequences and branches cost what they see of each other: nothing. Scores exist
for one pair of blocks at a time (FlashAttention-2, arXiv 2307.08691): the
softmax is summed up as blocks pass, and the backward pass makes the scores
again from its normaliser.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import sharding as jax_sharding

Array = jax.Array

# Finite, so that a padding token, which may attend to nothing, stays finite.
MASKED = -1e30
_BLOCK = 128
_MIN_BLOCK = 8
# Below this the dense product is faster than a loop over blocks.
_MIN_BLOCKED = 1024


def float32_product(dtype: str, equation: str, a: Array, b: Array) -> Array:
  """Returns einsum(a, b) of activations, summed and returned in float32.

  Args:
    dtype: of the activations; in 'float32' at the highest precision.
    equation: of the einsum.
    a, b: the activations.
  """

  def product(a, b):
    full = dtype == 'float32'
    return jnp.einsum(
        equation, a, b,
        precision=jax.lax.Precision.HIGHEST if full else None,
        preferred_element_type=jnp.float32,
    )

  if dtype == 'float32':
    return product(a, b)
  # XLA's CPU has no such product of bfloat16 operands; in float32 it is exact.
  return jax.lax.platform_dependent(
      a, b,
      cpu=lambda a, b: product(a.astype(jnp.float32), b.astype(jnp.float32)),
      default=product,
  )


def block_of(length: int, choice: str = 'auto') -> int | None:
  """Returns the tokens of a block for rows of T tokens; None for dense rows.

  Args:
    length: T.
    choice: see ModelConfig.attention.
  """
  if choice == 'auto':
    choice = 'blocks' if length >= _MIN_BLOCKED else 'dense'
  if choice == 'dense':
    return None
  # Rows shorter than eight blocks have smaller ones, so that some are skipped.
  eighth = 1 << max(length // 8, 1).bit_length() - 1
  return max(_MIN_BLOCK, min(_BLOCK, eighth))


def visible(subtree_end: Array) -> Array:
  """Returns bool[B, T, T]: whether token j (last axis) is seen by token i."""
  place = jnp.arange(subtree_end.shape[1])
  causal = place <= place[:, None]
  return causal & (place[:, None] < subtree_end[:, None, :])


def attend_blocks(
    q: Array,
    keys: Array,
    values: Array,
    subtree_end: Array,
    *,
    block: int,
    dtype: str,
    mesh: jax_sharding.Mesh | None = None,
) -> Array:
  """softmax(q k / sqrt(E)) v over what each token sees.

  Args:
    q: [B, K, H/K, T, E].
    keys: [B, K, E, T].
    values: [B, K, T, E].
    subtree_end: int32[B, T]; 0 is padding, which nothing sees.
    block: tokens of a block; rows are padded to whole ones.
    dtype: of the activations, see float32_product.
    mesh: over which rows (data, fsdp) and heads (tensor) are spread; None where
      everything is on one device.

  Returns:
    float32[B, K, H/K, T, E]; 0 for a token that sees nothing.
  """
  length = q.shape[3]
  short = -length % block

  def padded(x, axis):
    return jnp.pad(x, [(0, short if a == axis else 0) for a in range(x.ndim)])

  arrays = (
      padded(q, 3), padded(keys, 3), padded(values, 2), padded(subtree_end, 1)
  )

  def one_row(arrays):
    return _attend_row(block, dtype, *arrays)

  def local(*arrays):
    return jax.lax.map(one_row, arrays)

  if mesh is not None and mesh.size > 1:
    spec = jax_sharding.PartitionSpec
    rows, heads = ('data', 'fsdp'), 'tensor'
    local = jax.shard_map(
        local, mesh=mesh,
        in_specs=(*[spec(rows, heads)] * 3, spec(rows)),
        out_specs=spec(rows, heads), check_vma=False,
    )
  return local(*arrays)[:, :, :, :length]


def _pairs(subtree_end: Array, block: int) -> tuple[Array, Array]:
  """Returns, for each block of queries, the key blocks it needs, and how many.

  Returns:
    int32[n, n], of which the first so many of each row mean something, and
    int32[n], how many.
  """
  n = subtree_end.shape[0] // block
  number = jnp.arange(n, dtype=jnp.int32)
  reach = subtree_end.reshape(n, block).max(axis=1)
  needed = (number <= number[:, None]) & (reach > number[:, None] * block)
  which = jnp.argsort(~needed, axis=1, stable=True).astype(jnp.int32)
  return which, needed.sum(axis=1, dtype=jnp.int32)


def _take(x: Array, index: Array, block: int, axis: int) -> Array:
  return jax.lax.dynamic_slice_in_dim(x, index * block, block, axis)


def _put(whole: Array, piece: Array, index: Array, axis: int) -> Array:
  start = index * piece.shape[axis]
  return jax.lax.dynamic_update_slice_in_dim(whole, piece, start, axis)


def _scores(dtype, block, q, k, ends, i, j) -> tuple[Array, Array]:
  """Returns scores[K, G, Q, S] of two blocks, and which of them count."""
  scale = 1 / math.sqrt(q.shape[-1])
  scores = float32_product(dtype, 'kgqe,kes->kgqs', q, k) * scale
  inside = jnp.arange(block)
  mine, theirs = i * block + inside[:, None], j * block + inside
  return scores, (theirs <= mine) & (mine < ends)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attend_row(block, dtype, q, keys, values, subtree_end) -> Array:
  """One row: q [K, G, T, E], keys [K, E, T], values [K, T, E]."""
  return _forward(block, dtype, q, keys, values, subtree_end)[0]


def _forward(block, dtype, q, keys, values, subtree_end):
  """Returns the result, and what the backward pass needs."""
  which, count = _pairs(subtree_end, block)

  def queries(i, carry):
    mine = _take(q, i, block, 2)

    def one(c, state):
      top, total, mixed = state
      j = which[i, c]
      scores, seen = _scores(
          dtype, block, mine, _take(keys, j, block, 2),
          _take(subtree_end, j, block, 0), i, j,
      )
      scores = jnp.where(seen, scores, MASKED)
      new_top = jnp.maximum(top, scores.max(axis=-1))
      # Where nothing was seen yet, the shift is no score: masked once more.
      weights = jnp.where(seen, jnp.exp(scores - new_top[..., None]), 0.0)
      rescale = jnp.exp(top - new_top)
      added = float32_product(
          dtype, 'kgqs,kse->kgqe', weights.astype(dtype),
          _take(values, j, block, 1),
      )
      return (
          new_top,
          total * rescale + weights.sum(axis=-1),
          mixed * rescale[..., None] + added,
      )

    shape = mine.shape[:3]
    top, total, mixed = jax.lax.fori_loop(
        0, count[i], one,
        (
            jnp.full(shape, MASKED, jnp.float32),
            jnp.zeros(shape, jnp.float32),
            jnp.zeros(mine.shape, jnp.float32),
        ),
    )
    total = jnp.where(total == 0, 1.0, total)
    out, normaliser = carry
    return (
        _put(out, mixed / total[..., None], i, 2),
        _put(normaliser, top + jnp.log(total), i, 2),
    )

  out, normaliser = jax.lax.fori_loop(
      0, count.shape[0], queries,
      (jnp.zeros(q.shape, jnp.float32), jnp.zeros(q.shape[:3], jnp.float32)),
  )
  return out, (q, keys, values, subtree_end, out, normaliser)


def _backward(block, dtype, saved, d_out):
  """With P the weights: dV = P^T dO, dS = P (dO V^T - sum(dO O)), dQ, dK."""
  q, keys, values, subtree_end, out, normaliser = saved
  which, count = _pairs(subtree_end, block)
  product = functools.partial(float32_product, dtype)
  inner = jnp.sum(d_out * out, axis=-1)
  scale = 1 / math.sqrt(q.shape[-1])

  def queries(i, carry):
    mine, d_mine = _take(q, i, block, 2), _take(d_out, i, block, 2)
    d_mine = d_mine.astype(dtype)
    log_total = _take(normaliser, i, block, 2)[..., None]
    my_inner = _take(inner, i, block, 2)[..., None]

    def one(c, state):
      d_q, d_keys, d_values = state
      j = which[i, c]
      k, v = _take(keys, j, block, 2), _take(values, j, block, 1)
      scores, seen = _scores(
          dtype, block, mine, k, _take(subtree_end, j, block, 0), i, j
      )
      weights = jnp.where(seen, jnp.exp(scores - log_total), 0.0)
      d_weights = product('kgqe,kse->kgqs', d_mine, v)
      d_scores = (weights * (d_weights - my_inner) * scale).astype(dtype)
      d_k = product('kgqe,kgqs->kes', mine, d_scores)
      d_v = product('kgqs,kgqe->kse', weights.astype(dtype), d_mine)
      return (
          d_q + product('kgqs,kes->kgqe', d_scores, k),
          _put(d_keys, _take(d_keys, j, block, 2) + d_k, j, 2),
          _put(d_values, _take(d_values, j, block, 1) + d_v, j, 1),
      )

    d_q, d_keys, d_values = carry
    d_mine_q, d_keys, d_values = jax.lax.fori_loop(
        0, count[i], one,
        (jnp.zeros(mine.shape, jnp.float32), d_keys, d_values),
    )
    return _put(d_q, d_mine_q, i, 2), d_keys, d_values

  grads = jax.lax.fori_loop(
      0, count.shape[0], queries,
      tuple(jnp.zeros(x.shape, jnp.float32) for x in (q, keys, values)),
  )
  d_q, d_keys, d_values = (
      g.astype(x.dtype) for g, x in zip(grads, (q, keys, values), strict=True)
  )
  return d_q, d_keys, d_values, None


_attend_row.defvjp(_forward, _backward)
