"""The `wikipedia` tool: a search in Wikipedia, and passages that match.

Speaks MediaWiki's API (`list=search`, then `prop=extracts` of what was found).
"""

import asyncio
import re
import urllib.parse
from collections.abc import Mapping
from typing import Any

from agentflow_jax.agents.tools import base
from agentflow_jax.agents.tools.web import web_client, web_text

BASE_URL = 'https://en.wikipedia.org'
_MAX_QUERY_CHARS = 300  # What MediaWiki's search takes.
_HEADING = re.compile(r'^=+\s*(.*?)\s*=+$', re.MULTILINE)
# Errors of the API that another moment may not have.
_BUSY = frozenset({'maxlag', 'ratelimited', 'readonly', 'internal_api_error'})


def make(
  client: web_client.WebClient,
  *,
  base_url: str = BASE_URL,
  pages: int = 3,
  top_k: int = 3,
  max_chars: int = 1000,
  timeout: float = 90.0,
) -> base.Tool:
  """Makes the tool.

  Args:
    client: client that asks; its maker closes it.
    base_url: address of a MediaWiki; its API is at /w/api.php.
    pages: number of articles that a call reads.
    top_k: largest number of passages that it returns, from all articles together.
    max_chars: largest number of characters of one passage.
    timeout: seconds after which the rollout gives a call up.
  """
  api = f'{base_url.rstrip("/")}/w/api.php'

  async def call(arguments: Mapping[str, Any]) -> str:
    query = arguments['query'].strip()
    if not query:
      raise base.BadArguments('the query is empty')
    if len(query) > _MAX_QUERY_CHARS:
      raise base.BadArguments(
        f'the query has {len(query)} characters; {_MAX_QUERY_CHARS} at most'
      )
    try:
      found = await _ask(
        client,
        api,
        {
          'action': 'query',
          'list': 'search',
          'srsearch': query,
          'srlimit': str(pages),
          'srnamespace': '0',
        },
      )
      ids = [hit['pageid'] for hit in found.get('search', ())]
      articles = await _together(_read(client, api, i) for i in ids)
    except web_client.FetchFailed as error:
      raise base.ToolUnreachable(f'wikipedia: {error}') from error
    except (LookupError, TypeError, AttributeError) as error:
      raise base.ToolUnreachable(
        f'wikipedia: {api} gave what is no answer of MediaWiki: {error!r}'
      ) from error
    return await asyncio.to_thread(
      _passages, base_url, articles, query, top_k, max_chars
    )

  return base.Tool(
    card=_card(top_k, max_chars),
    call=call,
    timeout=timeout,
    version=f'wikipedia 1 {base_url} {pages} {top_k} {max_chars}',
  )


async def _ask(
  client: web_client.WebClient, api: str, params: Mapping[str, str]
) -> Mapping[str, Any]:
  """Returns what the API answers to a query."""
  response = await client.get(
    api, params={'format': 'json', 'formatversion': '2', **params}
  )
  said = response.json()
  if not isinstance(said, dict):
    raise web_client.FetchFailed(f'{api} gave no object')
  if 'error' in said:
    error = said['error'] if isinstance(said['error'], dict) else {}
    reason = f'{error.get("code")}: {str(error.get("info"))[:200]}'
    if error.get('code') in _BUSY:
      raise base.ToolUnreachable(f'{api}: {reason}')
    raise base.BadArguments(f'Wikipedia refuses the query: {reason}')
  return said.get('query') or {}


async def _read(
  client: web_client.WebClient, api: str, page_id: int
) -> tuple[str, str]:
  """Returns an article's title and text."""
  said = await _ask(
    client,
    api,
    {
      'action': 'query',
      'prop': 'extracts',
      'explaintext': '1',
      'pageids': str(page_id),
      'redirects': '1',
    },
  )
  page = said['pages'][0]
  return page['title'], page.get('extract') or ''


async def _together(coroutines) -> list[Any]:
  """Runs all at once; the first error is raised as it is, and ends the rest."""
  tasks = [asyncio.ensure_future(c) for c in coroutines]
  try:
    return [await task for task in tasks]
  finally:
    for task in tasks:
      task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _passages(base_url, articles, query, top_k, max_chars) -> str:
  """Ranks the passages of all articles together."""
  # A passage is told by its article: its own words rarely repeat the title.
  marked = {}
  for title, text in articles:
    text = _HEADING.sub(r'\1.', text)
    for part in web_text.best_parts(text, query, top_k, max_chars):
      if part.strip():
        marked.setdefault(f'{title}: {part}', title)
  if not marked:
    return 'No article has any of these words.'
  best = web_text.rank(list(marked), query, top_k)
  found = web_text.render(
    [(f'{base_url.rstrip("/")}/wiki/{_name(marked[p])}', p) for p in best]
  )
  return found + ''.join(web_text.unread(text) for _, text in articles)


def _name(title: str) -> str:
  return urllib.parse.quote(title.replace(' ', '_'), safe="(),'")


def _card(top_k: int, max_chars: int) -> base.Card:
  return base.Card(
    name='wikipedia',
    purpose='Searches Wikipedia and returns passages that match a query.',
    arguments=(base.Argument('query', 'what to look for'),),
    examples=('execution = tool.execute(query="tallest building in Oslo")',),
    limits=f'At most {top_k} passages of {max_chars} characters.',
  )
