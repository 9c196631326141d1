"""The four modules: a rule or a language model behind one signature each.

Every module sees a `View` and nothing else: not the answer, not the number of
hops, not how a question was made.
"""

import collections
import contextlib
import contextvars
import dataclasses
import functools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from agentflow_jax import records
from agentflow_jax.agents import fitting
from agentflow_jax.agents import instructions
from agentflow_jax.agents import language_model
from agentflow_jax.agents import memory as memory_lib
from agentflow_jax.agents import plan as plan_lib
from agentflow_jax.agents import prompts
from agentflow_jax.agents import thoughts
from agentflow_jax.agents import verdict as verdict_lib
from agentflow_jax.agents.tools import base, calls


@dataclasses.dataclass(frozen=True)
class View:
  """What a module may read.

  Attributes:
    task_id: name of the task; scripted planners look their script up by it.
    memory: the query, the analysis and what was found so far.
    cards: the tools that there are.
    key: key of the requests of the turn; a module puts its own name in.
    counts: sums of events by name, which modules add to: 'shortened' and
      'shortened/<module>' are the memory entries that were shortened for the
      prompts of the planner and of a frozen module.
    messages: conversation behind the query, where one model calls the tools itself
      (see agents.calling); memory then has no entries.
  """

  task_id: str
  memory: memory_lib.Memory
  cards: tuple[base.Card, ...]
  key: records.RequestKey
  counts: collections.Counter[str] = dataclasses.field(
    default_factory=collections.Counter, compare=False
  )
  messages: tuple[records.Segment, ...] = ()

  def key_of(self, module: str) -> records.RequestKey:
    return dataclasses.replace(self.key, module=module)


class Planner(Protocol):
  """Writes the next step; the module that Flow-GRPO trains."""

  async def plan(self, view: View) -> tuple[records.Completion, records.SamplingSpec]:
    """Returns the response as sampled and the spec it was sampled with."""
    ...


class Executor(Protocol):
  """Turns a plan into one concrete tool call."""

  async def command(
    self, view: View, plan: plan_lib.Plan, card: base.Card
  ) -> tuple[records.ToolCall, str]:
    """Returns the call and the module's own words.

    Raises:
      base.BadArguments: no call can be made of the plan; text for the model.
    """
    ...


class Verifier(Protocol):
  """Judges whether memory suffices."""

  async def judge(
    self, view: View, plan: plan_lib.Plan, entry: memory_lib.Entry
  ) -> tuple[bool, str]:
    """Returns whether to stop, and the verdict that enters memory."""
    ...


class Generator(Protocol):
  """Writes the answer from query and memory."""

  async def answer(self, view: View) -> str:
    """Returns the answer; '' where memory holds none."""
    ...


@dataclasses.dataclass(frozen=True)
class ModelPlanner:
  """A planner backed by a language model.

  Attributes:
    model: language model that is sampled.
    sampling: sampling settings of its responses.
    prompt: layout of its prompts.
    max_prompt_tokens: longest prompt [tokens]. A longer one shortens older entries to
      `shortened_tokens`; one that still does not fit raises `PromptTooLong`.
    shortened_tokens: length that is left of such an entry's result [tokens].
  """

  model: language_model.LanguageModel
  sampling: records.SamplingSpec
  prompt: prompts.PromptConfig
  max_prompt_tokens: int
  shortened_tokens: int = fitting.SHORTENED_TOKENS

  async def plan(self, view):
    segments = self.compose(view)
    completion = await self.model.generate(
      segments, self.sampling, view.key_of('planner')
    )
    return completion, self.sampling

  def compose(self, view: View) -> tuple[records.Segment, ...]:
    """Composes the prompt, shortening older entries until it fits.

    How many it shortened is added to the view's count 'shortened'.

    Raises:
      PromptTooLong: it does not fit with every entry shortened.
    """
    for memory in fitting.shortenings(view.memory, self.model, self.shortened_tokens):
      segments = prompts.planner_prompt(self.prompt, view.cards, memory)
      tokens = self.model.count_tokens(segments)
      if tokens <= self.max_prompt_tokens:
        view.counts['shortened'] += memory.shortened
        return segments
    raise language_model.PromptTooLong(
      f'the prompt has {tokens} tokens, more than'
      f' {self.max_prompt_tokens}, with every memory entry shortened'
    )

  def count_tokens(self, cards: Sequence[base.Card], memory: memory_lib.Memory) -> int:
    """Returns the tokens of the prompt for a memory, which may be too many."""
    segments = prompts.planner_prompt(self.prompt, cards, memory)
    return self.model.count_tokens(segments)


_FIELD = re.compile(r'\{(sub_goal|context)\}')


@dataclasses.dataclass(frozen=True)
class RuleExecutor:
  """Fills a template a tool from the plan; knows the tools' schemas only.

  Attributes:
    templates: tool -> text of its first argument, with {sub_goal} and
      {context}; tools without one get '{sub_goal} {context}'.
    verbs: leading words that a sub-goal loses (they tell the verifier, not the
      tool, what to do).
  """

  templates: Mapping[str, str] = dataclasses.field(default_factory=dict)
  verbs: tuple[str, ...] = ()

  async def command(self, view, plan, card):
    del view
    sub_goal = plan.sub_goal
    for verb in self.verbs:
      if sub_goal.lower().startswith(verb + ' '):
        sub_goal = sub_goal[len(verb) + 1 :]
        break
    template = self.templates.get(card.name, '{sub_goal} {context}')
    # One pass: only the template's own braces count, not those of the plan.
    values = {'sub_goal': sub_goal, 'context': plan.context}
    text = _FIELD.sub(lambda m: values[m.group(1)], template).strip()
    # A rule fills the first argument; a tool with none is called as it is.
    arguments = {card.arguments[0].name: text} if card.arguments else {}
    return records.ToolCall(card.name, arguments), ''


@dataclasses.dataclass(frozen=True)
class CodeExecutor:
  """Hands a plan's program to the tool that runs programs, as it is."""

  async def command(self, view, plan, card):
    del view
    return records.ToolCall(card.name, {card.arguments[0].name: plan.context}), ''


@dataclasses.dataclass(frozen=True)
class FieldExecutor:
  """Reads a call's arguments from the plan's context: 'name=value; name=value'.

  A field ends where '; name=' begins the next one, so that a text may hold semicolons.
  A value is read in the type that the tool's card gives the argument: '5' is a number
  where the card wants one. Lists and objects are written as JSON. Text before the
  first field is an error, so that nothing is called by accident.
  """

  async def command(self, view, plan, card):
    del view
    types = {a.name: a.type for a in card.arguments}
    arguments = {}
    for field in filter(str.strip, _NEXT_FIELD.split(plan.context)):
      name, equals, value = (part.strip() for part in field.partition('='))
      if not equals or not name:
        raise base.BadArguments(
          f'{card.name}: {field.strip()!r} is no argument: '
          + (
            f'write name=value; name=value, with {", ".join(types)}'
            if types
            else 'it takes none, leave the context empty'
          )
        )
      if name in arguments:
        raise base.BadArguments(f'{card.name}: {name!r} is given twice')
      arguments[name] = _typed(value, types.get(name, 'string'))
    return records.ToolCall(card.name, arguments), ''


# The end of a field, and where the next one begins.
_NEXT_FIELD = re.compile(r';\s*(?=\w+\s*=)|;\s*\Z')


def _typed(value: str, kind: str) -> Any:
  """Returns a field's text in a card's type; the text itself where it does not fit."""
  # What is nested deeper is refused as text: records of it could not be written.
  if kind == 'string' or value.count('[') + value.count('{') > calls.MAX_DEPTH:
    return value
  try:
    read = json.loads(value)
  except (ValueError, RecursionError):
    return value
  # What the card does not want is refused where arguments are checked.
  return value if kind == 'any' and isinstance(read, str) else read


_ASKED: contextvars.ContextVar[list | None] = contextvars.ContextVar(
  'asked', default=None
)


@contextlib.contextmanager
def noting_prompts() -> Iterator[list[str]]:
  """Yields the prompts that frozen models are asked in its body, in order."""
  asked = []
  token = _ASKED.set(asked)
  try:
    yield asked
  finally:
    _ASKED.reset(token)


async def _ask(model, segments, sampling, key) -> records.Completion:
  """Asks a frozen model, and notes the prompt for the rollout's record."""
  completion = await model.generate(segments, sampling, key)
  asked = _ASKED.get()
  if asked is not None:  # A prompt that was refused as too long is not noted.
    asked.append('\n\n'.join(f'[{s.role}] {s.text}' for s in segments))
  return completion


async def _ask_fitting(
  model: language_model.LanguageModel,
  sampling: records.SamplingSpec,
  view: View,
  key: records.RequestKey,
  compose: Callable[[memory_lib.Memory], fitting.Prompt],
  alone: fitting.Prompt | None = None,
) -> records.Completion:
  """Asks a frozen model, shortening older entries until their prompt fits.

  The number of shortened entries is added to the view's count
  'shortened/<module>'.

  Args:
    model: model behind the module.
    sampling: sampling parameters of the request.
    view: view of the module, with the whole memory.
    key: request key of this call.
    compose: function from a memory to the prompt.
    alone: prompt without the planner's words, which tells whether an overflow
      is the planner's fault; None where the caller handles all overflows alike.

  Raises:
    fitting.PlannerTooLong: the prompt does not fit, but `alone` does.
    language_model.PromptTooLong: neither fits, or there is no `alone`.
  """
  try:
    completion, shortened = await fitting.ask(
      model, lambda prompt: _ask(model, prompt, sampling, key), compose, view.memory
    )
  except language_model.PromptTooLong as e:
    if alone is None:
      raise
    raise await fitting.explained(
      e, lambda prompt: model.generate(prompt, sampling, key), alone
    ) from e
  view.counts[f'shortened/{key.module}'] += shortened
  return completion


@dataclasses.dataclass(frozen=True)
class ModelExecutor:
  """A frozen model writes the command; a syntax tree reads it."""

  model: language_model.LanguageModel
  sampling: records.SamplingSpec
  attempts: int = 2

  async def command(self, view, plan, card):
    shown_card = prompts.render_card(card)
    tail = f'{plan.render()}\n\n{shown_card}'
    alone = prompts.module_prompt(
      instructions.EXECUTOR, fitting.without_turns(view.memory), shown_card
    )
    key, error = view.key_of('executor'), None
    for attempt in range(self.attempts):
      note = f'\n\nYour last command was refused: {error}' if error else ''
      try:
        completion = await _ask_fitting(
          self.model,
          self.sampling,
          view,
          dataclasses.replace(key, attempt=attempt),
          lambda memory: prompts.module_prompt(
            instructions.EXECUTOR,
            memory,
            tail + note,  # noqa: B023 (called at once)
          ),
          None if note else alone,
        )
      except language_model.PromptTooLong:
        if not note:
          raise
        break  # No room for the note that says why the command was refused.
      try:
        _, arguments = calls.parse_command(completion.text, card, completion.thinking)
        arguments = base.check_arguments(card, arguments)
        return records.ToolCall(card.name, arguments), completion.text
      except base.BadArguments as e:
        error = e
    assert error is not None  # An attempt was made, and its command refused.
    raise error


@dataclasses.dataclass(frozen=True)
class RuleVerifier:
  """Stops when the plan said that its step answers, and the step succeeded.

  It reads the planner's own words and whether the tool failed; so when to stop
  is the planner's decision, and Flow-GRPO trains it.

  Attributes:
    verb: a sub-goal that starts with it claims to answer the query.
  """

  verb: str = 'answer'

  async def judge(self, view, plan, entry):
    del view
    claims = re.match(rf'{re.escape(self.verb)}\b', plan.sub_goal.lower())
    if entry.failed:
      return False, 'continue: it failed'
    return (True, 'stop') if claims else (False, 'continue')


@dataclasses.dataclass(frozen=True)
class WorldVerifier:
  """Never stops: the episode of the task's world ends the rollout."""

  async def judge(self, view, plan, entry):
    del view, plan, entry
    return False, ''


@dataclasses.dataclass(frozen=True)
class ModelVerifier:
  """A frozen model judges; only an explicit conclusion stops.

  What concludes nothing is asked again with that said, and then continues: the
  turn budget bounds the cost of that.
  """

  model: language_model.LanguageModel
  sampling: records.SamplingSpec
  attempts: int = 2

  async def judge(self, view, plan, entry):
    del plan
    seen = dataclasses.replace(view, memory=view.memory.append(entry))
    alone = prompts.module_prompt(
      instructions.VERIFIER, fitting.without_turns(view.memory)
    )
    key, note = view.key_of('verifier'), ''
    for attempt in range(self.attempts):
      try:
        completion = await _ask_fitting(
          self.model,
          self.sampling,
          seen,
          dataclasses.replace(key, attempt=attempt),
          lambda memory: prompts.module_prompt(
            instructions.VERIFIER,
            memory,
            note,  # noqa: B023 (called at once)
          ),
          None if note else alone,
        )
      except language_model.PromptTooLong:
        if not note:
          raise
        break  # No room to say it once more.
      stop, verdict = verdict_lib.parse(completion.text, completion.thinking)
      if stop is not None:
        break
      note = instructions.VERIFIER_AGAIN
    return bool(stop), verdict


@dataclasses.dataclass(frozen=True)
class RuleGenerator:
  """Answers with what the last successful step found."""

  async def answer(self, view):
    entries = reversed(view.memory.plain().entries)
    return next((e.result.strip() for e in entries if not e.failed), '')


@dataclasses.dataclass(frozen=True)
class ModelGenerator:
  """A frozen model writes the answer."""

  model: language_model.LanguageModel
  sampling: records.SamplingSpec

  async def answer(self, view):
    compose = functools.partial(prompts.module_prompt, instructions.GENERATOR)
    completion = await _ask_fitting(
      self.model,
      self.sampling,
      view,
      view.key_of('generator'),
      compose,
      alone=compose(fitting.without_turns(view.memory)),
    )
    return thoughts.said_by(completion).strip()


@dataclasses.dataclass(frozen=True)
class OracleAnalyst:
  """Puts the plan that comes with a task into the place of an analysis.

  For evaluations that ask what a perfect plan is worth; the rollout reads the plan.
  """


@dataclasses.dataclass(frozen=True)
class ModelAnalyst:
  """A frozen model's analysis: one greedy call a query, shared by its group."""

  model: language_model.LanguageModel
  max_new_tokens: int = 256

  async def analyse(self, view: View) -> str:
    cards = '\n'.join(prompts.render_card(c, 'brief') for c in view.cards)
    sampling = records.SamplingSpec(temperature=0.0, max_new_tokens=self.max_new_tokens)
    segments = prompts.module_prompt(
      f'{instructions.ANALYST}\n\nTools:\n{cards}', view.memory
    )
    key = dataclasses.replace(view.key_of('analysis'), rollout=0, turn=0)
    try:
      completion = await self.model.generate(segments, sampling, key)
    except language_model.PromptTooLong as e:
      raise fitting.config_too_long(e) from e
    return thoughts.said_by(completion).strip()
