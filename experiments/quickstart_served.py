"""The quickstart's agent as a foreign driver: the endpoint against our own modules.

  python experiments/benchmarks/served_quickstart.py --workdir=runs/quickstart_served

runs the driver and the run. By itself the run waits for a driver:

  python -m agentflow_jax.train --config=experiments/quickstart_served.py \
      --workdir=runs/quickstart_served
  python experiments/benchmarks/served_quickstart.py \
      --drive=runs/quickstart_served/served/p0.json

Cost and expected result: those of experiments/quickstart.py, see docs/performance.md.
"""

import dataclasses
import pathlib

from agentflow_jax.config import schema as c

_HERE = pathlib.Path(__file__).parent


def get_config() -> c.Config:
  quickstart = c.load_module(str(_HERE / 'quickstart.py')).get_config()
  return dataclasses.replace(
    quickstart,
    name='quickstart_served',
    planner=dataclasses.replace(quickstart.planner, prompt=c.PromptConfig()),
    agent=c.AgentConfig(
      kind='served',
      rollout=c.RolloutConfig(
        max_turns=quickstart.agent.rollout.max_turns,
        deadline_seconds=quickstart.agent.rollout.deadline_seconds,
        answer_when_out_of_turns=False,
      ),
    ),
    evaluation=dataclasses.replace(quickstart.evaluation, controls=False),
  )
