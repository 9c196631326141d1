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
from typing import Any

from agentflow_jax.agents import language_model


@dataclasses.dataclass(frozen=True)
class Limits:
  """What one request may cost.

  Attributes:
    cpu_seconds: CPU time of a request, rounded up to the kernel's whole
      seconds; what takes more is killed.
    wall_seconds: time until a request is given up. Only a starved or stopped
      machine gets here, so this is no verdict on the request.
    start_seconds: time until a new child must be ready.
    requests: after which the child is replaced (libraries' caches grow).
  """

  cpu_seconds: float = 5.0
  wall_seconds: float = 60.0
  start_seconds: float = 60.0
  requests: int = 1000


class Broken(Exception):
  """The request took too much CPU time, or twice brought the child down."""


class _Died(Exception):
  """The child ended during a request; carries its exit status."""


class Child:
  """Answers requests in a child process, one at a time.

  Use it from one event loop and await `aclose` at the end. Cancelling a request
  kills the child, so that no reply is ever read by another request.

  Args:
    program: path of the child's Python file, which calls `child_server.serve`.
    limits: what one request may cost.
  """

  def __init__(self, program: str, limits: Limits):
    self._program, self._limits = program, limits
    self._name = os.path.basename(program)
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
      language_model.Unreachable: the child does not start, or twice gave no
        reply in time without using its CPU time.
    """
    request = {**request, 'cpu_seconds': self._limits.cpu_seconds}
    async with self._lock:
      for attempt in range(2):
        if self._process is None or self._served >= self._limits.requests:
          await self._kill()
          await self._start()
        try:
          return await self._exchange(request, self._limits.wall_seconds)
        except _Died as error:
          status = error.args[0]
          if status == -signal.SIGXCPU or attempt:
            raise Broken(f'{self._name} ended with status {status}') from error
        except TimeoutError as error:
          if attempt:
            raise language_model.Unreachable(
                f'no reply of {self._name} within {self._limits.wall_seconds}'
                ' s, twice'
            ) from error
    raise AssertionError('unreachable')

  async def aclose(self) -> None:
    """Ends the child, if there is one; it can be asked again."""
    async with self._lock:
      await self._kill()

  async def _exchange(
      self, request: dict[str, Any] | None, seconds: float
  ) -> dict[str, Any]:
    """Sends a line, if any, and reads one; kills the child on any failure.

    Raises:
      _Died: the child ended instead of replying.
      TimeoutError: it did not reply in time.
    """
    process = self._process
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
    # A file, not a pipe: nobody would empty it while the child is in use.
    with tempfile.TemporaryFile() as errors:
      try:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            *('-s', '-P', self._program),
            json.dumps([p for p in sys.path if p]),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=errors,
            # Sets iterate in the same order in every child.
            env={'PYTHONHASHSEED': '0', 'PYTHONUTF8': '1'},
            cwd=os.sep,
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
    with contextlib.suppress(ProcessLookupError):
      process.kill()
    process.stdin.close()
    await process.wait()


_LONGEST_REPLY = 32 << 20
