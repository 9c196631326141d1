"""The thread of an engine that gives its devices work.

Tests are in tests/inference/engine_*_test.py.
"""

import collections
import math
import threading
from collections.abc import Callable

import jax
import numpy as np
from absl import logging

from agentflow_jax.inference import api, batching, decoding, scheduling
from agentflow_jax.inference import device as device_lib, shared as shared_lib


class DeviceThread:
  """Reads prompts and samples, a chunk at a time, until the engine closes.

  All that callers see of it goes through `shared`. Nothing else of it is read by
  another thread.
  """

  def __init__(
    self,
    shared: shared_lib.Shared,
    device: device_lib.Device,
    clock: Callable[[], float],
  ):
    """Starts the thread.

    Args:
      shared: requests, parameters and totals.
      device: pages and programs, which this thread alone uses from now on.
      clock: monotonic time [s].
    """
    self._shared, self._device, self._clock = shared, device, clock
    self._config, self._lanes = device.config, device.reading.lanes
    self._turn = 0  # Calls that read.
    self._calls = 0  # Of them, and of waiting, since sampling had its turn.
    # Of the last call that reads: whether all is finite in each lane, and when it was
    # made.
    self._open: tuple[list[jax.Array], float] | None = None
    self._is_spoilt = False  # Pages may hold what is not finite.
    self._thread = threading.Thread(
      target=self._serve, name=f'engine-{shared.name}', daemon=True
    )
    self._thread.start()

  def join(self) -> None:
    """Waits until the thread has ended, which `shared.close` asks for."""
    self._thread.join()

  def _serve(self):
    """Serves requests until the engine closes."""
    cause = None
    try:
      while (slots := self._wait()) is not None:
        try:
          self._advance(slots)
        except Exception as e:  # Boundary: its requests get an EngineError.
          logging.exception(
            'Engine %s lost %d requests.', self._shared.name, len(slots)
          )
          error = self._failure(e)
          self._shared.settle([(p, error) for p in slots.values()])
          self._is_spoilt, self._open = True, None  # It took the pool.
          self._calls = 0
    except BaseException as e:  # Such as no room for a new pool.
      logging.exception('Engine %s ends.', self._shared.name)
      cause = e
    finally:  # No caller may wait for an engine that has ended.
      self._shared.end(cause)

  def _wait(self) -> dict[int, scheduling.Pending] | None:
    """Returns what to work on, by slot; None to end."""
    while (slots := self._shared.next_rows(self._turn, self._is_spoilt)) == {}:
      # Attention adds 0 times what other slots hold, which is not finite here, so the
      # next request with such a page would get it.
      self._device.renew()
      self._shared.forget_prefixes()
      self._is_spoilt = False
    return slots

  def _advance(self, slots: dict[int, scheduling.Pending]):
    """Reads some pieces of prompts, and samples a chunk of what is read.

    Not yet where too few would be in it because more have come meanwhile.
    """
    # What was not compiled yet is now, while no time of the device is counted.
    self._device.compile({p.request.program for p in slots.values()})
    with self._shared.device:
      self._read_and_sample(slots)

  def _read_and_sample(self, slots: dict[int, scheduling.Pending]):
    """Runs programs that are compiled already; their time is device time."""
    unread = [
      p.slot_row for p in slots.values() if not (p.abandoned or p.slot_row.is_read())
    ]
    assert self._config.prefill_burst is not None
    while unread and self._calls < self._config.prefill_burst:
      if self._calls and not self._is_thin(len(slots) - len(unread), len(slots)):
        break
      if self._shared.is_closing or any(p.abandoned for p in slots.values()):
        break  # Slots are freed first.
      self._read(unread)
      self._calls += 1
      unread = [row for row in unread if not row.is_read()]
    chunks = self._chunks(slots)
    self._finish_read()  # Before anybody gets its pages.
    if chunks and self._has_company(len(slots), len(slots) - len(unread)):
      self._calls += 1  # There is an end to waiting, too.
      return
    self._calls = 0
    if chunks:
      self._sample(slots, chunks)

  def _chunks(
    self, slots: dict[int, scheduling.Pending]
  ) -> dict[int, list[device_lib.Chunk]]:
    """Returns what each lane samples next: those whose prompts are read.

    Requests of each kind are apart, so that who else samples does not choose a
    request's program.
    """
    lanes = collections.defaultdict(lambda: collections.defaultdict(dict))
    for slot, pending in slots.items():
      if pending.slot_row.is_read() and not pending.abandoned:
        kind = pending.request.program
        lanes[slot % self._lanes][kind][slot] = pending.slot_row
    return {
      lane: [self._device.chunk(*kind) for kind in kinds.items()]
      for lane, kinds in lanes.items()
    }

  def _is_thin(self, n_read: int, n_used: int) -> bool:
    assert self._config.read_share is not None
    return n_read < self._config.read_share * n_used

  def _has_company(self, n_used: int, n_read: int) -> bool:
    """Says whether a chunk of those that are read had better wait for others."""
    came = self._shared.coming(n_used)
    assert self._config.prefill_burst is not None
    return (
      came > 0
      and self._calls < self._config.prefill_burst
      and self._is_thin(n_read, n_used + came)
    )

  def _read(self, rows: list[batching.Row]):
    """Reads a call's worth of pieces; the row that waited longest is first."""
    rows.sort(key=lambda row: row.turn)
    lanes = batching.next_pieces(rows, self._config, self._lanes)
    self._turn += 1
    start = self._clock()
    params, _ = self._shared.current()
    is_finite = self._device.read(params, lanes)
    # So that the device has this one when it is done with the one before.
    self._finish_read()
    self._open = is_finite, start
    pieces = [piece for lane in lanes for piece in lane]
    for row, _, nodes in pieces:
      row.turn = self._turn
      for node in nodes:
        node.ready = True  # For who is given to the device behind it.
    self._shared.count_read(sum(len(n.ids) for _, _, nodes in pieces for n in nodes))

  def _finish_read(self):
    """Waits for the last call that reads prompts, if that is still open."""
    if self._open is None:
      return
    (is_finite, start), self._open = self._open, None
    self._is_spoilt |= not all(is_finite)
    self._shared.count_seconds('prefill_seconds', start)

  def _sample(
    self,
    slots: dict[int, scheduling.Pending],
    chunks: dict[int, list[device_lib.Chunk]],
  ):
    """Samples a chunk, settling each request as soon as it is done."""
    start = self._clock()
    params, version = self._shared.current()
    sampled = self._device.sample(params, chunks)
    self._shared.count_sampled(
      start,
      steps=sum(int(host.step) for _, host in sampled),
      tokens=sum(int(host.lengths.sum()) for _, host in sampled),
      first=[
        slots[slot]
        for chunk, _ in sampled
        for slot, row in chunk.rows.items()
        if not row.ids
      ],
    )
    for chunk, host in sampled:
      self._take({slot: slots[slot] for slot in chunk.rows}, host, version)

  def _take(
    self, slots: dict[int, scheduling.Pending], host: decoding.Sampled, version: int
  ):
    """Adds sampled tokens to their rows, and settles the requests that are done."""
    # Seen at once, and in rows whose callers have left, too.
    self._is_spoilt |= not np.isfinite(host.logprobs).all()
    outcomes = []
    for slot, pending in slots.items():
      row, place = pending.slot_row, slot // self._lanes
      length = int(host.lengths[place])
      row.is_copied = row.is_gathered = True
      row.ids += host.tokens[place, :length].tolist()
      row.logprobs += host.logprobs[place, :length].tolist()
      if host.sets is not None:
        row.sets += [ids[ids >= 0] for ids in host.sets[place, :length]]
      row.top += _most_likely(host, place, length, pending.request.top_logprobs)
      if pending.abandoned or self._shared.is_closing:
        continue
      outcome = self._look(pending, bool(host.done[place]), version)
      if outcome is not None:
        outcomes.append((pending, outcome))
    self._shared.settle(outcomes)

  def _look(
    self, pending: scheduling.Pending, done: bool, version: int
  ) -> api.Result | api.EngineError | None:
    """Returns how a row ended, or None while it goes on."""
    row = pending.slot_row
    try:
      end = batching.finish(row, done)
    # Boundary: stop_fn is the caller's own function, and may be a tokenizer
    # whose panics are no Exception.
    except BaseException as e:  # pylint: disable=broad-exception-caught
      return self._failure(e)
    if end is None:
      return None
    keep, reason = end
    timing = self._shared.timing(pending)
    return api.Result(
      response_ids=tuple(row.ids[:keep]),
      logprobs=tuple(row.logprobs[:keep]),
      finish_reason=reason,
      params_version=version,
      queue_seconds=timing.queue_seconds,
      model_seconds=timing.model_seconds,
      kept=tuple(row.sets[:keep]) if row.sets else None,
      stalled_seconds=timing.stalled_seconds,
      top=tuple(row.top[:keep]),
    )

  def _failure(self, cause: BaseException) -> api.EngineError:
    error = api.EngineError(
      f'engine {self._shared.name}: {type(cause).__name__}: {cause}'
    )
    error.__cause__ = cause
    return error


def _most_likely(
  host: decoding.Sampled, place: int, length: int, asked: int
) -> list[tuple[tuple[int, ...], tuple[float, ...]]]:
  """Returns ids and log probabilities of the most likely tokens of each position."""
  if host.top_ids is None or host.top_logprobs is None:
    return []
  found = []
  for ids, scores in zip(
    host.top_ids[place, :length, :asked].tolist(),
    host.top_logprobs[place, :length, :asked].tolist(),
  ):
    count = sum(map(math.isfinite, scores))  # The others cannot be drawn.
    found.append((tuple(ids[:count]), tuple(scores[:count])))
  return found
