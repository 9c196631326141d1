"""Attention of one new token a row over pages where they lie: JAX's own kernels.

jax.experimental.pallas has one for TPUs and one for CUDA GPUs, over pages of our
layout. Both round what they read to bfloat16, so they are for bfloat16 alone. A
row's blocks are gone over in order, whatever other rows there are.
"""

import functools
import math
from typing import Any
import warnings

import jax
import jax.numpy as jnp
from jax import lax

from agentflow_jax.core import attention

Array = jax.Array

# A row's blocks are split among programs until there are two or so for each
# multiprocessor of a GPU; more cost more to add up (measured on an H100).
_PROGRAMS, _MOST_SPLITS = 256, 16


def lacks(platform: str, dtype: str, kv_dtype: str, head_dim: int) -> str:
  """Says why there is no kernel; '' where there is one.

  Args:
    platform: platform of the device, see core.blocks.platform_of.
    dtype: dtype of the activations.
    kv_dtype: format of pages, '' for the dtype of the activations.
    head_dim: E.
  """
  if platform == 'rocm':
    return "the kernel for GPUs has run on CUDA's alone"
  if dtype != 'bfloat16':
    return f'kernels round to bfloat16, and activations are {dtype}'
  if platform == 'tpu' and kv_dtype:
    return f'the kernel for TPUs gains nothing of pages of {kv_dtype}'
  if platform == 'tpu' and head_dim % 128:
    return f'the kernel for TPUs has heads of 128, and not of {head_dim}'
  if head_dim & (head_dim - 1):
    return f'the kernel for GPUs has heads of a power of two, not {head_dim}'
  return ''


def attend(
  q: Array,
  pool: Any,
  tables: Array,
  starts: Array,
  mesh: jax.sharding.Mesh | None = None,
) -> Array:
  """softmax(q k / sqrt(E)) v over each row's slots.

  Args:
    q: bfloat16[B, K, H/K, 1, E].
    pool: a pages.Pool of bfloat16, or of int8 and scales on CUDA GPUs.
    tables: int32[B, M], the rows' pages, in order; whole blocks.
    starts: int32[B], the last slot that a row sees.
    mesh: mesh over whose axes (kv_heads, groups) heads are split; None on one device.

  Returns:
    float32[B, K, H/K, 1, E].
  """

  def local(q, pool, tables, starts):
    rows, heads, groups, _, dim = q.shape
    # The kernels do not scale. In float32, so that only the product is rounded.
    scaled = q.astype(jnp.float32) / math.sqrt(dim)
    scaled = scaled.reshape(rows, heads * groups, dim).astype(q.dtype)
    y = lax.platform_dependent(
      scaled,
      pool,
      tables,
      starts + 1,
      tpu=_tpu,
      cuda=_cuda,
      cpu=functools.partial(_cuda, interpret=True),
    )
    return y.reshape(q.shape).astype(jnp.float32)

  if mesh is not None and mesh.size > 1:
    spec = jax.sharding.PartitionSpec
    kv_heads, groups = mesh.axis_names
    # Where they do not divide, all devices have a key head's query heads.
    divides = not q.shape[2] % mesh.shape[groups]
    of_q = spec(None, kv_heads, groups if divides else None)
    local = jax.shard_map(
      local,
      mesh=mesh,
      in_specs=(of_q, spec(kv_heads), spec(), spec()),
      out_specs=of_q,
      check_vma=False,
    )
  return local(q, pool, tables, starts)


def _tpu(q: Array, pool: Any, tables: Array, lengths: Array) -> Array:
  # Here, and below, so that who asks for no kernel needs none.
  # pylint: disable-next=import-outside-toplevel
  from jax.experimental.pallas.ops.tpu import paged_attention

  return paged_attention.paged_attention(
    q,
    pool.keys,
    pool.values,
    lengths,
    tables,
    pages_per_compute_block=attention.SLOT_BLOCK // pool.values.shape[2],
  )


def _cuda(
  q: Array, pool: Any, tables: Array, lengths: Array, *, interpret: bool = False
) -> Array:
  with warnings.catch_warnings():
    # It is said to go with Pallas' Triton backend; there is no other yet.
    warnings.simplefilter('ignore', DeprecationWarning)
    # pylint: disable-next=import-outside-toplevel
    from jax.experimental.pallas.ops.gpu import paged_attention

  of_block = attention.SLOT_BLOCK // pool.values.shape[2]
  splits = _PROGRAMS // (len(q) * pool.values.shape[0])
  splits = max(1, min(splits, _MOST_SPLITS))
  # A split has whole blocks; what a table lacks for that is scratch.
  per_split = -(-tables.shape[1] // of_block // splits) * of_block
  short = -tables.shape[1] % per_split
  tables = jnp.pad(tables, ((0, 0), (0, short)))
  scales = {}
  if pool.key_scales is not None:
    scales = {
      'k_scales_pages': pool.key_scales[..., 0],
      'v_scales_pages': pool.value_scales[..., 0],
    }
  return paged_attention.paged_attention(
    q,
    pool.keys,
    pool.values,
    tables,
    lengths,
    **scales,
    pages_per_compute_block=of_block,
    k_splits=tables.shape[1] // per_split,
    num_warps=4,
    num_stages=2,
    interpret=interpret,
  )
