"""Local worlds that are offered to clients of OpenEnv: tasks, tools and rewards."""

import dataclasses
from typing import Any

from agentflow_jax import records
from agentflow_jax.agents.environments import base
from agentflow_jax.agents.environments.desk import environment as desk
from agentflow_jax.agents.environments.openenv import wire
from agentflow_jax.agents.rewards import registry
from agentflow_jax.assembly import rewards as rewards_lib
from agentflow_jax.assembly import task_sets, worlds
from agentflow_jax.config import own_code, schema, unread


@dataclasses.dataclass(frozen=True)
class ServedWorlds:
  """Tasks in an environment of this process; `close` it.

  Attributes:
    environment: environment that opens the episodes.
    tasks: tasks in order; clients choose one by its id or its place.
    rewards: rewards that the tasks name.
    seed: seed of all randomness.
    verify_seconds: time limit of the checks at the end of an episode [s].
    clients: clients of endpoints.
  """

  environment: base.Environment
  tasks: tuple[records.Task, ...]
  rewards: registry.Rewards
  seed: int
  verify_seconds: float
  clients: tuple[Any, ...] = ()

  async def close(self) -> None:
    """Ends processes and connections."""
    await self.environment.close()
    await self.rewards.aclose()
    for client in self.clients:
      await client.aclose()


def load(config: schema.Config, kind: str, split: str, data_dir: str) -> ServedWorlds:
  """Loads an environment and the tasks of a split.

  Args:
    config: config, of which `task_set`, `agent.environment`, `seed` and
      `agent.rollout.verify_seconds` are read.
    kind: kind of the environment, which has to be that of the config.
    split: 'train', 'validation' or 'test'.
    data_dir: local directory that data sets are written to.

  Raises:
    ConfigError: the environment is not local, or a task cannot be opened or
      verified; names the remedy.
  """
  said = config.agent.environment.kind
  if kind != said:
    raise schema.ConfigError(
      f'--environment={kind}: the config has agent.environment.kind={said!r}; set'
      f' --config.agent.environment.kind={kind}, or give another --config'
    )
  if kind != desk.NAME and not own_code.is_own(kind):
    raise schema.ConfigError(
      f'--environment={kind} is on servers already; desk and PATH.py:CLASS can be'
      ' served'
    )
  unread.check_values(config)
  loaded = task_sets.load(config.task_set, data_dir, worlds.of_rows(kind))
  tasks = getattr(loaded, split)
  if not tasks:
    raise schema.ConfigError(
      f'--split={split}: the config has no such tasks; choose another split, or set'
      ' the files of task_set'
    )
  loaded = dataclasses.replace(loaded, train=tasks, validation=(), test=())
  clients: list[Any] = []
  rewards = rewards_lib.make(
    config.task_set, sorted({task.reward for task in tasks}), None, 1, clients
  )
  try:
    for task in tasks:
      rewards.check(task)
  except ValueError as e:
    raise schema.ConfigError(str(e)) from e
  environment = worlds.make(config, loaded, None, 1, clients)
  assert environment is not None  # A kind is given.
  if taken := wire.RESERVED & {card.name for card in environment.cards}:
    raise schema.ConfigError(
      f'--environment={kind}: a tool of OpenEnv cannot be called {min(taken)!r}; give'
      ' the method another name'
    )
  return ServedWorlds(
    environment,
    tasks,
    rewards,
    config.seed,
    config.agent.rollout.verify_seconds,
    tuple(clients),
  )
