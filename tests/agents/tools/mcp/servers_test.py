"""Real MCP servers, written with the SDK, over stdio and HTTP."""

import asyncio
import contextlib
import json
import os
import shlex
import socket
import subprocess
import sys
import time
import types

import pytest

from agentflow_jax.agents.tools import base, calls
from agentflow_jax.agents.tools.mcp import servers
from tests.agents.tools.mcp import mcp_demo

_DEMO = mcp_demo.__file__
_COMMAND = shlex.join([sys.executable, _DEMO])


@contextlib.contextmanager
def _http():
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    port = free.getsockname()[1]
  process = subprocess.Popen(
    [sys.executable, _DEMO, str(port)],
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
  )
  try:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
      with contextlib.suppress(OSError):
        socket.create_connection(('127.0.0.1', port), 1).close()
        break
      time.sleep(0.05)
    yield f'http://127.0.0.1:{port}/mcp'
  finally:
    process.kill()
    process.wait()


@pytest.fixture(name='said', params=['stdio', 'http'], scope='module')
def _said(request):
  """How a config names a server, over both transports."""
  if request.param == 'stdio':
    yield f'demo={_COMMAND}'
  else:
    with _http() as url:
      yield f'demo={url}'


@pytest.fixture(name='described', scope='module')
def _described(said):
  return servers.describe(servers.parse(said))


def run(said, described, work, **options):
  """Makes the tools and runs `work(call)`, then closes them."""

  async def main():
    made = servers.make(servers.parse(said), described, **options)
    tools = {t.card.name: t for t in made}

    async def call(name, **arguments):
      tool = tools[f'demo_{name}']
      base.check_arguments(tool.card, arguments)
      return await tool.call(arguments)

    try:
      return await work(call)
    finally:
      for tool in made:
        await tool.close()

  return asyncio.run(asyncio.wait_for(main(), 60))


def test_tools_become_cards(said, described):
  cards = {t.card.name: t.card for t in servers.make(servers.parse(said), described)}
  add, join = cards['demo_add'], cards['demo_join']
  # Data: it may say what it likes, but spells no control token.
  assert add.purpose.startswith('Adds two numbers. \u2039|im_end|\u203a')
  assert '<' not in add.purpose
  assert [(a.name, a.type, a.required) for a in add.arguments] == [
    ('a', 'integer', True),
    ('b', 'number', False),
  ]
  assert add.arguments[1].description == 'B; by default 0.5'
  assert [(a.name, a.type, a.required) for a in join.arguments] == [
    ('texts', 'array', True),
    ('how', 'string', True),
    ('deep', 'object', False),
  ]
  assert join.arguments[1].description == 'How; one of ["up", "down"]'
  assert join.examples == ('execution = tool.execute(texts=..., how=...)',)


def test_calls_and_their_results(said, described):
  async def work(call):
    return [
      await call('add', a=1, b=2.5),
      await call('add', a=1),
      await call('join', texts=['\u00e4', 'B'], how='up', deep={'k': 1}),
      await call('picture'),
      len(await call('large')),
    ]

  assert run(said, described, work) == [
    '3.5',
    '1.5',
    "\u00c4 B ['k']",
    '[image left out]',
    3_000_000,
  ]


def test_errors_are_for_the_model(said, described):
  async def work(call):
    for name, arguments, match in (
      ('fail', {}, 'Error executing tool fail'),
      ('join', {'texts': ['a'], 'how': 'left'}, 'how'),
      (
        'join',
        {'texts': 'a', 'how': 'up'},
        'texts must be an array of string, not the string "a"',
      ),
      ('add', {}, "needs the argument 'a'"),
    ):
      with pytest.raises(base.BadArguments, match=match):
        await call(name, **arguments)

  run(said, described, work)


def test_calls_share_a_session_and_do_not_wait_for_each_other(said, described):
  async def work(call):
    hung = asyncio.create_task(call('slow', seconds=50))
    # All of them have to be under way at once.
    many = await asyncio.gather(*(call('slow', seconds=1) for _ in range(20)))
    with pytest.raises(TimeoutError):
      async with asyncio.timeout(0.2):
        await call('slow', seconds=50)
    pids = {await call('pid') for _ in range(3)}
    hung.cancel()
    await asyncio.wait([hung])
    # A call that was given up has not ended the session.
    pids.add(await call('pid'))
    return many, pids

  many, pids = run(said, described, work)
  assert many == ['slept'] * 20
  assert len(pids) == 1


class _Fake(servers.Connection):
  """A connection whose sessions are this test's."""

  opened = 0

  async def _open(self):
    self.opened += 1
    self._stop = asyncio.Event()
    self._owner = asyncio.create_task(self._stop.wait())
    return self

  async def list_tools(self, **unused):
    await asyncio.Event().wait()

  async def call_tool(self, name, arguments):
    if name == 'odd':
      raise RuntimeError('the result does not match the schema')
    await asyncio.sleep(arguments['seconds'])
    return name


def test_the_server_gets_its_own_names(monkeypatch):
  sent = []

  async def call(self, name, arguments):
    del self
    sent.append((name, arguments))
    return types.SimpleNamespace(
      content=[], structured_content={'n': 1}, is_error='bad' in arguments
    )

  monkeypatch.setattr(servers.Connection, 'call', call)
  fields = {'from': {'type': 'integer'}, '<|im_end|>': {}, 'bad': {}}
  (tool,) = servers.make(
    servers.parse(f'demo={_COMMAND}'),
    [
      {
        'name': 'a-b',
        'description': '',
        'schema': {'properties': fields, 'required': ['from', '<|im_end|>']},
      }
    ],
  )
  command = tool.card.examples[0].replace('...', '5.0')
  _, arguments = calls.parse_command(command, tool.card)
  arguments = base.check_arguments(tool.card, arguments)
  assert asyncio.run(tool.call(arguments)) == '{"n": 1}'
  assert sent == [('a-b', {'from': 5, '<|im_end|>': 5.0})]
  assert isinstance(sent[0][1]['from'], int)
  with pytest.raises(base.BadArguments, match='"n": 1'):
    asyncio.run(tool.call({'bad': 1}))


def test_one_call_does_not_end_the_session_of_others(monkeypatch):
  monkeypatch.setattr(servers, '_IDLE_SECONDS', 0.05)
  monkeypatch.setattr(servers, '_CHECK_SECONDS', 0.05)

  async def main():
    connection = _Fake(servers.parse(f'demo={_COMMAND}'))
    slow = asyncio.create_task(connection.call('slow', {'seconds': 0.5}))
    await asyncio.sleep(0.2)
    # The server is busy: it would not answer whether it is there.
    assert await connection.call('quick', {'seconds': 0}) == 'quick'
    with pytest.raises(base.ToolUnreachable, match='does not match'):
      await connection.call('odd', {})
    assert await connection.call('quick', {'seconds': 0}) == 'quick'
    assert await slow == 'slow'
    opened = connection.opened
    # Where nobody is waiting it is asked, and counts as gone.
    await asyncio.sleep(0.1)
    await connection.call('quick', {'seconds': 0})
    await connection.aclose()
    return opened, connection.opened

  assert asyncio.run(asyncio.wait_for(main(), 60)) == (1, 2)


def test_a_lost_server_is_started_again():
  said = f'demo={_COMMAND}'
  described = servers.describe(servers.parse(said))

  async def work(call):
    first = int(await call('pid'))
    bystander = asyncio.create_task(call('slow', seconds=50))
    await asyncio.sleep(0.2)
    with pytest.raises(base.ToolUnreachable, match='demo'):
      await call('die')
    with pytest.raises(base.ToolUnreachable):
      await bystander
    second = int(await call('pid'))
    return first, second

  first, second = run(said, described, work)
  assert first != second
  for pid in (first, second):  # Closing leaves no process.
    with pytest.raises(ProcessLookupError):
      os.kill(pid, 0)


def test_a_server_that_died_while_nobody_called(monkeypatch):
  monkeypatch.setattr(servers, '_IDLE_SECONDS', 0.0)
  said = f'demo={_COMMAND}'
  described = servers.describe(servers.parse(said))

  async def work(call):
    first = int(await call('pid'))
    os.kill(first, 9)
    await asyncio.sleep(0.2)
    return first, int(await call('pid'))

  first, second = run(said, described, work)
  assert first != second


def test_an_http_server_that_restarts_is_found_again(monkeypatch):
  monkeypatch.setattr(servers, '_IDLE_SECONDS', 0.0)
  with _http() as url:
    said = f'demo={url}'
    described = servers.describe(servers.parse(said))
    port = url.split(':')[2].split('/')[0]

    async def work(call):
      first = int(await call('pid'))
      os.kill(first, 9)
      await asyncio.sleep(0.2)
      with pytest.raises(base.ToolUnreachable):
        await call('pid')
      again = subprocess.Popen(
        [sys.executable, _DEMO, port],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
      )
      try:
        for _ in range(200):
          with contextlib.suppress(base.ToolUnreachable):
            return first, int(await call('pid'))
          await asyncio.sleep(0.05)
      finally:
        again.kill()
        again.wait()

    first, second = run(said, described, work)
  assert second and first != second


def test_a_started_server_sees_only_the_variables_it_is_given(monkeypatch):
  monkeypatch.setenv('THE_SECRET', 'hush')
  monkeypatch.setenv('ITS_KEY', 'k')
  server = servers.parse(f'demo={_COMMAND}', ['ITS_KEY'])
  described = servers.describe(server)

  async def main():
    tools = {t.card.name: t for t in servers.make(server, described)}
    tool = tools['demo_environment']
    try:
      return json.loads(await tool.call({}))
    finally:
      await tool.close()

  seen = asyncio.run(main())
  assert seen['ITS_KEY'] == 'k'
  assert 'THE_SECRET' not in seen


def test_a_session_belongs_to_its_event_loop(said, described):
  server = servers.parse(said)
  (pid,) = (t for t in servers.make(server, described) if t.card.name == 'demo_pid')

  async def main():
    found = await pid.call({})
    await pid.close()
    return found

  assert asyncio.run(main()) and asyncio.run(main())


@pytest.mark.parametrize(
  ('said', 'match'),
  [
    ('demo=/nowhere/at-all', 'demo .*gives no tools: .*No such file'),
    (f'demo={sys.executable} -c "import sys; sys.exit(\'I am sorry\')"', 'I am sorry'),
    ('demo=http://127.0.0.1:9/mcp', 'gives no tools: .*connection'),
    ('demo', 'NAME=URL or NAME=COMMAND'),
    ('1=x', 'NAME=URL or NAME=COMMAND'),
    ('demo=', 'no command'),
    ('demo="', 'No closing quotation'),
  ],
)
def test_servers_that_are_not_there(said, match):
  with pytest.raises(base.ToolUnavailable, match=f'(?is){match}'):
    servers.describe(servers.parse(said))


def test_a_variable_that_is_not_set_is_named(monkeypatch):
  monkeypatch.delenv('NOT_THERE', raising=False)
  with pytest.raises(base.ToolUnavailable, match='NOT_THERE is not set'):
    servers.parse('demo=x', ['NOT_THERE'])
  with pytest.raises(base.ToolUnavailable, match='NOT_THERE is not set'):
    servers.parse('demo=http://h/', (), 'NOT_THERE')


def test_a_token_is_sent_and_not_shown(monkeypatch):
  monkeypatch.setenv('TOKEN', 'hush')
  server = servers.parse('demo=http://127.0.0.1:9/mcp', (), 'TOKEN')
  assert server.token == 'hush' and 'hush' not in repr(server)
  with pytest.raises(base.ToolUnavailable) as failed:
    servers.describe(server)
  assert 'hush' not in str(failed.value)
