"""Mathematical notation as text: many spellings are rewritten as one.

What leaves here is LaTeX without its marks of layout: ASCII digits, signs and
brackets, one kind of fraction, no dollar signs. `math_reader` reads it. This
module also finds the mathematics in a sentence.
"""

import re

from agentflow_jax.agents.rewards import numeric
from agentflow_jax.agents.rewards import text
from agentflow_jax.agents.rewards import units

_CHARACTERS = str.maketrans(
  {
    **{chr(ord('０') + digit): str(digit) for digit in range(10)},
    **dict(zip('（），．／＝＋［］｛｝＜＞％', '(),./=+[]{}<>%', strict=True)),
    **dict.fromkeys('·⋅∙', r'\cdot '),
    **dict.fromkeys('×✕', r'\times '),
    **dict.fromkeys('÷⁄∕', '/'),
    **dict.fromkeys('∗＊', '*'),
    **dict.fromkeys('…⋯', r'\dots '),
    **dict.fromkeys('≤⩽', r'\le '),
    **dict.fromkeys('≥⩾', r'\ge '),
    **dict.fromkeys('€£¥₹', ''),
    '\u2212': '-',
    'π': r'\pi ',
    '∞': r'\infty ',
    '°': r'^{\circ}',
    '≠': r'\ne ',
    '≈': r'\approx ',
    '∪': r'\cup ',
    '∈': r'\in ',
    '∅': r'\emptyset ',
    '±': r'\pm ',
    '∓': r'\mp ',
    '⟨': '(',
    '⟩': ')',
    'θ': r'\theta ',
    'α': r'\alpha ',
    'β': r'\beta ',
    'λ': r'\lambda ',
    'ℝ': r'\mathbb{R}',
    'ℤ': r'\mathbb{Z}',
    'ℕ': r'\mathbb{N}',
    'ℚ': r'\mathbb{Q}',
    'ℂ': r'\mathbb{C}',
  }
)
_RAISED_DIGITS = dict(zip('⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ', '0123456789+-n', strict=True))
_LOWERED_DIGITS = dict(zip('₀₁₂₃₄₅₆₇₈₉', '0123456789', strict=True))
_RAISED = re.compile(f'[{"".join(_RAISED_DIGITS)}]+')
_LOWERED = re.compile(f'[{"".join(_LOWERED_DIGITS)}]+')

_BOLD = re.compile(r'(?<![\w)\]}*])\*\*(?=\S)([^*]+)(?<=\S)\*\*(?![\w(\[{*])')
# A dash that opens a number is a minus. One between two numbers is a range, and
# stays, so that nothing reads it as a difference.
_DASH = re.compile(
  r'(?<![\w)\]}\s])\s*[\u2010-\u2014\ufe63\uff0d]\s?(?=[\d\\(.])'
  r'|^\s*[\u2010-\u2014\ufe63\uff0d]\s?(?=[\d\\(.])'
)
# Applied in this order, before numbers are looked at.
_SPELLINGS = tuple(
  (re.compile(pattern), replacement)
  for pattern, replacement in (
    (r'^\s*\\\$\s*([\d.,]*\d)\s*$', r'\1\\text{ dollars}'),
    (r'\\\$', ''),
    (
      r'(?<=\d)\s*((?:k?m|ft|mi|cm|g|kg)\s*/\s*(?:s|h|hr|min|sec|[ckd]?m)'
      r'(?:\s*\^\s*\{?[23]\}?)?)\s*$',
      r'\\text{\1}',
    ),
    (r'\\(?:left|right|[bB]igg?[lrm]?)\s*(?:\.|(?![a-zA-Z]))', ''),
    (r'\\(?:displaystyle|textstyle|limits|nolimits)(?![a-zA-Z])', ''),
    (r'\\q?quad(?![a-zA-Z])|\\[,;:! ]|~|[\u00a0\u2002-\u200a\u202f]', ' '),
    (r'\\[dtc]frac(?![a-zA-Z])', r'\\frac'),
    (
      r'\\(?:text(?:bf|it|rm|normal)?|math(?:rm|bf|it|sf)|mbox'
      r'|operatorname\*?)\s*\{',
      r'\\text{',
    ),
    (r'\\[lc]?dots[a-z]?(?![a-zA-Z])|(?<!\d)\.{3}|\.{3}(?!\d)', r'\\dots '),
    (r'\\langle(?![a-zA-Z])', '('),
    (r'\\rangle(?![a-zA-Z])', ')'),
    (r'\\[lr]vert(?![a-zA-Z])|\\mid(?![a-zA-Z])', '|'),
    (r'\\lbrace(?![a-zA-Z])', r'\\{'),
    (r'\\rbrace(?![a-zA-Z])', r'\\}'),
    (r'\\geq(?:slant)?(?![a-zA-Z])|>=', r'\\ge '),
    (r'\\leq(?:slant)?(?![a-zA-Z])|<=', r'\\le '),
    (r'\\neq(?![a-zA-Z])|!=', r'\\ne '),
    (r'\\gt(?![a-zA-Z])', '>'),
    (r'\\lt(?![a-zA-Z])', '<'),
    (r'\^\s*\\circ(?![a-zA-Z])|\^\s*\{\s*\\circ\s*\}|\\degree', r'^{\\circ}'),
    (r'\\text\{\s*(or|and)\s*\}', r' \1 '),
    (r'\\text\{\s*\(([A-Za-z])\)\s*\}', r'\1'),
    (r'\\(?:lor|vee)(?![a-zA-Z])', ' or '),
    (
      r'\\text\{\s*(?:\\?%|per\s?cent|pct)\s*\}'
      r'|(?<=[\d}$])\s*\b(?:per\s?cent|percentage|pct)\b|\\?%',
      r'\\%',
    ),
    (r'√\s*\(([^()]*)\)|(?<![\\a-zA-Z])sqrt\s*\(([^()]*)\)', r'\\sqrt{\1\2}'),
    (r'√\s*(\d+|[a-z](?![a-z]))', r'\\sqrt{\1}'),
    (r'(?<![\\a-zA-Z])(?:infinity|inf|oo)(?![a-zA-Z])', r'\\infty '),
    (r'(?<![\w.])(\d+(?:\.\d+)?|\.\d+)[eE]([-+]?\d{1,4})(?!\w)', r'\1\\cdot 10^{\2}'),
    (r'\*\*', '^'),
    (r'\$', ' '),
  )
)
_SCALE = re.compile(
  r'(?<=\d)(?:\s|\\text\{\s*)*\b(thousand|million|billion|trillion)s?\b'
  r'(?:\s*\})?',
  re.IGNORECASE,
)

_DELIMITED = re.compile(r'\$\$[^$]+\$\$|\$[^$]+\$|\\\(.*?\\\)|\\\[.*?\\\]', re.DOTALL)
_BARE = re.compile(
  r'(?:[-+(√π.]\s*)*\d(?:[\d\s.,/*^()+×·√π=%!°²³½¼¾-]*[\d)π%!°²³½¼¾])?'
  r'|\\frac\{-?\d+\}\{\d+\}'
)
_JOINED = re.compile(r'[\s,]*(?:\band\b|\bor\b|,)?[\s,]*')
_FRAMED = re.compile(r'\banswer(?:\s+is|\s*:)[\s*:]*$', re.IGNORECASE)
# Words beside a number that change what it says.
_CHANGES_BEFORE = re.compile(
  r'\b(?:than|least|most|over|under|above|below|half|times|plus|minus|root|'
  r'negative|twice|thrice|double|triple|nor|neither|except|to|of)\W*$',
  re.IGNORECASE,
)
_CHANGES_AFTER = re.compile(
  r'\W*(?:squared|cubed|factorial|dozens?|hundreds?|thousands?|millions?|'
  r'billions?|trillions?|times|plus|minus|over|divided|choose|less|more|'
  r'fewer|greater|thirds?|quarters?|halves|half|tenths?|percent|to|or|mod)\b',
  re.IGNORECASE,
)


# What stands between a number and the rest of a sentence: "5 square meters".
_UNIT_BEHIND = re.compile(
  r'\s*((?:square|cubic|sq\.?|cu\.?)\s+)?([^\W\d_]+)'
  r'(?:\s*(?:\bper\b|/)\s*[^\W\d_]+)?(?:\^?[23²³])?'
)
_PLAIN_POWERS = str.maketrans({'²': '2', '³': '3', '^': ''})
_NO_UNITS = frozenset(
  'and or is are was because since so which that but for in as by where if '
  'when then not with from on at hence thus therefore after before we it '
  'the a an this will can cos has have'.split()
)


def spell(said: str) -> str:
  """Rewrites the spellings of one notation as one.

  Full-width digits, typographers' signs, grouped digits ("1'234"), scientific
  notation ("1e3"), mixed numbers ("3½"), roots ("√3"), Markdown's bold, dollar
  signs, number words that stand alone ("three") and factors ("2 million").

  Args:
    said: a gold, or the part of a response that counts.
  """
  if said.strip().isalpha() and (value := numeric.parse(said)) is not None:
    return str(value)
  said = said.strip().strip('`"').translate(_CHARACTERS)
  said = _DASH.sub('-', said)
  said = _RAISED.sub(lambda m: _braced('^', m[0], _RAISED_DIGITS), said)
  said = _LOWERED.sub(lambda m: _braced('_', m[0], _LOWERED_DIGITS), said)
  said = numeric.join_groups(_BOLD.sub(r'\1', said))
  said = _DELIMITED.sub(lambda m: _undelimit(m[0]), said)
  for pattern, replacement in _SPELLINGS:
    said = pattern.sub(replacement, said)
  said = numeric.unite_fractions(said, r'\frac{{{}}}{{{}}}')
  said = _SCALE.sub(lambda m: rf'\cdot {numeric.SCALES[m[1].lower()]}', said)
  return said.strip().rstrip('.,;:').strip()


def segments(said: str) -> list[str] | None:
  """Finds the mathematics in a sentence.

  Args:
    said: text that is not mathematics as a whole.

  Returns:
    The pieces that the sentence says. Where a piece follows "the answer is",
    only the pieces from there on count. What is denied ("not 5") is left out.
    None if a word beside a piece changes its value ("5 squared").
  """
  spans = [m.span() for m in _DELIMITED.finditer(said)] or []
  spans = _join(said, spans)
  for match in _BARE.finditer(said):
    if not any(a < match.end() and match.start() < b for a, b in spans):
      spans.append(match.span())
  found, framed = [], None
  for start, end in sorted(spans):
    if text.is_denied(said, start):
      continue
    if _glued(said, start, end):
      return None
    if framed is None and _FRAMED.search(said[:start]):
      framed = len(found)
    if _CHANGES_BEFORE.search(said[max(0, start - 20) : start]) or (
      _CHANGES_AFTER.match(said[end : end + 20])
    ):
      found.append(None)
    else:
      unit = _UNIT_BEHIND.match(said, end)
      unit = unit and unit[2].lower() not in _NO_UNITS and unit[0].strip()
      unit = unit.translate(_PLAIN_POWERS) if unit else ''
      found.append(said[start:end] + (rf'\text{{{unit}}}' if unit else ''))
  found = found[framed or 0 :]
  return None if None in found else found


def _join(said: str, spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
  """Joins neighbours such as "$1$ and $2$", which are one list."""
  joined: list[tuple[int, int]] = []
  for start, end in spans:
    if joined and _JOINED.fullmatch(said[joined[-1][1] : start]):
      joined[-1] = (joined[-1][0], end)
    else:
      joined.append((start, end))
  return joined


def _glued(said: str, start: int, end: int) -> bool:
  """Whether a bare number is a part of a word that is no unit: "A5", "5m"."""
  if said[start] in '$\\':
    return False
  if said[end : end + 1] in tuple("'′″^_"):
    return True
  before = said[start - 1 : start]
  after = re.match(r'[^\W\d_]+', said[end:])
  return before.isalnum() or bool(after and not units.is_word(after[0]))


def _braced(sign: str, characters: str, plain: dict[str, str]) -> str:
  return f'{sign}{{{"".join(plain[c] for c in characters)}}}'


def _undelimit(delimited: str) -> str:
  """Takes the delimiters of TeX off; "$5$ or $6$" becomes a list."""
  inner = (
    delimited[2:-2] if delimited[:2] in ('$$', r'\(', r'\[') else (delimited[1:-1])
  )
  return f' {inner.strip().rstrip(".")} '
