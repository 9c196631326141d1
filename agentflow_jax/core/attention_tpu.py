"""Pallas TPU kernels of attention over forests; attention.py says what they do.

Every kernel goes along a list of the pairs of blocks that see each other, which
is made from subtree_end and prefetched: what the mask empties costs neither a
copy nor a step. Scores are held keys first, so that a query's sums are a row.
Accumulators are float32. The backward pass is two kernels, one along the
queries' list (dQ) and one along the keys' (dK, dV, over a group's heads): seven
products in place of five, and nothing is added up in memory.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

Array = jax.Array

_MASKED = -1e30
# Flags of an entry of a list.
_FIRST, _LAST, _PARTIAL = 1, 2, 4
_FLAG_BITS, _BLOCK_BITS = 3, 14


def pairs(subtree_end: Array, block: int) -> tuple[Array, Array, Array]:
  """Returns which pairs of blocks there are.

  Returns:
    bool[n, n] (queries, keys): needed, and of those, seen in part. A block of
    queries always sees its own, so that every block is written.
  """
  length = subtree_end.shape[0]
  ends = subtree_end.reshape(-1, block)
  first = np.arange(0, length, block)
  behind = first[None, :] < first[:, None]
  reached = ends.max(axis=1)[None, :] > first[:, None]
  own = jnp.asarray(np.eye(len(first), dtype=bool))
  needed = (behind & reached) | own
  whole = behind & (ends.min(axis=1)[None, :] >= first[:, None] + block)
  return needed, needed & ~whole


def _list(needed: Array, partial: Array) -> tuple[Array, Array]:
  """Returns the needed entries of [n, m], row by row, and how many.

  Returns:
    int32[n m], an entry's row, column and flags in one number; int32[].
  """
  n, m = needed.shape
  order = jnp.argsort(~needed.reshape(-1), stable=True)
  row, column = order // m, order % m
  count = needed.sum(dtype=jnp.int32)
  place = jnp.arange(n * m)
  before = jnp.roll(row, 1)
  after = jnp.roll(row, -1)
  flags = (
      _FIRST * ((place == 0) | (row != before))
      + _LAST * ((place == count - 1) | (row != after))
      + _PARTIAL * partial.reshape(-1)[order]
  )
  entries = (row << (_FLAG_BITS + _BLOCK_BITS)) | (column << _FLAG_BITS) | flags
  return entries.astype(jnp.int32), count


def _row(entry):
  return entry >> (_FLAG_BITS + _BLOCK_BITS)


def _column(entry):
  return (entry >> _FLAG_BITS) & ((1 << _BLOCK_BITS) - 1)


def _dot(a, b, contract):
  return jax.lax.dot_general(
      a, b, ((contract[:1], contract[1:]), ((), ())),
      precision=(
          jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
      ),
      preferred_element_type=jnp.float32,
  )


def _scores(q, k, ends, i, j, block, factor, is_partial) -> Array:
  """Returns float32[S, Q] of block i of queries and block j of keys."""
  scores = _dot(k, q, (1, 1)) * factor
  if not is_partial:
    return scores
  keys = j * block + jax.lax.broadcasted_iota(jnp.int32, scores.shape, 0)
  queries = i * block + jax.lax.broadcasted_iota(jnp.int32, scores.shape, 1)
  return jnp.where((keys <= queries) & (queries < ends), scores, _MASKED)


def _by_kind(entry, step):
  """Runs step(is_partial), with the mask only where it says something."""
  partial = (entry & _PARTIAL) != 0
  pl.when(partial)(lambda: step(True))
  pl.when(jnp.logical_not(partial))(lambda: step(False))


def _forward_kernel(
    entries, q, k, v, ends, out, normaliser, top, total, mixed, *, block,
    factor,
):
  entry = entries[pl.program_id(1)]
  i, j = _row(entry), _column(entry)

  @pl.when((entry & _FIRST) != 0)
  def _():
    top[...] = jnp.full_like(top, _MASKED)
    total[...] = jnp.zeros_like(total)
    mixed[...] = jnp.zeros_like(mixed)

  def step(is_partial):
    scores = _scores(
        q[0], k[0], ends[...], i, j, block, factor, is_partial
    )
    new_top = jnp.maximum(top[...], scores.max(axis=0, keepdims=True))
    # As in attention.py: what was added before a query's first seen key is
    # multiplied by 0 when that comes.
    weights = jnp.exp(scores - new_top)
    rescale = jnp.exp(top[...] - new_top)
    top[...] = new_top
    total[...] = total[...] * rescale + weights.sum(axis=0, keepdims=True)
    mixed[...] = mixed[...] * rescale + _dot(
        v[0], weights.astype(v.dtype), (1, 0)
    )

  _by_kind(entry, step)

  @pl.when((entry & _LAST) != 0)
  def _():
    blind = top[...] == _MASKED
    out[0] = jnp.where(blind, 0.0, mixed[...] / total[...]).astype(out.dtype)
    normaliser[0] = jnp.where(blind, -_MASKED, top[...] + jnp.log(total[...]))


def _d_scores(
    q, k, v, ends, normaliser, inner, d_out, i, j, block, factor, is_partial
):
  """Returns the weights and dS, float32[S, Q]."""
  scores = _scores(q, k, ends, i, j, block, factor, is_partial)
  weights = jnp.exp(scores - normaliser)
  return weights, weights * (_dot(v, d_out, (1, 1)) - inner) * factor


def _queries_kernel(
    entries, q, k, keys_t, v, ends, normaliser, inner, d_out, d_q, total, *,
    block, factor,
):
  entry = entries[pl.program_id(1)]
  i, j = _row(entry), _column(entry)

  @pl.when((entry & _FIRST) != 0)
  def _():
    total[...] = jnp.zeros_like(total)

  def step(is_partial):
    _, d_scores = _d_scores(
        q[0], k[0], v[0], ends[...], normaliser[0], inner[0], d_out[0], i, j,
        block, factor, is_partial,
    )
    total[...] += _dot(keys_t[0], d_scores.astype(k.dtype), (1, 0))

  _by_kind(entry, step)

  @pl.when((entry & _LAST) != 0)
  def _():
    d_q[0] = total[...].astype(d_q.dtype)


def _keys_kernel(
    entries, q, k, v, ends, normaliser, inner, d_out, d_k, d_v, k_total,
    v_total, *, block, factor, groups,
):
  entry, group = entries[pl.program_id(1)], pl.program_id(2)
  j, i = _row(entry), _column(entry)

  @pl.when(((entry & _FIRST) != 0) & (group == 0))
  def _():
    k_total[...] = jnp.zeros_like(k_total)
    v_total[...] = jnp.zeros_like(v_total)

  def step(is_partial):
    weights, d_scores = _d_scores(
        q[0], k[0], v[0], ends[...], normaliser[0], inner[0], d_out[0], i, j,
        block, factor, is_partial,
    )
    v_total[...] += _dot(weights.astype(q.dtype), d_out[0], (1, 0))
    k_total[...] += _dot(d_scores.astype(q.dtype), q[0], (1, 0))

  _by_kind(entry, step)

  @pl.when(((entry & _LAST) != 0) & (group == groups - 1))
  def _():
    d_k[0] = k_total[...].astype(d_k.dtype)
    d_v[0] = v_total[...].astype(d_v.dtype)


def _call(
    kernel, entries, count, arrays, specs, outs, out_specs, scratch, grid,
    semantics, interpret, name,
):
  return pl.pallas_call(
      kernel,
      grid_spec=pltpu.PrefetchScalarGridSpec(
          num_scalar_prefetch=1, grid=grid(count), in_specs=specs,
          out_specs=out_specs, scratch_shapes=scratch,
      ),
      out_shape=outs,
      compiler_params=pltpu.CompilerParams(dimension_semantics=semantics),
      interpret=interpret,
      name=name,
  )(entries, *arrays)


def forward(
    q: Array, keys: Array, values: Array, subtree_end: Array, *, block: int,
    factor: float = 1.0, interpret: Any = False,
) -> tuple[Array, Array]:
  """Attention of one row.

  Args:
    q: [H, T, E], divided by sqrt(E) but for `factor`.
    keys: [K, T, E]; head h reads key head h // (H / K).
    values: [K, T, E].
    subtree_end: int32[T].
    block: tokens of a block; divides T.
    factor: what scores are multiplied by, in float32.
    interpret: True to run anywhere, slowly.

  Returns:
    float32[H, E, T], and float32[H, 1, T], the logarithm of each query's sum.
  """
  heads, length, dim = q.shape
  groups = heads // keys.shape[0]
  entries, count = _list(*pairs(subtree_end, block))
  row = lambda p, e: _row(e[p])
  column = lambda p, e: _column(e[p])
  of_key = lambda h, p, e: (jax.lax.div(h, groups), column(p, e), 0)
  of_key_t = lambda h, p, e: (jax.lax.div(h, groups), 0, column(p, e))
  vmem = functools.partial(pl.BlockSpec, memory_space=pltpu.VMEM)
  return _call(
      functools.partial(_forward_kernel, block=block, factor=factor),
      entries, count,
      (q, keys, values.transpose(0, 2, 1), subtree_end[:, None]),
      [
          vmem((1, block, dim), lambda h, p, e: (h, row(p, e), 0)),
          vmem((1, block, dim), of_key),
          vmem((1, dim, block), of_key_t),
          vmem((block, 1), lambda h, p, e: (column(p, e), 0)),
      ],
      (
          jax.ShapeDtypeStruct((heads, dim, length), jnp.float32),
          jax.ShapeDtypeStruct((heads, 1, length), jnp.float32),
      ),
      (
          vmem((1, dim, block), lambda h, p, e: (h, 0, row(p, e))),
          vmem((1, 1, block), lambda h, p, e: (h, 0, row(p, e))),
      ),
      [
          pltpu.VMEM((1, block), jnp.float32),
          pltpu.VMEM((1, block), jnp.float32),
          pltpu.VMEM((dim, block), jnp.float32),
      ],
      lambda count: (heads, count), ('parallel', 'arbitrary'), interpret,
      'forest_attention_forward',
  )


def backward(
    q: Array, keys: Array, values: Array, subtree_end: Array, normaliser: Array,
    inner: Array, d_out: Array, *, block: int, factor: float = 1.0,
    interpret: Any = False,
) -> tuple[Array, Array, Array]:
  """Gradients of one row.

  Args:
    q, keys, values, subtree_end, block, factor, interpret: as in `forward`.
    normaliser: float32[H, 1, T], of `forward`.
    inner: float32[H, 1, T], sum over E of d_out times the result.
    d_out: [H, T, E], in q's dtype.

  Returns:
    float32[H, E, T] of the divided q, float32[K, T, E] of keys, and of values.
  """
  heads, length, dim = q.shape
  kv_heads = keys.shape[0]
  groups = heads // kv_heads
  needed, partial = pairs(subtree_end, block)
  vmem = functools.partial(pl.BlockSpec, memory_space=pltpu.VMEM)
  ends = subtree_end[:, None]
  row = lambda p, e: _row(e[p])
  column = lambda p, e: _column(e[p])

  entries, count = _list(needed, partial)
  of_query = lambda h, p, e: (h, row(p, e), 0)
  of_key = lambda h, p, e: (jax.lax.div(h, groups), column(p, e), 0)
  of_key_t = lambda h, p, e: (jax.lax.div(h, groups), 0, column(p, e))
  sums = lambda h, p, e: (h, 0, row(p, e))
  d_q = _call(
      functools.partial(_queries_kernel, block=block, factor=factor),
      entries, count,
      (
          q, keys, keys.transpose(0, 2, 1), values, ends, normaliser, inner,
          d_out,
      ),
      [
          vmem((1, block, dim), of_query),
          vmem((1, block, dim), of_key),
          vmem((1, dim, block), of_key_t),
          vmem((1, block, dim), of_key),
          vmem((block, 1), lambda h, p, e: (column(p, e), 0)),
          vmem((1, 1, block), sums),
          vmem((1, 1, block), sums),
          vmem((1, block, dim), of_query),
      ],
      jax.ShapeDtypeStruct((heads, dim, length), jnp.float32),
      vmem((1, dim, block), sums),
      [pltpu.VMEM((dim, block), jnp.float32)],
      lambda count: (heads, count), ('parallel', 'arbitrary'), interpret,
      'forest_attention_queries',
  )

  # By keys: an entry's row is a block of keys, its column one of queries.
  entries, count = _list(needed.T, partial.T)
  head = lambda h, g: h * groups + g
  of_query = lambda h, p, g, e: (head(h, g), column(p, e), 0)
  of_key = lambda h, p, g, e: (h, row(p, e), 0)
  sums = lambda h, p, g, e: (head(h, g), 0, column(p, e))
  d_k, d_v = _call(
      functools.partial(
          _keys_kernel, block=block, factor=factor, groups=groups
      ),
      entries, count, (q, keys, values, ends, normaliser, inner, d_out),
      [
          vmem((1, block, dim), of_query),
          vmem((1, block, dim), of_key),
          vmem((1, block, dim), of_key),
          vmem((block, 1), lambda h, p, g, e: (row(p, e), 0)),
          vmem((1, 1, block), sums),
          vmem((1, 1, block), sums),
          vmem((1, block, dim), of_query),
      ],
      (jax.ShapeDtypeStruct(keys.shape, jnp.float32),) * 2,
      (vmem((1, block, dim), of_key),) * 2,
      [pltpu.VMEM((block, dim), jnp.float32)] * 2,
      lambda count: (kv_heads, count, groups),
      ('parallel', 'arbitrary', 'arbitrary'), interpret,
      'forest_attention_keys',
  )
  return d_q, d_k, d_v
