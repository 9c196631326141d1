"""Times the `search` tool's kept index over many synthetic passages.

  python experiments/benchmarks/search.py --passages=1000000 --words=60 \
      --queries=500 --directory=DIR [--out=FILE.json]

Writes a corpus whose words follow Zipf's law (once; DIR keeps it and the index),
makes the index, maps it in a process of its own and asks queries of eight words, drawn
as the corpus's own are. Reports seconds of making it, its bytes, the peak of memory,
then of the asking process what it holds (resident, and of that its own: mapped pages
are the system's to take back), and the milliseconds of a query, passages read
included. A sample of the results is compared with scores by the formula.
"""

import argparse
import json
import math
import multiprocessing
import os
import pathlib
import resource
import statistics
import sys
import time
from typing import Any

import numpy as np

from agentflow_jax.agents.tools.search import bm25_index
from agentflow_jax.files import writing

_VOCABULARY = 500_000
_BLOCK = 20_000  # passages written at once
_K1, _B = 1.5, 0.75


def _arguments():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument('--passages', type=int, default=1_000_000)
  parser.add_argument('--words', type=int, default=60)
  parser.add_argument('--queries', type=int, default=500)
  parser.add_argument('--checked', type=int, default=3)
  parser.add_argument('--directory', required=True)
  parser.add_argument('--out', default='')
  return parser.parse_args()


def _words(rng: np.random.Generator, count: int) -> np.ndarray:
  """Draws word numbers by Zipf's law, by inverting its distribution."""
  # H(n) is about ln(n) + 0.577, so that n is exponential in a uniform number.
  drawn = np.exp(rng.random(count) * math.log(_VOCABULARY)).astype(np.int64)
  return np.minimum(drawn, _VOCABULARY - 1)


def _corpus(path: pathlib.Path, passages: int, words: int) -> np.ndarray:
  """Writes the corpus where it is absent; returns its word numbers."""
  drawn = np.concatenate(
    [
      _words(np.random.default_rng(start), min(_BLOCK, passages - start) * words)
      for start in range(0, passages, _BLOCK)
    ]
  ).reshape(passages, words)
  if not path.exists():
    with writing.whole_file(path) as file:
      for i, row in enumerate(drawn.tolist()):
        text = ' '.join(f'w{w}' for w in row)
        line = f'{{"id": "{i}", "title": "", "text": "{text}"}}\n'
        file.write(line.encode())
  return drawn


def _best(drawn: np.ndarray, query: list[int], top_k: int) -> list[int]:
  """Returns the best passages by BM25's formula (Lucene's form), float64."""
  count = len(drawn)
  scores = np.zeros(count)
  for word in query:
    times = (drawn == word).sum(1)
    found = np.count_nonzero(times)
    inverse = math.log(1 + (count - found + 0.5) / (found + 0.5))
    # All passages are of one length.
    scores += inverse * times / (times + _K1 * (1 - _B + _B))
  return np.argsort(-scores, kind='stable')[:top_k].tolist()


def _memory() -> dict[str, int]:
  """Returns resident bytes of this process, and those not of mapped files."""
  status = pathlib.Path('/proc/self/status').read_text()
  return {
    name: 1024 * int(line.split()[1])
    for line in status.splitlines()
    for name in ('VmRSS', 'RssAnon')
    if line.startswith(f'{name}:')
  }


def _make(path, index, out):
  start = time.perf_counter()
  bm25_index.Index.kept(path, index, _K1, _B)
  out.put(
    {
      'make_seconds': time.perf_counter() - start,
      'make_peak_bytes': 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    }
  )


def _ask(path, index, queries, out):
  figures: dict[str, Any] = {'before': _memory()}
  start = time.perf_counter()
  found = bm25_index.Index.kept(path, index, _K1, _B)
  figures['open_seconds'] = time.perf_counter() - start
  figures['opened'] = _memory()
  taken, results = [], []
  for query in queries:
    text = ' '.join(f'w{w}' for w in query)
    start = time.perf_counter()
    results.append([int(p.id) for p in found.search(text, 5)])
    taken.append(1000 * (time.perf_counter() - start))
  figures['asked'] = _memory()
  figures['p50_ms'] = statistics.median(taken)
  figures['p99_ms'] = float(np.percentile(taken, 99))
  figures['largest_ms'] = max(taken)
  out.put((figures, results))


def _apart(work, *arguments):
  """Runs work in a process of its own, whose memory is only its own."""
  spawn = multiprocessing.get_context('spawn')
  out = spawn.Queue()
  process = spawn.Process(target=work, args=(*arguments, out))
  process.start()
  result = out.get()
  process.join()
  return result


def main():
  args = _arguments()
  directory = pathlib.Path(args.directory)
  directory.mkdir(parents=True, exist_ok=True)
  path = directory / f'corpus_{args.passages}_{args.words}.jsonl'
  index = directory / 'index'
  drawn = _corpus(path, args.passages, args.words)
  rng = np.random.default_rng(1 << 40)
  queries = [_words(rng, 8).tolist() for _ in range(args.queries)]
  figures = {
    'passages': args.passages,
    'words': args.words,
    'corpus_bytes': path.stat().st_size,
    'cores': os.cpu_count(),
  }
  figures |= _apart(_make, path, index)
  figures['index_bytes'] = sum(
    f.stat().st_size for f in index.rglob('*') if f.is_file()
  )
  asked, results = _apart(_ask, path, index, queries)
  figures |= asked
  for query, result in list(zip(queries, results))[: args.checked]:
    if _best(drawn, query, 5) != result:
      raise SystemExit(f'error: query {query}: another result than the formula')
  figures['checked'] = args.checked
  text = json.dumps(figures, indent=1)
  print(text)
  if args.out:
    pathlib.Path(args.out).write_text(text + '\n')
  return 0


if __name__ == '__main__':
  sys.exit(main())
