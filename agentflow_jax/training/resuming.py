"""Checks that a workdir belongs to a run, and restores its newest commit."""

import dataclasses
import hashlib
import json
import secrets
from collections.abc import Sequence
from typing import Any

from etils import epath

from agentflow_jax.assembly import system as system_lib
from agentflow_jax.config import own_code, roles, schema, written
from agentflow_jax.files import old_names, writing
from agentflow_jax.rollouts import evaluation_files
from agentflow_jax.weights import host_copies


# Fields that change no step that is done, so that a run may go on with other values:
# how long it is, what is evaluated, committed and kept, when it gives up, and the
# sizes of the engine.
_MAY_CHANGE = frozenset(
  ['name']
  + [
    f'train.{name}'
    for name in (
      'steps',
      'checkpoint_every',
      'keep_checkpoints',
      'rollout_records',
      'stop_after_failing_steps',
      'concurrent_rollouts',
    )
  ]
  + [
    f'engine.{name}'
    for name in (
      'slots',
      'max_prompt_tokens',
      'max_new_tokens',
      'page_tokens',
      'kv_tokens',
      'row_tokens',
      'lanes',
      'prefill_pieces',
      'piece_tokens',
      'prefill_burst',
      'read_share',
      'decode_chunk',
      'max_stop_ids',
      'coalesce_share',
      'company_chunks',
    )
  ]
  + ['agent.tools.python_concurrency', 'agent.tools.own_concurrency']
)
_CHANGES = 'config_changes.jsonl'


@dataclasses.dataclass(frozen=True)
class Change:
  """A field whose value differs from that of the steps that are done.

  Attributes:
    name: dotted name of the field.
    before: JSON value in the workdir's config.json.
    now: JSON value of the config that the run goes on with.
  """

  name: str
  before: Any
  now: Any

  @property
  def of_evaluation(self) -> bool:
    """Whether the field says what is evaluated."""
    return self.name.startswith('evaluation.')

  def is_allowed(self, config: schema.Config) -> bool:
    """Returns whether a run may go on with it: no step would be another one."""
    if self.name == 'engine.max_prompt_tokens':
      # Prompts of frozen modules are shortened to fit into it.
      return not roles.uses_frozen(config)
    # Servers are proved to have the run's weights, wherever and whichever they are.
    others = self.name.startswith(('metrics.', 'planner.external.'))
    return self.name in _MAY_CHANGE or self.of_evaluation or others


def check_same_run(config: schema.Config, workdir: epath.Path) -> list[Change]:
  """Returns what a config changes of the run in a workdir, if it holds one.

  A field that is missing in the workdir's config.json was added by a later version;
  it counts as its default. Renamed fields are translated by files.old_names.

  Raises:
    ConfigError: a field differs that the steps which are done depend on; names all
      of them.
  """
  path = workdir / written.FILE
  if not path.exists():
    return []
  differs = written.differences(config, written.read_flat(path))
  changes = [Change(name, before, now) for name, (before, now) in differs.items()]
  refused = [change for change in changes if not change.is_allowed(config)]
  if refused:
    shown = '; '.join(
      f'{c.name} is {json.dumps(c.now)}, was {json.dumps(c.before)}' for c in refused
    )
    raise schema.ConfigError(
      f'{workdir} holds a run of another config ({shown}). The steps that are done'
      ' depend on these fields: set them to their old values, or give another'
      ' --workdir'
    )
  return changes


def write_config(
  config: schema.Config, workdir: epath.Path, done: int, changes: Sequence[Change]
) -> list[str]:
  """Writes config.json, and what it changes to config_changes.jsonl.

  Each line there is {"from_step": the first step (from 1) that the value holds for,
  "field": its dotted name, "before": JSON value, "now": JSON value}.

  Args:
    config: config of the run.
    workdir: work directory of the run.
    done: number of committed steps.
    changes: fields that differ from the workdir's config.json, see
      `check_same_run`.

  Returns:
    The changes in words.
  """
  if any(c.name == 'train.steps' or c.of_evaluation for c in changes):
    _move_results(workdir, done)
  path, lines = workdir / _CHANGES, ''
  if changes and path.exists():
    lines = path.read_text()
  for change in changes:
    line = {
      'from_step': done + 1,
      'field': change.name,
      'before': change.before,
      'now': change.now,
    }
    lines += json.dumps(line) + '\n'
  if changes:
    writing.write_whole(path, lines)
  writing.write_whole(workdir / written.FILE, written.text(config))
  return [
    f'from step {done + 1} on {c.name} is {json.dumps(c.now)} (it was'
    f' {json.dumps(c.before)})'
    for c in changes
  ]


def _move_results(workdir: epath.Path, done: int) -> None:
  """Moves results of a run that was finished below WORKDIR/earlier.

  Otherwise they would stand beside the longer run as if they were its own.
  """
  if not (workdir / 'summary.json').exists():
    return
  count = 0
  while (kept := workdir / 'earlier' / f'step_{done:06d}_{count}').exists():
    count += 1
  (kept / evaluation_files.DIRECTORY).mkdir(parents=True)
  evaluations = workdir / evaluation_files.DIRECTORY
  names = ['planner', 'adapter', 'report.html', 'summary.json']  # The summary last.
  if evaluations.exists():
    names = [
      f'{evaluation_files.DIRECTORY}/{path.name}'
      for path in evaluations.iterdir()
      if path.name.startswith(('final', 'control_'))
    ] + names
  for name in names:
    if (workdir / name).exists():
      (workdir / name).rename(kept / name)


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
    'planner': host_copies.params_digest(system.model.params),
    'tasks': hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest(),
  }


def restore(
  trainer, system, saved, inputs
) -> tuple[list[dict[str, Any]], dict[str, float], dict[str, float] | None]:
  """Restores the newest commit, if any.

  Returns:
    The metrics of its steps, the seconds that were spent up to it, and the
    metrics of a step that was done but for its evaluation.

  Raises:
    ConfigError: the planner or the tasks that the run began with have changed, or
      more steps are done than the config asks for.
  """
  step = saved.latest
  if step is None:
    return [], {}, None
  if step > system.config.train.steps:
    raise schema.ConfigError(
      f'train.steps is {system.config.train.steps}, and {step} steps are done in'
      ' this --workdir already: steps cannot be taken back; raise train.steps'
    )
  trainer.state, run = saved.restore(step, trainer.state)
  changed = [k for k, v in inputs.items() if run['inputs'].get(k) != v]
  if changed:
    raise schema.ConfigError(
      f'the {" and ".join(changed)} that this run began with changed on disk;'
      ' restore them, or give another --workdir'
    )
  system.model.sample_from(trainer.params, step)
  pending = run.get('pending')
  return (
    [old_names.metrics(line) for line in run['metrics']],
    run['seconds'],
    None if pending is None else old_names.metrics(pending),
  )
