"""Names that earlier versions wrote to a workdir, and what they are called now.

The one table of them. Whoever reads a file of a workdir (config.json, rollouts,
the journal, metrics, a summary, an evaluation) passes what it read through here,
so that a workdir that an earlier version made resumes, evaluates and reports.
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
  """Returns what a file of evaluations/ holds, with the names of today."""
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
  """Returns where something of a workdir lies.

  Args:
    workdir: directory of a run.
    name: name of today of a file or directory in it.

  Returns:
    The path of an old name, where only that exists; else that of `name`.
  """
  path = workdir / name
  for old, new in _FILES.items():
    if new == name and not path.exists() and (workdir / old).exists():
      return workdir / old
  return path
