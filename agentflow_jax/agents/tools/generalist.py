"""The `generalist` tool: a language model answers a question directly."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from agentflow_jax import records
from agentflow_jax.agents import instructions
from agentflow_jax.agents import language_model as language_model_lib
from agentflow_jax.agents import thoughts
from agentflow_jax.agents.tools import base


def make(
  language_model: language_model_lib.LanguageModel | None,
  sampling: records.SamplingSpec | None = None,
  *,
  timeout: float = 120.0,
) -> base.Tool:
  """Makes the generalist tool.

  Args:
    language_model: frozen language model that answers.
    sampling: sampling settings; greedy with 512 tokens by default. Randomness follows
      `base.request_key` where the caller has set it, and otherwise the question alone.
    timeout: seconds after which the rollout gives a call up.

  Raises:
    base.ToolUnavailable: no language model is configured.
  """
  if language_model is None:
    raise base.ToolUnavailable(
      'the generalist tool needs a language model, and none is configured: '
      'name one in the config, or leave the tool out'
    )
  sampling = sampling or records.SamplingSpec(temperature=0, max_new_tokens=512)

  async def call(arguments: Mapping[str, Any]) -> str:
    query = arguments['query']
    if not query.strip():
      raise base.BadArguments('the query is empty')
    prompt = (
      records.Segment('system', instructions.GENERALIST),
      # A planner wrote it: its text must never become a control token.
      records.Segment('user', query, trusted=False),
    )
    try:
      completion = await language_model.generate(prompt, sampling, _request_key(query))
    except language_model_lib.PromptTooLong as error:
      raise base.BadArguments(f'the query is too long: {error}') from error
    except language_model_lib.Unreachable as error:
      raise base.ToolUnreachable(f'generalist: {error}') from error
    return thoughts.said_by(completion).strip() or 'The model gave no answer.'

  return base.Tool(card=_card(sampling), call=call, timeout=timeout)


def _request_key(query: str) -> records.RequestKey:
  key = base.request_key.get()
  if key is None:
    return records.RequestKey(
      seed=0,
      purpose=records.Purpose.SOLVE,
      step=0,
      query=query,
      rollout=0,
      module='generalist',
    )
  return dataclasses.replace(key, module='generalist')


def _card(sampling: records.SamplingSpec) -> base.Card:
  return base.Card(
    name='generalist',
    purpose=(
      'Asks a language model a question that needs general knowledge or '
      'reasoning in words.'
    ),
    arguments=(base.Argument('query', 'the whole question; it sees nothing else'),),
    examples=('execution = tool.execute(query="Who wrote the novel Emma?")',),
    limits=(
      'It may be wrong, knows nothing recent, and answers with at most '
      f'{sampling.max_new_tokens} tokens.'
    ),
  )
