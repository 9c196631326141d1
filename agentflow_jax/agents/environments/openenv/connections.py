"""A client's side of one WebSocket of a server of OpenEnv, see wire."""

import asyncio
import contextlib
import json
import math
from collections.abc import Mapping
from typing import Any

from agentflow_jax.agents.environments import base
from agentflow_jax.agents.environments.openenv import wire

# A server that does not answer the close of a socket is left after so long [s].
_CLOSE_SECONDS = 2.0


class Rejected(Exception):
  """The server said that a message is not valid; its words."""


def _websockets() -> Any:
  """Returns the client library.

  Raises:
    Unreachable: it is not installed.
  """
  try:
    import websockets.asyncio.client  # pylint: disable=g-import-not-at-top
  except ImportError as e:
    raise base.Unreachable(MISSING) from e
  return websockets


MISSING = "servers of OpenEnv need websockets: pip install -e '.[openenv]'"


class Socket:
  """A connection, which holds one of the server's episodes.

  Args:
    url: address of the server, http:// or https://.
    seconds: time limit of an answer [s].
  """

  def __init__(self, url: str, seconds: float):
    scheme, _, rest = url.rstrip('/').partition('://')
    self._url = f'{"wss" if scheme == "https" else "ws"}://{rest}{wire.SOCKET}'
    self._seconds, self._connection = seconds, None
    self._connecting: asyncio.Future | None = None
    self._lock = asyncio.Lock()

  async def open(self) -> None:
    """Connects; raises Unreachable."""
    library = _websockets()

    async def connect():
      return await library.asyncio.client.connect(
        self._url,
        open_timeout=self._seconds,
        close_timeout=_CLOSE_SECONDS,
        max_size=wire.LONGEST_ANSWER,
        proxy=None,
      )

    try:
      # A server may have made an episode for a connection that is given up halfway,
      # so a cancellation waits for it, and `close` ends it properly.
      self._connecting = asyncio.ensure_future(connect())
      self._connection = await asyncio.shield(self._connecting)
    except (OSError, TimeoutError, library.WebSocketException) as e:
      raise base.Unreachable(f'{self._url}: {type(e).__name__}: {e}') from e

  async def ask(self, kind: str, data: Mapping[str, Any]) -> dict[str, Any]:
    """Sends a message, and returns the data of the observation that answers it.

    Raises:
      Rejected: the server refuses the message, and nothing happened.
      Unreachable: everything else that is no observation. An episode that does not
        answer is not asked again: its state is not known.
    """
    library = _websockets()
    assert self._connection is not None
    async with self._lock:
      try:
        async with asyncio.timeout(self._seconds):
          # A server that refuses a connection says why, and closes it before it reads.
          with contextlib.suppress(library.ConnectionClosed):
            await self._connection.send(json.dumps({'type': kind, 'data': dict(data)}))
          text = await self._connection.recv()
      except (OSError, TimeoutError, library.WebSocketException) as e:
        raise base.Unreachable(f'{self._url}: {kind}: {type(e).__name__}: {e}') from e
    return self._read(kind, text)

  def _read(self, kind: str, text: str | bytes) -> dict[str, Any]:
    """Reads an answer, see `ask`."""
    try:
      said = json.loads(text)
      type_, data = said['type'], said['data']
      if not isinstance(data, dict):
        raise TypeError('data')
    except (ValueError, TypeError, KeyError, RecursionError) as e:
      raise base.Unreachable(f'{self._url}: an answer that is no message') from e
    if type_ == 'error':
      message = f'{data.get("message")}{_where(data.get("errors"))}'
      if data.get('code') == wire.Code.VALIDATION_ERROR:
        raise Rejected(message)
      raise base.Unreachable(f'{self._url}: {kind}: {data.get("code")}: {message}')
    observation = data.get('observation')
    reward, done = data.get('reward'), data.get('done', False)
    if (
      type_ != 'observation'
      or not isinstance(observation, dict)
      or not _is_finite(reward)
      or not isinstance(done, bool)
    ):
      raise base.Unreachable(f'{self._url}: {kind} was answered by {type_!r}')
    return data

  async def close(self) -> None:
    """Ends the episode, so that its place at the server is free. It never raises."""
    if self._connection is None and self._connecting is not None:
      await asyncio.wait({self._connecting})
      if not self._connecting.cancelled() and not self._connecting.exception():
        self._connection = self._connecting.result()
    if self._connection is None:
      return
    library = _websockets()
    try:
      async with asyncio.timeout(_CLOSE_SECONDS):
        await self._connection.send('{"type": "close"}')
        # The server closes the socket after it has freed the place.
        await self._connection.wait_closed()
    except (OSError, TimeoutError, library.WebSocketException):
      pass  # The server is gone, and the place with it.
    await self._connection.close()


def _is_finite(reward: Any) -> bool:
  """Says whether a reward is a finite number, or absent."""
  try:
    return reward is None or (
      isinstance(reward, (int, float)) and math.isfinite(float(reward))
    )
  except OverflowError:
    return False


def _where(errors: Any) -> str:
  """Returns what is wrong with which field, as a server lists it."""
  found = []
  for one in errors if isinstance(errors, list) else ():
    if isinstance(one, dict):
      place = one.get('loc')
      place = '.'.join(map(str, place)) if isinstance(place, list) else str(place)
      found.append(f'{place}: {one.get("msg")}')
  return f' ({"; ".join(found)})' if found else ''
