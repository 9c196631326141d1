"""Flow-GRPO on the host: advantages and target weights, in float64.

AgentFlow, arXiv 2510.05592, section 3.2: one outcome reward a rollout is
broadcast to every turn of it, and each turn is then a single-turn update.
With Q groups scored, G_q scored rollouts in group q, T_i turns in rollout i and
|a_it| tokens in the response of turn t,

    J = sum_q,i,t,j w_it (min(rho A_i, clip(rho) A_i) - kl_coef KL)
    A_i = (R_i - mean_j R_j) / (std_j R_j + 1e-6)     over the scored rollouts
    w_it = 1 / (Q G_q T_i |a_it|)                     by default

so that the device only ever sums.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

Weighting = Literal['turn_mean', 'token_mean', 'sequence_mean', 'dr_grpo']
Level = Literal['token', 'sequence', 'rollout']

_WEIGHTINGS = ('turn_mean', 'token_mean', 'sequence_mean', 'dr_grpo')
_LEVELS = ('token', 'sequence', 'rollout')
_EPSILON = 1e-6


@dataclasses.dataclass(frozen=True)
class FlowGrpoConfig:
  """The options of Flow-GRPO; the defaults are the algorithm itself.

  Attributes:
    weighting: weights of the tokens in the loss, see target_weights.
    dr_grpo_length: constant length L of weighting 'dr_grpo', which needs it; no other
      weighting takes it [tokens].
    advantage: normalisation of rewards: 'std' divides by the group's standard
      deviation, 'no_std' does not.
    advantage_over: set that mean and standard deviation are taken over: the group's
      'rollouts', or its 'rows' (turns), where a reward counts once a turn. The
      second is for comparison: it tilts the baseline to long rollouts, and the
      advantages of a group's rollouts no longer sum to 0.
    terms: use of the terms of a reward that has several: 'sum' adds them up first,
      'normalised' normalises each in its group and adds what comes out, see
      term_advantages. The second gives a rare success no more room than a frequent
      small term, so that a failure may then have a larger advantage than a success.
    ratio_level: unit of a ratio: 'token', or 'sequence' (GSPO, arXiv 2507.18071) for
      one ratio a turn's response, the geometric mean of its token ratios.
    old_logprobs: source of log pi_old: 'behavior', as recorded by the sampler, or
      'recompute', scored by the trainer before the step.
    importance_cap: cap of the truncated importance correction for a sampler that is
      not the trainer: each target's policy term is multiplied by min(c, cap), where
      c is exp(old_logprobs - behavior_logprob) or its mean, see importance_level.
      None for no such weight.
    clip_low: distance of the ratio's lower bound from 1.
    clip_high: distance of the ratio's upper bound from 1.
    kl_coef: weight of the k3 KL to the reference; 0 needs no reference.
    importance_level: set over which the geometric mean in c of importance_cap is
      taken: one 'token', the 'sequence' of a response, or all responses of a
      'rollout' (see corrections).
    rejection_level: the same set for the c of rejection_low and rejection_high.
    rejection_low: smallest c of a target that counts; a target with a smaller one has
      no part in the loss and keeps its place in |a|. None for no such bound.
    rejection_high: largest c of a target that counts; None for no such bound.
    surrogate: policy term of a target: 'clip' for min(rho A, clip(rho) A), or 'cispo'
      (MiniMax-M1, arXiv 2506.13585) for stop_gradient(clip(rho)) A log pi, whose
      gradient the bounds limit and never remove.
  """

  weighting: Weighting = 'turn_mean'
  dr_grpo_length: int | None = None
  advantage: Literal['std', 'no_std'] = 'std'
  advantage_over: Literal['rollouts', 'rows'] = 'rollouts'
  terms: Literal['sum', 'normalised'] = 'sum'
  ratio_level: Literal['token', 'sequence'] = 'token'
  old_logprobs: Literal['behavior', 'recompute'] = 'behavior'
  importance_cap: float | None = None
  clip_low: float = 0.2
  clip_high: float = 0.3
  kl_coef: float = 1e-3
  importance_level: Level = 'token'
  rejection_level: Level = 'token'
  rejection_low: float | None = None
  rejection_high: float | None = None
  surrogate: Literal['clip', 'cispo'] = 'clip'

  @property
  def rejects(self) -> bool:
    """Whether targets can be rejected."""
    return self.rejection_low is not None or self.rejection_high is not None

  @property
  def corrects(self) -> bool:
    """Whether targets have an importance, see corrections.importance_of."""
    return self.importance_cap is not None or self.rejects

  def __post_init__(self):
    for name, choices in (
      ('weighting', _WEIGHTINGS),
      ('advantage', ('std', 'no_std')),
      ('advantage_over', ('rollouts', 'rows')),
      ('terms', ('sum', 'normalised')),
      ('ratio_level', ('token', 'sequence')),
      ('old_logprobs', ('behavior', 'recompute')),
      ('importance_level', _LEVELS),
      ('rejection_level', _LEVELS),
      ('surrogate', ('clip', 'cispo')),
    ):
      if getattr(self, name) not in choices:
        raise ValueError(f'{name} must be one of {choices}: {getattr(self, name)!r}')
    _check_dr_grpo(self.weighting, self.dr_grpo_length)
    _check_corrections(self)
    if not 0 <= self.clip_low <= 1:
      raise ValueError(f'clip_low must lie in [0, 1]: {self.clip_low}')
    for name in ('clip_high', 'kl_coef'):
      value = getattr(self, name)
      if not (value >= 0 and math.isfinite(value)):
        raise ValueError(f'{name} must be finite and >= 0: {value}')


def _check_corrections(config: FlowGrpoConfig) -> None:
  """Refuses corrections that nothing would read, or that leave nothing over."""
  bounds = ('rejection_low', 'rejection_high')
  for name in ('importance_cap', *bounds):
    value = getattr(config, name)
    if value is None:
      continue
    if config.old_logprobs != 'recompute':
      raise ValueError(
        f"{name} needs old_logprobs='recompute': with 'behavior' the ratio that it"
        ' bounds is 1 everywhere'
      )
    if not 0 < value < math.inf:
      raise ValueError(f'{name} must be finite and > 0: {value}')
  low, high = config.rejection_low, config.rejection_high
  if low is not None and high is not None and not low < high:
    raise ValueError(f'rejection_low must be below rejection_high: {low}, {high}')
  if config.importance_level != 'token' and config.importance_cap is None:
    raise ValueError(
      f'importance_level={config.importance_level} is read only with an importance_cap'
    )
  if config.rejection_level != 'token' and not config.rejects:
    raise ValueError(
      f'rejection_level={config.rejection_level} is read only with rejection_low'
      ' or rejection_high'
    )
  if config.surrogate == 'cispo' and config.ratio_level != 'token':
    raise ValueError("surrogate='cispo' is of token ratios: set ratio_level='token'")


def _check_dr_grpo(weighting: str, length: int | None) -> None:
  if (weighting == 'dr_grpo') != (length is not None):
    raise ValueError(
      f'dr_grpo_length goes with weighting dr_grpo: {weighting!r}, {length}'
    )
  if length is not None and length < 1:
    raise ValueError(f'dr_grpo_length must be at least 1 token: {length}')


def advantages(
  rewards: Sequence[float | None],
  use_std: bool = True,
  counts: Sequence[int] | None = None,
) -> np.ndarray:
  """Returns A_i of one group's rollouts.

  A_i = (R_i - mean R) / (std R + 1e-6), mean and sample standard deviation
  (ddof 1) over the scored rollouts; without `use_std` the numerator alone.

  Args:
    rewards: one outcome reward a rollout; None where it could not be scored.
    use_std: whether to divide.
    counts: number of times that each reward is in the sample that mean and deviation
      are of, such as once a turn; once where None.

  Returns:
    float64[G]. 0 for an unscored rollout; exactly 0 for every rollout when the
    sample has fewer than two rewards or all of them are equal.

  Raises:
    ValueError: a reward is not finite.
  """
  scored = np.array([r is not None for r in rewards], bool)
  values = np.array([r for r in rewards if r is not None], np.float64)
  if not np.isfinite(values).all():
    raise ValueError(f'rewards must be finite or None: {list(rewards)}')
  result = np.zeros(len(rewards), np.float64)
  sample = values
  if counts is not None:
    sample = np.repeat(values, np.asarray(counts)[scored])
  if len(sample) < 2 or sample.max() == sample.min():
    return result
  centered = values - sample.mean()
  if use_std:
    centered = centered / (sample.std(ddof=1) + _EPSILON)
  result[scored] = centered
  return result


def term_advantages(
  values: Sequence[Sequence[Sequence[float] | None]],
  weights: Sequence[float],
  use_std: bool = True,
) -> list[np.ndarray]:
  """Returns A_i where each term of a reward is normalised in its group.

  GDPO, arXiv 2601.05242: with terms r_k of weights w_k, in each group

    B_i = sum_k w_k (r_ik - mean_j r_jk) / (std_j r_jk + 1e-6)

  and then A_i = B_i / (std B + 1e-6), with the deviation over all scored rollouts of
  the batch, so that the scale does not grow with the number of terms. The mean of B is
  0 in every group.

  Args:
    values: values of the terms of each rollout of each group; None for a rollout
      that could not be scored.
    weights: weight of each term.
    use_std: whether to divide by the group's deviation.

  Returns:
    float64[G] for each group.

  Raises:
    ValueError: a value is not finite.
  """
  found = []
  for group in values:
    total = np.zeros(len(group), np.float64)
    for k, weight in enumerate(weights):
      if weight:
        term = [None if v is None else v[k] for v in group]
        total += weight * advantages(term, use_std)
    found.append(total)
  scored = np.concatenate(
    [np.zeros(0)]
    + [total[[v is not None for v in group]] for group, total in zip(values, found)]
  )
  scale = scored.std(ddof=1) + _EPSILON if len(scored) > 1 else 1.0
  return [total / scale for total in found]


def target_weights(
  lengths: Sequence[Sequence[Sequence[int]]],
  scored: Sequence[Sequence[bool]],
  weighting: Weighting = 'turn_mean',
  dr_grpo_length: int | None = None,
) -> list[list[np.ndarray]]:
  """Returns the weight of each target of each turn of an optimizer batch.

  Q counts the groups with a scored rollout, G_q the scored rollouts of group q
  (those without any token included), T_i the turns of rollout i (those of
  length 0 included), N all targets of scored rollouts.

    turn_mean       1 / (Q G_q T_i |a_it|)
    token_mean      1 / N
    sequence_mean   1 / (Q G_q sum_t |a_it|): a rollout is one sequence
    dr_grpo         1 / (Q G_q L), L = dr_grpo_length

  Args:
    lengths: lengths[q][i][t] = |a_it| in tokens, over the whole global batch.
    scored: scored[q][i], False where the reward is None.
    weighting: name of a line of the table above.
    dr_grpo_length: L.

  Returns:
    result[q][i] is float32[T_i]: the weight of every target of turn t; 0 for
    a turn without targets and for an unscored rollout.

  Raises:
    ValueError: the arguments disagree in shape, or a length is negative.
  """
  if weighting not in _WEIGHTINGS:
    raise ValueError(f'weighting must be one of {_WEIGHTINGS}: {weighting!r}')
  _check_dr_grpo(weighting, dr_grpo_length)
  if [len(group) for group in lengths] != [len(group) for group in scored]:
    raise ValueError('lengths and scored do not name the same rollouts')
  n_groups = sum(any(group) for group in scored)
  n_targets = sum(
    sum(turns)
    for group, flags in zip(lengths, scored, strict=True)
    for turns, flag in zip(group, flags, strict=True)
    if flag
  )

  def per_turn(turns: Sequence[int], flag: bool, n_scored: int) -> np.ndarray:
    a = np.asarray(turns, np.float64)
    if (a < 0).any():
      raise ValueError(f'negative response length: {list(turns)}')
    if not flag or not a.sum():
      return np.zeros(len(a), np.float32)
    rollout = 1.0 / (n_groups * n_scored)
    if weighting == 'turn_mean':
      weight = rollout / (len(a) * np.maximum(a, 1))
    elif weighting == 'token_mean':
      weight = np.full(len(a), 1.0 / n_targets)
    elif weighting == 'sequence_mean':
      weight = np.full(len(a), rollout / a.sum())
    else:
      assert dr_grpo_length is not None
      weight = np.full(len(a), rollout / dr_grpo_length)
    return np.where(a > 0, weight, 0.0).astype(np.float32)

  return [
    [per_turn(turns, flag, sum(flags)) for turns, flag in zip(group, flags)]
    for group, flags in zip(lengths, scored)
  ]
