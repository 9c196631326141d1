"""EnterpriseOps-Gym (arXiv 2603.13594) with one model that calls tools itself.

  python -m agentflow_jax.evaluate --config=experiments/enterpriseops_tool_calls.py \\
      --workdir=runs/enterpriseops_tool_calls --benchmark=enterpriseops \\
      --data_dir=DIR --config.agent.environment.seeds=SEEDS \\
      --config.agent.endpoint.preset=openai --config.agent.endpoint.model=gpt-4o-mini \\
      --config.agent.environment.judge.preset=openai \\
      --config.agent.environment.judge.model=gpt-4o-mini

The loop of the publication: native tool calls, several a response, until a response has
none, in at most fifty responses. DIR, SEEDS and the servers are those of
experiments/enterpriseops.py, which plays the same tasks with AgentFlow's four modules.
It has not been run on the servers of the publication.

A model in this process, instead of one behind an endpoint, with prompts as long as it
reads:

  --config.planner.backend=engine --planner=DIRECTORY --config.sizes=raised \\
      --config.planner.max_prompt_tokens=16000 \\
      --config.planner.sampling.temperature=1 --greedy

The plan experiment: get_sweep compares the query alone with two texts behind it, the
plan of the row (where rows have a "plan") and one that the endpoint writes. With a
model in this process, agent.analyst.backend=frozen lets that model write the plan.
"""

import dataclasses
import pathlib

from agentflow_jax.config import schema as c

_HERE = pathlib.Path(__file__).parent


def get_config() -> c.Config:
  modules = c.load_module(str(_HERE / 'enterpriseops.py')).get_config()
  agent = modules.agent
  return dataclasses.replace(
    modules,
    name='enterpriseops_tool_calls',
    agent=c.AgentConfig(
      plan_format='tool_calls',
      analyst=dataclasses.replace(agent.analyst, backend='none'),
      rollout=agent.rollout,
      tools=agent.tools,
      environment=agent.environment,
    ),
  )


def get_sweep() -> list[dict[str, str]]:
  """The plan experiment."""
  return [
    {'agent.analyst.backend': backend} for backend in ('none', 'oracle', 'endpoint')
  ]
