"""Proof that a server samples from the weights that it was given.

Before weights are handed over, the trainer scores fixed texts, the probes, under them
("new") and knows the scores under those before ("old"). After the hand-over each
server scores the same ids. With the bound b on the noise between trainer and server,
the tokens with

    |new - old| > 3 b

tell the two apart: a server that has the new weights is within b of the new scores,
and at least 2 b from the old ones. Over these tokens the server has to be nearer to
the new scores, and over all tokens the mean of |served - new| has to be within its own
bound. Where no token tells them apart, only the name that the server gives its weights
is left, and the proof says so.
"""

import dataclasses
import enum
from collections.abc import Sequence

import numpy as np

# Times the bound that a token has to have moved.
FACTOR = 3.0


@dataclasses.dataclass(frozen=True)
class Probe:
  """A text that is scored.

  Attributes:
    prompt_ids: token ids before those that are scored; at least one.
    response_ids: token ids that are scored; at least one.
  """

  prompt_ids: tuple[int, ...]
  response_ids: tuple[int, ...]

  @property
  def ids(self) -> tuple[int, ...]:
    """All ids of the text."""
    return self.prompt_ids + self.response_ids


@dataclasses.dataclass(frozen=True)
class Bounds:
  """What |logprob of the server - logprob of the trainer| may be [nats].

  Attributes:
    mean: largest mean over tokens.
    p99: largest 99th percentile over tokens; the noise b above.
  """

  mean: float
  p99: float


class Outcome(enum.Enum):
  """What a proof found."""

  PROVED = 'proved'
  INDISTINGUISHABLE = 'indistinguishable'
  REFUTED = 'refuted'


@dataclasses.dataclass(frozen=True)
class Verdict:
  """A proof's result.

  Attributes:
    outcome: result of the comparison.
    told_apart: number of tokens that tell new and old weights apart.
    mean_gap: mean of |served - new| [nats].
    said: the reason in words.
  """

  outcome: Outcome
  told_apart: int
  mean_gap: float
  said: str


def judge(
  new: Sequence[np.ndarray],
  old: Sequence[np.ndarray] | None,
  served: Sequence[np.ndarray],
  bounds: Bounds,
) -> Verdict:
  """Says which weights a server has.

  Args:
    new: float[A] for each probe: scores of the trainer under the weights that were
      handed over [nats].
    old: the same under the weights before them; None where these are unknown.
    served: the same of the server.
    bounds: bounds on the noise.
  """
  all_new, all_served = np.concatenate(new), np.concatenate(served)
  gaps = np.abs(all_served - all_new)
  mean = float(gaps.mean()) if len(gaps) else 0.0
  moved = np.zeros(len(gaps), bool)
  if old is not None:
    all_old = np.concatenate(old)
    moved = np.abs(all_new - all_old) > FACTOR * bounds.p99
    if moved.any():
      to_old = float(np.abs(all_served - all_old)[moved].mean())
      to_new = float(gaps[moved].mean())
      if not to_new < to_old:
        return Verdict(
          Outcome.REFUTED,
          int(moved.sum()),
          mean,
          'it still samples from the weights before: over the'
          f' {int(moved.sum())} tokens that tell them apart it is {to_old:.3g} nats'
          f' from those and {to_new:.3g} from the new ones',
        )
  if not mean <= bounds.mean:
    return Verdict(
      Outcome.REFUTED,
      int(moved.sum()),
      mean,
      f"its log probabilities differ from the trainer's by {mean:.3g} nats on"
      f' average, and {bounds.mean:.3g} are allowed (train.mean_logprob_gap)',
    )
  if moved.any():
    said = f'{int(moved.sum())} tokens tell it from the weights before'
    return Verdict(Outcome.PROVED, int(moved.sum()), mean, said)
  return Verdict(
    Outcome.INDISTINGUISHABLE,
    0,
    mean,
    'no token tells the new weights from those before',
  )
