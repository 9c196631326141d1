"""Makes a reward from a user's own function of a task and an answer."""

import dataclasses
import inspect

from agentflow_jax import records
from agentflow_jax.agents import language_model, own_functions
from agentflow_jax.agents.rewards import registry


def make(
  spec: str, path: str, name: str, *, seconds: float, processes: int
) -> registry.Reward:
  """Makes a reward of a function.

  The function takes a records.Task and the answer, a text without its thoughts. It
  returns a finite number, or a mapping of named numbers whose sum is the reward. The
  policy does not answer for an error of the function: the rollout then has no reward.
  Its status is REWARD_UNREACHABLE where the time limit passed, and MODULE_FAILED for
  other errors and for numbers that are not finite.

  Args:
    spec: name by which tasks call the reward.
    path: path of the file that holds the function.
    name: name of the function.
    seconds: time limit of one call [s].
    processes: number of calls of a synchronous function at a time.

  Raises:
    own_functions.LoadError: the function cannot be loaded, or does not take a task
      and an answer.
  """
  own = own_functions.Own(path, name, 'reward', seconds, processes)
  try:
    inspect.signature(own.function).bind(None, '')
  except TypeError as e:
    raise own_functions.LoadError(
      f'{path}: {name} has to take a task and an answer: {e}'
    ) from e

  async def score(task: records.Task, answer: str):
    try:
      return await own({'task': dataclasses.asdict(task), 'answer': answer})
    except own_functions.TimedOut as e:
      raise language_model.Unreachable(str(e)) from e

  return registry.Reward(spec, score, lambda task: None, own.aclose)
