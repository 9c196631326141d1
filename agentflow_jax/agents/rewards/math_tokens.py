"""Tokens of mathematical text as `math_text.spell` leaves it."""

import dataclasses
import re

from agentflow_jax.agents.rewards import math_forms
from agentflow_jax.agents.rewards import units

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
  'no of oh ok on or os ox pa pm re so ta ti to um up us we si em et ut od'.split()
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
    kind = match.lastgroup or ''
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
  in_formula = word in _PRODUCTS and not is_lone
  if len(word) == 1 or named or (units.is_word(word) and not in_formula):
    return [Token('word', word, spaced)]
  product = word.islower() and (
    (word not in _SHORT_WORDS or in_formula)
    if len(word) == 2
    else _PRODUCT.fullmatch(word)
  )
  if not product:
    return [Token('word', word, spaced)]
  return [Token('word', c, spaced and not i) for i, c in enumerate(word)]


class Cursor:
  """A place in a list of tokens.

  Args:
    tokens: result of `tokens`.

  Attributes:
    tokens: the tokens.
    at: index of the next token.
  """

  def __init__(self, tokens: list[Token]):
    self.tokens = tokens
    self.at = 0

  @property
  def next(self) -> Token:
    """The next token; of kind "end" for ever behind the last one."""
    return self.tokens[self.at]

  def take(self) -> Token:
    """Returns the next token and moves on."""
    token = self.tokens[self.at]
    self.at += token.kind != 'end'
    return token

  def sees(self, *said: str) -> bool:
    """Whether the next token is one of those given."""
    return self.next.kind not in ('text', 'end') and self.next.said in said

  def took(self, *said: str) -> bool:
    """Moves on if the next token is one of those given."""
    if not self.sees(*said):
      return False
    self.take()
    return True

  def expect(self, said: str) -> None:
    """Moves on; raises `math_forms.Unreadable` at any other token."""
    if not self.took(said):
      raise math_forms.Unreadable(f'{said!r} expected at {self.next.said!r}')

  def inner(self) -> str:
    """Returns the characters up to the next closing brace and moves on."""
    said = ''
    while not self.sees('}'):
      if self.next.kind == 'end':
        raise math_forms.Unreadable('a brace is not closed')
      said += self.take().said
    self.take()
    return said

  def subscript(self) -> str:
    """Returns a subscript as a part of a name, '' where there is none."""
    if not self.took('_'):
      return ''
    return f'_{self.inner() if self.took("{") else self.take().said}'

  def primes(self) -> str:
    """Returns the primes behind a name."""
    primes = ''
    while self.took("'"):
      primes += "'"
    return primes
