"""Runs an agent that is not ours as a command: a process for each rollout."""

import asyncio
import contextlib
import dataclasses
import os
import signal
import sys
import tempfile
from collections.abc import Mapping

from agentflow_jax.agents import served_session

# Variables of this process that every command gets.
_PASSED_ON = ('HOME', 'LANG', 'LC_ALL', 'PATH', 'TMPDIR', 'USER')
_LAUNCHER = os.path.join(
  os.path.dirname(os.path.abspath(__file__)), 'served_launcher.py'
)
# What is kept of the end of the command's output [bytes].
_MOST_ANSWER = 128 << 10
_MOST_ERRORS = 4 << 10
# Time for output that is under way to arrive after the end of the command [s].
_DRAIN_SECONDS = 5.0


@dataclasses.dataclass(frozen=True)
class Command:
  """A command and its limits.

  Attributes:
    arguments: program and arguments.
    cpu_seconds: processor time of a process of the command [s].
    memory_bytes: address space of a process of the command [bytes].
    environment: names of further variables of this process that it gets.
  """

  arguments: tuple[str, ...]
  cpu_seconds: int
  memory_bytes: int
  environment: tuple[str, ...] = ()

  async def run(
    self, variables: Mapping[str, str], query: str
  ) -> served_session.Outcome:
    """Runs the command; the last line that it prints is the answer.

    Cancelling the caller kills the command. All processes that it started in its
    process group are killed with it, and also when it ends by itself.

    Args:
      variables: environment variables that tell the command what to do.
      query: text for its standard input.

    Returns:
      The answer, or the reason why there is none.
    """
    environment = {
      name: os.environ[name]
      for name in (*_PASSED_ON, *self.environment)
      if name in os.environ
    }
    with tempfile.TemporaryFile() as text:
      text.write(query.encode(errors='replace'))
      text.seek(0)
      return await self._run({**environment, **variables}, text)

  async def _run(self, environment, text) -> served_session.Outcome:
    answer, errors = await _Tail.opened(_MOST_ANSWER), await _Tail.opened(_MOST_ERRORS)
    process = None
    try:
      try:
        process = await asyncio.create_subprocess_exec(
          sys.executable,
          *('-I', '-S', _LAUNCHER, str(self.cpu_seconds), str(self.memory_bytes)),
          *self.arguments,
          stdin=text,
          stdout=answer.end,
          stderr=errors.end,
          env=environment,
          start_new_session=True,
        )
      except (OSError, ValueError) as e:
        # Too many processes; or a query that no variable can hold.
        return served_session.Outcome(failure=f'the command does not start: {e}')
      finally:
        answer.close_end()
        errors.close_end()
      status = await process.wait()
      _kill_group(process.pid)
      await asyncio.wait({answer.reading, errors.reading}, timeout=_DRAIN_SECONDS)
      if status:
        said = f'the command ended with status {status}'
        return served_session.Outcome(failure=f'{said}: {errors.last_line()}')
      return served_session.Outcome(answer.last_line())
    finally:
      if process is not None and process.returncode is None:
        _kill_group(process.pid)
        await process.wait()
      answer.close()
      errors.close()


def _kill_group(pid: int) -> None:
  """Kills what is left of the process group that the command leads."""
  with contextlib.suppress(ProcessLookupError, PermissionError):
    os.killpg(pid, signal.SIGKILL)


class _Tail:
  """Reads a pipe to its end and keeps its last bytes.

  The pipes are made here, because asyncio's own ones keep `wait` from returning while
  a process that the command left behind still holds them.
  """

  def __init__(self, most: int, transport, stream: asyncio.StreamReader, end: int):
    self.end = end
    self._most, self._kept, self._transport = most, b'', transport
    self.reading = asyncio.create_task(self._read(stream))

  @classmethod
  async def opened(cls, most: int) -> '_Tail':
    """Opens a pipe whose last `most` bytes are kept; `end` is for the writer."""
    ours, end = os.pipe()
    stream = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
      lambda: asyncio.StreamReaderProtocol(stream), os.fdopen(ours, 'rb')
    )
    return cls(most, transport, stream, end)

  async def _read(self, stream) -> None:
    while chunk := await stream.read(1 << 16):
      self._kept = (self._kept + chunk)[-self._most :]

  def last_line(self) -> str:
    """Returns the last line that is not empty; '' where there is none."""
    return self._kept.decode(errors='replace').strip().rpartition('\n')[2].strip()

  def close_end(self) -> None:
    """Closes the writer's end in this process."""
    os.close(self.end)

  def close(self) -> None:
    """Stops reading."""
    self.reading.cancel()
    self._transport.close()
