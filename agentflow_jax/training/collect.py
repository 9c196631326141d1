"""Runs the rollouts of many tasks at once, and keeps the finished ones."""

import asyncio
import dataclasses
from collections.abc import Callable, Sequence

from absl import logging
from etils import epath

from agentflow_jax import records
from agentflow_jax.agents import rollout
from agentflow_jax.training import rollout_files


@dataclasses.dataclass(frozen=True)
class Journal:
  """Finished groups of unfinished steps, one object a group.

  A run that is killed finds them again. A name says the step and the group's
  place in it; a group of another task, or sampled from other parameters than
  those of the step, is not used.

  Attributes:
    directory: below the workdir.
  """

  directory: epath.Path

  def load(
      self, step: int, place: int, task: records.Task
  ) -> records.Group | None:
    """Returns a finished group or None; a broken file is dropped."""
    path = self._path(step, place)
    if not path.exists():
      return None
    try:
      (group,) = rollout_files.read(path)
    except (rollout_files.RecordError, ValueError) as e:
      logging.warning('dropping a broken journal object: %s', e)
      return None
    versions = {
        turn.completion.params_version
        for trajectory in group.trajectories
        for turn in trajectory.turns
    }
    return group if group.task == task and versions <= {step} else None

  def save(self, step: int, place: int, group: records.Group) -> None:
    rollout_files.write(self._path(step, place), [group])

  def forget_before(self, step: int) -> None:
    """Removes the groups of steps that a commit now holds."""
    if not self.directory.exists():
      return
    for path in self.directory.iterdir():
      name = path.name.partition('-')[0]
      if not name.isdigit() or int(name) < step:
        path.unlink()

  def _path(self, step, place):
    return self.directory / f'{step:08d}-{place:06d}.jsonl.zst'


async def groups(
    agent: rollout.Agent,
    tasks: Sequence[records.Task],
    *,
    group_size: int,
    key: records.RequestKey,
    limit: asyncio.Semaphore,
    journal: Journal | None = None,
    on_done: Callable[[records.Trajectory], None] | None = None,
) -> list[records.Group]:
  """Runs `group_size` rollouts of each task, concurrently.

  Args:
    agent: what runs them.
    tasks: one group each; a task that comes twice gets other randomness.
    group_size: G.
    key: seed, purpose and step; query and rollout are filled in.
    limit: bounds the rollouts under way.
    journal: where finished groups are kept; None keeps none.
    on_done: called with every trajectory as it ends (progress).

  Returns:
    The groups in the order of `tasks`, rollouts in order.
  """
  seen: dict[str, int] = {}
  names = []
  for task in tasks:
    times = seen[task.id] = seen.get(task.id, 0) + 1
    names.append(task.id if times == 1 else f'{task.id}@{times}')

  async def group(place: int) -> records.Group:
    task = tasks[place]
    found = journal.load(key.step, place, task) if journal else None
    if found is None or len(found.trajectories) != group_size:
      found = await _group(
          agent, task, group_size,
          dataclasses.replace(key, query=names[place]), limit, on_done,
      )
      if journal:
        await asyncio.to_thread(journal.save, key.step, place, found)
    elif on_done:
      for trajectory in found.trajectories:
        on_done(trajectory)
    return found

  async with asyncio.TaskGroup() as running:
    started = [running.create_task(group(i)) for i in range(len(tasks))]
  return [s.result() for s in started]


async def _group(agent, task, group_size, key, limit, on_done):
  """One task's rollouts; an analysis that fails ends all of them."""

  async def one(i: int, analysis: str) -> records.Trajectory:
    async with limit:
      trajectory = await rollout.rollout(
          agent, task, dataclasses.replace(key, rollout=i), analysis
      )
    if on_done:
      on_done(trajectory)
    return trajectory

  async with limit:
    analysis, failed = await rollout.analyse(agent, task, key)
  if failed is not None:
    ended = tuple(
        dataclasses.replace(failed, rollout=i) for i in range(group_size)
    )
    return records.Group(task, ended)
  async with asyncio.TaskGroup() as running:
    started = [
        running.create_task(one(i, analysis)) for i in range(group_size)
    ]
  return records.Group(task, tuple(s.result() for s in started))
