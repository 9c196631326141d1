"""Tests of the search tool."""

import asyncio
import collections
import json
import math
import subprocess
import sys

import pytest

from agentflow_jax.agents.tools import base
from agentflow_jax.agents.tools.search import bm25_index, passages, search_tool

_TOWNS = passages.Corpus(
  (
    passages.Passage('1', 'Lyon', 'Lyon is a city in France on the Rhone.'),
    passages.Passage('2', 'Geneva', 'Geneva is a city in Switzerland.'),
    passages.Passage('3', 'Rhone', 'The Rhone flows from Switzerland to France.'),
    passages.Passage('4', 'Oslo', 'Oslo lies in Norway.'),
  )
)


def _ask(tool: base.Tool, query: str) -> str:
  return asyncio.run(tool.call({'query': query}))


def _oracle(corpus: passages.Corpus, query: str, k1: float, b: float):
  """BM25 in Lucene's form, straight from the formula, best first."""
  documents = [bm25_index.tokenize(f'{p.title} {p.text}') for p in corpus.passages]
  average = sum(map(len, documents)) / len(documents)
  scores = []
  for words in documents:
    counts = collections.Counter(words)
    score = 0.0
    for word in bm25_index.tokenize(query):
      holding = sum(word in d for d in documents)
      if not holding:
        continue
      idf = math.log(1 + (len(documents) - holding + 0.5) / (holding + 0.5))
      length = 1 - b + b * len(words) / average
      score += idf * counts[word] / (counts[word] + k1 * length)
    scores.append(score)
  order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
  return [corpus.passages[i] for i in order if scores[i] > 0]


@pytest.mark.parametrize(
  'query', ['Rhone', 'city France', 'switzerland rhone flows', 'in', 'OSLO', 'a city']
)
@pytest.mark.parametrize('k1, b', [(1.5, 0.75), (0.5, 0.0)])
def test_ranking_follows_the_bm25_formula(query, k1, b):
  index = bm25_index.Index(_TOWNS, k1=k1, b=b)
  assert index.search(query, top_k=4) == _oracle(_TOWNS, query, k1, b)


def test_many_passages_match_the_oracle():
  words = ['red', 'green', 'blue', 'town', 'river', 'hill', 'sea']
  corpus = passages.Corpus(
    tuple(
      passages.Passage(
        str(i),
        words[i % 7],
        ' '.join(words[(i * j * j + i // 7) % 7] for j in range(1, 3 + i % 11)),
      )
      for i in range(300)
    )
  )
  index = bm25_index.Index(corpus)
  for query in ('red', 'green sea', 'hill hill town'):
    # float32 against float64: only an order of equal scores could differ, and
    # equal scores keep the corpus's order in both.
    assert index.search(query, 5) == _oracle(corpus, query, 1.5, 0.75)[:5]


def test_ties_keep_the_order_of_the_corpus():
  same = passages.Corpus(
    tuple(passages.Passage(str(i), 'x', 'alpha beta') for i in range(50))
  )
  index = bm25_index.Index(same)
  for k in (1, 3, 50):
    found = index.search('beta', k)
    assert [p.id for p in found] == [str(i) for i in range(k)]


def test_result_is_the_text_one_passage_a_line():
  tool = search_tool.make(_TOWNS, top_k=2)
  assert _ask(tool, 'rhone lyon') == (
    'Lyon is a city in France on the Rhone.\n'
    'The Rhone flows from Switzerland to France.'
  )
  assert _ask(search_tool.make(_TOWNS), 'norway') == 'Oslo lies in Norway.'
  assert _ask(search_tool.make(_TOWNS, top_k=9), 'norway') == 'Oslo lies in Norway.'


def test_no_match_is_a_result_and_no_word_is_an_error():
  tool = search_tool.make(_TOWNS)
  assert _ask(tool, 'zanzibar') == 'No passage has any of these words.'
  with pytest.raises(base.BadArguments, match='no word'):
    _ask(tool, ' ?! ')
  with pytest.raises(base.BadArguments, match='2000 at most'):
    _ask(tool, 'x' * 2001)


def test_result_is_cut_and_kept_on_one_line():
  corpus = passages.Corpus((passages.Passage('1', 't', 'alpha\n' + 'b ' * 100),))
  assert _ask(search_tool.make(corpus, max_chars=20), 'alpha') == (
    'alpha b b b b b  ...'
  )


def test_words_are_folded_but_not_stemmed():
  assert bm25_index.tokenize('STRASSE straße') == ['strasse', 'strasse']
  assert bm25_index.tokenize('Åland (ÉTÉ)') == ['åland', 'été']
  # A letter and a combining accent is the same word as the accented letter.
  assert bm25_index.tokenize('e\u0301te') == bm25_index.tokenize('éte')
  assert bm25_index.tokenize('the cities') == ['the', 'cities']


def test_large_searches_leave_the_event_loop(monkeypatch):
  monkeypatch.setattr(search_tool, '_INLINE_POSTINGS', 0)
  assert _ask(search_tool.make(_TOWNS), 'norway') == 'Oslo lies in Norway.'


def test_postings_count_what_a_search_touches():
  # 4 scores, 'rhone' in passages 1 and 3, 'city' in 1 and 2.
  assert bm25_index.Index(_TOWNS).postings('rhone city zanzibar') == 4 + 2 + 2


def test_reads_a_directory_in_order_and_cuts_files(tmp_path):
  (tmp_path / 'sub').mkdir()
  (tmp_path / 'b.txt').write_text('bee ' * 10 + '\n\n' + 'hive ' * 10)
  (tmp_path / 'sub' / 'a.md').write_text('ant')
  (tmp_path / 'skipped.bin').write_bytes(b'\xff')
  corpus = passages.load_corpus(tmp_path, passage_chars=60)
  assert [(p.id, p.title) for p in corpus.passages] == [
      ('b.txt#0', 'b'), ('b.txt#1', 'b'), ('sub/a.md#0', 'a'),
  ]  # fmt: skip
  assert corpus.passages[1].text == ' '.join(['hive'] * 10)
  assert corpus.titles == ('b', 'a')


def test_long_paragraphs_lose_no_word(tmp_path):
  words = [f'w{i}' for i in range(500)]
  (tmp_path / 'a.txt').write_text(' '.join(words) + '\n\n' + 'x' * 100)
  corpus = passages.load_corpus(tmp_path, passage_chars=64)
  texts = [p.text for p in corpus.passages]
  assert max(map(len, texts)) <= 64
  assert ' '.join(texts).split()[:500] == words
  assert ''.join(texts).count('x') == 100


def test_reads_jsonl(tmp_path):
  path = tmp_path / 'corpus.jsonl'
  rows = [{'id': 7, 'title': 'A', 'text': 'one'}, {'title': 'B', 'text': 'two'}]
  path.write_text('\n'.join(map(json.dumps, rows)) + '\n\n')
  assert passages.load_corpus(path).passages == (
      passages.Passage('7', 'A', 'one'), passages.Passage('2', 'B', 'two'),
  )  # fmt: skip


@pytest.mark.parametrize(
  'content, message',
  [
    (b'{"title": "a", "text": "b"}\n{"title": ', ':2: not JSON'),
    (b'["a"]\n', ':1: a passage must be an object'),
    (b'{"title": "a"}\n', '"text" must be there'),
    (b'{"title": 3, "text": "b"}\n', '"title" must be there'),
    (b'{"title": "\xff", "text": "b"}\n', ':1: not UTF-8'),
    (b'\n', 'holds no passage'),
  ],
)
def test_malformed_jsonl_names_file_and_line(tmp_path, content, message):
  path = tmp_path / 'corpus.jsonl'
  path.write_bytes(content)
  with pytest.raises(passages.CorpusError, match=message) as caught:
    passages.load_corpus(path)
  assert str(path) in str(caught.value)


def test_missing_or_empty_corpus(tmp_path):
  with pytest.raises(passages.CorpusError, match='no corpus at'):
    passages.load_corpus(tmp_path / 'nowhere')
  with pytest.raises(passages.CorpusError, match='.txt or .md'):
    passages.load_corpus(tmp_path)
  (tmp_path / 'a.txt').write_bytes(b'\xff\xfe')
  with pytest.raises(passages.CorpusError, match='a.txt'):
    passages.load_corpus(tmp_path)
  with pytest.raises(passages.CorpusError, match='no passage .* word'):
    bm25_index.Index(passages.Corpus((passages.Passage('1', '', '...'),)))


@pytest.mark.parametrize('bounds', [{'top_k': 0}, {'max_chars': 0}])
def test_bounds_are_checked(bounds):
  with pytest.raises(ValueError, match='>= 1'):
    search_tool.make(_TOWNS, **bounds)


_ALONE = """
import sys
from agentflow_jax.agents.tools.search import bm25_index
from agentflow_jax.agents.tools.search import passages
from agentflow_jax.agents.tools.search import search_tool
corpus = passages.Corpus((passages.Passage('1', 'a', 'alpha'),))
assert search_tool.make(corpus).card.name == 'search'
assert not [m for m in sys.modules if m.split('.')[0] in ('jax', 'jaxlib')]
assert 'bm25s' in sys.modules
"""

_BESIDE_JAX = """
import sys
import jax, jax.lax
before = sys.modules['jax'], sys.modules['jax.lax']
from agentflow_jax.agents.tools.search import bm25_index
from agentflow_jax.agents.tools.search import passages
from agentflow_jax.agents.tools.search import search_tool
corpus = passages.Corpus((passages.Passage('1', 'a', 'alpha'),))
search_tool.make(corpus)
import bm25s.selection
assert not bm25s.selection.JAX_IS_AVAILABLE
assert (sys.modules['jax'], sys.modules['jax.lax']) == before
from jax._src import xla_bridge
assert not xla_bridge.backends_are_initialized()
"""


@pytest.mark.parametrize('program', [_ALONE, _BESIDE_JAX])
def test_bm25s_never_reaches_jax(program):
  if program == _BESIDE_JAX:
    pytest.importorskip('jax')
  done = subprocess.run(
      [sys.executable, '-c', program],
      capture_output=True, text=True, check=False,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
