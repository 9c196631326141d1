"""Normalised exact match and F1, against SQuAD's definition."""

import random
import re
import string

import pytest

from agentflow_jax.agents.rewards import text


def squad_words(said: str) -> list[str]:
  """SQuAD's own order of steps, written from its description."""
  said = ''.join(c for c in said.lower() if c not in string.punctuation)
  return re.sub(r'\b(a|an|the)\b', ' ', said).split()


def squad_f1(gold: str, said: str) -> float:
  gold_words, said_words = squad_words(gold), squad_words(said)
  same = 0
  left = list(gold_words)
  for word in said_words:
    if word in left:
      left.remove(word)
      same += 1
  if not same:
    return 0.0
  precision, recall = same / len(said_words), same / len(gold_words)
  return 2 * precision * recall / (precision + recall)


def test_words_and_f1_equal_squads_on_random_text():
  vocabulary = [
    'the',
    'A',
    'an',
    'Paris,',
    "O'Hara",
    'rock-and-roll',
    'U.S.',
    '(city)',
    '"x"',
    'anthem',
    'theatre',
    '1999',
    'no.',
  ]
  rng = random.Random(0)
  compared = 0
  for _ in range(500):
    gold = ' '.join(rng.choices(vocabulary, k=rng.randint(1, 5)))
    said = ' '.join(rng.choices(vocabulary, k=rng.randint(1, 8)))
    if not squad_words(gold) or not squad_words(said):
      continue
    if squad_words(gold) == ['no'] or squad_words(said) == ['no']:
      continue
    compared += 1
    assert text.words(said) == squad_words(said)
    assert text.f1([gold], said) == pytest.approx(squad_f1(gold, said), 1e-12)
  assert compared > 400


@pytest.mark.parametrize(
  ('gold', 'said', 'score'),
  [
    ('São Paulo', 'the SAO PAULO.', 1),
    ('Paris', '“Paris”', 1),
    ('The The', 'the the', 1),
    ('%', '%', 1),
    ('Straße', 'STRASSE', 1),
    ('Île', 'i\u0302le', 1),
    ('A', 'a', 1),
    ('1,234', '1234', 1),
    # A point and a sign change a number, punctuation or not.
    ('1.5', '15', 0),
    ('-5', '5', 0),
    ('\u22125', '-5', 1),
    ('.5', '5', 0),
    ('Paris', 'Paris, France', 0),
    ('Paris', '', 0),
    ('Paris', '   ', 0),
    # Vowel signs of other scripts are letters: "ki" is not "ka".
    ('\u0915\u093f', '\u0915', 0),
  ],
)
def test_exact_match(gold, said, score):
  assert text.exact_match([gold], said) == score


def test_any_acceptable_answer_will_do():
  assert text.exact_match(['NYC', 'New York'], 'new york') == 1
  assert text.exact_match([], 'new york') == 0
  # |{new, york}| shared: 2*2/(2+3) against the best of the two answers.
  assert text.f1(['Boston', 'New York'], 'new york city') == pytest.approx(0.8)


def test_a_blank_response_never_scores_even_against_a_blank_answer():
  assert text.exact_match([''], '') == 0
  assert text.f1([''], '') == 0


def test_f1_counts_repeated_words_once_each():
  # gold 2 words, said 3, shared min counts: 1 -> 2*1/(2+3).
  assert text.f1(['red fish'], 'red red red') == pytest.approx(0.4)


def test_yes_and_no_get_no_partial_credit():
  assert text.f1(['yes'], 'yes it is') == 0
  assert text.f1(['yes indeed'], 'yes') == 0
  assert text.f1(['No'], 'no.') == 1


@pytest.mark.parametrize(
  ('answer', 'part'),
  [
    ('<answer>1</answer> no <ANSWER> 2\n</ANSWER> tail', '2'),
    ('<answer>open <answer>x</answer>', 'x'),
    ('<answer>never closed', '<answer>never closed'),
    ('closed</answer> first', 'closed</answer> first'),
    ('so \\boxed{1}, or \\boxed{\\frac{1}{2}}.', '\\frac{1}{2}'),
    ('\\boxed{1} then \\boxed{open', ''),
    ('So \\boxed{3}? No, wait: \\boxed{', ''),
    ('<answer>1</answer> no, <answer>2', ''),
    ('<answer>so \\boxed{3}</answer>', '3'),
    # TeX: \\{ is a character; \\\\ is a command of its own before {.
    ('\\boxed{\\left\\{x\\right.}', '\\left\\{x\\right.'),
    ('\\boxed{\\{1\\}, \\}} and 2', '\\{1\\}, \\}'),
    ('\\boxed{a \\\\{b}} c', 'a \\\\{b}'),
    ('\\boxed{1} <answer>2</answer>', '2'),
    ('<answer></answer>', ''),
    ('  Paris \n', 'Paris'),
  ],
)
def test_extract(answer, part):
  assert text.extract(answer) == part


def test_extract_is_linear_on_unclosed_tags():
  # Quadratic work on this would take minutes, not be a little slow.
  many = '<answer>' * 200_000
  assert text.extract(many) == many
