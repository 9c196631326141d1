import asyncio
import dataclasses
import threading

import jax
import numpy as np
import pytest

from agentflow_jax import records
from agentflow_jax.agents import fakes, language_model, prompts, rollout
from agentflow_jax.assembly import engine_model
from agentflow_jax.core import model as model_lib
from agentflow_jax.inference import api, engine as engine_lib
from agentflow_jax.tokenization import tokenizers

_KEY = records.RequestKey(0, records.Purpose.TRAIN, 0, 'q', 0)
_PROMPT = (records.Segment('user', 'Paris'),)


@pytest.fixture(scope='module')
def tokenizer(tmp_path_factory):
  path = tmp_path_factory.mktemp('t') / 'tokenizer.model'
  tokenizers.train_sentencepiece(['Paris is a city'] * 20, path, 285)
  return tokenizers.SentencePieceTokenizer(path)


class _Engine:
  """Answers with what the test says, and keeps the request."""

  def __init__(self, answer):
    self._answer = answer
    self.request = None

  async def generate(self, request):
    self.request = request
    if isinstance(self._answer, Exception):
      raise self._answer
    return self._answer


def _generate(engine, tokenizer, sampling=records.SamplingSpec()):
  model = engine_model.EngineModel(engine, tokenizer)
  return asyncio.run(model.generate(_PROMPT, sampling, _KEY))


def test_responses_are_kept_where_somebody_counts_them(tokenizer):
  engine = _Engine(api.Result((5, 6), (-1.0, -1.0), 'stop', 0, 0.0, 0.0))
  model = engine_model.EngineModel(engine, tokenizer)

  def generate():
    asyncio.run(model.generate(_PROMPT, records.SamplingSpec(), _KEY))

  generate()
  with model.keeping() as kept:
    generate()
    generate()
  generate()
  assert len(kept) == 2
  prompt_ids, response_ids = kept[0]
  assert prompt_ids.tolist() == list(tokenizer.render(_PROMPT))
  assert response_ids.tolist() == [5, 6]
  assert prompt_ids.dtype == response_ids.dtype == np.int32


def test_ids_and_logprobs_are_passed_on_as_sampled(tokenizer):
  ids = (*tokenizer.encode('a city'), *tokenizer.stop_ids)
  logprobs = tuple(-0.1 * i for i in range(len(ids)))
  engine = _Engine(api.Result(ids, logprobs, 'stop', 7, 0.25, 0.5, None, 0.125))
  sampling = records.SamplingSpec(
    temperature=0.5, top_k=3, top_p=0.9, min_p=0.1, max_new_tokens=9
  )
  completion = _generate(engine, tokenizer, sampling)
  assert completion.text == 'a city'
  assert completion.response_ids == ids
  assert completion.logprobs == logprobs
  assert completion.params_version == 7
  assert completion.prompt_ids == tuple(tokenizer.render(_PROMPT))
  assert completion.stalled_seconds == 0.125
  # Every knob reaches the engine (a temperature that does not is a pitfall).
  assert engine.request.sampling == records.SamplingSpec(0.5, 3, 0.9, 0.1, 9)
  assert engine.request.key_words == _KEY.words()
  assert engine.request.stop_ids == tokenizer.stop_ids
  assert engine.request.stop_fn is None


def test_sets_are_passed_on_as_recorded(tokenizer):
  sets = tuple(np.array(ids, np.int32) for ids in ([5, 70_000], [6], [1, 2, 3]))
  result = api.Result((5, 6, 2), (-0.1,) * 3, 'length', 0, 0.0, 0.0, sets)
  completion = _generate(_Engine(result), tokenizer, records.SamplingSpec(top_p=0.9))
  assert completion.kept == records.KeptSets.of((2, 1, 3), (5, 70_000, 6, 1, 2, 3))
  result = dataclasses.replace(result, kept=None)
  assert _generate(_Engine(result), tokenizer).kept is None


def test_a_stop_string_across_tokens_keeps_the_ids_that_complete_it(tokenizer):
  ids = tokenizer.encode('Paris is a city Paris')
  done = api.Result((1,), (0.0,), 'stop', 0, 0.0, 0.0)
  engine = _Engine(done)
  _generate(engine, tokenizer, records.SamplingSpec(stop=('s a c',)))
  stop_fn = engine.request.stop_fn
  kept = stop_fn(ids)
  assert 's a c' in tokenizer.decode(ids[:kept])
  assert 's a c' not in tokenizer.decode(ids[: kept - 1])
  assert stop_fn(ids[: kept - 1]) is None
  # The first stop counts, however late it is looked for.
  assert stop_fn(ids + ids) == kept


def test_a_plan_ends_with_its_last_line(tokenizer):
  text = 'Sub-Goal: city\nContext: Paris\nTool Name: city\nParis is a city\n'
  ids = tokenizer.encode(text)
  engine = _Engine(api.Result((1,), (0.0,), 'stop', 0, 0.0, 0.0))
  _generate(engine, tokenizer, records.SamplingSpec(stop_after='plan'))
  stop_fn = engine.request.stop_fn
  kept = stop_fn(ids)
  assert tokenizer.decode(ids[:kept]).splitlines()[-1] == 'Tool Name: city'
  assert tokenizer.decode(ids[:kept]).endswith('\n')
  # The same however late it is looked for, and none before.
  for count in range(len(ids) + 1):
    assert stop_fn(ids[:count]) == (kept if count >= kept else None)
  # Whichever comes first.
  _generate(
    engine, tokenizer, records.SamplingSpec(stop_after='plan', stop=('Tool', 'is a'))
  )
  assert tokenizer.decode(ids[: engine.request.stop_fn(ids)]).endswith('Tool')


def test_a_plan_in_the_thoughts_of_an_open_prompt_ends_nothing(tokenizer, monkeypatch):
  plan = 'Sub-Goal: city\nContext: Paris\nTool Name: city\n'
  ids = tokenizer.encode(f'{plan}</think>\n{plan}Paris is a city\n')
  engine = _Engine(api.Result(tuple(ids), (0.0,), 'stop', 0, 0.0, 0.0))
  spec = records.SamplingSpec(stop_after='plan')
  first = _generate(engine, tokenizer, spec)
  draft = tokenizer.decode(ids[: engine.request.stop_fn(ids)])
  assert not first.thinking and '</think>' not in draft
  monkeypatch.setattr(tokenizer, 'opens_thought', True)
  second = _generate(engine, tokenizer, spec)
  kept = tokenizer.decode(ids[: engine.request.stop_fn(ids)])
  assert second.thinking and kept.count('Tool Name: city') == 2
  # Ids and text keep everything.
  assert second.response_ids == tuple(ids)
  assert second.text == tokenizer.decode(ids) == first.text


@pytest.mark.parametrize(
  'raised, expected',
  [
    (api.PromptTooLong('8 > 4'), language_model.PromptTooLong),
    (api.EngineError('device'), language_model.Unreachable),
    (api.EngineClosed('closed'), language_model.Unreachable),
  ],
)
def test_engine_errors_say_whose_fault_they_are(tokenizer, raised, expected):
  with pytest.raises(expected, match=str(raised)):
    _generate(_Engine(raised), tokenizer)


class _Hangs:
  """An engine whose requests end when they are cancelled, with given times."""

  def __init__(self, *times):
    self._times = api.Timing(*times)

  async def generate(self, request):
    try:
      await asyncio.Event().wait()
    finally:
      request.on_end(self._times)


@pytest.mark.parametrize(
  'times, status',
  [
    ((0.0, 9.0, 0.0), records.Status.DEADLINE),
    ((9.0, 9.0, 0.0), records.Status.DEADLINE),
    ((9.0, 0.0, 0.0), records.Status.DEADLINE_INFRASTRUCTURE),
    # The device compiled, or had other work.
    ((0.0, 9.0, 9.0), records.Status.DEADLINE_INFRASTRUCTURE),
  ],
)
def test_sampling_alone_is_the_planners_time(tokenizer, times, status):
  model = engine_model.EngineModel(_Hangs(*times), tokenizer)
  agent = fakes.make_agent(
    model, [fakes.make_tool(fakes.echo)], rollout.RolloutConfig(deadline_seconds=0.1)
  )
  task = records.Task('q', 'Paris?', ('x',), 'match')
  done = asyncio.run(rollout.rollout(agent, task, _KEY))
  assert done.status is status, done.detail
  assert done.reward == (0.0 if status is records.Status.DEADLINE else None)


def test_a_slow_planner_scores_0_and_one_without_a_slot_is_not_scored(
  tokenizer, monkeypatch
):
  config = model_lib.ModelConfig(
    vocab_size=tokenizer.vocab_size,
    d_model=8,
    n_layers=1,
    n_heads=1,
    n_kv_heads=1,
    head_dim=8,
    d_ff=8,
    max_positions=256,
  )
  shapes = api.EngineConfig(
    slots=1, max_prompt_tokens=192, max_new_tokens=64, decode_chunk=1
  )
  samples, release = threading.Event(), threading.Event()
  decode = tokenizer.decode

  def slow_decode(ids):  # On the engine's thread, for each token.
    samples.set()
    assert release.wait(60)
    return decode(ids)

  monkeypatch.setattr(tokenizer, 'decode', slow_decode)
  params = jax.jit(lambda key: model_lib.init_params(config, key))(jax.random.key(0))
  task = records.Task('q', 'Paris?', ('x',), 'match')

  async def run(engine):
    agent = fakes.make_agent(
      engine_model.EngineModel(engine, tokenizer),
      [fakes.make_tool(fakes.echo)],
      rollout.RolloutConfig(deadline_seconds=1.0),
    )
    planner = dataclasses.replace(
      agent.planner,
      sampling=records.SamplingSpec(max_new_tokens=64, stop=('none',)),
      prompt=prompts.PromptConfig(system='', cards='names'),
    )
    agent = dataclasses.replace(agent, planner=planner)
    first = asyncio.create_task(rollout.rollout(agent, task, _KEY))
    while not samples.is_set():
      assert not first.done(), first.result().detail
      await asyncio.sleep(0.01)
    second = asyncio.create_task(rollout.rollout(agent, task, _KEY))
    done = await first, await second
    release.set()
    return done

  with engine_lib.Engine(config, shapes, params) as engine:
    engine.warmup((False,))
    slow, waited = asyncio.run(run(engine))
  assert (slow.status, slow.reward) == (records.Status.DEADLINE, 0.0)
  assert (waited.status, waited.reward) == (
    records.Status.DEADLINE_INFRASTRUCTURE,
    None,
  )


def test_request_keys_differ_in_every_field():
  keys = [
    _KEY,
    records.RequestKey(1, records.Purpose.TRAIN, 0, 'q', 0),
    records.RequestKey(0, records.Purpose.EVALUATE, 0, 'q', 0),
    records.RequestKey(0, records.Purpose.TRAIN, 1, 'q', 0),
    records.RequestKey(0, records.Purpose.TRAIN, 0, 'r', 0),
    records.RequestKey(0, records.Purpose.TRAIN, 0, 'q', 1),
    records.RequestKey(0, records.Purpose.TRAIN, 0, 'q', 0, turn=1),
    records.RequestKey(0, records.Purpose.TRAIN, 0, 'q', 0, module='x'),
    records.RequestKey(0, records.Purpose.TRAIN, 0, 'q', 0, attempt=1),
  ]
  words = [k.words() for k in keys]
  assert len(set(words)) == len(keys)
  # The same on every machine and in every process.
  assert _KEY.words() == records.RequestKey(0, records.Purpose.TRAIN, 0, 'q', 0).words()
  assert all(0 <= w < 2**32 for pair in words for w in pair)
