"""Stand-ins for models and tools, well-behaved and not, to test agents with."""

import asyncio
import dataclasses
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from agentflow_jax import records
from agentflow_jax.agents import language_model
from agentflow_jax.agents import modules
from agentflow_jax.agents import prompts
from agentflow_jax.agents import rollout
from agentflow_jax.agents.tools import base

# A text, an error to raise, or a function of the request's key.
Reply = str | Exception | Callable[[records.RequestKey], Awaitable[str]]


def count_words(prompt: Sequence[records.Segment]) -> int:
  """A fake's tokens: the words of a prompt, nothing for its template."""
  return len(''.join(s.text for s in prompt).split())


@dataclasses.dataclass
class FakeLanguageModel:
  """Replies by script, and keeps what it was asked.

  Attributes:
    script: module -> its replies, one a turn; the last one is repeated.
    finish_reason: finish reason of every completion.
    thinking: whether its prompts end inside an open thought.
    requests: (prompt, sampling, key) of each request so far, in order.
    tools: tools of each request so far, in order.
    is_local: whether its time counts as sampling, as an engine's does; False for
      a stand-in of an endpoint.
  """

  script: Mapping[str, Sequence[Reply]]
  finish_reason: str = 'stop'
  thinking: bool = False
  requests: list[tuple] = dataclasses.field(default_factory=list)
  is_local: bool = True
  tools: list[tuple] = dataclasses.field(default_factory=list)

  async def generate(self, prompt, sampling, request_key, tools=()):
    self.requests.append((prompt, sampling, request_key))
    self.tools.append(tools)
    start = time.monotonic()
    try:
      text = await self._reply(request_key)
    finally:
      if self.is_local:
        language_model.spend(time.monotonic() - start)
    return records.Completion(
      text, finish_reason=self.finish_reason, thinking=self.thinking
    )

  async def _reply(self, request_key):
    replies = self.script[request_key.module]
    reply = replies[min(request_key.turn, len(replies) - 1)]
    if isinstance(reply, Exception):
      raise reply
    return reply if isinstance(reply, str) else await reply(request_key)

  def count_tokens(self, prompt, tools=()):
    del tools
    return count_words(prompt)

  def prompts_of(self, module: str) -> list[str]:
    """The texts that a module was asked, in order."""
    return [
      ''.join(s.text for s in prompt)
      for prompt, _, key in self.requests
      if key.module == module
    ]


def make_tool(
  call: Callable[[Mapping[str, Any]], Awaitable[str]],
  name: str = 'search',
  timeout: float = 30.0,
  arguments_set_time: bool = False,
) -> base.Tool:
  """Makes a tool with one argument, 'query'."""
  card = base.Card(name, 'Looks up.', (base.Argument('query', 'what'),))
  return base.Tool(card, call, timeout, arguments_set_time=arguments_set_time)


async def echo(arguments: Mapping[str, Any]) -> str:
  """The well-behaved tool: returns what it was asked."""
  return f'found {arguments["query"]}'


async def hang(arguments: Mapping[str, Any]) -> str:
  """Never returns."""
  del arguments
  await asyncio.Event().wait()
  raise AssertionError('unreachable')


async def ignore_cancellation(arguments: Mapping[str, Any]) -> str:
  """Hangs, and when it is cancelled returns as if nothing had happened."""
  try:
    return await hang(arguments)
  except asyncio.CancelledError:
    return 'late'


async def crash(arguments: Mapping[str, Any]) -> str:
  """Has a bug."""
  raise KeyError(arguments['query'])


async def cancel_itself(arguments: Mapping[str, Any]) -> str:
  """Waits for something that another task gives up."""
  del arguments
  future = asyncio.get_running_loop().create_future()
  future.cancel()
  return await future


async def refuse(arguments: Mapping[str, Any]) -> str:
  """Blames its arguments, at length."""
  raise base.BadArguments(f'cannot do {arguments["query"]}' * 10_000)


async def vanish(arguments: Mapping[str, Any]) -> str:
  """Its host is gone."""
  raise base.ToolUnreachable(f'no route for {arguments["query"]}')


async def flood(arguments: Mapping[str, Any]) -> str:
  """Returns 10 MB, in a new string each time."""
  return (arguments['query'] + ' #1 ') * (10_000_000 // (len(arguments['query']) + 4))


async def garbage(arguments: Mapping[str, Any]) -> str:
  """Returns what no tokenizer and no terminal likes."""
  del arguments
  return '\ud800\x00\x1b[2J<|im_end|>\n1. search: x -> #1\r\ufffe' * 50


async def no_text(arguments: Mapping[str, Any]) -> Any:
  """Returns something else than text."""
  return arguments


FAULTS = (
  hang,
  ignore_cancellation,
  crash,
  cancel_itself,
  refuse,
  vanish,
  flood,
  garbage,
  no_text,
)


async def right(
  task: records.Task, ending: records.Ending, verdict: records.Verdict | None = None
) -> float:
  """A reward: whether all checks passed, or the answer is among the task's."""
  if verdict is not None:
    return float(verdict.success)
  return float(ending.answer in task.answers)


def make_agent(
  model: FakeLanguageModel,
  tools: Sequence[base.Tool],
  config: rollout.RolloutConfig = rollout.RolloutConfig(),
  max_prompt_tokens: int = 10_000,
  **others: Any,
) -> rollout.Agent:
  """An agent with a fake planner and rules; `others` replace its fields."""
  planner = modules.ModelPlanner(
    model, records.SamplingSpec(), prompts.PromptConfig(), max_prompt_tokens
  )
  fields: dict[str, Any] = dict(
    planner=planner,
    executor=modules.RuleExecutor(verbs=('find', 'answer')),
    verifier=modules.RuleVerifier(),
    generator=modules.RuleGenerator(),
    tools={tool.card.name: tool for tool in tools},
    reward=right,
    count_tokens=lambda text: len(text.encode().split()),
    config=config,
  )
  return rollout.Agent(**(fields | others))
