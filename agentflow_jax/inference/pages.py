"""Keys and values in pages, and attention over them.

A row's slots lie in pages anywhere in a pool, by a table, so rows with a common
prefix have the same pages. Short tables are gathered whole and attended to as the
trainer attends to short rows, to the bit. Long ones are gone over in blocks of
128 slots, in order, from slot 0: what is added up, and in which order, depends on
the row alone, and not on where its pages lie, on how long other rows are, or on
who wrote the pages. Decoding reads pages through `gathered` or `kernels`. Which page
holds what, and which are evicted, is decided in `prefixes`.

Layouts and the order of axes are chosen for XLA's CPU, by measurement.
"""

import dataclasses
import functools
import math
from typing import Any, Literal

import flax.struct
import jax
import jax.numpy as jnp
from jax import lax

from agentflow_jax.core import attention
from agentflow_jax.core import blocks
from agentflow_jax.core import model
from agentflow_jax.core import primitives
from agentflow_jax.inference import kernels

Array = jax.Array

# Slots that a block of attention holds; a multiple of a page.
BLOCK = attention.SLOT_BLOCK
# Rows of more slots are added up otherwise than short rows of the trainer.
MAX_DENSE = 512
# Where whatever nobody will read is written.
SCRATCH = 0


@flax.struct.dataclass
class Pool:
  """Pages of P tokens; a page of every layer, L * N in all.

  Attributes:
    keys: dtype[K, L * N, P, E], rotated; int8 where there are scales.
    values: dtype[K, L * N, P, E]; int8 where there are scales.
    key_scales: float32[K, L * N, P, 1], factor of a token's int8, or None.
    value_scales: float32[K, L * N, P, 1], factor of a token's int8, or None.
  """

  keys: Array
  values: Array
  key_scales: Array | None = None
  value_scales: Array | None = None


@flax.struct.dataclass
class Copies:
  """Pages to be copied; NumPy or JAX arrays.

  Attributes:
    pairs: int32[n, 2], from which page to which.
    count: int32[], how many of the pairs count.
  """

  pairs: primitives.HostArray
  count: primitives.HostArray


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
  shape = (config.n_kv_heads, config.n_layers * pages, page_tokens, config.head_dim)
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
    params: the network's parameters with layers stacked or apart, or their
      shapes with shardings.
  """
  is_stacked = 'layers' in params
  layer = params['layers' if is_stacked else 'layers_0']
  kernel = layer['attention']['k']['kernel'].sharding
  if not isinstance(kernel, jax.sharding.NamedSharding):
    return kernel
  # Of [layers, embed, kv_heads, head_dim], or of one layer without the first.
  heads = (*kernel.spec, *[None] * 4)[1 + is_stacked]
  return jax.sharding.NamedSharding(kernel.mesh, jax.sharding.PartitionSpec(heads))


def copy_pages(
  pool: Pool, n_layers: int, copies: Copies, source: Pool | None = None
) -> Pool:
  """Returns the pool with pages copied, in every layer.

  Args:
    pool: the pages.
    n_layers: L.
    copies: pairs of pages, from which to which.
    source: pool whose pages are copied; None for the pool's own.
  """

  def copy(i, x, source):
    by_layer = lambda x: x.reshape(x.shape[0], n_layers, -1, *x.shape[2:])
    old, new = copies.pairs[i]
    page = lax.dynamic_slice_in_dim(by_layer(source), old, 1, axis=2)
    y = lax.dynamic_update_slice_in_dim(by_layer(x), page, new, axis=2)
    return y.reshape(x.shape)

  def one(i, pool):
    return jax.tree.map(
      functools.partial(copy, i), pool, pool if source is None else source
    )

  return lax.fori_loop(0, copies.count, one, pool)


def take(pool: Pool, tables: Array) -> Pool:
  """Returns the pages of rows, [K, B, S, E] each, in order.

  Args:
    pool: the pages.
    tables: int32[B, n], which ones; S is n * P.
  """
  rows, count = tables.shape
  return jax.tree.map(
    lambda x: (
      x.at[:, tables]
      .get(mode='promise_in_bounds')
      .reshape(x.shape[0], rows, count * x.shape[2], x.shape[3])
    ),
    pool,
  )


def first_page(pool: Pool, n_layers: int, layer: Array | int) -> Array | int:
  """Returns a layer's first page."""
  return layer * (pool.keys.shape[1] // n_layers)


def new_tokens(kv_dtype: str, k: Array, v: Array) -> Pool:
  """Returns new tokens [K, B, T, E] as pages keep them.

  Args:
    kv_dtype: format of the pages, see make_pool.
    k: [B, K, E, T], rotated.
    v: [B, K, T, E].
  """
  k, v = k.transpose(1, 0, 3, 2), v.swapaxes(0, 1)
  if not kv_dtype:
    return Pool(k, v)
  (k, k_scales), (v, v_scales) = _as_int8(k), _as_int8(v)
  return Pool(k, v, k_scales, v_scales)


def plain(dtype: str, some: Pool) -> tuple[Array, Array]:
  """Returns keys and values of what a pool, or a part of one, holds."""
  if some.key_scales is None or some.value_scales is None:
    return some.keys, some.values
  keys, values = (
    (x.astype(jnp.float32) * scales).astype(dtype)
    for x, scales in ((some.keys, some.key_scales), (some.values, some.value_scales))
  )
  return keys, values


def write(
  pool: Pool, new: Pool, first: Array | int, starts: Array, writes: Array
) -> Pool:
  """Returns the pool with a layer's new tokens.

  Args:
    pool: the pages.
    new: [K, B, T, E] each, see new_tokens.
    first: the layer's first page.
    starts: int32[B], the slot of a row's first new token.
    writes: int32[B, W], see Cache.
  """
  # SCRATCH is in everybody's table, with weight 0: what is not finite in one row
  # must not get there.
  count = new.values.shape[2] // writes.shape[1]
  goes = jnp.repeat(writes != SCRATCH, count, axis=1)[None, :, :, None]
  new = jax.tree.map(lambda x: jnp.where(goes, x, 0), new)
  # XLA's CPU scatters whole pages twenty times as slowly as it puts slices.
  return lax.platform_dependent(
    pool, new, first, starts, writes, cpu=_write_in_turn, default=_write_at_once
  )


def _offsets(pool: Pool, new: Pool, starts: Array, writes: Array):
  """Returns where in its page a row's one token goes; None for whole pages."""
  page_tokens = pool.values.shape[2]
  width = new.values.shape[2] // writes.shape[1]
  return starts % page_tokens if width < page_tokens else None


def _write_in_turn(pool, new, first, starts, writes) -> Pool:
  rows, pages = writes.shape
  offsets = _offsets(pool, new, starts, writes)
  width = new.values.shape[2] // pages

  def one(n, pool):
    row, page = n // pages, n % pages
    to = first + writes[row, page]
    offset = 0 if offsets is None else offsets[row]

    def put(x, new):
      some = lax.dynamic_slice(
        new, (0, row, page * width, 0), (new.shape[0], 1, width, new.shape[3])
      )
      return lax.dynamic_update_slice(x, some, (0, to, offset, 0))

    return jax.tree.map(put, pool, new)

  return lax.fori_loop(0, rows * pages, one, pool)


def _write_at_once(pool, new, first, starts, writes) -> Pool:
  offsets = _offsets(pool, new, starts, writes)

  def put(x, new):
    heads, _, _, dim = new.shape
    # Heads one by one: else a TPU lays the whole pool out anew for it.
    head = jnp.arange(heads)[:, None]
    if offsets is None:
      some = new.reshape(heads, writes.size, -1, dim)
      return x.at[head, first + writes.reshape(1, -1)].set(some)
    return x.at[head, first + writes[:, 0], offsets].set(new[:, :, 0])

  return jax.tree.map(put, pool, new)


def attend_whole(
  dtype: str, q: Array, keys: Array, values: Array, positions: Array
) -> Array:
  """Attends as core.attention.attend_dense does, in the order that is fastest.

  In float32 on CPU it is the same to the bit.

  Args:
    dtype: dtype of the activations.
    q: [B, K, H/K, T, E].
    keys: [K, B, S, E]; whole blocks.
    values: [K, B, S, E]; whole blocks.
    positions: int32[B, T], the slots up to which the queries see.

  Returns:
    float32[B, K, H/K, T, E].
  """
  rows, heads, groups, length, dim = q.shape
  slots = keys.shape[2]
  q = q.swapaxes(0, 1).reshape(heads, rows, groups * length, dim)
  product = functools.partial(primitives.float32_product, dtype)
  scores = product('kbge,kbse->kbgs', q, keys) * (1 / math.sqrt(dim))
  seen = jnp.arange(slots) <= jnp.tile(positions, (1, groups))[:, :, None]
  scores = jnp.where(seen, scores, blocks.MASKED)
  weights = jnp.exp(scores - scores.max(axis=3, keepdims=True))
  n = slots // BLOCK
  weights = weights.reshape(*weights.shape[:3], n, BLOCK).swapaxes(2, 3)
  values = values.reshape(heads, rows, n, BLOCK, dim)
  mixed = product('kbngs,kbnse->kbnge', weights.astype(dtype), values).sum(axis=2)
  # Ones: a single column would do, and is rounded otherwise. They are made
  # from what is not known ahead, since XLA's CPU (JAX 0.10.2) reads beside a
  # constant that it hands to a library together with its product and sum.
  ones = (values == values).astype(jnp.float32)
  total = product('kbngs,kbnse->kbnge', weights, ones).sum(axis=2)
  y = mixed / total[..., :1]
  return y.reshape(heads, rows, groups, length, dim).swapaxes(0, 1)


def _parts(rows: int) -> int:
  """Returns in how many equal parts XLA's CPU attends to pieces of prompts.

  It computes a product of this size on one core, and what does not depend on one
  another on several cores only where more than eight operations are ready. Each
  part has several; more than eight parts are no faster, and compile for longer.
  Equal, since the bits of a row may depend on how many are beside it.
  """
  return max(n for n in range(1, 9) if rows % n == 0)


def _attend_blocks(
  dtype: str, pool: Pool, tables: Array, q: Array, positions: Array, parts: int = 1
) -> Array:
  """Goes over as many blocks of slots as the longest row has.

  Args:
    dtype: dtype of the activations.
    pool: the pages.
    tables: int32[B, M], pages of a layer.
    q: [B, K, H/K, T, E].
    positions: int32[B, T], slots of the new tokens.
    parts: number of parts that B is divided into; the rows of each are computed
      separately.

  Returns:
    float32[B, K, H/K, T, E].
  """
  rows, heads, groups, length, dim = q.shape
  product = functools.partial(primitives.float32_product, dtype)
  n_blocks = jnp.max(positions) // BLOCK + 1
  scale = 1 / math.sqrt(dim)
  block_pages = BLOCK // pool.values.shape[2]
  q = q.swapaxes(0, 1).reshape(heads, rows, groups * length, dim)
  positions = jnp.tile(positions, (1, groups))[:, :, None]
  qs = jnp.split(q, parts, axis=1)
  apart = list(
    zip(jnp.split(tables, parts), qs, jnp.split(positions, parts), strict=True)
  )

  def one(j, tables, q, positions, top, total, mixed):
    some = lax.dynamic_slice_in_dim(tables, j * block_pages, block_pages, 1)
    keys, values = plain(dtype, take(pool, some))
    scores = product('kbge,kbse->kbgs', q, keys)
    seen = j * BLOCK + jnp.arange(BLOCK) <= positions
    scores = jnp.where(seen, scores * scale, blocks.MASKED)
    # Blocks beyond a row's slots change nothing: its top stays, times exp(0),
    # and exp(MASKED - top) is 0.
    new_top = jnp.maximum(top, scores.max(axis=3, keepdims=True))
    rescale = jnp.exp(top - new_top)
    weights = jnp.exp(scores - new_top)
    total = total * rescale + weights.sum(axis=3, keepdims=True)
    added = product('kbgs,kbse->kbge', weights.astype(dtype), values)
    return new_top, total, mixed * rescale + added

  def start(q):
    column = lambda value: jnp.full((*q.shape[:3], 1), value, jnp.float32)
    return column(blocks.MASKED), column(0), jnp.zeros(q.shape, jnp.float32)

  out = lax.fori_loop(
    0,
    n_blocks,
    lambda j, carry: [one(j, *x, *y) for x, y in zip(apart, carry)],
    [start(q) for q in qs],
  )
  y = jnp.concatenate([mixed / total for _, total, mixed in out], axis=1)
  return y.reshape(heads, rows, groups, length, dim).swapaxes(0, 1)


@dataclasses.dataclass(frozen=True)
class Reading:
  """How the pages of rows with one new token each are read.

  Attributes:
    way: 'blocks' reads them where they lie, a block of slots at a time; 'kernel'
      does so by a kernel; 'gathered' see there.
    unrolled: layers apart rather than scanned; 'gathered' wants that.
    lanes: groups of rows that are decoded side by side; more than 1 where rows are
      gathered.
    shares: whether parts that rows have in common are read once, see gathered.
    mesh: mesh over whose axes (kv_heads, groups) heads are split, see core.handover;
      None on one device.
  """

  way: Literal['blocks', 'kernel', 'gathered'] = 'blocks'
  unrolled: bool = False
  lanes: int = 1
  shares: bool = False
  mesh: jax.sharding.Mesh | None = None


@flax.struct.dataclass
class Cache:
  """A pool as rows of a batch see it: a core.model.Cache.

  Attributes:
    pool: the pages.
    n_layers: L; static.
    starts: int32[B], the slot of a row's first new token.
    tables: int32[B, M], the pages of a row's slots, in order; what lies beyond
      its slots counts 0 times, so it has to be finite. M pages are whole blocks.
    writes: int32[B, W], the pages that new tokens are written to: one, from
      slot `starts` on, where a row has one new token; otherwise T is W whole
      pages. SCRATCH where they are not to be kept.
    reading: way in which rows of one new token read pages, which may be a kernel;
      static.
  """

  pool: Pool
  n_layers: int = flax.struct.field(pytree_node=False)
  starts: Array
  tables: Array
  writes: Array
  reading: Reading = flax.struct.field(pytree_node=False, default=Reading())

  def attend(
    self, dtype: str, layer: Array | int, q: Array, k: Array, v: Array
  ) -> tuple[Array, 'Cache']:
    """See core.layers.Cache."""
    first = first_page(self.pool, self.n_layers, layer)
    kv_dtype = '' if self.pool.key_scales is None else 'int8'
    pool = write(self.pool, new_tokens(kv_dtype, k, v), first, self.starts, self.writes)
    cache = dataclasses.replace(self, pool=pool)
    return cache._attended(dtype, first, q), cache

  def _attended(self, dtype: str, first: Array | int, q: Array) -> Array:
    """softmax(q k / sqrt(E)) v over each row's slots, its new ones included."""
    if self.reading.way == 'kernel':
      return kernels.attend(
        q, self.pool, first + self.tables, self.starts, self.reading.mesh
      )
    slots = self.tables.shape[1] * self.pool.values.shape[2]
    positions = self.starts[:, None] + jnp.arange(q.shape[3])
    if slots > MAX_DENSE:
      attend = functools.partial(_attend_blocks, dtype)
      apart = functools.partial(attend, parts=_parts(len(q)))
      return lax.platform_dependent(
        self.pool,
        first + self.tables,
        q,
        positions,
        cpu=apart if q.shape[3] > 1 else attend,
        default=attend,
      )
    keys, values = plain(dtype, take(self.pool, first + self.tables))
    return attend_whole(dtype, q, keys, values, positions)
