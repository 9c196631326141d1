"""What a planner writes, and a parser that says why it could not be read."""

import dataclasses
import json
import re
from collections.abc import Sequence

from agentflow_jax.agents import lenient_json, thoughts, tool_naming

# A field may be numbered, bulleted, bold, a heading or in back-ticks, in any
# case: '3. **Tool Name:** `search`'. Its text runs to the next field. A colon
# follows, or the name has its line for itself as a heading has. No two
# neighbouring repetitions match the same character: the time is linear.
_HEADER = re.compile(
  r'^[ \t>#*_`"\'•-]*(?:\(?\d{1,2}[.):][\s*_`"\'#]*)?'
  r'(?P<name>justification|context|sub[\s_‐‑–-]?goals?|(?:selected\s+)?'
  r'tool(?:[\s_-]?name)?)'
  r'[*_`"\' \t]*(?:[:：](?:\*+|[_`]+(?=\s|$))?[ \t]*|$)',
  re.IGNORECASE | re.MULTILINE,
)
_FIELD = re.compile(r'justification|context|sub_?goal|tool(_name)?')
_FENCE = re.compile(r'```\w*[ \t]*$', re.MULTILINE)
# The beginning, or the end, of a fenced block.
_FENCE_LINE = re.compile(r'[ \t]*(`{3,}|~{3,})[ \t]*([\w+-]*)[ \t]*')
_DECORATION = ' \t\r\n*_`"\''
_TOOL_WORD = re.compile(r'[\w.-]+')
_SHOWN_TOOL = 60  # Characters of what is written instead of a tool's name.
_MARKS = ('**', '*', '`', '"', "'")


class PlanError(Exception):
  """A response that is no plan; its text says why."""


@dataclasses.dataclass(frozen=True)
class Plan:
  """A planner's action.

  Attributes:
    sub_goal: goal of this turn.
    context: information that the tool needs; may be empty.
    tool: one tool's name, as its card spells it; the text in its place where there is a
      problem.
    justification: reason for this step; may be empty.
    problem: sentence on why the plan names no tool that there is; '' where it does.
  """

  sub_goal: str
  context: str
  tool: str
  justification: str = ''
  problem: str = ''

  def render(self) -> str:
    """Returns the plan in the format of fields that the instructions ask for."""
    lines = []
    if self.justification:
      lines.append(f'Justification: {self.justification}')
    lines += [
      f'Sub-Goal: {self.sub_goal}',
      f'Context: {self.context}',
      f'Tool Name: {self.tool}',
    ]
    return '\n'.join(lines)

  def render_code(self) -> str:
    """Returns a plan that is a program: its thought, and the program in a fence."""
    fence = '```'
    while fence in self.context:
      fence += '`'
    block = f'{fence}python\n{self.context}\n{fence}'
    return f'{self.sub_goal}\n{block}' if self.sub_goal else block


def parse(
  text: str, tools: Sequence[str], thinking: bool = False, any_tool: bool = False
) -> Plan:
  """Reads a plan from a planner's response.

  Where a field stands more than once the last one counts (models think aloud
  first). A JSON object of the fields is a plan, too, where it stands for itself
  and is not quoted in a field. Thoughts are not read (agents.thoughts).

  Args:
    text: the response; anything at all.
    tools: the names of the tools that there are.
    thinking: whether the prompt ended inside an open thought.
    any_tool: whether a plan whose field does not name exactly one of the tools is
      returned with its `problem`.

  Returns:
    The plan, its tool spelled as in `tools`.

  Raises:
    PlanError: the response is too long, a field is missing or empty, or, without
      `any_tool`, the tool's field does not name exactly one of the tools.
  """
  text = _said(text, thinking)
  text = _FENCE.sub('', text)
  headers = list(_HEADER.finditer(text))
  fields = {}
  for i, header in enumerate(headers):
    end = headers[i + 1].start() if i + 1 < len(headers) else len(text)
    fields[_canonical(header['name'])] = text[header.end() : end].strip()
  starts = min((h.start() for h in headers), default=len(text))
  quoted = 0 <= starts < text.find('{')
  if not quoted or not {'sub_goal', 'tool'} <= fields.keys():
    fields = _from_json(text) or fields
  if not fields:
    raise PlanError('no field of a plan in the response')
  sub_goal = _undecorated(fields.get('sub_goal', ''))
  if not sub_goal:
    raise PlanError('the plan has no sub-goal')
  if 'tool' not in fields:
    raise PlanError('the plan names no tool')
  problem = ''
  try:
    tool = tool_naming.read(fields['tool'], tools)
  except ValueError as e:
    if not any_tool:
      raise PlanError(str(e)) from e
    tool, problem = ' '.join(fields['tool'].split())[:_SHOWN_TOOL], str(e)
  return Plan(
    sub_goal=sub_goal,
    context=_undecorated(fields.get('context', '')),
    tool=tool,
    justification=_undecorated(fields.get('justification', '')),
    problem=problem,
  )


def parse_code(text: str, tool: str, thinking: bool = False) -> Plan:
  """Reads a program from a planner's response: a thought and one fenced block.

  Thoughts between tags are not read (agents.thoughts). The last fence may be missing.

  Args:
    text: the response; anything at all.
    tool: name of the tool that runs programs.
    thinking: whether the prompt ended inside an open thought.

  Returns:
    The plan: its sub-goal is the text around the block, its context the program.

  Raises:
    PlanError: the response is too long, or it has no fenced block, an empty one, or
      more than one.
  """
  outside, blocks = _blocks(_said(text, thinking))
  if len(blocks) != 1:
    found = f'{len(blocks)} fenced blocks' if blocks else 'no fenced block'
    raise PlanError(f'the response has {found}: write one, with a program')
  if not blocks[0].strip():
    raise PlanError('the fenced block is empty')
  return Plan(sub_goal=outside.strip(), context=blocks[0], tool=tool)


def _blocks(text: str) -> tuple[str, list[str]]:
  """Returns the text outside of fenced blocks, and the text of each block."""
  outside, blocks, fence = [], [], ''
  for line in text.split('\n'):
    found = _FENCE_LINE.fullmatch(line)
    if fence and found and found[1].startswith(fence) and not found[2]:
      fence = ''
    elif fence:
      blocks[-1].append(line)
    elif found:
      fence = found[1]
      blocks.append([])
    else:
      outside.append(line)
  return '\n'.join(outside), ['\n'.join(block) for block in blocks]


def end_of_code(text: str, thinking: bool = False) -> int | None:
  """Finds where a response that is still being written has ended a fenced block.

  Args:
    text: beginning of the response, as far as it is written.
    thinking: whether the prompt ended inside an open thought.

  Returns:
    The length of the text up to and with the line that ends the first block; None
    while there is none. More text never changes it.
  """
  text = text[: text.rfind('\n') + 1]  # Whole lines.
  end = thoughts.begin(text, thinking, settled=True)
  if end is None:
    return None
  fence = ''
  for line in text[end:].split('\n')[:-1]:
    end += len(line) + 1
    found = _FENCE_LINE.fullmatch(line)
    if fence and found and found[1].startswith(fence) and not found[2]:
      return end
    if not fence and found:
      fence = found[1]
  return None


def end_of(text: str, thinking: bool = False) -> int | None:
  """Finds where a response that is still being written has said its plan.

  That is the line that names a tool, in the field 'Tool Name', where sub-goal and
  context came before it, as the instructions ask for. The first such line counts
  (`parse` reads the last field of each name). Where in doubt there is none: an
  object before it may be a plan as JSON, or be quoted; thoughts are no plan, and
  a tag of thoughts behind them may begin or end others.

  Args:
    text: beginning of the response, as far as it is written.
    thinking: whether the prompt ended inside an open thought.

  Returns:
    The length of the text up to and with the end of that line; None while there
    is none. More text never changes it.
  """
  text = text[: text.rfind('\n') + 1]  # Whole lines.
  end = thoughts.begin(text, thinking, settled=True)
  if end is None:
    return None
  given, field = set(), ''
  for line in text[end : end + lenient_json.MAX_CHARACTERS].split('\n')[:-1]:
    end += len(line) + 1
    if '{' in line or thoughts.has_tag(line):
      return None
    header = _HEADER.match(line)
    if header:
      field = _canonical(header['name'])
      line = line[header.end() :]
      if field == 'context':
        given.add(field)  # It may be empty.
      elif field == 'tool' and 'name' not in header['name'].lower():
        field = ''  # As a list of things may say.
    words = _FENCE.sub('', line).strip(_DECORATION + '.')
    if not words:
      continue
    if field == 'tool':
      if {'sub_goal', 'context'} <= given and _TOOL_WORD.fullmatch(words):
        return end
      field = ''  # Its first line names it, or it does not.
    given.add(field)
  return None


def _said(text: str, thinking: bool) -> str:
  """Returns the text behind the thoughts.

  Raises:
    PlanError: there is no such text, or it is too long.
  """
  said = thoughts.said(text, thinking)
  if text.strip() and not said.strip():
    raise PlanError('the response holds thoughts and nothing behind them')
  if len(said) > lenient_json.MAX_CHARACTERS:
    raise PlanError(
      f'the response has {len(said):,} characters; a plan has'
      f' {lenient_json.MAX_CHARACTERS:,} at most: write a shorter context'
    )
  return said


def _from_json(text: str) -> dict[str, str]:
  """The fields of a plan that is a JSON object; none if there is none."""
  found = lenient_json.find(text, {'sub_goal', 'subgoal'}, last=True) or {}
  fields = {
    _canonical(name): value if isinstance(value, str) else json.dumps(value)
    for name, value in found.items()
    if _FIELD.fullmatch(name) and value is not None
  }
  return fields if {'sub_goal', 'tool'} <= fields.keys() else {}


def _canonical(name: str) -> str:
  name = name.lower()
  if name.startswith('sub'):
    return 'sub_goal'
  return 'tool' if 'tool' in name else name


def _undecorated(text: str) -> str:
  """Strips quotes and emphasis only where they enclose the whole text."""
  text = text.strip()
  if not text.strip(_DECORATION):
    return ''
  for mark in _MARKS:
    inner = text[len(mark) : -len(mark)]
    if text == mark + inner + mark and mark not in inner:
      return _undecorated(inner)
  for mark in ('**', '*', '`'):  # Opened before the field's name.
    if text.endswith(mark) and text.count(mark) == 1:
      return _undecorated(text[: -len(mark)])
  return text
