"""An OpenAI-compatible server over one model of this process.

  GET /v1/models    POST /v1/completions    POST /v1/chat/completions

Nothing that a client sends is executed, becomes a control token, or is logged.
"""

import asyncio
import dataclasses
import functools
import hmac
import json
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Sequence
from typing import Any, TypeVar

from starlette import applications, exceptions, responses, routing
from starlette import requests as http

from agentflow_jax import records
from agentflow_jax.serving import requests
from agentflow_jax.training import engine_model

_MAX_BODY_BYTES = 16 << 20
_DONE = 'data: [DONE]\n\n'
_T = TypeVar('_T')


@dataclasses.dataclass(frozen=True)
class Service:
  """What is served.

  Attributes:
    model: the model.
    name: what clients call it.
    max_new_tokens: the most that a response may have.
    key: what clients must send as a bearer token; '' asks for none.
    created: Unix seconds.
  """

  model: engine_model.EngineModel
  name: str
  max_new_tokens: int
  key: str = ''
  created: int = dataclasses.field(default_factory=lambda: int(time.time()))


def make(service: Service) -> applications.Starlette:
  """Returns the ASGI application."""
  routes = [
      routing.Route('/health', _health),
      routing.Route('/v1/models', functools.partial(_models, service)),
      routing.Route(
          '/v1/models/{name:path}', functools.partial(_model, service)
      ),
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
  ]
  return applications.Starlette(
      routes=routes,
      exception_handlers={
          requests.BadRequest: _refuse,
          exceptions.HTTPException: _refuse_http,
          engine_model.PromptTooLong: _too_long,
          engine_model.Unreachable: _unavailable,
          _GoneError: _nobody,
      },
  )


def _error(message, status, kind, param=None, code=None):
  return responses.JSONResponse(
      {
          'error': {
              'message': message, 'type': kind, 'param': param, 'code': code
          }
      },
      status,
  )


async def _refuse(unused_request, error):
  kind = 'invalid_request_error'
  return _error(str(error), error.status, kind, error.param, error.code)


async def _refuse_http(unused_request, error):
  return _error(error.detail, error.status_code, 'invalid_request_error')


async def _too_long(unused_request, error):
  return _error(
      str(error), 400, 'invalid_request_error', 'messages',
      'context_length_exceeded',
  )


async def _unavailable(unused_request, error):
  return _error(str(error), 503, 'server_error')


async def _health(unused_request):
  return responses.JSONResponse({'status': 'ok'})


def _authorise(service: Service, request: http.Request) -> None:
  if not service.key:
    return
  given = request.headers.get('Authorization', '').encode()
  if not hmac.compare_digest(given, f'Bearer {service.key}'.encode()):
    raise requests.BadRequest(
        'the key is missing or wrong', status=401, code='invalid_api_key'
    )


def _card(service: Service) -> dict[str, Any]:
  return {
      'id': service.name, 'object': 'model', 'created': service.created,
      'owned_by': 'agentflow_jax',
  }


async def _models(service, request):
  _authorise(service, request)
  return responses.JSONResponse({'object': 'list', 'data': [_card(service)]})


async def _model(service, request):
  _authorise(service, request)
  name = request.path_params['name']
  if name != service.name:
    raise requests.BadRequest(
        f'the model {name!r} does not exist; there is {service.name!r}',
        'model', 404, 'model_not_found',
    )
  return responses.JSONResponse(_card(service))


async def _answer(service: Service, kind: str, request: http.Request):
  """Answers both kinds of completion, whole or as a stream."""
  _authorise(service, request)
  body = await _body(request)
  is_chat = kind == 'chat.completion'
  if is_chat:
    ask = requests.chat(body, service.name, service.max_new_tokens)
  else:
    ask = requests.completion(
        body, service.name, service.max_new_tokens,
        service.model.tokenizer.vocab_size,
    )
  tokenizer = service.model.tokenizer
  prompts = [_ids(tokenizer, p) for p in ask.prompts]
  prefix = 'chatcmpl' if is_chat else 'cmpl'
  head = {
      'id': f'{prefix}-{secrets.token_hex(12)}',
      'object': kind,
      'created': int(time.time()),
      'model': service.name,
  }
  writer = _Writer(tokenizer, ask, is_chat, head)
  if ask.stream:
    pieces = _stream(service, ask, prompts, writer)
    # What fails before the first token still has a status of its own.
    first = await _unless_gone(request, anext(pieces))
    return responses.StreamingResponse(
        _chained(first, pieces), media_type='text/event-stream'
    )
  tasks = [
      asyncio.create_task(_sample(service, ask, p, i, j))
      for i, p in enumerate(prompts)
      for j in range(ask.choices)
  ]
  try:
    done = await _unless_gone(request, asyncio.gather(*tasks))
  finally:
    for task in tasks:  # One failed, or the client has gone.
      task.cancel()
  return responses.JSONResponse(
      head
      | {
          'choices': [writer.choice(i, c) for i, c in enumerate(done)],
          'usage': _usage(prompts, done),
      }
      | ({'prompt_token_ids': prompts[0]} if ask.token_ids else {})
  )


class _GoneError(Exception):
  """The client has closed the connection."""


async def _unless_gone(request: http.Request, work: Awaitable[_T]) -> _T:
  """Awaits `work` while the client waits for it; otherwise cancels it.

  Args:
    request: one whose body has been read: what it receives next is the end.
    work: what the client asked for.

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
    asked.cancel()


async def _nobody(unused_request, unused_error):
  # Nobody reads it; 499 is what other servers write in their logs.
  return responses.Response(status_code=499)


async def _body(request: http.Request) -> Any:
  size, chunks = 0, []
  async for chunk in request.stream():
    size += len(chunk)
    if size > _MAX_BODY_BYTES:
      raise requests.BadRequest(
          f'the body exceeds {_MAX_BODY_BYTES} bytes', status=413
      )
    chunks.append(chunk)
  try:
    return json.loads(b''.join(chunks))
  except (ValueError, RecursionError) as e:
    raise requests.BadRequest(f'the body is not JSON: {e}') from None


def _ids(tokenizer, prompt) -> list[int]:
  if isinstance(prompt, str):
    return tokenizer.encode(prompt)
  if isinstance(prompt[0], records.Segment):
    try:
      return tokenizer.render(prompt)
    except ValueError as e:  # The chat template refuses the messages.
      raise requests.BadRequest(str(e), 'messages') from e
  return list(prompt)


async def _sample(service, ask, prompt, i, j, on_ids=None):
  key = records.RequestKey(
      ask.seed, records.Purpose.SERVE, 0, str(i), j, module='serve'
  )
  try:
    return await service.model.sample(prompt, ask.sampling, key, on_ids)
  except ValueError as e:
    raise requests.BadRequest(str(e)) from e


def _usage(prompts, done) -> dict[str, int]:
  read = sum(len(p) for p in prompts)
  written = sum(len(c.response_ids) for c in done)
  return {
      'prompt_tokens': read, 'completion_tokens': written,
      'total_tokens': read + written,
  }


async def _chained(first, rest: AsyncIterator[str]) -> AsyncIterator[str]:
  yield first
  try:
    async for piece in rest:
      yield piece
  finally:
    await rest.aclose()


async def _stream(service, ask, prompts, writer) -> AsyncIterator[str]:
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
        yield _event({'error': {'message': str(end), 'type': 'server_error'}})
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
      yield _event(piece)
    if ask.usage:
      yield _event(
          writer.chunk([]) | {'usage': _usage(prompts, done)}
      )
    yield _DONE
  finally:
    for task in tasks:  # The client may have gone.
      task.cancel()


def _event(value) -> str:
  return f'data: {json.dumps(value, ensure_ascii=False)}\n\n'


class _Writer:
  """Writes completions in OpenAI's words, whole or in pieces."""

  def __init__(self, tokenizer, ask: requests.Ask, is_chat: bool, head):
    self._tokenizer, self._ask, self._is_chat = tokenizer, ask, is_chat
    self._head = head
    self._sent: dict[int, str] = {}

  def choice(self, index: int, done: records.Completion) -> dict[str, Any]:
    """A finished choice."""
    text, stopped = _cut(done.text, self._ask.sampling.stop)
    choice = {
        'index': index,
        'finish_reason': 'stop' if stopped else done.finish_reason,
        'logprobs': self._logprobs(done) if self._ask.logprobs else None,
    }
    if self._is_chat:
      choice['message'] = {'role': 'assistant', 'content': text}
    else:
      choice['text'] = text
    if self._ask.token_ids:
      choice['token_ids'] = list(done.response_ids)
    return choice

  def chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
    """One event of a stream."""
    kind = self._head['object'] + ('.chunk' if self._is_chat else '')
    return self._head | {'object': kind, 'choices': choices}

  def piece(self, index: int, ids: Sequence[int]) -> dict[str, Any] | None:
    """What `ids` add to what was sent; None for nothing yet."""
    text, stopped = _cut(
        self._tokenizer.decode(ids), self._ask.sampling.stop
    )
    if not stopped:
      text = text[: len(text) - _unsure(text, self._ask.sampling.stop)]
    return self._delta(index, text)

  def last(self, index: int, done: records.Completion) -> dict[str, Any]:
    """The rest of a choice, how it ended, and what only then is known."""
    whole = self.choice(index, done)
    text = whole.pop('message')['content'] if self._is_chat else whole['text']
    rest = self._delta(index, text)
    delta = rest['choices'][0] if rest else self._empty(index)
    whole.pop('text', None)
    return self.chunk([delta | whole])

  def _delta(self, index: int, text: str) -> dict[str, Any] | None:
    before = self._sent.get(index)
    new = text[len(before or '') :]
    if not new and (before is not None or not self._is_chat):
      return None
    self._sent[index] = text
    choice = self._empty(index)
    if self._is_chat:
      choice['delta'] = {'content': new}
      if before is None:
        choice['delta']['role'] = 'assistant'
    else:
      choice['text'] = new
    return self.chunk([choice])

  def _empty(self, index: int) -> dict[str, Any]:
    body = {'delta': {}} if self._is_chat else {'text': ''}
    return {'index': index, 'finish_reason': None, 'logprobs': None} | body

  def _logprobs(self, done: records.Completion) -> dict[str, Any]:
    tokens = [self._tokenizer.decode([i]) for i in done.response_ids]
    if self._is_chat:
      return {
          'content': [
              {
                  'token': token, 'logprob': logprob,
                  'bytes': list(token.encode('utf-8', 'replace')),
                  'top_logprobs': [],
              }
              for token, logprob in zip(tokens, done.logprobs, strict=True)
          ]
      }
    offsets, end = [], 0
    for token in tokens:
      offsets.append(end)
      end += len(token)
    return {
        'tokens': tokens, 'token_logprobs': list(done.logprobs),
        'top_logprobs': None, 'text_offset': offsets,
    }


def _cut(text: str, stops: Sequence[str]) -> tuple[str, bool]:
  """Returns the text before the first stop string, and whether there is one."""
  found = [at for s in stops if (at := text.find(s)) >= 0]
  return (text[: min(found)], True) if found else (text, False)


def _unsure(text: str, stops: Sequence[str]) -> int:
  """How many characters at the end may yet change or turn out to be a stop."""
  # Bytes of a character that is not whole decode to U+FFFD.
  held = len(text) - len(text.rstrip('\ufffd'))
  for stop in stops:
    for n in range(min(len(stop) - 1, len(text)), held, -1):
      if text.endswith(stop[:n]):
        held = n
        break
  return held
