"""The processes of a run: how they come up, and what they tell each other.

Every process runs the same program. What all of them decide from has to be the
same bytes everywhere, so it goes through `Processes.exchange`: finished rollouts,
errors, and whether somebody was told to stop.
"""

import asyncio
import contextlib
import hashlib
import os
import signal
import threading
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from agentflow_jax.config import schema
from agentflow_jax.core import launches
from agentflow_jax.runtime import exits

_T = TypeVar('_T')

# Bytes of a process that one collective carries: a power of two from the first to the
# second, so that nine programs serve all lengths.
_SMALLEST, _LARGEST = 1 << 16, 1 << 24
_OK, _FAILED, _PREEMPTED = range(3)
_LOOK_SECONDS = 2.0  # Between two looks for a process that was told to stop.


def initialize(
  coordinator: str = '',
  count: int = 0,
  index: int = -1,
  heartbeat_seconds: int = 100,
  distributed: str = 'auto',
  environ: Mapping[str, str] = os.environ,
) -> None:
  """Brings up jax.distributed where there is more than one process.

  To be called before anything touches a device.

  Args:
    coordinator: host:port of process 0; '' where the cluster tells (TPU VMs, GKE,
      Slurm, Open MPI).
    count: number of processes; 0 where the cluster tells.
    index: index of this process; -1 where the cluster tells.
    heartbeat_seconds: time without a heartbeat from a process after which the others
      are ended [s].
    distributed: 'on', 'off', or 'auto': on where an argument above or the
      environment says that there are several processes.
    environ: the environment.

  Raises:
    ConfigError: the arguments contradict each other, or nothing says where the
      other processes are.
    ProcessFailed: some did not come in time.
  """
  asked = bool(coordinator or count or index >= 0)
  if distributed == 'off' or (
    distributed == 'auto' and not (asked or _has_many(environ))
  ):
    if asked:
      raise schema.ConfigError(
        '--coordinator, --num_processes and --process_id are ignored with'
        ' --distributed=off'
      )
    return
  if asked and not (coordinator and count >= 1 and 0 <= index < count):
    raise schema.ConfigError(
      '--coordinator=HOST:PORT, --num_processes=N and --process_id=0..N-1'
      f' belong together: {coordinator!r}, {count}, {index}'
    )
  try:
    jax.distributed.initialize(
      coordinator or None,
      count or None,
      index if index >= 0 else None,
      heartbeat_timeout_seconds=heartbeat_seconds,
    )
  except RuntimeError as e:
    raise exits.ProcessFailed(f'the processes did not come together: {e}') from e
  except ValueError as e:
    raise schema.ConfigError(
      f'the processes of the run did not come together: {e}; give'
      ' --coordinator, --num_processes and --process_id, or'
      ' --distributed=off for a run of this process alone'
    ) from e


def _has_many(environ: Mapping[str, str]) -> bool:
  """Says whether a launcher started this process as one of several."""

  def number(name):
    value = environ.get(name, '')
    return int(value) if value.isdigit() else 0

  return (
    # srun sets the second, an interactive allocation does not.
    (number('SLURM_NTASKS') > 1 and 'SLURM_STEP_ID' in environ)
    or number('OMPI_COMM_WORLD_SIZE') > 1
    or len(environ.get('TPU_WORKER_HOSTNAMES', '').split(',')) > 1
    or number('MEGASCALE_NUM_SLICES') > 1
  )


class Processes:
  """The processes of a run, as one of them sees it.

  Attributes:
    index: index of this process.
    count: number of all processes.
    stop_file: path of a file that tells the others that one process was told to stop;
      None leaves that to the next exchange. It must not exist when a run begins.
  """

  def __init__(self, index: int = 0, count: int = 1):
    self.index, self.count = index, count
    self.stop_file: epath.Path | None = None
    self._stop = asyncio.Event()
    self._loop: asyncio.AbstractEventLoop | None = None

  @classmethod
  def current(cls) -> 'Processes':
    """Those of this job."""
    return cls(jax.process_index(), jax.process_count())

  @property
  def is_primary(self) -> bool:
    """Whether this is the one that writes what the run writes once."""
    return not self.index

  def share(self, total: int) -> range:
    """Returns which of `total` pieces of work are this process's.

    As even as can be, and together: pieces beside each other share prompts.
    """
    return range(
      self.index * total // self.count, (self.index + 1) * total // self.count
    )

  def exchange(self, payload: bytes = b'') -> list[bytes]:
    """Returns every process's payload, in order. Each has to call it."""
    if self.count == 1:
      return [payload]
    sizes = _gathered(np.int64(len(payload)))
    parts, at, longest = [], 0, int(sizes.max())
    while at < longest:
      data = np.zeros(_chunk(longest - at), np.uint8)
      own = np.frombuffer(payload[at : at + len(data)], np.uint8)
      data[: len(own)] = own
      parts.append(_gathered(data))
      at += len(data)
    return [
      b''.join(part[i].tobytes() for part in parts)[: int(size)]
      for i, size in enumerate(sizes)
    ]

  def alone(self, function: Callable[[], _T]) -> _T | None:
    """Calls a function in process 0; the others wait for it, and get None.

    Raises:
      Exception: whatever it raises, in process 0.
      ProcessFailed: it did, in the others.
    """
    return self.together(function if self.is_primary else lambda: None)

  def together(self, function: Callable[[], _T]) -> _T:
    """Calls a function in every process, which all go on or none.

    Raises:
      Exception: whatever it raises here.
      ProcessFailed: it raised elsewhere.
    """
    result: Any = None
    error = None
    try:
      result = function()
    except Exception as e:  # Boundary: the others have to hear of it.
      error = e
    said = (_OK, b'') if error is None else (_FAILED, _described(error))
    self._agree(*said, error)
    return result

  def check_same(self, what: str, text: str) -> None:
    """Raises ConfigError where `text` is not the same in all processes."""
    digest = hashlib.sha256(text.encode(errors='surrogatepass')).hexdigest()
    everything = self.exchange(digest.encode())
    differ = [i for i, other in enumerate(everything) if other != everything[0]]
    if differ:
      raise schema.ConfigError(
        f'{what} of process {", ".join(map(str, differ))} of {self.count} is not'
        ' that of process 0: start all of them with the same command and files'
      )

  def first(self, function: Callable[[], _T]) -> _T:
    """Calls a function in process 0, then in the others.

    For what writes a file where there is none yet, and reads it otherwise.

    Raises:
      Exception: whatever it raises here.
      ProcessFailed: it raised elsewhere.
    """
    result: Any = self.alone(function)
    return self.together((lambda: result) if self.is_primary else function)

  def _agree(
    self, said: int, payload: bytes, error: BaseException | None
  ) -> list[bytes]:
    """Exchanges payloads, unless somebody has worse to say.

    Raises:
      BaseException: `error`, if there is one.
      ProcessFailed: another process failed.
      Preempted: one was told to stop.
    """
    everything = self.exchange(bytes([said]) + payload)
    if error is not None:
      raise error
    for i, other in enumerate(everything):
      if other[0] == _FAILED:
        raise exits.ProcessFailed(
          f'process {i} of {self.count} failed: {other[2:].decode(errors="replace")}',
          other[1],
        )
    if any(other[0] == _PREEMPTED for other in everything):
      raise exits.Preempted(
        'told to stop (SIGTERM); the same command goes on from here'
      )
    return [other[1:] for other in everything]

  async def gathered(self, work: Awaitable[bytes]) -> list[bytes]:
    """Awaits this process's work, then returns that of all, in order.

    Work is cancelled as soon as this process, or soon after another one, is
    told to stop.

    Raises:
      Exception: what the work raised.
      ProcessFailed: another process's work failed.
      Preempted: some process was told to stop.
    """
    task = asyncio.ensure_future(work)
    stop = asyncio.ensure_future(self._told_to_stop())
    said, payload, error = _OK, b'', None
    try:
      await asyncio.wait((task, stop), return_when=asyncio.FIRST_COMPLETED)
      if stop.done():
        said = _PREEMPTED
      else:
        payload = task.result()
    except Exception as e:  # Boundary: the others have to hear of it.
      said, payload, error = _FAILED, _described(e), e
    finally:
      for one in (task, stop):
        one.cancel()
      await asyncio.gather(task, stop, return_exceptions=True)
    return await asyncio.to_thread(self._agree, said, payload, error)

  async def _told_to_stop(self) -> None:
    """Returns when this process or another one was told to stop."""
    if self.stop_file is None:
      await self._stop.wait()
      return
    while not self._stop.is_set():
      if await asyncio.to_thread(self.stop_file.exists):
        self._stop.set()
        return
      with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(self._stop.wait(), _LOOK_SECONDS)
    await asyncio.to_thread(self.stop_file.write_text, f'{self.index}\n')

  def listen(self) -> None:
    """Takes SIGTERM for a request to commit and stop; in a running loop."""
    if threading.current_thread() is threading.main_thread():
      self._loop = asyncio.get_running_loop()
      self._loop.add_signal_handler(signal.SIGTERM, self._stop.set)

  def deafen(self) -> None:
    """Ends what `listen` began."""
    if self._loop is not None:
      self._loop.remove_signal_handler(signal.SIGTERM)
      self._loop = None


def _chunk(left: int) -> int:
  """Returns how many bytes the next collective carries, of those that are left."""
  return min(max(1 << (left - 1).bit_length(), _SMALLEST), _LARGEST)


def _described(error: BaseException) -> bytes:
  """Says what went wrong, after the code that others exit with."""
  error = exits.cause(error)
  while isinstance(error, BaseExceptionGroup):
    error = error.exceptions[0]
  code = exits.code_of(error)
  final = bytes([code if code in (2, 3) else exits.PREEMPTED_CODE])
  return final + f'{type(error).__name__}: {error}'.encode(errors='replace')


def _gathered(x) -> np.ndarray:
  """Returns [processes, ...]: a program over all devices of the job."""
  with launches.over(jax.device_count()):
    return multihost_utils.process_allgather(x)
