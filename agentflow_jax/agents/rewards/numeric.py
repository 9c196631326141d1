"""Numbers in text, compared exactly as fractions within a tolerance.

Read as numbers: 12  -3.5  .5  1,234,567  1_000  1.2e6  1.2 x 10^6  3/4
3.5 million  $5  12%  5km. A currency, a percent sign or a unit is ignored:
"12%" is 12. Not numbers: what is part of a word, a name or a version (U2,
COVID-19, 1970s, 2nd, 1.2.3, 3½). A comma that does not group by three
separates, so "1,5" is two numbers.
"""

import decimal
import fractions
import re
from collections.abc import Sequence

# What the registry's numeric rewards allow, relative to the right answer.
RELATIVE_TOLERANCE = 1e-3

# Bounds that keep exact arithmetic cheap whatever a model writes.
_MAX_DIGITS = 400
_MAX_EXPONENT = 400
_MAX_NUMBERS = 100

_SCALES = {
    'hundred': 10**2,
    'thousand': 10**3,
    'million': 10**6,
    'billion': 10**9,
    'trillion': 10**12,
}
# Letters that make a word of the digits before them: 1970s, 2nd.
_WORD_ENDINGS = frozenset({'s', 'st', 'nd', 'rd', 'th'})

_DASHES = str.maketrans({c: '-' for c in '\u2010\u2011\u2012\u2013\u2212'})
# Spaces that typographers put between groups of three digits; LaTeX's too.
_GROUP_SPACE = re.compile(
    r'(?<=\d)(?:[\u00a0\u2009\u202f]|\\,|\\!|\{,\})(?=\d{3}(?!\d))'
)
_FRACTION = re.compile(r'\\[dt]?frac\s*\{(-?\d+)\}\s*\{(\d+)\}')
_DECIMAL = (
    r'(?:(?:\d{1,3}(?:,\d{3})+(?!,?\d)|\d+(?:_\d+)*)(?:\.\d+)?|\.\d+)(?!\.?\d)'
)
_NUMBER = re.compile(
    rf"""
    (?:
      (?<![\w.)\]}}])(?P<sign>[-+])       # a dash after a word is a hyphen
      |(?<![\w.])(?<![^\W\d_]-)           # not inside a word, number or name
    )
    (?:[$€£¥]\s?)?
    (?P<mantissa>{_DECIMAL})
    (?:
      e(?P<exponent>[-+]?\d+)(?!\w)
      |\s*(?:[x×*]|\\times|\\cdot)\s*10\s*(?:\^|\*\*)\s*\{{?
        (?P<power>[-+]?\d+)\}}?
      |\s*/\s*(?P<divisor>{_DECIMAL})(?!\s*/)
    )?
    (?:
      [\s-]*(?P<scale>{'|'.join(_SCALES)})s?\b
      |(?P<glued>[^\W\d_]*)               # a unit, or the rest of a word
    )
    """,
    re.VERBOSE | re.IGNORECASE,
)


def parse(text: str) -> fractions.Fraction | None:
  """Reads text that is one number and nothing else.

  Args:
    text: such as "1,234", "$3.5 million" or "12 %".

  Returns:
    Its exact value, or None when it is not a number or too long to be one.
  """
  match = _NUMBER.fullmatch(_clean(text).strip().rstrip('.%$ '))
  return None if match is None or match['glued'] else _value(match)


def find(text: str) -> list[fractions.Fraction]:
  """Returns the numbers in text, in order; the first hundred of them.

  What exceeds the bounds of the arithmetic (400 digits, an exponent of 400) is
  left out.
  """
  found = []
  for match in _NUMBER.finditer(_clean(text)):
    value = _value(match)
    if value is not None:
      found.append(value)
    if len(found) == _MAX_NUMBERS:
      break
  return found


def _clean(text: str) -> str:
  text = text.translate(_DASHES).replace('\\%', '%').replace('\\$', '$')
  return _FRACTION.sub(r'\1/\2', _GROUP_SPACE.sub('', text))


def _value(match: re.Match[str]) -> fractions.Fraction | None:
  glued = match['glued'] or ''
  if glued.lower() in _WORD_ENDINGS or (glued and not glued.isalpha()):
    return None
  mantissa = _exact(match['mantissa'])
  divisor = _exact(match['divisor'] or '1')
  exponent = match['exponent'] or match['power'] or '0'
  if mantissa is None or not divisor or len(exponent) > 5:
    return None
  power = int(exponent)
  if abs(power) > _MAX_EXPONENT:
    return None
  value = mantissa / divisor * fractions.Fraction(10) ** power
  value *= _SCALES.get((match['scale'] or '').lower(), 1)
  return -value if match['sign'] == '-' else value


def _exact(digits: str) -> fractions.Fraction | None:
  if len(digits) > _MAX_DIGITS:
    return None
  plain = digits.replace(',', '').replace('_', '')
  return fractions.Fraction(decimal.Decimal(plain))


def close(
    gold: fractions.Fraction, said: fractions.Fraction, tolerance: float
) -> bool:
  """Whether |said - gold| <= tolerance |gold|; at gold 0 only 0 is close."""
  return abs(said - gold) <= fractions.Fraction(tolerance) * abs(gold)


def number(
    answers: Sequence[str],
    answer: str,
    tolerance: float = RELATIVE_TOLERANCE,
) -> float:
  """Scores 1 if THE number of a response is close to an acceptable one.

  Every number in the response must be close to the same acceptable answer, so
  neither listing candidates nor hiding one among others is worth anything.

  Args:
    answers: acceptable answers; those that are no number are passed over.
    answer: the response, or the part of it that counts (`text.extract`).
    tolerance: allowed error, relative to the acceptable answer; 0 is exact.

  Returns:
    1.0 or 0.0; a response without a number scores 0.
  """
  said = find(answer)
  golds = [g for g in map(parse, answers) if g is not None]
  return float(
      bool(said)
      and any(all(close(g, s, tolerance) for s in said) for g in golds)
  )
