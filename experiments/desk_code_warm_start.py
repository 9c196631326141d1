"""The supervised warm start of a planner that acts on the desk in programs.

As desk_warm_start.py, but each turn is a program, in which the tools of the desk are
functions, such as `create_loan(person=#5, item=#7, days=#4)`.

  python -m agentflow_jax.train --config=experiments/desk_code_warm_start.py \
      --workdir=runs/desk_code_warm_start
"""

import dataclasses
import pathlib

from agentflow_jax.config import schema as c

_HERE = pathlib.Path(__file__).parent


def get_config() -> c.Config:
  plain = c.load_module(str(_HERE / 'desk_warm_start.py')).get_config()
  return dataclasses.replace(
    plain,
    name='desk_code_warm_start',
    agent=dataclasses.replace(
      plain.agent,
      executor=c.ModuleConfig(),
      code=c.CodeConfig(sandbox='monty'),
      plan_format='code',
    ),
  )
