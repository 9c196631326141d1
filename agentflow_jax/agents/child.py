"""A killable child process for libraries that untrusted text may hang or break.

The other side is `child_server`. A child is started when it is first needed,
and started again when it has been killed.
"""

import asyncio
import contextlib
import dataclasses
import json
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping
from typing import Any

from agentflow_jax.agents import language_model


@dataclasses.dataclass(frozen=True)
class Limits:
  """Limits of one request to a child process.

  Attributes:
    cpu_seconds: CPU time of a request, rounded up to the kernel's whole
      seconds; what takes more is killed.
    wall_seconds: time until a request is given up. Only a starved or stopped
      machine gets here, so this is no verdict on the request.
    start_seconds: time until a new child must be ready.
    requests: number of requests after which the child is replaced (libraries'
      caches grow).
    attempts: number of attempts at a request whose child ends or stays silent.
  """

  cpu_seconds: float = 5.0
  wall_seconds: float = 60.0
  start_seconds: float = 60.0
  requests: int = 1000
  attempts: int = 2


@dataclasses.dataclass(frozen=True)
class Program:
  """A program for a child process.

  Attributes:
    path: path of the Python file, which speaks the protocol of `child_server`.
    arguments: command line arguments, behind the parent's module path.
    environment: environment variables beside those that make Python
      reproducible.
    directory: working directory.
  """

  path: str
  arguments: tuple[str, ...] = ()
  environment: Mapping[str, str] = dataclasses.field(default_factory=dict, repr=False)
  directory: str = os.sep


class Broken(Exception):
  """The request took too much CPU time, or brought the child down each time."""


class _Died(Exception):
  """The child ended during a request; carries its exit status."""


class Child:
  """Answers requests in a child process, one at a time.

  Use it from one event loop and await `aclose` at the end. Cancelling a request
  kills the child, so that no reply is ever read by another request.

  Args:
    program: program of the child; a path stands for a program without arguments
      and environment.
    limits: limits of one request.
  """

  def __init__(self, program: Program | str, limits: Limits):
    if isinstance(program, str):
      program = Program(program)
    self._program, self._limits = program, limits
    self._name = os.path.basename(program.path)
    self._lock = asyncio.Lock()
    self._process: asyncio.subprocess.Process | None = None
    self._served = 0

  @property
  def pid(self) -> int | None:
    """The child's process id, or None while there is no child."""
    return self._process.pid if self._process else None

  async def ask(self, request: dict[str, Any]) -> dict[str, Any]:
    """Returns the reply to a request, both JSON objects.

    Raises:
      Broken: the request cannot be answered within the limits.
      language_model.Unreachable: the child does not start, or gave no reply in
        time, at any attempt, without using its CPU time.
    """
    request = {**request, 'cpu_seconds': self._limits.cpu_seconds}
    async with self._lock:
      for attempt in range(self._limits.attempts):
        await self._ensure_started()
        last = attempt == self._limits.attempts - 1
        try:
          return await self._exchange(request, self._limits.wall_seconds)
        except _Died as error:
          status = error.args[0]
          if status == -signal.SIGXCPU or last:
            raise Broken(f'{self._name} ended with status {status}') from error
        except TimeoutError as error:
          if last:
            raise language_model.Unreachable(
              f'no reply of {self._name} within {self._limits.wall_seconds}'
              f' s, at {self._limits.attempts} attempts'
            ) from error
    raise AssertionError('unreachable')

  async def start(self) -> None:
    """Starts the child, if there is none.

    Raises:
      language_model.Unreachable: the child does not start.
    """
    async with self._lock:
      await self._ensure_started()

  async def aclose(self) -> None:
    """Ends the child, if there is one; it can be asked again."""
    async with self._lock:
      await self._kill()

  async def _ensure_started(self) -> None:
    process = self._process
    if (
      process is None
      or process.returncode is not None
      or self._served >= self._limits.requests
    ):
      await self._kill()
      await self._start()

  async def _exchange(
    self, request: dict[str, Any] | None, seconds: float
  ) -> dict[str, Any]:
    """Sends a line, if any, and reads one; kills the child on any failure.

    Raises:
      _Died: the child ended instead of replying.
      TimeoutError: it did not reply in time.
    """
    process = self._process
    assert process is not None and process.stdin is not None
    assert process.stdout is not None
    done = False
    try:
      async with asyncio.timeout(seconds):
        if request is not None:
          # A child that is gone shows at the read below.
          with contextlib.suppress(ConnectionError):
            process.stdin.write(json.dumps(request).encode() + b'\n')
            await process.stdin.drain()
        line = await process.stdout.readline()
        if not line.endswith(b'\n'):
          raise _Died(await process.wait())
      self._served += 1
      done = True
      return json.loads(line)
    finally:
      if not done:
        await self._kill()

  async def _start(self) -> None:
    # A file, not a pipe: a pipe that is not read would fill up and stop the child.
    with tempfile.TemporaryFile() as errors:
      try:
        self._process = await asyncio.create_subprocess_exec(
          sys.executable,
          *('-s', '-P', self._program.path),
          json.dumps([p for p in sys.path if p]),
          *self._program.arguments,
          stdin=asyncio.subprocess.PIPE,
          stdout=asyncio.subprocess.PIPE,
          stderr=errors,
          # Sets iterate in the same order in every child.
          env={**self._program.environment, 'PYTHONHASHSEED': '0', 'PYTHONUTF8': '1'},
          cwd=self._program.directory,
          start_new_session=True,
          limit=_LONGEST_REPLY,
        )
        await self._exchange(None, self._limits.start_seconds)
        self._served = 0
      except (OSError, TimeoutError, _Died) as error:
        errors.seek(0)
        last = errors.read().decode(errors='replace').strip().rpartition('\n')
        raise language_model.Unreachable(
          f'{self._name} does not start: {last[2] or repr(error)}'
        ) from error

  async def _kill(self) -> None:
    process, self._process = self._process, None
    if process is None:
      return
    # The child leads a process group, which holds the programs that it started.
    with contextlib.suppress(ProcessLookupError):
      if process.returncode is None:
        os.killpg(process.pid, signal.SIGKILL)
    if process.stdin is not None:
      process.stdin.close()
    await process.wait()


class Pool:
  """Children that answer requests side by side, started when they are needed.

  Use it from one event loop and await `aclose` at the end.

  Args:
    program: program of each child.
    limits: limits of one request.
    processes: number of children.
  """

  def __init__(self, program: Program | str, limits: Limits, processes: int):
    self._children = [Child(program, limits) for _ in range(processes)]
    # The one that was asked last is asked first, so that few are started.
    self._idle = asyncio.LifoQueue()
    for one in self._children:
      self._idle.put_nowait(one)

  @property
  def pids(self) -> list[int]:
    """Process ids of the running children."""
    return [one.pid for one in self._children if one.pid is not None]

  @contextlib.asynccontextmanager
  async def lease(self) -> AsyncIterator[Child]:
    """Waits for an idle child, and lends it."""
    one = await self._idle.get()
    try:
      yield one
    finally:
      self._idle.put_nowait(one)

  async def ask(self, request: dict[str, Any]) -> dict[str, Any]:
    """Returns the reply of an idle child to a request; raises as Child.ask."""
    async with self.lease() as one:
      return await one.ask(request)

  async def aclose(self) -> None:
    """Ends the children."""
    for one in self._children:
      await one.aclose()


_LONGEST_REPLY = 32 << 20
