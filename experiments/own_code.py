"""Examples of a tool, a reward and a module of one's own.

They are named in a config, or by flags, without a change to the package:

  --config.agent.tools.own=experiments/own_code.py:convert_length
  --config.task_set.reward=experiments/own_code.py:right_and_brief
  --config.agent.generator.own=experiments/own_code.py:LastResult
  --config.agent.generator.own=experiments/own_code.py:OneSentence \\
      --config.agent.generator.backend=frozen
"""

from typing import Literal

from agentflow_jax import records

_METRES = {'m': 1.0, 'km': 1000.0, 'ft': 0.3048, 'mi': 1609.344}
Unit = Literal['m', 'km', 'ft', 'mi']


def convert_length(value: float, unit: Unit, to: Unit) -> str:
  """Converts a length from one unit to another.

  It knows metres, kilometres, feet and miles.

  Args:
    value: the length.
    unit: unit of the length.
    to: unit of the result.
  """
  if value < 0:
    raise ValueError('a length is not negative')  # Text for the model.
  return f'{value * _METRES[unit] / _METRES[to]:.6g} {to}'


async def count_letters(text: str, letter: str | None = None) -> int:
  """Counts the letters of a text.

  Args:
    text: the text.
    letter: letter to count; all of them where it is left out.
  """
  # An asynchronous tool may await a database or a server here.
  return sum(c.isalpha() if letter is None else c == letter for c in text)


def right_and_brief(task: records.Task, answer: str) -> dict[str, float]:
  """Rewards an answer that holds an acceptable one, and a little that it is brief."""
  is_right = any(a.casefold() in answer.casefold() for a in task.answers)
  return {'right': float(is_right), 'brief': 0.1 * (len(answer.split()) <= 5)}


class LastResult:
  """A generator that answers with what the last tool call returned."""

  async def answer(self, view):
    entries = view.memory.plain().entries
    return entries[-1].result if entries else ''


class OneSentence:
  """A generator that asks a language model with a prompt of its own."""

  def __init__(self, model):
    self._model = model

  async def answer(self, view):
    memory = view.memory.plain()
    found = '\n'.join(entry.result for entry in memory.entries)
    prompt = (
      records.Segment('system', 'Answer with one short sentence.', True),
      # What tools and users write is never trusted.
      records.Segment('user', f'{memory.query}\n\n{found}', False),
    )
    sampling = records.SamplingSpec(temperature=0.0, max_new_tokens=24)
    done = await self._model.generate(prompt, sampling, view.key_of('generator'))
    return done.text.strip()
