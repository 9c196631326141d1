"""GGUF files (llama.cpp's), opened so that their own counts cannot mislead.

A header says how many fields, tensors and elements follow. The package gguf
believes it, and would go on for 2^60 elements that are not there.
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
  """Returns the gguf.GGUFReader of a file, whose fields are read.

  Args:
    path: local file.

  Raises:
    FileNotFoundError: there is no such file.
    FileError: the file is no whole GGUF file; names it.
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
    """Ends at the end of the file, whatever counts its header holds."""

    def _get(self, offset, dtype, count=1, override_order=None):
      end = int(offset) + np.dtype(dtype).itemsize * int(count)
      if end > len(self.data):
        raise ValueError(
            f'it was cut off, or a count in it is wrong: {end} bytes are needed,'
            f' and there are {len(self.data)}'
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
    raise ValueError('it is no GGUF file')
  for order in ('little', 'big'):  # As its version is a small number.
    if int.from_bytes(header[4:8], order) < 1 << 16:
      tensors = int.from_bytes(header[8:16], order)
      fields = int.from_bytes(header[16:24], order)
      if tensors * _TENSOR_BYTES + fields * _FIELD_BYTES > size:
        raise ValueError(
            f'its header counts {tensors} tensors and {fields} fields, more than'
            f' {size} bytes can hold'
        )
      return
