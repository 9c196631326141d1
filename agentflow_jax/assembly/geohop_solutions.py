"""Solutions of GeoHop: the steps of a question, written as plans."""

import dataclasses
import random
import re
from collections.abc import Sequence

from agentflow_jax.agents import modules, numbered_memory, plan as plan_lib
from agentflow_jax.config import schema
from agentflow_jax.data import geohop_facts, geohop_questions

Step = geohop_questions.Step

_OPERATORS = ('+', '-', '*', '/')
_FIND, _ANSWER = 'find', 'answer'


def parse(text: str) -> 'GeohopSolution':
  """Returns the solution that a question's tag holds."""
  return GeohopSolution(geohop_questions.parse_solution(text))


@dataclasses.dataclass(frozen=True)
class GeohopSolution:
  """The steps of a question.

  Attributes:
    steps: steps of a perfect planner, in order.
  """

  steps: Sequence[Step]

  def right(self, view: modules.View) -> str:
    """See scripted_planners.Solution."""
    step, is_last = next_step(view, self.steps)
    return _write(step.tool, step.what, _numbers(view, step), is_last)

  def noisy(
    self, view: modules.View, rng: random.Random, errors: schema.TeacherConfig
  ) -> str:
    """See scripted_planners.Solution."""
    step, is_last = next_step(view, self.steps)
    tool, what = step.tool, step.what
    references = _numbers(view, step)
    instead = {
      'python': ('search', errors.search_instead),
      'search': ('python', errors.python_instead),
    }[tool]
    if rng.random() < instead[1]:
      tool = instead[0]
      what = rng.choice(_vocabulary(tool))
      references = (references * 2)[: _arity(tool)]
    elif rng.random() < errors.wrong_what:
      what = rng.choice(_vocabulary(tool))
    references = [
      _any_reference(view, rng) if rng.random() < errors.wrong_reference else r
      for r in references
    ]
    error = errors.late_answer if is_last else errors.early_answer
    return _write(tool, what, references, is_last ^ (rng.random() < error))

  def uniform(self, view: modules.View, rng: random.Random) -> str:
    """See scripted_planners.Solution."""
    tool = rng.choice([c.name for c in view.cards])
    what = rng.choice(_vocabulary(tool))
    references = [_any_reference(view, rng) for _ in range(_arity(tool))]
    return _write(tool, what, references, rng.random() < 0.5)


def next_step(view: modules.View, steps: Sequence[Step]) -> tuple[Step, bool]:
  """The first step whose value memory does not hold yet, and if it is the last.

  A step counts as done when an entry of its tool, on its arguments, did not
  fail; where all are done the last one is due again.
  """
  done = {
    (e.tool, _what(e), numbered_memory.resolved(view.memory, e.context))
    for e in view.memory.entries
    if not e.failed
  }
  for i, step in enumerate(steps):
    if (step.tool, step.what, _context(step.what, step.arguments)) not in done:
      return step, i == len(steps) - 1
  return steps[-1], True


def _vocabulary(tool: str) -> Sequence[str]:
  return geohop_facts.ATTRIBUTES if tool == 'search' else _OPERATORS


def _arity(tool: str) -> int:
  return 1 if tool == 'search' else 2


def _context(what: str, arguments: Sequence[str]) -> str:
  return f' {what} '.join(arguments) if len(arguments) == 2 else arguments[0]


def _what(entry) -> str:
  """The attribute or operator that an entry's plan was about."""
  if entry.tool == 'python':
    operator = re.search(r' ([-+*/]) ', entry.context)
    return operator.group(1) if operator else ''
  return entry.sub_goal.partition(' ')[2]


def _numbers(view: modules.View, step: Step) -> list[str]:
  """The step's arguments as references; a lost one as the name itself."""
  mentions = numbered_memory.mentions(view.memory)
  return [f'#{mentions.index(a) + 1}' if a in mentions else a for a in step.arguments]


def _any_reference(view: modules.View, rng: random.Random) -> str:
  mentions = numbered_memory.mentions(view.memory)
  return f'#{rng.randrange(len(mentions)) + 1}' if mentions else '#1'


def _write(tool, what, references, is_last) -> str:
  verb = _ANSWER if is_last else _FIND
  sub_goal = f'{verb} {what if tool == "search" else "value"}'
  return plan_lib.Plan(sub_goal, _context(what, references), tool).render()
