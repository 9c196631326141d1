"""The side of `child` that runs in the child process: one JSON object a line.

    <- {"ready": true}
    -> {..., "cpu_seconds": 5.0}
    <- {...}

The process is closed before it sees the first request, whatever the library
that it runs would do with what it reads: no environment (the parent passes
none), no writing, no network, no processes, no reading outside the libraries.
What outlives the CPU limit is killed by the kernel, since a loop in C hears no
Python signal. Started by path with the parent's module path as its argument.
"""

import json
import math
import os
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

_MEMORY_BYTES = 2 << 30
_OPEN_FILES = 64

# Audit events that end a request: everything that leaves the process.
_FORBIDDEN = (
  'socket.',
  'subprocess.',
  'os.',
  'shutil.',
  'ctypes.',
  'pty.',
  'urllib.',
  'http.',
  'ftplib.',
  'smtplib.',
  'sqlite3.',
  'tempfile.',
  'mmap.',
  'signal.',
  'resource.',
  'sys.addaudithook',
  'sys.settrace',
)
_HARMLESS = frozenset(
  {
    # The import system lists directories of libraries.
    'os.listdir',
    'os.scandir',
    'os.add_dll_directory',
  }
)
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_TRUNC


class _Guard:
  """An audit hook that, once armed, forbids whatever leaves the process."""

  def __init__(self):
    self.armed = False
    self._readable = tuple(
      os.path.join(os.path.realpath(p), '')
      for p in {*sys.path, sys.prefix, sys.base_prefix}
      if p and os.path.realpath(p) != os.sep
    )

  def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
    if not self.armed:
      return
    if event == 'open':
      path, _, flags = arguments
      if flags & _WRITING or not self._is_library(path):
        raise PermissionError(f'closed: open {path!r}')
    elif event.startswith(_FORBIDDEN) and event not in _HARMLESS:
      raise PermissionError(f'closed: {event}')

  def _is_library(self, path: Any) -> bool:
    if not isinstance(path, str | bytes):
      return False
    return os.path.realpath(os.fsdecode(path)).startswith(self._readable)


def serve(
  answer: Callable[[dict[str, Any]], dict[str, Any]], first: dict[str, Any]
) -> None:
  """Answers the parent's requests until it is gone.

  Args:
    answer: request -> reply.
    first: a request that loads whatever is imported at first use; answered
      before the process is closed, for nobody.
  """
  # Libraries print; replies go to a descriptor of their own.
  replies = os.fdopen(os.dup(1), 'w', encoding='utf-8')
  os.dup2(2, 1)
  guard = _Guard()
  sys.addaudithook(guard)
  answer(first)
  # Until here the parent reads what goes wrong.
  nowhere = os.open(os.devnull, os.O_WRONLY)
  os.dup2(nowhere, 1)
  os.dup2(nowhere, 2)
  os.close(nowhere)
  _limit()
  replies.write('{"ready": true}\n')
  replies.flush()
  for line in sys.stdin:
    request = json.loads(line)
    # The kernel counts whole seconds since the process began.
    cpu = math.ceil(time.process_time() + request['cpu_seconds'])
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (cpu, hard))
    guard.armed = True
    reply = answer(request)
    guard.armed = False
    replies.write(json.dumps(reply) + '\n')
    replies.flush()


def _limit() -> None:
  for name, soft in (
    ('RLIMIT_AS', _MEMORY_BYTES),
    ('RLIMIT_FSIZE', 0),
    ('RLIMIT_CORE', 0),
    ('RLIMIT_NOFILE', _OPEN_FILES),
  ):
    which = getattr(resource, name)
    _, hard = resource.getrlimit(which)
    if hard != resource.RLIM_INFINITY:
      soft = min(soft, hard)
    resource.setrlimit(which, (soft, hard))
