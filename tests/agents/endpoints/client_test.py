"""The endpoint client against a real HTTP server on the loopback."""

import asyncio
import dataclasses
import datetime
import email.utils
import gzip
import json
import logging
import socket
import sqlite3
import time
import traceback
import types

import pytest

from agentflow_jax import records
from agentflow_jax.agents import language_model
from agentflow_jax.agents.endpoints import cache, client as client_lib
from agentflow_jax.agents.endpoints import openai_protocol, settings
from tests.agents.endpoints import http_server

Reply, Server = http_server.Reply, http_server.Server
completion = http_server.completion

KEY = 'sk-very-secret-0123456789'
VARIABLE = 'AGENTFLOW_TEST_KEY'
PROMPT = (
  records.Segment('system', 'Be brief.'),
  records.Segment('user', 'Query: '),
  records.Segment('user', 'why?', trusted=False),
)
SAMPLING = records.SamplingSpec(temperature=0.5, top_p=0.9, max_new_tokens=7)


def request_key(rollout=0):
  return records.RequestKey(1, records.Purpose.SOLVE, 0, 'q', rollout)


@pytest.fixture(autouse=True)
def key(monkeypatch):
  monkeypatch.setenv(VARIABLE, KEY)


def config(url, **changes):
  defaults = dict(
    base_url=url,
    model='m',
    api_key_variable=VARIABLE,
    max_attempts=3,
    backoff_seconds=0.01,
    max_backoff_seconds=0.1,
    timeout_seconds=60.0,
  )
  return settings.EndpointConfig(**(defaults | changes))


def generate(configuration, prompt=PROMPT, sampling=SAMPLING, times=1):
  """Completions of `times` concurrent requests; raises what one raises."""

  async def run():
    client = client_lib.EndpointClient(configuration)
    try:
      return await asyncio.gather(
        *(client.generate(prompt, sampling, request_key(i)) for i in range(times))
      )
    finally:
      await client.aclose()

  return asyncio.run(run())


def test_a_request_and_its_completion():
  with Server(Reply(body=completion('Because.', 'length'))) as server:
    sampling = dataclasses.replace(SAMPLING, stop=('\n', 'END'))
    (found,) = generate(config(server.url + '/'), sampling=sampling)
  assert (found.text, found.finish_reason) == ('Because.', 'length')
  assert found.response_ids == found.logprobs == found.prompt_ids == ()
  assert 0 <= found.queue_seconds and 0 < found.model_seconds < 60
  ((path, headers, body),) = server.requests
  assert path == '/v1/chat/completions'
  assert headers['Authorization'] == f'Bearer {KEY}'
  seed = body.pop('seed')
  assert 0 <= seed < 2**31
  assert body == {
    'model': 'm',
    'messages': [
      {'role': 'system', 'content': 'Be brief.'},
      {'role': 'user', 'content': 'Query: why?'},
    ],
    'temperature': 0.5,
    'top_p': 0.9,
    'max_tokens': 7,
    'stop': ['\n', 'END'],
  }


def test_what_utf_8_cannot_say_is_replaced():
  with Server(Reply()) as server:
    generate(config(server.url), (records.Segment('user', 'a\ud800b \U0001f600'),))
    ((_, _, body),) = server.requests
  assert body['messages'][-1]['content'] == 'a\ufffdb \U0001f600'


def test_tokens_are_counted_by_module_and_priced():
  answer = json.loads(completion())
  replies = []
  for usage in (
    {'prompt_tokens': 1000, 'completion_tokens': 20},
    None,
    {'prompt_tokens': '7', 'completion_tokens': -3},
    {'prompt_tokens': True},
  ):
    replies.append(Reply(body=json.dumps(answer | {'usage': usage}).encode()))

  async def run(url):
    client = client_lib.EndpointClient(
      config(url, prompt_price=2.0, completion_price=10.0)
    )
    try:
      for module in ('verifier', 'verifier', 'generator', 'verifier'):
        key = dataclasses.replace(request_key(), module=module)
        await client.generate(PROMPT, SAMPLING, key)
      return client.usage
    finally:
      await client.aclose()

  with Server(*replies) as server:
    usage = asyncio.run(run(server.url))
  # (1000 x 2 + 20 x 10) / 10^6; what an endpoint does not say counts as 0.
  assert usage == {
    'verifier': client_lib.Usage(3, 1000, 20, pytest.approx(0.0022)),
    'generator': client_lib.Usage(1, 0, 0, 0.0),
  }


def test_azure_has_its_own_url_and_header():
  with Server(Reply()) as server:
    base = server.url.removesuffix('/v1')
    generate(config(base, model='my gpt', azure_api_version='2024-10-21'))
    path, headers, _ = server.requests[0]
  assert path == (
    '/openai/deployments/my%20gpt/chat/completions?api-version=2024-10-21'
  )
  assert headers['api-key'] == KEY and 'Authorization' not in headers


def test_a_model_without_a_chat_template_gets_one_text():
  answer = json.dumps(
    {
      'choices': [{'text': ' yes', 'finish_reason': 'length'}],
      'usage': {'prompt_tokens': 3, 'completion_tokens': 1},
    }
  ).encode()
  with Server(Reply(body=answer)) as server:
    (found,) = generate(config(server.url, api='completions'))
  ((path, _, body),) = server.requests
  assert path == '/v1/completions'
  assert body['prompt'] == 'Be brief.\n\nQuery: why?'
  assert body['max_tokens'] == 7 and 'messages' not in body
  assert (found.text, found.finish_reason) == (' yes', 'length')


def test_rates_are_kept():
  # 1,200 a minute: one every 50 ms. Of tokens: 13 + 7 a request, at 100 ms.
  for limits, seconds in (
    ({'requests_per_minute': 1200.0}, 0.05),
    ({'tokens_per_minute': 12_000.0}, 0.1),
  ):
    with Server(Reply()) as server:
      # Not since the first one came: that may have been long on its way.
      start = time.monotonic()
      generate(config(server.url, **limits), times=5)
    assert server.times[-1] - start >= 4 * seconds


def _eight(url, **changes):
  """What eight requests at once come to, and how many were sent."""

  async def run():
    client = client_lib.EndpointClient(
      config(
        url,
        concurrency=1,
        breaker_failures=4,
        breaker_seconds=0.5,
        max_backoff_seconds=5.0,
        **changes,
      )
    )
    try:
      return await asyncio.gather(
        *(client.generate(PROMPT, SAMPLING, request_key(i)) for i in range(8)),
        return_exceptions=True,
      )
    finally:
      await client.aclose()

  return asyncio.run(run())


def test_an_outage_costs_no_request_that_can_wait():
  # Being asked too much is no outage: 429 in between counts for nothing.
  busy, broken = Reply(429, b'', {'Retry-After': '0'}), Reply(500, b'down')
  with Server(broken, busy, *[broken] * 4, Reply()) as server:
    answers = _eight(server.url, max_attempts=3)
  assert [a.text for a in answers] == ['Because.'] * 8
  # After four in a row, nothing for half a second, then one, then the others.
  assert len(server.requests) == 6 + 8
  assert server.times[6] - server.times[5] >= 0.48


def test_an_endpoint_that_stays_down_is_left_alone():
  with Server(Reply(500, b'down')) as server:
    answers = _eight(server.url, max_attempts=2)
  assert all(isinstance(a, language_model.Unreachable) for a in answers)
  assert any('4 attempts in a row failed' in str(a) for a in answers)
  # Eight requests of two attempts; but after four, one every half a second.
  assert len(server.requests) < 10


def test_answers_are_kept_between_runs(tmp_path):
  path = str(tmp_path / 'deep' / 'answers.sqlite')
  greedy = records.SamplingSpec(temperature=0.0, max_new_tokens=7)

  async def ask(url, sampling, prompt=PROMPT, count=1, **changes):
    client = client_lib.EndpointClient(config(url, cache=path, **changes))
    try:
      texts = [
        (await client.generate(prompt, sampling, request_key(i))).text
        for i in range(count)
      ]
      (usage,) = client.usage.values()
      return texts, usage
    finally:
      await client.aclose()

  with Server(*(Reply(body=completion(c)) for c in 'abcdefgh')) as server:
    run = lambda *a, **k: asyncio.run(ask(server.url, *a, **k))
    # Eight samples are eight requests; asked again, they are none.
    first, usage = run(SAMPLING, count=3)
    assert first == ['a', 'b', 'c'] and usage.requests == 3
    again, usage = run(SAMPLING, count=3)
    assert again == first
    assert (usage.requests, usage.cached, usage.cost) == (0, 3, 0.0)
    # Greedy ones are one, whoever asks.
    assert run(greedy, count=3)[0] == ['d', 'd', 'd']
    # Whatever else the answer depends on is part of the name.
    assert run(greedy, prompt=PROMPT[:1])[0] == ['e']
    assert run(dataclasses.replace(greedy, max_new_tokens=8))[0] == ['f']
    assert run(greedy, model='other')[0] == ['g']
  assert len(server.requests) == 7
  assert KEY.encode() not in (tmp_path / 'deep' / 'answers.sqlite').read_bytes()
  with Server(Reply(body=completion('elsewhere'))) as server:
    assert asyncio.run(ask(server.url, greedy))[0] == ['elsewhere']
  # What failed is not kept.
  with Server(Reply(500, b'')) as server:
    with pytest.raises(language_model.Unreachable):
      asyncio.run(ask(server.url, greedy))
    server.replies = [Reply()]
    assert asyncio.run(ask(server.url, greedy))[0] == ['Because.']


def test_who_asks_the_same_at_once_is_answered_the_same(tmp_path):
  greedy = records.SamplingSpec(temperature=0.0, max_new_tokens=7)
  with Server(*(Reply(body=completion(c)) for c in 'abcd')) as server:
    found = generate(
      config(server.url, cache=str(tmp_path / 'a')), sampling=greedy, times=4
    )
  assert [f.text for f in found] == ['a'] * 4 and len(server.requests) == 1


def test_who_asks_the_same_at_once_fails_with_it(tmp_path):
  greedy = records.SamplingSpec(temperature=0.0, max_new_tokens=7)

  async def ask(where, times):
    client = client_lib.EndpointClient(where)
    try:
      return await asyncio.gather(
        *(client.generate(PROMPT, greedy, request_key(i)) for i in range(times)),
        return_exceptions=True,
      )
    finally:
      await client.aclose()

  with Server(Reply(503, b'')) as server:
    where = config(server.url, cache=str(tmp_path / 'a'))
    found = asyncio.run(ask(where, 8))
    assert {type(e) for e in found} == {language_model.Unreachable}
    assert len(server.requests) == 3  # Attempts of one of them.
    server.replies = [Reply(body=completion(''))]  # It is not kept, but is theirs.
    found = asyncio.run(ask(where, 8))
    assert {c.text for c in found} == {''} and len(server.requests) == 4
    server.replies = [Reply()]
    assert asyncio.run(ask(where, 1))[0].text == 'Because.'


def test_who_waits_for_one_that_is_cancelled_asks_itself(tmp_path):
  greedy = records.SamplingSpec(temperature=0.0, max_new_tokens=7)

  async def ask(where):
    client = client_lib.EndpointClient(where)
    try:
      first, second = (
        asyncio.create_task(client.generate(PROMPT, greedy, request_key(i)))
        for i in range(2)
      )
      await asyncio.sleep(0)  # Both have begun; one waits for the other.
      await asyncio.sleep(0)
      first.cancel()
      return await second
    finally:
      await client.aclose()

  with Server(Reply()) as server:
    where = config(server.url, cache=str(tmp_path / 'a'))
    assert asyncio.run(ask(where)).text == 'Because.'


def test_what_a_filter_ended_is_not_kept(tmp_path):
  bad = completion('half', 'content_filter'), completion(None), completion('')
  for i, body in enumerate(bad):
    with Server(Reply(body=body), Reply()) as server:
      where = config(server.url, cache=str(tmp_path / str(i)))
      generate(where)
      assert generate(where)[0].text == 'Because.'


def test_a_cache_that_cannot_be_one_is_an_error_at_start(tmp_path):
  path = tmp_path / 'file'
  path.write_text('no database, whatever it is called; ' * 40)
  for bad in (path, path / 'below', tmp_path):
    with pytest.raises(ValueError, match='cache: .* delete it, or name'):
      client_lib.EndpointClient(config('http://127.0.0.1:1/v1', cache=str(bad)))
  assert path.read_text().startswith('no database')


def test_several_may_make_a_cache_at_once(tmp_path, monkeypatch):
  connect, refused = sqlite3.connect, []

  class Busy:
    """As SQLite is at times, in spite of its own timeout."""

    def __init__(self, db):
      self._db = db

    def __getattr__(self, name):
      return getattr(self._db, name)

    def execute(self, statement, *values):
      if 'WAL' in statement and len(refused) < 2:
        refused.append(statement)
        raise sqlite3.OperationalError('database is locked')
      return self._db.execute(statement, *values)

  monkeypatch.setattr(
    sqlite3, 'connect', lambda *args, **options: Busy(connect(*args, **options))
  )
  kept = cache.ResponseCache(str(tmp_path / 'answers'))
  assert len(refused) == 2 and asyncio.run(kept.get('nothing')) is None
  kept.close()


def test_a_cache_that_breaks_later_ends_nothing(tmp_path, caplog):
  path = tmp_path / 'answers'

  async def run(url):
    client = client_lib.EndpointClient(config(url, cache=str(path)))
    try:
      await client.generate(PROMPT, SAMPLING, request_key())
      client._cache._db.execute("UPDATE answers SET answer = '[1]'")
      second = await client.generate(PROMPT, SAMPLING, request_key())
      client._cache._db.execute('DROP TABLE answers')
      return second, await client.generate(PROMPT, SAMPLING, request_key())
    finally:
      await client.aclose()

  with Server(Reply()) as server:
    assert [a.text for a in asyncio.run(run(server.url))] == ['Because.'] * 2
  assert len(server.requests) == 3 and 'no such table' in caplog.text


def test_seeds_follow_the_request_key_only():
  with Server(Reply()) as server:
    generate(config(server.url), times=4)
    generate(config(server.url), times=4)
    generate(config(server.url, send_seed=False))
  seeds = [body.get('seed') for _, _, body in server.requests]
  assert sorted(seeds[:4]) == sorted(seeds[4:8])
  assert len(set(seeds[:4])) == 4
  assert seeds[8] is None


def test_without_a_variable_no_key_is_sent():
  with Server(Reply()) as server:
    generate(config(server.url, api_key_variable=''))
  assert 'Authorization' not in server.requests[0][1]


def test_truncation_beyond_openais_interface_is_sent_or_refused():
  with Server(Reply()) as server:
    sampling = records.SamplingSpec(top_k=5, min_p=0.25)
    with pytest.raises(ValueError, match='top_k=5'):
      generate(config(server.url), sampling=sampling)
    with pytest.raises(ValueError, match='min_p=0.25'):
      generate(config(server.url), sampling=records.SamplingSpec(min_p=0.25))
    generate(
      config(
        server.url, extended_sampling=True, token_limit_field='max_completion_tokens'
      ),
      sampling=sampling,
    )
  ((_, _, body),) = server.requests
  assert (body['top_k'], body['min_p']) == (5, 0.25)
  assert body['max_completion_tokens'] == 256 and 'max_tokens' not in body


@pytest.mark.parametrize('status', [408, 409, 425, 429, 500, 502, 503, 529])
def test_a_passing_failure_is_tried_again(status):
  with Server(Reply(status, b'busy'), Reply()) as server:
    (found,) = generate(config(server.url))
  assert found.text == 'Because.'
  assert len(server.requests) == 2


@pytest.mark.parametrize(
  'bad',
  [
    Reply(drop=True),
    Reply(body=b'<html>proxy</html>'),
    Reply(body=b'{"choices": []}'),
    Reply(body=b'{"choices": [{"message": {"content": 5}}]}'),
    Reply(body=b'{"choices": [{"text": 5}]}'),
    Reply(body=b'{"choices": ["text"]}'),
    Reply(body=b'[1]'),
    Reply(body=b'"text"'),
    Reply(body=b'\xff\xfe'),
    Reply(body=b'[' * 100_000),
    Reply(body=b'zip', headers={'Content-Encoding': 'gzip'}),
  ],
  ids=lambda reply: 'drop' if reply.drop else repr(reply.body[:20]),
)
def test_a_connection_or_body_that_is_broken_is_tried_again(bad):
  with Server(bad, Reply()) as server:
    (found,) = generate(config(server.url))
  assert found.text == 'Because.'
  assert len(server.requests) == 2


def test_no_content_is_an_empty_text():
  with Server(Reply(body=completion(None))) as server:
    (found,) = generate(config(server.url))
  assert found.text == ''


@pytest.mark.parametrize(
  ('reply', 'reason'),
  [
    (Reply(500, b'broken'), 'status 500'),
    (Reply(429, b'', {'Retry-After': '0'}), 'status 429'),
    (Reply(body=b'garbage'), 'no completion'),
    (Reply(drop=True), 'Error'),
  ],
)
def test_a_lasting_failure_is_unreachable(reply, reason):
  with Server(reply) as server:
    with pytest.raises(language_model.Unreachable) as error:
      generate(config(server.url))
  assert len(server.requests) == 3
  assert reason in str(error.value) and '3 attempts' in str(error.value)
  assert f'{server.url}/chat/completions' in str(error.value)


def test_a_refused_connection_is_unreachable():
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    url = f'http://127.0.0.1:{free.getsockname()[1]}/v1'
  with pytest.raises(language_model.Unreachable, match='ConnectError'):
    generate(config(url))


@pytest.mark.parametrize(
  'reply', [Reply(hang_seconds=30), Reply(drip=True)], ids=['hangs', 'drips']
)
def test_a_server_that_hangs_or_drips_is_given_up(reply):
  # A byte every 0.1 s keeps a read timeout from ever firing.
  # Both would end well in the end.
  with Server(reply) as server:
    with pytest.raises(language_model.Unreachable, match='2 attempts failed'):
      generate(config(server.url, timeout_seconds=0.3, max_attempts=2))


def test_too_large_a_body_is_not_held(monkeypatch):
  monkeypatch.setattr(client_lib, '_MAX_RESPONSE_BYTES', 1000)
  with Server(Reply(body=completion('x' * 2000)), Reply()) as server:
    (found,) = generate(config(server.url))
  assert found.text == 'Because.'


@pytest.mark.parametrize('status', [301, 307, 400, 401, 403, 404, 405, 422])
def test_a_final_status_is_refused_at_once(status):
  reply = Reply(
    status,
    b'{"error": "what went wrong"}',
    {'Location': 'http://127.0.0.1:1/elsewhere'},
  )
  with Server(reply) as server:
    with pytest.raises(client_lib.Refused) as error:
      generate(config(server.url))
  assert len(server.requests) == 1
  said = str(error.value)
  assert f'{server.url}/chat/completions' in said and str(status) in said
  if status in (401, 403):
    assert VARIABLE in said
  else:
    assert 'what went wrong' in said


@pytest.mark.parametrize(
  'reply',
  [
    Reply(413, b''),
    Reply(400, b'{"error": {"code": "context_length_exceeded"}}'),
    Reply(400, b"This model's maximum context length is 4096 tokens."),
    Reply(400, b'Range of input length should be [1, 30720]'),
    Reply(400, b'The input token count (9) exceeds the maximum number'),
    Reply(400, b'the request exceeds the available context size'),
    Reply(422, b'`inputs` tokens + `max_new_tokens` must be <= 4097'),
    Reply(400, b'prompt is too long: 9 tokens > 8 maximum'),
    # In a success (OpenRouter).
    Reply(200, b'{"error": {"message": "maximum context length is 8"}}'),
  ],
)
def test_a_prompt_that_does_not_fit_is_named_so(reply):
  with Server(reply) as server:
    with pytest.raises(language_model.PromptTooLong):
      generate(config(server.url))
  assert len(server.requests) == 1


@pytest.mark.parametrize(
  'said',
  [
    # SGLang.
    'Input length (7001 tokens) exceeds the maximum allowed length (4091'
    ' tokens). Use a shorter input or enable --allow-auto-truncate.',
    "The input (7001 tokens) is longer than the model's context length (4096 tokens).",
    "Requested token count exceeds the model's maximum context length of 4096",
    # vLLM, old and new.
    "This model's maximum context length is 4096 tokens. However, you requested",
    'The decoder prompt (length 5000) is longer than the maximum model length'
    ' of 4096. Make sure that `max_model_len` is no smaller than the number of'
    ' text tokens.',
    'Prompt length of 5000 is longer than the maximum model length of 4096.',
    # OpenAI and Azure; llama.cpp; Mistral; Anthropic; TGI and Together.
    '{"code": "context_length_exceeded"}',
    '{"code": "string_above_max_length"}',
    '{"type": "exceed_context_size_error"}',
    'Prompt contains 65673 tokens and 0 draft tokens, too large for model with'
    ' 32768 maximum context length',
    'input length and `max_tokens` exceed context limit: 9 + 9 > 16',
    'Input validation error: `inputs` must have less than 4095 tokens.',
    'Input validation error: `inputs` tokens + `max_new_tokens` must be <= 8',
    # Gemini, Ollama, Groq, xAI, Cohere, Bedrock, LM Studio.
    'The input token count exceeds the maximum number of tokens allowed (8).',
    'prompt too long; exceeded max context length by 9 tokens',
    'the input length exceeds the context length',
    'Please reduce the length of the messages or completion.',
    "This model's maximum prompt length is 131072 but the request contains 9",
    'too many tokens: size limit exceeded by 9 tokens.',
    'Input is too long for requested model.',
    'The number of tokens to keep from the initial prompt is greater than the'
    ' context length',
    # Moonshot, TabbyAPI, GitHub, Azure, LiteLLM, OpenRouter, Fireworks.
    'Invalid request: Your request exceeded model token limit: 8192',
    'Prompt is 9000 tokens, and exceeds the limit of 8192',
    'tokens_limit_reached: Request body too large for gpt-4o model.',
    'Input prompt (5000 tokens) is too long and exceeds limit of 4096',
    'litellm.ContextWindowExceededError: too much',
    "Invalid 'messages[1].content': string too long.",
    'The number of tokens in the prompt exceeds the maximum',
    'The message you submitted was too long, please reload',
    'sequence length 5000 exceeds maximum',
    'input_too_long',
    'total tokens exceed max message tokens',
    'Prompt exceeds max length',
  ],
)
def test_a_prompt_that_is_too_long_is_recognised_in_every_server_s_words(said):
  assert client_lib._is_too_long(said)


@pytest.mark.parametrize(
  'said',
  [
    'max_tokens is too large: 100000. This model supports at most 4096'
    ' completion tokens',
    "Invalid 'stop': array too long. Expected an array with maximum length 4",
    'Rate limit reached: too many requests',
    'model not found',
    "Unsupported parameter: 'max_tokens' is not supported with this model.",
    'temperature must be at most 2',
    "Unknown parameter: 'input'",
    'Rate limit reached for requests: too many tokens per minute',
    '`max_tokens` (5000) exceeds the maximum allowed value of 4096',
    'body.temperature: Input should be less than or equal to 2',
    "Invalid value for 'messages[0].role': must be one of user, assistant",
    'messages must be a non-empty array',
    'top_k is too large',
  ],
)
def test_other_refusals_do_not_count_as_too_long(said):
  assert not client_lib._is_too_long(said)


def test_thoughts_of_a_server_are_kept_apart():
  choice = {
    'message': {'content': 'Paris', 'reasoning_content': 'hm'},
    'finish_reason': 'eos',
  }
  with Server(Reply(body=json.dumps({'choices': [choice]}).encode())) as server:
    (found,) = generate(config(server.url))
  assert (found.text, found.thoughts) == ('Paris', 'hm')
  assert found.finish_reason == 'stop' and not found.thinking


@pytest.mark.parametrize(
  'text, finish_reason, thinking, inside',
  [
    ('It is Par', 'length', 'on', True),
    ('It is Paris', 'stop', 'on', False),
    ('hm</think>Par', 'length', 'on', False),
    ('<think>hm', 'length', 'on', False),  # The text says so itself.
    ('It is Par', 'length', 'auto', False),
    ('It is Par', 'length', 'off', False),
  ],
)
def test_a_text_cut_inside_the_thought_that_a_template_opened_is_marked(
  text, finish_reason, thinking, inside
):
  with Server(Reply(body=completion(text, finish_reason))) as server:
    (found,) = generate(config(server.url, thinking=thinking))
    ((_, _, body),) = server.requests
  assert found.thinking is inside
  assert ('chat_template_kwargs' in body) == (thinking != 'auto')


def test_a_completion_that_holds_only_thoughts_is_logged(caplog):
  choice = {
    'message': {'content': None, 'reasoning': 'It is Par'},
    'finish_reason': 'length',
  }
  with Server(Reply(body=json.dumps({'choices': [choice]}).encode())) as server:
    (found,) = generate(config(server.url))
  assert (found.text, found.finish_reason) == ('', 'length')
  assert 'thoughts alone' in caplog.text and 'more new tokens' in caplog.text


def test_retry_after_is_honoured_within_the_longest_pause():
  date = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=3600)
  cases = [
    ('0.5', 10.0, 0.5),
    ('3600', 0.4, 0.4),
    (email.utils.format_datetime(date, usegmt=True), 0.4, 0.4),
  ]
  for header, longest, pause in cases:
    with Server(Reply(503, b'', {'Retry-After': header}), Reply()) as server:
      generate(config(server.url, max_backoff_seconds=longest))
    waited = server.times[1] - server.times[0]
    assert pause - 0.01 <= waited, header
  for header in (None, 'soon', 'nan', 'inf', '-'):
    assert openai_protocol.retry_after(header) is None
  assert openai_protocol.retry_after('-5') == 0
  far = 'Mon, 01 Jan 99999999999999999999 00:00:00 GMT'
  assert openai_protocol.retry_after(far) is None


def test_pauses_double_up_to_the_longest(monkeypatch):
  pauses = []
  sleep = asyncio.sleep

  async def record(seconds, *args):
    pauses.append(seconds)
    await sleep(0, *args)

  monkeypatch.setattr(client_lib.asyncio, 'sleep', record)
  with Server(Reply(500, b'')) as server:
    with pytest.raises(language_model.Unreachable):
      generate(
        config(server.url, max_attempts=6, backoff_seconds=1.0, max_backoff_seconds=6.0)
      )
  pauses = [p for p in pauses if p]
  first = pauses[0]
  assert 0.5 <= first < 1
  # 2^attempt times the first one, never more than six seconds.
  assert pauses == pytest.approx([min(first * 2**i, 6.0) for i in range(5)])


def test_concurrency_is_bounded_and_waiting_for_a_slot_is_no_attempt(monkeypatch):
  # An attempt begins, and its time limit with it, only once it has a slot.
  running = []
  most = []
  ended = [0.0]  # And a clock: a second for each that has ended.

  async def attempt(self, body):
    running.append(body)
    most.append(len(running))
    await asyncio.sleep(0.01)
    running.remove(body)
    ended[0] += 1.0
    return openai_protocol.Answer('Because.', 'stop')

  monkeypatch.setattr(client_lib.EndpointClient, '_post', attempt)
  monkeypatch.setattr(
    client_lib, 'time', types.SimpleNamespace(monotonic=lambda: ended[0])
  )
  found = generate(config('http://127.0.0.1:1/v1', concurrency=3), times=12)
  assert len(found) == 12 and max(most) == 3
  waits = sorted(f.queue_seconds for f in found)
  # Three wait for nobody; the last one for nine, and for no attempt of its own.
  assert waits[:3] == [0, 0, 0] and 9 <= waits[-1] < 12


def test_a_pause_holds_no_slot():
  # The first request pauses before its retry; the others pass it by.
  with Server(Reply(503, b'', {'Retry-After': '2'}), Reply()) as server:
    generate(config(server.url, concurrency=1, max_backoff_seconds=2.0), times=4)
  seeds = [body['seed'] for _, _, body in server.requests]
  assert len(set(seeds)) == 4 and seeds[4:] == seeds[:1]


def test_the_key_is_in_no_log_line_and_no_error(caplog):
  caplog.set_level(logging.DEBUG)
  echo = f'{{"error": "bad key {KEY} in Bearer {KEY}"}}'.encode()
  texts = []
  for reply in (
    Reply(401, echo),
    Reply(400, echo),
    Reply(500, echo),
    Reply(413, echo),
    Reply(body=echo),
    Reply(drop=True),
    Reply(),
  ):
    with Server(reply) as server:
      try:
        generate(config(server.url))
      except (
        client_lib.Refused,
        language_model.Unreachable,
        language_model.PromptTooLong,
      ) as error:
        texts.append(''.join(traceback.format_exception(error)))
      assert server.requests[0][1]['Authorization'].endswith(KEY)
  assert len(texts) == 6
  client = client_lib.EndpointClient(config('http://127.0.0.1:1/v1'))
  texts += [
    repr(client),
    repr(client._headers),
    repr(vars(client._clients)),
    repr(client._config),
  ]
  assert caplog.text
  assert KEY not in caplog.text
  assert not any(KEY in t for t in texts)


@pytest.mark.parametrize('value', ['', '  ', 'two words', 'line\nbreak', 'kéy'])
def test_a_key_that_cannot_be_one_is_an_error_at_start(monkeypatch, value):
  monkeypatch.setenv(VARIABLE, value)
  with pytest.raises(ValueError, match=VARIABLE) as error:
    client_lib.EndpointClient(config('http://127.0.0.1:1/v1'))
  if value.strip():
    assert value not in str(error.value)


def test_an_unset_variable_is_an_error_at_start():
  with pytest.raises(ValueError, match='NO_SUCH_VARIABLE holds no key'):
    client_lib.EndpointClient(
      config('http://h/v1', api_key_variable='NO_SUCH_VARIABLE')
    )


@pytest.mark.parametrize(
  ('change', 'match'),
  [
    ({'base_url': 'ftp://h/v1'}, 'base_url'),
    ({'base_url': '127.0.0.1:80'}, 'base_url'),
    ({'base_url': 'http://me:hush@h/v1'}, 'credentials'),
    ({'base_url': 'http://h/v1?key=hush'}, 'credentials'),
    ({'model': ''}, 'model'),
    ({'thinking': 'maybe'}, "'auto', 'on' or 'off'"),
    ({'thinking_field': 'think'}, 'thinking_field'),
    ({'thinking': 'off', 'api': 'completions'}, 'chat template'),
    ({'thinking': 'on', 'thinking_field': ''}, 'no field'),
    ({'concurrency': 0}, 'concurrency'),
    ({'max_attempts': 0}, 'max_attempts'),
    ({'timeout_seconds': 0.0}, 'timeout_seconds'),
    ({'connect_seconds': float('nan')}, 'connect_seconds'),
    ({'backoff_seconds': -1.0}, 'backoff_seconds'),
    ({'token_limit_field': 'limit'}, 'token_limit_field'),
    ({'api': 'responses'}, 'api'),
    ({'requests_per_minute': -1.0}, 'requests_per_minute'),
    ({'tokens_per_minute': float('inf')}, 'tokens_per_minute'),
    ({'breaker_failures': -1}, 'breaker_failures'),
  ],
)
def test_a_config_that_cannot_work_is_an_error(change, match):
  with pytest.raises(ValueError, match=match) as error:
    config(
      **(
        {'url': 'http://h/v1'}
        | {'url' if k == 'base_url' else k: v for k, v in change.items()}
      )
    )
  assert 'hush' not in str(error.value)


def test_count_tokens_and_an_empty_prompt():
  client = client_lib.EndpointClient(config('http://127.0.0.1:1/v1'))
  # 9 and 11 characters: 20 / 4 tokens, and 4 for each of the two messages.
  assert client.count_tokens(PROMPT) == 13
  assert client.count_tokens(()) == 0
  with pytest.raises(ValueError, match='empty'):
    generate(config('http://127.0.0.1:1/v1'), prompt=())


def _escaped(key):
  """The key as JSON may write it: every character by its number."""
  return ''.join(f'\\u{ord(c):04X}' for c in key)


@pytest.mark.parametrize('spelled', [KEY, _escaped(KEY), KEY[:5] + _escaped(KEY[5:])])
def test_a_key_that_a_server_repeats_is_masked_in_a_completion(spelled):
  body = completion('Your key is @.').replace(b'@', spelled.encode())
  with Server(Reply(body=body)) as server:
    (found,) = generate(config(server.url))
  assert found.text == 'Your key is [key].'


def test_a_word_that_serves_as_a_key_may_be_in_an_answer(monkeypatch):
  monkeypatch.setenv(VARIABLE, 'EMPTY')
  with Server(Reply(body=completion('The set is EMPTY.'))) as server:
    (found,) = generate(config(server.url))
  assert found.text == 'The set is EMPTY.'


@pytest.mark.parametrize('status', [400, 404, 418, 422, 500])
@pytest.mark.parametrize('spelled', [KEY, _escaped(KEY)])
def test_a_key_is_masked_in_errors_and_logs(status, spelled, caplog):
  body = f'{{"error": "bad key {spelled}"}}'.encode()
  reply = Reply(status=status, body=body, headers={'X-Key': KEY})
  caplog.set_level(logging.DEBUG)  # --verbosity=1.
  with Server(reply) as server:
    with pytest.raises(Exception) as caught:
      generate(config(server.url, max_attempts=1))
  for text in (str(caught.value), caplog.text):
    assert KEY not in text and _escaped(KEY).lower() not in text.lower()


_PACKED = gzip.compress(b' ' * (64 << 20))  # 64 KB that become 64 MB.


@pytest.mark.parametrize(
  ('coding', 'body'),
  [
    ('gzip, gzip', gzip.compress(gzip.compress(completion()))),
    ('gzip,gzip,gzip', b'x'),
    ('gzip, identity', b'x'),
    ('br', b'x'),
    ('zstd', b'x'),
    ('compress', b'x'),
    ('x', b'x'),
    ('gzip', b'x'),
    ('gzip', _PACKED),
    ('gzip', gzip.compress(completion())[:-9]),
    ('deflate', b'x'),
    (',', b'x'),
  ],
  ids=range(12),
)
def test_a_body_that_is_packed_oddly_is_refused(coding, body):
  reply = Reply(body=body, headers={'Content-Encoding': coding})
  with Server(reply) as server:
    with pytest.raises(language_model.Unreachable):
      generate(config(server.url, max_attempts=1))


def test_a_body_may_be_packed_once():
  reply = Reply(
    body=gzip.compress(completion('Yes.')), headers={'Content-Encoding': 'gzip'}
  )
  with Server(reply) as server:
    (found,) = generate(config(server.url))
  assert found.text == 'Yes.'
  assert server.requests[0][1]['Accept-Encoding'] == 'gzip, deflate'


@pytest.mark.parametrize(
  'url',
  [
    'http://[',
    'http://a:port/v1',
    'http://a:99999999/v1',
    'http:// a/v1',
    'http://\x7f/v1',
    '',
    'a',
    'ftp://a/v1',
    'http:///v1',
    '//a/v1',
  ],
)
def test_an_address_that_is_none_is_refused(url):
  with pytest.raises(ValueError, match='base_url') as caught:
    config(url)
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
  ('host', 'is_ours'),
  [
    ('127.0.0.1', True),
    ('127.1.2.3', True),
    ('localhost', True),
    ('LOCALHOST.', True),
    ('[::1]', True),
    ('a.localhost', True),
    ('128.0.0.1', False),
    ('localhost.org', False),
    ('10.0.0.1', False),
  ],
)
def test_what_is_this_machine(host, is_ours):
  assert config(f'http://{host}:8000/v1').is_of_this_machine == is_ours
