"""Where a training step's turn rows come from: live rollouts, or traces."""

import asyncio
import dataclasses
import fractions
import functools
import math
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from absl import logging
from etils import epath

from agentflow_jax import records
from agentflow_jax.assembly import scripted_planners, system, task_sets
from agentflow_jax.config import schema
from agentflow_jax.core import batch
from agentflow_jax.rollouts import collect, journal as journal_lib
from agentflow_jax.rollouts import rollout_files, totals
from agentflow_jax.training import batches

OnDone = Callable[[records.Trajectory], None]


@dataclasses.dataclass(frozen=True)
class StepData:
  """What one step trains on.

  Attributes:
    mini_batches: the turn rows of each optimizer update; whole groups.
    metrics: of how they were collected.
    groups: the rollouts themselves, those that are trained on first; empty
      where there were none.
    extras: (place of the group, rollout) -> fields for its record.
  """

  mini_batches: tuple[tuple[batch.TurnRow, ...], ...]
  metrics: dict[str, float]
  groups: tuple[records.Group, ...] = ()
  extras: Mapping[tuple[int, int], Mapping[str, Any]] = dataclasses.field(
      default_factory=dict
  )


class Source(Protocol):
  """Gives a step its data; the same step always the same."""

  async def step(self, step: int, on_done: OnDone) -> StepData:
    """Returns the data of `step` (from 0)."""


class RolloutSource:
  """Live rollouts of the current planner: Flow-GRPO's data."""

  def __init__(self, parts: system.System, journal: journal_lib.Journal):
    self._parts = parts
    self._journal = journal

  async def step(self, step, on_done):
    config = self._parts.config
    train = config.train
    tasks = self._tasks(config.seed, step)
    found = await self._groups(step, tasks, on_done, before=[])
    for i in range(train.refill_rounds):
      missing = train.queries_per_step - sum(map(totals.has_variance, found))
      if not missing:
        break
      # A sequence of its own: what later steps ask stays what it would be.
      more = self._refill(step * train.refill_rounds + i)[:missing]
      found += await self._groups(step, more, on_done, before=tasks)
      tasks += more
    groups, dropped = _kept(found, train.queries_per_step)
    size = len(groups) // train.mini_batches
    parts = [
        batches.flow_grpo_rows(groups[i : i + size], config.flow_grpo)
        for i in range(0, len(groups), size)
    ]
    extras = {
        (m * size + place, i): extra
        for m, part in enumerate(parts)
        for (place, i), extra in part.extras.items()
    }
    return StepData(
        mini_batches=tuple(p.rows for p in parts),
        metrics=totals.of_step(found) | {'groups/dropped': len(dropped)},
        groups=(*groups, *dropped),
        extras=extras,
    )

  def _refill(self, step) -> list[records.Task]:
    seed = f'{self._parts.config.seed} refill'
    tasks = self._tasks(seed, step)
    if self._parts.tasks.mixture:
      # Only the first are asked: were it always the same places of the sources'
      # turns, one source would get more than its weight.
      start = random.Random(f'{seed}/{step}').randrange(len(tasks))
      tasks = tasks[start:] + tasks[:start]
    return tasks

  def _tasks(self, seed, step) -> list[records.Task]:
    tasks, mixture = self._parts.tasks.train, self._parts.tasks.mixture
    count = self._parts.config.train.queries_per_step
    if mixture:
      chosen = mixture_indices(mixture, seed, step, count)
    else:
      chosen = epoch_indices(len(tasks), seed, step, count)
    return [tasks[i] for i in chosen]

  async def _groups(self, step, tasks, on_done, before):
    config = self._parts.config
    return await collect.groups(
        self._parts.agent,
        tasks,
        group_size=config.train.group_size,
        extra=config.train.extra_rollouts,
        key=records.RequestKey(
            config.seed, records.Purpose.TRAIN, step, '', 0
        ),
        limit=asyncio.Semaphore(config.train.concurrent_rollouts),
        processes=self._parts.processes,
        journal=self._journal,
        on_done=on_done,
        before=before,
    )


class TraceSource:
  """Turns of the scripted teacher, collected once: the warm start's data."""

  def __init__(self, parts: system.System, directory: epath.Path):
    self._parts = parts
    self._path = directory / 'traces.jsonl.zst'
    self._turns: list[records.Turn] | None = None

  async def step(self, step, on_done):
    config = self._parts.config
    if self._turns is None:
      self._turns = await self._collect(on_done)
    if not self._turns:
      raise schema.ConfigError(
          'the teacher gave no turn to learn from: sft needs tasks that carry'
          ' their solution (task_set.kind=geohop)'
      )
    turns = [
        self._turns[i]
        for i in epoch_indices(
            len(self._turns), config.seed, step, config.sft.rows_per_step
        )
    ]
    rows = batches.sft_rows(turns, config.sft.prompt_weight)
    metrics = {'sft/turns': len(self._turns), 'sft/rows': len(rows)}
    return StepData(mini_batches=(rows,), metrics=metrics)

  async def _collect(self, on_done):
    """Runs the teacher through the live loop, real tools included."""
    config = self._parts.config
    if self._path.exists():
      groups = rollout_files.read(self._path)
    else:
      tasks = self._parts.tasks.train[: config.sft.traces]
      logging.info('collecting %d traces of the teacher', len(tasks))
      groups = await collect.groups(
          self._parts.with_script(scripted_planners.make_teacher(config.teacher)),
          tasks,
          group_size=1,
          key=records.RequestKey(config.seed, records.Purpose.SFT, 0, '', 0),
          limit=asyncio.Semaphore(config.train.concurrent_rollouts),
          processes=self._parts.processes,
          on_done=on_done,
      )
      if self._parts.processes.is_primary:
        await asyncio.to_thread(rollout_files.write, self._path, groups)
    return [
        turn for g in groups for t in g.trajectories for turn in t.turns
    ]


def epoch_indices(
    total: int, seed: int | str, step: int, count: int
) -> list[int]:
  """Indices of one step's items: each epoch is a new permutation of all.

  A pure function of its arguments, so a data cursor is the step number.

  Args:
    total: items in an epoch.
    seed: the run's, or what names another sequence of it.
    step: from 0.
    count: items a step.
  """
  places = range(step * count, (step + 1) * count)
  return [_order(total, seed, p // total)[p % total] for p in places]


@functools.lru_cache(maxsize=8)  # Of 100,000 items each takes 4 MiB, 50 ms.
def _order(total: int, seed: int | str, epoch: int) -> tuple[int, ...]:
  """The permutation of an epoch."""
  order = list(range(total))
  random.Random(f'{seed}/epoch/{epoch}').shuffle(order)
  return tuple(order)


def mixture_indices(
    parts: Sequence[task_sets.Part], seed: int | str, step: int, count: int
) -> list[int]:
  """Indices of one step's items, of several sources by their weights.

  Sources take turns as `turns` says, over all steps as if they were one; each
  goes through epochs of its own, so that a small one starts its next while a
  large one is in its first. A pure function of its arguments, as epoch_indices.

  Args:
    parts: the sources, in the order in which their items lie.
    seed: the run's, or what names another sequence of it.
    step: from 0.
    count: items a step.
  """
  common = math.gcd(*(p.weight for p in parts))
  weights = tuple(p.weight // common for p in parts)
  period = turns(weights)
  rounds, start = divmod(step * count, len(period))
  # Of each source: what it gave before this step, and where its items start.
  given = [
      rounds * w + period[:start].count(i) for i, w in enumerate(weights)
  ]
  offsets = [sum(p.items for p in parts[:i]) for i in range(len(parts))]
  chosen = []
  for place in range(start, start + count):
    i = period[place % len(period)]
    part = parts[i]
    epoch, at = divmod(given[i], part.items)
    order = _order(part.items, f'{seed}/{part.source}', epoch)
    chosen.append(offsets[i] + order[at])
    given[i] += 1
  return chosen


@functools.lru_cache(maxsize=8)
def turns(weights: tuple[int, ...]) -> tuple[int, ...]:
  """Which source comes when, for one period of sum(weights) places.

  Tijdeman's chairman assignment (Discrete Math. 32, 1980): after any n places
  of k sources, the count of each is within 1 - 1/(2k - 2) of its share of n, and
  no order does better for all weights. Of two sources every window holds its
  share rounded up or down.

  At place n the sources whose deficit n w / W - given is at least 1/(2k - 2) may
  come, and the one comes whose deficit will be the first to reach the bound.
  All is times (2k - 2) W here, so that it is exact.

  Args:
    weights: of each source, positive and without a common divisor.
  """
  total, k = sum(weights), len(weights)
  if k == 1:
    return (0,) * total
  scale = 2 * k - 2
  given, order = [0] * k, []
  for n in range(1, total + 1):
    deficits = [
        scale * (n * w - total * x) for w, x in zip(weights, given)
    ]
    due = [i for i in range(k) if deficits[i] >= total]
    chosen = min(
        due,
        key=lambda i: fractions.Fraction(
            (scale - 1) * total - deficits[i], weights[i]
        ),
    )
    given[chosen] += 1
    order.append(chosen)
  return tuple(order)


def _kept(
    groups: Sequence[records.Group], count: int
) -> tuple[list[records.Group], list[records.Group]]:
  """Returns what is trained on, and the rest: the last ones without variance."""
  idle = [i for i, g in enumerate(groups) if not totals.has_variance(g)]
  dropped = idle[len(idle) - (len(groups) - count) :]
  return (
      [g for i, g in enumerate(groups) if i not in dropped],
      [groups[i] for i in dropped],
  )
