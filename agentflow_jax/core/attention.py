"""Attention over forests, without what no token sees.

Token j is seen by token i exactly when j <= i < subtree_end[j]. A block of keys
whose subtrees all end before a block of queries is skipped, so side by side
sequences and branches cost what they see of each other: nothing. What goes over
the blocks is attention_xla, or a kernel of attention_tpu or attention_gpu.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import sharding as jax_sharding

from agentflow_jax.core import attention_xla
from agentflow_jax.core import blocks as blocks_lib
from agentflow_jax.core import primitives

Array = jax.Array
Blocks = blocks_lib.Blocks

# Slots that float32 attention sums in one product; see batch.pack's `block`.
SLOT_BLOCK = 128


def visible(subtree_end: Array) -> Array:
  """Returns bool[B, T, T]: whether token j (last axis) is seen by token i."""
  place = jnp.arange(subtree_end.shape[1])
  causal = place <= place[:, None]
  return causal & (place[:, None] < subtree_end[:, None, :])


def attend_dense(
  q: Array, keys: Array, values: Array, mask: Array, dtype: str
) -> Array:
  """softmax(q k / sqrt(E)) v, with all scores at once.

  Args:
    q: [B, K, H/K, T, E].
    keys: [B, K, E, S].
    values: [B, K, S, E].
    mask: bool, broadcast to [B, K, H/K, T, S]: which slots a query sees.
    dtype: dtype of the activations, see primitives.float32_product.

  Returns:
    float32[B, K, H/K, T, E].
  """
  # Keys (and values, below) come first: in this order XLA's CPU rounds one
  # query over any number of slots as it rounds many, so that sampler and
  # trainer agree to the bit in these products.
  scores = primitives.float32_product(dtype, 'bkes,bkgte->bksgt', keys, q)
  scores = scores.transpose(0, 1, 3, 4, 2)
  scale = 1 / math.sqrt(q.shape[-1])
  scores = jnp.where(mask, scores * scale, blocks_lib.MASKED)
  # Any shift leaves the quotient as it is, so it needs no gradient.
  top = jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True))
  weights = jnp.exp(scores - top)
  # A product with ones, for the same reason: a sum's order would depend on
  # where in its row a token stands.
  ones = jnp.ones((*values.shape[:3], 1), jnp.float32)
  total = _mix(dtype, ones, weights)
  mixed = _mix(dtype, values, weights.astype(dtype))
  return (mixed / total).transpose(0, 1, 3, 4, 2)


def _mix(dtype: str, values: Array, weights: Array) -> Array:
  """Returns float32[B, K, E, H/K, T]: values[B, K, S, E] summed by weights.

  The weights are [B, K, H/K, T, S].
  """
  slots = values.shape[2]
  product = functools.partial(primitives.float32_product, dtype)
  if dtype != 'float32' or slots <= SLOT_BLOCK:
    return product('bkse,bkgts->bkegt', values, weights)
  # Where a CPU library cuts a long sum depends on its other axes. Cut here,
  # a token that starts in a block of its row is summed as it would be alone.
  blocks = -(-slots // SLOT_BLOCK)
  short = blocks * SLOT_BLOCK - slots
  values = jnp.pad(values, ((0, 0), (0, 0), (0, short), (0, 0)))
  weights = jnp.pad(weights, ((0, 0),) * 4 + ((0, short),))
  values = values.reshape(*values.shape[:2], blocks, SLOT_BLOCK, -1)
  weights = weights.reshape(*weights.shape[:4], blocks, SLOT_BLOCK)
  return product('bknse,bkgtns->bknegt', values, weights).sum(axis=2)


def attend_blocks(
  q: Array,
  keys: Array,
  values: Array,
  subtree_end: Array,
  *,
  blocks: Blocks,
  dtype: str,
  mesh: jax_sharding.Mesh | jax_sharding.AbstractMesh | None = None,
  rows: tuple[str, ...] = ('data', 'fsdp'),
) -> Array:
  """softmax(q k / sqrt(E)) v over what each token sees.

  Args:
    q: [B, K, H/K, T, E].
    keys: [B, K, E, T].
    values: [B, K, T, E].
    subtree_end: int32[B, T]; 0 is padding, which nothing sees.
    blocks: cut of the rows, and the implementation; rows are padded to whole blocks.
    dtype: dtype of the activations, see primitives.float32_product.
    mesh: mesh over which rows and heads (tensor) are spread; None where everything is
      on one device.
    rows: axes of the mesh that rows are spread over.

  Returns:
    float32[B, K, H/K, T, E]; 0 for a token that sees nothing.
  """
  length = q.shape[3]
  short = -length % blocks.queries

  def padded(x, axis):
    return jnp.pad(x, [(0, short if a == axis else 0) for a in range(x.ndim)])

  arrays = (padded(q, 3), padded(keys, 3), padded(values, 2), padded(subtree_end, 1))

  def one_row(arrays):
    return _attend_row(blocks, dtype, *arrays)

  def local(*arrays):
    return jax.lax.map(one_row, arrays)

  if mesh is not None and mesh.size > 1:
    spec = jax_sharding.PartitionSpec
    heads = 'tensor'
    local = jax.shard_map(
      local,
      mesh=mesh,
      in_specs=(*[spec(rows, heads)] * 3, spec(rows)),
      out_specs=spec(rows, heads),
      axis_names={*rows, heads},
      check_vma=False,
    )
  return local(*arrays)[:, :, :, :length]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attend_row(blocks, dtype, q, keys, values, subtree_end) -> Array:
  """One row: q [K, G, T, E], keys [K, E, T], values [K, T, E]."""
  return _forward(blocks, dtype, q, keys, values, subtree_end)[0]


def _forward(blocks, dtype, q, keys, values, subtree_end):
  """Returns the result, and what the backward pass needs."""
  arrays = _scaled(q), keys, values, subtree_end
  out, normaliser = _run('forward', blocks, dtype, *arrays)
  return out, (*arrays, out, normaliser)


def _backward(blocks, dtype, saved, d_out):
  q, keys, values, subtree_end, out, normaliser = saved
  inner = jnp.sum(d_out * out, axis=-1)
  d_q, d_keys, d_values = _run(
    'backward',
    blocks,
    dtype,
    q,
    keys,
    values,
    subtree_end,
    normaliser,
    inner,
    d_out.astype(dtype),
  )
  return (
    _scaled(d_q).astype(q.dtype),
    d_keys.transpose(0, 2, 1).astype(keys.dtype),
    d_values.astype(values.dtype),
    None,
  )


_attend_row.defvjp(_forward, _backward)


def _scale(dim: int) -> tuple[float, float]:
  """Returns 1 / sqrt(E): a power of two, which no dtype rounds, and the rest."""
  scale = 1 / math.sqrt(dim)
  power = 2.0 ** round(math.log2(scale))
  return power, scale / power


def _scaled(q: Array) -> Array:
  return q * jnp.asarray(_scale(q.shape[-1])[0], q.dtype)


def _run(name: str, blocks: Blocks, dtype: str, *arrays: Array) -> Any:
  """Runs `forward` or `backward` of what goes over the blocks."""
  factor = _scale(arrays[0].shape[-1])[1]
  if blocks.kernel == 'xla':
    run = getattr(attention_xla, name)
    return run(*arrays, blocks=blocks, dtype=dtype, factor=factor)
  # Here, so that who asks for no kernel needs no Pallas: its backends change.
  # pylint: disable=import-outside-toplevel
  from agentflow_jax.core import attention_gpu
  from agentflow_jax.core import attention_tpu
  # pylint: enable=import-outside-toplevel

  def of(module, **options):
    return functools.partial(getattr(module, name), factor=factor, **options)

  tpu = functools.partial(of, attention_tpu, block=blocks.keys)
  return jax.lax.platform_dependent(
    *arrays, tpu=tpu(), cuda=of(attention_gpu), cpu=tpu(interpret=True)
  )
