"""Refuses requests by their headers, and bodies by their size."""

import ipaddress
import json
import re
import urllib.parse
from typing import Any

from starlette import datastructures, types
from starlette import requests as http
from starlette import websockets

from agentflow_jax.serving import requests, writing

_MAX_BODY_BYTES = 4 << 20
# The part of a body beyond this counts towards the bound on all bodies.
_SMALL_BODY_BYTES = 64 << 10
_MAX_BODIES_BYTES = 64 << 20


class Gate:
  """ASGI middleware that refuses requests by their headers."""

  def __init__(self, app: types.ASGIApp, hosts: frozenset[str] | None):
    self._app, self._hosts = app, hosts

  async def __call__(self, scope, receive, send):
    if scope['type'] == 'lifespan':
      await self._app(scope, receive, send)
      return
    headers = datastructures.Headers(scope=scope)
    app = self._app
    if 'content-length' in headers and 'transfer-encoding' in headers:
      # A proxy may have used the other one of the two (RFC 9112, section 6.3).
      app = writing.error(
        'Content-Length and Transfer-Encoding exclude each other',
        400,
        'invalid_request_error',
      )
      app.headers['Connection'] = 'close'
    elif self._hosts is not None and not _is_ours(
      headers.get('host', 'localhost'), self._hosts
    ):
      app = writing.error(
        'the Host header names another server; this one answers to localhost,'
        ' and to the names of --host_names',
        421,
        'invalid_request_error',
      )
    elif (
      self._hosts is not None
      and 'origin' in headers
      and not _is_ours(_host_of(headers['origin']), self._hosts)
    ):
      # A browser sends a page's request before it asks whether the page may read
      # the answer.
      app = writing.error(
        'the Origin header names another site: only pages of this machine, and'
        ' of the names of --host_names, may ask',
        403,
        'invalid_request_error',
      )
    if app is not self._app and scope['type'] == 'websocket':
      app = websockets.WebSocketClose()  # Before it is accepted: status 403.
    await app(scope, receive, send)


def _host_of(origin: str) -> str:
  """Returns the host in an Origin header; '' where there is none, as in 'null'."""
  try:
    return urllib.parse.urlsplit(origin).netloc
  except ValueError:
    return ''


def _is_ours(host: str, names: frozenset[str]) -> bool:
  """Whether a Host header names this machine, or is one of `names`."""
  name = re.sub(r':\d*$', '', host).lower().removesuffix('.')
  try:
    return ipaddress.ip_address(name.strip('[]')).is_loopback
  except ValueError:
    return name == 'localhost' or name.endswith('.localhost') or name in names


class Bodies:
  """Reads the bodies of requests, within a bound on the memory of all of them.

  Only the part of a body beyond 64 KiB counts, so that small bodies are read however
  many large ones are half sent.
  """

  def __init__(self):
    self._held = 0

  async def read(self, request: http.Request, empty: Any = None) -> Any:
    """Returns the JSON value of a body.

    Args:
      request: request whose body is read.
      empty: value of an empty body; None where that is an error.

    Raises:
      BadRequest: the body is too long, is not JSON, or the bodies that are being
        read are too many.
      ClientDisconnect: the client has left.
    """
    stated = request.headers.get('content-length', '0')
    chunks, size, held = [], 0, 0
    if stated.isdecimal() and int(stated) > _MAX_BODY_BYTES:
      raise _too_large()
    try:
      async for chunk in request.stream():
        size += len(chunk)
        if size > _MAX_BODY_BYTES:
          raise _too_large()
        more = max(size - _SMALL_BODY_BYTES, 0) - held
        self._held, held = self._held + more, held + more
        if held and self._held > _MAX_BODIES_BYTES:
          raise requests.BadRequest(
            'too many large requests are being read; try again', status=503
          )
        chunks.append(chunk)
    finally:
      self._held -= held
    if not size and empty is not None:
      return empty
    try:
      return json.loads(b''.join(chunks))
    except (ValueError, RecursionError) as e:
      raise requests.BadRequest(f'the body is not JSON: {e}') from None


def _too_large() -> requests.BadRequest:
  return requests.BadRequest(f'the body exceeds {_MAX_BODY_BYTES} bytes', status=413)
