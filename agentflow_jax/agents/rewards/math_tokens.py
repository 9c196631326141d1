"""Tokens of mathematical text as `math_text.spell` leaves it."""

import dataclasses
import re

from agentflow_jax.agents.rewards import math_forms
from agentflow_jax.agents.rewards import numeric

FUNCTIONS = frozenset(
    'sin cos tan cot sec csc arcsin arccos arctan asin acos atan sinh cosh '
    'tanh ln log lg exp sqrt abs max min gcd lcm'.split()
)
GREEK = frozenset(
    'alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota '
    'kappa lambda mu nu xi rho sigma tau upsilon phi varphi chi psi omega '
    'Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega ell'.split()
)
# Two letters that are a word far more often than a product of two symbols.
_SHORT_WORDS = frozenset(
    'ad ah am an as at be by do eh er go ha he hi if in is it la ma me my na '
    'no of oh ok on or os ox pa pm re so ta ti to um up us we si em et ut od '
    'mu nu pi xi on oi'.split()
)
# Those that are a product where signs of mathematics stand beside them.
_PRODUCTS = frozenset('ad am an at ha ma pa'.split())
_OPERATOR = re.compile(r'[-+*/^=]|\\frac|\\sqrt')
# Longer runs of letters are a product only if no word is spelt like them.
_PRODUCT = re.compile(r'[abcdxyz]{3,4}|[^aeiou]{3,4}')

_TOKEN = re.compile(
    r"""\s*(?:
      (?P<number>(?:\d+(?:_\d{3})+|\d+)(?:\.\d+|\.(?=\\overline))?|\.\d+)
      |\\text\{(?P<text>[^{}]*)\}
      |(?P<environment>\\(?:begin|end)\{[a-z]+\*?\})
      |(?P<command>\\[a-zA-Z]+|\\[{}%|\\])
      |(?P<word>[a-zA-Z]+)
      |(?P<sign>[-+*/^_=<>!|(){}\[\],;:&'])
    )""",
    re.VERBOSE,
)
_GROUPED = re.compile(r'\d{1,3}(?:,\d{3})+(?![\d,])(?:\.\d+)?')
_OPEN, _CLOSE = ('(', '[', r'\{'), (')', ']', r'\}')


@dataclasses.dataclass(frozen=True)
class Token:
  """One token.

  Attributes:
    kind: number, text, environment, command, word, sign or end.
    said: its characters; for text, what stands between the braces.
    spaced: whether white space stands before it.
  """

  kind: str
  said: str
  spaced: bool


def tokens(said: str, grouped: bool) -> list[Token]:
  """Splits text into tokens; the last one is of kind "end".

  Args:
    said: text as `math_text.spell` leaves it.
    grouped: whether "1,234" outside brackets is one number. It is a list of
      two otherwise.

  Raises:
    math_forms.Unreadable: a character belongs to no token.
  """
  found: list[Token] = []
  is_lone = not _OPERATOR.search(said)
  position, depth = 0, 0
  said = said.rstrip()
  while position < len(said):
    match = _TOKEN.match(said, position)
    if match is None:
      raise math_forms.Unreadable(f'{said[position]!r} is no mathematics')
    kind = match.lastgroup
    start = match.start(kind)
    end = match.end()
    if kind == 'number' and grouped and not depth:
      if group := _GROUPED.match(said, start):
        end = group.end()
    piece = match[kind] if end == match.end() else said[start:end]
    spaced = match.end() - len(match[0].lstrip()) > position
    if kind == 'word':
      found += _letters(piece, spaced, is_lone)
    else:
      found.append(Token(kind, piece, spaced))
    depth += (piece in _OPEN) - (piece in _CLOSE)
    position = end
  return [*found, Token('end', '', False)]


def _letters(word: str, spaced: bool, is_lone: bool) -> list[Token]:
  """Reads a run of letters: a name, one symbol, or a product of symbols."""
  named = word in FUNCTIONS or word in GREEK or word in ('pi', 'or', 'and')
  if len(word) == 1 or named or numeric.is_unit(word):
    return [Token('word', word, spaced)]
  product = word.islower() and (
      (word not in _SHORT_WORDS or (word in _PRODUCTS and not is_lone))
      if len(word) == 2 else _PRODUCT.fullmatch(word)
  )
  if not product:
    return [Token('word', word, spaced)]
  return [Token('word', c, spaced and not i) for i, c in enumerate(word)]
