"""Who has a slot, and who waits for one or for pages."""

import asyncio
import collections
import dataclasses
from collections.abc import Callable

from agentflow_jax.inference import api
from agentflow_jax.inference import batching
from agentflow_jax.inference import prefixes


@dataclasses.dataclass(eq=False)
class Pending:
  """A request on its way through the engine.

  Attributes:
    request: request of the caller.
    loop: event loop of the caller.
    future: future that the caller waits for.
    submitted: time of the request, by the clock of the engine [s].
    started: time at which it got its slot, by the same clock [s].
    device_seconds: device time that the engine had been charged by then [s].
    row: row of the request, once it has a slot.
    abandoned: whether its caller was cancelled.
    settled: whether a result or an error is on its way to the loop.
    timing: time of the request, known once it is settled.
  """

  request: api.Request
  loop: asyncio.AbstractEventLoop
  future: asyncio.Future
  submitted: float
  started: float = 0.0
  device_seconds: float = 0.0
  row: batching.Row | None = None
  abandoned: bool = False
  settled: bool = False
  timing: api.Timing | None = None

  @property
  def slot_row(self) -> batching.Row:
    """The row of a request that has a slot."""
    assert self.row is not None
    return self.row

  @property
  def has_ended(self) -> bool:
    return self.settled or self.abandoned


class Scheduler:
  """The queue, the slots and the pages of an engine, under the engine's lock.

  Attributes:
    queue: requests without a slot, in the order in which they came.
    prefixes: the pages.
    lacks_pages: whether there were too few for who was next.
  """

  def __init__(
    self,
    config: api.EngineConfig,
    clock: Callable[[], float],
    new_in_pages: bool = True,
  ):
    """Starts with an empty queue.

    Args:
      config: config with the numbers of slots and pages.
      clock: monotonic time [s].
      new_in_pages: whether pages take the tokens that are sampled, too.
    """
    self._clock = clock
    self._new_in_pages = new_in_pages
    self.lacks_pages = False
    self.queue: collections.deque[Pending] = collections.deque()
    self.prefixes = prefixes.Prefixes(
      config.pages, config.page_tokens, config.prefix_cache
    )
    self._slots: list[Pending | None] = [None] * config.slots

  @property
  def is_idle(self) -> bool:
    """Whether no slot is used."""
    return not any(self._slots)

  @property
  def used(self) -> dict[int, Pending]:
    """Requests by slot, of those that are used."""
    return {i: p for i, p in enumerate(self._slots) if p is not None}

  def free_slots(self) -> None:
    """Takes their slots and pages from requests that have ended."""
    for slot, pending in self.used.items():
      if pending.has_ended:
        self.prefixes.release(pending.slot_row.lease)
        self._slots[slot] = None

  def fill_slots(self, turn: int) -> list[Pending]:
    """Gives slots to those who wait, in the order in which they came.

    Args:
      turn: their first, see batching.Row.

    Returns:
      Who got one. Who finds no room waits, and nobody overtakes.
    """
    got = []
    self.lacks_pages = False
    for slot, used in enumerate(self._slots):
      if used is not None:
        continue
      if not self.queue:
        break
      pending = self.queue[0]
      request = pending.request
      new_tokens = request.sampling.max_new_tokens
      lease = self.prefixes.lease(
        request.prompt_ids, new_tokens if self._new_in_pages else None
      )
      if lease is None:
        self.lacks_pages = True
        break
      self._slots[slot] = self.queue.popleft()
      pending.row = batching.Row(request, lease, turn=turn)
      pending.started = self._clock()
      got.append(pending)
    return got

  def take_all(self) -> list[Pending]:
    """Returns everyone, and empties the queue."""
    everyone = [*self.queue, *self.used.values()]
    self.queue.clear()
    return everyone
