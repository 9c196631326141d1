"""The steps of a run: data, update, evaluation, metrics, commit."""

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import Callable

import jax
from etils import epath

from agentflow_jax import records
from agentflow_jax.assembly import system as system_lib
from agentflow_jax.inference import api, engine as engine_lib
from agentflow_jax.rollouts import journal as journal_lib, rollout_files
from agentflow_jax.runtime import clocks, exits, profiling, progress
from agentflow_jax.training import diagnosis, engine_rates
from agentflow_jax.training import evaluations as evaluations_lib, metrics_log
from agentflow_jax.training import query_lengths, step_costs, step_data
from agentflow_jax.training import trackers as trackers_lib
from agentflow_jax.training import trainer as trainer_lib
from agentflow_jax.weights import checkpoints


@dataclasses.dataclass
class Loop:
  """The training steps that are left."""

  system: system_lib.System
  trainer: trainer_lib.Trainer
  saved: checkpoints.Checkpoints
  log: metrics_log.MetricsLog
  bar: progress.Progress
  clock: clocks.Clock
  compilations: clocks.Compilations
  evaluations: evaluations_lib.Evaluations
  inputs: dict[str, str]
  elapsed: Callable[[], float]
  watchdog: exits.Watchdog
  profiler: profiling.Profiler
  lengths: query_lengths.QueryLengths
  costs: step_costs.Costs
  trackers: trackers_lib.Trackers
  pending: dict[str, float] | None = None
  learned: list[records.Group] | None = None  # See step_data.learned.

  async def run(self) -> None:
    """Data, update, evaluation, records, metrics, commit: step by step."""
    config, workdir = self.system.config, self.evaluations.workdir
    # What no server could sample is sampled when the run goes on.
    journal = journal_lib.Journal(
      workdir / 'journal', keeps_unscored=self.system.model.servers is None
    )
    if config.algorithm != 'sft':
      source = step_data.RolloutSource(
        self.system,
        journal,
        lambda step: rollout_files.read_all(records_of(workdir, step)),
        self.trainer.logprobs_of,
      )
    else:
      source = step_data.TraceSource(self.system, workdir, self.learned)
    counter = _Counter(self.bar)
    before, began = dict(self.clock.seconds), self.elapsed()
    processes = self.system.processes
    # What a process that ended after its commit did not deliver.
    self.trackers.cover(self.log.lines)
    self._stop_if_failing(len(self.log.lines))
    for step in range(len(self.log.lines), config.train.steps):
      self.watchdog.begin(f'step {step + 1}')
      self.profiler.begin(step + 1)
      metrics, self.pending = self.pending, None
      if metrics is None:
        sampled = self._sampled()
        with self.clock('rollout'), self._keeping() as responses:
          try:
            data = await source.step(step, counter)
          except (exits.Preempted, exits.RunStopped):
            await self._commit(step, journal, stops=True)
            raise
        rates = {}
        for name, now in self._sampled().items():
          rates |= engine_rates.rates(sampled[name], now, name)
        metrics = rates | await self._update(step, data)
        metrics |= await asyncio.to_thread(
          self._rates, responses, data.mini_batches, before
        )
        if (
          processes.is_primary and data.groups and config.train.rollout_records == 'all'
        ):
          with self.clock('records'):
            await asyncio.to_thread(
              rollout_files.write,
              records_of(workdir, step),
              data.groups,
              data.extras,
              header=data.header,
            )
      if is_due(config, step + 1):
        try:
          metrics |= await self.evaluations.during()
        except exits.Preempted:
          await self._commit(step + 1, journal, stops=True, pending=metrics)
          raise
      now, ended = dict(self.clock.seconds), self.elapsed()
      dollars = self.costs.dollars(ended - began)
      if dollars is not None:
        metrics['rate/dollars'] = dollars
      self._log(step + 1, metrics, before, now)
      before, began = now, ended  # So a commit's seconds are in the next step's line.
      await self._commit(step + 1, journal, stops=self._is_failing())
      self.profiler.end(step + 1)
      self.bar.update(step + 1, metrics)
      if processes.is_primary:
        for warning in diagnosis.of_step(metrics, config, self.lengths):
          self.bar.warn(f'step {step + 1}: {warning}')
      self._stop_if_failing(step + 1)

  def _sampled(self) -> dict[str, api.EngineStats]:
    """What the engines of this process have done so far, see engine_rates."""
    engines = {'': self.system.model.engine, 'frozen': self.system.model.frozen_engine}
    return {
      name: engine.stats()
      for name, engine in engines.items()
      if isinstance(engine, engine_lib.Engine)
    }

  @contextlib.contextmanager
  def _keeping(self):
    """Yields lists that get what each engine samples, see EngineModel.keeping.

    What servers sample is work of other devices.
    """
    with contextlib.ExitStack() as stack:
      yield [
        stack.enter_context(model.keeping())
        for model in self.system.model.samplers.values()
        if isinstance(model.engine, engine_lib.Engine)
      ]

  def _rates(self, responses, mini_batches, before) -> dict[str, float]:
    """Returns what the rollouts and updates of a step cost; process 0 alone counts."""
    if not self.system.processes.is_primary:
      return {}
    spent = {
      name: self.clock.seconds.get(name, 0.0) - before.get(name, 0.0)
      for name in ('rollout', 'update')
    }
    rates = self.costs.of_update(mini_batches, spent['update'])
    if responses:
      rates |= self.costs.of_rollouts(responses, spent['rollout'])
    return rates

  def _is_failing(self) -> bool:
    most = self.system.config.train.stop_after_failing_steps
    return 0 < most <= diagnosis.failing_steps(self.log.lines)

  def _stop_if_failing(self, done: int) -> None:
    """Raises RunStopped after too many failing steps, if more are to come."""
    if done < self.system.config.train.steps:
      self.refuse_failure()

  def refuse_failure(self) -> None:
    """Raises RunStopped where the last steps failed in one way, too many of them.

    It reads committed records only, so that a run that was resumed stops where the
    same run in one go does.
    """
    if not self._is_failing():
      return
    config = self.system.config
    (*_, said) = diagnosis.of_step(self.log.lines[-1], config, self.lengths)
    raise exits.RunStopped(
      f'after {config.train.stop_after_failing_steps} steps in a row that failed in'
      f' one way; in the last one {said}. Everything is committed. Other values of'
      ' such fields need another --workdir, because the steps here depend on them;'
      ' train.stop_after_failing_steps=0 would go on in this one'
    )

  async def _update(self, step, data) -> dict[str, float]:
    """The optimizer updates of a step; the engine then samples from them."""
    if data.groups and not data.metrics['rollouts/scored']:
      raise exits.RunStopped(
        f'none of the {data.metrics["rollouts/requested"]} rollouts of step'
        f' {step + 1} could be scored; the first says:'
        f' {data.groups[0].trajectories[0].detail}. The same command tries the step'
        ' again'
      )
    config, servers = self.system.config, self.system.model.servers
    with self.clock('update'):
      metrics = await asyncio.to_thread(self._traced_update, step + 1, data)
    # Of an engine in this process it is a part of the update, and takes no time.
    with self.clock('hand_over' if servers else 'update'):
      if config.algorithm != 'sft' or is_due(config, step + 1):
        metrics |= await asyncio.to_thread(
          self.system.model.sample_from, self.trainer.params, step + 1
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
      journal: journal of finished rollouts.
      stops: whether the run does.
      pending: metrics of the last step, if its evaluation is still to come.
    """
    train = self.system.config.train
    if done == (self.saved.latest or 0):
      return
    if not stops and done % train.checkpoint_every and done != train.steps:
      return
    # Orbax cuts what is replicated over devices up by small programs.
    with self.clock('checkpoint'), self.compilations.paused():
      await asyncio.to_thread(
        self.saved.save,
        done,
        self.trainer.state,
        {
          'steps': done,
          'pending': pending,
          'inputs': self.inputs,
          'metrics': self.log.lines,
          'seconds': {**self.clock.seconds, 'total': self.elapsed()},
        },
      )
      if self.system.processes.is_primary:
        journal.forget_before(done)
    for problem in self.trackers.cover(self.log.lines):
      self.bar.warn(problem)


def records_of(workdir: epath.Path, step: int) -> epath.Path:
  """Returns the file of the rollouts of a step, counted from 0."""
  return workdir / 'rollouts' / f'step_{step + 1:06d}.p0.jsonl.zst'


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


def is_due(config, done: int) -> bool:
  """Whether the validation tasks are evaluated after `done` steps."""
  every = config.evaluation.every
  return bool(every) and (done % every == 0 or done == config.train.steps)
