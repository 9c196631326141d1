"""Deadlines for connections, and a bound on their number.

By itself, uvicorn waits for the rest of a request for ever, accepts connections
until the process has no descriptor left, and goes on reading a body that it has
refused. The classes here close such connections.
"""

import asyncio
import contextlib
import dataclasses
import functools
import resource
from typing import Any

import h11
import uvicorn
from starlette import types
from uvicorn.protocols.http import h11_impl

# Longest frame that a client may send [bytes].
_LONGEST_FRAME = 1 << 20
_MOST_CONNECTIONS = 4096
_FEWEST_CONNECTIONS = 8
_FULL = (
  b'HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\n'
  b'Connection: close\r\nContent-Length: 0\r\n\r\n'
)
_LATE = (
  b'HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n'
)


def _most_connections() -> int:
  """Returns a number of connections that leaves descriptors for other uses."""
  soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
  if soft == resource.RLIM_INFINITY:
    return _MOST_CONNECTIONS
  # asyncio accepts a whole backlog before the first of it can be closed again.
  return min(max(soft // 2, _FEWEST_CONNECTIONS), _MOST_CONNECTIONS)


@dataclasses.dataclass(frozen=True)
class Bounds:
  """Limits on the time and the connections that clients can take.

  Attributes:
    header_seconds: time from the first byte of a request, or from connecting, to
      the end of its headers.
    body_seconds: time from there to the end of its body.
    write_seconds: longest time during which a client reads nothing of its answer.
    idle_seconds: time that a connection may be idle between two requests. Clients close
      theirs before (httpx after 5 seconds): a request that meets a connection that is
      being closed here would fail.
    linger_seconds: time during which the rest of a refused body is read and
      discarded, so that the client can read the answer.
    connections: largest number of connections. A new connection beyond it replaces
      the one that has waited longest for the rest of a request; if all connections
      are being answered, the new one is refused with status 503.
  """

  header_seconds: float = 10.0
  body_seconds: float = 60.0
  write_seconds: float = 60.0
  idle_seconds: int = 75
  linger_seconds: float = 2.0
  connections: int = dataclasses.field(default_factory=_most_connections)


class _InLoop(uvicorn.Server):
  """A server in the event loop of a program that handles signals itself."""

  def capture_signals(self):
    return contextlib.nullcontext()


def make_server(
  application: types.ASGIApp,
  bounds: Bounds | None = None,
  sockets: bool = False,
  in_loop: bool = False,
) -> uvicorn.Server:
  """Returns a server that has not begun to listen.

  Args:
    application: application that answers the requests.
    bounds: bounds on what a client may take; None for the defaults.
    sockets: whether it has WebSockets, which need the package websockets, and a
      lifespan. The application bounds how long a WebSocket may be idle; one that
      leaves pings without an answer for 20 seconds is closed before.
    in_loop: whether it is one part of a program, whose signals it leaves alone.
  """
  bounds = bounds or Bounds()
  http: Any = functools.partial(_Protocol, bounds, {})
  kind = _InLoop if in_loop else uvicorn.Server
  return kind(
    uvicorn.Config(
      application,
      http=http,
      ws='websockets-sansio' if sockets else 'none',
      ws_max_size=_LONGEST_FRAME,
      ws_per_message_deflate=False,  # A frame is as long as what came.
      lifespan='on' if sockets else 'off',
      # Warnings tell of requests that are no HTTP, which anyone can send.
      log_level='error',
      access_log=False,
      timeout_keep_alive=bounds.idle_seconds,
      timeout_graceful_shutdown=5,
    )
  )


class _Protocol(h11_impl.H11Protocol):
  """uvicorn's connection, with bounds.

  Args:
    bounds: bounds on what a client may take.
    waiting: the connections of the server that wait for a request or for the
      rest of one, the one that has waited longest first.
    *args: uvicorn's own arguments.
    **kwargs: uvicorn's own arguments by name.
  """

  def __init__(self, bounds: Bounds, waiting: dict['_Protocol', None], *args, **kwargs):
    super().__init__(*args, **kwargs)
    self._bounds, self._waiting = bounds, waiting
    self._phase = ''  # 'headers', 'body', 'answer', or 'idle' between requests.
    self._deadline: asyncio.TimerHandle | None = None
    self._stalled: asyncio.TimerHandle | None = None
    self._lingers = False

  def connection_made(self, transport):
    bounded: Any = _Transport(transport, self)
    super().connection_made(bounded)
    self._enter()
    if len(self.connections) > self._bounds.connections:
      self._make_room()

  def connection_lost(self, exc):
    self._lingers = True  # uvicorn closes the transport now: start no new timer.
    for timer in (self._deadline, self._stalled):
      if timer is not None:
        timer.cancel()
    self._waiting.pop(self, None)
    super().connection_lost(exc)

  def data_received(self, data):
    if self._lingers:
      return
    super().data_received(data)
    self._enter()

  def handle_websocket_upgrade(self, event):
    # From here on uvicorn's WebSocket has the transport, and no deadline is ours.
    self._lingers = True
    self._waiting.pop(self, None)
    if self._deadline is not None:
      self._deadline.cancel()
    bounded: Any = self.transport
    self.transport = bounded.bare
    super().handle_websocket_upgrade(event)

  def on_response_complete(self):
    super().on_response_complete()
    # Pipelined requests may have begun another answer.
    if self.cycle.response_complete and self.body_is_left:
      self.linger()
    self._enter()

  def shutdown(self):
    if self in self._waiting:  # A half-sent request should not hold up the end.
      self.transport.abort()
    else:
      super().shutdown()

  def pause_writing(self):
    super().pause_writing()
    self._stalled = self.loop.call_later(
      self._bounds.write_seconds, self.transport.abort
    )

  def resume_writing(self):
    super().resume_writing()
    if self._stalled is not None:
      self._stalled.cancel()

  def _enter(self) -> None:
    """Sets the deadline of the current phase."""
    if self.cycle is None or self.cycle.response_complete:
      # Between two requests uvicorn's own deadline holds.
      idle = self.timeout_keep_alive_task is not None
      phase, seconds = (
        ('idle', None) if idle else ('headers', self._bounds.header_seconds)
      )
    elif self.cycle.more_body:
      phase, seconds = 'body', self._bounds.body_seconds
    else:
      phase, seconds = 'answer', None
    if phase == self._phase or self._lingers:
      return
    self._phase = phase
    self._waiting.pop(self, None)
    if phase != 'answer':
      self._waiting[self] = None
    if self._deadline is not None:
      self._deadline.cancel()
      self._deadline = None
    if seconds is not None and not self.transport.is_closing():
      self._deadline = self.loop.call_later(seconds, self._late)

  def _late(self) -> None:
    begun = self.cycle is not None and self.cycle.response_started
    if self._phase == 'headers' or not begun:
      self.transport.write(_LATE)
    self.transport.close()

  def _make_room(self) -> None:
    longest = next(iter(self._waiting))
    if longest is not self:
      # It leaves at once, so that the next connection does not find it here.
      del self._waiting[longest]
      longest.transport.abort()
    else:
      self.transport.write(_FULL)
      self.transport.close()

  @property
  def body_is_left(self) -> bool:
    """Whether a part of the body has not come yet."""
    return self.conn.their_state is h11.SEND_BODY

  def linger(self) -> None:
    """Ends the connection, but keeps reading for a while.

    Closing a socket that holds unread bytes resets the connection, and the client
    may lose the answer that tells it why.
    """
    if self._lingers:
      return
    self._lingers = True
    self._unset_keepalive_if_required()
    if self._deadline is not None:
      self._deadline.cancel()
    self.flow.resume_reading()
    if self.transport.can_write_eof():
      self.transport.write_eof()
    self._deadline = self.loop.call_later(
      self._bounds.linger_seconds, self.transport.abort
    )


class _Transport:
  """A transport that lingers if it is closed before the end of a body."""

  def __init__(self, transport: asyncio.Transport, protocol: _Protocol):
    self.bare, self._protocol = transport, protocol

  def __getattr__(self, name):
    return getattr(self.bare, name)

  def close(self) -> None:
    if self._protocol.body_is_left:
      self._protocol.linger()
    else:
      self.bare.close()
