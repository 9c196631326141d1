"""An engine that samples for many coroutines from one thread of its own.

Requests join a fixed number of slots as they come and leave as they end. Prompts
are read in pieces between chunks of decoding, and what two of them share is read
once. The event loop never waits on the device: it only appends to a queue, and
the device thread hands results back to the loop that asked. What a request
samples is a function of the request and the parameters; when it came, who came
with it and what was read before never show.
"""

import asyncio
import atexit
import collections
import functools
import math
import threading
import time
from collections.abc import Sequence
from concurrent import futures
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from agentflow_jax.core import device_time, launches, model
from agentflow_jax.inference import api, batching, decoding, gathered
from agentflow_jax.inference import pages as pages_lib, programs, scheduling

# How long an idle engine waits for company before it knows what a call takes [s].
_FIRST_PATIENCE = 0.002


class Engine:
  """Samples responses from the current parameters.

  Make it in the thread that owns the program, `warmup` it, share it between any
  number of event loops, and `close` it (it is also a context manager).
  """

  def __init__(
    self,
    model_config: model.ModelConfig,
    config: api.EngineConfig,
    params: Any,
    version: int = 0,
    *,
    name: str = 'planner',
    sharding: Any = None,
    copy: bool = True,
  ):
    """Takes the parameters and starts the device thread.

    Args:
      model_config: config of the model that the parameters are of.
      config: shapes and timing.
      params: the model's parameters, or the result of `as_read`. The engine
        keeps its own copy on the device, so the caller may donate these; but see
        `copy`.
      version: name of the parameters in every result.
      name: name of the thread and of the engine in logs.
      sharding: place of the copy: one `jax.sharding.Sharding` for all, or a pytree of
        them; by default this process's first device.
      copy: False to use the caller's own arrays where they lie as `sharding`
        says; the caller then never donates them.

    Raises:
      ValueError: the shapes do not fit the model.
    """
    if config.max_prompt_tokens > model_config.max_positions:
      raise ValueError(
        f"max_prompt_tokens {config.max_prompt_tokens} exceeds the model's"
        f' context of {model_config.max_positions}'
      )
    if config.max_kept > model_config.vocab_size:
      raise ValueError(
        f"max_kept {config.max_kept} exceeds the model's vocabulary of"
        f' {model_config.vocab_size}'
      )
    self.name = name
    self._model_config = model_config
    self._sharding = sharding or jax.sharding.SingleDeviceSharding(
      jax.local_devices()[0]
    )
    where, *_ = jax.tree.leaves(self._sharding)
    self._devices = len(where.device_set)
    self._shapes = _shapes(params)
    placed = self._place(params, copy)
    config = programs.settled(model_config, config, pages_lib.pool_sharding(placed))
    self.config = config
    self._version = version
    self._make_pool = jax.jit(
      functools.partial(
        pages_lib.make_pool,
        model_config,
        config.pages,
        config.page_tokens,
        config.kv_dtype,
      ),
      out_shardings=pages_lib.pool_sharding(placed),
    )
    self._pool = self._new_pool()
    reading = programs.reading_of(model_config, config, self._pool.keys.sharding)
    self._page_reading = reading
    self._unroll = None
    if reading.unrolled and 'layers' in placed:
      self._unroll = model.make_unrolled_fn(model_config, placed)
    self._params = self._unrolled(placed)
    self._programs = programs.Programs(
      model_config, config, self._params, self._pool, reading
    )
    # Of each lane what it reads instead of pages, or None; and the pages that
    # it reads pieces into, where there are several.
    self._stores: list[gathered.Store] | None = None
    self._desks: list[pages_lib.Pool] = []
    self._make_room()
    self._threads = futures.ThreadPoolExecutor(  # Beside this engine's own.
      reading.lanes, thread_name_prefix=f'engine-{name}-lane'
    )
    self._totals: Any = collections.Counter()  # Whole numbers, and seconds.
    self._device = device_time.User(device_time.METER)
    # Guards everything below, and the totals.
    self._wake = threading.Condition()
    self._scheduler = scheduling.Scheduler(config, new_in_pages=self._stores is None)
    # What takes the place of the parameters as soon as no slot is used.
    self._next: tuple[Any, int] | None = None
    self._turn = 0  # Calls of prefill.
    self._calls = 0  # Of them, and of waiting, since decoding had its turn.
    self._mark = 0.0  # Up to when pending_seconds is counted.
    self._cause: BaseException | None = None  # Of an end that nobody asked for.
    # Of the last call of prefill: whether all is finite in each lane, and when
    # it was made.
    self._open_prefill: tuple[list[jax.Array], float] | None = None
    self._is_spoilt = False  # Pages may hold what is not finite.
    self._closing = False
    self._thread = threading.Thread(
      target=self._serve, name=f'engine-{name}', daemon=True
    )
    self._thread.start()
    # A thread inside the runtime when the interpreter tears down is a crash.
    atexit.register(self.close)

  def __enter__(self) -> 'Engine':
    return self

  def __exit__(self, *unused_exc_info):
    self.close()

  async def generate(self, request: api.Request) -> api.Result:
    """Samples one response.

    Cancelling the caller drops the request: its slot and its pages are free
    as soon as the device is done with what it was given.

    Args:
      request: request to sample.

    Returns:
      Its ids and their log probabilities.

    Raises:
      PromptTooLong: prompt and response do not fit.
      ValueError: the request is malformed.
      EngineClosed: the engine is closed, or was before the response was done.
      EngineError: the device or the request's stop_fn failed; the cause is
        chained.
    """
    api.check_request(
      request,
      self.config,
      vocab_size=self._model_config.vocab_size,
      max_positions=self._model_config.max_positions,
    )
    loop = asyncio.get_running_loop()
    pending = scheduling.Pending(request, loop, loop.create_future(), time.monotonic())
    with self._wake:
      if self._closing:
        raise self._closed()
      self._scheduler.queue.append(pending)
      self._totals['requests'] += 1
      self._wake.notify()
    try:
      return await pending.future
    except asyncio.CancelledError:
      self._abandon(pending)
      raise
    finally:
      if request.on_end is not None:
        # A settled request has its time: an event loop that resumes late does
        # not add to it.
        request.on_end(pending.timing or self._timing(pending))

  def update_params(self, params: Any, version: int, *, copy: bool = True):
    """Makes requests that get a slot from now on sample from `params`.

    Those that have one end with the parameters they started with; others wait
    for that. What was read is forgotten. The parameters are copied on the
    device, so the caller may donate them afterwards; but see `copy`.

    Args:
      params: parameters with the shapes and dtypes of construction.
      version: name of these parameters in every result.
      copy: the same argument of construction.

    Raises:
      ValueError: the tree, a shape or a dtype differs from construction.
    """
    new, old = _shapes(params), self._shapes
    if new != old:
      raise ValueError(
        "params differ from the engine's: "
        + '; '.join(
          f'{path}: {new.get(path)}, not {old.get(path)}'
          for path in sorted(new.keys() | old.keys())
          if new.get(path) != old.get(path)
        )
      )
    with device_time.METER.used():
      params = self._unrolled(self._place(params, copy))
    with self._wake:
      self._next = params, version
      self._swap()
      self._wake.notify()

  def _swap(self):
    """Takes new parameters if nobody needs the old ones; the lock is held."""
    if self._next is None or not self._scheduler.is_idle:
      return
    (self._params, self._version), self._next = self._next, None
    self._scheduler.prefixes.clear()

  def warmup(self, truncates: Sequence[bool] = (False, True), with_top: bool = False):
    """Compiles every program, so that no request waits for the compiler.

    Args:
      truncates: programs to compile: False for requests that set none of top_k, top_p
        and min_p, True for the others. A program left out is compiled when the first
        request needs it.
      with_top: whether to compile the program of requests that ask for the most likely
        tokens, too.
    """
    self._programs.prefill()
    if self.lanes > 1:
      self._programs.file_pages()
    for value in truncates:
      self._programs.decode(value)
    if with_top:
      self._programs.decode(True, True)

  @property
  def compilations(self) -> int:
    """Programs that this engine compiled; it must not grow after `warmup`.

    An engine of the same shapes, made earlier, leaves it nothing to compile.
    """
    return self._programs.compilations

  @property
  def model_config(self) -> model.ModelConfig:
    """Config of the network that is sampled from."""
    return self._model_config

  @property
  def lanes(self) -> int:
    """Groups of slots that are decoded side by side, see EngineConfig."""
    return self._page_reading.lanes

  @property
  def is_closed(self) -> bool:
    """Whether it takes no more requests: it was closed, or could not go on."""
    with self._wake:
      return self._closing

  @property
  def params(self) -> Any:
    """What the next request will sample from; not to be donated.

    With layers as core.model.unrolled has them, but where they are scanned.
    """
    with self._wake:
      return self._next[0] if self._next else self._params

  @property
  def params_version(self) -> int:
    """Of the parameters that the next request will sample from."""
    with self._wake:
      return self._next[1] if self._next else self._version

  def stats(self) -> api.EngineStats:
    """Totals since construction, at one moment."""
    with self._wake:
      return api.EngineStats(
        queued=len(self._scheduler.queue),
        running=sum(not p.has_ended for p in self._scheduler.used.values()),
        slots=self.config.slots,
        pages=self.config.pages - 1,
        free_pages=self._scheduler.prefixes.free,
        evicted_pages=self._scheduler.prefixes.evicted,
        compilations=self.compilations,
        **self._totals,
      )

  def close(self):
    """Fails what is unfinished with EngineClosed and ends the thread.

    What is on the device stops at its next chunk. May be called twice.
    """
    with self._wake:
      self._closing = True
      self._wake.notify()
    self._thread.join()
    self._threads.shutdown()
    atexit.unregister(self.close)

  def _place(self, params, copy=True):
    with launches.over(self._devices):
      placed = jax.device_put(params, self._sharding)
      if copy:  # device_put alone may alias a device's part of an array.
        placed = jax.tree.map(jnp.copy, placed)
    return jax.block_until_ready(placed)

  def _unrolled(self, params):
    if self._unroll is None:
      return params
    with launches.over(self._devices):
      return jax.block_until_ready(self._unroll(params))

  def _new_pool(self) -> pages_lib.Pool:
    with launches.over(self._devices):
      return self._make_pool()

  def _make_room(self):
    self._stores, self._desks = None, []  # First, so that there is room.
    lanes = range(self._page_reading.lanes)
    if self._page_reading.way == 'gathered':
      self._stores = [self._programs.make_store() for _ in lanes]
    if len(lanes) > 1:
      self._desks = [self._programs.make_desk() for _ in lanes]

  def _closed(self):
    error = api.EngineClosed(f'engine {self.name} is closed')
    error.__cause__ = self._cause
    return error

  def _abandon(self, pending):
    """Forgets a request whose caller was cancelled."""
    with self._wake:
      if pending.has_ended:
        return
      pending.abandoned = True
      self._totals['cancelled'] += 1
      if pending.row is None:
        self._scheduler.queue.remove(pending)

  def _timing(self, pending: scheduling.Pending) -> api.Timing:
    """Returns the time of a request up to now."""
    with self._wake:  # The device thread may be giving it a slot.
      now = time.monotonic()
      if pending.row is None:
        return api.Timing(now - pending.submitted, 0.0, 0.0)
      model_seconds = now - pending.started
      sampling = self._device.seconds - pending.device_seconds
    return api.Timing(
      queue_seconds=pending.started - pending.submitted,
      model_seconds=model_seconds,
      stalled_seconds=max(model_seconds - sampling, 0.0),
    )

  # Everything below runs in the device thread.

  def _serve(self):
    """Serves requests until the engine closes."""
    try:
      while (rows := self._wait()) is not None:
        try:
          self._advance(rows)
        except Exception as e:  # Boundary: its requests get an EngineError.
          logging.exception('Engine %s lost %d requests.', self.name, len(rows))
          self._settle([(p, _failure(self.name, e)) for p in rows.values()])
          self._is_spoilt, self._open_prefill = True, None  # It took the pool.
          self._calls = 0
    except BaseException as e:  # Such as no room for a new pool.
      logging.exception('Engine %s ends.', self.name)
      self._cause = e
    finally:  # Whatever happens, nobody waits for an engine that has ended.
      with self._wake:
        self._closing = True
        left = self._scheduler.take_all()
        self._settle([(p, self._closed()) for p in left])

  def _wait(self) -> dict[int, scheduling.Pending] | None:
    """Returns what to work on, by slot; None to end."""
    while True:
      with self._wake:
        rows = self._next_rows()
      if rows != {}:
        return rows
      # Zero times what is not finite would reach whoever gets such a page. Not
      # under the lock: the event loop wants it, and this waits for the device.
      self._pool = None
      self._pool = self._new_pool()
      self._make_room()
      with self._wake:
        self._scheduler.prefixes.clear()
        self._is_spoilt = False

  def _next_rows(self) -> dict[int, scheduling.Pending] | None:
    """Does so; the lock is held. None are there where all is to be made anew.

    The first request of an idle engine waits a little for company.
    """
    scheduler = self._scheduler
    while not self._closing:
      scheduler.free_slots()
      if self._is_spoilt and scheduler.is_idle:
        return {}
      self._swap()
      if scheduler.queue and scheduler.is_idle:
        first = scheduler.queue[0].submitted
        self._mark = max(self._mark, first)  # Before, nothing was pending.
        waited = time.monotonic() - first
        left = self._patience() - waited
        full = min(self.config.slots, self.config.prefill_pieces or 1)
        if len(scheduler.queue) < full and left > 0:
          self._wake.wait(left)
          continue
      if self._next is None and not self._is_spoilt:
        self._count_admitted(scheduler.fill_slots(self._turn))
      if not scheduler.is_idle:
        return scheduler.used
      self._wake.wait()
    return None

  def _patience(self) -> float:
    """Returns how long an idle engine waits for company [s]."""
    share, calls = self.config.coalesce_share, self._totals['prefill_calls']
    if not share:
      return 0.0
    if not calls:
      return _FIRST_PATIENCE
    return share * self._totals['prefill_seconds'] / calls

  def _count_admitted(self, admitted: list[scheduling.Pending]):
    for pending in admitted:
      pending.device_seconds = self._device.seconds
    self._totals.update(
      prompt_tokens=sum(len(p.request.prompt_ids) for p in admitted),
      hit_tokens=sum(p.slot_row.lease.hits for p in admitted),
      queue_seconds=sum(p.started - p.submitted for p in admitted),
    )

  def _advance(self, slots: dict[int, scheduling.Pending]):
    """Reads some pieces of prompts, and samples a chunk of what is read.

    Not yet where too few would be in it because more have come meanwhile.
    """
    # What was not compiled yet is now, while no time of the device is counted.
    self._programs.prefill()
    if self.lanes > 1:
      self._programs.file_pages()
    for kind in {p.request.program for p in slots.values()}:
      self._programs.decode(*kind)
    with self._device:
      self._read_and_sample(slots)

  def _read_and_sample(self, slots: dict[int, scheduling.Pending]):
    """Runs programs that are compiled already; their time is device time."""
    unread = [
      p.slot_row for p in slots.values() if not (p.abandoned or p.slot_row.is_read())
    ]
    assert self.config.prefill_burst is not None
    while unread and self._calls < self.config.prefill_burst:
      if self._calls and not self._is_thin(len(slots) - len(unread), len(slots)):
        break
      if self._closing or any(p.abandoned for p in slots.values()):
        break  # Slots are freed first.
      self._prefill(unread)
      self._calls += 1
      unread = [row for row in unread if not row.is_read()]
    lanes = collections.defaultdict(lambda: collections.defaultdict(dict))
    for slot, pending in slots.items():
      if pending.slot_row.is_read() and not pending.abandoned:
        kind = pending.request.program
        lanes[slot % self._page_reading.lanes][kind][slot] = pending
    # Requests of each kind are apart, so that who else samples does not choose a
    # request's program.
    packed = [
      (lane, [self._packed(*kind) for kind in kinds.items()])
      for lane, kinds in lanes.items()
    ]
    self._finish_prefill()  # Before anybody gets its pages.
    if packed and self._has_company(slots, len(slots) - len(unread)):
      self._calls += 1  # There is an end to waiting, too.
      return
    self._calls = 0
    if packed:
      self._decode(packed)

  def _is_thin(self, n_read: int, n_used: int) -> bool:
    assert self.config.read_share is not None
    return n_read < self.config.read_share * n_used

  def _has_company(self, slots: dict[int, scheduling.Pending], n_read: int) -> bool:
    """Says whether a chunk of those that are read had better wait for others."""
    with self._wake:
      scheduler = self._scheduler
      came = min(len(scheduler.queue), self.config.slots - len(slots))
      if self._next is not None or self._is_spoilt or self._closing:
        return False  # Nobody is let in.
      if scheduler.lacks_pages:
        return False  # Nor is who is next.
    assert self.config.prefill_burst is not None
    return (
      came > 0
      and self._calls < self.config.prefill_burst
      and self._is_thin(n_read, len(slots) + came)
    )

  def _prefill(self, rows: list[batching.Row]):
    """Reads a call's worth of pieces; the row that waited longest is first."""
    rows.sort(key=lambda row: row.turn)
    lanes = batching.next_pieces(rows, self.config, self._page_reading.lanes)
    self._turn += 1
    start = time.monotonic()
    is_finite = self._read_apart(lanes) if self._desks else self._read(*lanes)
    # So that the device has this one when it is done with the one before.
    self._finish_prefill()
    self._open_prefill = is_finite, start
    pieces = [piece for lane in lanes for piece in lane]
    for row, _, nodes in pieces:
      row.turn = self._turn
      for node in nodes:
        node.ready = True  # For who is given to the device behind it.
    with self._wake:
      self._totals['prefill_calls'] += 1
      self._totals['prefill_tokens'] += sum(
        len(node.ids) for _, _, nodes in pieces for node in nodes
      )

  def _read(self, pieces: list[batching.Piece]) -> list[jax.Array]:
    """Gives pieces to the device; returns whether all will be finite."""
    segments = batching.pack_pieces(pieces, self.config)
    prefill = self._programs.prefill()
    with launches.over(self._devices):
      self._pool, is_finite = prefill(self._params, self._pool, segments)
    return [is_finite]

  def _read_apart(self, lanes: list[list[batching.Piece]]) -> list[jax.Array]:
    """Does so in lanes side by side, and waits for them."""
    prefill, file_pages = self._programs.prefill(), self._programs.file_pages()
    loads, segments, copies = zip(
      *(batching.pack_apart(pieces, self.config, len(lanes)) for pieces in lanes)
    )

    def read(lane):
      with launches.over(self._devices):
        self._desks[lane], is_finite = prefill(
          self._params, self._desks[lane], self._pool, loads[lane], segments[lane]
        )
      return jax.block_until_ready(is_finite)

    used = [(lane,) for lane, pieces in enumerate(lanes) if pieces]
    is_finite = self._side_by_side(read, used)
    with launches.over(self._devices):
      self._pool = file_pages(self._pool, tuple(self._desks), copies)
    return is_finite

  def _finish_prefill(self):
    """Waits for the last call of prefill, if nobody has yet."""
    if self._open_prefill is None:
      return
    (is_finite, start), self._open_prefill = self._open_prefill, None
    self._is_spoilt |= not all(is_finite)
    with self._wake:
      self._count('prefill_seconds', start)

  def _count(self, name: str, start: float) -> float:
    """Adds up seconds of the device, and all since the last time; returns now.

    Args:
      name: name of the total.
      start: time at which the device was given the call, maybe behind another one [s].
    """
    now = time.monotonic()
    self._totals[name] += now - max(start, self._mark)
    pending = now - self._mark
    self._totals['pending_seconds'] += pending
    self._totals['slot_seconds'] += pending * len(self._scheduler.used)
    self._totals['page_seconds'] += pending * self._scheduler.prefixes.held
    self._mark = now
    return now

  def _decode(self, packed: list[tuple[int, list[Any]]]):
    """Samples a chunk, settling each request as soon as it is done.

    Args:
      packed: number of each lane that is used, and the result of _packed for it.
    """
    start = time.monotonic()
    sampled = sum(self._side_by_side(self._sample, packed), [])
    with self._wake:
      now = self._count('decode_seconds', start)
      for slots, host in sampled:
        self._totals['decode_steps'] += int(host.step)
        self._totals['sampled_tokens'] += int(host.lengths.sum())
        self._totals['first_token_seconds'] += sum(
          now - p.submitted for p in slots.values() if not p.slot_row.ids
        )
    for slots, host in sampled:
      self._take(slots, host)

  def _side_by_side(self, function: Any, calls: Sequence[Any]) -> list[Any]:
    """Calls a function, a thread each; this one makes the first call."""
    own, *others = calls
    waits = [self._threads.submit(function, *call) for call in others]
    try:
      out = [function(*own)]
    finally:
      futures.wait(waits)  # They have their lanes, whatever happened here.
    return out + [wait.result() for wait in waits]

  def _packed(self, kind: tuple[bool, bool], slots: dict[int, scheduling.Pending]):
    """Returns requests of a lane by slot, their program, and its host arrays."""
    lanes = self._page_reading.lanes
    rows = [(slot // lanes, p.slot_row) for slot, p in slots.items()]
    arrays: list[Any] = [batching.pack_rows(rows, self.config, self._page_reading)]
    if self._stores is not None:
      fresh = [(place, row) for place, row in rows if not row.is_gathered]
      arrays.append(batching.pack_fresh(fresh, self.config, self._page_reading))
    return slots, self._programs.decode(*kind), arrays

  def _sample(
    self, lane: int, chunks: list[Any]
  ) -> list[tuple[dict[int, scheduling.Pending], decoding.Sampled]]:
    """Runs a lane's part of a chunk, see _packed; several do so at a time."""
    out = []
    for slots, decode, arrays in chunks:
      with launches.over(self._devices):
        if self._stores is None:
          self._pool, sampled = decode(self._params, self._pool, *arrays)
        else:
          rows, fresh = arrays
          self._stores[lane], sampled = decode(
            self._params, self._stores[lane], rows, self._pool, fresh
          )
      out.append((slots, jax.device_get(sampled)))
    return out

  def _take(self, slots: dict[int, scheduling.Pending], host: decoding.Sampled):
    """Adds to rows what was sampled."""
    # Seen at once, and in rows whose callers have left, too.
    self._is_spoilt |= not np.isfinite(host.logprobs).all()
    outcomes = []
    for slot, pending in slots.items():
      row, place = pending.slot_row, slot // self._page_reading.lanes
      length = int(host.lengths[place])
      row.is_copied = row.is_gathered = True
      row.ids += host.tokens[place, :length].tolist()
      row.logprobs += host.logprobs[place, :length].tolist()
      if host.sets is not None:
        row.sets += [ids[ids >= 0] for ids in host.sets[place, :length]]
      if host.top_ids is not None and host.top_logprobs is not None:
        asked = pending.request.top_logprobs
        for ids, scores in zip(
          host.top_ids[place, :length, :asked].tolist(),
          host.top_logprobs[place, :length, :asked].tolist(),
        ):
          count = sum(map(math.isfinite, scores))  # The others cannot be drawn.
          row.top.append((tuple(ids[:count]), tuple(scores[:count])))
      if pending.abandoned or self._closing:
        continue
      outcome = self._look(pending, bool(host.done[place]))
      if outcome is not None:
        outcomes.append((pending, outcome))
    self._settle(outcomes)

  def _look(
    self, pending: scheduling.Pending, done: bool
  ) -> api.Result | api.EngineError | None:
    """Returns how a row ended, or None while it goes on."""
    row = pending.slot_row
    try:
      end = batching.finish(row, done)
    # Boundary: stop_fn is the caller's own function, and may be a tokenizer
    # whose panics are no Exception.
    except BaseException as e:  # pylint: disable=broad-exception-caught
      return _failure(self.name, e)
    if end is None:
      return None
    keep, reason = end
    timing = self._timing(pending)
    return api.Result(
      response_ids=tuple(row.ids[:keep]),
      logprobs=tuple(row.logprobs[:keep]),
      finish_reason=reason,
      params_version=self._version,
      queue_seconds=timing.queue_seconds,
      model_seconds=timing.model_seconds,
      kept=tuple(row.sets[:keep]) if row.sets else None,
      stalled_seconds=timing.stalled_seconds,
      top=tuple(row.top[:keep]),
    )

  def _settle(self, outcomes):
    """Hands results and errors to the loops that wait for them."""
    by_loop = collections.defaultdict(list)
    with self._wake:
      for pending, outcome in outcomes:
        if pending.has_ended:
          continue
        pending.settled = True
        pending.timing = self._timing(pending)
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


def as_read(
  model_config: model.ModelConfig, config: api.EngineConfig, params: Any
) -> Any:
  """Returns parameters in the layout that engines of these shapes read.

  An engine that reads layers apart copies them from the stacked arrays, which
  must stay if another program reads them (the update of a run that trains).
  Where no other program does, this function takes the layers apart once for any
  number of engines, and deletes the stacked arrays.

  Args:
    model_config: the network.
    config: shapes, and whether layers are read apart.
    params: parameters; from now on the caller must use only the result.

  Raises:
    ValueError: see programs.reading_of.
  """
  where = pages_lib.pool_sharding(params)
  config = programs.settled(model_config, config, where)
  if not programs.reading_of(model_config, config, where).unrolled:
    return params
  with launches.in_turn(params):
    return model.take_apart(model_config, params)


def _shapes(params: Any) -> dict[str, str]:
  """Returns path -> dtype and shape of every leaf."""
  leaves, _ = jax.tree_util.tree_flatten_with_path(params)
  return {jax.tree_util.keystr(path): f'{x.dtype}{list(x.shape)}' for path, x in leaves}


def _failure(name: str, cause: BaseException) -> api.EngineError:
  error = api.EngineError(f'engine {name}: {type(cause).__name__}: {cause}')
  error.__cause__ = cause
  return error


def _deliver(settled: list[tuple[asyncio.Future, Any]]):
  """Resolves futures; runs in their loop."""
  for future, outcome in settled:
    if future.done():  # Its caller was cancelled meanwhile.
      continue
    if isinstance(outcome, Exception):
      future.set_exception(outcome)
    else:
      future.set_result(outcome)
