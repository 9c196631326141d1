"""Worlds on servers that speak the wire of EnterpriseOps-Gym."""

import asyncio
import contextlib
import dataclasses
import fcntl
import json
import time

import pytest

from agentflow_jax import records
from agentflow_jax.agents import rollout
from agentflow_jax.agents.environments import base, checks
from agentflow_jax.agents.environments.enterpriseops import environment, gym
from agentflow_jax.agents.tools import base as tools_base
from tests.agents.environments import players
from tests.agents.environments.enterpriseops import gym_server

_KEY = records.RequestKey(0, records.Purpose.EVALUATE, 0, 't', 0)
_END = records.Ending(records.Status.ANSWERED, 'done')


def _state(name, query, expected, **more):
  return records.Check(
    name, 'state', {'query': query, 'expected_value': expected, **more}
  )


_CLOSED = _state(
  'closed', "select count(*) from ticket where id = 1 and state = 'closed'", 1
)
_TWO = _state('two', 'select count(*) from ticket', 2)


def _task(servers, *made, selected=(), restricted=(), context=None, task_id='t'):
  state = {
    'servers': [
      {
        'name': name,
        'url': server.url,
        'endpoint': '/mcp',
        'seed': 'a.sql',
        'context': context or {'user_id': 'U1', 'x-token': f'T of {name}'},
      }
      for name, server in servers.items()
    ],
    'selected': list(selected),
    'restricted': list(restricted),
  }
  world = records.World(environment.NAME, state, 'Be careful.', checks=tuple(made))
  return records.Task(task_id, 'Close the ticket.', (), 'checks', world=world)


@pytest.fixture(name='seeds')
def _seeds(tmp_path):
  (tmp_path / 'a.sql').write_text(gym_server.SQL)
  return tmp_path


def _made(seeds, **more):
  return environment.EnterpriseOps(
    seeds, more.pop('urls', {}), **({'seconds': 10.0} | more)
  )


def _with(seeds, task, use, **more):
  async def run():
    made = _made(seeds, **more)
    try:
      episode = await made.open(task, _KEY)
      try:
        return await use(episode)
      finally:
        await episode.close()
    finally:
      await made.close()

  return asyncio.run(run())


async def _call(episode, name, **arguments):
  tool = episode.tools[name]
  return await tool.call(tools_base.check_arguments(tool.card, arguments))


def test_a_rollout_has_a_database_of_its_own_which_every_request_names(seeds):
  with gym_server.GymServer() as server:
    task = _task({'gym': server}, _CLOSED, _TWO)

    async def use(episode):
      assert episode.brief.policy == 'Be careful.'
      assert await _call(episode, 'close_ticket', id=1) == 'closed'
      return await episode.verify(_END)

    verdict = _with(seeds, task, use)
  assert [(r.passed, r.vacuous) for r in verdict.results] == [
    (True, False),
    (True, True),
  ]
  assert verdict.success and verdict.pass_fraction == 1.0
  names = {database for _, database, _, _ in server.requests}
  (database,) = names
  assert database.startswith('af_') and server.deleted == [database]
  assert not server.databases
  for path, _, headers, body in server.requests:
    of_task = path not in ('/api/seed-database', '/api/delete-database')
    assert (headers.get('x-user-id'), headers.get('x-token')) == (
      ('U1', 'T of gym') if of_task else (None, None)
    )
    if body.get('method') in ('tools/list', 'tools/call'):
      assert headers['mcp-session-id'] == f'session of {database}'


def test_tools_of_two_servers_are_one_list_and_the_first_keeps_a_name(seeds):
  with gym_server.GymServer('a') as one, gym_server.GymServer('b') as two:
    made = [
      _state(
        'in two', "select count(*) from ticket where title like '%b'", 0, gym_name='two'
      ),
      _state('in one', 'select title from ticket where id = 3', 'xa', gym_name='one'),
      _state('default', 'select title from ticket where id = 3', 'xa'),
      _state('nowhere', 'select 1', 1, gym_name='three'),
      # A check of calls asks no server.
      records.Check(
        'calls',
        'calls',
        {'selected_tools': [], 'minimum_tool_calls': 0, 'gym_name': 'three'},
      ),
    ]
    task = _task({'one': one, 'two': two}, *made)

    async def use(episode):
      assert 'only_a' in episode.tools and 'only_b' in episode.tools
      await _call(episode, 'create_ticket', title='x')
      with pytest.raises(tools_base.BadArguments, match='unknown tool only_b'):
        await _call(episode, 'only_b')
      return await episode.verify(_END)

    warnings = _made(seeds).check(task)
    verdict = _with(seeds, task, use)
  assert [name for _, name in one.calls()] == ['create_ticket']
  assert [name for _, name in two.calls()] == ['only_b']
  # Each server has its own context, and one database, which every request names.
  for name, server in (('one', one), ('two', two)):
    assert len({database for _, database, _, _ in server.requests}) == 1
    shown = {headers.get('x-token') for _, _, headers, _ in server.requests}
    assert shown == {None, f'T of {name}'}
    assert len(server.deleted) == 1 and not server.databases
  assert [r.passed for r in verdict.results] == [True, True, True, False, True]
  assert "'three'" in verdict.results[3].detail and not verdict.success
  assert len(warnings) == 1 and "'nowhere' asks the server 'three'" in warnings[0]


def test_selected_and_restricted_tools(seeds):
  with gym_server.GymServer() as server:

    async def names(episode):
      return list(episode.tools)

    def shown(**more):
      return _with(seeds, _task({'gym': server}, _TWO, **more), names)

    # In the server's order, and without those that it has not.
    assert shown(selected=['list_tickets', 'close_ticket', 'missing']) == [
      'close_ticket',
      'list_tickets',
    ]
    assert 'slow' not in shown(restricted=['slow'])
    assert shown(selected=['close_ticket', 'slow'], restricted=['slow']) == [
      'close_ticket'
    ]


def test_what_goes_wrong_is_text_or_infrastructure(seeds):
  with gym_server.GymServer() as server:

    async def use(episode):
      for name, arguments, match in (
        ('close_ticket', {'id': 99}, 'Ticket not found: 99'),
        ('refuses', {}, 'a field is wrong'),
        ('only', {}, 'unknown tool only'),
        ('close_ticket', {'id': 'one'}, 'id'),
        ('list_tickets', {'x': 1}, "'x'"),
      ):
        with pytest.raises(tools_base.BadArguments, match=match):
          await _call(episode, name, **arguments)
      with pytest.raises(tools_base.ToolUnreachable, match='HTTP 503: down'):
        await _call(episode, 'broken')
      with pytest.raises(tools_base.ToolUnreachable, match='ReadTimeout'):
        await _call(episode, 'slow')

    _with(seeds, _task({'gym': server}, _TWO), use, seconds=0.5)
    assert not server.databases


def test_a_server_that_is_gone_and_a_seed_that_fails_are_unreachable(seeds):
  with gym_server.GymServer() as server:
    task = _task({'gym': server}, _TWO)
    (seeds / 'a.sql').write_text('create nonsense')
    with pytest.raises(base.Unreachable, match='HTTP 500'):
      _with(seeds, task, None)
  with pytest.raises(base.Unreachable, match='ConnectError'):
    _with(seeds, task, None)


def test_queries_that_a_server_refuses_fail_their_check(seeds):
  bad = _state('bad', 'select 1 from nowhere', 1)
  with gym_server.GymServer() as server:

    async def use(episode):
      return await episode.verify(_END)

    verdict = _with(seeds, _task({'gym': server}, bad, _TWO), use)
  assert [r.passed for r in verdict.results] == [False, True]
  assert 'no such table' in verdict.results[0].detail


def test_a_server_that_cannot_delete_is_no_failure(seeds):
  with gym_server.GymServer(deletes=False) as server:

    async def use(episode):
      return (await episode.verify(_END)).success

    assert _with(seeds, _task({'gym': server}, _TWO), use)
    assert len(server.databases) == 1


def _agent(made, *plans):
  return players.agent(made, *plans, reward='checks', max_turns=2)


def test_rollouts_at_once_do_not_meet_and_neither_do_two_runs(seeds):
  """One more ticket each: none sees another's."""
  three = _state('three', 'select count(*) from ticket', 3)
  with gym_server.GymServer() as server:
    task = _task({'gym': server}, three)

    async def run():
      one, other = _made(seeds), _made(seeds)
      agents = [
        _agent(made, ('create_ticket', 'title=x'), ('list_tickets', ''))
        for made in (one, other)
      ]
      done = await asyncio.gather(
        *(
          rollout.rollout(agent, task, dataclasses.replace(_KEY, rollout=i))
          for i in range(32)
          for agent in agents
        )
      )
      await one.close()
      await other.close()
      return done

    done = asyncio.run(run())
    assert {(t.status, t.reward) for t in done} == {(records.Status.OUT_OF_TURNS, 1.0)}
    assert len(set(server.deleted)) == 64 and not server.databases
    assert server.peak > 8
    for trajectory in done:
      shown = json.dumps([turn.memory for turn in trajectory.turns])
      assert 'af_' not in shown and '"title": "x"' not in shown
      assert trajectory.turns[1].result.text.count('"x"') == 1
    # The tools of a server are asked for once a run.
    listed = [b for _, _, _, b in server.requests if b.get('method') == 'tools/list']
    assert len(listed) == 2


def test_calls_that_fail_on_the_host_end_a_rollout_outside_of_the_statistics(seeds):
  with gym_server.GymServer() as server:

    async def run(plan):
      made = _made(seeds, seconds=0.5)
      done = await rollout.rollout(
        _agent(made, (plan, '')), _task({'gym': server}, _TWO), _KEY
      )
      await made.close()
      return done

    for plan in ('slow', 'broken'):
      done = asyncio.run(run(plan))
      assert done.status is records.Status.ENVIRONMENT_UNREACHABLE
      assert done.reward is None
    refused = asyncio.run(run('refuses'))
    assert refused.reward == 1.0 and refused.turns[0].result.error is not None
    assert not server.databases


def test_a_cancelled_rollout_leaves_no_database(seeds):
  with gym_server.GymServer() as server:

    async def run():
      made = _made(seeds)
      running = [
        asyncio.ensure_future(
          rollout.rollout(
            _agent(made, ('slow', '')),
            _task({'gym': server}, _TWO),
            dataclasses.replace(_KEY, rollout=i),
          )
        )
        for i in range(8)
      ]
      for i, one in enumerate(running):
        await asyncio.sleep(0.02 * i)
        one.cancel()
        with contextlib.suppress(asyncio.CancelledError):
          await one
      await made.close()

    asyncio.run(run())
    assert not server.databases


def test_databases_of_a_killed_run_are_deleted_by_the_next(seeds, tmp_path):
  """And those of a run that lives are not."""
  journal = tmp_path / 'environment'
  with gym_server.GymServer() as server:
    task = _task({'gym': server}, _TWO)

    async def run():
      killed, living = (_made(seeds, journal=journal) for _ in range(2))
      await killed.open(task, _KEY)
      closed = await killed.open(task, dataclasses.replace(_KEY, rollout=1))
      await closed.close()
      (left,) = server.databases
      mine = await living.open(task, _KEY)
      assert left in server.databases, 'its process lives'
      # A process that is gone holds no lock; its last line is torn.
      fcntl.flock(killed._journal._file, fcntl.LOCK_UN)
      killed._journal._file.write('["+", "torn')
      after = _made(seeds, journal=journal)
      episode = await after.open(task, _KEY)
      assert await _call(mine, 'close_ticket', id=1) == 'closed'
      await episode.close()
      await after.close()
      assert left in server.deleted and len(server.databases) == 1
      await mine.close()
      await living.close()

    asyncio.run(run())
    assert not server.databases and not list(journal.iterdir())


def test_databases_are_deleted_together_and_after_the_wait_is_over(seeds):
  """Three servers that take their time, and a close that is cut off."""
  with contextlib.ExitStack() as stack:
    servers = {
      f's{i}': stack.enter_context(gym_server.GymServer(f'{i}', delay=0.4))
      for i in range(3)
    }

    async def run():
      made = _made(seeds)
      episode = await made.open(_task(servers, _TWO), _KEY)
      start = time.monotonic()
      with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0.1):
          await episode.close()
      await made.close()
      return time.monotonic() - start

    assert asyncio.run(run()) < 1.1, 'one after the other they take 1.2 s'
    assert not any(server.databases for server in servers.values())


def test_a_seed_outside_of_its_directory_is_refused(seeds):
  for seed in ('/etc/hostname', '../a.sql'):
    task = _task({'gym': gym_server.GymServer()}, _TWO)
    state = json.loads(json.dumps(dict(task.world.state)))
    state['servers'][0]['seed'] = seed
    world = dataclasses.replace(task.world, state=state)
    with pytest.raises(ValueError, match='not below the directory of seeds'):
      _made(seeds).check(dataclasses.replace(task, world=world))


@pytest.mark.parametrize(
  'content, text',
  [
    ([{'type': 'text'}], 'The tool returned nothing.'),
    ([{'type': 'text', 'text': 5}], 'The tool returned nothing.'),
    ([{'type': 'resource', 'resource': {'uri': 'x', 'text': 'inside'}}], 'inside'),
    ([{'type': 'resource', 'resource': 5}], '[resource left out: ]'),
    ([5, None], 'The tool returned nothing.'),
    ([{'type': 'text', 'text': '[' * 5000}], '[' * 5000),
  ],
)
def test_odd_results_are_text(content, text):
  assert gym.text_of({'result': {'content': content}}, 'x') == text


def test_names_of_tools_spell_no_control_token(seeds):
  called = records.Check('called', 'calls', {'selected_tools': ['only_a<|im_end|>']})
  with gym_server.GymServer('a<|im_end|>') as server:

    async def use(episode):
      (shown,) = [name for name in episode.tools if name.startswith('only')]
      assert shown == 'only_a__im_end__' and episode.tools[shown].card.name == shown
      with pytest.raises(tools_base.BadArguments, match='unknown tool only_a<'):
        await _call(episode, shown)
      made = (records.ToolCall(shown, {}), records.ToolResult(''))
      ending = dataclasses.replace(_END, calls=(made,))
      return [(await episode.verify(e)).success for e in (_END, ending)]

    # Checks know a tool by its name at the server.
    task = _task({'gym': server}, called)
    assert _with(seeds, task, use) == [False, True]


def test_what_is_left_of_the_same_rollout_is_deleted_before_it_begins_again(seeds):
  with gym_server.GymServer() as server:
    task = _task({'gym': server}, _TWO)

    async def run():
      made = _made(seeds)
      lost = await made.open(task, _KEY)
      await _call(lost, 'create_ticket', title='x')
      again = await made.open(task, dataclasses.replace(_KEY, attempt=1, turn=2))
      verdict = await again.verify(_END)
      await again.close()
      await made.close()
      return verdict

    assert asyncio.run(run()).success and not server.databases


def test_addresses_of_the_config_replace_those_of_the_tasks(seeds):
  with gym_server.GymServer() as server:
    task = _task({'gym': server}, _TWO)
    state = json.loads(json.dumps(dict(task.world.state)))
    state['servers'][0]['url'] = 'http://127.0.0.1:9'
    task = dataclasses.replace(task, world=dataclasses.replace(task.world, state=state))

    async def use(episode):
      return (await episode.verify(_END)).success

    assert _with(seeds, task, use, urls={'gym': server.url})


@pytest.mark.parametrize(
  'change, match',
  [
    ({'seed': 'b.sql'}, 'no seed .*b.sql: unpack gym_dbs.zip'),
    ({'seed': ''}, "'gym' of the task names no seed_database_file"),
  ],
)
def test_seeds_are_checked_at_start(seeds, change, match):
  task = _task({'gym': gym_server.GymServer()}, _TWO)
  state = json.loads(json.dumps(dict(task.world.state)))
  state['servers'][0] |= change
  task = dataclasses.replace(task, world=dataclasses.replace(task.world, state=state))
  with pytest.raises(ValueError, match=match):
    _made(seeds).check(task)


@pytest.mark.parametrize(
  'check, match',
  [
    (
      records.Check('r', 'response', {'sql_query': 'q', 'comparison_prompt': 'p'}),
      'needs a judge',
    ),
    (records.Check('u', 'unchanged', {'allowed': []}), 'makes no checks of kind'),
  ],
)
def test_checks_that_nothing_makes_are_refused(seeds, check, match):
  with pytest.raises(ValueError, match=match):
    _made(seeds).check(_task({'gym': gym_server.GymServer()}, check))


# Results of the published benchmark/verifier.py, worked out by hand from its text.
@pytest.mark.parametrize(
  'reply, value',
  [
    ({'data': []}, []),
    ({'data': [{'n': 3}]}, 3),
    ({'data': [{'n': None}]}, None),
    ({'data': [{'a': 1, 'b': 2}]}, {'a': 1, 'b': 2}),
    ({'data': [{'n': 1}, {'n': 2}]}, [{'n': 1}, {'n': 2}]),
    ({'data': 'text'}, 'text'),
    ({'data': None}, None),
    ({'data': [[7]]}, [7]),
    ({'data': [{}]}, {}),
    ({'rows': []}, []),
    ({'rows': [{'n': 3}]}, 3),
    ({'rows': [[7]]}, 7),
    ({'rows': [[7, 8]]}, [7, 8]),
    ({'rows': [[1], [2]]}, [[1], [2]]),
    ({'content': [{'type': 'image'}, {'type': 'text', 'text': 'no'}]}, 'no'),
    ({'content': []}, []),
    ({'content': [{'type': 'image'}]}, [{'type': 'image'}]),
    ({'result': 5}, 5),
    ({'other': 1}, {'other': 1}),
    ([1], [1]),
    ('x', 'x'),
    ({'data': [{'n': 1}], 'rows': []}, 1),
  ],
)
def test_values_of_replies(reply, value):
  assert gym.value_of(reply) == value


@pytest.mark.parametrize(
  'text, is_error',
  [
    ('Error: no such user', True),
    ('Failed to update', True),
    ('Ticket not found: 9', True),
    ('Not found', True),
    ('{"error": "x"}', True),
    ('{"success": false}', True),
    ('403: Forbidden', True),
    ('Unknown tool x', True),
    ('created', False),
    ('{"success": true, "error": null}', False),
    ('[]', False),
    ('{"errors": 0}', False),
    ('Erroneous entries: 0', False),
    ('3 tickets, none failed', False),
    ('450 records found', False),
    ('Failed logins this week: 3', False),
    ('Error rate: 0.1', False),
    ('Error 404: no such user', True),
    ('Error while updating', True),
    ('The user was not found by mail, but by name', False),
    ('', False),
  ],
)
def test_errors_are_read_from_text(text, is_error):
  assert gym.reads_as_error(text) is is_error


def test_a_replys_own_errors_are_for_the_model():
  for reply in (
    {'error': {'code': -1, 'message': 'bad call'}},
    {'error': 'bad call'},
    {'result': {'error': 'bad call'}},
    {'result': {'content': [{'type': 'text', 'text': 'bad call'}], 'isError': True}},
  ):
    with pytest.raises(tools_base.BadArguments, match='^bad call$'):
      gym.text_of(reply, 'x')
  assert gym.text_of({'result': {'content': []}}, 'x') == 'The tool returned nothing.'
  assert gym.text_of({'result': {'a': 1}}, 'x') == '{"a": 1}'
  assert gym.text_of({}, 'x') == 'The tool returned nothing.'


def test_calls_are_checked_as_published():
  calls = records.Check(
    'c',
    'calls',
    {'selected_tools': ['a'], 'minimum_tool_calls': 2, 'gym_name': 'three'},
  )
  checks.validate(calls)
  made = tuple(
    (records.ToolCall(name, {}), records.ToolResult('')) for name in ('a', 'b')
  )
  ending = dataclasses.replace(_END, calls=made)
  assert checks.of_calls(calls, ending).passed
