"""Groups of earlier steps that are trained on again, with their frozen advantages.

A group whose rewards are all equal teaches nothing. Instead of sampling further
queries, a step may put a whole group of an earlier step in its place. Whole groups,
because single good rollouts would tilt the baseline that their advantages were taken
against. The corrections of `core.corrections` make their policy term honest.

What is in the queue is a function of the records of committed steps: each record says
what the queue held after its step, and the groups themselves are in the records of the
steps that sampled them.
"""

import collections
import dataclasses
import hashlib
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from agentflow_jax import records
from agentflow_jax.config import schema
from agentflow_jax.core import batch
from agentflow_jax.rollouts import rollout_files, totals

# Field of a step's record that says what the queue held after the step.
FIELD = 'queue'

# Function from turn rows to the log probabilities [nats] of their responses, float[A]
# each, under the parameters before the step.
Score = Callable[[Sequence[batch.TurnRow]], Sequence[np.ndarray]]

_REASONS = ('age', 'gap', 'uses', 'size')


@dataclasses.dataclass(frozen=True)
class Queued:
  """A group in the queue.

  Attributes:
    step: number of the step that sampled it, from 0.
    place: place of the group in that step's record.
    uses: number of steps that trained on it since.
    group: the rollouts.
    advantages: advantage of each rollout, as it was in that step.
  """

  step: int
  place: int
  uses: int
  group: records.Group
  advantages: tuple[float, ...]


class SampleQueue:
  """The queue of a run.

  Args:
    config: sizes and bounds.
    by_term: whether a group has variance where any one term has.
  """

  def __init__(self, config: schema.QueueConfig, by_term: bool = False):
    self._config = config
    self._by_term = by_term
    self._entries: list[Queued] = []
    self._evicted: collections.Counter[str] = collections.Counter()

  def begin(self, step: int) -> None:
    """Evicts the groups that are too old for a step."""
    self._evicted.clear()
    self._keep(lambda one: step - one.step <= self._config.max_age, 'age')

  def take(
    self,
    count: int,
    rows_of: Callable[[Queued], Sequence[batch.TurnRow]],
    score: Score,
    at_once: int,
  ) -> list[tuple[Queued, float]]:
    """Returns groups to train on, and evicts those that are too far off policy.

    The newest groups come first, and those of one step in their places.

    Args:
      count: largest number of groups.
      rows_of: function from a group to its turn rows.
      score: function that scores rows.
      at_once: number of groups that are scored in one call.

    Returns:
      Pairs of a group and its largest |log pi - log mu| over its targets [nats].
    """
    found: list[tuple[Queued, float]] = []
    waiting = sorted(self._entries, key=lambda one: (-one.step, one.place))
    while waiting and len(found) < count:
      size = min(at_once, count - len(found))
      tried, waiting = waiting[:size], waiting[size:]
      rows = [rows_of(one) for one in tried]
      everything = [row for of_one in rows for row in of_one]
      scores = iter(score(everything) if everything else ())
      for one, of_one in zip(tried, rows, strict=True):
        gaps = [
          np.max(np.abs(next(scores) - row.behavior_logprobs), initial=0.0)
          for row in of_one
        ]
        gap = float(np.max(gaps, initial=0.0))  # A NaN stays one.
        if gap <= self._config.max_gap:
          found.append((one, gap))
        else:
          self._keep(lambda other, one=one: other is not one, 'gap')
    return found

  def use(self, taken: Sequence[Queued]) -> None:
    """Notes that a step trains on groups, and evicts those that are used up."""
    used = {(one.step, one.place) for one in taken}
    self._entries = [
      dataclasses.replace(one, uses=one.uses + 1)
      if (one.step, one.place) in used
      else one
      for one in self._entries
    ]
    self._keep(lambda one: one.uses < self._config.uses, 'uses')

  def admit(
    self,
    step: int,
    groups: Sequence[records.Group],
    extras: Mapping[tuple[int, int], Mapping[str, Any]],
  ) -> None:
    """Admits what a step sampled, and evicts the oldest groups beyond the size.

    Args:
      step: number of the step, from 0.
      groups: groups that were sampled and trained on, in their places.
      extras: (place of the group, rollout) -> fields of its record.
    """
    for place, group in enumerate(groups):
      if self._is_admitted(group):
        advantages = tuple(
          extras[place, i]['advantage'] for i in range(len(group.trajectories))
        )
        self._entries.append(Queued(step, place, 0, group, advantages))
    kept = sorted(self._entries, key=lambda one: (-one.step, one.place))
    kept = {(one.step, one.place) for one in kept[: self._config.size]}
    self._keep(lambda one: (one.step, one.place) in kept, 'size')

  def content(self) -> list[list[int]]:
    """Returns [step, place, uses] of each group, for the step's record."""
    return [[one.step, one.place, one.uses] for one in self._entries]

  def restore(
    self, step: int, recorded: Callable[[int], rollout_files.Recorded]
  ) -> None:
    """Puts the queue back to what it held before a step.

    Args:
      step: number of the step, from 0; the steps before it are committed.
      recorded: function from a committed step to its record.

    Raises:
      RecordError: a record was altered: its log probabilities, its tokens, or the
        version of the parameters that sampled it; names the file.
    """
    self._entries = []
    if not step:
      return
    last = recorded(step - 1)
    if FIELD not in last.header:
      raise rollout_files.RecordError(
        f'{last.name}: it does not say what the queue held (the field {FIELD!r} of'
        ' its first line); restore the file, or give another --workdir'
      )
    read = {step - 1: last}
    for sampled, place, uses in last.header[FIELD]:
      if sampled not in read:
        read[sampled] = recorded(sampled)
      self._entries.append(_entry(read[sampled], sampled, place, uses))

  def metrics(
    self, taken: Sequence[tuple[Queued, float]], step: int, size: int
  ) -> dict[str, float]:
    """Returns metrics of a step: what was reused, and why groups left the queue.

    Args:
      taken: groups that the step trains on, with their gaps.
      step: number of the step, from 0.
      size: number of rollouts of a group.
    """
    ages = [step - one.step for one, _ in taken]
    found: dict[str, float] = {
      'queue/size': len(self._entries),
      'queue/reused': len(taken),
      'queue/saved': len(taken) * size,
      'queue/age_mean': statistics.fmean(ages) if ages else 0.0,
      'queue/age_max': max(ages, default=0),
      'queue/gap_max': max((gap for _, gap in taken), default=0.0),
    }
    return found | {
      f'queue/evicted/{reason}': self._evicted[reason] for reason in _REASONS
    }

  def _keep(self, is_kept: Callable[[Queued], bool], reason: str) -> None:
    kept = [one for one in self._entries if is_kept(one)]
    self._evicted[reason] += len(self._entries) - len(kept)
    self._entries = kept

  def _is_admitted(self, group: records.Group) -> bool:
    if not totals.has_variance(group, self._by_term):
      return False
    rewards = totals.rewards(group)
    mean, config = statistics.fmean(rewards), self._config
    return (
      statistics.stdev(rewards) >= config.min_std
      and (config.reward_low is None or mean >= config.reward_low)
      and (config.reward_high is None or mean <= config.reward_high)
    )


def checksum(trajectory: records.Trajectory, advantage: float) -> str:
  """Returns the SHA-256 of all that a rollout is trained on by, for its record.

  The version of the parameters that sampled it is left out: it has to be the step.

  Args:
    trajectory: the rollout.
    advantage: its advantage.
  """
  turns = [
    (
      turn.completion.prompt_ids,
      turn.completion.response_ids,
      turn.completion.logprobs,
      turn.completion.kept and turn.completion.kept.numbers(),
      turn.sampling.temperature,
    )
    for turn in trajectory.turns
  ]
  text = json.dumps([trajectory.reward, advantage, turns])
  return hashlib.sha256(text.encode()).hexdigest()


def checksums(
  groups: Sequence[records.Group], extras: Mapping[tuple[int, int], Mapping[str, Any]]
) -> dict[tuple[int, int], dict[str, Any]]:
  """Returns the fields of the rollouts' records, each with its checksum.

  Args:
    groups: groups that a step sampled, in their places.
    extras: (place of the group, rollout) -> fields of its record.
  """
  return {
    (place, i): {
      **extra,
      'checksum': checksum(groups[place].trajectories[i], extra['advantage']),
    }
    for (place, i), extra in extras.items()
  }


def _entry(
  recorded: rollout_files.Recorded, step: int, place: int, uses: int
) -> Queued:
  """Returns a group of a record.

  Raises:
    RecordError: it is not there, or is not what was written.
  """
  problem = 'it was altered after it was written'
  if place >= len(recorded.groups):
    problem = f'there are only {len(recorded.groups)} groups'
  else:
    group = recorded.groups[place]
    extras = [
      recorded.extras.get((place, i), {}) for i in range(len(group.trajectories))
    ]
    versions = {
      turn.completion.params_version for t in group.trajectories for turn in t.turns
    }
    is_whole = versions <= {step} and all(
      'advantage' in extra and extra.get('checksum') == checksum(t, extra['advantage'])
      for t, extra in zip(group.trajectories, extras, strict=True)
    )
    if is_whole:
      advantages = tuple(extra['advantage'] for extra in extras)
      return Queued(step, place, uses, group, advantages)
  raise rollout_files.RecordError(
    f'{recorded.name}: group {place} of step {step + 1} waits to be trained on again,'
    f' and cannot be: {problem}; restore the file, or give another --workdir'
  )
