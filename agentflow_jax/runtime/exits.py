"""How a process of a run ends: why, with which exit code, and who is told."""

import errno
import math
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator

import jax

from agentflow_jax.agents import recording
from agentflow_jax.agents.tools import base
from agentflow_jax.agents.tools.search import passages
from agentflow_jax.config import schema
from agentflow_jax.files import reading
from agentflow_jax.weights import model_directory

# What launchers take for "run me again": sysexits' EX_TEMPFAIL.
PREEMPTED_CODE = 75
# The program hangs; run again, too, but somebody should look.
HUNG_CODE = 70

_FULL = (errno.ENOSPC, errno.EDQUOT)
# Messages of the same errors, and the libraries that raise other classes for them.
_WRITERS = ('jax', 'jaxlib', 'orbax', 'tensorstore')
_STATUS = re.compile(r'[A-Z_]{4,}: ')  # Such as RESOURCE_EXHAUSTED.
_FULL_TEXTS = tuple(map(os.strerror, _FULL))
# Messages of collectives and of the coordination service about a dead process.
_GONE = re.compile(
  r'closed by peer|connection (?:closed|reset|refused)|broken pipe|heartbeat'
  r'|coordination service|UNAVAILABLE',
  re.IGNORECASE,
)
# Errors of a path that only the user can correct.
_WRONG_PATH = (
  errno.EROFS,
  errno.EACCES,
  errno.EPERM,
  errno.ENOTDIR,
  errno.EISDIR,
  errno.ENAMETOOLONG,
  errno.ELOOP,
  errno.ENOENT,
)


class RunStopped(RuntimeError):
  """The run stopped itself; says why. Everything committed stands."""


class ProcessFailed(RuntimeError):
  """Another process of the run cannot go on; says which, and why.

  Attributes:
    code: exit code for this process: 2 and 3 as in the failed one, PREEMPTED_CODE where
      the same command may succeed later.
  """

  def __init__(self, message: str, code: int = PREEMPTED_CODE):
    super().__init__(message)
    self.code = code


class ProcessGone(ProcessFailed):
  """Another process ended without telling the others."""


class Preempted(RuntimeError):
  """A process was told to stop (SIGTERM)."""


class DiskFull(RuntimeError):
  """No space is left, or a quota is used up. Everything committed stands."""


def cause(error: BaseException) -> BaseException:
  """Returns the error that should be reported to the user.

  Args:
    error: error that ended a command; for a group, all its errors are searched.

  Returns:
    DiskFull if a full disk caused the error, ProcessGone if the death of another
    process did, the user's mistake that a group of errors holds, ConfigError
    for a path that cannot be used; otherwise the error itself.
  """
  for one in _behind(error):
    if _is_full_disk(one):
      where = getattr(one, 'filename', None)
      return DiskFull(
        f'no space is left{f" for {where}" if where else ""}: {_line(one)};'
        ' everything committed stands: make room, and the same command goes on'
        ' from there'
      )
    if _is_of_another(one):
      return ProcessGone(
        f'another process of the run is gone ({_line(one)}); everything'
        ' committed stands, and the same command goes on from there'
      )
  if isinstance(error, BaseExceptionGroup):
    for one in error.exceptions:
      found = cause(one)
      if code_of(found) != 1:
        return found
  if isinstance(error, OSError) and error.errno in _WRONG_PATH:
    return schema.ConfigError(
      f'{error.filename or _line(error)} cannot be used: {error.strerror}'
    )
  return error


def _is_full_disk(error: BaseException) -> bool:
  """Says whether the operating system refused to write for want of space.

  The text counts only in errors of the libraries that write checkpoints. In others,
  such as those of endpoints and tools, it may be a server's or a model's.
  """
  if isinstance(error, OSError):
    return error.errno in _FULL
  library, said = type(error).__module__.partition('.')[0], str(error)
  if library == 'builtins':  # TensorStore's, which begin with a status.
    library = 'tensorstore' if _STATUS.match(said) else ''
  return library in _WRITERS and any(text in said for text in _FULL_TEXTS)


def _is_of_another(error: BaseException) -> bool:
  """Says whether a collective failed because another process is gone."""
  return (
    isinstance(error, jax.errors.JaxRuntimeError)
    and jax.distributed.is_initialized()
    and _GONE.search(str(error)) is not None
  )


def _behind(error: BaseException) -> Iterator[BaseException]:
  """Yields an error, the members of a group, and all causes and contexts."""
  found, waiting = set(), [error]
  while waiting:
    one = waiting.pop()
    if one is None or id(one) in found:
      continue
    found.add(id(one))
    yield one
    if isinstance(one, BaseExceptionGroup):
      waiting += one.exceptions
    waiting += [one.__cause__, one.__context__]


def _line(error: BaseException) -> str:
  """Returns an error's message as one line, cut after 300 characters."""
  if isinstance(error, OSError) and error.strerror:
    return error.strerror
  return ' '.join(str(error).split())[:300]


def code_of(error: BaseException) -> int:
  """Returns the exit code of an error: 2 and 3 are final."""
  if isinstance(
    error,
    (
      schema.ConfigError,
      model_directory.CheckpointError,
      base.ToolUnavailable,
      recording.Miss,
      passages.CorpusError,
      reading.FileError,
    ),
  ):
    return 2
  if isinstance(error, RunStopped):
    return 3
  if isinstance(error, ProcessFailed):
    return error.code
  return PREEMPTED_CODE if isinstance(error, (Preempted, DiskFull)) else 1


def leave(code: int, seconds: float = 10.0) -> None:
  """Exits, together with the other processes if they do, too.

  Args:
    code: the exit code.
    seconds: time limit of the joint shutdown with the other processes [s]; 0 for
      no joint shutdown, because jax aborts this process in it if another one is
      gone. If the others wait for this process in a collective, they end only
      after this process has.
  """
  if jax.distributed.is_initialized():
    if seconds:
      parting = threading.Thread(target=jax.distributed.shutdown, daemon=True)
      parting.start()
      parting.join(seconds)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
  sys.exit(code)


class Watchdog:
  """Ends this process when a step takes longer than it may.

  A process that hangs inside a collective cannot raise; ended, its absence ends
  the others.
  """

  def __init__(self, seconds: float, name: str, end: Callable[[int], None] = os._exit):
    """Watches from the first `begin` on.

    Args:
      seconds: longest time of a step [s]; 0 for no limit.
      name: name of this process, for the message.
      end: function that is called with the exit code.
    """
    self._seconds, self._name, self._end = seconds, name, end
    self._what, self._since = '', math.inf
    self._done = threading.Event()
    if seconds:
      threading.Thread(target=self._watch, name='watchdog', daemon=True).start()

  def begin(self, what: str) -> None:
    """Says what is done from now on; its time starts."""
    self._since, self._what = time.monotonic(), what

  def rest(self) -> None:
    """Lets what follows take any time."""
    self._since = math.inf

  def close(self) -> None:
    """Ends watching."""
    self._done.set()

  def _watch(self):
    while not self._done.wait(min(1.0, self._seconds / 10)):
      if time.monotonic() - self._since > self._seconds:
        sys.stderr.write(
          f'{self._name} hangs: {self._what} has taken more than'
          f' {self._seconds:g} s (--step_seconds); ending it. The same'
          ' command goes on from the last commit\n'
        )
        sys.stderr.flush()
        self._end(HUNG_CODE)
        return
