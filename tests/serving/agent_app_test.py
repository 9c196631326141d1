"""The endpoint of agents: sampling, keys, streams with tools, and its file."""

import asyncio
import contextlib
import json

import httpx
import pytest

from agentflow_jax import records
from agentflow_jax.agents import language_model, served_command, served_session
from agentflow_jax.config import schema
from agentflow_jax.serving import agent_server
from agentflow_jax.tokenization import hugging_face
from tests.serving import served_agents
from tests.tokenization import byte_tokenizer

_TASK = records.Task('t', 'What?', ('a',), 'match')
_KEY = records.RequestKey(0, records.Purpose.TRAIN, 2, 't', 1)
_SAMPLING = records.SamplingSpec(temperature=0.7, top_p=0.9, max_new_tokens=64)
_LIMITS = served_session.Limits(8, 2000, 60.0)
_CHAT = {'model': 'policy', 'messages': [{'role': 'user', 'content': 'Hi'}]}
_TOOL = {'type': 'function', 'function': {'name': 'look', 'parameters': {}}}


@pytest.fixture(name='model')
def _model(tmp_path):
  directory = byte_tokenizer.write(tmp_path / 'm', byte_tokenizer.TOOLS_TEMPLATE)
  return served_agents.KeyedModel(hugging_face.from_directory(directory))


def _run(model, work, **kwargs):
  """Runs `work(host, session, client)` in a session."""

  async def run():
    models = kwargs.pop('models', {'policy': model})
    async with served_agents.endpoint(models, **kwargs) as host:
      headers = {'Authorization': f'Bearer {host.key}'} if host.key else {}
      async with (
        host.opened(_TASK, _KEY, _SAMPLING, _LIMITS) as session,
        httpx.AsyncClient(
          base_url=f'{host.url}/sessions/{session.id}', headers=headers, timeout=60
        ) as client,
      ):
        return await work(host, session, client)

  return asyncio.run(run())


async def _chat(client, expected=200, **body):
  got = await client.post('/v1/chat/completions', json=_CHAT | body)
  assert got.status_code == expected, got.text
  return got


@pytest.mark.parametrize(
  'own, named',
  [
    ({}, None),
    ({'temperature': 0.7, 'top_p': 0.9, 'seed': None}, None),
    ({'temperature': 0}, 'temperature'),
    ({'temperature': 1.0}, 'temperature'),
    ({'top_p': 0.5, 'seed': 3}, 'top_p, seed'),
    (
      {'frequency_penalty': 0.2, 'logit_bias': {'3': 1}},
      'logit_bias, frequency_penalty',
    ),
    ({'max_tokens': 9000}, 'max_tokens'),
    ({'max_completion_tokens': 5, 'stop': ['7']}, None),
  ],
)
def test_the_run_decides_how_is_sampled(model, own, named):
  async def work(unused_host, session, client):
    got = await _chat(client, **own)
    assert got.headers.get('X-AgentFlow-Overridden') == named
    (turn,) = session.turns
    assert (turn.sampling.temperature, turn.sampling.top_p) == (0.7, 0.9)
    assert turn.sampling.stop == tuple(own.get('stop', ()))
    limit = own.get('max_completion_tokens', 64)
    assert turn.sampling.max_new_tokens == limit
    assert [s for _, s, _ in model.asked] == [turn.sampling]

  _run(model, work)

  async def refused(unused_host, session, client):
    # The training's own temperature, which an evaluation may override.
    is_refused = named is not None and own != {'temperature': 1.0}
    got = await _chat(client, 400 if is_refused else 200, **own)
    assert not is_refused or got.json()['error']['param'] in own
    assert len(session.turns) == (not is_refused)

  _run(model, refused, sampling='refuse')


def test_streams_choices_and_completions_are_turns_as_well(model):
  async def work(unused_host, session, client):
    text = (await _chat(client, stream=True, n=2, tools=[_TOOL])).text
    events = [json.loads(x[6:]) for x in text.split('\n\n')[:-2]]
    said = ['', '']
    for choice in (c for e in events for c in e['choices']):
      said[choice['index']] += choice['delta'].get('content') or ''
    body = {'model': 'policy', 'prompt': [1, 2, 3]}
    got = (await client.post('/v1/completions', json=body)).json()
    assert {t.completion.text for t in session.turns} == {
      *said,
      got['choices'][0]['text'],
    }
    assert [len(t.completion.prompt_ids) == 3 for t in session.turns][0]
    assert 'look' in model.tokenizer.decode(session.turns[1].completion.prompt_ids)
    cards = (await client.get('/v1/models')).json()['data']
    assert [card['id'] for card in cards] == ['policy']

  _run(model, work)


def test_the_frozen_model_samples_as_the_client_says(model):
  frozen = served_agents.KeyedModel(model.tokenizer)

  async def work(unused_host, session, client):
    ask = {'temperature': 0.25, 'seed': 4, 'max_tokens': 8}
    got = await _chat(client, model='frozen', **ask)
    assert 'X-AgentFlow-Overridden' not in got.headers
    ((_, sampling, _),) = frozen.asked
    assert (sampling.temperature, sampling.top_p) == (0.25, 1.0)
    assert not session.turns and not model.asked
    (call,) = session.frozen_calls
    assert call.output == got.json()['choices'][0]['message']['content']

  _run(model, work, models={'policy': model, 'frozen': frozen})


def test_a_key_opens_sessions_and_only_the_drivers_key_rewards(model):
  async def work(host, session, client):
    await _chat(client)
    post = client.post
    driver = {'Authorization': f'Bearer {host.driver_key}'}
    for headers in ({'Authorization': 'Bearer x'}, {'Authorization': 'Basic k'}):
      for path, body in (('/v1/chat/completions', _CHAT), ('/answer', {'answer': 'a'})):
        got = await post(path, json=body, headers=headers)
        assert got.status_code == 401
    assert (await post('/reward', json={'reward': 1.0})).status_code == 401
    await post('/reward', json={'reward': 0.25}, headers=driver)
    assert (await session.outcome()).reward == 0.25

  _run(model, work, key='k')


def test_a_run_with_terms_of_rewards_takes_answers_alone(model):
  async def work(host, session, client):
    driver = {'Authorization': f'Bearer {host.driver_key}'}
    got = await client.post('/reward', json={'reward': 1.0}, headers=driver)
    assert got.status_code == 400 and 'reward.weights' in got.text
    await client.post('/answer', json={'answer': 'a'})
    assert session.status[0] is records.Status.ANSWERED

  _run(model, work, takes_rewards=False)


def test_with_a_command_there_is_no_driver(model):
  command = served_command.Command(('sleep', '60'), 1, 2**30)

  async def work(host, unused_session, client):
    assert host.driver_key == ''
    for key in ('', 'x'):
      headers = {'Authorization': f'Bearer{key and " "}{key}'}
      got = await client.post('/reward', json={'reward': 1.0}, headers=headers)
      assert got.status_code == 404 and 'no driver' in got.text
    got = await client.post(f'{host.url}/tasks')
    assert got.status_code == 404

  _run(model, work, command=command)


def test_a_response_whose_other_choice_fails_takes_no_turn(model):
  sample, keys = model.sample, []

  async def second_fails(prompt_ids, sampling, key, *others):
    keys.append(key)
    if len(keys) == 2:
      while not session_of[0].undelivered:  # The first is there.
        await asyncio.sleep(0)
      raise ValueError('no')
    return await sample(prompt_ids, sampling, key, *others)

  model.sample, session_of = second_fails, []

  async def work(unused_host, session, client):
    session_of.append(session)
    await _chat(client, 400, n=2)
    for _ in range(_LIMITS.max_turns):
      await _chat(client)
    await _chat(client, 403)
    assert len(session.turns) == _LIMITS.max_turns and len(session.undelivered) == 1

  _run(model, work)


def test_a_driver_that_leaves_while_it_waits_takes_no_task(model):
  async def run():
    async with served_agents.endpoint({'policy': model}) as host:
      headers = {'Authorization': f'Bearer {host.driver_key}'}
      async with httpx.AsyncClient(
        base_url=host.url, headers=headers, timeout=60
      ) as client:
        none = await client.post('/tasks', json={'wait_seconds': 0})
        assert none.json() == {'tasks': []}
        for wrong in ([1], {'most': 0}, {'most': True}, {'wait_seconds': -1}, {'x': 1}):
          got = await client.post('/tasks', json=wrong)
          assert got.status_code == 400, wrong
        waiting = asyncio.create_task(client.post('/tasks'))
        while not host._news._waiters:
          await asyncio.sleep(0.001)
        waiting.cancel()
        while host._news._waiters:
          await asyncio.sleep(0.001)
        async with host.opened(_TASK, _KEY, _SAMPLING, _LIMITS) as session:
          assert (await client.get('/tasks')).json() == {'waiting': 1, 'open': 1}
          (got,) = (await client.post('/tasks')).json()['tasks']
          assert got['session'] == session.id and got['task']['answers'] == ['a']
          assert (got['purpose'], got['step'], got['rollout']) == ('train', 2, 1)
        waiting = asyncio.create_task(client.post('/tasks'))
        while not host._news._waiters:
          await asyncio.sleep(0.001)
        await host.close()
        assert (await waiting).status_code == 410

  asyncio.run(run())


def test_an_engine_that_fails_ends_the_rollout(model):
  async def broken(*unused_args, **unused_kwargs):
    raise language_model.Unreachable('the engine is closed')

  model.sample = broken

  async def work(unused_host, session, client):
    await _chat(client, 503)
    await _chat(client, 410)
    assert session.status[0] is records.Status.MODEL_UNREACHABLE

  _run(model, work)


@pytest.mark.parametrize(
  'served, said',
  [
    (schema.ServedConfig(command='"'), 'No closing quotation'),
    (schema.ServedConfig(command='no_such_program_here x'), 'no such program'),
    (schema.ServedConfig(key_variable='NO_SUCH_VARIABLE'), 'key_variable'),
    (schema.ServedConfig(host='0.0.0.0'), 'agent.served.key_variable'),
    (schema.ServedConfig(host='no.such.host.invalid'), 'agent.served: cannot listen'),
  ],
)
def test_mistakes_at_start_name_the_field(tmp_path, served, said):
  class System:
    config = schema.Config('s', agent=schema.AgentConfig(kind='served', served=served))

  async def run():
    async with contextlib.AsyncExitStack() as stack:
      await stack.enter_async_context(agent_server.opened(System(), tmp_path))

  with pytest.raises(schema.ConfigError, match=said):
    asyncio.run(run())
