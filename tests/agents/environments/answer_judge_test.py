"""Ratings of answers by a language model."""

import asyncio
import json

import pytest

from agentflow_jax import records
from agentflow_jax.agents import fakes, language_model
from agentflow_jax.agents.environments import answer_judge, base

_KEY = records.RequestKey(0, records.Purpose.TRAIN, 3, 't', 1)


def _rate(reply, answer='It is done.'):
  model = fakes.FakeLanguageModel({'judge': [reply]})
  judge = answer_judge.AnswerJudge(model)
  rated = asyncio.run(judge.rate('polite?', '[1, "x"]', answer, _KEY))
  return rated, model.requests


@pytest.mark.parametrize(
  ('reply', 'rating'),
  [
    ('It is polite.\nRating: 9', 9),
    ('Rating: 2. No, after all:\nRating: 10', 10),
    ('**Rating**: 7', 7),
    ('rating = 1', 1),
  ],
)
def test_the_last_rating_counts(reply, rating):
  found, ((prompt, sampling, key),) = _rate(reply)
  assert found == rating
  assert (key.module, sampling.temperature) == ('judge', 0.0)
  said = json.loads(prompt[1].text)
  assert said == {'condition': 'polite?', 'facts': '[1, "x"]', 'answer': 'It is done.'}
  assert not prompt[1].trusted and prompt[0].trusted


@pytest.mark.parametrize(
  'reply',
  [
    'It is good.',
    'Rating: 11',
    'Rating: 0',
    language_model.Unreachable('down'),
    language_model.PromptTooLong('long'),
  ],
)
def test_without_a_rating_the_judge_failed_and_not_the_answer(reply):
  with pytest.raises(base.JudgeUnreachable, match='judge: '):
    _rate(reply)


def test_a_blank_answer_is_wrong_without_asking():
  assert _rate('Rating: 10', answer=' <think>done</think> ') == (1, [])
