"""Accuracy and turns over the turns that a rollout may take, as in the paper.

  python launch/sweep.py --config=experiments/turn_scaling.py --program=evaluate \
      --run -- --planner=DIR --benchmark=2wiki,gameof24 --data_dir=DATA --trials=3 \
      --config.agent.tools.corpus=DIR
  python launch/collect.py --sweep=runs/sweeps/turn_scaling

Evaluates one planner with at most 3, 5, 7 and 10 turns (arXiv 2510.05592, the section
on scaling turns). The system is flow_grpo_qwen2p5_7b.py's; its sampling temperature
is the paper's protocol's. Cost: four evaluations, the endpoint's or the machine's.
Expected, by the paper: accuracy and mean turns grow together. Not run by us at this
size: no such machine was at hand.
"""

import dataclasses
import pathlib

from agentflow_jax.config import schema as c

_HERE = pathlib.Path(__file__).parent


def get_config() -> c.Config:
  base = c.load_module(str(_HERE / 'flow_grpo_qwen2p5_7b.py')).get_config()
  return dataclasses.replace(base, name='turn_scaling')


def get_sweep() -> list[dict[str, str]]:
  return c.sweep.grid({'agent.rollout.max_turns': [3, 5, 7, 10]})
