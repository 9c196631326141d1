"""Shortens older memory entries until a prompt fits.

The planner's prompt and the prompts of frozen modules are shortened in the same
way. A prompt that is still too long counts against the planner if it fits
without the planner's words and the results of its calls; otherwise the config
is at fault.
"""

import dataclasses
from collections.abc import Awaitable, Callable, Iterator

from agentflow_jax import records
from agentflow_jax.agents import language_model
from agentflow_jax.agents import memory as memory_lib

# Number of tokens that are left of the result of a shortened entry.
SHORTENED_TOKENS = 14

Prompt = tuple[records.Segment, ...]


class PlannerTooLong(language_model.PromptTooLong):
  """A frozen module's prompt is too long because of what the planner did."""


def shortenings(
  memory: memory_lib.Memory,
  model: language_model.LanguageModel,
  tokens: int = SHORTENED_TOKENS,
) -> Iterator[memory_lib.Memory]:
  """Yields a memory, and then shorter ones, one more entry shortened each time.

  Args:
    memory: whole memory, which comes first.
    model: model whose tokens are counted.
    tokens: most that is left of the result of a shortened entry.
  """
  yield memory
  count = language_model.text_counter(model)
  while (shorter := memory.shorten_older(count, tokens)) is not None:
    yield shorter
    memory = shorter


async def ask(
  model: language_model.LanguageModel,
  generate: Callable[[Prompt], Awaitable[records.Completion]],
  compose: Callable[[memory_lib.Memory], Prompt],
  memory: memory_lib.Memory,
) -> tuple[records.Completion, int]:
  """Asks a frozen model, with less memory each time that it refuses the prompt.

  The model alone knows how long a prompt may be: an endpoint does not tell.

  Args:
    model: model that counts the tokens.
    generate: function that asks the model.
    compose: function from a memory to the prompt.
    memory: whole memory.

  Returns:
    The completion, and the number of entries that were shortened for it.

  Raises:
    language_model.PromptTooLong: the prompt is too long with every entry
      shortened.
  """
  refusal: Exception = language_model.PromptTooLong('nothing fits')
  for shorter in shortenings(memory, model):
    try:
      completion = await generate(compose(shorter))
    except language_model.PromptTooLong as e:
      refusal = e
    else:
      return completion, shorter.shortened - memory.shortened
  raise refusal


async def explained(
  refusal: language_model.PromptTooLong,
  generate: Callable[[Prompt], Awaitable[records.Completion]],
  alone: Prompt,
) -> language_model.PromptTooLong:
  """Returns an error that blames the planner or the config for a long prompt.

  Args:
    refusal: error of the prompt with every entry shortened.
    generate: function that asks the model.
    alone: same prompt without the planner's words and the results of its calls.
      The model is asked with it only to see whether it refuses this one, too.
  """
  try:
    await generate(alone)
  except language_model.PromptTooLong as e:
    return config_too_long(e)
  return PlannerTooLong(
    'the plans and the results of their calls are too long, with every memory'
    f' entry shortened: {refusal}'
  )


def config_too_long(
  refusal: language_model.PromptTooLong,
) -> language_model.PromptTooLong:
  """Returns the error of a prompt without turns that a model refused."""
  return language_model.PromptTooLong(
    'the model has no room for the query and the instructions, even without any'
    ' turn; give it a longer context, or remove the task from the task set:'
    f' {refusal}'
  )


def without_turns(memory: memory_lib.Memory) -> memory_lib.Memory:
  """Returns a memory that holds only the query and its analysis."""
  return dataclasses.replace(memory, entries=())
