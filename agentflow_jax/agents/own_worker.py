"""The child process that runs a user's own synchronous function.

  argv: the module path as JSON, the function's file, its name, 'tool' or 'reward'

    <- {"ready": true}
    -> {"arguments": {...}}
    <- {"value": ...}   or   {"refused": "..."}   or   {"failed": "..."}

The function is trusted code: it has the environment, the files and the network of
whoever started the run. It is here so that one that hangs can be ended. Started by
path, by `child`.
"""

import json
import os
import queue
import signal
import sys
import threading
from typing import Any

# Characters of a tool's result that are sent. The memory of a rollout holds far less.
_LONGEST_TEXT = 1 << 20


def _requests() -> queue.SimpleQueue[str]:
  """Returns the lines of standard input; its end ends this process group.

  It is read on a thread, because the parent may be gone while the function runs.
  """
  lines = queue.SimpleQueue()

  def read():
    for line in sys.stdin:
      lines.put(line)
    os.killpg(0, signal.SIGKILL)

  threading.Thread(target=read, daemon=True).start()
  return lines


def _reply(call, kind: str, arguments: dict[str, Any]) -> dict[str, Any]:
  """Calls the function, and says what came of it."""
  try:
    value = call(arguments)
    if kind == 'tool':
      value = own_functions.text_of(value)
      if len(value) > _LONGEST_TEXT:
        value = f'{value[:_LONGEST_TEXT]}\n... (cut at {_LONGEST_TEXT} characters)'
    else:
      value = own_functions.reward_of(value)
    return {'value': value}
  except (base.BadArguments, ValueError) as e:
    if kind == 'tool':
      return {'refused': str(e)}
    return {'failed': f'{type(e).__name__}: {e}'}
  except Exception as e:  # Whatever a user's function raises.
    return {'failed': f'{type(e).__name__}: {e}'}


def main() -> None:
  """Answers the parent's requests until it is gone."""
  path, name, kind = sys.argv[2:5]
  # The function may print; replies go to a descriptor of their own.
  replies = os.fdopen(os.dup(1), 'w', encoding='utf-8')
  os.dup2(2, 1)
  call = own_functions.caller(own_functions.load(path, name), kind)
  lines = _requests()
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
