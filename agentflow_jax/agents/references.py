"""Mentions by number: a small planner points at a name instead of copying it.

Copying a name never seen is slow to learn; pointing at it is not. Names (from a
gazetteer) and numbers are marked where they appear in the query or in a tool's
result, and a plan may say `#2` for the second one.

A mark stands before its mention ('#2 Oslo') or after it ('Oslo #2'). A decoder reads
from left to right: only a mark that stands after the name is read with the name known,
so that one layer of attention finds the mark of a name.
"""

import dataclasses
import functools
import re
from collections.abc import Iterable, Mapping
from typing import Literal

_WORD = re.compile(r'\w+')
_NUMBER = re.compile(r'-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?(?!\w)')
_REFERENCE = re.compile(r'#(?P<number>\d+)')
# What a program holds beside other text: a text, which may lack its end, a mention, and
# a comment: '#' at the beginning of a line, or without a number behind it.
_PROGRAM = re.compile(
  r'''(?s:"""(?:\\.|(?!""").)*(?:"""|\Z)|\'\'\'(?:\\.|(?!\'\'\').)*(?:\'\'\'|\Z))'''
  r"""|"(?:\\.|[^"\\\n])*"?|\'(?:\\.|[^\'\\\n])*\'?"""
  r'|^[ \t]*#.*|#(?!\d).*|(?P<mention>#(?P<number>\d+))',
  re.MULTILINE,
)
# A number as Python writes it: no leading zeros.
_LITERAL = re.compile(r'-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?')
_MARK_BEFORE = re.compile(r'#(?P<number>\d+)(?P<space> ?)')
_MARK_AFTER = re.compile(r'(?P<space> ?)#(?P<number>\d+)')
_FORGED = re.compile(r'#(?=\d)')


class UnknownReference(Exception):
  """A plan pointed at a mention that does not exist."""


class Gazetteer:
  """Finds the longest known name that starts at a place in a text.

  Args:
    names: known names.
    keys: regular expression of what else has a number of its own, such as keys,
      dates and quantities; '' for numbers, wherever they stand.
    more: names besides these; None for none.
    marks: place of a mark, before or after its mention.
  """

  def __init__(
    self,
    names: Iterable[str],
    keys: str = '',
    more: 'Gazetteer | None' = None,
    marks: Literal['before', 'after'] = 'before',
  ):
    self.marks: Literal['before', 'after'] = marks
    self._keys = re.compile(rf'(?:{keys})(?!\w)') if keys else None
    self._more = more
    by_first: dict[str, list[str]] = {}
    for name in set(names):
      first = _WORD.search(name)
      if first:
        by_first.setdefault(first.group(), []).append(name)
    self._by_first: Mapping[str, list[str]] = {
      word: sorted(found, key=lambda n: (-len(n), n))
      for word, found in by_first.items()
    }

  @property
  def takes_numbers(self) -> bool:
    """Whether numbers are mentions: there are no keys that say what else is one."""
    return self._keys is None and (self._more is None or self._more.takes_numbers)

  def match(self, text: str, word: re.Match[str], at: int = 0) -> str:
    """Returns the longest name or key whose first word is `word`, or ''.

    Args:
      text: text that is searched.
      word: a word of it.
      at: place in the text at which the name begins at the earliest.
    """
    found = self._more.match(text, word, at) if self._more else ''
    key = self._keys.match(text, word.start()) if self._keys else None
    return max(found, key.group() if key else '', self._name(text, word, at), key=len)

  def _name(self, text, word, at) -> str:
    for name in self._by_first.get(word.group(), ()):
      start = word.start() - _first(name)
      end = start + len(name)
      if start < at or not text.startswith(name, start):
        continue
      if end == len(text) or not text[end].isalnum():
        return name
    return ''


def _first(name: str) -> int:
  """Returns where the first word of a name begins; names of a gazetteer have one."""
  word = _WORD.search(name)
  return word.start() if word else 0


@functools.lru_cache(maxsize=256)
def gazetteer(names: tuple[str, ...], keys: str, more: Gazetteer) -> Gazetteer:
  """Returns names and keys besides others, marked like these; cached."""
  return Gazetteer(names, keys, more, more.marks) if names or keys else more


@dataclasses.dataclass(frozen=True)
class References:
  """The mentions so far, numbered from 1; `annotate` returns a new value.

  Attributes:
    gazetteer: known names.
    mentions: texts that #1, #2, ... stand for.
  """

  gazetteer: Gazetteer
  mentions: tuple[str, ...] = ()

  def annotate(self, text: str) -> tuple[str, 'References']:
    """Marks names and numbers in `text` as '#n name' or 'name #n'.

    Args:
      text: text of a user or a tool; a mark in it is broken, so that a result cannot
        forge one.

    Returns:
      The marked text, and the references with its new mentions.
    """
    text = defuse(text)
    numbers = {mention: i + 1 for i, mention in enumerate(self.mentions)}
    pieces, at = [], 0
    before = self.gazetteer.marks == 'before'
    for start, mention in self._find(text):
      number = numbers.setdefault(mention, len(numbers) + 1)
      place = start if before else start + len(mention)
      pieces += [text[at:place], f'#{number} ' if before else f' #{number}']
      at = place
    pieces.append(text[at:])
    return ''.join(pieces), dataclasses.replace(self, mentions=tuple(numbers))

  def unmark(self, text: str) -> str:
    """Writes a marked text in plain words.

    '#2' is 'Oslo', and so is '#2 Oslo' or, with marks after mentions, 'Oslo #2'.
    """
    before = self.gazetteer.marks == 'before'

    def plain(match):
      number = _number(match['number'])
      if not 1 <= number <= len(self.mentions):
        return match.group()
      mention = self.mentions[number - 1]
      if match['space'] and (
        text.startswith(mention, match.end())
        if before
        else text.endswith(mention, 0, match.start())
      ):
        return ''  # The mark goes, and the mention beside it stays.
      return mention + match['space'] if before else match['space'] + mention

    return (_MARK_BEFORE if before else _MARK_AFTER).sub(plain, text)

  def resolve(self, text: str, literal: bool = False) -> str:
    """Replaces every '#n' by its mention.

    Args:
      text: text of a plan.
      literal: whether the text is a program of Python, in which mentions become
        literals. There, texts and comments stay as they are.

    Raises:
      UnknownReference: a number that nothing carries.
    """
    if literal:
      return _PROGRAM.sub(functools.partial(_literal, self.mentions), text)
    return _REFERENCE.sub(functools.partial(_mention, self.mentions), text)

  def last_in(self, text: str) -> str:
    """Returns the last name or number in an unmarked text, or ''."""
    found = [mention for _, mention in self._find(text)]
    return found[-1] if found else ''

  def _find(self, text):
    """Yields (start, mention), left to right, without overlaps."""
    at = 0
    while word := _WORD.search(text, at):
      before, at = at, word.end()
      number = None
      if self.gazetteer.takes_numbers:
        number = _NUMBER.match(text, _sign(text, before, word.start()))
      name = self.gazetteer.match(text, word, before)
      if number and not name:
        yield number.start(), number.group()
        at = number.end()
      elif name:
        start = word.start() - _first(name)
        yield start, name
        at = start + len(name)


def defuse(text: str) -> str:
  """Breaks what looks like a mark in a text in which no mention has been marked."""
  return _FORGED.sub('# ', text)


def _sign(text: str, at: int, start: int) -> int:
  """Where a number at `start` begins: at its minus, but 5 in '3-5' has none."""
  minus = start - 1
  if minus < at or text[minus] != '-':
    return start
  return start if minus and re.match(r'\w', text[minus - 1]) else minus


def _number(digits: str) -> int:
  return int(digits) if len(digits) < 10 else 0


def _literal(mentions, match):
  """Returns a part of a program: a mention as a literal, or the part as it is."""
  if not match['mention']:
    return match.group()
  mention = _mention(mentions, match)
  return mention if _LITERAL.fullmatch(mention) else repr(mention)


def _mention(mentions, match):
  number = _number(match['number'])
  if not 1 <= number <= len(mentions):
    raise UnknownReference(
      f'{match.group()} refers to nothing; there are {len(mentions)} mentions'
    )
  return mentions[number - 1]
