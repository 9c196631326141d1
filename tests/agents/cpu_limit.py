"""A guard against hangs, for tests of readers of untrusted text."""

import contextlib
import signal
from collections.abc import Iterator


@contextlib.contextmanager
def cpu_limit(seconds: float, what: str) -> Iterator[None]:
  """Fails a body that hangs; it is no measure of speed.

  Args:
    seconds: limit of this process's own CPU time, far above the usual time.
    what: name of the work, for the error message.

  Raises:
    TimeoutError: the body has used up the limit.
  """

  def give_up(*_):
    raise TimeoutError(f'{what} hangs')

  before = signal.signal(signal.SIGPROF, give_up)
  signal.setitimer(signal.ITIMER_PROF, seconds)
  try:
    yield
  finally:
    signal.setitimer(signal.ITIMER_PROF, 0)
    signal.signal(signal.SIGPROF, before)
