"""The `web_search` tool: what a search engine says, with its sources."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol

import httpx

from agentflow_jax.agents.tools import base
from agentflow_jax.agents.tools.web import web_client, web_text

_MAX_QUERY_CHARS = 400


@dataclasses.dataclass(frozen=True)
class Hit:
  """A source: its page, and what the engine shows of it ('' for nothing)."""

  url: str
  title: str
  text: str = ''


@dataclasses.dataclass(frozen=True)
class Found:
  """What an engine said.

  Attributes:
    hits: sources, best first.
    answer: a text that the engine itself wrote, as pieces with the indices of
      the hits that each rests on; none from an engine that only lists pages.
  """

  hits: tuple[Hit, ...]
  answer: tuple[tuple[str, tuple[int, ...]], ...] = ()


class Provider(Protocol):
  """A search engine; `engines` has some."""

  version: str

  async def search(
    self, client: web_client.WebClient, query: str, results: int
  ) -> Found:
    """Asks it. Raises FetchFailed where it cannot be asked or understood."""
    ...


def make(
  client: web_client.WebClient,
  provider: Provider,
  *,
  top_k: int = 5,
  max_chars: int = 2000,
  timeout: float = 90.0,
) -> base.Tool:
  """Makes the tool.

  Args:
    client: client that asks; its maker closes it.
    provider: the engine.
    top_k: largest number of sources that a call returns.
    max_chars: largest number of characters of the engine's own text, and of each
      source.
    timeout: seconds after which the rollout gives a call up.
  """

  async def call(arguments: Mapping[str, Any]) -> str:
    query = arguments['query'].strip()
    if not query:
      raise base.BadArguments('the query is empty')
    if len(query) > _MAX_QUERY_CHARS:
      raise base.BadArguments(
        f'the query has {len(query)} characters; {_MAX_QUERY_CHARS} at most'
      )
    try:
      found = await provider.search(client, query, top_k)
    except web_client.FetchFailed as error:
      raise base.ToolUnreachable(f'web_search: {error}') from error
    return _render(client, found, top_k, max_chars)

  return base.Tool(
    card=_card(top_k, max_chars),
    call=call,
    timeout=timeout,
    version=f'web_search 1 {provider.version} {top_k} {max_chars}',
  )


def _render(client, found: Found, top_k: int, max_chars: int) -> str:
  """Returns what may be shown: nothing that rests on a blocked host."""
  blocked = {
    i
    for i, hit in enumerate(found.hits)
    # Grounding gives a page's host as its title.
    if client.is_blocked(_host(hit.url)) or client.is_blocked(hit.title)
  }
  base.count('web_blocked_hits', len(blocked))
  pieces: list[str] = []
  for text, sources in found.answer:
    if blocked.intersection(sources):
      base.count('web_blocked_pieces')
    else:
      pieces.append(text)
  shown: list[tuple[str, str]] = []
  answer = ' '.join(''.join(pieces).split())
  if answer:
    shown.append(('the search engine', _cut(answer, max_chars)))
  kept = [h for i, h in enumerate(found.hits) if i not in blocked]
  for hit in kept[:top_k]:
    shown.append((_cut(f'{hit.title} ({hit.url})', 500), _cut(hit.text, max_chars)))
  return web_text.render(shown) if shown else 'The search found nothing.'


def _host(url: str) -> str:
  try:
    return web_client.host_of(httpx.URL(url))
  except (httpx.InvalidURL, ValueError):
    return ''


def _cut(text: str, most: int) -> str:
  return text if len(text) <= most else f'{text[: max(0, most - 4)]} ...'


def _card(top_k: int, max_chars: int) -> base.Card:
  return base.Card(
    name='web_search',
    purpose='Asks a search engine of the web, for what is recent or rare.',
    arguments=(base.Argument('query', 'a question, or words to look for'),),
    examples=('execution = tool.execute(query="who won the Abel Prize in 2024")',),
    limits=(f'At most {top_k} sources; texts are cut at {max_chars} characters.'),
  )
