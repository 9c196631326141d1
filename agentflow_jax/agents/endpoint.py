"""A language model behind an OpenAI-compatible chat endpoint.

It gives text without token ids or log probabilities, so it may back a frozen
role and never a trained one.
"""

import asyncio
import contextlib
import dataclasses
import datetime
import email.utils
import json
import math
import os
import time
import urllib.parse
from collections.abc import Mapping
from typing import Any

from absl import logging
import httpx

from agentflow_jax import records
from agentflow_jax.agents import language_model

# Statuses worth another try besides 5xx: timeout, conflict, too early, busy.
_RETRIED = frozenset({408, 409, 425, 429})
_UNAUTHORISED = frozenset({401, 403, 407})
_LOOPBACK = frozenset({'localhost', '127.0.0.1', '::1'})
_MAX_RESPONSE_BYTES = 16 << 20
_MAX_ERROR_CHARACTERS = 300
# English text in common tokenizers; a message's own template tokens.
_CHARACTERS_PER_TOKEN = 4
_TOKENS_PER_MESSAGE = 4


class Refused(Exception):
  """The endpoint turned the request down for good: wrong key, name or field."""


@dataclasses.dataclass(frozen=True)
class EndpointConfig:
  """Where the endpoint is and how patient to be with it.

  Attributes:
    base_url: up to and without "/chat/completions", such as
      "http://127.0.0.1:8000/v1".
    model: the name that the endpoint knows the model by.
    api_key_variable: environment variable that holds the key; empty sends none.
    concurrency: requests in flight at most.
    timeout_seconds: time for one attempt, from connecting to the last byte.
    connect_seconds: time for connecting.
    max_attempts: attempts at one request, the first one included.
    backoff_seconds: pause before the second attempt; doubles each time.
    max_backoff_seconds: longest pause, also where the server asks for more.
    extended_sampling: the server understands top_k and min_p, which are not
      part of OpenAI's own interface (vLLM, SGLang and llama.cpp do).
    send_seed: send a seed that is derived from the request's key.
    token_limit_field: 'max_tokens', or 'max_completion_tokens' where the server
      wants the newer name.
    azure_api_version: if given, the URL and the header of the key are Azure's:
      base_url is the resource's, and model the name of a deployment.
    prompt_price: of a million tokens read [any currency].
    completion_price: of a million tokens written.
  """

  base_url: str
  model: str
  api_key_variable: str = ''
  concurrency: int = 16
  timeout_seconds: float = 120.0
  connect_seconds: float = 10.0
  max_attempts: int = 5
  backoff_seconds: float = 0.5
  max_backoff_seconds: float = 30.0
  extended_sampling: bool = False
  send_seed: bool = True
  token_limit_field: str = 'max_tokens'
  azure_api_version: str = ''
  prompt_price: float = 0.0
  completion_price: float = 0.0

  def __post_init__(self):
    url = httpx.URL(self.base_url)
    if url.userinfo or url.query:
      # Not repeated here: it may be a secret.
      raise ValueError('base_url must not hold credentials or a query')
    if url.scheme not in ('http', 'https') or not url.host:
      raise ValueError(
          f'base_url must be http(s)://host/...: {self.base_url!r}'
      )
    if not self.model:
      raise ValueError('model must name the model that the endpoint serves')
    for name in ('concurrency', 'max_attempts'):
      if getattr(self, name) < 1:
        raise ValueError(f'{name} must be >= 1: {getattr(self, name)}')
    for name in ('timeout_seconds', 'connect_seconds'):
      value = getattr(self, name)
      if not 0 < value < math.inf:
        raise ValueError(f'{name} must be finite and > 0: {value}')
    for name in (
        'backoff_seconds', 'max_backoff_seconds', 'prompt_price',
        'completion_price',
    ):
      value = getattr(self, name)
      if not 0 <= value < math.inf:
        raise ValueError(f'{name} must be finite and >= 0: {value}')
    if self.token_limit_field not in ('max_tokens', 'max_completion_tokens'):
      raise ValueError(
          "token_limit_field must be 'max_tokens' or 'max_completion_tokens': "
          f'{self.token_limit_field!r}'
      )


@dataclasses.dataclass
class Usage:
  """What the requests of one module came to.

  Attributes:
    requests: that were answered.
    prompt_tokens: read, as the endpoint counted; 0 where it does not say.
    completion_tokens: written, likewise.
    cost: by the config's prices.
  """

  requests: int = 0
  prompt_tokens: int = 0
  completion_tokens: int = 0
  cost: float = 0.0


class _Retry(Exception):
  """This attempt failed in a way that another one may not."""

  def __init__(self, reason: str, retry_after: float | None = None):
    super().__init__(reason)
    self.retry_after = retry_after


class EndpointClient:
  """Implements `language_model.LanguageModel` over HTTP.

  Use it from one event loop and await `aclose` at the end. The key is read
  once, from the environment, and appears in no log line and no error.

  Attributes:
    usage: module -> what its requests came to so far.

  Args:
    config: where the endpoint is.

  Raises:
    ValueError: the key's variable is unset or does not hold a key.
  """

  def __init__(self, config: EndpointConfig):
    self._config = config
    url = httpx.URL(config.base_url)
    self._url = str(url).rstrip('/')
    if config.azure_api_version:
      deployment = urllib.parse.quote(config.model, safe='')
      self._url += f'/openai/deployments/{deployment}/chat/completions'
      self._url += f'?api-version={config.azure_api_version}'
    else:
      self._url += '/chat/completions'
    self._key = _read_key(config.api_key_variable)
    headers = {}
    if self._key and config.azure_api_version:
      headers['api-key'] = self._key
    elif self._key:
      headers['Authorization'] = f'Bearer {self._key}'
    self.usage: dict[str, Usage] = {}
    self._slots = asyncio.Semaphore(config.concurrency)
    self._client = httpx.AsyncClient(
        headers=headers,
        timeout=httpx.Timeout(
            config.timeout_seconds, connect=config.connect_seconds, pool=None
        ),
        limits=httpx.Limits(
            max_connections=config.concurrency,
            max_keepalive_connections=config.concurrency,
        ),
        # A proxy of the environment must not be asked for this machine.
        trust_env=url.host not in _LOOPBACK,
    )

  async def generate(
      self,
      prompt: tuple[records.Segment, ...],
      sampling: records.SamplingSpec,
      request_key: records.RequestKey,
  ) -> records.Completion:
    """Samples one response; neighbouring segments of a role are one message.

    The endpoint cuts a stop string off and does not say which one it was, so
    the text ends before it.

    Args:
      prompt: what the model is conditioned on, in order; not empty.
      sampling: how to sample; top_k and min_p only with `extended_sampling`.
      request_key: names the request; gives its seed and spreads its retries.

    Returns:
      The completion without ids and logprobs. Time in pauses and failed
      attempts counts as `queue_seconds`.

    Raises:
      ValueError: the prompt is empty, or the sampling is more than the endpoint
        was said to understand.
      language_model.PromptTooLong: the endpoint says so.
      language_model.Unreachable: every attempt failed.
      Refused: the endpoint turned the request down for good.
    """
    body = self._body(prompt, sampling, request_key)
    began = time.monotonic()
    # In [0.5, 1): spreads the retries of a burst without a global generator.
    jitter = 0.5 + request_key.words()[1] / 2**33
    reason, pause = '', 0.0
    for attempt in range(self._config.max_attempts):
      if attempt:
        await asyncio.sleep(pause)
      try:
        async with self._slots:
          sent = time.monotonic()
          text, finish_reason, tokens = await self._post(body)
      except _Retry as error:
        reason = str(error)
        pause = self._pause(attempt, jitter, error.retry_after)
        logging.warning('%s: attempt %d: %s', self._url, attempt + 1, reason)
        continue
      self._count(request_key.module, *tokens)
      return records.Completion(
          text=text,
          finish_reason=finish_reason,
          queue_seconds=sent - began,
          model_seconds=time.monotonic() - sent,
      )
    raise language_model.Unreachable(
        f'{self._url}: {self._config.max_attempts} attempts failed, the last '
        f'one with: {reason}'
    )

  def count_tokens(self, prompt: tuple[records.Segment, ...]) -> int:
    """Estimates tokens: a quarter of the characters and four a message.

    The endpoint's tokenizer is not known here. Text other than English prose
    can take several times as many tokens, so leave room.
    """
    messages = _messages(prompt)
    characters = sum(len(m['content']) for m in messages)
    return math.ceil(characters / _CHARACTERS_PER_TOKEN) + (
        _TOKENS_PER_MESSAGE * len(messages)
    )

  async def aclose(self) -> None:
    """Closes the connections."""
    await self._client.aclose()

  def _body(
      self,
      prompt: tuple[records.Segment, ...],
      sampling: records.SamplingSpec,
      request_key: records.RequestKey,
  ) -> dict[str, Any]:
    if not prompt:
      raise ValueError('the prompt is empty')
    body = {
        'model': self._config.model,
        'messages': _messages(prompt),
        'temperature': sampling.temperature,
        'top_p': sampling.top_p,
        self._config.token_limit_field: sampling.max_new_tokens,
    }
    if sampling.stop:
      body['stop'] = list(sampling.stop)
    if self._config.send_seed:
      body['seed'] = request_key.words()[0] & 0x7FFFFFFF
    for name, value in (('top_k', sampling.top_k), ('min_p', sampling.min_p)):
      if not value:
        continue
      if not self._config.extended_sampling:
        raise ValueError(
            f'{name}={value} needs an endpoint with extended_sampling'
        )
      body[name] = value
    return body

  def _count(self, module: str, read: int, written: int) -> None:
    usage = self.usage.setdefault(module, Usage())
    usage.requests += 1
    usage.prompt_tokens += read
    usage.completion_tokens += written
    usage.cost += (
        read * self._config.prompt_price
        + written * self._config.completion_price
    ) / 1e6

  async def _post(
      self, body: Mapping[str, Any]
  ) -> tuple[str, str, tuple[int, int]]:
    """Makes one attempt; returns the text, how it ended, and the tokens.

    Raises:
      _Retry: it failed in a way that another attempt may not.
    """
    try:
      async with asyncio.timeout(self._config.timeout_seconds):
        async with self._client.stream(
            'POST', self._url, json=body
        ) as response:
          content = await _read(response)
    except (httpx.TransportError, httpx.DecodingError) as error:
      raise _Retry(self._redact(f'{type(error).__name__}: {error}')) from None
    except TimeoutError:
      raise _Retry(
          f'no answer within {self._config.timeout_seconds} s'
      ) from None
    status = response.status_code
    if status in _RETRIED or status >= 500:
      raise _Retry(
          f'status {status}', _retry_after(response.headers.get('Retry-After'))
      )
    if not response.is_success:
      raise self._refusal(status, content)
    return _parse(content)

  def _refusal(self, status: int, content: bytes) -> Exception:
    """Makes the error for a status that another attempt would repeat."""
    where = f'POST {self._url} gave status {status}'
    if status in _UNAUTHORISED:
      # Servers like to repeat the key, or half of it, in this message.
      variable = self._config.api_key_variable
      return Refused(
          f'{where}: check the key in {variable}'
          if variable
          else f'{where}: it wants a key, and api_key_variable is empty'
      )
    said = self._redact(content.decode('utf-8', errors='replace'))
    too_long = 'context_length_exceeded' in said or 'context length' in said
    if status == 413 or (status == 400 and too_long):
      return language_model.PromptTooLong(
          f'{where}: {said[:_MAX_ERROR_CHARACTERS]}'
      )
    return Refused(f'{where}: {said[:_MAX_ERROR_CHARACTERS]}')

  def _redact(self, text: str) -> str:
    return text.replace(self._key, '[key]') if self._key else text

  def _pause(
      self, attempt: int, jitter: float, retry_after: float | None
  ) -> float:
    """Seconds to wait after a failed attempt (counted from 0)."""
    # The exponent is bounded because a float is.
    pause = self._config.backoff_seconds * 2.0 ** min(attempt, 60) * jitter
    if retry_after is not None:
      pause = max(pause, retry_after)
    return min(pause, self._config.max_backoff_seconds)


def _read_key(variable: str) -> str:
  if not variable:
    return ''
  key = os.environ.get(variable, '').strip()
  if not key:
    raise ValueError(f'the environment variable {variable} holds no key')
  # A header with anything else would fail later, with the key in the message.
  if not all('!' <= c <= '~' for c in key):
    raise ValueError(
        f'the environment variable {variable} holds what cannot be a key: a '
        'space, a line break or a character beyond ASCII'
    )
  return key


def _messages(prompt: tuple[records.Segment, ...]) -> list[dict[str, str]]:
  """Joins neighbouring segments of one role; chat servers want them to vary."""
  messages: list[dict[str, str]] = []
  for segment in prompt:
    if messages and messages[-1]['role'] == segment.role:
      messages[-1]['content'] += segment.text
    else:
      messages.append({'role': segment.role, 'content': segment.text})
  return messages


async def _read(response: httpx.Response) -> bytes:
  chunks = []
  size = 0
  async for chunk in response.aiter_bytes():
    size += len(chunk)
    if size > _MAX_RESPONSE_BYTES:
      raise _Retry(f'more than {_MAX_RESPONSE_BYTES} bytes')
    chunks.append(chunk)
  return b''.join(chunks)


def _parse(content: bytes) -> tuple[str, str, tuple[int, int]]:
  """Reads a success; anything but a chat completion is worth a retry."""
  try:
    answer = json.loads(content)
    choice = answer['choices'][0]
    text = choice['message']['content']
    finish_reason = choice.get('finish_reason')
  except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
    raise _Retry('a success that is no chat completion') from None
  if text is not None and not isinstance(text, str):
    raise _Retry('a chat completion whose content is no text')
  end = 'length' if finish_reason == 'length' else 'stop'
  return text or '', end, _tokens(answer.get('usage'))


def _tokens(usage: Any) -> tuple[int, int]:
  """Tokens read and written, as far as the endpoint says."""
  if not isinstance(usage, dict):
    return 0, 0
  counts = (usage.get(f'{n}_tokens') for n in ('prompt', 'completion'))
  # A bool is an int, too; a count below 0 is none.
  return tuple(c if type(c) is int and c > 0 else 0 for c in counts)


def _retry_after(header: str | None) -> float | None:
  """Seconds that a Retry-After header asks for: a number or an HTTP date."""
  if header is None:
    return None
  with contextlib.suppress(ValueError):
    seconds = float(header)
    return max(seconds, 0.0) if math.isfinite(seconds) else None
  with contextlib.suppress(ValueError):
    date = email.utils.parsedate_to_datetime(header)
    if date.tzinfo is None:
      date = date.replace(tzinfo=datetime.timezone.utc)
    now = datetime.datetime.now(datetime.timezone.utc)
    return max((date - now).total_seconds(), 0.0)
  return None
