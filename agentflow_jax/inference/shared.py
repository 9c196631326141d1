"""What callers and the device thread of an engine share, behind one lock.

Tests are in tests/inference/engine_*_test.py.
"""

import asyncio
import collections
import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from absl import logging

from agentflow_jax.core import device_time
from agentflow_jax.inference import api, company, scheduling

# How long an idle engine waits for company before it knows what a call takes [s].
_FIRST_PATIENCE = 0.002


class Shared:
  """The requests, the parameters and the totals of an engine.

  Any thread may call the methods of the first part, the device thread alone those of
  the second. Every method takes the lock itself.

  Attributes:
    name: name of the engine in errors and logs.
  """

  def __init__(
    self,
    name: str,
    config: api.EngineConfig,
    params: Any,
    version: int,
    *,
    new_in_pages: bool,
    clock: Callable[[], float],
    meter: device_time.Meter,
  ):
    """Starts with an empty queue.

    Args:
      name: name of the engine.
      config: shapes and timing.
      params: parameters on the devices.
      version: name of the parameters in results.
      new_in_pages: whether pages take the tokens that are sampled, too.
      clock: monotonic time [s].
      meter: meter of the time of the devices.
    """
    self.name = name
    self._config = config
    self._clock = clock
    self._device = device_time.User(meter)
    self._wake = threading.Condition()  # Guards everything below.
    self._scheduler = scheduling.Scheduler(config, clock, new_in_pages)
    self._company = company.Company(config)
    self._totals: Any = collections.Counter()  # Whole numbers, and seconds.
    self._params, self._version = params, version
    # What takes the place of the parameters as soon as no slot is used.
    self._next: tuple[Any, int] | None = None
    self._mark = 0.0  # Up to when pending_seconds is counted.
    self._closing = False
    self._cause: BaseException | None = None  # Of an end that nobody asked for.

  # Any thread.

  def submit(self, request: api.Request) -> scheduling.Pending:
    """Puts a request of the running event loop into the queue.

    Raises:
      EngineClosed: the engine takes no more requests.
    """
    loop = asyncio.get_running_loop()
    pending = scheduling.Pending(request, loop, loop.create_future(), self._clock())
    with self._wake:
      if self._closing:
        raise self.closed()
      self._scheduler.queue.append(pending)
      self._company.came = pending.submitted
      self._totals['requests'] += 1
      self._wake.notify()
    return pending

  def abandon(self, pending: scheduling.Pending) -> None:
    """Forgets a request whose caller was cancelled."""
    with self._wake:
      if pending.has_ended:
        return
      pending.abandoned = True
      self._totals['cancelled'] += 1
      if pending.row is None:
        self._scheduler.queue.remove(pending)

  @contextlib.contextmanager
  def calling(self) -> Iterator[None]:
    """Counts a caller that may make requests during the body."""
    with self._wake:
      self._company.callers += 1
    try:
      yield
    finally:
      with self._wake:
        self._company.callers -= 1
        self._wake.notify()  # Its request may be what a chunk waits for.

  def timing(self, pending: scheduling.Pending) -> api.Timing:
    """Returns the time of a request up to now."""
    with self._wake:  # The device thread may be giving it a slot.
      now = self._clock()
      if pending.row is None:
        return api.Timing(now - pending.submitted, 0.0, 0.0)
      model_seconds = now - pending.started
      sampling = self._device.seconds - pending.device_seconds
    return api.Timing(
      queue_seconds=pending.started - pending.submitted,
      model_seconds=model_seconds,
      stalled_seconds=max(model_seconds - sampling, 0.0),
    )

  def replace(self, params: Any, version: int) -> None:
    """Gives requests without a slot new parameters.

    Args:
      params: parameters on the devices.
      version: name of them in results.
    """
    with self._wake:
      self._next = params, version
      self._swap()
      self._wake.notify()

  @property
  def newest(self) -> tuple[Any, int]:
    """Parameters that the next request will sample from, and their version."""
    with self._wake:
      return self._next or (self._params, self._version)

  @property
  def is_closing(self) -> bool:
    """Whether no more requests are taken."""
    with self._wake:
      return self._closing

  def close(self) -> None:
    """Takes no more requests, and wakes the device thread to end."""
    with self._wake:
      self._closing = True
      self._wake.notify()

  def closed(self) -> api.EngineClosed:
    """Returns the error of a request that comes too late."""
    error = api.EngineClosed(f'engine {self.name} is closed')
    error.__cause__ = self._cause
    return error

  def stats(self, compilations: int) -> api.EngineStats:
    """Returns totals since construction, at one moment.

    Args:
      compilations: number of programs that were compiled.
    """
    with self._wake:
      return api.EngineStats(
        queued=len(self._scheduler.queue),
        running=sum(not p.has_ended for p in self._scheduler.used.values()),
        slots=self._config.slots,
        pages=self._config.pages - 1,
        free_pages=self._scheduler.prefixes.free,
        evicted_pages=self._scheduler.prefixes.evicted,
        compilations=compilations,
        **self._totals,
      )

  # The device thread.

  @property
  def device(self) -> device_time.User:
    """The context in which the device works for this engine."""
    return self._device

  def current(self) -> tuple[Any, int]:
    """Returns the parameters of the requests that have slots, and their version."""
    with self._wake:
      return self._params, self._version

  def next_rows(
    self, turn: int, is_spoilt: bool
  ) -> dict[int, scheduling.Pending] | None:
    """Waits for requests, and gives slots to those in the queue.

    The first request of an idle engine waits a little for company, and so do few
    requests where others are known to come.

    Args:
      turn: turn of the requests that get a slot, see batching.Row.
      is_spoilt: whether pages may hold numbers that are not finite, so that no request
        gets a slot before they are made anew.

    Returns:
      Requests by slot; empty where all pages can be made anew now; None to end.
    """
    scheduler = self._scheduler
    with self._wake:
      while not self._closing:
        scheduler.free_slots()
        if is_spoilt and scheduler.is_idle:
          return {}
        self._swap()
        if scheduler.queue and scheduler.is_idle:
          first = scheduler.queue[0].submitted
          self._mark = max(self._mark, first)  # Before that, no request was pending.
          left = self._patience() - (self._clock() - first)
          full = min(self._config.slots, self._config.prefill_pieces or 1)
          if len(scheduler.queue) < full and left > 0:
            self._wake.wait(left)
            continue
        if self._next is None and not is_spoilt:
          self._count_admitted(scheduler.fill_slots(turn))
        if not scheduler.is_idle:
          if not is_spoilt and (left := self._company_seconds()) > 0:
            self._wake.wait(left)
            continue
          return scheduler.used
        self._wake.wait()
    return None

  def forget_prefixes(self) -> None:
    """Forgets which tokens the pages held, because they were made anew."""
    with self._wake:
      self._scheduler.prefixes.clear()

  def coming(self, n_used: int) -> int:
    """Returns how many requests of the queue can be let in beside those with slots."""
    with self._wake:
      scheduler = self._scheduler
      if self._next is not None or self._closing or scheduler.lacks_pages:
        return 0
      return min(len(scheduler.queue), self._config.slots - n_used)

  def count_read(self, tokens: int) -> None:
    """Counts a call that reads prompts.

    Args:
      tokens: number of tokens that it reads.
    """
    with self._wake:
      self._totals['prefill_calls'] += 1
      self._totals['prefill_tokens'] += tokens

  def count_seconds(self, name: str, start: float) -> None:
    """Adds up seconds of the device, and all since the last time.

    Args:
      name: name of the total.
      start: time at which the device was given the call, maybe behind another one [s].
    """
    with self._wake:
      self._count(name, start)

  def count_sampled(
    self, start: float, steps: int, tokens: int, first: Sequence[scheduling.Pending]
  ) -> None:
    """Counts a chunk of decoding.

    Args:
      start: time at which the device was given it [s].
      steps: number of forward passes.
      tokens: number of tokens that were sampled.
      first: requests whose first tokens are among them.
    """
    with self._wake:
      now = self._company.decoded = self._count('decode_seconds', start)
      self._totals['decode_steps'] += steps
      self._totals['sampled_tokens'] += tokens
      self._totals['first_token_seconds'] += sum(now - p.submitted for p in first)

  def settle(
    self, outcomes: Sequence[tuple[scheduling.Pending, api.Result | api.EngineError]]
  ) -> None:
    """Hands results and errors to the loops that wait for them."""
    by_loop = collections.defaultdict(list)
    with self._wake:
      for pending, outcome in outcomes:
        if pending.has_ended:
          continue
        pending.settled = True
        pending.timing = self.timing(pending)
        by_loop[pending.loop].append((pending.future, outcome))
        if isinstance(outcome, api.Result):
          self._totals['completed'] += 1
          self._totals['response_tokens'] += len(outcome.response_ids)
        else:
          self._totals['failed'] += 1
    for loop, settled in by_loop.items():
      try:
        loop.call_soon_threadsafe(_deliver, settled)
      except RuntimeError as e:  # The loop was closed: nobody waits any more.
        logging.warning(
          'Engine %s: %d results for a loop that is gone: %s',
          self.name,
          len(settled),
          e,
        )

  def end(self, cause: BaseException | None) -> None:
    """Fails all requests that are left, because the device thread ends.

    Args:
      cause: error that it ends by; None where the engine was closed.
    """
    with self._wake:
      self._closing, self._cause = True, cause
      left = self._scheduler.take_all()
    self.settle([(pending, self.closed()) for pending in left])

  def _swap(self):
    """Takes new parameters if no request needs the old ones; the lock is held."""
    if self._next is None or not self._scheduler.is_idle:
      return
    (self._params, self._version), self._next = self._next, None
    self._scheduler.prefixes.clear()

  def _patience(self) -> float:
    """Returns how long an idle engine waits for company [s]."""
    share, calls = self._config.coalesce_share, self._totals['prefill_calls']
    if not share:
      return 0.0
    if not calls:
      return _FIRST_PATIENCE
    return share * self._totals['prefill_seconds'] / calls

  def _company_seconds(self) -> float:
    """Returns how long requests with slots wait for others [s]; see company."""
    scheduler, steps = self._scheduler, self._totals['decode_steps']
    if self._next is not None or scheduler.lacks_pages:
      return 0.0  # None of them could join.
    here = [*scheduler.queue, *scheduler.used.values()]
    seconds = self._totals['decode_seconds'] / steps if steps else 0.0
    chunk = seconds * self._config.decode_chunk
    until = self._company.waits_until([p.submitted for p in here], chunk)
    return until - self._clock()

  def _count_admitted(self, admitted: Sequence[scheduling.Pending]):
    for pending in admitted:
      pending.device_seconds = self._device.seconds
    self._totals.update(
      prompt_tokens=sum(len(p.request.prompt_ids) for p in admitted),
      hit_tokens=sum(p.slot_row.lease.hits for p in admitted),
      queue_seconds=sum(p.started - p.submitted for p in admitted),
    )

  def _count(self, name: str, start: float) -> float:
    """Does what count_seconds does, the lock held; returns the time."""
    now = self._clock()
    self._totals[name] += now - max(start, self._mark)
    pending = now - self._mark
    self._totals['pending_seconds'] += pending
    self._totals['slot_seconds'] += pending * len(self._scheduler.used)
    self._totals['page_seconds'] += pending * self._scheduler.prefixes.held
    self._mark = now
    return now


def _deliver(settled: Sequence[tuple[asyncio.Future, Any]]):
  """Resolves futures; runs in their loop."""
  for future, outcome in settled:
    if future.done():  # Its caller was cancelled meanwhile.
      continue
    if isinstance(outcome, Exception):
      future.set_exception(outcome)
    else:
      future.set_result(outcome)
