"""Agents that hang, cheat, leave and err: one status each, and nothing twice."""

import asyncio
import dataclasses
import json
import logging

import httpx
import pytest

from agentflow_jax import records
from agentflow_jax.agents import fakes, modules, prompts, rollout
from agentflow_jax.rollouts import collect
from agentflow_jax.runtime import processes as processes_lib
from agentflow_jax.tokenization import hugging_face
from tests.serving import served_agents
from tests.tokenization import byte_tokenizer

_S = records.Status
_TURNS = 3


class _Driver:
  """Takes tasks, and treats each as its kind says."""

  def __init__(self, host, client, model):
    self._host, self._client, self._model = host, client, model
    self._key = {'Authorization': f'Bearer {host.driver_key}'}

  async def work(self):
    async with asyncio.TaskGroup() as group:
      while True:
        body = {'most': 7}
        got = await self._client.post('/tasks', json=body, headers=self._key)
        if got.status_code == 410:
          return
        for said in got.json()['tasks']:
          group.create_task(self._treat(said))

  async def _treat(self, said):
    kind = said['task']['id'].partition('-')[0]
    await getattr(self, kind)(said, f'/sessions/{said["session"]}')

  async def _post(self, path, body, expected=200, headers=None):
    got = await self._client.post(path, json=body, headers=headers)
    assert got.status_code == expected, (path, got.text)
    if expected != 200:
      error = got.json()['error']
      assert error['message'] and error['type'] == 'invalid_request_error'
    return got.json()

  async def _ask(self, session, text='Hi', expected=200, **body):
    body = {'messages': [{'role': 'user', 'content': text}], 'model': 'policy', **body}
    return await self._post(f'{session}/v1/chat/completions', body, expected)

  async def good(self, said, session):
    await self._ask(session)
    await self._post(f'{session}/answer', {'answer': 'a'})
    for late in ('answer', 'reward', 'failure'):
      await self._post(f'{session}/{late}', {late: 'x'}, 410, self._key)
    await self._ask(session, expected=410)

  async def hangs(self, said, session):
    """Waits for what does not come; the session may even be over already."""
    del said
    body = {'messages': [{'role': 'user', 'content': 'Hi'}], 'model': 'policy'}
    await self._client.post(f'{session}/v1/chat/completions', json=body)

  async def twice(self, said, session):
    await self._ask(session)
    for reward, expected in ((0.5, 200), (1.0, 410)):
      await self._post(f'{session}/reward', {'reward': reward}, expected, self._key)

  async def late(self, said, session):
    await self._post(f'{session}/failure', {'failure': 'died'}, 200, self._key)
    await self._post(f'{session}/reward', {'reward': 1.0}, 410, self._key)

  async def forges(self, said, session):
    assert self._host.driver_key not in json.dumps(said)
    for key in ('-', said['api_key'], said['session'], self._host.driver_key[:-1]):
      headers = {'Authorization': f'Bearer {key}'}
      for what in ('reward', 'failure'):
        await self._post(f'{session}/{what}', {what: 1.0}, 401, headers)
      got = await self._client.post('/tasks', headers=headers)
      assert got.status_code == 401
    await self._post(f'{session}/answer', {'answer': 'b'})

  async def pairs(self, said, session):
    await asyncio.gather(
      self._ask(session), self._ask(session), self._ask(session, 'Ho')
    )
    await self._post(f'{session}/answer', {'answer': 'a'})

  async def leaves(self, said, session):
    body = {
      'model': 'policy',
      'messages': [{'role': 'user', 'content': served_agents.SLOW}],
    }
    where, query = f'{session}/v1/chat/completions', said['task']['id']
    for asked in (1, 2, 3):
      body['stream'] = asked != 2
      asking = asyncio.create_task(self._read(where, body))
      while sum(key.query == query for _, _, key in self._model.asked) < asked:
        await asyncio.sleep(0.001)
      if asked == 1:
        await asking  # Until its first piece is there.
      asking.cancel()
    inside = self._host.session(said['session'])
    while [a.state for a in inside._asked] != ['lost'] * 3:
      await asyncio.sleep(0.01)
    self._model.released[query].set()
    while len(inside.undelivered) < 3:  # They are sampled to their end.
      await asyncio.sleep(0.01)
    await self._ask(session)
    await self._post(f'{session}/answer', {'answer': 'a'})

  async def _read(self, where, body):
    """Leaves behind the first line of a response."""
    async with self._client.stream('POST', where, json=body) as got:
      async for line in got.aiter_lines():
        assert line.startswith('data: ')
        return

  async def errs(self, said, session):
    chat = '/chat/completions'
    ask = {'model': 'policy', 'messages': [{'role': 'user', 'content': 'Hi'}]}
    for path, body, expected in (
      (f'{session}/v1{chat}', [], 404),
      (f'{session}/v1{chat}', ask | {'model': 'gpt-4o'}, 404),
      (f'{session}/v1{chat}', ask | {'model': 'frozen'}, 404),
      (f'{session}/v1{chat}', ask | {'messages': 3}, 400),
      (f'{session}/v1{chat}', ask | {'n': 65}, 400),
      (f'{session}/v1{chat}', ask | {'audio': {}}, 400),
      (f'{session}/v1/responses', {}, 404),
      (f'{session}/v1/messages', {}, 404),
      (f'/v1{chat}', ask, 404),
      (f'/sessions/{"0" * 32}/v1{chat}', ask, 410),
      (f'/sessions/..%2f/v1{chat}', ask, 404),
      (f'{session}/answer', {'answer': 7}, 400),
      (f'{session}/answer', {'reward': 7}, 400),
      (f'{session}/reward', {'reward': True}, 400),
      (f'{session}/reward', {'reward': '1'}, 400),
      (f'{session}/reward', {'reward': 1.0, 'more': 1}, 400),
      (f'{session}/failure', {'failure': ''}, 400),
    ):
      await self._post(path, body, expected, self._key)
    for raw in ('{"reward": NaN}', '{"reward": 1e999}', '{', ''):
      got = await self._client.post(f'{session}/reward', content=raw, headers=self._key)
      assert got.status_code == 400
    reward = {'reward': -1, 'answer': 'x'}
    await self._post(f'{session}/reward', reward, 200, self._key)

  async def chatters(self, said, session):
    for _ in range(_TURNS):
      await self._ask(session)
    await self._ask(session, expected=403)
    await self._post(f'{session}/failure', {'failure': 'refused'}, 200, self._key)

  async def rambles(self, said, session):
    await self._ask(session, 'x' * 3000, expected=400)
    await self._post(f'{session}/failure', {'failure': 'refused'}, 200, self._key)


# Kind -> status, reward, and turns.
_EXPECTED = {
  'good': (_S.ANSWERED, 1.0, 1),
  'hangs': (_S.DEADLINE_INFRASTRUCTURE, None, None),
  'twice': (_S.ANSWERED, 0.5, 1),
  'late': (_S.MODULE_FAILED, None, 0),
  'forges': (_S.ANSWERED, 0.0, 0),
  'pairs': (_S.ANSWERED, 1.0, 3),
  'leaves': (_S.ANSWERED, 1.0, 1),
  'errs': (_S.ANSWERED, -1.0, 0),
  'chatters': (_S.OUT_OF_TURNS, 0.0, _TURNS),
  'rambles': (_S.PROMPT_TOO_LONG, 0.0, 0),
}


async def _rollouts(model, sessions) -> list[records.Group]:
  """Returns a group a task, each with its driver's kind."""
  planner = modules.ModelPlanner(
    model, records.SamplingSpec(max_new_tokens=64), prompts.PromptConfig(), 2000
  )
  kinds = list(_EXPECTED)
  tasks = [
    records.Task(f'{kinds[i % len(kinds)]}-{i}', f'Q{i}', ('a',), 'match')
    for i in range(sessions)
  ]
  async with served_agents.endpoint({'policy': model}) as host:

    async def of_kind(hangs, deadline):
      limits = rollout.RolloutConfig(max_turns=_TURNS, deadline_seconds=deadline)
      return await collect.groups(
        fakes.make_agent(model, [], limits, planner=planner, host=host),
        [task for task in tasks if task.id.startswith('hangs') == hangs],
        group_size=1,
        key=records.RequestKey(0, records.Purpose.TRAIN, 0, '', 0),
        limit=asyncio.Semaphore(64),
        processes=processes_lib.Processes(),
      )

    bounds = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(
      base_url=host.url, timeout=300, limits=bounds
    ) as client:
      driving = asyncio.create_task(_Driver(host, client, model).work())
      # Only those that hang need to see a deadline, however slow this machine is.
      both = asyncio.gather(of_kind(True, 2.0), of_kind(False, 1000.0))
      await asyncio.wait({both, driving}, return_when=asyncio.FIRST_COMPLETED)
      if not both.done():
        await driving  # It failed.
      hung, others = await both
      assert host.counts() == {'waiting': 0, 'open': 0}
      await host.close()
      await driving
  assert not [t for t in asyncio.all_tasks() if t is not asyncio.current_task()]
  return hung + others


@pytest.mark.parametrize('sessions', [20, pytest.param(200, marks=pytest.mark.slow)])
def test_each_has_one_status_and_nothing_is_trained_twice(tmp_path, caplog, sessions):
  model = served_agents.KeyedModel(
    hugging_face.from_directory(byte_tokenizer.write(tmp_path / 'm'))
  )
  model.pause = 0.01
  with caplog.at_level(logging.WARNING):
    found = asyncio.run(_rollouts(model, sessions))
  assert not caplog.records
  assert len(found) == sessions
  for group in found:
    kind = group.task.id.partition('-')[0]
    (done,) = group.trajectories
    status, reward, turns = _EXPECTED[kind]
    assert (done.status, done.reward) == (status, reward), (kind, done.detail)
    assert turns in (len(done.turns), None), kind
    said = [t.completion.response_ids for t in (*done.turns, *done.undelivered)]
    assert len({*said}) == len(said)  # Each with a key of its own.
    assert len(done.undelivered) == (3 if kind == 'leaves' else 0)
  trained = [
    (t.completion.prompt_ids, t.completion.response_ids)
    for group in found
    for t in group.trajectories[0].turns
  ]
  assert len({*trained}) == len(trained)


def test_a_run_without_a_driver_says_so(tmp_path):
  model = served_agents.KeyedModel(
    hugging_face.from_directory(byte_tokenizer.write(tmp_path / 'm'))
  )

  async def run():
    async with served_agents.endpoint({'policy': model}) as host:
      limits = rollout.RolloutConfig(deadline_seconds=0.2)
      agent = fakes.make_agent(model, [], limits, host=host)
      key = records.RequestKey(0, records.Purpose.TRAIN, 0, 't', 0)
      task = records.Task('t', 'Q', ('a',), 'match')
      return await rollout.rollout(agent, task, key)

  done = asyncio.run(run())
  assert done.status is _S.DEADLINE_INFRASTRUCTURE
  assert done.detail.endswith('; no driver took the task')


def test_the_same_seed_gives_the_same_turns_in_whatever_order(tmp_path):
  def run(pause):
    model = served_agents.KeyedModel(
      hugging_face.from_directory(byte_tokenizer.write(tmp_path / 'm'))
    )
    model.pause = pause
    found = asyncio.run(_rollouts(model, 6))
    return [
      [dataclasses.replace(t, seconds={}) for t in group.trajectories]
      for group in found
      if group.task.id.startswith(('pairs', 'good'))
    ]

  assert run(0.0) == run(0.005)
