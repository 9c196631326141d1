"""HTTP to a server that samples: JSON in and out, of bounded size."""

import asyncio
import functools
import json
import time
from typing import Any

import httpx

from agentflow_jax.agents.endpoints import connections, settings
from agentflow_jax.agents.tools.web import codings
from agentflow_jax.external import calls
from agentflow_jax.files import reading

# A response of 100,000 tokens with sets of 64 ids is 50 MB of JSON.
_MOST_BYTES = 128 << 20
_SAID = 300


class Unavailable(Exception):
  """A server cannot be reached, is not ready, or did not answer in time."""


class Refused(Exception):
  """A server turned a request down; the text names the server and its words.

  Attributes:
    of_request: whether that is because of what was asked, such as a prompt that is
      too long, and not because of who asked or where.
  """

  def __init__(self, message: str, of_request: bool):
    super().__init__(message)
    self.of_request = of_request


class Wire:
  """Sends requests to one server.

  `ask` is for an event loop and `ask_now` for any thread.

  Args:
    url: address of the server, without a path.
    key: key that it asks for; '' for none.
    concurrency: largest number of requests of `ask` at once.
  """

  def __init__(self, url: str, key: str = '', concurrency: int = 64):
    self.url = url.rstrip('/')
    # A proxy of the environment must not be asked for this machine.
    trusts = not settings.is_of_this_machine(url)
    is_plain = self.url.startswith('http://')
    self._options: dict[str, Any] = {
      'headers': {'Authorization': f'Bearer {key}'} if key else {},
      'timeout': httpx.Timeout(None, connect=10.0),
      # Less than the 5 s after which these servers close what is idle.
      'limits': httpx.Limits(keepalive_expiry=2.0),
      'trust_env': trusts,
      # Certificates take long to load, and plain HTTP has none.
      'verify': False if is_plain else httpx.create_ssl_context(trust_env=trusts),
    }
    self._options['headers']['Accept-Encoding'] = 'identity'
    self._concurrency = concurrency
    self._clients: tuple[asyncio.AbstractEventLoop, connections.Clients] | None = None
    self._blocking = httpx.Client(**self._options)

  async def ask(self, call: calls.Call, seconds: float) -> Any:
    """Returns the JSON of an answer, checked.

    Args:
      call: request.
      seconds: time limit, from connecting to the last byte [s].

    Raises:
      Unavailable: no answer, one of status 408, 429 or 5xx, or none in time.
      Refused: an answer of another status than 200.
      BadAnswer: an answer that is cut off, too large, no JSON, or fails its check.
    """
    method, options = _request(call)
    try:
      async with asyncio.timeout(seconds):
        async with (
          self._of_this_loop().one() as client,
          client.stream(method, self.url + call.path, **options) as response,
        ):
          body = _body(response)
          async for chunk in response.aiter_raw():
            body.feed(chunk)
    except (httpx.HTTPError, httpx.StreamError) as e:
      raise Unavailable(_failed(self.url, call, e)) from None
    except TimeoutError:
      raise Unavailable(f'{self.url}{call.path}: no answer in {seconds:g} s') from None
    except codings.Unreadable as e:
      raise calls.BadAnswer(f'{self.url}{call.path}: {e}') from None
    return self._read(call, response.status_code, body)

  def ask_now(self, call: calls.Call, seconds: float) -> Any:
    """Returns what `ask` does, and waits for it in this thread."""
    method, options = _request(call)
    options['timeout'] = httpx.Timeout(seconds, connect=min(seconds, 10.0))
    end = time.monotonic() + seconds
    try:
      with self._blocking.stream(method, self.url + call.path, **options) as response:
        body = _body(response)
        for chunk in response.iter_raw():
          body.feed(chunk)
          if time.monotonic() > end:
            raise httpx.ReadTimeout(f'no whole answer in {seconds:g} s')
    except (httpx.HTTPError, httpx.StreamError) as e:
      raise Unavailable(_failed(self.url, call, e)) from None
    except codings.Unreadable as e:
      raise calls.BadAnswer(f'{self.url}{call.path}: {e}') from None
    return self._read(call, response.status_code, body)

  async def aclose(self) -> None:
    """Closes the connections."""
    self._blocking.close()
    if self._clients is not None:
      _, clients = self._clients
      self._clients = None
      await clients.aclose()

  def _of_this_loop(self) -> connections.Clients:
    loop = asyncio.get_running_loop()
    if self._clients is None or self._clients[0] is not loop:
      make = functools.partial(httpx.AsyncClient, **self._options)
      self._clients = loop, connections.Clients(make, self._concurrency)
    return self._clients[1]

  def _read(self, call: calls.Call, status: int, body: codings.Unpacker) -> Any:
    where = f'{self.url}{call.path}'
    try:
      content = body.finish()
    except codings.Unreadable as e:
      raise calls.BadAnswer(f'{where}: {e}') from None
    if status != 200:
      said = ' '.join(content[:_SAID].decode('utf-8', 'replace').split())
      said = f'{where}: status {status}: {said}'
      if status in (408, 429) or status >= 500:
        raise Unavailable(said)
      raise Refused(said, status in (400, 413, 422))
    answer = None
    if call.body is not None and content.lstrip()[:1] in (b'{', b'['):
      try:
        answer = reading.parse(content, allows_nan=True)
      except ValueError as e:
        raise calls.BadAnswer(f'{where}: {e}') from None
    try:
      call.check(answer)
    except calls.BadAnswer as e:
      raise calls.BadAnswer(f'{where}: {e}') from None
    return answer


def _request(call: calls.Call) -> tuple[str, dict[str, Any]]:
  if call.body is None:
    return 'GET', {}
  return 'POST', {
    'content': json.dumps(call.body),
    'headers': {'Content-Type': 'application/json'},
  }


def _body(response: httpx.Response) -> codings.Unpacker:
  return codings.Unpacker(response.headers.get('Content-Encoding', ''), _MOST_BYTES)


def _failed(url: str, call: calls.Call, error: Exception) -> str:
  return f'{url}{call.path}: {type(error).__name__}: {error}'
