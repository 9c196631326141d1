"""What OpenAI-compatible servers are asked, and how their answers are read."""

import contextlib
import dataclasses
import datetime
import email.utils
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from agentflow_jax import records
from agentflow_jax.agents import call_text
from agentflow_jax.agents.endpoints import settings


_SURROGATE = re.compile('[\ud800-\udfff]')
_MAX_ERROR_CHARACTERS = 300
# Why a completion ended, in the words of the servers that are known; see `_word`.
_STOPS = frozenset(
  {
    '',
    'stop',
    'stopped',
    'eos',
    'eos_token',
    'eot',
    'eot_token',
    'eom',
    'end',
    'ended',
    'end_turn',
    'end_of_turn',
    'end_of_text',
    'endoftext',
    'end_of_sequence',
    'end_of_sentence',
    'im_end',
    's',
    'stop_sequence',
    'stop_string',
    'stop_str',
    'stop_token',
    'stop_word',
    'stop_words',
    'complete',
    'completed',
    'finish',
    'finished',
    'done',
    'normal',
  }
)
_LENGTHS = frozenset(
  {
    'length',
    'length_limit',
    'limit',
    'token_limit',
    'max_tokens',
    'max_tokens_reached',
    'max_output_tokens',
    'max_completion_tokens',
    'max_new_tokens',
    'max_length',
    'max_seq_len',
    'max_context_length',
    'model_length',
    'context_length',
    'context_length_exceeded',
    'context_window_exceeded',
    'model_context_window_exceeded',
  }
)
# Reasons that leave a text, which may be half of an answer.
_CUT_SHORT = frozenset(
  {
    'content_filter',
    'content_filtered',
    'safety',
    'image_safety',
    'recitation',
    'language',
    'blocklist',
    'prohibited_content',
    'spii',
    'refusal',
    'sensitive',
    'error_toxic',
    'repetition',
    'repetition_detected',
    'pause_turn',
    'tool_calls',
    'tool_call',
    'tool_use',
    'function_call',
    'malformed_function_call',
    'guardrail_intervened',
  }
)
# Fields of a message that hold its thoughts, the usual ones first.
_THOUGHT_FIELDS = (
  'reasoning_content',
  'reasoning',
  'thinking',
  'reasoning_text',
  'thinking_blocks',
  'reasoning_details',
)
_FIELDS = frozenset(
  {'content', 'refusal', 'tool_calls', 'function_call', 'role', *_THOUGHT_FIELDS}
)
_TEXT_PARTS = frozenset({None, 'text', 'output_text', 'input_text'})
_THOUGHT_PARTS = frozenset(
  {
    'thinking',
    'reasoning',
    'reasoning_text',
    'reasoning.text',
    'reasoning.summary',
    'summary_text',
  }
)
# Fields of a part of thoughts that may hold its text.
_INNER = ('thinking', 'reasoning', 'text', 'content', 'summary')
# Parts without words: a citation's number, encrypted thoughts, a refusal, a call.
_SILENT_PARTS = frozenset(
  {
    'reference',
    'citations_content',
    'redacted_thinking',
    'reasoning.encrypted',
    'refusal',
    'tool_use',
    'tool_call',
    'tool_calls',
    'function_call',
  }
)
_CAMEL = re.compile(r'(?<=[a-z])(?=[A-Z])')
_NO_WORD = re.compile(r'[^a-z]+')


class BadAnswer(Exception):
  """A response with a success status whose body is not a completion.

  Attributes:
    said: the server's own error message, if the body holds one.
  """

  def __init__(self, reason: str, said: str = ''):
    super().__init__(f'{reason}: {said}' if said else reason)
    self.said = said


@dataclasses.dataclass(frozen=True)
class Answer:
  """A completion as the endpoint gave it.

  Attributes:
    text: text of the answer, without the stop string.
    finish_reason: 'stop' or 'length'.
    prompt_tokens, completion_tokens: the endpoint's counts of tokens; 0 where it does
      not say.
    is_whole: there is text, and no filter or fault ended it.
    thoughts: reasoning that the server returned apart from the text.
  """

  text: str
  finish_reason: str
  prompt_tokens: int = 0
  completion_tokens: int = 0
  is_whole: bool = True
  thoughts: str = ''


def body(
  config: settings.EndpointConfig,
  prompt: tuple[records.Segment, ...],
  sampling: records.SamplingSpec,
  request_key: records.RequestKey,
  tools: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
  """Returns the JSON of a request.

  Raises:
    ValueError: the prompt is empty, or the sampling, or the tools, are more than the
      endpoint was said to understand.
  """
  if not prompt:
    raise ValueError('the prompt is empty')
  if tools and config.api != 'chat':
    raise ValueError(f'tools need an endpoint with api=chat, not {config.api}')
  said = messages(prompt)
  asked: dict[str, Any] = {
    'model': config.model,
    'temperature': sampling.temperature,
    'top_p': sampling.top_p,
    config.token_limit_field: sampling.max_new_tokens,
  }
  if config.api == 'chat':
    asked['messages'] = said
    asked |= _switch(config)
    if tools:
      asked['tools'] = list(tools)
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
      raise ValueError(f'{name}={value} needs an endpoint with extended_sampling')
    asked[name] = value
  return asked


def _switch(config: settings.EndpointConfig) -> dict[str, Any]:
  """Returns the field that switches thinking on or off; {} for 'auto'."""
  if config.thinking == 'auto':
    return {}
  on = config.thinking == 'on'
  if config.thinking_field == 'enable_thinking':
    return {'enable_thinking': on}
  # Templates read one of these names: Qwen3 and GLM the first, DeepSeek-V3.1
  # and Granite the second.
  return {'chat_template_kwargs': {'enable_thinking': on, 'thinking': on}}


def messages(prompt: tuple[records.Segment, ...]) -> list[dict[str, Any]]:
  """Joins neighbouring segments of one role; chat servers want them to vary.

  A lone surrogate, which a model's JSON may bring and UTF-8 has none of, becomes
  U+FFFD.
  """
  found: list[dict[str, Any]] = []
  made, waiting = 0, []
  for segment in records.joined(prompt):
    text = _SURROGATE.sub('\ufffd', segment.text)
    found.append({'role': segment.role, 'content': text})
    if segment.calls:
      waiting = [f'call{made + i:05d}' for i in range(len(segment.calls))]
      made += len(waiting)
      found[-1]['tool_calls'] = [
        {
          'id': name,
          'type': 'function',
          'function': {
            'name': call.tool,
            'arguments': json.dumps(dict(call.arguments), ensure_ascii=False),
          },
        }
        for name, call in zip(waiting, segment.calls)
      ]
    elif segment.role == 'tool' and waiting:
      found[-1]['tool_call_id'] = waiting.pop(0)
  return found


def parse(content: bytes, with_calls: bool = False) -> Answer:
  """Reads a success, of either interface.

  The content is text, or parts whose texts are joined. Thoughts are parts of
  their own (Mistral), or a field beside the content: reasoning_content
  (DeepSeek, SGLang) or reasoning (OpenRouter, newer vLLM). A completion of
  thoughts alone has no text.

  Args:
    content: content of the response.
    with_calls: whether tools were sent. Calls are then part of the text, in the form
      of agents.call_text; the form in which the server's model writes them is lost.

  Raises:
    BadAnswer: the content is not a completion, or the completion ended for an
      unknown reason, which the error names.
  """
  try:
    answer = json.loads(content)
    _raise_error(answer)
    choice = answer['choices'][0]
    _raise_error(choice)
    is_legacy = 'text' in choice and 'message' not in choice
    message = choice if is_legacy else choice['message']
    if is_legacy:
      text, thoughts = _read_parts(choice['text'])
    elif message.keys() & _FIELDS:
      text, thoughts = _read_parts(message.get('content'))
    else:
      raise LookupError('an empty message')
    thoughts = thoughts or _reasoning(message)
    reason = choice.get('finish_reason')
    calls = _calls(message.get('tool_calls')) if with_calls else []
  except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
    raise BadAnswer('a success that is no completion') from None
  end, is_whole = _read_end(reason)
  if calls:
    is_whole = is_whole or end == 'stop'
    text = call_text.write(text, calls)
  return Answer(
    text, end, *_tokens(answer.get('usage')), is_whole and bool(text), thoughts
  )


def _calls(said: Any) -> list[tuple[str, Any]]:
  """Returns name and arguments of each call; arguments as text where no object."""
  found = []
  for one in said or ():
    name, arguments = one['function']['name'], one['function'].get('arguments')
    if isinstance(arguments, str):
      with contextlib.suppress(ValueError, RecursionError):
        read = json.loads(arguments)
        json.dumps([read])  # What is nested too deep stays text, and is refused later.
        arguments = read
    found.append((name, arguments))
  return found


def _raise_error(value: dict[str, Any]) -> None:
  """Raises BadAnswer if a body, or a choice, holds an error."""
  error = value.get('error')
  if error:
    said = error.get('message') if isinstance(error, dict) else error
    raise BadAnswer(
      'a success that holds an error', str(said or error)[:_MAX_ERROR_CHARACTERS]
    )


def _read_parts(content: Any) -> tuple[str, str]:
  """Returns the text and the thoughts of a message's content."""
  if content is None or isinstance(content, str):
    return content or '', ''
  if isinstance(content, dict):  # One part that stands for itself.
    content = [content]
  if not isinstance(content, list):
    raise BadAnswer('a completion whose content is no text')
  texts, thoughts = [], []
  for part in content:
    kind = 'text' if isinstance(part, str) else part.get('type')
    if isinstance(part, str):
      texts.append(part)
    elif kind in _TEXT_PARTS and (text := _text_of(part)) is not None:
      texts.append(text)
    elif kind in _THOUGHT_PARTS:
      inner = next((v for n in _INNER if (v := part.get(n))), None)
      thoughts += _read_parts(inner)
    elif kind not in _SILENT_PARTS:
      raise BadAnswer(f'a completion whose content has a part of type {kind!r}')
  return ''.join(texts), ''.join(thoughts)


def _text_of(part: dict[str, Any]) -> str | None:
  """Returns the text of a part; None where the part holds none."""
  text = part.get('text', ...)
  if isinstance(text, dict):  # {'value': 'Paris', 'annotations': []}
    text = text.get('value', ...)
  if text is None:
    return ''
  return text if isinstance(text, str) else None


def _reasoning(message: dict[str, Any]) -> str:
  """Returns the thoughts that stand in a field of their own."""
  for name in _THOUGHT_FIELDS:
    value = message.get(name)
    if isinstance(value, str) and value:
      return value
    if isinstance(value, dict):
      value = [{'type': 'thinking', **value}]
    if isinstance(value, list):
      return ''.join(_read_parts(value))
  return ''


def _read_end(reason: Any) -> tuple[str, bool]:
  """Returns 'stop' or 'length', and whether the completion ended by itself."""
  if isinstance(reason, dict):  # {'type': 'stop', ...}
    reason = reason.get('type')
  if not isinstance(reason, str | None):
    raise BadAnswer(f'a completion that ended with finish_reason {reason!r:.80}')
  word = _word(reason or '')
  if word in _STOPS:
    return 'stop', True
  if word in _LENGTHS:
    return 'length', True
  if word in _CUT_SHORT:
    return 'stop', False
  raise BadAnswer(f'a completion that ended with finish_reason {reason!r:.80}')


def _word(reason: str) -> str:
  """Returns a reason in lower case: 'FINISH_REASON_MAX_TOKENS' is 'max_tokens'.

  Servers that pass on another program's reason write 'maxTokens', 'max-tokens',
  or the token that ended the text, such as '<|im_end|>'.
  """
  word = _NO_WORD.sub('_', _CAMEL.sub('_', reason).lower()).strip('_')
  return word.removeprefix('finish_reason_')


@dataclasses.dataclass(frozen=True)
class Embeddings:
  """Vectors as the endpoint gave them.

  Attributes:
    vectors: float32 [N, D], in the order of the texts.
    prompt_tokens, completion_tokens: the endpoint's counts of tokens.
  """

  vectors: np.ndarray
  prompt_tokens: int = 0
  completion_tokens: int = 0


def embedding_body(
  config: settings.EndpointConfig, texts: Sequence[str]
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
    content: body of the response.
    count: number of vectors that were asked for.

  Raises:
    BadAnswer: it is anything else than so many vectors of one length.
  """
  try:
    answer = json.loads(content)
    found = {row['index']: row['embedding'] for row in answer['data']}
    rows = [found[i] for i in range(count)]
    # Lists of numbers only: NumPy would read numbers out of strings.
    if (
      not all(type(x) in (int, float) for row in rows for x in row)
      or len(answer['data']) != count
    ):
      raise ValueError
    vectors = np.asarray(rows, np.float32)
  except (
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    RecursionError,
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
  read, written = (c if type(c) is int and 0 < c < 2**53 else 0 for c in counts)
  return read, written


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
      date = date.replace(tzinfo=datetime.UTC)
    now = datetime.datetime.now(datetime.UTC)
    return max((date - now).total_seconds(), 0.0)
  return None
