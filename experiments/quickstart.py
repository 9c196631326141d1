"""Flow-GRPO on GeoHop from the shipped warm start: the main job, on a laptop.

  bash launch/quickstart.sh

Cost: under ten minutes on 2 CPU cores. Expected: accuracy on held-out countries
at least 84%, 55 points above the warm start; measured seeds: docs/performance.md.
"""

import dataclasses
import pathlib

from agentflow_jax.config import schema as c

_HERE = pathlib.Path(__file__).parent


def get_config() -> c.Config:
  warm = c.load_module(str(_HERE / 'geohop_warm_start.py')).get_config()
  return dataclasses.replace(
    warm,
    name='quickstart',
    algorithm='flow_grpo',
    planner=dataclasses.replace(
      warm.planner, directory=str(_HERE / 'geohop_planner'), model=None
    ),
    optimizer=c.OptimizerConfig(learning_rate=3e-4, max_grad_norm=1.0),
    flow_grpo=c.FlowGrpoConfig(kl_coef=1e-3),
    train=c.TrainConfig(
      steps=30, queries_per_step=32, group_size=8, mini_batches=2, checkpoint_every=5
    ),
    evaluation=c.EvaluationConfig(every=10),
  )


def get_sweep() -> list[dict[str, str]]:
  """Five seeds, the acceptance of the main job."""
  return [{'seed': str(seed)} for seed in range(5)]
