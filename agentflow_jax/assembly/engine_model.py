"""The planner as a language model: segments in, ids and text out."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from agentflow_jax import records
from agentflow_jax.agents import call_text, language_model, plan
from agentflow_jax.assembly import serving_shapes
from agentflow_jax.external import sampler
from agentflow_jax.inference import api, engine as engine_lib
from agentflow_jax.tokenization import tokenizers

# For serving, which sees no room below this one.
EngineStats = api.EngineStats
MAX_TOP_LOGPROBS = api.MAX_TOP_LOGPROBS
PromptTooLong = language_model.PromptTooLong
Unreachable = language_model.Unreachable
read_calls, sure_content = call_text.read, call_text.sure


@dataclasses.dataclass(frozen=True)
class ScoredCompletion(records.Completion):
  """A completion with the most likely tokens of each position.

  Attributes:
    top: (ids, log probabilities [nats]) of each position, see inference.api.Result.
  """

  top: tuple[tuple[tuple[int, ...], tuple[float, ...]], ...] = ()


class EngineModel:
  """Implements agents.language_model.LanguageModel over an engine.

  The engine is one of this process, or servers that take ids and return them.
  Token ids and log probabilities are recorded as they are sampled and never
  derived from text again (contract 1).
  """

  def __init__(
    self,
    engine: engine_lib.Engine | sampler.ExternalSampler,
    tokenizer: tokenizers.Tokenizer,
  ):
    self.engine = engine
    self.tokenizer = tokenizer
    self._kept: list[tuple[np.ndarray, np.ndarray]] | None = None

  @contextlib.contextmanager
  def keeping(self) -> Iterator[list[tuple[np.ndarray, np.ndarray]]]:
    """Yields a list that grows by (prompt_ids, response_ids) with every response.

    Both are int32. Only responses that end inside the body are in it.
    """
    self._kept = kept = []
    try:
      yield kept
    finally:
      self._kept = None

  @functools.cached_property
  def calls_as_trained(self) -> bool:
    """Whether calls are in the chat template's own syntax, and not in a plain form."""
    return calls_as_trained(self.tokenizer)

  def render(
    self, prompt: Sequence[records.Segment], tools: Sequence[Mapping[str, Any]] = ()
  ) -> list[int]:
    """Encodes a prompt up to where the assistant begins to speak.

    The chat template renders tools and calls where `read_calls` reads its syntax of
    calls; elsewhere they are written in the form of agents.call_text.plain.

    Raises:
      ValueError: the chat template refuses the messages.
    """
    if self.calls_as_trained or _is_plain(prompt, tools):
      return self.tokenizer.render(prompt, tools)
    return self.tokenizer.render(call_text.plain(prompt, tools))

  @property
  def max_prompt_tokens(self) -> int:
    """The longest prompt that is read."""
    return self.engine.config.max_prompt_tokens

  @property
  def context(self) -> int:
    """The context of a model in this process: prompt and response [tokens]."""
    assert isinstance(self.engine, engine_lib.Engine)
    return self.engine.model_config.max_positions

  @property
  def shapes_said(self) -> str:
    """The sizes of requests to a model in this process, as a line for people."""
    assert isinstance(self.engine, engine_lib.Engine)
    return serving_shapes.said(self.engine.config, self.engine.model_config)

  def calling(self) -> contextlib.AbstractContextManager[None]:
    """Returns a context for a rollout that may ask several times."""
    if isinstance(self.engine, engine_lib.Engine):
      return self.engine.calling()
    return contextlib.nullcontext()

  def stats(self) -> api.EngineStats:
    """Returns the totals of the engine."""
    return self.engine.stats()

  @property
  def is_closed(self) -> bool:
    """Whether nothing will be sampled any more."""
    return self.engine.is_closed

  async def generate(
    self,
    prompt: tuple[records.Segment, ...],
    sampling: records.SamplingSpec,
    request_key: records.RequestKey,
    tools: Sequence[Mapping[str, Any]] = (),
  ) -> records.Completion:
    ids = self.render(prompt, tools)
    return await self.sample(
      ids, sampling, request_key, thinking=self.tokenizer.opens_thought
    )

  async def sample(
    self,
    prompt_ids: Sequence[int],
    sampling: records.SamplingSpec,
    request_key: records.RequestKey,
    on_ids: Callable[[list[int]], None] | None = None,
    thinking: bool = False,
    top_logprobs: int = 0,
  ) -> records.Completion:
    """Like `generate`, from ids.

    Args:
      prompt_ids: token ids that the model is conditioned on.
      sampling: the same argument of `generate`.
      request_key: the same argument of `generate`.
      on_ids: function that is called on the engine's thread now and then, with all ids
        sampled so far; ids behind a stop string or a plan are among them.
      thinking: whether the prompt ends inside an open thought.
      top_logprobs: number of the most likely tokens to return with each position, up to
        MAX_TOP_LOGPROBS; with more than 0, a ScoredCompletion is returned.

    Raises:
      PromptTooLong, Unreachable: as in `generate`.
    """
    ids = tuple(prompt_ids)
    stop_fn = None
    if sampling.stop or sampling.stop_after or on_ids is not None:
      stop_fn = functools.partial(_watch, self.tokenizer, sampling, thinking, on_ids)
    request = api.Request(
      prompt_ids=ids,
      key_words=request_key.words(),
      sampling=sampling,
      stop_ids=self.tokenizer.stop_ids,
      stop_fn=stop_fn,
      on_end=_tell_time,
      top_logprobs=top_logprobs,
      # The requests of a query begin alike, whichever rollout and turn they are of.
      group=f'{request_key.purpose.name}.{request_key.step}.{request_key.query}',
    )
    try:
      result = await self.engine.generate(request)
    except api.PromptTooLong as e:
      raise language_model.PromptTooLong(str(e)) from e
    except api.EngineError as e:
      raise language_model.Unreachable(str(e)) from e
    if self._kept is not None:
      self._kept.append(
        (np.array(ids, np.int32), np.array(result.response_ids, np.int32))
      )
    completion = records.Completion(
      text=self.tokenizer.decode(result.response_ids),
      prompt_ids=ids,
      response_ids=result.response_ids,
      logprobs=result.logprobs,
      finish_reason=result.finish_reason,
      params_version=result.params_version,
      queue_seconds=result.queue_seconds,
      model_seconds=result.model_seconds,
      kept=None if result.kept is None else _as_record(result.kept),
      thinking=thinking,
      stalled_seconds=result.stalled_seconds,
    )
    if not top_logprobs:
      return completion
    fields = {
      f.name: getattr(completion, f.name) for f in dataclasses.fields(completion)
    }
    return ScoredCompletion(**fields, top=result.top)

  def count_tokens(
    self, prompt: tuple[records.Segment, ...], tools: Sequence[Mapping[str, Any]] = ()
  ) -> int:
    return len(self.render(prompt, tools))


def calls_as_trained(tokenizer: tokenizers.Tokenizer) -> bool:
  """Says whether `agents.call_text.read` reads the calls of a chat template."""
  shown = call_text.read(tokenizer.shown_call)
  return bool(shown.calls and not shown.problems and shown.calls[0].arguments)


def render_answered(
  tokenizer: tokenizers.Tokenizer,
  prompt: Sequence[records.Segment],
  response: records.Segment,
  tools: Sequence[Mapping[str, Any]] = (),
) -> tuple[list[int], list[int]]:
  """Encodes a prompt as `EngineModel.render` does, and the response to it.

  Args:
    tokenizer: tokenizer of the model that is to write the response.
    prompt: conversation before the response.
    response: message of the assistant.
    tools: tools as OpenAI's interface describes them.

  Returns:
    Ids of the prompt, and of the response up to and including its end.

  Raises:
    ValueError: the chat template refuses the messages, or cannot write the response.
  """
  if not calls_as_trained(tokenizer) and not _is_plain((*prompt, response), tools):
    prompt, tools = call_text.plain(prompt, tools), ()
    (response,) = call_text.plain((response,))
  return (
    tokenizer.render(prompt, tools),
    tokenizer.render_response(prompt, response, tools),
  )


def _is_plain(
  prompt: Sequence[records.Segment], tools: Sequence[Mapping[str, Any]]
) -> bool:
  return not tools and not any(s.calls or s.role == 'tool' for s in prompt)


def _tell_time(timing: api.Timing) -> None:
  """Tells the caller how long the device sampled, see `sampling_time`."""
  language_model.spend(timing.model_seconds - timing.stalled_seconds)


def _as_record(kept: Sequence[np.ndarray]) -> records.KeptSets:
  counts = np.array([len(ids) for ids in kept], '<i4')
  ids = np.concatenate(kept).astype('<i4')
  return records.KeptSets(counts.tobytes(), ids.tobytes())


def _watch(tokenizer, sampling, thinking, on_ids, ids: Sequence[int]) -> int | None:
  if on_ids is not None:
    on_ids(ids)
  if not (sampling.stop or sampling.stop_after):
    return None
  return _stop(tokenizer, sampling, thinking, ids)


def _stop(
  tokenizer: tokenizers.Tokenizer,
  sampling: records.SamplingSpec,
  thinking: bool,
  ids: Sequence[int],
) -> int | None:
  """Returns how many ids to keep, or None to go on.

  The kept ids end with the id that completes a stop string, anywhere in the
  text, or a plan or a fenced block behind the thoughts.
  """

  def has_ended(count):
    text = tokenizer.decode(ids[:count])
    if any(s in text for s in sampling.stop):
      return True
    if not sampling.stop_after:
      return False
    end_of = plan.end_of if sampling.stop_after == 'plan' else plan.end_of_code
    return end_of(text, thinking) is not None

  if not has_ended(len(ids)):
    return None
  low, high = 1, len(ids)
  while low < high:  # Once complete, either stays complete.
    middle = (low + high) // 2
    if has_ended(middle):
      high = middle
    else:
      low = middle + 1
  return low
