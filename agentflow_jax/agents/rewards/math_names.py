"""Names, constants and functions of `math_reader`, and what they make."""

import dataclasses

import sympy

from agentflow_jax.agents.rewards import math_forms
from agentflow_jax.agents.rewards import math_tokens
from agentflow_jax.agents.rewards import numeric
from agentflow_jax.agents.rewards import units

CONSTANTS = {'e': sympy.E, 'i': sympy.I, 'pi': sympy.pi}
# Stand-ins that a finished value no longer holds.
_SIGN = sympy.Dummy('sign')
SIGNS = {'+': 1, '-': -1, r'\pm': _SIGN, r'\mp': -_SIGN}
PERCENT = sympy.Dummy('percent')
DEGREE = sympy.Dummy('degree')
TEMPERATURES = {n: sympy.Dummy(n) for n in ('C', 'F')}
_STAND_INS = {
  PERCENT: '%',
  DEGREE: 'degree',
  **{dummy: f'degree {name}' for name, dummy in TEMPERATURES.items()},
}
# Words that change a value instead of saying what it measures.
_NO_UNITS = frozenset(
  {
    *numeric.SCALES,
    *(f'{scale}s' for scale in numeric.SCALES),
    *'not no or and more less fewer than least most times squared cubed plus '
    'minus over to half halves third thirds quarter quarters factorial if for '
    'mod root k m b bn mn tn'.split(),
  }
) - {'m'}
# The base of a logarithm that is written without one: ten to some, e to
# others. What holds for every base is accepted.
LOG_BASE = sympy.Symbol('base of log', positive=True)

_FUNCTIONS = {
  'sin': sympy.sin,
  'cos': sympy.cos,
  'tan': sympy.tan,
  'cot': sympy.cot,
  'sec': sympy.sec,
  'csc': sympy.csc,
  'arcsin': sympy.asin,
  'arccos': sympy.acos,
  'arctan': sympy.atan,
  'asin': sympy.asin,
  'acos': sympy.acos,
  'atan': sympy.atan,
  'sinh': sympy.sinh,
  'cosh': sympy.cosh,
  'tanh': sympy.tanh,
  'ln': sympy.ln,
  'exp': sympy.exp,
  'sqrt': sympy.sqrt,
  'abs': sympy.Abs,
  'max': sympy.Max,
  'min': sympy.Min,
  'gcd': sympy.gcd,
  'lcm': sympy.lcm,
}
_INVERSES = {'sin': sympy.asin, 'cos': sympy.acos, 'tan': sympy.atan, 'cot': sympy.acot}
FACTORS = frozenset(
  rf'\{name}'
  for name in (
    *math_tokens.FUNCTIONS,
    *math_tokens.GREEK,
    'pi',
    'frac',
    'binom',
    'dbinom',
    'tbinom',
    'lfloor',
    'lceil',
    'vec',
    'overline',
    'bar',
    'hat',
    'mathbb',
    'mathcal',
    '{',
    'infty',
  )
)


def is_factor(word: str) -> bool:
  """Whether a word can follow a factor: a name, but no unit and no "or"."""
  return (
    len(word) == 1
    or word in math_tokens.FUNCTIONS
    or word in math_tokens.GREEK
    or word == 'pi'
  ) and not units.is_word(word)


def arithmetic(value: math_forms.Value) -> math_forms.Value:
  """Returns a value that can be calculated with.

  Raises:
    math_forms.Unreadable: it is a list, a set, a relation or a quantity.
  """
  if not isinstance(value, sympy.Basic) or value in (sympy.nan, sympy.zoo):
    raise math_forms.Unreadable('no value to calculate with')
  return value


def decimal(digits: str) -> sympy.Expr:
  """Reads a decimal number exactly."""
  return sympy.Rational(digits.rstrip('.'))


def in_base(digits: str, base: sympy.Expr) -> math_forms.Value:
  """Reads digits with a base as a subscript; the base is a part of the answer.

  Raises:
    math_forms.Unreadable: the base is none, or has no such digits.
  """
  if base not in range(2, 17) or not digits.isdecimal():
    raise math_forms.Unreadable(f'{digits} has no base {base}')
  int(digits, int(base))
  return math_forms.Quantity(sympy.Integer(digits), f'base {base}')


def raised(value: math_forms.Value, exponent: sympy.Expr) -> sympy.Expr:
  """Raises to a power; the T of a matrix transposes it."""
  value = arithmetic(value)
  if isinstance(value, sympy.MatrixBase) and exponent == sympy.Symbol('T'):
    return value.T
  return value**exponent


def applied(
  name: str,
  arguments: list[sympy.Expr],
  base: sympy.Expr | None,
  power: sympy.Expr | None,
) -> sympy.Expr:
  """Applies a function.

  Args:
    name: one of `math_tokens.FUNCTIONS`.
    arguments: values that it is applied to.
    base: subscript of a logarithm.
    power: exponent between the name and the arguments; -1 is the inverse.
  """
  if name in ('log', 'lg'):
    (argument,) = arguments
    base = sympy.Integer(10) if name == 'lg' else base
    value = sympy.log(argument) / sympy.log(LOG_BASE if base is None else base)
  elif power == -1 and name in _INVERSES:
    return _INVERSES[name](*arguments)
  else:
    value = _FUNCTIONS[name](*arguments)
  return value if power is None else value**power


def in_radians(value: math_forms.Value) -> sympy.Expr:
  """Returns an argument of a function with its degrees as radians."""
  return arithmetic(value).subs(DEGREE, sympy.pi / 180)


def both_signs(value: math_forms.Value) -> list[math_forms.Value]:
  """Returns one value, or the two that a ± sign in it stands for."""
  if not _holds_sign(value):
    return [value]
  return [_with_sign(value, sign) for sign in (1, -1)]


def _holds_sign(value: math_forms.Value) -> bool:
  match value:
    case math_forms.Relation(sides=parts) | math_forms.Sequence(items=parts):
      return any(map(_holds_sign, parts))
    case math_forms.Quantity(value=inner):
      return _holds_sign(inner)
  return isinstance(value, sympy.Basic) and value.has(_SIGN)


def _with_sign(value: math_forms.Value, sign: int) -> math_forms.Value:
  match value:
    case math_forms.Relation(sides=sides, signs=signs):
      return math_forms.Relation(tuple(_with_sign(s, sign) for s in sides), signs)
    case math_forms.Sequence(items=items):
      items = tuple(_with_sign(i, sign) for i in items)
      return dataclasses.replace(value, items=items)
    case math_forms.Quantity(value=inner, unit=unit):
      return math_forms.Quantity(_with_sign(inner, sign), unit)
    case sympy.Basic():
      return value.subs(_SIGN, sign)
  return value


def with_unit(value: math_forms.Value, unit: str) -> math_forms.Value:
  """Joins a value with the unit behind it and resolves % and degrees."""
  if isinstance(value, sympy.Expr):
    for dummy, name in _STAND_INS.items():
      if not value.has(dummy):
        continue
      quotient = sympy.expand(value / dummy)
      if not quotient.has(*_STAND_INS):
        value = math_forms.Quantity(quotient, name)
        break
      value = value.subs(PERCENT, sympy.Rational(1, 100))
      if value.has(*_STAND_INS):
        raise math_forms.Unreadable('degrees in a sum')
  if not unit:
    return value
  if _NO_UNITS & set(unit.lower().replace('-', ' ').split()):
    raise math_forms.Unreadable(f'{unit!r} is no unit')
  if isinstance(value, math_forms.Quantity):
    raise math_forms.Unreadable(f'two units, one of them {unit!r}')
  return math_forms.Quantity(arithmetic(value), units.name(unit))
