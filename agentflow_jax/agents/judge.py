"""A language model says whether an answer is right, for where a rule is too strict.

AgentFlow scores its benchmarks so (arXiv 2510.05592). Analysis comes first and the
verdict second, as one JSON object. Sampled at temperature 0, so that an endpoint's
cache keeps one verdict a question, gold answer and answer.
"""

import dataclasses
import json

from agentflow_jax import records
from agentflow_jax.agents import instructions, language_model, lenient_json
from agentflow_jax.agents import thoughts
from agentflow_jax.agents.endpoints import client

_LONGEST_ANSWER = 20_000


@dataclasses.dataclass(frozen=True)
class Verdict:
  """What a judge said of one answer.

  Attributes:
    correct: None where the judge could not be reached or understood.
    analysis: its reasons, or what went wrong.
  """

  correct: bool | None
  analysis: str


@dataclasses.dataclass(frozen=True)
class Judge:
  """Grades answers.

  Attributes:
    model: language model that judges.
    max_new_tokens: longest reply of the model [tokens].
  """

  model: language_model.LanguageModel
  max_new_tokens: int = 512

  async def __call__(
    self, task: records.Task, answer: str, key: records.RequestKey
  ) -> Verdict:
    """Returns the verdict on one answer; never raises for what a model says.

    Args:
      task: the question and its acceptable answers.
      answer: text to grade; its thoughts are left out. A blank answer is wrong,
        and the judge is not asked.
      key: key of the request.
    """
    answer = thoughts.said(answer)
    if not answer.strip():
      return Verdict(False, 'no answer')
    question = json.dumps(
      {
        'question': task.query,
        'reference_answers': list(task.answers),
        'answer': answer[-_LONGEST_ANSWER:],  # What it says in the end.
      },
      ensure_ascii=False,
    )
    try:
      return _read(
        await ask(self.model, instructions.JUDGE, question, self.max_new_tokens, key)
      )
    except Unanswered as e:
      return Verdict(None, str(e))


class Unanswered(Exception):
  """A judge was not reached, or refused to answer; says why."""


async def ask(
  model: language_model.LanguageModel,
  instruction: str,
  question: str,
  max_new_tokens: int,
  key: records.RequestKey,
) -> str:
  """Returns what a model answers to a question at temperature 0, without thoughts.

  Args:
    model: language model that judges.
    instruction: task of the judge, in words.
    question: data that it judges.
    max_new_tokens: longest answer [tokens].
    key: request key of the rollout.

  Raises:
    Unanswered: the model did not answer.
  """
  prompt = (
    records.Segment('system', instruction),
    records.Segment('user', question, trusted=False),
  )
  sampling = records.SamplingSpec(temperature=0.0, max_new_tokens=max_new_tokens)
  key = dataclasses.replace(key, module='judge')
  try:
    completion = await model.generate(prompt, sampling, key)
  except (
    client.Refused,  # Such as by a filter of contents.
    language_model.PromptTooLong,
    language_model.Unreachable,
  ) as e:
    raise Unanswered(f'{type(e).__name__}: {e}') from e
  return thoughts.said_by(completion)


def _read(text: str) -> Verdict:
  """Reads a reply; two objects that differ, such as one of the answer, are none."""
  try:
    said = lenient_json.find(text, {'correct'})
    is_clear = said == lenient_json.find(text, {'correct'}, last=True)
  except ValueError:  # It is too long.
    said, is_clear = None, False
  if said is None or not is_clear or not isinstance(said['correct'], bool):
    return Verdict(None, f'not a verdict: {text[:200] or "no text"}')
  return Verdict(said['correct'], str(said.get('analysis', '')))
