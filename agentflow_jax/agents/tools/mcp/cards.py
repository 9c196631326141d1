"""Cards of MCP servers' tools, and their results as text.

What a server says of its tools is untrusted and stands in prompts: it is
shortened, and spells no control token.
"""

import json
import re
import types
from collections.abc import Iterable, Mapping
from typing import Any

from agentflow_jax.agents.tools import base, calls, json_schema

_LONGEST_PURPOSE = 500
_LONGEST_DESCRIPTION = 200
_LONGEST_NAME = 128
_INVISIBLE = re.compile(r'[\s\u00ad\u200b-\u200f\u2060\ufeff]+')
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
  schema = json_schema.Schema(tool['schema'], tool['schema'])
  fields, required = schema.properties()
  arguments = tuple(
    base.Argument(
      name=shown,
      description=_description(fields[field]),
      type=fields[field].kind(),
      required=field in required,
      schema=fields[field],
    )
    for shown, field in names(tool['schema']).items()
  )
  example = calls.example(a.name for a in arguments if a.required)
  return base.Card(
    name=name,
    purpose=_plain(tool['description'], _LONGEST_PURPOSE)
    or f'The tool {_plain(tool["name"], 64)} of {server}.',
    arguments=arguments,
    examples=(example,),
    limits=f'Of the MCP server {server}.',
  )


def names(schema: Mapping[str, Any]) -> dict[str, str]:
  """Returns each argument's name on the card -> its name at the server.

  They differ where a server's name spells a control token or is very long.
  """
  fields, _ = json_schema.Schema(schema, schema).properties()
  found: dict[str, str] = {}
  for field in fields:
    shown = plain = _line(field)[:_LONGEST_NAME]
    number = 1
    while shown in found:
      number += 1
      shown = f'{plain}_{number}'
    found[shown] = field
  return found


def _description(schema: json_schema.Schema) -> str:
  """Returns what a field is for, and what it may be."""
  said = schema.said if isinstance(schema.said, dict) else {}
  parts = [str(said.get('description') or said.get('title') or '')]
  shape = schema.shape()
  # The card shows the type already.
  if shape != schema.kind():
    parts.append(shape)
  if said.get('default') is not None:
    parts.append(f'by default {json.dumps(said["default"], ensure_ascii=False)}')
  return _plain('; '.join(filter(None, parts)), _LONGEST_DESCRIPTION)


def _line(text: str) -> str:
  """Returns a server's words as one line that spells no control token."""
  line = ' '.join(str(text).translate(_BRACKETS).split())
  return line.encode('utf-8', 'replace').decode()


def _plain(text: str, most: int) -> str:
  """Returns a server's words as one line, cut where there are too many."""
  line = _line(text)
  return line if len(line) <= most else f'{line[: most - 4]} ...'


def text(result: Any) -> str:
  """Returns a result as text; other content is left out and named.

  The text blocks of a result repeat its structured content. Where they say
  nothing, the structured content is the text.
  """
  blocks = [_block(block) for block in result.content or ()]
  parts = [said for said, _ in blocks if not _is_blank(said)]
  structured = _field(result, 'structured_content')
  if structured is not None and not any(
    is_text and not _is_blank(said) for said, is_text in blocks
  ):
    parts.insert(0, json.dumps(structured, ensure_ascii=False))
  return '\n'.join(parts).strip()


def text_of_json(result: Mapping[str, Any]) -> str:
  """Returns the text of a result that came as JSON, see `text`."""
  blocks = result.get('content')
  return text(
    types.SimpleNamespace(
      content=[
        _block_of_json(block)
        for block in (blocks if isinstance(blocks, list) else ())
        if isinstance(block, dict)
      ],
      structured_content=result.get(
        'structuredContent', result.get('structured_content')
      ),
    )
  )


def _block_of_json(block: Mapping[str, Any]) -> types.SimpleNamespace:
  """Returns a block of a result; what is no text in it counts as absent."""
  resource = block.get('resource')
  fields = {k: v for k, v in block.items() if isinstance(k, str)} | {
    'type': str(block.get('type', '')),
    'text': block['text'] if isinstance(block.get('text'), str) else None,
    'resource': types.SimpleNamespace(
      **{
        k: v
        for k, v in (resource if isinstance(resource, dict) else {}).items()
        if isinstance(v, str)
      }
    ),
  }
  return types.SimpleNamespace(**fields)


def shown_names(names: Iterable[str]) -> dict[str, str]:
  """Returns the name of each tool on its card -> its name at the server.

  They differ where a server's name is not made of letters, digits and underscores, is
  very long, or is one that another tool has on its card already.
  """
  found: dict[str, str] = {}
  for name in names:
    shown = plain = re.sub(r'\W', '_', name, flags=re.ASCII)[:64] or 'tool'
    number = 1
    while shown in found:
      number += 1
      shown = f'{plain}_{number}'
    found[shown] = name
  return found


def _is_blank(text: str) -> bool:
  """Returns whether a text shows nothing: white space, characters of no width."""
  return not _INVISIBLE.sub('', text)


def is_error(result: Any) -> bool:
  """Says whether a result reports that the call failed."""
  return bool(_field(result, 'is_error'))


def _block(block: Any) -> tuple[str, bool]:
  """Returns a text block's text and True, or another block's name and False."""
  if block.type == 'text':
    return block.text or '', True
  if block.type == 'resource':
    text_of = getattr(block.resource, 'text', None)
    if text_of and text_of.strip():
      return text_of, True
    return f'[resource left out: {_resource(block.resource)}]', False
  if block.type == 'resource_link':
    return f'[a resource: {_resource(block)}]', False
  return f'[{block.type} left out]', False


def _resource(resource: Any) -> str:
  """Returns a resource's address and what else is known of it, in one line."""
  known = [
    getattr(resource, 'uri', None),
    getattr(resource, 'title', None) or getattr(resource, 'name', None),
    getattr(resource, 'description', None),
    _field(resource, 'mime_type'),
  ]
  return _plain(', '.join(str(k) for k in known if k), _LONGEST_PURPOSE)


def _field(said: Any, name: str) -> Any:
  """Returns a field; versions of the SDK spell it is_error or isError."""
  first, *rest = name.split('_')
  camel = first + ''.join(part.capitalize() for part in rest)
  found = getattr(said, name, None)
  return getattr(said, camel, None) if found is None else found
