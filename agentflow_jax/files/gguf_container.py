"""GGUF files (llama.cpp's), opened with every count checked against the file size.

A header states how many fields, tensors and elements follow. The package gguf does
not check these counts: with a wrong one it loops over 2^60 missing elements.
"""

import os
from typing import Any

import numpy as np

from agentflow_jax.files import reading

# Bytes of the magic number, the version and the two counts.
_HEADER_BYTES = 24
# The fewest bytes of a field (name, kind, value) and of what describes a tensor.
_FIELD_BYTES, _TENSOR_BYTES = 8 + 4 + 1, 8 + 4 + 4 + 8


def open_gguf(path: str | os.PathLike[str]) -> Any:
  """Opens a GGUF file and returns its gguf.GGUFReader.

  Args:
    path: local file.

  Raises:
    FileNotFoundError: there is no such file.
    FileError: the file is not a complete GGUF file; the message names it.
    ModuleNotFoundError: the package gguf is not installed.
  """
  try:
    import gguf
  except ModuleNotFoundError as e:
    raise ModuleNotFoundError(
      'GGUF files need the package gguf:'
      ' pip install gguf jinja2 tokenizers (the extra `models`)'
    ) from e

  class Reader(gguf.GGUFReader):
    """A reader that refuses to read beyond the end of the file."""

    def _get(self, offset, dtype, count=1, override_order=None):
      end = int(offset) + np.dtype(dtype).itemsize * int(count)
      if end > len(self.data):
        raise ValueError(
          f'the file was cut off, or a count in it is wrong: {end} bytes are'
          f' needed, and the file has {len(self.data)}'
        )
      return super()._get(offset, dtype, count, override_order)

  with reading.boundary(path):
    _check_counts(path)
    return Reader(os.fspath(path))


def _check_counts(path) -> None:
  size = os.stat(path).st_size
  with open(path, 'rb') as file:
    header = file.read(_HEADER_BYTES)
  if len(header) < _HEADER_BYTES or header[:4] != b'GGUF':
    raise ValueError('not a GGUF file')
  # The version is a small number, which tells the byte order.
  for order in ('little', 'big'):
    if int.from_bytes(header[4:8], order) < 1 << 16:
      tensors = int.from_bytes(header[8:16], order)
      fields = int.from_bytes(header[16:24], order)
      if tensors * _TENSOR_BYTES + fields * _FIELD_BYTES > size:
        raise ValueError(
          'the file was cut off, or its header is wrong: it states'
          f' {tensors} tensors and {fields} fields, which do not fit into'
          f' {size} bytes'
        )
      return
