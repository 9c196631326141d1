"""Attention over forests, block by block, without what no token sees.

Token j is seen by token i exactly when j <= i < subtree_end[j]. A block of keys
whose subtrees all end before a block of queries is skipped, so side by side
sequences and branches cost what they see of each other: nothing. Scores exist
for one pair of blocks at a time (FlashAttention-2, arXiv 2307.08691): the
softmax is summed up as blocks pass, and the backward pass makes the scores
again from its normaliser.
"""

import dataclasses
import functools
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import sharding as jax_sharding

Array = jax.Array

# Finite, so that a padding token, which may attend to nothing, stays finite.
MASKED = -1e30
# Twice as many queries: products are that much larger, and the softmax is added
# up half as often, for a few per cent more scores that the mask then empties.
_QUERIES, _KEYS = 256, 128
# Blocks of a kernel are multiples of what a TPU's registers hold in a row.
_LANES = 128
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


@dataclasses.dataclass(frozen=True)
class Blocks:
  """How rows are cut: tokens of a block of queries, and of one of keys.

  Attributes:
    queries: a multiple of `keys`.
    keys: tokens of a block of keys.
    kernel: what goes over them: 'xla' runs anywhere; 'pallas' is a kernel for
      the platform, whose blocks are square.
  """

  queries: int
  keys: int
  kernel: Literal['xla', 'pallas'] = 'xla'

  def __post_init__(self):
    if self.keys < 1 or self.queries % self.keys:
      raise ValueError(f'queries must be a multiple of keys: {self}')
    if self.kernel == 'pallas' and (
        self.queries != self.keys or self.keys % _LANES
    ):
      raise ValueError(
          f'a kernel has square blocks of multiples of {_LANES}: {self}'
      )


def blocks_of(length: int, choice: str = 'auto') -> Blocks | None:
  """Returns how rows of T tokens are cut; None for dense rows.

  Args:
    length: T.
    choice: see ModelConfig.attention.
  """
  if choice == 'auto':
    choice = 'blocks' if length >= _MIN_BLOCKED else 'dense'
  if choice == 'dense':
    return None
  if choice == 'pallas':
    # Large blocks cost fewer steps, and short rows would be mostly padding.
    block = 512 if length >= 4096 else _LANES
    return Blocks(block, block, 'pallas')
  # Rows shorter than eight blocks have smaller ones, so that some are skipped.
  eighth = 1 << max(length // 8, 1).bit_length() - 1
  keys = max(_MIN_BLOCK, min(_KEYS, eighth))
  return Blocks(keys * _QUERIES // _KEYS, keys)


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
    blocks: Blocks,
    dtype: str,
    mesh: jax_sharding.Mesh | None = None,
) -> Array:
  """softmax(q k / sqrt(E)) v over what each token sees.

  Args:
    q: [B, K, H/K, T, E].
    keys: [B, K, E, T].
    values: [B, K, T, E].
    subtree_end: int32[B, T]; 0 is padding, which nothing sees.
    blocks: how rows are cut, and by what; they are padded to whole blocks.
    dtype: of the activations, see float32_product.
    mesh: over which rows (data, fsdp) and heads (tensor) are spread; None where
      everything is on one device.

  Returns:
    float32[B, K, H/K, T, E]; 0 for a token that sees nothing.
  """
  length = q.shape[3]
  short = -length % blocks.queries

  def padded(x, axis):
    return jnp.pad(x, [(0, short if a == axis else 0) for a in range(x.ndim)])

  arrays = (
      padded(q, 3), padded(keys, 3), padded(values, 2), padded(subtree_end, 1)
  )

  attend = _attend_row if blocks.kernel == 'xla' else _attend_row_in_kernel

  def one_row(arrays):
    return attend(blocks, dtype, *arrays)

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


def needed(subtree_end: Any, blocks: Blocks) -> Any:
  """Returns bool[..., n, m]: whether a block of queries sees one of keys.

  Args:
    subtree_end: int[..., T], a NumPy or JAX array of whole blocks.
    blocks: how rows are cut.
  """
  length = subtree_end.shape[-1]
  lead = subtree_end.shape[:-1]
  reach = subtree_end.reshape(*lead, -1, blocks.keys).max(axis=-1)
  first = np.arange(0, length, blocks.queries)[:, None]
  causal = np.arange(0, length, blocks.keys) < first + blocks.queries
  return causal & (reach[..., None, :] > first)


def _lists(subtree_end: Array, blocks: Blocks) -> tuple[Array, Array]:
  """Returns, for each block of queries, the key blocks it needs, and how many.

  Returns:
    int32[n, m], of which the first so many of each row mean something, and
    int32[n], how many.
  """
  wanted = needed(subtree_end, blocks)
  which = jnp.argsort(~wanted, axis=1, stable=True).astype(jnp.int32)
  return which, wanted.sum(axis=1, dtype=jnp.int32)


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


def _scores(dtype, blocks, q, k, ends, i, j) -> Array:
  """Returns scores[K, S, G, Q] of two blocks, MASKED where they do not count.

  Keys come first: so all five products of a backward pass read what they read
  in the order in which it lies.
  """
  mine = i * blocks.queries + jnp.arange(blocks.queries)
  theirs = j * blocks.keys + jnp.arange(blocks.keys)[:, None]
  seen = (theirs <= mine) & (mine < ends[:, None])
  scores = float32_product(dtype, 'kse,kegq->ksgq', k, q)
  scores = _times(scores, _scale(k.shape[-1])[1])
  return jnp.where(seen[:, None], scores, MASKED)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attend_row(blocks, dtype, q, keys, values, subtree_end) -> Array:
  """One row: q [K, G, T, E], keys [K, E, T], values [K, T, E]."""
  return _forward(blocks, dtype, q, keys, values, subtree_end)[0]


def _scale(dim: int) -> tuple[float, float]:
  """Returns 1 / sqrt(E): a power of two, which no dtype rounds, and the rest."""
  scale = 1 / math.sqrt(dim)
  power = 2.0 ** round(math.log2(scale))
  return power, scale / power


def _scaled(q: Array) -> Array:
  return q * jnp.asarray(_scale(q.shape[-1])[0], q.dtype)


def _times(x: Array, factor: float) -> Array:
  return x if factor == 1 else x * factor


def _forward(blocks, dtype, q, keys, values, subtree_end):
  """Returns the result, and what the backward pass needs."""
  which, count = _lists(subtree_end, blocks)
  product = functools.partial(float32_product, dtype)
  scaled = _scaled(q)
  key_rows, value_columns = keys.transpose(0, 2, 1), values.transpose(0, 2, 1)

  def queries(i, carry):
    mine = _columns(scaled, i, blocks)

    def one(c, state):
      top, total, mixed = state
      j = which[i, c]
      scores = _scores(
          dtype, blocks, mine, _take(key_rows, j, blocks.keys, 1),
          _take(subtree_end, j, blocks.keys, 0), i, j,
      )
      new_top = jnp.maximum(top, scores.max(axis=1, keepdims=True))
      # Before a query's first seen key these are exp(0); what they add up to is
      # multiplied by exp(MASKED - score) = 0 when that key comes.
      weights = jnp.exp(scores - new_top)
      rescale = jnp.exp(top - new_top)
      added = product(
          'kes,ksgq->kegq', _take(value_columns, j, blocks.keys, 2),
          weights.astype(dtype),
      )
      return (
          new_top,
          total * rescale + weights.sum(axis=1, keepdims=True),
          mixed * rescale + added,
      )

    one_each = (mine.shape[0], 1, *mine.shape[2:])
    top, total, mixed = jax.lax.fori_loop(
        0, count[i], one,
        (
            jnp.full(one_each, MASKED, jnp.float32),
            jnp.zeros(one_each, jnp.float32),
            jnp.zeros(mine.shape, jnp.float32),
        ),
    )
    blind = top == MASKED  # A padding token sees nothing.
    out, normaliser = carry
    log_total = jnp.where(blind, -MASKED, top + jnp.log(total))
    return (
        _put(out, _rows(jnp.where(blind, 0.0, mixed / total)), i, 2),
        _put(normaliser, _rows(log_total), i, 2),
    )

  out, normaliser = jax.lax.fori_loop(
      0, count.shape[0], queries,
      (
          jnp.zeros(q.shape, jnp.float32),
          jnp.zeros((*q.shape[:3], 1), jnp.float32),
      ),
  )
  return out, (q, keys, values, subtree_end, out, normaliser)


def _backward(blocks, dtype, saved, d_out):
  """With P the weights: dV = P^T dO, dS = P (dO V^T - sum(dO O)), dQ, dK."""
  q, keys, values, subtree_end, out, normaliser = saved
  which, count = _lists(subtree_end, blocks)
  product = functools.partial(float32_product, dtype)
  inner = jnp.sum(d_out * out, axis=-1, keepdims=True)
  scaled, d_out = _scaled(q), d_out.astype(dtype)
  key_rows = keys.transpose(0, 2, 1)
  factor = _scale(q.shape[-1])[1]

  def queries(i, carry):
    mine, d_mine = _columns(scaled, i, blocks), _columns(d_out, i, blocks)
    my_rows, d_rows = (_take(x, i, blocks.queries, 2) for x in (scaled, d_out))
    log_total = _columns(normaliser, i, blocks)
    my_inner = _columns(inner, i, blocks)

    def one(c, state):
      d_q, d_keys, d_values = state
      j = which[i, c]
      scores = _scores(
          dtype, blocks, mine, _take(key_rows, j, blocks.keys, 1),
          _take(subtree_end, j, blocks.keys, 0), i, j,
      )
      weights = jnp.exp(scores - log_total)
      d_weights = product(
          'kse,kegq->ksgq', _take(values, j, blocks.keys, 1), d_mine
      )
      d_scores = _times(weights * (d_weights - my_inner), factor).astype(dtype)
      d_k = product('ksgq,kgqe->kse', d_scores, my_rows)
      d_v = product('ksgq,kgqe->kse', weights.astype(dtype), d_rows)
      return (
          d_q + product(
              'kes,ksgq->kegq', _take(keys, j, blocks.keys, 2), d_scores
          ),
          _put(d_keys, _take(d_keys, j, blocks.keys, 1) + d_k, j, 1),
          _put(d_values, _take(d_values, j, blocks.keys, 1) + d_v, j, 1),
      )

    d_q, d_keys, d_values = carry
    d_mine_q, d_keys, d_values = jax.lax.fori_loop(
        0, count[i], one,
        (jnp.zeros(mine.shape, jnp.float32), d_keys, d_values),
    )
    return _put(d_q, _rows(d_mine_q), i, 2), d_keys, d_values

  d_q, d_keys, d_values = jax.lax.fori_loop(
      0, count.shape[0], queries,
      tuple(jnp.zeros(x.shape, jnp.float32) for x in (q, values, values)),
  )
  return (
      _scaled(d_q).astype(q.dtype),
      d_keys.transpose(0, 2, 1).astype(keys.dtype),
      d_values.astype(values.dtype),
      None,
  )


_attend_row.defvjp(_forward, _backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attend_row_in_kernel(blocks, dtype, q, keys, values, subtree_end) -> Array:
  """As _attend_row, by a kernel."""
  return _kernel_forward(blocks, dtype, q, keys, values, subtree_end)[0]


def _by_platform(name: str, blocks: Blocks, *arrays: Array, **given) -> Any:
  """Runs a function of the platform's kernels; CPU interprets those of TPU."""

  # Here, so that who asks for no kernel needs no Pallas: its backends change.
  # pylint: disable=import-outside-toplevel
  from agentflow_jax.core import attention_gpu
  from agentflow_jax.core import attention_tpu
  # pylint: enable=import-outside-toplevel

  def of(module, **options):
    return functools.partial(
        getattr(module, name), block=blocks.keys, **given, **options
    )

  return jax.lax.platform_dependent(
      *arrays, tpu=of(attention_tpu), cuda=of(attention_gpu),
      cpu=of(attention_tpu, interpret=True),
  )


def _kernel_forward(blocks, dtype, q, keys, values, subtree_end):
  del dtype  # The kernel sees it.
  kv_heads, groups, length, dim = q.shape
  scaled = _scaled(q).reshape(-1, length, dim)
  key_rows = keys.transpose(0, 2, 1)
  out, normaliser = _by_platform(
      'forward', blocks, scaled, key_rows, values, subtree_end,
      factor=_scale(dim)[1],
  )
  saved = (scaled, key_rows, values, subtree_end, out, normaliser)
  out = out.reshape(kv_heads, groups, dim, length).transpose(0, 1, 3, 2)
  return out, saved


def _kernel_backward(blocks, dtype, saved, d_out):
  q, keys, values, subtree_end, out, normaliser = saved
  shape = d_out.shape
  d_out = d_out.reshape(q.shape)
  inner = jnp.sum(d_out * out.transpose(0, 2, 1), axis=-1)[:, None]
  d_q, d_k, d_v = _by_platform(
      'backward', blocks, q, keys, values, subtree_end, normaliser, inner,
      d_out.astype(dtype), factor=_scale(q.shape[-1])[1],
  )
  d_q = _scaled(d_q.transpose(0, 2, 1)).reshape(shape)
  return (
      d_q.astype(q.dtype), d_k.transpose(0, 2, 1).astype(keys.dtype),
      d_v.astype(values.dtype), None,
  )


_attend_row_in_kernel.defvjp(_kernel_forward, _kernel_backward)
