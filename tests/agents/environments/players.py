"""An agent whose planner follows a list of plans, for environments of every kind."""

from agentflow_jax.agents import fakes, modules, rollout
from agentflow_jax.agents.rewards import registry


def agent(environment, *plans, reward='environment', max_turns=5):
  """Returns an agent; each plan is (tool, context), and the last one is repeated."""
  rewards = registry.Rewards([reward])
  texts = [
    f'Sub-Goal: do\nContext: {context}\nTool Name: {tool}' for tool, context in plans
  ]

  async def score(task, ending, verdict):
    return await rewards(task, ending, verdict)

  return fakes.make_agent(
    fakes.FakeLanguageModel({'planner': texts}),
    (),
    rollout.RolloutConfig(max_turns=max_turns, answer_when_out_of_turns=False),
    executor=modules.FieldExecutor(),
    verifier=modules.WorldVerifier(),
    environment=environment,
    reward=score,
  )
