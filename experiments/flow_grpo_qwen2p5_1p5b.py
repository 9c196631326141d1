"""Flow-GRPO of Qwen2.5-1.5B-Instruct: flow_grpo_qwen2p5_7b.py with a smaller model.

  python -m agentflow_jax.train --config=experiments/flow_grpo_qwen2p5_1p5b.py \
      --workdir=gs://BUCKET/RUN --distributed=on \
      --config.planner.directory=DIR --config.task_set.train=FILE \
      --config.task_set.evaluation=FILE --config.agent.tools.corpus=DIR

All values are that file's but for the room for keys and values. Not run by us: no
such machine was at hand.

Preflight (python -m agentflow_jax.preflight --config=... --model=qwen2.5-1.5b):
v5p:2x2x1 needs 22.3 GiB a chip of 95.7 with batch.rows_per_micro=4; v5e:4x4 14.1 of
15.75 with mesh.fsdp=8, mesh.tensor=2 and batch.rows_per_micro=8; two slices of it
(--num_slices=2) 14.4 with mesh.data=2 and batch.rows_per_micro=16.
"""

import dataclasses
import pathlib

from agentflow_jax.config import schema as c

_HERE = pathlib.Path(__file__).parent


def get_config() -> c.Config:
  larger = c.load_module(str(_HERE / 'flow_grpo_qwen2p5_7b.py')).get_config()
  return dataclasses.replace(
    larger,
    name='flow_grpo_qwen2p5_1p5b',
    planner=dataclasses.replace(
      larger.planner, directory='weights/Qwen2.5-1.5B-Instruct'
    ),
    engine=dataclasses.replace(larger.engine, kv_tokens=262_144),
  )
