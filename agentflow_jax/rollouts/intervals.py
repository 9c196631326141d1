"""Means and their confidence intervals, for metrics and for the report."""

import math
import statistics
from collections.abc import Iterable, Sequence

import numpy as np

# Resampled values held at once; bounds memory, changes no result.
_CHUNK_VALUES = 1 << 20


def mean(values: Iterable[float]) -> float | None:
  """Returns the mean of values; None of nothing."""
  found = list(values)
  return sum(found) / len(found) if found else None


def bootstrap_interval(
  values: Sequence[float], confidence: float = 0.95, samples: int = 2000, seed: int = 0
) -> tuple[float, float]:
  """Percentile bootstrap interval of the mean of `values`.

  The values are the independent units (items of an evaluation, groups of a
  step). Deterministic: the same arguments give the same bits. Where all values
  are equal the interval has no width; `wilson_interval` does not collapse.

  Args:
    values: n finite numbers, any unit.
    confidence: coverage aimed at, in (0, 1).
    samples: number of resamplings of the n values with replacement.
    seed: seed of the resampling.

  Returns:
    (low, high) in the unit of the values; (nan, nan) where there are none.

  Raises:
    ValueError: a value is not finite, or confidence or samples is out of range.
  """
  _check_confidence(confidence)
  if samples < 1:
    raise ValueError(f'samples must be >= 1: {samples}')
  data = np.asarray(values, np.float64)
  if data.ndim != 1:
    raise ValueError(f'values must be one-dimensional, got shape {data.shape}')
  if not np.all(np.isfinite(data)):
    raise ValueError('values must be finite: leave unscored rollouts out')
  if not data.size:
    return math.nan, math.nan
  rng = np.random.default_rng(seed)
  means = np.empty(samples, np.float64)
  rows = max(1, _CHUNK_VALUES // data.size)
  for start in range(0, samples, rows):
    stop = min(samples, start + rows)
    picks = rng.integers(data.size, size=(stop - start, data.size))
    means[start:stop] = data[picks].mean(axis=1)
  tail = (1.0 - confidence) / 2.0
  low, high = np.quantile(means, (tail, 1.0 - tail))
  return float(low), float(high)


def paired_gain(
  before: Iterable[tuple[str, float | None]],
  after: Iterable[tuple[str, float | None]],
  confidence: float = 0.95,
) -> tuple[float, float, float, int] | None:
  """Returns how much a mean rose, over the items that were scored both times.

  Items are resampled with both of their rewards, so what makes an item hard both
  times does not widen the interval.

  Args:
    before: pairs of an item's id and the reward of a rollout, None without one.
    after: the same of the second evaluation.
    confidence: coverage aimed at, in (0, 1).

  Returns:
    (difference of the means, low, high, number of items) with a bootstrap interval;
    None where no item was scored both times.
  """
  means = []
  for pairs in (before, after):
    rewards: dict[str, list[float]] = {}
    for item, reward in pairs:
      if reward is not None:
        rewards.setdefault(item, []).append(reward)
    means.append({item: sum(r) / len(r) for item, r in rewards.items()})
  first, second = means
  shared = sorted(first.keys() & second.keys())
  if not shared:
    return None
  differences = [second[item] - first[item] for item in shared]
  low, high = bootstrap_interval(differences, confidence)
  return sum(differences) / len(differences), low, high, len(shared)


def wilson_interval(
  mean: float, count: int, confidence: float = 0.95
) -> tuple[float, float]:
  """Wilson score interval of a mean of `count` values in [0, 1].

  Exact in form for 0/1 values; conservative for fractional ones, whose variance
  is at most mean * (1 - mean). Keeps a width at means 0 and 1.

    (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n)

  Args:
    mean: p, in [0, 1].
    count: n, values in the mean.
    confidence: coverage aimed at, in (0, 1).

  Returns:
    (low, high) in [0, 1]; (nan, nan) where count is 0.

  Raises:
    ValueError: mean, count or confidence is out of range.
  """
  _check_confidence(confidence)
  if count < 0:
    raise ValueError(f'count must be >= 0: {count}')
  if not count:
    return math.nan, math.nan
  if not 0.0 <= mean <= 1.0:
    raise ValueError(f'mean must lie in [0, 1]: {mean}')
  z = statistics.NormalDist().inv_cdf(0.5 + confidence / 2.0)
  scale = 1.0 + z * z / count
  center = (mean + z * z / (2.0 * count)) / scale
  spread = math.sqrt(mean * (1.0 - mean) / count + (z / (2.0 * count)) ** 2)
  half = z * spread / scale
  # Rounding may leave the ends an ulp outside of what contains the mean.
  return max(0.0, min(mean, center - half)), min(1.0, max(mean, center + half))


def mean_interval(
  values: Sequence[float], confidence: float = 0.95
) -> tuple[float, float, float] | None:
  """Returns a mean and its interval by Student's t, for a few independent runs.

    mean -+ t s / sqrt(n), t the (1 + confidence) / 2 quantile of n - 1 degrees

  Args:
    values: n finite numbers, any unit, such as one figure of several seeds.
    confidence: coverage aimed at, in (0, 1).

  Returns:
    The mean, and the lower and the upper end. None for fewer than two values, which
    do not say how much they vary.

  Raises:
    ValueError: confidence is not in (0, 1).
  """
  _check_confidence(confidence)
  if len(values) < 2:
    return None
  mean = statistics.fmean(values)
  t = _student_quantile(confidence, len(values) - 1)
  half = t * statistics.stdev(values) / math.sqrt(len(values))
  return mean, mean - half, mean + half


def _student_quantile(confidence: float, freedom: int) -> float:
  """Returns t with P(|T| <= t) = confidence, T of Student's distribution."""
  # In the angle whose tangent is t / sqrt(freedom), the probability grows from 0 to 1.
  low, high = 0.0, math.pi / 2
  for _ in range(80):
    middle = (low + high) / 2
    if _student_probability(middle, freedom) < confidence:
      low = middle
    else:
      high = middle
  return math.tan(low) * math.sqrt(freedom)


def _student_probability(angle: float, freedom: int) -> float:
  """Returns P(|T| <= sqrt(freedom) tan(angle)).

  Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.3 and 26.7.4.
  """
  sine, cosine = math.sin(angle), math.cos(angle)
  odd = freedom % 2
  term = total = cosine if odd else 1.0
  for n in range(2 + odd, freedom - 1, 2):
    term *= (n - 1) / n * cosine * cosine
    total += term
  if not odd:
    return sine * total
  return 2 / math.pi * (angle + (sine * total if freedom > 1 else 0.0))


def _check_confidence(confidence: float) -> None:
  if not 0.0 < confidence < 1.0:
    raise ValueError(f'confidence must lie in (0, 1): {confidence}')
