"""The one definition of a model's thoughts, and of the text behind them.

Reasoning models think before they speak. Their thoughts arrive in four forms:

  1. in the text, between tags: `<think> ... </think>`. The tags `<thinking>`,
     `<thought>`, `<thoughts>`, `<reasoning>`, `<seed:think>`, `[THINK]`,
     `◁think▷`, `<|begin_of_thought|>` and `<|START_THINKING|>` mean the same, in
     any case; those in `<>` may have attributes;
  2. in the text, with a closing tag alone: the chat template wrote the opening
     tag, which stands in the prompt;
  3. in the text, as Harmony's channels: `<|channel|>analysis<|message|> ...`
     before `<|channel|>final<|message|>` and the answer, with or without the
     control tokens;
  4. apart from the text: a server that separates thoughts itself returns them
     in a field of their own (`records.Completion.thoughts`).

Every reader of a model's text (plans, commands, verdicts, answers, analyses,
grades, rewards) reads the text behind the thoughts. Token ids, log
probabilities and `records.Completion.text` keep everything.

Thoughts stand at the beginning of a text, or are a block of lines of their own
further down. Any other tag in the middle of an answer, such as in an answer about
HTML, is part of the answer.
"""

import bisect
import dataclasses
import re

from agentflow_jax import records

# Attributes end with the line of their tag, so the time is linear.
_TAG = re.compile(
  rf'<(?P<close>/?)(?P<name>{records.THOUGHT_TAGS})'
  r'(?:[ \t][^<>\n]*)?(?<!/)>'
  r'|\[(?P<close2>/?)think\]|◁(?P<close3>/?)think▷'
  r'|<\|(?:begin|(?P<close4>end))_of_thought\|>'
  r'|<\|(?:start|(?P<close5>end))_thinking\|>',
  re.IGNORECASE,
)
# What these models put around the text behind their thoughts.
_WRAPPER = re.compile(
  r'<\|(?P<word>begin_of_solution|start_response)\|>'
  r'(?P<inner>.*?)(?:<\|end_(?:of_solution|response)\|>.*)?',
  re.IGNORECASE | re.DOTALL,
)
_FENCE = re.compile(r'^[ \t]*(?:```|~~~)', re.MULTILINE)
_SPACE = re.compile(r'[\s\ufeff\u200b-\u200d\u2060]*')
_QUOTES = '`"\''
_CHANNELS = re.compile(
  r'\s*(?:<\|start\|>\s*assistant\s*)?<\|channel\|>'
  r'|\s*analysis(?=[\s\S]*assistantfinal)'
)
_FINAL = re.compile(
  r'<\|channel\|>\s*final\b[^<]*(?:<\|constrain\|>[^<]*)?<\|message\|>\s*'
  r'|assistantfinal\s*'
)
_CHANNEL_END = re.compile(r'<\|(?:end|return|call|start)\|>')


@dataclasses.dataclass(frozen=True)
class _Tag:
  """A tag at [start, end) of a text."""

  start: int
  end: int
  name: str
  closes: bool


def said(text: str, thinking: bool = False) -> str:
  """Returns the text without the thoughts.

  Args:
    text: a model's text; anything at all.
    thinking: whether the prompt ended inside an open thought.

  Returns:
    The text behind the thoughts that it begins with, without the white space
    before it; '' if such a thought is never closed. Blocks of thoughts further
    down are left out: their opening tag begins a line and their closing tag ends
    one, outside of fenced code. A text without thoughts is returned as it is.
  """
  start = begin(text, thinking)
  if start is None:
    return ''
  if start and _CHANNELS.match(text):
    end = _CHANNEL_END.search(text, start)
    return text[start : end.start() if end else len(text)]
  rest = text[start:]
  if start and (wrapped := _WRAPPER.fullmatch(rest)):
    rest = wrapped['inner'].strip()
  return _without_blocks(rest)


def said_by(completion: records.Completion) -> str:
  """Returns the text behind the thoughts of a completion; see `said`."""
  return said(completion.text, completion.thinking)


def begin(text: str, thinking: bool = False, settled: bool = False) -> int | None:
  """Returns where the text behind the thoughts begins.

  Thoughts are blocks at the beginning of a text, one behind the other. Blocks
  may be nested: a block ends with the closing tag of its own name that balances
  it. A block that no tag balances, such as one that only mentions a tag, ends
  with the first closing tag. A text that begins with no block is a thought up to
  the first closing tag that has no opening tag before it. A tag in back-ticks or
  quotation marks is no tag.

  Args:
    text: a model's text; anything at all.
    thinking: whether the prompt ended inside an open thought.
    settled: whether only an end that no further text can move counts, for a
      text that is still being written: balanced blocks and opened channels.

  Returns:
    An index of the text: 0 if it begins with no thoughts; None if the text ends
    inside a thought.
  """
  if _CHANNELS.match(text):
    final = _FINAL.search(text)
    return final.end() if final else None
  tags = _tags(text)
  if thinking:
    tags.insert(0, _Tag(0, 0, 'think', False))
  ends, lone = _ends(tags, settled)
  start = at = 0
  if lone is not None and not settled and not _opens(text, tags, 0, 0):
    start, at = _behind(text, tags, lone, settled)
  while _opens(text, tags, at, start):
    end = ends[at]
    if end is None:
      return None
    start, at = _behind(text, tags, end, settled)
  return _past_space(text, start) if start else 0


def _past_space(text: str, start: int) -> int:
  space = _SPACE.match(text, start)
  return space.end() if space else start


def _without_blocks(text: str) -> str:
  """Returns a text without the blocks of thoughts between its lines."""
  tags = _tags(text)
  if not tags:
    return text
  ends, _ = _ends(tags, settled=True)
  fences = [match.start() for match in _FENCE.finditer(text)]
  kept, start, at = [], 0, 0
  while at < len(tags):
    end = ends[at]
    fenced = bisect.bisect(fences, tags[at].start) % 2
    if end is not None and not fenced and _has_lines(text, tags[at], tags[end]):
      kept.append(text[start : tags[at].start])
      start, at = tags[end].end, end
    at += 1
  return ''.join([*kept, text[start:]])


def _has_lines(text: str, first: _Tag, last: _Tag) -> bool:
  """Returns whether a block has its lines for itself, and is not empty."""
  before = text.rfind('\n', 0, first.start) + 1
  line = text.find('\n', last.end)
  behind = line if line >= 0 else len(text)
  return bool(text[first.end : last.start].strip()) and not (
    text[before : first.start].strip() or text[last.end : behind].strip()
  )


def has_tag(text: str) -> bool:
  """Returns whether a text holds an opening or a closing tag of thoughts."""
  return bool(_tags(text))


def _behind(text: str, tags: list[_Tag], last: int, settled: bool) -> tuple[int, int]:
  """Returns where the text and the tags behind a closing tag begin.

  A model may close a thought twice, so closing tags that follow it at once
  belong to it, except in a text that is still being written.
  """
  start, at = tags[last].end, last + 1
  while (
    not settled
    and at < len(tags)
    and tags[at].closes
    and (tags[at].start <= _past_space(text, start))
  ):
    start, at = tags[at].end, at + 1
  return start, at


def _opens(text: str, tags: list[_Tag], at: int, start: int) -> bool:
  """Returns whether tag number `at` opens a block at `start` or after space."""
  if at >= len(tags) or tags[at].closes:
    return False
  return tags[at].start <= _past_space(text, start)


def _tags(text: str) -> list[_Tag]:
  """Finds the tags of a text, in order; quoted ones are left out."""
  found = []
  if not any(c in text for c in '<[◁'):  # The usual case, at once.
    return found
  for match in _TAG.finditer(text):
    before, after = text[match.start() - 1 : match.start()], match.end()
    if before and before in _QUOTES and text[after : after + 1] == before:
      continue
    found.append(
      _Tag(
        match.start(),
        match.end(),
        (match['name'] or 'think').lower(),
        any(match[f'close{i}'] for i in ('', *range(2, 6))),
      )
    )
  return found


def _ends(tags: list[_Tag], settled: bool) -> tuple[list[int | None], int | None]:
  """Pairs opening tags with the closing tags that end their blocks.

  Returns:
    For each tag, the number of the closing tag that ends the block which it
    opens, if any; and the number of the first closing tag that has no opening
    tag of its name before it.
  """
  ends: list[int | None] = [None] * len(tags)
  lone = None
  waiting: dict[str, list[int]] = {}
  for i, tag in enumerate(tags):
    before = waiting.setdefault(tag.name, [])
    if not tag.closes:
      before.append(i)
    elif before:
      ends[before.pop()] = i
    elif lone is None:
      lone = i
  if settled:
    return ends, lone
  following: dict[str, int] = {}
  for i in reversed(range(len(tags))):
    if tags[i].closes:
      following[tags[i].name] = following[''] = i
    elif ends[i] is None:
      ends[i] = following.get(tags[i].name, following.get(''))
  return ends, lone
