"""The server, over a socket, with plain HTTP and with the openai package."""

import asyncio
import dataclasses
import json
import math
import time

import httpx
import pytest

import agentflow_jax
from agentflow_jax import records
from agentflow_jax.agents.endpoints import client as client_lib
from agentflow_jax.agents.endpoints import settings as settings_lib
from agentflow_jax.assembly import standalone_model
from agentflow_jax.config import loading, schema
from agentflow_jax.serving import app, incoming, requests, server, writing
from tests.config import mini
from tests.serving import listening

_KEY = 'k-123'
_PLANNER = str(mini.ROOT / 'experiments' / 'geohop_planner')
_CHAT = {
  'model': 'geo',
  'messages': [
    {'role': 'system', 'content': 'Tools:\nsearch\npython'},
    {'role': 'user', 'content': 'Query: What is the capital of #1 Portugal?\nPlan:'},
  ],
}


@pytest.fixture(scope='module')
def model():
  base = loading.load(str(mini.ROOT / 'experiments' / 'quickstart.py'))
  config = dataclasses.replace(
    base,
    engine=dataclasses.replace(
      base.engine, slots=8, max_prompt_tokens=96, decode_chunk=4
    ),
  )
  with standalone_model.opened(config, _PLANNER) as opened:
    yield opened


@pytest.fixture(scope='module')
def url(model):
  service = app.Service(
    model, 'geo', max_new_tokens=32, key=_KEY, row_tokens=120, context=model.context
  )
  with listening.listening(app.make(service)) as base:
    yield f'{base}/v1'


@pytest.fixture
def client(url):
  headers = {'Authorization': f'Bearer {_KEY}'}
  with httpx.Client(base_url=url, headers=headers, timeout=60) as opened:
    yield opened


def _post(client, path, **body):
  response = client.post(path, json=body)
  assert response.status_code == 200, response.text
  return response.json()


def _events(client, path, **body):
  with client.stream('POST', path, json=body | {'stream': True}) as response:
    assert response.status_code == 200
    assert response.headers['content-type'].startswith('text/event-stream')
    lines = [line for line in response.iter_lines() if line]
  assert lines.pop() == 'data: [DONE]'
  return [json.loads(line.removeprefix('data: ')) for line in lines]


def _expected(model, seed=0, **sampling):
  """What the engine samples for the chat above, asked directly."""
  segments = [
    records.Segment(m['role'], m['content'], False) for m in _CHAT['messages']
  ]
  ids = model.tokenizer.render(segments)
  spec = records.SamplingSpec(**{'temperature': 0.0} | sampling)
  key = records.RequestKey(seed, records.Purpose.SERVE, 0, '0', 0, module='serve')
  return ids, asyncio.run(model.sample(ids, spec, key))


def test_models_are_listed(client):
  (card,) = client.get('/models').json()['data']
  assert card['id'] == 'geo' and card['object'] == 'model'
  assert client.get('/models/geo').json() == card
  assert client.get('/models/other').status_code == 404
  assert client.get('/nothing').status_code == 404
  assert client.get('/chat/completions').status_code == 405


def test_a_chat_is_answered_as_the_engine_answers(client, model):
  ids, done = _expected(model, max_new_tokens=32)
  got = _post(
    client,
    '/chat/completions',
    **_CHAT,
    temperature=0,
    logprobs=True,
    return_token_ids=True,
  )
  (choice,) = got['choices']
  assert choice['message'] == {'role': 'assistant', 'content': done.text}
  assert 'Sub-Goal: ' in done.text
  assert choice['token_ids'] == list(done.response_ids)
  assert got['prompt_token_ids'] == ids
  assert choice['finish_reason'] == done.finish_reason == 'stop'
  tokens = choice['logprobs']['content']
  assert [t['logprob'] for t in tokens] == pytest.approx(done.logprobs)
  assert ''.join(t['token'] for t in tokens).strip() == done.text.strip()
  assert got['usage'] == {
    'prompt_tokens': len(ids),
    'completion_tokens': len(done.response_ids),
    'total_tokens': len(ids) + len(done.response_ids),
  }


def test_ids_are_answered_as_the_chat_that_they_are(client, model):
  ids, done = _expected(model, max_new_tokens=32)
  got = _post(
    client,
    '/completions',
    model='geo',
    prompt=ids,
    max_tokens=32,
    temperature=0,
    logprobs=1,
    return_token_ids=True,
  )
  (choice,) = got['choices']
  assert choice['text'] == done.text
  assert choice['token_ids'] == list(done.response_ids)
  assert choice['logprobs']['token_logprobs'] == pytest.approx(done.logprobs)
  several = _post(
    client,
    '/completions',
    model='geo',
    prompt=[ids, 'a text'],
    n=2,
    max_tokens=4,
    seed=3,
  )
  assert [c['index'] for c in several['choices']] == [0, 1, 2, 3]


def test_a_seed_names_the_answer_and_choices_differ(client):
  ask = _CHAT | {'n': 8, 'seed': 5, 'max_tokens': 12}
  first = _post(client, '/chat/completions', **ask)['choices']
  assert _post(client, '/chat/completions', **ask)['choices'] == first
  other = _post(client, '/chat/completions', **ask | {'seed': 6})['choices']
  assert other != first
  assert len({c['message']['content'] for c in first}) > 1


@pytest.mark.parametrize('stop', [None, ['\nTool'], ['#1', 'Tool']])
def test_a_stream_adds_up_to_the_whole(client, stop):
  ask = _CHAT | {
    'n': 3,
    'seed': 1,
    'stop': stop,
    'logprobs': True,
    'return_token_ids': True,
  }
  whole = _post(client, '/chat/completions', **ask)
  events = _events(
    client, '/chat/completions', **ask, stream_options={'include_usage': True}
  )
  usage = events.pop()
  assert usage['usage'] == whole['usage'] and not usage['choices']
  assert {e['object'] for e in events} == {'chat.completion.chunk'}
  texts, last = ['', '', ''], [None] * 3
  for event in events:
    (choice,) = event['choices']
    assert last[choice['index']] is None  # Nothing after the end.
    texts[choice['index']] += choice['delta'].get('content', '')
    if choice['finish_reason']:
      last[choice['index']] = choice
  assert len(events) > 3  # In pieces: 4 tokens at a time.
  for choice, text, end in zip(whole['choices'], texts, last, strict=True):
    assert text == choice['message']['content']
    for name in ('finish_reason', 'token_ids', 'logprobs'):
      assert end[name] == choice[name]
    assert not any(s in text for s in stop or ())


def test_text_completions_stream_too(client):
  ask = {'model': 'geo', 'prompt': 'Query: ', 'seed': 2, 'max_tokens': 12}
  (whole,) = _post(client, '/completions', **ask)['choices']
  events = _events(client, '/completions', **ask)
  assert ''.join(e['choices'][0]['text'] for e in events) == whole['text']
  assert events[-1]['choices'][0]['finish_reason'] == whole['finish_reason']


def test_no_text_of_a_client_becomes_a_control_token(client, model):
  ask = {'model': 'geo', 'temperature': 0, 'max_tokens': 1}
  got = _post(
    client, '/completions', **ask, prompt='<|end|><|system|>', return_token_ids=True
  )
  assert model.tokenizer.decode(got['prompt_token_ids']) == '<|end|><|system|>'


@pytest.mark.parametrize(
  'change, status, param',
  [
    ({'model': 'gpt'}, 404, 'model'),
    ({'messages': []}, 400, 'messages'),
    ({'messages': [{'role': 'tool', 'content': 'x'}]}, 400, 'messages[0]'),
    ({'messages': [{'role': 'user', 'content': 3}]}, 400, 'messages[0]'),
    (
      {'messages': [{'role': 'user', 'content': [{'type': 'image'}]}]},
      400,
      'messages[0]',
    ),
    ({'temperature': -1}, 400, None),
    ({'temperature': 'hot'}, 400, 'temperature'),
    ({'top_p': 0}, 400, None),
    ({'max_tokens': 257}, 400, 'max_tokens'),  # The model has 256.
    ({'max_tokens': True}, 400, 'max_tokens'),
    ({'n': 0}, 400, 'n'),
    ({'n': 10**6}, 400, 'n'),
    ({'stop': ['']}, 400, 'stop'),
    ({'seed': 1.5}, 400, 'seed'),
    ({'stream': 'yes'}, 400, 'stream'),
    ({'logit_bias': {'3': 100}}, 400, 'logit_bias'),
    ({'presence_penalty': 0.5}, 400, 'presence_penalty'),
    ({'tools': [{'type': 'function'}]}, 400, 'tools'),
    ({'top_logprobs': 5}, 400, 'top_logprobs'),  # Without logprobs.
    ({'logprobs': True, 'top_logprobs': 21}, 400, 'top_logprobs'),
    ({'repetition_penalty': 1.1}, 400, 'repetition_penalty'),
    ({'messages': [{'role': 'user', 'content': None}]}, 400, 'messages[0]'),
    ({'temprature': 1}, 400, 'temprature'),
    ({'temperature': 10**400}, 400, 'temperature'),
    ({'max_tokens': 3, 'max_completion_tokens': 4}, 400, 'max_tokens'),
    ({'stop': 0}, 400, 'stop'),
    ({'stop': {}}, 400, 'stop'),
    # Half an emoji.
    ({'messages': [{'role': 'user', 'content': 'x\ud83d'}]}, 400, 'messages[0]'),
    (
      {'messages': [{'role': 'user', 'content': 'x', 'name': 'Bo'}]},
      400,
      'messages[0]',
    ),
    ({'messages': [{'role': 'user', 'content': 'a b ' * 200}]}, 400, 'messages'),
  ],
)
@pytest.mark.parametrize('stream', [False, True])
def test_what_cannot_be_answered_is_refused(client, change, status, param, stream):
  response = client.post(
    '/chat/completions', content=json.dumps(_CHAT | {'stream': stream} | change)
  )
  assert response.status_code == status, response.text
  error = response.json()['error']
  assert error['param'] == param and error['message']


class _Asked:
  """A model that tells how many tokens it was asked for."""

  max_prompt_tokens, is_closed = 96, False

  def __init__(self, tokenizer):
    self.tokenizer, self.asked = tokenizer, []

  async def sample(self, prompt, sampling, key, on_ids=None):
    del key, on_ids
    self.asked.append((len(prompt), sampling.max_new_tokens))
    return records.Completion('', finish_reason='length')


@pytest.mark.parametrize('stream', [False, True])
def test_a_limit_beyond_what_fits_is_cut(model, stream):
  asked = _Asked(model.tokenizer)
  service = app.Service(asked, 'geo', 32, row_tokens=120, context=256)
  with listening.listening(app.make(service)) as base:

    def post(prompt, **more):
      ask = {'model': 'geo', 'prompt': prompt, 'stream': stream} | more
      return httpx.post(f'{base}/v1/completions', json=ask)

    for length, limit, cut in (
      (95, 256, 25),  # What is left of 120.
      (95, 7, 7),
      (9, 256, 32),
      (96, 25, 24),
    ):
      assert post([5] * length, max_tokens=limit).status_code == 200
      assert asked.asked.pop() == (length, cut)
    # Each prompt of a request has what is left behind it.
    assert post([[5] * 90, [5] * 100], max_tokens=256).status_code == 400
    assert post([[5] * 90, [5] * 94], max_tokens=256).status_code == 200
    assert sorted(asked.asked) == [(90, 30), (94, 26)]
    assert post([5] * 97).json()['error']['code'] == 'context_length_exceeded'
    assert post([5], max_tokens=257).json()['error']['param'] == 'max_tokens'


def test_roles_and_values_that_clients_send_are_understood(client, model):
  system, user = _CHAT['messages']
  ask = _CHAT | {'temperature': 0, 'max_tokens': 8, 'return_token_ids': True}
  plain = _post(client, '/chat/completions', **ask)
  more = {
    'messages': [system | {'role': 'developer'}, user | {'name': None}],
    'frequency_penalty': 0.0,
    'presence_penalty': 0,
    'repetition_penalty': 1.0,
    'logit_bias': None,
    'stream_options': None,
  }
  got = _post(client, '/chat/completions', **ask | more)
  assert got['choices'] == plain['choices']
  silent = {'role': 'assistant', 'content': None, 'refusal': None}
  ask['messages'] = [system, silent, user]
  nothing = _post(client, '/chat/completions', **ask)
  ask['messages'] = [system, silent | {'content': ''}, user]
  assert _post(client, '/chat/completions', **ask)['choices'] == nothing['choices']


@pytest.mark.parametrize('sampling', [{'temperature': 0}, {'top_k': 3, 'seed': 4}])
def test_the_most_likely_tokens_are_told(client, model, sampling):
  ask = _CHAT | sampling | {'max_tokens': 8, 'logprobs': True}
  plain = _post(client, '/chat/completions', **ask)['choices'][0]
  got = _post(client, '/chat/completions', **ask, top_logprobs=5)['choices'][0]
  assert got['message'] == plain['message']
  for told, before in zip(
    got['logprobs']['content'], plain['logprobs']['content'], strict=True
  ):
    assert before['top_logprobs'] == []
    top = told.pop('top_logprobs')
    assert told == {k: v for k, v in before.items() if k != 'top_logprobs'}
    scores = [one['logprob'] for one in top]
    assert scores == sorted(scores, reverse=True) and len(top) <= 5
    assert (told['token'], told['logprob']) in [
      (one['token'], one['logprob']) for one in top
    ]
    if 'top_k' in sampling:
      assert len(top) == 3 and sum(map(math.exp, scores)) == pytest.approx(1)
    else:
      assert told['token'] == top[0]['token']
  events = _events(client, '/chat/completions', **ask, top_logprobs=5)
  assert (
    events[-1]['choices'][0]['logprobs']
    == _post(client, '/chat/completions', **ask, top_logprobs=5)['choices'][0][
      'logprobs'
    ]
  )
  words = {'model': 'geo', 'prompt': 'Query: ', 'max_tokens': 4, 'temperature': 0}
  told = _post(client, '/completions', **words, logprobs=2)['choices'][0]['logprobs']
  for token, score, top in zip(
    told['tokens'], told['token_logprobs'], told['top_logprobs'], strict=True
  ):
    assert top[token] == score and 1 <= len(top) <= 2


def test_metrics_are_text_that_prometheus_reads(client, url):
  parser = pytest.importorskip('prometheus_client.parser')
  root = url.removesuffix('/v1')

  def read():
    response = client.get(f'{root}/metrics')
    assert response.headers['content-type'].startswith('text/plain; version=0.0.4')
    return {
      (sample.name, *sorted(sample.labels.values())): sample.value
      for family in parser.text_string_to_metric_families(response.text)
      for sample in family.samples
    }

  before = read()
  _post(client, '/chat/completions', **_CHAT, max_tokens=3)
  client.get('/nothing')
  after = read()
  grown = {k: v - before.get(k, 0) for k, v in after.items()}
  assert grown['agentflow_engine_completed_total',] == 1
  assert 1 <= grown['agentflow_engine_response_tokens_total',] <= 3
  responses = 'agentflow_http_responses_total'
  assert grown[responses, '/v1/chat/completions', '200'] == 1
  assert grown[responses, '404', 'other'] == 1
  assert after['agentflow_engine_slots',] == 8
  assert after['agentflow_engine_running',] == 0
  assert after['agentflow_http_open_requests',] == 1  # This one.
  assert after['process_resident_memory_bytes',] > 10**6
  assert httpx.get(f'{root}/metrics').status_code == 401


def test_the_version_is_told(url):
  got = httpx.get(url.replace('/v1', '/version')).json()
  assert got == {'version': agentflow_jax.__version__}


def test_null_is_as_if_it_were_not_there(client):
  ask = {'temperature': 0, 'return_token_ids': True}
  (choice,) = _post(
    client,
    '/chat/completions',
    **_CHAT,
    **ask,
    max_tokens=3,
    max_completion_tokens=None,
  )['choices']
  assert len(choice['token_ids']) == 3
  ask |= {'model': 'geo', 'prompt': 'Query: '}
  plain = _post(client, '/completions', **ask)
  null = _post(client, '/completions', **ask, max_tokens=None, stop=None)
  assert null['choices'] == plain['choices']


def test_every_choice_says_what_it_is_conditioned_on(client):
  prompts = [[5, 6, 7], [8, 9]]
  ask = {
    'model': 'geo',
    'prompt': prompts,
    'n': 2,
    'max_tokens': 2,
    'return_token_ids': True,
    'seed': 1,
  }
  whole = _post(client, '/completions', **ask)
  of = [prompts[0]] * 2 + [prompts[1]] * 2
  assert [c['prompt_token_ids'] for c in whole['choices']] == of
  assert 'prompt_token_ids' not in whole  # It would be one of two.
  choices = [e['choices'][0] for e in _events(client, '/completions', **ask)]
  last = {c['index']: c for c in choices if c['finish_reason']}
  for i, choice in enumerate(whole['choices']):
    for name in ('prompt_token_ids', 'token_ids'):
      assert last[i][name] == choice[name]


def test_a_prompt_that_is_too_long_is_refused_once(model):
  endless = _Endless(model.tokenizer, False)
  with listening.listening(app.make(app.Service(endless, 'geo', 32))) as base:
    response = httpx.post(
      f'{base}/v1/completions', json={'model': 'geo', 'prompt': [5] * 97, 'n': 64}
    )
  assert response.status_code == 400 and '97' in response.text
  assert response.json()['error']['code'] == 'context_length_exceeded'
  assert not endless.entered


def test_a_body_that_is_no_json_or_too_large_is_refused(client, monkeypatch):
  for content in (b'{', b'\xff', b'[' * 100_000, b'3'):
    assert client.post('/completions', content=content).status_code == 400
  monkeypatch.setattr(incoming, '_MAX_BODY_BYTES', 100)
  assert client.post('/completions', content=b'x' * 101).status_code == 413


def test_a_key_is_asked_for(url):
  for headers in ({}, {'Authorization': 'Bearer wrong'}):
    response = httpx.post(f'{url}/chat/completions', json=_CHAT, headers=headers)
    assert response.status_code == 401
    assert _KEY not in response.text
  assert httpx.get(url.replace('/v1', '/health')).status_code == 200


class Bytes:
  """A tokenizer of a byte a token."""

  def decode(self, ids):
    return bytes(ids).decode('utf-8', errors='replace')


def test_tokens_that_are_parts_of_a_character_are_where_it_is():
  text = 'a é🙂b\ufffdc'
  ids = tuple(text.encode()) + (0x80, *b'xyz')  # No character at all.
  done = records.Completion('', response_ids=ids, logprobs=(-0.5,) * len(ids))
  body = {'model': 'm', 'prompt': 'x', 'logprobs': 1}
  ask = requests.completion(body, 'm', 99, 256)
  head = {'object': 'text_completion'}
  found = writing.Writer(Bytes(), ask, False, head, [[]]).choice(0, done)
  whole = Bytes().decode(ids)
  offsets = found['logprobs']['text_offset']
  assert offsets[:14] == [0, 1, 2, 2, 3, 3, 3, 3, 4, 5, 5, 5, 6, 7]
  assert whole[offsets[12]] == 'c'
  ask = requests.chat(
    {'model': 'm', 'messages': [{'role': 'user', 'content': 'x'}], 'logprobs': True},
    'm',
    99,
  )
  head = {'object': 'chat.completion'}
  found = writing.Writer(Bytes(), ask, True, head, [[]]).choice(0, done)
  told = [t['bytes'] for t in found['logprobs']['content']]
  assert told[:5] == [[97], [32], None, None, None]


def test_a_stream_sends_nothing_that_it_would_take_back():
  body = {
    'model': 'm',
    'messages': [{'role': 'user', 'content': 'x'}],
    'stop': ['END', 'é!', 'Ené!'],
  }
  ask = requests.chat(body, 'm', 99)
  for text, wanted in (
    ('aENbéñ🙂EN', 'aENbéñ🙂EN'),  # A beginning of a stop, to the very end.
    ('añENDx', 'añ'),
    ('EEENDx', 'EE'),
    ('naé!y', 'na'),
    ('anbEné!y', 'anb'),  # A stop whose last letters are cut in two.
  ):
    ids = list(text.encode())
    writer = writing.Writer(Bytes(), ask, True, {'object': 'chat.completion'}, [[]])
    pieces = [writer.piece(0, ids[:n]) for n in range(1, len(ids) + 1)]
    end = writer.last(0, records.Completion(text, response_ids=tuple(ids)))
    sent = [
      piece['choices'][0]['delta'].get('content', '')
      for piece in [*pieces, end]
      if piece is not None
    ]
    assert ''.join(sent) == wanted
    assert len(sent) > 2  # It did not wait for the end with all of it.


def test_an_engine_that_fails_is_the_servers_error(model):
  class Broken:
    tokenizer, max_prompt_tokens, is_closed = model.tokenizer, 96, True
    render = staticmethod(model.render)

    async def sample(self, *_):
      raise app.engine_model.Unreachable('the device is gone')

  with listening.listening(app.make(app.Service(Broken(), 'geo', 32))) as base:
    for stream in (False, True):
      response = httpx.post(
        f'{base}/v1/chat/completions', json=_CHAT | {'stream': stream}
      )
      assert response.status_code == 503
      assert 'gone' in response.json()['error']['message']
    assert httpx.get(f'{base}/health').status_code == 503


def test_a_bug_is_an_error_that_clients_can_read(model):
  class Buggy:
    tokenizer, max_prompt_tokens, is_closed = model.tokenizer, 96, False
    render = staticmethod(model.render)

    async def sample(self, *_):
      raise KeyError('a secret of ours')

  with listening.listening(app.make(app.Service(Buggy(), 'geo', 32))) as base:
    response = httpx.post(f'{base}/v1/chat/completions', json=_CHAT)
  assert response.status_code == 500
  assert response.json()['error']['type'] == 'server_error'
  assert 'secret' not in response.text


class _Endless:
  """A model that says one thing and then nothing, until it is cancelled."""

  def __init__(self, tokenizer, says):
    self.tokenizer, self._says = tokenizer, says
    self.max_prompt_tokens = 96
    self.entered, self.cancelled = 0, 0

  def render(self, prompt, tools=()):
    return self.tokenizer.render(prompt, tools)

  async def sample(self, prompt, sampling, key, on_ids=None):
    self.entered += 1
    if on_ids and self._says:
      on_ids(self.tokenizer.encode('a b'))
    try:
      await asyncio.Event().wait()
    finally:
      self.cancelled += 1


def _until(condition):
  end = time.monotonic() + 10
  while not condition():
    assert time.monotonic() < end
    time.sleep(0.01)


@pytest.mark.parametrize('stream, says', [(False, False), (True, False), (True, True)])
def test_a_client_that_leaves_frees_what_it_asked_for(model, stream, says):
  endless = _Endless(model.tokenizer, says)
  ask = _CHAT | {'n': 2, 'stream': stream}
  with listening.listening(app.make(app.Service(endless, 'geo', 32))) as base:
    url = f'{base}/v1/chat/completions'
    if says:
      with httpx.stream('POST', url, json=ask) as response:
        assert 'a b' in next(response.iter_text())
    else:
      with pytest.raises(httpx.ReadTimeout):
        httpx.post(url, json=ask, timeout=1.0)
    _until(lambda: endless.cancelled == 2)
    assert endless.entered == 2


def test_the_endpoint_client_of_the_agents_works(url, model, monkeypatch):
  monkeypatch.setenv('GEO_KEY', _KEY)
  segments = tuple(
    records.Segment(m['role'], m['content'], False) for m in _CHAT['messages']
  )
  spec = records.SamplingSpec(
    temperature=0.0, top_k=5, max_new_tokens=32, stop=('Tool',)
  )
  key = records.RequestKey(0, records.Purpose.SOLVE, 0, 't', 0)

  async def ask(**changes):
    settings = dict(
      base_url=url, model='geo', api_key_variable='GEO_KEY', extended_sampling=True
    )
    client = client_lib.EndpointClient(
      settings_lib.EndpointConfig(**settings | changes)
    )
    try:
      return await client.generate(segments, spec, key)
    finally:
      await client.aclose()

  done = asyncio.run(ask())
  _, direct = _expected(model, top_k=5, max_new_tokens=32, stop=('Tool',))
  assert done.text == direct.text.partition('Tool')[0]
  assert done.finish_reason == 'stop' and not done.response_ids
  with pytest.raises(client_lib.Refused, match='does not exist'):
    asyncio.run(ask(model='other'))


def test_the_openai_package_works(url, model):
  openai = pytest.importorskip('openai')
  with openai.OpenAI(base_url=url, api_key=_KEY, max_retries=0) as client:
    assert [m.id for m in client.models.list()] == ['geo']
    whole = client.chat.completions.create(**_CHAT, temperature=0, logprobs=True)
    _, done = _expected(model, max_new_tokens=32)
    assert whole.choices[0].message.content == done.text
    assert [t.logprob for t in whole.choices[0].logprobs.content] == pytest.approx(
      done.logprobs
    )
    stream = client.chat.completions.create(**_CHAT, temperature=0, stream=True)
    text = ''.join(c.choices[0].delta.content or '' for c in stream)
    assert text == done.text
    plain = client.completions.create(model='geo', prompt='Query: ', seed=1)
    assert plain.usage.completion_tokens <= 16
    with pytest.raises(openai.AuthenticationError):
      openai.OpenAI(base_url=url, api_key='x', max_retries=0).models.list()
    with pytest.raises(openai.BadRequestError, match='top_logprobs'):
      client.chat.completions.create(**_CHAT, logprobs=True, top_logprobs=21)


@pytest.mark.parametrize('key', ['', 'two words', 'schlüssel'])
def test_a_key_that_no_client_could_send_is_refused(key, monkeypatch):
  monkeypatch.setenv('SERVER_KEY', key)
  with pytest.raises(schema.ConfigError, match='--api_key_variable: .* SERVER_KEY'):
    server.key_of('SERVER_KEY', '--api_key_variable')
  monkeypatch.setenv('SERVER_KEY', ' good-1 ')
  assert server.key_of('SERVER_KEY', '--api_key_variable') == 'good-1'
  assert server.key_of('', '--api_key_variable') == ''
