"""Experiment trackers: how each of them holds the steps of one run, each step once.

A client runs in a process of its own, see training.tracker_worker. It is built around
one question, `begin`: which step does the tracker hold last? What was delivered halfway
by a process that was killed is then either continued or taken away and sent again.

Addresses, keys and modes are those of the trackers' own environment variables, such as
WANDB_MODE, WANDB_API_KEY, MLFLOW_TRACKING_URI and TRACKIO_DIR.
"""

import dataclasses
import os
import re
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from etils import epath

from agentflow_jax.files import reading, writing


@dataclasses.dataclass(frozen=True)
class Run:
  """A run as trackers know it.

  Attributes:
    id: id of the run, the same in every process that continues it.
    name: name of the run for people.
    project: name that runs are grouped under.
    config: config of the run, dotted name -> JSON value.
    facts: commit and machine, by name.
    directory: directory for files of trackers; a path or gs:// URL.
  """

  id: str
  name: str
  project: str
  config: Mapping[str, Any]
  facts: Mapping[str, Any]
  directory: str


@dataclasses.dataclass(frozen=True)
class Table:
  """Sampled trajectories of a step.

  Attributes:
    columns: names of the columns.
    data: rows of texts and numbers.
  """

  columns: Sequence[str]
  data: Sequence[Sequence[Any]]


@dataclasses.dataclass(frozen=True)
class Step:
  """What a tracker gets of a step.

  Attributes:
    step: number of the step, from 1.
    metrics: metrics of the step by name.
    table: sampled trajectories; None where the step has no table.
  """

  step: int
  metrics: Mapping[str, float]
  table: Table | None = None


class Tracker(Protocol):
  """A tracker, of which one process at a time holds the run."""

  def begin(self) -> int:
    """Opens the run, or continues it, and returns the last step that it holds.

    It is called before the first delivery, and again after one that failed.
    """
    ...

  def send(self, steps: Sequence[Step]) -> None:
    """Delivers steps that follow the last one; returns when the tracker has them."""

  def close(self, done: bool) -> None:
    """Ends what `begin` opened; `done` says whether the run has no more steps."""


_TABLE = 'trajectories'


class Wandb:
  """Weights & Biases.

  Online, one wandb run is open from the first step to the last, and the server says
  which step it holds. Offline nothing can be asked, and only wandb.finish says that
  everything is on disk. So every delivery is a directory of its own,
  DIRECTORY/wandb/STEP, named by its first step and finished before DIRECTORY/wandb.json
  counts its steps. A directory that a killed process left behind that count is taken
  away. All of them carry the same run id, and `wandb sync` joins them.
  """

  def __init__(self, run: Run):
    self._of = run
    self._run: Any = None
    self._is_offline = False

  def begin(self) -> int:
    import wandb  # pyright: ignore[reportMissingImports]  # An extra.

    self.close(done=False)
    self._is_offline = wandb.setup().settings.mode == 'offline'
    if not self._is_offline:
      self._run = self._open(_local(self._of) / 'wandb' / 'online')
      return max(self._run.step - 1, 0)
    sent = _sent(self._counter)
    root = _local(self._of) / 'wandb'
    for path in root.iterdir() if root.exists() else ():
      if path.name.isdigit() and int(path.name) > sent:
        shutil.rmtree(path)
    return sent

  @property
  def _counter(self) -> epath.Path:
    return epath.Path(self._of.directory) / 'wandb.json'

  def _open(self, directory: epath.Path):
    import wandb  # pyright: ignore[reportMissingImports]  # An extra.

    directory.mkdir(parents=True, exist_ok=True)
    return wandb.init(
      project=self._of.project,
      id=self._of.id,
      name=self._of.name,
      resume='allow',
      dir=os.fspath(directory),
      allow_val_change=True,
      config={**self._of.config, **_prefixed(self._of.facts)},
      settings=wandb.Settings(console='off', silent=True),
    )

  def send(self, steps):
    run = self._run
    if self._is_offline:
      place = _local(self._of) / 'wandb' / f'{steps[0].step:06d}'
      run = self._open(place)
    self._log(run, steps)
    if self._is_offline:
      run.finish()
      writing.write_whole(self._counter, f'{{"sent": {steps[-1].step}}}\n')

  def _log(self, run, steps):
    import wandb  # pyright: ignore[reportMissingImports]  # An extra.

    for step in steps:
      values = dict(step.metrics)
      if step.table is not None:
        values[_TABLE] = wandb.Table(
          columns=list(step.table.columns), data=[list(r) for r in step.table.data]
        )
      run.log(values, step=step.step, commit=True)

  def close(self, done):
    if self._run is not None:
      run, self._run = self._run, None
      run.finish(exit_code=0 if done else 1)


class Mlflow:
  """MLflow, through its client: a server, a database, or a directory.

  The run is found by a tag that holds the run's id. The metric 'step' is written after
  all others of a step, so that its history says which steps are whole.
  """

  _TAG = 'agentflow_jax.run'
  _PARAMS, _METRICS = 100, 1000  # Of one call, at most.

  def __init__(self, run: Run):
    self._of = run
    self._client: Any = None
    self._id, self._last = '', 0

  def begin(self) -> int:
    import mlflow  # pyright: ignore[reportMissingImports]  # An extra.

    self._client = client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name(self._of.project)
    experiment_id = (
      client.create_experiment(self._of.project)
      if experiment is None
      else experiment.experiment_id
    )
    found = client.search_runs([experiment_id], f"tags.`{self._TAG}` = '{self._of.id}'")
    tags = {self._TAG: self._of.id} | {
      k: str(v) for k, v in _prefixed(self._of.facts).items()
    }
    if found:
      (run, *_) = found
      self._id = run.info.run_id
      client.update_run(self._id, status='RUNNING')
      for key, value in tags.items():
        client.set_tag(self._id, key, value)
    else:
      run = client.create_run(experiment_id, run_name=self._of.name, tags=tags)
      self._id = run.info.run_id
    self._write_config(run.data.params)
    history = client.get_metric_history(self._id, 'step')
    self._last = max((metric.step for metric in history), default=0)
    return self._last

  def _write_config(self, known: Mapping[str, str]) -> None:
    """Writes the config; a parameter cannot change, the artifact holds all as now."""
    from mlflow import entities  # pyright: ignore[reportMissingImports]  # An extra.

    params = [
      entities.Param(_key(name), str(value)[:6000])
      for name, value in self._of.config.items()
      if _key(name) not in known
    ]
    for i in range(0, len(params), self._PARAMS):
      self._client.log_batch(self._id, params=params[i : i + self._PARAMS])
    self._client.log_dict(self._id, dict(self._of.config), 'config.json')

  def send(self, steps):
    from mlflow import entities  # pyright: ignore[reportMissingImports]  # An extra.

    for step in steps:
      now = int(1000 * time.time())
      metrics = [
        entities.Metric(_key(name), value, now, step.step)
        for name, value in step.metrics.items()
      ]
      if step.step == self._last + 1:
        # A process that was killed may have written some of them.
        metrics = [m for m in metrics if not self._has(m.key, step.step)]
      for i in range(0, len(metrics), self._METRICS):
        self._client.log_batch(self._id, metrics=metrics[i : i + self._METRICS])
      if step.table is not None:
        table = dataclasses.asdict(step.table)
        name = f'{_TABLE}/step_{step.step:06d}.json'
        self._client.log_dict(self._id, table, name)
      self._client.log_batch(
        self._id, metrics=[entities.Metric('step', step.step, now, step.step)]
      )

  def _has(self, key: str, step: int) -> bool:
    history = self._client.get_metric_history(self._id, key)
    return any(metric.step == step for metric in history)

  def close(self, done):
    if self._client is not None:
      self._client.set_terminated(self._id, 'FINISHED' if done else 'KILLED')


class Trackio:
  """Trackio, on this machine or in a Space.

  A delivery is one opening of the run, because only trackio.finish waits until
  everything is written. A step is one row, so it is there whole or not at all.
  """

  def __init__(self, run: Run):
    self._of = run

  def _open(self):
    import trackio  # pyright: ignore[reportMissingImports]  # An extra.

    return trackio.init(
      project=self._of.project,
      name=f'{self._of.name}-{self._of.id}',
      resume='allow',
      embed=False,
      auto_log_gpu=False,
      auto_log_cpu=False,
      config={**self._of.config, **_prefixed(self._of.facts)},
    )

  def begin(self) -> int:
    run = self._open()
    try:
      # Its next step where none is given; there is no public name for it.
      return max(run._next_step - 1, 0)
    finally:
      run.finish()

  def send(self, steps):
    import trackio  # pyright: ignore[reportMissingImports]  # An extra.

    run = self._open()
    try:
      for step in steps:
        values = dict(step.metrics)
        if step.table is not None:
          values[_TABLE] = trackio.Table(
            columns=list(step.table.columns),
            data=[list(row) for row in step.table.data],
          )
        run.log(values, step=step.step)
    finally:
      run.finish()

  def close(self, done):
    del done


CLIENTS: Mapping[str, Callable[[Run], Tracker]] = {
  'wandb': Wandb,
  'mlflow': Mlflow,
  'trackio': Trackio,
}


def _local(run: Run) -> epath.Path:
  """Returns a directory of this machine's disk for the files of a tracker."""
  if '://' in run.directory:
    return epath.Path(os.environ.get('WANDB_DIR', '.')) / f'agentflow_jax_{run.id}'
  return epath.Path(run.directory)


def _sent(counter: epath.Path) -> int:
  """Returns the last step that a counter counts; 0 where there is none."""
  return reading.read_json(counter)['sent'] if counter.exists() else 0


def _prefixed(facts: Mapping[str, Any]) -> dict[str, Any]:
  return {f'run.{name}': value for name, value in facts.items()}


def _key(name: str) -> str:
  """Returns a name as MLflow allows it."""
  return re.sub(r'[^\w\-. /:]', '_', name)
