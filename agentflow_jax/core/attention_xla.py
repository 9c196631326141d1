"""Attention over forests block by block, in XLA: runs anywhere.

Scores exist for one pair of blocks at a time (FlashAttention-2, arXiv
2307.08691): the softmax is summed up as blocks pass, and the backward pass makes
the scores again from its normaliser. Blocks that do not see each other are left
out. Keys come first in every array of scores: so all five products of a backward
pass read what they read in the order in which it lies.
"""

import functools

import jax
import jax.numpy as jnp

from agentflow_jax.core import blocks as blocks_lib
from agentflow_jax.core import primitives

Array = jax.Array
Blocks = blocks_lib.Blocks


def _lists(subtree_end: Array, blocks: Blocks) -> tuple[Array, Array]:
  """Returns the key blocks of each block of queries, and how many."""
  return blocks_lib.lists(blocks_lib.needed(subtree_end, blocks.queries, blocks.keys))


def _take(x: Array, index: Array, block: int, axis: int) -> Array:
  return jax.lax.dynamic_slice_in_dim(x, index * block, block, axis)


def _put(whole: Array, piece: Array, index: Array, axis: int) -> Array:
  start = index * piece.shape[axis]
  return jax.lax.dynamic_update_slice_in_dim(whole, piece, start, axis)


def _columns(x: Array, i: Array, blocks: Blocks) -> Array:
  """Returns block i of queries, [K, G, T, E] -> [K, E, G, Q]."""
  return _take(x, i, blocks.queries, 2).transpose(0, 3, 1, 2)


def _rows(x: Array) -> Array:
  """Returns [K, E, G, Q] -> [K, G, Q, E]."""
  return x.transpose(0, 2, 3, 1)


def _times(x: Array, factor: float) -> Array:
  return x if factor == 1 else x * factor


def _scores(dtype, blocks, factor, q, k, ends, i, j) -> Array:
  """Returns scores[K, S, G, Q] of two blocks, MASKED where they do not count."""
  mine = i * blocks.queries + jnp.arange(blocks.queries)
  theirs = j * blocks.keys + jnp.arange(blocks.keys)[:, None]
  seen = (theirs <= mine) & (mine < ends[:, None])
  scores = primitives.float32_product(dtype, 'kse,kegq->ksgq', k, q)
  return jnp.where(seen[:, None], _times(scores, factor), blocks_lib.MASKED)


def forward(
  q: Array,
  keys: Array,
  values: Array,
  subtree_end: Array,
  *,
  blocks: Blocks,
  dtype: str,
  factor: float,
) -> tuple[Array, Array]:
  """Attention of one row.

  Args:
    q: [K, G, T, E], divided by sqrt(E) but for `factor`.
    keys: [K, E, T].
    values: [K, T, E].
    subtree_end: int32[T].
    blocks: cut of the row, into whole blocks.
    dtype: dtype of the activations, see primitives.float32_product.
    factor: factor of the scores, in float32.

  Returns:
    float32[K, G, T, E], 0 where nothing is seen; and float32[K, G, T], the
    logarithm of each query's sum.
  """
  which, count = _lists(subtree_end, blocks)
  key_rows, value_columns = keys.transpose(0, 2, 1), values.transpose(0, 2, 1)

  def queries(i, carry):
    mine = _columns(q, i, blocks)

    def one(c, state):
      j = which[i, c]
      scores = _scores(
        dtype,
        blocks,
        factor,
        mine,
        _take(key_rows, j, blocks.keys, 1),
        _take(subtree_end, j, blocks.keys, 0),
        i,
        j,
      )
      return _mixed(dtype, blocks, state, scores, value_columns, j)

    one_each = (mine.shape[0], 1, *mine.shape[2:])
    top, total, mixed = jax.lax.fori_loop(
      0,
      count[i],
      one,
      (
        jnp.full(one_each, blocks_lib.MASKED, jnp.float32),
        jnp.zeros(one_each, jnp.float32),
        jnp.zeros(mine.shape, jnp.float32),
      ),
    )
    blind = top == blocks_lib.MASKED  # A padding token sees nothing.
    out, normaliser = carry
    log_total = jnp.where(blind, -blocks_lib.MASKED, top + jnp.log(total))
    return (
      _put(out, _rows(jnp.where(blind, 0.0, mixed / total)), i, 2),
      _put(normaliser, _rows(log_total), i, 2),
    )

  out, normaliser = jax.lax.fori_loop(
    0,
    count.shape[0],
    queries,
    (jnp.zeros(q.shape, jnp.float32), jnp.zeros((*q.shape[:3], 1), jnp.float32)),
  )
  return out, normaliser[..., 0]


def _mixed(dtype, blocks, state, scores, values, j) -> tuple[Array, Array, Array]:
  """Returns the running softmax of some queries after one more block of keys.

  Args:
    dtype: dtype of the activations.
    blocks: cut of the row.
    state: largest score, sum of exp(score - largest), and values mixed by these.
    scores: scores of the block.
    values: values of the row, [K, E, T].
    j: number of the block.
  """
  top, total, mixed = state
  new_top = jnp.maximum(top, scores.max(axis=1, keepdims=True))
  # Before a query's first seen key these are exp(0); what they add up to is
  # multiplied by exp(MASKED - score) = 0 when that key comes.
  weights = jnp.exp(scores - new_top)
  rescale = jnp.exp(top - new_top)
  added = primitives.float32_product(
    dtype, 'kes,ksgq->kegq', _take(values, j, blocks.keys, 2), weights.astype(dtype)
  )
  return (
    new_top,
    total * rescale + weights.sum(axis=1, keepdims=True),
    mixed * rescale + added,
  )


def backward(
  q: Array,
  keys: Array,
  values: Array,
  subtree_end: Array,
  normaliser: Array,
  inner: Array,
  d_out: Array,
  *,
  blocks: Blocks,
  dtype: str,
  factor: float,
) -> tuple[Array, Array, Array]:
  """Gradients of one row.

  With P the weights: dV = P^T dO, dS = P (dO V^T - sum(dO O)), dQ = dS K,
  dK = dS^T Q.

  Args:
    q, keys, values, subtree_end, blocks, dtype, factor: the same arguments of
      `forward`.
    normaliser: float32[K, G, T], of `forward`.
    inner: float32[K, G, T], sum over E of d_out times the result.
    d_out: [K, G, T, E], in q's dtype.

  Returns:
    float32[K, G, T, E] of the divided q, float32[K, T, E] of the keys (not as
    they came), and float32[K, T, E] of the values.
  """
  which, count = _lists(subtree_end, blocks)
  product = functools.partial(primitives.float32_product, dtype)
  normaliser, inner = normaliser[..., None], inner[..., None]
  key_rows = keys.transpose(0, 2, 1)

  def queries(i, carry):
    mine, d_mine = _columns(q, i, blocks), _columns(d_out, i, blocks)
    my_rows, d_rows = (_take(x, i, blocks.queries, 2) for x in (q, d_out))
    log_total = _columns(normaliser, i, blocks)
    my_inner = _columns(inner, i, blocks)

    def one(c, state):
      d_q, d_keys, d_values = state
      j = which[i, c]
      scores = _scores(
        dtype,
        blocks,
        factor,
        mine,
        _take(key_rows, j, blocks.keys, 1),
        _take(subtree_end, j, blocks.keys, 0),
        i,
        j,
      )
      weights = jnp.exp(scores - log_total)
      d_weights = product('kse,kegq->ksgq', _take(values, j, blocks.keys, 1), d_mine)
      d_scores = _times(weights * (d_weights - my_inner), factor).astype(dtype)
      d_k = product('ksgq,kgqe->kse', d_scores, my_rows)
      d_v = product('ksgq,kgqe->kse', weights.astype(dtype), d_rows)
      return (
        d_q + product('kes,ksgq->kegq', _take(keys, j, blocks.keys, 2), d_scores),
        _put(d_keys, _take(d_keys, j, blocks.keys, 1) + d_k, j, 1),
        _put(d_values, _take(d_values, j, blocks.keys, 1) + d_v, j, 1),
      )

    d_q, d_keys, d_values = carry
    d_mine_q, d_keys, d_values = jax.lax.fori_loop(
      0, count[i], one, (jnp.zeros(mine.shape, jnp.float32), d_keys, d_values)
    )
    return _put(d_q, _rows(d_mine_q), i, 2), d_keys, d_values

  return jax.lax.fori_loop(
    0,
    count.shape[0],
    queries,
    tuple(jnp.zeros(x.shape, jnp.float32) for x in (q, values, values)),
  )
