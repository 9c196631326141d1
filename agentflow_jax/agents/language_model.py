"""The seam between text and arrays: what every language model speaks."""

from collections.abc import Callable
from typing import Protocol

from agentflow_jax import records


class Unreachable(Exception):
  """A model, judge or host could not be reached: infrastructure, not policy."""


class PromptTooLong(Exception):
  """A prompt does not fit the model's context, whatever was shortened."""


class LanguageModel(Protocol):
  """Samples text; whether behind it is an engine or an endpoint."""

  async def generate(
      self,
      prompt: tuple[records.Segment, ...],
      sampling: records.SamplingSpec,
      request_key: records.RequestKey,
  ) -> records.Completion:
    """Samples one response.

    Args:
      prompt: what the model is conditioned on, in order.
      sampling: temperature, truncation, stops and the token limit.
      request_key: names the request and so its randomness.

    Returns:
      The completion, with ids and logprobs where the model runs in-process.

    Raises:
      PromptTooLong: the rendered prompt does not fit.
      Unreachable: the engine or endpoint failed.
    """

  def count_tokens(self, prompt: tuple[records.Segment, ...]) -> int:
    """Tokens of the rendered prompt, the template's own included."""


def text_counter(model: LanguageModel) -> Callable[[str], int]:
  """Returns what counts a text's tokens, without the chat's around it.

  Those may be many: some templates add a system message of their own.
  """

  def rendered(text: str) -> int:
    return model.count_tokens((records.Segment('user', text, False),))

  around = rendered('')
  return lambda text: max(rendered(text) - around, 0)
