"""The main job: rollouts, updates, evaluations, commits, and the report."""

import asyncio
import contextlib
import json
import resource
import shutil
import sys
import time
from typing import Any

import jax
from absl import logging

from agentflow_jax.assembly import local_model, model_files
from agentflow_jax.assembly import system as system_lib
from agentflow_jax.config import consistency, roles, schema, written
from agentflow_jax.files import reading
from agentflow_jax.inference import engine as engine_lib
from agentflow_jax.report import page as report
from agentflow_jax.runtime import clocks, exits, processes as processes_lib
from agentflow_jax.runtime import profiling, progress, workdirs
from agentflow_jax.serving import agent_server
from agentflow_jax.training import evaluations as evaluations_lib
from agentflow_jax.training import diagnosis, external_probes, loop as loop_lib
from agentflow_jax.training import metrics_log
from agentflow_jax.training import query_lengths, resuming, step_costs, step_data
from agentflow_jax.training import summary as summary_lib, trackers as trackers_lib
from agentflow_jax.training import trainer as trainer_lib
from agentflow_jax.weights import adapter_files, checkpoints, host_copies


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
    config: config to run.
    workdir: work directory of the run, a path or gs:// URL.
    quiet: whether the progress bar is left out.
    step_seconds: time limit of a step, after which the process ends [s]; 0 for none.
    profiled: steps to trace.

  Returns:
    A short table of results for people; machines read summary.json. '' in other
    processes than 0.

  Raises:
    ConfigError, CheckpointError, ToolUnavailable: at start; name the remedy.
    RunStopped: an update was refused, or steps failed, see
      train.stop_after_failing_steps; everything committed stands.
    ProcessFailed: another process did; likewise.
    Preempted: told to stop (SIGTERM); all steps that were done are committed.
    OSError: something cannot be written, see `exits.cause`.
  """
  consistency.check_trains(config)
  trackers_lib.check_installed(config.metrics)
  agent_server.check(config)
  processes = processes_lib.Processes.current()
  directory = processes.together(lambda: workdirs.opened(workdir))
  processes.check_same('the config', written.text(config))
  watchdog = exits.Watchdog(
    step_seconds, f'process {processes.index} of {processes.count}'
  )
  with contextlib.ExitStack() as stack:
    processes.alone(lambda: stack.enter_context(workdirs.locked(directory)))
    resuming.check_shared(directory, processes)
    changes = processes.together(lambda: resuming.check_same_run(config, directory))
    stack.enter_context(contextlib.closing(watchdog))
    profiler = profiling.Profiler(profiled, directory / 'tensorboard', processes.index)
    return asyncio.run(
      _train(config, directory, changes, quiet, processes, watchdog, profiler)
    )


async def _train(config, workdir, changes, quiet, processes, watchdog, profiler) -> str:
  """Build, resume, loop, evaluate, report.

  It is one long function because the order of its steps is what it is about: each needs
  those before it, and `finally` ends them all.
  """
  compilations, clock = clocks.Compilations(), clocks.Clock()
  primary = processes.is_primary
  started = time.monotonic()
  logging.info('devices: %s', jax.devices())
  with clock('setup'):
    system = processes.together(
      lambda: system_lib.build(
        config, workdir, local_model.make_mesh(config), processes
      )
    )
  saved, trackers, is_done = None, trackers_lib.Trackers(), False
  serving = contextlib.AsyncExitStack()
  try:
    if not system.tasks.train:
      raise schema.ConfigError('task_set.train: no training tasks')
    learned = step_data.learned(system, workdir)
    # Not sooner: what is wrong with flags and files is one line.
    progress.say(
      'compiling the programs that sample and train', quiet=quiet or not primary
    )
    with clock('compile'):
      trainer = trainer_lib.Trainer(system)
      system.warmup()
    external_probes.prepare(system, trainer)
    served = await serving.enter_async_context(agent_server.opened(system, workdir))
    saved = checkpoints.Checkpoints(
      workdir / 'checkpoints', config.train.keep_checkpoints
    )
    costs = step_costs.Costs(config, system.model.config, system.model.mesh)
    inputs = resuming.inputs_of(system)
    processes.check_same('the planner or the task set', repr(inputs))
    lines, spent, pending = resuming.restore(trainer, system, saved, inputs)
    gap = await external_probes.begin(system, trainer, len(lines))
    # From here on the workdir is this config's.
    changed, done = [], len(lines) + (pending is not None)
    if primary:
      changed = resuming.write_config(config, workdir, done, changes)
    started -= spent.pop('total', 0.0)
    clock.add(spent)
    bar = progress.Progress(config.train.steps, len(lines), quiet=quiet or not primary)
    lengths = _lengths(system)
    for note in (
      _resumed(done, config.train.steps),
      *changed,
      _held(trainer, system),
      *gap,
      *system.notices(),
      *filter(None, (served,)),
      _peak(costs),
    ):
      bar.note(note)
    for warning in _warnings_at_start(config, lengths) if primary else ():
      bar.warn(warning)
    log = metrics_log.MetricsLog(
      workdir, lines, 'tensorboard' in config.metrics.trackers, writes=primary
    )
    if primary:
      trackers = trackers_lib.of_run(
        config, workdir, lambda step: loop_lib.records_of(workdir, step)
      )
    evaluations = evaluations_lib.Evaluations(system, workdir, bar, clock)
    with contextlib.closing(bar), contextlib.closing(log):
      warm = compilations.count
      # Until here a signal ends the process: nothing was done.
      processes.listen()
      await _evaluate_start(system, trainer, evaluations, done)
      loop = loop_lib.Loop(
        system,
        trainer,
        saved,
        log,
        bar,
        clock,
        compilations,
        evaluations,
        inputs,
        lambda: time.monotonic() - started,
        watchdog,
        profiler,
        lengths,
        costs,
        trackers,
        pending,
        learned,
      )

      def warnings():
        return diagnosis.of_run(log.lines, config, lengths)

      try:
        with profiler.running():
          await loop.run()
      except exits.RunStopped:
        if primary and log.lines:
          _report_anyway(workdir, warnings(), bar)
        raise
      watchdog.rest()
      params = trainer.params
      system.model.sample_from(params, config.train.steps)
      await evaluations.final(system.model.params, params)
      compiled = compilations.count - warm
    params = host_copies.gather_to_host(params)
    adapters = None
    if config.planner.lora.rank:
      adapters = host_copies.gather_to_host(trainer.state.params)
    usage = _summed(processes, system.endpoint_usage())

    clock.seconds['total'] = time.monotonic() - started
    facts = {'compiles/after_warmup': compiled, 'warnings': warnings(), **usage}
    facts |= _costs_said(costs, clock.seconds['total'])
    table = (
      processes.alone(
        lambda: _write_results(
          system, workdir, params, adapters, log.lines, clock.seconds, facts
        )
      )
      or ''
    )
    loop.refuse_failure()  # After a last step that failed, all else is written.
    is_done = True
    return table
  finally:
    processes.deafen()
    for problem in trackers.close(is_done):
      bar.warn(problem)
    try:
      if saved is not None:
        saved.close()
    finally:
      try:
        await serving.aclose()
      finally:
        await system.close()


def _lengths(system: system_lib.System) -> query_lengths.QueryLengths:
  """Returns the lengths of prompts that hold nothing but a query of training."""
  if system.config.agent.kind != 'modules':
    return query_lengths.QueryLengths()  # What others write around queries is theirs.
  environment = system.agent.environment
  return query_lengths.measure(
    system.planner,
    system.agent.cards,
    system.tasks.train,
    system.agent.start_memory,
    environment.cards if environment else (),
  )


async def _evaluate_start(system, trainer, evaluations, done: int) -> None:
  """Evaluates the planner that the run starts from, if that is still to be done."""
  if not done:
    await evaluations.start()
  elif evaluations.lacks_start():  # A resume asked for it.
    system.model.sample_from(system.model.params, 0)
    await evaluations.start()
    system.model.sample_from(trainer.params, done)


def _costs_said(costs: step_costs.Costs, seconds: float) -> dict[str, Any]:
  """Returns what summary.json says of the peak and the price of a run."""
  dollars = costs.dollars(seconds)
  return {
    'peak/flops_per_device': costs.peak.flops,
    'peak/source': costs.peak.source,
    **({} if dollars is None else {'dollars': dollars}),
  }


def _write_results(system, workdir, params, adapters, lines, seconds, facts) -> str:
  """Writes planner, summary and report of a run that is done; returns a table."""
  model_files.Model(
    system.model.config, params, system.model.tokenizer, system.model.described
  ).save(str(workdir / 'planner'), system.model.config.param_dtype)
  if adapters is not None:
    adapter_files.save(
      workdir / adapter_files.DIRECTORY,
      system.model.config,
      system.config.planner.lora,
      adapters,
      base=system.config.planner.directory,
    )
  summary = summary_lib.write(
    system.config,
    workdir,
    lines,
    seconds,
    {'params_digest': host_copies.params_digest(params), **facts},
  )
  summary_lib.write_card(workdir / 'planner', summary)
  page = report.write_report(str(workdir), summary['warnings'])
  lines = [report.terminal_table(str(workdir)), '']
  if (workdir / 'tensorboard').exists():
    # The program that shows the files is no dependency: only their writer is.
    missing = shutil.which('tensorboard') is None
    install = '   (pip install tensorboard)' if missing else ''
    lines.append(
      f'TensorBoard: tensorboard --logdir={workdir / "tensorboard"}{install}'
    )
  return '\n'.join([*lines, f'Report: {page}'])


def _report_anyway(workdir, warnings, bar) -> None:
  """Writes the report of a run that stopped; the reason to stop is what counts."""
  try:
    report.write_report(str(workdir), warnings)
  except (reading.FileError, OSError) as e:
    bar.warn(f'there is no report: {e}')


def _resumed(done: int, steps: int) -> str:
  """Says where a run goes on."""
  if not done:
    return f'starting: {steps} steps'
  if done >= steps:
    return f'finished before: {done} of {steps} steps; evaluating'
  return f'resuming after step {done} of {steps}'


def _peak(costs: step_costs.Costs) -> str:
  """Says what the utilisation in metrics.jsonl is a share of."""
  return (
    f'utilisation (rate/.../mfu) is a share of {costs.peak.flops:.3g} FLOP/s a'
    f' device ({costs.peak.source})'
  )


def _summed(processes, usage: dict[str, float]) -> dict[str, float]:
  """Adds up what the processes' endpoints came to."""
  everything = [
    json.loads(data) for data in processes.exchange(json.dumps(usage).encode())
  ]
  names = sorted({name for one in everything for name in one})
  return {n: sum(one.get(n, 0.0) for one in everything) for n in names}


def _warnings_at_start(
  config: schema.Config, lengths: query_lengths.QueryLengths
) -> list[str]:
  """Returns what a user should know before the first step."""
  found = []
  if config.train.extra_rollouts:
    found.append(
      f'train.extra_rollouts={config.train.extra_rollouts}: the clock decides which'
      ' late rollouts are aborted, so this run cannot be repeated exactly'
    )
  total, updates = config.optimizer.total_steps, config.train.steps
  if config.algorithm == 'flow_grpo':
    updates *= config.train.mini_batches
  if total is not None and updates > total and config.algorithm != 'none':
    found.append(
      f'{config.train.steps} steps make {updates} updates, and the learning rate is'
      f' 0 after the first {total} (optimizer.total_steps)'
    )
  if lengths.too_long:
    found.append(lengths.said())
  if roles.samples_outside(config):
    found.append(
      'planner.sampler=external: a run that goes on takes the rollouts that were'
      ' finished from its journal, and samples the others anew; servers may sample'
      ' them otherwise, so it does not end in the same bits'
    )
  return found


def _held(trainer: trainer_lib.Trainer, system: system_lib.System) -> str:
  """Says what the run keeps on this process's devices, and took on its host."""
  count = sum(x.size for x in jax.tree.leaves(system.model.params))
  trained = sum(x.size for x in jax.tree.leaves(trainer.state.params))
  base = ['frozen planner']
  if system.config.planner.lora.rank:
    base.insert(0, 'base of the adapters')
  if system.config.algorithm == 'flow_grpo' and system.config.flow_grpo.kl_coef:
    base.insert(0, 'reference')
  copies = {'trained parameters and optimizer': trainer.state}
  if isinstance(system.model.engine, engine_lib.Engine):
    copies['sampler'] = system.model.engine.params
  if system.model.frozen_engine is not None:
    copies['frozen modules'] = system.model.frozen_engine.params
    if system.model.handover is None:
      # They share these arrays, except for layers that they read apart.
      base.append('frozen modules')
      copies['frozen modules'] = {
        k: v
        for k, v in system.model.frozen_engine.params.items()
        if k not in system.model.params
      }
  copies[f'where it starts from ({", ".join(base)})'] = system.model.params
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
