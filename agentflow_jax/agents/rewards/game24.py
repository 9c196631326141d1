"""Game of 24: an expression over four given numbers that equals 24.

Every number is used exactly once, with + - * / and parentheses. Expressions
are read into a syntax tree of which nothing but these operations is accepted,
and evaluated with fractions: no rounding, and nothing is ever executed.
"""

import ast
import collections
import fractions
import re

from agentflow_jax import records
from agentflow_jax.agents.rewards import text

TARGET = 24

_MAX_CHARACTERS = 200  # of an expression
_MAX_RESPONSE = 4000  # of the part of a response that counts
_LATEX = (
  (re.compile(r'\\(?:left|right|,|;|!|quad)'), ''),
  (re.compile(r'\\(?:times|cdot|ast)'), '*'),
  (re.compile(r'\\div'), '/'),
  (re.compile(r'(?<=[\d)])\s*[xX]\s*(?=[\d(])'), '*'),
)
_FRACTION = re.compile(r'\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}')
_MAX_FRACTIONS = 8  # one in another
_SYMBOLS = str.maketrans(
  {
    **{chr(ord('０') + digit): str(digit) for digit in range(10)},
    **dict.fromkeys('×∗·⋅＊', '*'),
    **dict.fromkeys('÷∕⁄／', '/'),
    **dict.fromkeys('−–－', '-'),
    '＋': '+',
    '＝': '=',
    **dict.fromkeys('[（', '('),
    **dict.fromkeys(']）', ')'),
  }
)
_BULLET = re.compile(r'^\s*(?:[-*•]|\d+[.)])\s+', re.MULTILINE)
# What looks like an expression, with what must not be cut off from it: of
# "3*8.5" and "4!+0" no part counts. Not a piece of a word: "f(1)" or "8a".
_EXPRESSION = re.compile(r'(?<!\w)[-(\d.][-+*/()\d .^!%]*+(?:(?<![\d)])|(?!\w))')
# Around operators only: "1 2" is two numbers and must not become 12.
_SPACES = re.compile(r' *([-+*/()]) *')
_OPERATOR = re.compile(r'[\d)]\s*[-+*/]')
_LISTED = re.compile(r'[\[(]?\s*(\d+(?:[\s,]+\d+)+)\s*[\])]?')
_BRACKETED = re.compile(r'\[\s*(\d+(?:\s*,\s*\d+)+)\s*\]')


class NotAnExpression(ValueError):
  """Text is no arithmetic over + - * / on whole numbers."""


def evaluate(expression: str) -> tuple[fractions.Fraction | None, list[int]]:
  """Evaluates an arithmetic expression exactly.

  Args:
    expression: whole numbers with + - * / ( ), of at most 200 characters.

  Returns:
    Its value, None where it divides by zero, and its numbers from left to
    right.

  Raises:
    NotAnExpression: it is anything else.
  """
  if len(expression) > _MAX_CHARACTERS or re.search(
    r'[^-+*/()0-9 ]|\*\s*\*|/\s*/', expression
  ):
    raise NotAnExpression(expression[:_MAX_CHARACTERS])
  try:
    tree = ast.parse(expression.strip(), mode='eval')
  except (SyntaxError, RecursionError, MemoryError) as error:
    raise NotAnExpression(expression) from error
  numbers: list[int] = []
  return _evaluate(tree.body, numbers), numbers


def _evaluate(node: ast.expr, numbers: list[int]) -> fractions.Fraction | None:
  match node:
    case ast.Constant(value=int() as value):
      numbers.append(value)
      return fractions.Fraction(value)
    case ast.UnaryOp(op=ast.USub(), operand=operand):
      value = _evaluate(operand, numbers)
      return None if value is None else -value
    case ast.BinOp(left=left, op=op, right=right):
      a, b = _evaluate(left, numbers), _evaluate(right, numbers)
      if a is None or b is None:
        return None
      match op:
        case ast.Add():
          return a + b
        case ast.Sub():
          return a - b
        case ast.Mult():
          return a * b
        case ast.Div():
          return a / b if b else None
  raise NotAnExpression(ast.dump(node))


def read(answer: str) -> str | None:
  """Finds THE expression of a response.

  Args:
    answer: the response; `text.extract` says which part of it counts. LaTeX
      and typographic operators, list bullets and "... = 24" are understood.

  Returns:
    The expression with ASCII operators, or None unless there is exactly one
    (repetitions aside): steps like "1+1=2, 2+1=3" are not an answer. What is
    said to equal the expression before it, and does ("8*(1+1+1) = 8*3"), is
    that expression worked out and not another one.
  """
  said = text.extract(answer)
  if len(said) > _MAX_RESPONSE:
    return None
  for pattern, replacement in _LATEX:
    said = pattern.sub(replacement, said)
  for _ in range(_MAX_FRACTIONS):  # From the innermost outwards.
    said = _FRACTION.sub(r'((\1)/(\2))', said)
  said = _BULLET.sub('', said.translate(_SYMBOLS))
  found = set()
  before = None
  for match in _EXPRESSION.finditer(said):
    if not _OPERATOR.search(match[0]):
      continue
    expression = _SPACES.sub(r'\1', match[0].rstrip(' .-+*/'))
    is_result = before and said[before[1] : match.start()].strip() == '='
    if not (before and is_result and _same_value(before[0], expression)):
      found.add(expression)
    before = expression, match.end()
  return found.pop() if len(found) == 1 else None


def _same_value(first: str, second: str) -> bool:
  try:
    value, other = evaluate(first)[0], evaluate(second)[0]
  except NotAnExpression:
    return False
  return value is not None and value == other


def given(task: records.Task) -> list[int]:
  """Returns the numbers that a task gives, sorted.

  Those of its first answer, which is a solution ("(1+1+1)*8") or the list of
  numbers itself ("1 1 1 8"); without answers, the first list in brackets in
  the query.

  Raises:
    ValueError: there is neither.
  """
  if task.answers:
    listed = _LISTED.fullmatch(task.answers[0].strip())
    expression = read(task.answers[0])
    if listed:
      return sorted(map(int, re.findall(r'\d+', listed[1])))
    if expression:
      return sorted(evaluate(expression)[1])
  elif bracketed := _BRACKETED.search(task.query):
    return sorted(map(int, re.findall(r'\d+', bracketed[1])))
  raise ValueError(
    f'task {task.id!r}: neither its first answer nor its query gives the '
    f'numbers for {TARGET}'
  )


def game24(task: records.Task, answer: str) -> float:
  """Scores 1 for an expression over exactly the given numbers that equals 24.

  Raises:
    ValueError: as `given` does.
  """
  numbers = given(task)
  expression = read(answer)
  if expression is None:
    return 0.0
  try:
    value, used = evaluate(expression)
  except NotAnExpression:
    return 0.0
  same = collections.Counter(used) == collections.Counter(numbers)
  return float(same and value == TARGET)
