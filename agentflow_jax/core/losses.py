"""Flow-GRPO's and SFT's losses: plain sums over targets, and what they report.

Weights come from the host (flow_grpo.target_weights), so sums over
micro-batches, devices and processes add up to the loss of the whole optimizer
batch.
"""

import dataclasses
import math

import flax.struct
import jax
import jax.numpy as jnp

from agentflow_jax.core import batch as batch_lib
from agentflow_jax.core import flow_grpo

Array = jax.Array

# Gaps in nats are counted in bins of an eighth of an octave above 2^-30.
_GAP_FLOOR = -30
_GAP_BINS = 8 * 36


@dataclasses.dataclass(frozen=True)
class SftConfig:
  """Supervised fine-tuning; weights and masks are in the batch.

  Attributes:
    z_loss: weight of the squared log normaliser beside 1 of the negative log
      likelihood (PaLM, arXiv 2204.02311, section 5). Logits near 0 carry less
      float32 rounding noise, and so agree better between sampler and trainer.
  """

  z_loss: float = 0.0

  def __post_init__(self):
    if not 0 <= self.z_loss < math.inf:
      raise ValueError(f'z_loss must be finite and >= 0: {self.z_loss}')


@flax.struct.dataclass
class Scores:
  """What a forward pass says of one micro-batch's targets.

  Attributes:
    logprobs: float32[B, N], nats, of each target at its temperature.
    entropy: float32[B, N], nats, of the same distribution; no gradient.
    log_normalizer: float32[B, N], nats, logsumexp of the scaled logits.
  """

  logprobs: Array
  entropy: Array
  log_normalizer: Array


@flax.struct.dataclass
class Sums:
  """Added up over micro-batches; every field float32.

  Attributes:
    loss: the loss.
    n_targets: number of targets.
    entropy: sum of entropies, nats.
    policy: sums that only Flow-GRPO has, or None.
  """

  loss: Array
  n_targets: Array
  entropy: Array
  policy: 'PolicySums | None' = None


@flax.struct.dataclass
class PolicySums:
  """Added up over micro-batches; the extremes are maxima.

  Attributes:
    pg_loss: weighted policy term of the loss.
    kl: weighted k3 estimate, before kl_coef.
    ratio: sum of ratios.
    clipped_low: targets where the lower clip holds the gradient back; with CISPO,
      those of ratios that it raises.
    clipped_high: targets where the upper clip does; with CISPO, those that it lowers.
    importance: sum of the importance weights, 0 for targets that are rejected.
    rejected: targets that a correction leaves out of the loss.
    n_fresh: targets that the gap is of: those of this step's own parameters.
    gap: sum of |logprob - behavior_logprob| over them, nats.
    gap_counts: float32[bins], histogram of that gap.
    extremes: float32[3], maxima of ratio, -ratio and gap; -inf at the start.
  """

  pg_loss: Array
  kl: Array
  ratio: Array
  clipped_low: Array
  clipped_high: Array
  importance: Array
  rejected: Array
  n_fresh: Array
  gap: Array
  gap_counts: Array
  extremes: Array


def zero_sums(with_policy: bool) -> Sums:
  """Returns the sums over nothing."""
  zero = jnp.float32(0)
  policy = None
  if with_policy:
    names = [field.name for field in dataclasses.fields(PolicySums)]
    policy = dataclasses.replace(
      PolicySums(**{name: zero for name in names}),
      gap_counts=jnp.zeros(_GAP_BINS + 1, jnp.float32),
      extremes=jnp.full(3, -jnp.inf, jnp.float32),
    )
  return Sums(loss=zero, n_targets=zero, entropy=zero, policy=policy)


def add_sums(a: Sums, b: Sums) -> Sums:
  """Returns the sums over both."""
  total = jax.tree.map(jnp.add, a, b)
  if a.policy is None:
    return total
  assert b.policy is not None
  extremes = jnp.maximum(a.policy.extremes, b.policy.extremes)
  return total.replace(policy=total.policy.replace(extremes=extremes))


def sums_over(sums: Sums, axis_name: str) -> Sums:
  """Returns the sums over a mesh axis, within a shard_map over it."""
  total = jax.lax.psum(sums, axis_name)
  if sums.policy is None:
    return total
  extremes = jax.lax.pmax(sums.policy.extremes, axis_name)
  return total.replace(policy=total.policy.replace(extremes=extremes))


def sft_loss(
  config: SftConfig, scores: Scores, micro: batch_lib.TurnBatch
) -> tuple[Array, Sums]:
  """Returns sum_t weights_t (z_loss log_normalizer_t^2 - logprobs_t), and sums.

  Args:
    config: the option.
    scores: scores of the micro-batch.
    micro: fields [B, T] and [B, N].
  """
  is_target = micro.weights > 0
  penalty = config.z_loss * jnp.square(scores.log_normalizer)
  loss = jnp.sum(jnp.where(is_target, micro.weights * (penalty - scores.logprobs), 0.0))
  return loss, Sums(
    loss=loss,
    n_targets=jnp.sum(is_target, dtype=jnp.float32),
    entropy=jnp.sum(jnp.where(is_target, scores.entropy, 0.0)),
  )


def flow_grpo_loss(
  config: flow_grpo.FlowGrpoConfig,
  scores: Scores,
  ref_logprobs: Array | None,
  micro: batch_lib.TurnBatch,
) -> tuple[Array, Sums]:
  """Returns -J of one micro-batch (arXiv 2510.05592, eq. 3) and its sums.

      -J = sum_t w_t [ -c_t s_t + kl_coef k3_t ]    over targets with c_t > 0
      s   = min(rho_t A_t, clip(rho_t) A_t), or stop_gradient(clip(rho_t)) A_t logprob
      rho = exp(logprob - old_logprob), or its geometric mean over the response
      k3  = exp(d) - d - 1,  d = ref_logprob - logprob
      c   = micro.importance, or 1

  The second form of s is CISPO (MiniMax-M1, arXiv 2506.13585).

  Args:
    config: the options.
    scores: scores of the micro-batch under the parameters that are trained.
    ref_logprobs: float32[B, N] of the frozen reference; None when kl_coef is 0.
    micro: fields [B, T] and [B, N].

  Returns:
    float32[], and the sums; gradients flow through scores.logprobs only.

  Raises:
    ValueError: kl_coef asks for a reference that is not given, or the reverse.
  """
  _check_reference(config, ref_logprobs)
  is_target = jnp.asarray(micro.weights > 0)

  def only_targets(x, otherwise=0.0):
    return jnp.where(is_target, x, otherwise)

  log_ratio = only_targets(scores.logprobs - micro.old_logprobs)
  if config.ratio_level == 'sequence':
    log_ratio = _response_mean(log_ratio, is_target, jnp.asarray(micro.responses))
  ratio = jnp.exp(log_ratio)
  low, high = 1.0 - config.clip_low, 1.0 + config.clip_high
  clipped = jnp.clip(ratio, low, high)
  positive, negative = micro.advantages > 0, micro.advantages < 0
  if config.surrogate == 'cispo':
    factor = jax.lax.stop_gradient(clipped) * micro.advantages
    surrogate = factor * only_targets(scores.logprobs)
    positive = negative = micro.advantages != 0
  else:
    surrogate = jnp.minimum(ratio * micro.advantages, clipped * micro.advantages)
  importance, counts = jnp.ones_like(ratio), is_target
  if micro.importance is not None:
    importance = only_targets(micro.importance)
    counts = importance != 0  # A NaN counts, and is refused.
    surrogate = jnp.where(counts, surrogate, 0.0)
  pg_loss = -jnp.sum(micro.weights * importance * surrogate)
  kl = jnp.float32(0)
  if ref_logprobs is not None:
    d = jnp.where(counts, ref_logprobs - scores.logprobs, 0.0)
    kl = jnp.sum(micro.weights * (jnp.expm1(d) - d))
  loss = pg_loss + config.kl_coef * kl

  is_fresh = is_target if micro.fresh is None else is_target & micro.fresh
  gap = jnp.where(is_fresh, jnp.abs(scores.logprobs - micro.behavior_logprobs), 0.0)
  sums = Sums(
    loss=loss,
    n_targets=jnp.sum(is_target, dtype=jnp.float32),
    entropy=jnp.sum(only_targets(scores.entropy)),
    policy=PolicySums(
      pg_loss=pg_loss,
      kl=kl,
      ratio=jnp.sum(only_targets(ratio)),
      clipped_low=jnp.sum(only_targets((ratio < low) & negative)),
      clipped_high=jnp.sum(only_targets((ratio > high) & positive)),
      importance=jnp.sum(only_targets(importance)),
      rejected=jnp.sum(is_target & ~counts, dtype=jnp.float32),
      n_fresh=jnp.sum(is_fresh, dtype=jnp.float32),
      gap=jnp.sum(gap),
      gap_counts=_gap_counts(gap, is_fresh),
      extremes=_extremes(ratio, is_target, gap, is_fresh),
    ),
  )
  return loss, jax.lax.stop_gradient(sums)


def _check_reference(
  config: flow_grpo.FlowGrpoConfig, ref_logprobs: Array | None
) -> None:
  """Refuses a reference that would be ignored, and the lack of one."""
  if (config.kl_coef > 0) != (ref_logprobs is not None):
    raise ValueError(
      f'kl_coef {config.kl_coef}: a reference is '
      + ('needed' if ref_logprobs is None else 'given, and would be ignored')
    )


def _extremes(ratio: Array, is_target: Array, gap: Array, is_fresh: Array) -> Array:
  """Returns the largest ratio, the largest -ratio, and the largest gap: float32[3]."""
  return jnp.stack(
    [
      jnp.max(jnp.where(is_target, ratio, -jnp.inf)),
      jnp.max(jnp.where(is_target, -ratio, -jnp.inf)),
      jnp.max(jnp.where(is_fresh, gap, -jnp.inf)),
    ]
  )


def _response_mean(x: Array, is_target: Array, responses: Array) -> Array:
  """Returns each target's mean of x[B, N] over the targets of its turn row."""

  def one_row(x, is_target, responses):
    count = responses.shape[0] + 1
    sums = jax.ops.segment_sum(x, responses, num_segments=count)
    sizes = jax.ops.segment_sum(
      is_target.astype(jnp.float32), responses, num_segments=count
    )
    return (sums / jnp.maximum(sizes, 1.0))[responses]

  mean = jax.vmap(one_row)(jnp.where(is_target, x, 0.0), is_target, responses)
  return jnp.where(is_target, mean, 0.0)


def _gap_counts(gap: Array, is_fresh: Array) -> Array:
  octaves = jnp.log2(jnp.maximum(gap, 2.0**_GAP_FLOOR)) - _GAP_FLOOR
  bins = jnp.clip(jnp.ceil(octaves * 8), 0, _GAP_BINS)
  bins = jnp.where(is_fresh, bins, -1)
  edges = jnp.arange(_GAP_BINS + 1, dtype=jnp.float32)
  return jnp.sum(bins[..., None] == edges, axis=(0, 1), dtype=jnp.float32)


def metrics_of(sums: Sums) -> dict[str, Array]:
  """Returns float32 scalars; means are over targets, unless said otherwise.

  loss, pg_loss and kl are the weighted sums that the objective is made of (kl
  before kl_coef). logprob_gap/* are over fresh targets, whether or not they are
  rejected; logprob_gap/p99 is read off a histogram and so the upper edge of its bin: at
  most 9% too high. importance_mean is over the targets that are not rejected, and
  rejected_frac the share of those that are. Without any target ratios are 1.

  Args:
    sums: sums over every micro-batch of an update.
  """
  n = jnp.maximum(sums.n_targets, 1.0)
  metrics = {
    'loss': sums.loss,
    'n_targets': sums.n_targets,
    'entropy': sums.entropy / n,
  }
  policy = sums.policy
  if policy is None:
    return metrics
  any_target = sums.n_targets > 0
  ratio_max, minus_ratio_min, gap_max = policy.extremes
  gap_max = jnp.where(policy.n_fresh > 0, gap_max, 0.0)
  reached = jnp.cumsum(policy.gap_counts) >= 0.99 * policy.n_fresh
  n_counting = sums.n_targets - policy.rejected
  edge = 2.0 ** (_GAP_FLOOR + jnp.argmax(reached) / 8)
  return metrics | {
    'pg_loss': policy.pg_loss,
    'kl': policy.kl,
    'ratio_mean': jnp.where(any_target, policy.ratio / n, 1.0),
    'ratio_max': jnp.where(any_target, ratio_max, 1.0),
    'ratio_min': jnp.where(any_target, -minus_ratio_min, 1.0),
    'clip_frac_low': policy.clipped_low / n,
    'clip_frac_high': policy.clipped_high / n,
    'importance_mean': jnp.where(
      n_counting > 0, policy.importance / jnp.maximum(n_counting, 1.0), 1.0
    ),
    'rejected_frac': policy.rejected / n,
    'logprob_gap/mean': policy.gap / jnp.maximum(policy.n_fresh, 1.0),
    'logprob_gap/p99': jnp.minimum(edge, gap_max),
    'logprob_gap/max': gap_max,
  }
