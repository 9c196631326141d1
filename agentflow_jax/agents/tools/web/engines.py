"""Search engines behind the `web_search` tool.

  gemini  Google's grounding, as AgentFlow uses it: a model searches and writes
          an answer whose pieces cite pages (POST models/M:generateContent with
          the tool google_search)
  brave   Brave's Search API: a list of pages (GET /res/v1/web/search)

Keys come from the environment and are sent to the engine's own host only.
"""

import asyncio
import html
import os
import re
from collections.abc import Mapping, Sequence

import httpx

from agentflow_jax.agents.tools import base
from agentflow_jax.agents.tools.web import web_client, web_search

_TAG = re.compile(r'</?\w+[^<>]*>')
# Google's grounding names a page by an address of its own that redirects.
_REDIRECTING = 'vertexaisearch.cloud.google.com'


class Gemini:
  """Google's grounding through the Gemini API.

  Args:
    key: key of the API.
    model: name of the model that searches and writes.
    base_url: address of the API.
    redirecting: host whose links are resolved to what they stand for.
  """

  def __init__(
    self,
    key: str,
    model: str = 'gemini-2.5-flash',
    base_url: str = 'https://generativelanguage.googleapis.com/v1beta',
    redirecting: str = _REDIRECTING,
  ):
    self._key, self._redirecting = key, redirecting
    self._url = f'{base_url.rstrip("/")}/models/{model}:generateContent'
    self.version = f'gemini {model}'

  async def search(
    self, client: web_client.WebClient, query: str, results: int
  ) -> web_search.Found:
    """See `web_search.Provider`."""
    del results  # It decides itself.
    response = await client.post(
      self._url,
      {
        'contents': [{'role': 'user', 'parts': [{'text': query}]}],
        'tools': [{'google_search': {}}],
      },
      {'x-goog-api-key': self._key},
    )
    said = response.json()
    try:
      candidate = said['candidates'][0]
      content = candidate.get('content') or {}
      text = ''.join(
        str(part['text'])
        for part in content.get('parts') or ()
        if part.get('text') and not part.get('thought')
      )
      grounding = candidate.get('groundingMetadata') or {}
      pages = [
        (str(chunk['web']['uri']), str(chunk['web'].get('title', '')))
        for chunk in grounding.get('groundingChunks') or ()
      ]
      spans = [
        (
          int(support['segment'].get('startIndex', 0)),
          int(support['segment']['endIndex']),
          tuple(int(i) for i in support.get('groundingChunkIndices') or ()),
        )
        for support in grounding.get('groundingSupports') or ()
      ]
    except (LookupError, TypeError, ValueError, AttributeError) as error:
      raise web_client.FetchFailed(
        f'{self._url} gave what is no answer of Gemini: {error!r}'
      ) from error
    urls = await asyncio.gather(*(self._page(client, url) for url, _ in pages))
    return web_search.Found(
      tuple(
        web_search.Hit(url, title) for url, (_, title) in zip(urls, pages, strict=True)
      ),
      tuple(_pieces(text, spans)),
    )

  async def _page(self, client: web_client.WebClient, url: str) -> str:
    """Returns the address that a link of Google's stands for."""
    try:
      if web_client.host_of(httpx.URL(url)) != self._redirecting:
        return url
      response = await client.get(url, follow=False)
      target = response.headers.get('location', '')
      return str(httpx.URL(url).join(target)) if target else url
    except (httpx.InvalidURL, ValueError, web_client.FetchFailed, base.BadArguments):
      return url  # A source whose address is not known is still a source.


class Brave:
  """Brave's Search API.

  Args:
    key: key of the API.
    base_url: address of the API.
  """

  version = 'brave'

  def __init__(self, key: str, base_url: str = 'https://api.search.brave.com/res/v1'):
    self._key = key
    self._url = f'{base_url.rstrip("/")}/web/search'

  async def search(
    self, client: web_client.WebClient, query: str, results: int
  ) -> web_search.Found:
    """See `web_search.Provider`."""
    response = await client.get(
      self._url,
      params={'q': query, 'count': str(min(results, 20))},
      headers={'X-Subscription-Token': self._key},
    )
    said = response.json()
    try:
      hits = tuple(
        web_search.Hit(
          str(hit['url']),
          _plain(str(hit.get('title', ''))),
          _plain(str(hit.get('description', ''))),
        )
        for hit in (said.get('web') or {}).get('results', ())
      )
    except (LookupError, TypeError, AttributeError) as error:
      raise web_client.FetchFailed(
        f'{self._url} gave what is no answer of Brave: {error!r}'
      ) from error
    return web_search.Found(hits)


# Name -> the engine, and the variable that usually holds its key.
PROVIDERS: Mapping[str, tuple[type, str]] = {
  'gemini': (Gemini, 'GEMINI_API_KEY'),
  'brave': (Brave, 'BRAVE_API_KEY'),
}


def make(
  name: str,
  *,
  key_variable: str = '',
  base_url: str = '',
  model: str = '',
  needs_key: bool = True,
) -> web_search.Provider:
  """Makes an engine by name.

  Args:
    name: name in PROVIDERS.
    key_variable: environment variable that holds the key; '' for the usual one.
    base_url: address of its API; '' for the usual one.
    model: model of an engine that has several; '' for the usual one.
    needs_key: whether a key is needed; False where nothing is going to be asked (in
      replay).

  Raises:
    base.ToolUnavailable: no such engine, or no key.
  """
  if name not in PROVIDERS:
    raise base.ToolUnavailable(
      f'no search engine {name!r}; there are {", ".join(PROVIDERS)}'
    )
  engine, usual = PROVIDERS[name]
  variable = key_variable or usual
  key = os.environ.get(variable, '').strip()
  if needs_key and not key:
    raise base.ToolUnavailable(
      f'web_search asks {name}, and the environment variable {variable} holds no key'
    )
  if not (key.isascii() and key.isprintable()):
    raise base.ToolUnavailable(f'{variable} holds what cannot be a key')
  more = {'base_url': base_url} if base_url else {}
  if model:
    if engine is not Gemini:
      raise base.ToolUnavailable(f'{name} has no models to choose from')
    more['model'] = model
  return engine(key, **more)


def _pieces(
  text: str, spans: Sequence[tuple[int, int, tuple[int, ...]]]
) -> list[tuple[str, tuple[int, ...]]]:
  """Cuts a text where what it rests on changes; spans count UTF-8 bytes."""
  data = text.encode()
  inside = [
    (max(0, start), min(end, len(data)), sources) for start, end, sources in spans
  ]
  cuts = sorted({0, len(data)} | {c for s, e, _ in inside for c in (s, e) if s < e})
  return [
    (
      data[a:b].decode(errors='replace'),
      tuple(
        sorted({i for s, e, sources in inside if s <= a and b <= e for i in sources})
      ),
    )
    for a, b in zip(cuts, cuts[1:])
  ]


def _plain(text: str) -> str:
  """Returns a text without the marks that engines put around found words."""
  return html.unescape(_TAG.sub('', text))
