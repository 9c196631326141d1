"""Writes TFDS data sets of local files."""

import contextlib
import io

import tensorflow_datasets as tfds


def prepare(builder: tfds.core.DatasetBuilder) -> None:
  """Writes a data set as array_record, unless it is there.

  So neither building nor reading it needs TensorFlow. Nothing is downloaded, and
  it takes seconds: what TFDS prints of both would be no part of a program's
  output.
  """
  tfds.disable_progress_bar()
  with contextlib.redirect_stdout(io.StringIO()):
    builder.download_and_prepare(file_format='array_record')
