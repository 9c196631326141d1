"""No wrong plan earns the reward of a GeoHop question: data and reward fit."""

import asyncio
import operator

import pytest

from agentflow_jax import records
from agentflow_jax.agents.rewards import registry
from agentflow_jax.data import geohop_facts, geohop_questions

_OPERATORS = {
  '+': operator.add,
  '-': operator.sub,
  '*': operator.mul,
  '/': operator.truediv,
}


@pytest.fixture(scope='module')
def entities():
  return geohop_facts.load_entities()


def _wrong_answers(question, entities):
  """Returns answers of plans that go wrong in one place, or stop early."""
  last = question.steps[-1]
  for step in question.steps:
    if step is not last:
      yield 'stops early', step.value
    for argument in step.arguments:
      yield 'answers with an argument', argument
    if step.tool == 'search':
      for attribute, value in entities[step.arguments[0]].facts.items():
        if attribute != step.what:
          yield 'looks up another attribute', value
  if last.tool == 'python':
    a, b = last.arguments
    for name, compute in _OPERATORS.items():
      if name != last.what:
        yield 'computes something else', repr(compute(int(a), int(b)))
      if name in '-/':
        yield 'takes them in the other order', repr(compute(int(b), int(a)))


@pytest.mark.parametrize(
  'split, stride',
  [
    ('train', 20),
    pytest.param('train', 1, marks=pytest.mark.slow),
    ('validation', 1),
    ('test', 1),
  ],
)
def test_no_wrong_plan_earns_a_question_s_reward(entities, split, stride):
  """Grades every `stride`-th question with the reward that its task names."""
  reward = registry.get('match_or_number')
  questions = geohop_questions.generate(split, entities)[::stride]

  async def paid():
    earned = []
    for i, question in enumerate(questions):
      task = records.Task(str(i), question.text, (question.answer,), reward.name)
      assert await reward(task, question.answer) == 1
      for how, value in _wrong_answers(question, entities):
        if await reward(task, value):
          earned.append((question.kind, question.text, how, value))
    return earned

  assert asyncio.run(paid()) == []
