"""What an environment is: it opens an episode of a task's world for each rollout."""

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Literal, Protocol

from agentflow_jax import records
from agentflow_jax.agents.tools import base

Ended = Literal['', 'finish', 'refuse', 'environment']


class Unreachable(Exception):
  """An environment or its host failed; the rollout leaves the statistics."""


class JudgeUnreachable(Unreachable):
  """The language model that judges an answer failed, not the environment."""


@dataclasses.dataclass(frozen=True)
class Brief:
  """Information on an episode for the modules.

  Attributes:
    policy: rules of the world, as text; may be empty.
    names: names that plans may refer to by number, such as people and things.
    keys: regular expression of the keys, dates and quantities that plans may refer
      to by number; '' for all numbers.
    date: date of the world, YYYY-MM-DD; '' where time plays no part.
  """

  policy: str = ''
  names: tuple[str, ...] = ()
  keys: str = ''
  date: str = ''


def seed_of(task: records.Task) -> int:
  """Returns a seed of 31 bits that all rollouts of a task share.

  They are compared with each other, so chance must not give one of them another task.
  """
  digest = hashlib.blake2b(task.id.encode(), digest_size=4).digest()
  return int.from_bytes(digest) >> 1


class Episode(Protocol):
  """The world of one rollout.

  Attributes:
    brief: information for the modules.
    tools: tools by name; they act on the state of this rollout only.
    ended: kind of the episode's end; '' while it goes on.
    answer: answer that ended the episode; None where the generator writes it.
    outside: names of tools without state that programs of the episode may call.
  """

  @property
  def brief(self) -> Brief: ...
  @property
  def tools(self) -> Mapping[str, base.Tool]: ...
  @property
  def ended(self) -> Ended: ...
  @property
  def answer(self) -> str | None: ...
  @property
  def outside(self) -> frozenset[str]: ...

  async def verify(self, ending: records.Ending) -> records.Verdict:
    """Makes the checks of the task. It changes nothing and may be called again.

    Raises:
      Unreachable: the checks could not be made; JudgeUnreachable where only the
        judge failed.
    """
    ...

  async def digest(self) -> str:
    """Returns a digest of the logical state; '' where it cannot be read."""
    ...

  def state(self) -> bytes | None:
    """Returns a value that `Environment.open` goes on from; None where it cannot."""
    ...

  async def close(self) -> None:
    """Releases the episode. It never raises for a host that is gone."""


class Environment(Protocol):
  """Opens episodes of worlds.

  Attributes:
    name: name that worlds refer to (records.World.environment).
    version: version of the environment: episodes of another version may differ.
    capacity: largest number of open episodes in this process; None for no limit.
    cards: cards of its tools; empty where only an episode knows them.
  """

  @property
  def name(self) -> str: ...
  @property
  def version(self) -> str: ...
  @property
  def capacity(self) -> int | None: ...
  @property
  def cards(self) -> tuple[base.Card, ...]: ...

  def check(self, task: records.Task) -> list[str]:
    """Checks a task when a run starts, and returns warnings.

    Raises:
      ValueError: the task cannot be opened or verified; names the task and the
        remedy.
    """
    ...

  async def open(
    self, task: records.Task, key: records.RequestKey, state: bytes | None = None
  ) -> Episode:
    """Opens an episode; the same task and key give the same episode.

    Where it is cancelled, nothing stays open.

    Args:
      task: task with a world of this environment.
      key: request key of the rollout.
      state: value of `Episode.state` to go on from; None for the task's start.

    Raises:
      Unreachable: the environment or its host failed.
    """
    ...

  async def close(self) -> None:
    """Releases what the environment holds; every episode is closed before."""
