"""Short answers of any kind, compared as a careful reader would.

Numbers by value, dates by day, yes and no by what a response opens with, and
everything else by its normalised words (`text`). A response is read as a
whole: an acceptable answer somewhere in it is worth nothing.
"""

import re
from collections.abc import Sequence

from agentflow_jax.agents.rewards import numeric
from agentflow_jax.agents.rewards import text

_MONTHS = (
  'january',
  'february',
  'march',
  'april',
  'may',
  'june',
  'july',
  'august',
  'september',
  'october',
  'november',
  'december',
)
_MONTH = r'(?P<month>[a-z]{3,9})\.?'
_DAY = r'(?P<day>\d{1,2})(?:st|nd|rd|th)?'
_YEAR = r'(?P<year>\d{3,4})'
# Not 01/05/1964, which is a day in January here and one in May there.
_DATES = tuple(
  re.compile(rf'(?:on\s+)?(?:the\s+)?(?:[a-z]+day,?\s+)?{date}', re.IGNORECASE)
  for date in (
    rf'{_DAY}\s+(?:of\s+)?{_MONTH},?\s+{_YEAR}',
    rf'{_MONTH}\s+{_DAY},?\s+{_YEAR}',
    rf'{_YEAR}-(?P<month>\d{{1,2}})-(?P<day>\d{{1,2}})',
  )
)
_DATE_CHARACTERS = 60
# Only where it opens a response: what follows has to match as a whole, so that
# nothing is gained by writing it.
_FRAME = re.compile(
  r'\W*(?:(?:so|thus|hence|therefore)\W+)?(?:(?:the|my|our)\s+)?'
  r'(?:(?:final|correct|right)\s+)?answer(?:\s+is|[*\s]*:)[*:\s]*',
  re.IGNORECASE,
)
_VERDICT = re.compile(r'\W*(yes|no)\b[*_]*(?:[,;:!–—]|\.(?!\s*\d))', re.IGNORECASE)


def short_answer(answers: Sequence[str], answer: str) -> float:
  """Scores 1 if a response says an acceptable answer and nothing else.

  Args:
    answers: acceptable answers. A whole number is a count or a year and has to
      be met exactly; one with a decimal point is a measurement and met within
      `numeric.RELATIVE_TOLERANCE`.
    answer: the response; `text.extract` says which part of it counts.

  Returns:
    1.0 or 0.0.
  """
  said = text.unwrap(text.extract(answer))
  bare = said[match.end() :] if (match := _FRAME.match(said)) else said
  date = read_date(bare)
  number = str(date[0]) if date else said
  return float(any(_fits(gold, said, bare, date, number) for gold in answers))


def _fits(
  gold: str, said: str, bare: str, date: tuple[int, int, int] | None, number: str
) -> bool:
  """Whether a response says one acceptable answer.

  Args:
    gold: the acceptable answer.
    said: the response.
    bare: it without "The answer is".
    date: the day that it is, if it is one.
    number: text in which numbers are looked for: a day's year, or `said`.
  """
  value = numeric.parse(gold)
  if value is not None:
    exact = value.denominator == 1
    tolerance = 0.0 if exact else numeric.RELATIVE_TOLERANCE
    if numeric.number([gold], number, tolerance):
      return True
    if not gold.strip().isalpha():  # "two" is a name too, "15" is not "1-5".
      return False
  if date and date == read_date(gold):
    return True
  if text.normalise(gold) in ('yes', 'no') and text.normalise(gold) == (_verdict(bare)):
    return True
  return bool(text.exact_match([gold], said) or text.exact_match([gold], bare))


def read_date(said: str) -> tuple[int, int, int] | None:
  """Reads text that is one day and nothing else, as (year, month, day).

  Args:
    said: such as "5 January 1964", "Jan. 5th, 1964" or "1964-01-05".
  """
  said = said.strip(' \t\n.*_`"\'')
  if len(said) > _DATE_CHARACTERS:
    return None
  match = next((m for d in _DATES if (m := d.fullmatch(said))), None)
  if match is None:
    return None
  month = _month(match['month'].lower())
  day = int(match['day'])
  return (int(match['year']), month, day) if month and 1 <= day <= 31 else None


def _month(said: str) -> int | None:
  """Returns 1 to 12 for a number, a name or its beginning; else None."""
  if said.isdecimal():
    return int(said) if 1 <= int(said) <= 12 else None
  return next((n for n, name in enumerate(_MONTHS, 1) if name.startswith(said)), None)


def _verdict(said: str) -> str | None:
  """Returns the yes or no that opens text which does not say the other one."""
  match = _VERDICT.match(said)
  if match is None:
    return None
  verdict = match[1].lower()
  other = {'yes': 'no', 'no': 'yes'}[verdict]
  return None if other in text.words(said) else verdict
