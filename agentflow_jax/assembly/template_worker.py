"""The child process of `chat_templates`, which compiles and renders a template.

    -> {"source": "...", "added": [[id, "content", ...], ...],
        "variables": {...}, "thinking": "auto"}
    <- {"error": ""}

Runs in the closed process of `child_server`.
"""

import json
import sys
from typing import Any


def _answer(request: dict[str, Any]) -> dict[str, Any]:
  try:
    # Compiles the template, and renders a probe.
    template = chat.ChatTemplate(
      request['source'],
      [chat.AddedToken(*token) for token in request['added']],
      request['variables'],
      request['thinking'],
    )
    template.ends_of_turn()
  except chat.TemplateError as e:
    return {'error': str(e)}
  return {'error': ''}


if __name__ == '__main__':
  sys.path[:] = json.loads(sys.argv[1])
  # Found on the parent's path only.
  from agentflow_jax.agents import child_server
  from agentflow_jax.tokenization import chat

  child_server.serve(
    _answer,
    {
      'source': '{% for m in messages %}<|a|>{{ m.content | trim }}{% endfor %}',
      'added': [[0, '<|a|>', True, False, False]],
      'variables': {},
      'thinking': 'auto',
    },
  )
