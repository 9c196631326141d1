"""Counts the products of an update, from the shapes and the batch alone.

XLA's cost_analysis counts the body of a loop once, whatever its length, and here
layers, micro-batches, blocks and chunks are loops. Products alone are counted: 2
a multiply-add; what is element by element is some per cent more.
"""

import dataclasses

import numpy as np

from agentflow_jax.core import batch as batch_lib
from agentflow_jax.core import blocks as blocks_lib
from agentflow_jax.core import layers
from agentflow_jax.core import scoring


@dataclasses.dataclass(frozen=True)
class Work:
  """What one forward pass goes over, added up over rows.

  Attributes:
    tokens: places that run through the layers.
    pairs: (query, key) pairs whose scores are formed, a head and a layer.
    targets: targets whose logits are formed.
  """

  tokens: int
  pairs: int
  targets: int


def needed(batch: batch_lib.TurnBatch) -> Work:
  """Returns the work without padding: unique tokens and what they see."""
  ends = np.asarray(batch.subtree_end, np.int64)
  place = np.arange(ends.shape[-1])
  return Work(
      tokens=int((ends > 0).sum()),
      # A token is seen by all from itself to its subtree's end.
      pairs=int(np.where(ends > 0, ends - place, 0).sum()),
      targets=int((np.asarray(batch.responses) > 0).sum()),
  )


def done(
    config: layers.ModelConfig,
    batch: batch_lib.TurnBatch,
    logits_chunk: int | None = None,
    row_shards: int = 1,
    vocab_shards: int = 1,
) -> Work:
  """Returns the work that the micro-batches in use come to, padding included.

  Args:
    config: the network.
    batch: host arrays.
    logits_chunk: see scoring.score_micro.
    row_shards: data x fsdp of the mesh.
    vocab_shards: its tensor.
  """
  n_micro = int(batch.n_micro)
  ends = np.asarray(batch.subtree_end)[:n_micro]
  _, rows, length = ends.shape
  blocks = blocks_lib.blocks_of(length, config.attention, config.head_dim)
  if blocks is None:
    pairs = ends.size * length
  else:
    ends_ = np.pad(ends, ((0, 0), (0, 0), (0, -length % blocks.queries)))
    seen = blocks_lib.needed(ends_, blocks.queries, blocks.keys)
    pairs = seen.sum() * blocks.queries * blocks.keys
  is_target = np.asarray(batch.responses)[:n_micro] > 0
  n_targets, local_rows = is_target.shape[-1], rows // row_shards
  chunk = scoring.chunk_of(
      local_rows, n_targets, config.vocab_size // vocab_shards, logits_chunk
  )
  is_target = np.pad(is_target, [(0, 0)] * 2 + [(0, -n_targets % chunk)])
  split = is_target.reshape(n_micro, row_shards, local_rows, -1, chunk)
  chunks = split.any(axis=(2, 4)).sum()
  return Work(ends.size, int(pairs), int(chunks) * chunk * local_rows)


def forward(config: layers.ModelConfig, work: Work) -> int:
  """Returns the FLOPs of a forward pass."""
  c = config
  projections = c.d_model * c.head_dim * (2 * c.n_heads + 2 * c.n_kv_heads)
  a_token = c.n_layers * (projections + 3 * c.d_model * c.d_ff)
  a_pair = c.n_layers * 2 * c.n_heads * c.head_dim
  return 2 * (
      work.tokens * a_token
      + work.pairs * a_pair
      + work.targets * c.d_model * c.vocab_size
  )


def update_needed(
    config: layers.ModelConfig, work: Work, *, reference: bool
) -> int:
  """Returns the FLOPs of an update: forward, backward, reference forward.

  A backward pass makes two products for each of the forward pass.

  Args:
    config: the network.
    work: work of one forward pass.
    reference: whether the reference policy scores the targets, too.
  """
  return forward(config, work) * (4 if reference else 3)


def update_done(
    config: layers.ModelConfig,
    work: Work,
    *,
    length: int,
    reference: bool,
) -> int:
  """Returns the FLOPs of an update with what its backward pass makes again.

  Those are the logits; attention's scores, where attention goes by blocks; with
  remat 'full' a forward pass of the layers, and with 'dots' their attention.

  Args:
    config: the network.
    work: work of one forward pass.
    length: T, see blocks.blocks_of.
    reference: whether the reference policy scores the targets, too.
  """
  attends = forward(config, Work(0, work.pairs, 0))
  total = update_needed(config, work, reference=reference)
  total += forward(config, Work(0, 0, work.targets))
  blocks = blocks_lib.blocks_of(length, config.attention, config.head_dim)
  if blocks is not None:
    total += attends // 2  # Of the two products of a pair, that of the scores.
    if blocks.kernel == 'pallas':  # dQ and dK are kernels apart: two twice.
      total += attends
  if config.remat == 'full':
    total += forward(config, Work(work.tokens, work.pairs, 0))
  elif config.remat == 'dots':  # Attention's products are not among those kept.
    total += attends
  return total
