"""A served desk: our own client and OpenEnv's play it, and no place stays taken."""

import asyncio
import contextlib
import dataclasses
import json
import os
import socket
import subprocess
import sys
import time

import httpx
import pytest
from websockets import exceptions
from websockets.asyncio import client as asynchronous
from websockets.sync import client

from agentflow_jax import records
from agentflow_jax.agents import rollout
from agentflow_jax.agents.environments.openenv import environment as openenv
from agentflow_jax.serving import connections, openenv_app, openenv_places
from agentflow_jax.serving import openenv_sessions
from tests.agents.environments import players
from tests.serving import listening, served_desk

_KEY = records.RequestKey(0, records.Purpose.EVALUATE, 0, 't', 0)
# A Python in which `openenv` is installed, which brings many packages with it.
_PYTHON = os.environ.get('AGENTFLOW_OPENENV_PYTHON', '')


@pytest.fixture(scope='module')
def desk(tmp_path_factory):
  return served_desk.made(tmp_path_factory.mktemp('desk'), 32)


@contextlib.contextmanager
def _serving(desk, capacity=8, idle=30.0, bounds=None, hosts=frozenset()):
  """Yields the places of a server, and its URL."""
  places = openenv_places.Places(openenv_sessions.Worlds(desk), capacity, idle)
  service = openenv_app.Service(places, hosts)
  with listening.listening(openenv_app.make(service), bounds, sockets=True) as url:
    yield places, url


def _connected(url, query='', **more):
  return client.connect(
    f'{url.replace("http", "ws")}/ws{query}', proxy=None, compression=None, **more
  )


def _asked(sock, kind, **data):
  sock.send(json.dumps({'type': kind, 'data': data}))
  return json.loads(sock.recv(timeout=10))


def _soon(condition):
  for _ in range(1000):
    if condition():
      return True
    time.sleep(0.01)
  return False


def test_our_own_client_ends_where_the_local_desk_does(desk):
  """Right calls, those without the last one before the end, and the wrong end alone."""

  def ways(task):
    calls = served_desk.calls(task)
    yield calls
    yield calls[:-2] + calls[-1:]
    yield [('finish', {})]

  async def played(environment, task, calls):
    plans = [(t, '; '.join(f'{k}={v}' for k, v in said.items())) for t, said in calls]
    agent = players.agent(environment, *plans, reward=task.reward, max_turns=12)
    done = await rollout.rollout(agent, task, _KEY)
    return done.reward, done.digest, [turn.result.text for turn in done.turns]

  async def both(url):
    remote = openenv.OpenEnv(url, seconds=10.0, capacity=8)
    found = []
    for task in desk.tasks[:6]:
      world = records.World(
        openenv.NAME,
        {'row': {'task_id': task.id}},
        checks=(records.Check('reward', 'reward', {}),),
      )
      there = dataclasses.replace(task, world=world, reward='environment')
      for calls in ways(task):
        found.append(
          (
            await played(desk.environment, task, calls),
            await played(remote, there, calls),
          )
        )
    return found

  with _serving(desk) as (_, url):
    found = asyncio.run(both(url))
  assert all(local == remote for local, remote in found)
  rewards = [local[0] for local, _ in found]
  assert rewards[::3] == [1.0] * 6 and rewards[2::3] == [0.0] * 6
  digests = [local[1] for local, _ in found]
  assert all(digests) and len(set(digests)) > 8


def test_a_full_server_says_so_and_a_place_is_free_when_the_client_sees_the_end(desk):
  with _serving(desk, capacity=2) as (places, url):
    for _ in range(20):
      with _connected(url) as first, _connected(url) as second:
        for sock in (first, second):
          assert _asked(sock, 'reset', seed=0)['type'] == 'observation'
        with _connected(url) as third:
          refused = json.loads(third.recv(timeout=10))
          with pytest.raises(exceptions.ConnectionClosed):
            third.recv(timeout=10)
        for sock in (first, second):
          sock.send('{"type": "close"}')
          with pytest.raises(exceptions.ConnectionClosedOK):
            sock.recv(timeout=10)
        assert places.active == 0
  assert refused['data']['code'] == 'CAPACITY_REACHED'
  assert refused['data']['active_sessions'] == refused['data']['max_sessions'] == 2


def test_connections_that_vanish_leave_no_place_taken(desk):
  async def vanish(url, free):
    async def one(i):
      connection = await asynchronous.connect(f'{url}/ws', proxy=None)
      if i % 4:
        await connection.send('{"type": "reset"}')
      if i % 4 > 1:
        await connection.recv()
      if i % 4 > 2:  # It is gone before it is answered.
        await connection.send('{"type": "step", "data": {"type": "list_tools"}}')
      connection.transport.abort()

    for start in range(0, 200, 8):
      await asyncio.gather(*(one(i) for i in range(start, start + 8)))
      assert await asyncio.to_thread(_soon, free)

  with _serving(desk, capacity=8) as (places, url):
    asyncio.run(vanish(url.replace('http', 'ws'), lambda: places.active == 0))
    with contextlib.ExitStack() as stack:
      for _ in range(8):
        sock = stack.enter_context(_connected(url))
        assert _asked(sock, 'reset')['type'] == 'observation'
      assert places.active == 8


def test_a_connection_that_says_nothing_is_closed_after_the_stated_time(desk):
  with _serving(desk, capacity=1, idle=0.3) as (places, url):
    with _connected(url) as sock:
      assert _asked(sock, 'reset')['type'] == 'observation'
      with pytest.raises(exceptions.ConnectionClosed, match='nothing came for 0.3 s'):
        sock.recv(timeout=10)
      assert _soon(lambda: places.active == 0)


def test_deadlines_of_requests_do_not_count_for_sockets(desk):
  bounds = connections.Bounds(header_seconds=0.3, body_seconds=0.3)
  with _serving(desk, bounds=bounds) as (_, url), _connected(url) as sock:
    assert _asked(sock, 'reset')['type'] == 'observation'
    with pytest.raises(TimeoutError):
      sock.recv(timeout=0.8)
    assert _asked(sock, 'state')['data']['step_count'] == 0


def test_frames_that_are_too_long_or_no_text(desk):
  with _serving(desk) as (places, url):
    with _connected(url) as sock:
      sock.send(b'{"type": "reset"}')
      assert json.loads(sock.recv(timeout=10))['data']['code'] == 'INVALID_JSON'
      with pytest.raises(exceptions.ConnectionClosedError, match='1009'):
        _asked(sock, 'reset', task_id='x' * (1 << 20))
    assert _soon(lambda: places.active == 0)


@pytest.mark.parametrize(
  'headers',
  [{'Host': 'evil.example'}, {'Origin': 'http://evil.example'}, {'Origin': 'null'}],
)
def test_pages_of_other_sites_cannot_connect(desk, headers):
  with _serving(desk) as (places, url):
    more = {'additional_headers': headers}
    if 'Host' in headers:
      more = {'sock': socket.create_connection(('127.0.0.1', int(url.split(':')[2])))}
      url = 'http://evil.example'
    with pytest.raises(exceptions.InvalidStatus, match='403'), _connected(url, **more):
      pass
    assert places.active == 0
  with (
    _serving(desk, hosts=None) as (_, url),
    _connected(url, **{'additional_headers': {'Origin': 'http://evil.example'}}),
  ):
    pass


def test_http_around_it(desk):
  with _serving(desk, capacity=1) as (places, url), httpx.Client(base_url=url) as web:
    assert web.get('/health').json() == {'status': 'healthy'}
    assert web.get('/metadata').json().keys() == {'name', 'description', 'version'}
    assert web.get('/state').json() == {'episode_id': None, 'step_count': 0}
    assert web.get('/schema').json()['action']['required'] == ['type']
    first = web.post('/reset', json={'seed': 3}).json()
    assert first['observation']['task_id'] == desk.tasks[3].id
    assert web.post('/reset').json()['observation']['query'] == desk.tasks[0].query
    listed = web.post('/step', json={'action': {'type': 'list_tools'}}).json()
    assert len(listed['observation']['tools']) == 20
    finish = {'type': 'call_tool', 'tool_name': 'finish', 'arguments': {}}
    done = web.post('/step', json={'action': finish}).json()
    assert 'no episode' in done['observation']['error']['message']
    rpc = {'jsonrpc': '2.0', 'id': 1, 'method': 'tools/list'}
    assert len(web.post('/mcp', json=rpc).json()['result']['tools']) == 20
    # Half a character cannot be written in UTF-8, and is quoted.
    fly = {'type': 'call_tool', 'tool_name': '\ud800'}
    said = web.post('/step', content=json.dumps({'action': fly})).json()
    assert said['observation']['tool_name'] == '\ud800'
    assert web.post('/reset', content=b'{"\\ud800": 1}').status_code == 422
    for path, body, status in (
      ('/reset', b'{', 400),
      ('/reset', b'[]', 422),
      ('/reset', b'{"sed": 1}', 422),
      ('/step', b'{}', 422),
      ('/step', b'{"action": {"type": "fly"}}', 422),
      ('/reset', b' ' * (5 << 20), 413),
      ('/nowhere', b'', 404),
    ):
      answer = web.post(path, content=body)
      assert answer.status_code == status and answer.json()['detail'], path
    assert web.get('/reset').status_code == 405
    with _connected(url) as sock:
      _asked(sock, 'reset')
      assert web.post('/reset').status_code == 503
    assert _soon(lambda: places.active == 0)


def test_a_package_that_is_not_installed_is_named_with_its_extra():
  # In a process of its own: here they are imported already.
  program = (
    'import sys; sys.modules["websockets"] = None\n'
    'from agentflow_jax.config import loading\n'
    'from agentflow_jax.serving import server\n'
    'server.serve_environment(loading.of_environment("desk"), kind="desk",'
    ' split="test", workdir="", capacity=1, idle_seconds=1.0, host="127.0.0.1",'
    ' port=0)'
  )
  done = subprocess.run(
    [sys.executable, '-c', program],
    capture_output=True,
    text=True,
    check=False,
    env=os.environ | {'PYTHONPATH': os.pathsep.join(filter(None, sys.path))},
  )
  assert "needs websockets: pip install -e '.[serve,openenv]'" in done.stderr


def _rpc(web, method, **params):
  body = {'jsonrpc': '2.0', 'id': 7, 'method': method, 'params': params}
  return web.post('/mcp', json=body).json()


def test_requests_of_mcp_may_share_the_session_of_a_connection(desk):
  task = desk.tasks[0]
  with _serving(desk, capacity=1) as (places, url), httpx.Client(base_url=url) as web:
    name = _rpc(web, 'openenv/session/create')['result']['session_id']
    assert 'are taken' in _rpc(web, 'openenv/session/create')['error']['message']
    for odd in ({}, {'session_id': 'x'}, {'session_id': 5}):
      refused = _rpc(web, 'openenv/session/close', **odd)
      assert 'no session' in refused['error']['message']
    assert 'no session' in _rpc(web, 'tools/list', session_id='x')['error']['message']
    with _connected(url, f'?session_id={name}') as sock:
      _asked(sock, 'reset', task_id=task.id)
      for tool, arguments in served_desk.calls(task):
        done = _rpc(web, 'tools/call', name=tool, arguments=arguments, session_id=name)
      assert done['result']['reward'] == 1.0 and done['id'] == 7
      assert _asked(sock, 'step', type='list_tools')['data']['done']
      with _connected(url, f'?session_id={name}') as second:
        said = json.loads(second.recv(timeout=10))
        assert said['data']['code'] == 'SESSION_ERROR'
      ended = _rpc(web, 'openenv/session/close', session_id=name)['result']
      assert ended == {'session_id': name, 'closed': False, 'closing': True}
      assert places.active == 1
    assert _soon(lambda: places.active == 0)
    name = _rpc(web, 'openenv/session/create')['result']['session_id']
    assert _rpc(web, 'openenv/session/close', session_id=name)['result']['closed']
    assert places.active == 0


def test_a_named_session_that_nothing_uses_ends_after_the_stated_time(desk):
  with _serving(desk, idle=0.3) as (places, url), httpx.Client(base_url=url) as web:
    for _ in range(2):
      name = _rpc(web, 'openenv/session/create')['result']['session_id']
      _rpc(web, 'tools/list', session_id=name)
      assert places.active == 1
      assert _soon(lambda: places.active == 0)
    _rpc(web, 'openenv/session/create')  # The end of the server ends it, too.
  assert places.active == 0


_CLIENT = """
import asyncio, json, sys
from openenv.core.env_server.mcp_types import CallToolAction
from openenv.core.generic_client import GenericEnvClient
from openenv.core.mcp_client import MCPToolClient


async def played(url, task, calls, typed):
  kind = MCPToolClient if typed else GenericEnvClient
  async with kind(base_url=url) as env:
    first = await env.reset(task_id=task)
    said = first.observation if typed else None
    query = said.query if typed else first.observation['query']
    if typed:
      assert len(await env.list_tools()) == 20
    results = []
    for tool, arguments in calls:
      action = CallToolAction(tool_name=tool, arguments=arguments)
      done = await env.step(action)
      seen = done.observation
      results.append(seen.result if typed else seen['result'])
    state = await env.state()
    count = state.step_count if typed else state['step_count']
    return query, results, done.reward, done.done, count, done.metadata['digest']


async def main():
  url, plays = sys.argv[1], json.load(sys.stdin)
  print(json.dumps(await asyncio.gather(*(played(url, *play) for play in plays))))


asyncio.run(main())
"""


@pytest.mark.skipif(
  not _PYTHON, reason='AGENTFLOW_OPENENV_PYTHON names no Python with openenv'
)
def test_the_client_of_openenv_plays_32_episodes(desk):
  plays = [
    (task.id, calls, typed)
    for i, task in enumerate(desk.tasks)
    for calls, typed in ((served_desk.calls(task), i % 2), ([('finish', {})], 0))
  ]
  with _serving(desk, capacity=64) as (places, url):
    done = subprocess.run(
      [_PYTHON, '-c', _CLIENT, url],
      input=json.dumps(plays),
      check=True,
      capture_output=True,
      text=True,
    )
    assert _soon(lambda: places.active == 0)
  found = json.loads(done.stdout)
  assert len(found) == 64
  for task, right, wrong in zip(desk.tasks, found[::2], found[1::2]):
    assert right[0] == wrong[0] == task.query
    assert (right[2], right[3], right[4]) == (1.0, True, len(served_desk.calls(task)))
    assert (wrong[2], wrong[3], wrong[4]) == (0.0, True, 1)
    assert right[5] and wrong[1] == ['finished']
