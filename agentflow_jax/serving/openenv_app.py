"""A server of OpenEnv over worlds of this process: WebSocket /ws, and HTTP around it.

  GET /health  /metadata  /schema  /state     POST /reset  /step  /mcp

One connection is one episode at a time. Requests over HTTP have no memory: each one
begins with no episode and leaves none, as at servers of OpenEnv itself. Only requests
to /mcp may name a session that an earlier one began; a connection to /ws?session_id=
NAME acts on its episode, too.
"""

import asyncio
import contextlib
import dataclasses
import functools
import json
from collections.abc import Callable, Mapping
from typing import Any

from starlette import applications, exceptions, middleware
from starlette import requests as http
from starlette import responses, routing, websockets

from agentflow_jax.agents import language_model
from agentflow_jax.agents.environments import base
from agentflow_jax.agents.environments.openenv import wire
from agentflow_jax.serving import incoming, openenv_places, openenv_sessions, requests
from agentflow_jax.serving import writing

_GOING_AWAY = 1001
_OBJECT = {'type': 'object'}
# Methods of JSON-RPC that begin and end a session of several requests.
_CREATE, _CLOSE = 'openenv/session/create', 'openenv/session/close'


@dataclasses.dataclass(frozen=True)
class Service:
  """What is served.

  Attributes:
    places: sessions of clients; a connection that sends nothing, or reads nothing, for
      `places.idle_seconds` is closed, too.
    hosts: names that the header Host may give, see incoming.Gate; None for all.
    bodies: the reader of requests' bodies.
  """

  places: openenv_places.Places
  hosts: frozenset[str] | None = None
  bodies: incoming.Bodies = dataclasses.field(default_factory=incoming.Bodies)

  def full(self) -> dict[str, Any]:
    """Returns the frame that refuses a connection."""
    places = self.places
    return wire.error(
      wire.Code.CAPACITY_REACHED,
      f'all {places.capacity} places are taken: try again, or raise'
      ' --max_concurrent_envs',
      active_sessions=places.active,
      max_sessions=places.capacity,
    )


def make(service: Service) -> applications.Starlette:
  """Returns the ASGI application, which closes the worlds at its end."""

  @contextlib.asynccontextmanager
  async def lifespan(unused_app):
    yield
    await service.places.close()
    await service.places.worlds.served.close()

  def get(path: str, value: Callable[[Service], Mapping[str, Any]]):
    async def answer(unused_request):
      return writing.JSONResponse(value(service))

    return routing.Route(path, answer)

  def post(path: str, handler):
    return routing.Route(path, functools.partial(handler, service), methods=['POST'])

  return applications.Starlette(
    routes=[
      get('/health', lambda s: {'status': 'healthy'}),
      get('/metadata', _metadata),
      get('/schema', _schema),
      get('/state', lambda s: openenv_sessions.Session(s.places.worlds).state()),
      post('/reset', _reset),
      post('/step', _step),
      post('/mcp', _mcp),
      routing.WebSocketRoute(wire.SOCKET, functools.partial(_socket, service)),
    ],
    middleware=[middleware.Middleware(incoming.Gate, hosts=service.hosts)],
    exception_handlers={
      requests.BadRequest: _on(lambda e: (e.status, str(e))),
      openenv_sessions.Invalid: _on(lambda e: (422, e.errors)),
      openenv_places.Unknown: _on(lambda e: (404, str(e))),
      base.Unreachable: _on(lambda e: (500, str(e))),
      language_model.Unreachable: _on(lambda e: (500, str(e))),
      exceptions.HTTPException: _on(lambda e: (e.status_code, e.detail)),
      http.ClientDisconnect: _on(lambda e: (499, 'the client is gone')),
      Exception: _on(lambda e: (500, 'internal error')),
    },
    lifespan=lifespan,
  )


async def _socket(service: Service, socket: websockets.WebSocket) -> None:
  """Answers the frames of one client until it ends, vanishes, or says nothing."""
  await socket.accept()
  name, places = socket.query_params.get('session_id'), service.places
  opened = places.named(name, connects=True) if name else places.one()
  code, reason = 1000, ''
  try:
    async with opened as session:
      if session is None:
        await _sent(service, socket, service.full())
      else:
        code, reason = await _answered(service, socket, session)
  except openenv_places.Unknown as e:
    await _sent(service, socket, wire.error(wire.Code.SESSION_ERROR, str(e)))
  # Only now: the place is free when the client sees the end.
  with contextlib.suppress(OSError, RuntimeError, websockets.WebSocketDisconnect):
    await socket.close(code, reason)


async def _answered(service, socket, session) -> tuple[int, str]:
  """Answers frames until the last one; returns code and reason of the close."""
  seconds = service.places.idle_seconds
  while True:
    try:
      async with asyncio.timeout(seconds):
        message = await socket.receive()
    except TimeoutError:
      return _GOING_AWAY, f'nothing came for {seconds:g} s'
    if message['type'] == 'websocket.disconnect':
      return 1000, ''
    reply = await session.answer(message.get('text'))
    if reply is None or not await _sent(service, socket, reply):
      return 1000, ''


async def _sent(
  service: Service, socket: websockets.WebSocket, frame: Mapping[str, Any]
) -> bool:
  """Sends a frame; returns False where the client is gone or does not read."""
  try:
    async with asyncio.timeout(service.places.idle_seconds):
      await socket.send_text(json.dumps(frame))
    return True
  except (TimeoutError, OSError, RuntimeError, websockets.WebSocketDisconnect):
    return False


def _on(said: Callable[[Any], tuple[int, Any]]):
  """Returns a handler that answers an error by a status and a detail."""

  async def handler(unused_request, error):
    return _refused(*said(error))

  return handler


def _refused(status: int, detail: Any) -> responses.Response:
  return writing.JSONResponse({'detail': detail}, status)


async def _body(service: Service, request: http.Request) -> dict[str, Any]:
  """Returns the JSON object of a body; {} for an empty one."""
  value = await service.bodies.read(request, empty={})
  if not isinstance(value, dict):
    raise openenv_sessions.Invalid('', 'the body must be a JSON object')
  return value


async def _reset(service, request) -> responses.Response:
  body = await _body(service, request)
  async with service.places.one() as session:
    if session is None:
      return _refused(503, service.full()['data']['message'])
    return writing.JSONResponse(await session.reset(body))


async def _step(service, request) -> responses.Response:
  body = await _body(service, request)
  action = body.get('action')
  if not isinstance(action, dict):
    raise openenv_sessions.Invalid('action', 'must be an object')
  async with service.places.one() as session:
    if session is None:
      return _refused(503, service.full()['data']['message'])
    return writing.JSONResponse(await session.step(action))


async def _mcp(service, request) -> responses.Response:
  body = await _body(service, request)
  params = body.get('params')
  name = params.get('session_id') if isinstance(params, dict) else None
  try:
    answer = await _rpc(service, body, name if isinstance(name, str) else '')
  except openenv_places.Unknown as e:
    answer = openenv_sessions.rpc_error(body, openenv_sessions.NO_PARAMS, str(e))
  return writing.JSONResponse(answer)


async def _rpc(service: Service, body: dict[str, Any], name: str) -> dict[str, Any]:
  """Answers a request of JSON-RPC: of a named session, or of a new one."""
  places, method = service.places, body.get('method')
  full = openenv_sessions.rpc_error(
    body, openenv_sessions.SERVER_ERROR, service.full()['data']['message']
  )
  if method == _CREATE:
    made = places.create()
    return openenv_sessions.rpc_result(body, {'session_id': made}) if made else full
  if method == _CLOSE:
    closed = await places.end(name)
    return openenv_sessions.rpc_result(
      body, {'session_id': name, 'closed': closed, 'closing': not closed}
    )
  async with places.named(name) if name else places.one() as session:
    return full if session is None else await session.mcp(body)


def _metadata(service: Service) -> dict[str, Any]:
  served = service.places.worlds.served
  return {
    'name': served.environment.name,
    'description': (
      f'{len(served.tasks)} tasks with tools, judged by the state that they leave.'
      ' reset takes task_id, or seed as the place of a task.'
    ),
    'version': served.environment.version,
  }


def _schema(unused_service) -> dict[str, Any]:
  """Returns the JSON schemas of actions, observations and states."""
  text = {'type': 'string'}
  return {
    'action': {
      'type': 'object',
      'required': ['type'],
      'properties': {
        'type': {'enum': [wire.LIST_TOOLS, wire.CALL_TOOL]},
        'tool_name': text,
        'arguments': _OBJECT,
        'metadata': _OBJECT,
      },
    },
    'observation': {
      'type': 'object',
      'properties': {
        'tool_name': text,
        'result': {},
        'error': {'type': ['object', 'null']},
        'tools': {'type': 'array', 'items': _OBJECT},
        'metadata': _OBJECT,
      },
    },
    'reset_observation': {
      'type': 'object',
      'properties': {
        'policy': text,
        'query': text,
        'task_id': text,
        'date': text,
        'metadata': _OBJECT,
      },
    },
    'state': {
      'type': 'object',
      'properties': {
        'episode_id': {'type': ['string', 'null']},
        'step_count': {'type': 'integer'},
        'task_id': text,
      },
    },
  }
