"""Packed bodies: bodies that other programs pack, and limits of their size."""

import gzip
import tracemalloc
import zlib

import pytest

from agentflow_jax.agents.tools.web import codings


def _raw(data):
  packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
  return packer.compress(data) + packer.flush()


def _gzip(data):
  return gzip.compress(data, mtime=0)


def _name(value):
  """Names a case, since bytes are no names that a terminal can show."""
  return value if isinstance(value, str) else f'{len(value)}b'


_TEXT = b'First part. ' * 50
_MORE = bytes(range(256)) * 400


def unpacked(header, data, most=1 << 20, step=0):
  """Returns the content of a body that arrives `step` bytes at a time."""
  body = codings.Unpacker(header, most)
  step = step or max(1, len(data))
  for start in range(0, len(data), step):
    body.feed(data[start : start + step])
    if body.is_over:
      break
  return body.finish()


@pytest.mark.parametrize('step', [0, 1, 7])
@pytest.mark.parametrize(
  ('header', 'data', 'content'),
  [
    ('', _TEXT, _TEXT),
    ('identity', _TEXT, _TEXT),
    ('gzip', _gzip(_TEXT), _TEXT),
    (' X-GZIP ', _gzip(_TEXT), _TEXT),
    ('deflate', zlib.compress(_TEXT), _TEXT),
    ('deflate', zlib.compress(_TEXT, 1), _TEXT),
    ('deflate', _raw(_TEXT), _TEXT),
    ('deflate', _raw(_MORE), _MORE),
    ('deflate', _raw(b''), b''),
    ('deflate', _gzip(_TEXT), _TEXT),
    ('gzip', _gzip(_TEXT) + _gzip(_MORE), _TEXT + _MORE),
    ('gzip', _gzip(b'a') * 3000, b'a' * 3000),
    ('gzip', _gzip(_TEXT) + _gzip(b''), _TEXT),
    # What follows the end is no part of it.
    ('gzip', _gzip(_TEXT) + b'\0' * 99, _TEXT),
    ('gzip', _gzip(_TEXT) + b'\x1f', _TEXT),
    ('gzip', _gzip(_TEXT) + b'\x1f\x8bgarbage', _TEXT),
    ('deflate', zlib.compress(_TEXT) + _gzip(_MORE), _TEXT),
    ('deflate', _raw(_TEXT) + b'garbage', _TEXT),
    # In the order in which they were applied.
    ('gzip, deflate', zlib.compress(_gzip(_TEXT)), _TEXT),
    ('deflate,gzip', _gzip(_raw(_TEXT)), _TEXT),
    ('identity, gzip, , gzip', _gzip(_gzip(_TEXT)), _TEXT),
    ('gzip, gzip', _gzip(_gzip(_TEXT) + b'\0' * 9), _TEXT),
    ('gzip', b'', b''),
    ('gzip, deflate', b'', b''),
  ],
  ids=_name,
)
def test_what_is_packed_is_unpacked(header, data, content, step):
  assert unpacked(header, data, step=step) == content


@pytest.mark.parametrize(
  ('header', 'data', 'match'),
  [
    ('br', b'x', "content encoding 'br'"),
    ('gzip, br', b'x', 'content encoding'),
    ('gzip,' * 5, b'x', 'content encoding'),
    ('gzip', b'x', 'cut off'),
    ('gzip', b'xy', 'does not unpack'),
    ('deflate', b'<html>', 'does not unpack'),
    ('deflate', b'x', 'cut off'),
    ('gzip', _gzip(_TEXT)[:-1], 'cut off'),
    ('deflate', zlib.compress(_TEXT)[:-1], 'cut off'),
    ('deflate', _raw(_TEXT)[:-1], 'cut off'),
    ('gzip', _gzip(_TEXT) + _gzip(_MORE)[:-1], 'cut off'),
    ('gzip', _gzip(_TEXT) + b'\x1f\x8b\x08' + b'\xff' * 9, 'unpack'),
    ('gzip, gzip', _gzip(_gzip(_TEXT)[:-1]), 'cut off'),
    # A gzip file of what is no deflate.
    ('deflate, gzip', _gzip(_gzip(_TEXT)[:5] + b'text'), 'does not unpack'),
  ],
  ids=_name,
)
def test_what_cannot_be_unpacked(header, data, match):
  with pytest.raises(codings.Unreadable, match=match):
    unpacked(header, data)


_BOMB = _gzip(b'x' * (1 << 26))  # 64 MiB in 64 KiB
_BOMB_IN_ONE = _gzip(_gzip(b'\0' * (1 << 26)))


@pytest.mark.parametrize(
  ('header', 'data'),
  [
    ('gzip', _BOMB),
    ('gzip', _gzip(b'a') + _BOMB),
    ('gzip, gzip', _BOMB_IN_ONE),
    ('deflate', _raw(b'x' * (1 << 26))),
    # The outer coding's output is limited, though the content is small.
    ('gzip, gzip', _gzip(_gzip(b'') * (1 << 17))),
    ('', b'x' * 300_000),
    ('gzip', _gzip(b'') * (1 << 14)),
  ],
  ids=_name,
)
def test_bombs_are_bounded(header, data):
  tracemalloc.start()
  try:
    with pytest.raises(codings.Unreadable, match='more than 200,000 bytes'):
      unpacked(header, data, most=200_000, step=1 << 16)
    _, most = tracemalloc.get_traced_memory()
  finally:
    tracemalloc.stop()
  assert most < 4 << 20


def test_a_body_of_exactly_the_limit_is_unpacked():
  data = b'x' * 1000
  for header, packed in (('gzip', _gzip(data)), ('', data)):
    assert unpacked(header, packed, most=1000) == data
    with pytest.raises(codings.Unreadable, match='more than 999'):
      unpacked(header, packed, most=999)
