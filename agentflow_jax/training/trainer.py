"""The device side of a run: packed rows in, a new train state out."""

import dataclasses
import math
import statistics
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from agentflow_jax.assembly import model_files, system as system_lib
from agentflow_jax.config import roles, schema
from agentflow_jax.core import batch, corrections, device_time, gap_bounds, launches
from agentflow_jax.core import masters, model, sharding, update
from agentflow_jax.runtime import exits
from agentflow_jax.training import update_shapes

_GAP = 'the trainer scores the sampled tokens otherwise than the sampler did: '
_NONFINITE = 'the gradient or the loss is not finite'
_UNBOUNDED = gap_bounds.GapBounds()


def _starting_values(
  system: system_lib.System, network: model.ModelConfig
) -> model.Params:
  """Returns the values that training starts from.

  They are `system.model.params`. Only where a float32 master is kept, and the model's
  files hold more than its bfloat16 rounding, they are read again in float32: a
  master that starts in the middle between two roundings would have to move half
  a spacing before any parameter that is sampled from moves.
  """
  directory = system.config.planner.directory
  if (
    not masters.is_needed(network)
    or not directory
    or model_files.stored_dtype(system.model.described) != 'float32'
  ):
    return system.model.params
  return model_files.read_float32(
    directory, network, sharding.param_shardings(network, system.model.mesh)
  )


class Trainer:
  """The device side of a run: state, reference and the jitted update."""

  def __init__(self, system: system_lib.System):
    """Copies the parameters and compiles the update before step 0."""
    config, mesh = system.config, system.model.mesh
    # A planner behind an endpoint has none of these, and is not trained.
    self._config = config
    network = update_shapes.network_of(config, system.model.config)
    self._mesh = mesh
    self.state = update.init_train_state(
      network,
      config.optimizer,
      mesh,
      jax.random.key(config.seed),
      _starting_values(system, network),
    )
    self._merge = update.make_merge_fn(network, mesh)
    self._uses_lora = network.lora.rank > 0
    self._reference = (
      system.model.params if update_shapes.needs_reference(config) else None
    )
    self._pad_id = system.model.tokenizer.pad_id
    lengths = update_shapes.row_lengths(config)
    if config.algorithm == 'none':
      lengths = ()
    shards = sharding.row_shards(mesh)
    if lengths and config.batch.rows_per_micro % shards:
      raise schema.ConfigError(
        f'batch.rows_per_micro {config.batch.rows_per_micro} must be a'
        f' multiple of data x fsdp = {shards}'
      )
    self.dtype = network.dtype
    self.bounds = gap_bounds.of(
      network.dtype,
      outside=roles.samples_outside(config),
      kv_dtype=config.engine.kv_dtype,
      largest=config.train.max_logprob_gap,
      mean=config.train.mean_logprob_gap,
      p99=config.train.p99_logprob_gap,
    )
    examples = {
      n: sharding.put_batch(update_shapes.example_batch(config, n, self._pad_id), mesh)
      for n in lengths
    }
    update_fn = update.make_update_fn(
      network, config.optimizer, update_shapes.loss_of(config), mesh
    )
    self._updates = {
      n: update_fn.lower(
        self.state, self._reference, example, self.bounds.array()
      ).compile()
      for n, example in examples.items()
    }
    jax.block_until_ready(self.params)  # Compiles the merge, if there is one.
    self._score = self._replicated = None
    if config.algorithm == 'flow_grpo' and config.flow_grpo.old_logprobs == 'recompute':
      self._score = update.make_score_fn(system.model.config, mesh)
      self._replicated = jax.jit(lambda x: x, out_shardings=sharding.replicated(mesh))
      for example in examples.values():
        self._on_host(self._score(self.params, example))

  @property
  def params(self) -> Any:
    """The planner's parameters now; with LoRA, merged anew at every call."""
    if not self._uses_lora:
      return self.state.params
    with self._in_turn():
      return self._merge(self._reference, self.state.params)

  @device_time.METER.used()
  def logprobs_of(
    self, rows: Sequence[batch.TurnRow], params: Any = None
  ) -> list[np.ndarray]:
    """Returns float32[A] for each turn row: the log probabilities of its response.

    It needs flow_grpo.old_logprobs=recompute, and the rows must fit into one update.

    Args:
      rows: turn rows.
      params: whole parameters over the mesh; None for the planner's now.
    """
    turn_batch, packing = self._pack(rows)
    params = self.params if params is None else params
    assert self._score is not None
    with self._in_turn():
      scores = self._score(params, turn_batch)
    return batch.unpack(packing, self._on_host(scores))

  @device_time.METER.used()
  def step(
    self, mini_batches: tuple[tuple[batch.TurnRow, ...], ...]
  ) -> dict[str, float]:
    """Makes one optimizer update a mini-batch.

    Returns:
      The updates' metrics (see `_summarised`) and how the rows were packed.

    Raises:
      RunStopped: an update was refused; the state is the one before it.
    """
    if self._config.algorithm == 'none':
      return {'updates': 0}
    updates = [list(rows) for rows in mini_batches if rows]
    packed = [self._pack(rows) for rows in updates]
    if self._score is not None:
      # All before the first update: pi_old is the policy that sampled.
      params = self.params
      with self._in_turn():
        packed = [
          (b.replace(old_logprobs=self._score(params, b)), p) for b, p in packed
        ]
    if update_shapes.corrects(self._config):
      packed = [
        (self._corrected(rows, *one), one[1])
        for rows, one in zip(updates, packed, strict=True)
      ]
    results = []
    for i, (turn_batch, _) in enumerate(packed):
      bounds = self.bounds if i == 0 else _UNBOUNDED
      update_fn = self._updates[turn_batch.token_ids.shape[-1]]
      with self._in_turn():
        self.state, device_metrics = update_fn(
          self.state, self._reference, turn_batch, bounds.array()
        )
      result = {k: float(v) for k, v in device_metrics.items()}
      refused = int(result.pop('refused'))
      if refused == update.REFUSED_GAP:
        gaps = (result[f'logprob_gap/{name}'] for name in ('max', 'p99', 'mean'))
        raise exits.RunStopped(_GAP + bounds.said(*gaps))
      if refused != update.ACCEPTED:
        raise exits.RunStopped(_NONFINITE)
      results.append(result)
    if not results:
      return {'updates': 0}
    metrics = {f'update/{k}': v for k, v in _summarised(results).items()}
    metrics['updates'] = len(results)
    metrics['batch/rows'] = sum(p.n_rows for _, p in packed)
    metrics['batch/micro'] = sum(p.n_micro for _, p in packed)
    metrics['batch/fill'] = sum(p.fill for _, p in packed) / len(packed)
    metrics['batch/tokens'] = sum(p.n_tokens for _, p in packed)
    metrics['batch/padding'] = sum(
      math.prod(b.token_ids.shape[1:]) * p.n_micro - p.n_tokens for b, p in packed
    )
    # Times that an average token of a turn row is used; 1 where none is shared.
    metrics['batch/sharing'] = sum(p.n_row_tokens for _, p in packed) / max(
      metrics['batch/tokens'], 1
    )
    return metrics

  def _corrected(
    self, rows: list[batch.TurnRow], turn_batch: batch.TurnBatch, packing: batch.Packing
  ) -> batch.TurnBatch:
    """Returns a batch with the importance that follows from its old logprobs.

    Raises:
      RunStopped: fresh rows were scored otherwise than they were sampled. The update
        checks that, too, but only the first update of a step.
    """
    old = batch.unpack(packing, self._on_host(turn_batch.old_logprobs))
    recorded = [np.asarray(row.behavior_logprobs) for row in rows]
    gaps = [
      np.abs(logprobs - sampled)
      for row, logprobs, sampled in zip(rows, old, recorded, strict=True)
      if row.fresh and row.target_weight
    ]
    exceeded = self.bounds.exceeded(np.concatenate(gaps)) if gaps else ''
    if exceeded:
      raise exits.RunStopped(_GAP + exceeded)
    importance = corrections.importance_of(
      self._config.flow_grpo, old, recorded, [row.rollout for row in rows]
    )
    placed = batch.placed(packing, importance, turn_batch.weights)
    return dataclasses.replace(
      turn_batch, importance=sharding.put_batch(placed, self._mesh)
    )

  def _on_host(self, array: Any) -> np.ndarray:
    """Returns an array that is split over the mesh, whole, in every process."""
    if not array.is_fully_addressable:
      assert self._replicated is not None
      with self._in_turn():
        array = self._replicated(array)
    return np.asarray(array)

  def _in_turn(self):
    return launches.over(self._mesh.devices.size)

  def _pack(self, rows):
    packed, packing = update_shapes.pack(self._config, rows, self._pad_id)
    return sharding.put_batch(packed, self._mesh), packing


def _summarised(results: list[dict[str, float]]) -> dict[str, float]:
  """One figure a metric for all updates of a step.

  The gap is the first update's, whose parameters alone are those that sampled;
  targets are summed, extremes are extremes, the rest are means over updates.
  """
  combine = {'n_targets': sum, 'ratio_max': max, 'ratio_min': min}
  summarised = {}
  for name, first in results[0].items():
    values = [r[name] for r in results]
    if name.startswith('logprob_gap/'):
      summarised[name] = first
    else:
      summarised[name] = combine.get(name, statistics.fmean)(values)
  return summarised
