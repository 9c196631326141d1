"""Rates of a step, by hand."""

import dataclasses

from agentflow_jax.inference import api
from agentflow_jax.training import engine_rates


def test_rates_are_of_the_step_alone():
  before = api.EngineStats(
    requests=10,
    prompt_tokens=500,
    hit_tokens=400,
    prefill_tokens=90,
    sampled_tokens=100,
    decode_steps=50,
    prefill_seconds=1.0,
    decode_seconds=2.0,
    pending_seconds=4.0,
    queue_seconds=5.0,
    first_token_seconds=6.0,
    slot_seconds=7.0,
    page_seconds=8.0,
    slots=4,
    pages=8,
    free_pages=8,
  )
  after = dataclasses.replace(
    before,
    requests=14,
    prompt_tokens=700,
    hit_tokens=550,
    prefill_tokens=140,
    sampled_tokens=180,
    decode_steps=60,
    prefill_seconds=1.5,
    decode_seconds=4.0,
    pending_seconds=8.0,
    queue_seconds=7.0,
    first_token_seconds=12.0,
    slot_seconds=15.0,
    page_seconds=32.0,
    free_pages=2,
  )
  assert engine_rates.rates(before, after) == {
    'rate/prefill_tokens_per_second': 100.0,
    'rate/decode_tokens_per_second': 40.0,
    'rate/prefix_hits': 0.75,
    'rate/tokens_per_decode_step': 8.0,
    'rate/queue_seconds_per_request': 0.5,
    'rate/first_token_seconds_per_request': 1.5,
    'rate/device_idle': 0.375,
    'rate/slots_used': 0.5,
    'rate/pages_used': 0.75,
    'seconds/rollout/engine': 2.5,
  }


def test_a_step_that_sampled_nothing_has_no_rates():
  stats = api.EngineStats(requests=3, pages=8, free_pages=8)
  assert not engine_rates.rates(stats, stats)


def test_another_engine_has_names_of_its_own():
  before = api.EngineStats(slots=2, pages=4)
  after = dataclasses.replace(
    before,
    requests=1,
    queue_seconds=2.0,
    first_token_seconds=3.0,
    pending_seconds=2.0,
    prefill_seconds=1.0,
    prefill_tokens=5,
    slot_seconds=3.0,
    page_seconds=1.0,
  )
  assert engine_rates.rates(before, after, 'frozen') == {
    'rate/frozen/prefill_tokens_per_second': 5.0,
    'rate/frozen/queue_seconds_per_request': 2.0,
    'rate/frozen/first_token_seconds_per_request': 3.0,
    'rate/frozen/device_idle': 0.5,
    'rate/frozen/slots_used': 0.75,
    'rate/frozen/pages_used': 0.125,
    'seconds/rollout/frozen_engine': 1.0,
  }
