"""Checks of a workdir at start, and the lock of the run that writes to it."""

import contextlib
import errno
import fcntl
import os
import socket
import time
from collections.abc import Iterator

from absl import logging
from etils import epath

from agentflow_jax.config import schema
from agentflow_jax.files import paths

LOCK = 'lock'
# Directories and files that a run writes to its workdir.
_DIRECTORIES = (
  'checkpoints',
  'data',
  'earlier',
  'evaluations',
  'journal',
  'planner',
  'recording',
  'rollouts',
  'tensorboard',
  'trackers',
  'xla_cache',
)
_FILES = (
  LOCK,
  'config.json',
  'config_changes.jsonl',
  'metrics.jsonl',
  'report.html',
  'summary.json',
  'tokenizer.model',
  'traces.jsonl.zst',
)


def opened(workdir: str) -> epath.Path:
  """Checks a workdir, creates it if it is missing, and returns its path.

  Args:
    workdir: local directory, or gs:// URL.

  Raises:
    ConfigError: the path is empty or cannot be created, or a file stands in the
      place of a directory (of the workdir, or in it), or a directory in the
      place of a file.
  """
  if not workdir.strip():
    raise schema.ConfigError(
      '--workdir is empty: name a directory, such as --workdir=runs/mine'
    )
  directory = epath.Path(workdir)
  if not paths.is_local(workdir):
    directory.mkdir(parents=True, exist_ok=True)
    return directory
  try:
    os.makedirs(workdir, exist_ok=True)
  except (OSError, ValueError) as e:  # A path that holds a NUL is a ValueError.
    raise schema.ConfigError(_unusable(workdir, e)) from e
  for names, wanted, is_kind in (
    (_DIRECTORIES, 'a directory', os.path.isdir),
    (_FILES, 'a file', os.path.isfile),
  ):
    for name in names:
      path = os.path.join(workdir, name)
      if os.path.lexists(path) and not is_kind(path):
        raise schema.ConfigError(
          f'--workdir: {path} should be {wanted} of the run, but is not: move it'
          ' away, or give another --workdir'
        )
  return directory


@contextlib.contextmanager
def locked(directory: epath.Path) -> Iterator[None]:
  """Holds the lock of a workdir, so that only one run writes to it.

  The lock is the operating system's lock on the file WORKDIR/lock, which is released
  when the process ends for any reason. A gs:// workdir has no lock; a warning
  says so.

  Args:
    directory: existing workdir.

  Raises:
    ConfigError: another process holds the lock (the message gives its process
      id, host and start time), or the workdir is not writable.
  """
  path = os.path.join(os.fspath(directory), LOCK)
  if not paths.is_local(path):
    logging.warning(
      '%s cannot be locked: make sure that no second run writes to it', directory
    )
    yield
    return
  try:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
  except OSError as e:
    raise schema.ConfigError(_unusable(os.fspath(directory), e)) from e
  with open(descriptor, 'r+', encoding='utf-8', errors='replace') as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as e:
      holder = file.read(200).strip() or 'another process'
      raise schema.ConfigError(
        f'--workdir: {directory} is in use by {holder}; wait for it, end it, or'
        ' give another --workdir'
      ) from e
    except OSError as e:  # Such as a network file system without locks.
      logging.warning(
        '%s cannot be locked (%s): make sure that no second run writes to it',
        directory,
        e.strerror,
      )
    now = time.strftime('%Y-%m-%d %H:%M:%S')
    try:
      file.truncate()
      file.write(f'process {os.getpid()} on {socket.gethostname()} since {now}\n')
      file.flush()
    except OSError as e:
      if e.errno not in (errno.ENOSPC, errno.EDQUOT):
        raise schema.ConfigError(_unusable(os.fspath(directory), e)) from e
      # On a full disk the lock is held, but does not name its holder.
    yield


def _unusable(workdir: str, error: Exception) -> str:
  why = error.strerror if isinstance(error, OSError) else str(error)
  where = workdir
  if isinstance(error, OSError) and isinstance(error.filename, str):
    where = error.filename
  # The first existing parent may be a file.
  above = os.path.dirname(workdir.rstrip('/'))
  while above and not os.path.lexists(above):
    above = os.path.dirname(above)
  if above and not os.path.isdir(above):
    where, why = above, 'not a directory'
  return (
    f'--workdir: {workdir!r} cannot be used ({where}: {why}): give a directory'
    ' that this user can write to'
  )
