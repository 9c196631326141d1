"""Counts the products of updates and of sampling, from shapes and tokens alone.

XLA's cost_analysis counts the body of a loop once, not once an iteration, and here
layers, micro-batches, blocks and chunks are loops. Only products are counted, 2 FLOPs
for a multiply-add; operations by element would add a few per cent.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from agentflow_jax.core import batch as batch_lib
from agentflow_jax.core import blocks as blocks_lib
from agentflow_jax.core import forest
from agentflow_jax.core import layers
from agentflow_jax.core import scoring

# Token ids.
Ids = Sequence[int] | np.ndarray


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

  def __add__(self, other: 'Work') -> 'Work':
    return Work(
      self.tokens + other.tokens, self.pairs + other.pairs, self.targets + other.targets
    )


def useful(responses: Sequence[tuple[Ids, Ids]], scores_prompts: bool = False) -> Work:
  """Returns the least work that scores, or samples, every response token.

  Tokens that responses share from the first token of their prompts on count once.
  Padding and recomputation do not count, so the result does not depend on how turn
  rows are packed or on what a cache holds.

  Args:
    responses: (prompt_ids, response_ids) of each response. One without a token
      needs nothing, unless prompts are scored.
    scores_prompts: whether the tokens of prompts but the first are targets, too (SFT).
  """
  places, prompts, targets = [], [], 0
  for prompt_ids, response_ids in responses:
    if not len(response_ids) and not scores_prompts:
      continue
    ids = np.concatenate([np.asarray(x, np.int64) for x in (prompt_ids, response_ids)])
    places.append(ids[:-1])  # The last token is only ever a target.
    prompts.append(ids[: len(prompt_ids)])
    targets += len(response_ids)
  if scores_prompts:
    first = {int(ids[0]) for ids in prompts}
    targets += forest.unique_tokens(prompts)[0] - len(first)
  return Work(*forest.unique_tokens(places), targets)


def utilisation(flops: float, seconds: float, devices: int, peak: float) -> float:
  """Returns the MFU: useful FLOPs as a share of what the devices could have made.

  Model FLOPs utilisation as in PaLM (arXiv 2204.02311, appendix B).

  Args:
    flops: FLOPs of useful work, see `useful`.
    seconds: wall time [s].
    devices: number of devices.
    peak: throughput of one device [FLOP/s], see core.peaks.
  """
  return flops / (seconds * devices * peak)


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
    logits_chunk: targets of a row whose logits exist at one time, see
      scoring.score_micro.
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


def update_needed(config: layers.ModelConfig, work: Work, *, reference: bool) -> int:
  """Returns the FLOPs of an update: forward, backward, reference forward.

  A backward pass makes two products for each of the forward pass.

  Args:
    config: the network.
    work: work of one forward pass.
    reference: whether the reference policy scores the targets, too.
  """
  return forward(config, work) * (4 if reference else 3)


def update_done(
  config: layers.ModelConfig, work: Work, *, length: int, reference: bool
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
