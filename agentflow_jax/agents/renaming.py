"""Shows tools under other names, to see whether an agent reads their cards.

A renamed tool is the same function behind another name, another description and other
names of its arguments. Rollouts record calls as they were made; the environment, its
checks and the reward see them under the names that they know.
"""

import collections
import dataclasses
import hashlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

from agentflow_jax import records
from agentflow_jax.agents import modules, rollout
from agentflow_jax.agents.environments import base as environments
from agentflow_jax.agents.tools import base

_NAME = re.compile(r'[A-Za-z_]\w*', re.ASCII)


@dataclasses.dataclass(frozen=True)
class NewName:
  """What a tool is called instead.

  Attributes:
    name: new name.
    purpose: new sentence on what the tool is for; '' for the tool's own.
    arguments: new names of arguments by their names; others keep theirs.
  """

  name: str
  purpose: str = ''
  arguments: Mapping[str, str] = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    if not isinstance(self.purpose, str) or not isinstance(self.arguments, Mapping):
      raise ValueError('"purpose" must be a text, and "arguments" an object')
    for name in (self.name, *self.arguments.values()):
      if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(
          f'a name has letters, digits and underscores, and begins with none of the'
          f' digits: {name!r}'
        )


# New names of the tools of GeoHop; those of the desk are in desk.new_names.
BUNDLED: Mapping[str, NewName] = {
  'search': NewName(
    'look_up',
    'Shows the passages of a collection that fit some words best.',
    {'query': 'words'},
  ),
  'python': NewName(
    'run_program',
    'Executes source text in Python and gives back its output.',
    {'code': 'source'},
  ),
}


def made_up(card: base.Card) -> NewName:
  """Returns a name that says nothing, for a tool of which no other is known.

  It is a function of the tool's name, so that every rollout shows the same one.
  """
  digest = hashlib.blake2b(card.name.encode(), digest_size=3).hexdigest()
  return NewName(
    f'tool_{digest}',
    arguments={
      argument.name: f'value_{i + 1}' for i, argument in enumerate(card.arguments)
    },
  )


class Names:
  """New names of tools, and the way back.

  Args:
    known: new names by the names of tools.
    all_of_them: whether tools that are not among these get a made-up name; otherwise
      they keep theirs.
  """

  def __init__(self, known: Mapping[str, NewName], all_of_them: bool = False):
    self._known, self._all = dict(known), all_of_them
    self._cards: dict[str, base.Card] = {}  # By their new names.

  def said(self) -> dict[str, Any]:
    """Returns the new names as JSON, by the names of tools."""
    return {tool: dataclasses.asdict(new) for tool, new in self._known.items()}

  def check(self, cards: Iterable[base.Card]) -> None:
    """Raises ValueError where a tool or an argument is to be renamed that is not there.

    Args:
      cards: cards of all tools.
    """
    arguments = {card.name: {a.name for a in card.arguments} for card in cards}
    for tool, new in self._known.items():
      if tool not in arguments:
        raise ValueError(f'there is no tool {tool!r}; there are {", ".join(arguments)}')
      if unknown := sorted(set(new.arguments) - arguments[tool]):
        raise ValueError(f'{tool} has no argument {unknown[0]!r}')

  def of(self, card: base.Card) -> NewName:
    """Returns the new name of a tool."""
    if card.name in self._known:
      return self._known[card.name]
    return made_up(card) if self._all else NewName(card.name)

  def card(self, card: base.Card) -> base.Card:
    """Returns the card of a renamed tool; its examples have the new names."""
    new = self.of(card)
    self._cards[new.name] = card
    arguments = tuple(
      dataclasses.replace(a, name=new.arguments.get(a.name, a.name))
      for a in card.arguments
    )
    return dataclasses.replace(
      card,
      name=new.name,
      purpose=new.purpose or self.text(card.purpose),
      arguments=arguments,
      limits=self.text(card.limits),
      examples=tuple(_in_examples(new, text) for text in card.examples),
    )

  def tools(self, tools: Mapping[str, base.Tool]) -> dict[str, base.Tool]:
    """Returns renamed tools by their new names, in the same order.

    Raises:
      ValueError: two of them would have one name.
    """
    found = [self._tool(tool) for tool in tools.values()]
    check_distinct(tool.card for tool in found)
    return {tool.card.name: tool for tool in found}

  def _tool(self, tool: base.Tool) -> base.Tool:
    """Returns a renamed tool."""
    new = self.of(tool.card)
    back = {value: key for key, value in new.arguments.items()}

    async def call(arguments: Mapping[str, Any]) -> str:
      try:
        return await tool.call({back.get(k, k): v for k, v in arguments.items()})
      except base.BadArguments as e:
        raise base.BadArguments(self.text(str(e))) from e

    return dataclasses.replace(tool, card=self.card(tool.card), call=call)

  def text(self, text: str) -> str:
    """Returns a text that mentions tools by their new names.

    Names that are also words, such as `finish`, count as mentions only before an
    opening parenthesis, before a colon at the start, and behind "call".
    """
    own = {card.name: self.of(card).name for card in self._cards.values()}

    def new(found: re.Match[str]) -> str:
      name, behind = found[0], text[found.end() : found.end() + 1]
      is_mention = (
        '_' in name
        or behind == '('
        or (behind == ':' and not found.start())
        or text[: found.start()].endswith('call ')
      )
      return own.get(name, name) if is_mention else name

    return re.sub(r'\b[A-Za-z_]\w*', new, text)  # In one pass: names may change places.

  def card_before(self, name: str) -> base.Card | None:
    """Returns the card of the tool that has a new name; None where there is none."""
    return self._cards.get(name)

  def call_before(self, call: records.ToolCall) -> records.ToolCall:
    """Returns a call under the names that the tool itself knows."""
    card = self._cards.get(call.tool)
    if card is None:
      return call
    back = {value: key for key, value in self.of(card).arguments.items()}
    return records.ToolCall(
      card.name, {back.get(k, k): v for k, v in call.arguments.items()}
    )

  def ending_before(self, ending: records.Ending) -> records.Ending:
    """Returns the end of a rollout, its calls under the names that tools know."""
    return dataclasses.replace(
      ending,
      calls=tuple((self.call_before(call), result) for call, result in ending.calls),
    )


def check_distinct(cards: Iterable[base.Card]) -> None:
  """Raises ValueError where two tools, or two arguments of one, have one name."""
  cards = list(cards)
  for where, names in [
    ('tools', [card.name for card in cards]),
    *((f'arguments of {c.name}', [a.name for a in c.arguments]) for c in cards),
  ]:
    name, count = (collections.Counter(names).most_common(1) or [('', 0)])[0]
    if count > 1:
      raise ValueError(f'two {where} would be called {name!r}')


def renamed(agent: rollout.Agent, names: Names) -> rollout.Agent:
  """Returns an agent whose tools, and whose environment's, have new names.

  Args:
    agent: agent whose actions are calls of tools.
    names: new names.

  Raises:
    ValueError: two tools would have one name, or the agent's actions are programs,
      which call tools as functions.
  """
  if agent.plan_format == 'code':
    raise ValueError('tools are renamed in calls, not in programs')
  tools = names.tools(agent.tools)
  environment, executor, reward = agent.environment, agent.executor, agent.reward
  if environment is not None:
    environment = _Environment(environment, names)
    check_distinct([*(tool.card for tool in tools.values()), *environment.cards])
  if isinstance(executor, modules.RuleExecutor):
    executor = dataclasses.replace(
      executor,
      templates={
        names.of(agent.tools[k].card).name: text
        for k, text in executor.templates.items()
        if k in agent.tools
      },
    )

  async def rewarded(task, ending, verdict):
    return await reward(task, names.ending_before(ending), verdict)

  return dataclasses.replace(
    agent, tools=tools, environment=environment, executor=executor, reward=rewarded
  )


def _in_examples(new: NewName, text: str) -> str:
  """Returns an example of a call with the new names of its arguments."""
  return re.sub(r'\b(\w+)(?==)', lambda m: new.arguments.get(m[1], m[1]), text)


class _Environment:
  """An environment whose tools have new names, see environments.Environment."""

  def __init__(self, inner: environments.Environment, names: Names):
    self._inner, self._names = inner, names
    self.name, self.version, self.capacity = inner.name, inner.version, inner.capacity
    self.cards = tuple(map(names.card, inner.cards))

  def check(self, task: records.Task) -> list[str]:
    """See Environment.check."""
    return self._inner.check(task)

  async def open(
    self, task: records.Task, key: records.RequestKey, state: bytes | None = None
  ) -> environments.Episode:
    """See Environment.open."""
    episode = await self._inner.open(task, key, state)
    try:
      return _Episode(episode, self._names)
    except ValueError as e:
      await episode.close()
      raise environments.Unreachable(str(e)) from e

  async def close(self) -> None:
    """See Environment.close."""
    await self._inner.close()


class _Episode:
  """An episode whose tools have new names, see environments.Episode."""

  def __init__(self, inner: environments.Episode, names: Names):
    self._inner, self._names = inner, names
    self.tools, self.outside = names.tools(inner.tools), inner.outside
    self.brief = dataclasses.replace(inner.brief, policy=names.text(inner.brief.policy))

  @property
  def ended(self) -> environments.Ended:
    return self._inner.ended

  @property
  def answer(self) -> str | None:
    return self._inner.answer

  async def verify(self, ending: records.Ending) -> records.Verdict:
    """See Episode.verify."""
    return await self._inner.verify(self._names.ending_before(ending))

  async def digest(self) -> str:
    """See Episode.digest."""
    return await self._inner.digest()

  def state(self) -> bytes | None:
    """See Episode.state."""
    return self._inner.state()

  async def close(self) -> None:
    """See Episode.close."""
    await self._inner.close()
