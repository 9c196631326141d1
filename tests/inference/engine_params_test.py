"""New parameters, on one device and on several."""

import asyncio
import dataclasses
import threading

import jax
import numpy as np
import pytest

from agentflow_jax.core import handover
from agentflow_jax.core import launches
from agentflow_jax.core import model
from agentflow_jax.core import sharding
from agentflow_jax.inference import engine as engine_lib
from tests.inference import engine_kit as kit


def test_new_parameters_take_effect_and_are_named(own_engine):
  request = kit.request(5, key=4, max_new_tokens=12)
  (old,) = kit.generate(own_engine, [request])
  new_params = kit.init(1)
  own_engine.update_params(new_params, 9)
  assert own_engine.params_version == 9
  (new,) = kit.generate(own_engine, [request])
  assert (old.params_version, new.params_version) == (0, 9)
  assert old.response_ids != new.response_ids
  np.testing.assert_allclose(
    new.logprobs, kit.oracle(new_params, request, new.response_ids)[0], atol=1e-5
  )


def test_a_running_request_ends_with_the_parameters_it_began_with(own_engine):
  request = kit.request(5, key=4, max_new_tokens=12)
  (old,) = kit.generate(own_engine, [request])
  new_params = kit.init(1)

  def update_on_the_way(ids):
    if len(ids) < 12:
      own_engine.update_params(new_params, 1)

  (result,) = kit.generate(
    own_engine, [dataclasses.replace(request, stop_fn=update_on_the_way)]
  )
  assert own_engine.params_version == 1
  assert result.params_version == 0
  assert kit.bits(result) == kit.bits(old)


def test_a_request_after_an_update_waits_for_it(own_engine):
  busy, release = threading.Event(), threading.Event()

  def wait(unused_ids):  # And goes on: twelve tokens are three chunks.
    busy.set()
    assert release.wait(60)

  async def run():
    running = asyncio.create_task(
      own_engine.generate(kit.request(5, max_new_tokens=12, stop_fn=wait))
    )
    assert await asyncio.to_thread(busy.wait, 60)
    own_engine.update_params(kit.init(1), 1)
    later = asyncio.create_task(own_engine.generate(kit.request(5)))
    await kit.until(lambda: own_engine.stats().queued == 1)
    release.set()
    return await asyncio.gather(running, later)

  versions = [result.params_version for result in asyncio.run(run())]
  assert versions == [0, 1]


def test_the_caller_may_donate_its_parameters():
  params = kit.init(2)
  request = kit.request(5, key=4)
  with engine_lib.Engine(kit.MODEL, kit.CONFIG, params) as engine:
    jax.tree.map(lambda x: x.delete(), params)
    (first,) = kit.generate(engine, [request])
    again = kit.init(2)
    engine.update_params(again, 1)
    consume = jax.jit(lambda p: jax.tree.map(lambda x: x * 0.0, p), donate_argnums=0)
    jax.block_until_ready(consume(again))
    (second,) = kit.generate(engine, [request])
  assert kit.bits(first) == kit.bits(second)


def test_parameters_that_lie_on_several_devices_may_be_donated_too(own_engine):
  params = kit.init(2)
  expected = jax.tree.map(np.asarray, params)
  everywhere = sharding.make_mesh(data=2, devices=jax.devices()[:2])
  params = jax.tree.map(
    sharding.put, params, sharding.param_shardings(kit.MODEL, everywhere)
  )
  request = kit.request(5, key=4)
  own_engine.update_params(params, 1)
  jax.tree.map(lambda x: x.delete(), params)
  (result,) = kit.generate(own_engine, [request])
  own_engine.update_params(expected, 2)
  (again,) = kit.generate(own_engine, [request])
  assert kit.bits(result) == kit.bits(again)


def test_parameters_of_another_shape_are_refused(own_engine):
  wider = dataclasses.replace(kit.MODEL, d_ff=64)
  params = model.param_shapes(wider)
  with pytest.raises(ValueError, match='gate.*64.*48'):
    own_engine.update_params(params, 1)
  assert own_engine.params_version == 0


@pytest.mark.parametrize(  # 2 key heads, 4 of queries.
  'devices', [pytest.param(2, marks=pytest.mark.slow), 4]
)
def test_parameters_over_devices_sample_alike(engine, params, devices):
  mesh = sharding.make_mesh(1, devices, 1, jax.devices()[:devices])
  hand = handover.Handover(kit.MODEL, mesh, split=True)
  there = hand(
    jax.tree.map(sharding.put, params, sharding.param_shardings(kit.MODEL, mesh))
  )
  requests = [r for r in kit.mixed(60, seed=21) if kit.is_cheap(r)]
  assert len(requests) > 10
  with engine_lib.Engine(
    kit.MODEL, kit.CONFIG, there, sharding=hand.local, copy=False
  ) as other:
    results = kit.generate(other, requests)
  for a, b in zip(results, kit.generate(engine, requests), strict=True):
    assert a.response_ids == b.response_ids
    np.testing.assert_allclose(a.logprobs, b.logprobs, atol=1e-5)
  # So does an engine that is given parameters in its own layout, uncopied.
  apart = engine_lib.as_read(kit.MODEL, kit.CONFIG, there)
  assert all(x.is_deleted() for x in jax.tree.leaves(there['layers']))
  where = jax.tree.map(lambda x: x.sharding, apart)
  with engine_lib.Engine(
    kit.MODEL, kit.CONFIG, apart, sharding=where, copy=False
  ) as other:
    again = kit.generate(other, requests)
    assert other.compilations == 0
  assert [kit.bits(r) for r in again] == [kit.bits(r) for r in results]


def test_programs_over_several_devices_are_launched_one_at_a_time(engine, params):
  mesh = sharding.make_mesh(data=1, fsdp=1, tensor=2, devices=jax.devices()[:2])
  where = sharding.param_shardings(kit.MODEL, mesh)
  with engine_lib.Engine(kit.MODEL, kit.CONFIG, params, sharding=where) as other:
    other.warmup(truncates=[False])

    async def main():
      with launches.over(2):  # As while another thread launches.
        waits = asyncio.create_task(other.generate(kit.request()))
        goes_on = await engine.generate(kit.request())  # On one device.
        await asyncio.sleep(0.2)
        assert not waits.done()
        with pytest.raises(TimeoutError):
          await asyncio.wait_for(asyncio.to_thread(other.update_params, params, 1), 0.2)
      return goes_on, await waits

    alone, over_two = asyncio.run(main())
  assert alone.response_ids == over_two.response_ids


def test_prompts_beyond_the_context_are_refused(params):
  config = dataclasses.replace(kit.CONFIG, max_prompt_tokens=64)
  with pytest.raises(ValueError, match='64.*40'):
    engine_lib.Engine(kit.MODEL, config, params)
