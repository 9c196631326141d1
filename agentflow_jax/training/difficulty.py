"""Tasks that are asked no more, because they teach nothing: solved or hopeless ones.

What is asked is a function of the seed and of what earlier steps came to. A run that
goes on rebuilds it from the records of its steps.
"""

import collections
from collections.abc import Callable, Sequence

from agentflow_jax import records

# Function from a place, counted from 0 over all epochs, to the index of a task.
Order = Callable[[int], int]


class AllDropped(Exception):
  """Fewer tasks are left than a step asks."""


class Filter:
  """Asks the tasks of an order one after the other, but for those that it dropped.

  A task is dropped after `solved` groups of it in a row in which every scored rollout
  succeeded, or after `hopeless` groups in a row in which none did; 0 never drops.

  Args:
    order: order of the tasks.
    ids: ids of the tasks.
    solved, hopeless: numbers of groups.
  """

  def __init__(self, order: Order, ids: Sequence[str], solved: int, hopeless: int):
    self._order, self._ids = order, ids
    self._after = {'solved': solved, 'hopeless': hopeless}
    self._place = 0
    self._streaks: dict[str, tuple[str, int]] = {}
    self._dropped: dict[str, str] = {}

  def next(self, count: int) -> list[int]:
    """Returns the indices of the next tasks, which all differ.

    Raises:
      AllDropped: fewer tasks are left.
    """
    if len(self._ids) - len(self._dropped) < count:
      raise AllDropped
    found: list[int] = []
    while len(found) < count:
      index = self._order(self._place)
      self._place += 1
      if index not in found and not self.is_dropped(self._ids[index]):
        found.append(index)
    return found

  def is_dropped(self, task_id: str) -> bool:
    """Says whether a task is asked no more."""
    return task_id in self._dropped

  def note(self, groups: Sequence[records.Group]) -> None:
    """Notes what the groups of a step came to."""
    for group in groups:
      came_to = _outcome(group)
      before, count = self._streaks.get(group.task.id, ('', 0))
      count = count + 1 if came_to == before else 1
      self._streaks[group.task.id] = came_to, count
      if self._after.get(came_to) and count >= self._after[came_to]:
        self._dropped[group.task.id] = came_to

  def metrics(self) -> dict[str, float]:
    """Returns how many tasks are dropped so far, by reason, and how many are left."""
    counts = collections.Counter(self._dropped.values())
    return {
      'tasks/dropped_solved': counts['solved'],
      'tasks/dropped_hopeless': counts['hopeless'],
      'tasks/left': len(self._ids) - len(self._dropped),
    }


def _outcome(group: records.Group) -> str:
  """Returns 'solved', 'hopeless', or '' for a group that is neither."""
  scored = [_success(t) for t in group.trajectories if t.reward is not None]
  if not scored or len(set(scored)) > 1:
    return ''
  return {1.0: 'solved', 0.0: 'hopeless'}.get(scored[0], '')


def _success(trajectory: records.Trajectory) -> float:
  """Returns the term success of a reward that has one, else the reward."""
  terms = trajectory.score.terms if trajectory.score else {}
  return terms['success'].value if 'success' in terms else trajectory.reward or 0.0
