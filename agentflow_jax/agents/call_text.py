"""Tool calls as text: read from what a model wrote, and written in a plain form.

Models call tools in the text of their responses, each family in its own syntax. `read`
reads these:

  Hermes, Qwen  <tool_call>{"name": "search", "arguments": {"query": "x"}}</tool_call>
                anywhere behind the thoughts, and several of them; also a list of calls
                in one block, as SmolLM2 writes them
  Llama 3       {"name": "search", "parameters": {"query": "x"}} at the beginning, with
                or without <|python_tag|>, and several separated by ';'

What a model wrote is data. A call that cannot be read is a sentence for the model, and
never an error of ours.

`plain` is for models whose chat template knows no tools, or that have no template: the
functions stand in the system message, calls are written as Hermes writes them, and the
result of a call is a message of the user, between <tool_response> tags. Such a result
is text that can spell these tags; it can spell no control token.
"""

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from agentflow_jax import records
from agentflow_jax.agents import instructions, thoughts
from agentflow_jax.agents.tools import base, calls as calls_lib

_OPEN, _CLOSE = '<tool_call>', '</tool_call>'
_TAG = re.compile(_OPEN)
# What ends a block that cannot be read: its own end, or a block on a line of its own.
_NEXT = re.compile(rf'{_CLOSE}|\n(?={_OPEN})')
_BEHIND = re.compile(rf'\s*(?:{_CLOSE}|(?={_OPEN})|\Z)')
_SPACE = re.compile(r'\s*')
_PYTHON_TAG = '<|python_tag|>'
_BARE = re.compile(r'\s*(?:<\|python_tag\|>)?\s*(?=[{\[])')
_BETWEEN = re.compile(r'[\s;,]*')
_BARE_FIELDS = frozenset({'name', 'arguments', 'parameters', 'type', 'id', 'function'})
# A text that begins so, and names arguments, was meant as a call.
_MEANT = re.compile(
  r'\s*(?:<\|python_tag\|>)?\s*\[?\s*\{\s*"(?:name|type|function)"\s*:'
  r'.*?"(?:arguments|parameters)"\s*:',
  re.DOTALL,
)
_CALLS_FIRST = re.compile(rf'\s*(?:{_OPEN}|<\|python_tag\|>|[{{\[]\s*[{{"])')
# Models write line breaks inside of strings, such as those of programs.
_DECODER = json.JSONDecoder(strict=False)
_UNREADABLE = (ValueError, RecursionError, base.BadArguments)
_SHOWN = 30  # Characters before an error that are repeated.
_MOST_BLOCKS = 64  # Reading a block that is broken may take a pass over the text.
_STARTS = re.compile(rf'{_OPEN}|{re.escape(_PYTHON_TAG)}|[{{\[]')


@dataclasses.dataclass(frozen=True)
class Said:
  """What a response says, and what it calls.

  Attributes:
    content: the response without its calls, thoughts included; a call that cannot be
      read stays in it.
    calls: calls, in order; whether there are such tools is not checked here.
    problems: sentence for the model on each call that cannot be read.
    answer: `content` without the thoughts.
  """

  content: str
  calls: tuple[records.ToolCall, ...] = ()
  problems: tuple[str, ...] = ()
  answer: str = ''


def read(text: str, thinking: bool = False) -> Said:
  """Reads the tool calls of a response; thoughts before it are not read.

  Args:
    text: the response; anything at all.
    thinking: whether the prompt ended inside an open thought.
  """
  # A closing tag of thoughts in an argument ends no thought.
  start = 0
  if thinking or not _CALLS_FIRST.match(text):
    start = thoughts.begin(text, thinking)
  if start is None:  # It ends inside a thought.
    return Said(text.strip())
  rest, found, problems = _without_blocks(text[start:])
  if not found:
    rest, found, problem = _without_bare_calls(rest)
    if problem and not problems:
      problems.append(problem)
  return Said(
    (text[:start] + rest).strip(),
    tuple(found),
    tuple(problems),
    thoughts.said(text[:start] + rest, thinking).strip(),
  )


def _without_blocks(text: str) -> tuple[str, list[records.ToolCall], list[str]]:
  """Returns a text without its blocks, their calls, and problems of broken ones."""
  pieces, found, problems = [], [], []
  start = resume = blocks = 0
  for tag in _TAG.finditer(text):
    if tag.start() < resume:  # It is part of a block, such as of an argument.
      continue
    blocks += 1
    if blocks > _MOST_BLOCKS:
      problems.append(f'A response makes {_MOST_BLOCKS} calls at most.')
      break
    try:
      made, resume = _block(text, tag.end())
    except _UNREADABLE as e:
      end = _NEXT.search(text, tag.end())
      resume = end.end() if end else len(text)
      broken = text[tag.end() : end.start() if end else len(text)]
      problems.append(_problem(_reason_of(broken) or _reason(e, tag.end())))
    else:
      pieces.append(text[start : tag.start()].strip())
      found += made
      start = resume
  pieces.append(text[start:].strip())
  return '\n'.join(filter(None, pieces)), found, problems


def _problem(reason: str) -> str:
  return f'A tool call could not be read, and was not made: {reason}'


def _reason_of(broken: str) -> str:
  """Returns what is wrong with a block alone, without the text behind it, or ''."""
  try:
    _block(broken, 0)
  except _UNREADABLE as e:
    return _reason(e, 0)
  return ''


def _reason(error: Exception, start: int) -> str:
  """Returns what is wrong with a block that begins at `start`, wherever that is."""
  if not isinstance(error, json.JSONDecodeError):
    return str(error)
  before = error.doc[max(start, error.pos - _SHOWN) : error.pos].strip()
  return f'{error.msg.lower()}' + (f' behind {before!r}' if before else '')


def _behind(pattern: re.Pattern[str], text: str, start: int) -> int:
  """Returns where the match of a pattern that may be empty ends."""
  found = pattern.match(text, start)
  return found.end() if found else start


def _block(text: str, start: int) -> tuple[list[records.ToolCall], int]:
  """Returns the calls of a block, and where the text behind it begins.

  Raises:
    ValueError, RecursionError, BadArguments: the block cannot be read.
  """
  value, end = _DECODER.raw_decode(text, _behind(_SPACE, text, start))
  behind = _BEHIND.match(text, end)
  if not behind:
    raise ValueError(f'text follows its JSON, before {_CLOSE}')
  values = value if isinstance(value, list) else [value]
  return [_call(one) for one in values], behind.end()


def _without_bare_calls(text: str) -> tuple[str, list[records.ToolCall], str]:
  """Returns a text without the JSON of calls that it begins with, and these calls.

  Returns:
    The rest of the text, the calls, and, where it has none because the first one is
    broken, the problem of that.
  """
  found, rest = [], text
  if not (begin := _BARE.match(text)):
    return text, found, ''
  end = begin.end()
  while len(found) < _MOST_BLOCKS and text[end : end + 1] in ('{', '['):
    try:
      value, end = _DECODER.raw_decode(text, end)
      values = value if isinstance(value, list) else [value]
      if not values or not all(map(_is_bare, values)):
        break
      found += [_call(one) for one in values]
    except _UNREADABLE as e:
      if not found and _MEANT.match(text):
        return text, found, _problem(_reason(e, begin.end()))
      break
    end = _behind(_BETWEEN, text, end)
    if text.startswith(_PYTHON_TAG, end):
      end += len(_PYTHON_TAG)
    rest = text[end:]
  return rest, found, ''


def _is_bare(value: Any) -> bool:
  """Says whether a value without tags is a call, and not JSON of an answer."""
  if not isinstance(value, dict) or value.keys() - _BARE_FIELDS:
    return False
  inner = value.get('function')
  fields = inner if isinstance(inner, dict) else value
  return 'name' in fields and bool({'arguments', 'parameters'} & fields.keys())


def _call(value: Any) -> records.ToolCall:
  """Returns the call that a JSON value is.

  Raises:
    ValueError, BadArguments: it is none; the text says why.
  """
  if isinstance(value, dict) and isinstance(value.get('function'), dict):
    value = value['function']
  name = value.get('name') if isinstance(value, dict) else None
  if not isinstance(name, str) or not name.strip():
    raise ValueError('it has no "name"')
  name.encode()  # Half of a pair of surrogates raises.
  arguments = value.get('arguments', value.get('parameters'))
  if isinstance(arguments, str):  # As OpenAI's interface writes them.
    arguments = _DECODER.decode(arguments) if arguments.strip() else {}
  if not isinstance(arguments, dict | None):
    raise ValueError('its "arguments" are no JSON object')
  return records.ToolCall(name, calls_lib.json_arguments(arguments or {}))


def sure(text: str) -> str:
  """Returns the part of a response that is still written which is surely content.

  More text never changes it: it is a beginning of `Said.content`. It ends where a
  call might begin.
  """
  found = _STARTS.search(text)
  if found:
    return text[: found.start()].strip()
  for marker in (_OPEN, _PYTHON_TAG):
    for length in range(len(marker) - 1, 0, -1):
      if text.endswith(marker[:length]):
        return text[:-length].strip()
  return text.strip()


def write(content: str, calls: Sequence[tuple[str, Any]]) -> str:
  """Writes a response with calls; `read` reads the same content and calls.

  Args:
    content: text of the response; may be empty.
    calls: name and arguments of each call. Arguments that are a text, and no JSON,
      make a call that cannot be read.
  """
  blocks = []
  for name, arguments in calls:
    text = _json({'name': name, 'arguments': arguments})
    if thoughts.has_tag(text):  # It would be one of the response.
      text = text.replace('<', '\\u003c')
    blocks.append(f'{_OPEN}\n{text}\n{_CLOSE}')
  if not content:
    return '\n'.join(blocks)
  # Nothing is read behind a thought that never ends.
  is_open = thoughts.begin(content) is None
  return '\n'.join([*blocks, content] if is_open else [content, *blocks])


def plain(
  prompt: Sequence[records.Segment], tools: Sequence[Mapping[str, Any]] = ()
) -> tuple[records.Segment, ...]:
  """Returns a conversation with calls and results as messages of text alone.

  Args:
    prompt: conversation, see `records.Segment`.
    tools: tools that the model may call, as OpenAI's interface describes them.
  """
  found: list[records.Segment] = []
  for segment in records.joined(prompt):
    if segment.role == 'tool':
      text = f'<tool_response>\n{segment.text}\n</tool_response>'
      segment = records.Segment('user', text, trusted=False)
    elif segment.calls:
      pairs = [(call.tool, dict(call.arguments)) for call in segment.calls]
      segment = records.Segment(segment.role, write(segment.text, pairs), trusted=False)
    if found and found[-1].role == segment.role:
      found.append(records.Segment(segment.role, '\n'))
    found.append(segment)
  if tools:
    shown = '\n'.join(_json(tool['function']) for tool in tools)
    about = [
      records.Segment('system', instructions.CALLS),
      records.Segment('system', shown, trusted=False),
    ]
    if found and found[0].role == 'system':
      about.insert(0, records.Segment('system', '\n\n'))
      found[1:1] = about
    else:
      found[:0] = about
  return tuple(found)


def _json(value: Any) -> str:
  return json.dumps(value, ensure_ascii=False)
