"""Flow-GRPO's and SFT's losses against NumPy float64 loops over turns."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agentflow_jax.core import batch as batch_lib
from agentflow_jax.core import flow_grpo
from agentflow_jax.core import losses

BASE = flow_grpo.FlowGrpoConfig(kl_coef=0.05)
OPTIONS = {
  'default': BASE,
  'no_std': dataclasses.replace(BASE, advantage='no_std'),
  'token_mean': dataclasses.replace(BASE, weighting='token_mean'),
  'sequence_mean': dataclasses.replace(BASE, weighting='sequence_mean'),
  'dr_grpo': dataclasses.replace(
    BASE, weighting='dr_grpo', dr_grpo_length=9, advantage='no_std'
  ),
  'gspo': dataclasses.replace(BASE, ratio_level='sequence'),
  'narrow_clip': dataclasses.replace(BASE, clip_low=0.05, clip_high=0.01),
  'no_kl': dataclasses.replace(BASE, kl_coef=0.0),
}

# Turn lengths of two groups' rollouts; an empty turn; an unscored rollout;
# group 1 has no variance.
LENGTHS = [[[3, 0, 4], [2], [5, 1], [6]], [[2, 2], [3]]]
REWARDS = [[1.0, 0.0, 0.5, None], [0.25, 0.25]]


def _turns(config, seed=0):
  """Returns one (row, logprobs, ref_logprobs) a turn, off policy."""
  rng = np.random.default_rng(seed)
  scored = [[r is not None for r in group] for group in REWARDS]
  weights = flow_grpo.target_weights(
    LENGTHS, scored, config.weighting, config.dr_grpo_length
  )
  turns = []
  for q, group in enumerate(LENGTHS):
    advantages = flow_grpo.advantages(REWARDS[q], config.advantage == 'std')
    for i, rollout in enumerate(group):
      for t, n in enumerate(rollout):
        old = -rng.random(n) * 3
        row = batch_lib.TurnRow(
          np.arange(4),
          np.arange(n),
          target_weight=float(weights[q][i][t]),
          behavior_logprobs=(old + 0.2 * rng.normal(size=n)).astype('f4'),
          old_logprobs=old.astype('f4'),
          advantage=float(advantages[i]),
        )
        turns.append(
          (
            row,
            (old + 0.4 * rng.normal(size=n)).astype('f4'),
            (old + 0.3 * rng.normal(size=n)).astype('f4'),
          )
        )
  return turns


def _oracle(config):
  """Returns (-J, KL term) of design section 2, token by token in float64."""
  policy = kl = 0.0
  n_groups = len(LENGTHS)
  n_targets = sum(
    sum(r) for g, rs in zip(LENGTHS, REWARDS) for r, x in zip(g, rs) if x is not None
  )
  turns = iter(_turns(config))
  for group, rewards in zip(LENGTHS, REWARDS):
    known = [r for r in rewards if r is not None]
    mean = sum(known) / len(known)
    std = math.sqrt(sum((r - mean) ** 2 for r in known) / max(len(known) - 1, 1))
    for rollout, reward in zip(group, rewards):
      for n in rollout:
        row, logprobs, ref = next(turns)
        if reward is None:
          continue
        a = 0.0 if max(known) == min(known) else reward - mean
        if config.advantage == 'std':
          a /= std + 1e-6
        share = 1 / (n_groups * len(known))
        old = row.old_logprobs.astype(np.float64)
        ratios = np.exp(logprobs - old)
        if config.ratio_level == 'sequence':
          ratios = [math.exp(np.mean(logprobs - old))] * n if n else []
        for j in range(n):
          w = {
            'turn_mean': share / (len(rollout) * n),
            'token_mean': 1 / n_targets,
            'sequence_mean': share / sum(rollout),
            'dr_grpo': share / (config.dr_grpo_length or 1),
          }[config.weighting]
          clipped = min(max(ratios[j], 1 - config.clip_low), 1 + config.clip_high)
          policy += w * min(ratios[j] * a, clipped * a)
          d = float(ref[j]) - float(logprobs[j])
          kl += w * (math.exp(d) - d - 1)
  return -policy, kl


def _packed(config):
  """Returns a micro-batch [B, T] and packed (logprobs, ref_logprobs)."""
  turns = _turns(config)
  batch, packing = batch_lib.pack(
    [row for row, _, _ in turns], tokens_per_row=16, rows_per_micro=8
  )
  assert packing.n_micro == 1

  def place(values):
    out = np.full(batch.weights.shape, 7.0, np.float32)  # Junk off targets.
    for v, p in zip(values, packing.places, strict=True):
      out[p.micro, p.row, p.first : p.first + p.n_response] = v
    return out[0]

  return (
    jax.tree.map(jnp.asarray, batch.micro(0)),
    place([logprobs for _, logprobs, _ in turns]),
    place([ref for _, _, ref in turns]),
  )


def _loss(config, logprobs, ref, micro):
  ones = jnp.ones_like(logprobs)
  scores = losses.Scores(logprobs, entropy=ones, log_normalizer=ones)
  ref = ref if config.kl_coef else None
  return losses.flow_grpo_loss(config, scores, ref, micro)


@pytest.mark.parametrize('name', OPTIONS)
def test_loss_equals_the_float64_oracle(name):
  config = OPTIONS[name]
  micro, logprobs, ref = _packed(config)
  loss, sums = _loss(config, jnp.asarray(logprobs), ref, micro)
  policy, kl = _oracle(config)
  assert abs(policy) > 1e-3 and kl > 1e-3
  assert abs(float(sums.policy.pg_loss) - policy) <= 1e-6
  assert abs(float(loss) - (policy + config.kl_coef * kl)) <= 1e-6
  if config.kl_coef:
    assert abs(float(sums.policy.kl) - kl) <= 1e-6


@pytest.mark.parametrize('name', ['default', 'gspo'])
def test_gradient_equals_finite_differences_of_the_loss(name):
  config = OPTIONS[name]
  micro, logprobs, ref = _packed(config)
  grad = jax.grad(lambda x: _loss(config, x, ref, micro)[0])(jnp.asarray(logprobs))
  direction = np.random.default_rng(1).normal(size=logprobs.shape)
  direction = direction.astype('f4')
  step = 1e-3
  up, _ = _loss(config, logprobs + step * direction, ref, micro)
  down, _ = _loss(config, logprobs - step * direction, ref, micro)
  expected = (float(up) - float(down)) / (2 * step)
  assert abs(float((grad * direction).sum()) - expected) < 2e-3 * abs(expected)
  assert not np.asarray(grad)[np.asarray(micro.weights) == 0].any()


def _one_token(ratio, advantage, **changes):
  """Returns (d loss / d logprob, sums) of one target of weight 1."""
  config = dataclasses.replace(BASE, kl_coef=0.0, **changes)
  row = batch_lib.TurnRow(
    np.array([1]),
    np.array([2]),
    target_weight=1.0,
    advantage=advantage,
    behavior_logprobs=np.array([-1.0], 'f4'),
  )
  batch, _ = batch_lib.pack([row], tokens_per_row=1, rows_per_micro=1)
  micro = jax.tree.map(jnp.asarray, batch.micro(0))
  grad, sums = jax.grad(lambda x: _loss(config, x, None, micro), has_aux=True)(
    jnp.full((1, 1), -1.0 + math.log(ratio), jnp.float32)
  )
  return float(grad[0, 0]), sums


@pytest.mark.parametrize(
  'ratio, advantage, moves, low, high',
  [
    (1.0, 2.0, True, 0, 0),
    (1.29, 2.0, True, 0, 0),
    (1.31, 2.0, False, 0, 1),  # Above 1 + clip_high.
    (1.31, -2.0, True, 0, 0),  # The pessimistic side is not clipped.
    (0.81, -2.0, True, 0, 0),
    (0.79, -2.0, False, 1, 0),  # Below 1 - clip_low.
    (0.79, 2.0, True, 0, 0),
  ],
)
def test_the_two_clips_by_hand(ratio, advantage, moves, low, high):
  grad, sums = _one_token(ratio, advantage)
  # d/dlogprob of -rho A is -rho A.
  assert math.isclose(grad, -ratio * advantage if moves else 0.0, rel_tol=1e-5)
  assert float(sums.policy.clipped_low) == low
  assert float(sums.policy.clipped_high) == high


def test_a_group_without_variance_keeps_its_kl_term():
  config = dataclasses.replace(BASE, kl_coef=1.0)
  micro, logprobs, ref = _packed(config)
  flat = micro.replace(advantages=jnp.zeros_like(micro.advantages))
  loss, sums = _loss(config, jnp.asarray(logprobs), ref, flat)
  assert float(sums.policy.pg_loss) == 0
  assert float(loss) > 1e-3
  grad = jax.grad(lambda x: _loss(config, x, ref, flat)[0])(jnp.asarray(logprobs))
  assert np.abs(grad).max() > 1e-3


def test_an_unscored_rollout_has_no_part_in_either_term():
  micro, logprobs, ref = _packed(BASE)
  base, _ = _loss(BASE, jnp.asarray(logprobs), ref, micro)
  # Its six targets carry weight 0: whatever the model says of them is ignored.
  other = np.where(np.asarray(micro.weights) > 0, logprobs, -50.0)
  changed, _ = _loss(BASE, jnp.asarray(other), ref - 3 * (other == -50), micro)
  assert float(base) == float(changed)


def test_metrics_by_hand():
  config = dataclasses.replace(BASE, kl_coef=0.0)
  micro, logprobs, _ = _packed(config)
  _, sums = _loss(config, jnp.asarray(logprobs), None, micro)
  metrics = losses.metrics_of(losses.add_sums(losses.zero_sums(True), sums))
  real = np.asarray(micro.weights) > 0
  old = np.asarray(micro.old_logprobs, np.float64)[real]
  ratio = np.exp(logprobs[real] - old)
  gap = np.abs(logprobs - np.asarray(micro.behavior_logprobs))[real]
  advantage = np.asarray(micro.advantages)[real]
  expected = {
    'n_targets': real.sum(),
    'entropy': 1.0,
    'ratio_mean': ratio.mean(),
    'ratio_max': ratio.max(),
    'ratio_min': ratio.min(),
    'clip_frac_low': ((ratio < 0.8) & (advantage < 0)).mean(),
    'clip_frac_high': ((ratio > 1.3) & (advantage > 0)).mean(),
    'importance_mean': 1.0,
    'rejected_frac': 0.0,
    'logprob_gap/mean': gap.mean(),
    'logprob_gap/max': gap.max(),
  }
  for name, value in expected.items():
    assert math.isclose(metrics[name], value, rel_tol=1e-5), name


def test_p99_of_the_gap_is_the_upper_edge_of_its_bin():
  rng = np.random.default_rng(0)
  gap = np.exp(rng.normal(-12, 2, 4096)).astype('f4')
  zeros = jnp.zeros((1, 4096))
  micro = batch_lib.TurnBatch(
    token_ids=zeros,
    positions=zeros,
    subtree_end=zeros,
    parents=zeros,
    targets=zeros,
    responses=zeros,
    weights=zeros + 1,
    advantages=zeros,
    behavior_logprobs=zeros,
    old_logprobs=zeros,
    temperature=zeros + 1,
    n_micro=1,
  )
  config = dataclasses.replace(BASE, kl_coef=0.0)
  _, sums = _loss(config, jnp.asarray(-gap[None]), None, micro)
  got = float(losses.metrics_of(sums)['logprob_gap/p99'])
  exact = np.sort(gap)[math.ceil(0.99 * 4096) - 1]
  assert exact * (1 - 1e-6) <= got <= exact * 2 ** (1 / 8)


def test_sums_add_up_and_extremes_do_not():
  a, b = (losses.metrics_of(_one_token(ratio, 1.0)[1]) for ratio in (0.5, 2.0))
  both = losses.metrics_of(
    losses.add_sums(_one_token(0.5, 1.0)[1], _one_token(2.0, 1.0)[1])
  )
  assert math.isclose(both['loss'], a['loss'] + b['loss'], rel_tol=1e-6)
  assert math.isclose(both['ratio_min'], 0.5, rel_tol=1e-6)
  assert math.isclose(both['ratio_max'], 2.0, rel_tol=1e-6)
  assert both['n_targets'] == 2


def test_a_gap_that_is_not_a_number_stays_one_through_every_sum():
  # Beside a micro-batch with a finite gap, before and after it.
  sums = _one_token(1.5, 1.0)[1]
  extremes = sums.policy.extremes.at[2].set(np.nan)
  broken = sums.replace(
    policy=sums.policy.replace(gap=np.float32(np.nan), extremes=extremes)
  )
  for both in (losses.add_sums(sums, broken), losses.add_sums(broken, sums), broken):
    metrics = losses.metrics_of(both)
    assert np.isnan(metrics['logprob_gap/max'])
    assert np.isnan(metrics['logprob_gap/mean'])
    assert math.isclose(metrics['ratio_max'], 1.5, rel_tol=1e-6)


def test_no_target_at_all_gives_finite_metrics():
  metrics = losses.metrics_of(losses.zero_sums(True))
  assert all(np.isfinite(value) for value in metrics.values())
  assert metrics['ratio_max'] == 1 and metrics['logprob_gap/max'] == 0


@pytest.mark.parametrize('z_loss', [0.0, 0.25])
def test_sft_loss_is_the_weighted_negative_log_likelihood(z_loss):
  micro, logprobs, _ = _packed(BASE)
  normalizer = np.linspace(-3, 5, logprobs.size).reshape(logprobs.shape)
  scores = losses.Scores(
    jnp.asarray(logprobs), jnp.ones_like(logprobs), jnp.asarray(normalizer)
  )
  config = losses.SftConfig(z_loss=z_loss)
  loss, sums = losses.sft_loss(config, scores, micro)
  weights = np.asarray(micro.weights, np.float64)
  expected = (weights * (z_loss * normalizer**2 - logprobs)).sum()
  assert math.isclose(loss, expected, rel_tol=1e-6)
  assert sums.policy is None
  assert set(losses.metrics_of(sums)) == {'loss', 'n_targets', 'entropy'}


def test_z_loss_must_be_a_weight():
  with pytest.raises(ValueError, match='z_loss must be finite'):
    losses.SftConfig(z_loss=-1.0)


def test_a_reference_is_given_exactly_when_it_is_used():
  micro, logprobs, ref = _packed(BASE)
  scores = losses.Scores(*[jnp.asarray(logprobs)] * 3)
  with pytest.raises(ValueError, match='needed'):
    losses.flow_grpo_loss(BASE, scores, None, micro)
  with pytest.raises(ValueError, match='ignored'):
    losses.flow_grpo_loss(OPTIONS['no_kl'], scores, ref, micro)
