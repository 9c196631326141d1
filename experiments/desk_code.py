"""Flow-GRPO on the desk, where the planner acts in programs. Not tuned yet.

  python -m agentflow_jax.train --config=experiments/desk_code_warm_start.py \
      --workdir=runs/desk_code_warm_start
  python -m agentflow_jax.train --config=experiments/desk_code.py \
      --workdir=runs/desk_code \
      --config.planner.directory=runs/desk_code_warm_start/planner

The reward is that of desk.py: success, and a share of the checks. It may have other
terms, too:

  --config.reward.weights='{"success": 1, "pass_fraction": 0.3, "execution": 0.1}'
"""

import dataclasses
import pathlib

from agentflow_jax.config import schema as c

_HERE = pathlib.Path(__file__).parent


def get_config() -> c.Config:
  plain = c.load_module(str(_HERE / 'desk.py')).get_config()
  warm = c.load_module(str(_HERE / 'desk_code_warm_start.py')).get_config()
  return dataclasses.replace(
    plain,
    name='desk_code',
    planner=dataclasses.replace(
      plain.planner, directory='runs/desk_code_warm_start/planner'
    ),
    agent=warm.agent,
  )


def get_sweep() -> list[dict[str, str]]:
  """Three seeds."""
  return [{'seed': str(seed)} for seed in range(3)]
