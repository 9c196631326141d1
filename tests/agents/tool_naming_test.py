"""Tests of agents.tool_naming: one tool is read, and nothing is guessed."""

import pytest

from agentflow_jax.agents import tool_naming
from tests.agents import cpu_limit

TOOLS = ('search', 'python', 'Wiki_Search')


@pytest.mark.parametrize(
  'text',
  [
    'search',
    '**search**',
    '`search`',
    '"search"',
    'SEARCH',
    'search.',
    'search;',
    '[search]',
    '["search"]',
    '{"name": "search"}',
    '(search)',
    '<search>',
    '1. search',
    'search()',
    'search(query="x")',
    'search?',
    'the search tool',
    'I would use the search tool',
    'Use search',
    'First, search',
    'tool: search',
    'The best choice is search',
    # A reason behind the name, which may mention another tool.
    'search (to find X)',
    'search - because it knows',
    'search: because',
    'search, because it knows',
    'search \u2014 it knows',
    'search. It knows facts.',
    'search to find the capital',
    'search - because python cannot browse',
    'search, since python has no network',
    'search (Wikipedia)',
    'search - no other tool fits',
    'search because python cannot',
    'search tool\nThis uses python later.',
    'search is the best tool',
    # Another tool is rejected.
    'search (not python)',
    'search, not python',
    'search without python',
    'search rather than python',
    'search instead of python',
    # One tool, named twice, or words that name nothing.
    'search search',
    'search find',
    'search #1 + 3',
  ],
)
def test_what_is_clearly_one_tool_is_read(text):
  assert tool_naming.read(text, TOOLS) == 'search'


def test_a_tool_is_spelled_as_its_card_spells_it():
  assert tool_naming.read('wiki_search', TOOLS) == 'Wiki_Search'


@pytest.mark.parametrize(
  'text, why',
  [
    (text, 'names several tools')
    for text in (
      'search or python',
      'search and python',
      'search, python',
      'search / python',
      'search/python',
      'search & python',
      'search + python',
      'search -> python',
      'search | python',
      'search then python',
      'search, then python',
      'search (or python)',
      'search (python)',
      'search: python',
      'search; python',
      'search - python',
      'search python',
      'either search or python',
      'both search and python',
      'search as well as python',
      'search with python',
      'search for python',
      'search, python, Wiki_Search',
      'search, but python is better',
      'search to find it, then python',
      '["search", "python"]',
      "['search','python']",
      '[search, python]',
      'search\npython',
      '- search\n- python',
      'search\n1. python',
      'search, perhaps python',
      'search, maybe python',
      'search\nor python',
      'search\n(and python)',
      'search\n\nThen use python',
      'search\nor\npython',
      'search. Then python adds.',
      # The other one may be a tool that there is not.
      'search or browser',
      'browser or search',
      'browser, search',
      'search, browser',
      'search/browser',
      '["search", "browser"]',
    )
  ]
  + [
    (text, 'rejects the tool')
    for text in (
      'do not use search',
      'not search',
      "don't use search",
      'never search',
      'no search',
      'avoid search',
      'any tool but search',
      'anything but search',
      'none (search is useless)',
      'I cannot use search',
      'neither search nor python',
      'search is not needed',
      'search should not be used',
      'search (not needed)',
      "search isn't useful",
      'skip search',
      'any tool other than search',
      'search is forbidden',
      'search is unnecessary',
      'search fails',
      'search – no',
      'search: no.',
    )
  ]
  + [
    (text, 'unknown tool')
    for text in ('', '**', 'browser', 'researching', 'search_web', '[]', 'none')
  ],
)
def test_what_is_not_one_tool_is_an_error(text, why):
  with pytest.raises(ValueError, match=why):
    tool_naming.read(text, TOOLS)


@pytest.mark.parametrize(
  'piece',
  [
    'search ',
    'python ',
    'not python ',
    'not ',
    ',',
    '-',
    '(',
    '. ',
    'or ',
    'because ',
    'a.',
    'search\n',
    '- python\n',
    '**',
    '[',
  ],
)
def test_takes_time_in_proportion_to_the_text(piece):
  # Quadratic work would take minutes here.
  with cpu_limit.cpu_limit(2.0, f'reading repeated {piece!r}'):
    for start in ('', 'search ', 'search, because '):
      try:
        tool_naming.read((start + piece * 20_000)[:20_000], TOOLS)
      except ValueError:
        pass
