"""Chat templates, and prompts whose text cannot become a control token.

A chat template is a jinja program that turns messages into one text, in which
added tokens (`<|im_end|>`) mark who speaks. Text from a model, a tool or a
server may spell such a token. It must stay text, and yet be encoded as one piece
with what stands beside it. So every look-alike is broken by a character that
stands nowhere else, the template is rendered, the result is cut only where the
template itself wrote an added token, and the character is taken out again.
"""

import dataclasses
import functools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from agentflow_jax import records


# Whether a chat template is told to let the model think; 'auto' leaves that to
# the template.
Thinking = Literal['auto', 'on', 'off']
# The variables by which released templates are told: enable_thinking of Qwen3,
# SmolLM3 and GLM; thinking of DeepSeek-V3.1 and Granite.
_THINKING_VARIABLES = ('enable_thinking', 'thinking')
_OPEN_THOUGHT = re.compile(r'<(?:think|thinking|reasoning)>\s*\Z')


class TemplateError(ValueError):
  """A chat template that is broken, or that refuses the messages."""


@dataclasses.dataclass(frozen=True)
class AddedToken:
  """A token that the tokenizer finds in text before anything else.

  Attributes:
    id: its id.
    content: how it is spelled.
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
      variables: what the template may read beside the messages: bos_token, ...
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
    self._variables = dict(variables) | _switched(source, thinking)
    self._added = {t.content: t for t in added}
    # Longest first, as the tokenizers package matches them.
    spelled = sorted(self._added, key=lambda c: (-len(c), c))
    # Overlapping look-alikes count, each from its first character.
    self._looks = re.compile(
        '(?=(' + '|'.join(map(re.escape, spelled)) + '))' if spelled else '(?!)'
    )
    self._own = re.compile(
        '|'.join(_with_spaces(self._added[c]) for c in spelled) or '(?!)'
    )
    self.opens_thought = self._opens_thought()

  def _opens_thought(self) -> bool:
    """Renders a probe and reads the text behind its last message."""
    user = records.Segment('user', 'probe', False)
    for prompt in ((user,), (records.Segment('system', 'probe'), user)):
      try:
        text = self.text(prompt)
      except TemplateError:  # Some templates insist on a system message.
        continue
      return bool(_OPEN_THOUGHT.search(text.rpartition('probe')[2]))
    return False

  def text(self, prompt: Sequence[records.Segment]) -> str:
    """Renders a prompt as text, up to where the assistant begins to speak.

    Raises:
      TemplateError: the template refuses the messages.
    """
    rendered, sentinel = self._render(prompt)
    return rendered.replace(sentinel, '')

  def pieces(self, prompt: Sequence[records.Segment]) -> list[str | int]:
    """Renders a prompt as ids of the template's own added tokens, and texts.

    Raises:
      TemplateError: the template refuses the messages.
    """
    rendered, sentinel = self._render(prompt)
    pieces, end = [], 0
    for match in self._own.finditer(rendered):
      if match.start() > end:
        pieces.append(rendered[end : match.start()].replace(sentinel, ''))
      own = match.group()
      token = self._added.get(own) or self._added[own.strip()]
      pieces.append(token.id)
      end = match.end()
    if end < len(rendered):
      pieces.append(rendered[end:].replace(sentinel, ''))
    return [p for p in pieces if p != '']  # A sentinel may stand alone.

  def _render(self, prompt) -> tuple[str, str]:
    sentinel = _absent_from([s.text for s in prompt])
    messages: list[dict[str, str]] = []
    for segment in prompt:
      if not messages or messages[-1]['role'] != segment.role:
        messages.append({'role': segment.role, 'content': ''})
      messages[-1]['content'] += segment.text
    for message in messages:
      message['content'] = self._break(message['content'], sentinel)
    try:
      rendered = self._template.render(
          messages=messages, add_generation_prompt=True, **self._variables
      )
    except Exception as e:  # Whatever a template of somebody else's does.
      raise TemplateError(f'the chat template failed: {e}') from e
    return rendered, sentinel

  def _break(self, text: str, sentinel: str) -> str:
    """Puts the sentinel behind the first character of every look-alike."""
    parts, end = [], 0
    for match in self._looks.finditer(text):
      parts.append(text[end : match.start() + 1])
      end = match.start() + 1
    parts.append(text[end:])
    return sentinel.join(parts)


def _with_spaces(token: AddedToken) -> str:
  left = r'\s*' if token.lstrip else ''
  right = r'\s*' if token.rstrip else ''
  return f'{left}{re.escape(token.content)}{right}'


def _absent_from(texts: Sequence[str]) -> str:
  """Returns a noncharacter, or private character, that no text holds."""
  used = set().union(*texts)
  for code in (*range(0xFDD0, 0xFDF0), *range(0xF0000, 0xFFFFE)):
    if chr(code) not in used:
      return chr(code)
  raise TemplateError('the prompt holds every private character there is')


@functools.cache
def _environment():
  try:
    import jinja2
    from jinja2 import sandbox
  except ModuleNotFoundError as e:
    raise ModuleNotFoundError(
        "chat templates need jinja2: pip install 'agentflow-jax[models]'"
    ) from e

  def fail(message):
    raise jinja2.TemplateError(message)

  environment = sandbox.ImmutableSandboxedEnvironment(
      trim_blocks=True, lstrip_blocks=True, extensions=['jinja2.ext.loopcontrols']
  )
  environment.globals['raise_exception'] = fail
  environment.filters['tojson'] = lambda value, **options: json.dumps(
      value, ensure_ascii=False, indent=options.get('indent')
  )
  # No strftime_now: with it, the same seed would be another run tomorrow.
  return environment


def _compile(source: str):
  environment = _environment()
  try:
    return environment.from_string(source)
  except Exception as e:
    raise TemplateError(f'the chat template does not compile: {e}') from e


def _switched(source: str, thinking: Thinking) -> dict[str, bool]:
  """Returns the variables that switch a template's thinking on or off."""
  if thinking == 'auto':
    return {}
  from jinja2 import meta

  read = meta.find_undeclared_variables(_environment().parse(source))
  found = {v: thinking == 'on' for v in _THINKING_VARIABLES if v in read}
  if not found:
    raise TemplateError(
        f'thinking is {thinking!r}, and the chat template reads neither'
        f' {" nor ".join(_THINKING_VARIABLES)}: it cannot switch thinking; set'
        " thinking to 'auto'"
    )
  return found
