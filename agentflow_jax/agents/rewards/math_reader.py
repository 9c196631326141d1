"""Reads mathematical text into values, strictly: every character counts.

A recursive descent over the tokens of `math_tokens`. What is not understood is
`Unreadable`, and nothing is dropped: a base ("101_2"), a unit, dots in a list
and a second answer all are a part of the value. Runs in the child process of
`symbolic`, where a number that takes too long to work out ends the check.
"""

import sympy

from agentflow_jax.agents.rewards import math_forms
from agentflow_jax.agents.rewards import math_names
from agentflow_jax.agents.rewards import math_tokens
from agentflow_jax.agents.rewards import units

_RELATIONS = {
  '=': '=',
  '<': '<',
  '>': '>',
  r'\le': '<=',
  r'\ge': '>=',
  r'\ne': '!=',
  r'\in': 'in',
  r'\approx': '~',
  r'\equiv': '=',
}
_CLOSING = {'(': (')', ']'), '[': (')', ']'), r'\{': (r'\}',)}
_DIFFERENTIAL = sympy.Symbol('d')
_MATRICES = frozenset({'matrix', 'pmatrix', 'bmatrix', 'Bmatrix'})


def read(said: str, grouped: bool = True) -> math_forms.Value:
  """Reads a text that is mathematics from its first to its last character.

  Args:
    said: text as `math_text.spell` leaves it.
    grouped: whether "1,234" is one number.

  Raises:
    math_forms.Unreadable: it is anything else.
  """
  try:
    return _Reader(math_tokens.tokens(said, grouped)).statement()
  except RecursionError as error:
    raise math_forms.Unreadable('nested too deeply') from error
  except (TypeError, ValueError, ArithmeticError, AttributeError) as error:
    # sympy's refusals: a comparison of complex numbers, shapes of matrices.
    raise math_forms.Unreadable(str(error)) from error


class _Reader(math_tokens.Cursor):
  """Each method reads one level of the grammar."""

  def __init__(self, tokens: list[math_tokens.Token]):
    super().__init__(tokens)
    self._word = ''  # Last separator.
    self._bars = 0  # Open |...|, in which a bar closes and does not open.

  def statement(self) -> math_forms.Value:
    """Reads everything: one value, or a bare list of values."""
    items = self._items()
    if self.next.kind != 'end':
      raise math_forms.Unreadable(f'{self.next.said!r} is out of place')
    if len(items) == 1:
      return items[0]
    return math_forms.Sequence('', '', tuple(items), self._word == 'or')

  def _items(self) -> list[math_forms.Value]:
    """Reads values up to what cannot separate or continue them."""
    items = list(self._item())
    while self.sees(',', ';', 'or', 'and'):
      while self.sees(',', ';', 'or', 'and'):
        self._word = self.take().said
      items += self._item()
    return items

  def _item(self) -> list[math_forms.Value]:
    """Reads a chain of relations; two of them where it holds a ± sign."""
    if self.took(r'\dots'):
      return [math_forms.Mark.ELLIPSIS]
    sides, signs = [self._side()], []
    while self.next.kind != 'end' and self.next.said in _RELATIONS:
      signs.append(_RELATIONS[self.take().said])
      sides.append(self._side())
    value = sides[0]
    if signs:
      value = math_forms.Relation(tuple(sides), tuple(signs))
    return math_names.both_signs(value)

  def _side(self) -> math_forms.Value:
    """Reads a sum or sets joined by union and difference, and its unit."""
    value = self._sum()
    while self.sees(r'\cup', r'\setminus', r'\backslash'):
      sign = self.take().said
      right = self._sum()
      if sign == r'\cup':
        parts = value.parts if isinstance(value, math_forms.Union) else (value,)
        value = math_forms.Union((*parts, right))
      else:
        value = math_forms.Relation((value, right), ('without',))
    return math_names.with_unit(value, self._unit())

  def _unit(self) -> str:
    """Reads a unit behind a value: \\text{...} or a known name of a unit."""
    unit = ''
    while True:
      token = self.next
      if token.kind == 'text' or (token.kind == 'word' and units.is_word(token.said)):
        unit += f' {self.take().said.strip()}'
      elif unit and self.sees('^', '/'):
        unit += self.take().said
        if self.took('{'):
          unit += self.take().said
          self.expect('}')
        elif self.next.kind in ('number', 'text', 'word'):
          unit += self.take().said
        else:
          raise math_forms.Unreadable('a unit breaks off')
      else:
        return unit

  def _sum(self) -> math_forms.Value:
    value = self._product()
    while self.sees('+', '-', r'\pm', r'\mp'):
      sign = self.take().said
      right = math_names.arithmetic(self._product())
      value = math_names.arithmetic(value)
      value = value + math_names.SIGNS[sign] * right
    return value

  def _product(self) -> math_forms.Value:
    """Reads factors, with and without signs between them."""
    if self.sees('+', '-', r'\pm', r'\mp'):
      sign = self.take().said
      value = math_names.arithmetic(self._product_after_sign())
      return math_names.SIGNS[sign] * value
    return self._product_after_sign()

  def _product_after_sign(self) -> math_forms.Value:
    value = self._power()
    while True:
      if self.took('*', r'\cdot', r'\times', r'\ast'):
        value = math_names.arithmetic(value) * self._signed_power()
      elif self.took('/', r'\div', ':'):
        divisor = self._signed_power()
        if divisor == 0:
          raise math_forms.Unreadable('a division by zero')
        value = math_names.arithmetic(value) / divisor
      elif self._starts_factor():
        value = math_names.arithmetic(value)
        before, sign = self.tokens[self.at - 1], self.next.said
        factor = math_names.arithmetic(self._power())
        if before.kind == 'number' and sign == r'\frac' and factor.is_Rational:
          # 3\frac{1}{2} was read as a mixed number before; this could be one.
          raise math_forms.Unreadable('a sum or a product')
        value *= factor
      else:
        return value

  def _signed_power(self) -> math_forms.Value:
    sign = 1
    while self.sees('+', '-'):
      sign *= -1 if self.take().said == '-' else 1
    return sign * math_names.arithmetic(self._power())

  def _starts_factor(self) -> bool:
    """Whether the next token is a factor although no sign stands before it.

    A number is none: "3 4" and "x 2" can be read in several ways.
    """
    token = self.next
    if token.kind == 'command':
      return token.said in math_names.FACTORS
    if token.kind == 'word':
      return math_names.is_factor(token.said)
    if token.kind == 'number':  # 2!3!
      return self.tokens[self.at - 1].said == '!'
    if token.kind == 'text':
      return token.said.strip() in math_names.CONSTANTS
    if token.kind == 'environment':
      return token.said.startswith(r'\begin')
    return token.kind == 'sign' and (
      token.said in '({[' or (token.said == '|' and not self._bars)
    )

  def _power(self) -> math_forms.Value:
    """Reads a factor with its powers, factorials, degrees and percent sign."""
    value = self._atom()
    while True:
      if self.took('!'):
        value = sympy.factorial(math_names.arithmetic(value))
      elif self.took(r'\%'):
        value = math_names.arithmetic(value) * math_names.PERCENT
      elif self.sees('^'):
        self.take()
        if self._degree():
          value = math_names.arithmetic(value) * self._degrees()
        else:
          exponent = math_names.arithmetic(self._argument())
          value = math_names.raised(value, exponent)
      else:
        return value

  def _degree(self) -> bool:
    following = [t.said for t in self.tokens[self.at : self.at + 3]]
    if following != ['{', r'\circ', '}']:
      return False
    self.at += 3
    return True

  def _degrees(self) -> sympy.Symbol:
    scale = math_names.TEMPERATURES.get(self.next.said.strip())
    if scale is not None and self.next.kind in ('word', 'text'):
      self.take()
      return scale
    return math_names.DEGREE

  def _argument(self) -> math_forms.Value:
    """Reads what a command or ^ takes: {...}, or one number or name."""
    if self.took('{'):
      value = self._sum()
      self.expect('}')
      return value
    sign = 1
    while self.sees('+', '-'):
      sign *= -1 if self.take().said == '-' else 1
    return sign * math_names.arithmetic(self._atom())

  def _atom(self) -> math_forms.Value:
    token = self.take()
    match token.kind:
      case 'number':
        return self._number(token.said)
      case 'text':
        return self._name(token.said.strip())
      case 'word':
        return self._name(token.said)
      case 'environment':
        return self._matrix(token.said)
      case 'command':
        return self._command(token.said)
    if token.said == '{':
      value = self._sum()
      self.expect('}')
      return value
    if token.said == '|':
      self._bars += 1
      value = sympy.Abs(math_names.arithmetic(self._sum()))
      self._bars -= 1
      self.expect('|')
      return value
    if token.said in ('(', '['):
      return self._bracket(token.said)
    raise math_forms.Unreadable(f'{token.said!r} is out of place')

  def _number(self, said: str) -> math_forms.Value:
    plain = said.replace(',', '').replace('_', '')
    if self.sees(r'\overline'):  # 0.1\overline{6}
      self.take()
      self.expect('{')
      period = self.take().said
      self.expect('}')
      if '.' not in plain or not period.isdecimal():
        raise math_forms.Unreadable('digits repeat behind a point only')
      places = len(plain.split('.')[1])
      plain = plain.rstrip('.')
      tail = sympy.Rational(int(period), 10 ** len(period) - 1)
      return sympy.Rational(plain) + tail / 10**places
    if self.took('_'):
      base = math_names.arithmetic(self._argument())
      return math_names.in_base(plain, base)
    return math_names.decimal(plain)

  def _name(self, name: str) -> math_forms.Value:
    if name in math_tokens.FUNCTIONS:
      return self._function(name)
    if name in math_names.CONSTANTS:
      return math_names.CONSTANTS[name]
    if len(name) != 1 and name not in math_tokens.GREEK:
      raise math_forms.Unreadable(f'{name!r} is a word')
    return sympy.Symbol(name + self.subscript() + self.primes())

  def _command(self, command: str) -> math_forms.Value:
    name = command[1:]
    match name:
      case 'frac':
        return self._fraction()
      case 'sqrt':
        index = 2
        if self.took('['):
          index = math_names.arithmetic(self._sum())
          self.expect(']')
        radicand = math_names.arithmetic(self._argument())
        return sympy.root(radicand, index)
      case 'binom' | 'dbinom' | 'tbinom':
        return sympy.binomial(self._argument(), self._argument())
      case 'lfloor' | 'lceil':
        value = math_names.arithmetic(self._sum())
        self.expect(rf'\r{name[1:]}')
        made = sympy.floor if name == 'lfloor' else sympy.ceiling
        return made(value)
      case '{':
        return self._bracket(command)
      case 'emptyset' | 'varnothing':
        return math_forms.Mark.EMPTY
      case 'infty':
        return sympy.oo
      case 'mathbb' | 'mathcal' | 'vec' | 'overline' | 'bar' | 'hat':
        self.expect('{')
        inner = self.inner()
        return sympy.Symbol(f'{name}({inner}){self.subscript()}')
    if name in math_tokens.FUNCTIONS | math_tokens.GREEK | {'pi'}:
      return self._name(name)
    raise math_forms.Unreadable(f'{command} is not known')

  def _fraction(self) -> math_forms.Value:
    token = self.next
    if token.kind == 'number' and len(token.said) == 2:  # \frac12
      self.take()
      above, below = (sympy.Integer(int(digit)) for digit in token.said)
    else:
      above = math_names.arithmetic(self._argument())
      below = math_names.arithmetic(self._argument())
    if below == 0:
      raise math_forms.Unreadable('a division by zero')
    if above == _DIFFERENTIAL and below.has(_DIFFERENTIAL):
      raise math_forms.Unreadable('a derivative')
    return above / below

  def _function(self, name: str) -> math_forms.Value:
    """Reads \\sin^2 x, \\log_{3} 9, \\max(1, 2)."""
    base = power = None
    for _ in range(2):
      if name == 'log' and base is None and self.took('_'):
        base = math_names.arithmetic(self._argument())
      elif power is None and self.took('^'):
        power = math_names.arithmetic(self._argument())
    if self.sees('(', '{', r'\{', '['):
      closing = self.take().said
      arguments = self._items()
      self.expect({'(': ')', '[': ']', '{': '}', r'\{': r'\}'}[closing])
    else:
      factor = self._signed_power()
      while self._starts_factor() and self.next.said.lstrip('\\') not in (
        math_tokens.FUNCTIONS
      ):
        factor *= math_names.arithmetic(self._power())
      arguments = [factor]
    arguments = [math_names.in_radians(a) for a in arguments]
    return math_names.applied(name, arguments, base, power)

  def _bracket(self, opening: str) -> math_forms.Value:
    if opening == r'\{' and self.took(r'\}'):
      return math_forms.Mark.EMPTY
    bars, self._bars = self._bars, 0
    items = self._items()
    self._bars = bars
    closing = self.take().said
    if closing not in _CLOSING[opening]:
      raise math_forms.Unreadable(f'{opening} is not closed')
    pair = opening + closing
    if (
      len(items) == 1
      and pair in ('()', '[]')
      and not isinstance(items[0], math_forms.Mark)
    ):
      return items[0]
    closing = '}' if opening == r'\{' else closing
    opening = '{' if opening == r'\{' else opening
    return math_forms.Sequence(opening, closing, tuple(items))

  def _matrix(self, begin: str) -> math_forms.Value:
    name = begin[len(r'\begin{') : -1]
    if not begin.startswith(r'\begin') or name not in (_MATRICES | {'vmatrix'}):
      raise math_forms.Unreadable(f'{begin} is not known')
    rows = [[]]
    while True:
      rows[-1].append(math_names.arithmetic(self._sum()))
      if self.took(r'\\'):
        if not self.sees(rf'\end{{{name}}}'):
          rows.append([])
          continue
      elif self.took('&'):
        continue
      self.expect(rf'\end{{{name}}}')
      break
    matrix = sympy.ImmutableMatrix(rows)
    return matrix.det() if name == 'vmatrix' else matrix
