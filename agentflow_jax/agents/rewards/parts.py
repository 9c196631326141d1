"""A reward of several terms: success, and smaller ones that shape the way to it.

    reward = sum over terms of weight * value,    each value in [0, 1]

Three properties hold by construction. A rollout that fails never scores as much as one
that succeeds: the weights of all terms but success are together below the weight of
success. Nothing scores below a rollout that breaks the format, whose terms are all 0: a
term with a negative weight counts only in a success. And doing nothing useful pays
nothing: the other terms count only where there was progress, which is a success, a
right answer, or a check of state or calls that passes and did not before anything was
done.

The form follows Tool-R1 (arXiv 2509.12867), whose weights are not public.
"""

import dataclasses
from collections.abc import Awaitable, Callable, Mapping

from agentflow_jax import records

SUCCESS = 'success'
# Terms that read the checks of a world.
_OF_WORLDS = ('pass_fraction', 'refusal', 'unchanged')
# Terms that weights may be given to.
NAMES = ('answer', 'calls', 'execution', 'format', 'length', *_OF_WORLDS, SUCCESS)
# Number of calls that counts as 1 in the term `calls`.
_MANY_CALLS = 20

Base = Callable[
  [records.Task, records.Ending, records.Verdict | None],
  Awaitable[float | records.Score],
]


def check(weights: Mapping[str, float], worlds: bool) -> None:
  """Refuses weights under which failing could pay, or that nothing gives a value.

  Args:
    weights: weight by the name of a term.
    worlds: whether tasks are in worlds.

  Raises:
    ValueError: names the term and the remedy.
  """
  unknown = sorted(set(weights) - set(NAMES))
  if unknown:
    raise ValueError(f'there is no term {unknown[0]!r}; there are {", ".join(NAMES)}')
  if not weights.get(SUCCESS, 0.0) > 0:
    raise ValueError('the term success needs a weight above 0')
  shaping = sum(abs(w) for name, w in weights.items() if name != SUCCESS)
  if not shaping < weights[SUCCESS]:
    raise ValueError(
      f'the absolute weights of the other terms add up to {shaping:g}; they must be'
      f' below the weight of success, {weights[SUCCESS]:g}, so that no failure'
      ' scores as much as a success'
    )
  for name in _OF_WORLDS:
    if weights.get(name) and not worlds:
      raise ValueError(f'the term {name} reads the checks of a world: leave it out')


@dataclasses.dataclass(frozen=True)
class Parts:
  """Scores a rollout by terms.

  Attributes:
    base: reward of a task, which is the value of the term success.
    weights: weight by the name of a term, see `check`.
    answer: reward that gives the term answer its value; None without that term.
  """

  base: Base
  weights: Mapping[str, float]
  answer: Base | None = None

  async def __call__(
    self,
    task: records.Task,
    ending: records.Ending,
    verdict: records.Verdict | None = None,
  ) -> records.Score:
    """Returns the terms of a rollout, and so its reward.

    Raises:
      ValueError: the base reward lies outside of [0, 1].
    """
    success = await _number(self.base, task, ending, verdict)
    values = _values(task, ending, verdict)
    values |= {SUCCESS: success, 'answer': 0.0}
    if self.answer is not None:
      values['answer'] = await _number(self.answer, task, ending, verdict)
    progress = float(success > 0 or values['answer'] > 0 or _moved(verdict))
    return records.Score(
      {
        name: records.Term(values[name] * (success if weight < 0 else progress), weight)
        for name, weight in self.weights.items()
      }
    )

  @property
  def nothing(self) -> records.Score:
    """The terms of a rollout that breaks the format or its time limit."""
    return records.Score(
      {name: records.Term(0.0, weight) for name, weight in self.weights.items()}
    )


async def _number(base: Base, task, ending, verdict) -> float:
  found = await base(task, ending, verdict)
  number = found.reward if isinstance(found, records.Score) else float(found)
  if not 0 <= number <= 1:
    raise ValueError(
      f'task {task.id!r}: with reward.weights a reward lies in [0, 1], and this one'
      f' is {number:g}'
    )
  return number


def _moved(verdict: records.Verdict | None) -> bool:
  """Says whether a check of state or calls passes that did not at the start."""
  results = verdict.results if verdict is not None else ()
  return any(
    r.kind in ('state', 'calls') and r.passed and not r.vacuous for r in results
  )


def _values(
  task: records.Task, ending: records.Ending, verdict: records.Verdict | None
) -> dict[str, float]:
  """Returns the values of all terms but success and answer."""
  results = [result for t in ending.turns for result in t.results]
  tokens = sum(len(t.completion.response_ids) for t in ending.turns)
  most = sum(t.sampling.max_new_tokens for t in ending.turns)
  values = {
    'calls': min(len(ending.calls), _MANY_CALLS) / _MANY_CALLS,
    'execution': (
      sum(r.error is None for r in results) / len(results) if results else 0.0
    ),
    'format': 1.0,
    'length': min(tokens / most, 1.0) if most else 0.0,
  }
  if verdict is not None:
    refused, feasible = ending.ended == 'refuse', task.its_world.feasible
    values |= {
      'pass_fraction': verdict.pass_fraction or 0.0,
      'refusal': float(feasible is not None and refused != feasible),
      'unchanged': float(not verdict.violations),
    }
  return values
