"""Data sets of the paper's training mix, as TFDS data sets of local files.

  natural_questions  Natural Questions as FlashRAG writes it: "question",
                     "golden_answers" (a list of texts), optionally "id"
  deepmath           DeepMath-103K: "question", "final_answer" (a text)

Natural Questions is scored by `exact_match`, its own measure.
DeepMath's answers are LaTeX, so `symbolic` compares them as mathematics; the few
that are prose ("Does not exist") it cannot read, and they are matched as text.
"""

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from agentflow_jax import records
from agentflow_jax.data import builders, rows, task_checks

_TEXT = re.compile(r'\$?\\text\{([^{}\\$]*)\}\$?')
_PROSE = re.compile(r"[A-Za-z][A-Za-z'-]*(?:[ ,;.]+[A-Za-z][A-Za-z'-]*)+[.]?")
# Raise it when a row becomes another task than before.
_VERSION = 1


def _natural_questions(row: Mapping[str, Any]) -> tuple[tuple[str, ...], str]:
  answers = row['golden_answers']
  if (
    not isinstance(answers, list)
    or not answers
    or not all(isinstance(a, str) and a.strip() for a in answers)
  ):
    raise ValueError('"golden_answers" must be a list of texts')
  return tuple(answers), 'exact_match'


def _deepmath(row: Mapping[str, Any]) -> tuple[tuple[str, ...], str]:
  answer = row['final_answer']
  if not isinstance(answer, str) or not answer.strip():
    raise ValueError('"final_answer" must be a text')
  bare = _TEXT.sub(r'\1', answer.strip())
  if _PROSE.fullmatch(bare.strip()):
    return (bare.strip(),), 'exact_match'
  return (answer,), 'symbolic'


# Source -> its column of answers, and what makes (answers, reward) of a row.
SOURCES: Mapping[str, tuple[str, Callable]] = {
  'natural_questions': ('golden_answers', _natural_questions),
  'deepmath': ('final_answer', _deepmath),
}


def read(path: str, source: str) -> Iterator[records.Task]:
  """Yields a source's tasks, in the order of its files.

  Args:
    path: path of its rows, see `rows.locate`.
    source: a name in SOURCES.

  Raises:
    MalformedRow: names the file and the row.
  """
  column, convert = SOURCES[source]
  index = 0
  for file in rows.locate(path):
    for where, row in rows.read(file, ('question', column), optional=('id',)):
      query = row['question']
      try:
        if not isinstance(query, str) or not query.strip():
          raise ValueError('"question" must be a text')
        answers, reward = convert(row)
        tags = {'source': source}
        if isinstance(row.get('id'), (str, int)):
          tags['id'] = str(row['id'])
        # Named by its place, because the rows' own ids may repeat.
        name = f'{source}/{index:07d}'
        task = task_checks.checked(records.Task(name, query, answers, reward, tags))
      except ValueError as e:
        raise rows.MalformedRow(f'{where}: {e}') from e
      yield task
      index += 1


def load(
  data_dir: str | os.PathLike[str], path: str, source: str
) -> Sequence[records.Task]:
  """Reads a source, in the order of its files; writes it below `data_dir` first.

  Args:
    data_dir: directory below which the data set is kept, by its files' digest.
    path: path of its rows, see `rows.locate`.
    source: a name in SOURCES.

  Returns:
    The tasks; their tag 'source' is the source's name.

  Raises:
    MalformedRow: names the file and the row.
  """
  if source not in SOURCES:
    raise rows.MalformedRow(f'no source {source!r}; there are {", ".join(SOURCES)}')
  # By digest, so that other rows at that path are built anew; and by version,
  # since the rewards are stored, too.
  digest = rows.digest(rows.locate(path))
  return builders.load(
    os.path.join(data_dir, f'{source}_{digest}_{_VERSION}'), lambda: read(path, source)
  )
