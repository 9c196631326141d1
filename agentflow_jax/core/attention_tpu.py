"""Pallas TPU kernels of attention over forests; see attention.py.

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

from agentflow_jax.core import blocks as blocks_lib

Array = jax.Array

_MASKED = blocks_lib.MASKED
# Flags of an entry of a list.
_FIRST, _LAST, _PARTIAL = 1, 2, 4
_FLAG_BITS, _BLOCK_BITS = 3, 14


def _pairs(subtree_end: Array, block: int) -> tuple[Array, Array]:
  """Returns which pairs of blocks there are.

  Args:
    subtree_end: int32[T].
    block: tokens of a block; divides T.

  Returns:
    bool[n, n] (queries, keys): needed, and of those, seen in part. A block of
    queries always sees its own, so that every block is written.
  """
  needed = blocks_lib.needed(subtree_end, block, block)
  first = np.arange(0, subtree_end.shape[0], block)[:, None]
  least = subtree_end.reshape(-1, block).min(axis=1)
  whole = (first.T < first) & (least >= first + block)
  needed |= np.eye(len(first), dtype=bool)
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
    a,
    b,
    ((contract[:1], contract[1:]), ((), ())),
    precision=(jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None),
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
  entries, q, k, v, ends, out, normaliser, top, total, mixed, *, block, factor
):
  entry = entries[pl.program_id(1)]
  i, j = _row(entry), _column(entry)

  @pl.when((entry & _FIRST) != 0)
  def _():
    top[...] = jnp.full_like(top, _MASKED)
    total[...] = jnp.zeros_like(total)
    mixed[...] = jnp.zeros_like(mixed)

  def step(is_partial):
    scores = _scores(q[0], k[0], ends[...], i, j, block, factor, is_partial)
    new_top = jnp.maximum(top[...], scores.max(axis=0, keepdims=True))
    # As in attention_xla: what was added before a query's first seen key is
    # multiplied by 0 when that comes.
    weights = jnp.exp(scores - new_top)
    rescale = jnp.exp(top[...] - new_top)
    top[...] = new_top
    total[...] = total[...] * rescale + weights.sum(axis=0, keepdims=True)
    mixed[...] = mixed[...] * rescale + _dot(v[0], weights.astype(v.dtype), (1, 0))

  _by_kind(entry, step)

  @pl.when((entry & _LAST) != 0)
  def _():
    blind = top[...] == _MASKED
    out[0] = jnp.where(blind, 0.0, mixed[...] / total[...]).astype(out.dtype)
    normaliser[0] = jnp.where(blind, -_MASKED, top[...] + jnp.log(total[...]))


def _d_scores(q, k, v, ends, normaliser, inner, d_out, i, j, block, factor, is_partial):
  """Returns the weights and dS, float32[S, Q]."""
  scores = _scores(q, k, ends, i, j, block, factor, is_partial)
  weights = jnp.exp(scores - normaliser)
  return weights, weights * (_dot(v, d_out, (1, 1)) - inner) * factor


def _queries_kernel(
  entries, q, k, keys_t, v, ends, normaliser, inner, d_out, d_q, total, *, block, factor
):
  entry = entries[pl.program_id(1)]
  i, j = _row(entry), _column(entry)

  @pl.when((entry & _FIRST) != 0)
  def _():
    total[...] = jnp.zeros_like(total)

  def step(is_partial):
    _, d_scores = _d_scores(
      q[0],
      k[0],
      v[0],
      ends[...],
      normaliser[0],
      inner[0],
      d_out[0],
      i,
      j,
      block,
      factor,
      is_partial,
    )
    total[...] += _dot(keys_t[0], d_scores.astype(k.dtype), (1, 0))

  _by_kind(entry, step)

  @pl.when((entry & _LAST) != 0)
  def _():
    d_q[0] = total[...].astype(d_q.dtype)


def _keys_kernel(
  entries,
  q,
  k,
  v,
  ends,
  normaliser,
  inner,
  d_out,
  d_k,
  d_v,
  k_total,
  v_total,
  *,
  block,
  factor,
  groups,
):
  entry, group = entries[pl.program_id(1)], pl.program_id(2)
  j, i = _row(entry), _column(entry)

  @pl.when(((entry & _FIRST) != 0) & (group == 0))
  def _():
    k_total[...] = jnp.zeros_like(k_total)
    v_total[...] = jnp.zeros_like(v_total)

  def step(is_partial):
    weights, d_scores = _d_scores(
      q[0],
      k[0],
      v[0],
      ends[...],
      normaliser[0],
      inner[0],
      d_out[0],
      i,
      j,
      block,
      factor,
      is_partial,
    )
    v_total[...] += _dot(weights.astype(q.dtype), d_out[0], (1, 0))
    k_total[...] += _dot(d_scores.astype(q.dtype), q[0], (1, 0))

  _by_kind(entry, step)

  @pl.when(((entry & _LAST) != 0) & (group == groups - 1))
  def _():
    d_k[0] = k_total[...].astype(d_k.dtype)
    d_v[0] = v_total[...].astype(d_v.dtype)


def _call(kernel, name, grid, semantics, interpret, **specs):
  """Returns what runs a kernel, with a list of entries prefetched."""
  shapes = specs.pop('out_shape')
  return pl.pallas_call(
    kernel,
    grid_spec=pltpu.PrefetchScalarGridSpec(num_scalar_prefetch=1, grid=grid, **specs),
    out_shape=shapes,
    compiler_params=pltpu.CompilerParams(dimension_semantics=semantics),
    interpret=interpret,
    name=f'forest_attention_{name}',
  )


_spec = functools.partial(pl.BlockSpec, memory_space=pltpu.VMEM)


def _along_queries(block: int, dim: int, groups: int) -> dict[str, Any]:
  """Returns specs of arrays for a grid of (query head, entry by queries)."""
  row = lambda p, e: _row(e[p])
  column = lambda p, e: _column(e[p])
  kv = lambda h: jax.lax.div(h, groups)
  return {
    'query': _spec((1, block, dim), lambda h, p, e: (h, row(p, e), 0)),
    'query_t': _spec((1, dim, block), lambda h, p, e: (h, 0, row(p, e))),
    'sum': _spec((1, 1, block), lambda h, p, e: (h, 0, row(p, e))),
    'key': _spec((1, block, dim), lambda h, p, e: (kv(h), column(p, e), 0)),
    'key_t': _spec((1, dim, block), lambda h, p, e: (kv(h), 0, column(p, e))),
    'ends': _spec((block, 1), lambda h, p, e: (column(p, e), 0)),
  }


def forward(
  q: Array,
  keys: Array,
  values: Array,
  subtree_end: Array,
  *,
  block: int,
  factor: float = 1.0,
  interpret: bool = False,
) -> tuple[Array, Array]:
  """Attention of one row; arguments and results as in attention_xla.forward.

  Args:
    q, keys, values, subtree_end, factor: the same arguments of attention_xla.forward.
    block: tokens of a block; divides T.
    interpret: runs anywhere, slowly.
  """
  kv_heads, groups, length, dim = q.shape
  heads = kv_heads * groups
  entries, count = _list(*_pairs(subtree_end, block))
  at = _along_queries(block, dim, groups)
  a_sum = pltpu.VMEM((1, block), jnp.float32)
  out, normaliser = _call(
    functools.partial(_forward_kernel, block=block, factor=factor),
    'forward',
    (heads, count),
    ('parallel', 'arbitrary'),
    interpret,
    in_specs=[at['query'], at['key'], at['key_t'], at['ends']],
    out_specs=(at['query_t'], at['sum']),
    out_shape=(
      jax.ShapeDtypeStruct((heads, dim, length), jnp.float32),
      jax.ShapeDtypeStruct((heads, 1, length), jnp.float32),
    ),
    scratch_shapes=[a_sum, a_sum, pltpu.VMEM((dim, block), jnp.float32)],
  )(
    entries,
    q.reshape(heads, length, dim),
    keys.transpose(0, 2, 1),
    values.transpose(0, 2, 1),
    subtree_end[:, None],
  )
  return (out.transpose(0, 2, 1).reshape(q.shape), normaliser.reshape(q.shape[:3]))


def backward(
  q: Array,
  keys: Array,
  values: Array,
  subtree_end: Array,
  normaliser: Array,
  inner: Array,
  d_out: Array,
  *,
  block: int,
  factor: float = 1.0,
  interpret: bool = False,
) -> tuple[Array, Array, Array]:
  """Gradients of one row; as in attention_xla.backward, and `forward`."""
  kv_heads, groups, length, dim = q.shape
  heads = kv_heads * groups
  arrays = {
    'q': q.reshape(heads, length, dim),
    'k': keys.transpose(0, 2, 1),
    'k_t': keys,
    'v': values,
    'ends': subtree_end[:, None],
    'normaliser': normaliser.reshape(heads, 1, length),
    'inner': inner.reshape(heads, 1, length),
    'd_out': d_out.reshape(heads, length, dim),
  }
  needed, partial = _pairs(subtree_end, block)
  shared = {'block': block, 'factor': factor}
  d_q = _queries_gradient(arrays, _list(needed, partial), groups, shared, interpret)
  d_k, d_v = _keys_gradient(
    arrays, _list(needed.T, partial.T), groups, shared, interpret
  )
  return d_q.transpose(0, 2, 1).reshape(q.shape), d_k, d_v


def _queries_gradient(arrays, along, groups, shared, interpret) -> Array:
  """Returns float32[H, E, T]; `along` is a list by queries."""
  heads, length, dim = arrays['q'].shape
  entries, count = along
  block = shared['block']
  at = _along_queries(block, dim, groups)
  order = ('q', 'k', 'k_t', 'v', 'ends', 'normaliser', 'inner', 'd_out')
  return _call(
    functools.partial(_queries_kernel, **shared),
    'queries',
    (heads, count),
    ('parallel', 'arbitrary'),
    interpret,
    in_specs=[
      at['query'],
      at['key'],
      at['key_t'],
      at['key'],
      at['ends'],
      at['sum'],
      at['sum'],
      at['query'],
    ],
    out_specs=at['query_t'],
    out_shape=jax.ShapeDtypeStruct((heads, dim, length), jnp.float32),
    scratch_shapes=[pltpu.VMEM((dim, block), jnp.float32)],
  )(entries, *(arrays[name] for name in order))


def _keys_gradient(arrays, along, groups, shared, interpret) -> tuple[Array, Array]:
  """Returns float32[K, T, E] of keys and of values; `along` is by keys."""
  kv_heads, _, dim = arrays['k'].shape
  entries, count = along
  block = shared['block']
  row = lambda p, e: _row(e[p])  # Of keys; a column is of queries.
  column = lambda p, e: _column(e[p])
  head = lambda h, g: h * groups + g
  query = _spec((1, block, dim), lambda h, p, g, e: (head(h, g), column(p, e), 0))
  key = _spec((1, block, dim), lambda h, p, g, e: (h, row(p, e), 0))
  ends = _spec((block, 1), lambda h, p, g, e: (row(p, e), 0))
  a_sum = _spec((1, 1, block), lambda h, p, g, e: (head(h, g), 0, column(p, e)))
  order = ('q', 'k', 'v', 'ends', 'normaliser', 'inner', 'd_out')
  return _call(
    functools.partial(_keys_kernel, groups=groups, **shared),
    'keys',
    (kv_heads, count, groups),
    ('parallel', 'arbitrary', 'arbitrary'),
    interpret,
    in_specs=[query, key, key, ends, a_sum, a_sum, query],
    out_specs=(key, key),
    out_shape=(jax.ShapeDtypeStruct(arrays['k'].shape, jnp.float32),) * 2,
    scratch_shapes=[pltpu.VMEM((block, dim), jnp.float32)] * 2,
  )(entries, *(arrays[name] for name in order))
