"""Comparison of lists, tuples, sets and intervals."""

from collections.abc import Callable

import sympy

from agentflow_jax.agents.rewards import math_forms

Equal = Callable[[math_forms.Value, math_forms.Value], bool]

FLIPPED = {'<': '>', '>': '<', '<=': '>=', '>=': '<='}
_ELLIPSIS = math_forms.Mark.ELLIPSIS
_MAX_LISTED = 1000  # Items of a list whose dots are filled in.


def symbols(value: math_forms.Value) -> set[sympy.Symbol]:
  """Returns the symbols that occur in a value."""
  match value:
    case (
      math_forms.Relation(sides=parts)
      | math_forms.Sequence(items=parts)
      | (math_forms.Union(parts=parts))
    ):
      return {s for part in parts for s in symbols(part)}
    case math_forms.Quantity(value=inner):
      return symbols(inner)
  return getattr(value, 'free_symbols', set())


def turned(relation: math_forms.Relation) -> math_forms.Relation | None:
  """Reads a chain from right to left: 3 > x is x < 3."""
  signs = tuple(FLIPPED.get(s, s) for s in reversed(relation.signs))
  if not set(signs) <= {*FLIPPED, '=', '!='}:
    return None
  return math_forms.Relation(tuple(reversed(relation.sides)), signs)


def equal_sequences(
  gold: math_forms.Sequence, said: math_forms.Sequence, equal: Equal
) -> bool:
  """Compares lists, tuples and sets of single values.

  A bare list without dots and a set have no order. A bare list can stand for a
  tuple, in its order, and for a set. Brackets of different kinds differ.
  """
  brackets = {gold.opening + gold.closing, said.opening + said.closing}
  if len(brackets) == 2 and '' not in brackets:
    return False
  if _ELLIPSIS in gold.items or _ELLIPSIS in said.items:
    return _equal_dotted(gold.items, said.items, equal)
  ordered = not brackets <= {'', '{}'}
  gold_items, said_items = list(gold.items), list(said.items)
  if '{}' in brackets:
    gold_items, said_items = (
      _distinct(items, equal) for items in (gold_items, said_items)
    )
  if len(gold_items) != len(said_items):
    return False
  if ordered:
    return all(map(equal, gold_items, said_items))
  return _same_items(gold_items, said_items, equal)


def _distinct(items: list[math_forms.Value], equal: Equal) -> list[math_forms.Value]:
  kept: list[math_forms.Value] = []
  for item in items:
    if not any(equal(k, item) for k in kept):
      kept.append(item)
  return kept


def _same_items(
  gold: list[math_forms.Value], said: list[math_forms.Value], equal: Equal
) -> bool:
  left = list(said)
  for item in gold:
    found = next((i for i, s in enumerate(left) if equal(item, s)), None)
    if found is None:
      return False
    del left[found]
  return True


def _equal_dotted(
  gold: tuple[math_forms.Value, ...], said: tuple[math_forms.Value, ...], equal: Equal
) -> bool:
  """Compares lists with dots, in order, filled in where steps are constant."""
  gold, said = _filled(gold), _filled(said)
  return len(gold) == len(said) and all(
    g is s if _ELLIPSIS in (g, s) else equal(g, s)
    for g, s in zip(gold, said, strict=True)
  )


def _filled(items: tuple[math_forms.Value, ...]) -> tuple[math_forms.Value, ...]:
  """Fills in 1, 2, ..., 5; shortens 1, 2, 3, 4, ... to 1, 2, ..."""
  if items.count(_ELLIPSIS) != 1:
    return items
  at = items.index(_ELLIPSIS)
  before, behind = items[:at], items[at + 1 :]
  if len(before) < 2 or not all(isinstance(i, sympy.Expr) for i in before + behind):
    return items
  steps = {sympy.expand(b - a) for a, b in zip(before, before[1:], strict=False)}
  step = steps.pop()
  if steps or not step.is_Rational or step == 0:
    return items
  if not behind:
    return (*before[:2], _ELLIPSIS)
  count = sympy.expand(behind[0] - before[-1]) / step
  if not count.is_Integer or not 0 < count <= _MAX_LISTED:
    return items
  between = tuple(before[-1] + step * i for i in range(1, int(count)))
  return (*before, *between, *behind)


def is_set(value: math_forms.Value) -> bool:
  """Whether a value can stand for a set of real numbers."""
  match value:
    case math_forms.Sequence(opening=opening):
      return opening != '' or any(
        isinstance(i, math_forms.Relation) for i in value.items
      )
    case math_forms.Union() | math_forms.Mark.EMPTY:
      return True
    case math_forms.Relation(signs=signs):
      return bool(set(signs) & {*FLIPPED, 'in', '!=', 'without'})
    case sympy.Symbol(name='mathbb(R)'):
      return True
  return False


# An interval: its ends, and whether each of them is left out.
_Interval = tuple[sympy.Expr, sympy.Expr, bool, bool]


def equal(gold: math_forms.Value, said: math_forms.Value, same: Equal) -> bool | None:
  """Compares sets of real numbers by their intervals.

  Args:
    gold: interval, union, inequality or finite set.
    said: the same.
    same: comparison of two numbers.

  Returns:
    The verdict, or None where the values are to be compared as they stand:
    (1, 2) can be a point, too.
  """
  plain = all(isinstance(v, math_forms.Sequence) and v.opening for v in (gold, said))
  if plain:
    return None
  names = [_variable(v) for v in (gold, said)]
  if None not in names and names[0] != names[1]:
    return False
  first, second = _intervals(gold), _intervals(said)
  if first is None or second is None:
    return None
  first, second = _merged(first), _merged(second)
  return len(first) == len(second) and all(
    a[2:] == b[2:] and same(a[0], b[0]) and same(a[1], b[1])
    for a, b in zip(first, second, strict=True)
  )


def _variable(value: math_forms.Value) -> sympy.Symbol | None:
  """Returns the only symbol of an inequality."""
  match value:
    case math_forms.Relation(sides=sides, signs=('in',)):
      found = symbols(sides[0])
    case math_forms.Relation() | math_forms.Sequence(opening=''):
      found = symbols(value)
    case _:
      return None
  return found.pop() if len(found) == 1 else None


def _intervals(value: math_forms.Value) -> list[_Interval] | None:
  """Returns the intervals that a value stands for, None if it is no set."""
  match value:
    case math_forms.Mark.EMPTY:
      return []
    case sympy.Symbol(name='mathbb(R)'):
      return [(-sympy.oo, sympy.oo, True, True)]
    case math_forms.Union(parts=parts):
      return _all(parts)
    case math_forms.Sequence(opening=''):
      return _of_list(value)
    case math_forms.Sequence(opening='{', items=items):
      points = all(isinstance(i, sympy.Expr) and i.is_number for i in items)
      return [(i, i, False, False) for i in items] if points else None
    case math_forms.Sequence(items=(low, high)):
      ends = (low, high)
      if not all(isinstance(e, sympy.Expr) and e.is_number for e in ends):
        return None
      return [(low, high, value.opening == '(', value.closing == ')')]
    case math_forms.Relation(sides=(_, inner), signs=('in',)):
      return _intervals(inner)
    case math_forms.Relation(sides=(whole, out), signs=('without',)):
      return _without(_intervals(whole), _intervals(out))
    case math_forms.Relation():
      return _of_relation(value)
  return None


def _all(parts: tuple[math_forms.Value, ...]) -> list[_Interval] | None:
  found = [_intervals(p) for p in parts]
  if None in found:
    return None
  return [i for f in found if f is not None for i in f]


def _of_list(value: math_forms.Sequence) -> list[_Interval] | None:
  """Returns the set of "x < 0 or x > 1", "x > 0 and x < 1", "x = 1, x = 2"."""
  if len(symbols(value)) > 1:
    return None
  points = all(
    not isinstance(i, math_forms.Relation) or i.signs == ('=',) for i in value.items
  )
  if value.is_choice or points:
    return _all(value.items)
  common: list[_Interval] = [(-sympy.oo, sympy.oo, True, True)]
  for item in value.items:
    found = _intervals(item)
    if found is None:
      return None
    common = [cut for a in common for b in found if (cut := _cut(a, b))]
  return common


def _without(
  whole: list[_Interval] | None, points: list[_Interval] | None
) -> list[_Interval] | None:
  """Takes single points out of intervals."""
  if whole is None or points is None:
    return None
  for point, end, *_ in points:
    if point != end:
      return None
    pieces = []
    for low, high, low_open, high_open in whole:
      if bool(low < point) and bool(point < high):
        pieces += [(low, point, low_open, True), (point, high, True, high_open)]
      else:
        pieces.append((low, high, low_open or low == point, high_open or high == point))
    whole = pieces
  return whole


def _of_relation(relation: math_forms.Relation) -> list[_Interval] | None:
  """Returns the interval of a < x <= b or of an inequality linear in x."""
  variables = symbols(relation)
  if len(variables) != 1 or not all(isinstance(s, sympy.Expr) for s in relation.sides):
    return None
  (variable,) = variables
  found: list[_Interval] = [(-sympy.oo, sympy.oo, True, True)]
  sides = relation.sides
  for left, sign, right in zip(sides, relation.signs, sides[1:], strict=False):
    piece = _half_line(left, sign, right, variable)
    if piece is None:
      return None
    found = [cut for a in found for b in piece if (cut := _cut(a, b)) is not None]
  return found


def _half_line(
  left: sympy.Expr, sign: str, right: sympy.Expr, variable: sympy.Symbol
) -> list[_Interval] | None:
  infinite = {sympy.oo, -sympy.oo}
  if left in infinite or right in infinite:
    return [(-sympy.oo, sympy.oo, True, True)] if sign in ('<', '>') else None
  difference = sympy.expand(left - right)
  slope = difference.coeff(variable)
  rest = sympy.expand(difference - slope * variable)
  if rest.has(variable) or not slope.is_number or slope == 0:
    return None
  end = -rest / slope
  if bool(slope < 0):
    sign = FLIPPED.get(sign, sign)
  match sign:
    case '<' | '<=':
      return [(-sympy.oo, end, True, sign == '<')]
    case '>' | '>=':
      return [(end, sympy.oo, sign == '>', True)]
    case '!=':
      return [(-sympy.oo, end, True, True), (end, sympy.oo, True, True)]
    case '=':
      return [(end, end, False, False)]
  return None


def _cut(a: _Interval, b: _Interval) -> _Interval | None:
  low, low_open = max(
    ((a[0], a[2]), (b[0], b[2])), key=lambda e: (sympy.N(e[0], 50), e[1])
  )
  high, high_open = min(
    ((a[1], a[3]), (b[1], b[3])), key=lambda e: (sympy.N(e[0], 50), not e[1])
  )
  if bool(low > high) or (low == high and (low_open or high_open)):
    return None
  return low, high, low_open, high_open


def _merged(intervals: list[_Interval]) -> list[_Interval]:
  """Sorts intervals and joins those that touch."""
  merged: list[_Interval] = []
  for interval in sorted(intervals, key=lambda i: (sympy.N(i[0], 50), i[2])):
    if merged:
      low, high, low_open, high_open = merged[-1]
      touches = bool(interval[0] < high) or (
        interval[0] == high and not (interval[2] and high_open)
      )
      if touches:
        if bool(interval[1] > high):
          high, high_open = interval[1], interval[3]
        elif interval[1] == high:
          high_open = high_open and interval[3]
        merged[-1] = (low, high, low_open, high_open)
        continue
    merged.append(interval)
  return merged
