"""What fails, fails alone, and the engine goes on or ends."""

import asyncio
from concurrent import futures
import dataclasses
import threading

import jax
import numpy as np
import pytest

from agentflow_jax.inference import api
from agentflow_jax.inference import device as device_lib
from agentflow_jax.inference import engine as engine_lib
from tests.inference import engine_kit as kit


def test_a_prompt_too_long_is_refused_at_once(engine):
  before = engine.stats()
  with pytest.raises(api.PromptTooLong, match='33.*32'):
    kit.generate(engine, [kit.request(33, max_new_tokens=1)])
  with pytest.raises(api.PromptTooLong, match='30.*12.*40'):
    kit.generate(engine, [kit.request(30, max_new_tokens=12)])
  assert engine.stats() == before


def test_a_failing_stop_fn_fails_only_its_own_request(engine):
  before = engine.stats()

  def fail(ids):
    raise KeyError(len(ids))

  good = [kit.request(5, key=i) for i in range(4)]
  bad = dataclasses.replace(good[0], stop_fn=fail)

  async def run():
    return await asyncio.gather(
      *(engine.generate(r) for r in [bad, *good]), return_exceptions=True
    )

  error, *results = asyncio.run(run())
  assert isinstance(error, api.EngineError)
  assert isinstance(error.__cause__, KeyError)
  assert [kit.bits(r) for r in results] == [
    kit.bits(r) for r in kit.generate(engine, good)
  ]
  after = engine.stats()
  assert after.failed - before.failed == 1
  assert after.completed - before.completed == 8


def _out_of_memory(*calls):
  """Returns a hook that fails in these calls."""

  def fail(call, unused_lane):
    if call in calls:
      raise RuntimeError('out of memory')

  return fail


@pytest.mark.parametrize('call', ['compile', 'read', 'sample'])
def test_a_failing_call_fails_its_requests_and_no_others(own_engine, call):
  request = kit.request(5)
  (expected,) = kit.generate(own_engine, [request])
  own_engine.device.before_call = _out_of_memory(call)
  with pytest.raises(api.EngineError, match='own.*out of memory') as info:
    kit.generate(own_engine, [kit.request(6)])
  assert isinstance(info.value.__cause__, RuntimeError)
  own_engine.device.before_call = device_lib.no_hook
  (result,) = kit.generate(own_engine, [request])
  assert kit.bits(result) == kit.bits(expected)
  assert own_engine.stats().failed == 1


def test_a_stop_fn_that_panics_fails_only_its_own_request(own_engine):
  class Panic(BaseException):
    """As of a tokenizer in another language."""

  def fail(unused_ids):
    raise Panic

  with pytest.raises(api.EngineError, match='Panic'):
    kit.generate(own_engine, [kit.request(5, stop_fn=fail)])
  assert len(kit.generate(own_engine, [kit.request(5)])[0].response_ids) == 8


def test_an_engine_without_room_for_new_pages_ends(own_engine):
  own_engine.device.before_call = _out_of_memory('sample', 'renew')

  async def run():
    requests = [kit.request(5, key=i) for i in range(20)]
    return await asyncio.gather(
      *map(own_engine.generate, requests), return_exceptions=True
    )

  errors = asyncio.run(asyncio.wait_for(run(), 60))
  assert {type(e) for e in errors} == {api.EngineError, api.EngineClosed}


def test_a_call_that_fails_late_keeps_what_was_done(own_engine):
  calls = []

  def once(call, unused_lane):
    calls.append(call)
    if calls.count('sample') > 1:
      raise RuntimeError('device lost')

  own_engine.device.before_call = once
  requests = [kit.request(5, max_new_tokens=n) for n in (1, 8)]

  async def run():
    return await asyncio.gather(
      *(own_engine.generate(r) for r in requests), return_exceptions=True
    )

  done, failed = asyncio.run(run())
  assert len(done.response_ids) == 1
  assert isinstance(failed, api.EngineError)
  now = own_engine.stats()
  assert (now.requests, now.completed, now.failed) == (2, 1, 1)


def test_parameters_that_are_not_finite_are_an_error(own_engine):
  good = kit.init(0)
  own_engine.update_params(jax.tree.map(lambda x: x * np.nan, good), 1)
  with pytest.raises(api.EngineError, match='not finite'):
    kit.generate(own_engine, [kit.request(5)])
  own_engine.update_params(good, 2)
  assert kit.generate(own_engine, [kit.request(5)])[0].params_version == 2


def test_one_request_that_is_not_finite_fails_alone(own_engine, params):
  good = [kit.request(n) for n in (27, 9, 20)]
  expected = [kit.bits(r) for r in kit.generate(own_engine, good)]
  met = {i for r in good for i in r.prompt_ids} | {i for e in expected for i in e[0]}
  # As a token that was added to the vocabulary and never trained.
  broken = min(set(range(kit.V)) - met)
  bad = dataclasses.replace(
    kit.request(3, stop_fn=lambda ids: pytest.fail('was shown what it drew')),
    prompt_ids=(broken, 2, 3),
  )
  own_engine.update_params(
    dict(params, embedding=params['embedding'].at[broken].set(np.nan)), 1
  )

  async def run():
    return await asyncio.gather(
      *(own_engine.generate(r) for r in (bad, *good)), return_exceptions=True
    )

  error, *results = asyncio.run(run())
  assert isinstance(error, api.EngineError) and 'not finite' in str(error)
  assert [kit.bits(r) for r in results] == expected


def test_pages_are_made_anew_while_others_may_ask(own_engine):
  seen = []
  threads = futures.ThreadPoolExecutor(1)

  def slowly(call, unused_lane):
    if call == 'renew':
      seen.append(threads.submit(own_engine.stats).result(10))

  own_engine.device.before_call = slowly
  own_engine.update_params(jax.tree.map(lambda x: x * np.nan, kit.init(0)), 1)
  with pytest.raises(api.EngineError, match='not finite'):
    kit.generate(own_engine, [kit.request(5)])
  own_engine.update_params(kit.init(0), 2)
  assert kit.generate(own_engine, [kit.request(5)])[0].params_version == 2
  assert [now.failed for now in seen] == [1]
  threads.shutdown()


def test_what_is_not_finite_reaches_nobody_after_its_caller_has_left(own_engine):
  (expected,) = kit.generate(own_engine, [kit.request(5)])
  own_engine.update_params(jax.tree.map(lambda x: x * np.nan, kit.init(0)), 1)
  read, release = threading.Event(), threading.Event()

  def wait(call, unused_lane):
    if call == 'read':
      read.set()
      assert release.wait(60)

  own_engine.device.after_call = wait

  async def run():
    task = asyncio.create_task(own_engine.generate(kit.request(27)))
    assert await asyncio.to_thread(read.wait, 60)
    task.cancel()  # Read, and never sampled from.
    with pytest.raises(asyncio.CancelledError):
      await task
    own_engine.update_params(kit.init(0), 2)
    release.set()
    return await asyncio.gather(
      *(own_engine.generate(kit.request(5)) for _ in range(6))
    )

  assert {kit.bits(r) for r in asyncio.run(run())} == {kit.bits(expected)}


def test_closing_fails_what_is_unfinished_and_ends_the_thread(params):
  engine = engine_lib.Engine(kit.MODEL, kit.CONFIG, params, name='doomed')
  busy, release = threading.Event(), threading.Event()

  def wait(unused_ids):
    busy.set()
    assert release.wait(60)

  async def run():
    running = asyncio.create_task(engine.generate(kit.request(5, stop_fn=wait)))
    assert await asyncio.to_thread(busy.wait, 60)
    queued = asyncio.create_task(engine.generate(kit.request(9)))
    await kit.until(lambda: engine.stats().queued == 1)
    closing = asyncio.create_task(asyncio.to_thread(engine.close))
    await kit.until(lambda: engine.is_closed)
    release.set()
    await closing
    for task in (running, queued):
      with pytest.raises(api.EngineClosed, match='doomed'):
        await asyncio.wait_for(task, 60)
    with pytest.raises(api.EngineClosed):
      await engine.generate(kit.request(5))

  asyncio.run(run())
  engine.close()
  assert all(t.name != 'engine-doomed' for t in threading.enumerate())
  now = engine.stats()
  assert (now.requests, now.failed, now.queued, now.running) == (2, 2, 0, 0)


def test_a_loop_that_is_gone_does_not_stop_the_engine(own_engine):
  release = kit.hold(own_engine)
  loop = asyncio.new_event_loop()
  orphan = loop.create_task(own_engine.generate(kit.request(5)))
  loop.run_until_complete(asyncio.sleep(0.01))
  loop.close()
  assert own_engine.stats().queued == 1
  release.set()
  (result,) = kit.generate(own_engine, [kit.request(6)])
  assert len(result.response_ids) == 8
  assert not orphan.done()
  orphan._log_destroy_pending = False
