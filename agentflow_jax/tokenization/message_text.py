"""Text of messages inside a chat template: read as it is, written with marks.

A template may look into a message: it drops the thoughts of an earlier turn by
`content.split('</think>')`, also where `</think>` is an added token. It has to
find the message's own characters there. But what it writes of a message must
never be taken for an added token. So a message is a `MessageText`: a str whose
characters hold marks, and whose methods answer as if they held none. An
operation that is not overridden here works on the marked characters, which is
safe: the worst is that a template does not find what it looks for.
"""

import dataclasses
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

_RUNS = re.compile(b'\0+|\1+')


@dataclasses.dataclass(frozen=True)
class Marker:
  """How the text of messages is marked.

  Attributes:
    mark: a character that no message holds.
    looks: a pattern that matches, without width, where the spelling of an added
      token begins.
  """

  mark: str
  looks: re.Pattern[str]

  def marked(self, text: str) -> str:
    """Puts the mark at both ends and inside the spellings of added tokens."""
    cuts = [0, *(m.start() + 1 for m in self.looks.finditer(text)), len(text)]
    parts = [text[a:b] for a, b in itertools.pairwise(cuts)]
    # Marks at the ends: this text and its neighbours cannot form a token.
    return self.mark.join(['', *parts, '']) if text else ''


class MessageText(str):
  """A text with parts of messages in it, beside parts that a template wrote."""

  _text: str
  _own: bytes
  _marker: Marker

  def __new__(
    cls,
    text: str,
    own: bytes = b'',
    marker: Marker | None = None,
    marked: str | None = None,
  ):
    """Builds a text.

    Args:
      text: the plain text.
      own: a byte for each character, 1 where the template wrote it.
      marker: marker of the characters of messages; None, as when jinja builds
        the result of `format`, makes the text a plain str.
      marked: the text with its marks, where they are known already.
    """
    if marker is None:
      return str(text)
    if marked is None:
      marked = ''
      for run in _RUNS.finditer(own):
        part = text[run.start() : run.end()]
        marked += part if own[run.start()] else marker.marked(part)
    self = super().__new__(cls, marked)
    self._text, self._own, self._marker = text, own, marker
    return self

  def _of(self, text: str, own: bytes) -> 'MessageText':
    return cast(MessageText, MessageText(text, own, self._marker))

  def _changed(self, text: str) -> 'MessageText':
    """Returns a text made from this one.

    At the same length each character keeps its author; otherwise all of them
    count as characters of a message.
    """
    same = len(text) == len(self._text)
    return self._of(text, self._own if same else bytes(len(text)))

  def _located(self, pieces: Iterable[str], gap: int) -> list['MessageText']:
    """Returns pieces of this text, which are in order and `gap` apart or more."""
    parts, start = [], 0
    for piece in pieces:
      start = self._text.index(piece, start)
      parts.append(self[start : start + len(piece)])
      start += len(piece) + gap
    return parts

  # Jinja calls str() on what it writes, and on what its filters take.
  def __str__(self):
    return self

  def __len__(self):
    return len(self._text)

  def __iter__(self):
    return (self[i] for i in range(len(self._text)))

  def __getitem__(self, index):
    if not isinstance(index, slice):
      index = range(len(self._text))[index]
      index = slice(index, index + 1)
    return self._of(self._text[index], self._own[index])

  def __contains__(self, part):
    return plain(part) in self._text

  def __eq__(self, other):
    return self._text == plain(other)

  def __ne__(self, other):
    return self._text != plain(other)

  def __hash__(self):
    return hash(self._text)

  def __add__(self, other):
    return concat([self, other]) if isinstance(other, str) else NotImplemented

  def __radd__(self, other):
    return concat([other, self]) if isinstance(other, str) else NotImplemented

  def split(self, sep=None, maxsplit=-1):
    sep = plain(sep)
    return self._located(self._text.split(sep, maxsplit), len(sep or ''))

  def rsplit(self, sep=None, maxsplit=-1):
    sep = plain(sep)
    return self._located(self._text.rsplit(sep, maxsplit), len(sep or ''))

  def splitlines(self, keepends=False):
    whole = self._located(self._text.splitlines(keepends=True), 0)
    shown = self._text.splitlines(keepends)
    return [a[: len(b)] for a, b in zip(whole, shown, strict=True)]

  def partition(self, sep):
    return tuple(self._located(self._text.partition(plain(sep)), 0))

  def rpartition(self, sep):
    return tuple(self._located(self._text.rpartition(plain(sep)), 0))

  def strip(self, chars=None):
    return self.lstrip(chars).rstrip(chars)

  def lstrip(self, chars=None):
    left = len(self._text.lstrip(plain(chars)))
    return self[len(self._text) - left :]

  def rstrip(self, chars=None):
    return self[: len(self._text.rstrip(plain(chars)))]

  def removeprefix(self, prefix):
    return self[len(prefix) :] if self.startswith(prefix) else self

  def removesuffix(self, suffix):
    return self[: len(self) - len(suffix)] if self.endswith(suffix) else self

  def replace(self, old, new, count=-1):
    old, new = plain(old), plain(new)
    if not old:
      return self._changed(self._text.replace(old, new, count))
    # A message decides where the new text stands, so it counts as a message's.
    new = self._of(new, bytes(len(new)))
    return join(new, self.split(old, count))


def _answers(name: str):
  """Returns the method of str that answers about the text without marks."""
  method = getattr(str, name)

  def answer(self, *args):
    return method(self._text, *map(plain, args))

  return answer


def _changes(name: str):
  """Returns the method of str that changes the text, with the marks renewed."""
  method = getattr(str, name)

  def change(self):
    return self._changed(method(self._text))

  return change


for _name in (
  'startswith',
  'endswith',
  'find',
  'rfind',
  'index',
  'rindex',
  'count',
  'isalnum',
  'isalpha',
  'isascii',
  'isdecimal',
  'isdigit',
  'isidentifier',
  'islower',
  'isnumeric',
  'isprintable',
  'isspace',
  'istitle',
  'isupper',
):
  setattr(MessageText, _name, _answers(_name))
for _name in ('lower', 'upper', 'casefold', 'capitalize', 'title', 'swapcase'):
  setattr(MessageText, _name, _changes(_name))


def plain(value: Any) -> Any:
  """Returns the text without its marks; other values as they are."""
  if isinstance(value, tuple):
    return tuple(map(plain, value))
  return value._text if isinstance(value, MessageText) else value


def marker_in(value: Any) -> Marker | None:
  """Returns the marker of the text of a message in a value of JSON; None without."""
  waiting = [value]
  while waiting:
    one = waiting.pop()
    if isinstance(one, MessageText):
      return one._marker
    if isinstance(one, Mapping):
      waiting += [*one.keys(), *one.values()]
    elif isinstance(one, (list, tuple)):
      waiting += one
  return None


def plain_json(value: Any) -> Any:
  """Returns a value of JSON whose texts have no marks."""
  if isinstance(value, Mapping):
    return {plain(k): plain_json(v) for k, v in value.items()}
  if isinstance(value, (list, tuple)):
    return [plain_json(one) for one in value]
  return plain(value)


def marked_json(value: Any, marker: Marker) -> Any:
  """Returns a value of JSON whose texts, the keys included, are a message's."""
  if isinstance(value, str):
    return MessageText(value, bytes(len(value)), marker)
  if isinstance(value, Mapping):
    return {marked_json(k, marker): marked_json(v, marker) for k, v in value.items()}
  if isinstance(value, (list, tuple)):
    return [marked_json(one, marker) for one in value]
  return value


def concat(parts: Iterable[str]) -> str:
  """Joins texts; each keeps its author, the template or a message."""
  parts = list(parts)
  marker = next((p._marker for p in parts if isinstance(p, MessageText)), None)
  if marker is None:
    return ''.join(parts)
  own = b''.join(
    p._own if isinstance(p, MessageText) else b'\1' * len(p) for p in parts
  )
  # The marks of the parts: two of them where two parts of messages meet.
  return MessageText(''.join(map(plain, parts)), own, marker, ''.join(parts))


def join(separator: str, parts: Sequence[str]) -> str:
  """Returns separator.join(parts); each text keeps its author."""
  between = [separator] * (2 * len(parts) - 1)
  between[::2] = parts
  return concat(between)
