"""How often a server is asked: a rate limit, and a circuit breaker."""

import asyncio
import time
from collections.abc import Awaitable, Callable


class Pacer:
  """Keeps a rate by spacing what it lets through, in order of asking.

  What is let through takes its share of a minute, and the next one waits until
  that share is over. So whatever window of time is looked at, a limit of N a
  minute is exceeded by no more than the one that ends it; a bucket that fills
  up while nothing is asked would let 2 N through in its first minute.

  Args:
    per_minute: the limit, in whatever `wait` is given; 0 for none.
    clock: seconds, monotonic; `clock` and `sleep` are for tests.
    sleep: waits for seconds.
  """

  def __init__(
    self,
    per_minute: float,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
  ):
    self._seconds_each = 60.0 / per_minute if per_minute else 0.0
    self._clock, self._sleep = clock, sleep
    self._free_at = 0.0
    self._turn = asyncio.Lock()

  async def wait(self, amount: float = 1.0) -> None:
    """Returns when `amount` may be spent; it then counts as spent."""
    if not self._seconds_each:
      return
    async with self._turn:
      now = self._clock()
      if now < self._free_at:
        await self._sleep(self._free_at - now)
      # Only now: who is cancelled while it waits has spent nothing.
      start = max(self._clock(), self._free_at)
      self._free_at = start + amount * self._seconds_each


class CircuitOpen(Exception):
  """The server counts as down; nothing was sent.

  Attributes:
    seconds: time until the next attempt [s].
  """

  def __init__(self, message: str, seconds: float):
    super().__init__(message)
    self.seconds = seconds


class Breaker:
  """Stops asking a server that fails again and again.

  Closed, it lets everything through. After `failures` failures in a row it is
  open: nothing passes, but for one attempt every `seconds`, which closes it if
  it succeeds. Say after every attempt whether it `succeeded` or `failed`; one
  that was cancelled did neither.

  Args:
    failures: number of failures in a row that open the breaker; 0 for never.
    seconds: time between two attempts while it is open [s].
    clock: monotonic clock [s]; for tests.
  """

  def __init__(
    self, failures: int, seconds: float, clock: Callable[[], float] = time.monotonic
  ):
    self._limit, self._seconds, self._clock = failures, seconds, clock
    self._failures = 0
    self._reason = ''
    self._tried_at = 0.0
    self._closed = asyncio.Event()
    self._closed.set()

  def check(self) -> None:
    """Raises CircuitOpen if no attempt may be made now."""
    if self._closed.is_set():
      return
    wait = self._tried_at + self._seconds - self._clock()
    if wait > 0:
      raise CircuitOpen(
        f'{self._failures} attempts in a row failed, the last one with: {self._reason}',
        wait,
      )

  def enter(self) -> None:
    """Begins an attempt.

    Raises:
      CircuitOpen: it may not be made now.
    """
    self.check()
    self._tried_at = self._clock()

  async def closed(self, seconds: float) -> bool:
    """Waits for the server to answer again; False if it has not after so long."""
    try:
      async with asyncio.timeout(seconds):
        return await self._closed.wait()
    except TimeoutError:
      return False

  def succeeded(self) -> None:
    """The server answered."""
    self._failures = 0
    self._closed.set()

  def failed(self, reason: str) -> None:
    """The server did not answer as it should."""
    self._failures += 1
    self._reason = reason
    if self._failures == self._limit:
      self._tried_at = self._clock()
      self._closed.clear()
