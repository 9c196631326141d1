"""Flow-GRPO on the desk: a planner that acts in worlds. Not tuned yet.

  python -m agentflow_jax.train --config=experiments/desk_warm_start.py \
      --workdir=runs/desk_warm_start
  python -m agentflow_jax.train --config=experiments/desk.py --workdir=runs/desk \
      --config.planner.directory=runs/desk_warm_start/planner

No weights ship with it so far. Measured, one seed on 2 cores: 25 seconds a step; the
mean reward of a step of training rose from 0.26 to 0.43 and 0.50 in steps 9 to 12, and
accuracy on 100 validation tasks was 26% (greedy 31%) after step 10, where the warm start
had a greedy accuracy of 36%. So nothing was gained on unseen tasks: rollouts of a group
become alike before refusals are learned.
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
          warm.planner, directory='runs/desk_warm_start/planner', model=None,
          attention='blocks',
          # The teacher's errors are imitated at 1: hardly any rollout succeeds.
          sampling=dataclasses.replace(warm.planner.sampling, temperature=0.7),
      ),
      optimizer=c.OptimizerConfig(learning_rate=1.5e-4, max_grad_norm=1.0),
      flow_grpo=c.FlowGrpoConfig(kl_coef=1e-3),
      train=c.TrainConfig(
          steps=30,
          queries_per_step=32,
          group_size=8,
          # Measured: at most 7e-6.
          max_logprob_gap=1e-5,
          checkpoint_every=5,
      ),
      evaluation=c.EvaluationConfig(every=10),
  )


def get_sweep() -> list[dict[str, str]]:
  """Five seeds."""
  return [{'seed': str(seed)} for seed in range(5)]
