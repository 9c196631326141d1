"""What a client may ask, in OpenAI's words: read, checked, and made ours.

A field that would change the answer and that this server does not do is an
error that names it, never ignored.
"""

import contextlib
import dataclasses
import math
import secrets
from collections.abc import Mapping
from typing import Any

from agentflow_jax import records
from agentflow_jax.agents import chat_messages
from agentflow_jax.assembly import engine_model

_MAX_CHOICES = 64
_MAX_PROMPTS = 64
_MAX_STOPS = 4
_MAX_TOOLS = 128
# Fields that both ends know, of both kinds of request.
_SHARED = frozenset(
  {
    'model',
    'max_tokens',
    'temperature',
    'top_p',
    'n',
    'stop',
    'stream',
    'stream_options',
    'seed',
    'logprobs',
    'top_k',
    'min_p',
    'user',
    'return_token_ids',
  }
)
# Fields that mean nothing at these values, and that clients like to send.
_IDLE: Mapping[str, tuple[Any, ...]] = {
  'frequency_penalty': (None, 0),
  'presence_penalty': (None, 0),
  'repetition_penalty': (None, 1),
  'length_penalty': (None, 1),
  'logit_bias': (None, {}),
  'echo': (None, False),
  'suffix': (None, ''),
  'best_of': (None, 1),
  'tools': (None, []),
  'tool_choice': (None, 'none', 'auto'),
  'parallel_tool_calls': (None, True, False),
  'response_format': (None, {'type': 'text'}),
  'store': (None, False),
  'metadata': (None, {}),
  'service_tier': (None, 'auto', 'default'),
  'modalities': (None, ['text']),
  'top_logprobs': (None, 0),
}


class BadRequest(Exception):
  """A request that cannot be answered.

  Attributes:
    status: status code of the HTTP response.
    param: the field that is wrong, or None.
    code: OpenAI's word for it, or None.
  """

  def __init__(
    self,
    message: str,
    param: str | None = None,
    status: int = 400,
    code: str | None = None,
  ):
    super().__init__(message)
    self.status, self.param, self.code = status, param, code


@dataclasses.dataclass(frozen=True)
class Ask:
  """One request, checked.

  Attributes:
    prompts: prompts of the groups of choices: each one token ids, a text, or a chat's
      segments.
    sampling: sampling settings of every choice.
    choices: number of choices for each prompt.
    seed: seed of the request's randomness.
    stream: whether the answer comes in pieces.
    logprobs: whether each token's is wanted.
    token_ids: whether ids are wanted.
    usage: whether a stream ends with the numbers of tokens.
    tools: tools that a chat's response may call, as the client describes them.
    top_logprobs: number of the most likely tokens that are wanted with each token.
  """

  prompts: tuple[tuple[int, ...] | str | tuple[records.Segment, ...], ...]
  sampling: records.SamplingSpec
  choices: int
  seed: int
  stream: bool
  logprobs: bool
  token_ids: bool
  usage: bool
  tools: tuple[Mapping[str, Any], ...] = ()
  top_logprobs: int = 0


def chat(body: Any, model: str, context: int) -> Ask:
  """Reads a /v1/chat/completions request.

  Args:
    body: the parsed JSON.
    model: the name that is served.
    context: the model's context, which a client may ask for at most, and the default
      [tokens]. The caller cuts the limit to what fits behind the prompt.

  Raises:
    BadRequest: names the field.
  """
  _check_fields(
    body,
    model,
    _SHARED
    | {
      'messages',
      'max_completion_tokens',
      'tools',
      'tool_choice',
      'parallel_tool_calls',
      'top_logprobs',
    },
  )
  messages = body.get('messages')
  if not isinstance(messages, list) or not messages:
    raise BadRequest('messages must be a list of at least one', 'messages')
  with _refusing():
    segments = chat_messages.conversation(messages)
  limits = [body.get('max_completion_tokens'), body.get('max_tokens')]
  limits = [limit for limit in limits if limit is not None]
  if len(limits) > 1 and limits[0] != limits[1]:
    raise BadRequest('max_completion_tokens and max_tokens differ', 'max_tokens')
  limit = limits[0] if limits else None
  wanted = _typed(body, 'logprobs', bool, False)
  top = _typed(body, 'top_logprobs', int, 0)
  _check_top(top, 'top_logprobs')
  if top and not wanted:
    raise BadRequest('top_logprobs needs logprobs=true', 'top_logprobs')
  ask = _ask(body, (segments,), limit, context, wanted, top)
  return dataclasses.replace(ask, tools=_tools(body))


def _check_top(count: int, field: str) -> None:
  if not 0 <= count <= engine_model.MAX_TOP_LOGPROBS:
    raise BadRequest(f'{field} must be 0 to {engine_model.MAX_TOP_LOGPROBS}', field)


def _tools(body) -> tuple[Mapping[str, Any], ...]:
  """Returns the tools that the response may call."""
  tools = _typed(body, 'tools', list, [])
  choice = body.get('tool_choice')
  if choice not in (None, 'none', 'auto'):
    raise BadRequest(
      f'tool_choice={chat_messages.shown(choice)} is not supported, only auto and none',
      'tool_choice',
    )
  if not _typed(body, 'parallel_tool_calls', bool, True) and tools:
    raise BadRequest(
      'parallel_tool_calls=false is not supported: a response may make several calls',
      'parallel_tool_calls',
    )
  if len(tools) > _MAX_TOOLS:
    raise BadRequest(f'tools: {_MAX_TOOLS} at most', 'tools')
  with _refusing():
    chat_messages.check_tools(tools)
  return () if choice == 'none' else tuple(tools)


def completion(body: Any, model: str, context: int, vocab_size: int) -> Ask:
  """Reads a /v1/completions request.

  Args:
    body: the parsed JSON.
    model: the name that is served.
    context: the model's context, which a client may ask for at most [tokens].
    vocab_size: ids of a prompt lie below it.

  Raises:
    BadRequest: names the field.
  """
  _check_fields(body, model, _SHARED | {'prompt'})
  prompt = body.get('prompt')
  prompts = prompt if isinstance(prompt, list) else [prompt]
  if prompts and all(_is_int(p) for p in prompts):
    prompts = [prompts]  # One prompt, as ids.
  if not 1 <= len(prompts) <= _MAX_PROMPTS:
    raise BadRequest(f'prompt: 1 to {_MAX_PROMPTS} of them', 'prompt')
  read = tuple(_prompt(p, vocab_size) for p in prompts)
  logprobs = body.get('logprobs')
  wanted = logprobs is not None and logprobs is not False
  top = 0 if isinstance(logprobs, bool) or logprobs is None else logprobs
  if not _is_int(top):
    raise BadRequest('logprobs must be a whole number', 'logprobs')
  _check_top(top, 'logprobs')
  limit = body.get('max_tokens')
  if limit is None:  # OpenAI's own default.
    limit = min(16, context)
  return _ask(body, read, limit, context, wanted, top)


def _prompt(prompt, vocab_size: int) -> tuple[int, ...] | str:
  if isinstance(prompt, str) and prompt:
    with _refusing():
      chat_messages.check_text(prompt, 'prompt')
    return prompt
  if isinstance(prompt, list) and prompt and all(_is_int(i) for i in prompt):
    if all(0 <= i < vocab_size for i in prompt):
      return tuple(prompt)
    raise BadRequest(f'prompt: an id leaves [0, {vocab_size})', 'prompt')
  raise BadRequest('prompt must be text, or token ids; not empty', 'prompt')


@contextlib.contextmanager
def _refusing():
  """Answers what is no text, no message or no tool as a bad request."""
  try:
    yield
  except chat_messages.MessageError as e:
    raise BadRequest(str(e), e.field) from e


def _check_fields(body, model: str, known: frozenset[str]) -> None:
  if not isinstance(body, dict):
    raise BadRequest('the body must be a JSON object')
  for name, value in body.items():
    if name in known:
      continue
    if name in _IDLE:
      if value not in _IDLE[name]:
        raise BadRequest(f'{name}={chat_messages.shown(value)} is not supported', name)
    else:
      raise BadRequest(
        f'unknown or unsupported field {chat_messages.shown(name)}', name[:80]
      )
  if body.get('model') != model:
    raise BadRequest(
      f'the model {chat_messages.shown(body.get("model"))} does not exist; there is'
      f' {model!r}',
      'model',
      404,
      'model_not_found',
    )


def _ask(body, prompts, limit, most: int, logprobs: bool, top: int) -> Ask:
  if limit is None:
    limit = most
  if not _is_int(limit) or not 1 <= limit <= most:
    raise BadRequest(
      f"max_tokens must be 1 to {most}, the model's context", 'max_tokens'
    )
  stop = body.get('stop')
  if stop is None:
    stop = []
  stop = [stop] if isinstance(stop, str) else stop
  if (
    not isinstance(stop, list)
    or len(stop) > _MAX_STOPS
    or not all(isinstance(s, str) and s for s in stop)
  ):
    raise BadRequest(f'stop: at most {_MAX_STOPS} texts, none empty', 'stop')
  choices = body.get('n')
  choices = 1 if choices is None else choices
  if not _is_int(choices) or not 1 <= choices <= _MAX_CHOICES:
    raise BadRequest(f'n must be 1 to {_MAX_CHOICES}', 'n')
  seed = body.get('seed')
  if seed is None:
    seed = secrets.randbits(62)
  elif not _is_int(seed):
    raise BadRequest('seed must be a whole number', 'seed')
  options = _typed(body, 'stream_options', dict, {})
  # Obfuscation pads the events of a stream, and changes no answer.
  if set(options) - {'include_usage', 'include_obfuscation'}:
    raise BadRequest('stream_options: only include_usage is known', 'stream_options')
  try:
    sampling = records.SamplingSpec(
      temperature=_number(body, 'temperature', 1.0),
      top_p=_number(body, 'top_p', 1.0),
      top_k=max(_typed(body, 'top_k', int, 0), 0),  # vLLM's -1 keeps all.
      min_p=_number(body, 'min_p', 0.0),
      max_new_tokens=limit,
      stop=tuple(stop),
    )
  except ValueError as e:
    raise BadRequest(str(e)) from e
  return Ask(
    prompts=prompts,
    sampling=sampling,
    choices=choices,
    seed=seed,
    stream=_typed(body, 'stream', bool, False),
    logprobs=logprobs,
    token_ids=_typed(body, 'return_token_ids', bool, False),
    usage=_typed(options, 'include_usage', bool, False),
    top_logprobs=top,
  )


def _is_int(value: Any) -> bool:
  return isinstance(value, int) and not isinstance(value, bool)


def _typed(body, name: str, kind: type, default):
  value = body.get(name)
  if value is None:
    return default
  if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
    raise BadRequest(f'{name} must be of type {kind.__name__}', name)
  return value


def _number(body, name: str, default: float) -> float:
  value = body.get(name)
  if value is None:
    return default
  if isinstance(value, bool) or not isinstance(value, (int, float)):
    raise BadRequest(f'{name} must be a number', name)
  try:
    value = float(value)
  except OverflowError:  # A whole number of hundreds of digits.
    value = math.inf
  if not math.isfinite(value):
    raise BadRequest(f'{name} must be finite', name)
  return value
