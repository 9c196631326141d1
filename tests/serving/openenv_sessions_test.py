"""Frames of OpenEnv: what they do to an episode, and what those that are none get."""

import asyncio
import dataclasses
import json

import pytest

from agentflow_jax import records
from agentflow_jax.agents.environments.desk import audit, mutants
from agentflow_jax.agents.environments.own import environment as own
from agentflow_jax.agents.environments import base
from agentflow_jax.agents.rewards import registry
from agentflow_jax.agents.tools import base as tools_base
from agentflow_jax.assembly import served_worlds
from agentflow_jax.serving import openenv_sessions
from tests.serving import served_desk


@pytest.fixture(scope='module')
def served(tmp_path_factory):
  return served_desk.made(tmp_path_factory.mktemp('desk'))


def _frame(kind, **data):
  return json.dumps({'type': kind, 'data': data})


def _call(tool, **arguments):
  return _frame('step', type='call_tool', tool_name=tool, arguments=arguments)


def _answers(served, *frames):
  async def run():
    session = openenv_sessions.Session(openenv_sessions.Worlds(served))
    try:
      return [await session.answer(frame) for frame in frames]
    finally:
      await session.close()

  return asyncio.run(run())


def test_right_calls_earn_what_the_local_desk_says(served):
  for task in served.tasks:
    frames = [_call(tool, **said) for tool, said in served_desk.calls(task)]
    first, *others = _answers(served, _frame('reset', task_id=task.id), *frames)
    said = first['data']['observation']
    assert (said['query'], said['policy']) == (task.query, task.world.policy)
    assert len(said['metadata']['tools']) == 20
    local = asyncio.run(audit.run(served.environment, task, mutants.solution_of(task)))
    results = [one['data']['observation']['result'] for one in others]
    assert tuple(results) == local.results
    *before, last = [(one['data']['reward'], one['data']['done']) for one in others]
    assert last == (1.0, True) and set(before) <= {(None, False)}
    facts = others[-1]['data']['metadata']
    assert facts['digest'] == local.digest and facts['success']
    assert facts['checks'] == [
      {'name': r.name, 'passed': True, 'detail': r.detail}
      for r in local.verdict.results
    ]


def test_an_end_before_the_work_earns_nothing_and_is_an_end(served):
  _, end, after, listed, state, again, _ = _answers(
    served,
    _frame('reset', seed=1),
    _call('finish'),
    _call('finish'),
    _frame('step', type='list_tools'),
    _frame('state'),
    _frame('reset', seed=9),
    _frame('state'),
  )
  assert (end['data']['reward'], end['data']['done']) == (0.0, True)
  assert not end['data']['metadata']['success']
  assert 'has ended' in after['data']['observation']['error']['message']
  for one in (after, listed):
    assert (one['data']['reward'], one['data']['done']) == (0.0, True)
  assert state['data'] == {
    'episode_id': served.tasks[1].id,
    'step_count': 1,
    'task_id': served.tasks[1].id,
  }
  # Another reset on the connection begins another episode: place 9 of 8 is place 1.
  assert again['data']['observation']['task_id'] == served.tasks[1].id
  assert (again['data']['reward'], again['data']['done']) == (None, False)


def test_without_a_task_or_a_seed_the_tasks_come_in_order(served):
  async def run():
    worlds, found = openenv_sessions.Worlds(served), []
    for _ in range(10):
      session = openenv_sessions.Session(worlds)
      answer = await session.answer('{"type": "reset"}')
      found.append(answer['data']['observation']['task_id'])
      await session.close()
    return found

  ids = [task.id for task in served.tasks]
  assert asyncio.run(run()) == ids + ids[:2]


@pytest.mark.parametrize(
  'call, kind, said',
  [
    (_call('find_person', nam='x'), 'invalid_args', "no argument 'nam'"),
    (_call('get_person', person='P9999'), 'invalid_args', 'P9999'),
    (_call('fly'), 'tool_not_found', "unknown tool 'fly'; the tools are find_person"),
  ],
)
def test_errors_of_calls_are_observations(served, call, kind, said):
  _, answer, state = _answers(served, _frame('reset', seed=0), call, _frame('state'))
  error = answer['data']['observation']['error']
  assert error['error_type'] == kind and said in error['message']
  assert answer['data']['observation']['result'] is None
  assert not answer['data']['done']
  assert state['data']['step_count'] == (kind == 'invalid_args')


def test_tools_are_listed_before_there_is_an_episode(served):
  listed, called = _answers(
    served, _frame('step', type='list_tools'), _call('find_person', name='x')
  )
  (first, *_) = tools = listed['data']['observation']['tools']
  assert len(tools) == 20 and first['name'] == 'find_person'
  assert first['input_schema']['required'] == ['name']
  assert first['input_schema']['properties'].keys() == {'name', 'unit'}
  assert called['data']['observation']['error']['error_type'] == 'execution_error'


@pytest.mark.parametrize(
  'frame, code',
  [
    (None, 'INVALID_JSON'),
    ('', 'INVALID_JSON'),
    ('{', 'INVALID_JSON'),
    ('[' * 100_000, 'INVALID_JSON'),
    ('{"type": NaN}', 'INVALID_JSON'),
    ('[]', 'VALIDATION_ERROR'),
    ('5', 'VALIDATION_ERROR'),
    ('{}', 'VALIDATION_ERROR'),
    ('{"type": 5}', 'VALIDATION_ERROR'),
    ('{"type": ["reset"]}', 'VALIDATION_ERROR'),
    ('{"type": "reset", "data": 5}', 'VALIDATION_ERROR'),
    ('{"type": "reset", "more": 5}', 'VALIDATION_ERROR'),
    ('{"type": "__class__"}', 'UNKNOWN_TYPE'),
    (_frame('x' * 9999), 'UNKNOWN_TYPE'),
    (_frame('reset', sed=1), 'VALIDATION_ERROR'),
    (_frame('reset', seed='1'), 'VALIDATION_ERROR'),
    (_frame('reset', seed=True), 'VALIDATION_ERROR'),
    (_frame('reset', seed=-1), 'VALIDATION_ERROR'),
    (_frame('reset', task_id='no such'), 'VALIDATION_ERROR'),
    (_frame('reset', episode_id='x' * 256), 'VALIDATION_ERROR'),
    (_frame('step'), 'VALIDATION_ERROR'),
    (_frame('step', type='fly'), 'VALIDATION_ERROR'),
    (_frame('step', type='call_tool'), 'VALIDATION_ERROR'),
    (_frame('step', type='call_tool', tool_name=5), 'VALIDATION_ERROR'),
    (_frame('step', type='call_tool', tool_name='x', arguments=[]), 'VALIDATION_ERROR'),
    (_frame('step', type='list_tools', other=1), 'VALIDATION_ERROR'),
  ],
)
def test_frames_that_are_none_leave_the_episode_as_it_is(served, frame, code):
  _, error, state = _answers(
    served, _frame('reset', seed=2), frame, '{"type": "state"}'
  )
  assert error['type'] == 'error' and error['data']['code'] == code
  assert len(error['data']['message']) < 500
  assert state['data']['task_id'] == served.tasks[2].id


@pytest.mark.parametrize(
  'value',
  ['x\x00y', '\ud800', {'a': [None] * 999}, 10**400, json.loads('[' * 300 + ']' * 300)],
)
def test_odd_arguments_are_errors_of_the_call(served, value):
  text = json.dumps(json.loads(_call('get_person', person=value)))
  _, answer = _answers(served, _frame('reset', seed=0), text)
  error = answer['data']['observation']['error']
  assert error['error_type'] == 'invalid_args'
  json.dumps(answer, allow_nan=False).encode()


def test_close_is_answered_by_nothing(served):
  assert _answers(served, '{"type": "close"}') == [None]


def test_requests_of_mcp_act_on_the_same_episode(served):
  task = served.tasks[0]
  frames = [
    _frame('mcp', id=i, method='tools/call', params={'name': tool, 'arguments': said})
    for i, (tool, said) in enumerate(served_desk.calls(task))
  ]
  _, listed, *done = _answers(
    served,
    _frame('reset', task_id=task.id),
    _frame('mcp', id='a', method='tools/list'),
    *frames,
    _frame('mcp', id=1, method='initialize'),
    _frame('mcp', method=5),
    _frame('mcp', method='tools/call', params=5),
  )
  assert listed['data']['id'] == 'a' and len(listed['data']['result']['tools']) == 20
  *calls, unknown, malformed, nameless = [one['data'] for one in done]
  assert [one['id'] for one in calls] == list(range(len(calls)))
  assert calls[-1]['result']['reward'] == 1.0 and calls[-1]['result']['done']
  assert [one['error']['code'] for one in (unknown, malformed, nameless)] == [
    -32601,
    -32600,
    -32602,
  ]


class _Faulty:
  """An environment whose one tool raises, or whose opening or checks fail."""

  name, version, capacity = 'faulty', '1', None
  cards = (tools_base.Card('go', 'Goes.', ()),)

  def __init__(self, fails):
    self._fails, self.open_now = fails, 0

  async def open(self, task, key, state=None):
    if self._fails == 'open':
      raise OSError('no disk')
    self.open_now += 1
    self.brief, self.answer, self.outside = base.Brief(), None, frozenset()
    self.ended = ''

    async def go(arguments):
      if self._fails == 'call':
        raise OSError('no disk')
      self.ended = self._fails or 'finish'
      return 'gone'

    self.tools = {'go': tools_base.Tool(self.cards[0], go)}
    return self

  async def verify(self, ending):
    if self._fails == 'verify':
      raise base.Unreachable('no judge')
    self.ending = ending
    return records.Verdict((records.CheckResult('c', 'state', True),))

  async def digest(self):
    return 'd'

  async def close(self):
    self.open_now -= 1


def _faulty(fails):
  world = records.World('faulty', {}, checks=(records.Check('c', 'state', {}),))
  task = records.Task('t', 'q', (), 'checks', world=world)
  return served_worlds.ServedWorlds(
    _Faulty(fails), (task,), registry.Rewards(['checks']), 0, 5.0
  )


@pytest.mark.parametrize(
  'ended, status',
  [
    ('finish', records.Status.ANSWERED),
    ('refuse', records.Status.REFUSED),
    ('environment', records.Status.ANSWERED),
  ],
)
def test_checks_read_the_end_as_after_a_rollout(ended, status):
  served = _faulty(ended)
  _, wrong, end = _answers(served, _frame('reset'), _call('go', x=1), _call('go'))
  assert not wrong['data']['done'] and end['data']['metadata']['ended'] == ended
  ending = served.environment.ending
  assert (ending.status, ending.ended) == (status, ended)
  assert [call.arguments for call, _ in ending.calls] == [{'x': 1}, {}]
  assert [result.error is None for _, result in ending.calls] == [False, True]


def test_another_reset_closes_the_episode_before():
  async def run():
    served = _faulty('finish')
    session = openenv_sessions.Session(openenv_sessions.Worlds(served))
    counts = []
    for frame in (_frame('reset'), _frame('reset'), _frame('reset', seed='x')):
      await session.answer(frame)
      counts.append(served.environment.open_now)
    await session.close()
    return counts + [served.environment.open_now]

  assert asyncio.run(run()) == [1, 1, 1, 0]


@pytest.mark.parametrize('fails', ['open', 'call', 'verify'])
def test_an_environment_that_fails_ends_the_episode(fails):
  served = _faulty(fails)
  first, second, state = _answers(served, _frame('reset'), _call('go'), _frame('state'))
  if fails == 'call':
    assert second['data']['observation']['error']['error_type'] == 'transport_error'
    assert second['data']['done'] and second['data']['reward'] is None
  else:
    failed = first if fails == 'open' else second
    assert failed['data']['code'] == 'EXECUTION_ERROR'
  assert state['data']['episode_id'] is None and not served.environment.open_now


def test_a_class_of_ones_own_says_its_reward_after_every_call(tmp_path):
  path = tmp_path / 'meter.py'
  path.write_text(
    'class Meter:\n'
    '  def reset(self, start: int):\n    self.n = start\n'
    '  def add(self, n: int) -> str:\n    """Adds."""\n    self.n += n\n'
    '    return str(self.n)\n'
    '  def verify(self) -> float:\n    return self.n / 10\n'
  )
  world = records.World('Meter', {'row': {'start': 2}}, checks=(own.CHECK,))
  task = records.Task('t', 'q', (), 'environment', world=world)

  async def run():
    served = served_worlds.ServedWorlds(
      own.OwnEnvironment(str(path), 'Meter', seconds=20.0, concurrency=1),
      (task,),
      registry.Rewards(['environment']),
      0,
      20.0,
    )
    session = openenv_sessions.Session(openenv_sessions.Worlds(served))
    frames = _frame('reset'), _call('add', n=3), _call('add', n=4)
    answers = [await session.answer(frame) for frame in frames]
    await session.close()
    await served.close()
    return [
      (a['data']['observation'].get('result'), a['data']['reward'], a['data']['done'])
      for a in answers
    ]

  assert asyncio.run(run()) == [
    (None, None, False),
    ('5', 0.5, False),
    ('9', 0.9, False),
  ]


def test_what_chance_decides_follows_from_the_name_of_the_episode(served):
  faulty = dataclasses.replace(
    served, environment=dataclasses.replace(served.environment, faults=0.5)
  )

  def found(name):
    calls = [_call('get_person', person='P1')] * 12
    answers = _answers(faulty, _frame('reset', seed=0, episode_id=name), *calls)
    return [a['data']['observation']['error'] is None for a in answers[1:]]

  assert found('a') == found('a') and len({tuple(found(n)) for n in 'abc'}) == 3
