"""The child process that runs a user's own synchronous function.

  argv: the module path as JSON, the function's file, its name, its kind ('tool',
    'reward' or 'environment'), and the digest of the file

    <- {"ready": true}
    -> {"arguments": {...}}
    <- {"value": ...}   or   {"refused": "..."}   or   {"failed": "..."}

The function is trusted code: it has the environment, the files and the network of
the run. It has a process of its own so that a call that hangs can be killed. `child`
starts this file by its path.
"""

import contextlib
import ctypes
import inspect
import json
import os
import queue
import signal
import sys
import threading
from typing import Any

# Characters of a tool's result that are sent. The memory of a rollout holds far less.
_LONGEST_TEXT = 1 << 20


def _end_with_parent() -> None:
  """Asks the kernel to kill this process when its parent ends (Linux only)."""
  with contextlib.suppress(OSError, AttributeError):
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG of Linux.


def _requests() -> queue.SimpleQueue[str]:
  """Returns the lines of standard input; its end ends this process group.

  It is read on a thread, because the parent may be gone while the function runs.
  """
  lines = queue.SimpleQueue()
  # Programs that the function starts must not read the requests.
  source = os.fdopen(os.dup(0), encoding='utf-8')
  nothing = os.open(os.devnull, os.O_RDONLY)
  os.dup2(nothing, 0)
  os.close(nothing)

  def read():
    for line in source:
      lines.put(line)
    os.killpg(0, signal.SIGKILL)

  threading.Thread(target=read, daemon=True).start()
  return lines


def _reply(call, kind: str, arguments: dict[str, Any]) -> dict[str, Any]:
  """Calls the function, and returns its result or its error."""
  try:
    value = call(arguments)
  except Exception as e:  # The function is a user's code.
    if kind == 'tool' and isinstance(e, (base.BadArguments, ValueError)):
      return {'refused': str(e)}
    return {'failed': f'{type(e).__name__}: {e}'}
  try:
    if inspect.isawaitable(value):
      raise TypeError('it returned an awaitable: name an `async def`')
    value = own_functions.result_of(value, kind)
  except Exception as e:  # An invalid result is the function's mistake.
    return {'failed': f'{type(e).__name__}: {e}'}
  if isinstance(value, str) and len(value) > _LONGEST_TEXT:
    value = f'{value[:_LONGEST_TEXT]}\n... (cut at {_LONGEST_TEXT} characters)'
  return {'value': value}


def main() -> None:
  """Answers requests until the parent ends."""
  path, name, kind, version = sys.argv[2:6]
  _end_with_parent()
  # The function may print, so replies go to a descriptor of their own.
  replies = os.fdopen(os.dup(1), 'w', encoding='utf-8')
  os.dup2(2, 1)
  lines = _requests()
  if own_functions.digest(path) != version:
    raise SystemExit(f'{path} has changed since the run began')
  call = own_functions.caller(own_functions.load(path, name), kind)
  replies.write('{"ready": true}\n')
  replies.flush()
  while True:
    request = json.loads(lines.get())
    reply = _reply(call, kind, request['arguments'])
    replies.write(f'{json.dumps(reply)}\n')
    replies.flush()


if __name__ == '__main__':
  sys.path[:] = json.loads(sys.argv[1])
  # Found on the parent's path only.
  from agentflow_jax.agents import own_functions
  from agentflow_jax.agents.tools import base

  main()
