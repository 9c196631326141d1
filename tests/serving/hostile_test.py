"""The server and clients that send half of a request, or what is none."""

import asyncio
import contextlib
import dataclasses
import json
import logging
import pathlib
import re
import resource
import socket
import subprocess
import sys
import time

import httpx
import pytest

from agentflow_jax import records
from agentflow_jax.config import loading, schema
from agentflow_jax.serving import app, connections, incoming, server
from tests.config import mini
from tests.serving import listening

_KEY = 'schlüssel'
_BOUNDS = connections.Bounds(
  header_seconds=0.5,
  body_seconds=0.5,
  write_seconds=0.5,
  linger_seconds=0.5,
  connections=20,
)
_CHAT = {'model': 'm', 'messages': [{'role': 'user', 'content': 'x'}]}


class _Model:
  """Says 'ab'; the prompt 'wait' is answered when the client has gone."""

  max_prompt_tokens, is_closed = 1 << 20, False

  def __init__(self):
    self.tokenizer = self
    self.vocab_size, self.waiting = 256, 0

  def encode(self, text):
    return list(text.encode())

  def decode(self, ids):
    return bytes(ids).decode(errors='replace')

  def render(self, segments, tools=()):
    del tools
    return self.encode(segments[-1].text)

  async def sample(self, prompt, sampling, key, on_ids=None):
    del key
    if bytes(prompt) == b'wait':
      if on_ids:
        on_ids([97])
      self.waiting += 1
      try:
        await asyncio.Event().wait()
      finally:
        self.waiting -= 1
    text = 'ab' * (sampling.max_new_tokens // 2)
    return records.Completion(
      text, response_ids=tuple(text.encode()), logprobs=(-1.0,) * len(text)
    )


@contextlib.contextmanager
def _serving(key='', bounds=_BOUNDS, hosts=frozenset({'proxy.example'}), most=8):
  model = _Model()
  service = app.Service(model, 'm', most, key=key, hosts=hosts)
  with listening.listening(app.make(service), bounds) as url:
    yield int(url.rpartition(':')[2]), model


@pytest.fixture(scope='module', name='place')
def _place():
  with _serving() as found:
    yield found


@pytest.fixture(name='logged')
def _logged():
  """Errors that were logged: none of this is one."""
  found = []

  class Handler(logging.Handler):
    def emit(self, record):
      found.append(record.getMessage())

  handler = Handler(logging.ERROR)
  loggers = [logging.getLogger(n) for n in ('', 'uvicorn.error', 'asyncio')]
  for logger in loggers:
    logger.addHandler(handler)
  yield found
  for logger in loggers:
    logger.removeHandler(handler)
  assert not found


def _connect(port):
  return socket.create_connection(('127.0.0.1', port), timeout=10)


def _answer(port, *sent, end=False):
  """Returns all that comes back for some bytes, until the server ends it."""
  with _connect(port) as client:
    for part in sent:
      client.sendall(part)
    if end:
      client.shutdown(socket.SHUT_WR)
    return _rest(client)


def _rest(client):
  said = b''
  with contextlib.suppress(ConnectionResetError):
    while chunk := client.recv(1 << 16):
      said += chunk
  return said


def _is_well(port):
  return httpx.get(f'http://127.0.0.1:{port}/health').status_code == 200


def _post(body, *headers, path='/v1/chat/completions', length=None):
  body = body if isinstance(body, bytes) else json.dumps(body).encode()
  lines = [f'POST {path} HTTP/1.1', 'Host: localhost', *headers]
  if length is None:
    length = len(body)
  if length is not False:
    lines.append(f'Content-Length: {length}')
  lines.append('Connection: close')
  return '\r\n'.join([*lines, '', '']).encode() + body


def _health(host):
  return f'GET /health HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n'.encode()


_LONG = 'y' * 100_000
# (what is sent, the status, a part of the answer); None for the end alone.
_TABLE = {
  'nothing': (b'', 408, b''),
  'half a line': (b'POST /v1', 408, b''),
  'half of the headers': (b'POST / HTTP/1.1\r\nHost: localhost\r\n', 408, b''),
  'half a body': (_post(b'{', length=9), 408, b''),
  'half a chunk': (
    _post(b'5\r\nab', 'Transfer-Encoding: chunked', length=False),
    408,
    b'',
  ),
  'no HTTP': (b'\x16\x03\x01\x02\x00\x01\x00' * 40 + b'\r\n\r\n', 400, b''),
  'endless headers': (
    b'GET / HTTP/1.1\r\nHost: localhost\r\nX: ' + b'a' * 200_000,
    400,
    b'',
  ),
  'endless target': (b'GET /' + b'a' * 200_000, 400, b''),
  'a length that is none': (_post(b'{}', length='abc'), 400, b''),
  'a negative length': (_post(b'{}', length=-1), 400, b''),
  'two lengths': (_post(b'{}', 'Content-Length: 5'), 400, b''),
  'length and chunks': (
    _post(b'0\r\n\r\n', 'Transfer-Encoding: chunked', length=5),
    400,
    b'exclude each other',
  ),
  'a length beyond the limit': (_post(b'{', length=10**12), 413, b'exceeds'),
  'a body beyond the limit': (
    _post(b'x' * (5 << 20)),
    413,
    b'the body exceeds 4194304 bytes',
  ),
  'chunks beyond the limit': (
    _post(
      (b'100000\r\n' + b'x' * (1 << 20) + b'\r\n') * 6,
      'Transfer-Encoding: chunked',
      length=False,
    ),
    413,
    b'exceeds',
  ),
  'another host': (_health('evil.example:80'), 421, b'localhost'),
  'a host like an address': (_health('127.0.0.1.evil.example'), 421, b''),
  'a foreign address': (_health('192.168.1.7'), 421, b''),
  'no host': (b'GET /health HTTP/1.1\r\n\r\n', 400, b''),
  'a surrogate in a name': (
    _post(b'{"model": "m", "\\ud800": 1}'),
    400,
    b'unknown or unsupported',
  ),
  'a surrogate in a value': (
    _post(b'{"model": "m", "suffix": "\\ud800"}'),
    400,
    b'suffix=',
  ),
  'a surrogate in a model': (_post(b'{"model": "\\udfff"}'), 404, b'does not exist'),
  'a long name': (_post({'model': 'm', _LONG: 1}), 400, b'yyy...yyy'),
  'a long value': (_post({'model': 'm', 'logit_bias': _LONG}), 400, b'yyy...yyy'),
  'a long model': (_post({'model': _LONG}), 404, b'yyy...yyy'),
  'a long model in a path': (
    f'GET /v1/models/{_LONG[:9000]} HTTP/1.1\r\nHost: localhost\r\n'
    'Connection: close\r\n\r\n'.encode(),
    404,
    b'yyy...yyy',
  ),
  'many names of a message': (
    _post(
      {
        'model': 'm',
        'messages': [
          {'role': 'user', 'content': 'x'} | {f'n{i}': 1 for i in range(9999)}
        ],
      }
    ),
    400,
    b'not supported',
  ),
  'deep JSON': (_post(b'[' * 200_000), 400, b'is not JSON'),
  'a deep value': (
    _post(b'{"model":"m","suffix":' + b'[' * 500 + b']' * 500 + b'}'),
    400,
    b'suffix',
  ),
  'a number of 5000 digits': (
    _post(b'{"seed": ' + b'9' * 5000 + b'}'),
    400,
    b'is not JSON',
  ),
  'a body that is no text': (_post(b'\xff\xfe{'), 400, b'is not JSON'),
  'another method': (
    b'DELETE /v1/models HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n',
    405,
    b'',
  ),
  'an upgrade': (
    b'GET /v1/models HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n'
    b'Connection: upgrade, close\r\n\r\n',
    200,
    b'',
  ),
}


@pytest.mark.parametrize('name', _TABLE)
def test_what_is_no_request_is_a_short_answer(place, logged, name):
  port, _ = place
  sent, status, part = _TABLE[name]
  said = _answer(port, sent)
  head, _, body = said.partition(b'\r\n\r\n')
  assert head.startswith(f'HTTP/1.1 {status} '.encode()), head[:200]
  assert part in body and len(said) < 2000
  assert _is_well(port)


def test_there_are_enough_requests():
  assert len(_TABLE) >= 20


def _stray(port, ask, path='/v1/chat/completions'):
  client = _connect(port)
  client.sendall(_post(ask, path=path))
  return client


def _until(condition):
  end = time.monotonic() + 10
  while not condition():
    assert time.monotonic() < end
    time.sleep(0.01)


@pytest.mark.parametrize('choices', [1, 3])
@pytest.mark.parametrize('stream', [False, True])
@pytest.mark.parametrize('reset', [False, True])
def test_a_client_that_leaves_is_no_error(place, logged, choices, stream, reset):
  port, model = place
  wait = {
    'messages': [{'role': 'user', 'content': 'wait'}],
    'n': choices,
    'stream': stream,
    'model': 'm',
  }
  client = _stray(port, wait)
  _until(lambda: model.waiting == choices)
  if reset:
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b'\1\0\0\0\0\0\0\0')
  client.close()
  _until(lambda: not model.waiting)
  assert _is_well(port)


@pytest.mark.parametrize('sent', [10, 120, -1])
def test_nor_is_one_that_leaves_before_it_has_asked(place, logged, sent):
  port, _ = place
  with _connect(port) as client:
    client.sendall(_post(_CHAT)[:sent])
  assert _is_well(port)


@pytest.mark.parametrize(
  'host',
  [
    'localhost',
    'localhost:1',
    '127.0.0.1:80',
    '127.9.9.9',
    '[::1]:80',
    'a.localhost',
    'LOCALHOST.',
    'Proxy.Example:8000',
  ],
)
def test_names_of_this_machine_are_answered(place, host):
  port, _ = place
  response = httpx.get(f'http://127.0.0.1:{port}/health', headers={'Host': host})
  assert response.status_code == 200


@pytest.mark.parametrize(
  'origin, status',
  [
    ('http://localhost:3000', 200),
    ('http://127.0.0.1', 200),
    ('https://proxy.example', 200),
    ('https://evil.example', 403),
    ('null', 403),
    ('http://[', 403),
    ('file://', 403),
  ],
)
def test_a_page_of_another_site_cannot_ask(place, origin, status):
  port, _ = place
  response = httpx.post(
    f'http://127.0.0.1:{port}/v1/chat/completions',
    json=_CHAT,
    headers={'Origin': origin, 'Content-Type': 'text/plain'},
  )
  assert response.status_code == status


def test_elsewhere_every_host_is_answered():
  with _serving(hosts=None) as (port, _):
    response = httpx.get(
      f'http://127.0.0.1:{port}/health',
      headers={'Host': 'any.example', 'Origin': 'https://any.example'},
    )
  assert response.status_code == 200


def test_host_names_that_would_be_ignored_are_an_error(tmp_path):
  config = loading.load(str(mini.ROOT / 'experiments' / 'quickstart.py'))
  with pytest.raises(schema.ConfigError, match='--host_names'):
    server.serve(
      config,
      planner=str(tmp_path),
      name='m',
      host='0.0.0.0',
      port=0,
      key_variable='',
      host_names=['a.example'],
    )


@pytest.mark.parametrize('scheme', ['Bearer', 'bearer', 'BEARER'])
def test_the_scheme_of_a_key_has_any_case(scheme):
  with _serving(key=_KEY) as (port, _):
    url = f'http://127.0.0.1:{port}/v1/models'
    for sent, status in (
      (f'{scheme} {_KEY}', 200),
      (f'{scheme}  {_KEY}', 200),
      (f'{scheme} {_KEY}x', 401),
      (_KEY, 401),
      (f'Basic {_KEY}', 401),
    ):
      response = httpx.get(url, headers={'Authorization': sent.encode()})
      assert response.status_code == status


def test_a_connection_serves_many_requests_but_is_not_kept_for_one_half(place):
  port, _ = place
  ask = _post(_CHAT).replace(b'Connection: close\r\n', b'')
  with _connect(port) as client:
    for _ in range(3):
      client.sendall(ask)
      assert client.recv(1 << 16).startswith(b'HTTP/1.1 200')
    client.sendall(ask[:30])
    begun = time.monotonic()
    assert _rest(client).startswith(b'HTTP/1.1 408')
    assert time.monotonic() - begun < 5  # uvicorn alone would wait for ever.


def test_an_idle_connection_is_kept_longer_than_clients_keep_theirs():
  service = app.Service(_Model(), 'm', 8)
  assert connections.Bounds().idle_seconds > 5  # What httpx and openai have.
  bounds = dataclasses.replace(_BOUNDS, idle_seconds=1)
  with listening.listening(app.make(service), bounds) as base:
    port = int(base.rpartition(':')[2])
    ask = _post(_CHAT).replace(b'Connection: close\r\n', b'')
    with _connect(port) as client:
      client.sendall(ask)
      assert client.recv(1 << 16).startswith(b'HTTP/1.1 200')
      assert _rest(client) == b''  # It is closed, without a word.
  assert connections.make_server(app.make(service)).config.timeout_keep_alive == 75


def test_pipelined_requests_are_all_answered(place):
  port, _ = place
  ask = _post(_CHAT).replace(b'Connection: close\r\n', b'')
  said = _answer(port, ask + ask + _post(_CHAT))
  assert said.count(b'HTTP/1.1 200') == 3


def test_a_refused_body_is_read_no_further_and_the_answer_arrives():
  with _serving(key=_KEY) as (port, _):
    with _connect(port) as client:
      sent = _post(b'x' * 1000, length=4 << 20)
      client.sendall(sent.replace(b'close', b'keep-alive'))
      assert _rest(client).startswith(b'HTTP/1.1 401')
      # It ends though the client goes on; each byte would keep it open.
      with pytest.raises(ConnectionError):
        for _ in range(200):
          client.sendall(b'x')
          time.sleep(0.05)


def test_half_sent_large_bodies_are_bounded_together(monkeypatch):
  monkeypatch.setattr(incoming, '_SMALL_BODY_BYTES', 1000)
  monkeypatch.setattr(incoming, '_MAX_BODIES_BYTES', 100_000)
  bounds = connections.Bounds(body_seconds=60, connections=20)
  large = _post(b' ' * 45_000 + json.dumps(_CHAT).encode())
  with _serving(bounds=bounds) as (port, _), contextlib.ExitStack() as stack:
    for _ in range(2):
      client = stack.enter_context(_connect(port))
      client.sendall(_post(b'x' * 45_000, length=90_000))
    until = time.monotonic() + 10
    while not (said := _answer(port, large)).startswith(b'HTTP/1.1 503'):
      assert time.monotonic() < until
    assert b'server_error' in said
    # Small ones are answered all the while.
    assert _answer(port, _post(_CHAT)).startswith(b'HTTP/1.1 200')
    stack.close()
    while not (said := _answer(port, large)).startswith(b'HTTP/1.1 200'):
      assert time.monotonic() < until, said  # What the others held is free again.


def test_an_answer_that_nobody_reads_is_given_up():
  # More than the buffers of both sockets hold.
  with _serving(most=1 << 19) as (port, _):
    ask = _CHAT | {'n': 64, 'logprobs': True, 'max_tokens': 1 << 11}
    with socket.socket() as client:
      client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
      client.settimeout(10)
      client.connect(('127.0.0.1', port))
      client.sendall(_post(ask))
      # uvicorn alone would wait for ever: what it has written is not all.
      until = time.monotonic() + 120
      while not _is_broken(client):
        assert time.monotonic() < until
        time.sleep(0.1)
      with contextlib.suppress(ConnectionError):
        said = _rest(client)
        head, _, body = said.partition(b'\r\n\r\n')
        # A reset may discard even what had arrived.
        for length in re.findall(rb'content-length: (\d+)', head.lower()):
          assert len(body) < int(length)


def _is_broken(client):
  """Whether the server has reset a connection."""
  try:
    client.send(b'x')
  except ConnectionError:
    return True
  return False


def test_a_new_connection_takes_the_place_of_one_that_waits(logged):
  bounds = connections.Bounds(header_seconds=60, connections=5)
  with _serving(bounds=bounds) as (port, model), contextlib.ExitStack() as stack:
    idle = [stack.enter_context(_connect(port)) for _ in range(5)]
    time.sleep(0.2)
    assert _is_well(port)
    idle[-1].setblocking(False)
    with pytest.raises(BlockingIOError):  # The oldest went, not this one.
      idle[-1].recv(1)
    assert _rest(idle[0]) == b''
    wait = {'model': 'm', 'messages': [{'role': 'user', 'content': 'wait'}]}
    for _ in range(5):  # These are being answered, and stay.
      stack.enter_context(_stray(port, wait))
    _until(lambda: model.waiting == 5)
    assert _answer(port, b'GET /health').startswith(b'HTTP/1.1 503')
    assert model.waiting == 5


_HALF_OPEN = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 1024))
sys.path.insert(0, {root!r})
from agentflow_jax.serving import app
from tests.serving import hostile_test, listening
service = app.Service(hostile_test._Model(), 'm', 8, key={key!r})
with listening.listening(app.make(service)) as url:
  print(url, flush=True)
  sys.stdin.read()
"""


@pytest.mark.parametrize('key', ['', pytest.param('k', marks=pytest.mark.slow)])
def test_a_thousand_half_sent_requests_cost_nobody_else(key):
  soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
  if hard != resource.RLIM_INFINITY and hard < 1400:
    pytest.skip('this process may not open 1,100 connections')
  root = str(pathlib.Path(__file__).parents[2])
  if soft != resource.RLIM_INFINITY and soft < 1400:
    resource.setrlimit(resource.RLIMIT_NOFILE, (1400, hard))
  try:
    with (
      subprocess.Popen(
        [sys.executable, '-c', _HALF_OPEN.format(root=root, key=key)],
        cwd=root,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
      ) as process,
      contextlib.ExitStack() as stack,
    ):
      port = int(process.stdout.readline().rpartition(b':')[2])
      for i in range(1100):
        client = stack.enter_context(_connect(port))
        client.sendall(_post(_CHAT)[: (20, 60, -1)[i % 3]])
      # The time is part of what is promised, not a measurement.
      response = httpx.get(f'http://127.0.0.1:{port}/health', timeout=2.0)
      assert response.status_code == 200
      headers = {'Authorization': f'Bearer {key}'}
      response = httpx.post(
        f'http://127.0.0.1:{port}/v1/chat/completions',
        json=_CHAT,
        headers=headers if key else {},
        timeout=10,
      )
      assert response.status_code == 200
      process.stdin.close()
      assert process.stderr.read() == b''
  finally:
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
