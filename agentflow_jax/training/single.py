"""One evaluation, or one query solved step by step."""

import asyncio
import dataclasses
import hashlib
import json
from collections.abc import Callable
from typing import Literal

from etils import epath

from agentflow_jax import records
from agentflow_jax.agents import judge as judge_lib
from agentflow_jax.agents import recording, rollout
from agentflow_jax.training import config as config_lib
from agentflow_jax.training import benchmark_table
from agentflow_jax.training import collect, evaluation, knobs, progress
from agentflow_jax.training import system, trainer


_MOST_SHOWN = 1000


@dataclasses.dataclass(frozen=True)
class EvaluateOptions:
  """What `evaluate` does.

  Attributes:
    planner: a planner directory; '' for the one below the workdir.
    split: 'validation' or 'test'.
    limit: tasks at most; 0 for all, None for as many as the config says.
    trials: sampled rollouts a task; None for the protocol's, or 1.
    greedy: temperature 0 instead.
    protocol: 'config', or 'paper' for what AgentFlow reports: at most 10 turns,
      temperature 0.7, three trials (arXiv 2510.05592).
    name: of the result file; '' for the benchmark's, or 'evaluation'.
    benchmark: of data/benchmarks.py, several by commas, or 'all' of a directory;
      '' for the config's own tasks.
    data_dir: its file, or a directory of NAME/data.json.
  """

  planner: str = ''
  split: str = 'test'
  limit: int | None = None
  trials: int | None = None
  greedy: bool = False
  protocol: Literal['config', 'paper'] = 'config'
  name: str = ''
  benchmark: str = ''
  data_dir: str = ''

  @property
  def result_name(self) -> str:
    """Of the result file."""
    return self.name or self.benchmark.replace(',', '_') or 'evaluation'


def evaluate(
    config: config_lib.Config, workdir: str, options: EvaluateOptions
) -> str:
  """Evaluates a planner and writes evaluations/NAME.json.

  Returns:
    A line for people.

  Raises:
    ConfigError, CheckpointError, ToolUnavailable: name the remedy.
  """
  config, options = _by_protocol(config, options)
  if options.greedy and options.trials > 1:
    raise config_lib.ConfigError('--greedy trials are all the same: --trials=1')
  if options.benchmark:
    if options.split != 'test':
      raise config_lib.ConfigError('--benchmark has one split: --split=test')
    config = dataclasses.replace(
        config,
        task_set=config_lib.TaskSetConfig(
            kind='benchmark',
            benchmark=options.benchmark,
            evaluation=options.data_dir,
            test_items=0,
        ),
    )
  elif options.data_dir:
    raise config_lib.ConfigError('--data_dir needs --benchmark')
  if options.limit is not None:
    if options.limit < 0:
      raise config_lib.ConfigError(f'--limit must be >= 0: {options.limit}')
    config = dataclasses.replace(
        config,
        task_set=dataclasses.replace(
            config.task_set,
            validation_items=options.limit,
            test_items=options.limit,
        ),
    )
  directory = epath.Path(workdir)
  if options.planner or knobs.uses_engine(config):
    config = _with_planner(
        config, options.planner or str(directory / 'planner')
    )
  return asyncio.run(_evaluate(config, directory, options))


def _by_protocol(
    config: config_lib.Config, options: EvaluateOptions
) -> tuple[config_lib.Config, EvaluateOptions]:
  """Returns both with what the protocol fixes, and a number of trials."""
  if options.trials is not None and options.trials < 1:
    raise config_lib.ConfigError(f'--trials must be >= 1: {options.trials}')
  if options.protocol == 'config':
    return config, dataclasses.replace(options, trials=options.trials or 1)
  if options.greedy:
    raise config_lib.ConfigError('--protocol=paper samples: leave out --greedy')
  config = config_lib.override(config, (
      ('agent.rollout.max_turns', '10'),
      ('planner.sampling.temperature', '0.7'),
  ))
  return config, dataclasses.replace(options, trials=options.trials or 3)


def _journal(parts, workdir, options) -> collect.Journal:
  """Where an evaluation's items are kept until it is done: one of the same kind."""
  same = [config_lib.flatten(parts.config), dataclasses.asdict(options)]
  if parts.params is not None:
    same.append(trainer.params_digest(parts.params))
  text = json.dumps(same, sort_keys=True, default=str)
  name = f'{options.result_name}.{hashlib.sha256(text.encode()).hexdigest()[:16]}'
  return collect.Journal(
      workdir / 'evaluations' / 'journal' / name, keeps_unscored=False
  )


def _has_judge(config: config_lib.Config) -> bool:
  judge = config.evaluation.judge
  return bool(judge.base_url or judge.preset)


async def _evaluate(config, workdir, options) -> str:
  parts = client = None
  try:
    parts = system.build(config, workdir)
    if _has_judge(config):
      client = system.make_client(
          config.evaluation.judge, 'evaluation.judge', parts.agent.recording
      )
    journal = _journal(parts, workdir, options)
    tasks = getattr(parts.tasks, options.split)
    done = 0
    with progress.Progress(len(tasks) * options.trials) as bar:

      def count(trajectory: records.Trajectory) -> None:
        nonlocal done
        del trajectory
        done += 1
        bar.update(done, {})

      result = await evaluation.evaluate(
          parts.agent,
          tasks,
          name=options.result_name,
          split=options.split,
          seed=config.seed,
          processes=parts.processes,
          trials=options.trials,
          greedy=options.greedy,
          concurrent=config.train.concurrent_rollouts,
          journal=journal,
          on_done=count,
      )
    shared = parts.endpoint_usage()
    if client is not None:
      with recording.during(f'judging {result.name}'):
        verdicts = await evaluation.judge(
            judge_lib.Judge(client), result.groups, config.seed,
            config.evaluation.judge.concurrency,
        )
      result = dataclasses.replace(result, verdicts=verdicts)
      shared |= system.usage(client)
    shared |= {
        'protocol': options.protocol,
        'trials': options.trials,
    }
    text = _save(workdir, options, result, parts.tasks.left_out, shared)
    journal.directory.rmtree(missing_ok=True)
  finally:
    if parts is not None:
      await parts.close()
    if client is not None:
      await client.aclose()
  return text


def _save(workdir, options, result, left_out, shared) -> str:
  """Writes the files of an evaluation, or one each benchmark and their table."""
  directory = workdir / 'evaluations'
  if len(left_out) <= 1:
    lacks = sum(left_out.values())
    value = evaluation.save(
        directory, result, {**shared, 'items_left_out': lacks}
    )
    lacking = f' ({lacks} left out: they need more than text)' if lacks else ''
    ended = ', '.join(f'{k} {n}' for k, n in value['status'].items())
    return (
        f'{result.name}: accuracy {result.accuracy:.1%}'
        f' [{value["ci_low"]:.1%}, {value["ci_high"]:.1%}] over'
        f' {value["items_scored"]} scored of {value["items_requested"]} tasks'
        f'{lacking};'
        f' {value["turns_mean"]:.2f} turns,'
        f' {value["tool_error_rate"]:.1%} tool-call errors; ended: {ended}'
        f'{_judged(value)}\n'
        f'{directory / (result.name + ".json")}'
    )
  values = {}
  for name, lacks in left_out.items():
    groups = tuple(g for g in result.groups if g.task.tags['benchmark'] == name)
    of_it = dataclasses.replace(
        result, groups=groups,
        name=f'{options.name}_{name}' if options.name else name,
    )
    # Seconds and requests are those of all together.
    values[name] = evaluation.save(
        directory, of_it, {**shared, 'items_left_out': lacks}
    )
  table = benchmark_table.write(
      workdir, options.name or 'benchmarks', values,
      {**shared, 'seconds': result.seconds},
  )
  return f'{table}\n{workdir / (options.name or "benchmarks")}.html'


def _judged(value) -> str:
  """What a judge said, and why it said nothing of some."""
  if 'judge_accuracy' not in value:
    return ''
  said = '; the judge says'
  if value['judge_accuracy'] is None:
    said += ' nothing'
  else:
    said += (
        f' {value["judge_accuracy"]:.1%} [{value["judge_ci_low"]:.1%},'
        f' {value["judge_ci_high"]:.1%}] over {value["judge_items"]} tasks, and'
        f' differs from the rule in {len(value["judge_differs_from_rule"])}'
    )
  if value['judge_unknown']:
    why = next(
        i['judge_analysis'] for i in value['items']
        if i['judge'] is None and i['judge_analysis']
    )
    said += f'; {value["judge_unknown"]} not judged, the first: {why[:300]}'
  return said


def solve(
    config: config_lib.Config,
    query: str,
    *,
    workdir: str,
    planner: str = '',
    greedy: bool = True,
    emit: Callable[[str], None],
) -> records.Trajectory:
  """Solves one query.

  Args:
    config: the system.
    query: what to ask.
    workdir: where data sets are kept.
    planner: a planner directory; '' for the config's own.
    greedy: temperature 0.
    emit: called with a line or more for people as each module or tool ends.

  Raises:
    ConfigError, CheckpointError, ToolUnavailable: name the remedy.
  """
  if planner:
    config = _with_planner(config, planner)
  return asyncio.run(_solve(config, query, epath.Path(workdir), greedy, emit))


async def _solve(config, query, workdir, greedy, emit) -> records.Trajectory:
  parts = system.build(config, workdir)
  try:
    planner = parts.planner
    if greedy:
      sampling = dataclasses.replace(planner.sampling, temperature=0.0)
      planner = dataclasses.replace(planner, sampling=sampling)
    # There is no right answer to check: the reward is left out.
    agent = dataclasses.replace(
        parts.agent,
        planner=planner,
        reward=_no_reward,
        on_step=lambda name, text: emit(f'{name}: {_shown(text)}'),
    )
    task = records.Task('solve', query, (), '')
    key = records.RequestKey(
        config.seed, records.Purpose.SOLVE, 0, task.id, 0
    )
    emit(f'Query: {query}')
    analysis, failed = await rollout.analyse(agent, task, key)
    if analysis:
      emit(f'analyst: {_shown(analysis)}')
    trajectory = failed or await rollout.rollout(agent, task, key, analysis)
    usage = parts.endpoint_usage()
  finally:
    await parts.close()
  emit(f'Answer: {trajectory.answer or "none"}  ({trajectory.status.value})')
  if trajectory.detail:
    emit(trajectory.detail)
  for name, value in usage.items():
    if value:
      emit(f'{name}: {value:g}')
  return trajectory


async def _no_reward(task: records.Task, answer: str) -> float:
  del task, answer
  return 0.0


def _shown(text: str) -> str:
  """A text for people: further lines below the first, and not all of a book."""
  text = text.strip()
  if len(text) > _MOST_SHOWN:
    text = f'{text[:_MOST_SHOWN]} ... ({len(text):,} characters)'
  return text.replace('\n', '\n  ')


def _with_planner(
    config: config_lib.Config, directory: str
) -> config_lib.Config:
  """The config with the weights of a directory."""
  if not knobs.uses_engine(config):
    raise config_lib.ConfigError(
        '--planner names weights, and no module of this config reads any'
    )
  planner = dataclasses.replace(
      config.planner, directory=directory, model=None
  )
  return dataclasses.replace(config, planner=planner)
