"""Numbers in text, compared exactly as fractions within a tolerance.

Read as numbers: 12  -3.5  .5  1,234,567  1_000  1.2e6  1.2 x 10^6  3/4  1 1/2
3.5 million  $5  12%  5km. A currency, a percent sign or a unit is ignored:
"12%" is 12. Text that is nothing but number words is read too ("twenty-one",
"six million"); among other words they are not, since "one" mostly is no
number. What is denied ("not 7") is not said. Not numbers: what is part of a
word, a name or a version (U2, COVID-19, 1970s, 2nd, 1.2.3, 3½). A comma that
does not group by three separates, so "1,5" is two numbers.
"""

import decimal
import fractions
import re
from collections.abc import Sequence

from agentflow_jax.agents.rewards import text as text_rewards

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

_UNDER_20 = (
    'zero one two three four five six seven eight nine ten eleven twelve '
    'thirteen fourteen fifteen sixteen seventeen eighteen nineteen'
).split()
_TENS = 'twenty thirty forty fifty sixty seventy eighty ninety'.split()
_WORDS = {
    **{word: value for value, word in enumerate(_UNDER_20)},
    **{word: 10 * value for value, word in enumerate(_TENS, 2)},
}
_BELOW_100 = (
    rf'(?:(?:{"|".join(_TENS)})(?:[\s-]+(?:{"|".join(_UNDER_20[1:10])}))?'
    rf'|{"|".join(reversed(_UNDER_20))})'
)
_SPELLED = re.compile(
    rf'(?P<minus>minus\s+|negative\s+)?'
    rf'(?:(?P<hundreds>{_BELOW_100})[\s-]+hundred(?:\s+and)?'
    rf'(?:\s+(?P<rest>{_BELOW_100}))?|(?P<small>{_BELOW_100}))'
    rf'(?:\s+(?P<scale>{"|".join(list(_SCALES)[1:])}))?',
    re.IGNORECASE,
)
_SPELLED_CHARACTERS = 80

_DASHES = str.maketrans(
    {c: '-' for c in '\u2010\u2011\u2012\u2013\u2212\ufe63\uff0d'}
)
# Spaces that typographers put between groups of three digits; LaTeX's too.
_GROUP_SPACE = re.compile(
    r'(?<=\d)(?:[\u00a0\u2009\u202f]|\\,|\\!|\{,\})(?=\d{3}(?!\d))'
)
_FRACTION = re.compile(
    r'\\[dt]?frac\s*(?:\{(-?\d+)\}\s*\{(\d+)\}|(\d)(\d))'
)
_MIXED = re.compile(
    r'(?<![\w.,/])(\d{1,9})\s+(\d{1,4})/(\d{1,4})(?![\w/]|[.,]\d)'
)
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
  spelled = _spelled(text)
  if spelled is not None:
    return spelled
  match = _NUMBER.fullmatch(_clean(text).strip().rstrip('.%$ '))
  return None if match is None or match['glued'] else _value(match)


def find(text: str) -> list[fractions.Fraction]:
  """Returns the numbers that text says, in order; the first hundred of them.

  What exceeds the bounds of the arithmetic (400 digits, an exponent of 400) is
  left out.
  """
  spelled = _spelled(text)
  if spelled is not None:
    return [spelled]
  found = []
  text = _clean(text)
  for match in _NUMBER.finditer(text):
    value = _value(match)
    if value is not None and not text_rewards.is_denied(text, match.start()):
      found.append(value)
    if len(found) == _MAX_NUMBERS:
      break
  return found


def _clean(text: str) -> str:
  text = text.translate(_DASHES).replace('\\%', '%').replace('\\$', '$')
  # With a space, or 1\frac{1}{2} would become 11/2.
  text = _FRACTION.sub(
      lambda m: f'{m[1] or m[3]}/{m[2] or m[4]}',
      re.sub(r'(?<=\d)(?=\\[dt]?frac)', ' ', _GROUP_SPACE.sub('', text)),
  )
  return _MIXED.sub(_improper, text)


def _improper(match: re.Match[str]) -> str:
  """Writes 1 1/2 as 3/2; "5 3/2" stays the two numbers that it is."""
  whole, above, below = map(int, match.groups())
  return f'{whole * below + above}/{below}' if above < below else match[0]


def _spelled(text: str) -> fractions.Fraction | None:
  """Reads text that is nothing but number words, up to marks around it."""
  if len(text) > _SPELLED_CHARACTERS:
    return None
  match = _SPELLED.fullmatch(text.strip(' \t\n.*_`"\'!'))
  if match is None:
    return None

  def small(name: str) -> int:
    return sum(
        _WORDS[w] for w in re.split(r'[\s-]+', (match[name] or 'zero').lower())
    )

  value = 100 * small('hundreds') + small('rest') + small('small')
  value *= _SCALES.get((match['scale'] or '').lower(), 1)
  return fractions.Fraction(-value if match['minus'] else value)


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
