"""What OpenAI-compatible servers are asked, and how their answers are read."""

import contextlib
import dataclasses
import datetime
import email.utils
import json
import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from agentflow_jax import records
from agentflow_jax.agents import endpoint_config


_SURROGATE = re.compile('[\ud800-\udfff]')


class BadAnswer(Exception):
  """A success whose body is no completion."""


@dataclasses.dataclass(frozen=True)
class Answer:
  """A completion as the endpoint gave it.

  Attributes:
    text: what was written, without the stop string.
    finish_reason: 'stop' or 'length'.
    prompt_tokens, completion_tokens: as the endpoint counted; 0 where it does
      not say.
    is_whole: there is text, and no filter or fault ended it.
  """

  text: str
  finish_reason: str
  prompt_tokens: int = 0
  completion_tokens: int = 0
  is_whole: bool = True


def body(
    config: endpoint_config.EndpointConfig,
    prompt: tuple[records.Segment, ...],
    sampling: records.SamplingSpec,
    request_key: records.RequestKey,
) -> dict[str, Any]:
  """Returns the JSON of a request.

  Raises:
    ValueError: the prompt is empty, or the sampling is more than the endpoint
      was said to understand.
  """
  if not prompt:
    raise ValueError('the prompt is empty')
  said = messages(prompt)
  asked: dict[str, Any] = {
      'model': config.model,
      'temperature': sampling.temperature,
      'top_p': sampling.top_p,
      config.token_limit_field: sampling.max_new_tokens,
  }
  if config.api == 'chat':
    asked['messages'] = said
  else:
    asked['prompt'] = '\n\n'.join(m['content'] for m in said)
  if sampling.stop:
    asked['stop'] = list(sampling.stop)
  if config.send_seed:
    asked['seed'] = request_key.words()[0] & 0x7FFFFFFF
  for name, value in (('top_k', sampling.top_k), ('min_p', sampling.min_p)):
    if not value:
      continue
    if not config.extended_sampling:
      raise ValueError(
          f'{name}={value} needs an endpoint with extended_sampling'
      )
    asked[name] = value
  return asked


def messages(prompt: tuple[records.Segment, ...]) -> list[dict[str, str]]:
  """Joins neighbouring segments of one role; chat servers want them to vary.

  A lone surrogate, which a model's JSON may bring and UTF-8 has none of, becomes
  U+FFFD.
  """
  joined: list[dict[str, str]] = []
  for segment in prompt:
    text = _SURROGATE.sub('\ufffd', segment.text)
    if joined and joined[-1]['role'] == segment.role:
      joined[-1]['content'] += text
    else:
      joined.append({'role': segment.role, 'content': text})
  return joined


def parse(content: bytes) -> Answer:
  """Reads a success, of either interface.

  Raises:
    BadAnswer: it is anything else than a completion.
  """
  try:
    answer = json.loads(content)
    choice = answer['choices'][0]
    text = choice['text'] if 'text' in choice else choice['message']['content']
    finish_reason = choice.get('finish_reason')
  except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
    raise BadAnswer('a success that is no completion') from None
  if text is not None and not isinstance(text, str):
    raise BadAnswer('a completion whose content is no text')
  end = 'length' if finish_reason == 'length' else 'stop'
  is_whole = bool(text) and finish_reason in ('stop', 'length', None)
  return Answer(text or '', end, *_tokens(answer.get('usage')), is_whole)


@dataclasses.dataclass(frozen=True)
class Embeddings:
  """Vectors as the endpoint gave them.

  Attributes:
    vectors: float32 [N, D], in the order of the texts.
    prompt_tokens, completion_tokens: as the endpoint counted.
  """

  vectors: np.ndarray
  prompt_tokens: int = 0
  completion_tokens: int = 0


def embedding_body(
    config: endpoint_config.EndpointConfig, texts: Sequence[str]
) -> dict[str, Any]:
  """Returns the JSON of a request for embeddings."""
  return {
      'model': config.model,
      'input': [_SURROGATE.sub('\ufffd', text) for text in texts],
      'encoding_format': 'float',
  }


def parse_embeddings(content: bytes, count: int) -> Embeddings:
  """Reads a success of the embeddings interface.

  Args:
    content: of the response.
    count: vectors that were asked for.

  Raises:
    BadAnswer: it is anything else than so many vectors of one length.
  """
  try:
    answer = json.loads(content)
    found = {row['index']: row['embedding'] for row in answer['data']}
    rows = [found[i] for i in range(count)]
    # Lists of numbers only: NumPy would read numbers out of strings.
    if not all(
        type(x) in (int, float) for row in rows for x in row
    ) or len(answer['data']) != count:
      raise ValueError
    vectors = np.asarray(rows, np.float32)
  except (
      ValueError, LookupError, TypeError, AttributeError, RecursionError,
      OverflowError,
  ):
    raise BadAnswer(f'a success that is not {count} embeddings') from None
  if vectors.ndim != 2 or not vectors.size or not np.isfinite(vectors).all():
    raise BadAnswer('embeddings that are no finite vectors of one length')
  return Embeddings(vectors, *_tokens(answer.get('usage')))


def _tokens(usage: Any) -> tuple[int, int]:
  """Tokens read and written, as far as the endpoint says."""
  if not isinstance(usage, dict):
    return 0, 0
  counts = (usage.get(f'{n}_tokens') for n in ('prompt', 'completion'))
  # A bool is an int, too; a count below 0, or that no float holds, is none.
  return tuple(c if type(c) is int and 0 < c < 2**53 else 0 for c in counts)


def retry_after(header: str | None) -> float | None:
  """Seconds that a Retry-After header asks for: a number or an HTTP date."""
  if header is None:
    return None
  with contextlib.suppress(ValueError):
    seconds = float(header)
    return max(seconds, 0.0) if math.isfinite(seconds) else None
  with contextlib.suppress(ValueError, OverflowError):
    date = email.utils.parsedate_to_datetime(header)
    if date.tzinfo is None:
      date = date.replace(tzinfo=datetime.timezone.utc)
    now = datetime.datetime.now(datetime.timezone.utc)
    return max((date - now).total_seconds(), 0.0)
  return None
