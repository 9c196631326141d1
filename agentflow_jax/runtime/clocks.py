"""Clocks and counters of a run: wall seconds by name, and compilations."""

import contextlib
import time
from collections.abc import Iterator, Mapping

import jax


class Clock:
  """Adds up wall seconds by name."""

  def __init__(self):
    self.seconds: dict[str, float] = {}

  def add(self, seconds: Mapping[str, float]) -> None:
    """Adds what was spent elsewhere."""
    for name, value in seconds.items():
      self.seconds[name] = self.seconds.get(name, 0.0) + value

  @contextlib.contextmanager
  def __call__(self, name: str) -> Iterator[None]:
    start = time.monotonic()
    try:
      yield
    finally:
      self.add({name: time.monotonic() - start})


class Compilations:
  """Counts what XLA compiles in this process."""

  def __init__(self):
    self.count = 0
    jax.monitoring.register_event_duration_secs_listener(self._listen)

  def _listen(self, event: str, duration_secs: float, **unused_kwargs):
    del duration_secs
    self.count += event.endswith('backend_compile_duration')

  @contextlib.contextmanager
  def paused(self) -> Iterator[None]:
    """Counts nothing meanwhile."""
    count = self.count
    yield
    self.count = count
