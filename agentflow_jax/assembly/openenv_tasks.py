"""Makes a task file for a server of OpenEnv, and tries what its `reset` takes."""

import asyncio
import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from etils import epath

from agentflow_jax import records
from agentflow_jax.agents.environments import base
from agentflow_jax.agents.environments.openenv import connections, environment
from agentflow_jax.config import schema
from agentflow_jax.files import writing

_FIELDS = ('query', 'answer', 'id', 'plans')


@dataclasses.dataclass(frozen=True)
class Tried:
  """What came of trying the arguments of `reset`.

  Attributes:
    heeded: arguments that changed the first observation of some task.
    ignored: those that changed none, which the server may not know.
    style: 'tools' for a server that lists its tools, 'plain' for one with actions.
    tools: names of the tools.
  """

  heeded: tuple[str, ...]
  ignored: tuple[str, ...]
  style: str
  tools: tuple[str, ...]


def rows(query: str, arguments: Sequence[str]) -> list[dict[str, Any]]:
  """Returns a row for each value of an argument.

  Args:
    query: query of every task.
    arguments: NAME=FIRST:LAST for a range of numbers, both ends included, or
      NAME=VALUE|VALUE|... for JSON values and texts; all combinations are made.

  Raises:
    ConfigError: an argument has another form, or the query is blank.
  """
  if not query.strip():
    raise schema.ConfigError('--query: say what is asked in every task')
  found: list[dict[str, Any]] = [{}]
  for one in arguments:
    name, _, said = one.partition('=')
    if not name or not said or name in _FIELDS:
      raise schema.ConfigError(
        f'--reset={one}: write NAME=FIRST:LAST or NAME=VALUE|VALUE, where NAME is'
        f' none of {", ".join(_FIELDS)}'
      )
    first, colon, last = said.partition(':')
    if colon and first.isdecimal() and last.isdecimal():
      values: list[Any] = list(range(int(first), int(last) + 1))
    else:
      values = [_value(part) for part in said.split('|')]
    found = [{**row, name: value} for row in found for value in values]
  return [
    {'id': '-'.join(map(str, row.values())) or 'task', 'query': query, **row}
    for row in found
  ]


def _value(text: str) -> Any:
  try:
    return json.loads(text)
  except ValueError:
    return text


def write(
  path: str, url: str, made: Sequence[Mapping[str, Any]], seconds: float
) -> Tried:
  """Tries the arguments of rows at a server, and writes the rows.

  Args:
    path: path of the JSONL file.
    url: address of the server.
    made: rows, see `rows`.
    seconds: time limit of an answer [s].

  Raises:
    ConfigError: the server cannot be reached, or refuses the arguments.
  """
  try:
    tried = asyncio.run(_try(url, made, seconds))
  except base.Unreachable as e:
    raise schema.ConfigError(f'--url={url}: {e}') from e
  lines = ''.join(json.dumps(row, ensure_ascii=False) + '\n' for row in made)
  writing.write_whole(epath.Path(path), lines)
  return tried


async def _try(url, made, seconds) -> Tried:
  connection = connections.Socket(url, seconds)
  try:
    await connection.open()
    names = [name for name in made[0] if name not in _FIELDS]
    seen = {
      name: {await _observed(connection, row) for row in _varied(made, name)}
      for name in names
    }
    tools = await environment.offered(connection, url, seconds)
  finally:
    await connection.close()
  heeded = tuple(name for name in names if len(seen[name]) > 1)
  return Tried(
    heeded,
    tuple(name for name in names if name not in heeded),
    tools.style,
    tuple(str(tool['name']) for tool in tools.described),
  )


def _varied(
  made: Sequence[Mapping[str, Any]], name: str
) -> Iterable[Mapping[str, Any]]:
  """Returns rows that differ from the first one in an argument, and lack it."""
  values: dict[str, Any] = {json.dumps(row[name]): row[name] for row in made}
  yield {k: v for k, v in made[0].items() if k != name}
  for value in list(values.values())[:8]:
    yield {**made[0], name: value}


async def _observed(connection, row: Mapping[str, Any]) -> str:
  """Returns the first observation of a row, with one seed for all."""
  rest = {k: v for k, v in row.items() if k not in _FIELDS}
  task = records.Task(
    'trial', '', (), 'environment', world=records.World(environment.NAME, {'row': rest})
  )
  data = await environment.reset(connection, task)
  return json.dumps([data['observation'], data.get('metadata')], sort_keys=True)
