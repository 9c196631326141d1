"""Unpacks the bodies of HTTP responses, up to a limit of their size.

A small body may unpack to gigabytes. Where several codings were applied, any of
them may do that, so the output of every coding is limited, and made in pieces.
"""

import zlib
from collections.abc import Iterator
from typing import Any

_CODINGS = frozenset({'gzip', 'x-gzip', 'deflate'})
_MOST_CODINGS = 4
_GZIP = b'\x1f\x8b\x08'
_ANY_HEADER = zlib.MAX_WBITS | 32  # zlib's or gzip's
_NO_HEADER = -zlib.MAX_WBITS
_PIECE = 1 << 16
# zlib copies the bytes behind the end of a gzip member, so few are given to it
# at a time.
_FED = 1 << 14


class Unreadable(Exception):
  """A body that does not unpack, or is too large; the text says why."""


class Unpacker:
  """Unpacks a body that arrives in pieces.

  Args:
    header: value of Content-Encoding; codings in the order of their application.
    most: limit of the output of each coding, and of the body [bytes].

  Attributes:
    content: bytes that have been unpacked so far.

  Raises:
    Unreadable: a coding is unknown.
  """

  def __init__(self, header: str, most: int):
    names = [name.strip().lower() for name in header.split(',')]
    names = [name for name in names if name not in ('', 'identity')]
    if len(names) > _MOST_CODINGS or not _CODINGS.issuperset(names):
      raise Unreadable(
        f'content encoding {header!r} is not supported; there are'
        f' {sorted(_CODINGS)}, {_MOST_CODINGS} at most'
      )
    # The last coding was applied last, so it is undone first.
    self._stages = [_Stage(name) for name in reversed(names)]
    self._most = most
    self._received = 0
    self.content = bytearray()

  @property
  def is_over(self) -> bool:
    """Says whether a coding has ended, so that nothing more can come."""
    return any(stage.is_over for stage in self._stages)

  def feed(self, data: bytes) -> None:
    """Unpacks the next piece of the body.

    Raises:
      Unreadable: the body does not unpack, or is too large.
    """
    self._received += len(data)
    try:
      self._through(0, data)
    except zlib.error as error:
      raise Unreadable(f'a body that does not unpack: {error}') from None
    # Packed bytes that yield nothing are limited, too.
    if self._received > self._most and not self.is_over:
      raise self._too_much()

  def finish(self) -> bytes:
    """Returns the content of a body that has arrived.

    Raises:
      Unreadable: the body is cut off.
    """
    for stage in reversed(self._stages):
      # An empty body holds nothing to unpack.
      if self._received and not stage.is_complete:
        raise Unreadable('a body that does not unpack: it is cut off')
      if stage.is_over:
        break  # The codings around it may hold more, which was not read.
    return bytes(self.content)

  def _through(self, index: int, data: bytes) -> None:
    """Undoes the codings from number `index` on."""
    if index == len(self._stages):
      self.content += data
      if len(self.content) > self._most:
        raise self._too_much()
      return
    stage = self._stages[index]
    for piece in stage.feed(data):
      if stage.made > self._most:
        raise self._too_much()
      self._through(index + 1, piece)
      if self.is_over and not stage.is_over:
        return  # Bytes behind the end are no part of the body.

  def _too_much(self) -> Unreadable:
    return Unreadable(f'a response of more than {self._most:,} bytes')


class _Stage:
  """Undoes one coding.

  Attributes:
    made: number of bytes that were unpacked.
    is_over: whether the coding has ended; bytes behind its end do not count.
    is_complete: whether the body may end here.
  """

  def __init__(self, coding: str):
    self._coding = coding
    self._unpack: Any = None  # None between the members of a gzip file.
    self._is_gzip = False
    self._head = b''
    self.made = 0
    self.is_over = self.is_complete = False

  def feed(self, data: bytes) -> Iterator[bytes]:
    """Yields the unpacked data, in pieces of `_PIECE` bytes at most."""
    for start in range(0, len(data), _FED):
      rest = data[start : start + _FED]
      while not self.is_over:
        if self._unpack is None:
          self._head += rest
          if not self._begin():
            break
          rest, self._head = self._head, b''
        unpack: Any = self._unpack
        piece = unpack.decompress(rest, _PIECE)
        rest = unpack.unconsumed_tail
        if piece:
          self.made += len(piece)
          yield piece
        if unpack.eof:
          rest, self._unpack = unpack.unused_data, None
          self.is_complete = True
          self.is_over = not self._is_gzip
        if not rest and len(piece) < _PIECE:
          break

  def _begin(self) -> bool:
    """Starts to unpack once the head tells the format; says whether it has."""
    head = self._head[: len(_GZIP)]
    if self.is_complete:  # A gzip file may have several members.
      if head == _GZIP:
        self._unpack = zlib.decompressobj(_ANY_HEADER)
        self.is_complete = False
      elif not _GZIP.startswith(head):
        self.is_over = True  # Padding, or other data, behind the last member.
      return self._unpack is not None
    if len(head) < 2:
      return False
    self._is_gzip = head[:2] == _GZIP[:2]
    # Many servers send "deflate" without the header that the standard asks for.
    is_raw = (
      self._coding == 'deflate'
      and not self._is_gzip
      and (head[0] & 15 != zlib.DEFLATED or (head[0] << 8 | head[1]) % 31)
    )
    self._unpack = zlib.decompressobj(_NO_HEADER if is_raw else _ANY_HEADER)
    return True
