"""Files that are written whole or not at all, local ones and gs:// objects."""

import contextlib
import os
from collections.abc import Iterator
from typing import BinaryIO, cast

from etils import epath


def write_whole(path: str | os.PathLike[str], data: str | bytes) -> None:
  """Writes a file so that a reader finds the old content or the new one.

  Args:
    path: file to write; its directory is created where it is missing.
    data: whole new content; text is encoded as UTF-8.

  Raises:
    OSError: the file cannot be written; the old content is still there.
    UnicodeEncodeError: the text holds a lone surrogate; nothing was written.
  """
  with whole_file(path) as file:
    file.write(data.encode('utf-8') if isinstance(data, str) else data)


@contextlib.contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
  """Opens a new file that replaces the old one when the body has ended.

  The content goes to `NAME.partial` beside the file first. When the body
  raises, that partial file is removed and the old file stays.

  Args:
    path: file to write; its directory is created where it is missing.

  Yields:
    A binary file that is open for writing.

  Raises:
    OSError: the file cannot be written; the old content is still there.
  """
  path = epath.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  partial = path.parent / f'{path.name}.partial'
  try:
    with partial.open('wb') as file:
      yield cast(BinaryIO, file)
    partial.replace(path)
  except BaseException:
    # The first error is the one to show, and not a failure of this clean-up.
    with contextlib.suppress(OSError):
      partial.unlink(missing_ok=True)
    raise
