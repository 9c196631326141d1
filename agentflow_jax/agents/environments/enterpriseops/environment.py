"""Worlds on the servers of EnterpriseOps-Gym, which hold a database for each rollout.

The state of a world is

  servers     list of {"name", "url", "endpoint", "seed" (path of a file of SQL, below
              the directory of seeds), "context" (headers)}
  selected    names of the tools that are shown; empty for all
  restricted  names of the tools that are not

The tools of all servers are one list: where two have a tool of the same name, the
server that comes first keeps it.
"""

import asyncio
import dataclasses
import functools
import hashlib
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import httpx
from absl import logging

from agentflow_jax import records
from agentflow_jax.agents.environments import answer_judge, base, checks
from agentflow_jax.agents.environments.enterpriseops import gym as gym_lib, journals
from agentflow_jax.agents.tools import base as tools_base
from agentflow_jax.agents.tools.mcp import cards

NAME = 'enterpriseops'
_SEEDS_KEPT = 16
_LOST = 'no server is called'
# Longest wait for databases that are still being deleted at the end [s].
_CLOSE_SECONDS = 60.0


class EnterpriseOps:
  """Opens worlds on servers.

  Use it from one event loop.

  Args:
    seeds: directory of the files of SQL that databases are made from.
    urls: base address by the name of a server, instead of the task's.
    judge: judge of checks of kind 'response'; None where no task has one.
    seconds: time limit of one request [s]; seeding has ten times as long.
    concurrency: largest number of requests at a time.
    journal: directory in which open databases are written down, so that those of a
      killed run are deleted by the next one; None for none.

  Attributes:
    name, version, capacity, cards: attributes of Environment.
  """

  def __init__(
    self,
    seeds: str | os.PathLike[str],
    urls: Mapping[str, str],
    *,
    judge: answer_judge.AnswerJudge | None = None,
    seconds: float = 30.0,
    concurrency: int = 32,
    journal: pathlib.Path | None = None,
  ):
    self.name, self.version, self.capacity, self.cards = NAME, '1', None, ()
    self.judge = judge
    self._seeds, self._urls = pathlib.Path(seeds), dict(urls)
    self._client = httpx.AsyncClient(
      # A request that waits for others is not the server's fault.
      timeout=httpx.Timeout(seconds, pool=None),
      limits=httpx.Limits(max_connections=concurrency),
      trust_env=False,
    )
    self._nonce = os.urandom(16)
    self._listed: dict[gym_lib.Place, asyncio.Task] = {}
    self._at_start: dict[str, tuple[bool, ...]] = {}
    self._warned: set[str] = set()
    self._journal = journals.Journal(journal) if journal is not None else None
    self._swept = False
    self._deleting: set[asyncio.Future] = set()
    self._sql = functools.lru_cache(_SEEDS_KEPT)(_read_seed)

  def places(self, world: records.World) -> list[gym_lib.Place]:
    """Returns the servers of a world, in their order."""
    return [
      gym_lib.Place(
        server['name'],
        str(self._urls.get(server['name'], server['url'])),
        server['endpoint'],
        tuple(server['context'].items()),
      )
      for server in world.state['servers']
    ]

  def check(self, task: records.Task) -> list[str]:
    """See Environment.check."""
    try:
      checks.validate_world(task.its_world)
      names = [server['name'] for server in task.its_world.state['servers']]
      for server in task.its_world.state['servers']:
        if not server['seed']:
          raise ValueError(
            f'server {server["name"]!r} of the task names no seed_database_file'
          )
        path = self._seeds / server['seed']
        if not path.resolve().is_relative_to(self._seeds.resolve()):
          raise ValueError(
            f'the seed {server["seed"]!r} is not below the directory of seeds'
          )
        if not path.is_file():
          raise ValueError(
            f'there is no seed {path}: unpack gym_dbs.zip of the publication, and'
            ' name its directory, agent.environment.seeds'
          )
      for check in task.its_world.checks:
        if check.kind == 'response' and self.judge is None:
          raise ValueError(
            f'check {check.name!r} of kind "response" needs a judge: set'
            ' agent.environment.judge'
          )
        if check.kind not in ('state', 'calls', 'response'):
          raise ValueError(
            f'check {check.name!r}: {NAME} makes no checks of kind {check.kind!r}'
          )
    except ValueError as e:
      raise ValueError(f'task {task.id!r}: {e}') from e
    return [
      f'task {task.id!r}: check {check.name!r} asks the server'
      f' {check.spec["gym_name"]!r}, which the task does not have, so it always fails'
      for check in task.its_world.checks
      if check.kind != 'calls' and check.spec.get('gym_name', names[0]) not in names
    ]

  async def open(
    self, task: records.Task, key: records.RequestKey, state: bytes | None = None
  ) -> base.Episode:
    """See Environment.open."""
    if state is not None:
      raise ValueError(f'{NAME} cannot go on from a state')
    self._sweep()
    database = self._database(key)
    gyms = [
      gym_lib.Gym(self._client, place, database)
      for place in self.places(task.its_world)
    ]
    opened: list[gym_lib.Gym] = []
    try:
      for one, server in zip(gyms, task.its_world.state['servers']):
        self._note('+', one.place, database)
        opened.append(one)
        await one.seed(self._sql(self._seeds / server['seed']))
        await one.start()
      tools = self._shown(task, [await self._tools(one) for one in gyms])
      before = await self._before(task, gyms)
      return _Episode(self, task, key, gyms, tools, before, database)
    except BaseException:  # A cancellation, too, must leave no database.
      await self.released(opened, database)
      raise

  def _database(self, key: records.RequestKey) -> str:
    """Returns the id of a rollout's database, which no model is ever shown."""
    said = repr((self._nonce, dataclasses.replace(key, turn=0, attempt=0)))
    return f'af_{hashlib.blake2b(said.encode(), digest_size=12).hexdigest()}'

  async def _tools(self, one: gym_lib.Gym) -> list[dict[str, Any]]:
    """Returns the tools of a server, which is asked once for them."""
    place = one.place
    if place not in self._listed:
      self._listed[place] = asyncio.ensure_future(one.tools())
    try:
      return await asyncio.shield(self._listed[place])
    except base.Unreachable:
      self._listed.pop(place, None)  # The next rollout asks again.
      raise

  def _shown(
    self, task: records.Task, listed: Sequence[Sequence[Mapping[str, Any]]]
  ) -> dict[str, tuple[int, Mapping[str, Any]]]:
    """Returns the tools that a task shows: name -> (index of its server, tool)."""
    merged: dict[str, tuple[int, Mapping[str, Any]]] = {}
    for i, tools in enumerate(listed):
      for tool in tools:
        merged.setdefault(tool['name'], (i, tool))
    selected = task.its_world.state['selected']
    restricted = set(task.its_world.state['restricted'])
    lacking = sorted(set(selected) - merged.keys())
    if lacking and task.id not in self._warned:
      self._warned.add(task.id)
      logging.warning('task %s: no server has the tool %s', task.id, lacking[0])
    return {
      name: found
      for name, found in merged.items()
      if name not in restricted and (not selected or name in selected)
    }

  async def _before(self, task, gyms) -> tuple[bool, ...]:
    """Returns which checks hold before anything is done; asked once a task."""
    if task.id not in self._at_start:
      self._at_start[task.id] = tuple(
        [
          check.kind == 'state' and bool((await stated(check, gyms)).passed)
          for check in task.its_world.checks
        ]
      )
    return self._at_start[task.id]

  def _note(self, sign: str, place: gym_lib.Place, database: str) -> None:
    if self._journal is not None:
      self._journal.note(sign, place, database)

  async def released(self, gyms: Sequence[gym_lib.Gym], database: str) -> None:
    """Deletes databases; one that cannot be deleted stays in the journal.

    Where it is cancelled, it goes on, and `close` waits for it.
    """
    deleting = asyncio.gather(*(self._delete(one, database) for one in gyms))
    self._deleting.add(deleting)
    deleting.add_done_callback(self._deleting.discard)
    await asyncio.shield(deleting)

  async def _delete(self, one: gym_lib.Gym, database: str) -> None:
    try:
      await one.delete()
      self._note('-', one.place, database)
    except Exception as e:  # One server's failure must not keep the others' databases.
      logging.warning('the database %s was left: %s', database, e)

  def _sweep(self) -> None:
    """Begins, once, to delete the databases that killed runs left."""
    if self._journal is None or self._swept:
      return
    self._swept = True
    for place, database in self._journal.left():
      sweeping = asyncio.ensure_future(
        self.released([gym_lib.Gym(self._client, place, database)], database)
      )
      self._deleting.add(sweeping)
      sweeping.add_done_callback(self._deleting.discard)

  async def close(self) -> None:
    """See Environment.close."""
    if self._deleting:
      await asyncio.wait(set(self._deleting), timeout=_CLOSE_SECONDS)
    await self._client.aclose()
    if self._journal is not None:
      self._journal.close()


class _Episode:
  """One open world, see base.Episode."""

  def __init__(self, environment, task, key, gyms, tools, before, database):
    self._environment, self._task, self._key = environment, task, key
    self._gyms, self._before, self._database = gyms, before, database
    self.brief = base.Brief(task.its_world.policy)
    self.ended: base.Ended = ''
    self.answer, self.outside = None, frozenset()
    self.tools = {}
    self._names = cards.shown_names(tools)
    for shown, name in self._names.items():
      i, tool = tools[name]
      schema = tool.get('inputSchema')
      described = {
        'name': name,
        'description': str(tool.get('description') or ''),
        'schema': schema if isinstance(schema, dict) else {'type': 'object'},
      }
      card = dataclasses.replace(cards.card('', described), name=shown, limits='')
      self.tools[shown] = tools_base.Tool(
        card,
        _caller(gyms[i], name, cards.names(described['schema'])),
        timeout=3600.0,
        version=environment.version,
      )

  async def verify(self, ending: records.Ending) -> records.Verdict:
    """See Episode.verify."""
    results = []
    for check, vacuous in zip(self._task.world.checks, self._before):
      if check.kind == 'state':
        result = await stated(check, self._gyms)
      elif check.kind == 'calls':
        result = checks.of_calls(check, self._as_at_the_servers(ending))
      else:
        result = await self._rated(check, ending.answer)
      results.append(dataclasses.replace(result, vacuous=vacuous))
    return records.Verdict(tuple(results))

  def _as_at_the_servers(self, ending: records.Ending) -> records.Ending:
    """Returns an ending whose calls have the names that checks know tools by."""
    return dataclasses.replace(
      ending,
      calls=tuple(
        (dataclasses.replace(call, tool=self._names.get(call.tool, call.tool)), result)
        for call, result in ending.calls
      ),
    )

  async def _rated(self, check, answer: str) -> records.CheckResult:
    one = _gym_of(check, self._gyms)
    if one is None:
      return checks.failed(check, _lost(check))
    try:
      facts = await one.sql(check.spec['sql_query'])
    except ValueError as e:
      return checks.failed(check, str(e))
    return await self._environment.judge.check(check, facts, answer, self._key)

  async def digest(self) -> str:
    """See Episode.digest: a server does not show all of its state."""
    return ''

  def state(self) -> None:
    """See Episode.state."""

  async def close(self) -> None:
    """See Episode.close."""
    await self._environment.released(self._gyms, self._database)


def _caller(
  one: gym_lib.Gym, name: str, fields: Mapping[str, str]
) -> Callable[[Mapping[str, Any]], Any]:
  """Returns a tool's call; `fields` maps names on the card to the server's."""

  async def call(arguments: Mapping[str, Any]) -> str:
    return await one.call(name, {fields[k]: v for k, v in arguments.items()})

  return call


async def stated(
  check: records.Check, gyms: Sequence[gym_lib.Gym]
) -> records.CheckResult:
  """Makes a check of kind 'state'; raises Unreachable where a server failed."""
  one = _gym_of(check, gyms)
  if one is None:
    return checks.failed(check, _lost(check))
  try:
    return checks.compared(check, gym_lib.value_of(await one.sql(check.spec['query'])))
  except ValueError as e:  # Published so: a query that fails is a failed check.
    return checks.failed(check, str(e))


def _gym_of(check: records.Check, gyms: Sequence[gym_lib.Gym]) -> gym_lib.Gym | None:
  """Returns the server that a check asks: the first, where it names none."""
  name = check.spec.get('gym_name', gyms[0].place.name)
  return next((one for one in gyms if one.place.name == name), None)


def _lost(check: records.Check) -> str:
  return f'{_LOST} {check.spec["gym_name"]!r}'


def _read_seed(path: pathlib.Path) -> str:
  try:
    return path.read_text('utf-8')
  except (OSError, UnicodeDecodeError) as e:
    raise base.Unreachable(f'{path}: {e}') from e
