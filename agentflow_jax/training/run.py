"""The main job: rollouts, updates, evaluations, commits, and the report."""

import asyncio
import contextlib
import dataclasses
import hashlib
import json
import resource
import secrets
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
from absl import logging
from etils import epath

from agentflow_jax import records
from agentflow_jax.assembly import model_files, system
from agentflow_jax.config import consistency, overrides, schema
from agentflow_jax.files import reading, writing
from agentflow_jax.inference import api
from agentflow_jax.report import page as report
from agentflow_jax.rollouts import journal as journal_lib, rollout_files
from agentflow_jax.runtime import clocks, exits, processes as processes_lib
from agentflow_jax.runtime import profiling, progress
from agentflow_jax.training import engine_rates, final, metrics as metrics_lib
from agentflow_jax.training import sources, trainer as trainer_lib
from agentflow_jax.weights import checkpoints, host_copies


def train(
    config: schema.Config,
    workdir: str,
    quiet: bool = False,
    step_seconds: float = 0.0,
    profiled: profiling.Steps = profiling.Steps(),
) -> str:
  """Runs a config to its end, or goes on with the run in `workdir`.

  In a job of several processes each of them calls it. They share `workdir`, and
  process 0 writes there what is written once.

  Args:
    config: what to run.
    workdir: where everything of the run is kept.
    quiet: no progress bar.
    step_seconds: a step that takes longer ends the process; 0: any time.
    profiled: steps to trace.

  Returns:
    A short table of results for people; machines read summary.json. '' in other
    processes than 0.

  Raises:
    ConfigError, CheckpointError, ToolUnavailable: at start; name the remedy.
    RunStopped: an update was refused; everything committed stands.
    ProcessFailed: another process did; likewise.
    Preempted: told to stop (SIGTERM); all steps that were done are committed.
  """
  consistency.check_trains(config)
  directory = epath.Path(workdir)
  directory.mkdir(parents=True, exist_ok=True)
  processes = processes_lib.Processes.current()
  processes.check_same('the config', json.dumps(_flat(config), sort_keys=True))
  _check_shared(directory, processes)
  processes.together(lambda: check_same_run(config, directory))
  watchdog = exits.Watchdog(
      step_seconds, f'process {processes.index} of {processes.count}'
  )
  with contextlib.closing(watchdog):
    profiler = profiling.Profiler(
        profiled, directory / 'tensorboard', processes.index
    )
    return asyncio.run(
        _train(config, directory, quiet, processes, watchdog, profiler)
    )


def _flat(config: schema.Config) -> dict[str, Any]:
  return _plain(overrides.flatten(config))


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
  return json.loads(json.dumps(values, default=str))


def check_same_run(config: schema.Config, workdir: epath.Path) -> None:
  """A workdir belongs to one config; a different one is an error, not a mix.

  A field that the workdir's config.json lacks came with a later version of this
  program, and counts as its default there.
  """
  path = workdir / 'config.json'
  if not path.exists():
    return
  flat, before = _flat(config), reading.read_json(path, allows_nan=True)
  before = _plain(overrides.defaults(config)) | before
  names = sorted(set(flat) | set(before))
  differs = [n for n in names if flat.get(n) != before.get(n)]
  if differs:
    shown = ', '.join(
        f'{n}: {before.get(n)!r} there, {flat.get(n)!r} now'
        for n in differs[:5]
    )
    raise schema.ConfigError(
        f'{workdir} holds a run of another config ({shown}); give another'
        ' --workdir, or delete it'
    )


async def _train(
    config, workdir, quiet, processes, watchdog, profiler
) -> str:
  """Build, resume, loop, evaluate, report."""
  compilations, clock = clocks.Compilations(), clocks.Clock()
  primary = processes.is_primary
  started = time.monotonic()
  logging.info('devices: %s', jax.devices())
  with clock('setup'):
    parts = processes.together(
        lambda: system.build(
            config, workdir, system.make_mesh(config), processes
        )
    )
  saved = None
  try:
    if not parts.tasks.train:
      raise schema.ConfigError('task_set.train: no training tasks')
    with clock('compile'):
      trainer = trainer_lib.Trainer(parts)
      parts.warmup()
    # From here on the workdir is this config's.
    if primary:
      writing.write_whole(
          workdir / 'config.json',
          json.dumps(_flat(config), indent=1, sort_keys=True),
      )
    saved = checkpoints.Checkpoints(
        workdir / 'checkpoints', config.train.keep_checkpoints
    )
    inputs = _inputs(parts)
    processes.check_same('the planner or the task set', repr(inputs))
    lines, spent, pending = _resume(trainer, parts, saved, inputs)
    started -= spent.pop('total', 0.0)
    clock.add(spent)
    if config.train.extra_rollouts and primary:
      logging.warning(
          'train.extra_rollouts=%d: late rollouts are aborted, by the clock: this'
          ' run will not be the same again', config.train.extra_rollouts,
      )
    bar = progress.Progress(
        config.train.steps, len(lines), quiet=quiet or not primary
    )
    bar.note(_held(trainer, parts))
    log = metrics_lib.MetricsLog(workdir, lines, writes=primary)
    evaluations = final.Evaluations(parts, workdir, bar, clock)
    with contextlib.closing(bar), contextlib.closing(log):
      warm = compilations.count
      # Until here a signal ends the process: nothing was done.
      processes.listen()
      if not lines and pending is None:
        await evaluations.start()
      loop = _Loop(
          parts, trainer, saved, log, bar, clock, compilations, evaluations,
          inputs,
          lambda: time.monotonic() - started,
          watchdog,
          profiler,
          pending,
      )
      with profiler.running():
        await loop.run()
      watchdog.rest()
      params = trainer.params
      parts.sample_from(params, config.train.steps)
      await evaluations.final(parts.params, params)
      compiled = compilations.count - warm
    params = host_copies.gather_to_host(params)
    usage = _summed(processes, parts.endpoint_usage())

    def write() -> str:
      model_files.Model(
          parts.model_config, params, parts.tokenizer,
          parts.described,
      ).save(str(workdir / 'planner'), parts.model_config.param_dtype)
      clock.seconds['total'] = time.monotonic() - started
      summary = final.write_summary(
          config, workdir, log.lines, clock.seconds,
          {
              'params_digest': host_copies.params_digest(params),
              'compiles/after_warmup': compiled,
              **usage,
          },
      )
      final.write_card(workdir / 'planner', summary)
      page = report.write_report(str(workdir))
      return f'{report.terminal_table(str(workdir))}\n\nReport: {page}'

    return processes.alone(write) or ''
  finally:
    processes.deafen()
    try:
      if saved is not None:
        saved.close()
    finally:
      await parts.close()


def _check_shared(workdir: epath.Path, processes) -> None:
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


def _summed(processes, usage: dict[str, float]) -> dict[str, float]:
  """Adds up what the processes' endpoints came to."""
  everything = [
      json.loads(data)
      for data in processes.exchange(json.dumps(usage).encode())
  ]
  names = sorted({name for one in everything for name in one})
  return {n: sum(one.get(n, 0.0) for one in everything) for n in names}


def _held(trainer: trainer_lib.Trainer, parts: system.System) -> str:
  """Says what the run keeps on this process's devices, and took on its host."""
  count = sum(x.size for x in jax.tree.leaves(parts.params))
  trained = sum(x.size for x in jax.tree.leaves(trainer.state.params))
  base = ['frozen planner']
  if parts.config.planner.lora.rank:
    base.insert(0, 'base of the adapters')
  if parts.config.algorithm == 'flow_grpo' and parts.config.flow_grpo.kl_coef:
    base.insert(0, 'reference')
  copies = {
      'trained parameters and optimizer': trainer.state,
      'sampler': parts.engine.params,
  }
  if parts.frozen_engine is not None:
    copies['frozen modules'] = parts.frozen_engine.params
    if parts.handover is None:
      # They share these arrays, except for layers that they read apart.
      base.append('frozen modules')
      copies['frozen modules'] = {
          k: v for k, v in parts.frozen_engine.params.items()
          if k not in parts.params
      }
  copies[f'where it starts from ({", ".join(base)})'] = parts.params
  held = ', '.join(f'{k} {_bytes(v) / 1e6:,.1f} MB' for k, v in copies.items())
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  peak *= 1 if sys.platform == 'darwin' else 1024
  return (
      f'{count:,} parameters, {trained:,} trained; held: {held}; host memory at most'
      f' {peak / 1e6:,.0f} MB so far'
  )


def _bytes(tree: Any) -> int:
  """Bytes of arrays on this process's devices, replicas counted."""
  return sum(
      shard.data.nbytes
      for leaf in jax.tree.leaves(tree)
      for shard in leaf.addressable_shards
  )


def _inputs(parts: system.System) -> dict[str, str]:
  """Digests of what a run reads from files: a resume must find the same."""
  tasks = parts.tasks
  text = repr((tasks.train, tasks.validation, tasks.test))
  return {
      'planner': host_copies.params_digest(parts.params),
      'tasks': hashlib.sha256(
          text.encode('utf-8', 'surrogatepass')
      ).hexdigest(),
  }


def _resume(
    trainer, parts, saved, inputs
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
  parts.sample_from(trainer.params, step)
  logging.info('resuming after step %d', step)
  return run['metrics'], run['seconds'], run.get('pending')


@dataclasses.dataclass
class _Loop:
  """The training steps that are left."""

  parts: system.System
  trainer: trainer_lib.Trainer
  saved: checkpoints.Checkpoints
  log: metrics_lib.MetricsLog
  bar: progress.Progress
  clock: clocks.Clock
  compilations: clocks.Compilations
  evaluations: final.Evaluations
  inputs: dict[str, str]
  elapsed: Callable[[], float]
  watchdog: exits.Watchdog
  profiler: profiling.Profiler
  pending: dict[str, float] | None = None

  async def run(self) -> None:
    """Data, update, evaluation, records, metrics, commit: step by step."""
    config, workdir = self.parts.config, self.evaluations.workdir
    journal = journal_lib.Journal(workdir / 'journal')
    if config.algorithm == 'flow_grpo':
      source = sources.RolloutSource(self.parts, journal)
    else:
      source = sources.TraceSource(self.parts, workdir)
    counter = _Counter(self.bar)
    before = dict(self.clock.seconds)
    processes = self.parts.processes
    for step in range(len(self.log.lines), config.train.steps):
      self.watchdog.begin(f'step {step + 1}')
      self.profiler.begin(step + 1)
      metrics, self.pending = self.pending, None
      if metrics is None:
        sampled = self._sampled()
        with self.clock('rollout'):
          try:
            data = await source.step(step, counter)
          except exits.Preempted:
            await self._commit(step, journal, stops=True)
            raise
        rates = {}
        for name, now in self._sampled().items():
          rates |= engine_rates.rates(sampled[name], now, name)
        metrics = rates | await self._update(step, data)
        if (
            processes.is_primary and data.groups
            and config.train.rollout_records == 'all'
        ):
          with self.clock('records'):
            path = workdir / 'rollouts' / f'step_{step + 1:06d}.p0.jsonl.zst'
            await asyncio.to_thread(
                rollout_files.write, path, data.groups, data.extras
            )
      if _is_due(config, step + 1):
        try:
          metrics |= await self.evaluations.during()
        except exits.Preempted:
          await self._commit(step + 1, journal, stops=True, pending=metrics)
          raise
      now = dict(self.clock.seconds)
      self._log(step + 1, metrics, before, now)
      before = now  # So a commit's seconds are in the next step's line.
      await self._commit(step + 1, journal)
      self.profiler.end(step + 1)
      self.bar.update(step + 1, metrics)

  def _sampled(self) -> dict[str, api.EngineStats]:
    """What the engines have done so far, see engine_rates."""
    engines = {'': self.parts.engine, 'frozen': self.parts.frozen_engine}
    return {k: engine.stats() for k, engine in engines.items() if engine}

  async def _update(self, step, data) -> dict[str, float]:
    """The optimizer updates of a step; the engine then samples from them."""
    if data.groups and not data.metrics['rollouts/scored']:
      raise exits.RunStopped(
          f'none of the {data.metrics["rollouts/requested"]} rollouts of step'
          f' {step + 1} could be scored; the first says:'
          f' {data.groups[0].trajectories[0].detail}'
      )
    with self.clock('update'):
      metrics = await asyncio.to_thread(self._traced_update, step + 1, data)
      config = self.parts.config
      if config.algorithm == 'flow_grpo' or _is_due(config, step + 1):
        await asyncio.to_thread(
            self.parts.sample_from, self.trainer.params, step + 1
        )
    return metrics | data.metrics

  def _traced_update(self, number, data) -> dict[str, float]:
    with jax.profiler.StepTraceAnnotation('update', step_num=number):
      return self.trainer.step(data.mini_batches)

  def _log(self, done, metrics, before, now) -> None:
    spent = {k: v - before.get(k, 0.0) for k, v in now.items()}
    metrics |= {f'seconds/{k}': v for k, v in spent.items() if v > 0}
    # A step that was done before this process has its rates already.
    if 'rollouts/requested' in metrics and spent.get('rollout'):
      metrics['rate/rollouts_per_second'] = (
          metrics['rollouts/requested'] / spent['rollout']
      )
    self.log.add(done, metrics)

  async def _commit(self, done, journal, stops=False, pending=None) -> None:
    """Commits if it is time to, or the run stops here.

    Args:
      done: updates made.
      journal: of finished rollouts.
      stops: whether the run does.
      pending: metrics of the last step, if its evaluation is still to come.
    """
    train = self.parts.config.train
    if done == (self.saved.latest or 0):
      return
    if not stops and done % train.checkpoint_every and done != train.steps:
      return
    # Orbax cuts what is replicated over devices up by small programs.
    with self.clock('checkpoint'), self.compilations.paused():
      await asyncio.to_thread(
          self.saved.save, done, self.trainer.state,
          {
              'steps': done,
              'pending': pending,
              'inputs': self.inputs,
              'metrics': self.log.lines,
              'seconds': {**self.clock.seconds, 'total': self.elapsed()},
          },
      )
      if self.parts.processes.is_primary:
        journal.forget_before(done)


class _Counter:
  """Says now and then how many rollouts of a long collection are done."""

  def __init__(self, bar: progress.Progress):
    self._bar = bar
    self._done = 0
    self._said = time.monotonic()

  def __call__(self, trajectory: records.Trajectory) -> None:
    del trajectory
    self._done += 1
    if time.monotonic() - self._said > 30:
      self._said = time.monotonic()
      self._bar.note(f'{self._done} rollouts done in all')


def _is_due(config, done: int) -> bool:
  """Whether the validation tasks are evaluated after `done` steps."""
  every = config.evaluation.every
  return bool(every) and (done % every == 0 or done == config.train.steps)
