"""What the engine refuses, and that it says why."""

import dataclasses

import pytest

from agentflow_jax.inference import api

_CONFIG = api.EngineConfig(
    slots=4,
    prompt_buckets=(8, 16),
    max_new_tokens=6,
    prefill_rows=2,
    max_stop_ids=2,
)


def _request(n=5, new=6, **kwargs):
  return api.Request(
      prompt_ids=tuple(range(n)),
      key_words=(1, 2),
      sampling=api.SamplingParams(max_new_tokens=new),
      **kwargs,
  )


def _check(request, max_positions=20):
  return api.check_request(
      request, _CONFIG, vocab_size=30, max_positions=max_positions
  )


@pytest.mark.parametrize(
    'n,bucket', [(1, 8), (7, 8), (8, 8), (9, 16), (14, 16)]
)
def test_bucket_is_the_smallest_that_holds_the_prompt(n, bucket):
  assert _check(_request(n)) == bucket


def test_prompt_too_long_names_the_lengths():
  with pytest.raises(api.PromptTooLong, match=r'17.*\(?16'):
    _check(_request(17), max_positions=100)
  # 15 + 6 > 20, though the prompt alone fits a bucket.
  with pytest.raises(api.PromptTooLong, match='15.*6.*20'):
    _check(_request(15))
  assert _check(_request(14)) == 16
  assert issubclass(api.PromptTooLong, ValueError)


@pytest.mark.parametrize(
    'change,words',
    [
        (dict(prompt_ids=()), 'empty'),
        (dict(prompt_ids=(3, 30)), r'\[3, 30\]'),
        (dict(prompt_ids=(-1, 3)), r'\[-1, 3\]'),
        (dict(sampling=api.SamplingParams(max_new_tokens=7)), '7.*6'),
        (dict(stop_ids=(1, 2, 3)), '3 stop_ids.*2'),
        (dict(stop_ids=(30,)), '30'),
        (dict(stop_ids=(-1,)), '-1'),
        (dict(key_words=(1, 2**32)), 'uint32'),
        (dict(key_words=(1, -1)), 'uint32'),
        (dict(key_words=(1, 2, 3)), 'two'),
    ],
)
def test_malformed_requests_are_refused(change, words):
  with pytest.raises(ValueError, match=words):
    _check(dataclasses.replace(_request(), **change))


@pytest.mark.parametrize(
    'change',
    [
        dict(temperature=-0.1),
        dict(temperature=float('inf')),
        dict(temperature=float('nan')),
        dict(top_k=-1),
        dict(top_p=0.0),
        dict(top_p=1.01),
        dict(min_p=-0.1),
        dict(min_p=1.1),
        dict(max_new_tokens=0),
    ],
)
def test_impossible_sampling_is_refused(change):
  with pytest.raises(ValueError, match=next(iter(change))):
    api.SamplingParams(**change)


@pytest.mark.parametrize(
    'change,truncates',
    [
        (dict(), False),
        (dict(temperature=0.0), False),
        (dict(top_k=3), True),
        (dict(top_p=0.9), True),
        (dict(min_p=0.1), True),
    ],
)
def test_what_truncates(change, truncates):
  assert api.SamplingParams(**change).truncates == truncates


@pytest.mark.parametrize(
    'change,words',
    [
        (dict(slots=0), 'slots'),
        (dict(max_new_tokens=0), 'max_new_tokens'),
        (dict(decode_chunk=0), 'decode_chunk'),
        (dict(slots=6, prefill_rows=4), 'divide'),
        (dict(prompt_buckets=()), 'prompt_buckets'),
        (dict(prompt_buckets=(0, 8)), 'prompt_buckets'),
        (dict(prompt_buckets=(16, 8)), 'ascend'),
        (dict(prompt_buckets=(8, 8)), 'ascend'),
        (dict(coalesce_seconds=-1.0), 'coalesce_seconds'),
    ],
)
def test_impossible_shapes_are_refused(change, words):
  with pytest.raises(ValueError, match=words):
    api.EngineConfig(**change)
