"""Data sets of the paper's training mix, as TFDS data sets of local files.

  natural_questions  Natural Questions as FlashRAG writes it: "question",
                     "golden_answers" (a list of texts), optionally "id"
  deepmath           DeepMath-103K: "question", "final_answer" (a text)

Natural Questions is scored by `exact_match`, its own measure.
DeepMath's answers are LaTeX, so `symbolic` compares them as mathematics; the few
that are prose ("Does not exist") it cannot read, and they are matched as text.

Written as array_record, so neither building nor reading it needs TensorFlow.
"""

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import tensorflow_datasets as tfds

from agentflow_jax import records
from agentflow_jax.data import builders, rows

_TEXT = re.compile(r'\$?\\text\{([^{}\\$]*)\}\$?')
_PROSE = re.compile(r"[A-Za-z][A-Za-z'-]*(?:[ ,;.]+[A-Za-z][A-Za-z'-]*)+[.]?")
_SPLIT = 'train'
_CHUNK = 1024  # Stored rows that are asked for at once: nine times as fast.


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


class MixtureSource(tfds.core.GeneratorBasedBuilder):
  """One source of a mix: one split, 'train', in the order of its files."""

  VERSION = tfds.core.Version('1.0.0')
  RELEASE_NOTES = {'1.0.0': 'First release.'}

  def __init__(self, *, source: str, path: str, **kwargs):
    """Reads nothing yet.

    Args:
      source: a name in SOURCES.
      path: of its rows, as for `rows.locate`.
      **kwargs: of a TFDS builder.
    """
    self._source, self._path = source, path
    super().__init__(**kwargs)

  def _info(self) -> tfds.core.DatasetInfo:
    return self.dataset_info_from_configs(
        description='Questions with short answers that a rule can check.',
        features=tfds.features.FeaturesDict({
            'id': tfds.features.Text(),
            'query': tfds.features.Text(),
            'answers': tfds.features.Sequence(tfds.features.Text()),
            'reward': tfds.features.Text(),
            'tags': tfds.features.Text(),  # JSON: names and texts.
        }),
    )

  def _split_generators(self, dl_manager):
    del dl_manager  # The files are on disk.
    return {_SPLIT: self._generate_examples()}

  def _generate_examples(self):
    for task in read(self._path, self._source):
      yield task.id, {
          'id': task.id,
          'query': task.query,
          'answers': list(task.answers),
          'reward': task.reward,
          'tags': json.dumps(dict(task.tags)),
      }


def read(path: str, source: str) -> Iterator[records.Task]:
  """Yields a source's tasks, in the order of its files.

  Args:
    path: of its rows, as for `rows.locate`.
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
      except ValueError as e:
        raise rows.MalformedRow(f'{where}: {e}') from e
      tags = {'source': source}
      if isinstance(row.get('id'), (str, int)):
        tags['id'] = str(row['id'])
      # By place, since nothing says that the rows' own ids differ.
      yield records.Task(f'{source}/{index:07d}', query, answers, reward, tags)
      index += 1


def load(
    data_dir: str | os.PathLike[str], path: str, source: str
) -> Sequence[records.Task]:
  """Reads a source, in the order of its files; writes it below `data_dir` first.

  Args:
    data_dir: where the data set is kept, by its files' digest.
    path: of its rows, as for `rows.locate`.
    source: a name in SOURCES.

  Returns:
    The tasks; their tag 'source' is the source's name.

  Raises:
    MalformedRow: names the file and the row.
  """
  if source not in SOURCES:
    raise rows.MalformedRow(
        f'no source {source!r}; there are {", ".join(SOURCES)}'
    )
  # By digest, so that other rows at that path are built anew.
  digest = rows.digest(rows.locate(path))
  builder = MixtureSource(
      source=source,
      path=path,
      data_dir=os.path.join(data_dir, f'{source}_{digest}'),
      file_format='array_record',
  )
  builders.prepare(builder)
  stored, tasks = builder.as_data_source(split=_SPLIT), []
  for first in range(0, len(stored), _CHUNK):
    places = range(first, min(first + _CHUNK, len(stored)))
    tasks += map(_task, stored.__getitems__(list(places)))
  return sorted(tasks, key=lambda t: t.id)


def _task(row) -> records.Task:
  return records.Task(
      id=row['id'].decode(),
      query=row['query'].decode(),
      answers=tuple(answer.decode() for answer in row['answers']),
      reward=row['reward'].decode(),
      tags=json.loads(row['tags']),
  )
