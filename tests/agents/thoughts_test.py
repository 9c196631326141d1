"""Tests of agents.thoughts."""

import hypothesis
from hypothesis import strategies as st
import pytest

from agentflow_jax import records
from agentflow_jax.agents import thoughts
from tests.agents import cpu_limit


@pytest.mark.parametrize(
  'text, expected',
  [
    # Without thoughts the text is returned as it is.
    ('', ''),
    (' Paris\n', ' Paris\n'),
    # Blocks, as released models write them.
    ('<think>\nIt is France.\n</think>\n\nParis', 'Paris'),
    ('\n <THINK>x</Think> Paris', 'Paris'),
    ('<thinking>x</thinking>Paris', 'Paris'),
    ('<reasoning>x</reasoning>\nParis', 'Paris'),
    ('<thought>x</thought>Paris', 'Paris'),
    ('<seed:think>x</seed:think>Paris', 'Paris'),
    ('[THINK]x[/THINK]Paris', 'Paris'),
    ('<think time="3 s">x</think >Paris', 'Paris'),
    ('<think></think>Paris', 'Paris'),
    ('\ufeff<think>x</think>Paris', 'Paris'),
    # The template wrote the opening tag.
    ('It is France.\n</think>\nParis', 'Paris'),
    ('x[/THINK]Paris', 'Paris'),
    # A thought without an end leaves no answer.
    ('<think>It is Paris', ''),
    ('<think>x</think><think>It is Paris', ''),
    ('<think>x</think>\n', ''),
    ('It is Paris.</think>', ''),
    # Several blocks, nested blocks, and thoughts that mention a tag.
    ('<think>a</think>\n<think>b</think>Paris', 'Paris'),
    ('<think>a</think><reasoning>b</reasoning>Paris', 'Paris'),
    ('a</think><reasoning>b</reasoning>Paris', 'Paris'),
    ('<think>a<think>b</think>c</think>Paris', 'Paris'),
    ('<think>a<reasoning>b</reasoning>c</think>Paris', 'Paris'),
    ('<think>what is a <think> tag?</think>Paris', 'Paris'),
    ('<think>I end with `</think>` later.</think>Paris', 'Paris'),
    ('<think>no <reasoning> here</think>Paris', 'Paris'),
    ('<think>a</thinking>Paris', 'Paris'),
    ('<think>a</think></think>\nParis', 'Paris'),
    ('a</think>\n</think>Paris', 'Paris'),
    # Spellings of other released models.
    ('◁think▷x◁/think▷Paris', 'Paris'),
    (
      '<|begin_of_thought|>\nx<|end_of_thought|>\n\n<|begin_of_solution|>\n'
      'Paris\n<|end_of_solution|>',
      'Paris',
    ),
    (
      '<|START_THINKING|>x<|END_THINKING|><|START_RESPONSE|>Paris<|END_RESPONSE|>',
      'Paris',
    ),
    ('<|START_THINKING|>x', ''),
    # Blocks of lines of their own, further down.
    ('A\n<think>\nTool: b\n</think>\nB', 'A\n\nB'),
    ('<think>a</think>Paris\n<think>b <think>c</think></think>', 'Paris\n'),
    # An answer about tags keeps them.
    ('The tags are\n<think>\n</think>\n', 'The tags are\n<think>\n</think>\n'),
    ('A\n<think>never closed', 'A\n<think>never closed'),
    ('```\n<think>\na\n</think>\n```\nB', '```\n<think>\na\n</think>\n```\nB'),
    ('<think>x</think>Write <think>a</think>.', 'Write <think>a</think>.'),
    ('<think>x</think>Use </think>.', 'Use </think>.'),
    ('Write <think>a</think>.', 'Write <think>a</think>.'),
    ('`</think>` closes a thought.', '`</think>` closes a thought.'),
    ('```\n<think>a</think>\n```', '```\n<think>a</think>\n```'),
    ('a < b > c <thinker>x</thinker>', 'a < b > c <thinker>x</thinker>'),
    ('<think/>Paris', '<think/>Paris'),
    # Harmony's channels.
    (
      '<|channel|>analysis<|message|>x<|end|><|start|>assistant<|channel|>'
      'final<|message|>Paris<|return|>',
      'Paris',
    ),
    ('<|start|>assistant<|channel|>final<|message|>Paris', 'Paris'),
    ('<|channel|>analysis<|message|>It is Paris', ''),
    ('analysisIt is France.assistantfinalParis', 'Paris'),
    ('analysis of France', 'analysis of France'),
  ],
)
def test_what_is_said_stands_behind_the_thoughts(text, expected):
  assert thoughts.said(text) == expected


@pytest.mark.parametrize(
  'text, expected',
  [
    ('It is France.\n</think>\n\nParis', 'Paris'),
    ('It is France. Paris', ''),
    ('', ''),
    # Some models repeat the tag that the template wrote.
    ('<think>\nx</think>Paris', 'Paris'),
    ('x[/THINK]Paris', 'Paris'),
    ('x</reasoning>Paris', 'Paris'),
    ('x</think>Use <think>a</think>.', 'Use <think>a</think>.'),
    ('a <think> tag</think>Paris', 'Paris'),
  ],
)
def test_a_prompt_may_end_inside_a_thought(text, expected):
  assert thoughts.said(text, thinking=True) == expected
  completion = records.Completion(text, thinking=True)
  assert thoughts.said_by(completion) == expected


def test_an_end_is_settled_where_more_text_cannot_move_it():
  begin = lambda text, **options: thoughts.begin(text, settled=True, **options)
  assert begin('<think>a</think>Paris') == 16
  assert begin('a</think>Paris') == 0
  assert begin('a</think>Paris', thinking=True) == 9
  # A closing tag could still follow and balance the first one.
  assert begin('<think>a <think> b</think>Paris') is None


_pieces = st.sampled_from(
  [
    '<think>',
    '</think>',
    '<reasoning>',
    '</reasoning>',
    '[THINK]',
    '`',
    '[/THINK]',
    ' ',
    '\n',
    'a',
    '<',
    '>',
    '<|channel|>',
    'final<|message|>',
    '```',
    '<|begin_of_solution|>',
  ]
)


@hypothesis.given(st.lists(_pieces, max_size=30).map(''.join), st.booleans())
@hypothesis.settings(deadline=None, max_examples=300)
def test_what_is_said_is_part_of_the_text(text, thinking):
  said = iter(text)
  assert all(c in said for c in thoughts.said(text, thinking))  # In order.
  start = thoughts.begin(text, thinking, settled=True)
  if start and thoughts.said(text[start:]) == text[start:]:
    for more in ('', 'b', '</think>', '<think>c</think>'):
      if text[start:].strip():
        assert thoughts.begin(text + more, thinking, settled=True) == start


@pytest.mark.parametrize(
  'piece',
  [
    '<think>',
    '</think>',
    '<think><think></think>',
    '<think ',
    ' ',
    '<',
    '<think></think>',
    '<think></think><think>',
    '<|channel|>',
    '[THINK]',
    '<reasoning></think>',
    'analysis',
    '\ufeff',
    '<|channel|>final ',
    '\n<think>a</think>',
    '\n```\n<think>a',
    '<think></think></think>',
  ],
)
def test_takes_time_in_proportion_to_the_text(piece):
  # Quadratic work would take minutes here.
  with cpu_limit.cpu_limit(5.0, f'reading repeated {piece!r}'):
    for thinking in (False, True):
      thoughts.said((piece * 300_000)[:300_000], thinking)
