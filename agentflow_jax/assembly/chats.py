"""Chats of a user's file, as the turns that supervised training imitates."""

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from agentflow_jax import records
from agentflow_jax.agents import chat_messages
from agentflow_jax.assembly import engine_model
from agentflow_jax.config import schema
from agentflow_jax.data import rows
from agentflow_jax.tokenization import tokenizers


@dataclasses.dataclass(frozen=True)
class Chats:
  """What a file of chats holds for a planner.

  Attributes:
    turns: turns of each chat that has any: one for each answer that fits.
    answers: number of answers in the file.
    too_long: number of answers that are left out, because the answer and the
      conversation before it have more tokens than a row.
    longest: number of tokens of the longest answer with its conversation.
  """

  turns: tuple[tuple[records.Turn, ...], ...]
  answers: int
  too_long: int
  longest: int


def read(path: str, tokenizer: tokenizers.Tokenizer, most_tokens: int) -> Chats:
  """Reads chats, and encodes every answer of the assistant as a turn.

  A row is an object with `messages`, and `tools` where there are any, both as OpenAI's
  interface writes them. Arguments of calls may also be objects, and ids of calls may
  be absent: then results follow in the order of the calls. An answer whose `weight` is
  0 is not imitated.

  Args:
    path: JSONL or parquet files, see data.rows.locate.
    tokenizer: tokenizer of the planner, which renders the messages by its template.
    most_tokens: largest number of tokens of a conversation with its answer.

  Raises:
    ConfigError: there is no such file, or a row is no chat or cannot be rendered;
      names the row.
  """
  found, lengths = [], []
  try:
    for file in rows.locate(path):
      for where, row in rows.read(file, ('messages',), ('tools',)):
        try:
          turns = [_turn(tokenizer, *answer) for answer in _answers(row)]
        except ValueError as e:
          raise rows.MalformedRow(f'{where}: {e}') from e
        lengths += [_length(turn) for turn in turns]
        turns = [turn for turn in turns if _length(turn) <= most_tokens]
        if turns:
          found.append(tuple(turns))
  except rows.MalformedRow as e:
    raise schema.ConfigError(f'sft.chats: {e}') from e
  too_long = sum(length > most_tokens for length in lengths)
  return Chats(tuple(found), len(lengths), too_long, max(lengths, default=0))


def _turn(tokenizer, prompt, response, tools) -> records.Turn:
  prompt_ids, ids = engine_model.render_answered(tokenizer, prompt, response, tools)
  completion = records.Completion(tokenizer.decode(ids), tuple(prompt_ids), tuple(ids))
  return records.Turn(completion, records.SamplingSpec())


def _length(turn: records.Turn) -> int:
  return len(turn.completion.prompt_ids) + len(turn.completion.response_ids)


def _answers(
  row: Mapping[str, Any],
) -> Iterator[
  tuple[tuple[records.Segment, ...], records.Segment, tuple[Mapping[str, Any], ...]]
]:
  """Yields (conversation so far, answer, tools) of each answer that is imitated."""
  messages = row['messages']
  tools = row.get('tools')
  tools = [] if tools is None else tools
  if not isinstance(messages, list) or not messages:
    raise ValueError('messages must be a list of at least one')
  if not isinstance(tools, list):
    raise ValueError('tools must be a list')
  chat_messages.check_tools(tools)
  weights = [_weight(message, i) for i, message in enumerate(messages)]
  segments = chat_messages.conversation(_as_sent(messages), open_calls=True)
  # Results change places with each other only, so answers stay where they are.
  for i, (segment, weight) in enumerate(zip(segments, weights, strict=True)):
    if segment.role == 'assistant' and weight:
      yield segments[:i], segment, tuple(tools)


def _weight(message: Any, index: int) -> int:
  weight = message.get('weight') if isinstance(message, dict) else None
  if weight not in (None, 0, 1) or isinstance(weight, float):
    raise ValueError(f'messages[{index}].weight must be 0 or 1')
  return 1 if weight is None else weight


def _as_sent(messages: Sequence[Any]) -> list[Any]:
  """Returns messages as a client would send them: calls with ids, arguments as text."""
  found, waiting, number = [], [], 0
  for message in messages:
    if isinstance(message, dict):
      message = {k: v for k, v in message.items() if k != 'weight'}
      calls = message.get('tool_calls')
      if message.get('role') == 'assistant' and isinstance(calls, list):
        waiting = []
        message['tool_calls'] = named = []
        for call in calls:
          name = f'call_{number}'
          number += 1
          if isinstance(call, dict) and call.get('id') is None:
            call = call | {'id': name}
            waiting.append(name)
          named.append(_with_text(call))
      elif message.get('role') == 'tool' and message.get('tool_call_id') is None:
        if waiting:
          message['tool_call_id'] = waiting.pop(0)
    found.append(message)
  return found


def _with_text(call: Any) -> Any:
  """Returns a call whose arguments are a text of JSON."""
  function = call.get('function') if isinstance(call, dict) else None
  if not isinstance(function, dict) or not isinstance(function.get('arguments'), dict):
    return call
  text = json.dumps(function['arguments'], ensure_ascii=False)
  return call | {'function': function | {'arguments': text}}
