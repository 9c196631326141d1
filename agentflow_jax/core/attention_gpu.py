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

from agentflow_jax.core import attention_tpu

Array = jax.Array

_MASKED = -1e30
# What a program's registers hold beside the accumulators.
_BLOCK = 64


def _lists(needed: Array) -> tuple[Array, Array]:
  """Returns each row's needed columns, first, and how many: [n, m] and [n]."""
  which = jnp.argsort(~needed, axis=1, stable=True).astype(jnp.int32)
  return which, needed.sum(axis=1, dtype=jnp.int32)


def _dot(a, b):
  return plgpu.dot(a, b, precision=(
      jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
  ))


def _scores(q, k, ends, i, j, factor):
  """Returns float32[Q, S] of block i of queries and block j of keys."""
  queries = i * _BLOCK + jnp.arange(_BLOCK)[:, None]
  keys = j * _BLOCK + jnp.arange(_BLOCK)[None, :]
  seen = (keys <= queries) & (queries < ends[None, :])
  return jnp.where(seen, _dot(q, k.T) * factor, _MASKED)


def _forward_kernel(
    which, count, q, k, v, ends, out, normaliser, *, factor
):
  i, mine = pl.program_id(0), q[...]

  def one(c, state):
    top, total, mixed = state
    j = which[c]
    here = pl.ds(j * _BLOCK, _BLOCK)
    scores = _scores(mine, k[here, :], ends[here], i, j, factor)
    new_top = jnp.maximum(top, scores.max(axis=1))
    weights = jnp.exp(scores - new_top[:, None])
    rescale = jnp.exp(top - new_top)
    mixed = mixed * rescale[:, None] + _dot(
        weights.astype(v.dtype), v[here, :]
    )
    return new_top, total * rescale + weights.sum(axis=1), mixed

  top, total, mixed = jax.lax.fori_loop(
      0, count[0], one,
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

  d_q[...] = jax.lax.fori_loop(
      0, count[0], one, jnp.zeros(q.shape, jnp.float32)
  )


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
        _scores(queries, keys, my_ends, i, j, factor)
        - normaliser[g, here][:, None]
    )
    d_weights = _dot(d_queries, values.T)
    d_scores = weights * (d_weights - inner[g, here][:, None]) * factor
    return (
        d_keys + _dot(d_scores.astype(q.dtype).T, queries),
        d_values + _dot(weights.astype(q.dtype).T, d_queries),
    )

  zeros = jnp.zeros(k.shape, jnp.float32)
  d_k[...], d_v[...] = jax.lax.fori_loop(
      0, count[0] * groups, one, (zeros, zeros)
  )


def _call(kernel, grid, in_specs, out_specs, out_shape, interpret, name):
  return pl.pallas_call(
      kernel, grid=grid, in_specs=in_specs, out_specs=out_specs,
      out_shape=out_shape, interpret=interpret, name=name,
      compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=2),
  )


def forward(
    q: Array, keys: Array, values: Array, subtree_end: Array, *, block: int,
    factor: float = 1.0, interpret: Any = False,
) -> tuple[Array, Array]:
  """Attention of one row; arguments and results as in attention_tpu.forward.

  `block` is of rows; a program's blocks are of 64 tokens.
  """
  del block
  heads, length, dim = q.shape
  groups = heads // keys.shape[0]
  which, count = _lists(attention_tpu.pairs(subtree_end, _BLOCK)[0])
  n = which.shape[0]
  mine = pl.BlockSpec((None, _BLOCK, dim), lambda i, h: (h, i, 0))
  whole = pl.BlockSpec(
      (None, length, dim), lambda i, h: (jax.lax.div(h, groups), 0, 0)
  )
  out, normaliser = _call(
      functools.partial(_forward_kernel, factor=factor), (n, heads),
      [
          pl.BlockSpec((None, n), lambda i, h: (i, 0)),
          pl.BlockSpec((1,), lambda i, h: (i,)),
          mine, whole, whole,
          pl.BlockSpec((length,), lambda i, h: (0,)),
      ],
      (mine, pl.BlockSpec((None, _BLOCK), lambda i, h: (h, i))),
      (
          jax.ShapeDtypeStruct(q.shape, jnp.float32),
          jax.ShapeDtypeStruct((heads, length), jnp.float32),
      ),
      interpret, 'forest_attention_forward',
  )(which, count, q, keys, values, subtree_end)
  return out.transpose(0, 2, 1), normaliser[:, None]


def backward(
    q: Array, keys: Array, values: Array, subtree_end: Array, normaliser: Array,
    inner: Array, d_out: Array, *, block: int, factor: float = 1.0,
    interpret: Any = False,
) -> tuple[Array, Array, Array]:
  """Gradients of one row; as in attention_tpu.backward."""
  del block
  heads, length, dim = q.shape
  kv_heads = keys.shape[0]
  groups = heads // kv_heads
  needed, _ = attention_tpu.pairs(subtree_end, _BLOCK)
  n = needed.shape[0]
  normaliser, inner = normaliser[:, 0], inner[:, 0]
  every = pl.BlockSpec((length,), lambda i, h: (0,))

  mine = pl.BlockSpec((None, _BLOCK, dim), lambda i, h: (h, i, 0))
  whole = pl.BlockSpec(
      (None, length, dim), lambda i, h: (jax.lax.div(h, groups), 0, 0)
  )
  sums = pl.BlockSpec((None, _BLOCK), lambda i, h: (h, i))
  row = pl.BlockSpec((None, n), lambda i, h: (i, 0))
  one = pl.BlockSpec((1,), lambda i, h: (i,))
  d_q = _call(
      functools.partial(_queries_kernel, factor=factor), (n, heads),
      [row, one, mine, whole, whole, every, sums, sums, mine], mine,
      jax.ShapeDtypeStruct(q.shape, jnp.float32), interpret,
      'forest_attention_queries',
  )(*_lists(needed), q, keys, values, subtree_end, normaliser, inner, d_out)

  def grouped(x):
    return x.reshape(kv_heads, groups, *x.shape[1:])

  key = pl.BlockSpec((None, _BLOCK, dim), lambda j, h: (h, j, 0))
  queries = pl.BlockSpec(
      (None, groups, length, dim), lambda j, h: (h, 0, 0, 0)
  )
  totals = pl.BlockSpec((None, groups, length), lambda j, h: (h, 0, 0))
  d_k, d_v = _call(
      functools.partial(_keys_kernel, factor=factor), (n, kv_heads),
      [
          row, one, queries, key, key,
          pl.BlockSpec((_BLOCK,), lambda j, h: (j,)), totals, totals, queries,
      ],
      (key, key), (jax.ShapeDtypeStruct(keys.shape, jnp.float32),) * 2,
      interpret, 'forest_attention_keys',
  )(
      *_lists(needed.T), grouped(q), keys, values, subtree_end,
      grouped(normaliser), grouped(inner), grouped(d_out),
  )
  return d_q.transpose(0, 2, 1), d_k, d_v
