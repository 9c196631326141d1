"""BM25 over a corpus, in memory or mapped from files that are made once.

Ranking is BM25 in Lucene's form (Robertson and Zaragoza 2009), by bm25s with its
NumPy backend; passages of equal score keep the order of the corpus, so results
never depend on chance.
"""

import contextlib
import functools
import json
import logging as standard_logging
import os
import pathlib
import re
import shutil
import sys
import threading
import types
import unicodedata
from collections.abc import Iterable, Iterator
from typing import Any

from absl import logging
import numpy as np

from agentflow_jax.agents.tools import base
from agentflow_jax.agents.tools.search import passages
from agentflow_jax.files import reading

_WORD = re.compile(r'\w+')
# Part of a kept index's name: raise it when its files or words change.
_SCHEMA = 1
_SIZES = 'sizes.json'
_SHOWN_EACH = 500_000  # passages
_import_lock = threading.Lock()


def tokenize(text: str) -> list[str]:
  """Words of `text`: NFKC, case folded; no stop words removed, no stemming."""
  return _WORD.findall(unicodedata.normalize('NFKC', text).casefold())


class Index:
  """BM25 scores of a corpus, ready to be searched.

  Args:
    corpus: corpus that is searched; a passage is its title and its text.
    k1: saturation of repeated words.
    b: discount of long passages, in [0, 1].

  Raises:
    base.ToolUnavailable: bm25s is not installed.
  """

  def __init__(self, corpus: passages.Corpus, k1: float = 1.5, b: float = 0.75):
    self.corpus = corpus
    self._bm25 = _build(corpus.passages, k1, b)
    self._vocabulary: dict[str, int] = self._bm25.vocab_dict

  @classmethod
  def kept(
    cls,
    path: str | pathlib.Path,
    directory: str | pathlib.Path,
    k1: float = 1.5,
    b: float = 0.75,
  ) -> 'Index':
    """Returns an index of a JSONL file that lies in a directory, mapped.

    It is made where it is not there yet, or is not whole: from the corpus's
    digest, k1 and b. Several processes may ask at once. Neither scores nor
    passages are then in memory; the vocabulary is.

    Args:
      path: path of the file.
      directory: directory of indices, created where absent.
      k1, b: the same arguments of the class.

    Raises:
      passages.CorpusError: the file is missing or malformed, or the index cannot
        be kept there.
      base.ToolUnavailable: bm25s is not installed.
    """
    path = pathlib.Path(path)
    if not path.is_file():
      raise passages.CorpusError(f'{path}: only a JSONL file has an index that is kept')
    digest = passages.file_digest(path)
    place = pathlib.Path(directory) / f'{digest}_{k1}_{b}_{_SCHEMA}'
    index = cls.__new__(cls)
    try:
      if not _is_whole(place):
        _keep(path, place, k1, b)
      index._bm25 = _bm25s().BM25.load(
        str(place), mmap=True, load_vocab=True, show_progress=False
      )
      index._bm25.backend = 'numpy'
      where = np.load(place / 'lines.npy', mmap_mode='r')
    except OSError as error:
      raise passages.CorpusError(
        f'no index can be kept in {directory}: {error}'
      ) from error
    index._vocabulary = index._bm25.vocab_dict
    index.corpus = passages.Corpus(passages.FilePassages(path, where[0], where[1]))
    index.corpus.__dict__['digest'] = digest
    return index

  def postings(self, query: str) -> int:
    """How many scores a search for `query` reads or writes."""
    starts = self._bm25.scores['indptr']
    return len(self.corpus.passages) + sum(
      int(starts[i + 1] - starts[i]) for i in self._ids(query)
    )

  def search(self, query: str, top_k: int) -> list[passages.Passage]:
    """The best passages, best first; fewer than `top_k` if fewer match."""
    ids = self._ids(query)
    if not ids:
      return []
    scores = self._bm25.get_scores_from_ids(ids)
    top_k = min(top_k, len(scores))
    # The k-th best score first, then everything that reaches it: a partition
    # alone would keep an arbitrary one of several equal passages.
    least = np.partition(scores, -top_k)[-top_k]
    found = np.flatnonzero((scores >= least) & (scores > 0))
    best = found[np.argsort(-scores[found], kind='stable')][:top_k]
    return [self.corpus.passages[i] for i in best]

  def _ids(self, query: str) -> list[int]:
    words = tokenize(query)
    return [self._vocabulary[w] for w in words if w in self._vocabulary]


def _build(found: Iterable[passages.Passage], k1: float, b: float):
  """Returns bm25s's index of passages, with their vocabulary."""
  # Numbered by first appearance: an index built twice is the same index.
  vocabulary: dict[str, int] = {}
  ids = [
    [
      vocabulary.setdefault(word, len(vocabulary))
      for word in tokenize(f'{passage.title} {passage.text}')
    ]
    for passage in found
  ]
  if not vocabulary:
    raise passages.CorpusError('no passage of the corpus has a word in it')
  bm25 = _bm25s().BM25(
    k1=k1, b=b, method='lucene', backend='numpy', csc_backend='numpy'
  )
  bm25.index((ids, vocabulary), create_empty_token=False, show_progress=False)
  return bm25


def _is_whole(place: pathlib.Path) -> bool:
  """Says whether an index is there, and each of its files as long as it was."""
  try:
    sizes = reading.read_json(place / _SIZES)
    return all((place / n).stat().st_size == size for n, size in sizes.items())
  except (OSError, ValueError, AttributeError):
    return False


def _keep(path: pathlib.Path, place: pathlib.Path, k1: float, b: float) -> None:
  """Makes an index, whole or not at all."""
  if place.exists():
    logging.warning('%s is not a whole index: making it again', place)
  logging.warning(
    'search: indexing %s into %s, once; it takes some minutes a million passages',
    path,
    place,
  )
  partial = place.with_name(f'{place.name}.{os.getpid()}.partial')
  partial.mkdir(parents=True, exist_ok=True)
  try:
    where: list[tuple[int, int]] = []

    def read() -> Iterator[passages.Passage]:
      for start, length, passage in passages.lines_of(path):
        where.append((start, length))
        if len(where) % _SHOWN_EACH == 0:
          logging.warning('search: %d passages read', len(where))
        yield passage

    bm25 = _build(read(), k1, b)
    bm25.save(str(partial), show_progress=False)
    np.save(partial / 'lines.npy', np.array(where, np.int64).T)
    sizes = {f.name: f.stat().st_size for f in partial.iterdir()}
    (partial / _SIZES).write_text(json.dumps(sizes))
    _put(partial, place)
  finally:
    shutil.rmtree(partial, ignore_errors=True)


def _put(partial: pathlib.Path, place: pathlib.Path) -> None:
  """Names a made index, unless another process has done so meanwhile."""
  try:
    partial.rename(place)
  except OSError:
    if _is_whole(place):
      return
    broken = place.with_name(f'{place.name}.{os.getpid()}.broken')
    place.rename(broken)
    shutil.rmtree(broken, ignore_errors=True)
    partial.rename(place)


@functools.cache
def _bm25s() -> types.ModuleType:
  """Imports bm25s without jax.

  bm25s.selection imports jax when it can and runs an operation with it, which
  initialises jax's backend: fatal before `jax.distributed.initialize`, and no
  business of an agent's. Hidden from it, bm25s selects with NumPy.
  """
  try:
    with _import_lock, _jax_hidden():
      import bm25s  # pylint: disable=g-import-not-at-top
  except ImportError as error:
    raise base.ToolUnavailable(
      'the search tool needs bm25s: pip install bm25s'
    ) from error
  # It sets its own level to DEBUG, past whatever the program has chosen.
  standard_logging.getLogger('bm25s').setLevel(standard_logging.WARNING)
  return bm25s


@contextlib.contextmanager
def _jax_hidden() -> Iterator[None]:
  """Makes `import jax.lax` fail inside, with as little reach as possible.

  Where jax is loaded already other threads may be using it, so only the one
  submodule is hidden; a name that maps to None cannot be imported.
  """
  name = 'jax.lax' if sys.modules.get('jax') is not None else 'jax'
  modules: dict[str, Any] = sys.modules
  absent = object()
  before = modules.get(name, absent)
  modules[name] = None
  try:
    yield
  finally:
    if before is absent:
      del modules[name]
    else:
      modules[name] = before
