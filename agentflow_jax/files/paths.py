"""What a path names: a file of this machine, or an object behind a URL."""

import os


def is_local(path: str | os.PathLike[str]) -> bool:
  """Says whether a path is of this machine's file systems, and no URL."""
  return '://' not in os.fspath(path)
