"""Corrections for targets that another policy sampled than the one that is trained.

The sampler recorded log mu, and the trainer scored the same tokens before the step,
log pi_old. Both are known on the host before the update. What follows from them is one
float32 number for each target, its importance, which the loss multiplies its policy
term with; 0 leaves the target out of the loss. No other step reads the thresholds, so
packing, padding, micro-batches and devices cannot change a decision.

With d_j = log pi_old - log mu of target j, and S the set of targets that it is averaged
over at a level,

    token       S = {j}
    sequence    S = the targets of the response that j is in
    rollout     S = the targets of all responses of the rollout that j is in

    c(level) = exp(mean of d over S)                 a geometric mean of token ratios
    weight   = min(c(importance_level), importance_cap), or 1 without a cap
    counts   = rejection_low <= c(rejection_level) <= rejection_high
    importance = weight if counts, else 0

Truncated importance sampling is a cap alone. IcePop is a cap and bounds at level
'token', where the cap equals the upper bound: the weight is c itself inside of the
bounds. Bounds alone, at level 'sequence' or 'rollout', reject whole responses or whole
rollouts and leave the others as they are.
"""

import math
from collections.abc import Sequence

import numpy as np

from agentflow_jax.core import flow_grpo

# A target that counts has at least this importance, because 0 means rejected.
_LEAST = float(np.finfo(np.float32).tiny)


def importance_of(
  config: flow_grpo.FlowGrpoConfig,
  old_logprobs: Sequence[np.ndarray],
  behavior_logprobs: Sequence[np.ndarray],
  rollouts: Sequence[int],
) -> list[np.ndarray]:
  """Returns the importance of every target of some turn rows.

  Args:
    config: levels, cap and bounds.
    old_logprobs: float[A] of each turn row, log pi_old of its response [nats].
    behavior_logprobs: float[A] of each turn row, log mu of its response [nats].
    rollouts: number of the rollout of each turn row. The rows of a rollout are all
      given in one call.

  Returns:
    float32[A] for each turn row: 0 where the target is rejected, otherwise > 0. A log
    probability that is not a number rejects what it is part of, if there are bounds,
    and otherwise gives an importance that is not a number.
  """
  gaps = [
    np.asarray(old, np.float64) - np.asarray(behavior, np.float64)
    for old, behavior in zip(old_logprobs, behavior_logprobs, strict=True)
  ]
  weighed = _means(gaps, rollouts, config.importance_level)
  judged = _means(gaps, rollouts, config.rejection_level)
  low = -math.inf if not config.rejection_low else math.log(config.rejection_low)
  high = math.inf
  if config.rejection_high is not None:
    high = math.log(config.rejection_high)
  found = []
  for log_weight, log_ratio in zip(weighed, judged, strict=True):
    weight = np.ones_like(log_weight)
    if config.importance_cap is not None:
      weight = np.exp(np.minimum(log_weight, math.log(config.importance_cap)))
    weight = np.maximum(weight, _LEAST)
    if config.rejects:
      weight = np.where((log_ratio >= low) & (log_ratio <= high), weight, 0.0)
    found.append(weight.astype(np.float32))
  return found


def _means(
  gaps: Sequence[np.ndarray], rollouts: Sequence[int], level: flow_grpo.Level
) -> list[np.ndarray]:
  """Returns for each target the mean of the gaps over its set at a level."""
  if level == 'token':
    return list(gaps)
  names = list(rollouts) if level == 'rollout' else list(range(len(gaps)))
  sums: dict[int, float] = {}
  sizes: dict[int, int] = {}
  for name, gap in zip(names, gaps, strict=True):
    sums[name] = sums.get(name, 0.0) + float(gap.sum())
    sizes[name] = sizes.get(name, 0) + len(gap)
  return [
    np.full(len(gap), sums[name] / max(sizes[name], 1))
    for name, gap in zip(names, gaps, strict=True)
  ]
