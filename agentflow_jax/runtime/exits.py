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
# What libraries that are not Python's make of these.
_FULL_TEXTS = tuple(map(os.strerror, _FULL))
# How collectives and the coordination service say that a process is gone.
_GONE = re.compile(
    r'closed by peer|connection (?:closed|reset|refused)|broken pipe|heartbeat'
    r'|coordination service|UNAVAILABLE',
    re.IGNORECASE,
)
# A path that is not what it has to be, which only the user can mend.
_WRONG_PATH = (
    errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR,
    errno.ENAMETOOLONG, errno.ELOOP, errno.ENOENT,
)


class RunStopped(RuntimeError):
  """The run stopped itself; says why. Everything committed stands."""


class ProcessFailed(RuntimeError):
  """Another process of the run cannot go on; says which, and why.

  Attributes:
    code: to exit with: 2 and 3 as that process does, PREEMPTED_CODE where the
      same command may fare better.
  """

  def __init__(self, message: str, code: int = PREEMPTED_CODE):
    super().__init__(message)
    self.code = code


class ProcessGone(ProcessFailed):
  """Another process ended without a word; there is no parting from it."""


class Preempted(RuntimeError):
  """A process was told to stop (SIGTERM)."""


class DiskFull(RuntimeError):
  """No space is left, or a quota is used up. Everything committed stands."""


def cause(error: BaseException) -> BaseException:
  """Returns what a user should be told of an error.

  Args:
    error: what ended a command; a group of errors counts as all of them.

  Returns:
    DiskFull where that is behind it, ProcessGone where another process is
    gone; a user's mistake that a group holds; ConfigError for a path that cannot
    be used; else the error.
  """
  for one in _behind(error):
    if isinstance(one, OSError) and one.errno in _FULL or (
        any(text in str(one) for text in _FULL_TEXTS)
    ):
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


def _is_of_another(error: BaseException) -> bool:
  """Says whether a collective failed because another process is gone."""
  return (
      isinstance(error, jax.errors.JaxRuntimeError)
      and jax.distributed.is_initialized()
      and _GONE.search(str(error)) is not None
  )


def _behind(error: BaseException) -> Iterator[BaseException]:
  """Yields an error, and all that it holds or that led to it."""
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
  """Returns what an error says as one line, and not all of a long one."""
  if isinstance(error, OSError) and error.strerror:
    return error.strerror
  return ' '.join(str(error).split())[:300]


def code_of(error: BaseException) -> int:
  """Returns the exit code of an error: 2 and 3 are final."""
  if isinstance(
      error,
      (schema.ConfigError, model_directory.CheckpointError, base.ToolUnavailable,
       recording.Miss, passages.CorpusError, reading.FileError),
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
    seconds: that the others get; 0 where one of them is gone, because then a
      proper exit aborts this process. A proper exit waits minutes for those that
      wait, in a collective, for this one; its absence ends them.
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

  def __init__(
      self, seconds: float, name: str,
      end: Callable[[int], None] = os._exit,
  ):
    """Watches from the first `begin` on.

    Args:
      seconds: that a step may take; 0: any time.
      name: of this process, for the message.
      end: called with the exit code.
    """
    self._seconds, self._name, self._end = seconds, name, end
    self._what, self._since = '', math.inf
    self._done = threading.Event()
    if seconds:
      threading.Thread(
          target=self._watch, name='watchdog', daemon=True
      ).start()

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
