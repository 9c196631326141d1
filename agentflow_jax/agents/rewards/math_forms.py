"""What a mathematical text says: the values that `math_reader` returns.

A value is a sympy expression or matrix, or one of the forms below, which sympy
has no exact counterpart for. Nothing here is compared; `math_equal` compares.
"""

import dataclasses
import enum
from typing import Any

# A sympy expression, a sympy matrix or one of the forms of this module.
Value = Any


class Unreadable(ValueError):
  """Text is no mathematics of the kinds that `math_reader` reads."""


class Mark(enum.Enum):
  """Things without a value of their own.

  Attributes:
    ELLIPSIS: the dots in "1, 2, ..., 10".
    EMPTY: the empty set.
  """

  ELLIPSIS = enum.auto()
  EMPTY = enum.auto()


@dataclasses.dataclass(frozen=True)
class Relation:
  """A chain of relations, such as x = 2 + 3 = 5 or 1 < x <= 3.

  Attributes:
    sides: values from left to right, one more than `signs`.
    signs: relation signs: =, !=, <, <=, >, >=, ~ (nearly equal) or "in".
  """

  sides: tuple[Value, ...]
  signs: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Sequence:
  """Several values with or without brackets around them.

  Attributes:
    opening: one of ( [ { or '' for a bare list.
    closing: one of ) ] } or ''.
    items: values in their order; `Mark.ELLIPSIS` where dots stand.
    is_choice: whether "or" stands between the items.
  """

  opening: str
  closing: str
  items: tuple[Value, ...]
  is_choice: bool = False


@dataclasses.dataclass(frozen=True)
class Union:
  """Sets joined by a union sign.

  Attributes:
    parts: the sets.
  """

  parts: tuple[Value, ...]


@dataclasses.dataclass(frozen=True)
class Quantity:
  """A value with a unit that is written behind it.

  Attributes:
    value: number or expression before the unit.
    unit: normalised name of the unit, "%" for percent.
  """

  value: Value
  unit: str
