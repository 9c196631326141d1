"""The child process of `symbolic`: reads and compares mathematics.

    -> {"golds": [...], "answer": "..."}
    <- {"equal": false}    or {"error": "..."} where no gold can be read

Nothing that is read is evaluated as code; the arithmetic can take any time, so
this runs in the closed and limited process of `child_server`.
"""

import json
import sys
from typing import Any


def _answer(request: dict[str, Any]) -> dict[str, Any]:
  golds = [g for g in request['golds'] if g.strip()]
  if not golds:
    return {'error': f'no mathematics can be read in {request["golds"]!r}'}
  said = request['answer']
  return {'equal': any(math_answer.same(g, said) for g in golds)}


if __name__ == '__main__':
  sys.path[:] = json.loads(sys.argv[1])
  # Found on the parent's path only.
  from agentflow_jax.agents import child_server
  from agentflow_jax.agents.rewards import math_answer

  child_server.serve(_answer, {'golds': ['x^2-1'], 'answer': '$(x-1)(x+1)$'})
