"""An OpenAI-compatible server over one model of this process.

  GET /v1/models    POST /v1/completions    POST /v1/chat/completions
  GET /health       GET /version            GET /metrics

Nothing that a client sends is executed, becomes a control token, or is logged.
Deadlines and the number of connections are the business of `connections`.
"""

import asyncio
import dataclasses
import functools
import hmac
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

from starlette import applications, exceptions, middleware
from starlette import requests as http
from starlette import responses, routing

import agentflow_jax
from agentflow_jax import records
from agentflow_jax.agents import chat_messages
from agentflow_jax.assembly import engine_model
from agentflow_jax.serving import incoming, metrics, requests, writing

_DONE = 'data: [DONE]\n\n'
# Body whose prompt another thread renders [bytes]; its hand-over takes longer than that
# of shorter ones.
_LONG = 8192
_T = TypeVar('_T')


@dataclasses.dataclass(frozen=True)
class Service:
  """What is served.

  Attributes:
    model: the model.
    name: name of the model for clients.
    max_new_tokens: longest response [tokens]; what a client asks for beyond it, or
      beyond what fits behind its prompt, is cut.
    key: bearer token that clients must send; '' asks for none.
    hosts: names that the header Host may give beside addresses of this machine;
      None allows every name, and every Origin. A page of the web whose own name is
      made to resolve to 127.0.0.1 (DNS rebinding) sends that name.
    created: time of the start, in Unix seconds.
    bodies: the reader of requests' bodies.
    row_tokens: largest number of tokens of a prompt and its response together; 0: no
      bound beside those of each.
    context: the model's context [tokens]: a client that asks for more is refused; 0:
      max_new_tokens.
    counts: responses so far.
  """

  model: engine_model.EngineModel
  name: str
  max_new_tokens: int
  key: str = ''
  hosts: frozenset[str] | None = None
  created: int = dataclasses.field(default_factory=lambda: int(time.time()))
  bodies: incoming.Bodies = dataclasses.field(default_factory=incoming.Bodies)
  row_tokens: int = 0
  context: int = 0
  counts: metrics.Counts = dataclasses.field(default_factory=metrics.Counts)

  def room(self, prompt_tokens: int) -> int:
    """Returns the length of the longest response to a prompt [tokens].

    Raises:
      PromptTooLong: there is no room for a single token.
    """
    most = self.model.max_prompt_tokens
    if self.row_tokens:
      most = min(most, self.row_tokens - 1)
    if prompt_tokens > most:
      raise engine_model.PromptTooLong(
        f'a prompt of {prompt_tokens} tokens exceeds the {most} that are read'
      )
    left = self.row_tokens - prompt_tokens if self.row_tokens else self.max_new_tokens
    return min(left, self.max_new_tokens)


def make(service: Service) -> applications.Starlette:
  """Returns the ASGI application."""
  routes = [
    routing.Route('/health', functools.partial(_health, service)),
    routing.Route('/version', _version),
    routing.Route('/metrics', functools.partial(_metrics, service)),
    routing.Route('/v1/models', functools.partial(_models, service)),
    routing.Route('/v1/models/{name:path}', functools.partial(_model, service)),
    routing.Route(
      '/v1/completions',
      functools.partial(_answer, service, 'text_completion'),
      methods=['POST'],
    ),
    routing.Route(
      '/v1/chat/completions',
      functools.partial(_answer, service, 'chat.completion'),
      methods=['POST'],
    ),
    *refused(''),
  ]
  return applications.Starlette(
    routes=routes,
    middleware=[
      middleware.Middleware(metrics.Counter, counts=service.counts),
      middleware.Middleware(incoming.Gate, hosts=service.hosts),
    ],
    exception_handlers=HANDLERS,
  )


def refused(prefix: str) -> list[routing.Route]:
  """Returns routes of other interfaces below `prefix`, which say what there is."""
  return [
    routing.Route(f'{prefix}/v1/{name}', _other_interface, methods=['GET', 'POST'])
    for name in ('responses', 'messages')
  ]


async def _other_interface(request):
  name = request.scope['path'].rpartition('/')[2]
  raise requests.BadRequest(
    f'/v1/{name} is not served; use /v1/chat/completions (in the openai package:'
    ' client.chat.completions)',
    status=404,
    code='unsupported_interface',
  )


async def _refuse(unused_request, error):
  kind = 'server_error' if error.status >= 500 else 'invalid_request_error'
  return writing.error(str(error), error.status, kind, error.param, error.code)


async def _refuse_http(unused_request, error):
  return writing.error(error.detail, error.status_code, 'invalid_request_error')


async def _too_long(unused_request, error):
  return writing.error(
    str(error), 400, 'invalid_request_error', 'messages', 'context_length_exceeded'
  )


async def _unavailable(unused_request, error):
  return writing.error(str(error), 503, 'server_error')


async def _broken(unused_request, unused_error):
  # The server logs the error; its text may hold what clients should not see.
  return writing.error('internal error', 500, 'server_error')


async def _health(service, unused_request):
  if service.model.is_closed:  # For good: who watches should restart it.
    return writing.error('the engine has ended', 503, 'server_error')
  return writing.JSONResponse({'status': 'ok'})


async def _version(unused_request):
  return writing.JSONResponse({'version': agentflow_jax.__version__})


async def _metrics(service, request):
  _authorise(service, request)
  return responses.Response(
    metrics.text(service.model.stats(), service.counts), media_type=metrics.CONTENT_TYPE
  )


def _authorise(service: Service, request: http.Request) -> None:
  if not service.key:
    return
  if not hmac.compare_digest(bearer(request), service.key.encode()):
    raise requests.BadRequest(
      'the key is missing or wrong', status=401, code='invalid_api_key'
    )


def bearer(request: http.Request) -> bytes:
  """Returns the key that a request gives; empty where it gives none."""
  scheme, _, given = request.headers.get('Authorization', '').partition(' ')
  # Headers are read as Latin-1; a key may have any characters.
  return given.strip().encode('latin-1') if scheme.lower() == 'bearer' else b''


def _card(service: Service) -> dict[str, Any]:
  return {
    'id': service.name,
    'object': 'model',
    'created': service.created,
    'owned_by': 'agentflow_jax',
  }


async def _models(service, request):
  _authorise(service, request)
  return writing.JSONResponse({'object': 'list', 'data': [_card(service)]})


async def _model(service, request):
  _authorise(service, request)
  name = request.path_params['name']
  if name != service.name:
    raise requests.BadRequest(
      f'the model {chat_messages.shown(name)} does not exist; there is'
      f' {service.name!r}',
      'model',
      404,
      'model_not_found',
    )
  return writing.JSONResponse(_card(service))


async def _answer(service: Service, kind: str, request: http.Request):
  """Answers both kinds of completion, whole or as a stream."""
  _authorise(service, request)
  body = await service.bodies.read(request)
  return await answer(service, kind, request, body)


async def answer(
  service: Service,
  kind: str,
  request: http.Request,
  body: Any,
  on_whole: Callable[[], None] | None = None,
) -> responses.Response:
  """Answers a request whose body has been read.

  Args:
    service: model that answers.
    kind: 'chat.completion' or 'text_completion'.
    request: request of the client.
    body: JSON value of its body.
    on_whole: function that is called when the last piece of the answer is about to be
      written, to a client that has not left.

  Raises:
    BadRequest, PromptTooLong, Unreachable: there is no answer.
  """
  is_chat = kind == 'chat.completion'
  context = service.context or service.max_new_tokens
  if is_chat:
    ask = requests.chat(body, service.name, context)
  else:
    ask = requests.completion(
      body, service.name, context, service.model.tokenizer.vocab_size
    )
  tokenizer = service.model.tokenizer

  def render():
    return [_ids(service.model, p, ask.tools) for p in ask.prompts]

  # Long ones not on the event loop, and refused before there are `n` requests of each.
  is_short = int(request.headers.get('content-length', _LONG)) < _LONG
  prompts = render() if is_short else await asyncio.to_thread(render)
  service.room(max(map(len, prompts)))
  prefix = 'chatcmpl' if is_chat else 'cmpl'
  head = {
    'id': f'{prefix}-{secrets.token_hex(12)}',
    'object': kind,
    'created': int(time.time()),
    'model': service.name,
  }
  writer = writing.Writer(tokenizer, ask, is_chat, head, prompts)
  if ask.stream:
    pieces = _stream(service, ask, prompts, writer, on_whole)
    # What fails before the first token still has a status of its own.
    first = await unless_gone(request, anext(pieces))
    return responses.StreamingResponse(
      _chained(first, pieces), media_type='text/event-stream'
    )
  tasks = [
    asyncio.create_task(_sample(service, ask, p, i, j))
    for i, p in enumerate(prompts)
    for j in range(ask.choices)
  ]
  try:
    done = await unless_gone(request, asyncio.gather(*tasks))
  finally:
    for task in tasks:  # One failed, or the client has gone.
      task.cancel()
  if on_whole is not None:
    on_whole()
  return writing.JSONResponse(
    head
    | {
      'choices': [writer.choice(i, c) for i, c in enumerate(done)],
      'usage': _usage(prompts, done),
    }
    | ({'prompt_token_ids': prompts[0]} if ask.token_ids and len(prompts) == 1 else {})
  )


class _GoneError(Exception):
  """The client has closed the connection."""


async def unless_gone(request: http.Request, work: Awaitable[_T]) -> _T:
  """Awaits `work` while the client waits for it; otherwise cancels it.

  Args:
    request: one whose body has been read: what it receives next is the end.
    work: work that the client asked for.

  Raises:
    _GoneError: the client has left. What `work` raises, it raises too.
  """
  asked = asyncio.ensure_future(work)
  gone = asyncio.ensure_future(request.receive())
  try:
    await asyncio.wait({asked, gone}, return_when=asyncio.FIRST_COMPLETED)
    if not asked.done():
      raise _GoneError
    return asked.result()
  finally:
    gone.cancel()
    # Retrieves the result; asyncio logs an exception that is never retrieved.
    asked.add_done_callback(lambda done: done.cancelled() or done.exception())
    asked.cancel()


async def _client_gone(unused_request, unused_error):
  # Nobody reads it; 499 is what other servers write in their logs.
  return responses.Response(status_code=499)


# Responses of errors, by kind.
HANDLERS: dict[Any, Any] = {
  requests.BadRequest: _refuse,
  exceptions.HTTPException: _refuse_http,
  engine_model.PromptTooLong: _too_long,
  engine_model.Unreachable: _unavailable,
  _GoneError: _client_gone,
  http.ClientDisconnect: _client_gone,
  Exception: _broken,
}


def _ids(model, prompt, tools) -> list[int]:
  if isinstance(prompt, str):
    return model.tokenizer.encode(prompt)
  if isinstance(prompt[0], records.Segment):
    try:
      return model.render(prompt, tools)
    except ValueError as e:  # The chat template refuses the messages.
      raise requests.BadRequest(str(e), 'messages') from e
  return list(prompt)


async def _sample(service, ask, prompt, i, j, on_ids=None):
  key = records.RequestKey(
    ask.seed, records.Purpose.SERVE, 0, str(i), j, module='serve'
  )
  limit = min(ask.sampling.max_new_tokens, service.room(len(prompt)))
  sampling = dataclasses.replace(ask.sampling, max_new_tokens=limit)
  more = {'top_logprobs': ask.top_logprobs} if ask.top_logprobs else {}
  try:
    return await service.model.sample(prompt, sampling, key, on_ids, **more)
  except ValueError as e:
    raise requests.BadRequest(str(e)) from e


def _usage(prompts, done) -> dict[str, int]:
  read = sum(len(p) for p in prompts)
  written = sum(len(c.response_ids) for c in done)
  return {
    'prompt_tokens': read,
    'completion_tokens': written,
    'total_tokens': read + written,
  }


async def _chained(first, rest: AsyncGenerator[str, None]) -> AsyncIterator[str]:
  yield first
  try:
    async for piece in rest:
      yield piece
  finally:
    await rest.aclose()


async def _stream(service, ask, prompts, writer, on_whole) -> AsyncGenerator[str, None]:
  """Yields server-sent events as the engine samples; choices interleave."""
  loop, queue = asyncio.get_running_loop(), asyncio.Queue()

  async def one(index, prompt, i, j):
    def on_ids(ids):  # On the engine's thread.
      loop.call_soon_threadsafe(queue.put_nowait, (index, ids, None))

    try:
      done = await _sample(service, ask, prompt, i, j, on_ids)
      queue.put_nowait((index, None, done))
    except Exception as e:  # Raised where the stream is read.
      queue.put_nowait((index, None, e))

  tasks = [
    asyncio.create_task(one(i * ask.choices + j, p, i, j))
    for i, p in enumerate(prompts)
    for j in range(ask.choices)
  ]
  try:
    left, started, done = len(tasks), set(), []
    while left:
      index, ids, end = await queue.get()
      if isinstance(end, Exception):
        if not started:
          raise end
        yield writing.event(writing.error_object(str(end), 'server_error'))
        return
      started.add(index)
      if end is None:
        piece = writer.piece(index, ids)
        if piece is None:
          continue
      else:
        left -= 1
        done.append(end)
        piece = writer.last(index, end)
        if not left and on_whole is not None:
          on_whole()
      yield writing.event(piece)
    if ask.usage:
      yield writing.event(writer.chunk([]) | {'usage': _usage(prompts, done)})
    yield _DONE
  finally:
    for task in tasks:  # The client may have gone.
      task.cancel()
