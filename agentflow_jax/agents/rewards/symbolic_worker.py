"""The child process of `symbolic`: runs math-verify under limits.

Started by path with the parent's module path as its only argument, one JSON
object a line in and out:

    <- {"ready": true}
    -> {"golds": [...], "answer": "...", "cpu_seconds": 5.0}
    <- {"equal": false}    or {"error": "..."} where no gold can be read

math-verify reads plain arithmetic with a parser of sympy that evaluates
code, so this process is closed before it sees the first request: no
environment (the parent passes none), no writing, no network, no processes,
no reading outside the libraries. What outlives the CPU limit is killed by the
kernel, since a big power in C hears no Python signal.
"""

import json
import math
import os
import re
import resource
import sys
import time
from collections.abc import Sequence
from typing import Any

_MEMORY_BYTES = 2 << 30
_OPEN_FILES = 64

# Audit events that end a request: everything that leaves the process.
_FORBIDDEN = (
    'socket.', 'subprocess.', 'os.', 'shutil.', 'ctypes.', 'pty.', 'urllib.',
    'http.', 'ftplib.', 'smtplib.', 'sqlite3.', 'tempfile.', 'mmap.',
    'signal.', 'resource.', 'sys.addaudithook', 'sys.settrace',
)
_HARMLESS = frozenset({
    # The import system lists directories of libraries.
    'os.listdir', 'os.scandir', 'os.add_dll_directory',
})
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_TRUNC
# What has to be read as it stands; other bare text is arithmetic.
_HAS_DELIMITERS = re.compile(r'\$|\\\(|\\\[|\\boxed|\\begin\{(?!\w*matrix)')
_PROSE = re.compile(r'(?<![\\A-Za-z])[A-Za-z]{3,}\s+[A-Za-z]{2,}')


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


def _parse(text: str) -> list[Any]:
  """Reads mathematics as LaTeX where it can be; prose as it stands."""
  if not _HAS_DELIMITERS.search(text) and not _PROSE.search(text):
    text = f'${text}$'
  return math_verify.parse(text, parsing_timeout=None)


def _answer(golds: Sequence[str], answer: str) -> dict[str, Any]:
  readable = [g for g in map(_parse, golds) if g]
  if not readable:
    return {'error': f'no mathematics can be read in {golds!r}'}
  said = _parse(answer)
  equal = bool(said) and any(
      # x < 3 is the interval that it stands for, whichever of them is said.
      math_verify.verify(
          g, said, timeout_seconds=None, allow_set_relation_comp=True
      )
      for g in readable
  )
  return {'equal': equal}


def _serve() -> None:
  # Libraries print; replies go to a descriptor of their own.
  replies = os.fdopen(os.dup(1), 'w', encoding='utf-8')
  os.dup2(2, 1)
  guard = _Guard()
  sys.addaudithook(guard)
  _answer(['x^2-1'], '$(x-1)(x+1)$')  # Loads what is imported at first use.
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
    reply = _answer(request['golds'], request['answer'])
    guard.armed = False
    replies.write(json.dumps(reply) + '\n')
    replies.flush()


if __name__ == '__main__':
  sys.path[:] = json.loads(sys.argv[1])
  import math_verify  # Found on the parent's path only.

  _serve()
