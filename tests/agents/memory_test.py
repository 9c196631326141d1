"""Tests of agents.memory (contract 6)."""

import dataclasses

import hypothesis
from hypothesis import strategies as st
import pytest

from agentflow_jax import records
from agentflow_jax.agents import memory as memory_lib, plan as plan_lib
from agentflow_jax.agents.environments import base as environments


def _words(text):
  return len(text.split())


def _entry(result, **fields):
  return memory_lib.Entry('search', 'find it', 'Oslo', result, **fields)


def test_append_returns_a_new_memory_and_leaves_the_old_one():
  empty = memory_lib.start('q', 'a')
  one = empty.append(_entry('x'))
  two = one.append(_entry('y'))
  assert empty.entries == ()
  assert [e.result for e in two.entries] == ['x', 'y']
  assert one.entries == (_entry('x'),)
  with pytest.raises(dataclasses.FrozenInstanceError):
    one.entries = ()


def test_an_entry_says_its_number_what_was_done_and_how_it_ended():
  assert _entry('5').render(2) == '2. search: find it; Oslo -> 5'
  assert _entry('no', failed=True, verdict='continue').render(1) == (
    '1. search: find it; Oslo ! no | continue'
  )


def test_a_plain_memory_keeps_every_text():
  brief = environments.Brief('No #1.', names=('Oslo',))
  memory = memory_lib.start('Is #7 Oslo?', 'See #1.', brief)
  assert (memory.query, memory.analysis) == ('Is #7 Oslo?', 'See #1.')
  assert memory.policy == 'No #1.'
  assert memory.plain() == memory
  plan = plan_lib.Plan('find #1', 'of #2', 't #3')
  assert memory.plain_plan(plan) == plan
  result = records.ToolResult('#4 Oslo', records.ToolErrorKind.ARGUMENTS)
  entry, after = memory.entry(plan, result, _words, 9)
  assert after == memory  # It is not appended yet.
  wanted = memory_lib.Entry('t #3', 'find #1', 'of #2', '#4 Oslo', failed=True)
  assert entry == wanted
  (last,) = after.judged(entry, '#5 it is', _words, 9).entries
  assert last == dataclasses.replace(wanted, verdict='#5 it is')


def test_every_text_of_an_entry_has_its_budget():
  long = ' '.join(map(str, range(50)))
  memory, plan = memory_lib.start('q'), plan_lib.Plan(long, long, 't')
  entry, memory = memory.entry(plan, records.ToolResult(long), _words, 7)
  (last,) = memory.judged(entry, long, _words, 5).entries
  texts = (last.sub_goal, last.context, last.result, last.verdict)
  assert [_words(text) for text in texts] == [7, 7, 7, 5]


def test_shorten_keeps_what_fits_and_the_ends_of_what_does_not():
  text = ' '.join(f'w{i}' for i in range(100))
  assert memory_lib.shorten(text, _words, 100) == text
  short = memory_lib.shorten(text, _words, 10)
  assert _words(short) == 10
  head, tail = short.split(' ...')
  assert text.startswith(head) and text.endswith(tail)
  assert len(head) > len(tail) > 0


@hypothesis.given(
  st.lists(st.sampled_from(['#12 ', '345', ' ', 'Oslo', ', ', '\n'])).map(''.join),
  st.integers(1, 12),
)
@hypothesis.settings(deadline=None, max_examples=200)
def test_shorten_fits_and_never_cuts_a_number_or_a_mark(text, tokens):
  short = memory_lib.shorten(text, _words, tokens)
  assert _words(short) <= tokens
  if len(max(text.split(), key=len, default='')) <= 40:
    assert set(short.replace('...', ' ').split()) <= set(text.split())


def test_shorten_counts_little_of_ten_megabytes():
  counted = []

  def count(text):
    counted.append(len(text))
    return _words(text)

  short = memory_lib.shorten('ab ' * 3_500_000, count, 20)
  assert _words(short) <= 20
  assert sum(counted) < 1_000_000


def test_bounded_makes_any_text_encodable():
  assert memory_lib.bounded('a\ud800b').encode() == b'a?b'
  assert len(memory_lib.bounded('x' * 10**7)) < 25_000


def test_overflow_shortens_the_oldest_first_and_is_counted():
  long = ' '.join(map(str, range(50)))
  memory = memory_lib.start('q ' * 99)
  for _ in range(2):
    memory = memory.append(_entry(long))
  once = memory.shorten_older(_words, 5)
  assert [_words(e.result) for e in once.entries] == [5, 50]
  twice = once.shorten_older(_words, 5)
  assert [_words(e.result) for e in twice.entries] == [5, 5]
  assert (memory.shortened, once.shortened, twice.shortened) == (0, 1, 2)
  assert twice.query == memory.query
  assert twice.shorten_older(_words, 5) is None
  assert [_words(e.result) for e in memory.entries] == [50, 50]


def test_a_budget_below_what_a_template_costs_comes_to_an_end():
  # Every count holds 30 tokens of a chat template: nothing ever gets to 16.
  memory = memory_lib.start('q')
  memory = memory.append(_entry('a b c d e f')).append(_entry('...'))
  steps = 0
  while memory is not None:
    memory = memory.shorten_older(lambda t: 30 + _words(t), 16)
    steps += 1
    assert steps < 10
  assert steps >= 2
