"""What the engine takes and returns. Token ids only, no text."""

import dataclasses
from collections.abc import Callable, Sequence

# Reads the ids sampled so far and returns how many of them to keep, up to and
# including the first stop, or None while there is no stop.
StopFn = Callable[[Sequence[int]], int | None]

_WORD = 2**32


class EngineError(RuntimeError):
  """A batch failed on the device, or a request's own stop_fn did."""


class EngineClosed(EngineError):
  """The engine was closed before the request was done."""


class PromptTooLong(ValueError):
  """A prompt fits no bucket, or leaves too little of the context."""


@dataclasses.dataclass(frozen=True)
class SamplingParams:
  """The distribution that tokens are drawn from.

  Attributes:
    temperature: divides the logits; 0 is greedy, scored at temperature 1.
    top_k: keep the k most likely tokens; 0 keeps all.
    top_p: keep the smallest set with at least this mass; 1 keeps all.
    min_p: keep tokens with at least this fraction of the top probability.
    max_new_tokens: tokens at most, the stop included.
  """

  temperature: float = 1.0
  top_k: int = 0
  top_p: float = 1.0
  min_p: float = 0.0
  max_new_tokens: int = 256

  def __post_init__(self):
    if not 0.0 <= self.temperature < float('inf'):
      raise ValueError(
          f'temperature must be finite and >= 0: {self.temperature}'
      )
    if self.top_k < 0:
      raise ValueError(f'top_k must be >= 0 (0 keeps all): {self.top_k}')
    if not 0.0 < self.top_p <= 1.0:
      raise ValueError(f'top_p must lie in (0, 1]: {self.top_p}')
    if not 0.0 <= self.min_p <= 1.0:
      raise ValueError(f'min_p must lie in [0, 1]: {self.min_p}')
    if self.max_new_tokens < 1:
      raise ValueError(f'max_new_tokens must be >= 1: {self.max_new_tokens}')

  @property
  def truncates(self) -> bool:
    return self.top_k > 0 or self.top_p < 1.0 or self.min_p > 0.0


@dataclasses.dataclass(frozen=True)
class Request:
  """One response to sample.

  Attributes:
    prompt_ids: token ids to condition on; at least one.
    key_words: two uint32 words, the only source of the request's randomness.
    sampling: the distribution.
    stop_ids: token ids that end the response; they stay in it.
    stop_fn: called on the engine's thread every `decode_chunk` tokens with all
      ids sampled so far. What it does not keep is dropped; because it must find
      the FIRST stop, the response does not depend on when it is called.
  """

  prompt_ids: tuple[int, ...]
  key_words: tuple[int, int]
  sampling: SamplingParams = SamplingParams()
  stop_ids: tuple[int, ...] = ()
  stop_fn: StopFn | None = None


@dataclasses.dataclass(frozen=True)
class Result:
  """One sampled response.

  Attributes:
    response_ids: as sampled, up to and including the stop.
    logprobs: of each id under the distribution it was drawn from [nats].
    finish_reason: 'stop' or 'length'.
    params_version: of the parameters that sampled every token of it.
    queue_seconds: from the call until the device took the request.
    model_seconds: from then until the response was complete.
  """

  response_ids: tuple[int, ...]
  logprobs: tuple[float, ...]
  finish_reason: str
  params_version: int
  queue_seconds: float
  model_seconds: float


@dataclasses.dataclass(frozen=True)
class EngineConfig:
  """Shapes and timing of an engine.

  Attributes:
    slots: rows of a decode batch. Fixed: unused ones are computed and ignored.
    prompt_buckets: padded prompt lengths, ascending [tokens].
    max_new_tokens: the most that any request may ask for [tokens].
    decode_chunk: tokens between two looks of the host (stop_fn, finished rows).
    prefill_rows: prompts read at a time; divides slots. A batch reads as many
      such blocks as it has distinct prompts for, so a thin one costs little.
    max_stop_ids: stop ids at most in one request.
    coalesce_seconds: how long the first request of a batch waits for more.
  """

  slots: int = 32
  prompt_buckets: tuple[int, ...] = (64, 128, 256)
  max_new_tokens: int = 64
  decode_chunk: int = 8
  prefill_rows: int = 8
  max_stop_ids: int = 8
  coalesce_seconds: float = 0.002

  def __post_init__(self):
    for name in (
        'slots',
        'max_new_tokens',
        'decode_chunk',
        'prefill_rows',
        'max_stop_ids',
    ):
      if getattr(self, name) < 1:
        raise ValueError(f'{name} must be >= 1: {getattr(self, name)}')
    if self.slots % self.prefill_rows:
      raise ValueError(
          f'prefill_rows {self.prefill_rows} must divide slots {self.slots}'
      )
    buckets = tuple(self.prompt_buckets)
    object.__setattr__(self, 'prompt_buckets', buckets)  # A list will do.
    if not buckets or buckets[0] < 1:
      raise ValueError(f'prompt_buckets must hold lengths >= 1: {buckets}')
    if list(buckets) != sorted(set(buckets)):
      raise ValueError(f'prompt_buckets must strictly ascend: {buckets}')
    if self.coalesce_seconds < 0:
      raise ValueError(
          f'coalesce_seconds must be >= 0: {self.coalesce_seconds}'
      )


@dataclasses.dataclass(frozen=True)
class EngineStats:
  """Totals since the engine was made.

  Every accepted request is in exactly one of completed, failed, cancelled,
  queued or running.

  Attributes:
    requests: accepted.
    completed: delivered a result.
    failed: ended in an EngineError (closing included).
    cancelled: given up by their caller before they were done.
    queued: waiting for the device now.
    running: on the device now.
    batches: started.
    batch_rows: requests over all batches; / (batches * slots) is occupancy.
    prompts: read; requests of a batch with equal prompts share one.
    prompt_tokens: of requests that the device took, without padding.
    response_tokens: delivered.
    sampled_tokens: on the device; above response_tokens by what lay past a stop
      of stop_fn, is of running requests, or was for callers that left.
    model_seconds: the device thread spent on batches.
    compilations: programs that this engine compiled, warmup included.
  """

  requests: int = 0
  completed: int = 0
  failed: int = 0
  cancelled: int = 0
  queued: int = 0
  running: int = 0
  batches: int = 0
  batch_rows: int = 0
  prompts: int = 0
  prompt_tokens: int = 0
  response_tokens: int = 0
  sampled_tokens: int = 0
  model_seconds: float = 0.0
  compilations: int = 0


def check_request(
    request: Request,
    config: EngineConfig,
    *,
    vocab_size: int,
    max_positions: int,
) -> int:
  """Returns the request's prompt bucket [tokens].

  Args:
    request: what was asked.
    config: the engine's shapes.
    vocab_size: ids lie in [0, vocab_size).
    max_positions: the model's context [tokens].

  Raises:
    PromptTooLong: prompt and response do not fit.
    ValueError: anything else that is wrong with the request.
  """
  ids, asked = request.prompt_ids, request.sampling.max_new_tokens
  if not ids:
    raise ValueError('prompt_ids is empty: there is nothing to condition on')
  if min(ids) < 0 or max(ids) >= vocab_size:
    raise ValueError(
        f'prompt_ids span [{min(ids)}, {max(ids)}], the vocabulary is'
        f' [0, {vocab_size})'
    )
  if asked > config.max_new_tokens:
    raise ValueError(
        f'max_new_tokens {asked} exceeds the engine\'s {config.max_new_tokens}'
    )
  if len(request.stop_ids) > config.max_stop_ids:
    raise ValueError(
        f'{len(request.stop_ids)} stop_ids exceed the engine\'s'
        f' {config.max_stop_ids}'
    )
  if any(not 0 <= i < vocab_size for i in request.stop_ids):
    raise ValueError(
        f'stop_ids {request.stop_ids} leave the vocabulary [0, {vocab_size})'
    )
  words = request.key_words
  if len(words) != 2 or any(not 0 <= w < _WORD for w in words):
    raise ValueError(f'key_words must be two uint32: {words}')
  if len(ids) + asked > max_positions:
    raise PromptTooLong(
        f'a prompt of {len(ids)} tokens and {asked} new ones exceed the'
        f' context of {max_positions}'
    )
  for bucket in config.prompt_buckets:
    if len(ids) <= bucket:
      return bucket
  raise PromptTooLong(
      f'a prompt of {len(ids)} tokens exceeds the largest bucket of'
      f' {config.prompt_buckets[-1]}'
  )
