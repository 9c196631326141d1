"""Names what went wrong in a rollout, from its record alone.

Every rollout with a reward gets labels, and one that failed gets exactly one first
cause, so that successes, first causes and unscored rollouts add up to all rollouts.
The labels follow the levels of the survey "Agentic Tool Use in LLMs" (arXiv
2604.00835): single calls, completion, and acting in a world that others write into.
"""

import collections
import dataclasses
import enum
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from agentflow_jax import records
from agentflow_jax.agents import plan as plan_lib

_Kind = records.ToolErrorKind
_Status = records.Status
# A number, a key or a date: what can be copied, and not be a word of one's own.
_COPIED = re.compile(r'(?=[^\s]*\d)[^\s]{1,64}')
_WORD = re.compile(r'\w+')
_LATE = frozenset(
  {
    _Status.OUT_OF_TURNS,
    _Status.DEADLINE,
    _Status.TRUNCATED_RESPONSE,
    _Status.PROMPT_TOO_LONG,
  }
)


class Label(enum.Enum):
  """A kind of mistake; the order decides between mistakes of one turn."""

  # Level 1, single calls and the decision to make none.
  FORMAT = 'format'  # A response that is no plan, or a call that cannot be read.
  SELECTION = 'selection'  # A tool that there is not, or a needed one not called.
  GROUNDING = 'grounding'  # An argument that stands in no text which was shown.
  ARGUMENTS = 'arguments'  # A call that its tool refused.
  # Level 3: hostile content that was obeyed.
  INJECTED = 'injected'
  # Level 2, completion.
  REPETITION = 'repetition'  # The same call again, with the same result.
  LATE = 'late'  # Cut off by a limit on turns, tokens or time.
  # Level 3, a world with state and rules.
  POLICY_VIOLATION = 'policy violation'  # A forbidden task was carried out.
  MISSED_REFUSAL = 'missed refusal'  # A forbidden task was not declined as it should.
  FALSE_REFUSAL = 'false refusal'  # A task that is allowed was declined.
  EXTRA_CHANGE = 'extra change'  # A change that no check allows.
  WRONG_CHANGE = 'wrong change'  # Something was changed, and not what was asked.
  EARLY_END = 'early end'  # The end came before what was asked was done or found.
  WRONG_ANSWER = 'wrong answer'  # All that was needed was there.


LEVELS: Mapping[str, tuple[Label, ...]] = {
  'calls': (Label.FORMAT, Label.SELECTION, Label.GROUNDING, Label.ARGUMENTS),
  'completion': (Label.REPETITION, Label.LATE, Label.EARLY_END, Label.WRONG_ANSWER),
  'state': (
    Label.POLICY_VIOLATION,
    Label.MISSED_REFUSAL,
    Label.FALSE_REFUSAL,
    Label.EXTRA_CHANGE,
    Label.WRONG_CHANGE,
    Label.INJECTED,
  ),
}


@dataclasses.dataclass(frozen=True)
class Mistake:
  """One thing that went wrong.

  Attributes:
    label: kind of the mistake.
    turn: number of the turn, from 0; the number of turns for what only the end shows.
    detail: text for people.
    made_good: whether a later turn did right what this one did wrong, so that the
      rollout cannot have failed because of it.
  """

  label: Label
  turn: int
  detail: str = ''
  made_good: bool = False


def of_trajectory(
  task: records.Task, trajectory: records.Trajectory
) -> tuple[Mistake, ...]:
  """Returns the mistakes of a rollout, in the order of its turns.

  A rollout without a reward has none: it did not end by what the agent did. The end
  of a rollout that succeeded shows none; its turns may.

  Args:
    task: task of the rollout.
    trajectory: rollout.
  """
  if trajectory.reward is None:
    return ()
  found = [
    *_of_plans(trajectory),
    *_of_calls(task, trajectory),
    *_of_repetitions(trajectory),
  ]
  if not is_success(trajectory):
    found += _of_end(task, trajectory)
  order = {label: i for i, label in enumerate(Label)}
  return tuple(sorted(found, key=lambda m: (m.turn, order[m.label])))


def first_cause(
  trajectory: records.Trajectory, mistakes: Sequence[Mistake]
) -> Label | None:
  """Returns the label of the first mistake that was not made good.

  Args:
    trajectory: rollout.
    mistakes: its mistakes, as `of_trajectory` returns them.

  Returns:
    The label; None where the rollout succeeded or has no reward.
  """
  if trajectory.reward is None or is_success(trajectory):
    return None
  return next(m.label for m in mistakes if not m.made_good)


def is_success(trajectory: records.Trajectory) -> bool:
  """Says whether a rollout with a reward did what was asked.

  In a world that is its verdict. Elsewhere it is the term 'success' of the reward,
  or a reward of 1 where the reward is a plain number.
  """
  if trajectory.reward is None:
    return False
  if trajectory.score and 'success' in trajectory.score.terms:
    return trajectory.score.terms['success'].value >= 1.0
  if trajectory.verdict is not None:
    return trajectory.verdict.success and trajectory.reward > 0
  return trajectory.reward >= 1.0


def said(task: records.Task, trajectory: records.Trajectory) -> dict[str, Any]:
  """Returns the labels of a rollout as fields of a row.

  Returns:
    'first_cause' (label, or None) and 'mistakes' (all labels, each once, in order).
  """
  found = of_trajectory(task, trajectory)
  cause = first_cause(trajectory, found)
  return {
    'first_cause': cause.value if cause else None,
    'mistakes': list(dict.fromkeys(m.label.value for m in found)),
  }


def of_groups(groups: Sequence[records.Group]) -> dict[str, Any]:
  """Returns how many rollouts have which mistakes; {} without rollouts.

  Keys:

    rollouts        rollouts that were asked for
    unscored        rollouts without a reward
    success         rollouts that did what was asked
    first_causes    failed rollouts by the label of their first cause
    labels          scored rollouts by each label that they have, made good or not
    levels          first causes by the level of the label
    calls_valid     share of calls that their tool accepted; None without calls
    no_call_right   share of rollouts that declined a task exactly if it is
                    forbidden, over tasks where that is known; None without such

  rollouts = unscored + success + the sum of first_causes.
  """
  causes: collections.Counter[Label] = collections.Counter()
  labels: collections.Counter[Label] = collections.Counter()
  rollouts = unscored = success = calls = valid = 0
  declined = []
  for group in groups:
    for trajectory in group.trajectories:
      rollouts += 1
      if trajectory.reward is None:
        unscored += 1
        continue
      mistakes = of_trajectory(group.task, trajectory)
      labels.update({m.label for m in mistakes})
      cause = first_cause(trajectory, mistakes)
      success += cause is None
      causes.update([] if cause is None else [cause])
      for _, _, result in _calls(trajectory):
        calls += 1
        valid += result.error is not _Kind.ARGUMENTS
      world = group.task.world
      if world is not None and world.feasible is not None:
        refused = trajectory.status is _Status.REFUSED
        declined.append(refused is not world.feasible)
  if not rollouts:
    return {}
  return {
    'rollouts': rollouts,
    'unscored': unscored,
    'success': success,
    'first_causes': {k.value: causes[k] for k in Label if causes[k]},
    'labels': {k.value: labels[k] for k in Label if labels[k]},
    'levels': {
      level: sum(causes[k] for k in of_level) for level, of_level in LEVELS.items()
    },
    'calls_valid': valid / calls if calls else None,
    'no_call_right': sum(declined) / len(declined) if declined else None,
  }


def of_step(groups: Sequence[records.Group]) -> dict[str, int]:
  """Returns the first causes of a training step, flat, for metrics.jsonl."""
  causes = of_groups(groups).get('first_causes', {})
  return {f'first_cause/{k.replace(" ", "_")}': n for k, n in causes.items()}


def _of_plans(trajectory: records.Trajectory) -> Iterator[Mistake]:
  """Yields responses that are no plan, name no tool that there is, or make no call."""
  for i, turn in enumerate(trajectory.turns):
    if turn.parse_error:
      label = Label.SELECTION if _names_a_tool(turn) else Label.FORMAT
      yield Mistake(label, i, turn.parse_error)
    for call, result in turn.attempts:
      if call is None and result is not None:
        label = Label.ARGUMENTS
        if result.counts.get('unknown_tool'):
          label = Label.SELECTION
        elif result.counts.get('malformed_call'):
          label = Label.FORMAT
        yield Mistake(label, i, result.text, _goes_on(trajectory, i))


def _names_a_tool(turn: records.Turn) -> bool:
  """Says whether a response that is no plan would be one with another tool's name."""
  try:
    plan_lib.parse(turn.completion.text, (), turn.completion.thinking, any_tool=True)
  except plan_lib.PlanError:
    return False
  return True


def _goes_on(trajectory: records.Trajectory, turn: int) -> bool:
  """Says whether a later turn made a call that its tool accepted."""
  return any(
    result.error is None
    for later in trajectory.turns[turn + 1 :]
    for result in later.results
  )


def _calls(
  trajectory: records.Trajectory,
) -> Iterator[tuple[int, records.ToolCall, records.ToolResult]]:
  """Yields each call with its turn and result, those that programs made included."""
  for i, turn in enumerate(trajectory.turns):
    for call, result in turn.calls:
      yield i, call, result


def _of_calls(task: records.Task, trajectory: records.Trajectory) -> Iterator[Mistake]:
  """Yields calls that their tool refused, and arguments that stand in no shown text."""
  calls = list(_calls(trajectory))
  said = _Said(
    (
      task.query,
      task.world.policy if task.world else '',
      trajectory.briefing,
      trajectory.analysis,
    )
  )
  accepted = [(i, call.tool) for i, call, r in calls if r.error is None]
  for i, call, result in calls:
    if result.counts.get('injected'):
      yield Mistake(Label.INJECTED, i, f'{call.tool} obeyed what was planted')
    failed = result.error is _Kind.ARGUMENTS
    later = any(tool == call.tool and at > i for at, tool in accepted)
    if failed:
      yield Mistake(Label.ARGUMENTS, i, result.text, later)
    if not result.inner:  # A program computes arguments of its own.
      made_up = next(filter(None, map(said.lacks, _leaves(call.arguments))), None)
      if made_up is not None:
        yield Mistake(
          Label.GROUNDING, i, f'{call.tool}: {made_up} stands nowhere', failed and later
        )
    said.add(result.text)


class _Said:
  """Texts in which numbers, keys and dates are looked up, each read once."""

  def __init__(self, texts: Iterable[str]):
    self._texts: list[tuple[str, frozenset[str]]] = []
    for text in texts:
      self.add(text)

  def add(self, text: str) -> None:
    """Adds a text."""
    plain = text.casefold()
    self._texts.append((plain, frozenset(_WORD.findall(plain))))

  def lacks(self, value: Any) -> str:
    """Returns a number, key or date that stands in none of the texts; '' otherwise."""
    text = value if isinstance(value, str) else json.dumps(value)
    if not _COPIED.fullmatch(text):
      return ''
    plain = text.casefold()
    words = _WORD.findall(plain)
    whole = re.compile(rf'(?<!\w){re.escape(plain)}(?!\w)')
    for said, known in self._texts:
      if known.issuperset(words) and whole.search(said):
        return ''
    return text


def _leaves(value: Any) -> Iterator[Any]:
  """Yields the texts and numbers inside a value of JSON."""
  if isinstance(value, Mapping):
    for part in value.values():
      yield from _leaves(part)
  elif isinstance(value, (list, tuple)):
    for part in value:
      yield from _leaves(part)
  elif isinstance(value, (str, int, float)) and not isinstance(value, bool):
    yield value


def _of_repetitions(trajectory: records.Trajectory) -> Iterator[Mistake]:
  """Yields calls that repeat an earlier one and its result."""
  seen = set()
  for i, call, result in _calls(trajectory):
    what = (
      call.tool,
      json.dumps(dict(call.arguments), sort_keys=True, default=str),
      result.text,
    )
    if what in seen:
      # It cost a turn, which matters only where turns ran out.
      harmless = trajectory.status is not _Status.OUT_OF_TURNS
      yield Mistake(Label.REPETITION, i, f'{call.tool} again', harmless)
    seen.add(what)


def _of_end(task: records.Task, trajectory: records.Trajectory) -> Iterable[Mistake]:
  """Returns what the end of a failed rollout shows; at least one mistake."""
  end = len(trajectory.turns)
  found = []
  if trajectory.status in _LATE:
    found.append(Mistake(Label.LATE, end, trajectory.status.value))
  if trajectory.status is _Status.UNPARSEABLE_PLAN:
    return found or [Mistake(Label.FORMAT, end, trajectory.detail)]
  if task.world is not None and trajectory.verdict is not None:
    found += _of_verdict(task.world, trajectory, end)
  elif task.world is None and trajectory.status is _Status.ANSWERED:
    # An answer that a tool did not return was guessed, or put together too soon.
    results = [result.text for _, _, result in _calls(trajectory)]
    was_found = any(
      answer and answer.casefold() in text.casefold()
      for answer in task.answers
      for text in results
    )
    label = Label.WRONG_ANSWER if was_found else Label.EARLY_END
    found.append(Mistake(label, end, trajectory.answer))
  return found or [Mistake(Label.WRONG_ANSWER, end, trajectory.answer)]


def _of_verdict(
  world: records.World, trajectory: records.Trajectory, end: int
) -> list[Mistake]:
  """Returns what the checks of a world show of a failed rollout."""
  verdict = trajectory.verdict
  assert verdict is not None
  failed = [r for r in verdict.results if not r.passed]
  said = '; '.join(f'{r.name}: {r.detail}' for r in failed)
  if world.feasible is False:
    if verdict.violations:
      return [Mistake(Label.POLICY_VIOLATION, end, '; '.join(verdict.violations))]
    return [Mistake(Label.MISSED_REFUSAL, end, said)]
  if trajectory.status is _Status.REFUSED:
    return [Mistake(Label.FALSE_REFUSAL, end, said)]
  found = []
  if verdict.violations:
    found.append(Mistake(Label.EXTRA_CHANGE, end, '; '.join(verdict.violations)))
  kinds = {r.kind for r in failed}
  if 'calls' in kinds and not kinds & {'state'}:
    found.append(Mistake(Label.SELECTION, end, said))
  elif kinds & {'state', 'calls', 'reward'}:
    allowed = set(verdict.changed) - set(verdict.violations)
    label = Label.WRONG_CHANGE if allowed else Label.EARLY_END
    if trajectory.status not in _LATE or label is Label.WRONG_CHANGE:
      found.append(Mistake(label, end, said))
  elif kinds == {'response'}:
    found.append(Mistake(Label.WRONG_ANSWER, end, said))
  elif kinds == {'ending'} and trajectory.status not in _LATE:
    found.append(Mistake(Label.EARLY_END, end, said))
  return found
