"""What the sandboxes of the `python` tool have in common.

A sandbox runs one program in a process of its own and reports what came of it.
This module starts, bounds and reaps that process; what the process may see is
decided by `bubblewrap` and `monty`.
"""

import asyncio
import contextlib
import dataclasses
import os
import signal
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from agentflow_jax.agents.tools import base

_STDERR_BYTES = 64 * 1024
_CHUNK = 16 * 1024


@dataclasses.dataclass(frozen=True)
class Limits:
  """Bounds of one program.

  Attributes:
    wall_seconds: time from the start of the program to its end, waiting included [s].
    cpu_seconds: processor time, rounded up to whole seconds.
    memory_bytes: address space; a program that needs more gets a MemoryError.
    output_bytes: largest size of its output; a program that prints more is killed, and
      the output so far is the result.
    scratch_bytes: size of the files that it may write under /tmp (bubblewrap).
    scratch_entries: number of files, directories and links there.
    program_bytes: length of the program itself, in UTF-8.
  """

  wall_seconds: float = 15.0
  cpu_seconds: float = 5.0
  memory_bytes: int = 512 * 2**20
  output_bytes: int = 4000
  scratch_bytes: int = 16 * 2**20
  scratch_entries: int = 2048
  program_bytes: int = 64 * 1024

  def __post_init__(self):
    for field in dataclasses.fields(self):
      if getattr(self, field.name) <= 0:
        raise ValueError(f'{field.name} must be > 0: {self}')


@dataclasses.dataclass(frozen=True)
class Outcome:
  """What a program printed and how it ended.

  Attributes:
    output: its standard output, at most `output_bytes` of it.
    cut: whether it printed more than that.
    error: reason why it failed, for the model; empty if it did not.
  """

  output: str
  cut: bool = False
  error: str = ''


class Backend(Protocol):
  """A sandbox that was tried and found working.

  Attributes:
    name: 'bubblewrap' or 'monty'.
    card_limits: restrictions of its programs, for the tool's card.
  """

  name: str
  card_limits: str

  async def run(self, program: str) -> Outcome:
    """Runs a program; raises `base.ToolUnreachable` if the sandbox failed."""
    ...


@dataclasses.dataclass(frozen=True)
class Finished:
  """A child process that is gone.

  Attributes:
    returncode: its exit status; negative for a signal.
    stdout: its output, cut at the bytes that it was allowed.
    stderr: its output to standard error, cut at 64 KiB.
    stopped: reason for which it was killed: 'time', 'output' (too much output),
      'errors' (too much output to standard error), or '' if it was not.
  """

  returncode: int
  stdout: bytes
  stderr: bytes
  stopped: str = ''


async def run_process(
  command: Sequence[str],
  limits: Limits,
  *,
  environment: Mapping[str, str],
  stdin: int = asyncio.subprocess.DEVNULL,
  pass_fds: Sequence[int] = (),
) -> Finished:
  """Runs a command to its end, or kills it and its process group at a limit.

  Whatever happens, cancellation included, the process has been reaped and its
  pipes are closed when this returns. At most the limits' bytes are ever held.

  Args:
    command: the program and its arguments.
    limits: bounds of the program; wall_seconds and output_bytes are enforced here.
    environment: the child's whole environment.
    stdin: a file descriptor for its standard input.
    pass_fds: further descriptors it inherits; all others are closed.

  Raises:
    base.ToolUnreachable: the process could not be started.
  """
  process = await _start(
    command,
    stdin=stdin,
    stdout=asyncio.subprocess.PIPE,
    stderr=asyncio.subprocess.PIPE,
    env=dict(environment),
    cwd='/',
    start_new_session=True,
    pass_fds=tuple(pass_fds),
  )
  assert process.stdout is not None and process.stderr is not None
  stdout, stderr = bytearray(), bytearray()
  stopped = ''
  try:
    async with asyncio.timeout(limits.wall_seconds):
      output_fits, errors_fit = await asyncio.gather(
        _read(process, process.stdout, stdout, limits.output_bytes),
        _read(process, process.stderr, stderr, _STDERR_BYTES),
      )
      await process.wait()
    if not output_fits:
      stopped = 'output'
    elif not errors_fit:
      stopped = 'errors'
  except TimeoutError:
    stopped = 'time'
  finally:
    _kill(process)
    await asyncio.shield(_reap(process))
  assert process.returncode is not None  # It was waited for.
  return Finished(process.returncode, bytes(stdout), bytes(stderr), stopped)


async def _start(command: Sequence[str], **options: Any) -> asyncio.subprocess.Process:
  """Starts a process, or, cancelled, ends it and its group once it is started.

  Args:
    command: the program and its arguments.
    **options: options of asyncio.create_subprocess_exec.

  Raises:
    base.ToolUnreachable: the process could not be started.
  """
  starting = asyncio.ensure_future(asyncio.create_subprocess_exec(*command, **options))
  try:
    # Cancelled itself, it kills the process and not its group, and then waits for
    # pipes that the group may hold open.
    return await asyncio.shield(starting)
  except asyncio.CancelledError:
    await asyncio.shield(_end(starting))
    raise
  except OSError as error:
    raise base.ToolUnreachable(f'cannot start {command[0]}: {error}') from error


async def _read(
  process: asyncio.subprocess.Process,
  stream: asyncio.StreamReader,
  into: bytearray,
  most: int,
) -> bool:
  """Reads to the end; kills the process where it exceeds `most` bytes.

  What comes after that is read too, and dropped: asyncio takes a process for
  ended only when its pipes are, and stops reading a pipe whose data nobody
  takes, so that `wait` would hang until the time limit.
  """
  fits = True
  while chunk := await stream.read(_CHUNK):
    if fits:
      into += chunk
      if len(into) > most:
        del into[most:]
        fits = False
        _kill(process)
  return fits


def _kill(process: asyncio.subprocess.Process) -> None:
  if process.returncode is None:
    # Not yet reaped, so the number still is this process's; it leads a group
    # because it was started in a session of its own.
    with contextlib.suppress(ProcessLookupError):
      os.killpg(process.pid, signal.SIGKILL)


async def _end(starting: asyncio.Task) -> None:
  """Ends a process that is being started, once it is."""
  with contextlib.suppress(OSError):
    process = await starting
    _kill(process)
    await _reap(process)


async def _reap(process: asyncio.subprocess.Process) -> None:
  # A stream that nobody reads would never reach its end, nor close its pipe.
  for stream in (process.stdout, process.stderr):
    while stream is not None and await stream.read(_CHUNK):
      pass
  await process.wait()


class Turns:
  """At most so many at a time; waiting for a turn is bounded.

  Args:
    concurrency: number at a time; None for the number of processors.
    queue_seconds: longest wait [s].

  Raises:
    ValueError: one of them is not positive.
  """

  def __init__(self, concurrency: int | None, queue_seconds: float):
    concurrency = (os.cpu_count() or 1) if concurrency is None else concurrency
    if concurrency < 1 or queue_seconds <= 0:
      raise ValueError(
        'concurrency and queue_seconds must be positive: '
        f'{concurrency}, {queue_seconds}'
      )
    self._concurrency = concurrency
    self._queue_seconds = queue_seconds
    self._loop: asyncio.AbstractEventLoop | None = None
    self._semaphore = asyncio.Semaphore(concurrency)

  async def __aenter__(self) -> None:
    # A semaphore belongs to one event loop, a tool may outlive several.
    loop = asyncio.get_running_loop()
    if loop is not self._loop:
      self._loop = loop
      self._semaphore = asyncio.Semaphore(self._concurrency)
    try:
      async with asyncio.timeout(self._queue_seconds):
        await self._semaphore.acquire()
    except TimeoutError as error:
      raise base.ToolUnreachable(
        f'no sandbox was free within {self._queue_seconds:g} s'
      ) from error

  async def __aexit__(self, *exc_info: object) -> None:
    self._semaphore.release()


def decode(output: bytes) -> str:
  """Text of a program's output; what is no UTF-8 becomes U+FFFD."""
  return output.decode('utf-8', errors='replace')


def stopped_outcome(finished: Finished, limits: Limits) -> Outcome:
  """What came of a program that was killed at a limit."""
  output = decode(finished.stdout)
  if finished.stopped == 'output':
    return Outcome(output, cut=True)
  if finished.stopped == 'errors':
    return Outcome(output, error='the program wrote endless error messages')
  return Outcome(output, error=f'the program ran longer than {limits.wall_seconds:g} s')


def describe_exit(returncode: int, limits: Limits) -> str:
  """Says for the model how a program ended that reported no exception."""
  number = -returncode if returncode < 0 else returncode - 128
  if number == signal.SIGXCPU:
    used = f'{limits.cpu_seconds:g} s of processor time'
    return f'the program used more than {used}'
  try:
    return f'the program was ended by {signal.Signals(number).name}'
  except ValueError:
    return f'the program exited with status {returncode}'
