"""The seam between text and arrays: what every language model speaks."""

import contextlib
import contextvars
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from agentflow_jax import records


class Unreachable(Exception):
  """A model, judge or host could not be reached: infrastructure, not policy."""


class PromptTooLong(Exception):
  """A prompt does not fit the model's context, whatever was shortened."""


@dataclasses.dataclass
class SamplingTime:
  """Time that models of this process spent on sampling.

  Attributes:
    seconds: sum over all calls so far, cancelled calls included. Waits for a
      slot, stalls of the device and the time of endpoints are not part of it.
  """

  seconds: float = 0.0


_sampling_time: contextvars.ContextVar[SamplingTime | None] = contextvars.ContextVar(
  'sampling_time', default=None
)


@contextlib.contextmanager
def sampling_time() -> Iterator[SamplingTime]:
  """Yields a record of the time that models spend on sampling in the body."""
  spent = SamplingTime()
  token = _sampling_time.set(spent)
  try:
    yield spent
  finally:
    _sampling_time.reset(token)


def spend(seconds: float) -> None:
  """Adds to the time of the enclosing `sampling_time`, if there is one."""
  spent = _sampling_time.get()
  if spent is not None:
    spent.seconds += max(seconds, 0.0)


class LanguageModel(Protocol):
  """Samples text, from an engine in this process or from an endpoint.

  A model that samples in this process reports its time with `spend`, also for
  calls that fail or are cancelled. An endpoint reports none.
  """

  async def generate(
    self,
    prompt: tuple[records.Segment, ...],
    sampling: records.SamplingSpec,
    request_key: records.RequestKey,
    tools: Sequence[Mapping[str, Any]] = (),
  ) -> records.Completion:
    """Samples one response.

    Args:
      prompt: segments that the model is conditioned on, in order.
      sampling: temperature, truncation, stops and the token limit.
      request_key: key of the request, which decides its randomness.
      tools: tools that the response may call, as OpenAI's interface describes them.
        What it calls is part of its text, see agents.call_text.

    Returns:
      The completion, with ids and logprobs where the model runs in-process.

    Raises:
      PromptTooLong: the rendered prompt does not fit.
      Unreachable: the engine or endpoint failed.
    """
    ...

  def count_tokens(
    self, prompt: tuple[records.Segment, ...], tools: Sequence[Mapping[str, Any]] = ()
  ) -> int:
    """Tokens of the rendered prompt, the template's own and the tools included."""
    ...


def text_counter(model: LanguageModel) -> Callable[[str], int]:
  """Returns what counts a text's tokens, without the chat's around it.

  Those may be many: some templates add a system message of their own.
  """

  def rendered(text: str) -> int:
    return model.count_tokens((records.Segment('user', text, False),))

  around = rendered('')
  return lambda text: max(rendered(text) - around, 0)
