"""Flow-GRPO on the desk from the shipped warm start: a planner that acts in worlds.

  python -m agentflow_jax.train --config=experiments/desk.py --workdir=runs/desk
"""

import dataclasses
import pathlib

from agentflow_jax.config import schema as c

_HERE = pathlib.Path(__file__).parent


def get_config() -> c.Config:
  warm = c.load_module(str(_HERE / 'desk_warm_start.py')).get_config()
  return dataclasses.replace(
      warm,
      name='desk',
      algorithm='flow_grpo',
      task_set=dataclasses.replace(warm.task_set, test_items=400),
      planner=dataclasses.replace(
          warm.planner, directory=str(_HERE / 'desk_planner'), model=None,
          attention='blocks',
      ),
      optimizer=c.OptimizerConfig(learning_rate=3e-4, max_grad_norm=1.0),
      flow_grpo=c.FlowGrpoConfig(kl_coef=1e-3),
      train=c.TrainConfig(
          steps=30,
          queries_per_step=32,
          group_size=8,
          mini_batches=2,
          max_logprob_gap=1e-4,
          checkpoint_every=5,
      ),
      evaluation=c.EvaluationConfig(every=10),
  )


def get_sweep() -> list[dict[str, str]]:
  """Five seeds."""
  return [{'seed': str(seed)} for seed in range(5)]
