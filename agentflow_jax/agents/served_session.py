"""A session: what one rollout of an agent that is not ours asks for and comes to.

The agent runs in another process and knows only an OpenAI-compatible endpoint (room
serving). All requests that it makes for one rollout belong to one session, which
keeps what was sampled for it. Where requests are made side by side, their order is
decided by the clock, so nothing here depends on it: the randomness of a request, and
its place among the turns, follow from what was asked (contract 4).
"""

import asyncio
import collections
import contextlib
import dataclasses
import hashlib
import json
import secrets
import struct
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Literal, Protocol

from agentflow_jax import records
from agentflow_jax.agents import language_model

Sample = Callable[[records.RequestKey], Awaitable[records.Completion]]
_Status = records.Status


class Over(Exception):
  """The session has ended; the message says how."""


class OutOfTurns(Exception):
  """The rollout has used all of its turns."""


@dataclasses.dataclass(frozen=True)
class Outcome:
  """How an agent ended a session.

  Attributes:
    answer: answer of the agent.
    reward: reward that the driver of the agent posted; None to score the answer.
    failure: reason why the agent ended without an answer; '' where it did not.
  """

  answer: str = ''
  reward: float | None = None
  failure: str = ''


@dataclasses.dataclass(frozen=True)
class Limits:
  """Bounds on a session.

  Attributes:
    max_turns: largest number of responses of the policy.
    max_prompt_tokens: longest prompt of the policy [tokens].
    deadline_seconds: time limit of the rollout, for drivers to know [s].
  """

  max_turns: int
  max_prompt_tokens: int
  deadline_seconds: float


@dataclasses.dataclass(eq=False)
class Asked:
  """One response that was asked for.

  Attributes:
    prompt_ids: token ids of the prompt.
    sampling: sampling settings of the response.
    number: number of times that the session asked for the same before.
    completion: the response; None until it is sampled whole.
    state: whether the agent has the whole response, may get it yet, or left before.
    text: prompt as text, for a response of the frozen model; None for the policy's.
    seconds: time that sampling and the wait for it took [s].
  """

  prompt_ids: tuple[int, ...]
  sampling: records.SamplingSpec
  number: int
  completion: records.Completion | None = None
  state: Literal['under way', 'delivered', 'lost'] = 'under way'
  text: str | None = None
  seconds: float = 0.0

  @property
  def place(self) -> tuple:
    """Key that sorts requests in an order that does not depend on the clock.

    Prompts that grow are in the order in which they were asked.
    """
    return len(self.prompt_ids), self.prompt_ids, repr(self.sampling), self.number

  def turn(self) -> records.Turn:
    """Returns the response as a turn; it has been sampled."""
    assert self.completion is not None
    return records.Turn(self.completion, self.sampling)


class Session:
  """The requests of one rollout, and its outcome. Use it from one event loop.

  Args:
    task: task of the rollout.
    key: key of the rollout; that of a request adds what is asked.
    sampling: sampling settings of the policy.
    limits: bounds on the session.

  Attributes:
    id: name of the session in addresses, which cannot be guessed.
    waits_for_driver: whether the task waits for a driver to take it.
    sampling_seconds: time that models of this process sampled for it [s].
    waiting_seconds: time during which at least one request was being answered [s].
  """

  def __init__(
    self,
    task: records.Task,
    key: records.RequestKey,
    sampling: records.SamplingSpec,
    limits: Limits,
  ):
    self.id = secrets.token_hex(16)
    self.task, self.key, self.sampling, self.limits = task, key, sampling, limits
    self.sampling_seconds = self.waiting_seconds = 0.0
    self.waits_for_driver = False
    self._asked: list[Asked] = []
    self._times: collections.Counter[str] = collections.Counter()
    self._running: set[asyncio.Task] = set()
    self._waiters, self._busy_since = 0, 0.0
    # What the policy answers for if the agent fails next.
    self._fault: tuple[_Status, str] | None = None
    self._unreachable = ''
    self._end: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()

  async def ask(
    self,
    prompt_ids: Sequence[int],
    sampling: records.SamplingSpec,
    sample: Sample,
    frozen_text: str | None = None,
  ) -> Asked:
    """Samples one response, to the end even if the caller is cancelled.

    Args:
      prompt_ids: token ids of the prompt.
      sampling: sampling settings of the response.
      sample: function from the key of the request to its response.
      frozen_text: prompt as text where the frozen model is asked; None for the policy.

    Returns:
      The response; the caller says with `deliver` that the agent has it, or with
      `lose` that it left before. A caller that is cancelled has lost it.

    Raises:
      Over: the session has ended, before or meanwhile.
      OutOfTurns, PromptTooLong: the policy's bounds do not allow it.
      Unreachable: the model does not answer, which ends the session.
    """
    self.check_open()
    ids = tuple(prompt_ids)
    if frozen_text is None:
      self._check_bounds(ids)
    name = digest('frozen' if frozen_text is not None else 'policy', ids, sampling)
    asked = Asked(ids, sampling, self._times[name], text=frozen_text)
    self._times[name] += 1
    self._asked.append(asked)
    key = request_key(self.key, name, asked.number)
    task = asyncio.create_task(self._sampled(asked, sample, key))
    self._running.add(task)
    task.add_done_callback(self._forget)
    try:
      await asyncio.shield(task)
    except asyncio.CancelledError:
      self.lose(asked)
      if self._end.done() and task.cancelled():
        raise Over(self.said()) from None
      raise
    return asked

  def deliver(self, asked: Asked) -> None:
    """Notes that the agent has a response whole; without effect after the end."""
    if self._end.done() or asked.completion is None:
      return
    asked.state = 'delivered'
    if asked.text is None and not self._used_up:
      self._fault = None
      if asked.completion.finish_reason == 'length':
        said = f'the response reached {asked.sampling.max_new_tokens} tokens'
        self._fault = _Status.TRUNCATED_RESPONSE, said

  def lose(self, asked: Asked) -> None:
    """Notes that the agent will not get a response, which then takes no turn."""
    if not self._end.done():
      asked.state = 'lost'

  def finish(self, outcome: Outcome) -> None:
    """Ends the session; the first outcome counts.

    Raises:
      Over: it has ended.
    """
    self.check_open()
    self._end.set_result(outcome)
    for task in self._running:
      task.cancel()

  def close(self) -> None:
    """Ends the session, if it has not ended: nothing is asked or kept any more."""
    if not self._end.done():
      self.finish(Outcome(failure='the rollout was ended'))

  async def outcome(self) -> Outcome:
    """Returns the outcome, as soon as there is one."""
    return await asyncio.shield(self._end)

  def check_open(self) -> None:
    """Raises Over where the session has ended."""
    if self._end.done():
      raise Over(self.said())

  def said(self) -> str:
    """Returns in words how the session ended."""
    ended = self._end.result()
    what = 'a reward' if ended.reward is not None else 'an answer'
    return f'this session ended with {ended.failure or what}'

  @property
  def status(self) -> tuple[_Status, str]:
    """Status of the ended session, and a detail for people."""
    ended = self._end.result()
    if self._unreachable:
      return _Status.MODEL_UNREACHABLE, self._unreachable
    if ended.failure:
      # Most agents raise an error when the endpoint refuses them.
      return self._fault or (_Status.MODULE_FAILED, ended.failure)
    if self._fault and self._used_up:
      return self._fault
    return _Status.ANSWERED, ''

  @property
  def turns(self) -> tuple[records.Turn, ...]:
    """The policy's responses that the agent got whole, see `Asked.place`."""
    return tuple(a.turn() for a in self._sorted() if self._is_turn(a))

  @property
  def undelivered(self) -> tuple[records.Turn, ...]:
    """The policy's responses that were sampled and that the agent did not get."""
    return tuple(
      a.turn() for a in self._sorted() if a.text is None and not self._is_turn(a)
    )

  @property
  def frozen_calls(self) -> tuple[records.ModuleCall, ...]:
    """The frozen model's responses."""
    return tuple(
      records.ModuleCall('frozen', a.completion.text, a.seconds, (a.text,))
      for a in self._sorted()
      if a.text is not None and a.completion is not None
    )

  def _is_turn(self, asked: Asked) -> bool:
    return asked.text is None and asked.state == 'delivered'

  @property
  def _used_up(self) -> bool:
    """Whether the agent asked for more turns than there are."""
    return self._fault is not None and self._fault[0] is _Status.OUT_OF_TURNS

  def _sorted(self) -> list[Asked]:
    done = [a for a in self._asked if a.completion is not None]
    return sorted(done, key=lambda a: a.place)

  def _check_bounds(self, ids: tuple[int, ...]) -> None:
    most = self.limits.max_prompt_tokens
    if len(ids) > most:
      said = f'a prompt of {len(ids)} tokens exceeds the {most} that are read'
      if not self._used_up:
        self._fault = _Status.PROMPT_TOO_LONG, said
      raise language_model.PromptTooLong(said)
    taken = sum(a.text is None and a.state != 'lost' for a in self._asked)
    if taken >= self.limits.max_turns:
      said = f'all {self.limits.max_turns} turns of the rollout are used'
      self._fault = _Status.OUT_OF_TURNS, said
      raise OutOfTurns(said)

  def _forget(self, task: asyncio.Task) -> None:
    self._running.discard(task)
    if not task.cancelled():
      task.exception()  # Its caller may have left; asyncio would complain.

  async def _sampled(
    self, asked: Asked, sample: Sample, key: records.RequestKey
  ) -> None:
    start = time.monotonic()
    with self._waiting(), language_model.sampling_time() as spent:
      try:
        asked.completion = await sample(key)
      except language_model.Unreachable as e:
        self._asked.remove(asked)
        if not self._end.done():
          self._unreachable = str(e)
          self._end.set_result(Outcome(failure=f'the model does not answer: {e}'))
        raise
      except BaseException:
        # It takes no turn: it was refused, or the session has ended.
        self._asked.remove(asked)
        raise
      finally:
        self.sampling_seconds += spent.seconds
        asked.seconds = time.monotonic() - start

  @contextlib.contextmanager
  def _waiting(self) -> Iterator[None]:
    """Adds the time of its body, where no other body runs, to `waiting_seconds`."""
    self._waiters += 1
    if self._waiters == 1:
      self._busy_since = time.monotonic()
    try:
      yield
    finally:
      self._waiters -= 1
      if not self._waiters:
        self.waiting_seconds += time.monotonic() - self._busy_since


class Host(Protocol):
  """Offers sessions to agents, and starts the agents where they are commands."""

  def opened(
    self,
    task: records.Task,
    key: records.RequestKey,
    sampling: records.SamplingSpec,
    limits: Limits,
  ) -> contextlib.AbstractAsyncContextManager[Session]:
    """Offers a session while the body runs, and ends it and its agent behind."""
    ...


def digest(
  model: Literal['policy', 'frozen'],
  ids: tuple[int, ...],
  sampling: records.SamplingSpec,
) -> str:
  """Returns a name of what is asked."""
  what = json.dumps([model, dataclasses.astuple(sampling)]).encode()
  return hashlib.sha256(what + struct.pack(f'<{len(ids)}I', *ids)).hexdigest()[:32]


def request_key(key: records.RequestKey, name: str, number: int) -> records.RequestKey:
  """Returns the key of a request.

  Args:
    key: key of the rollout.
    name: digest of what is asked.
    number: number of times that the session asked for the same before.
  """
  return dataclasses.replace(key, module=f'served/{name}', attempt=number)
