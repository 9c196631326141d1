"""Collections of passages to search in.

A corpus is a directory of .txt and .md files, or one JSONL file with a passage
a line: {"id": ..., "title": ..., "text": ...}, or {"id": ..., "contents": ...} with
the title on the first line.
"""

import dataclasses
import functools
import hashlib
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from agentflow_jax.files import reading

_SUFFIXES = ('.txt', '.md')


class CorpusError(ValueError):
  """A corpus is missing, empty or malformed; names the file and the line."""


@dataclasses.dataclass(frozen=True)
class Passage:
  """What one search result can be."""

  id: str
  title: str
  text: str


@dataclasses.dataclass(frozen=True)
class Corpus:
  """Passages in a fixed order, which breaks ties.

  Attributes:
    passages: passages, in memory or as `FilePassages`.
  """

  passages: Sequence[Passage]

  @property
  def titles(self) -> tuple[str, ...]:
    """Titles in the order of the corpus, each once."""
    return tuple(dict.fromkeys(p.title for p in self.passages))

  @functools.cached_property
  def digest(self) -> str:
    """Tells this corpus from others."""
    found = hashlib.blake2b(digest_size=8)
    for passage in self.passages:
      # A lone surrogate may come from a file's JSON.
      found.update(repr(dataclasses.astuple(passage)).encode())
    return found.hexdigest()


class FilePassages(Sequence[Passage]):
  """Passages of a JSONL file that stay there, and are read when asked for.

  Args:
    path: path of the file.
    starts: int64 [N], where the passages' lines begin.
    lengths: int32 [N], lengths of the lines [bytes].
  """

  def __init__(self, path: pathlib.Path, starts: np.ndarray, lengths: np.ndarray):
    self._path, self._starts, self._lengths = path, starts, lengths

  def __len__(self) -> int:
    return len(self._starts)

  def __getitem__(self, i: int) -> Passage:
    with self._path.open('rb') as file:
      file.seek(int(self._starts[i]))
      line = file.read(int(self._lengths[i]))
    return _passage(reading.parse(line), i + 1)


def file_digest(path: pathlib.Path) -> str:
  """Returns a file's digest."""
  with path.open('rb') as file:
    return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=8)).hexdigest()


def load_corpus(path: str | pathlib.Path, passage_chars: int = 1000) -> Corpus:
  """Reads a corpus from a directory or a JSONL file.

  Args:
    path: a directory (every .txt and .md file below it, in order of their
      relative paths; a file's name is its passages' title) or a JSONL file.
    passage_chars: length of the longest passage into which a file of a directory
      is cut, at blank lines where there are any; 0 for a passage a paragraph.
      JSONL passages stay whole.

  Raises:
    CorpusError: nothing is there, or a file or line cannot be read as this.
  """
  path = pathlib.Path(path)
  if path.is_dir():
    passages = tuple(_read_directory(path, passage_chars))
    expected = f'a directory with {" or ".join(_SUFFIXES)} files'
  elif path.is_file():
    passages = tuple(_read_jsonl(path))
    expected = 'a JSONL file with a passage a line'
  else:
    raise CorpusError(f'no corpus at {path}: give a directory or a JSONL file')
  if not passages:
    raise CorpusError(f'{path} holds no passage; it should be {expected}')
  return Corpus(passages)


def _read_directory(directory: pathlib.Path, passage_chars: int) -> Iterator[Passage]:
  files = [f for f in directory.rglob('*') if f.suffix in _SUFFIXES and f.is_file()]
  for file in sorted(files, key=lambda f: f.relative_to(directory).as_posix()):
    name = file.relative_to(directory).as_posix()
    with reading.boundary(file, CorpusError):
      text = file.read_text(encoding='utf-8')
    for i, piece in enumerate(split(text, passage_chars)):
      yield Passage(id=f'{name}#{i}', title=file.stem, text=piece)


def split(text: str, max_chars: int) -> Iterator[str]:
  """Cuts a text into pieces of at most `max_chars`, at blank lines where it can.

  With 0 each paragraph is a piece.
  """
  if not max_chars:
    for paragraph in re.split(r'\n\s*\n', text):
      if paragraph.strip():
        yield ' '.join(paragraph.split())
    return
  piece = ''
  for paragraph in re.split(r'\n\s*\n', text):
    paragraph = ' '.join(paragraph.split())
    if piece and len(piece) + 1 + len(paragraph) > max_chars:
      yield piece
      piece = ''
    while len(paragraph) > max_chars:
      cut = paragraph.rfind(' ', 1, max_chars + 1)
      cut = cut if cut > 0 else max_chars
      yield paragraph[:cut]
      paragraph = paragraph[cut:].lstrip()
    piece = f'{piece} {paragraph}'.strip()
  if piece:
    yield piece


def _read_jsonl(path: pathlib.Path) -> Iterator[Passage]:
  return (passage for _, _, passage in lines_of(path))


def lines_of(path: pathlib.Path) -> Iterator[tuple[int, int, Passage]]:
  """Reads a JSONL file, one line at a time.

  Yields:
    Where a passage's line begins, its length [bytes], and the passage.

  Raises:
    CorpusError: names the line that is no passage.
  """
  with reading.boundary(path, CorpusError):
    for line in reading.json_lines(path):
      with reading.boundary(line.where, CorpusError):
        passage = _passage(line.value, line.number)
      yield line.start, line.length, passage


def _passage(fields: Any, number: int) -> Passage:
  if not isinstance(fields, dict):
    raise ValueError('a passage must be an object with "title" and "text"')
  if 'text' not in fields and isinstance(fields.get('contents'), str):
    # As FlashRAG's corpora have it.
    title, _, text = fields['contents'].partition('\n')
    fields = {**fields, 'title': title.strip('"'), 'text': text}
  for name in ('title', 'text'):
    if not isinstance(fields.get(name), str):
      raise ValueError(f'"{name}" must be there and be a string')
  return Passage(
    id=str(fields.get('id', number)), title=fields['title'], text=fields['text']
  )
