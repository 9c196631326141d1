"""Rollouts as the files of evaluations hold them: as text for people, with labels.

See evaluation_files for the rest of such a file.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from agentflow_jax import records
from agentflow_jax.files import reading
from agentflow_jax.rollouts import mistakes

_LONGEST_RESULT = 2000  # Longest result of a tool in a file [characters].
_SECRET_TAGS = ('solution', 'tempting')


@dataclasses.dataclass(frozen=True)
class Call:
  """A call of a response; tool is None where none could be made."""

  tool: str | None = None
  arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  result: str = ''
  failed: bool = False

  @classmethod
  def of(
    cls, call: records.ToolCall | None, result: records.ToolResult | None
  ) -> 'Call':
    """Returns a call of a rollout as it is written."""
    return cls(
      call.tool if call else None,
      dict(call.arguments) if call else {},
      result.text[:_LONGEST_RESULT] if result else '',
      bool(result and result.error),
    )

  @classmethod
  def read(cls, raw: Mapping[str, Any]) -> 'Call':
    """Reads a call from its JSON."""
    tool = raw.get('tool')
    return cls(
      None if tool is None else reading.text(tool),
      dict(raw.get('arguments') or {}),
      reading.text(raw.get('result')),
      bool(raw.get('failed')),
    )

  def to_json(self) -> dict[str, Any]:
    """Returns what a file holds of it."""
    return {
      'tool': self.tool,
      'arguments': dict(self.arguments),
      'result': self.result,
      'failed': self.failed,
    }


@dataclasses.dataclass(frozen=True)
class Turn:
  """A response of the planner, with its calls and their results.

  Attributes:
    planner: text of the response.
    parse_error: reason why it is no plan; '' for a plan.
    calls: its calls, the first one always there.
    verdict: last words of the verifier.
  """

  planner: str = ''
  parse_error: str = ''
  calls: tuple[Call, ...] = (Call(),)
  verdict: str = ''

  @classmethod
  def of(cls, turn: records.Turn) -> 'Turn':
    """Returns a turn of a rollout as it is written."""
    verdicts = [m.output for m in turn.modules if m.module == 'verifier']
    attempts = ((turn.call, turn.result), *turn.more)
    return cls(
      turn.completion.text,
      turn.parse_error,
      tuple(Call.of(*one) for one in attempts),
      verdicts[-1] if verdicts else '',
    )

  @classmethod
  def read(cls, raw: Mapping[str, Any]) -> 'Turn':
    """Reads a turn from its JSON."""
    return cls(
      reading.text(raw.get('planner')),
      reading.text(raw.get('parse_error')),
      tuple(map(Call.read, (raw, *(raw.get('more') or ())))),
      reading.text(raw.get('verdict')),
    )

  def to_json(self) -> dict[str, Any]:
    """Returns what a file holds of it."""
    first, *more = self.calls
    return {
      'planner': self.planner,
      'parse_error': self.parse_error,
      **first.to_json(),
      'verdict': self.verdict,
    } | ({'more': [one.to_json() for one in more]} if more else {})


@dataclasses.dataclass(frozen=True)
class OfWorld:
  """What a rollout did to its world, see records.Verdict."""

  checks: tuple[Mapping[str, Any], ...] = ()
  changed: tuple[str, ...] = ()
  violations: tuple[str, ...] = ()
  digest: str = ''


@dataclasses.dataclass(frozen=True)
class OfJudge:
  """What a judge said of a rollout, see agents.judge.Verdict."""

  correct: bool | None = None
  analysis: str = ''


@dataclasses.dataclass(frozen=True)
class Item:
  """A rollout of an evaluated task.

  Attributes:
    id: id of the task.
    trial: number of the rollout, from 0.
    query, gold: query of the task, and its right answers.
    answer: answer of the rollout.
    reward: reward of the rollout; None where it was not scored.
    status, detail: value of its records.Status, and what is known beyond.
    tags: tags of the task, without solutions.
    turns: turns in order.
    first_cause, mistakes: labels of what went wrong, see rollouts.mistakes.
    world: changes of its world, and checks of them; None without a world.
    judged: verdict of a judge; None where none was asked about the evaluation.
  """

  id: str
  trial: int = 0
  query: str = ''
  gold: str = ''
  answer: str = ''
  reward: float | None = None
  status: str = ''
  detail: str = ''
  tags: Mapping[str, str] = dataclasses.field(default_factory=dict)
  turns: tuple[Turn, ...] = ()
  first_cause: str | None = None
  mistakes: tuple[str, ...] = ()
  world: OfWorld | None = None
  judged: OfJudge | None = None

  @classmethod
  def of(
    cls,
    task: records.Task,
    trajectory: records.Trajectory,
    judged: OfJudge | None = None,
  ) -> 'Item':
    """Returns a rollout as it is written."""
    labels, verdict = mistakes.said(task, trajectory), trajectory.verdict
    return cls(
      id=task.id,
      trial=trajectory.rollout,
      query=task.query,
      gold=' | '.join(task.answers),
      answer=trajectory.answer,
      reward=trajectory.reward,
      status=trajectory.status.value,
      detail=trajectory.detail,
      tags={k: v for k, v in task.tags.items() if k not in _SECRET_TAGS},
      turns=tuple(map(Turn.of, trajectory.turns)),
      first_cause=labels['first_cause'],
      mistakes=tuple(labels['mistakes']),
      world=verdict
      and OfWorld(
        tuple(dataclasses.asdict(result) for result in verdict.results),
        verdict.changed,
        verdict.violations,
        trajectory.digest,
      ),
      judged=judged,
    )

  @classmethod
  def read(cls, raw: Mapping[str, Any]) -> 'Item':
    """Reads a rollout from its JSON."""
    reward, cause = reading.number(raw.get('reward')), raw.get('first_cause')
    world = judged = None
    if 'digest' in raw or 'changed' in raw:
      world = OfWorld(
        tuple(raw.get('checks') or ()),
        tuple(map(reading.text, raw.get('changed') or ())),
        tuple(map(reading.text, raw.get('violations') or ())),
        reading.text(raw.get('digest')),
      )
    if 'judge' in raw:
      judged = OfJudge(raw['judge'], reading.text(raw.get('judge_analysis')))
    return cls(
      id=reading.text(raw.get('id')),
      trial=reading.whole(raw.get('trial')),
      query=reading.text(raw.get('query')),
      gold=reading.text(raw.get('gold')),
      answer=reading.text(raw.get('answer')),
      reward=reward if math.isfinite(reward) else None,
      status=reading.text(raw.get('status')),
      detail=reading.text(raw.get('detail')),
      tags={k: reading.text(v) for k, v in (raw.get('tags') or {}).items()},
      turns=tuple(map(Turn.read, raw.get('turns') or ())),
      first_cause=None if cause is None else reading.text(cause),
      mistakes=tuple(map(reading.text, raw.get('mistakes') or ())),
      world=world,
      judged=judged,
    )

  def to_json(self) -> dict[str, Any]:
    """Returns what a file holds of it."""
    found = {
      'id': self.id,
      'trial': self.trial,
      'query': self.query,
      'gold': self.gold,
      'answer': self.answer,
      'reward': self.reward,
      'status': self.status,
      'detail': self.detail,
      'tags': dict(self.tags),
      'turns': [turn.to_json() for turn in self.turns],
      'first_cause': self.first_cause,
      'mistakes': list(self.mistakes),
    }
    if self.world is not None:
      found |= {
        'checks': list(self.world.checks),
        'changed': list(self.world.changed),
        'violations': list(self.world.violations),
        'digest': self.world.digest,
      }
    if self.judged is not None:
      found |= {'judge': self.judged.correct, 'judge_analysis': self.judged.analysis}
    return found
