"""Rows of data sets of the Hugging Face hub, by name, through the library `datasets`.

They are read as a stream, in order: neither the data set nor a copy of it on disk is
made, and columns that are not asked for are not kept. Nothing of a data
set is executed: `datasets` has had no loading scripts since version 4.
"""

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from agentflow_jax.data import rows

PREFIX = 'hf://'


@dataclasses.dataclass(frozen=True)
class Address:
  """A split of a data set.

  Attributes:
    path: OWNER/NAME on the hub, or a local directory with its files.
    config: name of one of the data set's configurations; '' for its only one.
    split: name of the split, such as 'train'.
  """

  path: str
  config: str
  split: str


def parse(text: str) -> Address:
  """Reads hf://OWNER/NAME/SPLIT, and its two other forms.

  They are hf://OWNER/NAME/CONFIG/SPLIT, and hf:///DIRECTORY/SPLIT (or hf://./...) for a
  directory of this machine.

  Raises:
    MalformedRow: it is none of these.
  """
  rest = text.removeprefix(PREFIX)
  parts = rest.split('/')
  if rest.startswith(('/', './', '../')):
    path, config, split = rest.rpartition('/')[0], '', parts[-1]
    is_right = bool(path and split)
  else:
    path, config, split = '/'.join(parts[:2]), '/'.join(parts[2:-1]), parts[-1]
    is_right = len(parts) in (3, 4) and all(parts)
  if not text.startswith(PREFIX) or not is_right:
    raise rows.MalformedRow(
      f'{text}: give hf://OWNER/NAME/SPLIT, hf://OWNER/NAME/CONFIG/SPLIT, or'
      ' hf:///DIRECTORY/SPLIT for a data set of this machine'
    )
  return Address(path, config, split)


def read(
  text: str, columns: Mapping[str, str], revision: str = ''
) -> Iterator[tuple[str, dict[str, Any]]]:
  """Yields (where, row) of a split, in order; `where` names the split and the row.

  Args:
    text: address of the split, see `parse`.
    columns: path of a column by the name of a field, see `rows.picked`; empty for rows
      as they are.
    revision: branch, tag or commit of the data set; '' for its newest.

  Raises:
    MalformedRow: there is no such data set, split, revision or column, it cannot be
      reached or read, or the library is missing.
  """
  address = parse(text)
  try:
    import datasets  # pyright: ignore[reportMissingImports]  # An extra.
  except ImportError as e:
    raise rows.MalformedRow(
      f'{text}: its library is missing: pip install datasets fsspec pyarrow (the'
      ' extra `hf`)'
    ) from e
  if address.path.startswith(('/', '.')) and not os.path.isdir(address.path):
    raise rows.MalformedRow(f'{text}: no directory {address.path}')
  number = 0
  try:
    builder = datasets.load_dataset_builder(
      address.path, address.config or None, revision=revision or None
    )
    for row in _stream(builder, address, lambda names: _wanted(text, columns, names)):
      number += 1
      where = f'{text}:{number}'
      yield where, rows.picked(row, columns, where) if columns else row
  except rows.MalformedRow:
    raise
  except Exception as e:  # Boundary: errors of the library, of its files, of the hub.
    said = ' '.join(str(e).split())
    after = f' after row {number}' if number else ''
    raise rows.MalformedRow(
      f'{text}: cannot be read{after}: {type(e).__name__}: {said}'
    ) from e
  if not number:
    raise rows.MalformedRow(f'{text}: holds no row')


def _stream(
  builder: Any, address: Address, choose: Callable[[Sequence[str]], Sequence[str]]
) -> Iterator[dict[str, Any]]:
  """Yields the rows of a split.

  Parquet files are opened here: the stream of `datasets` reads all of their columns,
  and far ahead, so that its memory grows with the file.

  Args:
    builder: builder of `datasets`.
    address: split to read.
    choose: function from the names of all columns to those that are read.
  """
  files = getattr(builder.config, 'data_files', None) or {}
  split = files.get(address.split, ())
  if split and all(str(file).endswith('.parquet') for file in split):
    import fsspec  # pylint: disable=g-import-not-at-top

    for file in split:
      f: Any
      with fsspec.open(str(file), 'rb') as f:
        yield from rows.parquet_rows(f, str(file), choose)
    return
  stream = builder.as_streaming_dataset(split=address.split)
  if stream.column_names:
    stream = stream.select_columns(choose(stream.column_names))
  yield from stream


def _wanted(text: str, columns: Mapping[str, str], names: Sequence[str]) -> list[str]:
  """Returns the columns that are read; raises MalformedRow for a missing one."""
  if not columns:
    return list(names)
  wanted = {rows.column_of(path, names) for path in columns.values()}
  if missing := sorted(wanted - set(names)):
    raise rows.MalformedRow(
      f'{text}: no column {missing[0]!r}; there are {", ".join(names)}'
    )
  return sorted(wanted)
