"""Advantages and target weights, by hand and against plain loops."""

import itertools
import math
import statistics

import numpy as np
import pytest

from agentflow_jax.core import flow_grpo


def test_four_wins_and_four_losses_whatever_their_turns():
  # mean 1/2, sample variance 8 * (1/4) / 7 = 2/7: 0.5 / sqrt(2/7) = 0.935414.
  got = flow_grpo.advantages([1.0] * 4 + [0.0] * 4)
  np.testing.assert_allclose(got, [0.935414] * 4 + [-0.935414] * 4, atol=3e-6)
  assert got.dtype == np.float64


def test_advantages_against_the_standard_library():
  rewards = [0.3, None, -1.25, 7.0, 0.3, None, 2.0]
  scored = [r for r in rewards if r is not None]
  mean, std = statistics.fmean(scored), statistics.stdev(scored)
  expected = [0.0 if r is None else (r - mean) / (std + 1e-6) for r in rewards]
  np.testing.assert_allclose(flow_grpo.advantages(rewards), expected, atol=1e-12)
  expected = [0.0 if r is None else r - mean for r in rewards]
  np.testing.assert_allclose(
    flow_grpo.advantages(rewards, use_std=False), expected, atol=1e-12
  )


def test_advantages_over_counted_rewards_against_the_standard_library():
  rewards, counts = [0.3, None, -1.25, 7.0], [2, 5, 1, 0]
  sample = [0.3, 0.3, -1.25]
  mean, std = statistics.fmean(sample), statistics.stdev(sample)
  expected = [0.0 if r is None else (r - mean) / (std + 1e-6) for r in rewards]
  np.testing.assert_allclose(
    flow_grpo.advantages(rewards, counts=counts), expected, atol=1e-12
  )
  # One row, or equal ones: nothing to compare.
  for counts in ([1, 5, 0, 0], [3, 5, 0, 0]):
    assert not flow_grpo.advantages(rewards, counts=counts).any()


@pytest.mark.parametrize(
  'rewards', [[], [None], [5.0], [5.0, None], [0.1] * 8, [0.1, None, 0.1], [1 / 3] * 7]
)
@pytest.mark.parametrize('use_std', [True, False])
def test_nothing_to_compare_gives_exactly_zero(rewards, use_std):
  got = flow_grpo.advantages(rewards, use_std)
  assert got.shape == (len(rewards),)
  assert (got == 0).all()


def test_a_reward_that_is_not_finite_is_refused():
  with pytest.raises(ValueError, match='finite'):
    flow_grpo.advantages([1.0, float('nan')])


# Two groups; group 0 has an unscored rollout, an empty turn, and a rollout with
# no turn; group 1 two rollouts; group 2 nothing scored.
LENGTHS = [[[3, 0, 5], [2], [], [4, 4]], [[7], [1, 1, 1, 1]], [[6]]]
SCORED = [[True, True, True, False], [True, True], [False]]


def test_turn_mean_by_hand():
  got = flow_grpo.target_weights(LENGTHS, SCORED)
  # Q = 2; G = 3 and 2; the empty turn counts in T = 3.
  np.testing.assert_allclose(
    got[0][0], [1 / (2 * 3 * 3 * 3), 0, 1 / (2 * 3 * 3 * 5)], rtol=1e-7
  )
  np.testing.assert_allclose(got[0][1], [1 / (2 * 3 * 1 * 2)], rtol=1e-7)
  assert got[0][2].shape == (0,)
  assert got[0][3].tolist() == [0, 0]
  np.testing.assert_allclose(got[1][0], [1 / (2 * 2 * 1 * 7)], rtol=1e-7)
  np.testing.assert_allclose(got[1][1], [1 / (2 * 2 * 4)] * 4, rtol=1e-7)
  assert got[2][0].tolist() == [0]
  assert all(w.dtype == np.float32 for w in itertools.chain(*got))


@pytest.mark.parametrize(
  'weighting, length, expected',
  [
    # 8 + 2 + 7 + 4 scored targets.
    ('token_mean', None, lambda q, i, t: 1 / 21),
    ('sequence_mean', None, lambda q, i, t: 1 / (2 * (3, 2)[q] * sum(LENGTHS[q][i]))),
    ('dr_grpo', 11, lambda q, i, t: 1 / (2 * (3, 2)[q] * 11)),
  ],
)
def test_other_weightings_by_hand(weighting, length, expected):
  got = flow_grpo.target_weights(LENGTHS, SCORED, weighting, length)
  for q, group in enumerate(LENGTHS):
    for i, turns in enumerate(group):
      assert len(got[q][i]) == len(turns)
      for t, n in enumerate(turns):
        want = expected(q, i, t) if n and SCORED[q][i] else 0
        assert math.isclose(got[q][i][t], want, rel_tol=1e-7), (q, i, t)


def test_turn_mean_sums_to_the_mean_over_rollouts():
  # With f = 1 at every target J is the mean over rollouts of the share of turns
  # that have a target: group 0: (2/3 + 1 + 0) / 3, group 1: 1.
  weights = flow_grpo.target_weights(LENGTHS, SCORED)
  total = sum(
    float(w) * n
    for group, rows in zip(weights, LENGTHS)
    for ws, turns in zip(group, rows)
    for w, n in zip(ws, turns)
  )
  assert math.isclose(total, ((2 / 3 + 1) / 3 + 1) / 2, rel_tol=1e-6)


def test_weights_refuse_arguments_that_disagree():
  with pytest.raises(ValueError, match='same rollouts'):
    flow_grpo.target_weights([[[1]]], [[True, True]])
  with pytest.raises(ValueError, match='negative'):
    flow_grpo.target_weights([[[-1]]], [[True]])
  with pytest.raises(ValueError, match='weighting'):
    flow_grpo.target_weights([[[1]]], [[True]], 'mean')
  with pytest.raises(ValueError, match='dr_grpo_length'):
    flow_grpo.target_weights([[[1]]], [[True]], 'dr_grpo')


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'weighting': 'mean'}, 'weighting'),
    ({'advantage': 'rank'}, 'advantage'),
    ({'advantage_over': 'turns'}, 'advantage_over'),
    ({'ratio_level': 'turn'}, 'ratio_level'),
    ({'old_logprobs': 'given'}, 'old_logprobs'),
    ({'importance_cap': 2.0}, 'recompute'),
    ({'importance_cap': 0.0, 'old_logprobs': 'recompute'}, 'importance_cap'),
    ({'weighting': 'dr_grpo'}, 'dr_grpo_length'),
    ({'dr_grpo_length': 5}, 'dr_grpo_length'),
    ({'clip_low': 1.5}, 'clip_low'),
    ({'clip_high': -0.1}, 'clip_high'),
    ({'kl_coef': float('nan')}, 'kl_coef'),
  ],
)
def test_bad_options_are_refused(changes, message):
  with pytest.raises(ValueError, match=message):
    flow_grpo.FlowGrpoConfig(**changes)


def test_term_advantages_against_the_standard_library():
  values = [
    [[1.0, 0.2], [0.0, 0.2], None, [0.0, 0.8]],
    [[0.5, 1.0], [0.5, 0.0]],
    [None],
  ]
  weights = [1.0, -0.25]
  sums = []
  for group in values:
    scored = [v for v in group if v is not None]
    found = [0.0] * len(group)
    for k, weight in enumerate(weights):
      term = [v[k] for v in scored]
      if len(term) < 2 or max(term) == min(term):
        continue
      mean, std = statistics.fmean(term), statistics.stdev(term)
      for i, v in enumerate(group):
        if v is not None:
          found[i] += weight * (v[k] - mean) / (std + 1e-6)
    sums.append(found)
  scored = [s for g, f in zip(values, sums) for v, s in zip(g, f) if v is not None]
  scale = statistics.stdev(scored) + 1e-6
  got = flow_grpo.term_advantages(values, weights)
  for one, wanted in zip(got, sums, strict=True):
    np.testing.assert_allclose(one, np.array(wanted) / scale, atol=1e-12)


def test_a_term_of_weight_0_teaches_nothing():
  (got,) = flow_grpo.term_advantages([[[1.0, 0.0], [1.0, 9.0]]], [1.0, 0.0])
  assert not got.any()
