"""HTTP clients for many requests to one server at once.

A client of httpx looks at all of its connections, and at all requests that wait for
one, whenever a request begins or ends. With 256 connections that takes 8 ms of a core
for a request, and with one connection 1 ms.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

import httpx

# Few enough for the cost above, and enough that few clients hold many requests.
_OF_A_CLIENT = 8


class Clients:
  """Clients that make few requests at once each; use it in one event loop.

  Args:
    make: function that makes a client without a limit of its own. Certificates take
      long to load, so that its clients should share an ssl.SSLContext.
    most: largest number of requests at once; others wait. None for no limit.
  """

  def __init__(self, make: Callable[[], httpx.AsyncClient], most: int | None = None):
    self._make = make
    self._slots = contextlib.nullcontext() if most is None else asyncio.Semaphore(most)
    self._clients: list[httpx.AsyncClient] = []
    self._used: list[int] = []  # Requests of each client.

  @contextlib.asynccontextmanager
  async def one(self) -> AsyncIterator[httpx.AsyncClient]:
    """Gives a client for one request, and what belongs to it, in the body."""
    async with self._slots:
      # The first ones are used most, so that their connections stay open.
      i = next((i for i, n in enumerate(self._used) if n < _OF_A_CLIENT), None)
      if i is None:
        i = len(self._clients)
        self._clients.append(self._make())
        self._used.append(0)
      self._used[i] += 1
      try:
        yield self._clients[i]
      finally:
        self._used[i] -= 1

  async def aclose(self) -> None:
    """Closes the connections; no request may begin afterwards."""
    for client in self._clients:
      await client.aclose()
