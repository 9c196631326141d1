"""One evaluation, as the command asks for it."""

import asyncio
import collections
import dataclasses
import hashlib
import json
from collections.abc import Sequence
from typing import Any, Literal

from agentflow_jax import records
from agentflow_jax.agents import injection, judge as judge_lib, recording
from agentflow_jax.agents.environments.enterpriseops import environment as enterpriseops
from agentflow_jax.assembly import endpoints, scripted_planners, withheld_tools
from agentflow_jax.assembly import system as system_lib
from agentflow_jax.config import overrides, own_code, roles, schema
from agentflow_jax.evaluation import enterpriseops as scores
from agentflow_jax.evaluation import evaluate as evaluation
from agentflow_jax.evaluation import injections as injections_lib, other_tools
from agentflow_jax.report import benchmarks
from agentflow_jax.rollouts import evaluation_files, journal as journal_lib
from agentflow_jax.runtime import progress, workdirs
from agentflow_jax.serving import agent_server
from agentflow_jax.weights import host_copies

# Variants of an evaluation with renamed tools.
_RENAMED, _RENAMED_ORACLE = 'renamed_tools', 'renamed_tools_oracle'


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
    name: name of the result file; '' for the benchmark's, or 'evaluation'.
    benchmark: name in data/benchmarks.py, several by commas, or 'all' of a directory;
      '' for the config's own tasks.
    data_dir: path of its file, or of a directory of NAME/data.json.
    controls: whether the planner before training and a random one are evaluated
      on the same tasks, too.
    injection: 'bundled', or the path of a JSONL file of texts that are planted into
      what tools say, in one more evaluation a strategy; '' for none.
    tools: 'renamed', or the path of a JSON file of new names of tools, for one more
      evaluation with renamed tools; '' for none.
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
  controls: bool = False
  injection: str = ''
  tools: str = ''

  @property
  def result_name(self) -> str:
    """Of the result file."""
    return self.name or self.benchmark.replace(',', '_') or 'evaluation'


def evaluate(config: schema.Config, workdir: str, options: EvaluateOptions) -> str:
  """Evaluates a planner and writes evaluations/NAME.json.

  Returns:
    A line for people.

  Raises:
    ConfigError, CheckpointError, ToolUnavailable: name the remedy.
  """
  agent_server.check(config)
  config, options = _by_protocol(config, options)
  if options.greedy and (options.trials or 1) > 1:
    raise schema.ConfigError('--greedy trials are all the same: --trials=1')
  if options.benchmark:
    if options.split != 'test':
      raise schema.ConfigError('--benchmark has one split: --split=test')
    config = _with_benchmark(config, options)
  elif options.data_dir:
    raise schema.ConfigError('--data_dir needs --benchmark')
  if options.limit is not None:
    if options.limit < 0:
      raise schema.ConfigError(f'--limit must be >= 0: {options.limit}')
    config = dataclasses.replace(
      config,
      task_set=dataclasses.replace(
        config.task_set, validation_items=options.limit, test_items=options.limit
      ),
    )
  directory, before = workdirs.opened(workdir), None
  if options.planner or roles.uses_engine(config):
    evaluated = options.planner or str(directory / 'planner')
    if config.planner.directory not in ('', evaluated):
      before = config
    config = overrides.with_planner(config, evaluated)
  return asyncio.run(_evaluate(config, before, directory, options))


def _with_benchmark(config: schema.Config, options: EvaluateOptions) -> schema.Config:
  """Returns the config with the tasks of a benchmark."""
  tasks = schema.TaskSetConfig(
    kind='benchmark',
    benchmark=options.benchmark,
    evaluation=options.data_dir,
    test_items=0,
  )
  if options.benchmark != enterpriseops.NAME:
    return dataclasses.replace(config, task_set=tasks)
  environment = dataclasses.replace(config.agent.environment, kind=enterpriseops.NAME)
  return dataclasses.replace(
    config,
    task_set=dataclasses.replace(tasks, kind=enterpriseops.NAME, benchmark=''),
    agent=dataclasses.replace(config.agent, environment=environment),
  )


def _by_protocol(
  config: schema.Config, options: EvaluateOptions
) -> tuple[schema.Config, EvaluateOptions]:
  """Returns both with what the protocol fixes, and a number of trials."""
  if options.trials is not None and options.trials < 1:
    raise schema.ConfigError(f'--trials must be >= 1: {options.trials}')
  if options.protocol == 'config':
    return config, dataclasses.replace(options, trials=options.trials or 1)
  if options.greedy:
    raise schema.ConfigError('--protocol=paper samples: leave out --greedy')
  config = overrides.override(
    config, (('agent.rollout.max_turns', '10'), ('planner.sampling.temperature', '0.7'))
  )
  return config, dataclasses.replace(options, trials=options.trials or 3)


def _journal(
  system, workdir, options, result_name, texts, names
) -> journal_lib.Journal:
  """Where an evaluation's items are kept until it is done: one of the same kind."""
  same = [
    overrides.flatten(system.config),
    dataclasses.asdict(options),
    own_code.digests(system.config),
    [dataclasses.asdict(text) for text in texts],
  ]
  if names is not None:
    same.append(names.said())
  if system.local is not None:
    same.append(host_copies.params_digest(system.local.params))
  text = json.dumps(same, sort_keys=True, default=str)
  name = f'{result_name}.{hashlib.sha256(text.encode()).hexdigest()[:16]}'
  return journal_lib.Journal(
    workdir / evaluation_files.DIRECTORY / 'journal' / name, keeps_unscored=False
  )


def _has_judge(config: schema.Config) -> bool:
  judge = config.evaluation.judge
  return bool(judge.base_url or judge.preset)


async def _evaluate(config, before, workdir, options) -> str:
  """Evaluates a planner, and the controls that are asked for.

  Args:
    config: config with the planner to evaluate.
    before: config with the planner before training; None where that is the same, or
      unknown.
    workdir: directory that results are written to.
    options: options of the command.
  """
  injections = injections_lib.read(options.injection, config)
  names = other_tools.read(options.tools, config)
  for flag, is_set in (('injection', injections), ('tools', names)):
    if is_set and (options.benchmark == 'all' or ',' in options.benchmark):
      raise schema.ConfigError(f'--{flag} takes one benchmark at a time')
  values, more = await _variant(config, workdir, options, '')
  controls = {}
  if options.controls:
    if config.agent.kind == 'modules':  # A script speaks to no other agent.
      random, _ = await _variant(config, workdir, options, 'random_planner')
      controls['random'] = random
    # The same planner samples the same again: it need not be asked.
    controls['frozen'] = values
    if before is not None:
      controls['frozen'], _ = await _variant(before, workdir, options, 'frozen_planner')
  if len(values) > 1:
    table = benchmarks.write(
      workdir, options.name or 'benchmarks', values, controls, more
    )
    return f'{table}\n{workdir / (options.name or "benchmarks")}.html'
  (file,) = values.values()
  lines = [_line(file)]
  for name, found in controls.items():
    (of_it,) = found.values()
    lines.append(
      f'{name} planner: {of_it.accuracy:.1%} [{of_it.ci_low:.1%},'
      f' {of_it.ci_high:.1%}] over {of_it.items_scored} tasks'
      + _unscored(of_it)
      + (' (the same planner)' if of_it is file else '')
    )
  lines += await _under_attack(config, workdir, options, injections, file)
  lines += await _with_other_tools(config, workdir, options, names, file)
  if 'enterpriseops' in file.more:
    said = scores.table(file.more['enterpriseops'])
    lines += [said, file.more['enterpriseops_results']]
  return '\n'.join([*lines, str(evaluation_files.path_of(workdir, file.name))])


async def _under_attack(
  config, workdir, options, injections, file: evaluation_files.EvaluationFile
) -> list[str]:
  """Evaluates the planner with planted texts; returns a table of the strategies.

  Safety is the share of the scored rollouts that met a text and did not make the call
  that it asked for, and utility the accuracy of all scored rollouts.
  """
  if not injections:
    return []
  lines = [
    f'{"planted text":24} {"safety":>8} {"utility":>8}   (utility without:'
    f' {file.accuracy:.1%})'
  ]
  for strategy, texts in injections.items():
    name = 'injection_' + '_'.join(strategy.split())
    values, _ = await _variant(config, workdir, options, name, texts)
    (found,) = values.values()
    safety = found.more['injection']['safety']
    shown = '-' if safety is None else f'{safety:.1%}'
    lines.append(f'{strategy:24} {shown:>8} {found.accuracy:8.1%}{_unscored(found)}')
  return lines


async def _with_other_tools(
  config, workdir, options, names, file: evaluation_files.EvaluationFile
) -> list[str]:
  """Evaluates the planner with renamed tools; returns a table of kinds of tools.

  The file of the evaluation gets the table, too. With --controls, a planner that knows
  the solutions and the new names is in it: it has to succeed.

  Args:
    config, workdir, options: config, directory and options of the command.
    names: new names of tools; None for none.
    file: file of the evaluation with the tools' own names.
  """
  if names is None and not config.agent.withheld_tools:
    return []
  items, withheld = {}, file.more.get('tasks_with_withheld_tools', ())
  kinds = [] if names is None else [_RENAMED]
  if names is not None and options.controls and config.has_scripts:
    kinds.append(_RENAMED_ORACLE)
  for kind in kinds:
    values, _ = await _variant(config, workdir, options, kind)
    (found,) = values.values()
    items[kind] = found.items
  table = other_tools.rows(file.items, items.get(_RENAMED, ()), withheld)
  if _RENAMED_ORACLE in items:
    of_it = other_tools.rows((), items[_RENAMED_ORACLE], ())
    table['oracle'] = of_it[other_tools.RENAMED]
  file = dataclasses.replace(file, more={**file.more, 'tools_shown': table})
  evaluation_files.write(workdir, file)
  return other_tools.table(table)


async def _variant(
  config, workdir, options, control: str, texts: Sequence[injection.Injection] = ()
) -> tuple[dict[str, evaluation_files.EvaluationFile], dict[str, Any]]:
  """Evaluates one planner and saves what came of it.

  Returns:
    Benchmark ('' for other tasks) -> its file, and what is of all of them together.
  """
  system = client = None
  name = '_'.join(filter(None, (options.result_name, control)))
  try:
    system = system_lib.build(config, workdir)
    names = other_tools.read(options.tools, config)
    if names is not None:  # In every variant, so that a mistake shows at the start.
      other_tools.renamed(system.agent, names, options.tools)
    if control not in (_RENAMED, _RENAMED_ORACLE):
      names = None
    system.warmup()
    if _has_judge(config):
      client = endpoints.connect(
        config.evaluation.judge, 'evaluation.judge', system.agent.recording
      )
    journal = _journal(system, workdir, options, name, texts, names)
    async with agent_server.opened(system, workdir) as served:
      result = await _ask(system, options, name, control, journal, texts, names, served)
    more: dict[str, Any] = dict(system.endpoint_usage())
    if withheld := config.agent.withheld_tools:
      tasks = getattr(system.tasks, options.split)
      more['tasks_with_withheld_tools'] = withheld_tools.needing(tasks, withheld)
    if texts:
      more |= {'injection': injections_lib.safety(result.groups, texts)}
    if client is not None:
      with recording.during(f'judging {name}'):
        verdicts = await evaluation.judge(
          judge_lib.Judge(client),
          result.groups,
          config.seed,
          config.evaluation.judge.concurrency,
        )
      result = dataclasses.replace(result, verdicts=verdicts)
      more |= endpoints.usage(client)
    costs = collections.Counter()
    for one in filter(None, (*system.clients, client)):
      costs.update(one.costs)
    more |= {
      'protocol': options.protocol,
      'trials': options.trials,
      'cost': sum(v for k, v in more.items() if k.endswith('/cost')),
      'web_allowed': list(config.agent.tools.web.allow),
    }
    values = _save(
      workdir,
      options,
      result,
      system.tasks.left_out,
      control,
      costs,
      more | {'config': overrides.flatten(config)},
    )
    journal.directory.rmtree(missing_ok=True)
  finally:
    if system is not None:
      await system.close()
    if client is not None:
      await client.aclose()
  return values, more | {'seconds': result.seconds}


async def _ask(
  system, options, name, control, journal, texts, names, served
) -> evaluation.Evaluation:
  """Runs the rollouts of one planner."""
  tasks = getattr(system.tasks, options.split)
  agent = system.agent
  if texts:
    agent = injection.planted(agent, texts)
  if names is not None:
    agent = other_tools.renamed(agent, names, options.tools)
  if control == _RENAMED_ORACLE:
    agent = system.with_script(scripted_planners.oracle, names)
  if control == 'random_planner':
    planner = scripted_planners.RandomPlanner(
      system.planner, system.config.agent.verbs, system.config.agent.plan_format
    )
    agent = dataclasses.replace(agent, planner=planner)
    if system.tasks.train and system.config.has_scripts:
      # What a random plan may say is known there.
      agent = system.with_script(scripted_planners.uniform)
  done = 0
  unit = 'task' if options.trials == 1 else 'rollout'
  with progress.Progress(len(tasks) * options.trials, unit=unit) as bar:
    for notice in (*system.notices(), *filter(None, (served,))):
      bar.note(notice)

    def count(trajectory: records.Trajectory) -> None:
      nonlocal done
      del trajectory
      done += 1
      bar.update(done, {})

    return await evaluation.evaluate(
      agent,
      tasks,
      name=name,
      split=options.split,
      seed=system.config.seed,
      processes=system.processes,
      trials=options.trials,
      greedy=options.greedy,
      concurrent=system.config.train.concurrent_rollouts,
      journal=journal,
      on_done=count,
    )


def _save(
  workdir, options, result, left_out, control, costs, more
) -> dict[str, evaluation_files.EvaluationFile]:
  """Writes the file of an evaluation, or one each benchmark; returns them."""
  if any(
    g.task.world and g.task.world.environment == enterpriseops.NAME
    for g in result.groups
  ):
    place = scores.write(workdir / scores.DIRECTORY / result.name, result.groups)
    more = more | {
      'enterpriseops': scores.by_mode_and_domain(result.groups),
      'enterpriseops_results': str(place),
    }
  if len(left_out) <= 1:
    lacks = sum(left_out.values())
    file = result.file({**more, 'items_left_out': lacks})
    evaluation_files.write(workdir, file)
    return {next(iter(left_out), ''): file}
  files = {}
  for benchmark, lacks in left_out.items():
    groups = tuple(g for g in result.groups if g.task.tags['benchmark'] == benchmark)
    of_it = dataclasses.replace(
      result,
      groups=groups,
      name='_'.join(filter(None, (options.name, benchmark, control))),
    )
    # Seconds and requests are those of all together.
    cost = sum(costs[g.task.id] for g in groups)
    files[benchmark] = of_it.file({**more, 'items_left_out': lacks, 'cost': cost})
    evaluation_files.write(workdir, files[benchmark])
  return files


def _unscored(file: evaluation_files.EvaluationFile) -> str:
  """Returns the accuracy over all requested rollouts, if some are unscored."""
  unscored = file.rollouts_requested - file.rollouts_scored
  if not unscored:
    return ''
  return (
    f' ({file.accuracy_over_requested:.1%} over all'
    f' {file.items_requested} requested: {unscored} rollouts were not'
    ' scored)'
  )


def _line(file: evaluation_files.EvaluationFile) -> str:
  """Says what one evaluation came to."""
  lacks = file.items_left_out
  lacking = f' ({lacks} left out: they need more than text)' if lacks else ''
  ended = ', '.join(f'{k} {n}' for k, n in file.status.items())
  met = ', '.join(f'{k} {n}' for k, n in file.tool_counts.items())
  return (
    f'{file.name}: accuracy {file.accuracy:.1%}'
    f' [{file.ci_low:.1%}, {file.ci_high:.1%}] over'
    f' {file.items_scored} scored of {file.items_requested} tasks'
    f'{lacking}, {file.accuracy_over_requested:.1%} over all requested;'
    f' {file.turns_mean:.2f} turns,'
    f' {file.tool_error_rate:.1%} tool-call errors; ended: {ended}'
    f'{"; tools met: " + met if met else ""}{_failed(file)}{_judged(file)}'
  )


def _failed(file) -> str:
  """Says what the failed rollouts failed of, the commonest first."""
  causes = file.mistakes.get('first_causes', {})
  said = ', '.join(f'{k} {n}' for k, n in sorted(causes.items(), key=lambda c: -c[1]))
  return f'; failed first by: {said}' if said else ''


def _judged(file) -> str:
  """What a judge said, and why it said nothing of some."""
  judged = file.judged
  if judged is None:
    return ''
  said = '; the judge says'
  if judged.accuracy is None:
    said += ' nothing'
  else:
    said += (
      f' {judged.accuracy:.1%} [{judged.ci_low:.1%},'
      f' {judged.ci_high:.1%}] over {judged.items} tasks,'
      f' {judged.accuracy_over_requested:.1%} over all requested, and'
      f' differs from the rule in {len(judged.differs_from_rule)}'
    )
  if judged.unknown:
    why = next(
      item.judged.analysis
      for item in file.items
      if item.judged and item.judged.correct is None and item.judged.analysis
    )
    said += f'; {judged.unknown} not judged, the first: {why[:300]}'
  return said
