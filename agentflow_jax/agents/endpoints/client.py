"""A language model behind an OpenAI-compatible endpoint.

It gives text without token ids or log probabilities, so it may back a frozen
role and never a trained one.
"""

import asyncio
import collections
import dataclasses
import functools
import json
import logging as std_logging
import math
import os
import re
import ssl
import time
import urllib.parse
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import httpx
import numpy as np
from absl import logging

from agentflow_jax import records
from agentflow_jax.agents import language_model, thoughts
from agentflow_jax.agents.endpoints import cache, connections, openai_protocol
from agentflow_jax.agents.endpoints import pacing, settings
from agentflow_jax.agents.tools.web import codings

# Statuses worth another try besides 5xx: timeout, conflict, too early, busy.
_RETRIED = frozenset({408, 409, 425, 429})
# Of these, what a server that is well says to one that asks too much.
_BUSY = frozenset({409, 425, 429})
# Statuses with which servers refuse the content of a request.
_REFUSING = frozenset({400, 422})
_UNAUTHORISED = frozenset({401, 403, 407})
_PATHS = {'chat': 'chat/completions', 'completions': 'completions'}
_MAX_RESPONSE_BYTES = 16 << 20
_MAX_ERROR_CHARACTERS = 300
# Shorter keys are placeholders of local servers, such as 'EMPTY'. They may occur in
# a completion as ordinary words, and are not masked there.
_SECRET_CHARACTERS = 12
# How servers say that a prompt does not fit, for want of a common code.
_TOO_LONG = re.compile(
  # Codes: OpenAI, llama.cpp, OpenAI's longest string, Mistral, Azure.
  r'context_length_exceeded|exceed_context_size|string_above_max_length'
  r'|(?:prompt|input)_too_long|tokens_limit_reached'
  # Names of the limit.
  r'|context[ _-]?(?:length|size|window|limit|overflow)'
  r'|max(?:imum)? (?:model|prompt|input|sequence|allowed) (?:token )?length'
  r'|max(?:imum)? (?:number of )?(?:prompt|input) tokens'
  r'|max_(?:model|input|seq|prompt|context)_len|model token limit'
  # Names of the thing that there is too much of, in one sentence.
  r'|(?<!\w)(?:prompt|inputs?|messages?|conversation|query|request|content'
  r'|text|sequence)\b[^.\n]{0,60}\btoo (?:long|large|big)'
  r'|(?<!\w)(?:prompt|inputs?|messages?|conversation|sequence)\b[^.\n]{0,60}'
  r'(?:\bexceed|\blonger than)'
  r'|(?:prompt|input)`? (?:token count|length|tokens)\b[^.\n]{0,60}'
  r'(?:greater|larger|should be|must be|at most)'
  r'|exceeds? (?:the )?(?:max(?:imum)? )?(?:prompt|input|message|sequence)'
  r'|prompt_token_ids is longer|(?<!\w)tokens? (?:limit|count) exceed'
  r'|total tokens exceed'
  r'|inputs` (?:tokens|must have less than)|input token count'
  r'|too many (?:input |prompt )?tokens'
  r'|reduce the length of (?:the|your) (?:messages|prompt|input)',
  re.IGNORECASE,
)
# The limit of an account, not of a prompt.
_RATE = re.compile(
  r'\brate[ _-]?limit|\bquota\b|\bper (?:second|minute|hour|day)\b', re.IGNORECASE
)
# English text in common tokenizers; a message's own template tokens.
_CHARACTERS_PER_TOKEN = 4
_TOKENS_PER_MESSAGE = 4


class Refused(Exception):
  """The endpoint turned the request down for good: wrong key, name or field."""


@dataclasses.dataclass
class Usage:
  """What the requests of one module came to.

  Attributes:
    requests: number of requests that the endpoint answered.
    prompt_tokens: number of tokens read, as the endpoint counted; 0 where it does not
      say.
    completion_tokens: number of tokens written, as the endpoint counted; 0 where it
      does not say.
    cost: cost of these requests by the config's prices.
    cached: number of requests that the cache answered instead, at no cost.
  """

  requests: int = 0
  prompt_tokens: int = 0
  completion_tokens: int = 0
  cost: float = 0.0
  cached: int = 0

  def add(self, answer: Any, config: settings.EndpointConfig) -> float:
    """Counts an answer; returns what it cost by the config's prices."""
    cost = (
      answer.prompt_tokens * config.prompt_price
      + answer.completion_tokens * config.completion_price
    ) / 1e6
    self.requests += 1
    self.prompt_tokens += answer.prompt_tokens
    self.completion_tokens += answer.completion_tokens
    self.cost += cost
    return cost


class _Retry(Exception):
  """This attempt failed in a way that another one may not.

  Attributes:
    retry_after: seconds that the server asks for.
    is_outage: it says that the server is not well.
  """

  def __init__(
    self, reason: str, retry_after: float | None = None, is_outage: bool = True
  ):
    super().__init__(reason)
    self.retry_after, self.is_outage = retry_after, is_outage


@dataclasses.dataclass(frozen=True)
class _Request:
  """What is sent, and how a success is read.

  Attributes:
    url: address that the request goes to.
    body: JSON of the request.
    parse: content -> answer; raises `openai_protocol.BadAnswer`.
    tokens: estimated number of tokens read and written, for the limit of tokens a
      minute.
  """

  url: str
  body: Mapping[str, Any]
  parse: Callable[[bytes], Any]
  tokens: int


_LASTING = (language_model.Unreachable, language_model.PromptTooLong, Refused)


class _Flight:
  """A question that several ask at once, and how it ended last."""

  def __init__(self):
    self.lock = asyncio.Lock()
    self.ended = 0
    self.answer: openai_protocol.Answer | None = None
    self.error: Exception | None = None

  def end(self, answer=None, error=None) -> None:
    """Tells those who wait."""
    self.ended += 1
    self.answer, self.error = answer, error


class EndpointClient:
  """Implements `language_model.LanguageModel` over HTTP.

  Use it from one event loop and await `aclose` at the end. The key is read
  once, from the environment, and appears in no log line and no error.

  Attributes:
    usage: module -> what its requests came to so far.
    costs: query, as request keys name it -> the cost of its requests.

  Args:
    config: address of the endpoint, and limits to keep.

  Raises:
    ValueError: the key's variable is unset or does not hold a key, or the cache
      cannot be used.
  """

  def __init__(self, config: settings.EndpointConfig):
    self._config = config
    self._url = _url_of(config, _PATHS[config.api])
    self._key = read_key(config.api_key_variable)
    self._repeated = _spellings(self._key)
    if self._key:
      # At --verbosity=1 these libraries log response headers, and a server may
      # repeat the key in one.
      for name in ('httpcore', 'httpx'):
        std_logging.getLogger(name).setLevel(std_logging.WARNING)
    headers = {'Accept-Encoding': 'gzip, deflate'}
    if self._key and config.azure_api_version:
      headers['api-key'] = self._key
    elif self._key:
      headers['Authorization'] = f'Bearer {self._key}'
    self.usage: dict[str, Usage] = {}
    self.costs: collections.defaultdict[str, float] = collections.defaultdict(float)
    self._slots = asyncio.Semaphore(config.concurrency)
    self._requests = pacing.Pacer(config.requests_per_minute)
    self._tokens = pacing.Pacer(config.tokens_per_minute)
    self._breaker = pacing.Breaker(config.breaker_failures, config.breaker_seconds)
    self._asking: weakref.WeakValueDictionary[str, _Flight] = (
      weakref.WeakValueDictionary()
    )
    self._cache = cache.ResponseCache(config.cache) if config.cache else None
    self._headers = httpx.Headers(headers)  # Which do not show a key.
    self._clients = connections.Clients(self._make_client)

  @functools.cached_property
  def _certificates(self) -> ssl.SSLContext:
    """Certificates that all clients share."""
    return httpx.create_ssl_context(trust_env=not self._config.is_of_this_machine)

  def _make_client(self) -> httpx.AsyncClient:
    config = self._config
    return httpx.AsyncClient(
      verify=self._certificates,
      headers=self._headers,
      timeout=httpx.Timeout(
        config.timeout_seconds, connect=config.connect_seconds, pool=None
      ),
      # A proxy of the environment must not be asked for this machine.
      trust_env=not config.is_of_this_machine,
    )

  @property
  def name(self) -> str:
    """Address and model, and the switch of thinking unless it is 'auto'."""
    name = f'{self._config.base_url} {self._config.model}'
    thinking = self._config.thinking
    return name if thinking == 'auto' else f'{name} thinking={thinking}'

  async def generate(
    self,
    prompt: tuple[records.Segment, ...],
    sampling: records.SamplingSpec,
    request_key: records.RequestKey,
    tools: Sequence[Mapping[str, Any]] = (),
  ) -> records.Completion:
    """Samples one response; neighbouring segments of a role are one message.

    The endpoint cuts a stop string off and does not say which one it was, so
    the text ends before it.

    Args:
      prompt: segments that the model is conditioned on, in order; not empty.
      sampling: sampling settings; top_k and min_p only with `extended_sampling`.
      request_key: key of the request, which gives its seed and spreads its retries.
      tools: tools that the response may call, as OpenAI's interface describes them.
        What it calls is part of its text, see agents.call_text.

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
    body = openai_protocol.body(self._config, prompt, sampling, request_key, tools)
    began = time.monotonic()
    request = _Request(
      self._url,
      body,
      functools.partial(openai_protocol.parse, with_calls=bool(tools)),
      self.count_tokens(prompt, tools) + sampling.max_new_tokens,
    )
    if self._cache is None:
      answer, sent = await self._ask(request, request_key)
    else:
      name = cache.key(self._url, body, request_key)
      answer, sent = await self._asked_once(name, request, request_key)
    return records.Completion(
      text=answer.text,
      finish_reason=answer.finish_reason,
      queue_seconds=sent - began,
      model_seconds=time.monotonic() - sent,
      thoughts=answer.thoughts,
      thinking=self._ends_inside_a_thought(answer),
    )

  def _ends_inside_a_thought(self, answer: openai_protocol.Answer) -> bool:
    """Returns whether a text is the beginning of a thought that never ends.

    A server whose chat template opens the thought returns only the text behind
    the opening tag. So, where thinking is switched on, a text that was cut at
    its token limit and that holds no tag is such a beginning.
    """
    if answer.thoughts and not answer.text:
      logging.log_first_n(
        logging.WARNING,
        '%s: a completion of thoughts alone, without an answer (finish reason'
        ' %s): allow more new tokens, or set thinking to off',
        3,
        self.name,
        answer.finish_reason,
      )
    return (
      self._config.thinking == 'on'
      and answer.finish_reason == 'length'
      and not answer.thoughts
      and not thoughts.has_tag(answer.text)
    )

  async def _asked_once(
    self, name: str, request: _Request, request_key: records.RequestKey
  ) -> tuple[openai_protocol.Answer, float]:
    """Returns what `_ask` does, from the cache where it is there.

    Whoever asks the same meanwhile waits for the one answer to it, and has its
    failure, too; where it was cancelled the next one asks.
    """
    assert self._cache is not None
    flight = self._asking.setdefault(name, _Flight())
    ended = flight.ended
    async with flight.lock:
      sent = time.monotonic()
      if flight.ended == ended:
        answer = await self._cache.get(name)
      elif flight.error is None:
        answer = flight.answer
      else:
        raise type(flight.error)(*flight.error.args)
      if answer is not None:
        self._usage_of(request_key).cached += 1
        return answer, sent
      try:
        answer, sent = await self._ask(request, request_key)
      except _LASTING as e:
        flight.end(error=e)
        raise
      flight.end(answer=answer)
      if answer.is_whole:
        await self._cache.put(name, answer)
      return answer, sent

  async def embed(
    self, texts: Sequence[str], request_key: records.RequestKey
  ) -> np.ndarray:
    """Returns an embedding of each text; the model has to be one that makes them.

    Nothing of it is kept in `cache`.

    Args:
      texts: one or more.
      request_key: key of the request, which spreads its retries.

    Returns:
      float32 [N, D].

    Raises:
      language_model.PromptTooLong, language_model.Unreachable, Refused: as
        `generate`.
    """
    request = _Request(
      _url_of(self._config, 'embeddings'),
      openai_protocol.embedding_body(self._config, texts),
      lambda content: openai_protocol.parse_embeddings(content, len(texts)),
      math.ceil(sum(map(len, texts)) / _CHARACTERS_PER_TOKEN),
    )
    answer, _ = await self._ask(request, request_key)
    return answer.vectors

  async def _ask(
    self, request: _Request, request_key: records.RequestKey
  ) -> tuple[Any, float]:
    """Asks until it is answered; returns the answer and when it was asked."""
    # In [0.5, 1): spreads the retries of a burst without a global generator.
    jitter = 0.5 + request_key.words()[1] / 2**33
    reason, attempt, pause = '', 0, 0.0
    while attempt < self._config.max_attempts:
      if pause:
        await asyncio.sleep(pause)
      try:
        self._breaker.check()  # Before it takes a slot and its share.
        async with self._slots:
          await self._requests.wait()
          await self._tokens.wait(request.tokens)
          sent = time.monotonic()
          answer = await self._attempt(request)
      except _Retry as error:
        reason = str(error)
        pause = self._pause(attempt, jitter, error.retry_after)
        attempt += 1
        logging.warning('%s: attempt %d: %s', request.url, attempt, reason)
        continue
      except pacing.CircuitOpen as error:
        reason, pause = f'counts as down: {error}', 0.0
        wait = min(error.seconds, self._config.max_backoff_seconds)
        if not await self._breaker.closed(wait):
          attempt += 1
        continue
      cost = self._usage_of(request_key).add(answer, self._config)
      if cost:
        self.costs[request_key.query] += cost
      return answer, sent
    raise language_model.Unreachable(
      f'{request.url}: {self._config.max_attempts} attempts failed, the last '
      f'one with: {reason}'
    )

  def count_tokens(
    self, prompt: tuple[records.Segment, ...], tools: Sequence[Mapping[str, Any]] = ()
  ) -> int:
    """Estimates tokens: a quarter of the characters and four a message.

    The endpoint's tokenizer is not known here. Text other than English prose
    can take several times as many tokens, so leave room.
    """
    messages = openai_protocol.messages(prompt)
    characters = sum(
      len(m['content']) + sum(map(_size, m.get('tool_calls', ()))) for m in messages
    ) + sum(map(_size, tools))
    return math.ceil(characters / _CHARACTERS_PER_TOKEN) + (
      _TOKENS_PER_MESSAGE * len(messages)
    )

  async def aclose(self) -> None:
    """Closes the connections and the cache."""
    await self._clients.aclose()
    if self._cache is not None:
      self._cache.close()

  def _usage_of(self, request_key: records.RequestKey) -> Usage:
    return self.usage.setdefault(request_key.module, Usage())

  async def _attempt(self, request: _Request) -> Any:
    """Makes one attempt, if the breaker allows it, and tells it how it went."""
    self._breaker.enter()
    try:
      answer = await self._post(request)
    except _Retry as error:
      if error.is_outage:
        self._breaker.failed(str(error))
      else:
        self._breaker.succeeded()
      raise
    except (Refused, language_model.PromptTooLong):
      self._breaker.succeeded()
      raise
    self._breaker.succeeded()
    return answer

  async def _post(self, request: _Request) -> Any:
    """Sends a request once.

    Raises:
      _Retry: it failed in a way that another attempt may not.
      Refused, language_model.PromptTooLong: another attempt would, too.
    """
    try:
      async with asyncio.timeout(self._config.timeout_seconds):
        async with (
          self._clients.one() as client,
          client.stream('POST', request.url, json=request.body) as response,
        ):
          content = await _read(response)
    except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError) as error:
      raise _Retry(self._redact(f'{type(error).__name__}: {error}')) from None
    except codings.Unreadable as error:
      raise _Retry(self._redact(str(error))) from None
    except TimeoutError:
      raise _Retry(f'no answer within {self._config.timeout_seconds} s') from None
    if len(self._key) >= _SECRET_CHARACTERS:
      content = self._repeated.sub(b'[key]', content)
    status = response.status_code
    if status in _RETRIED or status >= 500:
      raise _Retry(
        f'status {status}',
        openai_protocol.retry_after(response.headers.get('Retry-After')),
        is_outage=status not in _BUSY,
      )
    if not response.is_success:
      raise self._refusal(request.url, status, content)
    try:
      return request.parse(content)
    except openai_protocol.BadAnswer as error:
      reason = self._redact(str(error))
      if _is_too_long(error.said):
        raise language_model.PromptTooLong(f'{request.url}: {reason}') from None
      raise _Retry(reason) from None

  def _refusal(self, url: str, status: int, content: bytes) -> Exception:
    """Makes the error for a status that another attempt would repeat."""
    where = f'POST {url} gave status {status}'
    if status in _UNAUTHORISED:
      # Servers like to repeat the key, or half of it, in this message.
      variable = self._config.api_key_variable
      return Refused(
        f'{where}: check the key in {variable}'
        if variable
        else f'{where}: it wants a key, and api_key_variable is empty'
      )
    said = self._redact(content.decode('utf-8', errors='replace'))
    if status == 413 or (status in _REFUSING and _is_too_long(said)):
      return language_model.PromptTooLong(f'{where}: {said[:_MAX_ERROR_CHARACTERS]}')
    return Refused(f'{where}: {said[:_MAX_ERROR_CHARACTERS]}')

  def _redact(self, text: str) -> str:
    data = text.encode('utf-8', 'surrogatepass')
    return self._repeated.sub(b'[key]', data).decode('utf-8', 'surrogatepass')

  def _pause(self, attempt: int, jitter: float, retry_after: float | None) -> float:
    """Seconds to wait after a failed attempt (counted from 0)."""
    # The exponent is bounded because a float is.
    pause = self._config.backoff_seconds * 2.0 ** min(attempt, 60) * jitter
    if retry_after is not None:
      pause = max(pause, retry_after)
    return min(pause, self._config.max_backoff_seconds)


def _size(value: Mapping[str, Any]) -> int:
  """Returns the characters of a tool or a call."""
  return len(json.dumps(value, ensure_ascii=False))


def _url_of(config: settings.EndpointConfig, path: str) -> str:
  """Returns where an interface of the endpoint is."""
  url = str(httpx.URL(config.base_url)).rstrip('/')
  if not config.azure_api_version:
    return f'{url}/{path}'
  deployment = urllib.parse.quote(config.model, safe='')
  return (
    f'{url}/openai/deployments/{deployment}/{path}'
    f'?api-version={config.azure_api_version}'
  )


def _is_too_long(said: str) -> bool:
  """Returns whether a server's words say that a prompt does not fit."""
  return bool(_TOO_LONG.search(said)) and not _RATE.search(said)


def read_key(variable: str) -> str:
  """Returns the key in an environment variable; '' where none is named.

  Raises:
    ValueError: the variable is empty, or holds what cannot be a key.
  """
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


async def _read(response: httpx.Response) -> bytes:
  """Reads and unpacks a body.

  Raises:
    codings.Unreadable: the body has several content codings or an unknown one, or
      it unpacks to more than _MAX_RESPONSE_BYTES.
  """
  coding = response.headers.get('Content-Encoding', '')
  if coding.count(','):  # Each coding may multiply the size by a thousand.
    raise codings.Unreadable(f'content encoding {coding[:80]!r}: one at most')
  body = codings.Unpacker(coding, _MAX_RESPONSE_BYTES)
  async for chunk in response.aiter_raw():
    body.feed(chunk)
    if body.is_over:
      break  # Bytes behind the end are no part of the body.
  return body.finish()


def _spellings(key: str) -> re.Pattern[bytes]:
  """Returns a pattern that matches a key, plain or escaped as in JSON."""
  if not key:
    return re.compile(b'(?!)')
  spelled = []
  for character in key:
    ways = [re.escape(character), rf'\\u(?i:{ord(character):04x})']
    if character in '"\\/':
      ways.append(r'\\' + re.escape(character))
    spelled.append(f'(?:{"|".join(reversed(ways))})')
  return re.compile(''.join(spelled).encode())
