"""Worlds on servers of OpenEnv: a stand-in, and real ones where there are some."""

import asyncio
import contextlib
import dataclasses
import os
import socket
import subprocess
import time

import pytest

from agentflow_jax import records
from agentflow_jax.agents import rollout
from agentflow_jax.agents.environments import base
from agentflow_jax.agents.environments.openenv import environment
from agentflow_jax.agents.tools import base as tools_base
from tests.agents.environments import players
from tests.agents.environments.openenv import openenv_server

_KEY = records.RequestKey(0, records.Purpose.TRAIN, 1, 't', 0)
_END = records.Ending(records.Status.ANSWERED, 'done')
# A Python in which `openenv` is installed, which brings many packages with it.
_PYTHON = os.environ.get('AGENTFLOW_OPENENV_PYTHON', '')


def _task(**row):
  world = records.World(
    environment.NAME,
    {'row': row},
    'Count well.',
    checks=(records.Check('reward', 'reward', {}),),
  )
  return records.Task('t', 'Count to ten.', (), 'environment', world=world)


def _with(url, task, use, **more):
  async def run():
    made = environment.OpenEnv(url, **({'seconds': 5.0} | more))
    episode = await made.open(task, _KEY)
    try:
      return await use(episode)
    finally:
      await episode.close()

  return asyncio.run(run())


async def _call(episode, name, **arguments):
  tool = episode.tools[name]
  return await tool.call(tools_base.check_arguments(tool.card, arguments))


@pytest.mark.parametrize('old', [False, True])
def test_a_server_that_lists_tools(old):
  with openenv_server.OpenEnvServer(old=old) as server:

    async def use(episode):
      assert list(episode.tools) == ['add', 'look', 'bug', 'lost', 'slow']
      assert episode.brief.policy == 'Count well.' and not episode.ended
      assert await _call(episode, 'add', n=5) == '9'
      for name, arguments, match in (
        ('add', {'n': 'x'}, 'n'),
        ('bug', {}, 'a bug of the tool'),
      ):
        with pytest.raises(tools_base.BadArguments, match=match):
          await _call(episode, name, **arguments)
      with pytest.raises(tools_base.ToolUnreachable, match='the tool is gone'):
        await _call(episode, 'lost')
      before = await episode.verify(_END)
      assert await _call(episode, 'add', n=1) == '10'
      assert episode.ended == 'environment'
      with pytest.raises(tools_base.BadArguments, match='has ended'):
        await _call(episode, 'look')
      return before, await episode.verify(_END)

    before, after = _with(server.url, _task(start=4), use)
  assert (before.reward, before.success) == (0.9, False)
  assert (after.reward, after.success) == (1.0, True)
  assert server.resets == [{'seed': base.seed_of(_task()), 'start': 4}]


def test_a_server_with_actions_has_the_one_tool_act():
  with openenv_server.OpenEnvServer('plain') as server:

    async def use(episode):
      (card,) = [tool.card for tool in episode.tools.values()]
      assert (card.name, card.purpose) == ('act', 'Says something.')
      assert [a.name for a in card.arguments] == ['message']
      assert episode.brief.policy == 'Count well.\n\nstart 0'
      assert await _call(episode, 'act', message='hello') == 'hello'
      with pytest.raises(tools_base.ToolUnreachable, match='EXECUTION_ERROR'):
        await _call(episode, 'act', message='bug')
      await _call(episode, 'act', message='x')
      return episode.ended, (await episode.verify(_END)).reward

    # Every step counts, also that of list_tools and the one that failed.
    assert _with(server.url, _task(), use) == ('environment', 0.2)
    assert _with(server.url, _task(), use, total=True)[1] == pytest.approx(0.3)


def test_a_row_may_bring_a_seed_of_its_own():
  with openenv_server.OpenEnvServer() as server:

    async def use(episode):
      del episode

    _with(server.url, _task(seed=7), use)
  assert server.resets == [{'seed': 7}]


@pytest.mark.parametrize(
  'said',
  [
    '{',
    '[]',
    '{"type": "observation"}',
    '{"type": "observation", "data": []}',
    '{"type": "observation", "data": {"observation": {}, "reward": 1%s}}' % ('0' * 400),
    '{"type": "observation", "data": {"observation": {}, "reward": NaN}}',
    '{"type": "observation", "data": {"observation": {}, "reward": "1"}}',
    '{"type": "observation", "data": {"observation": 5}}',
    '{"type": "observation", "data": {"observation": {}, "done": "no"}}',
    '{"type": "error", "data": {"code": 5, "errors": 5}}',
    '{"type": "error", "data": {"errors": [{"loc": 5}, 3]}}',
    '[' * 5000,
  ],
)
def test_odd_answers_are_infrastructure_and_leave_no_place_taken(said):
  with openenv_server.OpenEnvServer() as server:

    async def run():
      made = environment.OpenEnv(server.url, capacity=1, seconds=5.0)
      for _ in range(2):
        with pytest.raises(base.Unreachable):
          await made.open(_task(say=said), _KEY)
      episode = await made.open(_task(), _KEY)
      await episode.close()

    asyncio.run(run())


def test_a_full_server_a_refused_reset_and_one_that_is_gone_are_unreachable():
  async def use(episode):
    del episode

  with openenv_server.OpenEnvServer(capacity=0) as server:
    with pytest.raises(base.Unreachable, match='CAPACITY_REACHED: full'):
      _with(server.url, _task(), use)
  with openenv_server.OpenEnvServer() as server:
    with pytest.raises(base.Unreachable, match='reset: Invalid message'):
      _with(server.url, _task(refuse=True), use)
    time.sleep(0.1)
    assert server.open == 0
  with pytest.raises(base.Unreachable, match='ConnectionRefused'):
    _with(server.url, _task(), use)


def _rollouts(url, count, *plans, capacity=64, seconds=20.0, **row):
  async def run():
    made = environment.OpenEnv(url, capacity=capacity, seconds=seconds)
    return await asyncio.gather(
      *(
        rollout.rollout(
          players.agent(made, *plans, max_turns=3),
          _task(**row),
          dataclasses.replace(_KEY, rollout=i),
        )
        for i in range(count)
      )
    )

  return asyncio.run(run())


@pytest.mark.parametrize('capacity', [1, 4])
def test_no_more_episodes_are_open_than_the_server_has(capacity):
  with openenv_server.OpenEnvServer(capacity=capacity) as server:
    done = _rollouts(server.url, 12, ('add', 'n=4'), ('add', 'n=6'), capacity=capacity)
    assert {(t.status, t.reward) for t in done} == {(records.Status.ANSWERED, 1.0)}
    assert server.peak == capacity


def test_a_socket_that_is_cut_and_a_call_that_hangs_are_infrastructure():
  with openenv_server.OpenEnvServer() as server:
    (slow,) = _rollouts(server.url, 1, ('slow', ''), seconds=0.5)
    assert slow.status is records.Status.ENVIRONMENT_UNREACHABLE and slow.reward is None

    async def run():
      made = environment.OpenEnv(server.url)
      episode = await made.open(_task(), _KEY)
      server.kill()
      await asyncio.sleep(0.1)
      with pytest.raises(tools_base.ToolUnreachable):
        await _call(episode, 'look')
      await episode.close()

    asyncio.run(run())


def _cancelled(url, count, capacity):
  """Cancels rollouts at all kinds of moments; returns after all are closed."""

  async def run():
    made = environment.OpenEnv(url, capacity=capacity, seconds=20.0)
    plans = [('add', 'n=1'), ('look', ''), ('add', 'n=1')]
    running = [
      asyncio.ensure_future(
        rollout.rollout(
          players.agent(made, *plans, max_turns=3),
          _task(),
          dataclasses.replace(_KEY, rollout=i),
        )
      )
      for i in range(count)
    ]
    for i, one in enumerate(running):
      await asyncio.sleep(0.001 * (i % 7))
      one.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    # All places are free again: as many episodes open at once.
    episodes = await asyncio.gather(
      *(made.open(_task(), _KEY) for _ in range(capacity))
    )
    for episode in episodes:
      await episode.close()

  asyncio.run(run())


def test_cancelled_rollouts_leave_no_place_taken():
  with openenv_server.OpenEnvServer(capacity=8) as server:
    _cancelled(server.url, 200, 8)
    for _ in range(100):
      if not server.open:
        break
      time.sleep(0.05)
    assert server.open == 0 and server.peak <= 8


_REAL = '''
import sys
import uvicorn
from fastmcp import FastMCP
from openenv.core.env_server.http_server import create_app
from openenv.core.env_server.interfaces import Environment
from openenv.core.env_server.mcp_environment import MCPEnvironment
from openenv.core.env_server.types import Action, Observation, State


class EchoAction(Action):
  message: str


class EchoObservation(Observation):
  echoed: str


class Echo(Environment):
  SUPPORTS_CONCURRENT_SESSIONS = True

  def reset(self, seed=None, episode_id=None, **row):
    self.steps = 0
    return EchoObservation(echoed='start', reward=0.0)

  def step(self, action, timeout_s=None, **row):
    if action.message == 'bug':
      raise RuntimeError('oh')
    self.steps += 1
    return EchoObservation(
        echoed=action.message, reward=self.steps / 2, done=self.steps == 2
    )

  @property
  def state(self):
    return State()


class Counter(MCPEnvironment):
  SUPPORTS_CONCURRENT_SESSIONS = True

  def __init__(self):
    server, self.count = FastMCP('counter'), 0

    @server.tool
    def add(n: int) -> str:
      """Adds."""
      if n < 0:
        raise ValueError('n is not negative')
      self.count += n
      return f'{self.count}'

    super().__init__(server)

  def reset(self, seed=None, episode_id=None, start=0, **row):
    self.count = start
    return Observation(reward=0.0)

  def _step_impl(self, action, timeout_s=None, **row):
    return Observation()

  async def step_async(self, action, timeout_s=None, **row):
    seen = await super().step_async(action, timeout_s=timeout_s, **row)
    seen.reward, seen.done = self.count / 10, self.count >= 10
    return seen

  @property
  def state(self):
    return State()


kind, port, capacity = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
classes = (Echo, EchoAction, EchoObservation) if kind == 'echo' else (
    Counter, Action, Observation
)
app = create_app(*classes, env_name=kind, max_concurrent_envs=capacity)
uvicorn.run(app, host='127.0.0.1', port=port, log_level='error')
'''


@contextlib.contextmanager
def _real(kind, capacity):
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    port = free.getsockname()[1]
  process = subprocess.Popen([_PYTHON, '-c', _REAL, kind, str(port), str(capacity)])
  try:
    for _ in range(600):
      with contextlib.suppress(OSError), socket.create_connection(('127.0.0.1', port)):
        break
      time.sleep(0.1)
    yield f'http://127.0.0.1:{port}', process
  finally:
    process.kill()
    process.wait()


_needs_openenv = pytest.mark.skipif(
  not _PYTHON, reason='AGENTFLOW_OPENENV_PYTHON names no Python with openenv'
)


@_needs_openenv
@pytest.mark.parametrize('capacity', [1, 64])
def test_a_real_server_with_tools(capacity):
  with _real('counter', capacity) as (url, _):
    done = _rollouts(
      url,
      8,
      ('add', 'n=-1'),
      ('add', 'n=4'),
      ('add', 'n=3'),
      capacity=capacity,
      start=3,
    )
    assert {(t.status, t.reward) for t in done} == {(records.Status.ANSWERED, 1.0)}
    for trajectory in done:
      refused, first, second = [turn.result for turn in trajectory.turns]
      assert 'n is not negative' in refused.text and refused.error is not None
      assert (first.text, second.text) == ('7', '10')
    _cancelled(url, 200, capacity)


@_needs_openenv
@pytest.mark.parametrize('capacity', [1, 64])
def test_a_real_server_with_actions(capacity):
  with _real('echo', capacity) as (url, _):
    done = _rollouts(
      url, 8, ('act', 'message=a'), ('act', 'message=b'), capacity=capacity
    )
    assert {(t.status, t.reward) for t in done} == {(records.Status.ANSWERED, 1.0)}
    assert [turn.result.text for turn in done[0].turns] == ['a', 'b']
    (failed,) = _rollouts(url, 1, ('act', 'message=bug'))
    assert failed.status is records.Status.ENVIRONMENT_UNREACHABLE


@_needs_openenv
def test_a_real_server_that_is_killed_is_infrastructure():
  """In the middle of eight episodes, and before another one begins."""
  with _real('counter', 64) as (url, process):

    async def run():
      made = environment.OpenEnv(url, capacity=64, seconds=20.0)
      episodes = await asyncio.gather(*(made.open(_task(), _KEY) for _ in range(8)))
      for episode in episodes:
        assert await _call(episode, 'add', n=1) == '1'
      process.kill()
      process.wait()
      for episode in episodes:
        with pytest.raises(tools_base.ToolUnreachable):
          await _call(episode, 'add', n=1)
        await episode.close()

    asyncio.run(run())
    (lost,) = _rollouts(url, 1, ('add', 'n=1'))
    assert lost.status is records.Status.ENVIRONMENT_UNREACHABLE
    assert lost.reward is None
