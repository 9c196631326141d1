"""Rewards by name: what `Task.reward` refers to."""

import dataclasses
import difflib
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any

from agentflow_jax import records
from agentflow_jax.agents import thoughts
from agentflow_jax.agents.rewards import choice
from agentflow_jax.agents.rewards import game24
from agentflow_jax.agents.rewards import numeric
from agentflow_jax.agents.rewards import short_answer
from agentflow_jax.agents.rewards import symbolic
from agentflow_jax.agents.rewards import text


@dataclasses.dataclass(frozen=True)
class Reward:
  """A verifiable outcome reward: `await reward(task, answer)`.

  Built-in rewards lie in [0, 1]; one of a user's own is any finite number, or parts
  by name that are added up.

  Attributes:
    name: name that tasks carry.
    score: the asynchronous function behind it; it reads what stands behind an
      answer's thoughts (agents.thoughts). A wrong, blank or malformed answer
      scores 0, it never raises; `language_model.Unreachable` means that
      the checker itself failed, whatever the answer was.
    check: raises ValueError, naming the task, if the task lacks what this
      reward needs (no answer, an answer of the wrong kind). For the start of
      a run; scoring a task that fails it raises the same.
    close: releases processes; awaited once, at the end.
    of_world: function from a verdict to the reward, for a reward that reads the
      checks of a world instead of the answer; None for one that reads the answer.
  """

  name: str
  score: Callable[[records.Task, str], Awaitable[float | Mapping[str, float]]]
  check: Callable[[records.Task], None]
  close: Callable[[], Awaitable[None]] | None = None
  of_world: Callable[[records.Verdict], float] | None = None

  async def __call__(
    self, task: records.Task, answer: str
  ) -> float | Mapping[str, float]:
    self.check(task)
    return await self.score(task, thoughts.said(answer))

  async def aclose(self) -> None:
    if self.close is not None:
      await self.close()


def _reward_from(
  name: str,
  function: Callable[[Sequence[str], str], float],
  check: Callable[[records.Task], None],
) -> Reward:
  """Makes a reward of a quick function of (acceptable answers, response)."""

  async def score(task: records.Task, answer: str) -> float:
    return function(task.answers, answer)

  return Reward(name, score, check)


def check_answers(task: records.Task) -> None:
  """Raises ValueError, naming the task, where an acceptable answer is blank."""
  if not task.answers or not all(text.normalise(a) for a in task.answers):
    raise ValueError(
      f'task {task.id!r}: reward {task.reward!r} needs answers that are not '
      f'blank, got {task.answers!r}'
    )


def _check_numbers(task: records.Task) -> None:
  check_answers(task)
  for answer in task.answers:
    if numeric.parse(answer) is None:
      raise ValueError(
        f'task {task.id!r}: reward {task.reward!r} needs answers that are '
        f'numbers, got {answer!r}'
      )


def _number(answers: Sequence[str], answer: str) -> float:
  return numeric.number(answers, text.extract(answer))


def _exact_number(answers: Sequence[str], answer: str) -> float:
  return numeric.number(answers, text.extract(answer), tolerance=0.0)


def _match_or_number(answers: Sequence[str], answer: str) -> float:
  """Numbers within the tolerance, every other acceptable answer by match.

  For measurements and what is computed from them. Where whole numbers are counts
  and years, `short_answer` wants them exactly.
  """
  names = [a for a in answers if numeric.parse(a) is None]
  return max(_number(answers, answer), text.exact_match(names, answer))


def _symbolic() -> Reward:
  checker = symbolic.Checker()

  async def score(task: records.Task, answer: str) -> float:
    try:
      return float(await checker.equal(task.answers, answer))
    except ValueError as error:
      raise ValueError(f'task {task.id!r}: {error}') from error

  return Reward('symbolic', score, check_answers, checker.aclose)


def _reward_of_task(
  name: str,
  function: Callable[[records.Task, str], float],
  check: Callable[[records.Task], object],
) -> Reward:
  """Makes a reward of a quick function that needs the task's query."""

  async def score(task: records.Task, answer: str) -> float:
    return function(task, answer)

  def checked(task: records.Task) -> None:
    check(task)

  return Reward(name, score, checked)


def _check_world(task: records.Task) -> None:
  if task.world is None or not task.world.checks:
    raise ValueError(
      f'task {task.id!r}: reward {task.reward!r} needs a world with checks'
    )


def _checks() -> Reward:
  """Makes the reward 1 of a rollout that passes all checks of its world."""

  async def score(task: records.Task, answer: str) -> float:
    del answer
    raise ValueError(f'task {task.id!r}: checks were not made')

  return Reward(
    'checks', score, _check_world, of_world=lambda verdict: float(verdict.success)
  )


def _environment() -> Reward:
  """Makes the reward that the environment of a world returns itself."""

  async def score(task: records.Task, answer: str) -> float:
    del answer
    raise ValueError(f'task {task.id!r}: the environment was not asked')

  def check(task: records.Task) -> None:
    kinds = {c.kind for c in task.world.checks} if task.world else set()
    if 'reward' not in kinds:
      raise ValueError(
        f'task {task.id!r}: reward {task.reward!r} needs an environment that returns'
        ' one: set agent.environment.kind=PATH.py:CLASS'
      )

  # A world with a check of kind 'reward' returns a number.
  of_world: Any = lambda verdict: verdict.reward
  return Reward('environment', score, check, of_world=of_world)


_MAKERS: dict[str, Callable[[], Reward]] = {
  'exact_match': lambda: _reward_from('exact_match', text.exact_match, check_answers),
  'contains': lambda: _reward_from('contains', text.contains, check_answers),
  'f1': lambda: _reward_from('f1', text.f1, check_answers),
  'number': lambda: _reward_from('number', _number, _check_numbers),
  'exact_number': lambda: _reward_from('exact_number', _exact_number, _check_numbers),
  'match_or_number': lambda: _reward_from(
    'match_or_number', _match_or_number, check_answers
  ),
  'short_answer': lambda: _reward_from(
    'short_answer', short_answer.short_answer, check_answers
  ),
  'symbolic': _symbolic,
  'choice': lambda: _reward_of_task('choice', choice.choice, choice.gold_label),
  'checks': _checks,
  'environment': _environment,
  'game24': lambda: _reward_of_task('game24', game24.game24, game24.given),
}


def names() -> tuple[str, ...]:
  """Returns the names of all rewards, sorted."""
  return tuple(sorted(_MAKERS))


def get(name: str) -> Reward:
  """Returns a new reward; await its `aclose` when done with it.

  Args:
    name: one of `names()`.

  Raises:
    ValueError: the name is unknown (the nearest one is suggested), or what the
      reward needs is not installed.
  """
  if name not in _MAKERS:
    near = difflib.get_close_matches(name, _MAKERS, n=1)
    hint = f'did you mean {near[0]!r}?' if near else f'there are {names()}'
    raise ValueError(f'unknown reward {name!r}: {hint}')
  return _MAKERS[name]()


class Rewards:
  """Scores each task by the reward that it names.

  Args:
    reward_names: every name that a task may carry, checked here so that a
      misspelt one fails at start. Raises ValueError as `get` does.
    others: rewards that are not built in, by name.
  """

  def __init__(
    self, reward_names: Iterable[str], others: Mapping[str, Reward] | None = None
  ):
    others = others or {}
    self._rewards = {
      name: others[name] if name in others else get(name)
      for name in dict.fromkeys(reward_names)
    }

  def check(self, task: records.Task) -> None:
    """Raises ValueError if a task cannot be scored; for the start of a run."""
    self._find(task).check(task)

  async def __call__(
    self,
    task: records.Task,
    ending: records.Ending,
    verdict: records.Verdict | None = None,
  ) -> float | records.Score:
    """Returns the reward of a rollout.

    Args:
      task: task of the rollout.
      ending: end of the rollout, with its answer and calls.
      verdict: results of the checks of the task's world; None without a world.
    """
    reward = self._find(task)
    if reward.of_world is not None and verdict is not None:
      reward.check(task)
      return reward.of_world(verdict)
    found = await reward(task, ending.answer)
    if not isinstance(found, Mapping):
      return found
    return records.Score({k: records.Term(float(v)) for k, v in found.items()})

  def _find(self, task: records.Task) -> Reward:
    if task.reward not in self._rewards:
      raise ValueError(
        f'task {task.id!r} names reward {task.reward!r}, but this run has '
        f'{tuple(self._rewards)}'
      )
    return self._rewards[task.reward]

  async def aclose(self) -> None:
    for reward in self._rewards.values():
      await reward.aclose()
