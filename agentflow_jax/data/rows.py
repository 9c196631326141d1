"""Rows of JSONL and parquet files, in order, without holding a file in memory."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO

from etils import epath

from agentflow_jax.files import reading

SUFFIXES = ('.jsonl', '.parquet')
_BATCH = 1024  # Rows of a parquet file that are held at once.


class MalformedRow(ValueError):
  """A file or a row of it cannot be read; names it."""


def locate(path: str) -> list[epath.Path]:
  """Returns the files that a path means, in the order in which they are read.

  Args:
    path: a file, a directory of shards, a pattern (`dir/train-*.parquet`), or a
      comma list of these. Shards are sorted by name within each.

  Raises:
    MalformedRow: nothing is there, a file of another suffix, a directory of
      both, or a file twice.
  """
  files: list[epath.Path] = []
  for part in path.split(','):
    files += _shards(part)
  for i, file in enumerate(files):
    if file in files[:i]:
      raise MalformedRow(f'{file}: comes twice in {path}')
    if not file.exists():
      raise MalformedRow(f'no file {file}')
    if file.is_dir() or file.suffix not in SUFFIXES:
      raise MalformedRow(f'{file}: needs a file {" or ".join(SUFFIXES)}')
  return files


def _shards(part: str) -> list[epath.Path]:
  """Returns the files of one part of a path."""
  place = epath.Path(part)
  if not part.strip():
    raise MalformedRow('a path of rows is empty')
  if any(c in part for c in '*?['):
    # A pattern in the last part only: what lies above may be a URL.
    found = sorted(place.parent.glob(place.name), key=str)
    if not found:
      raise MalformedRow(f'no file matches {part}')
    return found
  if not place.is_dir():
    return [place]
  found = [f for f in place.iterdir() if f.suffix in SUFFIXES]
  if not found:
    raise MalformedRow(f'{part}: no {" or ".join(SUFFIXES)} in this directory')
  if len({f.suffix for f in found}) > 1:
    # Most likely the same rows twice.
    raise MalformedRow(f'{part}: holds {" and ".join(SUFFIXES)}; name a pattern')
  return sorted(found, key=str)


def digest(files: Sequence[epath.Path]) -> str:
  """Returns 16 hex digits of what files hold, one after the other."""
  total = hashlib.sha256()
  for file in files:
    with file.open('rb') as f:
      binary: Any = f  # etils says less of it than it is.
      total.update(hashlib.file_digest(binary, 'sha256').digest())
    # The same bytes are other rows by another suffix.
    total.update(file.suffix.encode())
  return total.hexdigest()[:16]


def read(
  file: epath.Path, columns: Sequence[str], optional: Sequence[str] = ()
) -> Iterator[tuple[str, dict[str, Any]]]:
  """Yields (where, row) of a file; `where` names the file and the row.

  Args:
    file: JSONL, whose rows are counted as lines, from 1, and whose blank lines
      are skipped; or parquet, whose rows are counted from 1.
    columns: fields that every row has.
    optional: fields that are read where they are there; no other is.

  Raises:
    MalformedRow: not of its format, a column or field is missing, or no row.
  """
  of_format = _parquet if file.suffix == '.parquet' else _jsonl
  count = 0
  for where, row in of_format(file, [*columns, *optional], columns):
    count += 1
    yield where, row
  if not count:
    raise MalformedRow(f'{file}: holds no row')


def column_of(path: str, names: Sequence[str]) -> str:
  """Returns the column that a path begins with: 'a' of 'a.b'.

  Args:
    path: path of a value, see `picked`.
    names: names of columns; one that is the whole path counts first.
  """
  return path if path in names else path.partition('.')[0]


def picked(
  row: Mapping[str, Any], columns: Mapping[str, str], where: str
) -> dict[str, Any]:
  """Returns a row with fields of other names, taken from wherever they lie in it.

  Args:
    row: row as it was read.
    columns: path by the name of a field. 'a.b' is the value 'b' of the object 'a';
      of a list of objects, the list of their values. A value that is null is left
      out.
    where: place of the row, for errors.

  Raises:
    MalformedRow: a path leads to nothing.
  """
  found = {}
  for field, path in columns.items():
    column = column_of(path, list(row))
    rest = path.removeprefix(column).removeprefix('.')
    value: Any = row
    for part in (column, *(rest.split('.') if rest else ())):
      try:
        if isinstance(value, list):
          value = [one[part] for one in value]
        elif value is not None:
          value = value[part]
      except (KeyError, TypeError, IndexError):
        raise MalformedRow(
          f'{where}: there is no {path!r} for the field {field!r}'
        ) from None
    if value is not None:
      found[field] = value
  return found


def _jsonl(file, wanted, columns):
  try:
    for line in reading.json_lines(file):
      row = line.value
      if not isinstance(row, dict):
        raise MalformedRow(f'{line.where}: not an object')
      for column in columns:
        if column not in row:
          raise MalformedRow(f'{line.where}: no field "{column}"')
      yield line.where, {k: row[k] for k in wanted if k in row}
  except reading.FileError as e:
    raise MalformedRow(str(e)) from e


def _parquet(file, wanted, columns):
  def choose(names):
    for column in columns:
      if column not in names:
        raise MalformedRow(
          f'{file}: no column "{column}"; there are {", ".join(names)}'
        )
    return [n for n in wanted if n in names]

  with reading.boundary(file, MalformedRow), file.open('rb') as f:
    for number, row in enumerate(parquet_rows(f, str(file), choose), 1):
      yield f'{file}:{number}', row


def parquet_rows(
  file: BinaryIO, name: str, choose: Callable[[Sequence[str]], Sequence[str]]
) -> Iterator[dict[str, Any]]:
  """Yields the rows of an open parquet file, some of which are in memory at a time.

  Args:
    file: file that is open for reading.
    name: name of the file, for errors.
    choose: function from the names of all columns to those that are read.

  Raises:
    MalformedRow: pyarrow is missing, or the file is not parquet or cut off.
  """
  try:
    import pyarrow  # pylint: disable=g-import-not-at-top
    from pyarrow import parquet  # pylint: disable=g-import-not-at-top
  except ImportError as e:
    raise MalformedRow(
      f'{name}: parquet needs pyarrow: pip install pyarrow (the extra `parquet`)'
    ) from e
  number = 0
  try:
    table = parquet.ParquetFile(file)
    columns = choose(table.schema_arrow.names)
    for batch in table.iter_batches(batch_size=_BATCH, columns=columns):
      for row in batch.to_pylist():
        number += 1
        yield row
  except (pyarrow.ArrowException, OSError) as e:
    raise MalformedRow(
      f'{name}: not parquet, or cut off after row {number}: {e}'
    ) from e
