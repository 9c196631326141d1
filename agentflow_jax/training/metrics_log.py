"""Metrics of a run: metrics.jsonl, TensorBoard, and their interval names.

Names that begin with 'seconds/' or 'rate/' depend on the clock; every other one
is the same again when a run is repeated or resumed (contract 4).
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import tensorboardX
from etils import epath

from agentflow_jax.files import writing

FILE = 'metrics.jsonl'
CLOCK_PREFIXES = ('seconds/', 'rate/')


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
      workdir: of the run.
      lines: of the steps that are done.
      tensorboard: whether event files are written (local workdirs only).
      writes: False to keep the lines and write nothing: another process does.
    """
    self._path = workdir / FILE
    self.lines: list[dict[str, Any]] = [dict(l) for l in lines]
    self._writer = None
    self._writes = writes
    if writes and tensorboard and '://' not in str(workdir):
      self._writer = tensorboardX.SummaryWriter(
          str(workdir / 'tensorboard'), purge_step=len(self.lines) + 1
      )

  def add(self, step: int, values: Mapping[str, Any]) -> None:
    """Adds a step's line.

    Args:
      step: steps done, from 1.
      values: name -> number.

    Raises:
      ValueError: a value that is no finite number; names it.
    """
    line = {'step': step}
    for name, value in sorted(values.items()):
      if not math.isfinite(value):
        raise ValueError(f'metric {name} is {value} at step {step}')
      line[name] = int(value) if isinstance(value, int) else float(value)
    self.lines.append(line)
    if self._writes:
      text = ''.join(json.dumps(l) + '\n' for l in self.lines)
      writing.write_whole(self._path, text)
    if self._writer is not None:
      for name, value in line.items():
        if name != 'step':
          self._writer.add_scalar(name, value, step)

  def close(self) -> None:
    if self._writer is not None:
      self._writer.close()
