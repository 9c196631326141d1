"""A decoder-only transformer: Qwen2 / 2.5, Qwen3, Llama 3 and SmolLM2.

RMSNorm, rotary positions (halves rotated, as in the released checkpoints),
grouped-query attention, gated MLP; optional qkv bias, qk norm, tied embeddings.
Layers are scanned, so every layer parameter has a leading axis 'layers'.

Parameters are a plain nested dict of arrays; everything else is a pure function
of them. `forward` (training) and `forward_cached` (sampling) run the very same
layers: a cached call only adds older keys and values to what may be attended.
"""

import math
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from agentflow_jax.core import attention
from agentflow_jax.core import blocks as blocks_lib
from agentflow_jax.core import layers
from agentflow_jax.core import lora
from agentflow_jax.core import primitives
from agentflow_jax.core import rope

Array = jax.Array
Params = Any  # Nested dict of arrays.
ModelConfig = layers.ModelConfig
LoraConfig = lora.LoraConfig
RopeScaling = rope.RopeScaling
Constrain = layers.Constrain


@flax.struct.dataclass
class Cache:
  """Keys and values of tokens already read; slot s of a row is its position s.

  Attributes:
    keys: dtype[L, B, K, E, S], rotated. Slots come last, so that reading them
      is a plain matrix product (measured: 1.6 times as fast on CPU).
    values: dtype[L, B, K, S, E].
  """

  keys: Array
  values: Array

  @property
  def length(self) -> int:
    return self.keys.shape[4]


class Transformer(nn.Module):
  """The network as a linen module; most callers want the functions below."""

  config: ModelConfig
  constrain: Constrain = Constrain()
  return_kv: bool = False

  def setup(self):
    config = self.config
    init = nn.initializers.normal(1 / math.sqrt(config.d_model))
    self.embedding = self.param(
        'embedding',
        nn.with_logical_partitioning(init, ('vocab', 'embed')),
        (config.vocab_size, config.d_model),
        config.param_dtype,
    )
    if not config.tie_embeddings:
      self.head = self.param(
          'head',
          nn.with_logical_partitioning(init, ('embed', 'vocab')),
          (config.d_model, config.vocab_size),
          config.param_dtype,
      )
    self.layers = layers.scanned_block(config)(
        config, self.constrain, self.return_kv
    )
    self.final_norm = layers.RMSNorm(config, 'norm')

  def __call__(
      self, token_ids, positions, mask, cached=None, slot_source=None,
      subtree_end=None,
  ):
    """Returns the normalised last hidden states and, if asked, new kv.

    Args:
      token_ids: int32[B, T]. An id outside the vocabulary gives NaN.
      positions: int32[B, T].
      mask: bool[B, T, S], True where the slot (last axis) is seen; without a
        cache S = T, the new tokens. None where subtree_end says it.
      cached: keys [L, B, K, E, S] and values [L, B, K, S, E], or None.
      slot_source: int32[B, S], see layers.Context; None without a cache.
      subtree_end: int32[B, T], see core.attention; attends block by block.

    Returns:
      dtype[B, T, D], and new keys [L, B, K, E, T] and values [L, B, K, T, E]
      or None.
    """
    context = layers.Context(
        rotary=rope.tables(
            self.config.rope_theta, self.config.head_dim,
            self.config.rope_scaling, positions,
        ),
        mask=None if mask is None else mask[:, None, None],
        subtree_end=subtree_end,
        slot_source=slot_source,
    )
    x = jnp.take(self.embedding, token_ids, axis=0, mode='fill')
    x = x.astype(self.config.dtype)
    x = self.constrain(x, ('batch', 'stream', None))
    x, kv = self.layers(x, cached, context)
    return self.final_norm(x), kv


def output_kernel(config: ModelConfig, params: Params) -> Array:
  """Returns `logits_of`'s kernel: [V, D] if embeddings are tied, or [D, V]."""
  return params['embedding' if config.tie_embeddings else 'head']


def logits_of(config: ModelConfig, kernel: Array, hidden: Array) -> Array:
  """Returns float32 logits [..., V] of normalised hidden states [..., D]."""
  equation = '...d,vd->...v' if config.tie_embeddings else '...d,dv->...v'
  return primitives.float32_product(
      config.dtype, equation, hidden, kernel.astype(config.dtype)
  )


def _init_boxed(config: ModelConfig, key: Array):
  ids = jnp.zeros((1, 1), jnp.int32)
  return Transformer(config).init(key, ids, ids, jnp.ones((1, 1, 1), bool))


def init_params(config: ModelConfig, key: Array) -> Params:
  """Returns fresh parameters: a nested dict of param_dtype arrays.

  Kernels are normal with variance 1 / fan_in, those that write to the residual
  stream divided by sqrt(2 n_layers); the embedding's variance is 1 / D.

  Args:
    config: the network.
    key: a JAX random key. The values do not depend on any sharding.
  """
  return nn.meta.unbox(_init_boxed(config, key))['params']


def logical_axes(config: ModelConfig) -> Any:
  """Returns init_params' tree with a PartitionSpec of logical names a leaf."""
  shapes = jax.eval_shape(
      lambda: _init_boxed(config, jax.random.key(0))
  )
  return nn.get_partition_spec(shapes)['params']


def hidden_states(
    config: ModelConfig,
    params: Params,
    token_ids: Array,
    positions: Array,
    subtree_end: Array,
    constrain: Constrain = Constrain(),
) -> Array:
  """Runs every layer on packed rows, each a forest in depth-first order.

  Token j is seen by token i exactly when j <= i < subtree_end[j]. Several
  sequences side by side are a forest, too: subtree_end is where each ends.

  Args:
    config: the network.
    params: its parameters.
    token_ids: int32[B, T].
    positions: int32[B, T], depth in the tree, from 0.
    subtree_end: int32[B, T]; 0 is padding, whose outputs mean nothing.
    constrain: pins activations to a mesh; see sharding.make_constrain.

  Returns:
    dtype[B, T, D], what `unembed` takes.
  """
  if blocks_lib.blocks_of(token_ids.shape[1], config.attention) is None:
    mask, ends = attention.visible(subtree_end), None
  else:
    mask, ends = None, subtree_end
  hidden, _ = Transformer(config, constrain).apply(
      {'params': params}, token_ids, positions, mask, subtree_end=ends
  )
  return hidden


def unembed(config: ModelConfig, params: Params, hidden: Array) -> Array:
  """Returns float32 logits [..., V] of normalised hidden states [..., D]."""
  return logits_of(config, output_kernel(config, params), hidden)


def forward(
    config: ModelConfig,
    params: Params,
    token_ids: Array,
    positions: Array,
    subtree_end: Array,
) -> Array:
  """Returns float32 logits [B, T, V]; arguments as in hidden_states.

  The logits of a place are of the token that follows it.
  """
  hidden = hidden_states(config, params, token_ids, positions, subtree_end)
  return unembed(config, params, hidden)


def init_cache(config: ModelConfig, batch: int, length: int) -> Cache:
  """Returns an empty cache of `length` slots for each of `batch` rows."""
  lead = (config.n_layers, batch, config.n_kv_heads)
  return Cache(
      keys=jnp.zeros((*lead, config.head_dim, length), config.dtype),
      values=jnp.zeros((*lead, length, config.head_dim), config.dtype),
  )


def forward_cached(
    config: ModelConfig,
    params: Params,
    token_ids: Array,
    cache: Cache,
    cache_index: Array | None = None,
    last_index: Array | None = None,
) -> tuple[Array, Cache]:
  """Reads T more tokens of each row; both prefill and decode.

  Row b's token j has position (and slot) cache_index[b] + j. It sees the slots
  below cache_index[b], and the new tokens up to itself. So rows are padded on
  the right: a padding token is seen by padding only, and its slot is written
  over before it is ever read, as long as the next call's cache_index is the
  number of tokens that were real.

  Args:
    config: the network.
    params: its parameters.
    token_ids: int32[B, T].
    cache: of at least cache_index + T slots in every row; the results of a row
      that does not fit mean nothing.
    cache_index: int32[B], tokens of each row already in the cache; None means 0
      for every row, and does not read the cache at all.
    last_index: int32[B]; if given, logits only of that new token of each row.

  Returns:
    float32 logits [B, T, V], or [B, V] with last_index; and the new cache.
  """
  batch, length = token_ids.shape
  offsets = jnp.broadcast_to(
      jnp.arange(length, dtype=jnp.int32), (batch, length)
  )
  if cache_index is None:
    positions, slots, cached, slot_source = offsets, offsets, None, None
  else:
    positions = cache_index[:, None] + offsets
    slots = jnp.broadcast_to(
        jnp.arange(cache.length, dtype=jnp.int32), (batch, cache.length)
    )
    cached = (cache.keys, cache.values)
    slot_source = slots - cache_index[:, None]
  mask = slots[:, None, :] <= positions[:, :, None]
  hidden, new = Transformer(config, return_kv=True).apply(
      {'params': params}, token_ids, positions, mask, cached, slot_source
  )
  keys = _write(cache.keys, new[0], cache_index, slot_axis=4)
  values = _write(cache.values, new[1], cache_index, slot_axis=3)
  if last_index is not None:
    hidden = jnp.take_along_axis(
        hidden, last_index[:, None, None], axis=1
    )[:, 0]
  return unembed(config, params, hidden), Cache(keys=keys, values=values)


def _write(
    old: Array, new: Array, cache_index: Array | None, slot_axis: int
) -> Array:
  """Writes new[L, B, ...] into old[L, B, ...] from each row's slot on."""
  if cache_index is None:
    return jax.lax.dynamic_update_slice(old, new, (0,) * old.ndim)

  # A loop of in-place slices: XLA's CPU scatter takes twenty times as long.
  def write_row(row, old):
    start = [0] * old.ndim
    start[1], start[slot_axis] = row, cache_index[row]
    new_row = jax.lax.dynamic_slice_in_dim(new, row, 1, axis=1)
    return jax.lax.dynamic_update_slice(old, new_row, start)

  return jax.lax.fori_loop(0, new.shape[1], write_row, old)
