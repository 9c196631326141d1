"""Keys and values in pages, and attention over them.

A row's slots lie in pages anywhere in a pool, by a table, so rows with a common
prefix read the same pages and nothing is copied. Short tables are gathered whole
and attended to as the trainer attends to short rows, to the bit. Long ones are
gone over in blocks of 128 slots, in order, from slot 0: what is added up, and in
which order, depends on the row alone, and not on where its pages lie, on how
long other rows are, or on who wrote the pages.

Layouts and the order of axes are chosen for XLA's CPU, by measurement.
"""

import functools
import math
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax import lax

from agentflow_jax.core import attention
from agentflow_jax.core import blocks
from agentflow_jax.core import model
from agentflow_jax.core import primitives

Array = jax.Array

# Slots that a block of attention holds; a multiple of a page.
BLOCK = attention.SLOT_BLOCK
# Tables of more slots are gone over by blocks.
_MAX_DENSE = 512
# Where whatever nobody will read is written.
SCRATCH = 0


@flax.struct.dataclass
class Pool:
  """Pages of P tokens; a page of every layer, L * N in all.

  Attributes:
    keys: dtype[K, L * N, P, E], rotated; int8 where there are scales.
    values: likewise.
    key_scales: float32[K, L * N, P, 1], what a token's int8 count times, or None.
    value_scales: likewise.
  """

  keys: Array
  values: Array
  key_scales: Array | None = None
  value_scales: Array | None = None


def make_pool(
    config: model.ModelConfig, pages: int, page_tokens: int, kv_dtype: str = ''
) -> Pool:
  """Returns an empty pool.

  Args:
    config: the network.
    pages: N, of each layer; the first is SCRATCH.
    page_tokens: P.
    kv_dtype: 'int8', or '' for the network's.
  """
  shape = (
      config.n_kv_heads, config.n_layers * pages, page_tokens, config.head_dim
  )
  zeros = lambda: jnp.zeros(shape, kv_dtype or config.dtype)
  if not kv_dtype:
    return Pool(zeros(), zeros())
  scales = lambda: jnp.zeros((*shape[:3], 1), jnp.float32)
  return Pool(zeros(), zeros(), scales(), scales())


def _as_int8(x: Array) -> tuple[Array, Array]:
  """Returns int8 [..., E] and float32 scales [..., 1]; x is about their product.

  Symmetric, a scale a token and head: off by half a scale, 1/254 of the largest,
  at most. What is not finite makes a scale that is not.
  """
  x = x.astype(jnp.float32)
  scale = jnp.abs(x).max(axis=-1, keepdims=True) / 127
  # Zeros are zeros, whatever they are divided by.
  return jnp.round(x / jnp.where(scale == 0, 1, scale)).astype(jnp.int8), scale


def pool_sharding(params: Any) -> jax.sharding.Sharding:
  """Returns where pages lie: split over what splits the heads of keys.

  Args:
    params: the network's parameters, or their shapes with shardings.
  """
  kernel = params['layers']['attention']['k']['kernel'].sharding
  if not isinstance(kernel, jax.sharding.NamedSharding):
    return kernel
  heads = (*kernel.spec, *[None] * 4)[2]  # Of [layers, embed, kv_heads, head_dim].
  return jax.sharding.NamedSharding(
      kernel.mesh, jax.sharding.PartitionSpec(heads)
  )


def copy_pages(pool: Pool, n_layers: int, pairs: Array, count: Array) -> Pool:
  """Returns the pool with pages copied, in every layer.

  Args:
    pool: the pages.
    n_layers: L.
    pairs: int32[n, 2], from which page to which.
    count: int32[], how many of the pairs.
  """

  def copy(i, x):
    y = x.reshape(x.shape[0], n_layers, -1, *x.shape[2:])
    page = lax.dynamic_slice_in_dim(y, pairs[i, 0], 1, axis=2)
    y = lax.dynamic_update_slice_in_dim(y, page, pairs[i, 1], axis=2)
    return y.reshape(x.shape)

  return lax.fori_loop(
      0, count, lambda i, pool: jax.tree.map(functools.partial(copy, i), pool),
      pool,
  )


@flax.struct.dataclass
class Cache:
  """A pool as rows of a batch see it: a core.model.Cache.

  Attributes:
    pool: the pages.
    n_layers: L; static.
    starts: int32[B], the slot of a row's first new token.
    tables: int32[B, M], the pages of a row's slots, in order; what lies beyond
      its slots counts 0 times, so it has to be finite. M pages are whole blocks.
    common: int32[], blocks that all rows begin with, in the same pages. They
      are read once, for all rows, whose last bits may change by that. 0: none.
    writes: int32[B, W], the pages that new tokens are written to: one, from
      slot `starts` on, where a row has one new token; otherwise T is W whole
      pages. SCRATCH where they are not to be kept.
  """

  pool: Pool
  n_layers: int = flax.struct.field(pytree_node=False)
  starts: Array
  tables: Array
  common: Array
  writes: Array

  def attend(
      self, dtype: str, layer: Array, q: Array, k: Array, v: Array
  ) -> tuple[Array, 'Cache']:
    """See core.layers.Cache."""
    first = layer * (self.pool.keys.shape[1] // self.n_layers)
    pool = self._written(first, k, v)
    cache = self.replace(pool=pool)
    return cache._attended(dtype, first, q), cache

  def _written(self, first: Array, k: Array, v: Array) -> Pool:
    """Writes a layer's new tokens, before anything is read."""
    page_tokens = self.pool.values.shape[2]
    rows, pages = self.writes.shape
    width = k.shape[-1] // pages
    offsets = self.starts % page_tokens if width < page_tokens else None

    k, v = k.transpose(1, 0, 3, 2), v.swapaxes(0, 1)
    if self.pool.key_scales is None:
      new = Pool(k, v)
    else:
      (k, k_scales), (v, v_scales) = _as_int8(k), _as_int8(v)
      new = Pool(k, v, k_scales, v_scales)

    def write(n, pool):
      row, page = n // pages, n % pages
      to = first + self.writes[row, page]
      offset = 0 if offsets is None else offsets[row]

      def put(x, new):
        some = lax.dynamic_slice(
            new, (0, row, page * width, 0),
            (new.shape[0], 1, width, new.shape[3]),
        )
        return lax.dynamic_update_slice(x, some, (0, to, offset, 0))

      return jax.tree.map(put, pool, new)

    # A loop of in-place slices: XLA's CPU scatter takes twenty times as long.
    return lax.fori_loop(0, rows * pages, write, self.pool)

  def _attended(self, dtype: str, first: Array, q: Array) -> Array:
    """softmax(q k / sqrt(E)) v over each row's slots, its new ones included."""
    slots = self.tables.shape[1] * self.pool.values.shape[2]
    positions = self.starts[:, None] + jnp.arange(q.shape[3])
    if slots > _MAX_DENSE:
      return self._by_blocks(dtype, first, q, positions)
    return self._whole(dtype, first, q, positions, slots)

  def _whole(
      self, dtype: str, first: Array, q: Array, positions: Array, slots: int
  ) -> Array:
    """Attends as attend_dense does, in the order that is fastest.

    In float32 on CPU it is the same to the bit.
    """
    rows, heads, groups, length, dim = q.shape
    q = q.swapaxes(0, 1).reshape(heads, rows, groups * length, dim)
    keys, values = self._gathered(dtype, self.tables, first, 0, slots)
    product = functools.partial(primitives.float32_product, dtype)
    scores = product('kbge,kbse->kbgs', q, keys) * (1 / math.sqrt(dim))
    seen = jnp.arange(slots) <= jnp.tile(positions, (1, groups))[:, :, None]
    scores = jnp.where(seen, scores, blocks.MASKED)
    weights = jnp.exp(scores - scores.max(axis=3, keepdims=True))
    n = slots // BLOCK
    weights = weights.reshape(*weights.shape[:3], n, BLOCK).swapaxes(2, 3)
    values = values.reshape(heads, rows, n, BLOCK, dim)
    mixed = product(
        'kbngs,kbnse->kbnge', weights.astype(dtype), values
    ).sum(axis=2)
    # Ones: a single column would do, and is rounded otherwise. They are made
    # from what is not known ahead, since XLA's CPU (JAX 0.10.2) reads beside a
    # constant that it hands to a library together with its product and sum.
    ones = (values == values).astype(jnp.float32)
    total = product('kbngs,kbnse->kbnge', weights, ones).sum(axis=2)
    y = mixed / total[..., :1]
    return y.reshape(heads, rows, groups, length, dim).swapaxes(0, 1)

  def _gathered(
      self,
      dtype: str,
      tables: Array,
      first: Array,
      start: Array | int,
      slots: int,
  ) -> tuple[Array, Array]:
    """Returns keys and values [K, B, S, E] of some slots of the tables' rows."""
    pool = self.pool
    heads, _, page_tokens, _ = pool.keys.shape
    count = slots // page_tokens
    some = first + lax.dynamic_slice_in_dim(
        tables, start // page_tokens, count, 1
    )
    take = lambda x: x.at[:, some].get(mode='promise_in_bounds').reshape(
        heads, tables.shape[0], slots, x.shape[-1]
    )
    if pool.key_scales is None:
      return take(pool.keys), take(pool.values)
    return tuple(
        (take(x).astype(jnp.float32) * take(scales)).astype(dtype)
        for x, scales in (
            (pool.keys, pool.key_scales), (pool.values, pool.value_scales)
        )
    )

  def _by_blocks(
      self, dtype: str, first: Array, q: Array, positions: Array
  ) -> Array:
    """Goes over as many blocks as the longest row has.

    Those that all rows have in common are read once, for all queries.

    Args:
      dtype: of the activations.
      first: int32[], the layer's first page.
      q: [B, K, H/K, T, E].
      positions: int32[B, T], slots of the new tokens.
    """
    rows, heads, groups, length, dim = q.shape
    lead = (heads, rows, groups * length)
    q = q.swapaxes(0, 1).reshape(*lead, dim)
    product = functools.partial(primitives.float32_product, dtype)
    n_blocks = jnp.max(positions) // BLOCK + 1
    positions = jnp.tile(positions, (1, groups))[:, :, None]
    scale = 1 / math.sqrt(dim)

    def one(is_common, j, carry):
      """Goes over block j: of each row's own slots, or of those all share."""
      top, total, mixed = carry
      tables = self.tables[:1] if is_common else self.tables
      read = self._gathered(dtype, tables, first, j * BLOCK, BLOCK)
      of = 'kse' if is_common else 'kbse'
      keys, values = (x[:, 0] for x in read) if is_common else read
      scores = product(f'kbge,{of}->kbgs', q, keys)
      seen = j * BLOCK + jnp.arange(BLOCK) <= positions
      scores = jnp.where(seen, scores * scale, blocks.MASKED)
      # Blocks beyond a row's slots change nothing: its top stays, times exp(0),
      # and exp(MASKED - top) is 0.
      new_top = jnp.maximum(top, scores.max(axis=3, keepdims=True))
      rescale = jnp.exp(top - new_top)
      weights = jnp.exp(scores - new_top)
      total = total * rescale + weights.sum(axis=3, keepdims=True)
      added = product(f'kbgs,{of}->kbge', weights.astype(dtype), values)
      return new_top, total, mixed * rescale + added

    carry = (
        jnp.full((*lead, 1), blocks.MASKED, jnp.float32),
        jnp.zeros((*lead, 1), jnp.float32),
        jnp.zeros((*lead, dim), jnp.float32),
    )
    for is_common, start, end in (
        (True, 0, self.common), (False, self.common, n_blocks),
    ):
      carry = lax.fori_loop(
          start, end, functools.partial(one, is_common), carry
      )
    _, total, mixed = carry
    y = (mixed / total).reshape(heads, rows, groups, length, dim)
    return y.swapaxes(0, 1)
