"""Rates an answer against facts, for checks of kind 'response'."""

import dataclasses
import json
import re
from typing import Any

from agentflow_jax import records
from agentflow_jax.agents import instructions, judge, language_model, thoughts
from agentflow_jax.agents.environments import base, checks

_RATING = re.compile(r'rating\W{0,5}(\d{1,2})\b', re.IGNORECASE)
_LONGEST = 20_000


@dataclasses.dataclass(frozen=True)
class AnswerJudge:
  """A language model that rates answers.

  Attributes:
    model: language model that rates.
    max_new_tokens: longest reply of the model [tokens].
  """

  model: language_model.LanguageModel
  max_new_tokens: int = 256

  async def check(
    self, check: records.Check, facts: Any, answer: str, key: records.RequestKey
  ) -> records.CheckResult:
    """Makes a check of kind 'response'.

    Args:
      check: check to make.
      facts: result of the check's query, as a value of JSON.
      answer: text to rate, see `rate`.
      key: request key of the rollout.

    Raises:
      JudgeUnreachable: see `rate`.
    """
    rating = await self.rate(
      check.spec['comparison_prompt'], json.dumps(facts, default=str), answer, key
    )
    return records.CheckResult(
      check.name,
      check.kind,
      rating >= checks.minimum_rating(check),
      f'rated {rating} of 10',
    )

  async def rate(
    self, condition: str, facts: str, answer: str, key: records.RequestKey
  ) -> int:
    """Returns a rating from 1 to 10.

    Args:
      condition: requirement that the answer has to meet, in words.
      facts: result of the check's query, as JSON.
      answer: text to rate; its thoughts are left out. A blank one is rated 1
        without asking the model.
      key: request key of the rollout.

    Raises:
      JudgeUnreachable: the model did not answer, or not with a rating.
    """
    answer = thoughts.said(answer)
    if not answer.strip():
      return 1
    question = json.dumps(
      {'condition': condition, 'facts': facts[:_LONGEST], 'answer': answer[-_LONGEST:]},
      ensure_ascii=False,
    )
    try:
      said = await judge.ask(
        self.model, instructions.RATER, question, self.max_new_tokens, key
      )
    except judge.Unanswered as e:
      raise base.JudgeUnreachable(f'judge: {e}') from e
    found = _RATING.findall(said)
    if not found or not 1 <= int(found[-1]) <= 10:
      raise base.JudgeUnreachable('judge: its reply holds no rating from 1 to 10')
    return int(found[-1])
