"""Game of 24: the expression parser, the numbers used and the value."""

import fractions
import itertools

import pytest

from agentflow_jax import records
from agentflow_jax.agents.rewards import game24


def task(answers=('(1+1+1)×8',), query='Use [1, 1, 1, 8].'):
  return records.Task('t', query, tuple(answers), 'game24')


@pytest.mark.parametrize(
  'said',
  [
    '(1+1+1)*8',
    '8*(1+1+1)',
    '8 × (1 + 1 + 1)',
    '8 x (1+1+1) = 24',
    '24 = (1+1+1)*8',
    '$(1+1+1) \\times 8 = 24$',
    '\\boxed{8\\cdot(1+1+1)}',
    '<answer>(1+1+1)*8</answer>',
    '`(1+1+1)*8`',
    '- (1+1+1)*8',
    'Use 8*(1+1+1), so 8 * (1+1+1) = 24.',
    '[1+1+1]×8',
    '-(-1-1-1)*8',
    'The solution (1+1+1)*8 - it uses 1, 1, 1 and 8.',
    '\\left(1+1+1\\right)\\times 8',
  ],
)
def test_right_answers(said):
  assert game24.game24(task(), said) == 1


@pytest.mark.parametrize(
  'said',
  [
    '',
    '24',
    '8',
    '3*8',
    '12*2',
    '(1+1+1)*8+0',
    '(1+1)*8',
    '1+1+1+8',
    '(1+1+1)*8*1',
    '1*1*1*8',
    '11+1+8',
    '1 1+1+8',
    '(1+1+1)*8 or 1+1+1+8',
    '1+1+1+8 or 8*(1+1+1)',
    '1+1=2, 2+1=3, 3*8=24',
    '8**(1+1)*1',
    '8//1//1//1',
    '8*(1+1+1',
    '1/0*8+1',
    '(1+1+1)*8.0',
    '(1+1+1)*8.5',
    '(1+1+1)*8!',
    '(1+1+1)*8^1',
    '(1+1+1)*8a',
    'f(1+1+1)*8',
    '(1+1+1)*8 % 25',
    '.5+(1+1+1)*8',
    'len("x"*24)',
    '__import__("os")',
    '(1+1+1)8',
    '8<<1+1+1',
    '0x8*(1+1+1)',
    '1+1+1*8',
    '(' * 150 + '1',
    '1+' * 150 + '1',
    '-' * 5000 + '24',
    '(' * 5000,
  ],
)
def test_wrong_answers(said):
  assert game24.game24(task(), said) == 0


def test_two_numbers_never_become_one():
  # Read as 12*2*1 this would be 24, over the right numbers.
  assert game24.game24(task(['12 2 1']), '1 2*2*1') == 0
  assert game24.game24(task(['12 2 1']), '12 * 2 * 1') == 1


def test_division_is_exact():
  # 8/(3-8/3) = 24 only without rounding; 1/3 + 1/3 + 1/3 is 1.
  assert game24.game24(task(['3 3 8 8']), '8/(3-8/3)') == 1
  assert game24.evaluate('1/3+1/3+1/3') == (fractions.Fraction(1), [1, 3] * 3)
  assert game24.evaluate('1/(1-1)') == (None, [1, 1, 1])


def test_evaluate_agrees_with_an_enumeration_of_trees():
  # Every ((a op b) op c) and (a op (b op c)) of three numbers, by hand rules.
  operators = {
    '+': lambda a, b: a + b,
    '-': lambda a, b: a - b,
    '*': lambda a, b: a * b,
    '/': lambda a, b: a / b if b else None,
  }
  numbers = [fractions.Fraction(n) for n in (6, 2, 3)]
  a, b, c = numbers
  for p, q in itertools.product(operators, repeat=2):
    first = operators[p](a, b)
    left = None if first is None else operators[q](first, c)
    second = operators[q](b, c)
    right = None if second is None else operators[p](a, second)
    assert game24.evaluate(f'(6{p}2){q}3') == (left, [6, 2, 3])
    assert game24.evaluate(f'6{p}(2{q}3)') == (right, [6, 2, 3])


@pytest.mark.parametrize('said', ['', '1+', 'a+1', '1 2', '1(2)', '2**3', '1,2'])
def test_what_is_no_expression(said):
  with pytest.raises(game24.NotAnExpression):
    game24.evaluate(said)


def test_the_given_numbers():
  assert game24.given(task(['(8-1)*3+3'])) == [1, 3, 3, 8]
  assert game24.given(task(['8, 3, 3, 1'])) == [1, 3, 3, 8]
  # The list of the question, not that of the example behind it.
  query = 'Using [4, 7, 8, 8]. Example: for [1, 2, 3, 4], (1+2+3)×4.'
  assert game24.given(task([], query)) == [4, 7, 8, 8]
  with pytest.raises(ValueError, match="task 't'"):
    game24.given(task(['none'], 'none'))
