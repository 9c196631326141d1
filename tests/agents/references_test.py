"""Tests of agents.references."""

import dataclasses

import hypothesis
from hypothesis import strategies as st
import pytest

from agentflow_jax.agents import references as references_lib

GAZETTEER = references_lib.Gazetteer(
  ['Oslo', 'New York', 'New', 'York', "'s-Gravenhage", 'Port-', 'Saint Lô']
)
EMPTY = references_lib.References(GAZETTEER)


@pytest.mark.parametrize(
  'text, marked, mentions',
  [
    ('Oslo has 5 parks, Oslo!', '#1 Oslo has #2 5 parks, #1 Oslo!', ('Oslo', '5')),
    ('New York, not York', '#1 New York, not #2 York', ('New York', 'York')),
    ("in 's-Gravenhage", "in #1 's-Gravenhage", ("'s-Gravenhage",)),
    ('Osloans oslo', 'Osloans oslo', ()),
    ('-1.5e3 and 12abc', '#1 -1.5e3 and 12abc', ('-1.5e3',)),
    # A hyphen is no minus; a mark begins where the last one has ended.
    ('3-5, 2020-01', '#1 3-#2 5, #3 2020-#4 01', ('3', '5', '2020', '01')),
    ('Port--5', '#1 Port-#2 -5', ('Port-', '-5')),
    ('5-', '#1 5-', ('5',)),
    ('', '', ()),
  ],
)
def test_marks_names_and_numbers_where_they_stand(text, marked, mentions):
  found, references = EMPTY.annotate(text)
  assert found == marked
  assert references.mentions == mentions


def test_numbers_go_on_in_the_next_text_and_the_old_value_stays():
  _, first = EMPTY.annotate('Oslo')
  marked, second = first.annotate('York Oslo')
  assert marked == '#2 York #1 Oslo'
  assert first.mentions == ('Oslo',)
  assert second.mentions == ('Oslo', 'York')


def test_a_result_cannot_forge_a_mark():
  _, references = EMPTY.annotate('Oslo and York')
  marked, references = references.annotate('#2 Oslo #3 ##1')
  # Broken into '# ' and a number, which then is a mention like any other.
  assert marked == '# #3 2 #1 Oslo # #4 3 ## #5 1'
  assert references.resolve('#2') == 'York'


def test_resolves_what_is_marked_and_nothing_else():
  _, references = EMPTY.annotate('Oslo 7')
  assert references.resolve('#2 * #2 of #1') == '7 * 7 of Oslo'
  for wrong in ('#3', '#0', '#' + '9' * 5000):
    with pytest.raises(references_lib.UnknownReference, match='2 mentions'):
      references.resolve(wrong)


def test_unmark_writes_marks_and_bare_numbers_as_their_names():
  _, references = EMPTY.annotate('Oslo has 5')
  assert references.unmark('#1 Oslo, not #2, #1 is') == 'Oslo, not 5, Oslo is'
  assert references.unmark('#9 x') == '#9 x'


def test_last_in_is_the_last_name_or_number():
  assert EMPTY.last_in('5 in Oslo, he said') == 'Oslo'
  assert EMPTY.last_in('nothing') == ''


AFTER = references_lib.References(
  references_lib.Gazetteer(['Oslo', 'New York', 'Port-'], marks='after')
)


def test_marks_may_stand_after_their_mentions():
  marked, found = AFTER.annotate('New York, Oslo has 3-5 parks; Port--5 Oslo')
  assert marked == ('New York #1, Oslo #2 has 3 #3-5 #4 parks; Port- #5-5 #6 Oslo #2')
  assert found.unmark(marked) == 'New York, Oslo has 3-5 parks; Port--5 Oslo'
  assert found.unmark('#2 and Oslo #2, not #1') == 'Oslo and Oslo, not New York'
  assert found.resolve('name=#2') == 'name=Oslo'
  more, _ = dataclasses.replace(
    found, gazetteer=references_lib.gazetteer(('Rome',), r'P\d+', found.gazetteer)
  ).annotate('Rome, P7, #1 Oslo')
  assert more == 'Rome #7, P7 #8, # 1 Oslo #2'


_texts = st.lists(
  st.sampled_from(
    [
      'Oslo',
      'New',
      'York',
      ' ',
      '-',
      '5',
      '.',
      '#',
      'x',
      "'s",
      'Port-',
      '\n',
      'Saint',
      'Lô',
      '1e9',
      '#1 ',
    ]
  ),
  max_size=30,
).map(''.join)


@hypothesis.given(_texts)
@hypothesis.settings(deadline=None, max_examples=200)
def test_unmark_undoes_annotate(text):
  for empty in (EMPTY, AFTER):
    marked, references = empty.annotate(text)
    assert references.unmark(marked) == references_lib.defuse(text)


def test_keys_say_what_else_has_a_number():
  """Where there are keys, other numbers are facts that no plan refers to."""
  keys = r'[A-Z]\d+|\d{4}-\d\d-\d\d|\d+(?= days?\b)'
  known = references_lib.gazetteer(
    ('North', 'North Sea'), keys, references_lib.Gazetteer(())
  )
  marked, found = references_lib.References(known).annotate(
    'I7 in North Sea, 3 open, due 2031-05-06, lent for 12 days to P12a and P2'
  )
  assert marked == (
    '#1 I7 in #2 North Sea, 3 open, due #3 2031-05-06, lent for #4 12 days to P12a'
    ' and #5 P2'
  )
  assert found.mentions == ('I7', 'North Sea', '2031-05-06', '12', 'P2')
  assert found.resolve('item=#1; days=#4') == 'item=I7; days=12'
  assert known is references_lib.gazetteer(('North', 'North Sea'), keys, known._more)
  both = references_lib.gazetteer(('Oslo',), '', references_lib.Gazetteer(('Rome',)))
  marked, _ = references_lib.References(both).annotate('Oslo, Rome, 5')
  assert marked == '#1 Oslo, #2 Rome, #3 5'


def test_in_a_program_a_mention_is_a_literal():
  names = references_lib.Gazetteer(("Ann's cup", 'Oslo'))
  _, found = references_lib.References(names).annotate("Ann's cup in Oslo for 9.5")
  said = 'lend(#1, to=#2, days=#3)'
  assert found.resolve(said, literal=True) == (
    "lend(\"Ann's cup\", to='Oslo', days=9.5)"
  )


@pytest.mark.parametrize(
  ('program', 'resolved'),
  [
    ('f(#1, #2)', "f('Oslo', 9)"),
    ('f(\'#1\', "#2")', 'f(\'#1\', "#2")'),
    ("x = f'{y:#2x}'  # take #1", "x = f'{y:#2x}'  # take #1"),
    ('# 1 #1\n  #2 is it\nf(#2)', '# 1 #1\n  #2 is it\nf(9)'),
    ('s = """\n#1\n"""\nf(#1)', 's = """\n#1\n"""\nf(\'Oslo\')'),
    ("s = 'it\\'s #1'\nf(#1)", "s = 'it\\'s #1'\nf('Oslo')"),
    ("s = 'open #1\nf(#2)", "s = 'open #1\nf(9)"),
    ('f(#3)', "f('007')"),
  ],
)
def test_texts_and_comments_of_a_program_stay(program, resolved):
  known = references_lib.Gazetteer(('Oslo',))
  found = references_lib.References(known, ('Oslo', '9', '007'))
  assert found.resolve(program, literal=True) == resolved


def test_an_unknown_mention_of_a_program_is_an_error():
  found = references_lib.References(references_lib.Gazetteer(('Oslo',)), ('Oslo',))
  with pytest.raises(references_lib.UnknownReference, match='#2'):
    found.resolve('f(#2)', literal=True)
