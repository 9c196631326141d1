"""The evolving memory: an immutable value, one per rollout (contract 6)."""

import dataclasses
import re
from collections.abc import Callable
from typing import Protocol

from agentflow_jax import records
from agentflow_jax.agents import plan as plan_lib
from agentflow_jax.agents.environments import base as environments

CUT = ' ... '
# Before any token is counted: a tool may return megabytes.
_MAX_CHARACTERS = 20_000
_WORD_START = re.compile(r'\S*')
_WORD_END = re.compile(r'\S*\Z')


@dataclasses.dataclass(frozen=True)
class Entry:
  """One turn as memory keeps it.

  Attributes:
    tool: the tool that the plan named.
    sub_goal: sub-goal of the plan, as written.
    context: context of the plan, as written.
    result: text that the tool returned, shortened once.
    failed: whether the tool reported an error.
    verdict: the verifier's conclusion and reason.
  """

  tool: str
  sub_goal: str
  context: str
  result: str
  failed: bool = False
  verdict: str = ''

  def render(self, number: int) -> str:
    """Returns the entry as one paragraph of the prompt."""
    plan = '; '.join(p for p in (self.sub_goal, self.context) if p)
    arrow = ' ! ' if self.failed else ' -> '
    text = f'{number}. {self.tool}: {plan}{arrow}{self.result}'
    return f'{text} | {self.verdict}' if self.verdict else text


@dataclasses.dataclass(frozen=True)
class Memory:
  """What the modules of one rollout share. Immutable; append returns a new one.

  A config whose plans point at names by number builds a memory of another class, which
  writes the texts below in its own way (agents.numbered_memory).

  Attributes:
    query: the query; never shortened.
    analysis: a frozen model's analysis of the query; may be empty.
    entries: entries of the turns, in order of time.
    shortened: entries that an overflowing prompt has shortened again.
    policy: rules of the task's world; never shortened. Empty where there is no world.
  """

  query: str
  analysis: str = ''
  entries: tuple[Entry, ...] = ()
  shortened: int = 0
  policy: str = ''

  def append(self, entry: Entry) -> 'Memory':
    """Returns this memory with `entry` at its end."""
    return dataclasses.replace(self, entries=self.entries + (entry,))

  def plain(self) -> 'Memory':
    """Returns this memory in plain words, as every module but the planner reads it."""
    return self

  def plain_plan(self, plan: plan_lib.Plan) -> plan_lib.Plan:
    """Returns a plan in plain words, as the executor reads it.

    Raises:
      base.BadArguments: the plan has no meaning in this memory; text for the planner.
    """
    return plan

  def entry(
    self,
    plan: plan_lib.Plan,
    result: records.ToolResult,
    count_tokens: Callable[[str], int],
    tokens: int,
  ) -> tuple[Entry, 'Memory']:
    """Makes the entry of a turn, which has no verdict and is not appended yet.

    Args:
      plan: plan of the turn, as written.
      result: result of its call.
      count_tokens: function that counts a text's tokens.
      tokens: budget of each text [tokens].

    Returns:
      The entry, and the memory that has read the result.
    """
    text, memory = self.read(result.text, count_tokens, tokens)
    entry = Entry(
      tool=plan.tool,
      sub_goal=shorten(plan.sub_goal, count_tokens, tokens),
      context=shorten(plan.context, count_tokens, tokens),
      result=text,
      failed=result.error is not None,
    )
    return entry, memory

  def read(
    self, text: str, count_tokens: Callable[[str], int], tokens: int
  ) -> tuple[str, 'Memory']:
    """Shortens a result to its budget; returns it and the memory that has read it."""
    return shorten(text, count_tokens, tokens), self

  def judged(
    self, entry: Entry, verdict: str, count_tokens: Callable[[str], int], tokens: int
  ) -> 'Memory':
    """Returns this memory with `entry` at its end, and with a verdict on it.

    Args:
      entry: entry of the turn.
      verdict: words of the verifier.
      count_tokens: function that counts a text's tokens.
      tokens: budget of the verdict [tokens].
    """
    verdict = shorten(verdict, count_tokens, tokens)
    return self.append(dataclasses.replace(entry, verdict=verdict))

  def shorten_older(
    self, count_tokens: Callable[[str], int], tokens: int
  ) -> 'Memory | None':
    """Shortens the oldest entry that is still longer than `tokens`.

    Args:
      count_tokens: function that counts a text's tokens.
      tokens: largest number of tokens that is left of the entry's result.

    Returns:
      A new memory, or None when nothing is left to shorten.
    """
    for i, entry in enumerate(self.entries):
      if count_tokens(entry.result) <= tokens:
        continue
      result = shorten(entry.result, count_tokens, tokens)
      # What a template adds to every count may leave nothing to gain.
      if len(result) < len(entry.result):
        entry = dataclasses.replace(entry, result=result)
        entries = self.entries[:i] + (entry,) + self.entries[i + 1 :]
        return dataclasses.replace(self, entries=entries, shortened=self.shortened + 1)
    return None


class Start(Protocol):
  """Function that makes the memory which a rollout begins with."""

  def __call__(
    self,
    query: str,
    analysis: str = '',
    brief: environments.Brief = environments.Brief(),
  ) -> Memory:
    """Returns the memory.

    Args:
      query: query of the task.
      analysis: analysis of the query; '' for none.
      brief: information on the world of the task, empty without one.
    """
    ...


def start(
  query: str, analysis: str = '', brief: environments.Brief = environments.Brief()
) -> Memory:
  """Returns a memory that keeps every text as it is, see Start."""
  return Memory(query, analysis, policy=brief.policy)


def bounded(text: str) -> str:
  """Returns encodable text of bounded length, whatever a tool returned."""
  if len(text) > _MAX_CHARACTERS:
    half = _MAX_CHARACTERS // 2
    text = text[:half] + CUT + text[-half:]
  return text.encode('utf-8', 'replace').decode()


def shorten(text: str, count_tokens: Callable[[str], int], tokens: int) -> str:
  """Keeps the head and the tail of a text within a token budget.

  Args:
    text: any text.
    count_tokens: function that counts a text's tokens.
    tokens: the budget, at least 1.

  Returns:
    The text itself where it fits; else its first two thirds and its last third
    around dots, as long as fits. A word, such as a number or a mark, is left
    out rather than cut, if it is not very long.
  """
  text = bounded(text)
  if count_tokens(text) <= tokens:
    return text
  low, high = 0, len(text)
  while low < high:  # Most characters kept that still fit.
    middle = (low + high + 1) // 2
    if count_tokens(_ends(text, middle)) <= tokens:
      low = middle
    else:
      high = middle - 1
  return _ends(text, low)


def _found(match: re.Match[str] | None) -> str:
  return match.group() if match else ''


def _ends(text, kept):
  head = (2 * kept + 2) // 3
  tail = len(text) - (kept - head)
  if not text[head : head + 1].isspace():
    head -= len(_found(_WORD_END.search(text, max(head - 40, 0), head)))
  if not text[tail - 1 : tail].isspace():
    tail += len(_found(_WORD_START.match(text, tail, tail + 40)))
  return text[:head] + CUT.rstrip() + text[tail:]
