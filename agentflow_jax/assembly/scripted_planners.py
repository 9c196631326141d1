"""Scripted planners: the oracle, the teacher, and the controls that must fail.

They stand where the trained planner stands and everything else stays: same
prompts, executor, tools, verifier, generator, reward. Only they may read how a
task is solved.
"""

import collections
import dataclasses
import json
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from agentflow_jax import records
from agentflow_jax.agents import call_text, modules, plan as plan_lib
from agentflow_jax.assembly import call_solutions, geohop_solutions
from agentflow_jax.config import schema
from agentflow_jax.tokenization import tokenizers


class Solution(Protocol):
  """How a task is solved, as a planner would write it."""

  def right(self, view: modules.View) -> str:
    """Returns the plan of the next step that is not done yet."""
    ...

  def noisy(
    self, view: modules.View, rng: random.Random, errors: schema.TeacherConfig
  ) -> str:
    """Returns such a plan, with errors drawn as configured."""
    ...

  def uniform(self, view: modules.View, rng: random.Random) -> str:
    """Returns a plan with a uniform tool on uniform arguments."""
    ...


# A function that writes a plan's text from the view, the task's solution (or the texts
# of demonstrated plans) and a random generator.
Script = Callable[[modules.View, Any, random.Random], str]


@dataclasses.dataclass(frozen=True)
class ScriptedPlanner:
  """A planner that follows a script instead of a model.

  Attributes:
    script: writes the response.
    solutions: solution of each task, or texts of its demonstrated plans, by the
      task's id.
    planner: the model planner that it stands in for; composes the prompts.
    tokenizer: turns prompt and response into ids, so that the turns of a
      scripted planner can be trained on.
  """

  script: Script
  solutions: Mapping[str, Any]
  planner: modules.ModelPlanner
  tokenizer: tokenizers.Tokenizer

  async def plan(self, view):
    rng = random.Random(repr(view.key_of('script').words()))
    text = self.script(view, self.solutions.get(view.task_id), rng)
    prompt = self.tokenizer.render(self.planner.compose(view))
    response = self.tokenizer.encode(text) + [self.tokenizer.stop_ids[0]]
    completion = records.Completion(
      text=text, prompt_ids=tuple(prompt), response_ids=tuple(response)
    )
    return completion, self.planner.sampling


@dataclasses.dataclass(frozen=True)
class RandomPlanner:
  """A planner for any task: a uniform tool or function, on the query as it stands.

  Attributes:
    planner: the planner that it stands in for.
    verbs: words of which a uniform one begins the sub-goal: rule verifiers stop at the
      last of them.
    plan_format: form of plans, see agent.plan_format.
  """

  planner: modules.ModelPlanner
  verbs: Sequence[str]
  plan_format: str = 'fields'

  async def plan(self, view):
    rng = random.Random(repr(view.key_of('script').words()))
    query = ' '.join(view.memory.plain().query.split())
    if self.plan_format == 'tool_calls':
      return records.Completion(_random_call(rng, view, query)), self.planner.sampling
    if self.plan_format == 'code':
      card = rng.choice(view.cards[0].functions)
      called = f'{card.name}({query!r})' if card.arguments else f'{card.name}()'
      if card.name != 'final_answer':
        called = f'final_answer({called})'
      text = plan_lib.Plan('', called, 'code').render_code()
      return records.Completion(text), self.planner.sampling
    plan = plan_lib.Plan(
      f'{rng.choice(self.verbs)} {query}',
      query,
      rng.choice([c.name for c in view.cards]),
    )
    return records.Completion(plan.render()), self.planner.sampling


def _random_call(rng: random.Random, view: modules.View, query: str) -> str:
  """Returns a call of a uniform tool, or after one, half of the time, its result."""
  if view.messages and rng.random() < 0.5:
    return view.messages[-1].text
  card = rng.choice(view.cards)
  arguments = {card.arguments[0].name: query} if card.arguments else {}
  return call_text.write('', [(card.name, arguments)])


@dataclasses.dataclass(frozen=True)
class BlindPlanner:
  """A planner that sees neither what tools returned nor the numbers of mentions in it.

  Attributes:
    planner: planner that is asked with every result blanked.
  """

  planner: modules.ModelPlanner

  async def plan(self, view):
    memory = view.memory
    blanked = dataclasses.replace(
      memory,
      entries=tuple(
        dataclasses.replace(entry, result='...') for entry in memory.entries
      ),
    )
    return await self.planner.plan(dataclasses.replace(view, memory=blanked))


def solutions_of(tasks: Sequence[records.Task]) -> dict[str, Any]:
  """Reads the solutions or plans that travel beside tasks, by the tasks' ids."""
  found: dict[str, Any] = {}
  for task in tasks:
    if 'plans' in task.tags:
      found[task.id] = json.loads(task.tags['plans'])
    elif 'solution' in task.tags:
      text = task.tags['solution']
      found[task.id] = (
        geohop_solutions.parse(text)
        if task.world is None
        else (call_solutions.parse(text, task.tags.get('tempting', '[]')))
      )
  return found


def demonstrated(view: modules.View, plans: Sequence[str], rng: random.Random) -> str:
  """Takes the plans that a user's row demonstrates, one a turn."""
  del rng
  return plans[min(len(view.memory.entries), len(plans) - 1)]


def oracle(view: modules.View, solution: Solution, rng: random.Random) -> str:
  """Takes the task's own steps, one a turn."""
  del rng
  return solution.right(view)


def empty(view: modules.View, solution: Solution | None, rng: random.Random) -> str:
  """Writes nothing."""
  del view, solution, rng
  return ''


def uniform(view: modules.View, solution: Solution, rng: random.Random) -> str:
  """A uniform tool on uniform mentions that the prompt shows."""
  return solution.uniform(view, rng)


def make_refusing(tasks: Sequence[records.Task]) -> Script:
  """Returns a planner that declines every task by the commonest rule of some tasks."""
  rules = collections.Counter(
    call.arguments['rule']
    for solution in solutions_of(tasks).values()
    for call in solution.calls[-1:]
    if 'rule' in call.arguments
  )
  # The first in alphabetical order where several are equally common.
  rule = min(rules, key=lambda r: (-rules[r], r), default='')

  def refusing(view, solution, rng):
    del solution
    return call_solutions.refusal(view, rule, rng)

  return refusing


def make_teacher(config: schema.TeacherConfig) -> Script:
  """Returns a teacher that knows the format and errs as configured."""

  def teacher(view, solution, rng):
    return solution.noisy(view, rng, config)

  return teacher
