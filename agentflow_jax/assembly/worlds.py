"""Makes the environment of a run, which opens the worlds of its tasks."""

import asyncio
import dataclasses
import pathlib
from concurrent import futures
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from absl import logging

from agentflow_jax import records
from agentflow_jax.agents import language_model, modules, own_functions
from agentflow_jax.agents import recording as recording_lib
from agentflow_jax.agents.environments import answer_judge, base
from agentflow_jax.agents.environments.programs import environment as programs
from agentflow_jax.agents.environments.programs import monty_sessions
from agentflow_jax.agents.environments.programs import replayed_sessions, sessions
from agentflow_jax.agents.environments.desk import environment as desk
from agentflow_jax.agents.environments.enterpriseops import environment as enterpriseops
from agentflow_jax.agents.environments.openenv import environment as openenv
from agentflow_jax.agents.environments.own import environment as own
from agentflow_jax.agents.environments.sqlite import environment as sqlite
from agentflow_jax.agents.tools import base as tools_base
from agentflow_jax.agents.tools.python import sandbox
from agentflow_jax.assembly import call_solutions, endpoints, task_sets
from agentflow_jax.config import own_code, schema

# Largest number of concurrent calls of a class, and of requests to servers.
_CALLS, _REQUESTS = 4, 32
# Warnings that are shown; the others are counted.
_SHOWN = 3
# Tasks whose solutions are played for the texts that a tokenizer is trained on.
_PLAYED = 400


@dataclasses.dataclass(frozen=True)
class Vocabulary:
  """What a tokenizer that is trained for a run should know of its worlds.

  Attributes:
    texts: policies, plans and results of tools.
    symbols: texts that become one token each: names of tools and arguments.
  """

  texts: tuple[str, ...]
  symbols: tuple[str, ...]


def make(
  config: schema.Config,
  tasks: task_sets.TaskSet,
  recording: recording_lib.Recording | None,
  processes: int,
  clients: list[Any],
  directory: str = '',
) -> base.Environment | None:
  """Returns the environment of a config, with all tasks checked; None without one.

  Args:
    config: config of the run.
    tasks: tasks of the run, each with a world where there is an environment.
    recording: recording of the judge's ratings; None for none.
    processes: number of processes that share limits of hosts.
    clients: list that the judge's client is added to; its maker has to close it.
    directory: local directory of this process, in which an environment may keep what
      the next run has to know; '' for none.

  Raises:
    ConfigError: a task cannot be opened or verified, or the environment cannot hold
      as many episodes as there are concurrent rollouts; names the remedy.
  """
  settings = config.agent.environment
  if not settings.kind:
    return None
  every = (*tasks.train, *tasks.validation, *tasks.test)
  if own_code.is_own(settings.kind):
    return _own_tried(settings, every)
  if settings.kind == openenv.NAME:
    return _openenv_tried(config, every)
  judge = None
  if settings.judge.base_url or settings.judge.preset:
    model = endpoints.connect(
      settings.judge, 'agent.environment.judge', recording, processes
    )
    clients.append(model)
    judge = answer_judge.AnswerJudge(model)
  if settings.kind == enterpriseops.NAME:
    _check_servers(settings, every)
    environment: base.Environment = enterpriseops.EnterpriseOps(
      settings.seeds,
      dict(one.split('=', 1) for one in settings.servers),
      judge=judge,
      seconds=settings.seconds,
      concurrency=settings.concurrency or _REQUESTS,
      journal=pathlib.Path(directory) if directory else None,
    )
  else:
    environment = desk.make(
      sqlite.seeds_below(tasks.worlds),
      tier=config.task_set.tier,
      judge=judge,
      faults=settings.faults,
    )
  _check_capacity(environment, config)
  _check(environment, every)
  if judge is not None and not any(
    check.kind == 'response' for task in every for check in task.its_world.checks
  ):
    raise schema.ConfigError(
      'agent.environment.judge is set, and no task has a check of kind "response"'
    )
  return environment


def of_rows(kind: str) -> str:
  """Returns the environment whose episodes the user's own rows begin; '' for none.

  Args:
    kind: kind of the environment, as in agent.environment.kind.
  """
  if own_code.is_own(kind):
    return own_code.parse(kind, 'agent.environment.kind').name
  return kind if kind == openenv.NAME else ''


def _own_tried(
  settings: schema.EnvironmentConfig, tasks: Sequence[records.Task]
) -> base.Environment:
  """Returns the environment of a user's own class, after a trial of it."""
  _check(_own(settings), tasks)
  _try_episode(lambda: _own(settings), tasks[0])
  # What the trial made, such as a client, is of an event loop that has ended.
  own_functions.forget(own_code.parse(settings.kind, 'agent.environment.kind').path)
  return _own(settings)


def _openenv_tried(
  config: schema.Config, tasks: Sequence[records.Task]
) -> base.Environment:
  """Returns the environment of a server of OpenEnv, after a trial of it."""
  settings = config.agent.environment
  environment = openenv.OpenEnv(
    settings.url,
    capacity=settings.capacity,
    seconds=settings.seconds,
    total=settings.total,
  )
  _check_capacity(environment, config)
  _check(environment, tasks)
  _try_episode(
    lambda: openenv.OpenEnv(settings.url, seconds=settings.seconds), tasks[0]
  )
  return environment


def _check_servers(
  settings: schema.EnvironmentConfig, tasks: Sequence[records.Task]
) -> None:
  """Refuses the address of a server that no task has."""
  known = {
    server['name'] for task in tasks for server in task.its_world.state['servers']
  }
  for one in settings.servers:
    name, _, _ = one.partition('=')
    if name not in known:
      raise schema.ConfigError(
        f'agent.environment.servers: no task has a server {name!r}; there are'
        f' {", ".join(sorted(known))}'
      )


def _own(settings: schema.EnvironmentConfig) -> own.OwnEnvironment:
  """Returns the environment of a user's own class."""
  name = own_code.parse(settings.kind, 'agent.environment.kind')
  try:
    return own.OwnEnvironment(
      name.path,
      name.name,
      seconds=settings.seconds,
      concurrency=settings.concurrency or _CALLS,
    )
  except own_functions.LoadError as e:
    raise schema.ConfigError(f'agent.environment.kind: {e}') from e


def _try_episode(make_one: Callable[[], base.Environment], task: records.Task) -> None:
  """Begins and judges one episode of an environment that is not ours.

  Raises:
    ConfigError: it failed, so that a mistake shows before anything compiles.
  """

  async def tried():
    # Its processes and sockets are of one event loop, so it is not the run's.
    environment = make_one()
    key = records.RequestKey(0, records.Purpose.EVALUATE, 0, task.id, 0)
    try:
      episode = await environment.open(task, key)
      await episode.verify(records.Ending(records.Status.OUT_OF_TURNS))
      await episode.close()
    finally:
      await environment.close()

  with futures.ThreadPoolExecutor(1) as pool:  # A loop may be running here.
    try:
      pool.submit(asyncio.run, tried()).result()
    except (base.Unreachable, language_model.Unreachable) as e:
      raise schema.ConfigError(f'agent.environment: task {task.id!r}: {e}') from e


def with_programs(
  config: schema.Config,
  environment: base.Environment | None,
  tools: Mapping[str, tools_base.Tool],
  recording: recording_lib.Recording | None,
) -> programs.CodeEnvironment:
  """Returns an environment in which programs call the tools of another one.

  Args:
    config: config of the run, with a sandbox in agent.code.
    environment: environment of the tasks' worlds; None where they have none.
    tools: tools without state; the environment closes them.
    recording: recording of their results; None for none.

  Raises:
    ToolUnavailable: the sandbox does not work on this machine; names the remedy.
    ConfigError: a tool has a name that no function of a program can have.
  """
  settings = config.agent.code
  inner = environment.cards if environment is not None else ()
  try:
    programs.check_functions([*tools, *(card.name for card in inner)])
  except ValueError as e:
    raise schema.ConfigError(f'agent.code: {e}') from e
  limits = sessions.Limits(
    sandbox.Limits(
      cpu_seconds=settings.seconds,
      wall_seconds=3 * settings.seconds,
      output_bytes=settings.output_bytes,
    ),
    settings.state_bytes,
    settings.calls,
  )
  make = (
    monty_sessions.MontySessions
    if settings.sandbox == 'monty'
    else replayed_sessions.ReplayedSessions
  )
  return programs.CodeEnvironment(make(limits), limits, environment, tools, recording)


def check_names(environment: base.Environment | None, tools: Iterable[str]) -> None:
  """Raises ConfigError where a tool without state has the name of a world's tool."""
  if environment is None:
    return
  cards = environment.cards
  taken = {card.name for card in cards} & set(tools)
  if taken:
    raise schema.ConfigError(
      f'agent.tools: {environment.name} has a tool {min(taken)!r}, too: give yours'
      ' another name, or take it out'
    )


def _check_capacity(environment: base.Environment, config: schema.Config) -> None:
  capacity, wanted = environment.capacity, config.train.concurrent_rollouts
  if capacity is not None and capacity < wanted:
    raise schema.ConfigError(
      f'{environment.name} opens {capacity} episodes at once in a process, and'
      f' train.concurrent_rollouts is {wanted}: rollouts would wait within their'
      f' deadline; set train.concurrent_rollouts={capacity}'
    )


def _check(environment: base.Environment, tasks: Sequence[records.Task]) -> None:
  """Checks tasks and warns of what their checks do not tell apart."""
  warnings = []
  for task in {task.id: task for task in tasks}.values():
    if task.world is None or task.world.environment != environment.name:
      raise schema.ConfigError(f'task {task.id!r} has no world of {environment.name!r}')
    try:
      warnings += environment.check(task)
    except ValueError as e:
      raise schema.ConfigError(str(e)) from e
  for warning in warnings[:_SHOWN]:
    logging.warning('%s', warning)
  if len(warnings) > _SHOWN:
    logging.warning('and %d more checks like these', len(warnings) - _SHOWN)


def vocabulary(
  environment: base.Environment, tasks: Sequence[records.Task]
) -> Vocabulary:
  """Plays the solutions of training tasks, and returns what is said there."""
  with futures.ThreadPoolExecutor(1) as pool:  # A loop may be running here.
    return pool.submit(asyncio.run, _vocabulary(environment, tasks)).result()


async def _vocabulary(environment, tasks) -> Vocabulary:
  texts, executor = [], modules.FieldExecutor()
  symbols: dict[str, None] = {}
  for task in [t for t in tasks if 'solution' in t.tags][:_PLAYED]:
    key = records.RequestKey(0, records.Purpose.SFT, 0, task.id, 0)
    episode = await environment.open(task, key)
    for name, tool in episode.tools.items():
      symbols |= dict.fromkeys([name, *(f'{a.name}=' for a in tool.card.arguments)])
    texts.append(task.world.policy)
    for call in call_solutions.parse(task.tags['solution']).calls:
      try:
        tool = episode.tools[call.tool]
        made, _ = await executor.command(None, call, tool.card)
        said = await tool.call(tools_base.check_arguments(tool.card, made.arguments))
      except tools_base.BadArguments as e:
        said = str(e)
      thought = ', '.join(call.why) or 'do'
      texts.append(f'{call.tool}: {thought}; {call.context} -> {said}')
    await episode.close()
  return Vocabulary(tuple(texts), tuple(symbols))
