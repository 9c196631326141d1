"""Solutions of tasks in worlds: calls of tools, written as plans or as programs.

A plan has fields; a program, where the one tool runs programs, is a single call.
"""

import dataclasses
import json
import random
import re
from collections.abc import Mapping, Sequence
from typing import Any

from agentflow_jax.agents import modules, numbered_memory, plan as plan_lib
from agentflow_jax.agents.tools import base
from agentflow_jax.config import schema

# What the sub-goal of a scripted plan without thoughts says; the tool says the rest.
_SUB_GOAL = 'do'
# A mention, or a number.
_IS_LITERAL = re.compile(r'#\d+|-?\d+')
# Text of an argument that no check reads.
_FREE = 'done'


@dataclasses.dataclass(frozen=True)
class Call:
  """One call of a solution.

  Attributes:
    tool: name of the tool.
    arguments: texts of the arguments by name, in order.
    why: thoughts before the call, which become the plan's sub-goal.
  """

  tool: str
  arguments: Mapping[str, str]
  why: Sequence[str] = ()

  @property
  def context(self) -> str:
    """The arguments as FieldExecutor reads them."""
    return _fields(self.arguments)


def parse(text: str, tempting: str = '[]') -> 'CallSolution':
  """Returns the solution that a task's tags hold.

  Args:
    text: JSON list of {"tool": name, "arguments": {name: text}, "why": list of
      texts}, in order; "why" may be missing.
    tempting: such a list of the calls that carry out a forbidden task.
  """
  return CallSolution(
    *(tuple(Call(**one) for one in json.loads(said)) for said in (text, tempting))
  )


@dataclasses.dataclass(frozen=True)
class CallSolution:
  """The calls that solve a task.

  Attributes:
    calls: calls in order; the last one ends the episode.
    tempting: calls that carry the task out although the policy forbids it; empty for
      a task that it allows.
  """

  calls: Sequence[Call]
  tempting: Sequence[Call] = ()

  def right(self, view: modules.View) -> str:
    """See scripted_planners.Solution."""
    call = self._next(view)
    return _write(
      view, call.tool, _referred(view, call.arguments), _thought(view, call)
    )

  def noisy(
    self, view: modules.View, rng: random.Random, errors: schema.TeacherConfig
  ) -> str:
    """See scripted_planners.Solution."""
    if self.tempting and _of_rollout(view).random() < errors.wrong_way:
      careful = dataclasses.replace(errors, wrong_way=0.0)
      return CallSolution(self.tempting).noisy(view, rng, careful)
    call, cards = self._next(view), _cards(view)
    endings = _endings(cards)
    card = _card(view, call.tool)
    if rng.random() < errors.wrong_tool:
      card = rng.choice(cards)
      return _write(view, card.name, _drawn(view, card, rng))
    if call is not self.calls[-1] and rng.random() < errors.early_answer:
      card = rng.choice(endings)
      return _write(view, card.name, _drawn(view, card, rng))
    if call is self.calls[-1] and rng.random() < errors.late_answer:
      card = rng.choice([c for c in cards if c not in endings])
      return _write(view, card.name, _drawn(view, card, rng))
    arguments = {}
    for name, value in _referred(view, call.arguments).items():
      wrong = rng.random() < errors.wrong_reference
      kind = next(a for a in card.arguments if a.name == name)
      arguments[name] = _value(view, kind, rng) if wrong else value
    return _write(view, call.tool, arguments, _thought(view, call))

  def uniform(self, view: modules.View, rng: random.Random) -> str:
    """See scripted_planners.Solution."""
    card = rng.choice(_cards(view))
    return _write(view, card.name, _drawn(view, card, rng))

  def _next(self, view: modules.View) -> Call:
    """Returns the first call that memory does not hold yet; the last one else."""
    programs = _in_programs(view)
    done = set()
    for entry in view.memory.entries:
      if not entry.failed:
        said = numbered_memory.resolved(view.memory, entry.context, literal=programs)
        done.add(said if programs else (entry.tool, said))
    for call in self.calls:
      said = (call.tool, call.context)
      if programs:
        said = _program(call.tool, call.arguments)
      if said not in done:
        return call
    return self.calls[-1]


def _of_rollout(view: modules.View) -> random.Random:
  """Returns a generator that draws the same in every turn of a rollout."""
  key = dataclasses.replace(view.key, turn=0, module='script/way')
  return random.Random(repr(key.words()))


def refusal(view: modules.View, rule: str, rng: random.Random) -> str:
  """Returns a plan that declines the task by a rule, about a uniform mention."""
  card = _card(view, 'refuse')
  return _write(view, card.name, _drawn(view, card, rng) | {'rule': rule})


def _endings(cards: Sequence[base.Card]) -> list[base.Card]:
  return [c for c in cards if c.name in ('finish', 'refuse')]


def _card(view: modules.View, tool: str) -> base.Card:
  return next(c for c in _cards(view) if c.name == tool)


def _in_programs(view: modules.View) -> bool:
  """Says whether calls are written as programs."""
  return bool(view.cards[0].functions)


def _cards(view: modules.View) -> Sequence[base.Card]:
  """Returns the cards of what can be called; an answer is no call of a world."""
  if not _in_programs(view):
    return view.cards
  return [c for c in view.cards[0].functions if c.name != 'final_answer']


def _referred(view: modules.View, arguments: Mapping[Any, str]) -> dict[Any, str]:
  """Returns arguments with mentions as numbers; what is mentioned nowhere as text."""
  mentions = numbered_memory.mentions(view.memory)
  return {
    name: f'#{mentions.index(value) + 1}' if value in mentions else value
    for name, value in arguments.items()
  }


def _drawn(view: modules.View, card: base.Card, rng: random.Random) -> dict[str, str]:
  """Returns uniform arguments of a tool."""
  return {a.name: _value(view, a, rng) for a in card.arguments if a.required}


def _value(view: modules.View, argument: base.Argument, rng: random.Random) -> str:
  """Returns a uniform value: one that the card lists, or a mention."""
  listed = argument.schema.said.get('enum') if argument.schema else None
  if listed:
    return str(rng.choice(listed))
  mentions = numbered_memory.mentions(view.memory)
  return f'#{rng.randrange(len(mentions)) + 1}' if mentions else _FREE


def _fields(arguments: Mapping[str, str]) -> str:
  return '; '.join(f'{name}={value}' for name, value in arguments.items())


def _thought(view: modules.View, call: Call) -> str:
  """Returns a call's thoughts, where a name that is mentioned is its number."""
  said = _referred(view, dict(enumerate(call.why)))
  return ', '.join(said.values()) or _SUB_GOAL


def _program(tool: str, arguments: Mapping[str, str]) -> str:
  """Returns a call as a program, where texts are literals and mentions stay."""
  said = ', '.join(
    f'{name}={value if _IS_LITERAL.fullmatch(value) else repr(value)}'
    for name, value in arguments.items()
  )
  return f'{tool}({said})'


def _write(
  view: modules.View, tool: str, arguments: Mapping[str, str], sub_goal: str = _SUB_GOAL
) -> str:
  if not _in_programs(view):
    return plan_lib.Plan(sub_goal, _fields(arguments), tool).render()
  thought = '' if sub_goal == _SUB_GOAL else sub_goal
  return plan_lib.Plan(thought, _program(tool, arguments), tool).render_code()
