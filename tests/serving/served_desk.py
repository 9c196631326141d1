"""A small desk that is served to clients of OpenEnv, for tests."""

import json

from agentflow_jax.agents.environments.desk import environment
from agentflow_jax.agents.environments.sqlite import environment as environments
from agentflow_jax.agents.rewards import registry
from agentflow_jax.assembly import desk_data, served_worlds
from agentflow_jax.data import desk


def made(directory, count=8) -> served_worlds.ServedWorlds:
  """Writes a desk with `count` test tasks below a directory, and returns it."""
  sizes = {s: desk.Size(1, 4) for s in desk.SPLITS} | {'test': desk.Size(2, count)}
  worlds = desk.write(directory, desk_data.parts(), 'easy', sizes)
  return served_worlds.ServedWorlds(
    environment.make(environments.seeds_below(worlds)),
    tuple(desk.load(directory, 'test')),
    registry.Rewards(['checks']),
    0,
    10.0,
  )


def calls(task):
  """Returns the calls of a task's solution: (tool, arguments)."""
  return [(c['tool'], c['arguments']) for c in json.loads(task.tags['solution'])]
