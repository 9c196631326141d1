"""Brings the data of the bundled desk and its environment together."""

from etils import epath

from agentflow_jax import records
from agentflow_jax.agents.environments.desk import actions, policy
from agentflow_jax.agents.environments.desk import schema as tables
from agentflow_jax.agents.environments.sqlite import seeds
from agentflow_jax.config import schema
from agentflow_jax.data import desk


def parts() -> desk.Parts:
  """Returns what the generator needs of the environment."""
  return desk.Parts(
    schema=tables.SQL,
    digest=lambda rows: seeds.Seed.of(tables.SQL, rows).sha256,
    policy=policy.render,
  )


def load(
  directory: epath.Path, tier: actions.Tier, distractors: int = -1
) -> tuple[dict[str, list[records.Task]], epath.Path]:
  """Returns the tasks of the desk by split, and the directory of its worlds.

  Args:
    directory: directory of the data set, which is written once.
    tier: difficulty, see TaskSetConfig.tier.
    distractors: number of tools that a task shows besides those it needs; -1 for all.

  Raises:
    ConfigError: the directory holds another version, or its files are broken.
  """
  try:
    worlds = desk.write(directory, parts(), tier)
    splits = {split: desk.load(directory, split) for split in desk.SPLITS}
  except (ValueError, KeyError, TypeError) as e:
    raise schema.ConfigError(
      f'task_set.kind=desk: {directory}: {e}; remove that directory, and it is'
      ' written anew'
    ) from e
  if distractors >= 0:
    tools = [action.name for action in actions.of_tier(tier)]
    splits = {
      split: [desk.narrowed(task, tools, distractors) for task in tasks]
      for split, tasks in splits.items()
    }
  return splits, worlds
