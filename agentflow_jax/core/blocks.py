"""How attention's rows are cut into blocks, and which of them see each other."""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array

# A score that counts for nothing. Finite, so that a padding token, which may
# attend to nothing, stays finite.
MASKED = -1e30
# Twice as many queries: products are that much larger, and the softmax is added
# up half as often, for a few per cent more scores that the mask then empties.
_QUERIES, _KEYS = 256, 128
# Blocks of a kernel are multiples of what a TPU's registers hold in a row.
_LANES = 128
_MIN_BLOCK = 8
# What kernels have been written for.
KERNEL_HEADS = (64, 128, 256)
# Below this the dense product is faster than a loop over blocks.
_MIN_BLOCKED = 1024


@dataclasses.dataclass(frozen=True)
class Blocks:
  """How rows are cut.

  Attributes:
    queries: tokens of a block of queries; a multiple of `keys`.
    keys: tokens of a block of keys.
    kernel: implementation that goes over the blocks: 'xla' runs anywhere; 'pallas' is a
      kernel for the platform, whose blocks are square.
  """

  queries: int
  keys: int
  kernel: Literal['xla', 'pallas'] = 'xla'

  def __post_init__(self):
    if self.keys < 1 or self.queries % self.keys:
      raise ValueError(f'queries must be a multiple of keys: {self}')
    if self.kernel == 'pallas' and (self.queries != self.keys or self.keys % _LANES):
      raise ValueError(f'a kernel has square blocks of multiples of {_LANES}: {self}')


def platform_of(
  device: jax.Device,  # pyright: ignore[reportInvalidTypeForm]  # jax assigns the class.
) -> str:
  """Returns 'cpu', 'tpu', 'cuda' or 'rocm': to JAX the last two are both 'gpu'."""
  if device.platform != 'gpu':
    return device.platform
  return 'rocm' if 'rocm' in device.client.platform_version else 'cuda'


def blocks_of(length: int, choice: str = 'auto', head_dim: int = 0) -> Blocks | None:
  """Returns how rows of T tokens are cut; None for dense rows.

  Args:
    length: T.
    choice: way of attending, a value of ModelConfig.attention.
    head_dim: E, which decides whether there is a kernel; 0 for none.
  """
  if choice == 'auto':
    choice = 'blocks' if length >= _MIN_BLOCKED else 'dense'
    # The kernel for TPUs has run on none yet, and that for GPUs on CUDA's alone.
    has_kernel = head_dim in KERNEL_HEADS
    if choice == 'blocks' and has_kernel and (platform_of(jax.devices()[0]) == 'cuda'):
      choice = 'pallas'
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


def needed(subtree_end: Any, queries: int, keys: int) -> Any:
  """Returns bool[..., n, m]: whether a block of queries sees one of keys.

  Args:
    subtree_end: int[..., T], a NumPy or JAX array of whole blocks.
    queries: tokens of a block of queries.
    keys: tokens of a block of keys.
  """
  length = subtree_end.shape[-1]
  lead = subtree_end.shape[:-1]
  reach = subtree_end.reshape(*lead, -1, keys).max(axis=-1)
  first = np.arange(0, length, queries)[:, None]
  causal = np.arange(0, length, keys) < first + queries
  return causal & (reach[..., None, :] > first)


def lists(wanted: Array) -> tuple[Array, Array]:
  """Returns the columns that are wanted of each row, and how many.

  Args:
    wanted: bool[n, m].

  Returns:
    int32[n, m], of which the first so many of each row mean something, and
    int32[n], how many.
  """
  which = jnp.argsort(~wanted, axis=1, stable=True).astype(jnp.int32)
  return which, wanted.sum(axis=1, dtype=jnp.int32)
