"""Numbers in text, compared exactly as fractions within a tolerance.

Read as numbers: 12  -3.5  .5  1,234,567  1_000  1'234'567  1.234.567  1.2e6
1.2 x 10^6  3/4  1 1/2  3½  3.5 million  1.2M  $2.5bn  3k  $5  12%  5km. A
currency, a percent sign or a unit is ignored: "12%" is 12. Text that is nothing
but number words is read too ("twenty-one", "six million"); among other words
they are not, since "one" mostly is no number. What is denied ("not 7") is not
said. Not numbers: what is part of a word, a name or a version (U2, COVID-19,
1970s, 2nd, 1.2.3), and a number with letters of several meanings behind it:
"5m" can be metres, minutes or millions, so it is neither 5 nor 5,000,000. Behind
a space m and t are the units, metres and tonnes: "5 m" is 5. A comma that does
not group digits separates, so "1,5" is two numbers.
"""

import decimal
import fractions
import re
import unicodedata
from collections.abc import Sequence

from agentflow_jax.agents.rewards import text as text_rewards
from agentflow_jax.agents.rewards import units

# What the registry's numeric rewards allow, relative to the right answer.
RELATIVE_TOLERANCE = 1e-3

# Bounds that keep exact arithmetic cheap whatever a model writes.
_MAX_DIGITS = 400
_MAX_EXPONENT = 400
_MAX_NUMBERS = 100

SCALES = {
  'dozen': 12,
  'hundred': 10**2,
  'thousand': 10**3,
  'million': 10**6,
  'billion': 10**9,
  'trillion': 10**12,
}
# Written right behind the digits or after a space; the case counts. A small m
# is metres, minutes or millions, and a small b is bits or billions.
_FACTORS = {
  'k': 10**3,
  'K': 10**3,
  'M': 10**6,
  'B': 10**9,
  **{s: 10**6 for s in ('mn', 'Mn', 'mln', 'Mio')},
  **{s: 10**9 for s in ('bn', 'Bn', 'BN')},
  **{s: 10**12 for s in ('tn', 'Tn', 'trn')},
}
# Letters that are factors behind an amount of money only; T is tesla, too.
_MONEY_FACTORS = {'T': 10**12}
# Letters that are units behind a space, as the SI writes them: metres and tonnes.
_UNITS_APART = frozenset({'m', 't'})
# Letters that stand for several things when they follow a number.
_UNCLEAR = frozenset({'m', 'b', 't', 'T', 'G', 'MM'})
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
  rf'(?:\s+(?P<scale>{"|".join(list(SCALES)[2:])}))?',
  re.IGNORECASE,
)
_SPELLED_CHARACTERS = 80

_DASHES = str.maketrans({c: '-' for c in '\u2010\u2011\u2012\u2013\u2212\ufe63\uff0d'})
# Spaces that typographers put between groups of three digits; LaTeX's too.
_GROUP_SPACE = re.compile(
  r'(?<=\d)(?:[\u00a0\u2009\u202f]|\\,|\\!|\{,\})(?=\d{3}(?!\d))'
)
# Groups as in Switzerland, in Germany (two points, or one and a decimal comma)
# and in India (three digits at the end, pairs before them).
# Spaces make one number of three groups or more, and two numbers of two.
_SWISS = re.compile(
  r"(?<![\w.,'’])(?<!\d )\d{1,3}(?:(?:['’]\d{3})+|(?: \d{3}){2,})"
  r"(?!\d|['’ ]\d)"
)
_GERMAN = re.compile(
  r'(?<![\w.,])\d{1,3}(?:(?:\.\d{3}){2,}(?:,\d+)?|\.\d{3},\d{1,2})'
  r'(?![.,]?\d)'
)
_INDIAN = re.compile(r'(?<![\w.,])\d{1,2}(?:,\d{2})+,\d{3}(?!,?\d)')
_FRACTION = re.compile(r'\\[dtc]?frac\s*(?:\{(-?\d+)\}\s*\{(\d+)\}|(\d)(\d))')
_MIXED = re.compile(
  r'(?<![\w.,/^_])(\d{1,9})(?:\s+(\d{1,4})\s?/\s?(\d{1,4})(?![\w/]|[.,]\d)'
  r'|\s*\\[dtc]?frac\s*(?:\{(\d{1,4})\}\s*\{(\d{1,4})\}|(\d)(\d)))'
)
_VULGAR = re.compile(r'(?:(?<![\w.,/])(\d{1,9})\s?)?([¼-¾⅐-⅞])')
_DECIMAL = r'(?:(?:\d{1,3}(?:,\d{3})+(?!,?\d)|\d+(?:_\d+)*)(?:\.\d+)?|\.\d+)(?!\.?\d)'
_APART = '|'.join(sorted({*_FACTORS, *_MONEY_FACTORS, *_UNCLEAR}, key=len))
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
      [\s-]*(?P<scale>{'|'.join(SCALES)})s?\b
      |(?P<glued>[^\W\d_]+)               # a unit, or the rest of a word
      |[ ](?P<apart>{_APART})(?![\w'’])
    )?
    """,
  re.VERBOSE | re.IGNORECASE,
)


class _UnclearError(ValueError):
  """The letters behind a number can be a factor or a unit."""


def parse(text: str) -> fractions.Fraction | None:
  """Reads text that is one number and nothing else.

  Args:
    text: such as "1,234", "$3.5 million", "1.2M" or "12 %".

  Returns:
    Its exact value, or None when it is not a number or too long to be one.
  """
  spelled = _spelled(text)
  if spelled is not None:
    return spelled
  match = _NUMBER.fullmatch(_clean(text).strip().rstrip('.%$ '))
  if match is None:
    return None
  letters = match['glued'] or match['apart']
  if letters and (
    letters not in _FACTORS | _MONEY_FACTORS
    or text.rstrip().endswith('$')  # $3k$ is a product.
  ):
    return None
  try:
    return _value(match)
  except _UnclearError:
    return None


def find(text: str) -> list[fractions.Fraction]:
  """Returns the numbers that text says, in order; the first hundred of them.

  Left out are numbers that exceed the bounds of the arithmetic (400 digits, an
  exponent of 400) and those with letters of unclear meaning behind them.
  """
  return [value for value in _find(text) if value is not None]


def _find(text: str) -> list[fractions.Fraction | None]:
  """Returns the numbers that text says, None for each that is unclear."""
  spelled = _spelled(text)
  if spelled is not None:
    return [spelled]
  found = []
  text = _clean(text)
  for match in _NUMBER.finditer(text):
    if text_rewards.is_denied(text, match.start()):
      continue
    try:
      value = _value(match)
    except _UnclearError:
      found.append(None)
    else:
      found += [] if value is None else [value]
    if len(found) >= _MAX_NUMBERS:
      break
  return found


def unite_fractions(text: str, form: str) -> str:
  """Writes mixed numbers and fractions in one character as fractions.

  Args:
    text: such as "3½", "3 1/2", "3\\frac{1}{2}" or "½". "5 3/2" is left as it
      is: two numbers.
    form: format of a fraction with places for two whole numbers.
  """

  def vulgar(match: re.Match[str]) -> str:
    above, below = unicodedata.normalize('NFKC', match[2]).split('\u2044')
    whole = int(match[1] or 0)
    return form.format(whole * int(below) + int(above), below)

  def mixed(match: re.Match[str]) -> str:
    whole, above, below = (int(g) for g in match.groups() if g)
    if not 0 < above < below:
      return match[0]
    return form.format(whole * below + above, below)

  return _MIXED.sub(mixed, _VULGAR.sub(vulgar, text))


def join_groups(text: str) -> str:
  """Writes grouped digits without the marks of other countries' groups."""
  text = _GROUP_SPACE.sub('', text)
  text = _SWISS.sub(lambda m: re.sub("['’ ]", '', m[0]), text)
  return _GERMAN.sub(lambda m: m[0].replace('.', '').replace(',', '.'), text)


def _clean(text: str) -> str:
  text = text.translate(_DASHES).replace('\\%', '%').replace('\\$', '$')
  text = _INDIAN.sub(lambda m: m[0].replace(',', ''), join_groups(text))
  text = unite_fractions(text, '{}/{}')
  return _FRACTION.sub(lambda m: f'{m[1] or m[3]}/{m[2] or m[4]}', text)


def _spelled(text: str) -> fractions.Fraction | None:
  """Reads text that is nothing but number words, up to marks around it."""
  if len(text) > _SPELLED_CHARACTERS:
    return None
  match = _SPELLED.fullmatch(text.strip(' \t\n.*_`"\'!'))
  if match is None:
    return None

  def small(name: str) -> int:
    return sum(_WORDS[w] for w in re.split(r'[\s-]+', (match[name] or 'zero').lower()))

  value = 100 * small('hundreds') + small('rest') + small('small')
  value *= SCALES.get((match['scale'] or '').lower(), 1)
  return fractions.Fraction(-value if match['minus'] else value)


def _value(match: re.Match[str]) -> fractions.Fraction | None:
  """Returns the value of a match of `_NUMBER`; None if it is a part of a word.

  Raises:
    _UnclearError: the letters behind it have no or several meanings.
  """
  glued = match['glued'] or ''
  if glued.lower() in _WORD_ENDINGS:
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
  value *= SCALES.get((match['scale'] or '').lower(), 1) * _factor(match)
  return -value if match['sign'] == '-' else value


def _factor(match: re.Match[str]) -> int:
  """Returns what the letters behind a number multiply it by; 1 for a unit."""
  letters = match['glued'] or match['apart']
  if not letters:
    return 1
  behind = match.string[match.end() : match.end() + 1]
  before = match.string[: match.start('mantissa')].rstrip()[-1:]
  is_money = before in tuple('$€£¥') and behind != '$'
  if letters == 'm' and behind in tuple('²³23/^'):  # Metres, for certain.
    return 1
  if is_money and letters in _MONEY_FACTORS:
    return _MONEY_FACTORS[letters]
  if letters in _FACTORS and before + behind != '$$':  # $3k$ is a product.
    if letters != 'K' or match['glued'] or is_money:  # "300 K" is kelvin.
      return _FACTORS[letters]
  if match['apart']:
    if letters in _UNITS_APART and not is_money:
      return 1
    raise _UnclearError(letters)
  if not units.is_known(letters):
    raise _UnclearError(letters)
  return 1


def _exact(digits: str) -> fractions.Fraction | None:
  if len(digits) > _MAX_DIGITS:
    return None
  plain = digits.replace(',', '').replace('_', '')
  return fractions.Fraction(decimal.Decimal(plain))


def close(gold: fractions.Fraction, said: fractions.Fraction, tolerance: float) -> bool:
  """Whether |said - gold| <= tolerance |gold|; at gold 0 only 0 is close."""
  return abs(said - gold) <= fractions.Fraction(tolerance) * abs(gold)


def number(
  answers: Sequence[str], answer: str, tolerance: float = RELATIVE_TOLERANCE
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
  said = _find(answer)
  golds = [g for g in map(parse, answers) if g is not None]
  return float(
    bool(said)
    and None not in said
    and any(all(s is not None and close(g, s, tolerance) for s in said) for g in golds)
  )
