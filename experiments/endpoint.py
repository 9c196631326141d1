"""Every module behind one OpenAI-compatible endpoint: nothing is trained.

  export OPENAI_API_KEY=...
  python -m agentflow_jax.solve --config=experiments/endpoint.py \
      --config.agent.endpoint.preset=openai \
      --config.agent.endpoint.model=gpt-4o-mini --query="..."

The prompts are those for models that were not trained on them, with the paper's
ten turns and temperature 0.7. Its tools are python and the generalist; search is
added by --config.agent.tools.enabled=search,python,generalist and
--config.agent.tools.corpus=DIR. It reproduces nothing; it is where to start from
with a model of one's own. Cost: the endpoint's, printed at the end.
"""

from agentflow_jax.config import schema as c


def get_config() -> c.Config:
  role = c.ModuleConfig(
    'endpoint', c.SamplingSpec(temperature=0.0, max_new_tokens=1024)
  )
  return c.Config(
    name='endpoint',
    planner=c.PlannerConfig(
      backend='endpoint',
      sampling=c.SamplingSpec(temperature=0.7, max_new_tokens=1024),
      max_prompt_tokens=16_384,
    ),
    agent=c.AgentConfig(
      executor=role,
      verifier=role,
      generator=role,
      analyst=role,
      rollout=c.RolloutConfig(max_turns=10),
      tools=c.ToolsConfig(enabled=('python', 'generalist'), generalist=role),
    ),
  )
