"""What the engine takes and returns. Token ids only, no text."""

import dataclasses
import numbers
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from agentflow_jax import records
from agentflow_jax.core import attention

# Reads the ids sampled so far and returns how many of them to keep, up to and
# including the first stop, or None while there is no stop.
StopFn = Callable[[Sequence[int]], int | None]

_WORD = 2**32

# The most likely tokens that a request may ask for at each position; OpenAI's limit.
MAX_TOP_LOGPROBS = 20


@dataclasses.dataclass(frozen=True)
class Timing:
  """Time of one request, up to its end or up to its cancellation.

  Attributes:
    queue_seconds: time from the call until the request got a slot, or until it
      was cancelled without one.
    model_seconds: time from the slot to the end.
    stalled_seconds: part of model_seconds in which the device did not sample for
      this engine: it compiled a program, took new parameters, or ran the programs
      of the trainer or of another engine. While n of these use the device at
      the same time, 1/n of the time is this engine's.
  """

  queue_seconds: float
  model_seconds: float
  stalled_seconds: float


class EngineError(RuntimeError):
  """A batch failed on the device, or a request's own stop_fn did."""


class EngineClosed(EngineError):
  """The engine was closed before the request was done."""


class PromptTooLong(ValueError):
  """A prompt exceeds what the engine takes, or the model's context."""


def _check_integers(name: str, values: Sequence[int]) -> None:
  # Checked before the engine's thread sees it, where it would fail all requests.
  if not isinstance(values, tuple):
    raise ValueError(f'{name} must be a tuple: {type(values).__name__}')
  for kind in set(map(type, values)):
    if not issubclass(kind, numbers.Integral):
      raise ValueError(f'{name} must be integers, not {kind.__name__}')


@dataclasses.dataclass(frozen=True)
class Request:
  """One response to sample.

  Attributes:
    prompt_ids: token ids to condition on; at least one.
    key_words: two uint32 words, the only source of the request's randomness.
    sampling: temperature, truncation and token limit. Where it names stops,
      `stop_fn` is required, and looks for them.
    stop_ids: token ids that end the response; they stay in it.
    stop_fn: function that is called on the engine's thread every `decode_chunk` tokens
      with all ids sampled so far, and returns how many to keep, or None. What it does
      not keep is dropped; because it must find the FIRST stop, the response does not
      depend on when it is called.
    on_end: function called once, in the caller's task, with the request's time,
      when the request is done, has failed or was cancelled.
    top_logprobs: number of the most likely tokens to return with each position, up to
      MAX_TOP_LOGPROBS.
    group: name that requests with a common beginning share, such as those of the
      rollouts of a query; '' for none. Where there are several samplers, they go to
      one.
  """

  prompt_ids: tuple[int, ...]
  key_words: tuple[int, int]
  sampling: records.SamplingSpec = records.SamplingSpec()
  stop_ids: tuple[int, ...] = ()
  stop_fn: StopFn | None = None
  on_end: Callable[[Timing], None] | None = None
  top_logprobs: int = 0
  group: str = ''

  @property
  def program(self) -> tuple[bool, bool]:
    """The decode program of the request: whether it truncates, and tells the top.

    One program serves all requests that ask for the most likely tokens.
    """
    with_top = self.top_logprobs > 0
    return self.sampling.truncates or with_top, with_top


@dataclasses.dataclass(frozen=True)
class Result:
  """One sampled response.

  Attributes:
    response_ids: token ids as sampled, up to and including the stop.
    logprobs: log probability of each id under the distribution it was drawn from
      [nats].
    finish_reason: 'stop' or 'length'.
    params_version: version of the parameters that sampled all of it.
    queue_seconds: time from the call until the request got a slot [s].
    model_seconds: time from then until the response was complete [s].
    kept: int32[n] for each id: those that it was drawn from, itself among them;
      the engine puts the most likely first. None where the request truncates
      nothing, or the engine does not record (see EngineConfig.max_kept).
    stalled_seconds: part of model_seconds, see Timing.
    top: (ids, log probabilities [nats]) of the most likely tokens of each position,
      the most likely first, out of those that could be drawn; () where none were
      asked for.
  """

  response_ids: tuple[int, ...]
  logprobs: tuple[float, ...]
  finish_reason: str
  params_version: int
  queue_seconds: float
  model_seconds: float
  kept: tuple[np.ndarray, ...] | None = None
  stalled_seconds: float = 0.0
  top: tuple[tuple[tuple[int, ...], tuple[float, ...]], ...] = ()


# table_pages covers whole blocks of slots.
_BLOCK = attention.SLOT_BLOCK


@dataclasses.dataclass(frozen=True)
class EngineConfig:
  """Shapes and timing of an engine.

  Fields that may be None are then chosen by a rule of the network's shape, the kind of
  the device and the number of cores, see inference.choices.

  Attributes:
    slots: number of requests that are sampled at a time. Fixed: unused ones are
      computed and ignored.
    max_prompt_tokens: longest prompt [tokens].
    max_new_tokens: longest response that a request may ask for [tokens].
    page_tokens: size of a page, which is what prompts share [tokens].
    kv_tokens: room for keys and values [tokens]; 0: enough for every slot at
      full length. Less is enough where prompts share much: requests then wait
      for room. What is over keeps the prompts of requests that are done. Rows that
      are gathered need it for their prompts alone.
    kv_dtype: format of keys and values: '' as the network computes, 'int8' for a byte
      each and a float32 a token and head, at a cost in exactness: what is sampled is
      scored as it was sampled, but is further from what the trainer computes.
    prefix_cache: whether prompts share pages at all.
    attention: implementation of attention in decoding. 'blocks' reads pages in
      place, in blocks of 128 slots up to the end of the longest row. 'kernel' does
      the same in a kernel for TPUs or CUDA GPUs, in bfloat16; on CPU it is only for
      tests. 'gathered' copies the pages of a request once into contiguous memory,
      which needs as much memory again and is fastest on CPU. 'auto' is the kernel
      where there is one, 'gathered' on CPU up to 4,096 slots a row, else 'blocks'.
    lanes: number of groups in which slots are decoded and pieces of prompts are read
      side by side, a thread each; more than one only where rows are gathered, on one
      device. XLA's CPU computes the small products of attention on one
      core, so two lanes are faster on two cores. It divides slots and
      prefill_pieces; more than one take room for as many of the longest rows as
      there are pieces.
    prefill_pieces: number of pieces of prompts that are read at a time, in all lanes.
    piece_tokens: size of a piece, a multiple of page_tokens [tokens].
    prefill_burst: largest number of calls of prefill between two chunks of decoding,
      while fewer than `read_share` of the requests in slots, or about to get one,
      have been read; one otherwise.
    read_share: share of the requests, above 0 and at most 1, that are read before
      more is decoded. A chunk costs the same for one row as for all, so it should
      not be thin: more is more throughput, less a sooner first token.
    decode_chunk: number of tokens between two looks of the host (stop_fn, finished
      rows).
    max_stop_ids: largest number of stop ids of one request.
    coalesce_share: time that the first request of an idle engine waits for more,
      while there are fewer than `prefill_pieces` of them, as a share of what a call
      of prefill has taken: a call for one piece takes as long as one for
      all. Before the first call it is 2 ms. With 0 it does not wait.
    company_chunks: longest wait of a chunk of decoding for rollouts that are between
      two turns, as a multiple of the time that a chunk takes. A chunk waits while
      fewer than `read_share` of the rollouts (or of the slots, where there are more
      rollouts) have a request at the engine. The wait begins at the end of the chunk
      before, or with the first request of an idle engine, and ends early if no request
      arrives for the time of a chunk. With 0 a chunk does not wait. See Engine.calling.
    max_kept: number of ids that are recorded with each token of a request that
      truncates: those that it was drawn from. Such a request then keeps so many of each
      distribution at most, the most likely ones, beyond what it asks for itself.
      0 records none, and bounds none.
    row_tokens: largest number of tokens of a prompt and its response together; 0:
      max_prompt_tokens + max_new_tokens. Less saves memory where a long prompt and
      a long response do not come together.
  """

  slots: int = 32
  max_prompt_tokens: int = 256
  max_new_tokens: int = 64
  page_tokens: int = 16
  kv_tokens: int = 0
  kv_dtype: str = ''
  prefix_cache: bool = True
  attention: Literal['auto', 'blocks', 'kernel', 'gathered'] = 'auto'
  lanes: int | None = None
  prefill_pieces: int | None = None
  piece_tokens: int | None = None
  prefill_burst: int | None = None
  read_share: float | None = None
  decode_chunk: int = 8
  max_stop_ids: int = 8
  coalesce_share: float = 0.25
  company_chunks: float | None = None
  max_kept: int = 0
  row_tokens: int = 0

  def __post_init__(self):
    for name in (
      'slots',
      'max_prompt_tokens',
      'max_new_tokens',
      'page_tokens',
      'lanes',
      'prefill_pieces',
      'piece_tokens',
      'prefill_burst',
      'decode_chunk',
      'max_stop_ids',
    ):
      value = getattr(self, name)
      if value is not None and value < 1:
        raise ValueError(f'{name} must be >= 1: {value}')
    for name in ('slots', 'prefill_pieces'):
      if self.lanes and (getattr(self, name) or 0) % self.lanes:
        raise ValueError(
          f'lanes must divide {name} {getattr(self, name)}: {self.lanes}'
        )
    if self.page_tokens < 2 or _BLOCK % self.page_tokens:
      raise ValueError(
        f'page_tokens must divide {_BLOCK}, and not be 1: {self.page_tokens}'
      )
    if (self.piece_tokens or 0) % self.page_tokens:
      raise ValueError(
        f'piece_tokens {self.piece_tokens} must be a multiple of page_tokens'
        f' {self.page_tokens}'
      )
    most = max(self.max_prompt_tokens, self.max_new_tokens)
    if self.row_tokens and self.row_tokens < most:
      raise ValueError(
        f'row_tokens {self.row_tokens} is less than max_prompt_tokens or'
        f' max_new_tokens, {most}'
      )
    if self.kv_tokens and self.pages - 1 < self._longest_pages:
      raise ValueError(
        f'kv_tokens {self.kv_tokens} cannot hold one request of'
        f' {self.longest} tokens; 0 is enough for all slots'
      )
    if self.read_share is not None and not 0 < self.read_share <= 1:
      raise ValueError(f'read_share must lie in (0, 1]: {self.read_share}')
    if self.attention not in ('auto', 'blocks', 'kernel', 'gathered'):
      raise ValueError(f'attention: unknown {self.attention!r}')
    if self.kv_dtype not in ('', 'int8'):
      raise ValueError(f"kv_dtype must be '' or 'int8': {self.kv_dtype!r}")
    if not 0 <= self.coalesce_share <= 1:
      raise ValueError(f'coalesce_share must lie in [0, 1]: {self.coalesce_share}')
    if self.company_chunks is not None and self.company_chunks < 0:
      raise ValueError(f'company_chunks must be >= 0: {self.company_chunks}')
    if self.max_kept < 0:
      raise ValueError(f'max_kept must be >= 0: {self.max_kept}')

  @property
  def longest(self) -> int:
    """The largest number of tokens of a prompt and its response together."""
    longest = self.max_prompt_tokens + self.max_new_tokens
    return min(longest, self.row_tokens or longest)

  @property
  def _longest_pages(self) -> int:
    # One more than its slots need: a prompt's last page is held twice.
    return -(-(self.longest - 1) // self.page_tokens) + 1

  @property
  def pages(self) -> int:
    """Pages of the pool, page 0 included, which holds no request's tokens."""
    if self.kv_tokens:
      return 1 + self.kv_tokens // self.page_tokens
    return 1 + self.slots * self._longest_pages

  @property
  def table_pages(self) -> int:
    """Pages of a row's table: whole blocks of slots."""
    return -(-self.longest // _BLOCK) * _BLOCK // self.page_tokens


@dataclasses.dataclass(frozen=True)
class EngineStats:
  """Totals since the engine was made.

  Every accepted request is in exactly one of completed, failed, cancelled,
  queued or running.

  Attributes:
    requests: number of accepted requests.
    completed: number of requests that have a result.
    failed: number of requests that ended in an EngineError (closing included).
    cancelled: number of requests that their caller gave up before they were done.
    queued: number of requests that wait for a slot, or for room, now.
    running: number of requests that have a slot now.
    prompt_tokens: number of prompt tokens of requests that got a slot.
    hit_tokens: number of those that were in pages already, or on their way there.
    prefill_tokens: number of tokens read into pages. A prompt's last token is none of
      them nor of the hits: decode reads it.
    response_tokens: number of tokens of results.
    sampled_tokens: number of tokens sampled on the device. It exceeds response_tokens
      by those past a stop of stop_fn, those of running requests, and those of requests
      that failed or whose callers left.
    prefill_calls: number of calls of prefill on the device.
    decode_steps: number of decode iterations; truncating and plain requests of a lane
      run as separate iterations.
    prefill_seconds: time that the device thread waited for prefill [s].
    decode_seconds: time that it waited for decode, in all lanes [s].
    pending_seconds: time in which the device thread had requests in slots [s]. The rest
      of it, besides the two above, is time that the device stood idle while work was
      there.
    queue_seconds: time between a request and its slot, summed over all that got one
      [s].
    first_token_seconds: time between a request and the look that found its first token,
      summed over all that came so far [s].
    slot_seconds: part of pending_seconds in which a slot was used, summed over all
      slots [s].
    page_seconds: part of pending_seconds in which a request needed a page, summed over
      all pages [s].
    slots: number of slots.
    pages: number of pages that requests may use.
    free_pages: number of pages that hold nothing now.
    evicted_pages: number of pages whose tokens were forgotten to make room.
    compilations: number of programs that this engine compiled, warmup included.
  """

  requests: int = 0
  completed: int = 0
  failed: int = 0
  cancelled: int = 0
  queued: int = 0
  running: int = 0
  prompt_tokens: int = 0
  hit_tokens: int = 0
  prefill_tokens: int = 0
  response_tokens: int = 0
  sampled_tokens: int = 0
  prefill_calls: int = 0
  decode_steps: int = 0
  prefill_seconds: float = 0.0
  decode_seconds: float = 0.0
  pending_seconds: float = 0.0
  queue_seconds: float = 0.0
  first_token_seconds: float = 0.0
  slot_seconds: float = 0.0
  page_seconds: float = 0.0
  slots: int = 0
  pages: int = 0
  free_pages: int = 0
  evicted_pages: int = 0
  compilations: int = 0


def check_request(
  request: Request, config: EngineConfig, *, vocab_size: int, max_positions: int
) -> None:
  """Refuses what the engine could not sample.

  Args:
    request: request to check.
    config: the engine's shapes.
    vocab_size: ids lie in [0, vocab_size).
    max_positions: the model's context [tokens].

  Raises:
    PromptTooLong: prompt and response do not fit.
    ValueError: anything else that is wrong with the request.
  """
  for name in ('prompt_ids', 'key_words', 'stop_ids'):
    _check_integers(name, getattr(request, name))
  ids, asked = request.prompt_ids, request.sampling.max_new_tokens
  stops = request.sampling.stop or request.sampling.stop_after
  if stops and request.stop_fn is None:
    # The engine sees ids and no text, so it would go on behind the stop.
    raise ValueError(
      f'sampling stops at {stops!r}, and there is no stop_fn: give the'
      ' request a stop_fn that finds them'
    )
  if not ids:
    raise ValueError('prompt_ids is empty: there is nothing to condition on')
  if min(ids) < 0 or max(ids) >= vocab_size:
    raise ValueError(
      f'prompt_ids span [{min(ids)}, {max(ids)}], the vocabulary is [0, {vocab_size})'
    )
  if asked > config.max_new_tokens:
    raise ValueError(
      f"max_new_tokens {asked} exceeds the engine's {config.max_new_tokens}"
    )
  if len(request.stop_ids) > config.max_stop_ids:
    raise ValueError(
      f"{len(request.stop_ids)} stop_ids exceed the engine's {config.max_stop_ids}"
    )
  if any(not 0 <= i < vocab_size for i in request.stop_ids):
    raise ValueError(
      f'stop_ids {request.stop_ids} leave the vocabulary [0, {vocab_size})'
    )
  words = request.key_words
  if len(words) != 2 or any(not 0 <= w < _WORD for w in words):
    raise ValueError(f'key_words must be two uint32: {words}')
  if not 0 <= request.top_logprobs <= MAX_TOP_LOGPROBS:
    raise ValueError(
      f'top_logprobs must lie in [0, {MAX_TOP_LOGPROBS}]: {request.top_logprobs}'
    )
  if len(ids) + asked > max_positions:
    raise PromptTooLong(
      f'a prompt of {len(ids)} tokens and {asked} new ones exceed the'
      f' context of {max_positions}'
    )
  if len(ids) > config.max_prompt_tokens:
    raise PromptTooLong(
      f"a prompt of {len(ids)} tokens exceeds the engine's {config.max_prompt_tokens}"
    )
  if len(ids) + asked > config.longest:
    raise PromptTooLong(
      f'a prompt of {len(ids)} tokens and {asked} new ones exceed the'
      f" engine's {config.longest}"
    )
