"""What pages hold of the rows that are sampled, in one piece a row.

Every step of decoding reads all keys and values of all rows. Where no kernel
reads them in their pages a row's are gathered once, when it is first sampled, and
not in every step; and every layer's lie in arrays of their own, which products
read without a copy. That takes room for the rows once more. New tokens are kept
here alone: nobody else reads them, so decoding writes no pages.

Slots of long rows are divided into parts. A part that all rows have in common
(tool cards; a query) is read once for all of them, by one product. Whether that
gives the bits that it gives a row alone is up to a library; `shares_bits` asks it.
"""

import dataclasses
import functools
import math
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax import lax
import numpy as np

from agentflow_jax.core import blocks
from agentflow_jax.core import model
from agentflow_jax.core import primitives
from agentflow_jax.inference import pages

Array = jax.Array
# Slots of a part, but of the last one: whole blocks. Half as many are no faster, and
# take twice as long to compile.
PART = 2 * pages.BLOCK


@flax.struct.dataclass
class Store:
  """Keys and values of B rows, a layer after the other, and a part in each.

  Rows of up to pages.MAX_DENSE slots are one part, as the trainer attends.

  Attributes:
    keys: arrays dtype[K, B, E, S] of each layer and part, or dtype[K, B, S, E] of short
      rows; what lies beyond a row's slots is finite.
    values: arrays dtype[K, B, S, E] of each layer and part.
  """

  keys: tuple[tuple[Array, ...], ...]
  values: tuple[tuple[Array, ...], ...]

  @property
  def slots(self) -> int:
    """Of a row."""
    return sum(x.shape[2] for x in self.values[0])

  @property
  def is_short(self) -> bool:
    """Whether rows are attended to as the trainer attends to short ones."""
    return self.slots <= pages.MAX_DENSE

  def put(
    self, layer: int, keys: Array, values: Array, starts: Array, live: Array
  ) -> 'Store':
    """Returns these with a new slot a row in one layer.

    Args:
      layer: index of the layer.
      keys: [K, B, E].
      values: [K, B, E].
      starts: int32[B], the slots.
      live: bool[B], the rows that have one.
    """
    if self.is_short:  # One part takes all rows: a scatter is faster then.
      rows = jnp.arange(len(starts))
      at = jnp.where(live, starts, self.slots)
      put = lambda x, new: x.at[:, rows, at].set(new, mode='drop')
      return self._with(
        layer, [put(self.keys[layer][0], keys)], [put(self.values[layer][0], values)]
      )
    new_keys, new_values, first = [], [], 0
    for k, v in zip(self.keys[layer], self.values[layer], strict=True):
      at = starts - first
      here = live & (at >= 0) & (at < v.shape[2])
      new_keys.append(_put(k, keys, here, at, 3))
      new_values.append(_put(v, values, here, at, 2))
      first += v.shape[2]
    return self._with(layer, new_keys, new_values)

  def _with(self, layer, keys, values) -> 'Store':
    one = lambda old, new: (*old[:layer], tuple(new), *old[layer + 1 :])
    return Store(one(self.keys, keys), one(self.values, values))


def _put(x: Array, new: Array, here: Array, at: Array, axis: int) -> Array:
  """Returns x with new [K, B, E] in slots `at` of the rows that are `here`."""
  # As many turns as rows: a scatter would take B in every part.
  order = jnp.argsort(~here)

  def one(i, x):
    row = order[i]
    some = jnp.expand_dims(lax.dynamic_slice_in_dim(new, row, 1, 1), axis)
    start = [0, row, 0, 0]
    start[axis] = at[row]
    return lax.dynamic_update_slice(x, some, start)

  return lax.fori_loop(0, here.sum(), one, x)


def parts(slots: int) -> tuple[int, ...]:
  """Returns the slots of each part of rows of so many, whole blocks."""
  if slots <= pages.MAX_DENSE:
    return (slots,)
  return tuple(min(PART, slots - i) for i in range(0, slots, PART))


def make_store(config: model.ModelConfig, rows: int, slots: int) -> Store:
  """Returns what holds nothing, of B rows of S slots."""
  lead, dim = (config.n_kv_heads, rows), config.head_dim
  is_short = slots <= pages.MAX_DENSE
  keys = lambda n: (*lead, n, dim) if is_short else (*lead, dim, n)
  every = lambda shape: tuple(
    tuple(jnp.zeros(shape(n), config.dtype) for n in parts(slots))
    for _ in range(config.n_layers)
  )
  return Store(every(keys), every(lambda n: (*lead, n, dim)))


@flax.struct.dataclass
class Fresh:
  """Rows to gather."""

  # int32 [B, M]; the pages of a row's prompt, in order.
  tables: primitives.HostArray
  rows: primitives.HostArray  # int32 [B]; which ones.
  count: primitives.HostArray  # int32 []; how many of them.


def gather(store: Store, pool: pages.Pool, fresh: Fresh, *, dtype: str) -> Store:
  """Returns the store with some rows gathered from their pages.

  Args:
    store: store of B rows.
    pool: the pages.
    fresh: the rows.
    dtype: dtype of the activations.
  """
  n_layers, page_tokens = len(store.keys), pool.keys.shape[2]

  def one(i, store):
    row = fresh.rows[i]
    table = lax.dynamic_slice_in_dim(fresh.tables, row, 1)
    put = lambda x, new: lax.dynamic_update_slice_in_dim(x, new, row, 1)
    for layer in range(n_layers):
      first = pages.first_page(pool, n_layers, layer)
      keys, values, start = [], [], 0
      for k, v in zip(store.keys[layer], store.values[layer], strict=True):
        end = start + v.shape[2] // page_tokens
        new_k, new_v = pages.plain(dtype, pages.take(pool, first + table[:, start:end]))
        if not store.is_short:
          new_k = new_k.swapaxes(2, 3)
        keys.append(put(k, new_k))
        values.append(put(v, new_v))
        start = end
      store = store._with(layer, keys, values)
    return store

  return lax.fori_loop(0, fresh.count, one, store)


@flax.struct.dataclass
class Cache:
  """Rows of one new token each: a core.model.Cache for unrolled layers.

  Attributes:
    store: gathered keys and values of the rows.
    starts: int32[B], the slot of a row's new token.
    live: bool[B], whether the new token is stored.
    common: int32[], parts, the first ones, that are the same in all rows that
      anybody looks at; none of them takes a new token. None: all are apart.
    row: int32[], one of these rows.
    kv_dtype: format of the pages, see api.EngineConfig; static.
  """

  store: Store
  starts: Array
  live: Array
  common: Array | None
  row: Array
  kv_dtype: str = flax.struct.field(pytree_node=False)

  def attend(
    self, dtype: str, layer: int, q: Array, k: Array, v: Array
  ) -> tuple[Array, 'Cache']:
    """See core.layers.Cache; one new token a row, and `layer` is static."""
    # Rounded as pages are.
    key, value = (
      x[:, :, 0] for x in pages.plain(dtype, pages.new_tokens(self.kv_dtype, k, v))
    )
    store = self.store.put(layer, key, value, self.starts, self.live)
    keys, values = store.keys[layer], store.values[layer]
    if store.is_short:
      y = pages.attend_whole(dtype, q, keys[0], values[0], self.starts[:, None])
    else:
      y = attend(dtype, q, keys, values, self.starts, self.common, self.row)
    return y, dataclasses.replace(self, store=store)


def attend(
  dtype: str,
  q: Array,
  keys: tuple[Array, ...],
  values: tuple[Array, ...],
  starts: Array,
  common: Array | None,
  row: Array,
) -> Array:
  """softmax(q k / sqrt(E)) v, whatever there is beyond a row's slots.

  Args:
    dtype: dtype of the activations.
    q: [B, K, H/K, 1, E].
    keys: [K, B, E, S] of each part.
    values: [K, B, S, E] of each part.
    starts: int32[B], the last slot that is seen.
    common: int32[], number of first parts that all rows share, see Cache.
    row: int32[], one of those rows.

  Returns:
    float32[B, K, H/K, 1, E].
  """
  n_rows, heads, groups, _, dim = q.shape
  q = q[:, :, :, 0].swapaxes(0, 1)
  product = functools.partial(primitives.float32_product, dtype)
  scale, scores, first = 1 / math.sqrt(dim), [], 0
  one = lambda x: lax.dynamic_index_in_dim(x, row, 1, keepdims=False)
  all_rows = lambda x: x.reshape(heads, n_rows * groups, x.shape[3])
  by_row = lambda x: x.reshape(heads, n_rows, groups, x.shape[2])

  def either(j, apart, at_once, x, store):
    if common is None:
      return product(apart, x, store)
    return lax.cond(
      j < common,
      lambda x, store: by_row(product(at_once, all_rows(x), one(store))),
      lambda x, store: product(apart, x, store),
      x,
      store,
    )

  for j, k in enumerate(keys):
    some = either(j, 'kbge,kbes->kbgs', 'kqe,kes->kqs', q, k) * scale
    seen = first + jnp.arange(k.shape[3]) <= starts[:, None, None]
    scores.append(jnp.where(seen, some, blocks.MASKED))
    first += k.shape[3]
  top = functools.reduce(jnp.maximum, [x.max(axis=3, keepdims=True) for x in scores])
  weights = [jnp.exp(x - top) for x in scores]
  total = sum(x.sum(axis=3, keepdims=True) for x in weights)
  mixed: Any = sum(
    either(j, 'kbgs,kbse->kbge', 'kqs,kse->kqe', w.astype(dtype), v)
    for j, (w, v) in enumerate(zip(weights, values, strict=True))
  )
  return (mixed / total).swapaxes(0, 1)[:, :, :, None]


@functools.cache
def shares_bits(
  dtype: str, rows: int, heads: int, groups: int, dim: int, slots: int
) -> bool:
  """Says whether reading a part once for all rows changes no bit.

  A product of more rows may be added up in another order. Whether this one is, by
  the library that runs it on this machine's CPU, is found by trying.

  Args:
    dtype: dtype of the activations.
    rows: B.
    heads: K.
    groups: H / K.
    dim: E.
    slots: number of slots of a row, more than pages.MAX_DENSE.
  """
  sizes = (PART, PART, parts(slots)[-1])  # More would be more of the same.
  slots = sum(sizes)
  rng = np.random.default_rng(0)
  draw = lambda *shape: jnp.asarray(rng.standard_normal(shape), dtype)
  q = draw(rows, heads, groups, 1, dim)
  repeat = lambda x: jnp.tile(x, (1, rows, 1, 1))
  keys = tuple(repeat(draw(heads, 1, dim, n)) for n in sizes)
  values = tuple(repeat(draw(heads, 1, n, dim)) for n in sizes)
  starts = jnp.asarray(rng.integers(slots - sizes[-1], slots, rows), jnp.int32)
  here = jax.local_devices(backend='cpu')[0]
  arrays = jax.device_put((q, keys, values, starts), here)
  attended = jax.jit(functools.partial(attend, dtype))
  apart, at_once = (
    np.asarray(attended(*arrays, common, 0)) for common in (0, len(sizes) - 1)
  )
  return apart.tobytes() == at_once.tobytes()
