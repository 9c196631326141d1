"""EnterpriseOps-Gym (arXiv 2603.13594), every module behind one endpoint.

  python -m agentflow_jax.evaluate --config=experiments/enterpriseops.py \\
      --workdir=runs/enterpriseops --benchmark=enterpriseops --data_dir=DIR \\
      --config.agent.environment.seeds=SEEDS \\
      --config.agent.endpoint.preset=openai --config.agent.endpoint.model=gpt-4o-mini \\
      --config.agent.environment.judge.preset=openai \\
      --config.agent.environment.judge.model=gpt-4o-mini

DIR holds the rows of the data set (JSONL or parquet, in directories named like their
mode) or task files; SEEDS is the unpacked gym_dbs.zip of the publication, whose servers
have to run (see the README of the publication).
--config.agent.environment.servers=NAME=URL,... gives other addresses than the tasks'.
The agent is AgentFlow's four modules, with fifty turns; the numbers of the publication
are made with one model and native tool calls, so they are not the same experiment. It
reproduces nothing.

The plan experiment: get_sweep compares three analyses of the query, which are none, the
plan of the row (where rows have a "plan"), and one that the endpoint writes.
"""

from agentflow_jax.config import schema as c


def get_config() -> c.Config:
  role = c.ModuleConfig(
    'endpoint', c.SamplingSpec(temperature=0.0, max_new_tokens=2048)
  )
  return c.Config(
    name='enterpriseops',
    planner=c.PlannerConfig(
      backend='endpoint',
      sampling=c.SamplingSpec(temperature=0.0, max_new_tokens=2048),
      max_prompt_tokens=100_000,
    ),
    agent=c.AgentConfig(
      executor=role,
      verifier=role,
      generator=role,
      analyst=role,
      # A tool that is not there costs a turn, not the task.
      unknown_tool='tell',
      rollout=c.RolloutConfig(max_turns=50, deadline_seconds=3600.0, entry_tokens=4096),
      tools=c.ToolsConfig(enabled=()),
      environment=c.EnvironmentConfig(kind='enterpriseops'),
    ),
    task_set=c.TaskSetConfig(kind='enterpriseops', test_items=0, validation_items=0),
    train=c.TrainConfig(concurrent_rollouts=8),
  )


def get_sweep() -> list[dict[str, str]]:
  """The plan experiment."""
  return [
    {'agent.analyst.backend': backend} for backend in ('none', 'oracle', 'endpoint')
  ]
