"""Times that requests and totals tell, and callers who leave."""

import asyncio
import dataclasses
import threading
import time
import types

import pytest

from agentflow_jax.core import device_time
from agentflow_jax.inference import api
from agentflow_jax.inference import device as device_lib
from agentflow_jax.inference import engine as engine_lib
from tests.inference import engine_kit as kit


@pytest.fixture(name='clocks')
def _clocks():
  """Seconds that the engine's clock is ahead, and those of them that a device works."""
  return types.SimpleNamespace(idle=0.0, busy=0.0)


@pytest.fixture(name='meter')
def _meter(clocks):
  return device_time.Meter(lambda: time.monotonic() + clocks.busy)


@pytest.fixture(name='timed')
def _timed_engine(params, clocks, meter):
  with engine_lib.Engine(
    kit.MODEL,
    kit.CONFIG,
    params,
    name='timed',
    clock=lambda: time.monotonic() + clocks.idle + clocks.busy,
    meter=meter,
  ) as engine:
    yield engine


def test_time_to_compile_is_no_time_of_the_device(clocks, timed):
  def slow(call, unused_lane):
    clocks.idle += 1000.0 if call == 'compile' else 0.0

  timed.device.before_call = slow
  kit.generate(timed, [kit.request(20)])
  more = [kit.request(20, seed=1), kit.request(20, seed=2, top_k=3)]
  kit.generate(timed, more * 2)  # None of whom waits for company.
  assert clocks.idle >= 2000
  now = timed.stats()
  assert 0 < now.prefill_seconds + now.decode_seconds < 900


def test_time_without_requests_is_not_time_that_the_device_stands_idle(clocks, timed):
  kit.generate(timed, [kit.request(5)])
  before = timed.stats().pending_seconds
  clocks.idle = 1000.0  # Since nobody asked for anything.
  kit.generate(timed, [kit.request(6)])
  now = timed.stats()
  assert now.decode_seconds + now.prefill_seconds <= now.pending_seconds
  assert now.pending_seconds - before < 900


def test_a_cancelled_caller_drops_its_queued_request(own_engine):
  release = kit.hold(own_engine)

  async def run():
    dropped = asyncio.create_task(own_engine.generate(kit.request(5, key=1)))
    kept = asyncio.create_task(own_engine.generate(kit.request(5, key=2)))
    await kit.until(lambda: own_engine.stats().queued == 2)
    dropped.cancel()
    with pytest.raises(asyncio.CancelledError):
      await dropped
    assert own_engine.stats().queued == 1
    assert own_engine.stats().cancelled == 1
    release.set()
    return await kept

  assert len(asyncio.run(run()).response_ids) == 8
  stats_now = own_engine.stats()
  # Those of the one that held the engine, and of the kept one.
  assert stats_now.prompt_tokens == 3 + 5
  assert stats_now.requests == stats_now.completed + stats_now.cancelled == 3


def test_a_cancelled_caller_on_the_device_leaves_the_others(own_engine):
  (expected,) = kit.generate(own_engine, [kit.request(5, key=2)])
  busy, release = threading.Event(), threading.Event()

  def wait(unused_ids):
    busy.set()
    assert release.wait(60)

  async def run():
    requests = [kit.request(5, key=1, stop_fn=wait), kit.request(5, key=2)]
    tasks = [asyncio.create_task(own_engine.generate(r)) for r in requests]
    assert await asyncio.to_thread(busy.wait, 60)
    tasks[0].cancel()
    with pytest.raises(asyncio.CancelledError):
      await tasks[0]
    release.set()
    return await tasks[1]

  assert kit.bits(asyncio.run(run())) == kit.bits(expected)
  assert own_engine.stats().cancelled == 1


def test_a_cancelled_caller_s_slot_and_pages_go_to_the_next(params):
  config = dataclasses.replace(kit.CONFIG, slots=1, prefix_cache=False)
  with engine_lib.Engine(kit.MODEL, config, params) as engine:
    busy, release = threading.Event(), threading.Event()

    def wait(unused_ids):
      busy.set()
      assert release.wait(60)

    async def run():
      first = asyncio.create_task(
        engine.generate(kit.request(20, max_new_tokens=12, stop_fn=wait))
      )
      second = asyncio.create_task(engine.generate(kit.request(5)))
      assert await asyncio.to_thread(busy.wait, 60)
      first.cancel()
      with pytest.raises(asyncio.CancelledError):
        await first
      release.set()
      return await second

    result = asyncio.run(run())
    steps = engine.stats().decode_steps
  # A chunk of 5 for the first, though it asked for 12; and 8 for the second.
  assert (len(result.response_ids), steps) == (8, 5 + 8)


def test_the_times_of_a_request_that_is_done(clocks, timed):
  def slow(ids):  # Sampling, as the engine waits for it.
    clocks.busy += 100.0 if len(ids) < 12 else 0.0

  request, timings = kit.timed(kit.request(5, max_new_tokens=12, stop_fn=slow))
  release = kit.hold(timed)

  async def run():
    task = asyncio.create_task(timed.generate(request))
    await kit.until(lambda: timed.stats().queued == 1)
    clocks.idle += 1000.0
    release.set()
    return await task

  result = asyncio.run(run())
  (timing,) = timings
  # 12 tokens in chunks of 5: stop_fn is called after 5, 10 and 12.
  assert 1000 <= timing.queue_seconds < 1100
  assert 200 <= timing.model_seconds < 300
  assert 0 <= timing.stalled_seconds < 100
  assert result.queue_seconds == timing.queue_seconds
  assert result.stalled_seconds <= result.model_seconds <= timing.model_seconds


def test_time_to_compile_is_a_stall_of_the_device(clocks, timed):
  def compiles(call, unused_lane):
    if call == 'compile':
      clocks.idle += 1000.0
      timed.device.before_call = device_lib.no_hook

  def slow(unused_ids):
    clocks.busy += 5000.0

  # What the device did for earlier requests is no time of this one.
  kit.generate(timed, [kit.request(3, stop_fn=slow, max_new_tokens=1)])
  timed.device.before_call = compiles
  request, timings = kit.timed(kit.request(5))
  (result,) = kit.generate(timed, [request])
  (timing,) = timings
  assert timing.stalled_seconds >= 1000
  assert timing.model_seconds - timing.stalled_seconds < 100
  assert result.stalled_seconds >= 1000


def test_what_others_run_on_the_device_is_a_stall(clocks, meter, timed):
  def with_others(ids):
    if len(ids) < 12:  # Twice: after 5 and 10 tokens.
      with meter.used():  # Such as an update of the trainer.
        clocks.busy += 100.0

  timed.warmup()
  request, timings = kit.timed(kit.request(5, max_new_tokens=12, stop_fn=with_others))
  kit.generate(timed, [request])
  (timing,) = timings
  assert 200 <= timing.model_seconds < 250
  assert 100 <= timing.stalled_seconds < 150


def test_a_cancelled_request_tells_its_times(clocks, timed):
  busy, release = threading.Event(), threading.Event()

  def wait(unused_ids):
    busy.set()
    assert release.wait(60)

  first, times_of_first = kit.timed(kit.request(5, key=1, stop_fn=wait))
  waiting = [kit.timed(kit.request(5, key=k)) for k in range(kit.CONFIG.slots)]

  async def run():
    tasks = [asyncio.create_task(timed.generate(first))]
    assert await asyncio.to_thread(busy.wait, 60)
    tasks += [asyncio.create_task(timed.generate(r)) for r, _ in waiting]
    await kit.until(lambda: timed.stats().queued == len(waiting))
    clocks.busy += 500.0
    for task in tasks:
      task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    release.set()

  asyncio.run(run())
  (timing,) = times_of_first
  assert 500 <= timing.model_seconds < 600
  assert 0 <= timing.stalled_seconds < 100
  for _, (timing,) in waiting:  # The engine had no slot for them.
    assert 500 <= timing.queue_seconds < 600
    assert timing.model_seconds == timing.stalled_seconds == 0


def test_a_failed_request_tells_its_time(own_engine):
  def fail(unused_ids):
    raise KeyError

  request, timings = kit.timed(kit.request(5, stop_fn=fail))
  with pytest.raises(api.EngineError):
    kit.generate(own_engine, [request])
  (timing,) = timings
  assert timing.model_seconds > 0
