"""Tasks as TFDS data sets of local files.

Written as array_record, so neither building nor reading them needs TensorFlow.
"""

import contextlib
import io
import json
import os
from collections.abc import Callable, Iterable
from typing import Any

import tensorflow_datasets as tfds

from agentflow_jax import records

_SPLIT = 'tasks'
_CHUNK = 1024  # Stored rows that are asked for at once: nine times as fast.


class Tasks(tfds.core.GeneratorBasedBuilder):
  """Tasks that a function reads out of local files: one split, in their order."""

  VERSION = tfds.core.Version('1.0.0')
  RELEASE_NOTES = {'1.0.0': 'First release.'}

  def __init__(self, *, read: Callable[[], Iterable[records.Task]], **kwargs):
    """Reads nothing yet.

    Args:
      read: function that yields the tasks.
      **kwargs: arguments of a TFDS builder.
    """
    self._read = read
    super().__init__(**kwargs)

  def _info(self) -> tfds.core.DatasetInfo:
    return self.dataset_info_from_configs(
      description='Questions with short answers that a rule can check.',
      features=tfds.features.FeaturesDict(
        {
          'id': tfds.features.Text(),
          'query': tfds.features.Text(),
          'answers': tfds.features.Sequence(tfds.features.Text()),
          'reward': tfds.features.Text(),
          'tags': tfds.features.Text(),  # JSON: names and texts.
        }
      ),
    )

  def _split_generators(self, dl_manager):
    del dl_manager  # The files are on disk.
    return {_SPLIT: self._generate_examples()}

  def _generate_examples(self):
    for task in self._read():
      yield (
        task.id,
        {
          'id': task.id,
          'query': task.query,
          'answers': list(task.answers),
          'reward': task.reward,
          'tags': json.dumps(dict(task.tags)),
        },
      )


def load(
  directory: str | os.PathLike[str], read: Callable[[], Iterable[records.Task]]
) -> list[records.Task]:
  """Returns tasks by id; writes them into a directory first, unless they are there.

  Args:
    directory: directory of this data set alone; its content is not checked against
      `read`.
    read: function that yields the tasks.

  Raises:
    Exception: of `read`.
  """
  builder = Tasks(read=read, data_dir=os.fspath(directory), file_format='array_record')
  prepare(builder)
  described: Any = builder  # A decorator of TFDS hides the arguments.
  stored = described.as_data_source(split=_SPLIT)
  tasks = []
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


def prepare(builder: tfds.core.DatasetBuilder) -> None:
  """Writes a data set, unless it is there.

  Nothing is downloaded, and it takes seconds: what TFDS prints of both would be
  no part of a program's output.
  """
  tfds.disable_progress_bar()
  with contextlib.redirect_stdout(io.StringIO()):
    builder.download_and_prepare(file_format='array_record')
