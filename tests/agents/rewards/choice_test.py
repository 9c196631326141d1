"""Multiple choice: reading options and what a response chose."""

import pytest

from agentflow_jax import records
from agentflow_jax.agents.rewards import choice

QUERY = """Which one? A. is not an option here.
A. Vitamin C
B. Oral ulcers
C. Colorectal cancer
D. Cancer
Choose the correct option."""


def task(answers, query=QUERY):
  return records.Task('t', query, tuple(answers), 'choice')


def test_options_are_the_last_unbroken_run():
  query = 'A. old\nB. older\n\n(A) new\n(B) newer\n**C.** newest\nE. stray'
  found = choice.options(query)
  assert [(o.label, o.content) for o in found] == [
    ('A', 'new'),
    ('B', 'newer'),
    ('C', 'newest'),
  ]
  assert choice.options('A. only one') == ()
  assert choice.options('no options') == ()


@pytest.mark.parametrize(
  'said',
  [
    'C',
    'c',
    '(C)',
    '(c)',
    'C.',
    'C)',
    '**C**',
    '`C`',
    '$C$',
    '3',
    'Colorectal cancer',
    'the colorectal CANCER.',
    'C. Colorectal cancer',
    '(C) Colorectal cancer',
    'C: because of the ulcers in the history',
    'The answer is C',
    'The answer is (C).',
    'The correct answer is **C**.',
    'Answer: C',
    'I choose option C, since it fits.',
    '\\boxed{C}',
    '\\boxed{\\text{C}}',
    'It is <answer>C</answer>, not A.',
    'This patient is at risk of colorectal cancer.',
    'C. Colorectal cancer, rather than oral ulcers',
    '[C]',
    '{C}',
    '<C>',
    '[c]',
    '\\{C\\}',
    '\\boxed{[C]}',
    '**[C]**',
    '[C] Colorectal cancer',
    "It's C.",
    'It’s C',
    'It is C, not A.',
    "It's (C).",
    "It's [C].",
    'It must be C.',
    'The answer is [C].',
    'The answer is "C".',
    "'C'",
    'C!',
    'My answer would be C.',
  ],
)
def test_ways_to_say_c(said):
  assert choice.choice(task(['Colorectal cancer']), said) == 1
  for wrong in ('Vitamin C', 'Oral ulcers', 'Cancer'):
    assert choice.choice(task([wrong]), said) == 0


@pytest.mark.parametrize(
  'said',
  [
    '',
    ' ',
    'A, B, C',
    'A and C',
    'A or C',
    'A. B. C. D.',
    'E',
    '5',
    '0',
    'Z.',
    'C. Oral ulcers',
    'The answer is A. The answer is C.',
    'oral ulcers or colorectal cancer',
    'none of them',
    'not sure',
    'A patient with colitis',
    'vitamin',
    "It's not C.",
    "It's A or C.",
    "It's A, C.",
    'The answer is C, D.',
    '[A], [C]',
    '[A] or [C]',
    '[C] Oral ulcers',
    "It's C. Cancer",
    "It's A. It's C.",
  ],
)
def test_naming_none_or_several_scores_nothing_whatever_is_right(said):
  for right in 'ABCD':
    assert choice.choice(task([right]), said) == 0


def test_an_option_inside_a_longer_one_is_not_mentioned():
  # "Cancer" (D) is part of "Colorectal cancer" (C).
  assert choice.chosen(choice.options(QUERY), 'likely colorectal cancer') == 'C'
  assert choice.chosen(choice.options(QUERY), 'likely a cancer') == 'D'


def test_a_label_is_no_article():
  found = choice.options('Which?\nA. E. coli\nB. A. baumannii\nC. the liver')
  assert choice.chosen(found, 'A. baumannii') == 'B'
  assert choice.chosen(found, 'A. The liver') is None
  assert choice.chosen(found, 'A. E. coli') == 'A'
  assert choice.chosen(found, 'a liver') == 'C'


def test_numeric_contents_win_over_positions():
  query = 'How many?\nA. 3\nB. 1\nC. 2'
  assert choice.choice(task(['3'], query), '3') == 1
  assert choice.choice(task(['C'], query), '3') == 0
  assert choice.choice(task(['C'], query), '2') == 1


@pytest.mark.parametrize(
  ('answers', 'query', 'match'),
  [
    (['Oral'], QUERY, 'do not name one'),
    (['A', 'B'], QUERY, 'do not name one'),
    ([], QUERY, 'do not name one'),
    (['A'], 'no options', 'has no options'),
  ],
)
def test_a_task_that_cannot_be_scored_is_an_error(answers, query, match):
  with pytest.raises(ValueError, match=match):
    choice.choice(task(answers, query), 'A')
