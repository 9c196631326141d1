"""Cards of MCP servers' tools, and their results as text.

What a server says of its tools is untrusted and stands in prompts: it is
shortened, and spells no control token.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from agentflow_jax.agents.tools import base

_LONGEST_PURPOSE = 500
_LONGEST_DESCRIPTION = 200
_TYPES = frozenset({'string', 'number', 'integer', 'boolean', 'array', 'object'})
# All control tokens of the models' templates are spelled with them.
_BRACKETS = str.maketrans('<>', '\u2039\u203a')


def card(server: str, tool: Mapping[str, Any]) -> base.Card:
  """Returns the card of a tool.

  Args:
    server: its server's name.
    tool: "name", "description" and JSON "schema" of the arguments, as the server
      says them.
  """
  name = re.sub(r'\W', '_', f'{server}_{tool["name"]}', flags=re.ASCII)[:64]
  schema = tool['schema']
  fields = schema.get('properties')
  required = schema.get('required')
  arguments = tuple(
      base.Argument(
          name=_plain(field, 64),
          description=_description(said if isinstance(said, dict) else {}),
          type=_type(said if isinstance(said, dict) else {}),
          required=field in required if isinstance(required, list) else False,
      )
      for field, said in (fields.items() if isinstance(fields, dict) else ())
  )
  shown = ', '.join(f'{a.name}=...' for a in arguments if a.required)
  return base.Card(
      name=name,
      purpose=_plain(tool['description'], _LONGEST_PURPOSE)
      or f'The tool {_plain(tool["name"], 64)} of {server}.',
      arguments=arguments,
      examples=(f'execution = tool.execute({shown})',),
      limits=f'Of the MCP server {server}.',
  )


def _type(schema: Mapping[str, Any]) -> str:
  """Returns a schema's type; 'any' where it allows several."""
  said = schema.get('type')
  kinds = said if isinstance(said, list) else [said]
  if said is None:
    options = schema.get('anyOf') or schema.get('oneOf') or ()
    kinds = [o.get('type') for o in options if isinstance(o, dict)]
    if not kinds and isinstance(schema.get('enum'), list):
      kinds = ['string' if isinstance(v, str) else None for v in schema['enum']]
  kinds = {k for k in kinds if k != 'null'}
  if len(kinds) == 1 and kinds <= _TYPES:
    return kinds.pop()
  return 'any'


def _description(schema: Mapping[str, Any]) -> str:
  """Returns what a field is for, and what it may be."""
  parts = [str(schema.get('description') or schema.get('title') or '')]
  if isinstance(schema.get('enum'), list):
    parts.append(f'one of {json.dumps(schema["enum"], ensure_ascii=False)}')
  if schema.get('default') is not None:
    parts.append(f'by default {json.dumps(schema["default"])}')
  return _plain('; '.join(filter(None, parts)), _LONGEST_DESCRIPTION)


def _plain(text: str, most: int) -> str:
  """Returns a server's words as one line that spells no control token."""
  line = ' '.join(str(text).translate(_BRACKETS).split())
  line = line.encode('utf-8', 'replace').decode()
  return line if len(line) <= most else f'{line[: most - 4]} ...'


def text(result: Any) -> str:
  """Returns a result as text; what is no text is named, and left out."""
  parts: list[str] = []
  for block in result.content:
    if block.type == 'text':
      parts.append(block.text)
    elif block.type == 'resource' and getattr(block.resource, 'text', None):
      parts.append(block.resource.text)
    elif block.type == 'resource_link':
      parts.append(f'[a resource: {block.uri}]')
    else:
      parts.append(f'[{block.type} left out]')
  if not parts and result.structured_content is not None:
    parts.append(json.dumps(result.structured_content, ensure_ascii=False))
  return '\n'.join(parts).strip()
