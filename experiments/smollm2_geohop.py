"""Flow-GRPO on GeoHop with a real language model: SmolLM2-135M-Instruct.

  python -m agentflow_jax.train --config=experiments/smollm2_geohop.py \
      --workdir=runs/smollm2_geohop

It starts from what experiments/smollm2_warm_start.py leaves; run that first, or
name a model of one's own of that kind: --config.planner.directory=DIR. As in the
quickstart, all other modules are rules.

Cost: 29 minutes on 2 CPU cores, 6 GB of memory. Expected: from 20% to about 40%
sampled, from 34% to about 56% greedy, of 100 held-out questions; see
docs/performance.md.
On a GPU give it more: --config.train.queries_per_step=32 --config.train.steps=60.
"""

import dataclasses
import pathlib

from agentflow_jax.config import schema as c

_HERE = pathlib.Path(__file__).parent


def get_config() -> c.Config:
  warm = c.load_module(str(_HERE / 'smollm2_warm_start.py'))
  base = warm.get_config(weights='runs/smollm2_warm_start/planner')
  return dataclasses.replace(
    base,
    name='smollm2_geohop',
    algorithm='flow_grpo',
    optimizer=c.OptimizerConfig(learning_rate=1.5e-5, max_grad_norm=1.0),
    flow_grpo=c.FlowGrpoConfig(kl_coef=1e-3),
    # Room for what a group shares.
    batch=c.BatchConfig(tokens_per_row=512, rows_per_micro=2),
    train=c.TrainConfig(
      steps=14,
      queries_per_step=8,
      group_size=8,
      checkpoint_every=7,
      keep_checkpoints=1,
      # Measured: 4.2e-5 in float32 (bfloat16: 0.22).
      max_logprob_gap=1e-3,
    ),
    evaluation=c.EvaluationConfig(every=0),
  )


def get_sweep() -> list[dict[str, str]]:
  """Three seeds, for a GPU."""
  return [{'seed': str(seed)} for seed in range(3)]
