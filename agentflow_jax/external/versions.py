"""Directories of weights for servers, each whole or not there."""

import os
import pathlib
import re
import secrets
import shutil
from collections.abc import Callable

_NAME = re.compile(r'v\d{6,}-[0-9a-f]{8}')
_PARTIAL = '.partial'


class Versions:
  """The directories that weights are handed over in.

  Each is written under another name, brought to the disk (fsync), and renamed: a
  server that finds a directory finds all of it.

  Args:
    directory: their parent, on a file system that the servers see, too. What an
      earlier run of this program left there is removed.
    seen_as: path of `directory` on the servers; '' where it is the same.
  """

  def __init__(self, directory: str | os.PathLike[str], seen_as: str = ''):
    self._root = pathlib.Path(directory).absolute()
    self._seen_as = seen_as.rstrip('/') or str(self._root)
    self._root.mkdir(parents=True, exist_ok=True)
    self.forget_but('')

  @staticmethod
  def label_of(version: int) -> str:
    """Returns a name for weights that no other ones have or had.

    A run that goes on makes the same versions again, of other weights.
    """
    return f'v{version:06d}-{secrets.token_hex(4)}'

  def write(self, label: str, write: Callable[[str], None]) -> str:
    """Writes a version.

    Args:
      label: its name.
      write: function that writes into the directory that it is given.

    Returns:
      The path of the directory on the servers.

    Raises:
      OSError: it cannot be written; nothing of it is left.
    """
    partial = self._root / f'{label}{_PARTIAL}'
    try:
      partial.mkdir()
      write(str(partial))
      for path in sorted(partial.iterdir()):
        _sync(path)
      _sync(partial)
      partial.rename(self._root / label)
      _sync(self._root)
    except BaseException:
      shutil.rmtree(partial, ignore_errors=True)
      raise
    return f'{self._seen_as}/{label}'

  def forget_but(self, label: str) -> None:
    """Removes every version but one."""
    for path in self._root.iterdir():
      name = path.name.removesuffix(_PARTIAL)
      if _NAME.fullmatch(name) and path.name != label:
        shutil.rmtree(path, ignore_errors=True)


def _sync(path: pathlib.Path) -> None:
  """Brings a file's content, or a directory's entries, to the disk."""
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)
