"""An endpoint of agents over a model that needs no weights, for tests."""

import asyncio
import collections
import contextlib
import socket
import types

from agentflow_jax import records
from agentflow_jax.agents import language_model
from agentflow_jax.assembly import engine_model
from agentflow_jax.serving import agent_host, agent_listener

WORDS = 12  # Tokens of a response.
SLOW = 'slowly'  # What a prompt says whose response ends when it is released.


class KeyedModel(engine_model.EngineModel):
  """Says text that its key and its prompt name, piece by piece.

  Attributes:
    asked: (prompt ids, sampling, key) of each response that it has begun.
    pause: time between two pieces [s].
    released: event by query that a slow response waits for behind its first piece.
  """

  is_closed = False

  def __init__(self, tokenizer):
    shapes = types.SimpleNamespace(max_prompt_tokens=8000, max_new_tokens=400)
    super().__init__(types.SimpleNamespace(config=shapes), tokenizer)
    self.asked, self.pause = [], 0.0
    self.released = collections.defaultdict(asyncio.Event)

  async def sample(self, prompt_ids, sampling, key, on_ids=None, thinking=False):
    self.asked.append((tuple(prompt_ids), sampling, key))
    ids = self.tokenizer.encode(f'{key.words()[0]:012}')[:WORDS]
    for end in range(1, len(ids) + 1, 3):
      await asyncio.sleep(self.pause)
      if on_ids is not None:
        on_ids(ids[:end])
      if end == 1 and SLOW in self.tokenizer.decode(prompt_ids):
        await self.released[key.query].wait()
    language_model.spend(0.001)
    logprobs = tuple(-(i % 7) / 8 for i in ids)
    return records.Completion(
      self.tokenizer.decode(ids), tuple(prompt_ids), tuple(ids), logprobs
    )


@contextlib.asynccontextmanager
async def endpoint(models, sampling='run', command=None, max_new_tokens=64, **kwargs):
  """Serves models to agents in this event loop; yields the host."""
  with socket.create_server(('127.0.0.1', 0), backlog=512) as listener:
    url = f'http://127.0.0.1:{listener.getsockname()[1]}'
    most = dict.fromkeys(models, max_new_tokens)
    host = agent_host.AgentHost(
      models, url, sampling, records.SamplingSpec(), most, command, **kwargs
    )
    async with agent_listener.listening(host, listener):
      yield host
