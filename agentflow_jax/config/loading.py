"""Loads the config of a run: a Python file or a config.json, and overrides."""

from collections.abc import Sequence

from agentflow_jax.config import overrides as overrides_lib
from agentflow_jax.config import schema, shipped, sizes, written


def load(said: str, overrides: Sequence[tuple[str, str]] = ()) -> schema.Config:
  """Loads a config and applies overrides.

  Args:
    said: name of a shipped config, such as 'quickstart', or path of a Python file with
      `get_config()` or of the config.json of a workdir.
    overrides: ('a.b', 'value') pairs, in order.

  Raises:
    ConfigError: no such name or file, no `get_config`, an error in the file, an
      unknown or malformed field.
  """
  path = shipped.path_of(said)
  if path.endswith('.json'):
    try:
      config = written.read(path)
    except FileNotFoundError as e:
      raise schema.ConfigError(f'--config: no file {path}') from e
  else:
    config = schema.load_config(path)
  config = overrides_lib.override(config, overrides)
  return sizes.raised(config, [name for name, _ in overrides])


def of_model(
  directory: str, overrides: Sequence[tuple[str, str]] = ()
) -> schema.Config:
  """Returns the config of a model that is served without the config of a run.

  Args:
    directory: the model, as in planner.directory.
    overrides: ('a.b', 'value') pairs, in order.

  Raises:
    ConfigError: an override is unknown or malformed.
  """
  return overrides_lib.override(
    schema.Config(
      name='model',
      planner=schema.PlannerConfig(directory=directory),
      # Slots cost time whether they are used or not, and most servers have few clients.
      engine=schema.EngineConfig(slots=8),
    ),
    overrides,
  )


def of_environment(
  kind: str, overrides: Sequence[tuple[str, str]] = ()
) -> schema.Config:
  """Returns the config of an environment that brings tasks of its own.

  Args:
    kind: kind of the environment, as in agent.environment.kind.
    overrides: ('a.b', 'value') pairs, in order.

  Raises:
    ConfigError: the environment has no tasks of its own, or an override is unknown
      or malformed.
  """
  if kind != 'desk':
    raise schema.ConfigError(
      f'--environment={kind}: give the --config that has its tasks; only'
      ' --environment=desk brings tasks of its own'
    )
  return overrides_lib.override(
    schema.Config(
      name=kind,
      task_set=schema.TaskSetConfig(kind=kind, validation_items=0, test_items=0),
      agent=schema.AgentConfig(
        tools=schema.ToolsConfig(enabled=()),
        environment=schema.EnvironmentConfig(kind=kind),
      ),
    ),
    overrides,
  )
