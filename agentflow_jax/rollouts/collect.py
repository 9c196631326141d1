"""Runs the rollouts of many tasks at once, and keeps the finished ones.

The unit of work is a rollout, so that more processes than tasks all have work.
Each process runs its share, then all of them know all rollouts: what follows is
the same on any number of processes.
"""

import asyncio
import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence

from agentflow_jax import records
from agentflow_jax.agents import rollout
from agentflow_jax.rollouts import journal as journal_lib, rollout_files
from agentflow_jax.runtime import processes as processes_lib


async def groups(
  agent: rollout.Agent,
  tasks: Sequence[records.Task],
  *,
  group_size: int,
  key: records.RequestKey,
  limit: asyncio.Semaphore,
  processes: processes_lib.Processes,
  journal: journal_lib.Journal | None = None,
  on_done: Callable[[records.Trajectory], None] | None = None,
  before: Sequence[records.Task] = (),
  extra: int = 0,
) -> list[records.Group]:
  """Runs `group_size` rollouts of each task, concurrently.

  Every process has to call it, and each gets all groups.

  Args:
    agent: agent that the rollouts run with.
    tasks: one group each; a task that comes twice gets other randomness.
    group_size: G.
    key: seed, purpose and step; query and rollout are filled in.
    limit: bound on the concurrent rollouts of this process.
    processes: processes that share the work.
    journal: journal that finished groups are kept in; None keeps none.
    on_done: function that is called with every trajectory of this process as it ends
      (progress).
    before: tasks of earlier calls with this key; one that comes again gets
      other randomness.
    extra: rollouts that each group starts beyond G; once G are scored the rest
      are aborted. A group of several processes keeps of each one's part its
      share, rounded up.

  Returns:
    The groups in the order of `tasks`, rollouts in order.

  Raises:
    Preempted, ProcessFailed: see Processes.gathered.
  """
  names = _names((*before, *tasks))[len(before) :]
  size = group_size + extra

  async def group(place: int, rollouts: range) -> records.Group:
    task, name = tasks[place], names[place]
    place += len(before)
    found = journal.load(key.step, place, task, rollouts) if journal else None
    if found is None:
      found = await _group(
        agent,
        task,
        rollouts,
        dataclasses.replace(key, query=name),
        limit,
        on_done,
        math.ceil(len(rollouts) * group_size / size),
      )
      if journal:
        await asyncio.to_thread(journal.save, key.step, place, rollouts, found)
    elif on_done:
      for trajectory in found.trajectories:
        on_done(trajectory)
    return found

  mine: list[records.Group] = []

  async def work() -> bytes:
    units = processes.share(len(tasks) * size)
    async with asyncio.TaskGroup() as running:
      started = [running.create_task(group(*part)) for part in _parts(units, size)]
    mine.extend(s.result() for s in started)
    if processes.count == 1:  # Nobody to tell.
      return b''
    return await asyncio.to_thread(rollout_files.to_bytes, mine)

  everything = await processes.gathered(work())
  if processes.count == 1:
    return mine
  return _joined(tasks, size, _received(everything))


def _names(tasks: Sequence[records.Task]) -> list[str]:
  """Returns the id of each task, with a number where it comes again."""
  seen: dict[str, int] = {}
  names = []
  for task in tasks:
    times = seen[task.id] = seen.get(task.id, 0) + 1
    names.append(task.id if times == 1 else f'{task.id}@{times}')
  return names


def _parts(units: range, group_size: int) -> list[tuple[int, range]]:
  """Returns units of work as (place of the group, its rollouts)."""
  parts, unit = [], units.start
  while unit < units.stop:
    place, first = divmod(unit, group_size)
    last = min(group_size, first + units.stop - unit)
    parts.append((place, range(first, last)))
    unit += last - first
  return parts


def _received(sent: Sequence[bytes]) -> list[records.Group]:
  """Reads the parts of groups that the processes sent, which are in order."""
  return [
    part
    for i, data in enumerate(sent)
    for part in rollout_files.from_bytes(data, f'what process {i} sent')
  ]


def _joined(tasks, group_size, parts) -> list[records.Group]:
  """Makes groups of parts that are in order."""
  trajectories = [t for part in parts for t in part.trajectories]
  return [
    records.Group(task, tuple(trajectories[i * group_size : (i + 1) * group_size]))
    for i, task in enumerate(tasks)
  ]


async def _group(agent, task, rollouts, key, limit, on_done, enough):
  """A task's rollouts; an analysis that fails ends all of them.

  Args:
    agent, task, rollouts, key, limit, on_done: arguments of `groups`, for one task.
    enough: number of scored rollouts at which the others are aborted.
  """

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
    ended = tuple(dataclasses.replace(failed, rollout=i) for i in rollouts)
    return records.Group(task, ended)
  async with asyncio.TaskGroup() as running:
    started = {i: running.create_task(one(i, analysis)) for i in rollouts}
    if enough < len(rollouts):
      await _abort_late(started.values(), enough)
  found, scored = [], 0
  for i, done in started.items():
    trajectory = None if done.cancelled() else done.result()
    if trajectory is not None and trajectory.reward is not None:
      scored += 1
    # Several may end at once.
    if trajectory is None or (scored > enough and trajectory.reward is not None):
      trajectory = records.Trajectory(
        task.id,
        i,
        records.Status.ABORTED_LATE,
        (),
        analysis=analysis,
        detail=f'{enough} of its group were scored before',
      )
      if done.cancelled() and on_done:
        on_done(trajectory)
    found.append(trajectory)
  return records.Group(task, tuple(found))


async def _abort_late(started: Iterable[asyncio.Task], enough: int) -> None:
  """Cancels what still runs when enough are scored."""
  running, scored = set(started), 0
  while running and scored < enough:
    done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
    if any(t.cancelled() or t.exception() for t in done):
      return  # The group of tasks ends the rest, and says why.
    scored += sum(t.result().reward is not None for t in done)
  for task in running:
    task.cancel()
