"""The child process of `web_text`: an HTML page to its main text.

    -> {"html": "..."}
    <- {"title": "...", "text": "..."}

Runs in the closed process of `child_server`.
"""

import json
import sys
from typing import Any

_HEAD = 10_000


def _answer(request: dict[str, Any]) -> dict[str, Any]:
  html = request['html']
  if '<html' not in html[:_HEAD].lower():  # A fragment is not searched.
    html = f'<html><body>{html}</body></html>'
  tree = trafilatura.load_html(html)
  if tree is None:
    return {'title': '', 'text': ''}
  title = tree.findtext('.//title') or ''
  text = trafilatura.extract(
    tree, favor_recall=True, include_comments=False, include_tables=True
  )
  # A page of a few words has no main text that could be told from the rest.
  return {'title': title, 'text': text or trafilatura.html2txt(tree) or ''}


if __name__ == '__main__':
  sys.path[:] = json.loads(sys.argv[1])
  # Found on the parent's path only.
  import trafilatura
  from agentflow_jax.agents import child_server

  child_server.serve(
    _answer,
    {
      'html': '<html><head><title>T</title></head><body><article><p>'
      + 'A paragraph of some length. ' * 20
      + '</p><table><tr><td>1</td></tr></table></article></body></html>'
    },
  )
