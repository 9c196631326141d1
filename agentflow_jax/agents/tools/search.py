"""The `search` tool: BM25 over a local collection of passages.

A corpus is a directory of .txt and .md files, or one JSONL file with a passage
a line: {"id": ..., "title": ..., "text": ...}. Ranking is BM25 in Lucene's form
(Robertson and Zaragoza 2009), by bm25s with its NumPy backend; passages of
equal score keep the order of the corpus, so results never depend on chance.
"""

import asyncio
import contextlib
import dataclasses
import functools
import json
import logging as standard_logging
import pathlib
import re
import sys
import threading
import types
import unicodedata
from collections.abc import Iterator, Mapping
from typing import Any

from absl import logging
import numpy as np

from agentflow_jax.agents.tools import base

_SUFFIXES = ('.txt', '.md')
_WORD = re.compile(r'\w+')
# Above this many postings a query takes more than about 2 ms, which the event
# loop should not wait for.
_INLINE_POSTINGS = 200_000
_MAX_QUERY_CHARS = 2000
_import_lock = threading.Lock()


class CorpusError(ValueError):
  """A corpus is missing, empty or malformed; names the file and the line."""


@dataclasses.dataclass(frozen=True)
class Passage:
  """What one search result can be."""

  id: str
  title: str
  text: str


@dataclasses.dataclass(frozen=True)
class Corpus:
  """Passages in a fixed order, which breaks ties."""

  passages: tuple[Passage, ...]

  @property
  def titles(self) -> tuple[str, ...]:
    """Titles in the order of the corpus, each once."""
    return tuple(dict.fromkeys(p.title for p in self.passages))


def load_corpus(path: str | pathlib.Path, passage_chars: int = 1000) -> Corpus:
  """Reads a corpus from a directory or a JSONL file.

  Args:
    path: a directory (every .txt and .md file below it, in order of their
      relative paths; a file's name is its passages' title) or a JSONL file.
    passage_chars: a file of a directory is cut into passages of at most this
      many characters, at blank lines where there are any. JSONL passages stay
      whole.

  Raises:
    CorpusError: nothing is there, or a file or line cannot be read as this.
  """
  path = pathlib.Path(path)
  if path.is_dir():
    passages = tuple(_read_directory(path, passage_chars))
    expected = f'a directory with {" or ".join(_SUFFIXES)} files'
  elif path.is_file():
    passages = tuple(_read_jsonl(path))
    expected = 'a JSONL file with a passage a line'
  else:
    raise CorpusError(f'no corpus at {path}: give a directory or a JSONL file')
  if not passages:
    raise CorpusError(f'{path} holds no passage; it should be {expected}')
  return Corpus(passages)


def tokenize(text: str) -> list[str]:
  """Words of `text`: NFKC, case folded; no stop words removed, no stemming."""
  return _WORD.findall(unicodedata.normalize('NFKC', text).casefold())


class Index:
  """BM25 scores of a corpus, ready to be searched.

  Args:
    corpus: what is searched; a passage is its title and its text.
    k1: how fast repeated words saturate.
    b: how much long passages are discounted, in [0, 1].

  Raises:
    base.ToolUnavailable: bm25s is not installed.
  """

  def __init__(self, corpus: Corpus, k1: float = 1.5, b: float = 0.75):
    self.corpus = corpus
    words = [tokenize(f'{p.title} {p.text}') for p in corpus.passages]
    # Numbered by first appearance: an index built twice is the same index.
    self._vocabulary: dict[str, int] = {}
    ids = [
        [self._vocabulary.setdefault(w, len(self._vocabulary)) for w in passage]
        for passage in words
    ]
    if not self._vocabulary:
      raise CorpusError('no passage of the corpus has a word in it')
    self._bm25 = _bm25s().BM25(
        k1=k1, b=b, method='lucene', backend='numpy', csc_backend='numpy'
    )
    self._bm25.index(
        (ids, dict(self._vocabulary)),
        create_empty_token=False,
        show_progress=False,
    )

  def postings(self, query: str) -> int:
    """How many scores a search for `query` reads or writes."""
    starts = self._bm25.scores['indptr']
    return len(self.corpus.passages) + sum(
        int(starts[i + 1] - starts[i]) for i in self._ids(query)
    )

  def search(self, query: str, top_k: int) -> list[Passage]:
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


def make(
    corpus: str | pathlib.Path | Corpus,
    *,
    top_k: int = 1,
    max_chars: int = 1000,
    k1: float = 1.5,
    b: float = 0.75,
) -> base.Tool:
  """Makes the search tool.

  Args:
    corpus: where the passages are (see `load_corpus`), or the passages.
    top_k: results a call returns at most.
    max_chars: characters of a result at most; a longer one ends in ' ...'.
    k1: BM25's saturation.
    b: BM25's length discount.

  Returns:
    A tool whose result is the passages' texts, best first, one a line.

  Raises:
    CorpusError: the corpus is missing, empty or malformed.
    base.ToolUnavailable: bm25s is not installed.
    ValueError: top_k or max_chars below 1.
  """
  if top_k < 1 or max_chars < 1:
    raise ValueError(f'top_k and max_chars must be >= 1: {top_k}, {max_chars}')
  if not isinstance(corpus, Corpus):
    corpus = load_corpus(corpus, passage_chars=max_chars)
  index = Index(corpus, k1=k1, b=b)
  logging.info('search: %d passages indexed', len(corpus.passages))

  async def call(arguments: Mapping[str, Any]) -> str:
    query = arguments['query']
    if len(query) > _MAX_QUERY_CHARS:
      raise base.BadArguments(
          f'the query has {len(query)} characters; {_MAX_QUERY_CHARS} at most'
      )
    if not tokenize(query):
      raise base.BadArguments('the query has no word in it')
    if index.postings(query) <= _INLINE_POSTINGS:
      found = index.search(query, top_k)
    else:
      found = await asyncio.to_thread(index.search, query, top_k)
    if not found:
      return 'No passage has any of these words.'
    return '\n'.join(_shorten(p.text, max_chars) for p in found)

  return base.Tool(card=_card(top_k, max_chars), call=call)


def _card(top_k: int, max_chars: int) -> base.Card:
  results = 'passage' if top_k == 1 else f'{top_k} passages'
  return base.Card(
      name='search',
      purpose=(
          f'Finds the {results} of a local text collection that best match the '
          'words of a query.'
      ),
      arguments=(
          base.Argument('query', 'words to look for, such as a name'),
      ),
      examples=('execution = tool.execute(query="Lake Victoria")',),
      limits=(
          'It matches words, not meaning, and cannot reach the internet. '
          f'Results are cut at {max_chars} characters.'
      ),
  )


def _shorten(text: str, max_chars: int) -> str:
  line = ' '.join(text.split())
  if len(line) <= max_chars:
    return line
  return line[: max(0, max_chars - 4)] + ' ...'


def _read_directory(
    directory: pathlib.Path, passage_chars: int
) -> Iterator[Passage]:
  files = [
      f for f in directory.rglob('*') if f.suffix in _SUFFIXES and f.is_file()
  ]
  for file in sorted(files, key=lambda f: f.relative_to(directory).as_posix()):
    name = file.relative_to(directory).as_posix()
    try:
      text = file.read_text(encoding='utf-8')
    except (OSError, UnicodeDecodeError) as error:
      raise CorpusError(f'cannot read {file} as UTF-8 text: {error}') from error
    for i, piece in enumerate(_split(text, passage_chars)):
      yield Passage(id=f'{name}#{i}', title=file.stem, text=piece)


def _split(text: str, max_chars: int) -> Iterator[str]:
  """Cuts a text into pieces, at blank lines where it can."""
  piece = ''
  for paragraph in re.split(r'\n\s*\n', text):
    paragraph = ' '.join(paragraph.split())
    if piece and len(piece) + 1 + len(paragraph) > max_chars:
      yield piece
      piece = ''
    while len(paragraph) > max_chars:
      cut = paragraph.rfind(' ', 1, max_chars + 1)
      cut = cut if cut > 0 else max_chars
      yield paragraph[:cut]
      paragraph = paragraph[cut:].lstrip()
    piece = f'{piece} {paragraph}'.strip()
  if piece:
    yield piece


def _read_jsonl(path: pathlib.Path) -> Iterator[Passage]:
  with path.open('rb') as lines:
    for number, line in enumerate(lines, start=1):
      if not line.strip():
        continue
      try:
        yield _passage(json.loads(line.decode('utf-8')), number)
      except ValueError as error:  # also UnicodeDecodeError, JSONDecodeError
        raise CorpusError(f'{path}, line {number}: {error}') from error


def _passage(fields: Any, number: int) -> Passage:
  if not isinstance(fields, dict):
    raise ValueError('a passage must be an object with "title" and "text"')
  for name in ('title', 'text'):
    if not isinstance(fields.get(name), str):
      raise ValueError(f'"{name}" must be there and be a string')
  return Passage(
      id=str(fields.get('id', number)),
      title=fields['title'],
      text=fields['text'],
  )


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
  absent = object()
  before = sys.modules.get(name, absent)
  sys.modules[name] = None
  try:
    yield
  finally:
    if before is absent:
      del sys.modules[name]
    else:
      sys.modules[name] = before
