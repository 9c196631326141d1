"""Normalised exact match and F1 over words, as SQuAD defines them.

SQuAD (arXiv 1606.05250): lower case, no punctuation, no articles, single
spaces. Three things are changed, because answers here come from models in any
language: Unicode punctuation counts as punctuation, and accents on letters
are ignored ("São Paulo" matches "Sao Paulo"). And a decimal point and a minus
sign stay, or "1.5" would match "15" and "-5" match "5".
"""

import collections
import re
import string
import unicodedata
from collections.abc import Sequence

_ARTICLES = frozenset({'a', 'an', 'the'})
# HotpotQA's addition to F1: these share no credit with a longer answer.
_ALL_OR_NOTHING = frozenset({'yes', 'no', 'noanswer'})
_TAG = re.compile(r'<(/?)answer>', re.IGNORECASE)
_POINT_OR_MINUS = re.compile(r'(?:(?<=\d)|(?<![\w.]))\.(?=\d)|(?<![\w.])-(?=\.?\d)')
_BOXED = re.compile(r'\\boxed\s*\{|\\fbox\s*\{')
# A brace of TeX, or a backslash with what it makes a character or a command.
_BRACE = re.compile(r'\\.|[{}]', re.DOTALL)
_IDLE_SPACE = re.compile(r'(?<!\w)\s+|\s+(?!\w)')
_LATEX_TEXT = re.compile(r'\\(?:text|textbf|mathrm|mathbf)\s*\{([^{}]*)\}')
# What stands right before a thing that is said NOT to be the answer.
_DENIAL = re.compile(
  r"(?:\b(?:not|rather than|instead of)|\bcannot|n['’]?t)\s+"
  r'(?:(?:in|on|at|be|the|equal to)\s+)*[^\w\s]*$',
  re.IGNORECASE,
)
_DENIAL_CHARACTERS = 60  # of the text before that are looked at


def extract(answer: str) -> str:
  """Returns the part of a response that is meant as the answer.

  The content of the last `<answer>...</answer>`, else the whole response; of
  that, the content of the last `\\boxed{...}` where there is one; stripped. A
  tag or a box that is opened after these and never closed takes them back: the
  response was cut off in the middle of its answer, so there is none. There is
  deliberately no guessing from phrases: a planner would learn to use them.
  """
  tagged = None
  opened = None
  for tag in _TAG.finditer(answer):
    if not tag[1]:
      opened = tag.end()
    elif opened is not None:
      tagged, opened = answer[opened : tag.start()], None
  if tagged is not None:
    if opened is not None:
      return ''
    answer = tagged
  boxed = unbox(answer)
  return answer.strip() if boxed is None else boxed


def unbox(answer: str) -> str | None:
  """Returns the content of the last `\\boxed{...}`, or None without a box.

  Braces are counted as TeX does: `\\{` is a character and opens no group. The
  content of a last box that is cut off is unknown: it is ''.
  """
  found = None
  position = 0
  while match := _BOXED.search(answer, position):
    end = _closing_brace(answer, match.end())
    if end is None:
      return ''
    found = answer[match.end() : end].strip()
    position = end
  return found


def _closing_brace(text: str, start: int) -> int | None:
  """Index of the brace that closes the one just before `start`."""
  depth = 1
  for brace in _BRACE.finditer(text, start):
    depth += {'{': 1, '}': -1}.get(brace[0], 0)
    if depth == 0:
      return brace.start()
  return None


def unwrap(text: str) -> str:
  """Returns text without LaTeX's marks of text: "\\text{Paris}" is Paris."""
  return _LATEX_TEXT.sub(r'\1', text)


def close_up(text: str) -> str:
  """Takes out spaces that separate nothing: not the one of "3 1/2"."""
  return _IDLE_SPACE.sub('', text)


def is_denied(text: str, start: int) -> bool:
  """Whether what starts at an index is denied: "not 7", "isn't in 1959"."""
  return bool(_DENIAL.search(text[max(0, start - _DENIAL_CHARACTERS) : start]))


def words(text: str) -> list[str]:
  """Splits text into normalised words.

  Args:
    text: anything.

  Returns:
    Words without case, accents, punctuation and articles. What has nothing
    else keeps its articles ("The The"), and what is all punctuation stays as
    it is, so that only blank text gives no words.
  """
  # Accents come off by decomposition, but only those of the Latin, Greek and
  # Cyrillic block: elsewhere a combining mark can be a vowel. Folding can
  # compose or decompose again, so it comes first.
  folded = unicodedata.normalize('NFKD', text.casefold().replace('−', '-'))
  kept = ''.join(c for c in folded if not '\u0300' <= c <= '\u036f')
  kept = unicodedata.normalize('NFKC', kept)
  plain = ''.join(
    c
    for c, is_part in zip(kept, _parts_of_numbers(kept), strict=True)
    if is_part or not _is_punctuation(c)
  ).split()
  return [w for w in plain if w not in _ARTICLES] or plain or kept.split()


def _parts_of_numbers(text: str) -> list[bool]:
  """Marks decimal points and minus signs, as they occur in -1.5 and -.5."""
  marks = [False] * len(text)
  for match in _POINT_OR_MINUS.finditer(text):
    marks[match.start()] = True
  return marks


def _is_punctuation(character: str) -> bool:
  return character in string.punctuation or unicodedata.category(character).startswith(
    'P'
  )


def normalise(text: str) -> str:
  """Returns the normalised words, joined by single spaces."""
  return ' '.join(words(text))


def exact_match(answers: Sequence[str], answer: str) -> float:
  """Scores 1 if a response equals an acceptable answer once normalised.

  Args:
    answers: acceptable answers.
    answer: the response; `extract` says which part of it counts.

  Returns:
    1.0 or 0.0. A blank response scores 0, whatever is acceptable.
  """
  said = normalise(extract(answer))
  return float(bool(said) and any(said == normalise(a) for a in answers))


_LONGEST_QUOTE = 50


def contains(answers: Sequence[str], answer: str) -> float:
  """Scores 1 where a response quotes an acceptable answer, else 0.

  A quotation is the words of an acceptable answer in their order, next to each other.
  The response must have at most 50 words, so that it is one passage and not a
  collection of passages. A negation is not recognised; if a module writes the answer
  alone, prefer `short_answer`.

  Args:
    answers: acceptable answers.
    answer: response, of which the part counts that `extract` returns.

  Returns:
    1.0 or 0.0.
  """
  said = words(extract(answer))
  if len(said) > _LONGEST_QUOTE:
    return 0.0
  return float(any(_stands_in(words(gold), said) for gold in answers))


def _stands_in(gold: list[str], said: list[str]) -> bool:
  return bool(gold) and any(
    said[i : i + len(gold)] == gold for i in range(len(said) - len(gold) + 1)
  )


def f1(answers: Sequence[str], answer: str) -> float:
  """Scores the overlap of words with the acceptable answer that fits best.

      F1 = 2 |gold ∩ said| / (|gold| + |said|)     over multisets of words

  which is the harmonic mean of precision and recall (SQuAD, section 6.1).
  "yes" and "no" are right or wrong as a whole (HotpotQA).

  Args:
    answers: acceptable answers.
    answer: the response; `extract` says which part of it counts.

  Returns:
    A number in [0, 1].
  """
  said = words(extract(answer))
  return max((_f1(words(gold), said) for gold in answers), default=0.0)


def _f1(gold: list[str], said: list[str]) -> float:
  if not gold or not said:
    return 0.0
  if gold != said and any(
    len(w) == 1 and w[0] in _ALL_OR_NOTHING for w in (gold, said)
  ):
    return 0.0
  common = collections.Counter(gold) & collections.Counter(said)
  return 2.0 * common.total() / (len(gold) + len(said))
