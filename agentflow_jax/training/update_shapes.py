"""Network, loss and input shapes of an update, derived from the config."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from agentflow_jax.config import schema
from agentflow_jax.core import batch, model, update


def network_of(
  config: schema.Config, model_config: model.ModelConfig
) -> model.ModelConfig:
  """Returns the network that is trained: with the run's adapters, if any."""
  return dataclasses.replace(model_config, lora=config.planner.lora)


def loss_of(config: schema.Config) -> update.LossConfig:
  """Returns the loss that the run's algorithm is."""
  return config.sft.loss if config.algorithm == 'sft' else config.flow_grpo


def needs_reference(config: schema.Config) -> bool:
  """Says whether an update reads the parameters that the run started from."""
  has_kl = config.algorithm == 'flow_grpo' and config.flow_grpo.kl_coef > 0
  return bool(config.planner.lora.rank) or has_kl


def max_kept(config: schema.Config) -> int:
  """Returns how many ids of each target's set an update takes; 0 without sets."""
  is_policy = config.algorithm == 'flow_grpo'
  truncates = is_policy and config.planner.sampling.truncates
  return config.engine.max_kept if truncates else 0


def row_lengths(config: schema.Config) -> tuple[int, ...]:
  """Returns the lengths of packed rows, a program each."""
  return (config.batch.tokens_per_row, *config.batch.shorter_rows)


def pack(
  config: schema.Config,
  rows: Sequence[batch.TurnRow],
  pad_id: int = 0,
  lengths: tuple[int, ...] = (),
) -> tuple[batch.TurnBatch, batch.Packing]:
  """Packs turn rows as the run's updates take them.

  Args:
    config: the run's.
    rows: turn rows of one optimizer update.
    pad_id: a token.
    lengths: row lengths to choose from [tokens]; empty for all of the run's.
  """
  settings = config.batch
  packed, packing = batch.pack_tightest(
    rows,
    lengths or row_lengths(config),
    rows_per_micro=settings.rows_per_micro,
    max_micro=-(-most_rows(config) // settings.rows_per_micro),
    layout=settings.layout,
    block=settings.block,
    pad_id=pad_id,
    max_kept=max_kept(config),
  )
  if corrects(config):  # Of 1 until the old log probabilities are known.
    packed = dataclasses.replace(packed, importance=np.ones_like(packed.weights))
  if config.queue.size:
    fresh = [np.full(len(row.response_ids), row.fresh) for row in rows]
    packed = dataclasses.replace(
      packed, fresh=batch.placed(packing, fresh, packed.weights > 0)
    )
  return packed, packing


def corrects(config: schema.Config) -> bool:
  """Says whether an update's targets have an importance."""
  return config.algorithm == 'flow_grpo' and config.flow_grpo.corrects


def example_batch(
  config: schema.Config, length: int, pad_id: int = 0
) -> batch.TurnBatch:
  """Returns a batch of rows of that length that changes nothing."""
  row = batch.TurnRow(np.zeros(2, np.int32), np.zeros(1, np.int32), 0.0)
  return pack(config, [row], pad_id, (length,))[0]


def most_rows(config: schema.Config) -> int:
  """Returns how many turn rows one update can have; each fits a packed row."""
  if config.algorithm == 'sft':
    whole = config.sft.rollouts_per_step
    return whole * config.agent.rollout.max_turns or config.sft.rows_per_step
  train = config.train
  # Parts of a group keep their shares of G rounded up: never more than began.
  started = train.group_size + train.extra_rollouts
  rollouts = train.queries_per_step // train.mini_batches * started
  return rollouts * config.agent.rollout.max_turns
