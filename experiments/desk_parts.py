"""Flow-GRPO on the desk with a second term in its reward, beside desk.py.

  python -m agentflow_jax.train --config=experiments/desk_parts.py \
      --workdir=runs/desk_parts

A rollout that does not pass all checks of its task still gets half of the share that it
passes, so that groups without a success have something to learn from. Evaluations
report success alone, as those of desk.py do. All else is as there, the weights that it
starts from among them. It has not been measured.
"""

import dataclasses
import pathlib

from agentflow_jax.config import schema as c

_HERE = pathlib.Path(__file__).parent


def get_config() -> c.Config:
  plain = c.load_module(str(_HERE / 'desk.py')).get_config()
  return dataclasses.replace(
    plain,
    name='desk_parts',
    reward=c.RewardConfig(weights={'success': 1.0, 'pass_fraction': 0.5}),
  )


def get_sweep() -> list[dict[str, str]]:
  """Five seeds."""
  return [{'seed': str(seed)} for seed in range(5)]
