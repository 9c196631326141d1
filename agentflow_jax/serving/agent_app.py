"""The endpoint of agents that are not ours: sessions for agents, tasks for drivers.

  for agents    /sessions/ID/v1/chat/completions, /completions, /models
                /sessions/ID/answer
  for drivers   /tasks, /sessions/ID/answer, /reward, /failure

Agents need the address of their session and, where the run has one, its key. Drivers
need the driver's key, which no agent is given.
"""

import asyncio
import functools
import hmac
import math
import re
from collections.abc import AsyncIterator
from typing import Any

from starlette import applications, middleware, responses, routing
from starlette import requests as http

from agentflow_jax.agents import chat_messages, served_session
from agentflow_jax.serving import agent_host, app, incoming, requests, writing

# What the run decides about a response of the policy, in OpenAI's words.
_OF_RUN = ('temperature', 'top_p', 'top_k', 'min_p')
_OF_RUN_AT = {'seed': (None,), 'logit_bias': (None, {})} | dict.fromkeys(
  ('frequency_penalty', 'presence_penalty'), (None, 0)
)
_LIMITS = ('max_tokens', 'max_completion_tokens')
_ID = re.compile('[0-9a-f]{32}')
_MOST_ANSWER = 1 << 16  # Characters.
_MOST_WAIT = 60.0  # Of a driver for a task [s].
_MOST_TASKS = 1024  # That a driver takes at once.
_LEAST_WAIT = 0.01  # Without any, wait_for would not look.


def make(
  host: agent_host.AgentHost, hosts: frozenset[str] | None = None
) -> applications.Starlette:
  """Returns the ASGI application.

  Args:
    host: sessions and tasks.
    hosts: names that the header Host may give, see app.Service.
  """
  bodies = incoming.Bodies()
  routes = []
  for path, method, endpoint in (
    ('/tasks', 'GET', _counts),
    ('/tasks', 'POST', _take),
    ('/sessions/{id}/v1/models', 'GET', _models),
    ('/sessions/{id}/v1/completions', 'POST', _answer),
    ('/sessions/{id}/v1/chat/completions', 'POST', _answer),
    ('/sessions/{id}/answer', 'POST', _end),
    ('/sessions/{id}/reward', 'POST', _end),
    ('/sessions/{id}/failure', 'POST', _end),
  ):
    handler = functools.partial(endpoint, host, bodies)
    routes.append(routing.Route(path, handler, methods=[method]))
  routes += app.refused('/sessions/{id}')
  routes.append(routing.Route('/v1/{rest:path}', _no_session, methods=['GET', 'POST']))
  return applications.Starlette(
    routes=routes,
    middleware=[middleware.Middleware(incoming.Gate, hosts=hosts)],
    exception_handlers=app.HANDLERS
    | {served_session.Over: _over, served_session.OutOfTurns: _out_of_turns},
  )


async def _no_session(unused_request):
  raise requests.BadRequest(
    'this endpoint belongs to a training run, and every request to a session: use'
    ' the base URL of the task, http://HOST:PORT/sessions/ID/v1',
    status=404,
    code='no_session',
  )


async def _over(unused_request, error):
  kind = 'invalid_request_error'
  return writing.error(str(error), 410, kind, code='session_over')


async def _out_of_turns(unused_request, error):
  kind = 'invalid_request_error'
  return writing.error(str(error), 403, kind, code='out_of_turns')


def _has_key(request: http.Request, key: str) -> bool:
  return bool(key) and hmac.compare_digest(app.bearer(request), key.encode())


def _check_driver(host, request) -> None:
  if not host.driver_key:
    raise requests.BadRequest(
      'this run starts its agents by agent.served.command and has no driver',
      status=404,
      code='no_driver',
    )
  if not _has_key(request, host.driver_key):
    raise requests.BadRequest(
      "the driver's key is missing or wrong; it is in WORKDIR/served/pN.json",
      status=401,
      code='invalid_driver_key',
    )


def _session(host, request) -> served_session.Session:
  """Returns the open session that a request is for."""
  if host.key and not _has_key(request, host.key):
    if not _has_key(request, host.driver_key):
      raise requests.BadRequest(
        'the key is missing or wrong', status=401, code='invalid_api_key'
      )
  name = request.path_params['id']
  if not _ID.fullmatch(name):
    raise requests.BadRequest(
      f'{chat_messages.shown(name)} is no session', status=404, code='no_session'
    )
  session = host.session(name)
  if session is None:
    raise served_session.Over(
      'this session has ended, or an earlier process of the run opened it'
    )
  return session


async def _counts(host, unused_bodies, request):
  _check_driver(host, request)
  return writing.JSONResponse(host.counts())


async def _take(host: agent_host.AgentHost, bodies, request):
  """Gives a driver the next tasks; none where none comes while it waits."""
  _check_driver(host, request)
  body = await bodies.read(request, empty={})
  body = {'wait_seconds': 20.0, 'most': 1} | (
    body if isinstance(body, dict) else {'': 0}
  )
  wait, most = body.pop('wait_seconds'), body.pop('most')
  if body or not _is_number(wait) or not 0 <= wait <= _MOST_WAIT:
    raise requests.BadRequest(
      f'the body may have wait_seconds, a number from 0 to {_MOST_WAIT:g}, and most',
      'wait_seconds',
    )
  if type(most) is not int or not 1 <= most <= _MOST_TASKS:
    raise requests.BadRequest(f'most must be from 1 to {_MOST_TASKS}', 'most')
  try:
    taken = await app.unless_gone(
      request, asyncio.wait_for(host.take(most), max(wait, _LEAST_WAIT))
    )
  except TimeoutError:
    taken = []
  except agent_host.Closed:
    raise served_session.Over('the run has ended, and has no more tasks') from None
  if await request.is_disconnected():
    for session in reversed(taken):
      host.give_back(session)
  return writing.JSONResponse({'tasks': [_task(host, session) for session in taken]})


def _task(host, session: served_session.Session) -> dict[str, Any]:
  """Returns what a driver is told of a task."""
  task, key = session.task, session.key
  return {
    'session': session.id,
    'base_url': host.base_url(session),
    'api_key': host.key or 'none',
    'model': 'policy',
    'task': {'id': task.id, 'query': task.query, 'answers': list(task.answers)},
    'purpose': key.purpose.value,
    'step': key.step,
    'rollout': key.rollout,
    'max_turns': session.limits.max_turns,
    'deadline_seconds': session.limits.deadline_seconds,
  }


async def _models(host, unused_bodies, request):
  _session(host, request)
  cards = [
    {'id': name, 'object': 'model', 'created': 0, 'owned_by': 'agentflow_jax'}
    for name in host.models
  ]
  return writing.JSONResponse({'object': 'list', 'data': cards})


async def _end(host, bodies, request):
  """Ends a session with what an agent or a driver posts."""
  what = request.scope['path'].rpartition('/')[2]
  if what != 'answer':  # Before a session is told from one that has ended.
    _check_driver(host, request)
  session = _session(host, request)
  body = await bodies.read(request)
  if not isinstance(body, dict) or what not in body or set(body) - {what, 'answer'}:
    raise requests.BadRequest(f'the body must be a JSON object with {what!r}', what)
  reward, failure = None, ''
  answer = body.get('answer', '')
  if not isinstance(answer, str) or len(answer) > _MOST_ANSWER:
    raise requests.BadRequest(
      f'answer must be text of at most {_MOST_ANSWER} characters', 'answer'
    )
  if what == 'reward':
    reward = body['reward']
    if not host.takes_rewards:
      raise requests.BadRequest(
        'this run scores answers itself, by reward.weights: post an answer', 'reward'
      )
    if not _is_number(reward):
      raise requests.BadRequest('reward must be a finite number', 'reward')
    reward = float(reward)
  elif what == 'failure':
    failure = body['failure']
    if not isinstance(failure, str) or not failure:
      raise requests.BadRequest('failure must be text, not empty', 'failure')
    failure = f'the driver says: {failure[:_MOST_ANSWER]}'
  session.finish(served_session.Outcome(answer, reward, failure))
  return writing.JSONResponse({'ended': True})


def _is_number(value: Any) -> bool:
  if isinstance(value, bool) or not isinstance(value, (int, float)):
    return False
  try:
    return math.isfinite(value)
  except OverflowError:
    return False


async def _answer(host: agent_host.AgentHost, bodies, request):
  """Answers a request for completions of a session."""
  session = _session(host, request)
  body = await bodies.read(request)
  name: Any = body.get('model') if isinstance(body, dict) else None
  if name not in host.models:
    raise requests.BadRequest(
      f'the model {chat_messages.shown(name)} does not exist; there is'
      f' {" and ".join(map(repr, host.models))}',
      'model',
      404,
      'model_not_found',
    )
  is_frozen, overridden = name == 'frozen', []
  if not is_frozen:
    body, overridden = _as_run(host, session, body)
  kind = 'text_completion'
  if request.scope['path'].endswith('/chat/completions'):
    kind = 'chat.completion'
  model = agent_host.SessionModel(
    session, host.models[name], is_frozen, kind == 'chat.completion'
  )
  served: Any = model  # What an answer needs of a model.
  service = app.Service(served, name, host.max_new_tokens[name])
  try:
    response = await app.answer(service, kind, request, body, model.deliver)
  except BaseException:
    model.lose()
    raise
  if isinstance(response, responses.StreamingResponse):
    response.body_iterator = _losing(response.body_iterator, model)
  if overridden:
    response.headers['X-AgentFlow-Overridden'] = ', '.join(overridden)
  return response


def _as_run(host, session, body) -> tuple[dict[str, Any], list[str]]:
  """Returns a request without its own sampling settings, and what it had of them.

  Raises:
    BadRequest: it has some, and agent.served.sampling is 'refuse'.
  """
  own = {n: (None, getattr(session.sampling, n)) for n in _OF_RUN} | _OF_RUN_AT
  asked = [n for n, idle in own.items() if body.get(n) not in idle]
  if host.sampling == 'refuse':
    for name in asked:
      if name in _OF_RUN and body[name] == getattr(host.agreed, name):
        continue
      raise requests.BadRequest(
        f'{name}={chat_messages.shown(body[name])}: the run decides how responses'
        ' are sampled (planner.sampling), and agent.served.sampling=refuse',
        name,
      )
  body = {name: value for name, value in body.items() if name not in own}
  most = host.max_new_tokens['policy']
  if host.sampling == 'run':
    for name in _LIMITS:
      limit = body.get(name)
      if type(limit) is int and limit > most:
        body[name] = most
        asked.append(name)
  return body, asked


async def _losing(pieces, model: agent_host.SessionModel) -> AsyncIterator[Any]:
  """Yields a stream; where it does not end, its responses are lost."""
  try:
    async for piece in pieces:
      yield piece
  finally:
    await pieces.aclose()
    model.lose()
