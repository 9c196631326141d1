"""Withholds tools of an environment from training, to examine unseen ones."""

import dataclasses
import json
from collections.abc import Sequence

from agentflow_jax import records
from agentflow_jax.agents.environments import base
from agentflow_jax.assembly import task_sets
from agentflow_jax.config import schema


def needing(tasks: Sequence[records.Task], withheld: Sequence[str]) -> list[str]:
  """Returns the ids of the tasks whose known solution needs a withheld tool.

  The way that carries out a forbidden task counts, too: with the tool withheld, there
  is nothing to decline.
  """
  return [task.id for task in tasks if not _tools_of(task).isdisjoint(withheld)]


def _tools_of(task: records.Task) -> set[str]:
  """Returns the tools of a task's known solution; none where there is none."""
  if task.world is None:
    return set()
  return {
    call['tool']
    for tag in ('solution', 'tempting')
    for call in json.loads(task.tags.get(tag, '[]'))
  }


def applied(
  tasks: task_sets.TaskSet,
  environment: base.Environment | None,
  withheld: Sequence[str],
) -> task_sets.TaskSet:
  """Returns tasks whose training part lacks tools and what needs them.

  Args:
    tasks: tasks of a run.
    environment: environment of their worlds.
    withheld: names of tools; empty for the tasks as they are.

  Raises:
    ConfigError: the environment has no such tool, or no task is left.
  """
  if not withheld:
    return tasks
  assert environment is not None  # config.unread asks for one.
  known = [card.name for card in environment.cards] or sorted(
    {name for task in tasks.train for name in task.its_world.tools}
  )
  if unknown := sorted(set(withheld) - set(known)):
    raise schema.ConfigError(
      f'agent.withheld_tools: {environment.name} has no tool {unknown[0]!r}; it has'
      f' {", ".join(known) or "none that is known before an episode begins"}'
    )
  needs, train = set(needing(tasks.train, withheld)), []
  for task in tasks.train:
    shown = tuple(n for n in task.its_world.tools or known if n not in withheld)
    if task.id not in needs and shown:
      train.append(
        dataclasses.replace(
          task, world=dataclasses.replace(task.its_world, tools=shown)
        )
      )
  if tasks.train and not train:
    raise schema.ConfigError(
      f'agent.withheld_tools={",".join(withheld)}: every training task needs one of'
      ' them; withhold fewer'
    )
  return dataclasses.replace(tasks, train=tuple(train))
