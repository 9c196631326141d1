"""The `web_page` tool: a page of the web as text, as far as a query asks."""

import asyncio
from collections.abc import Mapping
from typing import Any

from agentflow_jax.agents import language_model
from agentflow_jax.agents.tools import base
from agentflow_jax.agents.tools.web import charsets, web_client, web_text

_PLAIN = frozenset(
  {
    'text/plain',
    'text/markdown',
    'text/csv',
    'application/json',
    'text/xml',
    'application/xml',
  }
)


def make(
  client: web_client.WebClient,
  reader: web_text.Reader,
  *,
  top_k: int = 3,
  max_chars: int = 1000,
  timeout: float = 90.0,
) -> base.Tool:
  """Makes the tool.

  Args:
    client: client that fetches pages; its maker closes it.
    reader: reader that makes text of HTML; closed with the tool.
    top_k: largest number of parts of a page that a call returns.
    max_chars: largest number of characters of one part.
    timeout: seconds after which the rollout gives a call up.
  """

  async def call(arguments: Mapping[str, Any]) -> str:
    url = arguments['url']
    try:
      response = await client.get(url)
      page = await _page(response, reader)
    except web_client.FetchFailed as error:
      if error.is_ours:
        raise base.ToolUnreachable(str(error)) from error
      # The planner chose the page, and can choose another one.
      raise base.BadArguments(str(error)) from error
    except web_text.Unreadable as error:
      raise base.BadArguments(str(error)) from error
    except language_model.Unreachable as error:
      raise base.ToolUnreachable(str(error)) from error
    parts = await asyncio.to_thread(
      web_text.best_parts, page.text, arguments.get('query', ''), top_k, max_chars
    )
    source = f'{page.title} ({response.url})' if page.title else response.url
    return web_text.render([(source, part) for part in parts]) + web_text.unread(
      page.text
    )

  return base.Tool(
    card=_card(top_k, max_chars),
    call=call,
    timeout=timeout,
    close=reader.aclose,
    version=f'web_page 2 {top_k} {max_chars}',
  )


async def _page(
  response: web_client.Response, reader: web_text.Reader
) -> web_text.Page:
  kind = response.content_type
  if kind in _PLAIN:
    text = charsets.decode(response.content, response.charset, kind)
    if not text.strip():
      raise web_text.Unreadable('the page holds no text')
    return web_text.Page('', text)
  if kind not in charsets.HTML:
    raise web_text.Unreadable(
      f'{response.url} is {kind}; only text and HTML can be read'
    )
  return await reader.read(response.content, response.charset, kind)


def _card(top_k: int, max_chars: int) -> base.Card:
  return base.Card(
    name='web_page',
    purpose='Reads one page of the web and returns the parts that match.',
    arguments=(
      base.Argument('url', 'the whole address, from http on'),
      base.Argument(
        'query',
        'words to look for on the page; without them, its beginning is returned',
        required=False,
      ),
    ),
    examples=(
      'execution = tool.execute(url="https://en.wikipedia.org/wiki/Kyoto",'
      ' query="population")',
    ),
    limits=(
      f'At most {top_k} parts of {max_chars} characters. It reads text and'
      ' HTML, fills in no forms, and finds no page whose address it is not'
      ' given.'
    ),
  )
