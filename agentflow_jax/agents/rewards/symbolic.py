"""Symbolic equivalence, judged by math-verify in a killable child process.

math-verify stops itself with a signal, which works in the main thread only,
and its arithmetic can hang or take all memory. So it runs in a child with its
own limits (`symbolic_worker`).
"""

import dataclasses
import importlib.util
import os
import re
from collections.abc import Sequence

from absl import logging

from agentflow_jax.agents import child
from agentflow_jax.agents.rewards import numeric
from agentflow_jax.agents.rewards import text

_WORKER = os.path.join(
    os.path.dirname(os.path.abspath(__file__)), 'symbolic_worker.py'
)

# What math-verify does not read, in a form that it does; in this order.
_SPELLINGS = (
    (re.compile(r'\\\$'), ''),
    (
        re.compile(
            r'(?<![\w)\]}*])\*\*(?=\S)([^*]+)(?<=\S)\*\*(?![\w(\[{*])'
        ),
        r'\1',
    ),
    (re.compile(r'(?<=[\w)])(?:\*\*|\^)\s*(-?\d+)'), r'^{\1}'),
    # Not "3–5", which is a range.
    (
        re.compile(r'(?<![\w)\]}])[\u2010-\u2013\ufe63\uff0d]\s?(?=[\d\\(.])'),
        '-',
    ),
    (
        re.compile(r'(?<=\d)(?:[\u00a0\u2009\u202f]|\\[,!])(?=\d{3}(?!\d))'),
        '',
    ),
    (
        re.compile(r'(?<![\w.])(\d+(?:\.\d+)?)[eE]([-+]?\d{1,3})(?!\w)'),
        r'\1 \\times 10^{\2}',
    ),
    (
        re.compile(r'(?<![\w.,/])(\d+)\s+(\d+)/(\d+)(?![\w/])'),
        r'\1\\frac{\2}{\3}',
    ),
    (re.compile(r'√\s*(\d+|[a-z]\b)'), r'\\sqrt{\1}'),
    (re.compile(r'√\s*\(([^()]*)\)'), r'\\sqrt{\1}'),
)
_FULL_WIDTH = str.maketrans(
    '０１２３４５６７８９（）［］，．／＝＋', '0123456789()[],./=+'
)
_MATHEMATICS = re.compile(r'\$[^$]*\$|\\\(.*?\\\)|-?[\d.,]*\d(?:/\d+)?')


def spell(said: str) -> str:
  """Rewrites what a person reads and math-verify does not.

  Full-width digits, typographers' minus signs and spaces, scientific notation
  ("1e3"), mixed numbers ("1 1/2"), roots ("√3"), Markdown's bold, dollar signs
  that are a currency, number words that stand alone ("three"); and what is
  denied ("not 5") goes, or it would be read as said.

  Args:
    said: a gold, or the part of a response that counts.
  """
  if (value := numeric.parse(said)) is not None and said.strip().isalpha():
    return str(value)
  said = said.translate(_FULL_WIDTH)
  for pattern, replacement in _SPELLINGS:
    said = pattern.sub(replacement, said)
  return _MATHEMATICS.sub(
      lambda m: '' if text.is_denied(said, m.start()) else m[0], said
  )


@dataclasses.dataclass(frozen=True)
class Limits(child.Limits):
  """What one check may cost.

  Attributes:
    characters: longer answers are wrong.
  """

  characters: int = 2000


class Checker:
  """Checks equivalence in a child process; one check at a time.

  Use it from one event loop and await `aclose` at the end. Cancelling a check
  kills the child, so that no reply is ever read by another check.

  Args:
    limits: what one check may cost.

  Raises:
    ValueError: math-verify is not installed.
  """

  def __init__(self, limits: Limits = Limits()):
    if importlib.util.find_spec('math_verify') is None:
      raise ValueError(
          'the symbolic reward needs math-verify: '
          'pip install "math-verify[antlr4_13_2]"'
      )
    self._limits = limits
    self._child = child.Child(_WORKER, limits)

  @property
  def pid(self) -> int | None:
    """The child's process id, or None while there is no child."""
    return self._child.pid

  async def equal(self, golds: Sequence[str], answer: str) -> bool:
    """Whether a response is equivalent to an acceptable answer.

    Args:
      golds: acceptable answers, as LaTeX or plain arithmetic.
      answer: the response; `text.extract` says which part of it counts.

    Returns:
      The verdict. A response that is too long, takes too much CPU time or
      twice brings the child down is wrong.

    Raises:
      ValueError: no acceptable answer can be read as mathematics.
      language_model.Unreachable: the child does not start, or twice gave no
        reply in time without using its CPU time.
    """
    said = text.extract(answer)
    if not said or len(said) > self._limits.characters:
      return False
    # The common case costs no process.
    if ''.join(said.split()) in {''.join(g.split()) for g in golds}:
      return True
    request = {'golds': [spell(g) for g in golds], 'answer': spell(said)}
    try:
      reply = await self._child.ask(request)
    except child.Broken as error:
      logging.warning('symbolic check: %s: scored as wrong', error)
      return False
    if 'error' in reply:
      raise ValueError(reply['error'])
    return reply['equal']

  async def aclose(self) -> None:
    """Ends the child, if there is one; the checker can be used again."""
    await self._child.aclose()
