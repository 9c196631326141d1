"""What the server says: OpenAI's shapes, whole or as server-sent events."""

import json
import secrets
from collections.abc import Sequence
from typing import Any

from starlette import responses

from agentflow_jax import records
from agentflow_jax.assembly import engine_model
from agentflow_jax.serving import requests


# Bytes of a character in UTF-8.
_MOST_PARTS = 4
_MAX_MESSAGE = 1000  # Characters of an error.


class JSONResponse(responses.JSONResponse):
  """A response in ASCII: a client's text may hold what UTF-8 cannot, and is quoted."""

  def render(self, content: Any) -> bytes:
    return json.dumps(content, allow_nan=False, separators=(',', ':')).encode('ascii')


def error(message, status, kind, param=None, code=None) -> responses.Response:
  """Returns an error as OpenAI's clients read it."""
  return JSONResponse(error_object(message, kind, param, code), status)


def error_object(message, kind, param=None, code=None) -> dict[str, Any]:
  """Returns the body of an error, or the data of an event that is one."""
  return {
    'error': {
      'message': _sendable(message),
      'type': kind,
      'param': None if param is None else _sendable(param),
      'code': code,
    }
  }


def _sendable(text: str) -> str:
  """Returns a text, cut, without the surrogates that UTF-8 cannot hold."""
  if len(text) > _MAX_MESSAGE:
    text = f'{text[:_MAX_MESSAGE]}...'
  return text.encode(errors='backslashreplace').decode()


def event(value) -> str:
  return f'data: {json.dumps(value, ensure_ascii=False)}\n\n'


class Writer:
  """Writes completions in OpenAI's words, whole or in pieces."""

  def __init__(
    self,
    tokenizer,
    ask: requests.Ask,
    is_chat: bool,
    head,
    prompts: Sequence[Sequence[int]],
  ):
    self._tokenizer, self._ask, self._is_chat = tokenizer, ask, is_chat
    self._head, self._prompts = head, prompts
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
      if self._ask.tools:
        said = engine_model.read_calls(text, self._tokenizer.opens_thought)
        choice['message']['content'] = said.content
        if said.calls:
          choice['message'] |= {
            'content': said.content or None,
            'tool_calls': [_call(call) for call in said.calls],
          }
          if choice['finish_reason'] == 'stop':
            choice['finish_reason'] = 'tool_calls'
    else:
      choice['text'] = text
    if self._ask.token_ids:
      prompt = self._prompts[index // self._ask.choices]
      choice |= {'prompt_token_ids': list(prompt), 'token_ids': list(done.response_ids)}
    return choice

  def chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
    """One event of a stream."""
    kind = self._head['object'] + ('.chunk' if self._is_chat else '')
    return self._head | {'object': kind, 'choices': choices}

  def piece(self, index: int, ids: Sequence[int]) -> dict[str, Any] | None:
    """What `ids` add to what was sent; None for nothing yet."""
    text, stopped = _cut(self._tokenizer.decode(ids), self._ask.sampling.stop)
    if not stopped:
      text = text[: len(text) - _unsure(text, self._ask.sampling.stop)]
    if self._ask.tools:  # Calls are sent at the end.
      text = engine_model.sure_content(text)
    return self._delta(index, text)

  def last(self, index: int, done: records.Completion) -> dict[str, Any]:
    """The rest of a choice, how it ended, and what only then is known."""
    whole = self.choice(index, done)
    message = whole.pop('message') if self._is_chat else {'content': whole.pop('text')}
    rest = self._delta(index, message['content'] or '')
    delta = rest['choices'][0] if rest else self._empty(index)
    if 'tool_calls' in message:
      delta['delta']['tool_calls'] = [
        {'index': i} | call for i, call in enumerate(message['tool_calls'])
      ]
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
    tops: list[list[tuple[str, float]]] = [[] for _ in tokens]
    if isinstance(done, engine_model.ScoredCompletion):
      tops = [
        [(self._tokenizer.decode([i]), score) for i, score in zip(*position)]
        for position in done.top
      ]
    if self._is_chat:
      return {
        'content': [
          {
            'token': token,
            'logprob': logprob,
            'bytes': _bytes(token),
            'top_logprobs': [
              {'token': text, 'logprob': score, 'bytes': _bytes(text)}
              for text, score in alternatives
            ],
          }
          for token, logprob, alternatives in zip(
            tokens, done.logprobs, tops, strict=True
          )
        ]
      }
    return {
      'tokens': tokens,
      'token_logprobs': list(done.logprobs),
      # Of tokens with the same text, such as parts of characters, the most likely.
      'top_logprobs': [dict(reversed(one)) for one in tops]
      if self._ask.top_logprobs
      else None,
      'text_offset': self._offsets(done.response_ids),
    }

  def _offsets(self, ids: Sequence[int]) -> list[int]:
    """Returns where each token is in the text; parts of a character are all at it."""
    offsets, end, parts, before = [], 0, [], ''
    for i in ids:
      text = self._tokenizer.decode([*parts, i])
      if parts and text == before + self._tokenizer.decode([i]):
        # So what came before was no part of one, but U+FFFD or broken itself.
        end, parts, text = end + len(before), [], text[len(before) :]
      offsets.append(end)
      parts.append(i)
      if text.endswith('\ufffd') and len(parts) < _MOST_PARTS:
        before = text
      else:
        end, parts = end + len(text), []
    return offsets


def _bytes(token: str) -> list[int] | None:
  """Returns the bytes of a token; None for a part of a character."""
  return None if '\ufffd' in token else list(token.encode())


def _call(call: records.ToolCall) -> dict[str, Any]:
  """Returns a call as a client reads it; its id is a new one."""
  arguments = json.dumps(dict(call.arguments), ensure_ascii=False)
  return {
    'id': f'call_{secrets.token_hex(12)}',
    'type': 'function',
    'function': {'name': call.tool, 'arguments': arguments},
  }


def _cut(text: str, stops: Sequence[str]) -> tuple[str, bool]:
  """Returns the text before the first stop string, and whether there is one."""
  found = [at for s in stops if (at := text.find(s)) >= 0]
  return (text[: min(found)], True) if found else (text, False)


def _unsure(text: str, stops: Sequence[str]) -> int:
  """How many characters at the end may yet change or turn out to be a stop."""
  # Bytes of a character that is not whole decode to U+FFFD. It may become the next
  # one of a stop string, too.
  whole = text.rstrip('\ufffd')
  begun = 0
  for stop in stops:
    for n in range(min(len(stop) - 1, len(whole)), begun, -1):
      if whole.endswith(stop[:n]):
        begun = n
        break
  return len(text) - len(whole) + begun
