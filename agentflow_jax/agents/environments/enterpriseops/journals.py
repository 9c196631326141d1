"""Files that name the open databases of a process, for the run after a killed one."""

import contextlib
import fcntl
import json
import os
import pathlib
from collections.abc import Iterable

from agentflow_jax.agents.environments.enterpriseops import gym


class Journal:
  """A directory with a file of open databases for each process that has some.

  A process holds a lock on its file while it lives, so what a file without a lock names
  was left by one that was killed.

  Args:
    directory: directory of the files, which is made where it does not exist.
  """

  def __init__(self, directory: pathlib.Path):
    directory.mkdir(parents=True, exist_ok=True)
    self._directory = directory
    self._path = directory / f'{os.getpid()}-{os.urandom(4).hex()}.jsonl'
    while True:
      self._file = open(self._path, 'a', buffering=1, encoding='utf-8')
      # A file system without locks raises OSError here and in `left`, which then takes
      # no database of another process for one that was left.
      with contextlib.suppress(OSError):
        fcntl.flock(self._file, fcntl.LOCK_EX)
      if self._path.exists():
        break
      self._file.close()  # Another process swept it before it was locked.

  def left(self) -> list[tuple[gym.Place, str]]:
    """Returns what processes that are gone left open; it is this one's from now on."""
    found = []
    for path in sorted(self._directory.glob('*.jsonl')):
      if path == self._path:
        continue
      try:
        file = open(path, encoding='utf-8', errors='replace')
      except FileNotFoundError:
        continue  # Another process swept it first.
      with file:
        try:
          fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
          continue  # Its process is alive.
        for (database, _), place in _open_in(file).items():
          self.note('+', place, database)
          found.append((place, database))
        path.unlink(missing_ok=True)
    return found

  def note(self, sign: str, place: gym.Place, database: str) -> None:
    """Writes that a database is about to be made ('+'), or is deleted ('-')."""
    if not self._file.closed:
      self._file.write(json.dumps([sign, database, place.name, place.url]) + '\n')

  def close(self) -> None:
    """Gives the file up, and removes it where nothing is open."""
    if self._file.closed:
      return
    with open(self._path, encoding='utf-8') as file:
      is_empty = not _open_in(file)
    if is_empty:
      self._path.unlink(missing_ok=True)
    self._file.close()


def _open_in(lines: Iterable[str]) -> dict[tuple[str, str], gym.Place]:
  """Returns the databases that are open by a journal; a torn line is left out."""
  found: dict[tuple[str, str], gym.Place] = {}
  for line in lines:
    try:
      sign, database, name, url = json.loads(line)
      where = gym.Place(str(name), str(url))
    except (ValueError, TypeError):
      continue
    if sign == '+':
      found[str(database), where.name] = where
    else:
      found.pop((str(database), where.name), None)
  return found
