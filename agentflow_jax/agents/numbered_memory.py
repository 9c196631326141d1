"""Memory in which names and numbers are numbered, so that a plan can point at them.

Only configs with agent.number_mentions build it: rollouts, modules and prompts of all
others know a plain memory. Names of a world (see environments.Brief) and mentions in
programs are numbered here, too.
"""

import dataclasses

from agentflow_jax.agents import memory as memory_lib
from agentflow_jax.agents import modules
from agentflow_jax.agents import references as references_lib
from agentflow_jax.agents.environments import base as environments
from agentflow_jax.agents.tools import base


@dataclasses.dataclass(frozen=True)
class NumberedMemory(memory_lib.Memory):
  """A memory whose query, analysis and results carry marks; its policy has none.

  Attributes:
    references: texts that the marks stand for.
    in_programs: whether plans are programs of Python, in which a mention becomes a
      literal.
  """

  references: references_lib.References = dataclasses.field(kw_only=True)
  in_programs: bool = False

  def mark(self, text: str) -> tuple[str, 'NumberedMemory']:
    """Marks what `text` mentions; returns it and the memory that knows it."""
    marked, references = self.references.annotate(text)
    return marked, dataclasses.replace(self, references=references)

  def plain(self):
    plain = self.references.unmark
    entries = tuple(
      dataclasses.replace(
        e,
        sub_goal=plain(e.sub_goal),
        context=plain(e.context),
        result=plain(e.result),
        verdict=plain(e.verdict),
      )
      for e in self.entries
    )
    return dataclasses.replace(
      self, query=plain(self.query), analysis=plain(self.analysis), entries=entries
    )

  def plain_plan(self, plan):
    try:
      return dataclasses.replace(
        plan,
        sub_goal=self.references.resolve(plan.sub_goal),
        context=self.references.resolve(plan.context, literal=self.in_programs),
      )
    except references_lib.UnknownReference as e:
      raise base.BadArguments(str(e)) from e

  def entry(self, plan, result, count_tokens, tokens):
    entry, memory = super().entry(plan, result, count_tokens, tokens)
    # A name that no tool has is the planner's own text.
    return dataclasses.replace(entry, tool=references_lib.defuse(entry.tool)), memory

  def read(self, text, count_tokens, tokens):
    # The budget counts the marks, but what is cut out gets no number.
    text = memory_lib.shorten(
      text, lambda text: count_tokens(self.mark(text)[0]), tokens
    )
    return self.mark(text)

  def judged(self, entry, verdict, count_tokens, tokens):
    return super().judged(entry, references_lib.defuse(verdict), count_tokens, tokens)


@dataclasses.dataclass(frozen=True)
class Numbering:
  """Makes the memory that a rollout begins with.

  Attributes:
    gazetteer: names that are known in every task; a world adds its own.
    in_programs: whether plans are programs.
  """

  gazetteer: references_lib.Gazetteer
  in_programs: bool = False

  def __call__(
    self,
    query: str,
    analysis: str = '',
    brief: environments.Brief = environments.Brief(),
  ) -> NumberedMemory:
    """See memory.Start."""
    known = references_lib.gazetteer(brief.names, brief.keys, self.gazetteer)
    memory = NumberedMemory(
      '', references=references_lib.References(known), in_programs=self.in_programs
    )
    query, memory = memory.mark(query)
    analysis, memory = memory.mark(analysis)
    # No plan refers to a rule by number: a mark in the policy would be a forged one.
    policy = references_lib.defuse(brief.policy)
    return dataclasses.replace(memory, query=query, analysis=analysis, policy=policy)


class MentionGenerator(modules.RuleGenerator):
  """Answers with the last mention in what the last successful step found."""

  async def answer(self, view):
    text = await super().answer(view)
    return view.memory.references.last_in(text) or text


def mentions(memory: memory_lib.Memory) -> tuple[str, ...]:
  """Returns the texts that #1, #2, ... stand for; none in a plain memory."""
  return memory.references.mentions if isinstance(memory, NumberedMemory) else ()


def resolved(memory: memory_lib.Memory, text: str, literal: bool = False) -> str:
  """Replaces numbers in a text of a plan, see References.resolve."""
  if not isinstance(memory, NumberedMemory):
    return text
  return memory.references.resolve(text, literal)
