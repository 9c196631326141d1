"""Tensors in files: read by slices, written one at a time.

The safetensors package maps a whole local file and has no bfloat16 in NumPy, so
its format (a length, a JSON header, bytes) is read here: any slice, of any
file that epath opens, holding no more than what was asked for.
"""

import collections
import dataclasses
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import ml_dtypes
import numpy as np
from etils import epath

from agentflow_jax.files import reading, writing

SINGLE = 'model.safetensors'
INDEX = 'model.safetensors.index.json'
_DTYPES = {
  'F64': np.dtype(np.float64),
  'F32': np.dtype(np.float32),
  'F16': np.dtype(np.float16),
  'BF16': np.dtype(ml_dtypes.bfloat16),
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_HEADER_BYTES = 100_000_000  # More is not a header; the format's own limit.
_BLOCK_BYTES = 1 << 26
# (first, past the last) along one axis.
Range = tuple[int, int]


class TensorError(ValueError):
  """A file of tensors that is missing, broken, or lacks what was asked for."""


class Tensors(Protocol):
  """Named tensors, wherever they lie.

  Attributes:
    shapes: name -> shape of every tensor.
  """

  @property
  def shapes(self) -> Mapping[str, tuple[int, ...]]: ...

  def read(self, name: str, ranges: Sequence[Range]) -> np.ndarray:
    """Returns a block of a tensor, a range an axis, in its stored dtype.

    Raises:
      TensorError: there is no such tensor, or its bytes cannot be had.
    """
    ...


@dataclasses.dataclass(frozen=True)
class _Stored:
  """Where a tensor lies in its file."""

  path: epath.Path
  dtype: np.dtype
  shape: tuple[int, ...]
  offset: int


class SafetensorsDirectory:
  """The safetensors of a directory: one file, or those that an index names."""

  def __init__(self, directory: str | os.PathLike[str], single: str = SINGLE):
    """Reads every header, and no tensor.

    Args:
      directory: directory to read.
      single: name of the file where there is one only.

    Raises:
      TensorError: a file is missing, cut off, or no safetensors file; or the
        index and the files disagree.
    """
    path = epath.Path(directory)
    self._stored: dict[str, _Stored] = {}
    if (path / INDEX).exists():
      files = _read_index(path / INDEX)
    elif (path / single).exists():
      files = {single: None}
    else:
      raise TensorError(f'{path} holds neither {single} nor {INDEX}')
    for name, wanted in files.items():
      found = _read_header(path / name)
      for tensor in sorted((wanted or set()) - set(found)):
        raise TensorError(
          f'{path / INDEX} says that {name} holds {tensor!r}; it does not'
        )
      self._stored |= found
    self.shapes = {name: s.shape for name, s in self._stored.items()}

  def read(self, name, ranges):
    stored = self._stored.get(name)
    if stored is None:
      raise TensorError(f'there is no tensor {name!r}')
    with stored.path.open('rb') as file:
      return _read_block(file, stored, ranges)


def _read_index(path: epath.Path) -> dict[str, set[str]]:
  """Returns file -> its tensors."""
  files = collections.defaultdict(set)
  with reading.boundary(path, TensorError):
    for tensor, file in reading.read_json(path)['weight_map'].items():
      if '/' in file or file in ('', '.', '..'):
        raise ValueError(f'{file!r} is not a file of the directory')
      files[file].add(tensor)
  if not files:
    raise TensorError(f'{path} names no tensor')
  return dict(files)


def _read_header(path: epath.Path) -> dict[str, _Stored]:
  """Reads where a file's tensors lie, and that they all lie in it."""
  if not path.exists():
    raise TensorError(f'{path} does not exist')
  with (
    reading.boundary(path, TensorError, what='broken header'),
    path.open('rb') as file,
  ):
    size = path.stat().length
    length = int.from_bytes(file.read(8), 'little')
    if not 0 < length <= min(_HEADER_BYTES, size - 8):
      raise TensorError(f'{path} is not a safetensors file, or was cut off')
    header = reading.parse(file.read(length))
    if not isinstance(header, dict):
      raise ValueError('not a JSON object')
    header.pop('__metadata__', None)
    stored = {
      name: _stored(path, 8 + length, size, entry) for name, entry in header.items()
    }
    _check_apart(path, stored)
  return stored


def _check_apart(path: epath.Path, stored: Mapping[str, _Stored]) -> None:
  """Raises TensorError if the bytes of two tensors overlap."""
  last, end = '', 0
  for name, one in sorted(stored.items(), key=lambda item: item[1].offset):
    size = math.prod(one.shape) * one.dtype.itemsize
    if size and one.offset < end:
      raise TensorError(f'{path}: the tensors {last!r} and {name!r} overlap')
    if size:
      last, end = name, one.offset + size


def _stored(path, start, size, entry) -> _Stored:
  if not isinstance(entry, dict):
    raise ValueError(f'{entry!r} does not describe a tensor')
  if entry['dtype'] not in _DTYPES:
    raise ValueError(f'dtype {entry["dtype"]} is none of {sorted(_DTYPES)}')
  dtype, shape = _DTYPES[entry['dtype']], tuple(entry['shape'])
  begin, end = entry['data_offsets']
  if not all(type(n) is int and n >= 0 for n in (*shape, begin, end)):
    raise ValueError(f'{shape} at {begin} to {end}')
  if end - begin != math.prod(shape) * dtype.itemsize:
    raise ValueError(f'{end - begin} bytes for {dtype} {shape}')
  if start + end > size:
    raise ValueError(
      f'the file was cut off: it has {size} bytes and needs {start + end}'
    )
  return _Stored(path, dtype, shape, start + begin)


def _read_block(file, stored: _Stored, ranges) -> np.ndarray:
  """Reads whole rows, some at a time, and keeps the asked-for part of each."""
  first, *rest = ranges
  inner = stored.shape[1:]
  row = math.prod(inner) * stored.dtype.itemsize
  count = first[1] - first[0]
  block = np.empty((count, *(b - a for a, b in rest)), stored.dtype)
  part = tuple(slice(a, b) for a, b in rest)
  rows = max(1, _BLOCK_BYTES // max(row, 1))
  file.seek(stored.offset + first[0] * row)
  for start in range(0, count, rows):
    n = min(rows, count - start)
    data = file.read(n * row)
    if len(data) != n * row:
      raise TensorError(f'{stored.path} was cut off while it was read')
    read = np.frombuffer(data, stored.dtype).reshape(n, *inner)
    block[start : start + n] = read[:, *part]
  return block


@dataclasses.dataclass(frozen=True)
class Output:
  """A tensor to be written.

  Attributes:
    name: name of the tensor.
    shape: shape of the tensor.
    make: function that returns the tensor; called once, when its turn has come.
  """

  name: str
  shape: tuple[int, ...]
  make: Callable[[], np.ndarray]


def write(
  directory: str | os.PathLike[str],
  outputs: Iterable[Output],
  dtype: np.dtype,
  shard_bytes: int,
) -> None:
  """Writes tensors as safetensors, in shards with an index if they need it.

  A file has its name only once it is whole. Holds one tensor at a time.

  Args:
    directory: existing directory that the files are written to.
    outputs: tensors, in the order in which they are written.
    dtype: dtype that they are rounded to.
    shard_bytes: largest size of a file, unless one tensor alone is larger [bytes].
  """
  path, dtype = epath.Path(directory), np.dtype(dtype)
  shards: list[list[Output]] = [[]]
  room = shard_bytes
  for output in outputs:
    size = math.prod(output.shape) * dtype.itemsize
    if shards[-1] and size > room:
      shards.append([])
      room = shard_bytes
    shards[-1].append(output)
    room -= size
  n = len(shards)
  names = [SINGLE]
  if n > 1:
    names = [f'model-{i + 1:05d}-of-{n:05d}.safetensors' for i in range(n)]
  for name, shard in zip(names, shards, strict=True):
    write_file(path / name, shard, dtype)
  stale = path / (INDEX if n == 1 else SINGLE)
  stale.unlink(missing_ok=True)
  if n > 1:
    where = {o.name: m for m, shard in zip(names, shards) for o in shard}
    total = sum(math.prod(o.shape) * dtype.itemsize for shard in shards for o in shard)
    index = {'metadata': {'total_size': total}, 'weight_map': where}
    text = json.dumps(index, indent=2, sort_keys=True)
    writing.write_whole(path / INDEX, text)


def write_file(path: epath.Path, outputs: Sequence[Output], dtype: Any) -> None:
  """Writes tensors as one file, which has its name only once it is whole.

  Args:
    path: file to write.
    outputs: tensors, in the order in which they are written.
    dtype: dtype that they are rounded to.
  """
  dtype = np.dtype(dtype)
  # transformers refuses files that do not say whose layout they have.
  header: dict[str, Any] = {'__metadata__': {'format': 'pt'}}
  offset = 0
  for output in outputs:
    end = offset + math.prod(output.shape) * dtype.itemsize
    header[output.name] = {
      'dtype': _NAMES[dtype],
      'shape': list(output.shape),
      'data_offsets': [offset, end],
    }
    offset = end
  text = json.dumps(header, separators=(',', ':')).encode()
  text += b' ' * (-len(text) % 8)  # So that the data is aligned.
  with writing.whole_file(path) as file:
    file.write(len(text).to_bytes(8, 'little') + text)
    for output in outputs:
      array = np.ascontiguousarray(output.make().astype(dtype))
      if array.shape != output.shape:
        raise ValueError(f'{output.name}: {array.shape} for {output.shape}')
      file.write(array.tobytes())
