"""One query solved, step by step."""

import asyncio
import contextlib
import dataclasses
from collections.abc import Callable

from agentflow_jax import records
from agentflow_jax.agents import rollout
from agentflow_jax.assembly import system as system_lib, task_sets
from agentflow_jax.config import overrides, remedies, schema
from agentflow_jax.runtime import workdirs
from agentflow_jax.serving import agent_server

_MOST_SHOWN = 1000


def solve(
  config: schema.Config,
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
    query: query to answer.
    workdir: work directory of a run, or where data sets are kept.
    planner: a planner directory; '' for the config's own.
    greedy: temperature 0.
    emit: function that is called with a line or more for people as each module or tool
      ends.

  Raises:
    ConfigError, CheckpointError, ToolUnavailable: name the remedy.
  """
  agent_server.check(config)
  if planner:
    config = overrides.with_planner(config, planner)
  if config.agent.environment.kind:
    raise schema.ConfigError(
      f'agent.environment.kind={config.agent.environment.kind}: a query alone has no'
      ' world to act in; evaluate such a config, and look at its rollouts with'
      ' agentflow_jax.trajectories'
    )
  try:
    task = task_sets.of_query(query)
  except ValueError as e:
    raise schema.ConfigError(f'--query: {e}') from e
  return asyncio.run(_solve(config, task, workdirs.opened(workdir), greedy, emit))


async def _solve(config, task, workdir, greedy, emit) -> records.Trajectory:
  # The query is the only task.
  system = system_lib.build(config, workdir, reads_tasks=False)
  serving = contextlib.AsyncExitStack()
  try:
    system.warmup()
    served = await serving.enter_async_context(agent_server.opened(system, workdir))
    planner = system.planner
    if greedy:
      sampling = dataclasses.replace(planner.sampling, temperature=0.0)
      planner = dataclasses.replace(planner, sampling=sampling)
    # There is no right answer to check: the reward is left out.
    agent = dataclasses.replace(
      system.agent,
      planner=planner,
      reward=_no_reward,
      on_step=lambda name, text: emit(f'{name}: {_shown(text)}'),
    )
    key = records.RequestKey(config.seed, records.Purpose.SOLVE, 0, task.id, 0)
    for notice in (*system.notices(), *filter(None, (served,))):
      emit(notice)
    emit(f'Query: {task.query}')
    analysis, failed = await rollout.analyse(agent, task, key)
    if analysis:
      emit(f'analyst: {_shown(analysis)}')
    trajectory = failed or await rollout.rollout(agent, task, key, analysis)
    usage = system.endpoint_usage()
  finally:
    await serving.aclose()
    await system.close()
  emit(f'Answer: {trajectory.answer or "none"}  ({trajectory.status.value})')
  if trajectory.detail:
    emit(trajectory.detail)
  if not trajectory.answer:
    remedy = remedies.of_status(trajectory.status, config)
    emit(f'No answer: {remedy or "see what the modules said above"}.')
    if trajectory.status is records.Status.UNPARSEABLE_PLAN:
      tool = next(iter(agent.tools), '')
      emit(f'A plan looks like this:\n{remedies.example_of_plan(config, tool)}')
  for name, value in usage.items():
    if value:
      emit(f'{name}: {value:g}')
  return trajectory


async def _no_reward(
  task: records.Task, ending: records.Ending, verdict: records.Verdict | None
) -> float:
  del task, ending, verdict
  return 0.0


def _shown(text: str) -> str:
  """A text for people: further lines below the first, and not all of a book."""
  text = text.strip()
  if len(text) > _MOST_SHOWN:
    text = f'{text[:_MOST_SHOWN]} ... ({len(text):,} characters)'
  return text.replace('\n', '\n  ')
