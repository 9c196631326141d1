"""Many callers: slots, chunks, and who waits for whom."""

import asyncio
from concurrent import futures
import contextlib
import dataclasses
import itertools
import threading
import time

import jax
import pytest

from agentflow_jax.inference import device as device_lib
from agentflow_jax.inference import engine as engine_lib
from tests.inference import engine_kit as kit


def test_many_coroutines_of_two_event_loops(engine):
  requests = kit.mixed(300, seed=7)
  before = engine.stats()
  outcomes = {}

  def client(name, part):
    outcomes[name] = [kit.bits(r) for r in kit.generate(engine, part)]

  threads = [
    threading.Thread(target=client, args=(i, requests[i::2])) for i in range(2)
  ]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert outcomes[0][:5] == [
    kit.bits(r) for r in kit.generate(engine, requests[0:10:2])
  ]
  assert len(outcomes[0]) == len(outcomes[1]) == 150
  after = engine.stats()
  assert after.requests - before.requests == 305
  assert after.completed - before.completed == 305
  assert after.queued == after.running == 0
  assert after.failed == before.failed


def test_nothing_compiles_after_warmup(engine, monkeypatch):
  events = []

  def listen(name, unused_seconds, **unused_kwargs):
    if 'backend_compile' in name:
      events.append(name)

  compiled = engine.compilations
  kit.generate(engine, kit.mixed(8, seed=11))
  # A chunk of decoding is soon over: describing its program anew takes as long.
  monkeypatch.setattr(jax, 'eval_shape', None)
  jax.monitoring.register_event_duration_secs_listener(listen)
  try:
    jax.jit(lambda x: x * 3 + 1)(1.0)
    assert events, 'the listener hears nothing'
    events.clear()
    kit.generate(engine, kit.mixed(500, seed=12))
  finally:
    jax.monitoring.unregister_event_duration_listener(listen)
  assert not events
  assert engine.compilations == compiled == engine.stats().compilations


def test_engines_of_equal_shapes_share_their_programs(engine, own_engine, params):
  kit.generate(own_engine, kit.mixed(20))
  assert own_engine.compilations == 0
  # Of what no program is made from they may differ.
  config = dataclasses.replace(
    kit.CONFIG, prefix_cache=False, prefill_burst=3, read_share=0.9, coalesce_share=0.1
  )
  with engine_lib.Engine(kit.MODEL, config, params) as other:
    other.warmup()
    assert other.compilations == 0


def test_requests_join_as_others_leave(own_engine):
  requests = [
    kit.request(5, key=i, max_new_tokens=n)
    for i, n in enumerate((10, 5, 5, 5, 5, 5, 5, 5))
  ]
  results = kit.together(own_engine, requests)
  # Five steps for the one that held the engine, and five others; it leaves, and
  # so do they, and the last two join the first one's second five.
  now = own_engine.stats()
  assert 0 < now.first_token_seconds / 9 < now.pending_seconds
  assert 0 < now.slot_seconds <= 6 * now.pending_seconds
  assert 0 < now.page_seconds < now.pages * now.pending_seconds
  assert now.decode_steps == 5 + 5 + 5
  assert now.sampled_tokens == 5 + 10 + 7 * 5
  assert all(r.queue_seconds > 0 and r.model_seconds > 0 for r in results)


@pytest.mark.parametrize(
  'kv_tokens, steps',
  # Pages for one of them at a time: waiting for the other would be for ever.
  [(0, 8), (48, 16)],
)
def test_a_chunk_waits_for_who_came_while_prompts_were_read(
  params, engine, kv_tokens, steps
):
  requests = [kit.request(27, seed=i, key=i) for i in range(2)]
  expected = [kit.bits(kit.generate(engine, [r])[0]) for r in requests]
  config = dataclasses.replace(
    kit.CONFIG, kv_tokens=kv_tokens, read_share=1.0, coalesce_share=0.0
  )
  others = []
  with (
    engine_lib.Engine(kit.MODEL, config, params) as other,
    futures.ThreadPoolExecutor(1) as threads,
  ):

    def read(call, unused_lane):
      # The device has the first piece; now the second one comes.
      if call == 'read' and not others:
        others.append(threads.submit(kit.generate, other, requests[1:]))
        while not other.stats().queued:
          time.sleep(0.01)
          assert not others[0].done()

    other.device.after_call = read
    (first,) = kit.generate(other, requests[:1])
    (second,) = others[0].result(60)
    assert other.stats().decode_steps == steps
  assert [kit.bits(first), kit.bits(second)] == expected


def test_the_first_request_of_an_idle_engine_waits_for_company(params, engine):
  requests = [kit.request(27, seed=i, key=i) for i in range(2)]
  expected = [kit.bits(kit.generate(engine, [r])[0]) for r in requests]
  config = dataclasses.replace(kit.CONFIG, prefill_pieces=2, coalesce_share=1.0)
  ahead = [0.0]
  clock = lambda: time.monotonic() + ahead[0]
  with (
    engine_lib.Engine(kit.MODEL, config, params, clock=clock) as other,
    futures.ThreadPoolExecutor(2) as threads,
  ):

    def slow(call, unused_lane):
      ahead[0] += 1e6 if call == 'read' else 0.0

    other.device.before_call = slow
    kit.generate(other, [kit.request(3)])  # Now it knows how long reading takes.
    other.device.before_call = device_lib.no_hook
    before = other.stats()
    found = [threads.submit(kit.generate, other, requests[:1])]
    while other.stats().requests == before.requests:
      time.sleep(0.01)
    time.sleep(0.2)  # In which it would be done.
    now = other.stats()
    assert (now.queued, now.running, now.completed) == (1, 0, before.completed)
    found.append(threads.submit(kit.generate, other, requests[1:]))
    assert [kit.bits(*one.result(60)) for one in found] == expected
    assert other.stats().decode_steps - before.decode_steps == 8


@pytest.mark.parametrize(
  ('callers', 'leave'),
  # With one of four there, a chunk waits, until there are two, or the others leave.
  [(0, False), (1, False), (4, False), (4, True)],
)
def test_a_chunk_waits_for_callers_that_are_known_to_come(
  params, engine, callers, leave
):
  requests = [kit.request(27, seed=i, key=i) for i in range(2)]
  expected = [kit.bits(kit.generate(engine, [r])[0]) for r in requests]
  config = dataclasses.replace(kit.CONFIG, coalesce_share=0.0, company_chunks=3.0)
  ahead = [0.0]
  clock = lambda: time.monotonic() + ahead[0]
  with (
    engine_lib.Engine(kit.MODEL, config, params, clock=clock) as other,
    futures.ThreadPoolExecutor(2) as threads,
    contextlib.ExitStack() as at_work,
  ):

    def slow(call, unused_lane):
      ahead[0] += 1e6 if call == 'sample' else 0.0

    other.device.before_call = slow
    kit.generate(other, [kit.request(3)])  # Now it knows how long a chunk takes.
    other.device.before_call = device_lib.no_hook
    for _ in range(callers):
      at_work.enter_context(other.calling())
    before = other.stats()
    found = [threads.submit(kit.generate, other, requests[:1])]
    if callers == 4:
      while other.stats().requests == before.requests:
        time.sleep(0.01)
      time.sleep(0.2)  # In which it would be done.
      now = other.stats()
      assert (now.running, now.completed) == (1, before.completed)
    if leave:
      at_work.close()
    if leave or callers < 4:
      futures.wait(found, 60)
    found.append(threads.submit(kit.generate, other, requests[1:]))
    results = found[0].result(60)
    at_work.close()  # The second one may be the last now, and would wait.
    results += found[1].result(60)
  assert list(map(kit.bits, results)) == expected


def test_a_chunk_does_not_wait_for_callers_for_long(params):
  config = dataclasses.replace(kit.CONFIG, coalesce_share=0.0, company_chunks=2.0)
  with engine_lib.Engine(kit.MODEL, config, params) as other:
    kit.generate(other, [kit.request(3)])
    with other.calling(), other.calling(), other.calling():  # Two of whom never ask.
      (result,) = kit.generate(other, [kit.request(5)])
  assert len(result.response_ids) == 8


@pytest.mark.parametrize(
  'burst, share, most',
  # Two thirds have been read: not thin, or thin and as patient as that.
  [(4, 0.5, 1), (1, 1.0, 1), (2, 1.0, 2)],
)
def test_long_prompts_do_not_hold_up_who_decodes(params, engine, burst, share, most):
  # A prompt's last token is not read ahead.
  short = [kit.request(1, seed=i, key=i, max_new_tokens=12) for i in range(4)]
  long = [kit.request(27, seed=i, key=9 + i) for i in range(2)]  # 8 pieces.
  expected = [kit.bits(r) for r in kit.generate(engine, short + long)]
  config = dataclasses.replace(
    kit.CONFIG, prefill_pieces=2, decode_chunk=1, prefill_burst=burst, read_share=share
  )
  busy, release, calls = threading.Event(), threading.Event(), []

  def wait(ids):
    busy.set()
    assert release.wait(60)
    calls.append(('decode', len(ids)))

  short[0] = dataclasses.replace(short[0], stop_fn=wait)

  async def run(other):
    held = kit.hold(other)
    tasks = [asyncio.create_task(other.generate(r)) for r in short]
    await kit.until(lambda: other.stats().queued == 4)
    held.set()  # So that they get their slots together.
    assert await asyncio.to_thread(busy.wait, 60)
    tasks += [asyncio.create_task(other.generate(r)) for r in long]
    await kit.until(lambda: other.stats().queued == 2)
    calls.clear()
    release.set()
    return await asyncio.gather(*tasks)

  with engine_lib.Engine(kit.MODEL, config, params) as other:
    other.device.before_call = lambda call, _: (
      calls.append('read') if call == 'read' else None
    )
    assert [kit.bits(r) for r in asyncio.run(run(other))] == expected
  runs = [list(same) for kind, same in itertools.groupby(calls, type)]
  reads = [len(run) for run in runs if run[0] == 'read']
  assert sum(reads) == 4 and max(reads) == most
  # A token each of the others in between.
  assert [len(run) for run in runs[1:-1] if run[0] != 'read'] == (
    [1] * (len(reads) - 1)
  )
