"""The desk, where nothing counts in training but success.

  python -m agentflow_jax.train --config=experiments/desk_success.py \
      --workdir=runs/desk_success

desk.py gives half of a success for the checks that pass; this is what that is compared
with. Docs/performance.md has the curves of both.
"""

import dataclasses
import pathlib

from agentflow_jax.config import schema as c

_HERE = pathlib.Path(__file__).parent


def get_config() -> c.Config:
  parts = c.load_module(str(_HERE / 'desk.py')).get_config()
  return dataclasses.replace(parts, name='desk_success', reward=c.RewardConfig())


def get_sweep() -> list[dict[str, str]]:
  """Five seeds."""
  return [{'seed': str(seed)} for seed in range(5)]
