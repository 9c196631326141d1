"""Symbolic equivalence, judged in a killable child process.

Exact arithmetic on what a model writes can hang or take all memory ("(9^9)!").
So `math_reader` and `math_equal` run in a child with its own limits
(`symbolic_worker`).

The package math-verify is not used: it drops what it cannot read (dots of a list,
a side of an equation), reads short words as products and rounds to six places
before it compares, so that wrong answers were paid.
"""

import dataclasses
import os
from collections.abc import Sequence

from absl import logging

from agentflow_jax.agents import child
from agentflow_jax.agents.rewards import text

_WORKER = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'symbolic_worker.py')


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
    limits: bounds of one check.
  """

  def __init__(self, limits: Limits = Limits()):
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
    if text.close_up(said) in map(text.close_up, golds):
      return True
    request = {'golds': list(golds), 'answer': said}
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
