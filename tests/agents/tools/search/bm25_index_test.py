"""Indices that are kept: the same results, made once, never half."""

import json
import multiprocessing
import random

import numpy as np
import pytest

from agentflow_jax.agents.tools.search import bm25_index, passages, search_tool

_WORDS = [
  'alpha',
  'beta',
  'gamma',
  'd\u00e9lta',
  'Epsilon',
  '\u03b6\u03b7\u03c4\u03b1',
  '7',
]


def _write(path, count=200, seed=0):
  """Writes a corpus with blank lines, CRLF, Unicode and equal passages."""
  rng = random.Random(seed)
  lines = []
  for i in range(count):
    text = ' '.join(rng.choices(_WORDS, k=rng.randint(1, 12)))
    lines.append(
      json.dumps(
        {'id': f'p{i}', 'title': rng.choice(_WORDS), 'text': text},
        ensure_ascii=bool(i % 2),
      )
    )
    lines += [''] * (i % 7 == 0)
  path.write_bytes(('\r\n'.join(lines) + '\n').encode())


def _queries():
  rng = random.Random(1)
  return [' '.join(rng.choices(_WORDS, k=rng.randint(1, 4))) for _ in range(50)]


def test_a_kept_index_finds_what_one_in_memory_finds(tmp_path):
  path = tmp_path / 'corpus.jsonl'
  _write(path)
  plain = bm25_index.Index(passages.load_corpus(path))
  made = bm25_index.Index.kept(path, tmp_path / 'index')
  again = bm25_index.Index.kept(path, tmp_path / 'index')
  for query in _queries():
    found = plain.search(query, 5)
    assert made.search(query, 5) == found
    assert again.search(query, 5) == found
    assert again.postings(query) == plain.postings(query)
  assert again.search('unheard', 5) == []
  # Mapped, not read.
  assert isinstance(again._bm25.scores['data'], np.memmap)
  assert len(again.corpus.passages) == 200
  assert again.corpus.passages[13] == plain.corpus.passages[13]


def test_it_is_made_once_and_anew_for_another_corpus(tmp_path, monkeypatch):
  path = tmp_path / 'corpus.jsonl'
  _write(path)
  made = []
  original = bm25_index._keep

  def counted(*args):
    made.append(args)
    original(*args)

  monkeypatch.setattr(bm25_index, '_keep', counted)
  bm25_index.Index.kept(path, tmp_path / 'index')
  bm25_index.Index.kept(path, tmp_path / 'index')
  assert len(made) == 1
  bm25_index.Index.kept(path, tmp_path / 'index', b=0.5)
  assert len(made) == 2
  _write(path, seed=2)
  changed = bm25_index.Index.kept(path, tmp_path / 'index')
  assert len(made) == 3
  plain = bm25_index.Index(passages.load_corpus(path))
  for query in _queries():
    assert changed.search(query, 5) == plain.search(query, 5)


@pytest.mark.parametrize(
  'name', ['data.csc.index.npy', 'lines.npy', 'vocab.index.json', 'sizes.json']
)
def test_one_that_is_not_whole_is_made_again(tmp_path, name):
  path = tmp_path / 'corpus.jsonl'
  _write(path)
  bm25_index.Index.kept(path, tmp_path / 'index')
  (place,) = (tmp_path / 'index').iterdir()
  file = place / name
  file.write_bytes(file.read_bytes()[:-10])
  again = bm25_index.Index.kept(path, tmp_path / 'index')
  plain = bm25_index.Index(passages.load_corpus(path))
  for query in _queries():
    assert again.search(query, 5) == plain.search(query, 5)
  assert [p.name for p in (tmp_path / 'index').iterdir()] == [place.name]


def test_a_making_that_fails_leaves_nothing(tmp_path, monkeypatch):
  path = tmp_path / 'corpus.jsonl'
  _write(path)

  def killed(*args, **kwargs):
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(bm25_index.np, 'save', killed)
    with pytest.raises(KeyboardInterrupt):
      bm25_index.Index.kept(path, tmp_path / 'index')
  assert not list((tmp_path / 'index').iterdir())
  # What a killed process left is in nobody's way.
  (tmp_path / 'index' / 'x.1.partial').mkdir()
  assert bm25_index.Index.kept(path, tmp_path / 'index').search('alpha', 1)


def _make(path, directory, out):
  index = bm25_index.Index.kept(path, directory)
  out.put([p.id for p in index.search('alpha beta', 5)])


def test_several_processes_make_one_index(tmp_path):
  path = tmp_path / 'corpus.jsonl'
  _write(path, 2000)
  spawn = multiprocessing.get_context('spawn')
  out = spawn.Queue()
  workers = [
    spawn.Process(target=_make, args=(path, tmp_path / 'index', out)) for _ in range(3)
  ]
  for worker in workers:
    worker.start()
  found = [out.get(timeout=60) for _ in workers]
  for worker in workers:
    worker.join()
  assert found[0] and found.count(found[0]) == 3
  assert len(list((tmp_path / 'index').iterdir())) == 1


def test_contents_begin_with_the_title(tmp_path):
  path = tmp_path / 'corpus.jsonl'
  path.write_text(
    json.dumps({'id': '1', 'contents': '"Lyon"\nA city.\nOld.'})
    + '\n'
    + json.dumps({'id': '2', 'contents': 'Only a title'})
    + '\n'
  )
  assert passages.load_corpus(path).passages == (
    passages.Passage('1', 'Lyon', 'A city.\nOld.'),
    passages.Passage('2', 'Only a title', ''),
  )


def test_what_cannot_be_kept_is_said(tmp_path):
  with pytest.raises(passages.CorpusError, match='only a JSONL file'):
    bm25_index.Index.kept(tmp_path, tmp_path / 'index')
  path = tmp_path / 'corpus.jsonl'
  path.write_text('{"title": 1}\n')
  with pytest.raises(passages.CorpusError, match=':1: '):
    bm25_index.Index.kept(path, tmp_path / 'index')
  _write(path)
  (tmp_path / 'file').touch()
  with pytest.raises(passages.CorpusError, match='no index can be kept'):
    bm25_index.Index.kept(path, tmp_path / 'file')


def test_a_tool_s_version_names_its_corpus(tmp_path):
  path = tmp_path / 'corpus.jsonl'
  _write(path)
  first = search_tool.make(path)
  kept = search_tool.make(path, index_directory=str(tmp_path / 'index'))
  assert search_tool.make(path).version == first.version
  _write(path, seed=1)
  assert search_tool.make(path).version != first.version
  assert (
    search_tool.make(path, index_directory=str(tmp_path / 'index')).version
    != kept.version
  )
