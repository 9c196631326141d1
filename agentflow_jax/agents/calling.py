"""One model that calls tools itself: its conversation, and the planner in it.

The loop of EnterpriseOps-Gym (arXiv 2603.13594): a model gets the policy of a task as
its system message and the query as the user's, calls tools, sees their results as
messages, and ends with a response without a call. It is the single-model baseline
beside the four modules of AgentFlow; agents.rollout runs both.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from agentflow_jax import records
from agentflow_jax.agents import call_text, language_model
from agentflow_jax.agents import memory as memory_lib
from agentflow_jax.agents import modules, prompts
from agentflow_jax.agents.tools import base

Messages = tuple[records.Segment, ...]


class CallingPlanner(modules.ModelPlanner):
  """A model in a conversation with tools; of `prompt`, `system` alone is read.

  A conversation that is too long is shortened like memory: the oldest results first,
  down to `shortened_tokens` each.
  """

  async def plan(self, view):
    prompt = self.compose(view)
    completion = await self.model.generate(
      prompt, self.sampling, view.key_of('planner'), tools=functions(view.cards)
    )
    return completion, self.sampling

  def compose(self, view: modules.View) -> Messages:
    """Composes the conversation so far, shortening older results until it fits.

    Raises:
      PromptTooLong: it does not fit with every result shortened.
    """
    count = language_model.text_counter(self.model)
    for shortened, messages in enumerate(
      _shortenings(view.messages, count, self.shortened_tokens)
    ):
      prompt = opening(self.prompt, view.memory) + messages
      tokens = self.model.count_tokens(prompt, functions(view.cards))
      if tokens <= self.max_prompt_tokens:
        view.counts['shortened'] += shortened
        return prompt
    raise language_model.PromptTooLong(
      f'the conversation has {tokens} tokens, more than {self.max_prompt_tokens},'
      ' with every result of a tool shortened'
    )

  def count_tokens(self, cards: Sequence[base.Card], memory: memory_lib.Memory) -> int:
    prompt = opening(self.prompt, memory)
    return self.model.count_tokens(prompt, functions(cards))


def opening(config: prompts.PromptConfig, memory: memory_lib.Memory) -> Messages:
  """Returns the messages before the first turn.

  The system message is the instructions of the config, if any, and the policy of the
  task's world, if any; the user's is the query, with the analysis behind it, if any.
  """
  found = [records.Segment('system', config.system)] if config.system else []
  if memory.policy:
    if found:
      found.append(records.Segment('system', '\n\n'))
    found.append(records.Segment('system', memory.policy, trusted=False))
  found.append(records.Segment('user', memory.query, trusted=False))
  if memory.analysis:
    found += [
      records.Segment('user', '\n\n'),
      records.Segment('user', memory.analysis, trusted=False),
    ]
  return tuple(found)


def turn(
  said: call_text.Said,
  results: Sequence[records.ToolResult],
  shorten: Callable[[str], str],
) -> Messages:
  """Returns the messages of one turn: the response, and what came of its calls.

  Args:
    said: response.
    results: result of each of its calls, and behind them one of each of its problems.
    shorten: function from a result's text to the text that is shown.
  """
  texts = [
    shorten(result.text if result.error is None else f'Error: {result.text}')
    for result in results
  ]
  count = len(said.calls)
  shown = texts[:count]
  role = 'tool'
  if said.problems:
    # Behind the last result: some templates want no user between tool and assistant.
    shown[-1:] = ['\n'.join([*shown[-1:], *texts[count:]])]
    role = 'tool' if count else 'user'
  return (
    records.Segment('assistant', said.content, False, said.calls),
    *(records.Segment(role, text, trusted=False) for text in shown),
  )


def functions(cards: Sequence[base.Card]) -> tuple[dict[str, Any], ...]:
  """Returns cards of tools as OpenAI's interface describes tools."""
  return tuple(map(_function, cards))


def _function(card: base.Card) -> dict[str, Any]:
  return {
    'type': 'function',
    'function': {
      'name': card.name,
      'description': '\n'.join(filter(None, (card.purpose, card.limits))),
      'parameters': base.schema_of(card),
    },
  }


def _shortenings(
  messages: Messages, count: Callable[[str], int], tokens: int
) -> Iterator[Messages]:
  """Yields the messages, and then shorter ones, one more result shortened each time."""
  yield messages
  for i, message in enumerate(messages):
    if message.role != 'tool' or count(message.text) <= tokens:
      continue
    text = memory_lib.shorten(message.text, count, tokens)
    if len(text) < len(message.text):
      message = dataclasses.replace(message, text=text)
      messages = (*messages[:i], message, *messages[i + 1 :])
      yield messages
