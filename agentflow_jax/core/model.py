"""A decoder-only transformer: Qwen2 / 2.5, Qwen3, Llama 3 and SmolLM2.

RMSNorm, rotary positions (halves rotated, as in the released checkpoints),
grouped-query attention, gated MLP; optional qkv bias, qk norm, tied embeddings.
Layers are scanned, so every layer parameter has a leading axis 'layers'.

Parameters are a plain nested dict of arrays; everything else is a pure function
of them. `hidden_states` (training) and `hidden_states_cached` (sampling) run the
very same layers: a cache only adds older keys and values to what may be attended.
"""

from collections.abc import Callable
import functools
import math
from typing import Any

import flax.linen as nn
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
Cache = layers.Cache


class Transformer(nn.Module):
  """The network as a linen module; most callers want the functions below.

  Attributes:
    config: the network.
    constrain: pins activations to a mesh.
    unrolled: one layer after the other, of parameters as `unrolled` gives them.
  """

  config: ModelConfig
  constrain: Constrain = Constrain()
  unrolled: bool = False

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
    if self.unrolled:
      self.layers = [
        layers.Block(config, self.constrain) for _ in range(config.n_layers)
      ]
    else:
      self.layers = layers.scanned_block(config)(config, self.constrain)
    self.final_norm = layers.RMSNorm(config, 'norm')

  def __call__(self, token_ids, positions, mask=None, subtree_end=None, cache=None):
    """Returns the normalised last hidden states, and the cache if given.

    Args:
      token_ids: int32[B, T]. An id outside the vocabulary gives NaN.
      positions: int32[B, T].
      mask: bool[B, T, T], True where the token (last axis) is seen.
      subtree_end: int32[B, T], see core.attention; attends block by block.
      cache: a layers.Cache. It, `mask` or `subtree_end` says what is seen.

    Returns:
      dtype[B, T, D], and the cache with the new tokens, or None.
    """
    context = layers.Context(
      rotary=rope.tables(
        self.config.rope_theta,
        self.config.head_dim,
        self.config.rope_scaling,
        positions,
      ),
      mask=mask,
      subtree_end=subtree_end,
    )
    embedding: Any = self.embedding
    stack: Any = self.layers  # A list of them, or one that is scanned.
    x = self.constrain.lookup(embedding, token_ids)
    x = x.astype(self.config.dtype)
    x = self.constrain(x, ('batch', 'stream', None))
    if self.unrolled:
      for i, layer in enumerate(stack):
        (x, cache), _ = layer((x, cache), i, context)
    else:
      numbers = None if cache is None else jnp.arange(self.config.n_layers)
      (x, cache), _ = stack((x, cache), numbers, context)
    return self.final_norm(x), cache


def unrolled(config: ModelConfig, params: Params) -> Params:
  """Returns the parameters with every layer's apart, for the functions below.

  A scan over stacked layers copies each layer's parameters out of the stack, on
  CPU and GPU, whenever it gets there; who goes over them often has them apart.

  Args:
    config: the network.
    params: parameters as init_params returns them, or a tree like it.
  """
  apart = {k: v for k, v in params.items() if k != 'layers'}
  for i in range(config.n_layers):
    apart[f'layers_{i}'] = jax.tree.map(lambda x, i=i: x[i], params['layers'])
  return apart


def make_unrolled_fn(config: ModelConfig, params: Params) -> Callable[[Params], Params]:
  """Returns `unrolled` as a function that keeps everything on its devices.

  Layers are in new arrays; the other arrays are those that were given.

  Args:
    config: the network.
    params: example of the parameters that it will take; shapes and shardings count.
  """
  where = jax.tree.map(_layer_sharding, params['layers'])
  split = jax.jit(
    functools.partial(unrolled, config),
    out_shardings={f'layers_{i}': where for i in range(config.n_layers)},
  )

  def apart(params: Params) -> Params:
    others = dict(params)
    # A compiled program would copy arrays that it returns unchanged.
    return split({'layers': others.pop('layers')}) | others

  return apart


def take_apart(config: ModelConfig, params: Params) -> Params:
  """Returns `unrolled`, and deletes each stacked array once it is split.

  At any time at most one array is held both stacked and apart.

  Args:
    config: the network.
    params: parameters; the caller must not use their 'layers' again.
  """
  layers: list[list[Array]] = [[] for _ in range(config.n_layers)]
  leaves, tree = jax.tree.flatten(params['layers'])
  for stacked in leaves:
    parts = jax.jit(lambda x: list(x), out_shardings=_layer_sharding(stacked))(stacked)
    jax.block_until_ready(parts)
    stacked.delete()
    for layer, part in zip(layers, parts, strict=True):
      layer.append(part)
  apart = {k: v for k, v in params.items() if k != 'layers'}
  return apart | {
    f'layers_{i}': jax.tree.unflatten(tree, layer) for i, layer in enumerate(layers)
  }


def _layer_sharding(stacked: Any) -> jax.sharding.Sharding:
  """Returns where one layer of an array of stacked layers lies."""
  where = stacked.sharding
  if not isinstance(where, jax.sharding.NamedSharding):
    return where
  return jax.sharding.NamedSharding(
    where.mesh, jax.sharding.PartitionSpec(*where.spec[1:])
  )


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


@functools.lru_cache(maxsize=64)
def _abstract(config: ModelConfig):
  """Returns what param_shapes and logical_axes do; tracing a network is slow."""
  boxed = jax.eval_shape(lambda: _init_boxed(config, jax.random.key(0)))
  shapes = jax.eval_shape(nn.meta.unbox, boxed)
  return shapes['params'], nn.get_partition_spec(boxed)['params']


def param_shapes(config: ModelConfig) -> Params:
  """Returns init_params' tree with a jax.ShapeDtypeStruct a leaf; draws nothing."""
  return jax.tree.map(lambda x: x, _abstract(config)[0])


def logical_axes(config: ModelConfig) -> Any:
  """Returns init_params' tree with a PartitionSpec of logical names a leaf."""
  is_leaf = lambda x: isinstance(x, jax.sharding.PartitionSpec)
  return jax.tree.map(lambda x: x, _abstract(config)[1], is_leaf=is_leaf)


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
  if (
    blocks_lib.blocks_of(token_ids.shape[1], config.attention, config.head_dim) is None
  ):
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


def hidden_states_cached(
  config: ModelConfig, params: Params, token_ids: Array, positions: Array, cache: Cache
) -> tuple[Array, Cache]:
  """Reads T more tokens of each row; both prefill and decode.

  Args:
    config: the network.
    params: its parameters, or those of `unrolled`.
    token_ids: int32[B, T].
    positions: int32[B, T].
    cache: cache that holds the rows' older tokens, and has room for the new ones.

  Returns:
    dtype[B, T, D], what `unembed` takes, and the cache with the new tokens.
  """
  network = Transformer(config, unrolled='layers' not in params)
  done: Any = network.apply({'params': params}, token_ids, positions, cache=cache)
  return done
