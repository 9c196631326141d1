"""Refuses tasks that the rules of a config could never answer."""

from collections.abc import Sequence

from agentflow_jax import records
from agentflow_jax.agents import references
from agentflow_jax.config import schema

# Tasks that are looked at; a sample is enough to tell another kind of task.
_MOST = 1000


def check(
  config: schema.Config, tasks: Sequence[records.Task], gazetteer: references.Gazetteer
) -> None:
  """Refuses tasks of another kind than GeoHop's where rules know only that kind.

  With numbered mentions and a rule as generator, every answer is a number or the
  title of a passage, and a plan can only refer to what the query or a tool mentions.

  Args:
    config: config of the run.
    tasks: tasks that it trains on and evaluates.
    gazetteer: names that are numbered.

  Raises:
    ConfigError: most of the tasks are of another kind.
  """
  generator = config.agent.generator
  if config.task_set.has_solutions or generator.backend != 'rule' or generator.own:
    return
  known = references.References(gazetteer)
  asked = [task for task in tasks if task.answers][:_MOST]
  unfit = [
    task
    for task in asked
    if not known.last_in(task.query)
    or not any(known.last_in(answer) == answer.strip() for answer in task.answers)
  ]
  if len(unfit) * 2 <= len(asked):
    return
  raise schema.ConfigError(
    f'task_set.kind={config.task_set.kind}: the rule modules of this config can only'
    ' answer questions like those of GeoHop, where the query names the title of a'
    ' passage or a number, and the answer is a title or a number.'
    f' {len(unfit)} of the first {len(asked)} tasks are different (such as'
    f' {unfit[0].id!r}: {unfit[0].query[:80]!r}). Start from'
    ' experiments/own_tasks.py, whose modules work for any tasks, or set'
    ' agent.number_mentions=false and use language models as modules'
  )
