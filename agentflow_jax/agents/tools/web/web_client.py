"""Fetches from the web what a model names, and reaches nothing private with it.

Each hop's host is resolved once, every address of it has to be public, and the
connection goes to one of these: a name that resolves otherwise a moment later,
or a redirect, gets no further. Environments' proxies are not used: they would
resolve names themselves.
"""

import asyncio
import collections
import dataclasses
import http.cookiejar
import json as json_lib
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import httpx

from agentflow_jax.agents.endpoints import openai_protocol, pacing
from agentflow_jax.agents.tools import base
from agentflow_jax.agents.tools.web import addresses, codings

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504})
_ADDRESSES_TRIED = 3
_UNCONNECTED = (httpx.ConnectError, httpx.ConnectTimeout)
_LONGEST_URL = 4096
# Of resolving a name: what says that there is none.
_NO_NAME = frozenset({socket.EAI_NONAME, getattr(socket, 'EAI_NODATA', -5)})


@dataclasses.dataclass(frozen=True)
class WebConfig:
  """What the web's tools may reach, and how politely.

  Attributes:
    allow: hosts as 'HOST:PORT' that may be reached although they are not public, or
      at another port; for servers of one's own. Shown in reports.
    blocked: hosts that are not asked, nor any below them; by default those that
      publish benchmarks with their answers.
    also_blocked: further hosts that are not asked.
    timeout_seconds: time limit of one hop, from resolving the name to the last
      byte [s].
    max_attempts: largest number of attempts at one request, where the host is busy or
      fails.
    max_bytes: longest response, unpacked [bytes].
    max_redirects: largest number of redirects that are followed.
    requests_per_minute: rate limit of requests to one host.
    concurrency: largest number of concurrent requests to one host.
    contact: URL or e-mail address that hosts can complain to; Wikimedia asks for one.
  """

  allow: tuple[str, ...] = ()
  blocked: tuple[str, ...] = addresses.BENCHMARK_HOSTS
  also_blocked: tuple[str, ...] = ()
  timeout_seconds: float = 15.0
  max_attempts: int = 3
  max_bytes: int = 4 << 20
  max_redirects: int = 5
  requests_per_minute: float = 300.0
  concurrency: int = 4
  contact: str = ''

  def __post_init__(self):
    for name in ('timeout_seconds', 'max_attempts', 'max_bytes', 'concurrency'):
      if getattr(self, name) <= 0:
        raise ValueError(f'{name} must be positive: {getattr(self, name)}')
    for name in ('max_redirects', 'requests_per_minute'):
      if getattr(self, name) < 0:
        raise ValueError(f'{name} must not be negative: {getattr(self, name)}')
    for entry in self.allow:
      host, _, port = entry.rpartition(':')
      if not host or not port.isdigit():
        raise ValueError(f'allow: {entry!r} is not HOST:PORT')
    for host in (*self.blocked, *self.also_blocked):
      if not host or '/' in host or ':' in host or host != host.lower():
        raise ValueError(f'blocked: {host!r} is not a host in lower case')
    if not (self.contact.isascii() and self.contact.isprintable()):
      raise ValueError(f'contact: not printable ASCII: {self.contact!r}')


@dataclasses.dataclass(frozen=True)
class Response:
  """What a host said.

  Attributes:
    url: URL of the last hop.
    status: status code of HTTP.
    headers: headers by name in lower case.
    content: unpacked body.
  """

  url: str
  status: int
  headers: Mapping[str, str]
  content: bytes

  @property
  def content_type(self) -> str:
    """Without parameters, in lower case; '' where none is given."""
    return self.headers.get('content-type', '').split(';')[0].strip().lower()

  @property
  def charset(self) -> str:
    """That the header names; '' where it names none."""
    message = self.headers.get('content-type', '')
    for part in message.split(';')[1:]:
      name, _, value = part.partition('=')
      if name.strip().lower() == 'charset':
        return value.strip().strip('"\'').lower()
    return ''

  def json(self) -> Any:
    """Returns the content as JSON.

    Raises:
      FetchFailed: it is something else.
    """
    try:
      return json_lib.loads(self.content)
    except (ValueError, RecursionError):
      raise FetchFailed(f'{self.url} gave no JSON') from None


class Blocked(base.BadArguments):
  """A URL that is not asked, by policy; the text is for the model."""


class FetchFailed(Exception):
  """A request that got no usable response; says why.

  Attributes:
    is_ours: the network here is at fault, rather than the host.
  """

  def __init__(self, message: str, is_ours: bool = False):
    super().__init__(message)
    self.is_ours = is_ours


class _Retry(Exception):
  """This attempt failed in a way that another one may not."""

  def __init__(self, message: str, after: float | None = None, is_ours: bool = False):
    super().__init__(message)
    self.after, self.is_ours = after, is_ours


async def _resolve(host: str, port: int) -> Sequence[str]:
  """Returns a host's addresses, as the system's resolver orders them."""
  found = await asyncio.get_running_loop().getaddrinfo(
    host, port, type=socket.SOCK_STREAM
  )
  return list(dict.fromkeys(str(entry[4][0]) for entry in found))


class WebClient:
  """Asks hosts of the web within a `WebConfig`.

  Use it from one event loop and await `aclose` at the end.

  Args:
    config: the limits.
    resolve: (host, port) -> addresses; for tests.
    backoff_seconds: pause before the second attempt, which doubles with each further
      one [s]; for tests.
  """

  def __init__(
    self,
    config: WebConfig,
    resolve: Callable[[str, int], Awaitable[Sequence[str]]] = _resolve,
    backoff_seconds: float = 0.5,
  ):
    self._config, self._resolve = config, resolve
    self._backoff = backoff_seconds
    self._blocked = (*config.blocked, *config.also_blocked)
    self._hosts: dict[str, tuple[asyncio.Semaphore, pacing.Pacer]] = (
      collections.defaultdict(
        lambda: (
          asyncio.Semaphore(config.concurrency),
          pacing.Pacer(config.requests_per_minute),
        )
      )
    )
    contact = f' ({config.contact})' if config.contact else ''
    self._client = httpx.AsyncClient(
      headers={
        'User-Agent': f'agentflow_jax/0.1{contact}',
        # The codings that `web_codings` unpacks.
        'Accept-Encoding': 'gzip, deflate',
      },
      # An address that does not answer leaves time for the next one.
      timeout=httpx.Timeout(
        config.timeout_seconds, connect=config.timeout_seconds / _ADDRESSES_TRIED
      ),
      # Cookies would be kept by address, for all names that it has, and would make a
      # fetch depend on those before it.
      cookies=http.cookiejar.CookieJar(
        http.cookiejar.DefaultCookiePolicy(allowed_domains=[])
      ),
      # A connection is to an address: kept, it might serve another name.
      limits=httpx.Limits(max_keepalive_connections=0),
      follow_redirects=False,
      trust_env=False,
    )

  async def aclose(self) -> None:
    """Closes what is open."""
    await self._client.aclose()

  def check(self, url: str) -> httpx.URL:
    """Returns a URL that may be asked, its host's addresses apart.

    Raises:
      Blocked: it may not be.
      base.BadArguments: it is no URL.
    """
    if len(url) > _LONGEST_URL:
      raise base.BadArguments(f'a URL of {len(url)} characters is too long')
    try:
      parsed = httpx.URL(url.strip())
      host = host_of(parsed)
      port = parsed.port or {'http': 80, 'https': 443}.get(parsed.scheme, 0)
    except (httpx.InvalidURL, ValueError) as error:  # UnicodeError is one.
      raise base.BadArguments(f'not a URL: {error}') from None
    if parsed.scheme not in ('http', 'https') or not host:
      base.count('web_blocked_url')
      raise Blocked('blocked: a URL has to begin with http:// or https://')
    if parsed.userinfo:
      base.count('web_blocked_url')
      raise Blocked('blocked: a URL must not hold a user name or password')
    if self.is_blocked(host):
      base.count('web_blocked_host')
      raise Blocked(f'blocked: {host} is on the list of hosts not to be asked')
    if port not in (80, 443) and not self._is_allowed(host, port):
      base.count('web_blocked_url')
      raise Blocked(f'blocked: port {port}; only 80 and 443 are open')
    return parsed

  def is_blocked(self, host: str) -> bool:
    """Says whether a host is on the list of those that are not asked."""
    return addresses.is_blocked(host, self._blocked)

  async def get(
    self,
    url: str,
    *,
    params: Mapping[str, str] | None = None,
    headers: Mapping[str, str] | None = None,
    follow: bool = True,
  ) -> Response:
    """Asks for a URL, and follows where it leads.

    Args:
      url: URL of http or https.
      params: parameters that are added to its query.
      headers: headers that are sent to its own host, and to no other that it redirects
        to.
      follow: False to return a redirect as it is.

    Raises:
      Blocked, base.BadArguments: it, or what it redirects to, may not be asked.
      FetchFailed: every attempt failed; statuses that say so are among them.
    """
    if params:
      url = str(self.check(url).copy_merge_params(params))
    return await self._attempts(lambda: self._follow(url, dict(headers or {}), follow))

  async def post(
    self, url: str, body: Any, headers: Mapping[str, str] | None = None
  ) -> Response:
    """Sends JSON; a redirect is a failure. Raises as `get`."""
    return await self._attempts(
      lambda: self._hop('POST', self.check(url), dict(headers or {}), body)
    )

  async def _attempts(self, attempt: Callable[[], Awaitable[Response]]) -> Response:
    reason: _Retry | None = None
    for i in range(self._config.max_attempts):
      if reason is not None:
        pause = max(self._backoff * 2 ** (i - 1), reason.after or 0.0)
        base.count('web_retries')
        await asyncio.sleep(min(pause, self._config.timeout_seconds))
      try:
        response = await attempt()
      except _Retry as error:
        reason = error
        continue
      if response.status >= 400:
        raise FetchFailed(f'{response.url} gave status {response.status}')
      return response
    raise FetchFailed(str(reason), reason is not None and reason.is_ours)

  async def _follow(self, url, headers, follow) -> Response:
    at = self.check(url)
    origin = at.scheme, at.host, at.port
    for _ in range(self._config.max_redirects + 1):
      same = (at.scheme, at.host, at.port) == origin
      response = await self._hop('GET', at, headers if same else {}, None)
      target = response.headers.get('location')
      if response.status not in _REDIRECTS or not target or not follow:
        return response
      try:
        at = self.check(str(at.join(target)))
      except (httpx.InvalidURL, ValueError) as error:
        raise FetchFailed(f'{at} redirects to no URL: {error}') from None
    raise FetchFailed(f'{url} redirects more than {self._config.max_redirects} times')

  async def _hop(self, method, url: httpx.URL, headers, body) -> Response:
    """Sends one request; waiting for its turn does not count as its time."""
    slots, pace = self._hosts[host_of(url)]
    async with slots:
      await pace.wait()
      try:
        async with asyncio.timeout(self._config.timeout_seconds) as limit:
          return await self._connected(method, url, headers, body)
      except TimeoutError:
        if not limit.expired():
          raise
    raise _Retry(f'{url.host}: no answer in {self._config.timeout_seconds:g} s')

  async def _connected(self, method, url, headers, body) -> Response:
    """Sends one request to the first of the checked addresses that answers."""
    reason = None
    for address in await self._addresses(url):
      request = self._client.build_request(
        method,
        url.copy_with(host=address),
        headers={**headers, 'Host': url.netloc.decode('ascii')},
        json=body,
        # The certificate has to be the name's, not the address's.
        extensions={'sni_hostname': host_of(url)},
      )
      try:
        return await self._send(request, url)
      except _UNCONNECTED as error:
        reason = error
    raise _Retry(f'{url.host} cannot be reached: {reason}')

  async def _send(self, request: httpx.Request, url: httpx.URL) -> Response:
    try:
      response = await self._client.send(request, stream=True)
      try:
        moved = response.status_code in _REDIRECTS and response.has_redirect_location
        is_read = not moved and response.status_code not in _RETRIED
        content = await self._read(response) if is_read else b''
      finally:
        await response.aclose()
    except _UNCONNECTED:
      raise
    except FetchFailed:
      raise
    except httpx.TransportError as error:
      raise _Retry(f'{url.host}: {type(error).__name__}: {error}') from None
    # httpx parses the target of a redirect even when it does not follow it, and
    # raises for mailto: and similar URLs. The model gets such errors as text.
    except (
      httpx.HTTPError,
      httpx.InvalidURL,
      httpx.StreamError,
      LookupError,
      ValueError,
    ) as error:
      raise FetchFailed(
        f'{url.host}: the response cannot be used ({type(error).__name__}: {error})'
      ) from None
    if response.status_code in _RETRIED:
      raise _Retry(
        f'{url.host} gave status {response.status_code}',
        openai_protocol.retry_after(response.headers.get('Retry-After')),
      )
    base.count('web_fetched')
    return Response(
      str(url),
      response.status_code,
      {k.lower(): v for k, v in response.headers.items()},
      content,
    )

  async def _read(self, response: httpx.Response) -> bytes:
    """Reads and unpacks a body."""
    coding = response.headers.get('Content-Encoding', '')
    try:
      body = codings.Unpacker(coding, self._config.max_bytes)
      async for chunk in response.aiter_raw():
        body.feed(chunk)
        if body.is_over:
          break  # Bytes behind the end are no part of the body.
      return body.finish()
    except codings.Unreadable as error:
      raise FetchFailed(f'{response.url.host}: {error}') from None

  async def _addresses(self, url: httpx.URL) -> Sequence[str]:
    """Returns addresses of a host to try, all of them checked."""
    host = host_of(url)
    port = url.port or {'http': 80, 'https': 443}[url.scheme]
    try:
      found = await self._resolve(host, port)
    except socket.gaierror as error:
      if error.errno in _NO_NAME:
        raise FetchFailed(f'there is no host {host}') from None
      raise _Retry(f'{host} cannot be resolved: {error}', is_ours=True) from None
    except (OSError, UnicodeError) as error:
      raise FetchFailed(f'{host} cannot be resolved: {error}') from None
    if not found:
      raise FetchFailed(f'{host} has no address')
    if not self._is_allowed(host, port) and not all(map(addresses.is_public, found)):
      base.count('web_blocked_address')
      raise Blocked(f'blocked: {host} is not on the public internet')
    return found[:_ADDRESSES_TRIED]

  def _is_allowed(self, host: str, port: int) -> bool:
    return f'{host}:{port}' in self._config.allow


def host_of(url: httpx.URL) -> str:
  """Returns a URL's host as it is asked for: ASCII, in lower case.

  Not `url.host`: what that decodes, the system's resolver may encode to another
  name than the one that was looked up in a list.
  """
  return url.raw_host.decode('ascii').strip('[]').lower()
