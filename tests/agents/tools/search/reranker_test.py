"""An order by meaning, from an endpoint on the loopback."""

import asyncio
import contextlib
import dataclasses
import hashlib
import http.server
import json
import threading

import numpy as np
import pytest

from agentflow_jax import records
from agentflow_jax.agents import language_model
from agentflow_jax.agents.endpoints import client as client_lib
from agentflow_jax.agents.endpoints import settings as settings_lib
from agentflow_jax.agents.tools import base
from agentflow_jax.agents.tools.search import passages, reranker, search_tool

_KEY = records.RequestKey(0, records.Purpose.SOLVE, 0, 'q', 0, module='tool/search')


def _vector(text):
  """Eight numbers that are the text's own."""
  seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], 'big')
  return np.random.default_rng(seed).standard_normal(8)


class _Server(http.server.ThreadingHTTPServer):
  """Speaks /embeddings: one vector a text, the last one first."""

  def __init__(self, vector=_vector, body=None, status=200):
    super().__init__(('127.0.0.1', 0), _Handler)
    self.vector, self.body, self.status = vector, body, status
    self.asked = []
    self.url = f'http://127.0.0.1:{self.server_address[1]}/v1'

  def __enter__(self):
    self._thread = threading.Thread(
      target=self.serve_forever, kwargs={'poll_interval': 0.02}
    )
    self._thread.start()
    return self

  def __exit__(self, *unused):
    self.shutdown()
    self._thread.join()
    self.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
  def do_POST(self):  # pylint: disable=invalid-name
    server = self.server
    asked = json.loads(self.rfile.read(int(self.headers['Content-Length'])))
    server.asked.append((self.path, asked))
    rows = [
      {'index': i, 'embedding': list(server.vector(text))}
      for i, text in enumerate(asked['input'])
    ]
    said = {'data': rows[::-1], 'usage': {'prompt_tokens': 10}}
    body = server.body or json.dumps(said).encode()
    self.send_response(server.status)
    self.send_header('Content-Length', str(len(body)))
    self.end_headers()
    self.wfile.write(body)

  def log_message(self, *args):
    del args


def _with_client(url, use, **changes):
  """What `use(client)` returns, the client closed, and its usage."""
  settings = {'max_attempts': 2, 'backoff_seconds': 0.01} | changes

  async def run():
    async with contextlib.AsyncExitStack() as stack:
      client = client_lib.EndpointClient(
        settings_lib.EndpointConfig(base_url=url, model='m', **settings)
      )
      stack.push_async_callback(client.aclose)
      token = base.request_key.set(_KEY)
      stack.callback(base.request_key.reset, token)
      return await use(client), client.usage

  return asyncio.run(run())


def _oracle(query, texts):
  """The definition, in float64."""
  cosines = []
  for text in texts:
    a, b = _vector(query), _vector(text)
    cosines.append((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()))
  return sorted(range(len(texts)), key=lambda i: (-cosines[i], i))


def test_the_order_is_that_of_the_cosines():
  texts = [f'text {i}' for i in range(40)]
  texts[30] = texts[3]  # Equal ones keep their order.
  with _Server() as server:

    async def use(client):
      ranker = reranker.Ranker(client)
      return [await ranker.order(f'query {i}', texts) for i in range(5)]

    found, usage = _with_client(server.url, use, prompt_price=2.0)
  assert found == [_oracle(f'query {i}', texts) for i in range(5)]
  assert [path for path, _ in server.asked] == ['/v1/embeddings'] * 5
  assert server.asked[0][1]['model'] == 'm'
  # Each passage is asked for once, queries always.
  assert [len(body['input']) for _, body in server.asked] == [40, 1, 1, 1, 1]
  used = usage['tool/search']
  assert (used.requests, used.prompt_tokens) == (5, 50)
  assert used.cost == pytest.approx(5 * 10 * 2.0 / 1e6)


@pytest.mark.parametrize('kept', [0, 1, 5, 100])
def test_what_is_kept_is_bounded_and_changes_no_order(kept):
  texts = [f'text {i}' for i in range(9)]
  with _Server() as server:

    async def use(client):
      ranker = reranker.Ranker(client, kept=kept)
      await asyncio.gather(*(ranker.order(f'other {i}', texts[i:]) for i in range(8)))
      found = await ranker.order('query', texts)
      return found, len(ranker._vectors)

    (found, size), _ = _with_client(server.url, use)
  assert found == _oracle('query', texts)
  assert size == min(kept, 9)


def test_prefixes_stand_before_texts_that_are_cut():
  with _Server() as server:

    async def use(client):
      ranker = reranker.Ranker(
        client, query_prefix='query: ', passage_prefix='passage: '
      )
      return await ranker.order('why', ['x' * 10_000, 'a \ud800 b'])

    _with_client(server.url, use)
  ((_, body),) = server.asked
  assert body['input'] == [
    'query: why',
    'passage: ' + 'x' * 6000,
    'passage: a \ufffd b',
  ]


def test_a_vector_of_zeros_is_like_nothing():
  def vector(text):
    return {'q': [1.0, 0.0], 'like': [2.0, 1.0], 'unlike': [-1.0, 0.5]}.get(
      text, [0.0, 0.0]
    )

  with _Server(vector) as server:

    async def use(client):
      return await reranker.Ranker(client).order('q', ['unlike', 'zero', 'like'])

    found, _ = _with_client(server.url, use)
  assert found == [2, 1, 0]


@pytest.mark.parametrize(
  'data',
  [
    'no JSON',
    [],
    [{'index': 0, 'embedding': [1.0]}],
    [{'index': 0, 'embedding': [1.0]}] * 2,
    [{'index': i, 'embedding': [1.0]} for i in range(3)],
    [{'index': 0, 'embedding': [1.0]}, {'index': 1, 'embedding': [1.0, 2.0]}],
    [{'index': i, 'embedding': []} for i in range(2)],
    [{'index': i, 'embedding': 1.0} for i in range(2)],
    [{'index': i, 'embedding': '12'} for i in range(2)],
    [{'index': i, 'embedding': ['1', '2']} for i in range(2)],
    [{'index': i, 'embedding': [True]} for i in range(2)],
    [{'index': i, 'embedding': [float('nan')]} for i in range(2)],
    [{'index': i, 'embedding': [1e300]} for i in range(2)],
    [{'index': i, 'embedding': [10**400]} for i in range(2)],
    [{'index': [], 'embedding': [1.0]} for _ in range(2)],
  ],
)
@pytest.mark.filterwarnings('ignore:overflow encountered')
def test_what_is_no_embedding_is_asked_for_again_and_then_an_error(data):
  body = b'{"data": ' if data == 'no JSON' else json.dumps({'data': data}).encode()
  with _Server(body=body) as server:
    with pytest.raises(language_model.Unreachable, match='embeddings'):
      _with_client(server.url, lambda client: reranker.Ranker(client).order('q', ['t']))
  assert len(server.asked) == 2


def test_a_refusal_names_the_interface():
  with _Server(body=b'no such model', status=404) as server:
    with pytest.raises(client_lib.Refused, match='/embeddings gave status 404'):
      _with_client(server.url, lambda client: reranker.Ranker(client).order('q', ['t']))


def test_search_returns_the_closest_of_what_has_a_word():
  corpus = passages.Corpus(
    tuple(passages.Passage(str(i), f'T{i}', f'town number{i}') for i in range(30))
  )
  with _Server() as server:

    async def use(client):
      tool = search_tool.make(
        corpus, top_k=2, ranker=reranker.Ranker(client), candidates=12
      )
      found = await tool.call({'query': 'town'})
      nothing = await tool.call({'query': 'zanzibar'})
      return found, nothing

    (found, nothing), _ = _with_client(server.url, use)
  # Equal by BM25: the first twelve are its candidates.
  texts = [f'T{i}\ntown number{i}' for i in range(12)]
  best = _oracle('town', texts)[:2]
  assert found == '\n'.join(f'town number{i}' for i in best)
  assert best != [0, 1]
  assert nothing == 'No passage has any of these words.'
  ((_, body),) = server.asked
  assert body['input'] == ['town', *texts]


def test_a_key_of_its_own_where_nobody_gave_one():
  with _Server() as server:

    async def use(client):
      token = base.request_key.set(None)
      try:
        return await reranker.Ranker(client).order('q', ['a', 'b'])
      finally:
        base.request_key.reset(token)

    found, usage = _with_client(server.url, use)
  assert sorted(found) == [0, 1]
  assert dataclasses.asdict(usage['tool/search'])['requests'] == 1
