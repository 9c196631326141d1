"""The engine against plain forward passes, and alone against in a crowd."""

import asyncio
from concurrent import futures
import dataclasses
import itertools
import random
import threading
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from agentflow_jax import records
from agentflow_jax.core import device_time
from agentflow_jax.core import handover
from agentflow_jax.core import launches
from agentflow_jax.core import model
from agentflow_jax.core import sharding
from agentflow_jax.inference import api
from agentflow_jax.inference import batching
from agentflow_jax.inference import engine as engine_lib
from agentflow_jax.inference import gathered
from agentflow_jax.inference import scheduling
from agentflow_jax.inference import simple_engine

_V = 56
_MODEL = model.ModelConfig(
  vocab_size=_V,
  d_model=32,
  n_layers=2,
  n_heads=4,
  n_kv_heads=2,
  head_dim=8,
  d_ff=48,
  max_positions=40,
  # Tied embeddings at birth repeat the last token for ever.
  tie_embeddings=False,
)
_CONFIG = api.EngineConfig(
  slots=6,
  max_prompt_tokens=32,
  max_new_tokens=12,
  page_tokens=4,
  prefill_pieces=3,
  piece_tokens=8,
  decode_chunk=5,
  max_stop_ids=3,
)


@jax.jit
def _init(seed):
  params = model.init_params(_MODEL, jax.random.key(seed))
  # Sharper than at birth, so that greedy choices are not near ties.
  return dict(params, head=2.0 * params['head'])


@pytest.fixture(scope='module', name='params')
def _params():
  return _init(0)


@pytest.fixture(scope='module', name='engine')
def _engine(params):
  with engine_lib.Engine(_MODEL, _CONFIG, params, version=3) as engine:
    engine.warmup()
    yield engine


@pytest.fixture(name='own_engine')
def _own_engine(params):
  with engine_lib.Engine(_MODEL, _CONFIG, params, name='own') as engine:
    yield engine


def _request(n=5, key=0, seed=None, stop_ids=(), stop_fn=None, **sampling):
  rng = random.Random(n if seed is None else seed)
  sampling.setdefault('max_new_tokens', 8)
  return api.Request(
    prompt_ids=tuple(rng.randrange(_V) for _ in range(n)),
    key_words=(key, 77),
    sampling=records.SamplingSpec(**sampling),
    stop_ids=stop_ids,
    stop_fn=stop_fn,
  )


def _mixed(count, seed=0):
  """Requests of every kind: lengths, specs, stops, a few equal prompts."""
  rng = random.Random(seed)
  specs = (
    dict(),
    dict(temperature=0.0),
    dict(temperature=0.6),
    dict(top_k=5),
    dict(top_p=0.8, temperature=1.4),
    dict(min_p=0.1),
  )
  return [
    _request(
      rng.choice((1, 3, 7, 8, 9, 20, 27)),
      key=rng.randrange(2**32),
      seed=rng.randrange(4),
      stop_ids=rng.choice(((), (3,), (4, 5, 6))),
      stop_fn=rng.choice((None, _stop_at_multiple_of_nine)),
      max_new_tokens=rng.choice((1, 2, 6, 12)),
      **rng.choice(specs),
    )
    for _ in range(count)
  ]


def _is_cheap(request):
  """Whether it needs the plain programs only (compiling is slow)."""
  return not request.sampling.truncates


def _stop_at_multiple_of_nine(ids):
  return next((i + 1 for i, x in enumerate(ids) if x % 9 == 0), None)


def _generate(engine, requests):
  async def run():
    # A bug may leave a caller waiting for ever: let the test fail instead.
    return await asyncio.wait_for(
      asyncio.gather(*(engine.generate(r) for r in requests)), 300
    )

  return asyncio.run(run())


def _hold(engine):
  """Keeps the engine busy with one request until the event is set."""
  busy, release = threading.Event(), threading.Event()

  def wait(unused_ids):
    busy.set()
    assert release.wait(60)
    return 1

  threading.Thread(target=_generate, args=(engine, [_request(3, stop_fn=wait)])).start()
  assert busy.wait(60)
  return release


async def _until(condition):
  for _ in range(6000):
    if condition():
      return
    await asyncio.sleep(0.01)
  raise AssertionError('the condition never came true')


def _together(engine, requests):
  """Samples requests that all wait before the first batch of them starts."""
  queued = engine.stats().queued + len(requests)
  release = _hold(engine)

  async def run():
    tasks = [asyncio.create_task(engine.generate(r)) for r in requests]
    await _until(lambda: engine.stats().queued == queued)
    release.set()
    return await asyncio.gather(*tasks)

  return asyncio.run(run())


def _bits(result):
  return (
    result.response_ids,
    np.array(result.logprobs, np.float32).tobytes(),
    result.finish_reason,
  )


@jax.jit
def _padded_logits(params, ids, length):
  positions = jnp.arange(ids.shape[0])
  ends = jnp.where(positions < length, length, 0)
  return model.forward(_MODEL, params, ids[None], positions[None], ends[None])[0]


def _logits(params, ids):
  """float64 [len(ids), V] by one plain forward pass."""
  padded = np.zeros((_MODEL.max_positions,), np.int32)
  padded[: len(ids)] = ids
  logits = _padded_logits(params, padded, len(ids))
  return np.asarray(logits, np.float64)[: len(ids)]


def _oracle(params, request, response_ids, max_kept=_V):
  """Scores a response in float64, with the kept sets by plain loops.

  Returns:
    Log probabilities, and the sets, the most likely first.
  """
  spec, prompt = request.sampling, request.prompt_ids
  logits = _logits(params, prompt + response_ids)[len(prompt) - 1 : -1]
  out, sets = [], []
  for row, token in zip(logits, response_ids, strict=True):
    row = row / (spec.temperature or 1.0)
    probs = np.exp(row - row.max())
    probs /= probs.sum()
    order = np.argsort(-probs, kind='stable')
    mass = np.cumsum(probs[order])
    keep = [
      token
      for rank, token in enumerate(order)
      if (not spec.top_k or rank < spec.top_k)
      and (rank == 0 or spec.top_p == 1 or mass[rank - 1] < spec.top_p)
      and probs[token] >= spec.min_p * probs.max()
    ]
    if spec.truncates:
      keep = keep[:max_kept]
    out.append(np.log(probs[token] / probs[keep].sum()))
    sets.append(keep)
    assert token in keep
  return np.array(out), sets


def _check_logprobs(config, params, request, bits, atol=1e-5):
  """Compares with a plain forward pass of that network, at temperature 1."""
  ids = np.array([request.prompt_ids + bits[0]], np.int32)
  at = np.arange(ids.shape[1])[None]
  logits = jax.jit(model.forward, static_argnums=0)(
    config, params, ids, at, np.full_like(ids, ids.shape[1])
  )
  scores = jax.nn.log_softmax(logits[0, len(request.prompt_ids) - 1 : -1])
  expected = np.take_along_axis(np.asarray(scores), np.array(bits[0])[:, None], axis=1)[
    :, 0
  ]
  got = np.frombuffer(bits[1], np.float32)
  np.testing.assert_allclose(got, expected, atol=atol)


# Against plain forward passes.


@pytest.mark.parametrize('n', [1, 5, 8, 9, 28])
def test_greedy_equals_a_loop_of_full_forward_passes(engine, params, n):
  request = _request(n, temperature=0.0, max_new_tokens=12)
  (result,) = _generate(engine, [request])
  ids, logprobs = list(request.prompt_ids), []
  for _ in range(12):
    last = _logits(params, ids)[-1]
    ids.append(int(np.argmax(last)))
    logprobs.append(last[ids[-1]] - np.log(np.exp(last).sum()))
  assert list(result.response_ids) == ids[n:]
  np.testing.assert_allclose(result.logprobs, logprobs, atol=1e-5)
  assert result.finish_reason == 'length'
  assert result.params_version == 3


def test_recorded_logprobs_are_those_of_a_forward_pass(engine, params):
  requests = _mixed(80, seed=1)
  for request, result in zip(requests, _generate(engine, requests), strict=True):
    expected, _ = _oracle(params, request, result.response_ids)
    np.testing.assert_allclose(result.logprobs, expected, atol=1e-5)
    assert result.kept is None


def test_the_most_likely_tokens_are_those_of_a_forward_pass(own_engine, params):
  requests = [
    dataclasses.replace(r, top_logprobs=1 + i % 6)
    for i, r in enumerate(_mixed(30, seed=5))
  ]
  plain = [dataclasses.replace(r, top_logprobs=0) for r in requests]
  results = _generate(own_engine, requests)
  cut = 0
  for request, result, same in zip(
    requests, results, _generate(own_engine, plain), strict=True
  ):
    assert result.response_ids == same.response_ids and same.top == ()
    assert len(result.top) == len(result.response_ids)
    logits = _logits(params, request.prompt_ids + result.response_ids)
    logits = logits[len(request.prompt_ids) - 1 : -1]
    _, sets = _oracle(params, request, result.response_ids)
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
    _generate(own_engine, [dataclasses.replace(requests[0], top_logprobs=21)])


def test_a_bound_on_rows_bounds_prompt_and_response_together(params):
  config = dataclasses.replace(_CONFIG, row_tokens=36)
  assert config.pages == 1 + 6 * 10 and _CONFIG.pages == 1 + 6 * 12
  with engine_lib.Engine(_MODEL, config, params, name='short') as engine:
    (result,) = _generate(engine, [_request(28, max_new_tokens=8)])
    assert len(result.response_ids) == 8
    with pytest.raises(api.PromptTooLong, match='29 tokens and 8 new ones.*36'):
      _generate(engine, [_request(29, max_new_tokens=8)])
  with pytest.raises(ValueError, match='row_tokens 31 is less'):
    dataclasses.replace(_CONFIG, row_tokens=31)


@pytest.fixture(scope='module', name='recording')
def _recording(engine, params):
  """An engine that records sets, made after one that does not."""
  del engine
  config = dataclasses.replace(_CONFIG, max_kept=7)
  with engine_lib.Engine(_MODEL, config, params, name='recording') as recording:
    recording.warmup()
    yield recording


def test_recorded_sets_are_what_was_drawn_from(recording, params):
  requests = _mixed(120, seed=2)
  results = _generate(recording, requests)
  sizes, cut = [], 0
  for request, result in zip(requests, results, strict=True):
    expected, sets = _oracle(params, request, result.response_ids, max_kept=7)
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
      and len(sets) % _CONFIG.decode_chunk != 0
    )
  assert min(sizes) < 3 and max(sizes) == 7
  assert cut > 3  # Sets of what stop_fn dropped were dropped.


def test_recording_changes_one_program_alone(recording, engine):
  # The others are those of an engine that does not record.
  assert recording.compilations == 1
  requests = [r for r in _mixed(60, seed=3) if _is_cheap(r)]
  assert len(requests) > 10
  for a, b in zip(
    _generate(recording, requests), _generate(engine, requests), strict=True
  ):
    assert _bits(a) == _bits(b)
  _generate(recording, _mixed(60, seed=4))
  assert recording.compilations == 1


def test_sets_do_not_depend_on_the_crowd(recording):
  requests = [r for r in _mixed(40, seed=5) if r.sampling.truncates]
  together = _generate(recording, requests)
  for request, crowded in zip(requests[:8], together, strict=False):
    (alone,) = _generate(recording, [request])
    assert _bits(alone) == _bits(crowded)
    for a, b in zip(alone.kept, crowded.kept, strict=True):
      np.testing.assert_array_equal(a, b)


def test_more_ids_than_the_vocabulary_has_are_refused(params):
  config = dataclasses.replace(_CONFIG, max_kept=_V + 1)
  with pytest.raises(ValueError, match=f'max_kept {_V + 1}.*{_V}'):
    engine_lib.Engine(_MODEL, config, params)


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
  base = _request(6, max_new_tokens=1, **spec)
  requests = [dataclasses.replace(base, key_words=(i, 5)) for i in range(1500)]
  tokens = [r.response_ids[0] for r in _generate(engine, requests)]
  row = _logits(params, base.prompt_ids)[-1] / base.sampling.temperature
  probs = np.exp(row - row.max())
  probs /= probs.sum()
  order = np.argsort(-probs)
  before = np.cumsum(probs[order]) - probs[order]
  kept = order[before < base.sampling.top_p]
  kept = kept[: base.sampling.top_k or _V]
  assert set(tokens) <= set(kept.tolist())
  counts = np.bincount(tokens, minlength=_V)[kept]
  expected = probs[kept] / probs[kept].sum() * len(tokens)
  # The chi-square needs cells of at least 5: the tail is one cell.
  head = int((expected >= 5).sum())
  counts = np.append(counts[:head], counts[head:].sum())
  expected = np.append(expected[:head], expected[head:].sum())
  some = expected > 0
  assert some.sum() > 2
  assert stats.chisquare(counts[some], expected[some]).pvalue > 1e-3


# What others do never shows.


def test_same_bits_alone_in_a_crowd_and_in_any_order(engine):
  requests = _mixed(60)
  crowd = [_bits(r) for r in _together(engine, requests)]
  assert len({r[0] for r in crowd}) > 40
  order = list(range(60))
  random.Random(5).shuffle(order)
  permuted = _together(engine, [requests[i] for i in order])
  assert [_bits(r) for r in permuted] == [crowd[i] for i in order]
  for request, bits in zip(requests[:25], crowd):
    (alone,) = _generate(engine, [request])
    assert _bits(alone) == bits


def test_a_group_differs_by_key_alone(engine):
  request = _request(9, max_new_tokens=12)
  group = [dataclasses.replace(request, key_words=(i, 1)) for i in range(8)]
  results = _together(engine, group + group)
  responses = [r.response_ids for r in results]
  assert len(set(responses)) == 8
  assert [_bits(r) for r in results[:8]] == [_bits(r) for r in results[8:]]


def test_what_prompts_share_is_read_once(own_engine):
  group = [_request(20, key=i) for i in range(3)]
  longer = dataclasses.replace(
    group[0], prompt_ids=group[0].prompt_ids[:18] + (7, 7, 7, 7, 7)
  )
  _together(own_engine, group + [longer])
  now = own_engine.stats()
  # The 2 that held the engine; 19 of the group; of the longer one's 22, what
  # its 4 whole pages of 4 tokens have in common with them is read already.
  assert now.prefill_tokens == 2 + 19 + 22 - 16
  assert now.hit_tokens == 2 * 19 + 16
  # The last token of each prompt is neither.
  assert now.prompt_tokens == now.prefill_tokens + now.hit_tokens + 5
  _together(own_engine, [longer])  # It is still there, and the holder's, too.
  assert own_engine.stats().prefill_tokens == now.prefill_tokens


def _prefixed(count, seed):
  """Requests whose prompts begin alike in many ways."""
  rng = random.Random(seed)
  stems = [[rng.randrange(_V) for _ in range(28)] for _ in range(3)]
  out = []
  for request in _mixed(count, seed):
    stem = rng.choice(stems)[: rng.randrange(24)]
    ids = tuple(stem) + request.prompt_ids[: 27 - len(stem)]
    out.append(dataclasses.replace(request, prompt_ids=ids))
  return out


@pytest.mark.slow
def test_pages_of_int8_give_the_same_bits_to_all_as_well(engine, params):
  requests = _prefixed(60, seed=32)
  config = dataclasses.replace(_CONFIG, kv_dtype='int8')
  found = []
  for order, prefix_cache in ((1, True), (-1, True), (1, False)):
    changed = dataclasses.replace(config, prefix_cache=prefix_cache)
    with engine_lib.Engine(_MODEL, changed, params) as other:
      results = _generate(other, requests[::order])[::order]
      assert bool(other.stats().hit_tokens) == prefix_cache
    found.append([_bits(r) for r in results])
  assert found[0] == found[1] == found[2]
  assert found[0] != [_bits(r) for r in _generate(engine, requests)]


def test_same_bits_with_the_cache_and_without(engine, params):
  requests = _prefixed(150, seed=31)
  before = engine.stats()
  cached = [_bits(r) for r in _generate(engine, requests)]
  again = [_bits(r) for r in _generate(engine, requests)]
  now = engine.stats()
  hits = now.hit_tokens - before.hit_tokens
  assert hits > 0.4 * (now.prompt_tokens - before.prompt_tokens)
  config = dataclasses.replace(_CONFIG, prefix_cache=False)
  with engine_lib.Engine(_MODEL, config, params) as other:
    plain = [_bits(r) for r in _generate(other, requests)]
    assert other.stats().hit_tokens == 0
  assert cached == again == plain


@pytest.mark.parametrize(
  'attention, lanes',
  [
    ('gathered', 2),
    pytest.param('gathered', 1, marks=pytest.mark.slow),
    pytest.param('blocks', 1, marks=pytest.mark.slow),
  ],
)
def test_same_bits_over_long_prompts(attention, lanes, monkeypatch):
  config = dataclasses.replace(_MODEL, d_model=64, head_dim=64, max_positions=700)
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
  draw = lambda n: tuple(rng.randrange(_V) for _ in range(n))
  cards, query, requests = draw(400), (), []
  for i in range(24):
    # Most begin with 400 tokens in common, a group of eight with 30 more.
    query = draw(30) if i % 8 == 0 else query
    ids = draw(50) if i % 7 == 6 else cards + query + draw(i)
    requests.append(
      dataclasses.replace(_request(1, key=i, max_new_tokens=12), prompt_ids=ids)
    )
  results = []
  for order, changes in ((1, {}), (-1, {}), (1, {'prefix_cache': False})):
    with engine_lib.Engine(
      config, dataclasses.replace(shapes, attention=attention, **changes), params
    ) as engine:
      found = _generate(engine, requests[::order])[::order]
      found += _generate(engine, requests[3:4])
    # Rows read the cards once, or some apart; and then all apart.
    if attention == 'gathered' and gathered.shares_bits(
      'float32', 8 // lanes, 2, 2, 64, 640
    ):
      shared = {n for n, rows in common if rows > 1}
      assert shared == ({0} if changes else {0, 1})
    common.clear()
    results.append([_bits(r) for r in found])
  assert results[0] == results[1] == results[2]
  assert results[0][-1] == results[0][3]
  for i in (6, 12):
    _check_logprobs(config, params, requests[i], results[0][i])


@pytest.mark.slow
def test_a_kernel_reads_pages_where_they_lie():
  """That for GPUs, interpreted: same bits in a crowd, scores of a forward pass."""
  config = dataclasses.replace(_MODEL, dtype='bfloat16', head_dim=16)
  params = jax.jit(model.init_params, static_argnums=0)(config, jax.random.key(3))
  shapes = dataclasses.replace(_CONFIG, attention='kernel', slots=3)
  requests = [
    _request(n, key=i, max_new_tokens=10) for i, n in enumerate((3, 30, 17, 30, 9))
  ]
  with engine_lib.Engine(config, shapes, params) as engine:
    engine.warmup((False,))
    assert engine.compilations == 2  # There is no room for gathered rows.
    alone = [_bits(_generate(engine, [r])[0]) for r in requests]
    assert [_bits(r) for r in _generate(engine, requests)] == alone
  for request, bits in zip(requests, alone, strict=True):
    _check_logprobs(config, params, request, bits, atol=0.05)
  with pytest.raises(ValueError, match='round to bfloat16'):
    engine_lib.Engine(_MODEL, shapes, params)


@pytest.fixture(scope='module', name='of_lanes')
def _of_lanes(params):
  config = dataclasses.replace(_CONFIG, lanes=2, prefill_pieces=4)
  with engine_lib.Engine(_MODEL, config, params, name='lanes') as engine:
    engine.warmup()
    yield engine


def test_lanes_do_not_show(of_lanes, engine):
  requests = _mixed(60, seed=41)
  crowd = [_bits(r) for r in _together(of_lanes, requests)]
  assert [_bits(r) for r in _together(of_lanes, requests[::-1])] == crowd[::-1]
  for request, bits in zip(requests[:10], crowd):
    (alone,) = _generate(of_lanes, [request])
    assert _bits(alone) == bits
  # Products of three rows and of six may be added up otherwise.
  for result, (ids, logprobs, _) in zip(
    _generate(engine, requests), crowd, strict=True
  ):
    assert result.response_ids == ids
    np.testing.assert_allclose(
      result.logprobs, np.frombuffer(logprobs, np.float32), atol=1e-5
    )


def test_a_lane_that_fails_waits_for_the_others(of_lanes, monkeypatch):
  """And leaves an engine that goes on."""
  requests = [_request(5, key=i, max_new_tokens=12) for i in range(6)]
  expected = [_bits(r) for r in _generate(of_lanes, requests)]
  before, done, sample = of_lanes.stats(), [], of_lanes._sample

  def fail(lane, kinds):
    if lane == 0:
      raise RuntimeError('device lost')
    time.sleep(0.3)
    done.append(lane)
    return sample(lane, kinds)

  async def run():
    return await asyncio.gather(
      *map(of_lanes.generate, requests), return_exceptions=True
    )

  with monkeypatch.context() as patch:
    patch.setattr(of_lanes, '_sample', fail)
    errors = asyncio.run(run())
    assert done == [1]
  assert {str(e) for e in errors} == {'engine lanes: RuntimeError: device lost'}
  assert [_bits(r) for r in _generate(of_lanes, requests)] == expected
  now = of_lanes.stats()
  assert now.failed - before.failed == 6 and now.running == 0


def test_lanes_sample_side_by_side(of_lanes, monkeypatch):
  """Each waits for the other, which one after the other they could not."""
  assert of_lanes.lanes == 2
  both, sample, names = threading.Barrier(2), of_lanes._sample, set()

  def meet(lane, kinds):
    both.wait(60)
    names.add((lane, threading.current_thread().name))
    return sample(lane, kinds)

  monkeypatch.setattr(of_lanes, '_sample', meet)
  _generate(of_lanes, [_request(5, key=i, max_new_tokens=5) for i in range(2)])
  assert names == {(0, 'engine-lanes'), (1, 'engine-lanes-lane_0')}


def test_lanes_read_side_by_side(of_lanes, monkeypatch):
  """Each waits for the other, as above."""
  both, names = threading.Barrier(2), set()
  prefill, read_apart = of_lanes._programs.prefill(), of_lanes._read_apart

  def meet(*args):
    both.wait(60)
    names.add(threading.current_thread().name)
    return prefill(*args)

  def read(lanes):
    with monkeypatch.context() as patch:
      if all(lanes):
        patch.setattr(of_lanes._programs, 'prefill', lambda: meet)
      return read_apart(lanes)

  monkeypatch.setattr(of_lanes, '_read_apart', read)
  requests = [
    dataclasses.replace(_request(1, max_new_tokens=1), prompt_ids=(i,) * 30)
    for i in range(6)
  ]
  _generate(of_lanes, requests)
  assert names == {'engine-lanes', 'engine-lanes-lane_0'}


def test_a_lane_that_fails_to_read(of_lanes, params, monkeypatch):
  """The engine goes on with pages, and a desk, that are new."""
  requests = [
    dataclasses.replace(_request(1, key=i), prompt_ids=(7, i) * 10) for i in range(6)
  ]
  expected = [_bits(r) for r in _generate(of_lanes, requests)]
  of_lanes.update_params(params, 0)  # Forgets what was read.
  prefill = of_lanes._programs.prefill()

  def fail(*args):
    prefill(*args)
    raise RuntimeError('device lost')

  async def run():
    return await asyncio.gather(
      *map(of_lanes.generate, requests), return_exceptions=True
    )

  with monkeypatch.context() as patch:
    patch.setattr(of_lanes._programs, 'prefill', lambda: fail)
    errors = asyncio.run(run())
  assert {str(e) for e in errors} == {'engine lanes: RuntimeError: device lost'}
  assert [_bits(r) for r in _generate(of_lanes, requests)] == expected


def test_same_bits_where_room_is_short(engine, params):
  requests = _prefixed(150, seed=32)
  expected = [_bits(r) for r in _generate(engine, requests)]
  # Room for two of the longest, for six slots.
  config = dataclasses.replace(_CONFIG, kv_tokens=96)
  with engine_lib.Engine(_MODEL, config, params) as other:
    got = [_bits(r) for r in _generate(other, requests)]
    _generate(other, requests[:1])  # So that all the others were freed.
    now = other.stats()
  assert got == expected
  assert now.evicted_pages > 100
  assert now.pages == 24 and 0 <= now.free_pages < 24


def test_greedy_equals_the_simple_engine(engine, params):
  simple = simple_engine.SimpleEngine(
    _MODEL, params, slots=20, max_prompt_tokens=32, max_new_tokens=12
  )
  requests = [
    dataclasses.replace(
      r,
      sampling=records.SamplingSpec(
        temperature=0.0, max_new_tokens=r.sampling.max_new_tokens
      ),
    )
    for r in _prefixed(200, seed=33)
  ]
  results = _generate(engine, requests)
  for start in range(0, 200, 20):
    part = simple.generate(requests[start : start + 20])
    for result, (ids, logprobs) in zip(results[start:], part):
      assert result.response_ids == ids
      np.testing.assert_allclose(result.logprobs, logprobs, atol=1e-5)
  # And what no cache was needed for: a whole forward pass a request.
  for request, result in zip(requests, results, strict=True):
    prompt, ids = request.prompt_ids, result.response_ids
    logits = _logits(params, prompt + ids)[len(prompt) - 1 : -1]
    assert ids == tuple(logits.argmax(axis=1)), request


@pytest.mark.slow
def test_a_thousand_requests_in_any_order_of_arrival(engine):
  requests = _prefixed(1000, seed=34)
  expected = [_bits(r) for r in _generate(engine, requests)]

  async def scattered(seed):
    rng = random.Random(seed)

    async def one(request):
      await asyncio.sleep(rng.random() * 5)
      return await engine.generate(request)

    return await asyncio.gather(*map(one, requests))

  for seed in range(3):
    assert [_bits(r) for r in asyncio.run(scattered(seed))] == expected


# Stops.


def test_a_stop_id_ends_the_response_and_stays(engine):
  free = _generate(engine, [_request(5, key=4, max_new_tokens=12)])[0]
  for length in (1, 5, 6, 11, 12):  # Around the edges of a chunk of 5.
    stop = free.response_ids[length - 1]
    first = free.response_ids.index(stop) + 1
    (result,) = _generate(
      engine, [_request(5, key=4, max_new_tokens=12, stop_ids=(stop, 1))]
    )
    # 1 may come sooner, by chance.
    if 1 in free.response_ids[:first]:
      first = free.response_ids.index(1) + 1
    assert result.response_ids == free.response_ids[:first]
    assert result.logprobs == free.logprobs[:first]
    assert result.finish_reason == 'stop'


@pytest.mark.parametrize('chunk', [1, 12])
def test_stop_fn_does_not_depend_on_the_chunk(engine, params, chunk):
  requests = [r for r in _mixed(80, seed=3) if _is_cheap(r)]
  assert len({len(r.prompt_ids) for r in requests if r.stop_fn}) == 7
  expected = [_bits(r) for r in _together(engine, requests)]
  assert len({len(r[0]) for r in expected}) > 6
  config = dataclasses.replace(_CONFIG, decode_chunk=chunk)
  with engine_lib.Engine(_MODEL, config, params) as other:
    results = _together(other, requests)
  assert [_bits(r) for r in results] == expected


def test_stop_fn_keeps_the_stop_and_drops_the_rest(engine):
  request = _request(5, key=4, max_new_tokens=12)
  (free,) = _generate(engine, [request])
  for keep in range(1, 13):
    stop_fn = lambda ids, keep=keep: keep if len(ids) >= keep else None
    (result,) = _generate(engine, [dataclasses.replace(request, stop_fn=stop_fn)])
    assert result.response_ids == free.response_ids[:keep]
    assert result.logprobs == free.logprobs[:keep]
    assert result.finish_reason == 'stop'


def test_length_is_the_requests_own(engine):
  requests = [_request(5, key=4, max_new_tokens=n) for n in (1, 7, 12, 5)]
  results = _together(engine, requests)
  for request, result in zip(requests, results, strict=True):
    assert len(result.response_ids) == request.sampling.max_new_tokens
    assert result.response_ids == results[2].response_ids[: len(result.response_ids)]
    assert result.finish_reason == 'length'


# Many callers.


def test_many_coroutines_of_two_event_loops(engine):
  requests = _mixed(300, seed=7)
  before = engine.stats()
  outcomes = {}

  def client(name, part):
    outcomes[name] = [_bits(r) for r in _generate(engine, part)]

  threads = [
    threading.Thread(target=client, args=(i, requests[i::2])) for i in range(2)
  ]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert outcomes[0][:5] == [_bits(r) for r in _generate(engine, requests[0:10:2])]
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
  # Prefill, decode truncating or not, and room for its rows.
  assert len(engine._programs._found) == 4
  _generate(engine, _mixed(8, seed=11))
  # A chunk of decoding is soon over: describing its program anew takes as long.
  monkeypatch.setattr(jax, 'eval_shape', None)
  jax.monitoring.register_event_duration_secs_listener(listen)
  try:
    jax.jit(lambda x: x * 3 + 1)(1.0)
    assert events, 'the listener hears nothing'
    events.clear()
    _generate(engine, _mixed(500, seed=12))
  finally:
    jax.monitoring.unregister_event_duration_listener(listen)
  assert not events
  assert engine.compilations == compiled == engine.stats().compilations


def test_engines_of_equal_shapes_share_their_programs(engine, own_engine, params):
  assert len(engine._programs._found) == 4
  _generate(own_engine, _mixed(20))
  assert own_engine.compilations == 0
  # Of what no program is made from they may differ.
  config = dataclasses.replace(
    _CONFIG, prefix_cache=False, prefill_burst=3, read_share=0.9, coalesce_share=0.1
  )
  with engine_lib.Engine(_MODEL, config, params) as other:
    other.warmup()
    assert other.compilations == 0


def test_requests_join_as_others_leave(own_engine):
  requests = [
    _request(5, key=i, max_new_tokens=n)
    for i, n in enumerate((10, 5, 5, 5, 5, 5, 5, 5))
  ]
  results = _together(own_engine, requests)
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
  requests = [_request(27, seed=i, key=i) for i in range(2)]
  expected = [_bits(_generate(engine, [r])[0]) for r in requests]
  config = dataclasses.replace(
    _CONFIG, kv_tokens=kv_tokens, read_share=1.0, coalesce_share=0.0
  )
  others = []
  with (
    engine_lib.Engine(_MODEL, config, params) as other,
    futures.ThreadPoolExecutor(1) as threads,
  ):
    read = other._prefill

    def prefill(rows):
      read(rows)
      if not others:  # The device has the first piece; now the second one comes.
        others.append(threads.submit(_generate, other, requests[1:]))
        while not other.stats().queued:
          time.sleep(0.01)
          assert not others[0].done()

    other._prefill = prefill
    (first,) = _generate(other, requests[:1])
    (second,) = others[0].result(60)
    assert other.stats().decode_steps == steps
  assert [_bits(first), _bits(second)] == expected


def test_the_first_request_of_an_idle_engine_waits_for_company(params, engine):
  requests = [_request(27, seed=i, key=i) for i in range(2)]
  expected = [_bits(_generate(engine, [r])[0]) for r in requests]
  config = dataclasses.replace(_CONFIG, prefill_pieces=2, coalesce_share=1.0)
  with (
    engine_lib.Engine(_MODEL, config, params) as other,
    futures.ThreadPoolExecutor(2) as threads,
  ):
    other._totals.update(prefill_calls=1, prefill_seconds=1e6)  # As if so slow.
    found = [threads.submit(_generate, other, requests[:1])]
    while not other.stats().requests:
      time.sleep(0.01)
    time.sleep(0.2)  # In which it would be done.
    now = other.stats()
    assert (now.queued, now.running, now.completed) == (1, 0, 0)
    found.append(threads.submit(_generate, other, requests[1:]))
    assert [_bits(*one.result(60)) for one in found] == expected
    assert other.stats().decode_steps == 8


@pytest.mark.parametrize(
  'burst, share, most',
  # Two thirds have been read: not thin, or thin and as patient as that.
  [(4, 0.5, 1), (1, 1.0, 1), (2, 1.0, 2)],
)
def test_long_prompts_do_not_hold_up_who_decodes(params, engine, burst, share, most):
  # A prompt's last token is not read ahead.
  short = [_request(1, seed=i, key=i, max_new_tokens=12) for i in range(4)]
  long = [_request(27, seed=i, key=9 + i) for i in range(2)]  # 8 pieces.
  expected = [_bits(r) for r in _generate(engine, short + long)]
  config = dataclasses.replace(
    _CONFIG, prefill_pieces=2, decode_chunk=1, prefill_burst=burst, read_share=share
  )
  busy, release, calls = threading.Event(), threading.Event(), []

  def wait(ids):
    busy.set()
    assert release.wait(60)
    calls.append(('decode', len(ids)))

  short[0] = dataclasses.replace(short[0], stop_fn=wait)

  async def run(other):
    held = _hold(other)
    tasks = [asyncio.create_task(other.generate(r)) for r in short]
    await _until(lambda: other.stats().queued == 4)
    held.set()  # So that they get their slots together.
    assert await asyncio.to_thread(busy.wait, 60)
    tasks += [asyncio.create_task(other.generate(r)) for r in long]
    await _until(lambda: other.stats().queued == 2)
    calls.clear()
    release.set()
    return await asyncio.gather(*tasks)

  with engine_lib.Engine(_MODEL, config, params) as other:
    read = other._prefill
    other._prefill = lambda rows: (calls.append('read'), read(rows))
    assert [_bits(r) for r in asyncio.run(run(other))] == expected
  runs = [list(same) for kind, same in itertools.groupby(calls, type)]
  reads = [len(run) for run in runs if run[0] == 'read']
  assert sum(reads) == 4 and max(reads) == most
  # A token each of the others in between.
  assert [len(run) for run in runs[1:-1] if run[0] != 'read'] == (
    [1] * (len(reads) - 1)
  )


# Parameters.


def test_time_to_compile_is_no_time_of_the_device(own_engine, monkeypatch):
  ahead = [0.0]
  clock = lambda: time.monotonic() + ahead[0]
  monkeypatch.setattr(engine_lib, 'time', types.SimpleNamespace(monotonic=clock))
  programs, found = own_engine._programs, set()

  def slow(name):
    get = getattr(programs, name)

    def compiles(*args):
      if (name, *args) not in found:
        found.add((name, *args))
        ahead[0] += 1000.0
      return get(*args)

    monkeypatch.setattr(programs, name, compiles)

  slow('prefill')
  slow('decode')
  _generate(own_engine, [_request(20)])
  more = [_request(20, seed=1), _request(20, seed=2, top_k=3)]
  _generate(own_engine, more * 2)  # None of whom waits for company.
  assert len(found) == 3
  now = own_engine.stats()
  assert 0 < now.prefill_seconds + now.decode_seconds < 900


def test_time_without_requests_is_not_time_that_the_device_stands_idle(
  own_engine, monkeypatch
):
  ahead = [0.0]
  clock = lambda: time.monotonic() + ahead[0]
  monkeypatch.setattr(engine_lib, 'time', types.SimpleNamespace(monotonic=clock))
  _generate(own_engine, [_request(5)])
  before = own_engine.stats().pending_seconds
  ahead[0] = 1000.0  # Since nobody asked for anything.
  _generate(own_engine, [_request(6)])
  now = own_engine.stats()
  assert now.decode_seconds + now.prefill_seconds <= now.pending_seconds
  assert now.pending_seconds - before < 900


def test_new_parameters_take_effect_and_are_named(own_engine):
  request = _request(5, key=4, max_new_tokens=12)
  (old,) = _generate(own_engine, [request])
  new_params = _init(1)
  own_engine.update_params(new_params, 9)
  assert own_engine.params_version == 9
  (new,) = _generate(own_engine, [request])
  assert (old.params_version, new.params_version) == (0, 9)
  assert old.response_ids != new.response_ids
  np.testing.assert_allclose(
    new.logprobs, _oracle(new_params, request, new.response_ids)[0], atol=1e-5
  )


def test_a_running_request_ends_with_the_parameters_it_began_with(own_engine):
  request = _request(5, key=4, max_new_tokens=12)
  (old,) = _generate(own_engine, [request])
  new_params = _init(1)

  def update_on_the_way(ids):
    if len(ids) < 12:
      own_engine.update_params(new_params, 1)

  (result,) = _generate(
    own_engine, [dataclasses.replace(request, stop_fn=update_on_the_way)]
  )
  assert own_engine.params_version == 1
  assert result.params_version == 0
  assert _bits(result) == _bits(old)


def test_a_request_after_an_update_waits_for_it(own_engine):
  busy, release = threading.Event(), threading.Event()

  def wait(unused_ids):  # And goes on: twelve tokens are three chunks.
    busy.set()
    assert release.wait(60)

  async def run():
    running = asyncio.create_task(
      own_engine.generate(_request(5, max_new_tokens=12, stop_fn=wait))
    )
    assert await asyncio.to_thread(busy.wait, 60)
    own_engine.update_params(_init(1), 1)
    later = asyncio.create_task(own_engine.generate(_request(5)))
    await _until(lambda: own_engine.stats().queued == 1)
    release.set()
    return await asyncio.gather(running, later)

  versions = [result.params_version for result in asyncio.run(run())]
  assert versions == [0, 1]


def test_the_caller_may_donate_its_parameters():
  params = _init(2)
  request = _request(5, key=4)
  with engine_lib.Engine(_MODEL, _CONFIG, params) as engine:
    jax.tree.map(lambda x: x.delete(), params)
    (first,) = _generate(engine, [request])
    again = _init(2)
    engine.update_params(again, 1)
    consume = jax.jit(lambda p: jax.tree.map(lambda x: x * 0.0, p), donate_argnums=0)
    jax.block_until_ready(consume(again))
    (second,) = _generate(engine, [request])
  assert _bits(first) == _bits(second)


def test_parameters_that_lie_on_several_devices_may_be_donated_too(own_engine):
  params = _init(2)
  expected = jax.tree.map(np.asarray, params)
  everywhere = sharding.make_mesh(data=2, devices=jax.devices()[:2])
  params = jax.tree.map(
    sharding.put, params, sharding.param_shardings(_MODEL, everywhere)
  )
  placed = own_engine._place(params)
  jax.tree.map(lambda x: x.delete(), params)
  jax.tree.map(np.testing.assert_array_equal, placed, expected)


def test_parameters_of_another_shape_are_refused(own_engine):
  wider = dataclasses.replace(_MODEL, d_ff=64)
  params = jax.eval_shape(lambda: model.init_params(wider, jax.random.key(0)))
  with pytest.raises(ValueError, match='gate.*64.*48'):
    own_engine.update_params(params, 1)
  assert own_engine.params_version == 0


@pytest.mark.parametrize(  # 2 key heads, 4 of queries.
  'devices', [pytest.param(2, marks=pytest.mark.slow), 4]
)
def test_parameters_over_devices_sample_alike(engine, params, devices):
  mesh = sharding.make_mesh(1, devices, 1, jax.devices()[:devices])
  hand = handover.Handover(_MODEL, mesh, split=True)
  there = hand(
    jax.tree.map(sharding.put, params, sharding.param_shardings(_MODEL, mesh))
  )
  requests = [r for r in _mixed(60, seed=21) if _is_cheap(r)]
  assert len(requests) > 10
  with engine_lib.Engine(
    _MODEL, _CONFIG, there, sharding=hand.local, copy=False
  ) as other:
    results = _generate(other, requests)
  for a, b in zip(results, _generate(engine, requests), strict=True):
    assert a.response_ids == b.response_ids
    np.testing.assert_allclose(a.logprobs, b.logprobs, atol=1e-5)
  # So does an engine that is given parameters in its own layout, uncopied.
  apart = engine_lib.as_read(_MODEL, _CONFIG, there)
  assert all(x.is_deleted() for x in jax.tree.leaves(there['layers']))
  where = jax.tree.map(lambda x: x.sharding, apart)
  with engine_lib.Engine(_MODEL, _CONFIG, apart, sharding=where, copy=False) as other:
    again = _generate(other, requests)
    assert other.compilations == 0
  assert [_bits(r) for r in again] == [_bits(r) for r in results]


def test_programs_over_several_devices_are_launched_one_at_a_time(engine, params):
  mesh = sharding.make_mesh(data=1, fsdp=1, tensor=2, devices=jax.devices()[:2])
  where = sharding.param_shardings(_MODEL, mesh)
  with engine_lib.Engine(_MODEL, _CONFIG, params, sharding=where) as other:
    other.warmup(truncates=[False])

    async def main():
      with launches.over(2):  # As while another thread launches.
        waits = asyncio.create_task(other.generate(_request()))
        goes_on = await engine.generate(_request())  # On one device.
        await asyncio.sleep(0.2)
        assert not waits.done()
        with pytest.raises(TimeoutError):
          await asyncio.wait_for(asyncio.to_thread(other.update_params, params, 1), 0.2)
      return goes_on, await waits

    alone, over_two = asyncio.run(main())
  assert alone.response_ids == over_two.response_ids


def test_prompts_beyond_the_context_are_refused(params):
  config = dataclasses.replace(_CONFIG, max_prompt_tokens=64)
  with pytest.raises(ValueError, match='64.*40'):
    engine_lib.Engine(_MODEL, config, params)


# Failures.


def test_a_prompt_too_long_is_refused_at_once(engine):
  before = engine.stats()
  with pytest.raises(api.PromptTooLong, match='33.*32'):
    _generate(engine, [_request(33, max_new_tokens=1)])
  with pytest.raises(api.PromptTooLong, match='30.*12.*40'):
    _generate(engine, [_request(30, max_new_tokens=12)])
  assert engine.stats() == before


def test_a_failing_stop_fn_fails_only_its_own_request(engine):
  before = engine.stats()

  def fail(ids):
    raise KeyError(len(ids))

  good = [_request(5, key=i) for i in range(4)]
  bad = dataclasses.replace(good[0], stop_fn=fail)

  async def run():
    return await asyncio.gather(
      *(engine.generate(r) for r in [bad, *good]), return_exceptions=True
    )

  error, *results = asyncio.run(run())
  assert isinstance(error, api.EngineError)
  assert isinstance(error.__cause__, KeyError)
  assert [_bits(r) for r in results] == [_bits(r) for r in _generate(engine, good)]
  after = engine.stats()
  assert after.failed - before.failed == 1
  assert after.completed - before.completed == 8


def test_a_failing_call_fails_its_requests_and_no_others(own_engine, monkeypatch):
  request = _request(5)
  (expected,) = _generate(own_engine, [request])
  with monkeypatch.context() as patch:

    def fail(*unused_args):
      raise RuntimeError('out of memory')

    patch.setattr(own_engine._programs, 'prefill', fail)
    with pytest.raises(api.EngineError, match='own.*out of memory') as info:
      _generate(own_engine, [_request(6)])
    assert isinstance(info.value.__cause__, RuntimeError)
  (result,) = _generate(own_engine, [request])
  assert _bits(result) == _bits(expected)
  assert own_engine.stats().failed == 1


def test_a_stop_fn_that_panics_fails_only_its_own_request(own_engine):
  class Panic(BaseException):
    """As of a tokenizer in another language."""

  def fail(unused_ids):
    raise Panic

  with pytest.raises(api.EngineError, match='Panic'):
    _generate(own_engine, [_request(5, stop_fn=fail)])
  assert len(_generate(own_engine, [_request(5)])[0].response_ids) == 8


def test_a_top_k_beyond_the_vocabulary_keeps_all(own_engine):
  request = _request(5, top_k=2**40, temperature=0.0)
  plain = _request(5, temperature=0.0)
  results = _generate(own_engine, [request, plain])
  assert results[0].response_ids == results[1].response_ids


def test_an_engine_without_room_for_new_pages_ends(own_engine, monkeypatch):
  def fail(*unused_args):
    raise RuntimeError('out of memory')

  monkeypatch.setattr(own_engine._programs, 'decode', fail)
  monkeypatch.setattr(own_engine, '_make_pool', fail)

  async def run():
    requests = [_request(5, key=i) for i in range(20)]
    return await asyncio.gather(
      *map(own_engine.generate, requests), return_exceptions=True
    )

  errors = asyncio.run(asyncio.wait_for(run(), 60))
  assert {type(e) for e in errors} == {api.EngineError, api.EngineClosed}


def test_a_call_that_fails_late_keeps_what_was_done(own_engine, monkeypatch):
  calls = []

  def once(*arrays):
    calls.append(1)
    if len(calls) > 1:
      raise RuntimeError('device lost')
    return decode(*arrays)

  decode = own_engine._programs.decode(False)
  monkeypatch.setattr(own_engine._programs, 'decode', lambda *_: once)
  requests = [_request(5, max_new_tokens=n) for n in (1, 8)]

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
  good = _init(0)
  own_engine.update_params(jax.tree.map(lambda x: x * np.nan, good), 1)
  with pytest.raises(api.EngineError, match='not finite'):
    _generate(own_engine, [_request(5)])
  own_engine.update_params(good, 2)
  assert _generate(own_engine, [_request(5)])[0].params_version == 2


def test_one_request_that_is_not_finite_fails_alone(own_engine, params):
  good = [_request(n) for n in (27, 9, 20)]
  expected = [_bits(r) for r in _generate(own_engine, good)]
  met = {i for r in good for i in r.prompt_ids} | {i for e in expected for i in e[0]}
  # As a token that was added to the vocabulary and never trained.
  broken = min(set(range(_V)) - met)
  bad = dataclasses.replace(
    _request(3, stop_fn=lambda ids: pytest.fail('was shown what it drew')),
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
  assert [_bits(r) for r in results] == expected


def test_pages_are_made_anew_while_others_may_ask(own_engine, monkeypatch):
  make, seen = own_engine._new_pool, []
  threads = futures.ThreadPoolExecutor(1)

  def slowly():
    seen.append(threads.submit(own_engine.stats).result(10))
    return make()

  monkeypatch.setattr(own_engine, '_new_pool', slowly)
  own_engine.update_params(jax.tree.map(lambda x: x * np.nan, _init(0)), 1)
  with pytest.raises(api.EngineError, match='not finite'):
    _generate(own_engine, [_request(5)])
  own_engine.update_params(_init(0), 2)
  assert _generate(own_engine, [_request(5)])[0].params_version == 2
  assert [now.failed for now in seen] == [1]
  threads.shutdown()


def test_what_is_not_finite_reaches_nobody_after_its_caller_has_left(
  own_engine, monkeypatch
):
  (expected,) = _generate(own_engine, [_request(5)])
  own_engine.update_params(jax.tree.map(lambda x: x * np.nan, _init(0)), 1)
  read, release = threading.Event(), threading.Event()
  prefill = own_engine._prefill

  def prefill_and_wait(rows):
    prefill(rows)
    read.set()
    assert release.wait(60)

  monkeypatch.setattr(own_engine, '_prefill', prefill_and_wait)

  async def run():
    task = asyncio.create_task(own_engine.generate(_request(27)))
    assert await asyncio.to_thread(read.wait, 60)
    task.cancel()  # Read, and never sampled from.
    with pytest.raises(asyncio.CancelledError):
      await task
    own_engine.update_params(_init(0), 2)
    release.set()
    return await asyncio.gather(*(own_engine.generate(_request(5)) for _ in range(6)))

  assert {_bits(r) for r in asyncio.run(run())} == {_bits(expected)}


def test_a_cancelled_caller_drops_its_queued_request(own_engine):
  release = _hold(own_engine)

  async def run():
    dropped = asyncio.create_task(own_engine.generate(_request(5, key=1)))
    kept = asyncio.create_task(own_engine.generate(_request(5, key=2)))
    await _until(lambda: own_engine.stats().queued == 2)
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
  (expected,) = _generate(own_engine, [_request(5, key=2)])
  busy, release = threading.Event(), threading.Event()

  def wait(unused_ids):
    busy.set()
    assert release.wait(60)

  async def run():
    requests = [_request(5, key=1, stop_fn=wait), _request(5, key=2)]
    tasks = [asyncio.create_task(own_engine.generate(r)) for r in requests]
    assert await asyncio.to_thread(busy.wait, 60)
    tasks[0].cancel()
    with pytest.raises(asyncio.CancelledError):
      await tasks[0]
    release.set()
    return await tasks[1]

  assert _bits(asyncio.run(run())) == _bits(expected)
  assert own_engine.stats().cancelled == 1


def test_a_cancelled_caller_s_slot_and_pages_go_to_the_next(params):
  config = dataclasses.replace(_CONFIG, slots=1, prefix_cache=False)
  with engine_lib.Engine(_MODEL, config, params) as engine:
    busy, release = threading.Event(), threading.Event()

    def wait(unused_ids):
      busy.set()
      assert release.wait(60)

    async def run():
      first = asyncio.create_task(
        engine.generate(_request(20, max_new_tokens=12, stop_fn=wait))
      )
      second = asyncio.create_task(engine.generate(_request(5)))
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


# Time of a request.


@pytest.fixture(name='clocks')
def _clocks(monkeypatch):
  """Moves the engine's clock ahead, and the meter's where it should."""
  ahead = types.SimpleNamespace(idle=0.0, busy=0.0)
  meter = device_time.Meter(lambda: time.monotonic() + ahead.busy)
  monkeypatch.setattr(device_time, 'METER', meter)
  clock = lambda: time.monotonic() + ahead.idle + ahead.busy
  monkeypatch.setattr(engine_lib, 'time', types.SimpleNamespace(monotonic=clock))
  monkeypatch.setattr(scheduling, 'time', types.SimpleNamespace(monotonic=clock))
  return ahead


def _timed(request):
  """Returns a request, and the list that gets its times."""
  timings = []
  return dataclasses.replace(request, on_end=timings.append), timings


def test_the_times_of_a_request_that_is_done(clocks, own_engine):
  def slow(ids):  # Sampling, as the engine waits for it.
    clocks.busy += 100.0 if len(ids) < 12 else 0.0

  request, timings = _timed(_request(5, max_new_tokens=12, stop_fn=slow))
  release = _hold(own_engine)

  async def run():
    task = asyncio.create_task(own_engine.generate(request))
    await _until(lambda: own_engine.stats().queued == 1)
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


def test_time_to_compile_is_a_stall_of_the_device(clocks, own_engine, monkeypatch):
  programs = own_engine._programs
  get = programs.prefill

  def compiles():
    clocks.idle, programs.prefill = clocks.idle + 1000.0, get
    return get()

  def slow(unused_ids):
    clocks.busy += 5000.0

  # What the device did for earlier requests is no time of this one.
  _generate(own_engine, [_request(3, stop_fn=slow, max_new_tokens=1)])
  monkeypatch.setattr(programs, 'prefill', compiles)
  request, timings = _timed(_request(5))
  (result,) = _generate(own_engine, [request])
  (timing,) = timings
  assert timing.stalled_seconds >= 1000
  assert timing.model_seconds - timing.stalled_seconds < 100
  assert result.stalled_seconds >= 1000


def test_what_others_run_on_the_device_is_a_stall(clocks, params):
  with engine_lib.Engine(_MODEL, _CONFIG, params) as engine:
    engine.warmup()

    def with_others(ids):
      if len(ids) < 12:  # Twice: after 5 and 10 tokens.
        with device_time.METER.used():  # Such as an update of the trainer.
          clocks.busy += 100.0

    request, timings = _timed(_request(5, max_new_tokens=12, stop_fn=with_others))
    _generate(engine, [request])
  (timing,) = timings
  assert 200 <= timing.model_seconds < 250
  assert 100 <= timing.stalled_seconds < 150


def test_a_cancelled_request_tells_its_times(clocks, own_engine):
  busy, release = threading.Event(), threading.Event()

  def wait(unused_ids):
    busy.set()
    assert release.wait(60)

  first, times_of_first = _timed(_request(5, key=1, stop_fn=wait))
  waiting = [_timed(_request(5, key=k)) for k in range(_CONFIG.slots)]

  async def run():
    tasks = [asyncio.create_task(own_engine.generate(first))]
    assert await asyncio.to_thread(busy.wait, 60)
    tasks += [asyncio.create_task(own_engine.generate(r)) for r, _ in waiting]
    await _until(lambda: own_engine.stats().queued == len(waiting))
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

  request, timings = _timed(_request(5, stop_fn=fail))
  with pytest.raises(api.EngineError):
    _generate(own_engine, [request])
  (timing,) = timings
  assert timing.model_seconds > 0


def test_closing_fails_what_is_unfinished_and_ends_the_thread(params):
  engine = engine_lib.Engine(_MODEL, _CONFIG, params, name='doomed')
  busy, release = threading.Event(), threading.Event()

  def wait(unused_ids):
    busy.set()
    assert release.wait(60)

  async def run():
    running = asyncio.create_task(engine.generate(_request(5, stop_fn=wait)))
    assert await asyncio.to_thread(busy.wait, 60)
    queued = asyncio.create_task(engine.generate(_request(9)))
    await _until(lambda: engine.stats().queued == 1)
    closing = asyncio.create_task(asyncio.to_thread(engine.close))
    await _until(lambda: engine._closing)
    release.set()
    await closing
    for task in (running, queued):
      with pytest.raises(api.EngineClosed, match='doomed'):
        await asyncio.wait_for(task, 60)
    with pytest.raises(api.EngineClosed):
      await engine.generate(_request(5))

  asyncio.run(run())
  engine.close()
  assert all(t.name != 'engine-doomed' for t in threading.enumerate())
  now = engine.stats()
  assert (now.requests, now.failed, now.queued, now.running) == (2, 2, 0, 0)


def test_a_loop_that_is_gone_does_not_stop_the_engine(own_engine):
  release = _hold(own_engine)
  loop = asyncio.new_event_loop()
  orphan = loop.create_task(own_engine.generate(_request(5)))
  loop.run_until_complete(asyncio.sleep(0.01))
  loop.close()
  assert own_engine.stats().queued == 1
  release.set()
  (result,) = _generate(own_engine, [_request(6)])
  assert len(result.response_ids) == 8
  assert not orphan.done()
  orphan._log_destroy_pending = False
