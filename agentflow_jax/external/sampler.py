"""A sampler whose work is done by servers of vLLM or SGLang.

It takes the place of the engine in this process. A server is asked only after it was
given the newest weights and proved to have them, so that no response spans two
versions; one that fails is left out until it was given them again.
"""

import asyncio
import collections
import threading
import time

import numpy as np

from agentflow_jax.external import calls, fleet as fleet_lib, wire
from agentflow_jax.inference import api

# Attempts at a request beyond one for each server.
_FURTHER_ATTEMPTS = 2


class ExternalSampler:
  """Samples on servers that were given weights; `aclose` it.

  It has what assembly.engine_model asks of an engine: `generate`, `config`,
  `is_closed`, `params_version` and `stats`.

  Attributes:
    fleet: the servers.
    config: limits of a request: max_prompt_tokens, max_new_tokens, max_stop_ids.
  """

  def __init__(
    self,
    fleet: fleet_lib.Fleet,
    config: api.EngineConfig,
    *,
    vocab_size: int,
    max_positions: int,
  ):
    """Sends no request yet.

    Args:
      fleet: the servers.
      config: limits of a request.
      vocab_size: ids lie in [0, vocab_size).
      max_positions: the model's context [tokens].
    """
    self.fleet, self.config = fleet, config
    self._vocab_size, self._max_positions = vocab_size, max_positions
    self._state = threading.Lock()  # Guards the totals.
    self._totals: collections.Counter[str] = collections.Counter()
    self._reviving: asyncio.Task | None = None
    self._is_closed = False

  @property
  def is_closed(self) -> bool:
    """Whether nothing will be sampled any more."""
    return self._is_closed

  @property
  def params_version(self) -> int:
    """Version of the weights that are sampled from; -1 before the first ones."""
    return self.fleet.version

  def stats(self) -> api.EngineStats:
    """Totals of requests and tokens; what servers do inside is not known."""
    running = self.fleet.running
    with self._state:
      return api.EngineStats(running=running, **self._totals)

  async def generate(self, request: api.Request) -> api.Result:
    """Samples one response.

    A server that fails is left out, and another one is asked: the response is then
    that of one server alone.

    Raises:
      api.PromptTooLong: as an engine does.
      api.EngineError: no server is left, or none came back in time.
      ValueError: the request is wrong.
    """
    api.check_request(
      request,
      self.config,
      vocab_size=self._vocab_size,
      max_positions=self._max_positions,
    )
    began = time.monotonic()
    self._count(requests=1, prompt_tokens=len(request.prompt_ids))
    try:
      result = await self._sampled(request, began)
    except asyncio.CancelledError:
      self._count(cancelled=1)
      raise
    except api.EngineError:
      self._count(failed=1)
      raise
    finally:
      if request.on_end is not None:
        spent = time.monotonic() - began
        # A server's queue cannot be told from its work: none counts as sampling.
        request.on_end(api.Timing(0.0, spent, spent))
    self._count(completed=1, response_tokens=len(result.response_ids))
    return result

  async def _sampled(self, request: api.Request, began: float) -> api.Result:
    fleet, reason = self.fleet, ''
    for _ in range(len(fleet) + _FURTHER_ATTEMPTS):
      server, given = await self._chosen(request.group, began)
      sent = time.monotonic()
      call = fleet.server.sample(request, given.model, fleet.settings.max_kept)
      try:
        answer = await server.wire.ask(call, fleet.settings.timeout_seconds)
        sampled = fleet.server.read_sample(answer, request)
        calls.check_sampled(sampled, request, self._vocab_size)
        if not given.is_adapter and sampled.versions not in ((), (given.label,)):
          raise calls.BadAnswer(
            f'weights {" and ".join(sampled.versions)[:200]} sampled, and {given.label}'
            ' were to'
          )
        keep, ending = _kept(request, sampled)
      except (wire.Unavailable, wire.Refused, calls.BadAnswer) as e:
        if isinstance(e, wire.Refused) and e.of_request:
          raise api.EngineError(str(e)) from e
        reason = str(e)
        fleet.drop(server, reason)
        self._revive()
        continue
      finally:
        fleet.give_back(server)
      spent = time.monotonic() - sent
      return api.Result(
        response_ids=sampled.ids[:keep],
        logprobs=sampled.logprobs[:keep],
        finish_reason=ending,
        params_version=given.version,
        queue_seconds=sent - began,
        model_seconds=spent,
        kept=None
        if sampled.kept is None or not request.sampling.truncates
        else tuple(np.array(ids, np.int32) for ids in sampled.kept[:keep]),
        stalled_seconds=spent,
      )
    raise api.EngineError(f'every attempt failed, the last one with: {reason}')

  async def _chosen(
    self, group: str, began: float
  ) -> tuple[fleet_lib.Server, fleet_lib.Given]:
    """Returns a server that counts one more request, and what it samples from."""
    while True:
      if self._is_closed:
        raise api.EngineClosed('the sampler was closed')
      if self.fleet.why_not():
        self._revive()
      if (taken := self.fleet.take(group)) is not None:
        return taken
      live = self.fleet.live
      if not live:
        if time.monotonic() - began > self.fleet.settings.patience_seconds:
          raise api.EngineError(f'no server is left ({self.fleet.why_not()})')
      await asyncio.sleep(0.01 if live else 0.1)

  def _revive(self) -> None:
    """Begins to bring servers back, from the event loop that asks."""
    if self._reviving is None or self._reviving.done():
      self._reviving = asyncio.create_task(self._bring_back())

  async def _bring_back(self) -> None:
    while not self._is_closed:
      await asyncio.sleep(self.fleet.settings.retry_seconds)
      await asyncio.to_thread(self.fleet.try_again)
      if not self.fleet.why_not():
        return

  def _count(self, **counts: int) -> None:
    with self._state:
      self._totals.update(counts)

  async def aclose(self) -> None:
    """Closes connections; requests that wait end in EngineClosed."""
    self._is_closed = True
    if self._reviving is not None:
      self._reviving.cancel()
    await self.fleet.aclose()


def _kept(request: api.Request, sampled: calls.Sampled) -> tuple[int, str]:
  """Returns how many ids to keep, and the finish reason.

  Raises:
    BadAnswer: the response ended for no reason that the request gave.
    EngineError: the request's stop_fn failed.
  """
  ids = sampled.ids
  for token in ids[:-1]:
    if token in request.stop_ids:
      raise calls.BadAnswer(f'the response goes on behind the stop id {token}')
  try:
    keep = request.stop_fn(ids) if request.stop_fn is not None else None
  # Boundary: stop_fn is the caller's own function, and may be a tokenizer whose
  # panics are no Exception.
  except BaseException as e:
    raise api.EngineError(f'the stop_fn of a request failed: {e}') from e
  if keep is not None:
    return keep, 'stop'
  if ids[-1] in request.stop_ids:
    return len(ids), 'stop'
  if not sampled.is_cut:
    raise calls.BadAnswer(f'the response ended after {len(ids)} tokens, without a stop')
  return len(ids), 'length'
