"""The layout of a batch, and how its rows end."""

import numpy as np
import pytest

from agentflow_jax.inference import api
from agentflow_jax.inference import batching
from agentflow_jax.inference import decoding

_CONFIG = api.EngineConfig(
    slots=6,
    prompt_buckets=(4,),
    max_new_tokens=5,
    prefill_rows=2,
    max_stop_ids=3,
)


def _request(prompt_ids, key=0, stop_ids=(), stop_fn=None, **sampling):
  sampling.setdefault('max_new_tokens', 5)
  return api.Request(
      prompt_ids=prompt_ids,
      key_words=(key, key + 1),
      sampling=api.SamplingParams(**sampling),
      stop_ids=stop_ids,
      stop_fn=stop_fn,
  )


def test_rows_keep_their_order_and_equal_prompts_are_read_once():
  requests = [
      _request((7, 8), key=10, max_new_tokens=2, temperature=0.5),
      _request((7, 8, 9), key=20, stop_ids=(3, 4)),
      _request((7, 8), key=30, top_k=5, top_p=0.75, min_p=0.25),
      _request((0, 0, 0, 0), key=40),
  ]
  prompts, rows = batching.pack(requests, 4, _CONFIG)
  assert int(prompts.used) == 3
  assert prompts.ids[:3].tolist() == [[7, 8, 0, 0], [7, 8, 9, 0], [0] * 4]
  assert prompts.lengths.tolist() == [2, 3, 4, 1, 1, 1]
  assert rows.prompt[:4].tolist() == [0, 1, 0, 2]
  assert rows.prompt_lengths.tolist() == [2, 3, 2, 4, 1, 1]
  assert rows.max_new_tokens.tolist() == [2, 5, 5, 5, 0, 0]
  assert rows.stop_ids[:2].tolist() == [
      [decoding.NO_STOP] * 3,
      [3, 4, decoding.NO_STOP],
  ]
  assert rows.sampling.temperature[:3].tolist() == [0.5, 1.0, 1.0]
  assert rows.sampling.top_k[:3].tolist() == [0, 0, 5]
  assert rows.sampling.top_p[:3].tolist() == [1.0, 1.0, 0.75]
  assert rows.sampling.min_p[:3].tolist() == [0.0, 0.0, 0.25]
  assert rows.sampling.key_words[:3].tolist() == [[10, 11], [20, 21], [30, 31]]


def test_shapes_do_not_depend_on_how_many_wait():
  def shapes(n):
    prompts, rows = batching.pack(
        [_request((1,), key=i) for i in range(n)], 4, _CONFIG
    )
    return [
        (x.shape, x.dtype)
        for x in (
            prompts.ids, prompts.lengths, prompts.used, rows.prompt,
            rows.prompt_lengths, rows.max_new_tokens, rows.stop_ids,
            rows.sampling.temperature, rows.sampling.key_words,
        )
    ]

  assert shapes(0) == shapes(1) == shapes(6)


def _finish(ids, done, logprobs=None, **kwargs):
  logprobs = [-1.0] * len(ids) if logprobs is None else logprobs
  return batching.finish(
      _request((1,), **kwargs), ids, np.array(logprobs, np.float32), done
  )


def test_how_rows_end():
  assert _finish([5, 6], done=False) is None
  assert _finish([5, 6], done=True) == (2, 'length')
  assert _finish([5, 6], done=True, stop_ids=(6,)) == (2, 'stop')
  assert _finish([5, 6], done=False, stop_fn=lambda ids: None) is None
  # The stop stays; what was sampled after it goes.
  keep_one = lambda ids: ids.index(5) + 1
  assert _finish([5, 6], done=False, stop_fn=keep_one) == (1, 'stop')
  assert _finish([5, 6], True, stop_ids=(6,), stop_fn=keep_one) == (1, 'stop')
  assert _finish([5, 6], done=True, stop_fn=lambda ids: None) == (2, 'length')


@pytest.mark.parametrize('keep', [0, -1, 3])
def test_stop_fn_may_not_keep_what_there_is_not(keep):
  with pytest.raises(ValueError, match='of 2 ids'):
    _finish([5, 6], done=False, stop_fn=lambda ids: keep)


def test_only_kept_log_probabilities_must_be_finite():
  logprobs = [-1.0, float('nan')]
  with pytest.raises(FloatingPointError):
    _finish([5, 6], True, logprobs)
  assert _finish([5, 6], True, logprobs, stop_fn=lambda ids: 1) == (1, 'stop')
