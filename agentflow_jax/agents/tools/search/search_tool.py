"""The `search` tool: BM25 over local passages, then perhaps an order by meaning."""

import asyncio
import pathlib
from collections.abc import Mapping
from typing import Any

from absl import logging

from agentflow_jax.agents.tools import base
from agentflow_jax.agents.tools.search import bm25_index, passages, reranker

# Above this many postings a query takes more than about 2 ms, which the event
# loop should not wait for.
_INLINE_POSTINGS = 200_000
_MAX_QUERY_CHARS = 2000


def make(
  corpus: str | pathlib.Path | passages.Corpus,
  *,
  top_k: int = 1,
  max_chars: int = 1000,
  k1: float = 1.5,
  b: float = 0.75,
  index_directory: str = '',
  ranker: reranker.Ranker | None = None,
  candidates: int = 32,
) -> base.Tool:
  """Makes the search tool.

  Args:
    corpus: place of the passages (see `passages.load_corpus`), or the passages.
    top_k: largest number of results of a call.
    max_chars: largest number of characters of a result; a longer one ends in ' ...'.
    k1: BM25's saturation.
    b: BM25's length discount.
    index_directory: directory that the index of a JSONL file is kept in and mapped
      from; '' for one in memory, made at each start.
    ranker: ranker that orders what BM25 finds, by meaning; None for BM25's own order.
    candidates: number of passages that it orders.

  Returns:
    A tool whose result is the passages' texts, best first, one a line.

  Raises:
    passages.CorpusError: the corpus is missing, empty or malformed.
    base.ToolUnavailable: bm25s is not installed.
    ValueError: top_k or max_chars below 1, or fewer candidates than top_k.
  """
  if top_k < 1 or max_chars < 1:
    raise ValueError(f'top_k and max_chars must be >= 1: {top_k}, {max_chars}')
  if ranker is not None and candidates < top_k:
    raise ValueError(f'candidates must be >= top_k: {candidates}, {top_k}')
  count = top_k if ranker is None else candidates
  if index_directory:
    if isinstance(corpus, passages.Corpus):
      raise ValueError('an index in a directory is of a file, not of a loaded corpus')
    index = bm25_index.Index.kept(corpus, index_directory, k1=k1, b=b)
  else:
    if not isinstance(corpus, passages.Corpus):
      corpus = passages.load_corpus(corpus, passage_chars=max_chars)
    index = bm25_index.Index(corpus, k1=k1, b=b)
  logging.info('search: %d passages indexed', len(index.corpus.passages))

  async def call(arguments: Mapping[str, Any]) -> str:
    query = arguments['query']
    if len(query) > _MAX_QUERY_CHARS:
      raise base.BadArguments(
        f'the query has {len(query)} characters; {_MAX_QUERY_CHARS} at most'
      )
    if not bm25_index.tokenize(query):
      raise base.BadArguments('the query has no word in it')
    if index.postings(query) <= _INLINE_POSTINGS:
      found = index.search(query, count)
    else:
      found = await asyncio.to_thread(index.search, query, count)
    if not found:
      return 'No passage has any of these words.'
    if ranker is not None:
      order = await ranker.order(query, [f'{p.title}\n{p.text}' for p in found])
      found = [found[i] for i in order[:top_k]]
    return '\n'.join(_shorten(p.text, max_chars) for p in found)

  version = f'search 1 {index.corpus.digest} {k1} {b} {top_k} {max_chars}'
  if ranker is not None:
    version += f' dense 1 {candidates} {ranker.version}'
  card = _card(top_k, max_chars, by_meaning=ranker is not None)
  return base.Tool(card=card, call=call, version=version)


def _card(top_k: int, max_chars: int, by_meaning: bool) -> base.Card:
  results = 'passage' if top_k == 1 else f'{top_k} passages'
  return base.Card(
    name='search',
    purpose=(
      f'Finds the {results} of a local text collection that best match the '
      'words of a query.'
    ),
    arguments=(base.Argument('query', 'words to look for, such as a name'),),
    examples=('execution = tool.execute(query="Lake Victoria")',),
    limits=(
      (
        'A passage has to share a word with the query; of these the closest '
        'in meaning come first. It '
        if by_meaning
        else 'It matches words, not meaning, and '
      )
      + 'cannot reach the internet. '
      f'Results are cut at {max_chars} characters.'
    ),
  )


def _shorten(text: str, max_chars: int) -> str:
  line = ' '.join(text.split())
  if len(line) <= max_chars:
    return line
  return line[: max(0, max_chars - 4)] + ' ...'
