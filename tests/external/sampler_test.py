"""Servers that sample: what they are asked, believed, and given."""

import asyncio
import contextlib
import dataclasses
import time

import numpy as np
import pytest

from agentflow_jax import records
from agentflow_jax.external import fleet as fleet_lib
from agentflow_jax.external import proof, sampler as sampler_lib, sglang, versions, vllm
from agentflow_jax.external import wire
from agentflow_jax.inference import api
from tests.external import fake_server

_V = 12
_STOP = 11
_BOUNDS = proof.Bounds(mean=1e-4, p99=1e-3)
_KINDS = {'vllm': vllm.Vllm, 'sglang': sglang.SGLang}


def _table(seed=0):
  return np.random.default_rng(seed).normal(size=(_V, _V)) * 2


def _write(table):
  return lambda path: np.save(f'{path}/weights.npy', table)


def _score(table):
  """The trainer's side of a proof."""
  rows = fake_server.log_softmax(table)

  def score(probes):
    return [
      np.array([rows[a][b] for a, b in zip(p.ids, p.ids[1:], strict=False)])[
        -len(p.response_ids) :
      ]
      for p in probes
    ]

  return score


_PROBES = (proof.Probe((1, 2, 3), (4, 5, 6, 7)), proof.Probe((8,), (1, 9, 2, 10)))


@contextlib.contextmanager
def _servers(tmp_path, kind='vllm', count=1, **settings):
  with contextlib.ExitStack() as stack:
    fakes = [
      stack.enter_context(fake_server.FakeServer(fake_server.Table(_table()), kind))
      for _ in range(count)
    ]
    options = dict(patience_seconds=0.05, retry_seconds=60.0, max_kept=4)
    fleet = fleet_lib.Fleet(
      _KINDS[kind](),
      [wire.Wire(fake.url) for fake in fakes],
      fleet_lib.Settings(**options | settings),
      _BOUNDS,
      versions.Versions(tmp_path / 'served'),
    )
    made = sampler_lib.ExternalSampler(
      fleet,
      api.EngineConfig(max_prompt_tokens=8, max_new_tokens=6, max_kept=4),
      vocab_size=_V,
      max_positions=64,
    )
    yield made, fakes


def _give(made, table, version=0, probes=_PROBES):
  is_first = made.fleet.version < 0
  metrics = made.fleet.hand_over(version, _write(table), _score(table))
  if probes and is_first:
    metrics = made.fleet.probe_with(probes, _score(table)(probes))
  return metrics


def _request(prompt=(1, 2), seed=0, group='', stop_fn=None, **sampling):
  spec = dict(temperature=1.0, max_new_tokens=6) | sampling
  return api.Request(
    prompt_ids=prompt,
    key_words=(seed, 7),
    sampling=records.SamplingSpec(**spec),
    stop_ids=(_STOP,),
    stop_fn=stop_fn,
    group=group,
  )


def _ask(made, *requests):
  async def ask():
    try:
      return await asyncio.gather(*map(made.generate, requests), return_exceptions=True)
    finally:
      if made._reviving is not None:
        made._reviving.cancel()

  return asyncio.run(ask())


@pytest.mark.parametrize('kind', ['vllm', 'sglang'])
def test_logprobs_are_of_the_distribution_that_was_sampled(tmp_path, kind):
  table = _table(1)
  with _servers(tmp_path, kind) as (made, (fake,)):
    metrics = _give(made, table, version=3)
    assert metrics['external/servers'] == 1
    (one,) = _ask(made, _request(prompt=(1, 2), temperature=0.5))
    (cut,) = _ask(made, _request(prompt=(1, 2), temperature=0.5, top_k=3))
  rows = fake_server.log_softmax(table / 0.5)
  places = zip((2, *one.response_ids), one.response_ids, strict=False)
  np.testing.assert_allclose(one.logprobs, [rows[a][b] for a, b in places], rtol=1e-5)
  assert one.params_version == 3 and one.kept is None
  assert one.finish_reason == ('stop' if one.response_ids[-1] == _STOP else 'length')
  # With a truncation: renormalised over the sets, which come along.
  last = 2
  for token, logprob, kept in zip(
    cut.response_ids, cut.logprobs, cut.kept, strict=True
  ):
    inside = table[last][kept] / 0.5
    expected = fake_server.log_softmax(inside)[list(kept).index(token)]
    np.testing.assert_allclose(logprob, expected, rtol=1e-5)
    assert set(kept) == set(np.argsort(-table[last])[:3])
    last = token
  body, _ = fake.samples()
  sent = body['sampling_params']
  if kind == 'vllm':
    assert sent['top_k'] == 0 and sent['seed'] == (7 >> 1) and sent['logprobs'] == 0
    assert body['token_ids'] == [1, 2] and body['return_token_ids']
  else:
    assert sent['top_k'] == -1 and 'sampling_seed' not in sent
    assert body['input_ids'] == [1, 2] and body['return_logprob']
  assert sent['ignore_eos'] and sent['stop_token_ids'] == [_STOP]


def test_a_truncating_request_keeps_no_more_than_is_recorded(tmp_path):
  with _servers(tmp_path) as (made, (fake,)):
    _give(made, _table())
    _ask(made, _request(top_p=0.9), _request(top_p=0.9, top_k=2, seed=1))
    sent = {body['sampling_params']['top_k'] for body in fake.samples()}
  assert sent == {4, 2}


def test_a_stop_is_cut_on_the_ids(tmp_path):
  def stop_fn(ids):
    return 2 if len(ids) >= 2 else None

  with _servers(tmp_path) as (made, _):
    _give(made, np.where(np.arange(_V) == _STOP, -50, _table()))  # It never stops.
    (one,) = _ask(made, _request(stop_fn=stop_fn))
  assert len(one.response_ids) == len(one.logprobs) == 2
  assert one.finish_reason == 'stop'


_BAD = {
  'wrong_prompt': 'prompt',
  'wrong_ids': 'other ids',
  'missing_logprobs': 'no ',
  'cut_body': '',
  'short': 'ended for its length',
  'no_stop': 'without a stop',
  'outside': 'vocabulary',
  'loading': '503',
  'dead': '',
}


@pytest.mark.parametrize('kind', ['vllm', 'sglang'])
@pytest.mark.parametrize('fault', _BAD)
def test_an_answer_that_is_not_whole_is_infrastructure(tmp_path, kind, fault):
  with _servers(tmp_path, kind) as (made, (fake,)):
    _give(made, np.where(np.arange(_V) == _STOP, -50, _table()))
    fake.faults = {fault}
    (error,) = _ask(made, _request())
    assert isinstance(error, api.EngineError), error
    assert _BAD[fault] in str(error)
    assert not made.fleet.live and fake.url in made.fleet.why_not()
    assert made.stats().failed == 1


def test_sets_that_are_missing_are_infrastructure(tmp_path):
  with _servers(tmp_path) as (made, (fake,)):
    _give(made, _table())
    fake.faults = {'no_sets'}
    (error,) = _ask(made, _request(top_k=3))
  assert isinstance(error, api.EngineError) and 'sets' in str(error)


def test_what_goes_on_behind_a_stop_id_is_refused(tmp_path):
  only_stops = np.where(np.arange(_V) == _STOP, 50.0, _table())
  with _servers(tmp_path) as (made, (fake,)):
    _give(made, only_stops)
    fake.faults = {'beyond_stop'}
    (error,) = _ask(made, _request())
  assert isinstance(error, api.EngineError) and 'goes on behind' in str(error)


def test_a_request_that_is_refused_leaves_the_server_live(tmp_path):
  with _servers(tmp_path) as (made, (fake,)):
    _give(made, _table())
    fake.faults = {'refuses'}
    (error,) = _ask(made, _request())
    assert isinstance(error, api.EngineError) and 'too long' in str(error)
    assert made.fleet.live == [fake.url]
    (long,) = _ask(made, _request(prompt=tuple([1] * 9)))
  assert isinstance(long, api.PromptTooLong)


def test_a_group_stays_with_one_server_and_the_least_loaded_comes_first(tmp_path):
  with _servers(tmp_path, count=2) as (made, fakes):
    _give(made, _table())
    groups = [i // 6 for i in range(24)]
    requests = [
      _request(seed=i, group=f'g{g}', prompt=(g,)) for i, g in enumerate(groups)
    ]
    results = _ask(made, *requests)
    assert all(isinstance(r, api.Result) for r in results)
    asked = [{body['token_ids'][0] for body in fake.samples()} for fake in fakes]
  assert asked[0] | asked[1] == {0, 1, 2, 3} and not asked[0] & asked[1]
  assert len(asked[0]) == len(asked[1]) == 2


def test_a_server_that_dies_is_survived_and_comes_back_only_proved(tmp_path):
  new = _table(5)
  with _servers(tmp_path, count=2, retry_seconds=0.05) as (made, fakes):
    _give(made, new)
    fakes[0].faults = {'dead'}
    results = _ask(made, *[_request(seed=i) for i in range(8)])
    assert all(isinstance(r, api.Result) for r in results)
    assert made.fleet.live == [fakes[1].url]
    # It was started again, with the weights that it was started with at first.
    fakes[0].policy.table, fakes[0].label, fakes[0].faults = _table(), 'default', set()
    fakes[0].requests.clear()

    async def later():
      await made.generate(_request(seed=9))
      end = time.monotonic() + 20
      while len(made.fleet.live) < 2 and time.monotonic() < end:
        await asyncio.sleep(0.02)
      return made.fleet.live

    assert len(asyncio.run(later())) == 2
    paths = fakes[0].paths()
    assert '/collective_rpc' in paths and not fakes[0].samples()
    np.testing.assert_array_equal(fakes[0].policy.table, new)


def test_a_restarted_server_that_does_not_load_stays_out(tmp_path):
  with _servers(tmp_path, count=2, retry_seconds=0.05) as (made, fakes):
    _give(made, _table(5))
    fakes[0].faults = {'dead'}
    _ask(made, *[_request(seed=i) for i in range(4)])
    fakes[0].policy.table, fakes[0].faults = _table(), {'old_weights'}

    async def later():
      await made.generate(_request(seed=9))
      await asyncio.sleep(0.4)
      return made.fleet.live

    assert asyncio.run(later()) == [fakes[1].url]
    assert 'differ from the trainer' in made.fleet.why_not()
    assert not fakes[0].samples()[4:]


@pytest.mark.parametrize('kind', ['vllm', 'sglang'])
def test_new_weights_are_loaded_and_proved_before_a_request_goes_out(tmp_path, kind):
  with _servers(tmp_path, kind) as (made, (fake,)):
    _give(made, _table())
    fake.requests.clear()
    metrics = _give(made, _table(1), version=1)
    paths = fake.paths()
    assert metrics['external/indistinguishable'] == 0
    assert metrics['external/told_apart'] > 0 and metrics['external/probe_gap'] < 1e-6
    if kind == 'vllm':
      load = ['/pause?mode=wait', '/collective_rpc', '/reset_prefix_cache']
      load += ['/update_weight_version', '/resume']
      score = '/inference/v1/generate'
    else:
      load, score = ['/update_weights_from_disk'], '/generate'
      (body,) = [b for p, b in fake.requests if p == load[0]]
      assert body['abort_all_requests'] is False and body['flush_cache'] is True
    assert paths == ['/health', *load, score, score]
    assert fake.label.startswith('v000001-') and fake.loaded.endswith(fake.label)
    (one,) = _ask(made, _request())
  assert one.params_version == 1
  # What was handed over before is gone, the newest is there for a restart.
  assert [p.name for p in (tmp_path / 'served').iterdir()] == [fake.label]


@pytest.mark.parametrize('kind', ['vllm', 'sglang'])
def test_a_reload_that_did_not_happen_stops_the_run(tmp_path, kind):
  with _servers(tmp_path, kind, count=2) as (made, fakes):
    _give(made, _table())
    fakes[1].faults = {'old_weights'}
    with pytest.raises(fleet_lib.Refuted, match='weights before'):
      _give(made, _table(1), version=1)


def test_weights_that_no_probe_tells_apart_need_their_name(tmp_path):
  nearly = _table() + np.random.default_rng(3).normal(size=(_V, _V)) * 1e-5
  with _servers(tmp_path) as (made, (fake,)):
    _give(made, _table())
    assert _give(made, nearly, version=1)['external/indistinguishable'] == 1
    fake.faults = {'old_label', 'old_weights'}
    metrics = _give(made, nearly, version=2)
    assert metrics['external/servers'] == 0 and not made.fleet.live
    assert 'names them' in made.fleet.why_not()


def test_weights_that_are_not_the_trainers_are_refuted_at_first_sight(tmp_path):
  with _servers(tmp_path) as (made, (fake,)):
    fake.faults = {'old_weights'}
    with pytest.raises(fleet_lib.Refuted, match='mean_logprob_gap'):
      _give(made, _table(1))


def test_a_cache_that_is_not_reset_keeps_a_server_out(tmp_path, monkeypatch):
  monkeypatch.setattr(fleet_lib.time, 'sleep', lambda seconds: None)
  with _servers(tmp_path) as (made, (fake,)):
    _give(made, _table())
    fake.faults = {'no_cache_reset'}
    assert _give(made, _table(1), version=1)['external/servers'] == 0
    assert 'no success' in made.fleet.why_not()
    assert not fake.paused  # Whatever happens, it is not left paused.


def test_a_directory_that_is_half_written_is_never_loaded(tmp_path):
  def fails(path):
    np.save(f'{path}/weights.npy', _table(1))
    raise OSError('the disk is full')

  with _servers(tmp_path) as (made, (fake,)):
    _give(made, _table())
    loaded = fake.loaded
    with pytest.raises(OSError, match='full'):
      made.fleet.hand_over(1, fails, _score(_table(1)))
    assert fake.loaded == loaded
    (left,) = (tmp_path / 'served').iterdir()
    assert left.name == fake.label


def test_answers_of_other_weights_are_not_taken(tmp_path):
  with _servers(tmp_path) as (made, (fake,)):
    _give(made, _table())
    fake.label = 'somebody else'
    (error,) = _ask(made, _request())
  assert isinstance(error, api.EngineError) and 'somebody else' in str(error)


@pytest.mark.parametrize('kind', ['vllm', 'sglang'])
def test_an_adapter_has_a_new_name_for_each_version(tmp_path, kind):
  with _servers(tmp_path, kind, model='base') as (made, (fake,)):
    for version, seed in enumerate((0, 1, 2)):
      table = _table(seed)
      made.fleet.hand_over(version, _write(table), _score(table), is_adapter=True)
      if not version:
        made.fleet.probe_with(_PROBES, _score(table)(_PROBES))
    (name,) = fake.adapters
    assert name.startswith('v000002-')
    (one,) = _ask(made, _request())
    assert one.params_version == 2
    model = fake.samples()[-1]['model' if kind == 'vllm' else 'lora_path']
    assert model == name
    # The weights that the servers were started with, for a control.
    fake.policy.table = _table()
    made.fleet.hand_over(0, None, _score(_table()), is_adapter=True)
    _ask(made, _request())
    body = fake.samples()[-1]
    assert body['model' if kind == 'vllm' else 'lora_path'] == 'base'


def test_servers_that_never_answer_are_named(tmp_path):
  with _servers(tmp_path, patience_seconds=0.01, retry_seconds=0.05) as (made, (fake,)):
    fake.faults = {'loading'}
    assert '503' in made.fleet.wait_for_one() and fake.url in made.fleet.wait_for_one()
    fake.faults = set()
    assert made.fleet.wait_for_one() == ''
    fake.faults = {'loading'}
    assert _give(made, _table(), probes=())['external/servers'] == 0
    fake.faults = set()

    async def later():
      patient = dataclasses.replace(made.fleet.settings, patience_seconds=20.0)
      made.fleet.settings = patient
      return await made.generate(_request())

    # It is given the weights as soon as it can be asked.
    assert asyncio.run(later()).params_version == 0
    assert '/collective_rpc' in fake.paths()


def test_a_closed_sampler_says_so(tmp_path):
  with _servers(tmp_path) as (made, _):
    _give(made, _table())
    asyncio.run(made.aclose())
    assert made.is_closed
    (error,) = _ask(made, _request())
  assert isinstance(error, api.EngineClosed)


def test_a_stop_function_that_fails_is_the_requests_own_error(tmp_path):
  def stop_fn(ids):
    raise ZeroDivisionError('no')

  with _servers(tmp_path) as (made, (fake,)):
    _give(made, _table())
    (error,) = _ask(made, _request(stop_fn=stop_fn))
    assert isinstance(error, api.EngineError) and made.fleet.live == [fake.url]


def test_time_on_a_server_is_no_sampling_of_this_process(tmp_path):
  told = []
  with _servers(tmp_path) as (made, _):
    _give(made, _table())
    request = dataclasses.replace(_request(), on_end=told.append)
    (one,) = _ask(made, request)
  (timing,) = told
  assert timing.model_seconds == timing.stalled_seconds > 0
  assert one.stalled_seconds == one.model_seconds
