"""Whether two mathematical values are the same answer.

Values that are exact are compared exactly, at any size. A difference
that no rule decides is worked out to hundreds of digits and measured against
the values themselves, so that small numbers are no more alike than large ones.
A decimal stands for a value without a finite decimal expansion (1/3, √2) if it
is that value, correctly rounded, with six significant digits or more.
"""

import itertools
import random
from typing import Any

import sympy

from agentflow_jax.agents.rewards import math_forms
from agentflow_jax.agents.rewards import math_sets

_MIN_ROUNDED_DIGITS = 6
_DIGITS = 300  # Values that agree in so many digits are equal.
_POINTS = 6  # Places at which expressions with symbols are compared.
_DIGITS_AT_POINTS = 50


def equal(gold: math_forms.Value, said: math_forms.Value) -> bool:
  """Whether a value that was said answers as the gold does.

  Args:
    gold: value of an acceptable answer.
    said: value of a response.
  """
  gold, said = _answers(gold, said)
  if isinstance(gold, math_forms.Quantity) or (isinstance(said, math_forms.Quantity)):
    return _equal_quantities(gold, said)
  if math_sets.is_set(gold) and math_sets.is_set(said):
    if (verdict := math_sets.equal(gold, said, equal)) is not None:
      return verdict
  if isinstance(gold, math_forms.Relation) and (isinstance(said, math_forms.Relation)):
    return _equal_relations(gold, said)
  if isinstance(gold, math_forms.Sequence) and (isinstance(said, math_forms.Sequence)):
    return math_sets.equal_sequences(gold, said, equal)
  if isinstance(gold, math_forms.Union) and isinstance(said, math_forms.Union):
    return len(gold.parts) == len(said.parts) and all(
      map(equal, gold.parts, said.parts)
    )
  if isinstance(gold, sympy.MatrixBase) and isinstance(said, sympy.MatrixBase):
    return gold.shape == said.shape and all(map(equal, gold.flat(), said.flat()))
  if isinstance(gold, sympy.Expr) and isinstance(said, sympy.Expr):
    return equal_expressions(gold, said)
  return gold == said


def _answers(
  gold: math_forms.Value, said: math_forms.Value
) -> tuple[math_forms.Value, math_forms.Value]:
  """Takes the names off: x = 5 is 5, but not where the other one is y = 5."""
  gold_name, gold_value = _named(gold)
  said_name, said_value = _named(said)
  if _is_equation(gold_name, gold_value) or _is_equation(said_name, said_value):
    return gold, said
  if gold_name is None or said_name is None or gold_name == said_name:
    return gold_value, said_value
  return gold, said


def _is_equation(name: math_forms.Value | None, value: math_forms.Value) -> bool:
  return name is None and isinstance(value, math_forms.Relation)


def _named(value: math_forms.Value) -> tuple[math_forms.Value | None, math_forms.Value]:
  """Splits "x = 2 + 3 = 5" into x and 5, "2 + 3 = 5" into nothing and 5.

  Returns:
    The name and the value. A relation that gives no value, such as
    "x + y = 3" or "2 + 2 = 5", is returned as it is.
  """
  if isinstance(value, math_forms.Sequence) and value.items:
    return _named_items(value)
  if not isinstance(value, math_forms.Relation) or not (
    set(value.signs) <= {'=', '~', 'in'}
  ):
    return None, value
  sides, signs = list(value.sides), list(value.signs)
  name = None
  if _is_name(sides[0], sides[1:]):
    name = sides.pop(0)
    signs.pop(0)
  elif signs == ['='] and _is_name(sides[1], sides[:1]):
    name = sides.pop()
    signs.pop()
  if 'in' in signs:
    return None, value
  for sign, left, right in zip(signs, sides, sides[1:], strict=False):
    if not (_near if sign == '~' else equal)(left, right):
      return None, value
  # What is only nearly equal stands behind the exact value.
  exact = next((i for i, s in enumerate(signs) if s == '~'), len(signs))
  return name, sides[exact]


def _named_items(
  value: math_forms.Sequence,
) -> tuple[math_forms.Value | None, math_forms.Value]:
  """Reads "x = 1 or x = 2" as 1 and 2, the values of x."""
  if value.opening:
    return None, value
  pairs = [_named(item) for item in value.items]
  names = {name for name, _ in pairs if name is not None}
  if len(names) != 1:
    return None, value
  values = tuple(v for _, v in pairs)
  return names.pop(), math_forms.Sequence('', '', values)


def _is_name(side: math_forms.Value, others: list[math_forms.Value]) -> bool:
  """Whether a side names the others: a symbol, f(x) or (x, y)."""
  if isinstance(side, math_forms.Sequence):
    return bool(side.items) and all(_is_name(i, others) for i in side.items)
  if not isinstance(side, sympy.Expr) or side.is_number:
    return False
  symbols = {s for o in others for s in math_sets.symbols(o)}
  if side.is_Symbol:
    return side not in symbols
  # f(x) is read as a product of f and x; x may occur on the other side.
  factors = side.args if side.is_Mul else ()
  return (
    len(factors) == 2
    and all(f.is_Symbol or f.is_Integer for f in factors)
    and any(
      isinstance(f, sympy.Symbol)
      and f.name in ('f', 'g', 'h', 'p', 'q', 'F', 'G', 'P')
      and f not in symbols
      for f in factors
    )
  )


def _near(left: math_forms.Value, right: math_forms.Value) -> bool:
  """Whether two numbers are as near as ≈ says, within one percent."""
  difference = sympy.N(sympy.Abs(left - right))
  return bool(difference <= sympy.N(sympy.Abs(left)) / 100)


def _equal_quantities(gold: math_forms.Value, said: math_forms.Value) -> bool:
  """Compares values with units; a unit may be left out on one side.

  A bare number above one stands for a percentage, too: 50% is 1/2 and 50. The
  base of a number is never left out.
  """
  units = [v.unit if isinstance(v, math_forms.Quantity) else '' for v in (gold, said)]
  gold, said = (
    v.value if isinstance(v, math_forms.Quantity) else v for v in (gold, said)
  )
  if units[0] == units[1]:
    return equal(gold, said)
  if '' not in units or any(u.startswith('base ') for u in units):
    return False
  if '%' not in units:
    return equal(gold, said)
  percent, bare = (gold, said) if units[0] == '%' else (said, gold)
  if not isinstance(bare, sympy.Expr):
    return False
  if equal(percent / 100, bare):
    return True
  return bool(bare.is_number and sympy.N(sympy.Abs(bare)) > 1 and equal(percent, bare))


def _equal_relations(gold: math_forms.Relation, said: math_forms.Relation) -> bool:
  """Compares equations and inequalities; both may be turned or scaled."""
  if len(gold.signs) != len(said.signs):
    return False
  turned = math_sets.turned(said)
  for candidate in (said, turned) if turned else (said,):
    if candidate.signs == gold.signs and all(map(equal, gold.sides, candidate.sides)):
      return True
  if len(gold.signs) != 1:
    return False
  (gold_sign,), (said_sign,) = gold.signs, said.signs
  parts = (*gold.sides, *said.sides)
  if not all(isinstance(p, sympy.Expr) and p.is_finite is not False for p in parts):
    return False
  first: Any  # sympy says less of its values than is known here.
  second: Any
  first, second = (
    sympy.together(side[0] - side[1]) for side in (gold.sides, said.sides)
  )
  if gold_sign in ('=', '!='):
    # x/2 = 1 has the numerator x - 2.
    first, second = (e.as_numer_denom()[0] for e in (first, second))
  first, second = sympy.expand(first), sympy.expand(second)
  if not first.free_symbols or first.free_symbols != second.free_symbols:
    return False
  symbols = sorted(first.free_symbols, key=str)
  place: Any = {s: sympy.Rational(3 + i, 7) for i, s in enumerate(symbols)}
  above, below = first.subs(place), second.subs(place)
  if not (above.is_extended_nonzero and below.is_extended_nonzero):
    return False
  ratio = above / below
  if not _same_function(first, ratio * second, symbols):
    return False
  flipped = math_sets.FLIPPED.get(said_sign, said_sign)
  return gold_sign == (said_sign if ratio > 0 else flipped)


def equal_expressions(gold: sympy.Expr, said: sympy.Expr) -> bool:
  """Whether two expressions have the same value, for all their symbols."""
  if gold == said:
    return True
  if gold.is_Rational and said.is_Rational:
    return _is_rounded(gold, said)
  if _has(gold, sympy.nan, sympy.zoo) or _has(said, sympy.nan, sympy.zoo):
    return False
  infinite = (sympy.oo, -sympy.oo)
  if gold in infinite or said in infinite:
    return False
  if _is_unworked(gold) or _is_unworked(said):
    return False
  symbols: Any = sorted(gold.free_symbols | said.free_symbols, key=str)
  if not symbols:
    return _same_number(gold, said) or _is_rounded(gold, said)
  return _same_function(gold, said, symbols)


def _has(value: sympy.Expr, *what: sympy.Expr) -> bool:
  return value.has(*what)


def _is_unworked(value: sympy.Expr) -> bool:
  """Whether sympy left a power of whole numbers alone, as it is too large.

  Evaluation to any number of digits cannot tell such values apart.
  """
  return any(
    p.base.is_Integer and p.exp.is_Integer and p.exp > 0 for p in value.atoms(sympy.Pow)
  )


def _same_number(gold: sympy.Expr, said: sympy.Expr, digits: int = _DIGITS) -> bool:
  """Whether two numbers without symbols are equal."""
  difference = sympy.expand(gold - said)
  if difference.is_Rational:
    return difference == 0
  if difference.is_zero:
    return True
  # sympy adds digits until some of the difference are certain. It gives up at
  # the limit with a number that has no certain digit, which is a zero here.
  found = difference.evalf(15, maxn=digits)
  return all(p == 0 or getattr(p, '_prec', 2) == 1 for p in found.as_real_imag())


def _is_rounded(gold: sympy.Expr, said: sympy.Expr) -> bool:
  """Whether one number is the other one, rounded to six digits or more."""
  for exact, rounded in ((gold, said), (said, gold)):
    if not rounded.is_Rational or _has_finite_decimals(exact):
      continue
    digits = _places(rounded)
    if digits is None or not exact.is_extended_real:
      continue
    places, significant = digits
    half = sympy.Rational(1, 2 * 10**places)
    if significant >= _MIN_ROUNDED_DIGITS and places > 0:
      if bool(sympy.Abs(exact - rounded).evalf(places + 30) <= half):
        return True
  return False


def _has_finite_decimals(value: sympy.Expr) -> bool:
  return bool(value.is_Rational and _places(value) is not None)


def _places(value: Any) -> tuple[int, int] | None:
  """Returns a sympy.Rational's digits behind the point, and significant digits.

  None if they are endless.
  """
  below, twos, fives = int(value.q), 0, 0
  while below % 2 == 0:
    below, twos = below // 2, twos + 1
  while below % 5 == 0:
    below, fives = below // 5, fives + 1
  if below != 1:
    return None
  places = max(twos, fives)
  digits = str(abs(int(value * 10**places)))
  return places, len(digits)


def _same_function(
  gold: sympy.Expr, said: sympy.Expr, symbols: list[sympy.Symbol]
) -> bool:
  """Compares expressions at random places, positive and negative ones.

  Identities of roots and logarithms that hold for positive values are
  accepted, unless both sides are real and differ at a negative place.
  """
  if sympy.expand(gold - said) == 0:
    return True
  rng = random.Random(0)
  compared = 0
  for sign in itertools.islice(itertools.cycle((1, -1)), 4 * _POINTS):
    place: Any = {
      s: sympy.Rational(rng.randint(1, 10**6), rng.randint(1, 10**5) * 2 + 1)
      * (1 if s.is_positive else sign * rng.choice((1, sign)))
      for s in symbols
    }
    left, right = gold.subs(place), said.subs(place)
    if _has(left, sympy.nan, sympy.zoo, sympy.oo) or (
      _has(right, sympy.nan, sympy.zoo, sympy.oo)
    ):
      continue
    if sign < 0 and not (_is_real(left) and _is_real(right)):
      continue
    if not _same_number(left, right, _DIGITS_AT_POINTS):
      return False
    compared += sign > 0
    if compared >= _POINTS:
      return True
  return compared > 0


def _is_real(value: sympy.Expr) -> bool:
  return sympy.im(value.evalf(30)) == 0
