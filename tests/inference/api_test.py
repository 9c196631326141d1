"""What the engine refuses, and that it says why."""

import dataclasses

import pytest

from agentflow_jax import records
from agentflow_jax.inference import api

_CONFIG = api.EngineConfig(
  slots=4, max_prompt_tokens=16, max_new_tokens=6, max_stop_ids=2
)


def _request(n=5, new=6, **kwargs):
  return api.Request(
    prompt_ids=tuple(range(n)),
    key_words=(1, 2),
    sampling=records.SamplingSpec(max_new_tokens=new),
    **kwargs,
  )


def _check(request, max_positions=20):
  return api.check_request(request, _CONFIG, vocab_size=30, max_positions=max_positions)


def test_prompt_too_long_names_the_lengths():
  with pytest.raises(api.PromptTooLong, match=r'17.*\(?16'):
    _check(_request(17), max_positions=100)
  # 15 + 6 > 20, though the prompt alone fits.
  with pytest.raises(api.PromptTooLong, match='15.*6.*20'):
    _check(_request(15))
  _check(_request(14))
  assert issubclass(api.PromptTooLong, ValueError)


@pytest.mark.parametrize(
  'change,words',
  [
    (dict(prompt_ids=()), 'empty'),
    (dict(prompt_ids=(3, 30)), r'\[3, 30\]'),
    (dict(prompt_ids=(-1, 3)), r'\[-1, 3\]'),
    (dict(sampling=records.SamplingSpec(max_new_tokens=7)), '7.*6'),
    (dict(stop_ids=(1, 2, 3)), '3 stop_ids.*2'),
    (dict(stop_ids=(30,)), '30'),
    (dict(stop_ids=(-1,)), '-1'),
    (dict(key_words=(1, 2**32)), 'uint32'),
    (dict(key_words=(1, -1)), 'uint32'),
    (dict(key_words=(1, 2, 3)), 'two'),
    # One of these in the engine's thread would fail everybody.
    (dict(prompt_ids=[1, 2]), 'prompt_ids must be a tuple: list'),
    (dict(prompt_ids=(1, 2.0)), 'prompt_ids must be integers, not float'),
    (dict(stop_ids={3}), 'stop_ids must be a tuple: set'),
    (dict(key_words=(1.5, 2)), 'key_words must be integers, not float'),
  ],
)
def test_malformed_requests_are_refused(change, words):
  with pytest.raises(ValueError, match=words):
    _check(dataclasses.replace(_request(), **change))


def test_stops_that_no_function_looks_for_are_refused():
  """The engine samples ids and knows no text: it would go on behind them."""
  for stops in (dict(stop=('x',)), dict(stop_after='plan')):
    spec = records.SamplingSpec(max_new_tokens=4, **stops)
    request = dataclasses.replace(_request(), sampling=spec)
    with pytest.raises(ValueError, match='stop_fn'):
      _check(request)
    _check(dataclasses.replace(request, stop_fn=lambda ids: None))


@pytest.mark.parametrize(
  'change,words',
  [
    (dict(slots=0), 'slots'),
    (dict(max_new_tokens=0), 'max_new_tokens'),
    (dict(decode_chunk=0), 'decode_chunk'),
    (dict(lanes=0), 'lanes'),
    (dict(slots=8, lanes=3), 'lanes must divide slots 8'),
    (dict(prefill_pieces=3, lanes=2), 'lanes must divide prefill_pieces 3'),
    (dict(max_prompt_tokens=0), 'max_prompt_tokens'),
    (dict(page_tokens=12), 'page_tokens.*divide 128.*12'),
    (dict(page_tokens=1, piece_tokens=32), 'page_tokens.*1'),
    (dict(page_tokens=16, piece_tokens=40), 'multiple.*16'),
    # 256 + 64 - 1 slots are 20 pages; the prompt's last is held twice.
    (dict(kv_tokens=335), 'kv_tokens 335.*320 tokens'),
    (dict(coalesce_share=-1.0), 'coalesce_share'),
    (dict(company_chunks=-1.0), 'company_chunks'),
    (dict(max_kept=-1), 'max_kept must be >= 0'),
    (dict(kv_dtype='int4'), "kv_dtype.*'int8'.*int4"),
  ],
)
def test_impossible_shapes_are_refused(change, words):
  with pytest.raises(ValueError, match=words):
    api.EngineConfig(**change)


def test_room_is_enough_for_every_slot():
  config = api.EngineConfig(slots=3, max_prompt_tokens=100, max_new_tokens=30)
  # 129 slots are 9 pages, and one more; and the page that nobody gets.
  assert config.pages == 3 * 10 + 1
  assert config.table_pages == 16  # 256 slots: two blocks.
  assert dataclasses.replace(config, kv_tokens=170).pages == 10 + 1
