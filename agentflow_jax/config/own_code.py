"""Reads the fields that name a user's own code as PATH.py:NAME."""

import dataclasses

from agentflow_jax.agents import own_functions
from agentflow_jax.config import roles, schema


@dataclasses.dataclass(frozen=True)
class Name:
  """A name in a Python file.

  Attributes:
    path: path of the file.
    name: name of a function, a class or an object in it.
  """

  path: str
  name: str


def is_own(said: str) -> bool:
  """Returns whether the value of a field names own code, not something built in."""
  return ':' in said


def parse(said: str, field: str) -> Name:
  """Reads PATH.py:NAME.

  Args:
    said: value of the field.
    field: name of the field, for the error.

  Raises:
    ConfigError: the value is not of this form.
  """
  path, _, name = said.rpartition(':')
  if not path.endswith('.py') or not name.isidentifier():
    raise schema.ConfigError(
      f'{field}: {said!r} does not name code: write PATH.py:NAME'
    )
  return Name(path, name)


def names(config: schema.Config) -> dict[str, Name]:
  """Returns all own code that a config names, by field.

  Raises:
    ConfigError: a value is not of the form PATH.py:NAME.
  """
  said = {
    f'agent.{role}.own': getattr(config.agent, role).own for role in roles.MODULES
  }
  for i, one in enumerate(config.agent.tools.own):
    said[f'agent.tools.own[{i}]'] = one
  rewards = {
    'task_set.reward': config.task_set.reward,
    'reward.answer': config.reward.answer,
  }
  said |= {field: one for field, one in rewards.items() if is_own(one)}
  if is_own(config.agent.environment.kind):
    said['agent.environment.kind'] = config.agent.environment.kind
  return {field: parse(one, field) for field, one in said.items() if one}


def digests(config: schema.Config) -> dict[str, str]:
  """Returns the digest of every file of own code, by path."""
  paths = sorted({name.path for name in names(config).values()})
  return {path: own_functions.digest(path) for path in paths}
