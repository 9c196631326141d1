"""The paper's ablations, small: on GeoHop, from the shipped warm start.

  python launch/sweep.py --config=experiments/ablations.py              the commands
  python launch/sweep.py --config=experiments/ablations.py --run        in turn
  python launch/collect.py --sweep=runs/sweeps/ablations

What plans are trained by (Flow-GRPO, or more of the teacher; the frozen planner is
a control in every run), turns at most, KL, clip-higher, what advantages are
normalised over (rollouts, or rows as in some peers) and how targets are weighted;
two seeds each.

Cost: 28 runs of five minutes on 2 CPU cores. It reproduces the questions, not the
paper's figures: the planner has 0.5M parameters and its task is synthetic.
"""

import dataclasses
import pathlib

from agentflow_jax.config import schema as c

_HERE = pathlib.Path(__file__).parent


def get_config() -> c.Config:
  base = c.load_module(str(_HERE / 'quickstart.py')).get_config()
  return dataclasses.replace(base, name='ablations')


def get_sweep() -> list[dict[str, str]]:
  one_at_a_time = c.sweep.chain(
    c.sweep.grid({'algorithm': ['flow_grpo', 'sft']}),
    c.sweep.grid({'agent.rollout.max_turns': [3, 5, 7, 10]}),
    c.sweep.grid({'flow_grpo.kl_coef': [0, 1e-2]}),
    c.sweep.grid({'flow_grpo.clip_high': [0.2, 0.5]}),
    c.sweep.grid({'flow_grpo.advantage_over': ['rollouts', 'rows']}),
    c.sweep.grid({'flow_grpo.weighting': ['token_mean', 'sequence_mean']}),
  )
  return c.sweep.product(one_at_a_time, c.sweep.grid({'seed': [0, 1]}))
