"""What the engine samples, against plain forward passes and the simple engine."""

import dataclasses

import jax
import numpy as np
import pytest
from scipy import stats

from agentflow_jax import records
from agentflow_jax.core import model
from agentflow_jax.inference import api, engine as engine_lib
from agentflow_jax.inference import simple_engine
from tests.inference import engine_kit as kit


@pytest.mark.parametrize('n', [1, 5, 8, 9, 28])
def test_greedy_equals_a_loop_of_full_forward_passes(engine, params, n):
  request = kit.request(n, temperature=0.0, max_new_tokens=12)
  (result,) = kit.generate(engine, [request])
  ids, logprobs = list(request.prompt_ids), []
  for _ in range(12):
    last = kit.logits(params, ids)[-1]
    ids.append(int(np.argmax(last)))
    logprobs.append(last[ids[-1]] - np.log(np.exp(last).sum()))
  assert list(result.response_ids) == ids[n:]
  np.testing.assert_allclose(result.logprobs, logprobs, atol=1e-5)
  assert result.finish_reason == 'length'
  assert result.params_version == 3


def test_recorded_logprobs_are_those_of_a_forward_pass(engine, params):
  requests = kit.mixed(80, seed=1)
  for request, result in zip(requests, kit.generate(engine, requests), strict=True):
    expected, _ = kit.oracle(params, request, result.response_ids)
    np.testing.assert_allclose(result.logprobs, expected, atol=1e-5)
    assert result.kept is None


def test_the_most_likely_tokens_are_those_of_a_forward_pass(own_engine, params):
  requests = [
    dataclasses.replace(r, top_logprobs=1 + i % 6)
    for i, r in enumerate(kit.mixed(30, seed=5))
  ]
  plain = [dataclasses.replace(r, top_logprobs=0) for r in requests]
  results = kit.generate(own_engine, requests)
  cut = 0
  for request, result, same in zip(
    requests, results, kit.generate(own_engine, plain), strict=True
  ):
    assert result.response_ids == same.response_ids and same.top == ()
    assert len(result.top) == len(result.response_ids)
    logits = kit.logits(params, request.prompt_ids + result.response_ids)
    logits = logits[len(request.prompt_ids) - 1 : -1]
    _, sets = kit.oracle(params, request, result.response_ids)
    for row, keep, (ids, scores), token, logprob in zip(
      logits, sets, result.top, result.response_ids, result.logprobs, strict=True
    ):
      most = keep[: request.top_logprobs]
      assert list(ids) == most
      cut += len(keep) < request.top_logprobs
      row = row / (request.sampling.temperature or 1.0)
      row -= row.max()
      expected = row[most] - np.log(np.exp(row[keep]).sum())
      np.testing.assert_allclose(scores, expected, atol=1e-5)
      if token in ids:  # To the bit.
        assert scores[ids.index(token)] == logprob
  assert cut  # Fewer could be drawn than were asked for.
  with pytest.raises(ValueError, match='top_logprobs must lie in'):
    kit.generate(own_engine, [dataclasses.replace(requests[0], top_logprobs=21)])


def test_a_bound_on_rows_bounds_prompt_and_response_together(params):
  config = dataclasses.replace(kit.CONFIG, row_tokens=36)
  assert config.pages == 1 + 6 * 10 and kit.CONFIG.pages == 1 + 6 * 12
  with engine_lib.Engine(kit.MODEL, config, params, name='short') as engine:
    (result,) = kit.generate(engine, [kit.request(28, max_new_tokens=8)])
    assert len(result.response_ids) == 8
    with pytest.raises(api.PromptTooLong, match='29 tokens and 8 new ones.*36'):
      kit.generate(engine, [kit.request(29, max_new_tokens=8)])
  with pytest.raises(ValueError, match='row_tokens 31 is less'):
    dataclasses.replace(kit.CONFIG, row_tokens=31)


@pytest.fixture(scope='module', name='recording')
def _recording(engine, params):
  """An engine that records sets, made after one that does not."""
  del engine
  config = dataclasses.replace(kit.CONFIG, max_kept=7)
  with engine_lib.Engine(kit.MODEL, config, params, name='recording') as recording:
    recording.warmup()
    yield recording


def test_recorded_sets_are_what_was_drawn_from(recording, params):
  requests = kit.mixed(120, seed=2)
  results = kit.generate(recording, requests)
  sizes, cut = [], 0
  for request, result in zip(requests, results, strict=True):
    expected, sets = kit.oracle(params, request, result.response_ids, max_kept=7)
    np.testing.assert_allclose(result.logprobs, expected, atol=1e-5)
    if not request.sampling.truncates:
      assert result.kept is None
      continue
    assert [ids.tolist() for ids in result.kept] == sets
    assert all(ids.dtype == np.int32 for ids in result.kept)
    sizes += map(len, sets)
    cut += (
      request.stop_fn is not None
      and result.finish_reason == 'stop'
      and len(sets) % kit.CONFIG.decode_chunk != 0
    )
  assert min(sizes) < 3 and max(sizes) == 7
  assert cut > 3  # Sets of what stop_fn dropped were dropped.


def test_recording_changes_one_program_alone(recording, engine):
  # The others are those of an engine that does not record.
  assert recording.compilations == 1
  requests = [r for r in kit.mixed(60, seed=3) if kit.is_cheap(r)]
  assert len(requests) > 10
  for a, b in zip(
    kit.generate(recording, requests), kit.generate(engine, requests), strict=True
  ):
    assert kit.bits(a) == kit.bits(b)
  kit.generate(recording, kit.mixed(60, seed=4))
  assert recording.compilations == 1


def test_sets_do_not_depend_on_the_crowd(recording):
  requests = [r for r in kit.mixed(40, seed=5) if r.sampling.truncates]
  together = kit.generate(recording, requests)
  for request, crowded in zip(requests[:8], together, strict=False):
    (alone,) = kit.generate(recording, [request])
    assert kit.bits(alone) == kit.bits(crowded)
    for a, b in zip(alone.kept, crowded.kept, strict=True):
      np.testing.assert_array_equal(a, b)


def test_more_ids_than_the_vocabulary_has_are_refused(params):
  config = dataclasses.replace(kit.CONFIG, max_kept=kit.V + 1)
  with pytest.raises(ValueError, match=f'max_kept {kit.V + 1}.*{kit.V}'):
    engine_lib.Engine(kit.MODEL, config, params)


@pytest.mark.parametrize(
  'spec',
  [
    dict(),
    dict(temperature=0.5),
    dict(temperature=2.5, top_p=0.6),
    dict(temperature=2.5, top_k=4),
  ],
)
def test_samples_follow_the_exact_distribution(engine, params, spec):
  base = kit.request(6, max_new_tokens=1, **spec)
  requests = [dataclasses.replace(base, key_words=(i, 5)) for i in range(1500)]
  tokens = [r.response_ids[0] for r in kit.generate(engine, requests)]
  row = kit.logits(params, base.prompt_ids)[-1] / base.sampling.temperature
  probs = np.exp(row - row.max())
  probs /= probs.sum()
  order = np.argsort(-probs)
  before = np.cumsum(probs[order]) - probs[order]
  kept = order[before < base.sampling.top_p]
  kept = kept[: base.sampling.top_k or kit.V]
  assert set(tokens) <= set(kept.tolist())
  counts = np.bincount(tokens, minlength=kit.V)[kept]
  expected = probs[kept] / probs[kept].sum() * len(tokens)
  # The chi-square needs cells of at least 5: the tail is one cell.
  head = int((expected >= 5).sum())
  counts = np.append(counts[:head], counts[head:].sum())
  expected = np.append(expected[:head], expected[head:].sum())
  some = expected > 0
  assert some.sum() > 2
  assert stats.chisquare(counts[some], expected[some]).pvalue > 1e-3


@pytest.mark.slow
def test_a_kernel_reads_pages_where_they_lie():
  """That for GPUs, interpreted: same bits in a crowd, scores of a forward pass."""
  config = dataclasses.replace(kit.MODEL, dtype='bfloat16', head_dim=16)
  params = jax.jit(model.init_params, static_argnums=0)(config, jax.random.key(3))
  shapes = dataclasses.replace(kit.CONFIG, attention='kernel', slots=3)
  requests = [
    kit.request(n, key=i, max_new_tokens=10) for i, n in enumerate((3, 30, 17, 30, 9))
  ]
  with engine_lib.Engine(config, shapes, params) as engine:
    engine.warmup((False,))
    assert engine.compilations == 2  # There is no room for gathered rows.
    alone = [kit.bits(kit.generate(engine, [r])[0]) for r in requests]
    assert [kit.bits(r) for r in kit.generate(engine, requests)] == alone
  for request, bits in zip(requests, alone, strict=True):
    kit.check_logprobs(config, params, request, bits, atol=0.05)
  with pytest.raises(ValueError, match='round to bfloat16'):
    engine_lib.Engine(kit.MODEL, shapes, params)


def test_greedy_equals_the_simple_engine(engine, params):
  simple = simple_engine.SimpleEngine(
    kit.MODEL, params, slots=20, max_prompt_tokens=32, max_new_tokens=12
  )
  requests = [
    dataclasses.replace(
      r,
      sampling=records.SamplingSpec(
        temperature=0.0, max_new_tokens=r.sampling.max_new_tokens
      ),
    )
    for r in kit.prefixed(200, seed=33)
  ]
  results = kit.generate(engine, requests)
  for start in range(0, 200, 20):
    part = simple.generate(requests[start : start + 20])
    for result, (ids, logprobs) in zip(results[start:], part):
      assert result.response_ids == ids
      np.testing.assert_allclose(result.logprobs, logprobs, atol=1e-5)
  # And what no cache was needed for: a whole forward pass a request.
  for request, result in zip(requests, results, strict=True):
    prompt, ids = request.prompt_ids, result.response_ids
    logits = kit.logits(params, prompt + ids)[len(prompt) - 1 : -1]
    assert ids == tuple(logits.argmax(axis=1)), request


def test_a_stop_id_ends_the_response_and_stays(engine):
  free = kit.generate(engine, [kit.request(5, key=4, max_new_tokens=12)])[0]
  for length in (1, 5, 6, 11, 12):  # Around the edges of a chunk of 5.
    stop = free.response_ids[length - 1]
    first = free.response_ids.index(stop) + 1
    (result,) = kit.generate(
      engine, [kit.request(5, key=4, max_new_tokens=12, stop_ids=(stop, 1))]
    )
    # 1 may come sooner, by chance.
    if 1 in free.response_ids[:first]:
      first = free.response_ids.index(1) + 1
    assert result.response_ids == free.response_ids[:first]
    assert result.logprobs == free.logprobs[:first]
    assert result.finish_reason == 'stop'


@pytest.mark.parametrize('chunk', [1, 12])
def test_stop_fn_does_not_depend_on_the_chunk(engine, params, chunk):
  requests = [r for r in kit.mixed(80, seed=3) if kit.is_cheap(r)]
  assert len({len(r.prompt_ids) for r in requests if r.stop_fn}) == 7
  expected = [kit.bits(r) for r in kit.together(engine, requests)]
  assert len({len(r[0]) for r in expected}) > 6
  config = dataclasses.replace(kit.CONFIG, decode_chunk=chunk)
  with engine_lib.Engine(kit.MODEL, config, params) as other:
    results = kit.together(other, requests)
  assert [kit.bits(r) for r in results] == expected


def test_stop_fn_keeps_the_stop_and_drops_the_rest(engine):
  request = kit.request(5, key=4, max_new_tokens=12)
  (free,) = kit.generate(engine, [request])
  for keep in range(1, 13):
    stop_fn = lambda ids, keep=keep: keep if len(ids) >= keep else None
    (result,) = kit.generate(engine, [dataclasses.replace(request, stop_fn=stop_fn)])
    assert result.response_ids == free.response_ids[:keep]
    assert result.logprobs == free.logprobs[:keep]
    assert result.finish_reason == 'stop'


def test_length_is_the_requests_own(engine):
  requests = [kit.request(5, key=4, max_new_tokens=n) for n in (1, 7, 12, 5)]
  results = kit.together(engine, requests)
  for request, result in zip(requests, results, strict=True):
    assert len(result.response_ids) == request.sampling.max_new_tokens
    assert result.response_ids == results[2].response_ids[: len(result.response_ids)]
    assert result.finish_reason == 'length'


def test_a_top_k_beyond_the_vocabulary_keeps_all(own_engine):
  request = kit.request(5, top_k=2**40, temperature=0.0)
  plain = kit.request(5, temperature=0.0)
  results = kit.generate(own_engine, [request, plain])
  assert results[0].response_ids == results[1].response_ids
