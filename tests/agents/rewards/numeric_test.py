"""Numbers in text and their tolerance."""

import fractions
import random

import pytest

from agentflow_jax.agents.rewards import numeric

F = fractions.Fraction


@pytest.mark.parametrize(
  ('said', 'value'),
  [
    ('12', F(12)),
    ('-3.5', F(-7, 2)),
    ('\u22127', F(-7)),
    ('+4', F(4)),
    ('.5', F(1, 2)),
    ('1,234,567', F(1234567)),
    ('1,234.5', F(2469, 2)),
    ('1_000', F(1000)),
    ('1\u202f234\u202f567', F(1234567)),
    ('10\\,000', F(10000)),
    ('1.2e6', F(1200000)),
    ('1.2E-3', F(12, 10000)),
    ('1.2 x 10^6', F(1200000)),
    ('1.2 \\times 10^{-2}', F(12, 1000)),
    ('3/4', F(3, 4)),
    ('\\frac{3}{4}', F(3, 4)),
    ('3.5 million', F(3500000)),
    ('2 Billions', F(2 * 10**9)),
    ('$5', F(5)),
    ('-$5', F(-5)),
    ('$27$', F(27)),
    ('12 %', F(12)),
    ('12\\%', F(12)),
    ('5.', F(5)),
    ('٣٤', F(34)),
    ('3½', F(7, 2)),
    ('-3½', F(-7, 2)),
    ('2 ¾', F(11, 4)),
    ('⅞', F(7, 8)),
    ("1'234'567", F(1234567)),
    ('1’234', F(1234)),
    ('1 234 567', F(1234567)),
    ('1.234.567', F(1234567)),
    ('1.234.567,5', F(2469135, 2)),
    ('1.234,56', F(123456, 100)),
    ('12,34,567', F(1234567)),
    ('1.2M', F(1200000)),
    ('1.2 M', F(1200000)),
    ('3k', F(3000)),
    ('3K', F(3000)),
    ('$2.5B', F(25 * 10**8)),
    ('$2.5bn', F(25 * 10**8)),
    ('4mn', F(4 * 10**6)),
    ('€7tn', F(7 * 10**12)),
    ('$7T', F(7 * 10**12)),
    ('-$3k', F(-3000)),
    ('2 dozen', F(24)),
  ],
)
def test_numbers_that_stand_alone(said, value):
  assert numeric.parse(said) == value
  assert numeric.find(f'It is {said}, I think.') == [value]


@pytest.mark.parametrize(
  'said',
  [
    'U2',
    'COVID-19',
    '1970s',
    '2nd',
    '1.2.3',
    '5²',
    '5m',
    '5x',
    '5 b',
    '300 K',
    '5T',
    '5xq',
    '$3k$',
    'x-5',
    'no',
    '',
    '-',
    '1/0',
    'km2',
    'inf',
    'nan',
    '1e500',
    '1e9999',
    '1e999999999',
    '9' * 500,
    '1_',
    'Paris',
  ],
)
def test_what_is_no_number(said):
  if said != '1_':
    assert numeric.find(said) == []
  assert numeric.parse(said) is None


@pytest.mark.parametrize(
  ('said', 'values'),
  [
    ('5km', [5]),
    ('US$5', [5]),
    ('**5**', [5]),
    ('1,5', [1, 5]),
    ('1,234,56', [1, 234, 56]),
    ('1914-1918', [1914, 1918]),
    ('1914–1918', [1914, 1918]),
    ('12:30', [12, 30]),
    ('[1, 2,3]', [1, 2, 3]),
    ('x = -5.', [-5]),
    ('a - 5', [5]),
    ('U2 sold 5 million in the 1990s', [5000000]),
  ],
)
def test_numbers_in_text(said, values):
  assert numeric.find(said) == values
  assert numeric.parse(said) is None


@pytest.mark.parametrize(
  ('gold', 'said', 'score'),
  [
    ('1.2', '1.2M', 0),
    ('3', '3k', 0),
    ('3', '$3k$', 0),  # A product of 3 and k.
    ('3000', '$3k$', 0),
    ('2.5', '$2.5B', 0),
    ('1000', '1k miles', 1),
    # Metres, minutes or millions: neither the number nor a factor.
    ('5', '5m', 0),
    ('5000000', '5m', 0),
    ('5', '5 m', 1),
    ('8848', 'It is 8,848 m high.', 1),
    ('5000000', '5 m', 0),
    ('5', '5 t', 1),
    ('5', '$5 m', 0),
    ('5', '5 b', 0),
    ('5', '$5m', 0),
    ('5', '5b', 0),
    ('5', '5T', 0),
    ('300', '300 K', 0),  # Kelvin or thousands.
    ('300000', '300 K', 0),
    ('5', '5x', 0),
    ('5', '5zz', 0),
    # An unclear number beside a right one is a second answer.
    ('7', '7 or 8m', 0),
    # Units that are nothing else.
    ('5', '5 m²', 1),
    ('5', '5m2', 1),
    ('5', '5km', 1),
    ('5', '5kg', 1),
    ('5', '5 metres', 1),
    ('5', '5ms', 1),
  ],
)
def test_letters_behind_a_number(gold, said, score):
  assert numeric.number([gold], said) == score


def test_every_format_of_random_numbers_reads_back_exactly():
  rng = random.Random(1)
  for _ in range(2000):
    digits = rng.randint(0, 12)
    scaled = rng.randint(-(10**15), 10**15)
    value = F(scaled, 10**digits)
    shown = f'{scaled / 1:.0f}' if digits == 0 else None
    sign, magnitude = ('-', -scaled) if scaled < 0 else ('', scaled)
    whole, rest = divmod(magnitude, 10**digits)
    tail = f'.{rest:0{digits}d}' if digits else ''
    assert numeric.parse(f'{sign}{whole}{tail}') == value
    assert numeric.parse(f'{sign}{whole:,}{tail}') == value
    assert numeric.parse(f'{scaled}e-{digits}') == value
    if shown is not None:
      assert numeric.parse(shown) == value


@pytest.mark.parametrize(
  ('gold', 'said', 'score'),
  [
    ('1000', '1001', 1),  # error 1e-3 of the gold, the bound itself
    ('1000', '999', 1),
    ('1000', '1001.0001', 0),
    ('1000', '998.9', 0),
    ('-1000', '-1000.5', 1),
    ('-1000', '1000', 0),
    ('0', '0', 1),
    ('0', '0.0000001', 0),
    ('0.001', '0.0010005', 1),
    ('0.001', '0', 0),
    ('83,000,000', 'about 83 million people', 1),
    ('7', 'seven', 1),
    ('7', 'the seven of us', 0),
    ('7', '', 0),
    # THE number: candidates beside it are worth nothing.
    ('7', '6 or 7', 0),
    ('7', '7, that is 7.0', 1),
    ('7', '1 2 3 4 5 6 7 8 9', 0),
  ],
)
def test_the_number_of_a_response(gold, said, score):
  assert numeric.number([gold], said) == score


def test_all_numbers_must_fit_the_same_answer():
  assert numeric.number(['5', '7'], '7') == 1
  assert numeric.number(['5', '7'], '5 and 7') == 0


def test_tolerance_zero_is_exact_beyond_floating_point():
  gold = str(2**80)
  assert numeric.number([gold], str(2**80), tolerance=0.0) == 1
  assert numeric.number([gold], str(2**80 + 1), tolerance=0.0) == 0
  assert numeric.number(['0.1'], '0.10', tolerance=0.0) == 1


def test_hostile_text_is_read_in_bounded_work():
  # Each of these would run for minutes or forever if work were not bounded.
  for said in (
    '9' * 200_000,
    '1,234' * 50_000,
    '-' * 200_000,
    ' 1 ' * 50_000,
    '1e' + '9' * 100_000,
    '1/' * 100_000,
    '1_' * 100_000,
    '1 ' + ' ' * 100_000 + 'x',
  ):
    assert len(numeric.find(said)) <= 100
