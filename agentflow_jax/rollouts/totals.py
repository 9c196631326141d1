"""Totals over rollouts: rewards, statuses, tokens, and tool calls."""

import collections
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from agentflow_jax import records
from agentflow_jax.files import reading
from agentflow_jax.rollouts import intervals, mistakes, waits, world_totals


def rewards(group: records.Group) -> list[float]:
  """Returns the rewards of a group's scored rollouts."""
  return [t.reward for t in group.trajectories if t.reward is not None]


def group_means(groups: Sequence[records.Group]) -> list[float]:
  """Returns the mean reward of each group that has a scored rollout, over these."""
  found = [rewards(group) for group in groups]
  return [sum(scored) / len(scored) for scored in found if scored]


def mean_over_requested(groups: Sequence[records.Group]) -> float:
  """Returns the mean over all groups of their rollouts' mean reward, 0 of nothing.

  A rollout without a reward counts as 0.
  """
  means = [
    sum(t.reward or 0.0 for t in g.trajectories) / max(len(g.trajectories), 1)
    for g in groups
  ]
  return sum(means) / max(len(means), 1)


def has_variance(group: records.Group, by_term: bool = False) -> bool:
  """Says whether a group's scored rollouts have different rewards.

  Args:
    group: group of rollouts.
    by_term: whether different values of any one term are enough.
  """
  if by_term:
    scored = [t for t in group.trajectories if t.reward is not None]
    said = [tuple((t.score.terms if t.score else {}).items()) for t in scored]
    return len({tuple((k, v.value) for k, v in s if v.weight) for s in said}) > 1
  return len(set(rewards(group))) > 1


def collected(
  groups: Sequence[records.Group], by_term: bool = False
) -> dict[str, float]:
  """Metrics of the rollouts of a step; every denominator is in its name.

  'reward/mean' is over scored rollouts, and absent where there are none;
  so is 'reward/part/NAME', the weighted term of scores, where a rollout without
  that term counts 0;
  'rollouts/undelivered', responses that reached no agent, is absent where there are
  none; status counts add up to requested; 'rollouts/turns_mean' is over those that were
  not aborted as late. 'kept/mean' and 'kept/max' are of the sets
  that response tokens were drawn from, where those are recorded.
  'reward/correlation/NAME' is that of a term's value with success, over the rollouts
  that have both, and absent where one of them is the same in all.

  Args:
    groups: groups of rollouts.
    by_term: whether a group has variance where any one term has.
  """
  trajectories = [t for g in groups for t in g.trajectories]
  scored = [t for t in trajectories if t.reward is not None]
  earned = [reward for group in groups for reward in rewards(group)]
  on_time = [t for t in trajectories if t.status is not records.Status.ABORTED_LATE]
  metrics: dict[str, float] = {
    'rollouts/requested': len(trajectories),
    'rollouts/scored': len(scored),
    'rollouts/turns': turns(trajectories),
    'rollouts/turns_mean': turns(on_time) / max(len(on_time), 1),
    'groups/requested': len(groups),
    'groups/no_variance': sum(not has_variance(g, by_term) for g in groups),
    'memory/shortened': sum(turn.shortened for t in trajectories for turn in t.turns),
    'memory/shortened_for_modules': sum(
      call.shortened
      for t in trajectories
      for calls in (t.modules, *(turn.modules for turn in t.turns))
      for call in calls
    ),
    'tokens/response': response_tokens(trajectories),
    'tokens/prompt': sum(
      len(turn.completion.prompt_ids) for t in trajectories for turn in t.turns
    ),
  }
  undelivered = sum(len(t.undelivered) for t in trajectories)
  if undelivered:
    metrics['rollouts/undelivered'] = undelivered
  sizes = np.concatenate(
    [np.zeros(0, np.int32)]
    + [
      np.frombuffer(turn.completion.kept.counts, '<i4')
      for t in trajectories
      for turn in t.turns
      if turn.completion.kept is not None
    ]
  )
  if len(sizes):
    metrics['kept/mean'] = float(sizes.mean())
    metrics['kept/max'] = int(sizes.max())
  if metrics['rollouts/turns']:
    metrics['tokens/response_mean'] = (
      metrics['tokens/response'] / metrics['rollouts/turns']
    )
  if scored:
    metrics['reward/mean'] = sum(earned) / len(earned)
  scores = [t.score.terms for t in scored if t.score is not None]
  for name in sorted({name for terms in scores for name in terms}):
    total = sum(t[name].weight * t[name].value for t in scores if name in t)
    metrics[f'reward/part/{name}'] = total / len(scored)
  metrics |= _correlations(scores)
  counts = statuses(trajectories)
  for status in records.Status:
    metrics[f'rollouts/status/{status.value}'] = counts.get(status.value, 0)
  return metrics


def _correlations(scores: Sequence[Mapping[str, records.Term]]) -> dict[str, float]:
  """Returns the correlation of each term's value with that of success."""
  found = {}
  both = [s for s in scores if 'success' in s]
  for name in sorted({name for s in both for name in s} - {'success'}):
    pairs = np.array(
      [(s[name].value, s['success'].value) for s in both if name in s], np.float64
    )
    if len(pairs) > 1 and np.ptp(pairs, axis=0).all():
      matrix = np.asarray(np.corrcoef(pairs.T))
      found[f'reward/correlation/{name}'] = float(matrix[0, 1])
  return found


def turns(trajectories: Sequence[records.Trajectory]) -> int:
  """Counts turns."""
  return sum(len(t.turns) for t in trajectories)


def response_tokens(trajectories: Sequence[records.Trajectory]) -> int:
  """Counts the tokens that the planner wrote."""
  return sum(
    len(turn.completion.response_ids) for t in trajectories for turn in t.turns
  )


def statuses(trajectories: Sequence[records.Trajectory]) -> dict[str, int]:
  """Counts rollouts by the value of their status; those that occur, as they come."""
  return dict(collections.Counter(t.status.value for t in trajectories))


def tool_calls(trajectories: Sequence[records.Trajectory]) -> dict[str, int]:
  """Counts the calls that were made, by tool."""
  return dict(
    sorted(
      collections.Counter(
        call.tool
        for t in trajectories
        for turn in t.turns
        for made, result in turn.attempts
        if made is not None
        for call in (made, *(c for c, _ in (result.inner if result else ())))
      ).items()
    )
  )


def tool_counts(trajectories: Sequence[records.Trajectory]) -> dict[str, int]:
  """Adds up what tool calls counted, by name."""
  counts: collections.Counter[str] = collections.Counter()
  for trajectory in trajectories:
    for turn in trajectory.turns:
      for result in turn.results:
        counts.update(result.counts)
        for _, made in result.inner:
          counts.update(made.counts)
  return dict(sorted(counts.items()))


def tool_errors(trajectories: Sequence[records.Trajectory]) -> tuple[int, int]:
  """Counts (calls that failed, calls); a program counts as one, with all its calls."""
  results = [
    result
    for trajectory in trajectories
    for turn in trajectory.turns
    for result in turn.results
  ]
  return sum(r.error is not None for r in results), len(results)


def tool_error_rate(trajectories: Sequence[records.Trajectory]) -> float:
  """Returns the share of calls that failed; 0 without calls."""
  failed, called = tool_errors(trajectories)
  return failed / max(called, 1)


def of_step(groups: Sequence[records.Group], by_term: bool = False) -> dict[str, float]:
  """All that a step's rollouts say, for metrics.jsonl; `by_term` as in collected."""
  metrics = collected(groups, by_term) | world_totals.of_step(groups)
  metrics |= mistakes.of_step(groups)
  trajectories = [t for g in groups for t in g.trajectories]
  metrics['rollouts/tool_error_rate'] = tool_error_rate(trajectories)
  for tool, calls in tool_calls(trajectories).items():
    metrics[f'tools/{tool}'] = calls
  for name, times in tool_counts(trajectories).items():
    metrics[f'tool_counts/{name}'] = times
  by_source: dict[str, list[records.Group]] = {}
  for group in groups:
    if (source := group.task.tags.get('source')) is not None:
      by_source.setdefault(source, []).append(group)
  for source, of_it in by_source.items():
    metrics[f'sources/{source}/groups'] = len(of_it)
  if means := group_means(groups):
    low, high = intervals.bootstrap_interval(means)
    metrics |= {'reward/ci_low': low, 'reward/ci_high': high}
  for source, of_it in by_source.items():
    if means := group_means(of_it):
      metrics[f'sources/{source}/reward'] = sum(means) / len(means)
  for what in {k for t in trajectories for k in t.seconds}:
    total = sum(t.seconds.get(what, 0.0) for t in trajectories)
    metrics[f'seconds/rollout_sum/{what}'] = total
  return metrics | waits.of_slowest(trajectories)


def over_steps(
  lines: Sequence[Mapping[str, Any]], prefix: str = '', nested: bool = True
) -> dict[str, float]:
  """Adds up metrics of a run's steps.

  Args:
    lines: lines of metrics.jsonl, one a step.
    prefix: beginning of the metrics' names, which the names of the sums lack.
    nested: whether names that hold a further '/' count; otherwise they are parts of
      others and left out.

  Returns:
    The sum over the steps that have a metric, and a finite number in it, by name.
  """
  sums: Any = collections.Counter()
  for line in lines:
    for key, value in line.items():
      name = key.removeprefix(prefix)
      if not key.startswith(prefix) or ('/' in name and not nested):
        continue
      if math.isfinite(reading.number(value)):
        sums[name] += value
  return dict(sums)
