"""Bounds on the gap between a sampler's log probabilities and the trainer's.

The gap of a target is |logprob - behavior_logprob| [nats], under one and the same
parameters. In bfloat16 its largest value grows with the number of targets, while its
mean and its 99th percentile do not, so these two are bounded as well. The default
bounds are a few times what was measured, see docs/engines.md and docs/performance.md.
"""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class GapBounds:
  """Bounds on the gap over the fresh targets of an update [nats].

  Attributes:
    max: largest value.
    p99: largest 99th percentile.
    mean: largest mean.
  """

  max: float = float('inf')
  p99: float = float('inf')
  mean: float = float('inf')

  def array(self) -> np.ndarray:
    """Returns float32[3]: max, p99, mean."""
    return np.array([self.max, self.p99, self.mean], np.float32)

  def exceeded(self, gaps: np.ndarray) -> str:
    """Says which bound the gaps of some targets exceed; '' where none.

    Args:
      gaps: float[N]; a gap that is not a number is within no bound.
    """
    if not len(gaps):
      return ''
    return self.said(
      float(np.max(gaps)), float(np.quantile(gaps, 0.99)), float(np.mean(gaps))
    )

  def said(self, largest: float, p99: float, mean: float) -> str:
    """Says which bound a summary of gaps exceeds; '' where none."""
    for name, field, value in (
      ('max', 'max', largest),
      ('99th percentile of', 'p99', p99),
      ('mean', 'mean', mean),
    ):
      bound = getattr(self, field)
      if not value <= bound:
        return (
          f'{name} |logprob - behavior_logprob| = {value:.3g} nats, allowed'
          f' {bound:.3g} (train.{field}_logprob_gap)'
        )
    return ''


# Of an engine in this process, and of servers: mean and p99 by dtype.
_INSIDE = {'float32': (2e-4, 1e-3), 'bfloat16': (0.06, 0.3)}
_OUTSIDE = {'float32': (3e-5, 1.5e-4), 'bfloat16': (0.08, 0.5)}


def of(
  dtype: str,
  *,
  outside: bool = False,
  kv_dtype: str = '',
  largest: float = float('inf'),
  mean: float | None = None,
  p99: float | None = None,
) -> GapBounds:
  """Returns the bounds of a run.

  Args:
    dtype: dtype of the network's activations.
    outside: whether servers sample, and not an engine in this process.
    kv_dtype: format of the engine's keys and values; in a byte they are no longer
      what the defaults were measured for.
    largest: bound on the largest gap [nats].
    mean: bound on the mean; None for the default.
    p99: bound on the 99th percentile; None for the default.
  """
  defaults = (_OUTSIDE if outside else _INSIDE)[dtype]
  if kv_dtype:
    defaults = (float('inf'), float('inf'))
  return GapBounds(
    max=float('inf') if outside else largest,
    p99=defaults[1] if p99 is None else p99,
    mean=defaults[0] if mean is None else mean,
  )
