"""Reads tasks of EnterpriseOps-Gym, as rows of its data set and as its task files."""

import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from etils import epath

from agentflow_jax import records
from agentflow_jax.agents.environments import checks
from agentflow_jax.agents.environments.enterpriseops import environment
from agentflow_jax.data import rows
from agentflow_jax.files import reading

MODES = ('oracle', 'plus_5_tools', 'plus_10_tools', 'plus_15_tools')
_NEEDED = {'system_prompt': str, 'user_prompt': str}
_OPTIONAL = {
  'task_id': str,
  'domain': str,
  'mode': str,
  'plan': str,
  'selected_tools': list,
  'restricted_tools': list,
  'mcp_endpoint': str,
  'gym_servers_config': (str, list),
  'verifiers': (str, list),
}
# Fields of a task that say how the published scripts run it.
_OF_SCRIPTS = (
  'number_of_runs',
  'reset_database_between_runs',
  'temperature',
  'max_tokens',
)


class MalformedTask(ValueError):
  """A file, a row or a field of it is not as it should be; names it."""


def load(path: str) -> list[records.Task]:
  """Reads tasks.

  Their tags are the domain and the mode, which is that of the row, or else a part of
  the path that is one of MODES. A "plan", which the published rows have not, is for
  agent.analyst.backend=oracle.

  Args:
    path: path of JSONL or parquet files (see data.rows.locate), a task file (.json), or
      a directory of task files, at any depth.

  Raises:
    MalformedTask: names the file, the row and the field.
  """
  tasks, seen = [], set()
  for where, source, row in _rows(path):
    try:
      task = _task(row, source)
    except (ValueError, TypeError, KeyError) as e:
      raise MalformedTask(f'{where}: {e}') from e
    if task.id in seen:
      raise MalformedTask(f'{where}: the task {task.id!r} came before')
    seen.add(task.id)
    tasks.append(task)
  return tasks


def _rows(path: str) -> Iterator[tuple[str, pathlib.PurePath, dict[str, Any]]]:
  """Yields (where, path of the file, row)."""
  place = epath.Path(path)
  files = []
  if place.suffix == '.json':
    files = [place]
  elif place.is_dir():
    files = sorted(_below(place, '.json'), key=str)
    if not files:
      files = sorted((f for s in rows.SUFFIXES for f in _below(place, s)), key=str)
  try:
    for file in files or rows.locate(path):
      if file.suffix != '.json':
        for where, row in rows.read(file, tuple(_NEEDED), tuple(_OPTIONAL)):
          yield where, file, row
        continue
      with reading.boundary(file, MalformedTask):
        row = reading.read_json(file)
      if not isinstance(row, dict):
        raise MalformedTask(f'{file}: not an object')
      unknown = sorted(
        k
        for k in row
        if k not in {*_NEEDED, *_OPTIONAL, *_OF_SCRIPTS} and not k.startswith('_')
      )
      if unknown:
        raise MalformedTask(f'{file}: unknown field {unknown[0]!r}')
      yield str(file), file, {'task_id': file.stem, 'domain': file.parent.name} | row
  except rows.MalformedRow as e:
    raise MalformedTask(str(e)) from e


def _below(place: epath.Path, suffix: str) -> list[epath.Path]:
  found = []
  for one in place.iterdir():
    if one.is_dir():
      found += _below(one, suffix)
    elif one.name.endswith(suffix):
      found.append(one)
  return found


def _task(row: Mapping[str, Any], source: pathlib.PurePath) -> records.Task:
  """Returns the task of a row; raises ValueError, which names the field."""
  for name, kind in {**_NEEDED, **_OPTIONAL}.items():
    if name in _NEEDED and name not in row:
      raise ValueError(f'no field {name!r}')
    if row.get(name) is not None and not isinstance(row[name], kind):
      raise ValueError(f'{name} has the wrong type: {row[name]!r:.80}')
  mode = row.get('mode') or _mode_of(source)
  domain = row.get('domain') or ''
  servers = [
    _server(i, said, row.get('mcp_endpoint') or '/mcp')
    for i, said in enumerate(_listed(row, 'gym_servers_config'))
  ]
  if not servers:
    raise ValueError('gym_servers_config names no server')
  names = [server['name'] for server in servers]
  if len(set(names)) < len(names):
    raise ValueError('gym_servers_config: two servers have the same name')
  world = records.World(
    environment.NAME,
    {
      'servers': servers,
      'selected': _texts(row, 'selected_tools'),
      'restricted': _texts(row, 'restricted_tools'),
    },
    policy=row['system_prompt'],
    plan=row.get('plan') or '',
    checks=tuple(_check(i, said) for i, said in enumerate(_listed(row, 'verifiers'))),
  )
  parts = (mode, domain, row.get('task_id') or source.stem)
  for part in parts:  # They become names of files.
    if part in ('.', '..') or any(c in part for c in '/\\\0'):
      raise ValueError(f'{part!r} is no name: mode, domain and task_id have no slashes')
  return records.Task(
    '/'.join(filter(None, parts)),
    row['user_prompt'],
    (),
    'checks',
    {'domain': domain, 'mode': mode},
    world,
  )


def _mode_of(source: pathlib.PurePath) -> str:
  """Returns the mode that a path names; '' for none."""
  for part in reversed(source.parts):
    for mode in MODES:
      # The published script writes MODE__DOMAIN__ID.json.
      if part.replace('+', 'plus_') == mode or part.startswith(f'{mode}__'):
        return mode
  return ''


def _listed(row: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
  """Returns a list of objects, which a row holds as it is or as text of JSON."""
  said = row.get(name)
  if isinstance(said, str):
    try:
      said = json.loads(said)
    except ValueError as e:
      raise ValueError(f'{name} is no JSON: {e}') from e
  found = said if said is not None else []
  if not isinstance(found, list) or not all(isinstance(x, dict) for x in found):
    raise ValueError(f'{name} must be a list of objects')
  return [{k: v for k, v in one.items() if not k.startswith('_')} for one in found]


def _texts(row: Mapping[str, Any], name: str) -> list[str]:
  found = row.get(name) or []
  if not all(isinstance(one, str) for one in found):
    raise ValueError(f'{name} must be a list of texts')
  return list(found)


def _server(i: int, said: Mapping[str, Any], endpoint: str) -> dict[str, Any]:
  """Returns a server as worlds name it."""
  where = f'gym_servers_config[{i}]'
  for name in ('mcp_server_name', 'mcp_server_url'):
    if not isinstance(said.get(name), str) or not said[name]:
      raise ValueError(f'{where} needs the text {name!r}')
  if said.get('auth_config'):
    raise ValueError(
      f'{where}: auth_config holds a secret, which no task file should; it is not'
      ' supported'
    )
  context = said.get('context') or {}
  if not isinstance(context, dict):
    raise ValueError(f'{where}: context must be an object')
  return {
    'name': said['mcp_server_name'],
    'url': said['mcp_server_url'],
    'endpoint': str(said.get('mcp_endpoint') or endpoint),
    'seed': str(said.get('seed_database_file') or ''),
    'context': {str(k): str(v) for k, v in context.items()},
  }


def _check(i: int, said: Mapping[str, Any]) -> records.Check:
  """Returns the check of a verifier."""
  try:
    # Published so: what has no name is called by its number.
    name = said.get('name') or f'verifier_{i + 1}'
    check = checks.from_published({**said, 'name': name})
    if name := said.get('gym_name'):
      check = records.Check(check.name, check.kind, {**check.spec, 'gym_name': name})
      checks.validate(check)
  except ValueError as e:
    raise ValueError(f'verifiers[{i}]: {e}') from e
  return check
