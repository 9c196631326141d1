import math

import numpy as np
import pytest
from scipy import stats

from agentflow_jax.rollouts import intervals


def test_bootstrap_agrees_with_the_normal_approximation():
  values = np.random.default_rng(3).normal(2.0, 0.5, 400)
  low, high = intervals.bootstrap_interval(values, samples=20000)
  # 1.96 s / sqrt(n); the bootstrap's own noise at 20,000 samples is about 2%.
  half = 1.959964 * values.std() / math.sqrt(400)
  np.testing.assert_allclose(values.mean() - low, half, rtol=0.05)
  np.testing.assert_allclose(high - values.mean(), half, rtol=0.05)


def test_bootstrap_confidence_widens_the_interval():
  values = np.random.default_rng(3).normal(0.0, 1.0, 200)
  narrow = intervals.bootstrap_interval(values, 0.68)
  wide = intervals.bootstrap_interval(values, 0.99)
  # Normal quantiles: 2.576 / 0.994 = 2.59 times as wide.
  ratio = (wide[1] - wide[0]) / (narrow[1] - narrow[0])
  np.testing.assert_allclose(ratio, 2.59, rtol=0.08)


def test_bootstrap_covers_the_mean_as_often_as_it_says():
  rng = np.random.default_rng(0)
  hits = 0
  for seed in range(400):
    values = rng.random(60) < 0.3
    low, high = intervals.bootstrap_interval(values, samples=500, seed=seed)
    hits += low <= 0.3 <= high
  # 95% of 400 is 380, binomial standard deviation 4.4; the percentile
  # bootstrap falls a little short of its aim at n = 60.
  assert 362 <= hits <= 395


def test_bootstrap_is_deterministic_and_depends_on_the_seed():
  values = [0.0, 1.0, 1.0, 0.0, 1.0, 0.25, 0.5]
  first = intervals.bootstrap_interval(values, seed=1)
  assert intervals.bootstrap_interval(values, seed=1) == first
  wide = np.random.default_rng(0).normal(size=97)
  assert intervals.bootstrap_interval(wide, seed=1) != (
    intervals.bootstrap_interval(wide, seed=2)
  )


def test_bootstrap_in_several_chunks_matches_one_draw():
  # 2,000 samples of 3,000 values do not fit one chunk of 2^20 values; a
  # generator fills rows in order, so chunks see what one draw would give.
  values = np.random.default_rng(5).random(3000)
  rng = np.random.default_rng(11)
  picks = rng.integers(3000, size=(2000, 3000))
  expected = np.quantile(values[picks].mean(axis=1), (0.025, 0.975))
  actual = intervals.bootstrap_interval(values, seed=11)
  np.testing.assert_allclose(actual, expected, rtol=1e-12)


def test_bootstrap_without_values_is_nan_and_of_one_value_is_it():
  assert all(map(math.isnan, intervals.bootstrap_interval([])))
  assert intervals.bootstrap_interval([0.5]) == (0.5, 0.5)


@pytest.mark.parametrize(
  'arguments',
  [
    {'values': [1.0, math.nan]},
    {'values': [math.inf]},
    {'values': [[1.0], [2.0]]},
    {'values': [1.0], 'confidence': 1.0},
    {'values': [1.0], 'confidence': 0.0},
    {'values': [1.0], 'samples': 0},
  ],
)
def test_bootstrap_refuses(arguments):
  with pytest.raises(ValueError):
    intervals.bootstrap_interval(**arguments)


def test_wilson_by_hand():
  # z = 1.959964, z^2 = 3.841459. p = 1/2, n = 100: centre 1/2, half width
  # 1.959964 * sqrt(0.25/100 + 3.841459/40000) / 1.03841459 = 0.0961683.
  low, high = intervals.wilson_interval(0.5, 100)
  np.testing.assert_allclose((low, high), (0.4038317, 0.5961683), atol=1e-6)
  # p = 1, n = 10: 1 / (1 + 0.3841459) = 0.7224672, and 1.
  low, high = intervals.wilson_interval(1.0, 10)
  np.testing.assert_allclose((low, high), (0.7224672, 1.0), atol=1e-6)


def test_wilson_contains_the_mean_and_mirrors():
  for count in (1, 3, 7, 200):
    for mean in np.linspace(0, 1, 23):
      low, high = intervals.wilson_interval(float(mean), count)
      assert 0.0 <= low <= mean <= high <= 1.0
      mirrored = intervals.wilson_interval(float(1 - mean), count)
      np.testing.assert_allclose(mirrored, (1 - high, 1 - low), atol=1e-12)


def test_wilson_refuses_and_is_nan_without_a_count():
  assert all(map(math.isnan, intervals.wilson_interval(math.nan, 0)))
  for mean, count in ((1.1, 3), (-0.1, 3), (math.nan, 3), (0.5, -1)):
    with pytest.raises(ValueError):
      intervals.wilson_interval(mean, count)


@pytest.mark.parametrize('count', [2, 3, 4, 5, 12, 31, 100])
def test_intervals_over_seeds_are_students(count):
  rng = np.random.default_rng(count)
  values = rng.normal(0.6, 0.1, count).tolist()
  for confidence in (0.5, 0.95, 0.999):
    mean, low, high = intervals.mean_interval(values, confidence)
    expected = stats.t.interval(
      confidence, count - 1, np.mean(values), stats.sem(values)
    )
    np.testing.assert_allclose((low, high), expected, rtol=1e-9)
    assert mean == pytest.approx(np.mean(values))


def test_one_seed_has_no_interval():
  assert intervals.mean_interval([0.5]) is None
  assert intervals.mean_interval([]) is None
  assert intervals.mean_interval([0.5, 0.5]) == (0.5, 0.5, 0.5)
  with pytest.raises(ValueError, match='confidence'):
    intervals.mean_interval([0.1, 0.2], 1.0)
