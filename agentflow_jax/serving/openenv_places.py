"""Places of sessions on a server of OpenEnv: a bound, and the end of what is idle.

A session belongs to a connection, or to a client that began it by a request and names
it in others; the latter ends with a request, or after a time without one.
"""

import asyncio
import contextlib
import dataclasses
import secrets
from collections.abc import AsyncIterator

from agentflow_jax.serving import openenv_sessions


class Unknown(Exception):
  """There is no session of a name, or another connection has it."""


@dataclasses.dataclass
class _Named:
  """A session that requests name.

  Attributes:
    session: the session.
    users: number of connections and requests that use it now.
    connected: whether a connection has it.
    ending: whether it ends when nothing uses it any more.
    idle: timer of its end; None while it is used.
  """

  session: openenv_sessions.Session
  users: int = 0
  connected: bool = False
  ending: bool = False
  idle: asyncio.TimerHandle | None = None


class Places:
  """The sessions of a server. Use it from one event loop.

  Args:
    worlds: environment, tasks and rewards.
    capacity: largest number of sessions at once.
    idle_seconds: time without use after which a named session ends [s].

  Attributes:
    active: number of sessions now.
  """

  def __init__(
    self, worlds: openenv_sessions.Worlds, capacity: int, idle_seconds: float
  ):
    self.worlds, self.capacity, self.idle_seconds = worlds, capacity, idle_seconds
    self.active = 0
    self._named: dict[str, _Named] = {}
    self._closing: set[asyncio.Future] = set()

  @contextlib.asynccontextmanager
  async def one(self) -> AsyncIterator[openenv_sessions.Session | None]:
    """Yields a new session that ends with the body; None where there is no place."""
    session = self._new()
    try:
      yield session
    finally:
      if session is not None:
        # A cancellation must not leave the episode open, nor the place taken.
        await asyncio.shield(self._close(session))

  def create(self) -> str | None:
    """Begins a named session, and returns its name; None where there is no place."""
    session = self._new()
    if session is None:
      return None
    name = secrets.token_hex(16)
    self._named[name] = _Named(session)
    self._rest(name)
    return name

  @contextlib.asynccontextmanager
  async def named(
    self, name: str, connects: bool = False
  ) -> AsyncIterator[openenv_sessions.Session]:
    """Yields a named session.

    Args:
      name: name of the session.
      connects: whether it is a connection that has it from now on.

    Raises:
      Unknown: there is no such session, or another connection has it.
    """
    named = self._named.get(name)
    if named is None or named.ending or (connects and named.connected):
      raise Unknown(f'there is no session {name[:64]!r} that is free')
    if named.idle is not None:
      named.idle.cancel()
      named.idle = None
    named.users += 1
    named.connected |= connects
    try:
      yield named.session
    finally:
      named.users -= 1
      named.connected &= not connects
      if not named.users:
        if named.ending:
          self._end(name)
        else:
          self._rest(name)

  async def end(self, name: str) -> bool:
    """Ends a named session; returns False where that waits for a user of it.

    Raises:
      Unknown: there is no such session.
    """
    named = self._named.get(name)
    if named is None:
      raise Unknown(f'there is no session {name[:64]!r}')
    named.ending = True
    if named.users:
      return False
    await asyncio.shield(self._end(name))
    return True

  async def close(self) -> None:
    """Ends all named sessions."""
    for name in list(self._named):
      self._end(name)
    await asyncio.gather(*self._closing)

  def _new(self) -> openenv_sessions.Session | None:
    if self.active >= self.capacity:
      return None
    self.active += 1
    return openenv_sessions.Session(self.worlds)

  def _rest(self, name: str) -> None:
    """Starts the time after which a session ends that nothing uses."""
    loop = asyncio.get_running_loop()
    self._named[name].idle = loop.call_later(self.idle_seconds, self._end, name)

  def _end(self, name: str) -> asyncio.Future:
    named = self._named.pop(name)
    if named.idle is not None:
      named.idle.cancel()
    return self._close(named.session)

  def _close(self, session: openenv_sessions.Session) -> asyncio.Future:
    """Closes a session; its place is free afterwards."""
    closing = asyncio.ensure_future(session.close())
    self._closing.add(closing)
    closing.add_done_callback(self._left)
    return closing

  def _left(self, closing: asyncio.Future) -> None:
    self._closing.discard(closing)
    self.active -= 1
