"""Sessions for agents that are not ours, and the tasks that their drivers take."""

import asyncio
import collections
import contextlib
import dataclasses
import secrets
from collections.abc import AsyncIterator, Mapping
from typing import Literal

from agentflow_jax import records
from agentflow_jax.agents import served_command, served_session
from agentflow_jax.assembly import engine_model


class Closed(Exception):
  """The run has ended; there are no more tasks."""


class AgentHost:
  """Implements agents.served_session.Host over the models of this process.

  Use it from one event loop.

  Args:
    models: models by the name that agents give: 'policy', and 'frozen' where it is
      served.
    url: address of the server.
    sampling: treatment of a client's own sampling settings, see
      config.schema.ServedConfig.
    agreed: sampling settings that a client may name even where they are treated as an
      error and where a greedy evaluation overrides them.
    max_new_tokens: longest response of each model [tokens].
    command: command that is run for each rollout; None where a driver takes tasks.
    takes_rewards: whether a driver may post rewards.
    key: key that clients of sessions must send; '' for none.

  Attributes:
    driver_key: key of the driver; '' where there is none. No agent is given it.
  """

  def __init__(
    self,
    models: Mapping[str, engine_model.EngineModel],
    url: str,
    sampling: Literal['run', 'refuse'],
    agreed: records.SamplingSpec,
    max_new_tokens: Mapping[str, int],
    command: served_command.Command | None = None,
    takes_rewards: bool = True,
    key: str = '',
  ):
    self.models, self.url, self.sampling = models, url, sampling
    self.agreed = agreed
    self.max_new_tokens, self.takes_rewards = max_new_tokens, takes_rewards
    self.key = key
    self.driver_key = '' if command else secrets.token_hex(24)
    self._command = command
    self._sessions: dict[str, served_session.Session] = {}
    self._waiting: collections.deque[served_session.Session] = collections.deque()
    self._news = asyncio.Condition()
    self._closed = False

  @contextlib.asynccontextmanager
  async def opened(
    self,
    task: records.Task,
    key: records.RequestKey,
    sampling: records.SamplingSpec,
    limits: served_session.Limits,
  ) -> AsyncIterator[served_session.Session]:
    """Offers a session, see Host."""
    session = served_session.Session(task, key, sampling, limits)
    self._sessions[session.id] = session
    running = None
    try:
      if self._command is not None:
        running = asyncio.create_task(self._run(self._command, session))
      else:
        session.waits_for_driver = True
        self._waiting.append(session)
        async with self._news:
          self._news.notify()
      yield session
    finally:
      session.close()
      del self._sessions[session.id]
      with contextlib.suppress(ValueError):
        self._waiting.remove(session)
      if running is not None:
        running.cancel()
        await asyncio.wait({running})

  def session(self, name: str) -> served_session.Session | None:
    """Returns an open session, or None where it has ended or never was."""
    return self._sessions.get(name)

  async def take(self, most: int) -> list[served_session.Session]:
    """Waits for a task that no driver has yet, and returns the sessions of such tasks.

    Args:
      most: largest number of them.

    Raises:
      Closed: there will be none.
    """
    async with self._news:
      await self._news.wait_for(lambda: self._waiting or self._closed)
      if self._closed:
        raise Closed
      taken = [self._waiting.popleft() for _ in range(min(most, len(self._waiting)))]
      for session in taken:
        session.waits_for_driver = False
      return taken

  def give_back(self, session: served_session.Session) -> None:
    """Offers a task again that no driver got."""
    if session.id in self._sessions:
      session.waits_for_driver = True
      self._waiting.appendleft(session)

  def counts(self) -> dict[str, int]:
    """Returns how many tasks wait for a driver, and how many sessions are open."""
    return {'waiting': len(self._waiting), 'open': len(self._sessions)}

  async def close(self) -> None:
    """Tells the drivers that wait that there are no more tasks."""
    self._closed = True
    async with self._news:
      self._news.notify_all()

  def base_url(self, session: served_session.Session) -> str:
    """Returns the address that an OpenAI-compatible client of a session needs."""
    return f'{self.url}/sessions/{session.id}/v1'

  async def _run(
    self, command: served_command.Command, session: served_session.Session
  ) -> None:
    variables = {
      'OPENAI_BASE_URL': self.base_url(session),
      'OPENAI_API_KEY': self.key or 'none',
      'AGENTFLOW_MODEL': 'policy',
      'AGENTFLOW_TASK_ID': session.task.id,
      'AGENTFLOW_QUERY': session.task.query,
      'AGENTFLOW_ANSWER_URL': f'{self.url}/sessions/{session.id}/answer',
    }
    outcome = await command.run(variables, session.task.query)
    with contextlib.suppress(served_session.Over):  # It posted its answer.
      session.finish(outcome)


class SessionModel:
  """A model as one request of a session asks it: what `app.answer` needs of a model.

  Args:
    session: session of the request.
    model: model that samples.
    is_frozen: whether it is the frozen model, whose sampling is the client's.
    is_chat: whether the prompt is a chat.
  """

  # The session bounds prompts, and remembers that it did.
  max_prompt_tokens = 1 << 40

  def __init__(
    self,
    session: served_session.Session,
    model: engine_model.EngineModel,
    is_frozen: bool,
    is_chat: bool,
  ):
    self.tokenizer, self.render = model.tokenizer, model.render
    self._session, self._model, self._is_frozen = session, model, is_frozen
    self._thinking = is_chat and model.tokenizer.opens_thought
    self._asked: list[served_session.Asked] = []

  async def sample(self, prompt_ids, sampling, key, on_ids=None):
    """Samples as EngineModel.sample; the session gives the key.

    Raises:
      Over, OutOfTurns, PromptTooLong, Unreachable: as Session.ask.
    """
    del key
    session, text = self._session, None
    if self._is_frozen:
      text = self.tokenizer.decode(prompt_ids)
    else:
      sampling = dataclasses.replace(
        session.sampling,
        max_new_tokens=sampling.max_new_tokens,
        stop=sampling.stop or session.sampling.stop,
      )

    def sample(key):
      return self._model.sample(prompt_ids, sampling, key, on_ids, self._thinking)

    asked = await session.ask(prompt_ids, sampling, sample, text)
    self._asked.append(asked)
    return asked.completion

  def deliver(self) -> None:
    """Notes that the client has the responses."""
    for asked in self._asked:
      self._session.deliver(asked)

  def lose(self) -> None:
    """Notes that the client left without the responses, unless it has them."""
    for asked in self._asked:
      if asked.state == 'under way':
        self._session.lose(asked)
