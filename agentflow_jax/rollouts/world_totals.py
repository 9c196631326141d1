"""Totals over rollouts in worlds: success, checks, refusals and changes."""

from collections.abc import Sequence
from typing import Any

from agentflow_jax import records
from agentflow_jax.rollouts import intervals

_TAG = 'family'


def of_groups(groups: Sequence[records.Group]) -> dict[str, Any]:
  """Returns what rollouts in worlds came to; {} without any.

  Rollouts without a reward are left out. Keys:

    rollouts           scored rollouts in worlds
    success            share of them that pass all checks
    pass_fraction      mean share of passed checks among those that fail before
                       anything is done, over rollouts that have such checks
    refusal_recall     share of refusals on tasks that cannot be carried out
    false_refusals     share of refusals on tasks that can be carried out
    violations         mean number of changes that no check allows
    violating          share of rollouts with such a change
    calls              mean number of tool calls
    environment_seconds    mean time in opening, all tools and checks [s]
    by_family, by_feasible, by_held_out    the first three, by a fact of the task
  """
  scored = [
    (group.task, t)
    for group in groups
    for t in group.trajectories
    if t.reward is not None and group.task.world is not None
  ]
  if not scored:
    return {}
  refused = {
    feasible: [
      t.status is records.Status.REFUSED
      for task, t in scored
      if task.its_world.feasible is feasible
    ]
    for feasible in (True, False)
  }
  violations = [len(t.verdict.violations) if t.verdict else 0 for _, t in scored]
  return {
    **_rates(scored),
    'refusal_recall': intervals.mean(refused[False]),
    'false_refusals': intervals.mean(refused[True]),
    'violations': intervals.mean(violations),
    'violating': intervals.mean(n > 0 for n in violations),
    'calls': intervals.mean(
      sum(len(turn.calls) for turn in t.turns) for _, t in scored
    ),
    'environment_seconds': intervals.mean(_seconds(t) for _, t in scored),
    'by_family': _by(scored, lambda task: task.tags.get(_TAG)),
    'by_feasible': _by(
      scored, lambda task: {True: 'yes', False: 'no'}.get(task.world.feasible)
    ),
    'by_held_out': _by(scored, lambda task: task.tags.get('held_out')),
  }


def of_step(groups: Sequence[records.Group]) -> dict[str, float]:
  """Returns the totals of a training step, flat, for metrics.jsonl.

  Times are left out: they are in 'seconds/rollout_sum/...'.
  """
  return {
    f'world/{name}': value
    for name, value in of_groups(groups).items()
    if isinstance(value, (int, float)) and name != 'environment_seconds'
  }


def _rates(scored) -> dict[str, Any]:
  fractions = [
    t.verdict.pass_fraction
    for _, t in scored
    if t.verdict and t.verdict.pass_fraction is not None
  ]
  return {
    'rollouts': len(scored),
    'success': intervals.mean(bool(t.verdict and t.verdict.success) for _, t in scored),
    'pass_fraction': intervals.mean(fractions),
  }


def _by(scored, fact) -> dict[str, dict[str, Any]]:
  """Returns the rates by a fact of the task; tasks without it are left out."""
  found: dict[str, list[Any]] = {}
  for task, trajectory in scored:
    value = fact(task)
    if value is not None:
      found.setdefault(value, []).append((task, trajectory))
  return {value: _rates(part) for value, part in sorted(found.items())}


def _seconds(trajectory: records.Trajectory) -> float:
  return sum(
    seconds
    for name, seconds in trajectory.seconds.items()
    if name.startswith(('environment/', 'tool/'))
  )
