"""Metrics of a run: metrics.jsonl, TensorBoard, and their interval names.

TensorBoard has a step at once, because it can hide steps that are made again;
training.trackers has the trackers that get a step when a commit covers it.

Names that begin with 'seconds/' or 'rate/' depend on the clock; every other one
is the same again when a run is repeated or resumed (contract 4).
"""

import contextlib
import json
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath
from tensorboardX import event_file_writer, summary
from tensorboardX.proto import event_pb2

from agentflow_jax.files import paths, writing

FILE = 'metrics.jsonl'
CLOCK_PREFIXES = ('seconds/', 'rate/')
_EVENTS: Any = event_pb2  # Its classes are made when it is imported.


class MetricsLog:
  """The lines of a run, one a step, rewritten whole so that none is torn."""

  def __init__(
    self,
    workdir: epath.Path,
    lines: Sequence[Mapping[str, Any]] = (),
    tensorboard: bool = True,
    writes: bool = True,
  ):
    """Begins, or goes on after the lines of a commit.

    Args:
      workdir: work directory of the run.
      lines: lines of the steps that are done.
      tensorboard: whether event files are written (local workdirs only).
      writes: whether anything is written; False to keep the lines only, because another
        process writes.
    """
    self._path = workdir / FILE
    self.lines: list[dict[str, Any]] = [dict(l) for l in lines]
    self._events: Any = None
    self._writes = writes
    if writes and tensorboard and paths.is_local(workdir):
      # Without the thread of SummaryWriter, which a full disk ends with
      # tracebacks of its own, long after the error.
      directory = workdir / 'tensorboard'
      directory.mkdir(parents=True, exist_ok=True)
      self._events = event_file_writer.EventsWriter(str(directory / 'events'))
      # What an earlier process wrote of these steps is not shown.
      started = _EVENTS.SessionLog(status=_EVENTS.SessionLog.START)
      self._write_event(len(self.lines) + 1, session_log=started)

  def add(self, step: int, values: Mapping[str, Any]) -> None:
    """Adds a step's line.

    Args:
      step: steps done, from 1.
      values: name -> number.

    Raises:
      ValueError: a value that is no finite number; names it.
    """
    line: dict[str, float] = {'step': step}
    for name, value in sorted(values.items()):
      if not math.isfinite(value):
        raise ValueError(f'metric {name} is {value} at step {step}')
      line[name] = int(value) if isinstance(value, int) else float(value)
    self.lines.append(line)
    if self._writes:
      text = ''.join(json.dumps(l) + '\n' for l in self.lines)
      writing.write_whole(self._path, text)
    if self._events is not None:
      for name, value in line.items():
        if name != 'step':
          self._write_event(step, summary=summary.scalar(name, value))
      self._events.flush()

  def _write_event(self, step: int, **content: Any) -> None:
    event = _EVENTS.Event(step=step, wall_time=time.time(), **content)
    self._events.write_event(event)

  def close(self) -> None:
    """Closes the event file; what cannot be written any more was said before."""
    if self._events is not None:
      with contextlib.suppress(OSError):
        self._events.close()
