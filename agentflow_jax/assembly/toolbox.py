"""Makes a run's tools from its config."""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Mapping

from agentflow_jax.agents import language_model, own_functions
from agentflow_jax.agents import recording as recording_lib
from agentflow_jax.agents.endpoints import client as client_lib
from agentflow_jax.agents.tools import base, generalist, own_tool
from agentflow_jax.agents.tools.mcp import servers
from agentflow_jax.agents.tools.python import python_tool, sandbox
from agentflow_jax.agents.tools.search import passages, reranker, search_tool
from agentflow_jax.agents.tools.web import engines, web_client, web_page
from agentflow_jax.agents.tools.web import web_search, web_text, wikipedia
from agentflow_jax.assembly import endpoints, task_sets
from agentflow_jax.config import own_code, schema


@dataclasses.dataclass
class Toolbox:
  """Tools in the making.

  Attributes:
    settings: settings of the tools.
    tasks: task set, which may bring a corpus.
    processes: number of processes that share the limits of a host.
    recording: recording of the answers of tools, or None; one that replays asks no
      host.
    corpus: corpus that `search` reads, once it is made.
    clients: clients of endpoints that tools ask; the maker of the tools closes them.
    needs_one: whether there has to be a tool; not where worlds bring their own.
  """

  settings: schema.ToolsConfig
  tasks: task_sets.TaskSet
  processes: int = 1
  recording: recording_lib.Recording | None = None
  corpus: passages.Corpus | None = None
  clients: list[client_lib.EndpointClient] = dataclasses.field(default_factory=list)
  needs_one: bool = True
  _client: web_client.WebClient | None = None

  def make(self) -> Mapping[str, base.Tool | None]:
    """Returns the enabled tools by name, in order.

    The generalist is None until `completed` has its model.

    Raises:
      ConfigError, CorpusError, ToolUnavailable: name the remedy.
    """
    kinds: Mapping[str, Callable[[], base.Tool | None]] = {
      'search': self._search,
      'python': self._python,
      'generalist': lambda: None,
      'wikipedia': self._wikipedia,
      'web_page': self._web_page,
      'web_search': self._web_search,
    }
    made = {}
    for name in self.settings.enabled:
      if name not in kinds:
        raise schema.ConfigError(
          f'agent.tools.enabled: unknown tool {name!r}; there are {", ".join(kinds)}'
        )
      made[name] = kinds[name]()
    for said in self.settings.own:
      tool = self._own(said)
      if tool.card.name in made or tool.card.name in kinds:
        raise schema.ConfigError(
          f'agent.tools.own: {said}: there is a tool {tool.card.name!r} already;'
          ' give the function another name'
        )
      made[tool.card.name] = tool
    for said in self.settings.mcp:
      made |= self._mcp(said, taken=made)
    if not made and self.needs_one:
      raise schema.ConfigError('agent.tools.enabled is empty')
    return made

  def completed(
    self,
    made: Mapping[str, base.Tool | None],
    models: Mapping[str, language_model.LanguageModel],
  ) -> Mapping[str, base.Tool]:
    """Returns the tools of `make` with the generalist among them.

    Args:
      made: tools by name, as `make` returns them.
      models: language models by backend.
    """
    role = self.settings.generalist
    return {
      name: tool or generalist.make(models[role.backend], role.sampling)
      for name, tool in made.items()
    }

  def _search(self) -> base.Tool:
    path = self.settings.corpus or self.tasks.corpus
    if not path:
      raise schema.ConfigError(
        'agent.tools: search needs agent.tools.corpus (a directory or a JSONL file)'
      )
    kept, chars = self.settings.search_index, self.settings.search_passage_chars
    default = type(self.settings)().search_passage_chars
    if chars < 0:
      raise schema.ConfigError(
        f'agent.tools.search_passage_chars must not be negative: {chars}'
      )
    if chars != default and os.path.isfile(path):
      raise schema.ConfigError(
        'agent.tools.search_passage_chars is only for a corpus that is a'
        f' directory, and {path} is none'
      )
    if not kept:
      self.corpus = passages.load_corpus(path, chars)
    try:
      return search_tool.make(
        self.corpus or path,
        top_k=self.settings.search_results,
        max_chars=max(chars, default),
        index_directory=kept,
        ranker=self._ranker(),
        candidates=self.settings.search_candidates,
      )
    except passages.CorpusError:
      raise
    except ValueError as e:
      raise schema.ConfigError(f'agent.tools.search: {e}') from e

  def _ranker(self) -> reranker.Ranker | None:
    settings = self.settings
    where = settings.search_embeddings
    if not (where.base_url or where.preset):
      return None
    client = endpoints.connect_unrecorded(
      where,
      'agent.tools.search_embeddings',
      self.recording is not None and self.recording.replays,
      self.processes,
    )
    self.clients.append(client)
    return reranker.Ranker(
      client,
      query_prefix=settings.search_query_prefix,
      passage_prefix=settings.search_passage_prefix,
    )

  def _python(self) -> base.Tool:
    return python_tool.make(
      self.settings.python_backend,
      sandbox.Limits(wall_seconds=self.settings.python_seconds),
      concurrency=self.settings.python_concurrency or None,
    )

  def _wikipedia(self) -> base.Tool:
    return self._closing(
      wikipedia.make(
        self._web(),
        base_url=self.settings.wikipedia_url,
        top_k=self.settings.web_results,
      )
    )

  def _web_page(self) -> base.Tool:
    return self._closing(
      web_page.make(self._web(), web_text.Reader(), top_k=self.settings.web_results)
    )

  def _web_search(self) -> base.Tool:
    settings = self.settings
    provider = engines.make(
      settings.web_search_engine,
      key_variable=settings.web_search_key_variable,
      base_url=settings.web_search_url,
      model=settings.web_search_model,
      needs_key=self.recording is None or not self.recording.replays,
    )
    return self._closing(
      web_search.make(self._web(), provider, top_k=settings.web_results)
    )

  def _own(self, said: str) -> base.Tool:
    name = own_code.parse(said, 'agent.tools.own')
    try:
      return own_tool.make(
        name.path,
        name.name,
        seconds=self.settings.own_seconds,
        processes=self.settings.own_concurrency,
      )
    except own_functions.LoadError as e:
      raise schema.ConfigError(f'agent.tools.own: {e}') from e

  def _mcp(self, said: str, taken: Mapping[str, base.Tool]) -> Mapping[str, base.Tool]:
    """Returns the tools of an MCP server that are asked for."""
    settings = self.settings
    server = servers.parse(said, settings.mcp_environment, settings.mcp_token_variable)
    if self.recording is None:
      described = servers.describe(server)
    else:
      described = self.recording.fact(
        f'tools of {said}', lambda: servers.describe(server)
      )
    tools = {
      tool.card.name: tool
      for tool in servers.make(server, described, timeout=settings.mcp_seconds)
    }
    if settings.mcp_tools:
      tools = {n: t for n, t in tools.items() if n in settings.mcp_tools}
    if not tools or taken.keys() & tools.keys():
      there = ', '.join(d['name'] for d in described) or 'none'
      raise schema.ConfigError(
        f'agent.tools.mcp: {server.name} adds no tool, or one whose name there'
        f' is: it has {there}; agent.tools.mcp_tools takes NAME_TOOL'
      )
    return tools

  def _web(self) -> web_client.WebClient:
    """One client for all: a host's limits are those of all tools together."""
    if self._client is None:
      web = self.settings.web
      self._client = web_client.WebClient(
        dataclasses.replace(
          web,
          concurrency=max(1, web.concurrency // self.processes),
          requests_per_minute=web.requests_per_minute / self.processes,
        )
      )
    return self._client

  def _closing(self, tool: base.Tool) -> base.Tool:
    """Closes the client with any tool that uses it; twice is no harm."""
    client = self._web()

    async def close():
      async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(client.aclose)
        if tool.close is not None:
          await tool.close()

    return dataclasses.replace(tool, close=close)
