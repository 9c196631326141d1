"""Rows of an agent's requests are the rows of the same requests made inside."""

import asyncio
import dataclasses

import httpx
import numpy as np
import pytest

from agentflow_jax import records
from agentflow_jax.agents import served_session
from agentflow_jax.assembly import standalone_model
from agentflow_jax.config import loading
from agentflow_jax.core import flow_grpo
from agentflow_jax.training import turn_rows
from tests.config import mini
from tests.serving import served_agents

_SAMPLING = records.SamplingSpec(temperature=0.8, max_new_tokens=12, stop=('\nTool',))
_TASK = records.Task('t', 'What is the capital of Portugal?', ('Lisbon',), 'match')
_LIMITS = served_session.Limits(9, 160, 60.0)


@pytest.fixture(scope='module', name='model')
def _model():
  base = loading.load(str(mini.ROOT / 'experiments' / 'quickstart.py'))
  config = dataclasses.replace(
    base,
    engine=dataclasses.replace(
      base.engine, slots=8, max_prompt_tokens=160, decode_chunk=4
    ),
  )
  planner = str(mini.ROOT / 'experiments' / 'geohop_planner')
  with standalone_model.opened(config, planner) as opened:
    yield opened


def _chat(*texts):
  """A conversation whose user and assistant take turns, behind a system message."""
  roles = ('system', *('user', 'assistant') * 4)
  return [{'role': r, 'content': t} for r, t in zip(roles, texts)]


async def _history(ask):
  """Asks as an agent that branches, rewrites its history and repeats itself."""
  opening = ('Tools:\nsearch', f'Query: {_TASK.query}\nPlan:')
  first = await ask(_chat(*opening))
  branches = await asyncio.gather(
    ask(_chat(*opening, first, 'And why?')), ask(_chat(*opening, first, 'Again.'))
  )
  summary = _chat('Tools:\nsearch', f'Query: short\n{branches[0][:9]}')
  await ask(summary, stream=True)
  await ask(_chat(*opening))
  await ask(summary[:1], stop=['#1'], max_tokens=5)


def _rows(trajectories):
  group = records.Group(_TASK, tuple(trajectories))
  config = flow_grpo.FlowGrpoConfig()
  return turn_rows.flow_grpo_rows([group], config).rows


def _trajectory(turns, rollout):
  return records.Trajectory(
    't', rollout, records.Status.ANSWERED, turns, reward=float(rollout)
  )


async def _outside(model, key):
  """Asks over the endpoint; returns the turns, and what the client read."""
  read = []
  async with served_agents.endpoint({'policy': model}, max_new_tokens=12) as host:
    async with (
      host.opened(_TASK, key, _SAMPLING, _LIMITS) as session,
      httpx.AsyncClient(base_url=host.base_url(session), timeout=60) as client,
    ):

      async def ask(messages, stream=False, **body):
        body |= {'model': 'policy', 'temperature': 0.1, 'messages': messages}
        body |= {'logprobs': True, 'return_token_ids': True}
        if stream:
          body['stream'] = True
          text = (await client.post('/chat/completions', json=body)).text
          assert text.endswith('data: [DONE]\n\n')
          return text
        got = await client.post('/chat/completions', json=body)
        assert got.status_code == 200, got.text
        (choice,) = got.json()['choices']
        logprobs = [token['logprob'] for token in choice['logprobs']['content']]
        read.append((choice['prompt_token_ids'], choice['token_ids'], logprobs))
        return choice['message']['content']

      await _history(ask)
    return session.turns, read


async def _inside(model, key):
  """Asks the model itself the same; a stop string stays in what it returns."""
  turns, times = [], {}

  async def ask(messages, stream=False, stop=(), max_tokens=12):
    del stream
    prompt = tuple(records.Segment(m['role'], m['content'], False) for m in messages)
    sampling = dataclasses.replace(
      _SAMPLING, max_new_tokens=max_tokens, stop=tuple(stop) or _SAMPLING.stop
    )
    ids = tuple(model.render(prompt))
    name = served_session.digest('policy', ids, sampling)
    number = times[name] = times.get(name, -1) + 1
    named = served_session.request_key(key, name, number)
    done = await model.generate(prompt, sampling, named)
    turns.append(records.Turn(done, sampling))
    return done.text.partition(stop[0])[0] if stop else done.text

  await _history(ask)
  return turns


def test_branches_and_rewritten_histories_are_rows_as_inside(model):
  found = []
  for rollout in range(2):
    key = records.RequestKey(1, records.Purpose.TRAIN, 0, 't', rollout)
    turns, read = asyncio.run(_outside(model, key))
    inside = asyncio.run(_inside(model, key))
    found.append((turns, inside))
    sampled = [
      (list(c.prompt_ids), list(c.response_ids), list(c.logprobs))
      for c in (turn.completion for turn in turns)
    ]
    assert len(turns) == 6 and len(read) == 5
    for one in read:  # What a client is told is what is trained on.
      assert one in sampled
  assert len({turn.sampling for turn in turns}) == 2
  outside, inside = (
    _rows([_trajectory(turns[i], n) for n, turns in enumerate(found)]) for i in (0, 1)
  )
  assert len(outside) == len(inside) == 12

  def order(row):
    return (row.rollout, len(row.prompt_ids), *row.prompt_ids, *row.response_ids)

  for a, b in zip(sorted(outside, key=order), sorted(inside, key=order)):
    for name, value in vars(a).items():
      np.testing.assert_array_equal(value, getattr(b, name), err_msg=name)
