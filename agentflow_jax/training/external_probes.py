"""The start of a run whose planner is sampled by servers: first weights, first gap."""

import asyncio
import dataclasses
from typing import Any

import numpy as np

from agentflow_jax import records
from agentflow_jax.agents import prompts
from agentflow_jax.assembly import external_planner, system as system_lib
from agentflow_jax.config import schema
from agentflow_jax.core import batch
from agentflow_jax.runtime import exits
from agentflow_jax.training import trainer as trainer_lib, turn_rows, update_shapes

# Longest response of a probe [tokens].
_RESPONSE_TOKENS = 128


def prepare(system: system_lib.System, trainer: trainer_lib.Trainer) -> None:
  """Waits for a server, and lets hand-overs be proved; nothing without servers.

  Raises:
    ConfigError: no server can be reached in planner.external.patience_seconds.
  """
  servers = system.model.servers
  if servers is None:
    return

  def score(params: Any, probes) -> list[np.ndarray]:
    return trainer.logprobs_of(
      [_row(p.prompt_ids, p.response_ids) for p in probes], params
    )

  servers.prove_by(score, lambda: trainer.state.params)
  reasons = servers.sampler.fleet.wait_for_one()
  if reasons:
    raise schema.ConfigError(f'planner.external.servers: none can be asked: {reasons}')


async def begin(
  system: system_lib.System, trainer: trainer_lib.Trainer, done: int
) -> list[str]:
  """Hands the first weights over, measures the gap, and proves every server.

  Args:
    system: parts of the run.
    trainer: the run's.
    done: number of steps that are done.

  Returns:
    Words about the servers and their gap; none without servers.

  Raises:
    ConfigError: no server took the weights, or the gap is larger than its bounds.
    RunStopped: a server does not have the weights that it loaded.
  """
  servers = system.model.servers
  if servers is None:
    return []
  sampler = servers.sampler
  if sampler.params_version < 0:
    await asyncio.to_thread(system.model.sample_from, trainer.params, done)
  if not sampler.fleet.live:
    raise schema.ConfigError(
      f'planner.external.servers: none took the weights: {sampler.fleet.why_not()}'
    )
  completions = await asyncio.gather(*map(_sampled(system), _texts(system)))
  spec = system.config.planner.sampling
  rows = [
    _row(
      c.prompt_ids,
      c.response_ids,
      temperature=spec.temperature,
      kept=None if c.kept is None else turn_rows.padded(c.kept),
    )
    for c in completions
  ]
  scores = await asyncio.to_thread(trainer.logprobs_of, rows)
  gaps = np.abs(
    np.concatenate(scores) - np.concatenate([np.array(c.logprobs) for c in completions])
  )
  exceeded = trainer.bounds.exceeded(gaps)
  if exceeded:
    raise schema.ConfigError(
      f'planner.external.servers: before the first step {exceeded}. Servers must have'
      f' this model in {trainer.dtype}, and return the log probabilities that they'
      ' sample with (vLLM: --logprobs-mode processed_logprobs); where they round more,'
      ' raise these fields'
    )
  probes = [external_planner.Probe(c.prompt_ids, c.response_ids) for c in completions]
  plain = await asyncio.to_thread(
    trainer.logprobs_of, [_row(p.prompt_ids, p.response_ids) for p in probes]
  )
  try:
    await asyncio.to_thread(sampler.fleet.probe_with, probes, plain)
  except external_planner.Refuted as e:
    raise exits.RunStopped(str(e)) from e
  return [_said(sampler, trainer, gaps)]


def _said(sampler, trainer, gaps) -> str:
  bounds, p99 = trainer.bounds, float(np.quantile(gaps, 0.99))
  away = sampler.fleet.why_not()
  return (
    f'sampled by {", ".join(sampler.fleet.live) or "nobody yet"}'
    + (f' (left out: {away})' if away else '')
    + f'; gap to the trainer over {len(gaps)} tokens: mean {gaps.mean():.2g}, p99'
    f' {p99:.2g}, max {gaps.max():.2g} nats (allowed: mean {bounds.mean:.2g}, p99'
    f' {bounds.p99:.2g}). An importance weight is off by {np.expm1(p99):.2g} at p99,'
    ' and a hand-over is proved by log probabilities where a step moves one by more'
    f' than {external_planner.FACTOR * bounds.p99:.2g}'
  )


def _texts(system) -> list[records.Task]:
  """Returns the tasks whose prompts begin probes."""
  tasks = system.tasks.train
  config = system.config
  count = min(config.planner.external.probes, update_shapes.most_rows(config))
  return [tasks[i % len(tasks)] for i in range(count)]


def _sampled(system):
  """Returns a function that samples a response to a task's first prompt."""
  model, config = system.model.samplers['planner'], system.config
  spec = config.planner.sampling
  spec = dataclasses.replace(
    spec, max_new_tokens=min(spec.max_new_tokens, _RESPONSE_TOKENS)
  )

  async def sample(task: records.Task) -> records.Completion:
    state = system.agent.start_memory(task.query)
    segments = prompts.planner_prompt(system.planner.prompt, system.agent.cards, state)
    ids = model.render(segments)[-config.planner.max_prompt_tokens :]
    key = records.RequestKey(
      config.seed, records.Purpose.EVALUATE, 0, task.id, 0, module='probe'
    )
    return await model.sample(ids, spec, key)

  return sample


def _row(prompt_ids, response_ids, **fields) -> batch.TurnRow:
  return batch.TurnRow(
    np.array(prompt_ids, np.int32),
    np.array(response_ids, np.int32),
    1.0,
    rollout=0,
    **fields,
  )
