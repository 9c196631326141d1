"""Pallas (Triton) GPU kernels of attention over forests; see attention.py.

A program goes over one block of queries, or of keys, and from a list over the
blocks that it sees or that see it; accumulators are float32 in registers.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from agentflow_jax.core import blocks as blocks_lib

Array = jax.Array

_MASKED = blocks_lib.MASKED
# What a program's registers hold beside the accumulators.
_BLOCK = 64


def _dot(a, b):
  return plgpu.dot(
    a, b, precision=(jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None)
  )


def _scores(q, k, ends, i, j, factor):
  """Returns float32[Q, S] of block i of queries and block j of keys."""
  queries = i * _BLOCK + jnp.arange(_BLOCK)[:, None]
  keys = j * _BLOCK + jnp.arange(_BLOCK)[None, :]
  seen = (keys <= queries) & (queries < ends[None, :])
  return jnp.where(seen, _dot(q, k.T) * factor, _MASKED)


def _forward_kernel(which, count, q, k, v, ends, out, normaliser, *, factor):
  i, mine = pl.program_id(0), q[...]

  def one(c, state):
    top, total, mixed = state
    j = which[c]
    here = pl.ds(j * _BLOCK, _BLOCK)
    scores = _scores(mine, k[here, :], ends[here], i, j, factor)
    new_top = jnp.maximum(top, scores.max(axis=1))
    weights = jnp.exp(scores - new_top[:, None])
    rescale = jnp.exp(top - new_top)
    mixed = mixed * rescale[:, None] + _dot(weights.astype(v.dtype), v[here, :])
    return new_top, total * rescale + weights.sum(axis=1), mixed

  top, total, mixed = jax.lax.fori_loop(
    0,
    count[0],
    one,
    (
      jnp.full((_BLOCK,), _MASKED, jnp.float32),
      jnp.zeros((_BLOCK,), jnp.float32),
      jnp.zeros(q.shape, jnp.float32),
    ),
  )
  blind = top == _MASKED
  total = jnp.where(blind, 1.0, total)
  out[...] = jnp.where(blind[:, None], 0.0, mixed / total[:, None])
  normaliser[...] = jnp.where(blind, -_MASKED, top + jnp.log(total))


def _queries_kernel(
  which, count, q, k, v, ends, normaliser, inner, d_out, d_q, *, factor
):
  i, mine, d_mine = pl.program_id(0), q[...], d_out[...]
  log_total, my_inner = normaliser[...], inner[...]

  def one(c, total):
    j = which[c]
    here = pl.ds(j * _BLOCK, _BLOCK)
    keys = k[here, :]
    weights = jnp.exp(
      _scores(mine, keys, ends[here], i, j, factor) - log_total[:, None]
    )
    d_weights = _dot(d_mine, v[here, :].T)
    d_scores = weights * (d_weights - my_inner[:, None]) * factor
    return total + _dot(d_scores.astype(k.dtype), keys)

  d_q[...] = jax.lax.fori_loop(0, count[0], one, jnp.zeros(q.shape, jnp.float32))


def _keys_kernel(
  which, count, q, k, v, ends, normaliser, inner, d_out, d_k, d_v, *, factor
):
  j, keys, values, my_ends = pl.program_id(0), k[...], v[...], ends[...]
  groups = q.shape[0]

  def one(c, state):
    d_keys, d_values = state
    i, g = which[jax.lax.div(c, groups)], jax.lax.rem(c, groups)
    here = pl.ds(i * _BLOCK, _BLOCK)
    queries, d_queries = q[g, here, :], d_out[g, here, :]
    weights = jnp.exp(
      _scores(queries, keys, my_ends, i, j, factor) - normaliser[g, here][:, None]
    )
    d_weights = _dot(d_queries, values.T)
    d_scores = weights * (d_weights - inner[g, here][:, None]) * factor
    return (
      d_keys + _dot(d_scores.astype(q.dtype).T, queries),
      d_values + _dot(weights.astype(q.dtype).T, d_queries),
    )

  zeros = jnp.zeros(k.shape, jnp.float32)
  d_k[...], d_v[...] = jax.lax.fori_loop(0, count[0] * groups, one, (zeros, zeros))


def _call(kernel, name, grid, interpret, **specs):
  return pl.pallas_call(
    kernel,
    grid=grid,
    interpret=interpret,
    name=f'forest_attention_{name}',
    compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=2),
    **specs,
  )


def _along_queries(length: int, dim: int, groups: int) -> dict[str, Any]:
  """Returns specs of arrays for a grid of (block of queries, query head)."""
  n = length // _BLOCK
  return {
    'list': pl.BlockSpec((None, n), lambda i, h: (i, 0)),
    'count': pl.BlockSpec((1,), lambda i, h: (i,)),
    'query': pl.BlockSpec((None, _BLOCK, dim), lambda i, h: (h, i, 0)),
    'sum': pl.BlockSpec((None, _BLOCK), lambda i, h: (h, i)),
    'keys': pl.BlockSpec(
      (None, length, dim), lambda i, h: (jax.lax.div(h, groups), 0, 0)
    ),
    'ends': pl.BlockSpec((length,), lambda i, h: (0,)),
  }


def forward(
  q: Array,
  keys: Array,
  values: Array,
  subtree_end: Array,
  *,
  factor: float = 1.0,
  interpret: bool = False,
) -> tuple[Array, Array]:
  """Attention of one row; arguments and results as in attention_xla.forward.

  T is a multiple of 64. With `interpret` it runs anywhere, slowly.
  """
  kv_heads, groups, length, dim = q.shape
  heads = kv_heads * groups
  at = _along_queries(length, dim, groups)
  needed = blocks_lib.needed(subtree_end, _BLOCK, _BLOCK)
  out, normaliser = _call(
    functools.partial(_forward_kernel, factor=factor),
    'forward',
    (length // _BLOCK, heads),
    interpret,
    in_specs=[at['list'], at['count'], at['query'], at['keys'], at['keys'], at['ends']],
    out_specs=(at['query'], at['sum']),
    out_shape=(
      jax.ShapeDtypeStruct((heads, length, dim), jnp.float32),
      jax.ShapeDtypeStruct((heads, length), jnp.float32),
    ),
  )(
    *blocks_lib.lists(needed),
    q.reshape(heads, length, dim),
    keys.transpose(0, 2, 1),
    values,
    subtree_end,
  )
  return out.reshape(q.shape), normaliser.reshape(q.shape[:3])


def backward(
  q: Array,
  keys: Array,
  values: Array,
  subtree_end: Array,
  normaliser: Array,
  inner: Array,
  d_out: Array,
  *,
  factor: float = 1.0,
  interpret: bool = False,
) -> tuple[Array, Array, Array]:
  """Gradients of one row; as in attention_xla.backward, and `forward`."""
  kv_heads, groups, length, dim = q.shape
  heads, n = kv_heads * groups, length // _BLOCK
  at = _along_queries(length, dim, groups)
  needed = blocks_lib.needed(subtree_end, _BLOCK, _BLOCK)
  key_rows = keys.transpose(0, 2, 1)

  def flat(x):
    return x.reshape(heads, *x.shape[2:])

  d_q = _call(
    functools.partial(_queries_kernel, factor=factor),
    'queries',
    (n, heads),
    interpret,
    in_specs=[
      at['list'],
      at['count'],
      at['query'],
      at['keys'],
      at['keys'],
      at['ends'],
      at['sum'],
      at['sum'],
      at['query'],
    ],
    out_specs=at['query'],
    out_shape=jax.ShapeDtypeStruct((heads, length, dim), jnp.float32),
  )(
    *blocks_lib.lists(needed),
    flat(q),
    key_rows,
    values,
    subtree_end,
    flat(normaliser),
    flat(inner),
    flat(d_out),
  )
  # Here a grid's first axis counts blocks of keys, the second key heads.
  key = at['query']
  queries = pl.BlockSpec((None, groups, length, dim), lambda j, h: (h, 0, 0, 0))
  sums = pl.BlockSpec((None, groups, length), lambda j, h: (h, 0, 0))
  ends = pl.BlockSpec((_BLOCK,), lambda j, h: (j,))
  d_k, d_v = _call(
    functools.partial(_keys_kernel, factor=factor),
    'keys',
    (n, kv_heads),
    interpret,
    in_specs=[at['list'], at['count'], queries, key, key, ends, sums, sums, queries],
    out_specs=(key, key),
    out_shape=(jax.ShapeDtypeStruct(values.shape, jnp.float32),) * 2,
  )(
    *blocks_lib.lists(needed.T),
    q,
    key_rows,
    values,
    subtree_end,
    normaliser,
    inner,
    d_out,
  )
  return d_q.reshape(q.shape), d_k, d_v
