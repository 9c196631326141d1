"""Rollouts of a run as text for people, and as rows for other programs."""

import dataclasses
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from agentflow_jax import records
from agentflow_jax.rollouts import mistakes, rollout_files, waits

_FILE = re.compile(r'step_(\d+)\.p\d+\.jsonl\.zst')
# Longest text of a tool or a model that is shown to people [characters].
_SHOWN = 600


@dataclasses.dataclass(frozen=True)
class Wanted:
  """Which rollouts to show; every field that is set has to fit.

  Attributes:
    step: training step, from 1; None for the newest, 0 for all.
    status: status; None for any.
    reward: reward, where nan stands for rollouts without one; None for any.
    task: id of the task; '' for any.
    first_cause: label of the mistake that the rollout failed of; '' for any.
    slowest: number of rollouts of each step, the slowest of those that fit, slowest
      first; 0 for all of them, in their order.
  """

  step: int | None = None
  status: records.Status | None = None
  reward: float | None = None
  task: str = ''
  first_cause: str = ''
  slowest: int = 0

  def fits(self, trajectory: records.Trajectory) -> bool:
    """Returns whether the status, reward and task of a rollout fit."""
    has = math.nan if trajectory.reward is None else trajectory.reward
    return (
      self.status in (None, trajectory.status)
      and self.task in ('', trajectory.task_id)
      # As it is shown, with six digits.
      and (self.reward is None or f'{self.reward:g}' == f'{has:g}')
    )


def reward_of(text: str | None) -> float | None:
  """Returns the reward that a flag names, as `Wanted` takes it.

  Raises:
    RecordError: the text is no number and not 'none'.
  """
  if text is None:
    return None
  try:
    return math.nan if text.lower() == 'none' else float(text)
  except ValueError as e:
    raise rollout_files.RecordError(f"--reward={text}: give a number, or 'none'") from e


def find(
  workdir: epath.Path, wanted: Wanted
) -> Iterator[tuple[int, records.Task, records.Trajectory]]:
  """Yields (step, task, rollout) of a run, step by step.

  Raises:
    RecordError: the run has no such rollouts on disk, or a file cannot be read.
  """
  directory = workdir / 'rollouts'
  files = {}
  if directory.is_dir():
    for path in sorted(directory.iterdir(), key=lambda p: p.name):
      if name := _FILE.fullmatch(path.name):
        files.setdefault(int(name[1]), []).append(path)
  if not files:
    raise rollout_files.RecordError(
      f'--workdir: there are no rollouts below {directory}: no training step is done'
      ' there, or train.rollout_records=none'
    )
  chosen = sorted(files)
  if wanted.step != 0:
    step = chosen[-1] if wanted.step is None else wanted.step
    if step not in files:
      raise rollout_files.RecordError(
        f'--step={step}: {directory} has the steps {chosen[0]} to {chosen[-1]}'
      )
    chosen = [step]
  for step in chosen:
    found = _of_step(files[step], wanted)
    if wanted.slowest:
      found = sorted(found, key=lambda one: -waits.total(one[1]))[: wanted.slowest]
    for task, trajectory in found:
      yield step, task, trajectory


def _of_step(
  files: Sequence[epath.Path], wanted: Wanted
) -> Iterator[tuple[records.Task, records.Trajectory]]:
  """Yields the rollouts of a step that fit."""
  for path in files:
    for group in rollout_files.read(path):
      for trajectory in group.trajectories:
        if wanted.fits(trajectory) and wanted.first_cause in (
          '',
          mistakes.said(group.task, trajectory)['first_cause'],
        ):
          yield group.task, trajectory


def rows(
  step: int, task: records.Task, trajectory: records.Trajectory
) -> Iterator[dict[str, Any]]:
  """Yields a row for each turn of a rollout; without a turn, one whose turn is None.

  Fields that every row has: 'step' (from 1), 'task' (id), 'rollout' (index in its
  group), 'turn' (from 1), 'query', 'answers' (texts that are right), 'status',
  'reward' (number or None), 'reward_parts' (weight * value of the score's terms),
  'checks' (list of the results of a world's checks: 'name', 'kind', 'passed',
  'detail', 'vacuous'), 'changed' (what changed in the world, in words), 'first_cause'
  (label of the mistake that the rollout failed of, or None), 'mistakes' (labels of all
  its mistakes; see rollouts.mistakes), 'detail', 'answer', 'plan' (text of the
  planner), 'parse_error', 'tool', 'arguments', 'result', 'tool_error' (kind of the
  error or None), 'calls' (list of the calls that a program made, and of further calls
  of the same response: 'tool', 'arguments', 'result', 'tool_error'), 'verdict' (text of
  the verifier), 'seconds' (time of the rollout by what it waited for, and 'total'; see
  waits.parts).
  """
  terms = trajectory.score.terms if trajectory.score else {}
  verdict = trajectory.verdict or records.Verdict(())
  of_rollout = {
    'step': step,
    'task': task.id,
    'rollout': trajectory.rollout,
    'turn': None,
    'query': task.query,
    'answers': list(task.answers),
    'status': trajectory.status.value,
    'reward': trajectory.reward,
    'reward_parts': {k: t.weight * t.value for k, t in terms.items()},
    'checks': [dataclasses.asdict(result) for result in verdict.results],
    'changed': list(verdict.changed),
    **mistakes.said(task, trajectory),
    'detail': trajectory.detail,
    'answer': trajectory.answer,
    'seconds': waits.parts(trajectory) | {'total': waits.total(trajectory)},
  }
  nothing = dict.fromkeys(
    ('plan', 'parse_error', 'tool', 'arguments', 'result', 'tool_error', 'verdict')
  ) | {'calls': []}
  if not trajectory.turns:
    yield of_rollout | nothing
  for number, turn in enumerate(trajectory.turns, start=1):
    call, result = turn.call, turn.result
    said = [call.output for call in turn.modules if call.module == 'verifier']
    yield (
      of_rollout
      | nothing
      | {
        'turn': number,
        'plan': turn.completion.text,
        'parse_error': turn.parse_error,
        **_call(call, result),
        'calls': [
          _call(*one)
          for one in (
            *(result.inner if result else ()),
            *(p for c, r in turn.more for p in ((c, r), *(r.inner if r else ()))),
          )
        ],
        'verdict': said[-1] if said else None,
      }
    )


def _call(
  call: records.ToolCall | None, result: records.ToolResult | None
) -> dict[str, Any]:
  """Returns a call and its result as fields of a row."""
  return {
    'tool': call and call.tool,
    'arguments': call and dict(call.arguments),
    'result': result and result.text,
    'tool_error': result.error.value if result and result.error else None,
  }


def in_words(step: int, task: records.Task, trajectory: records.Trajectory) -> str:
  """Returns a rollout as lines for people."""
  reward = 'none' if trajectory.reward is None else f'{trajectory.reward:g}'
  lines = [
    f'== step {step}, task {_cut(task.id)}, rollout {trajectory.rollout}:'
    f' {trajectory.status.value}, reward {reward}',
    f'Query: {_cut(task.query)}',
    f'Right: {_cut(" | ".join(map(str, task.answers)))}',
  ]
  if trajectory.analysis:
    lines.append(f'Analysis: {_cut(trajectory.analysis)}')
  for row in rows(step, task, trajectory):
    if row['turn'] is not None:
      lines += _turn(row)
  lines.append(f'Answer: {_cut(trajectory.answer) or "none"}')
  if trajectory.verdict is not None:
    lines += [f'Changed: {_cut(change)}' for change in trajectory.verdict.changed]
    lines += [
      f'Check {_cut(result.name)}: {"passed" if result.passed else "failed"}'
      f' ({_cut(result.detail)})'
      for result in trajectory.verdict.results
    ]
  lines += [
    f'Mistake, turn {m.turn + 1}: {m.label.value}'
    f'{" (made good)" if m.made_good else ""} ({_cut(m.detail)})'
    for m in mistakes.of_trajectory(task, trajectory)
    if m.turn < len(trajectory.turns)
  ]
  if cause := mistakes.said(task, trajectory)['first_cause']:
    lines.append(f'First cause: {cause}')
  if spent := waits.in_words(trajectory):
    lines.append(f'Time: {_cut(spent)}')
  if trajectory.detail:
    lines.append(f'Detail: {_cut(trajectory.detail)}')
  return '\n'.join(lines)


def _turn(row: Mapping[str, Any]) -> Iterator[str]:
  yield f'-- turn {row["turn"]}'
  yield from (f'   {_cut(line)}' for line in row['plan'].splitlines())
  if row['parse_error']:
    yield f'   unreadable: {_cut(row["parse_error"])}'
  if row['tool'] is not None:
    arguments = json.dumps(row['arguments'], ensure_ascii=False)
    yield f'   {_cut(row["tool"])} {_cut(arguments)}'
  for call in row['calls']:
    arguments = json.dumps(call['arguments'], ensure_ascii=False)
    mark = '!' if call['tool_error'] else '->'
    tool, said = call['tool'] or 'no call', call['result'] or ''
    yield f'     {_cut(tool)} {_cut(arguments)} {mark} {_cut(said)}'
  if row['result'] is not None:
    failed = f' ({row["tool_error"]})' if row['tool_error'] else ''
    yield f'   result{failed}: {_cut(row["result"])}'
  if row['verdict']:
    yield f'   verdict: {_cut(row["verdict"])}'


def _cut(text: str) -> str:
  """Returns a text in one line, cut and without characters that steer terminals."""
  line = ' '.join(text.split())
  line = ''.join(c if c.isprintable() else '\ufffd' for c in line)
  return line if len(line) <= _SHOWN else f'{line[:_SHOWN]} [...]'
