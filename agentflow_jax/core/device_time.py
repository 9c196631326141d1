"""Divides the time of this process's devices among the parts that use them.

The trainer and the engines of a process run programs on the same devices. While
n of them have work there, each is charged with 1/n of the time. Everything in one
process shares one meter: a run places all its programs on the same devices.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator


class Meter:
  """Counts the users of the devices, and the time that each of them gets."""

  def __init__(self, clock: Callable[[], float] = time.monotonic):
    """Starts with no user.

    Args:
      clock: monotonic time [s]; tests set it.
    """
    self._clock = clock
    self._lock = threading.Lock()
    self._users = 0
    self._share = 0.0  # Integral of 1 / users over the time with users [s].
    self._mark = clock()  # Time up to which the integral goes.

  def change(self, users: int) -> float:
    """Adds users, or removes some, and returns the integral of 1 / users [s].

    Args:
      users: number of users that come; negative for users that leave.
    """
    with self._lock:
      now = self._clock()
      if self._users:
        self._share += (now - self._mark) / self._users
      self._mark = now
      self._users += users
      return self._share

  @contextlib.contextmanager
  def used(self) -> Iterator[None]:
    """Counts one more user during its body."""
    self.change(1)
    try:
      yield
    finally:
      self.change(-1)


class User:
  """One user of the devices, with the time that it was charged.

  It is a context manager: the user has work on the devices during the body. One
  thread at a time may enter it; any thread may read `seconds`.
  """

  def __init__(self, meter: Meter):
    self._meter = meter
    self._lock = threading.Lock()
    self._seconds = 0.0
    self._since: float | None = None  # The integral at the start of the body.

  def __enter__(self) -> None:
    with self._lock:
      self._since = self._meter.change(1)

  def __exit__(self, *unused_exc_info) -> None:
    with self._lock:
      assert self._since is not None
      self._seconds += self._meter.change(-1) - self._since
      self._since = None

  @property
  def seconds(self) -> float:
    """Time charged to this user so far, a body under way included [s]."""
    with self._lock:
      if self._since is None:
        return self._seconds
      return self._seconds + self._meter.change(0) - self._since


METER = Meter()
