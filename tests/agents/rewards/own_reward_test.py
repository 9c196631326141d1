"""Rewards of a user's own: numbers, parts, and what becomes of errors."""

import asyncio

import pytest

from agentflow_jax import records
from agentflow_jax.agents import fakes, language_model, own_functions, rollout
from agentflow_jax.agents.rewards import own_reward, registry

_TASK = records.Task('t', 'Which one?', ('found Oslo', 'Oslo'), 'r', {'hops': '1'})
_KEY = records.RequestKey(0, records.Purpose.TRAIN, 0, 't', 0)
_FILE = """
import asyncio, os, time

def number(task, answer):
  return answer in task.answers

def facts(task, answer):
  return {'query': len(task.query), 'hops': int(task.tags['hops']), 'a': -0.25}

async def aio_number(task, answer):
  return float(answer in task.answers)

def nan(task, answer): return float('nan')
def infinite(task, answer): return {'a': 1.0, 'b': float('inf')}
async def aio_nan(task, answer): return float('nan')
def nothing(task, answer): return None
def text(task, answer): return 'good'
def unnamed(task, answer): return {}
def raises(task, answer): return task.nowhere
async def aio_raises(task, answer): return task.nowhere
def exits(task, answer): os._exit(1)
def hangs(task, answer): time.sleep(600)
async def aio_hangs(task, answer): await asyncio.sleep(600)
"""


@pytest.fixture(name='path')
def _path(tmp_path):
  path = tmp_path / 'mine.py'
  path.write_text(_FILE)
  return str(path)


def _make(path, name, seconds=30.0):
  return own_reward.make(f'{path}:{name}', path, name, seconds=seconds, processes=1)


def _score(reward, answer):
  async def main():
    try:
      return await reward(_TASK, answer)
    finally:
      await reward.aclose()

  return asyncio.run(main())


@pytest.mark.parametrize('name', ['number', 'aio_number'])
def test_a_number_is_the_reward(path, name):
  assert _score(_make(path, name), 'Oslo') == 1.0
  assert _score(_make(path, name), '<think>Bergen</think>Oslo') == 1.0
  assert _score(_make(path, name), 'Bergen') == 0.0


def test_a_task_arrives_as_it_is(path):
  assert _score(_make(path, 'facts'), '') == {'query': 10, 'hops': 1, 'a': -0.25}


@pytest.mark.parametrize(
  'name',
  [
    'nan',
    'aio_nan',
    'infinite',
    'nothing',
    'text',
    'unnamed',
    'raises',
    'aio_raises',
    'exits',
  ],
)
def test_what_is_no_reward_is_an_error(path, name):
  with pytest.raises(own_functions.Failed, match=name):
    _score(_make(path, name), 'x')


@pytest.mark.parametrize(
  'source', ['def f(answer): return 1', 'def f(a, b, c): return 1', 'def f(): return 1']
)
def test_one_that_takes_something_else_is_refused_at_start(tmp_path, source):
  (tmp_path / 'f.py').write_text(source)
  with pytest.raises(own_functions.LoadError, match='a task and an answer'):
    _make(str(tmp_path / 'f.py'), 'f')


@pytest.mark.parametrize('seconds, processes', [(0, 1), (-1, 1), (1, 0)])
def test_limits_are_positive(path, seconds, processes):
  with pytest.raises(own_functions.LoadError, match='must be positive'):
    own_reward.make('r', path, 'number', seconds=seconds, processes=processes)


@pytest.mark.parametrize('name', ['hangs', 'aio_hangs'])
def test_one_that_hangs_cannot_be_reached(path, name):
  with pytest.raises(language_model.Unreachable, match='took longer than 1 s'):
    _score(_make(path, name, seconds=1.0), 'x')


@pytest.mark.parametrize(
  'name, status, reward',
  [
    ('number', records.Status.ANSWERED, 1.0),
    ('facts', records.Status.ANSWERED, 10.75),
    ('nan', records.Status.MODULE_FAILED, None),
    ('raises', records.Status.MODULE_FAILED, None),
    ('hangs', records.Status.REWARD_UNREACHABLE, None),
  ],
)
def test_a_rollout_has_the_status_and_the_parts(path, name, status, reward):
  own = _make(path, name, seconds=2.0)
  plans = [
    'Sub-Goal: find Oslo\nContext:\nTool Name: search',
    'Sub-Goal: answer Oslo\nContext:\nTool Name: search',
  ]
  agent = fakes.make_agent(
    fakes.FakeLanguageModel({'planner': plans}),
    [fakes.make_tool(fakes.echo)],
    rollout.RolloutConfig(max_turns=3, entry_tokens=30),
    reward=registry.Rewards(['r'], {'r': own}),
  )

  async def main():
    done = await rollout.rollout(agent, _TASK, _KEY)
    await own.aclose()
    return done

  done = asyncio.run(main())
  assert done.status is status and done.reward == reward
  if name == 'facts':
    assert list(done.score.terms) == ['a', 'hops', 'query']
    assert sum(t.value for t in done.score.terms.values()) == done.reward
  else:
    assert done.score is None
