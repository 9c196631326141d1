"""Loads the config of a run: a Python file or a config.json, and overrides."""

from collections.abc import Sequence

from agentflow_jax.config import overrides as overrides_lib
from agentflow_jax.config import schema, sizes, written


def load(path: str, overrides: Sequence[tuple[str, str]] = ()) -> schema.Config:
  """Loads a config and applies overrides.

  Args:
    path: path of a Python file with `get_config()`, or of the config.json of a
      workdir.
    overrides: ('a.b', 'value') pairs, in order.

  Raises:
    ConfigError: no such file, no `get_config`, an error in the file, an unknown or
      malformed field.
  """
  if path.endswith('.json'):
    try:
      config = written.read(path)
    except FileNotFoundError as e:
      raise schema.ConfigError(f'--config: no file {path}') from e
  else:
    config = schema.load_config(path)
  config = overrides_lib.override(config, overrides)
  return sizes.raised(config, [name for name, _ in overrides])
