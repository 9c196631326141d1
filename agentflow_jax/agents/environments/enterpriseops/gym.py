"""One server of EnterpriseOps-Gym: databases, JSON-RPC calls, and SQL.

  POST   /api/seed-database    {database_id, name, description, sql_content}
  POST   ENDPOINT              JSON-RPC: initialize, tools/list, tools/call
  POST   /api/sql-runner       {query, database_id}
  DELETE /api/delete-database  {database_id}

Every request names its database in the header x-database-id, and carries the context of
the task as headers. A server answers a method that it does not know with HTTP 200 and
`result.error`, a notification with 204, and a tool's error as plain text.
"""

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import httpx

from agentflow_jax.agents.environments import base, checks
from agentflow_jax.agents.tools import base as tools_base
from agentflow_jax.agents.tools.mcp import cards

_PROTOCOL = '2024-11-05'
_SEED, _DELETE = '/api/seed-database', '/api/delete-database'
# Replies that say something about the request, for the model to read.
_REFUSALS = (400, 409, 422)
# A server that cannot delete databases answers so.
_CANNOT_DELETE = (404, 405)
_LONGEST_REPLY = 32 << 20
# A seed may take so many times as long as another request.
_SEED_FACTOR = 10
_ERROR_TEXT = re.compile(
  r'\s*(?:error(?: \d+)?\s*(?::|-|$)|error (?:in|while|when|calling|executing)\b'
  r'|failed(?: to\b|:|$)|failure:|exception\b|traceback\b|invalid\b'
  r'|unknown tool\b'
  r'|(?:[\w.]+\s+)?not found\b|permission denied\b|(?:4\d\d|5\d\d)\s*(?::|-\s|$))',
  re.IGNORECASE,
)


@dataclasses.dataclass(frozen=True)
class Place:
  """Where a server is, and how a task speaks to it.

  Attributes:
    name: name of the server in tasks and checks.
    url: base address.
    endpoint: path of its JSON-RPC.
    context: names and values of headers of every request within a task.
  """

  name: str
  url: str
  endpoint: str = '/mcp'
  context: tuple[tuple[str, str], ...] = ()

  @property
  def headers(self) -> dict[str, str]:
    """The context as headers: user_id becomes x-user-id."""
    return {
      k if k.lower().startswith('x-') else f'x-{k.lower().replace("_", "-")}': v
      for k, v in self.context
    }


class Gym:
  """A server, as one rollout speaks to it.

  Args:
    client: HTTP client that all rollouts share.
    place: server, and how a task speaks to it.
    database: id of the rollout's database.
  """

  def __init__(self, client: httpx.AsyncClient, place: Place, database: str):
    self._client, self.place, self._database = client, place, database
    self._session, self._number = '', 0

  async def seed(self, sql: str) -> None:
    """Makes the database from SQL; what was left under its id is deleted first.

    Raises:
      Unreachable: the server failed.
    """
    await self.delete()
    await self._sent(
      'POST',
      _SEED,
      {
        'database_id': self._database,
        'name': self._database,
        'description': 'a rollout',
        'sql_content': sql,
      },
    )

  async def delete(self) -> None:
    """Deletes the database, where the server can; raises Unreachable."""
    await self._sent('DELETE', _DELETE, {'database_id': self._database}, _CANNOT_DELETE)

  async def start(self) -> None:
    """Begins a session; raises Unreachable."""
    said = {
      'protocolVersion': _PROTOCOL,
      'capabilities': {'tools': {}},
      'clientInfo': {'name': 'agentflow_jax', 'version': '1'},
    }
    reply = await self._asked('initialize', said)
    if reply.get('error'):
      raise base.Unreachable(f'{self.place.name}: initialize: {reply["error"]}')
    await self._sent(
      'POST',
      self.place.endpoint,
      {'jsonrpc': '2.0', 'method': 'notifications/initialized', 'params': {}},
    )

  async def tools(self) -> list[dict[str, Any]]:
    """Returns the tools that the server lists; raises Unreachable."""
    reply = await self._asked('tools/list', {})
    result = reply.get('result')
    found = result.get('tools') if isinstance(result, dict) else None
    if not isinstance(found, list) or not all(
      isinstance(tool, dict) and isinstance(tool.get('name'), str) for tool in found
    ):
      raise base.Unreachable(f'{self.place.name}: tools/list returned no tools')
    return found

  async def call(self, tool: str, arguments: Mapping[str, Any]) -> str:
    """Calls a tool and returns its text.

    Raises:
      BadArguments: the tool said that something is wrong; its text.
      ToolUnreachable: the server failed, so what the call did is not known.
    """
    try:
      response = await self._sent(
        'POST',
        self.place.endpoint,
        self._request('tools/call', {'name': tool, 'arguments': dict(arguments)}),
        _REFUSALS,
      )
    except base.Unreachable as e:
      raise tools_base.ToolUnreachable(str(e)) from e
    if response.status_code in _REFUSALS:
      raise tools_base.BadArguments(_said(response))
    reply = _object(response)
    if reply is None:
      raise tools_base.ToolUnreachable(f'{self.place.name}: a reply that is no JSON')
    return text_of(reply, tool)

  async def sql(self, query: str) -> Any:
    """Runs a query of a check, and returns the reply.

    Raises:
      ValueError: the server refused the query; its words.
      Unreachable: the server failed.
    """
    response = await self._sent(
      'POST',
      '/api/sql-runner',
      {'query': query, 'database_id': self._database},
      _REFUSALS,
    )
    if response.status_code in _REFUSALS:
      raise ValueError(_said(response))
    try:
      return response.json()
    except ValueError as e:
      raise base.Unreachable(
        f'{self.place.name}: a result of SQL that is no JSON'
      ) from e

  def _request(self, method: str, params: Mapping[str, Any]) -> dict[str, Any]:
    self._number += 1
    return {
      'jsonrpc': '2.0',
      'id': self._number,
      'method': method,
      'params': dict(params),
    }

  async def _asked(self, method: str, params: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the reply to a JSON-RPC request that has to succeed."""
    response = await self._sent(
      'POST', self.place.endpoint, self._request(method, params)
    )
    reply = _object(response)
    if reply is None:
      raise base.Unreachable(f'{self.place.name}: {method}: a reply that is no JSON')
    return reply

  async def _sent(
    self, method: str, path: str, body: Mapping[str, Any], also: Sequence[int] = ()
  ) -> httpx.Response:
    """Sends a request, and returns a reply of success or of a status in `also`.

    Raises:
      Unreachable: there is no such reply.
    """
    headers = {
      'Accept': 'application/json, text/event-stream',
      'x-database-id': self._database,
    }
    if path not in (_SEED, _DELETE):  # These are not the task's.
      headers = self.place.headers | headers
    if self._session:
      headers['mcp-session-id'] = self._session
    where, timeout = f'{self.place.name}: {method} {path}', self._client.timeout
    if path == _SEED:
      read = timeout.read
      timeout = httpx.Timeout(read and _SEED_FACTOR * read, pool=None)
    try:
      response = await self._client.request(
        method,
        f'{self.place.url.rstrip("/")}{path}',
        json=body,
        headers=headers,
        timeout=timeout,
      )
    except (httpx.HTTPError, httpx.InvalidURL) as e:
      raise base.Unreachable(f'{where}: {type(e).__name__}: {e}') from e
    if len(response.content) > _LONGEST_REPLY:
      raise base.Unreachable(f'{where}: a reply of {len(response.content):,} bytes')
    if not response.is_success and response.status_code not in also:
      raise base.Unreachable(
        f'{where}: HTTP {response.status_code}: {_said(response)[:200]}'
      )
    session = response.headers.get('mcp-session-id', self._session)
    self._session = session if session.isascii() else ''
    return response


def text_of(reply: Mapping[str, Any], tool: str) -> str:
  """Returns the text of a JSON-RPC reply to a call.

  Raises:
    BadArguments: the reply says that the call failed; its text.
  """
  error, result = reply.get('error'), reply.get('result')
  if isinstance(result, dict) and result.get('error'):
    error = result['error']  # HTTP 200, and no error of JSON-RPC.
  if error:
    said = error.get('message') if isinstance(error, dict) else error
    raise tools_base.BadArguments(
      said if isinstance(said, str) else json.dumps(error, ensure_ascii=False)
    )
  if not isinstance(result, dict) or not isinstance(result.get('content'), list):
    text = '' if result is None else json.dumps(result, ensure_ascii=False)
  else:
    text = cards.text_of_json(result)
  is_error = isinstance(result, dict) and result.get('isError')
  if is_error or reads_as_error(text):
    raise tools_base.BadArguments(text or f'{tool} failed and does not say why')
  return text or 'The tool returned nothing.'


def reads_as_error(text: str) -> bool:
  """Says whether a tool's text reports an error: servers do not say so otherwise.

  It does where it begins like one, or is a JSON object with an "error" or with
  "success": false.
  """
  try:
    said = json.loads(text)
  except (ValueError, RecursionError):
    return bool(_ERROR_TEXT.match(text))
  if not isinstance(said, dict):
    return False
  return bool(said.get('error')) or said.get('success') is False


def value_of(reply: Any) -> Any:
  """Returns the value in a reply of sql-runner that a check compares.

  The rows are in "data" or "rows": no row is [], one row of one column its value, one
  row the row, and more rows their list. Without rows it is the first text of "content",
  or "result", or the reply (benchmark/verifier.py of the publication).
  """
  if not isinstance(reply, dict):
    return reply
  for field in ('data', 'rows'):
    if field not in reply:
      continue
    rows = reply[field]
    value = checks.value_of_rows(rows) if isinstance(rows, list) else rows
    is_row = field == 'rows' and isinstance(rows, list) and len(rows) == 1
    if is_row and isinstance(value, list) and len(value) == 1:
      return value[0]
    return value
  content = reply.get('content')
  if isinstance(content, list) and content:
    texts = [
      block.get('text', reply)
      for block in content
      if isinstance(block, dict) and block.get('type') == 'text'
    ]
    return texts[0] if texts else content
  if 'content' in reply:
    return content
  return reply.get('result', reply)


def _said(response: httpx.Response) -> str:
  """Returns what a reply of failure says."""
  said = _object(response)
  if said:
    detail = said.get('detail', said.get('message', said))
    return detail if isinstance(detail, str) else json.dumps(detail)
  return response.text


def _object(response: httpx.Response) -> dict[str, Any] | None:
  """Returns a reply's JSON object; None where it holds none."""
  try:
    found = response.json()
  except ValueError:
    return None
  return found if isinstance(found, dict) else None
