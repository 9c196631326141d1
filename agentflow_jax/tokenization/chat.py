"""Chat templates, and prompts whose text cannot become a control token.

A chat template is a jinja program that turns messages into one text, in which
added tokens (`<|im_end|>`) mark who speaks. Text from a model, a tool or a
server may spell such a token. It must stay text, and yet be encoded as one piece
with what stands beside it. So the template is given messages whose characters
hold marks (see message_text), the result is cut only where the template itself
wrote an added token, and the marks are taken out again.
"""

import dataclasses
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from agentflow_jax import records
from agentflow_jax.tokenization import jinja_environment, message_text
from agentflow_jax.tokenization import template_bounds


# Whether a chat template is told to let the model think; 'auto' leaves that to
# the template.
Thinking = Literal['auto', 'on', 'off']
# The variables that released templates read: Qwen3, SmolLM3 and GLM read
# enable_thinking; DeepSeek-V3.1 and Granite read thinking.
_THINKING_VARIABLES = ('enable_thinking', 'thinking')
_PROBES = (
  {
    'type': 'function',
    'function': {
      'name': 'probe_name',
      'description': 'probe_purpose',
      'parameters': {
        'type': 'object',
        'required': ['probe_argument'],
        'properties': {'probe_argument': {'type': 'string', 'description': 'probe'}},
      },
    },
  },
)
_THOUGHT_TAG = re.compile(
  rf'<(/?)(?:{records.THOUGHT_TAGS})>|\[(/?)think\]', re.IGNORECASE
)


class TemplateError(ValueError):
  """A chat template that is broken, or that refuses the messages."""


class TooCostly(TemplateError):
  """A chat template that asks for too much time or memory."""


@dataclasses.dataclass(frozen=True)
class AddedToken:
  """A token that the tokenizer finds in text before anything else.

  Attributes:
    id: its id.
    content: spelling of the token.
    special: whether it says nothing itself: decoding drops it.
    lstrip: whether it takes the white space before it.
    rstrip: whether it takes the white space after it.
  """

  id: int
  content: str
  special: bool = True
  lstrip: bool = False
  rstrip: bool = False


class ChatTemplate:
  """A model's own chat template over its own added tokens.

  Attributes:
    opens_thought: whether a prompt ends inside a thought that the template
      opened, so that a response begins with the rest of that thought.
    shown_call: text of a response with one call as the template writes it, which is
      what the model was trained to write; '' where the template shows no tools, calls
      or results. `pieces` takes them only where there is such a text.
  """

  def __init__(
    self,
    source: str,
    added: Sequence[AddedToken],
    variables: Mapping[str, Any],
    thinking: Thinking = 'auto',
  ):
    """Compiles a template, in jinja's sandbox.

    Args:
      source: the template.
      added: every added token, special or not.
      variables: variables that the template may read beside the messages: bos_token,
        ...
      thinking: value of the template's variable that switches thinking.

    Raises:
      TemplateError: it does not compile, or an added token has one character,
        which no other could break; or `thinking` is not 'auto' and the template
        has no such variable.
      ModuleNotFoundError: the package jinja2 is not installed.
    """
    for token in added:
      if len(token.content) < 2:
        raise TemplateError(f'added token {token.content!r} is one character')
    self._template = _compile(source)
    self._patterns: dict[str, re.Pattern[str]] = {}
    self._variables = dict(variables) | _switched(source, thinking)
    self._added = {t.content: t for t in added}
    # Longest first, as the tokenizers package matches them.
    spelled = sorted(self._added, key=lambda c: (-len(c), c))
    # Overlapping look-alikes count, each from its first character.
    self._looks = re.compile(
      '(?=(' + '|'.join(map(re.escape, spelled)) + '))' if spelled else '(?!)'
    )
    self._longest_first = [self._added[c] for c in spelled]
    self.opens_thought = self._opens_thought()
    self.shown_call = self._shown_calls(1)
    # Llama 3's template refuses several calls in one message.
    self._joins_calls = bool(self.shown_call and self._shown_calls(2))

  def _shown_calls(self, count: int) -> str:
    """Renders a probe; returns the message with calls, '' where they are left out."""
    calls = tuple(
      records.ToolCall('probe_name', {'probe_argument': f'probe_value_{i}'})
      for i in range(count)
    )
    prompt = (
      records.Segment('system', 'probe'),
      records.Segment('user', 'probe'),
      records.Segment('assistant', '', calls=calls),
      *(records.Segment('tool', f'probe_result_{i}') for i in range(count)),
    )
    try:
      pieces = self._pieces(*self._render(prompt, tools=_PROBES, split=False))
    except TooCostly:
      raise
    except TemplateError:
      return ''
    spelled = {t.id: '\0' if t.special else t.content for t in self._longest_first}
    text = ''.join(p if isinstance(p, str) else spelled[p] for p in pieces)
    wanted = (
      'probe_purpose',
      *(f'probe_{what}_{i}' for i in range(count) for what in ('value', 'result')),
    )
    if not all(word in text for word in wanted):
      return ''
    # Special tokens, which decoding drops, stand around the messages.
    said = next(part for part in text.split('\0') if 'probe_value_0' in part)
    return said.strip().removeprefix('assistant').strip()

  def _opens_thought(self) -> bool:
    """Renders a probe, and reads whether its end is inside a thought."""
    user = records.Segment('user', 'probe', False)
    for prompt in ((user,), (records.Segment('system', 'probe'), user)):
      try:
        text = self.text(prompt)
      except TooCostly:
        raise
      except TemplateError:  # Some templates insist on a system message.
        continue
      tags = list(_THOUGHT_TAG.finditer(text.rpartition('probe')[2]))
      return bool(tags) and not (tags[-1][1] or tags[-1][2])
    return False

  def text(self, prompt: Sequence[records.Segment]) -> str:
    """Renders a prompt as text, up to where the assistant begins to speak.

    Raises:
      TemplateError: the template refuses the messages.
    """
    rendered, mark = self._render(prompt)
    return rendered.replace(mark, '')

  def pieces(
    self, prompt: Sequence[records.Segment], tools: Sequence[Mapping[str, Any]] = ()
  ) -> list[str | int]:
    """Renders a prompt as ids of the template's own added tokens, and texts.

    Args:
      prompt: prompt, with calls and results only where there is a `shown_call`.
      tools: tools as OpenAI's interface describes them. No text in them becomes a
        control token.

    Raises:
      TemplateError: the template refuses the messages.
    """
    return self._pieces(*self._render(prompt, tools=tools))

  def response_pieces(
    self,
    prompt: Sequence[records.Segment],
    response: records.Segment,
    tools: Sequence[Mapping[str, Any]] = (),
  ) -> list[str | int]:
    """Renders what the template writes behind a prompt for the assistant's answer.

    Args:
      prompt: prompt, see `pieces`.
      response: message of the assistant that follows it, with calls only where there
        is a `shown_call`.
      tools: tools, see `pieces`.

    Returns:
      Pieces as of `pieces`: the answer, and what the template puts after it.

    Raises:
      TemplateError: the template refuses the messages, writes several calls in
        messages of their own, or writes the prompt of the answered conversation
        otherwise than that of the open one.
    """
    if len(response.calls) > 1 and not self._joins_calls:
      raise TemplateError('the chat template writes one call in a message')
    before = self.pieces(prompt, tools)
    whole = self._pieces(*self._render((*prompt, response), asks=False, tools=tools))
    # The answer's first text is often in one piece with the prompt's last.
    last = ''
    if before and isinstance(before[-1], str):
      last, before = before[-1], before[:-1]
    rest = whole[len(before) :]
    first = rest[0] if rest else ''
    if last and isinstance(first, str) and first.startswith(last):
      rest, last = [first[len(last) :], *rest[1:]], ''
    if last or whole[: len(before)] != before:
      raise TemplateError(
        'the chat template does not put an answer behind the prompt that it writes for'
        ' it'
      )
    return [p for p in rest if p != '']

  def ends_of_turn(self) -> set[int]:
    """Returns ids of the added tokens that the template puts after answers."""
    prompt = (records.Segment('user', 'probe'), records.Segment('assistant', 'probe'))
    try:
      pieces = self._pieces(*self._render(prompt, asks=False))
    except TooCostly:
      raise
    except TemplateError:
      return set()
    ends = set()
    for piece in reversed(pieces):
      if isinstance(piece, int):
        ends.add(piece)
      elif 'probe' in piece:
        return ends
      else:
        ends.clear()  # These follow other text, not the answer.
    return set()

  def _pieces(self, rendered: str, mark: str) -> list[str | int]:
    pieces, end = [], 0
    for match in self._own(mark).finditer(rendered):
      pieces.append(rendered[end : match.start()].replace(mark, ''))
      own = match.group().replace(mark, '')
      token = self._added.get(own) or self._added[own.strip()]
      pieces.append(token.id)
      end = match.end()
    pieces.append(rendered[end:].replace(mark, ''))
    return [p for p in pieces if p != '']

  def _own(self, mark: str) -> re.Pattern[str]:
    """Returns a pattern of the added tokens; the marks keep messages out."""
    if mark not in self._patterns:
      self._patterns[mark] = re.compile(
        '|'.join(_with_spaces(t, mark) for t in self._longest_first) or '(?!)'
      )
    return self._patterns[mark]

  def _render(
    self, prompt, asks: bool = True, tools=(), split: bool | None = None
  ) -> tuple[str, str]:
    """Returns the rendered prompt with marks in it, and the mark.

    Args:
      prompt: segments of the prompt.
      asks: whether the rendered prompt begins the assistant's next turn.
      tools: tools, see `pieces`.
      split: whether each call is in a message of its own; None as it has to be.
    """
    segments = records.joined(prompt)
    if any(len(s.calls) > 1 for s in segments) and (
      not self._joins_calls if split is None else split
    ):
      segments = _one_call_each(segments)
    try:
      texts = _texts(
        [
          *(s.text for s in segments),
          *tools,
          *(part for s in segments for c in s.calls for part in (c.tool, c.arguments)),
        ]
      )
      marker = message_text.Marker(_absent_from(texts), self._looks)
      messages = _messages(segments, marker)
      shown = message_text.marked_json(list(tools), marker)
      with template_bounds.budget():
        rendered = self._template.render(
          # transformers passes None, and templates test `tools is not none`.
          {'tools': None, 'documents': None}
          | self._variables
          | ({'tools': shown} if shown else {}),
          messages=messages,
          add_generation_prompt=asks,
        )
    except (MemoryError, RecursionError, template_bounds.TooMuch) as e:
      raise TooCostly(
        f'the chat template asks for too much: {str(e) or type(e).__name__}'
      ) from e
    except TemplateError:
      raise
    except Exception as e:  # Whatever a template of somebody else's does.
      raise TemplateError(f'the chat template failed: {e}') from e
    # The join makes a plain str that holds the marks.
    return ''.join([rendered]), marker.mark


def _one_call_each(segments: Sequence[records.Segment]) -> list[records.Segment]:
  """Returns a conversation whose messages have one call, each before its result."""
  found, at = [], 0
  while at < len(segments):
    segment = segments[at]
    results = segments[at + 1 : at + 1 + len(segment.calls)]
    if len(segment.calls) < 2:
      found.append(segment)
      at += 1
      continue
    for i, (call, result) in enumerate(zip(segment.calls, results, strict=True)):
      text = segment.text if i == 0 else ''
      found += [dataclasses.replace(segment, text=text, calls=(call,)), result]
    at += 1 + len(results)
  return found


def _messages(
  segments: Sequence[records.Segment], marker: message_text.Marker
) -> list[dict[str, Any]]:
  """Returns messages as templates read them, with marks in their texts."""
  messages, waiting, number = [], [], 0
  for segment in segments:
    message = {
      'role': segment.role,
      'content': message_text.marked_json(segment.text, marker),
    }
    if segment.calls:
      message['tool_calls'], waiting = [], []
      for call in segment.calls:
        name = message_text.marked_json(call.tool, marker)
        arguments = message_text.marked_json(call.arguments, marker)
        # Mistral's templates want nine characters.
        waiting.append((f'call{number:05d}', name))
        message['tool_calls'].append(
          {
            'id': waiting[-1][0],
            'type': 'function',
            'function': {'name': name, 'arguments': arguments},
          }
        )
        number += 1
    elif segment.role == 'tool' and waiting:
      message['tool_call_id'], message['name'] = waiting.pop(0)
    messages.append(message)
  return messages


def _texts(value: Any) -> list[str]:
  """Returns the texts in a value of JSON, the keys of its objects included."""
  found, waiting = [], [value]
  while waiting:
    one = waiting.pop()
    if isinstance(one, str):
      found.append(one)
    elif isinstance(one, Mapping):
      waiting += [*one.keys(), *one.values()]
    elif isinstance(one, (list, tuple)):
      waiting += one
  return found


def _with_spaces(token: AddedToken, mark: str) -> str:
  left = rf'[\s{mark}]*' if token.lstrip else ''
  right = rf'[\s{mark}]*' if token.rstrip else ''
  return f'{left}{re.escape(token.content)}{right}'


def _absent_from(texts: Sequence[str]) -> str:
  """Returns a noncharacter, or private character, that no text holds."""
  used = set().union(*texts)
  for code in itertools.chain(range(0xFDD0, 0xFDF0), range(0xF0000, 0xFFFFE)):
    if chr(code) not in used:
      return chr(code)
  raise TemplateError('the prompt holds every private character there is')


def _compile(source: str):
  try:
    return jinja_environment.compile_template(source)
  except ModuleNotFoundError:
    raise
  except Exception as e:
    raise TemplateError(f'the chat template does not compile: {e}') from e


def _switched(source: str, thinking: Thinking) -> dict[str, bool]:
  """Returns the variables that switch a template's thinking on or off."""
  if thinking == 'auto':
    return {}
  read = jinja_environment.variables_of(source)
  found = {v: thinking == 'on' for v in _THINKING_VARIABLES if v in read}
  if not found:
    raise TemplateError(
      f'thinking is {thinking!r}, and the chat template reads neither'
      f' {" nor ".join(_THINKING_VARIABLES)}: it cannot switch thinking; set'
      " thinking to 'auto'"
    )
  return found
