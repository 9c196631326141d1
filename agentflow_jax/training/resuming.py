"""Checks that a workdir belongs to a run, and restores its newest commit."""

import hashlib
import json
import secrets
from collections.abc import Mapping
from typing import Any

from absl import logging
from etils import epath

from agentflow_jax.assembly import system as system_lib
from agentflow_jax.config import overrides, own_code, schema
from agentflow_jax.files import old_names, reading, writing
from agentflow_jax.weights import host_copies


def flat(config: schema.Config) -> dict[str, Any]:
  """Returns a config as config.json holds it: dotted name -> JSON value."""
  return _plain(overrides.flatten(config))


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
  return json.loads(json.dumps(values, default=str))


def check_same_run(config: schema.Config, workdir: epath.Path) -> None:
  """Refuses a workdir that holds a run of another config.

  A field that is missing in the workdir's config.json was added by a later version;
  it counts as its default. Renamed fields are translated by files.old_names.

  Raises:
    ConfigError: the workdir holds a run of another config; names what differs.
  """
  path = workdir / 'config.json'
  if not path.exists():
    return
  with reading.boundary(path, schema.ConfigError):
    written = reading.read_json(path, allows_nan=True)
    if not isinstance(written, dict):
      raise schema.ConfigError(f'{path} holds no config: it is no JSON object')
  now = flat(config)
  before = _plain(overrides.defaults(config)) | old_names.config(written)
  names = sorted(set(now) | set(before))
  differs = [n for n in names if now.get(n) != before.get(n)]
  if differs:
    shown = ', '.join(
        f'{n}: {before.get(n)!r} there, {now.get(n)!r} now'
        for n in differs[:5]
    )
    raise schema.ConfigError(
        f'{workdir} holds a run of another config ({shown}); give another'
        ' --workdir, or delete it'
    )


def check_shared(workdir: epath.Path, processes) -> None:
  """Raises ConfigError where a process does not see what process 0 wrote."""
  if processes.count == 1:
    return
  path, mark = workdir / 'processes.txt', secrets.token_hex(16)
  (mark, *_) = processes.exchange(mark.encode())
  processes.stop_file = workdir / 'stop.txt'

  def begin():
    processes.stop_file.unlink(missing_ok=True)
    writing.write_whole(path, mark.decode())

  processes.alone(begin)

  def look():
    if not path.exists() or path.read_text().encode() != mark:
      raise schema.ConfigError(
          f'process {processes.index} does not see {path}, which process 0'
          ' wrote: --workdir has to be one directory for all processes (a shared'
          ' file system, or gs://)'
      )

  processes.together(look)


def inputs_of(system: system_lib.System) -> dict[str, str]:
  """Digests of what a run reads from files: a resume must find the same."""
  tasks = system.tasks
  text = repr((tasks.train, tasks.validation, tasks.test))
  own = own_code.digests(system.config)
  return {f'own code {path}': digest for path, digest in own.items()} | {
      'planner': host_copies.params_digest(system.params),
      'tasks': hashlib.sha256(
          text.encode('utf-8', 'surrogatepass')
      ).hexdigest(),
  }


def restore(
    trainer, system, saved, inputs
) -> tuple[list[dict[str, Any]], dict[str, float], dict[str, float] | None]:
  """Restores the newest commit, if any.

  Returns:
    The metrics of its steps, the seconds that were spent up to it, and the
    metrics of a step that was done but for its evaluation.

  Raises:
    ConfigError: the planner or the tasks that the run began with have changed.
  """
  step = saved.latest
  if step is None:
    return [], {}, None
  trainer.state, run = saved.restore(step, trainer.state)
  changed = [k for k, v in inputs.items() if run['inputs'].get(k) != v]
  if changed:
    raise schema.ConfigError(
        f'the {" and ".join(changed)} that this run began with changed on disk;'
        ' restore them, or start in another --workdir'
    )
  system.sample_from(trainer.params, step)
  logging.info('resuming after step %d', step)
  pending = run.get('pending')
  return (
      [old_names.metrics(line) for line in run['metrics']],
      run['seconds'],
      None if pending is None else old_names.metrics(pending),
  )
