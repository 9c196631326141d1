"""Brings the data of the bundled desk and its environment together."""

from etils import epath

from agentflow_jax import records
from agentflow_jax.agents.environments.desk import policy, schema as tables
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
    directory: epath.Path, tier: str
) -> tuple[dict[str, list[records.Task]], epath.Path]:
  """Returns the tasks of the desk by split, and the directory of its worlds.

  Args:
    directory: directory of the data set, which is written once.
    tier: difficulty, see TaskSetConfig.tier.

  Raises:
    ConfigError: the directory holds another version, or its files are broken.
  """
  try:
    worlds = desk.write(directory, parts(), tier)
    return {split: desk.load(directory, split) for split in desk.SPLITS}, worlds
  except (ValueError, KeyError, TypeError) as e:
    raise schema.ConfigError(
        f'task_set.kind=desk: {directory}: {e}; remove that directory, and it is'
        ' written anew'
    ) from e
