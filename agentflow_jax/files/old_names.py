"""Names that earlier versions wrote to a workdir, and their names of today.

This is the only table of old names. Every reader of a workdir's files (config.json,
rollouts, journal, metrics, summary, evaluations) translates names with it, so that a
workdir of an earlier version can be resumed, evaluated and reported.
"""

from collections.abc import Mapping
from typing import Any

from etils import epath

# Old name -> name now. Fields of a config, by their whole dotted names:
FIELDS: Mapping[str, str] = {
  'agent.tool_cache': 'agent.recording',
  'agent.tool_cache_directory': 'agent.recording_directory',
}
# How a rollout ended (the values of records.Status):
STATUSES: Mapping[str, str] = {'judge_unreachable': 'reward_unreachable'}
# Files and directories of a workdir:
_FILES: Mapping[str, str] = {'tool_cache': 'recording'}

_STATUS = 'rollouts/status/'  # Begins a metric that counts a status.


def config(values: Mapping[str, Any]) -> dict[str, Any]:
  """Returns a flattened config (dotted name -> value) with the names of today."""
  return {FIELDS.get(k, k): v for k, v in values.items()}


def status(name: str) -> str:
  """Returns the name of today of a rollout's status."""
  return STATUSES.get(name, name)


def metrics(values: Mapping[str, Any]) -> dict[str, Any]:
  """Returns a line of metrics.jsonl, or a summary.json, with names of today."""
  renamed = {}
  for name, value in values.items():
    if name.startswith(_STATUS):
      name = _STATUS + status(name.removeprefix(_STATUS))
    renamed[name] = value
  return renamed


def evaluation(value: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the content of a file of evaluations/, with the names of today."""
  renamed = dict(value)
  if isinstance(value.get('status'), Mapping):
    renamed['status'] = {status(k): v for k, v in value['status'].items()}
  if isinstance(value.get('config'), Mapping):
    renamed['config'] = config(value['config'])
  if isinstance(value.get('items'), list):
    renamed['items'] = [
      {**item, 'status': status(item['status'])}
      if isinstance(item, dict) and isinstance(item.get('status'), str)
      else item
      for item in value['items']
    ]
  return renamed


def place(workdir: epath.Path, name: str) -> epath.Path:
  """Returns the path of a workdir's file, which may have an old name.

  Args:
    workdir: directory of a run.
    name: today's name of a file or directory of the workdir.

  Returns:
    The path under the old name if only that one exists, otherwise under `name`.
  """
  path = workdir / name
  for old, new in _FILES.items():
    if new == name and not path.exists() and (workdir / old).exists():
      return workdir / old
  return path
