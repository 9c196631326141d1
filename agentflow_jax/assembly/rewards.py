"""Makes a run's rewards: built-in rewards, a judge, and a user's own functions."""

import dataclasses
from collections.abc import Iterable
from typing import Any

from agentflow_jax import records
from agentflow_jax.agents import judge as judge_lib, language_model
from agentflow_jax.agents import own_functions, recording as recording_lib
from agentflow_jax.agents.rewards import own_reward, parts as parts_lib, registry
from agentflow_jax.agents.tools import base
from agentflow_jax.assembly import endpoints
from agentflow_jax.config import own_code, schema

JUDGE = 'judge'
# Number of calls of a synchronous reward of one's own at a time.
_PROCESSES = 4


def make(
  config: schema.TaskSetConfig,
  names: Iterable[str],
  recording: recording_lib.Recording | None,
  processes: int = 1,
  clients: list[Any] | None = None,
) -> registry.Rewards:
  """Returns the rewards of these names.

  Args:
    config: settings of the task set.
    names: names that tasks carry.
    recording: recording of a judge's verdicts; None for none.
    processes: number of processes that share the judge's limits.
    clients: list that the judge's client is added to; its maker has to close it.

  Raises:
    ConfigError: a reward is unknown or cannot be made; the message names the remedy.
  """
  others = {}
  for name in names:
    if own_code.is_own(name):
      others[name] = _own(config, name)
    elif name == JUDGE:
      model = endpoints.connect(config.judge, 'task_set.judge', recording, processes)
      if clients is not None:
        clients.append(model)
      others[name] = _judge(model)
  try:
    return registry.Rewards(names, others)
  except ValueError as e:
    raise schema.ConfigError(f'task_set.reward: {e}') from e


def parts(
  config: schema.RewardConfig, rewards: registry.Rewards
) -> parts_lib.Parts | None:
  """Returns the reward of training rollouts by terms; None where there are none.

  Args:
    config: weights of the terms.
    rewards: rewards that tasks name, with that of the term answer.
  """
  if not config.weights:
    return None

  async def answer(task, ending, verdict):
    del verdict
    named = dataclasses.replace(task, reward=config.answer)
    return await rewards(named, ending)

  return parts_lib.Parts(rewards, config.weights, answer if config.answer else None)


def _own(config: schema.TaskSetConfig, said: str) -> registry.Reward:
  name = own_code.parse(said, 'task_set.reward')
  try:
    return own_reward.make(
      said, name.path, name.name, seconds=config.reward_seconds, processes=_PROCESSES
    )
  except own_functions.LoadError as e:
    raise schema.ConfigError(f'task_set.reward: {e}') from e


def _judge(model: language_model.LanguageModel) -> registry.Reward:
  """Returns a reward that is 1 where a model judges the answer right, else 0.

  If the judge is unreachable or its verdict unreadable, there is no reward.
  """
  judge = judge_lib.Judge(model)

  async def score(task: records.Task, answer: str) -> float:
    # The judge is greedy, so the key is only the request's name in a recording.
    key = base.request_key.get()
    if key is None:
      key = records.RequestKey(0, records.Purpose.TRAIN, 0, task.id, 0)
    verdict = await judge(task, answer, key)
    if verdict.correct is None:
      raise language_model.Unreachable(f'the judge: {verdict.analysis}')
    return float(verdict.correct)

  return registry.Reward(JUDGE, score, registry.check_answers)
