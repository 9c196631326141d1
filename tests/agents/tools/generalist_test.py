"""Tests of the generalist tool."""

import asyncio

import pytest

from agentflow_jax import records
from agentflow_jax.agents import language_model
from agentflow_jax.agents.tools import base
from agentflow_jax.agents.tools import generalist


class _Model:
  """Answers with a fixed text, or raises, and remembers what it was asked."""

  def __init__(self, answer):
    self.answer = answer
    self.requests = []

  async def generate(self, prompt, sampling, request_key):
    self.requests.append((prompt, sampling, request_key))
    if isinstance(self.answer, Exception):
      raise self.answer
    return records.Completion(text=self.answer)

  def count_tokens(self, prompt):
    return sum(len(s.text) for s in prompt)


def _ask(tool: base.Tool, query: str) -> str:
  return asyncio.run(tool.call({'query': query}))


def test_passes_the_query_untrusted_and_returns_the_text():
  model = _Model('  Jane Austen \n')
  assert _ask(generalist.make(model), 'Who wrote Emma?') == 'Jane Austen'
  ((prompt, sampling, _),) = model.requests
  assert prompt[-1] == records.Segment('user', 'Who wrote Emma?', trusted=False)
  assert [s.trusted for s in prompt] == [True, False]
  assert sampling.temperature == 0


def test_thoughts_are_no_part_of_the_answer():
  tool = generalist.make(_Model('<think>Emma ...</think>\nJane Austen'))
  assert _ask(tool, 'q') == 'Jane Austen'
  tool = generalist.make(_Model('<think>Jane Austen?'))
  assert _ask(tool, 'q') == 'The model gave no answer.'


def test_sampling_is_the_one_given():
  model = _Model('x')
  spec = records.SamplingSpec(temperature=0.7, max_new_tokens=9)
  tool = generalist.make(model, spec)
  _ask(tool, 'q')
  assert model.requests[0][1] == spec
  assert '9 tokens' in tool.card.limits


def test_randomness_follows_the_request():
  model = _Model('x')
  tool = generalist.make(model)
  key = records.RequestKey(3, records.Purpose.TRAIN, 5, 'task', 2, turn=1)

  async def within_a_request():
    base.request_key.set(key)
    await tool.call({'query': 'q'})

  asyncio.run(within_a_request())
  _ask(tool, 'q')
  _ask(tool, 'q')
  _ask(tool, 'other')
  keys = [request[2] for request in model.requests]
  assert keys[0] == records.RequestKey(
    3, records.Purpose.TRAIN, 5, 'task', 2, turn=1, module='generalist'
  )
  # Outside of a request the question alone decides.
  assert keys[1] == keys[2] != keys[3]


@pytest.mark.parametrize(
  'raised, expected',
  [
    (language_model.PromptTooLong('9 > 8'), base.BadArguments),
    (language_model.Unreachable('down'), base.ToolUnreachable),
  ],
)
def test_errors_are_named_by_who_caused_them(raised, expected):
  with pytest.raises(expected, match=str(raised)):
    _ask(generalist.make(_Model(raised)), 'q')


def test_a_bug_in_the_model_is_not_hidden():
  with pytest.raises(KeyError):
    _ask(generalist.make(_Model(KeyError('bug'))), 'q')


def test_empty_texts():
  with pytest.raises(base.BadArguments, match='empty'):
    _ask(generalist.make(_Model('x')), '  ')
  assert _ask(generalist.make(_Model(' ')), 'q') == 'The model gave no answer.'


def test_refused_without_a_language_model():
  with pytest.raises(base.ToolUnavailable, match='none is configured'):
    generalist.make(None)
