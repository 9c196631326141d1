"""Worlds on servers of OpenEnv, tool-style and plain, of releases 0.3 and 0.10.

The state of a world is {"row": the arguments of `reset`}. A server drops arguments that
it does not know, and says nothing: the import command tries them
(assembly.openenv_tasks).

A tool-style server lists its tools. A plain one has actions: they become the one tool
`act`, whose arguments are the fields of the action that /schema describes.
"""

import asyncio
import dataclasses
import functools
import json
from collections.abc import Mapping
from typing import Any, Literal

import httpx

from agentflow_jax import records
from agentflow_jax.agents import memory
from agentflow_jax.agents.environments import base
from agentflow_jax.agents.environments.openenv import connections, wire
from agentflow_jax.agents.tools import base as tools_base
from agentflow_jax.agents.tools.mcp import cards

NAME = 'openenv'
ACT = 'act'
# Digests are texts of at most so many characters.
_LONGEST_DIGEST = 128


@dataclasses.dataclass(frozen=True)
class Tools:
  """What a server offers.

  Attributes:
    style: 'tools' for a server that lists its tools, 'plain' for one with actions.
    described: tools as objects with "name", "description" and "schema".
  """

  style: Literal['tools', 'plain']
  described: tuple[Mapping[str, Any], ...]


class OpenEnv:
  """Opens episodes on a server. Use it from one event loop.

  Args:
    url: address of the server.
    capacity: number of episodes that the server has for this process.
    seconds: time limit of an answer [s].
    total: whether the reward of an episode is the sum of the rewards of its steps;
      otherwise it is the last one.

  Attributes:
    name, version, capacity, cards: attributes of Environment.
  """

  def __init__(
    self, url: str, *, capacity: int = 1, seconds: float = 30.0, total: bool = False
  ):
    self.name, self.version, self.cards = NAME, '1', ()
    self.capacity, self.url, self.total = capacity, url, total
    self._seconds = seconds
    self._places = asyncio.Semaphore(capacity)
    self._tools: Tools | None = None

  def check(self, task: records.Task) -> list[str]:
    """See Environment.check."""
    if not isinstance(task.its_world.state.get('row'), Mapping):
      raise ValueError(f'task {task.id!r}: its world has no "row"')
    return []

  async def open(
    self, task: records.Task, key: records.RequestKey, state: bytes | None = None
  ) -> base.Episode:
    """See Environment.open."""
    if state is not None:
      raise ValueError(f'{NAME} cannot go on from a state')
    await self._places.acquire()
    connection = connections.Socket(self.url, self._seconds)
    try:
      await connection.open()
      started = await reset(connection, task)
      if self._tools is None:
        self._tools = await offered(connection, self.url, self._seconds)
      return _Episode(self, task, connection, self._tools, started)
    except BaseException:  # A cancellation, too, must give the place back.
      await asyncio.shield(self._left(connection))
      raise

  async def _left(self, connection: connections.Socket) -> None:
    """Gives the place of an episode back."""
    try:
      await connection.close()
    finally:
      self._places.release()

  async def close(self) -> None:
    """See Environment.close."""


async def reset(connection: connections.Socket, task: records.Task) -> dict[str, Any]:
  """Begins the episode of a task, and returns the first observation's data.

  The seed is that of the row, or base.seed_of.

  Raises:
    Unreachable: the server failed, or refuses the arguments.
  """
  row = {'seed': base.seed_of(task), **task.its_world.state['row']}
  try:
    return await connection.ask('reset', row)
  except connections.Rejected as e:
    raise base.Unreachable(f'reset: {e}') from e


async def offered(connection: connections.Socket, url: str, seconds: float) -> Tools:
  """Returns what a server offers, asked on an episode that has begun.

  Raises:
    Unreachable: the server neither lists tools nor describes an action.
  """
  try:
    data = await connection.ask('step', {'type': wire.LIST_TOOLS})
    listed = data['observation'].get('tools')
  except connections.Rejected:
    listed = None
  if isinstance(listed, list):
    return Tools(
      'tools',
      tuple(
        {
          'name': tool['name'],
          'description': str(tool.get('description') or ''),
          'schema': _object(tool.get('input_schema'))
          or _object(tool.get('inputSchema'))
          or {'type': 'object'},
        }
        for tool in listed
        if isinstance(tool, dict) and isinstance(tool.get('name'), str)
      ),
    )
  try:
    async with httpx.AsyncClient(timeout=seconds, trust_env=False) as client:
      reply = await client.get(f'{url.rstrip("/")}/schema')
      schema = dict(reply.raise_for_status().json()['action'])
      fields = dict(schema.get('properties') or {})
  except (httpx.HTTPError, ValueError, KeyError, TypeError) as e:
    raise base.Unreachable(f'{url}/schema: {type(e).__name__}: {e}') from e
  fields.pop('metadata', None)
  return Tools(
    'plain',
    (
      {
        'name': ACT,
        'description': str(schema.get('description') or 'Acts in the environment.'),
        'schema': {**schema, 'properties': fields},
      },
    ),
  )


def _object(value: Any) -> dict[str, Any]:
  return value if isinstance(value, dict) else {}


class _Episode:
  """One open episode, see base.Episode."""

  def __init__(self, environment, task, connection, tools, started):
    self._environment, self._connection = environment, connection
    self._style, self._closed = tools.style, False
    self._rewards: list[float] = []
    self._digest = ''
    self.ended: base.Ended = ''
    self.answer, self.outside = None, frozenset()
    self._take(started)
    said = text_of(started['observation'])
    parts = filter(None, (task.its_world.policy, '' if said == '{}' else said))
    self.brief = base.Brief(memory.bounded('\n\n'.join(parts)))
    self.tools = {}
    wanted = task.its_world.tools
    by_name = {described['name']: described for described in tools.described}
    for shown, name in cards.shown_names(by_name).items():
      described = by_name[name]
      if wanted and name not in wanted:
        continue
      card = dataclasses.replace(cards.card('', described), name=shown, limits='')
      self.tools[shown] = tools_base.Tool(
        card,
        functools.partial(self._call, name, cards.names(described['schema'])),
        timeout=2 * environment._seconds,
        version=environment.version,
      )

  def _take(self, data: Mapping[str, Any]) -> None:
    if data.get('reward') is not None:
      self._rewards.append(float(data['reward']))
    if data.get('done'):
      self.ended = 'environment'
    said = wire.metadata_of(data).get('digest')
    if isinstance(said, str):
      self._digest = memory.bounded(said)[:_LONGEST_DIGEST]

  async def _call(
    self, name: str, fields: Mapping[str, str], arguments: Mapping[str, Any]
  ) -> str:
    if self.ended:
      raise tools_base.BadArguments('the episode has ended')
    given = {fields[k]: v for k, v in arguments.items()}
    action = given if self._style == 'plain' else wire.call(name, given)
    try:
      data = await self._connection.ask('step', action)
    except connections.Rejected as e:
      raise tools_base.BadArguments(str(e)) from e
    except base.Unreachable as e:
      raise tools_base.ToolUnreachable(str(e)) from e
    self._take(data)
    observation = data['observation']
    if self._style == 'plain':
      return text_of(observation)
    error = observation.get('error')
    if isinstance(error, dict):
      message = str(error.get('message') or error)
      if error.get('error_type') in wire.LOST:
        raise tools_base.ToolUnreachable(f'{name}: {message}')
      raise tools_base.BadArguments(message)
    return tool_text(observation.get('result'))

  async def verify(self, ending: records.Ending) -> records.Verdict:
    """See Episode.verify."""
    rewards = self._rewards or [0.0]
    reward = sum(rewards) if self._environment.total else rewards[-1]
    result = records.CheckResult(
      'reward', 'reward', reward >= 1.0, f'reward {reward:g}'
    )
    return records.Verdict((result,), reward=reward)

  async def digest(self) -> str:
    """See Episode.digest: it is known where the metadata has a "digest"."""
    return self._digest

  def state(self) -> None:
    """See Episode.state."""

  async def close(self) -> None:
    """See Episode.close."""
    if not self._closed:
      self._closed = True
      await self._environment._left(self._connection)


def text_of(observation: Mapping[str, Any]) -> str:
  """Returns an observation as text: its one text, or its fields as JSON."""
  shown = {k: v for k, v in observation.items() if k not in wire.HIDDEN}
  if len(shown) == 1:
    (value,) = shown.values()
    if isinstance(value, str):
      return value
  return json.dumps(shown, ensure_ascii=False)


def tool_text(result: Any) -> str:
  """Returns the result of a tool as text.

  Raises:
    BadArguments: the result says that it is an error.
  """
  if isinstance(result, dict) and isinstance(result.get('content'), list):
    text = cards.text_of_json(result)
    if result.get('is_error'):
      raise tools_base.BadArguments(text or 'the tool failed and does not say why')
  else:
    text = result if isinstance(result, str) else json.dumps(result, ensure_ascii=False)
  return text or 'The tool returned nothing.'
