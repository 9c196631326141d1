"""Groups of rollouts to turn rows: advantages and weights."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from agentflow_jax import records
from agentflow_jax.core import batch, flow_grpo


@dataclasses.dataclass(frozen=True)
class Rows:
  """The turn rows of one optimizer update and where they come from.

  Attributes:
    rows: one a turn of every rollout that the statistics count.
    extras: (place of the group, rollout) -> its advantage, and the weight of a
      target of each of its turns, for the rollout's record.
  """

  rows: tuple[batch.TurnRow, ...]
  extras: Mapping[tuple[int, int], Mapping[str, Any]]


def flow_grpo_rows(
  groups: Sequence[records.Group],
  config: flow_grpo.FlowGrpoConfig,
  frozen: Mapping[int, Sequence[float]] | None = None,
) -> Rows:
  """Makes the rows of one optimizer batch of whole groups.

  A rollout without reward gives no row: its weight is 0 in every term. Turns
  are in the order (group, rollout, turn).

  Args:
    groups: the rollouts; every response carries ids and logprobs, and where it
      was truncated the sets that it was drawn from.
    config: weighting and advantage.
    frozen: place of each group that an earlier step sampled -> advantages of its
      rollouts, as they were in that step. Its rows are not fresh.

  Raises:
    ValueError: a turn was sampled greedily, or lacks ids, logprobs or sets.
  """
  lengths = [
    [[len(t.completion.response_ids) for t in r.turns] for r in g.trajectories]
    for g in groups
  ]
  scored = [[r.reward is not None for r in g.trajectories] for g in groups]
  weights = flow_grpo.target_weights(
    lengths, scored, config.weighting, config.dr_grpo_length
  )
  frozen = frozen or {}
  fresh = iter(
    _advantages([g for place, g in enumerate(groups) if place not in frozen], config)
  )
  rows, found, number = [], {}, 0
  for place, group in enumerate(groups):
    is_fresh = place not in frozen
    advantages = next(fresh) if is_fresh else frozen[place]
    for i, trajectory in enumerate(group.trajectories):
      found[place, i] = {
        'advantage': float(advantages[i]),
        'weights': [float(w) for w in weights[place][i]],
      }
      if trajectory.reward is None:
        continue
      number += 1
      for t, turn in enumerate(trajectory.turns):
        weight = float(weights[place][i][t])
        rows.append(_row(turn, weight, float(advantages[i]), number, is_fresh))
  return Rows(tuple(rows), found)


def _advantages(
  groups: Sequence[records.Group], config: flow_grpo.FlowGrpoConfig
) -> list[np.ndarray]:
  """Returns the advantages of the rollouts of each group."""
  use_std = config.advantage == 'std'
  if config.terms == 'normalised':
    scores = [
      [
        r.score and r.score.terms if r.reward is not None else None
        for r in g.trajectories
      ]
      for g in groups
    ]
    terms = next((s for group in scores for s in group if s), {})
    values = [
      [None if s is None else [s[name].value for name in terms] for s in group]
      for group in scores
    ]
    weights = [term.weight for term in terms.values()]
    return flow_grpo.term_advantages(values, weights, use_std)
  return [
    flow_grpo.advantages(
      [r.reward for r in group.trajectories],
      use_std,
      [len(r.turns) for r in group.trajectories]
      if config.advantage_over == 'rows'
      else None,
    )
    for group in groups
  ]


def _row(
  turn: records.Turn, weight: float, advantage: float, rollout: int, fresh: bool
) -> batch.TurnRow:
  completion, sampling = turn.completion, turn.sampling
  if sampling.temperature == 0:
    raise ValueError(f'a turn sampled with {sampling} cannot be trained on')
  is_known = completion.kept is not None or not completion.response_ids
  if sampling.truncates and not is_known:
    raise ValueError(
      f'a turn sampled with {sampling} cannot be trained on: what it was drawn'
      ' from was not recorded (engine.max_kept)'
    )
  if len(completion.logprobs) != len(completion.response_ids):
    raise ValueError('a turn without recorded logprobs cannot be trained on')
  return batch.TurnRow(
    prompt_ids=np.asarray(completion.prompt_ids, np.int32),
    response_ids=np.asarray(completion.response_ids, np.int32),
    target_weight=weight,
    behavior_logprobs=np.asarray(completion.logprobs, np.float32),
    advantage=advantage,
    temperature=sampling.temperature,
    kept=None if completion.kept is None else padded(completion.kept),
    rollout=rollout,
    fresh=fresh,
  )


def padded(kept: records.KeptSets) -> np.ndarray:
  """Returns sets as int32[A, the largest one's size], padded with -1."""
  counts = np.frombuffer(kept.counts, '<i4')
  padded = np.full((len(counts), counts.max(initial=0)), -1, np.int32)
  place = np.arange(padded.shape[1])
  padded[place < counts[:, None]] = np.frombuffer(kept.ids, '<i4')
  return padded


def sft_rows(
  turns: Sequence[records.Turn], prompt_weight: float
) -> tuple[batch.TurnRow, ...]:
  """Makes rows whose loss is the mean over response tokens of the batch.

  Args:
    turns: turns to imitate.
    prompt_weight: weight of a prompt token, relative to a response token.
  """
  total = sum(len(t.completion.response_ids) for t in turns)
  return tuple(
    batch.TurnRow(
      prompt_ids=np.asarray(t.completion.prompt_ids, np.int32),
      response_ids=np.asarray(t.completion.response_ids, np.int32),
      target_weight=1.0 / total,
      prompt_weight=prompt_weight / total,
      temperature=1.0,
    )
    for t in turns
  )
