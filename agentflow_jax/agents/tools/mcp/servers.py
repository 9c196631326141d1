"""Tools of MCP servers (Model Context Protocol), by the official SDK.

A server is a command line that speaks over its standard input and output, or a
URL (streamable HTTP). Its tools become cards (`cards`).
"""

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import importlib.util
import json
import os
import re
import shlex
import tempfile
import time
import types
from collections.abc import Mapping, Sequence
from typing import Any

from absl import logging

from agentflow_jax.agents.tools import base
from agentflow_jax.agents.tools.mcp import cards

_INVALID_PARAMS = -32602
_METHOD_NOT_FOUND = -32601
_CLOSED = -32000
# A connection that was idle for longer is asked whether it is still there: a call
# is never sent twice.
_IDLE_SECONDS = 5.0
_CHECK_SECONDS = 5.0
_MOST_TOOLS = 200
_SHOWN = 300


@dataclasses.dataclass(frozen=True)
class Server:
  """Where a server is.

  Attributes:
    name: beginning of the names of its tools.
    url: address of a server over HTTP; '' for a command.
    command: words of the command that starts the server; empty for a URL.
    environment: variables that a started server gets beside the usual harmless ones.
    token: bearer token for a URL; '' for none.
    start_seconds: time within which the server must be ready [s].
  """

  name: str
  url: str = ''
  command: tuple[str, ...] = ()
  environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
  token: str = dataclasses.field(default='', repr=False)
  start_seconds: float = 30.0


def parse(said: str, variables: Sequence[str] = (), token_variable: str = '') -> Server:
  """Reads 'NAME=URL' or 'NAME=COMMAND LINE'.

  Args:
    said: text of the config.
    variables: names of variables of this environment that a command gets.
    token_variable: name of the variable of this environment that holds a URL's bearer
      token.

  Raises:
    base.ToolUnavailable: it says neither, or a variable is not set.
  """
  name, equals, rest = said.partition('=')
  if not equals or not re.fullmatch(r'[A-Za-z][A-Za-z0-9_]{0,30}', name):
    raise base.ToolUnavailable(
      f'an MCP server is NAME=URL or NAME=COMMAND, NAME of letters and digits,'
      f' not {said!r}'
    )
  missing = [v for v in (*variables, token_variable) if v and v not in os.environ]
  if missing:
    raise base.ToolUnavailable(
      f'MCP server {name}: the environment variable {missing[0]} is not set'
    )
  if rest.startswith(('http://', 'https://')):
    return Server(name, url=rest, token=os.environ.get(token_variable, '').strip())
  try:
    command = tuple(shlex.split(rest))
  except ValueError as error:
    raise base.ToolUnavailable(f'MCP server {name}: {rest!r}: {error}') from error
  if not command:
    raise base.ToolUnavailable(f'MCP server {name}: no command')
  return Server(
    name, command=command, environment={v: os.environ[v] for v in variables}
  )


def describe(server: Server) -> list[dict[str, Any]]:
  """Asks a server for its tools: name, description and schema, as JSON.

  Raises:
    base.ToolUnavailable: it cannot be started, reached or understood.
  """
  _sdk()

  async def ask():
    connection = Connection(server)
    try:
      async with asyncio.timeout(server.start_seconds):
        client = await connection.client()
        found, cursor = [], None
        while len(found) < _MOST_TOOLS:
          page = await client.list_tools(cursor=cursor)
          found += page.tools
          cursor = page.next_cursor
          if not cursor:
            break
        else:
          logging.warning(
            'MCP server %s offers more than %d tools; only the first %d can be used',
            server.name,
            _MOST_TOOLS,
            len(found),
          )
        return [
          {
            'name': str(t.name),
            'description': str(t.description or ''),
            'schema': dict(t.input_schema or {}),
          }
          for t in found
        ]
    finally:
      await connection.aclose()

  # A thread of its own: the caller may be inside an event loop.
  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    try:
      return pool.submit(asyncio.run, ask()).result()
    except (Exception, asyncio.CancelledError) as error:
      raise base.ToolUnavailable(
        f'MCP server {server.name} ({server.url or shlex.join(server.command)})'
        f' gives no tools: {_reason(error)}'
      ) from error


def make(
  server: Server, described: Sequence[Mapping[str, Any]], *, timeout: float = 60.0
) -> list[base.Tool]:
  """Makes a server's tools; they share one connection, opened at the first call.

  Args:
    server: place of the server.
    described: descriptions of the tools, as `describe` returned them.
    timeout: seconds after which the rollout gives a call up.

  Raises:
    base.ToolUnavailable: two tools' names are the same.
  """
  connection = Connection(server)
  tools: dict[str, base.Tool] = {}
  for one in described:
    card = cards.card(server.name, one)
    if card.name in tools:
      raise base.ToolUnavailable(f'MCP server {server.name} has two tools {card.name}')
    tools[card.name] = base.Tool(
      card=card,
      call=_caller(connection, one['name'], cards.names(one['schema'])),
      timeout=timeout,
      close=connection.aclose,
      version=f'mcp 2 {json.dumps(one, sort_keys=True)}',
    )
  return list(tools.values())


def _caller(connection: 'Connection', name: str, fields: Mapping[str, str]):
  """Returns a tool's call.

  Args:
    connection: session with the tool's server.
    name: name of the tool at the server.
    fields: each argument's name on the card -> its name at the server.
  """

  async def call(arguments: Mapping[str, Any]) -> str:
    result = await connection.call(
      name, {fields[shown]: value for shown, value in arguments.items()}
    )
    text = cards.text(result)
    if cards.is_error(result):
      raise base.BadArguments(text or f'{name} failed and does not say why')
    return text or 'The tool returned nothing.'

  return call


class Connection:
  """One session with a server, opened when it is needed, and again when lost.

  The SDK's contexts have to be left by the task that entered them, so a session
  lives in a task of its own.

  Args:
    server: place of the server.
  """

  def __init__(self, server: Server):
    self._server = server
    self._owner: asyncio.Task[None] | None = None
    self._client: Any = None
    self._stop: asyncio.Event | None = None
    self._loop: asyncio.AbstractEventLoop | None = None
    self._lock: asyncio.Lock | None = None
    self._used = 0.0
    self._calls = 0  # Under way: one that is slow says nothing of the session.

  async def client(self) -> Any:
    """Returns the session's client, opened where there is none that answers.

    Raises:
      Exception: of the SDK or the system: the server cannot be reached.
    """
    loop = asyncio.get_running_loop()
    # What an ended loop held is gone with it.
    if self._loop is not loop or self._lock is None:
      self._loop, self._lock = loop, asyncio.Lock()
      self._owner = self._client = None
      self._calls = 0
    async with self._lock:
      if self._owner is not None and self._owner.done():
        self._owner = self._client = None
      if (
        self._client is not None
        and not self._calls
        and (time.monotonic() - self._used > _IDLE_SECONDS)
      ):
        await self._check()
      if self._client is None:
        self._client = await self._open()
      self._used = time.monotonic()
      return self._client

  async def call(self, name: str, arguments: dict[str, Any]) -> Any:
    """Calls a tool once.

    Raises:
      base.BadArguments: the server refuses the arguments.
      base.ToolUnreachable: it cannot be reached, or was lost meanwhile.
    """
    error_type = _sdk().MCPError
    client = None
    try:
      async with asyncio.timeout(self._server.start_seconds):
        client = await self.client()
    except Exception as error:
      raise base.ToolUnreachable(
        f'MCP server {self._server.name}: {_reason(error)}'
      ) from error
    self._calls += 1
    try:
      result = await client.call_tool(name, arguments)
    except error_type as error:
      if error.code in (_INVALID_PARAMS, _METHOD_NOT_FOUND):
        raise base.BadArguments(str(error)[:_SHOWN]) from error
      if error.code == _CLOSED:
        await self._drop(client)
      raise base.ToolUnreachable(
        f'MCP server {self._server.name}: {_reason(error)}'
      ) from error
    # An answer that is none, such as of another shape than the tool's own schema
    # has: one call's affair.
    except (RuntimeError, ValueError) as error:
      raise base.ToolUnreachable(
        f'MCP server {self._server.name}: {_reason(error)}'
      ) from error
    except Exception as error:  # Of the transport below: the session is over.
      await self._drop(client)
      raise base.ToolUnreachable(
        f'MCP server {self._server.name}: {_reason(error)}'
      ) from error
    finally:
      self._calls -= 1
    self._used = time.monotonic()
    return result

  async def aclose(self) -> None:
    """Ends the session, and the server if it was started for it."""
    if self._loop is asyncio.get_running_loop():
      await self._drop(self._client)

  async def _check(self) -> None:
    """Drops a session that does not answer any more."""
    try:
      async with asyncio.timeout(_CHECK_SECONDS):
        # The protocol has no ping any more.
        await self._client.list_tools(cache_mode='bypass')
    except Exception as error:
      # A server that refuses is there.
      if getattr(error, 'code', _CLOSED) == _CLOSED:
        await self._drop(self._client)

  async def _drop(self, client: Any) -> None:
    """Ends a session, unless another one has taken its place."""
    if client is None or client is not self._client:
      return
    owner, self._owner, self._client = self._owner, None, None
    assert owner is not None and self._stop is not None  # As there is a client.
    self._stop.set()
    await asyncio.wait([owner])

  async def _open(self) -> Any:
    ready = asyncio.get_running_loop().create_future()
    self._stop = asyncio.Event()
    self._owner = asyncio.create_task(self._own(ready, self._stop))
    try:
      return await asyncio.shield(ready)
    except BaseException:
      self._stop.set()
      self._owner.cancel()
      await asyncio.wait([self._owner])
      raise

  async def _own(self, ready: asyncio.Future, stop: asyncio.Event) -> None:
    """Enters a session, waits, and leaves it."""
    with tempfile.TemporaryFile('w+') as said:
      try:
        async with contextlib.AsyncExitStack() as stack:
          target = await self._target(stack, said)
          client = await stack.enter_async_context(_sdk().Client(target))
          ready.set_result(client)
          await stop.wait()
      except BaseException as error:
        if ready.done():  # A session that ends badly has ended.
          return
        said.seek(0)
        last = ' '.join(said.read()[-_SHOWN:].split())
        reason = _reason(error) + (f'; it said: {last}' if last else '')
        ready.set_exception(ConnectionError(reason))
        # Where nobody waits any more, nobody asks for it.
        ready.exception()

  async def _target(self, stack, said) -> Any:
    """Returns what the SDK's client connects to."""
    server, sdk = self._server, _sdk()
    if server.command:
      # The SDK passes a few harmless variables, and these.
      return sdk.stdio_client(
        sdk.StdioServerParameters(
          command=server.command[0],
          args=list(server.command[1:]),
          env=dict(server.environment),
        ),
        errlog=said,
      )
    if not server.token:
      return server.url
    import httpx2  # pylint: disable=g-import-not-at-top

    from mcp.client import streamable_http  # pylint: disable=g-import-not-at-top

    http = await stack.enter_async_context(
      httpx2.AsyncClient(
        headers={'Authorization': f'Bearer {server.token}'},
        timeout=httpx2.Timeout(30.0, read=300.0),
      )
    )
    return streamable_http.streamable_http_client(server.url, http_client=http)


def _reason(error: BaseException) -> str:
  """Says what went wrong, in one line: the innermost error of a group."""
  while isinstance(error, BaseExceptionGroup):
    error = error.exceptions[0]
  text = ' '.join(str(error).split())[:_SHOWN]
  name = type(error).__name__
  if isinstance(error, TimeoutError):
    return 'no answer in time'
  return text if isinstance(error, ConnectionError) and text else f'{name}: {text}'


def _sdk() -> types.ModuleType:
  if importlib.util.find_spec('mcp') is None:
    raise base.ToolUnavailable(
      'agent.tools.mcp needs the MCP SDK: pip install httpx2 mcp (the extra `mcp`)'
    )
  import mcp  # pylint: disable=g-import-not-at-top

  return mcp
