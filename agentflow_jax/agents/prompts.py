"""What the modules are told, laid out so that what changes comes last.

Instructions and tool cards first, then the policy of a world, then query and analysis,
then memory in order of time, then what is to be done now: the prompts of one rollout,
and of one group, share prefixes.
"""

import dataclasses
from collections.abc import Sequence

from agentflow_jax import records
from agentflow_jax.agents import instructions
from agentflow_jax.agents import memory as memory_lib
from agentflow_jax.agents.tools import base

_CARDS = ('full', 'brief', 'names')
_PYTHON_TYPES = {
  'string': 'str',
  'integer': 'int',
  'number': 'float',
  'boolean': 'bool',
  'array': 'list',
  'object': 'dict',
}


@dataclasses.dataclass(frozen=True)
class PromptConfig:
  """How planner prompts are written.

  Attributes:
    system: instructions at the beginning of the prompt; '' for none (a small
      planner that was trained on the format needs none). Where plans are programs
      (agent.plan_format=code), the default stands for the instructions of those; where
      one model calls tools (agent.plan_format=tool_calls), it stands for ''.
    tail: text at the end of the prompt.
    cards: amount that the prompt says of each tool: 'full', 'brief' for names and
      purposes, or 'names', which is enough for a small planner that was trained with
      these tools.
  """

  system: str = instructions.PLANNER
  tail: str = instructions.PLANNER_TAIL
  cards: str = 'full'

  def __post_init__(self):
    if self.cards not in _CARDS:
      raise ValueError(f'cards must be one of {_CARDS}: {self.cards!r}')


def render_card(card: base.Card, style: str = 'full') -> str:
  """Returns a tool's card as text; style as in `PromptConfig.cards`."""
  if style == 'names':
    return '\n'.join([card.name, *(f.name for f in card.functions)])
  text = f'{card.name}: {card.purpose}'
  functions = [_signature(f, style) for f in card.functions]
  if style == 'brief':
    return '\n'.join([text, *functions])
  lines = [text]
  for a in card.arguments:
    optional = '' if a.required else ', optional'
    lines.append(f'  {a.name} ({a.type}{optional}): {a.description}')
  lines += [f'  Example: {e}' for e in card.examples]
  if card.limits:
    lines.append(f'  Limits: {card.limits}')
  if functions:
    lines += ['Functions:', *functions]
  return '\n'.join(lines)


def _signature(card: base.Card, style: str) -> str:
  """Returns a tool as a function of a program."""
  arguments = ', '.join(
    f'{a.name}: {_PYTHON_TYPES.get(a.type, a.type)}{"" if a.required else " = None"}'
    for a in card.arguments
  )
  lines = [f'{card.name}({arguments}): {card.purpose}']
  if style == 'full':
    lines += [f'  {a.name}: {a.description}' for a in card.arguments]
    if card.limits:
      lines.append(f'  {card.limits}')
  return '\n'.join(lines)


def planner_prompt(
  config: PromptConfig, cards: Sequence[base.Card], memory: memory_lib.Memory
) -> tuple[records.Segment, ...]:
  """Composes the planner's prompt for one turn."""
  rendered = '\n'.join(render_card(c, config.cards) for c in cards)
  head = f'{config.system}\n\n' if config.system else ''
  segments = [records.Segment('system', f'{head}Tools:\n{rendered}')]
  return tuple(segments + state_segments(memory)) + (
    records.Segment('user', f'\n{config.tail}'),
  )


def state_segments(memory: memory_lib.Memory) -> list[records.Segment]:
  """The policy, the query, the analysis and the memory: what all modules read."""
  segments = []
  if memory.policy:
    segments = [
      records.Segment('user', 'Policy: '),
      records.Segment('user', memory.policy, trusted=False),
      records.Segment('user', '\n'),
    ]
  segments += [
    records.Segment('user', 'Query: '),
    records.Segment('user', memory.query, trusted=False),
  ]
  if memory.analysis:
    segments += [
      records.Segment('user', '\nAnalysis: '),
      records.Segment('user', memory.analysis, trusted=False),
    ]
  for i, entry in enumerate(memory.entries):
    text = f'\n{entry.render(i + 1)}'
    segments.append(records.Segment('user', text, trusted=False))
  return segments


def module_prompt(
  instructions: str, memory: memory_lib.Memory, tail: str = ''
) -> tuple[records.Segment, ...]:
  """Composes a frozen module's prompt: instructions, state, what to do now.

  Frozen modules read the state in plain words, however the planner reads it.
  """
  segments = [records.Segment('system', instructions)]
  segments += state_segments(memory.plain())
  if tail:
    segments.append(records.Segment('user', f'\n{tail}', trusted=False))
  return tuple(segments)
