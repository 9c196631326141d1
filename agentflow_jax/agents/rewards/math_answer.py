"""Whether a response in words and mathematics says what a gold says."""

import contextlib
import re

from agentflow_jax.agents.rewards import math_equal
from agentflow_jax.agents.rewards import math_forms
from agentflow_jax.agents.rewards import math_reader
from agentflow_jax.agents.rewards import math_text
from agentflow_jax.agents.rewards import text

_SIGNS = re.compile(r'[\d\\^_=+<>*/|{}()\[\]]')
_DASH = re.compile('[\u2010-\u2014]')


def same(gold: str, said: str) -> bool:
  """Whether a response answers as an acceptable answer does.

  A response that is mathematics as a whole is compared as one value. In a
  sentence, every piece of mathematics must equal the gold; see
  `math_text.segments`. A gold that is no mathematics ("No") is compared by its
  words.

  Args:
    gold: acceptable answer.
    said: the part of a response that counts.
  """
  gold = text.unbox(gold) or gold
  golds = _values(gold)
  if not golds:
    return _same_words(gold, said)
  if values := _values(said):
    return _any_equal(golds, values)
  pieces = math_text.segments(text.unwrap(said))
  return bool(pieces) and all(_any_equal(golds, _values(piece)) for piece in pieces)


def _values(written: str) -> list[math_forms.Value]:
  """Reads text as mathematics; twice where "1,234" could be a list."""
  spelled = math_text.spell(written)
  found: list[math_forms.Value] = []
  for grouped in (True, False):
    with contextlib.suppress(math_forms.Unreadable):
      value = math_reader.read(spelled, grouped)
      if value not in found:
        found.append(value)
  return found


def _any_equal(golds: list[math_forms.Value], values: list[math_forms.Value]) -> bool:
  return any(math_equal.equal(g, v) for g in golds for v in values)


def _same_words(gold: str, said: str) -> bool:
  """Compares words; signs and digits count where there are any."""
  gold, said = (text.unwrap(t).strip(' .$') for t in (gold, said))
  if _SIGNS.search(gold):
    gold, said = (
      text.close_up(_DASH.sub('-', math_text.spell(t))) for t in (gold, said)
    )
    return gold == said
  return text.normalise(gold) == text.normalise(said)
