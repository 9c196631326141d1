"""Estimates the time of a step from the published rates of the chips."""

import dataclasses
import math

import numpy as np

from agentflow_jax.config import roles, schema
from agentflow_jax.core import batch, flops
from agentflow_jax.training import update_shapes

_EFFICIENCY = 0.4  # Of the peak, that products are assumed to reach.


@dataclasses.dataclass(frozen=True)
class Forest:
  """The rollouts that time and sharing are estimated from [tokens].

  Attributes:
    prompt: length of a query's first prompt.
    memory: length that each turn adds to the next prompt.
    response: length of a response.
  """

  prompt: int
  memory: int
  response: int

  @classmethod
  def of(cls, config: schema.Config) -> 'Forest':
    """Half the longest prompt, filled up by the turns; a quarter of the answer."""
    longest = config.planner.max_prompt_tokens
    turns = config.agent.rollout.max_turns
    return cls(
      prompt=max(longest // 2, 16),
      memory=max(longest // 2 // turns, 1),
      response=max(config.planner.sampling.max_new_tokens // 4, 1),
    )


def _rollouts(config, forest: Forest):
  """Returns the turn rows of a micro-batch's groups, and of how many groups."""
  rng = np.random.default_rng(0)
  draw = lambda n: rng.integers(0, 1000, n)
  per_group = config.train.group_size * config.agent.rollout.max_turns
  groups = max(1, config.batch.rows_per_micro)
  groups = min(groups, config.train.queries_per_step)
  rows = []
  for _ in range(groups):
    prompt, tail = draw(forest.prompt - 8), draw(8)
    for _ in range(config.train.group_size):
      memory = np.zeros(0, np.int64)
      for _ in range(config.agent.rollout.max_turns):
        rows.append(
          batch.TurnRow(
            np.concatenate([prompt, memory, tail]), draw(forest.response), 1.0
          )
        )
        memory = np.concatenate([memory, draw(forest.memory)])
  assert len(rows) == groups * per_group
  return rows, groups


def _part(rows: int, shards: int) -> int:
  """Returns into how many equal parts a micro-batch is cut, to pack but one.

  Some rows say enough of them all; those of a thousand chips would take a
  host's whole memory.
  """
  part = 1
  while rows // part > 64 and not (rows % (2 * part) or shards % (2 * part)):
    part *= 2
  return part


def estimated(config, planner, mesh, chip, report, local):
  """Returns the assumptions, and what a step then comes to."""
  forest = Forest.of(config)
  train, turns = config.train, config.agent.rollout.max_turns
  shape = dict(mesh.shape)
  shards = shape['data'] * shape['fsdp']
  part = _part(config.batch.rows_per_micro, shards)
  config = dataclasses.replace(
    config,
    batch=dataclasses.replace(
      config.batch, rows_per_micro=config.batch.rows_per_micro // part
    ),
  )
  rows, groups = _rollouts(config, forest)
  packed, packing = update_shapes.pack(config, rows)
  scale = train.queries_per_step / groups
  length = packed.token_ids.shape[-1]
  work = flops.done(
    planner, packed, row_shards=shards // part, vocab_shards=shape['tensor']
  )
  update_flops = scale * flops.update_done(
    planner, work, length=length, reference=update_shapes.needs_reference(config)
  )
  micro = math.ceil(scale * packing.n_micro / part)
  program = report['programs'][f'update of rows of {length}']
  # An all-reduce sends its result about twice; the others are taken once.
  sent = micro * sum(
    c['bytes'] * (2 if kind == 'all-reduce' else 1)
    for kind, c in program['collectives'].items()
  )
  products = update_flops / len(mesh.devices.flat) / chip.flops / _EFFICIENCY
  links = sent / chip.links

  assumes = {
    'prompt_tokens': forest.prompt,
    'memory_tokens_a_turn': forest.memory,
    'response_tokens': forest.response,
    'turns': turns,
    'share_of_peak': _EFFICIENCY,
    'tools_seconds': 0.0,
  }
  seconds = {}
  if not roles.samples_outside(config):
    prompts = scale * packing.n_tokens
    seconds = _sampling(config, planner, mesh, chip, report, local, forest, prompts)
  return assumes, {
    'update_flops_a_chip': update_flops / len(mesh.devices.flat),
    'update_collective_bytes_a_chip': sent,
    'micro_batches': micro,
    'tokens_a_step': int(scale * packing.n_tokens),
    'tokens_shared': packing.n_row_tokens / packing.n_tokens,
    'fill': packing.fill,
    'update_seconds': {
      'overlapped': max(products, links),
      'one after the other': products + links,
    },
    **seconds,
  }


def _sampling(config, planner, mesh, chip, report, local, forest, prompts):
  """Returns the seconds of sampling a step in this job, for all tokens of prompts."""
  train, turns = config.train, config.agent.rollout.max_turns
  rollouts = train.queries_per_step * train.group_size
  processes = len(mesh.devices.flat) // local
  sampling = local if config.mesh.sampler_devices == -1 else 1
  per_token = flops.forward(planner, flops.Work(1, 0, 0))
  read = prompts / processes
  prefill = read * per_token / sampling / chip.flops / _EFFICIENCY
  steps = math.ceil(
    rollouts
    * turns
    * forest.response
    / processes
    / min(config.engine.slots, math.ceil(rollouts / processes))
  )
  seen = forest.prompt + forest.memory * (turns - 1) / 2 + forest.response / 2
  # Bytes of a token on one chip, however the pool is split.
  kv = report['bytes_a_chip']['sampler: keys and values'] / (
    config.engine.pages * config.engine.page_tokens
  )
  weights = report['programs']['decode']['argument_bytes']
  weights -= sum(
    report['bytes_a_chip'][f'sampler: {name}']
    for name in ('keys and values', 'rows gathered of them')
  )
  decode = steps * (weights + config.engine.slots * seen * kv) / chip.bandwidth
  return {'prefill_seconds': prefill, 'decode_seconds': decode}
