"""What others ask, the cache, the lanes and the order never show in the bits."""

import asyncio
import dataclasses
import random
import threading
import time

import jax
import numpy as np
import pytest

from agentflow_jax.core import model
from agentflow_jax.inference import api
from agentflow_jax.inference import batching
from agentflow_jax.inference import device as device_lib
from agentflow_jax.inference import engine as engine_lib
from agentflow_jax.inference import gathered
from tests.inference import engine_kit as kit


def test_same_bits_alone_in_a_crowd_and_in_any_order(engine):
  requests = kit.mixed(60)
  crowd = [kit.bits(r) for r in kit.together(engine, requests)]
  assert len({r[0] for r in crowd}) > 40
  order = list(range(60))
  random.Random(5).shuffle(order)
  permuted = kit.together(engine, [requests[i] for i in order])
  assert [kit.bits(r) for r in permuted] == [crowd[i] for i in order]
  for request, bits in zip(requests[:25], crowd):
    (alone,) = kit.generate(engine, [request])
    assert kit.bits(alone) == bits


def test_a_group_differs_by_key_alone(engine):
  request = kit.request(9, max_new_tokens=12)
  group = [dataclasses.replace(request, key_words=(i, 1)) for i in range(8)]
  results = kit.together(engine, group + group)
  responses = [r.response_ids for r in results]
  assert len(set(responses)) == 8
  assert [kit.bits(r) for r in results[:8]] == [kit.bits(r) for r in results[8:]]


def test_what_prompts_share_is_read_once(own_engine):
  group = [kit.request(20, key=i) for i in range(3)]
  longer = dataclasses.replace(
    group[0], prompt_ids=group[0].prompt_ids[:18] + (7, 7, 7, 7, 7)
  )
  kit.together(own_engine, group + [longer])
  now = own_engine.stats()
  # The 2 that held the engine; 19 of the group; of the longer one's 22, what
  # its 4 whole pages of 4 tokens have in common with them is read already.
  assert now.prefill_tokens == 2 + 19 + 22 - 16
  assert now.hit_tokens == 2 * 19 + 16
  # The last token of each prompt is neither.
  assert now.prompt_tokens == now.prefill_tokens + now.hit_tokens + 5
  kit.together(own_engine, [longer])  # It is still there, and the holder's, too.
  assert own_engine.stats().prefill_tokens == now.prefill_tokens


@pytest.mark.slow
def test_pages_of_int8_give_the_same_bits_to_all_as_well(engine, params):
  requests = kit.prefixed(60, seed=32)
  config = dataclasses.replace(kit.CONFIG, kv_dtype='int8')
  found = []
  for order, prefix_cache in ((1, True), (-1, True), (1, False)):
    changed = dataclasses.replace(config, prefix_cache=prefix_cache)
    with engine_lib.Engine(kit.MODEL, changed, params) as other:
      results = kit.generate(other, requests[::order])[::order]
      assert bool(other.stats().hit_tokens) == prefix_cache
    found.append([kit.bits(r) for r in results])
  assert found[0] == found[1] == found[2]
  assert found[0] != [kit.bits(r) for r in kit.generate(engine, requests)]


def test_same_bits_with_the_cache_and_without(engine, params):
  requests = kit.prefixed(150, seed=31)
  before = engine.stats()
  cached = [kit.bits(r) for r in kit.generate(engine, requests)]
  again = [kit.bits(r) for r in kit.generate(engine, requests)]
  now = engine.stats()
  hits = now.hit_tokens - before.hit_tokens
  assert hits > 0.4 * (now.prompt_tokens - before.prompt_tokens)
  config = dataclasses.replace(kit.CONFIG, prefix_cache=False)
  with engine_lib.Engine(kit.MODEL, config, params) as other:
    plain = [kit.bits(r) for r in kit.generate(other, requests)]
    assert other.stats().hit_tokens == 0
  assert cached == again == plain


@pytest.mark.parametrize(
  'attention, lanes',
  [
    pytest.param('gathered', 2, marks=pytest.mark.slow),
    pytest.param('gathered', 1, marks=pytest.mark.slow),
    pytest.param('blocks', 1, marks=pytest.mark.slow),
  ],
)
def test_same_bits_over_long_prompts(attention, lanes, monkeypatch):
  config = dataclasses.replace(kit.MODEL, d_model=64, head_dim=64, max_positions=700)
  params = jax.jit(model.init_params, static_argnums=0)(config, jax.random.key(3))
  shapes = api.EngineConfig(
    slots=8, max_prompt_tokens=600, max_new_tokens=12, decode_chunk=4, lanes=lanes
  )
  common = []
  pack_rows = batching.pack_rows

  def packed(*args):
    rows = pack_rows(*args)
    common.append((int(rows.common), int((rows.left > 0).sum())))
    return rows

  monkeypatch.setattr(batching, 'pack_rows', packed)
  rng = random.Random(6)
  draw = lambda n: tuple(rng.randrange(kit.V) for _ in range(n))
  cards, query, requests = draw(400), (), []
  for i in range(24):
    # Most begin with 400 tokens in common, a group of eight with 30 more.
    query = draw(30) if i % 8 == 0 else query
    ids = draw(50) if i % 7 == 6 else cards + query + draw(i)
    requests.append(
      dataclasses.replace(kit.request(1, key=i, max_new_tokens=12), prompt_ids=ids)
    )
  results = []
  for order, changes in ((1, {}), (-1, {}), (1, {'prefix_cache': False})):
    with engine_lib.Engine(
      config, dataclasses.replace(shapes, attention=attention, **changes), params
    ) as engine:
      found = kit.generate(engine, requests[::order])[::order]
      found += kit.generate(engine, requests[3:4])
    # Rows read the cards once, or some apart; and then all apart.
    if attention == 'gathered' and gathered.shares_bits(
      'float32', 8 // lanes, 2, 2, 64, 640
    ):
      shared = {n for n, rows in common if rows > 1}
      assert shared == ({0} if changes else {0, 1})
    common.clear()
    results.append([kit.bits(r) for r in found])
  assert results[0] == results[1] == results[2]
  assert results[0][-1] == results[0][3]
  for i in (6, 12):
    kit.check_logprobs(config, params, requests[i], results[0][i])


@pytest.fixture(scope='module', name='of_lanes')
def _of_lanes(params):
  config = dataclasses.replace(kit.CONFIG, lanes=2, prefill_pieces=4)
  with engine_lib.Engine(kit.MODEL, config, params, name='lanes') as engine:
    engine.warmup()
    yield engine


def test_lanes_do_not_show(of_lanes, engine):
  requests = kit.mixed(60, seed=41)
  crowd = [kit.bits(r) for r in kit.together(of_lanes, requests)]
  assert [kit.bits(r) for r in kit.together(of_lanes, requests[::-1])] == crowd[::-1]
  for request, bits in zip(requests[:10], crowd):
    (alone,) = kit.generate(of_lanes, [request])
    assert kit.bits(alone) == bits
  # Products of three rows and of six may be added up otherwise.
  for result, (ids, logprobs, _) in zip(
    kit.generate(engine, requests), crowd, strict=True
  ):
    assert result.response_ids == ids
    np.testing.assert_allclose(
      result.logprobs, np.frombuffer(logprobs, np.float32), atol=1e-5
    )


def test_a_lane_that_fails_waits_for_the_others(of_lanes):
  """And leaves an engine that goes on."""
  requests = [kit.request(5, key=i, max_new_tokens=12) for i in range(6)]
  expected = [kit.bits(r) for r in kit.generate(of_lanes, requests)]
  before, done = of_lanes.stats(), []

  def fail(call, lane):
    if call == 'sample':
      if lane == 0:
        raise RuntimeError('device lost')
      time.sleep(0.3)

  def note(call, lane):
    done.append((call, lane))

  async def run():
    return await asyncio.gather(
      *map(of_lanes.generate, requests), return_exceptions=True
    )

  of_lanes.device.before_call, of_lanes.device.after_call = fail, note
  errors = asyncio.run(run())
  assert [lane for call, lane in done if call == 'sample'] == [1]
  of_lanes.device.before_call = of_lanes.device.after_call = device_lib.no_hook
  assert {str(e) for e in errors} == {'engine lanes: RuntimeError: device lost'}
  assert [kit.bits(r) for r in kit.generate(of_lanes, requests)] == expected
  now = of_lanes.stats()
  assert now.failed - before.failed == 6 and now.running == 0


@pytest.mark.parametrize('kind', ['read', 'sample'])
def test_lanes_work_side_by_side(of_lanes, kind):
  """Each waits for the other, which one after the other they could not."""
  assert of_lanes.lanes == 2
  both, names = threading.Barrier(2), set()

  def meet(call, lane):
    if call == kind:
      both.wait(60)
      names.add((lane, threading.current_thread().name))

  of_lanes.device.before_call = meet
  requests = [
    dataclasses.replace(
      kit.request(1, max_new_tokens=1), prompt_ids=(i, kind == 'read') * 3
    )
    for i in range(2)
  ]
  kit.generate(of_lanes, requests)
  of_lanes.device.before_call = device_lib.no_hook
  assert names == {(0, 'engine-lanes'), (1, 'engine-lanes-lane_0')}


def test_a_lane_that_fails_to_read(of_lanes, params):
  """The engine goes on with pages, and a desk, that are new."""
  requests = [
    dataclasses.replace(kit.request(1, key=i), prompt_ids=(7, i) * 10) for i in range(6)
  ]
  expected = [kit.bits(r) for r in kit.generate(of_lanes, requests)]
  of_lanes.update_params(params, 0)  # Forgets what was read.

  def fail(call, unused_lane):
    if call == 'read':  # Which has consumed the desk.
      raise RuntimeError('device lost')

  async def run():
    return await asyncio.gather(
      *map(of_lanes.generate, requests), return_exceptions=True
    )

  of_lanes.device.after_call = fail
  errors = asyncio.run(run())
  of_lanes.device.after_call = device_lib.no_hook
  assert {str(e) for e in errors} == {'engine lanes: RuntimeError: device lost'}
  assert [kit.bits(r) for r in kit.generate(of_lanes, requests)] == expected


def test_same_bits_where_room_is_short(engine, params):
  requests = kit.prefixed(150, seed=32)
  expected = [kit.bits(r) for r in kit.generate(engine, requests)]
  # Room for two of the longest, for six slots.
  config = dataclasses.replace(kit.CONFIG, kv_tokens=96)
  with engine_lib.Engine(kit.MODEL, config, params) as other:
    got = [kit.bits(r) for r in kit.generate(other, requests)]
    kit.generate(other, requests[:1])  # So that all the others were freed.
    now = other.stats()
  assert got == expected
  assert now.evicted_pages > 100
  assert now.pages == 24 and 0 <= now.free_pages < 24


@pytest.mark.slow
def test_a_thousand_requests_in_any_order_of_arrival(engine):
  requests = kit.prefixed(1000, seed=34)
  expected = [kit.bits(r) for r in kit.generate(engine, requests)]

  async def scattered(seed):
    rng = random.Random(seed)

    async def one(request):
      await asyncio.sleep(rng.random() * 5)
      return await engine.generate(request)

    return await asyncio.gather(*map(one, requests))

  for seed in range(3):
    assert [kit.bits(r) for r in asyncio.run(scattered(seed))] == expected
