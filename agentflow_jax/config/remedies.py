"""What a user may change where rollouts end in a failing status."""

from agentflow_jax import records
from agentflow_jax.agents import call_text, plan
from agentflow_jax.config import schema

_TEXTS = {
  records.Status.OUT_OF_TURNS: (
    'no plan or response that answers came within'
    ' agent.rollout.max_turns={config.agent.rollout.max_turns}; raise it, or use a'
    ' planner that knows when to answer'
  ),
  records.Status.UNPARSEABLE_PLAN: (
    'the planner does not know the form of plans; teach it with algorithm=sft'
    ' first, as experiments/own_tasks_warm_start.py does'
  ),
  records.Status.TRUNCATED_RESPONSE: (
    'planner.sampling.max_new_tokens is'
    ' {config.planner.sampling.max_new_tokens}; raise it'
  ),
  records.Status.PROMPT_TOO_LONG: (
    '{longest}planner.max_prompt_tokens is'
    ' {config.planner.max_prompt_tokens:,} (engine.max_prompt_tokens, for frozen'
    ' modules, is {config.engine.max_prompt_tokens:,}); raise what is too small'
  ),
  records.Status.TOOL_ERROR: (
    'the result of the last call says what was wrong with its arguments'
  ),
  records.Status.DEADLINE: (
    'agent.rollout.deadline_seconds is'
    ' {config.agent.rollout.deadline_seconds:g}; raise it'
  ),
  records.Status.MODEL_UNREACHABLE: "check that the model's server answers",
  records.Status.TOOL_UNREACHABLE: 'check that the host behind the tool answers',
  records.Status.REWARD_UNREACHABLE: (
    'check that the server behind task_set.reward answers'
  ),
  records.Status.DEADLINE_INFRASTRUCTURE: (
    'agent.rollout.deadline_seconds is'
    ' {config.agent.rollout.deadline_seconds:g}, and models or tools took'
    ' longer; raise it, or lower train.concurrent_rollouts'
  ),
}


def of_status(
  status: records.Status, config: schema.Config, longest_query: int = 0
) -> str:
  """Returns a clause that names what to change; '' where there is none.

  Args:
    status: status in which rollouts ended.
    config: config of the run.
    longest_query: length of the longest query [tokens], where it is known.
  """
  longest = ''
  if longest_query:
    longest = f'the longest query has {longest_query:,} tokens, and '
  return _TEXTS.get(status, '').format(config=config, longest=longest)


def example_of_plan(config: schema.Config, tool: str) -> str:
  """Returns the text of a plan, as a planner has to write it."""
  if config.agent.plan_format == 'tool_calls':
    return call_text.write('', [(tool, {'query': 'the height of the tower'})])
  if config.agent.plan_format == 'code':
    program = 'final_answer("the height of the tower")'
    return plan.Plan('This answers it.', program, tool).render_code()
  verb = config.agent.verbs[-1]
  return plan.Plan(f'{verb} the height of the tower', '', tool).render()
