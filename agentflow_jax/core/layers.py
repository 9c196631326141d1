"""The transformer's configuration and its layers; model.py assembles them."""

import dataclasses
import math
from typing import Any, Literal, Protocol

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax import sharding as jax_sharding

from agentflow_jax.core import attention
from agentflow_jax.core import blocks as blocks_lib
from agentflow_jax.core import lora as lora_lib
from agentflow_jax.core import primitives
from agentflow_jax.core import rope

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Constrain:
  """Pins activations to a mesh; this one knows none and leaves them alone.

  Attributes:
    mesh: the mesh, or None; within a shard_map over some of its axes, the
      abstract one.
    rows: its axes over which rows are split; within such a shard_map, those that
      are left.
  """

  mesh: jax_sharding.Mesh | jax_sharding.AbstractMesh | None = None
  rows: tuple[str, ...] = ('data', 'fsdp')

  def __call__(self, x: Array, axes: tuple[str | None, ...]) -> Array:
    """Returns an activation of those logical axes, constrained."""
    del axes
    return x

  def lookup(self, table: Array, ids: Array) -> Array:
    """Returns table[ids], NaN where an id is outside: [V, D], [B, T] to [B, T, D]."""
    return primitives.take_rows(table, ids)

  def pick(self, x: Array, places: Array) -> Array:
    """Returns x at places of its axis 1: [B, T, D], [B, N] to [B, N, D]."""
    return jnp.take_along_axis(x, places[..., None], axis=1)


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """What a planner's network is.

  Attributes:
    vocab_size: number V of tokens, the rows of the embedding.
    d_model: width D of a token's state.
    n_layers: number of blocks.
    n_heads: number H of query heads.
    n_kv_heads: number K of key and value heads; divides n_heads.
    head_dim: width E of a head; even.
    d_ff: width of the gated MLP.
    max_positions: context limit in tokens, prompt and response together.
    rope_theta: base of the rotary frequencies.
    rope_scaling: change of the rotary frequencies for long contexts; None for none.
    norm_eps: term that RMSNorm adds to the mean square.
    qkv_bias: whether q, k and v have biases (Qwen2).
    qk_norm: whether each head's q and k go through RMSNorm before rotation (Qwen3).
    tie_embeddings: whether the output projection is the embedding, transposed.
    param_dtype: dtype that parameters are kept in. Training keeps a float32
      master of bfloat16 parameters, see core.masters.
    dtype: dtype of activations. In float32 every product is computed at the
      highest precision, on accelerators too (no TF32, no bfloat16 passes).
    remat: part that the backward pass recomputes: 'none', 'full' (each layer) or
      'dots' (all but the matrix products).
    attention: implementation of attention in training: 'dense' forms all scores of a
      row, 'blocks' those of two blocks at a time and none of blocks that do not see
      each other; 'pallas' is a kernel for TPUs, where it has not run yet, and CUDA
      GPUs (interpreted, slowly, on CPU); 'auto' takes blocks for rows of 1,024
      tokens and more, and on GPUs the kernel for them.
    lora: adapters that parameters hold besides, if any.
  """

  vocab_size: int
  d_model: int
  n_layers: int
  n_heads: int
  n_kv_heads: int
  head_dim: int
  d_ff: int
  max_positions: int
  rope_theta: float = 1e4
  rope_scaling: rope.RopeScaling | None = None
  norm_eps: float = 1e-6
  qkv_bias: bool = False
  qk_norm: bool = False
  tie_embeddings: bool = True
  param_dtype: Literal['float32', 'bfloat16'] = 'float32'
  dtype: Literal['float32', 'bfloat16'] = 'float32'
  remat: Literal['none', 'full', 'dots'] = 'none'
  attention: Literal['auto', 'dense', 'blocks', 'pallas'] = 'auto'
  lora: lora_lib.LoraConfig = lora_lib.LoraConfig()

  def __post_init__(self):
    for name in (
      'vocab_size',
      'd_model',
      'n_layers',
      'n_heads',
      'n_kv_heads',
      'head_dim',
      'd_ff',
      'max_positions',
    ):
      if getattr(self, name) < 1:
        raise ValueError(f'{name} must be at least 1: {getattr(self, name)}')
    if self.n_heads % self.n_kv_heads:
      raise ValueError(
        f'n_kv_heads {self.n_kv_heads} must divide n_heads {self.n_heads}'
      )
    if self.head_dim % 2:
      raise ValueError(f'head_dim must be even for rotary: {self.head_dim}')
    for name in ('rope_theta', 'norm_eps'):
      value = getattr(self, name)
      if not (value > 0 and math.isfinite(value)):
        raise ValueError(f'{name} must be positive and finite: {value}')
    for name in ('param_dtype', 'dtype'):
      if getattr(self, name) not in ('float32', 'bfloat16'):
        raise ValueError(f'{name}: unknown {getattr(self, name)!r}')
    if self.remat not in ('none', 'full', 'dots'):
      raise ValueError(f'remat: unknown {self.remat!r}')
    if self.attention not in ('auto', 'dense', 'blocks', 'pallas'):
      raise ValueError(f'attention: unknown {self.attention!r}')
    if self.attention == 'pallas' and self.head_dim not in (blocks_lib.KERNEL_HEADS):
      raise ValueError(
        "attention='pallas' needs a head_dim of 64, 128 or 256:"
        f" {self.head_dim}; take 'blocks'"
      )


class _Linear(nn.Module):
  """y = einsum(x, kernel) + bias, in the activation dtype.

  Axes that are summed together have names in the order in which they lie: einsum
  takes them by name, and XLA's CPU would lay the kernel out anew for it each time.
  """

  config: ModelConfig
  equation: str
  shape: tuple[int, ...]
  axes: tuple[str, ...]
  fan_in: int
  scale: float = 1.0
  bias_axes: tuple[str, ...] | None = None

  @nn.compact
  def __call__(self, x: Array) -> Array:
    config = self.config
    init = nn.initializers.normal(self.scale / math.sqrt(self.fan_in))
    kernel: Any = self.param(
      'kernel',
      nn.with_logical_partitioning(init, self.axes),
      self.shape,
      config.param_dtype,
    )
    if config.lora.adapts(self.name or ''):
      kernel = lora_lib.merged(config.lora, kernel, *self._adapter())
    y: Any = primitives.project(config.dtype, self.equation, x, kernel)
    if self.bias_axes is not None:
      bias: Any = self.param(
        'bias',
        nn.with_logical_partitioning(nn.initializers.zeros_init(), self.bias_axes),
        self.shape[-len(self.bias_axes) :],
        config.param_dtype,
      )
      y = y + bias.astype(config.dtype)
    return y

  def _adapter(self) -> tuple[Array, Array]:
    """Returns A, normal with variance 1 / fan_in, and B, which begins as 0."""
    rank = self.config.lora.rank
    n_in = next(
      n for n in range(len(self.shape)) if math.prod(self.shape[:n]) == self.fan_in
    )
    a: Any = self.param(
      lora_lib.A,
      nn.with_logical_partitioning(
        nn.initializers.normal(1 / math.sqrt(self.fan_in)), (*self.axes[:n_in], 'lora')
      ),
      (*self.shape[:n_in], rank),
      jnp.float32,
    )
    b: Any = self.param(
      lora_lib.B,
      nn.with_logical_partitioning(
        nn.initializers.zeros_init(), ('lora', *self.axes[n_in:])
      ),
      (rank, *self.shape[n_in:]),
      jnp.float32,
    )
    return a, b


class RMSNorm(nn.Module):
  """y = x / sqrt(mean(x^2) + eps) * scale, computed in float32."""

  config: ModelConfig
  axis: str

  @nn.compact
  def __call__(self, x: Array) -> Array:
    config = self.config
    scale = self.param(
      'scale',
      nn.with_logical_partitioning(nn.initializers.ones_init(), (self.axis,)),
      (x.shape[-1],),
      config.param_dtype,
    )
    return primitives.rms_norm(config.dtype, config.norm_eps, x, scale)


@flax.struct.dataclass
class Context:
  """What every layer needs beside its activations.

  Attributes:
    rotary: (cos, sin).
    mask: bool[B, T, T], which new token (last axis) a new token sees. None
      where `subtree_end` or a cache says it.
    subtree_end: int32[B, T], see core.attention; None likewise.
  """

  rotary: tuple[Array, Array]
  mask: Array | None = None
  subtree_end: Array | None = None


class Cache(Protocol):
  """Keys and values of older tokens, of every layer: a pytree of arrays.

  It decides which slots a new token sees: those of the older tokens of its
  row, and of new ones up to itself.
  """

  def attend(
    self, dtype: str, layer: Array, q: Array, k: Array, v: Array
  ) -> tuple[Array, 'Cache']:
    """Keeps a layer's new keys and values, and attends to them and older ones.

    Args:
      dtype: dtype of the activations.
      layer: int32[], from 0.
      q: [B, K, H/K, T, E].
      k: [B, K, E, T], rotated.
      v: [B, K, T, E].

    Returns:
      float32[B, K, H/K, T, E], and the cache that holds the new tokens.
    """
    ...


class _Attention(nn.Module):
  """Grouped-query attention over new tokens and, if given, cached ones."""

  config: ModelConfig
  constrain: Constrain

  def _project(self, name: str, heads: int, head_axis: str) -> _Linear:
    config = self.config
    return _Linear(
      config,
      'btd,dhk->bthk',
      (config.d_model, heads, config.head_dim),
      ('embed', head_axis, 'head_dim'),
      config.d_model,
      name=name,
      bias_axes=(head_axis, 'head_dim') if config.qkv_bias else None,
    )

  @nn.compact
  def __call__(self, x: Array, context: Context, layer, cache):
    """Returns [B, T, D] and the cache, if there is one, with the new tokens."""
    config = self.config
    heads, kv_heads, dim = config.n_heads, config.n_kv_heads, config.head_dim
    q = self._project('q', heads, 'heads')(x)
    k = self._project('k', kv_heads, 'kv_heads')(x)
    v = self._project('v', kv_heads, 'kv_heads')(x)
    if config.qk_norm:
      q = RMSNorm(config, 'head_dim', name='q_norm')(q)
      k = RMSNorm(config, 'head_dim', name='k_norm')(k)
    q = self.constrain(
      rope.rotate(q, context.rotary), ('batch', 'length', 'heads', None)
    )
    k = rope.rotate(k, context.rotary).transpose(0, 2, 3, 1)
    v = v.transpose(0, 2, 1, 3)
    batch, length = x.shape[:2]
    # Query heads h of one group share the key head h // (H / K).
    q = q.reshape(batch, length, kv_heads, heads // kv_heads, dim)
    q = q.transpose(0, 2, 3, 1, 4)
    if cache is not None:
      y, cache = cache.attend(config.dtype, layer, q, k, v)
    elif context.mask is not None:
      mask = context.mask[:, None, None]
      y = attention.attend_dense(q, k, v, mask, config.dtype)
    else:
      blocks = blocks_lib.blocks_of(length, config.attention, config.head_dim)
      assert context.subtree_end is not None and blocks is not None
      y = attention.attend_blocks(
        q,
        k,
        v,
        context.subtree_end,
        blocks=blocks,
        dtype=config.dtype,
        mesh=self.constrain.mesh,
        rows=self.constrain.rows,
      )
    y = y.astype(config.dtype)
    y = y.transpose(0, 3, 1, 2, 4).reshape(batch, length, heads, dim)
    out = _Linear(
      config,
      'bthk,hkd->btd',
      (heads, dim, config.d_model),
      ('heads', 'head_dim', 'embed'),
      heads * dim,
      name='o',
      scale=1 / math.sqrt(2 * config.n_layers),
    )(y)
    return out, cache


class _MLP(nn.Module):
  """down(silu(gate(x)) * up(x))."""

  config: ModelConfig
  constrain: Constrain

  @nn.compact
  def __call__(self, x: Array) -> Array:
    config = self.config
    d, f = config.d_model, config.d_ff

    def widen(name):
      return _Linear(config, 'btd,df->btf', (d, f), ('embed', 'mlp'), d, name=name)(x)

    y = self.constrain(nn.silu(widen('gate')) * widen('up'), ('batch', 'length', 'mlp'))
    return _Linear(
      config,
      'btf,fd->btd',
      (f, d),
      ('mlp', 'embed'),
      f,
      name='down',
      scale=1 / math.sqrt(2 * config.n_layers),
    )(y)


class Block(nn.Module):
  """One layer, in the form that nn.scan wants: (carry, ...) -> (carry, y)."""

  config: ModelConfig
  constrain: Constrain

  @nn.compact
  def __call__(self, carry, layer, context: Context):
    config = self.config
    x, cache = carry
    y = RMSNorm(config, 'norm', name='attention_norm')(x)
    y, cache = _Attention(config, self.constrain, name='attention')(
      y, context, layer, cache
    )
    x = x + y
    y = RMSNorm(config, 'norm', name='mlp_norm')(x)
    x = x + _MLP(config, self.constrain, name='mlp')(y)
    x = self.constrain(x, ('batch', 'stream', None))
    return (x, cache), None


def scanned_block(config: ModelConfig) -> type[nn.Module]:
  """Returns a module of n_layers blocks, remat as configured.

  It is made as (config, constrain) and called as ((x, cache), layers, context),
  where `layers` counts them, int32[L], if there is a cache: None without.
  """
  block = Block
  if config.remat != 'none':
    policy = None
    if config.remat == 'dots':
      policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    # Inside a scan nothing can be shared with the forward pass anyway.
    block = nn.remat(block, policy=policy, prevent_cse=False)
  return nn.scan(
    block,
    variable_axes={'params': 0},
    split_rngs={'params': True},
    in_axes=(0, nn.broadcast),  # pyright: ignore[reportArgumentType]  # Flax takes one for each argument.
    out_axes=0,
    length=config.n_layers,
    metadata_params={nn.PARTITION_NAME: 'layers'},
  )
