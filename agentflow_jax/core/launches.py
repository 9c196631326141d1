"""One launch at a time, for programs over several devices.

A device runs programs in the order in which it got them. The trainer and the
engines of a process launch theirs from threads of their own: where two programs
with collectives reached two devices in different orders, each would wait for the
other for ever. So whoever launches one holds a lock until all devices have it.
It is not held while they run, unless a call waits for its own result.
"""

import contextlib
import threading
from typing import Any

import jax

_LOCK = threading.Lock()


def in_turn(arrays: Any) -> contextlib.AbstractContextManager:
  """Returns what to launch programs over the devices of `arrays` within.

  Args:
    arrays: a tree of jax.Array, of which the first says how many devices.

  Returns:
    A context, that does nothing for one device: no order can differ there.
  """
  first = jax.tree.leaves(arrays)[0]
  return over(len(first.sharding.device_set))


def over(n_devices: int) -> contextlib.AbstractContextManager:
  """Returns the same by the number of devices."""
  return _LOCK if n_devices > 1 else contextlib.nullcontext()
