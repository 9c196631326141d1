"""Traces some steps of a run, for TensorBoard's profile plugin and xprof."""

import contextlib
import dataclasses
import pathlib
import tempfile
from collections.abc import Iterator

import jax
from absl import logging
from etils import epath

from agentflow_jax.config import schema


@dataclasses.dataclass(frozen=True)
class Steps:
  """Which steps to trace, numbered as in metrics.jsonl: from 1.

  Attributes:
    first: the first one.
    last: the last one, included; below `first`: none.
  """

  first: int = 1
  last: int = 0

  @classmethod
  def parse(cls, text: str) -> 'Steps':
    """Returns those of FIRST:LAST, or of one number; '' is none.

    Raises:
      ConfigError: the text is neither.
    """
    if not text:
      return cls()
    first, colon, last = text.partition(':')
    if not colon:
      last = first
    is_number = (
      first.isascii() and last.isascii() and (first.isdigit() and last.isdigit())
    )
    if not is_number or not 1 <= int(first) <= int(last):
      raise schema.ConfigError(
        f'--profile_steps={text}: say FIRST:LAST, steps from 1 on, both'
        ' included, such as 10:12'
      )
    return cls(int(first), int(last))


class Profiler:
  """One trace over the chosen steps that are still to come."""

  def __init__(self, steps: Steps, directory: epath.Path, process: int):
    """Traces nothing yet.

    Args:
      steps: steps to trace.
      directory: directory of TensorBoard's files; a path or gs:// URL.
      process: index of this process; each keeps a trace of its own.
    """
    self._steps, self._directory, self._process = steps, directory, process
    self._local: tempfile.TemporaryDirectory | None = None
    self._first = 0

  @contextlib.contextmanager
  def running(self) -> Iterator['Profiler']:
    """Keeps what was traced, however the steps end."""
    try:
      yield self
    finally:
      self._stop()

  def begin(self, step: int) -> None:
    """Starts before the first of the chosen steps; a resume may begin later."""
    if self._local is None and self._steps.first <= step <= self._steps.last:
      self._local, self._first = tempfile.TemporaryDirectory(), step
      options = jax.profiler.ProfileOptions()
      # Every Python call of all rollouts would be millions of events.
      options.python_tracer_level = 0
      jax.profiler.start_trace(self._local.name, profiler_options=options)

  def end(self, step: int) -> None:
    """Stops after the last one."""
    if step >= self._steps.last:
      self._stop()

  def _stop(self):
    """Ends the trace and puts it where the plugin looks for it."""
    if self._local is None:
      return
    local, self._local = self._local, None
    with local as name:
      jax.profiler.stop_trace()
      # Written here first: the profiler knows no gs:// paths.
      to = self._directory / 'plugins' / 'profile' / f'step_{self._first:06d}'
      to.mkdir(parents=True, exist_ok=True)
      for path in sorted(pathlib.Path(name).rglob('*')):
        # Named after the host, which processes may share.
        for kind in ('xplane.pb', 'trace.json.gz'):
          if path.name.endswith(kind):
            (to / f'p{self._process}.{kind}').write_bytes(path.read_bytes())
      logging.info('traced from step %d on: %s', self._first, to)
