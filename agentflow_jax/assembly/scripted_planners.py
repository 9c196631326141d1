"""Scripted planners: the oracle, the teacher, and the controls that must fail.

They stand where the trained planner stands and everything else stays: same
prompts, executor, tools, verifier, generator, reward. Only they may read how a
question was made.
"""

import dataclasses
import json
import random
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from agentflow_jax import records
from agentflow_jax.agents import modules, plan as plan_lib
from agentflow_jax.config import schema
from agentflow_jax.data import geohop_facts, geohop_questions
from agentflow_jax.tokenization import tokenizers

Step = geohop_questions.Step
# A function that writes a plan's text from the view, the task's solution (steps of
# GeoHop, or texts of demonstrated plans) and a random generator.
Script = Callable[[modules.View, Sequence[Any], random.Random], str]

_OPERATORS = ('+', '-', '*', '/')
_FIND, _ANSWER = 'find', 'answer'


@dataclasses.dataclass(frozen=True)
class ScriptedPlanner:
  """A planner that follows a script instead of a model.

  Attributes:
    script: writes the response.
    solutions: steps or plans of each task's solution, by the task's id.
    planner: the model planner that it stands in for; composes the prompts.
    tokenizer: turns prompt and response into ids, so that the turns of a
      scripted planner can be trained on.
  """

  script: Script
  solutions: Mapping[str, Sequence[Any]]
  planner: modules.ModelPlanner
  tokenizer: tokenizers.Tokenizer

  async def plan(self, view):
    rng = random.Random(repr(view.key_of('script').words()))
    text = self.script(view, self.solutions.get(view.task_id, ()), rng)
    prompt = self.tokenizer.render(self.planner.compose(view))
    response = self.tokenizer.encode(text) + [self.tokenizer.stop_ids[0]]
    completion = records.Completion(
        text=text, prompt_ids=tuple(prompt), response_ids=tuple(response)
    )
    return completion, self.planner.sampling


@dataclasses.dataclass(frozen=True)
class RandomPlanner:
  """A planner for any task: a uniform tool, on the query as it stands.

  Attributes:
    planner: the planner that it stands in for.
    verbs: of which a uniform one begins the sub-goal: rule verifiers stop at the
      last of them.
  """

  planner: modules.ModelPlanner
  verbs: Sequence[str]

  async def plan(self, view):
    rng = random.Random(repr(view.key_of('script').words()))
    query = ' '.join(view.memory.unmarked().query.split())
    plan = plan_lib.Plan(
        f'{rng.choice(self.verbs)} {query}', query,
        rng.choice([c.name for c in view.cards]),
    )
    return records.Completion(plan.render()), self.planner.sampling


def solutions_of(
    tasks: Sequence[records.Task],
) -> dict[str, Sequence[Any]]:
  """Reads the steps or plans that travel beside tasks, by the tasks' ids."""
  return {
      t.id: geohop_questions.parse_solution(t.tags['solution'])
      for t in tasks
      if 'solution' in t.tags
  } | {t.id: json.loads(t.tags['plans']) for t in tasks if 'plans' in t.tags}


def demonstrated(
    view: modules.View, plans: Sequence[str], rng: random.Random
) -> str:
  """Takes the plans that a user's row demonstrates, one a turn."""
  del rng
  return plans[min(len(view.memory.entries), len(plans) - 1)]


def oracle(
    view: modules.View, steps: Sequence[Step], rng: random.Random
) -> str:
  """Takes the question's own steps, one a turn."""
  del rng
  step, is_last = next_step(view, steps)
  return _write(step.tool, step.what, _numbers(view, step), is_last)


def empty(
    view: modules.View, steps: Sequence[Step], rng: random.Random
) -> str:
  """Writes nothing."""
  del view, steps, rng
  return ''


def uniform(
    view: modules.View, steps: Sequence[Step], rng: random.Random
) -> str:
  """A uniform tool on uniform mentions that the prompt shows."""
  del steps
  tool = rng.choice([c.name for c in view.cards])
  what = rng.choice(_vocabulary(tool))
  references = [_any_reference(view, rng) for _ in range(_arity(tool))]
  return _write(tool, what, references, rng.random() < 0.5)


def make_teacher(config: schema.TeacherConfig) -> Script:
  """Returns a teacher that knows the format and errs as configured."""

  def teacher(view, steps, rng):
    step, is_last = next_step(view, steps)
    tool, what = step.tool, step.what
    references = _numbers(view, step)
    instead = {
        'python': ('search', config.search_instead),
        'search': ('python', config.python_instead),
    }[tool]
    if rng.random() < instead[1]:
      tool = instead[0]
      what = rng.choice(_vocabulary(tool))
      references = (references * 2)[: _arity(tool)]
    elif rng.random() < config.wrong_what:
      what = rng.choice(_vocabulary(tool))
    references = [
        _any_reference(view, rng)
        if rng.random() < config.wrong_reference
        else r
        for r in references
    ]
    error = config.late_answer if is_last else config.early_answer
    return _write(tool, what, references, is_last ^ (rng.random() < error))

  return teacher


def next_step(
    view: modules.View, steps: Sequence[Step]
) -> tuple[Step, bool]:
  """The first step whose value memory does not hold yet, and if it is the last.

  A step counts as done when an entry of its tool, on its arguments, did not
  fail; where all are done the last one is due again.
  """
  done = {
      (e.tool, _what(e), view.memory.references.resolve(e.context))
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
  mentions = view.memory.references.mentions
  return [
      f'#{mentions.index(a) + 1}' if a in mentions else a
      for a in step.arguments
  ]


def _any_reference(view: modules.View, rng: random.Random) -> str:
  mentions = view.memory.references.mentions
  return f'#{rng.randrange(len(mentions)) + 1}' if mentions else '#1'


def _write(tool, what, references, is_last) -> str:
  verb = _ANSWER if is_last else _FIND
  sub_goal = f'{verb} {what if tool == "search" else "value"}'
  return plan_lib.Plan(sub_goal, _context(what, references), tool).render()
