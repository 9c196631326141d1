"""The child process of `symbolic`: runs math-verify under limits.

    -> {"golds": [...], "answer": "..."}
    <- {"equal": false}    or {"error": "..."} where no gold can be read

math-verify reads plain arithmetic with a parser of sympy that evaluates code,
so this runs in the closed process of `child_server`.
"""

import json
import re
import sys
from typing import Any

# What has to be read as it stands; other bare text is arithmetic.
_HAS_DELIMITERS = re.compile(r'\$|\\\(|\\\[|\\boxed|\\begin\{(?!\w*matrix)')
_PROSE = re.compile(r'(?<![\\A-Za-z])[A-Za-z]{3,}\s+[A-Za-z]{2,}')


def _parse(text: str) -> list[Any]:
  """Reads mathematics as LaTeX where it can be; prose as it stands."""
  if not _HAS_DELIMITERS.search(text) and not _PROSE.search(text):
    text = f'${text}$'
  return math_verify.parse(text, parsing_timeout=None)


def _answer(request: dict[str, Any]) -> dict[str, Any]:
  golds = request['golds']
  readable = [g for g in map(_parse, golds) if g]
  if not readable:
    return {'error': f'no mathematics can be read in {golds!r}'}
  said = _parse(request['answer'])
  equal = bool(said) and any(
      # x < 3 is the interval that it stands for, whichever of them is said.
      math_verify.verify(
          g, said, timeout_seconds=None, allow_set_relation_comp=True
      )
      for g in readable
  )
  return {'equal': equal}


if __name__ == '__main__':
  sys.path[:] = json.loads(sys.argv[1])
  # Found on the parent's path only.
  import math_verify
  from agentflow_jax.agents import child_server

  child_server.serve(
      _answer, {'golds': ['x^2-1'], 'answer': '$(x-1)(x+1)$'}
  )
