"""The server's side of one episode of OpenEnv, from frames to frames.

Frames and tool calls are untrusted: they are read as JSON, checked against the tools'
schemas, and nothing in them is executed.
"""

import asyncio
import dataclasses
import hashlib
import itertools
import json
from collections.abc import Mapping
from typing import Any

from absl import logging

from agentflow_jax import records
from agentflow_jax.agents import language_model, memory, tool_calls
from agentflow_jax.agents.environments import base, episodes
from agentflow_jax.agents.environments.openenv import wire
from agentflow_jax.agents.tools import base as tools_base
from agentflow_jax.assembly import served_worlds

_Kind = records.ToolErrorKind
# JSON-RPC's codes of errors.
_NO_REQUEST, _NO_METHOD, NO_PARAMS, SERVER_ERROR = -32600, -32601, -32602, -32000
_NO_EPISODE = 'there is no episode: send "reset" first'
_LONGEST_ID = 255
_RESET = {'task_id': str, 'seed': int, 'episode_id': str}
_STEP = {'type': str, 'tool_name': str, 'arguments': dict, 'metadata': dict}


class Invalid(Exception):
  """A message that says what it must not, or lacks something.

  Args:
    place: name of the field; '' for the message itself.
    text: description of the mistake.
  """

  def __init__(self, place: str, text: str):
    super().__init__(f'{place}: {text}' if place else text)
    self.place, self.text = place, text

  @property
  def errors(self) -> list[dict[str, Any]]:
    """The error as servers of OpenEnv list it."""
    return [{'loc': [self.place] if self.place else [], 'msg': self.text}]


class Worlds:
  """What all sessions of a server share.

  Args:
    served: environment, tasks and rewards.
  """

  def __init__(self, served: served_worlds.ServedWorlds):
    self.served = served
    self._by_id = {task.id: task for task in served.tasks}
    self._next = itertools.cycle(served.tasks)

  def chosen(self, said: Mapping[str, Any]) -> records.Task:
    """Returns the task of a reset.

    An id names it; a seed is its place, modulo their number; without either, it is
    the one after that of the last such reset.

    Raises:
      Invalid: there is no task of this id.
    """
    if said.get('task_id') is not None:
      if said['task_id'] not in self._by_id:
        raise Invalid('task_id', f'there is no task {said["task_id"]!r}')
      return self._by_id[said['task_id']]
    if said.get('seed') is not None:
      return self.served.tasks[said['seed'] % len(self.served.tasks)]
    return next(self._next)


@dataclasses.dataclass
class _Open:
  """An open episode.

  Attributes:
    task: task of the episode.
    key: request key of its calls.
    id: name that the client gave it, or the task's id.
    episode: the world.
    calls: tool calls so far with their results.
    said: reward, whether the episode has ended, and metadata, see wire.observation.
  """

  task: records.Task
  key: records.RequestKey
  id: str
  episode: base.Episode
  calls: list[tuple[records.ToolCall, records.ToolResult]] = dataclasses.field(
    default_factory=list
  )
  said: tuple[float | None, bool, Mapping[str, Any]] = (None, False, {})


class Session:
  """One client, which may ask over a connection and by requests at once.

  Args:
    worlds: environment, tasks and rewards of the server.
  """

  def __init__(self, worlds: Worlds):
    self._worlds, self._open = worlds, None
    self._one_at_a_time = asyncio.Lock()

  async def answer(self, text: str | None) -> dict[str, Any] | None:
    """Returns the frame that answers a frame; None where the client ends.

    Args:
      text: frame as it came; None for one that is no text.
    """
    async with self._one_at_a_time:
      return await self._answer(text)

  async def _answer(self, text: str | None) -> dict[str, Any] | None:
    try:
      frame = parsed(text)
    except ValueError as e:
      return wire.error(wire.Code.INVALID_JSON, f'no JSON: {e}')
    answers = {
      'reset': self._reset,
      'step': self._step,
      'state': self._state,
      'mcp': self._mcp,
    }
    try:
      kind = frame.get('type') if isinstance(frame, dict) else None
      if not isinstance(kind, str):
        raise Invalid('type', 'a message is an object with a "type"')
      if kind not in answers and kind != 'close':
        return wire.error(wire.Code.UNKNOWN_TYPE, f'unknown type {kind[:64]!r}')
      data = frame.get('data', {})
      if not isinstance(data, dict) or frame.keys() - {'type', 'data'}:
        raise Invalid('data', 'a message has a "type", and an object as "data"')
      return None if kind == 'close' else await answers[kind](data)
    except Invalid as e:
      return wire.error(
        wire.Code.VALIDATION_ERROR, f'Invalid message: {e}', errors=e.errors
      )
    except (base.Unreachable, language_model.Unreachable) as e:
      await self.close()
      return wire.error(wire.Code.EXECUTION_ERROR, str(e))
    except Exception as e:  # The boundary: our bug must not end the connection.
      logging.exception('a message of a client failed')
      await self.close()
      return wire.error(wire.Code.EXECUTION_ERROR, f'{type(e).__name__} in the server')

  async def close(self) -> None:
    """Closes the episode, if there is one."""
    opened, self._open = self._open, None
    if opened is not None:
      await episodes.close(opened.episode)

  async def reset(self, data: Mapping[str, Any]) -> dict[str, Any]:
    """Begins an episode, and returns its first observation's data.

    Raises:
      Invalid: the arguments are none of reset's; nothing happened.
      Unreachable: the environment failed.
    """
    _check(data, _RESET)
    if data.get('seed') is not None and data['seed'] < 0:
      raise Invalid('seed', 'must be at least 0')
    said = data.get('episode_id') or ''
    if len(said) > _LONGEST_ID:
      raise Invalid('episode_id', f'must have at most {_LONGEST_ID} characters')
    task = self._worlds.chosen(data)
    await self.close()
    served = self._worlds.served
    # What chance decides in an episode is decided by its name.
    number = hashlib.blake2b(said.encode('utf-8', 'replace'), digest_size=3).digest()
    key = records.RequestKey(
      served.seed,
      records.Purpose.EVALUATE,
      0,
      task.id,
      int.from_bytes(number) if said else 0,
    )
    episode = await episodes.opened(served.environment, task, key)
    self._open = _Open(task, key, said or task.id, episode)
    fields = {'policy': episode.brief.policy, 'query': task.query, 'task_id': task.id}
    if episode.brief.date:
      fields['date'] = episode.brief.date
    return wire.observation(fields, metadata={'tools': self._tools()})

  async def step(self, data: Mapping[str, Any]) -> dict[str, Any]:
    """Takes an action, and returns the data of its observation.

    Raises:
      Invalid: the action is neither list_tools nor call_tool; nothing happened.
      Unreachable: the environment failed, or its checks could not be made.
    """
    _check(data, _STEP)
    if data.get('type') == wire.LIST_TOOLS:
      said = self._open.said if self._open else (None, False, {})
      return wire.observation({'tools': self._tools()}, *said)
    if data.get('type') != wire.CALL_TOOL:
      raise Invalid('type', f'must be {wire.LIST_TOOLS!r} or {wire.CALL_TOOL!r}')
    if data.get('tool_name') is None:
      raise Invalid('tool_name', 'is missing')
    name = data['tool_name']
    result, error = await self._called(name, data.get('arguments') or {})
    fields = {'tool_name': name, 'result': result, 'error': None}
    if error is not None:
      fields |= {'result': None, 'error': {'error_type': error, 'message': result}}
    said = self._open.said if self._open else (None, error in wire.LOST, {})
    return wire.observation(fields, *said)

  async def _reset(self, data) -> dict[str, Any]:
    return {'type': 'observation', 'data': await self.reset(data)}

  async def _step(self, data) -> dict[str, Any]:
    return {'type': 'observation', 'data': await self.step(data)}

  async def _state(self, data) -> dict[str, Any]:
    del data
    return {'type': 'state', 'data': self.state()}

  async def _mcp(self, data) -> dict[str, Any]:
    return {'type': 'mcp', 'data': await self._rpc(data)}

  def state(self) -> dict[str, Any]:
    """Returns the name of the episode and the number of its calls."""
    opened = self._open
    if opened is None:
      return {'episode_id': None, 'step_count': 0}
    return {
      'episode_id': opened.id,
      'step_count': len(opened.calls),
      'task_id': opened.task.id,
    }

  async def mcp(self, request: Any) -> dict[str, Any]:
    """Answers a request of JSON-RPC: tools/list or tools/call, as MCP has them."""
    async with self._one_at_a_time:
      return await self._rpc(request)

  async def _rpc(self, request: Any) -> dict[str, Any]:
    if not isinstance(request, dict) or not isinstance(request.get('method'), str):
      return rpc_error({}, _NO_REQUEST, 'a request has a "method"')
    params = request.get('params', {})
    if request['method'] == 'tools/list':
      tools = [
        {
          'name': t['name'],
          'description': t['description'],
          'inputSchema': t['input_schema'],
        }
        for t in self._tools()
      ]
      return rpc_result(request, {'tools': tools})
    if request['method'] != 'tools/call':
      return rpc_error(request, _NO_METHOD, 'there are tools/list and tools/call')
    params = params if isinstance(params, dict) else {}
    name, arguments = params.get('name'), params.get('arguments', {})
    if not isinstance(name, str) or not isinstance(arguments, dict):
      return rpc_error(request, NO_PARAMS, 'params: a "name", and "arguments"')
    try:
      text, error = await self._called(name, arguments)
    except (base.Unreachable, language_model.Unreachable) as e:
      await self.close()
      return rpc_error(request, SERVER_ERROR, str(e))
    reward, done, metadata = self._open.said if self._open else (None, False, {})
    return rpc_result(
      request,
      {
        'content': [{'type': 'text', 'text': text}],
        'isError': error is not None,
        'data': text,
        'reward': reward,
        'done': done,
        'metadata': dict(metadata),
      },
    )

  def _tools(self) -> list[dict[str, Any]]:
    """Returns the tools of the episode, or of the environment before there is one."""
    cards = self._worlds.served.environment.cards
    if self._open is not None:
      cards = tuple(tool.card for tool in self._open.episode.tools.values())
    return [
      {
        'name': card.name,
        'description': ' '.join(filter(None, (card.purpose, card.limits))),
        'input_schema': {**tools_base.schema_of(card), 'additionalProperties': False},
      }
      for card in cards
    ]

  async def _called(
    self, name: str, arguments: Mapping[str, Any]
  ) -> tuple[str, wire.ToolError | None]:
    """Makes a call; returns the tool's text and the kind of an error."""
    opened = self._open
    if opened is None:
      return _NO_EPISODE, wire.ToolError.EXECUTION
    if opened.said[1]:
      return 'the episode has ended: send "reset"', wire.ToolError.INVALID_ARGUMENTS
    tool = opened.episode.tools.get(name)
    if tool is None:
      known = ', '.join(opened.episode.tools)
      return memory.bounded(
        f'unknown tool {name!r}; the tools are {known}'
      ), wire.ToolError.NOT_FOUND
    call = records.ToolCall(name, arguments)
    key = dataclasses.replace(opened.key, turn=len(opened.calls))
    try:
      checked = tools_base.check_arguments(tool.card, arguments)
      call = dataclasses.replace(call, arguments=checked)
      result = await tool_calls.made(tool, call, key)
    except tools_base.BadArguments as e:
      result = records.ToolResult(memory.bounded(str(e)), _Kind.ARGUMENTS)
    if result.error not in (None, _Kind.ARGUMENTS):
      await self.close()  # After a call that failed halfway the state is not known.
      return result.text, wire.ToolError.TRANSPORT
    opened.calls.append((call, result))
    opened.said = await self._judged(opened)
    return result.text, wire.ToolError.INVALID_ARGUMENTS if result.error else None

  async def _judged(
    self, opened: _Open
  ) -> tuple[float | None, bool, Mapping[str, Any]]:
    """Returns the reward so far, whether the episode has ended, and the checks.

    Before the end, only a number that the environment itself returns is a reward.
    """
    ended, world = opened.episode.ended, opened.task.its_world
    if not ended and any(check.kind != 'reward' for check in world.checks):
      return None, False, {}
    statuses = {'': records.Status.OUT_OF_TURNS, 'refuse': records.Status.REFUSED}
    ending = records.Ending(
      statuses.get(ended, records.Status.ANSWERED),
      opened.episode.answer or '',
      tuple(opened.calls),
      ended,
    )
    served = self._worlds.served
    verdict, digest = await episodes.verified(
      served.environment.name, opened.episode, ending, served.verify_seconds
    )
    token = tools_base.request_key.set(dataclasses.replace(opened.key, module='reward'))
    try:
      score = await served.rewards(opened.task, ending, verdict)
    finally:
      tools_base.request_key.reset(token)
    reward = score.reward if isinstance(score, records.Score) else float(score)
    if not ended:
      return reward, False, {}
    checks = [
      {'name': r.name, 'passed': r.passed, 'detail': r.detail} for r in verdict.results
    ]
    return (
      reward,
      True,
      {
        'ended': ended,
        'success': verdict.success,
        'digest': digest,
        'checks': checks,
        'changed': list(verdict.changed),
        'violations': list(verdict.violations),
      },
    )


def parsed(text: str | None) -> Any:
  """Returns the JSON value of a frame or a body; raises ValueError."""
  if text is None:
    raise ValueError('messages are texts')

  def refuse(name):
    raise ValueError(f'{name} is no number of JSON')

  try:
    return json.loads(text, parse_constant=refuse)
  except RecursionError:
    raise ValueError('it is nested too deeply') from None


def _check(data: Mapping[str, Any], fields: Mapping[str, type]) -> None:
  """Raises Invalid for an unknown field or another type; null counts as absent."""
  for name, value in data.items():
    if name not in fields:
      raise Invalid(str(name)[:64], f'unknown; there are {", ".join(fields)}')
    fits = isinstance(value, fields[name]) and not isinstance(value, bool)
    if value is not None and not fits:
      raise Invalid(name, f'must be of type {fields[name].__name__}')


def rpc_result(request: Mapping[str, Any], result: Any) -> dict[str, Any]:
  """Returns the answer to a request of JSON-RPC."""
  return {'jsonrpc': '2.0', 'id': _number(request), 'result': result}


def rpc_error(request: Mapping[str, Any], code: int, message: str) -> dict[str, Any]:
  """Returns the answer to a request of JSON-RPC that fails."""
  said = {'code': code, 'message': message}
  return {'jsonrpc': '2.0', 'id': _number(request), 'error': said}


def _number(request: Mapping[str, Any]) -> str | int | None:
  number = request.get('id')
  return number if isinstance(number, (str, int)) else None
