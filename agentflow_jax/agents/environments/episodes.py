"""Opens, verifies and closes episodes: the boundary to environments of any kind.

An environment may raise anything and take any time. What leaves this module is
`base.Unreachable`, a cancellation of the rollout, or a miss of a replayed run.
"""

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Protocol

from absl import logging

from agentflow_jax import records
from agentflow_jax.agents import cancelling, recording
from agentflow_jax.agents.environments import base

_CLOSE_SECONDS = 5.0


async def opened(
  environment: base.Environment, task: records.Task, key: records.RequestKey
) -> base.Episode:
  """Opens the world of a task.

  Args:
    environment: environment of the world.
    task: task with a world.
    key: request key of the rollout.

  Raises:
    Unreachable: the environment failed; says how.
  """
  with _bounded(f'{environment.name} could not be opened'):
    return await environment.open(task, key)


async def verified(
  name: str, episode: base.Episode, ending: records.Ending, seconds: float
) -> tuple[records.Verdict, str]:
  """Makes the checks of a world.

  Args:
    name: name of the environment.
    episode: open episode.
    ending: end of the rollout, as checks read it.
    seconds: time limit [s].

  Returns:
    The verdict, and the digest of the final state.

  Raises:
    Unreachable: a check could not be made; JudgeUnreachable where only the judge
      failed.
  """
  with _bounded(f'{name} could not be verified'):
    try:
      async with asyncio.timeout(seconds) as limit:
        verdict = await episode.verify(ending)
        for result in verdict.results:
          if result.passed is None:
            raise base.Unreachable(f'check {result.name!r}: {result.detail}')
        return verdict, await episode.digest()
    except TimeoutError as e:
      if not limit.expired():
        raise
      raise base.Unreachable(
        f'it took longer than agent.rollout.verify_seconds, {seconds:g} s'
      ) from e


class Closing(Protocol):
  """Anything that has to be closed, such as an episode."""

  async def close(self) -> None:
    """See Episode.close."""


async def close(episode: Closing) -> None:
  """Closes an episode, also in a rollout that is cancelled, within five seconds."""
  closing = asyncio.ensure_future(episode.close())
  # A second cancellation ends the wait, and not the closing.
  await asyncio.wait({closing}, timeout=_CLOSE_SECONDS)
  if not closing.done():
    closing.cancel()
    logging.warning('an episode did not close within %g s', _CLOSE_SECONDS)
  elif not closing.cancelled() and (error := closing.exception()):
    logging.warning('an episode could not be closed: %s', _said(error))


@contextlib.contextmanager
def _bounded(what: str) -> Iterator[None]:
  """Turns every error of an environment in the body into Unreachable."""
  try:
    yield
  except recording.Miss:
    raise  # What is replayed is another run.
  except base.JudgeUnreachable as e:
    raise base.JudgeUnreachable(f'{what}: {e}') from e
  except (Exception, asyncio.CancelledError) as e:
    # The boundary: an environment may raise anything.
    cancelling.raise_if_cancelled(e)
    raise base.Unreachable(f'{what}: {_said(e)}') from e


def _said(error: BaseException) -> str:
  """Returns what an error of an environment says, for people."""
  if isinstance(error, base.Unreachable):
    return str(error)
  return f'{type(error).__name__}: {error}'.removesuffix(': ')
