"""Messages and tools in OpenAI's form, as clients and files of chats write them.

A message that holds something that would be lost is refused, never shortened. Tests are
in tests/serving/tool_calls_test.py, hostile_test.py and tests/assembly/chats_test.py.
"""

import json
import reprlib
from collections.abc import Sequence
from typing import Any

from agentflow_jax import records

_ROLES = ('system', 'developer', 'user', 'assistant', 'tool')
_MAX_NAME = 128  # Characters of the name of a tool.
_FUNCTION_FIELDS = frozenset({'name', 'description', 'parameters', 'strict'})

# Shortens the values of others that error messages repeat.
_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = 80


class MessageError(ValueError):
  """A message or a tool that cannot be read.

  Attributes:
    field: name of the part that is wrong, such as 'messages[2]' or 'tools'.
  """

  def __init__(self, message: str, field: str):
    super().__init__(message)
    self.field = field


def shown(value: Any) -> str:
  """Returns a value of somebody else as errors show it: a short text in ASCII."""
  return _REPR.repr(value).encode('ascii', 'backslashreplace').decode()


def check_text(text: str, field: str) -> None:
  """Raises MessageError where a text cannot be written as UTF-8."""
  try:
    text.encode()
  except UnicodeEncodeError as e:  # Half of a pair, such as of an emoji cut in two.
    raise MessageError(f'{field} is no text: {e}', field) from e


def check_tools(tools: Sequence[Any]) -> None:
  """Checks the tools that a response may call.

  Args:
    tools: tools as OpenAI's interface describes them: functions with a name, a
      description and the JSON schema of their parameters.

  Raises:
    MessageError: names the tool that is none.
  """
  for i, tool in enumerate(tools):
    _check_tool(tool, f'tools[{i}]')


def conversation(
  messages: Sequence[Any], *, open_calls: bool = False
) -> tuple[records.Segment, ...]:
  """Reads messages; results are put in the order of the calls before them.

  Args:
    messages: messages as OpenAI's interface writes them.
    open_calls: whether the calls of the last message may be without results.

  Returns:
    A segment for each message, in the order of the messages but for results.

  Raises:
    MessageError: names the message that cannot be read.
  """
  found: list[records.Segment] = []
  wanted: list[str] = []
  results: dict[str, records.Segment] = {}
  for i, message in enumerate(messages):
    segment, ids = _segment(message, i)
    if segment.role == 'tool':
      if ids[0] not in wanted or ids[0] in results:
        raise MessageError(
          f'messages[{i}].tool_call_id: {shown(ids[0])} is no call of the assistant'
          ' that has no result yet',
          f'messages[{i}]',
        )
      results[ids[0]] = segment
      if len(results) == len(wanted):
        found += [results[name] for name in wanted]
        wanted, results = [], {}
      continue
    if wanted:
      break
    found.append(segment)
    wanted = ids
  if wanted and not (open_calls and len(found) == len(messages)):
    missing = [name for name in wanted if name not in results]
    raise MessageError(
      f'messages: the results of the calls {shown(missing)} are missing behind them',
      'messages',
    )
  return tuple(found)


def _check_tool(tool, where: str) -> None:
  function = tool.get('function') if isinstance(tool, dict) else None
  if not isinstance(function, dict) or tool.get('type') != 'function':
    raise MessageError(f'{where} must be of type function', 'tools')
  others = {k for k, v in function.items() if v} - _FUNCTION_FIELDS
  if others or set(tool) - {'type', 'function'} or function.get('strict'):
    raise MessageError(
      f'{where}: only name, description and parameters of a function are supported',
      'tools',
    )
  _check_name(function.get('name'), f'{where}.function.name', 'tools')
  for name, kind in (('description', str), ('parameters', dict)):
    if not isinstance(function.get(name), kind | None):
      raise MessageError(f'{name} must be of type {kind.__name__}', name)
  try:
    text = json.dumps(tool, ensure_ascii=False)
  except RecursionError as e:
    raise MessageError(f'{where} is nested too deep', 'tools') from e
  check_text(text, 'tools')


def _check_name(name, where: str, field: str) -> None:
  if not isinstance(name, str) or not 0 < len(name) <= _MAX_NAME:
    raise MessageError(f'{where} must be a name of 1 to {_MAX_NAME} characters', field)
  check_text(name, field)


def _segment(message, index: int) -> tuple[records.Segment, list[str]]:
  """Returns a message, and ids: of its calls, or of the call that it answers."""
  where = f'messages[{index}]'
  if not isinstance(message, dict) or message.get('role') not in _ROLES:
    raise MessageError(f'{where}.role must be one of {list(_ROLES)}', where)
  role = message['role']
  known = {'assistant': {'tool_calls'}, 'tool': {'tool_call_id', 'name'}}
  others = {k for k, v in message.items() if v} - {'role', 'content'}
  others -= known.get(role, set())
  if others:
    raise MessageError(f'{where}: {shown(sorted(others))} are not supported', where)
  content = message.get('content')
  calls, ids = [], []
  if role == 'tool':
    ids = [message.get('tool_call_id')]
    _check_name(ids[0], f'{where}.tool_call_id', where)
  elif said := message.get('tool_calls'):
    if not isinstance(said, list):
      raise MessageError(f'{where}.tool_calls must be a list', where)
    calls, ids = zip(
      *(_call(one, f'{where}.tool_calls[{i}]', where) for i, one in enumerate(said))
    )
    if len({*ids}) < len(ids):
      raise MessageError(f'{where}.tool_calls: two have the same id', where)
  if content is None and role == 'assistant':
    content = ''  # It said nothing, or only called tools.
  if isinstance(content, list):  # Parts, of which text is understood.
    parts: list[Any] = [
      p.get('text') if isinstance(p, dict) and p.get('type') == 'text' else None
      for p in content
    ]
    content = ''.join(parts) if all(isinstance(p, str) for p in parts) else None
  if not isinstance(content, str):
    raise MessageError(f'{where}.content must be text', where)
  check_text(content, where)
  if role == 'developer':  # OpenAI's newer name; chat templates know the older.
    role = 'system'
  return records.Segment(role, content, False, tuple(calls)), list(ids)


def _call(said, where: str, field: str) -> tuple[records.ToolCall, str]:
  """Returns a call that the client sends back, and its id."""
  function = said.get('function') if isinstance(said, dict) else None
  if not isinstance(function, dict) or said.get('type', 'function') != 'function':
    raise MessageError(f'{where} must be of type function', field)
  _check_name(function.get('name'), f'{where}.function.name', field)
  _check_name(said.get('id'), f'{where}.id', field)
  try:
    arguments = json.loads(function.get('arguments') or '{}')
    text = json.dumps(arguments, ensure_ascii=False)
  except (TypeError, ValueError, RecursionError):
    arguments, text = None, ''
  if not isinstance(arguments, dict):
    raise MessageError(
      f'{where}.function.arguments must be a JSON object, as a text', field
    )
  check_text(text, field)
  return records.ToolCall(function['name'], arguments), said['id']
