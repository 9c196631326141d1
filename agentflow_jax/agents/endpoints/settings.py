"""Where an OpenAI-compatible endpoint is, and how patient to be with it."""

import dataclasses
import ipaddress
import math
import re
from typing import Literal

import httpx


# A name, as it is looked up, or an address.
_HOST = re.compile(r'[A-Za-z0-9_.-]+|\[?[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*\]?')


def is_of_this_machine(url: str) -> bool:
  """Returns whether a URL's host is this machine: localhost, 127.x.x.x, ::1."""
  host = httpx.URL(url).host.rstrip('.').lower()
  if host == 'localhost' or host.endswith('.localhost'):
    return True
  try:
    return ipaddress.ip_address(host).is_loopback
  except ValueError:
    return False


def check_url(name: str, text: str) -> None:
  """Refuses what is no address of a server.

  Args:
    name: name of the field, for errors.
    text: address, which must hold no credentials and no query.

  Raises:
    ValueError: says what is wrong; a secret in the address is not repeated.
  """
  try:
    url = httpx.URL(text)
  except (httpx.InvalidURL, TypeError, ValueError) as e:
    # Not repeated here, either.
    raise ValueError(f'{name} is no URL such as http://host:8000/v1: {e}') from None
  if url.userinfo or url.query:
    # Not repeated here: it may be a secret.
    raise ValueError(f'{name} must not hold credentials or a query')
  if url.scheme not in ('http', 'https') or not (
    _HOST.fullmatch(url.raw_host.decode('ascii', 'replace'))
    and 0 < (url.port or 80) < 1 << 16
  ):
    raise ValueError(f'{name} must be http(s)://host/...: {text!r}')


@dataclasses.dataclass(frozen=True)
class EndpointConfig:
  """Where the endpoint is and how patient to be with it.

  Attributes:
    base_url: address of the server up to and without "/chat/completions", such as
      "http://127.0.0.1:8000/v1".
    api: 'chat', or 'completions' for a model without a chat template: it gets
      the messages' texts with an empty line between them.
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
    thinking: whether the model is to think before it answers: 'on' or 'off' is
      sent to the server, and 'auto' sends nothing. A model without such a
      switch ignores it.
    thinking_field: request field that carries the switch:
      'chat_template_kwargs' (vLLM, SGLang, llama.cpp), 'enable_thinking'
      (DashScope), or '' for a provider that has none.
    prompt_price: price of a million tokens read [any currency].
    completion_price: price of a million tokens written [the same currency].
    requests_per_minute: largest number of attempts a minute; 0 for no limit.
    tokens_per_minute: largest number of tokens a minute, by this client's estimate of a
      prompt and the most that the response may have; 0 for no limit.
    breaker_failures: number of attempts in a row, failed for another reason than being
      too many, after which the endpoint counts as down; 0 for never. Nothing is then
      sent but one request every `breaker_seconds`, until one is answered. A request
      that waits meanwhile spends an attempt on each.
    breaker_seconds: time between two attempts while the endpoint counts as down [s].
    cache: path of a file of answers; what is in it is not asked for again. ''
      for none. Requests of temperature 0 share an answer wherever they ask
      the same; others are the same only with the same request key.
  """

  base_url: str
  model: str
  api: Literal['chat', 'completions'] = 'chat'
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
  thinking: Literal['auto', 'on', 'off'] = 'auto'
  thinking_field: Literal['', 'chat_template_kwargs', 'enable_thinking'] = (
    'chat_template_kwargs'
  )
  prompt_price: float = 0.0
  completion_price: float = 0.0
  requests_per_minute: float = 0.0
  tokens_per_minute: float = 0.0
  breaker_failures: int = 50
  breaker_seconds: float = 30.0
  cache: str = ''

  @property
  def is_of_this_machine(self) -> bool:
    """Whether the endpoint's host is this machine: localhost, 127.x.x.x, ::1."""
    return is_of_this_machine(self.base_url)

  def __post_init__(self):
    check_url('base_url', self.base_url)
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
      'backoff_seconds',
      'max_backoff_seconds',
      'prompt_price',
      'completion_price',
      'requests_per_minute',
      'tokens_per_minute',
      'breaker_failures',
      'breaker_seconds',
    ):
      value = getattr(self, name)
      if not 0 <= value < math.inf:
        raise ValueError(f'{name} must be finite and >= 0: {value}')
    if self.api not in ('chat', 'completions'):
      raise ValueError(f"api must be 'chat' or 'completions': {self.api!r}")
    self._check_thinking()
    if self.token_limit_field not in ('max_tokens', 'max_completion_tokens'):
      raise ValueError(
        "token_limit_field must be 'max_tokens' or 'max_completion_tokens': "
        f'{self.token_limit_field!r}'
      )

  def _check_thinking(self) -> None:
    """Refuses a switch of thinking that the server would never read."""
    if self.thinking not in ('auto', 'on', 'off'):
      raise ValueError(f"thinking must be 'auto', 'on' or 'off': {self.thinking!r}")
    fields = ('', 'chat_template_kwargs', 'enable_thinking')
    if self.thinking_field not in fields:
      raise ValueError(
        f'thinking_field must be one of {fields}: {self.thinking_field!r}'
      )
    if self.thinking == 'auto':
      return
    if self.api == 'completions':
      raise ValueError(
        f'thinking={self.thinking!r} needs a chat template, and'
        " api='completions' uses none: set thinking to 'auto', or api to 'chat'"
      )
    if not self.thinking_field:
      raise ValueError(
        f'thinking={self.thinking!r}: requests to this provider have no field'
        " for it; set thinking to 'auto', and choose a model that thinks or"
        ' one that does not (a server of agentflow_jax takes'
        ' --config.planner.thinking when it is started)'
      )
