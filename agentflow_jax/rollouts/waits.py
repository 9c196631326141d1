"""What rollouts spent their time on: modules, tools, environment, and queues."""

import math
from collections.abc import Sequence

from agentflow_jax import records

PREFIX = 'seconds/slowest/'
# Share of a step's rollouts that count as its slowest ones, rounded up.
_SLOWEST = 0.05


def total(trajectory: records.Trajectory) -> float:
  """Returns the wall time of a rollout [s]."""
  seconds = trajectory.seconds
  return seconds.get('total', sum(seconds.values()))


def parts(trajectory: records.Trajectory) -> dict[str, float]:
  """Returns the time of a rollout by what it waited for, longest first [s].

  The names are those of modules, 'tool/NAME', 'environment/open' and
  'environment/verify', 'planner_queue' for the planner's requests before the engine
  (or the endpoint) took them, and 'other' for the rest. They add up to `total`.
  """
  found = {k: v for k, v in trajectory.seconds.items() if k != 'total'}
  queue = sum(turn.completion.queue_seconds for turn in trajectory.turns)
  queue = min(queue, found.get('planner', 0.0))
  if queue > 0:
    found['planner'] -= queue
    found['planner_queue'] = queue
  rest = total(trajectory) - sum(found.values())
  if rest > 0:
    found['other'] = rest
  return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def of_slowest(trajectories: Sequence[records.Trajectory]) -> dict[str, float]:
  """Returns means over the slowest twentieth of rollouts, at least one, for metrics.

  'seconds/slowest/total' is their time, and 'seconds/slowest/WHAT' the part of it
  that was spent on WHAT, see `parts`.
  """
  ranked = sorted(trajectories, key=total, reverse=True)
  slowest = ranked[: math.ceil(_SLOWEST * len(ranked))]
  means: dict[str, float] = {}
  for trajectory in slowest:
    for what, seconds in (('total', total(trajectory)), *parts(trajectory).items()):
      name = f'{PREFIX}{what}'
      means[name] = means.get(name, 0.0) + seconds / len(slowest)
  return means


def in_words(trajectory: records.Trajectory) -> str:
  """Returns the time of a rollout in one line; '' where it is not known."""
  if not trajectory.seconds:
    return ''
  said = ', '.join(f'{what} {s:.2f}' for what, s in parts(trajectory).items())
  return f'{total(trajectory):.2f} s: {said}'
