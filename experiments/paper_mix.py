"""Flow-GRPO of Qwen2.5-7B on the paper's training mix: flow_grpo_qwen2p5_7b.py
with Natural Questions and DeepMath-103K, and AIME24 held out.

  python launch/download_data.py --dir=data
  python -m agentflow_jax.train --config=experiments/paper_mix.py \
      --workdir=gs://BUCKET/RUN --distributed=on \
      --config.planner.directory=DIR --config.agent.tools.corpus=DIR \
      --config.task_set.evaluation=benchmarks/aime24/data.json

Shares as the two data sets have rows, 10 to 13; other shares are
--config.task_set.mixture.deepmath.weight=N. Cost, memory and machines are that
file's. Expected: the paper's table, whose judge is GPT-4o, where the reward here is a
rule. Not run by us: no such machine was at hand, nor a network for the data.
"""

import dataclasses
import pathlib

from agentflow_jax.config import schema as c

_HERE = pathlib.Path(__file__).parent


def get_config() -> c.Config:
  base = c.load_module(str(_HERE / 'flow_grpo_qwen2p5_7b.py')).get_config()
  return dataclasses.replace(
    base,
    name='paper_mix',
    task_set=c.TaskSetConfig(
      kind='mixture',
      mixture=c.MixtureConfig(
        natural_questions=c.SourceConfig('data/nq/train.jsonl', weight=10),
        deepmath=c.SourceConfig('data/deepmath', weight=13),
      ),
      benchmark='aime24',
      evaluation='data/aime24.json',
    ),
  )
