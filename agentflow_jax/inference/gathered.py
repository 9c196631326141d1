"""What pages hold of the rows that are sampled, in one piece a row.

Every step of decoding reads all keys and values of all rows. Where no kernel
reads them in their pages a row's are gathered once, when it is first sampled, and
not in every step; and every layer's lie in arrays of their own, which products
read without a copy. That takes room for the rows once more.
"""

import functools
import math

import flax.struct
import jax
import jax.numpy as jnp
from jax import lax

from agentflow_jax.core import blocks
from agentflow_jax.core import model
from agentflow_jax.core import primitives
from agentflow_jax.inference import pages

Array = jax.Array
# Slots that values are added up over at a time.
BLOCK = pages.BLOCK


@flax.struct.dataclass
class Kept:
  """Keys and values of B rows of S slots, a layer after the other.

  Attributes:
    keys: of each layer dtype[K, B, S, E], or [K, B, E, S] where S is beyond
      pages.MAX_DENSE; what lies beyond a row's slots is finite.
    values: of each layer dtype[K, B, S, E].
  """

  keys: tuple[Array, ...]
  values: tuple[Array, ...]

  @property
  def slots(self) -> int:
    """S."""
    return self.values[0].shape[2]

  def put(
      self, layer: int, keys: Array, values: Array, rows: Array, starts: Array
  ) -> 'Kept':
    """Returns these with some slots of a layer replaced.

    Args:
      layer: which one.
      keys: [K, B, E], a slot a row.
      values: likewise.
      rows: int32[B], which ones.
      starts: int32[B], the slots; none where that is S.
    """
    old = self.keys[layer]
    if self.slots <= pages.MAX_DENSE:
      new = old.at[:, rows, starts].set(keys, mode='drop')
    else:
      # Places apart from each other: their axis comes first.
      new = old.at[:, rows, :, starts].set(keys.swapaxes(0, 1), mode='drop')
    return self._with(
        layer, new,
        self.values[layer].at[:, rows, starts].set(values, mode='drop'),
    )

  def _with(self, layer: int, keys: Array, values: Array) -> 'Kept':
    one = lambda old, new: (*old[:layer], new, *old[layer + 1 :])
    return Kept(one(self.keys, keys), one(self.values, values))


def make_kept(config: model.ModelConfig, rows: int, slots: int) -> Kept:
  """Returns what holds nothing, of B rows of S slots."""
  shape = (config.n_kv_heads, rows, slots, config.head_dim)
  zeros = lambda shape: tuple(
      jnp.zeros(shape, config.dtype) for _ in range(config.n_layers)
  )
  is_short = slots <= pages.MAX_DENSE
  of_keys = shape if is_short else (*shape[:2], shape[3], shape[2])
  return Kept(zeros(of_keys), zeros(shape))


def gather(
    dtype: str, kept: Kept, pool: pages.Pool, tables: Array, rows: Array,
    count: Array,
) -> Kept:
  """Returns what is kept with some rows gathered from their pages.

  Args:
    dtype: of the activations.
    kept: of B rows.
    pool: the pages.
    tables: int32[B, M], the rows' pages, in order; whole blocks.
    rows: int32[B], which rows.
    count: int32[], how many of them.
  """
  n_layers = len(kept.keys)

  def one(i, kept):
    row = rows[i]
    table = lax.dynamic_slice_in_dim(tables, row, 1)
    for layer in range(n_layers):
      first = pages.first_page(pool, n_layers, layer)
      k, v = pages.plain(dtype, pages.take(pool, first + table))
      if kept.slots > pages.MAX_DENSE:
        k = k.swapaxes(2, 3)
      put = lambda x, new: lax.dynamic_update_slice_in_dim(x, new, row, 1)  # pylint: disable=cell-var-from-loop
      kept = kept._with(
          layer, put(kept.keys[layer], k), put(kept.values[layer], v)
      )
    return kept

  return lax.fori_loop(0, count, one, kept)


@flax.struct.dataclass
class Cache:
  """Rows of one new token each: a core.model.Cache for unrolled layers.

  Attributes:
    pool: the pages; new tokens are written there, too.
    kept: what they hold.
    starts: int32[B], the slot of a row's new token.
    live: bool[B], whether it is kept.
    writes: int32[B, 1], the page that it is written to, see pages.Cache.
  """

  pool: pages.Pool
  kept: Kept
  starts: Array
  live: Array
  writes: Array

  def attend(
      self, dtype: str, layer: int, q: Array, k: Array, v: Array
  ) -> tuple[Array, 'Cache']:
    """See core.layers.Cache; one new token a row, and `layer` is static."""
    new = pages.new_tokens(self.pool, k, v)
    first = pages.first_page(self.pool, len(self.kept.keys), layer)
    pool = pages.write(self.pool, new, first, self.starts, self.writes)
    # As others will read them.
    key, value = (x[:, :, 0] for x in pages.plain(dtype, new))
    kept = self.kept.put(
        layer, key, value, jnp.arange(len(self.starts)),
        jnp.where(self.live, self.starts, self.kept.slots),
    )
    if kept.slots <= pages.MAX_DENSE:
      y = pages.attend_whole(
          dtype, q, kept.keys[layer], kept.values[layer], self.starts[:, None]
      )
    else:
      y = _attend(
          dtype, q, kept.keys[layer], kept.values[layer], self.starts
      )
    return y, self.replace(pool=pool, kept=kept)


def _attend(
    dtype: str, q: Array, keys: Array, values: Array, starts: Array
) -> Array:
  """softmax(q k / sqrt(E)) v, whatever there is beyond a row's slots.

  Args:
    dtype: of the activations.
    q: [B, K, H/K, 1, E].
    keys: [K, B, E, S].
    values: [K, B, S, E].
    starts: int32[B], the last slot that is seen.
  """
  heads, rows, slots, dim = values.shape
  product = functools.partial(primitives.float32_product, dtype)
  q = q[:, :, :, 0].swapaxes(0, 1)
  scores = product('kbge,kbes->kbgs', q, keys) * (1 / math.sqrt(dim))
  seen = jnp.arange(slots) <= starts[:, None, None]
  scores = jnp.where(seen, scores, blocks.MASKED)
  weights = jnp.exp(scores - scores.max(axis=3, keepdims=True))
  total = weights.sum(axis=3)
  # In blocks: XLA's CPU is faster at short sums.
  weights = weights.reshape(heads, rows, -1, slots // BLOCK, BLOCK)
  mixed = product(
      'kbngs,kbnse->kbnge', weights.swapaxes(2, 3).astype(dtype),
      values.reshape(heads, rows, -1, BLOCK, dim),
  ).sum(axis=2)
  return (mixed / total[..., None]).swapaxes(0, 1)[:, :, :, None]
