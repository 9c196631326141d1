import json
import re

import pytest

from agentflow_jax.files import reading


def _lines(tmp_path, data: bytes, **options):
  path = tmp_path / 't.jsonl'
  path.write_bytes(data)
  return list(reading.json_lines(path, **options))


@pytest.mark.parametrize(
  'character', ['\u2028', '\u2029', '\x85', '\x1c', '\x0b', '\x0c', '\r']
)
def test_only_a_newline_ends_a_line(tmp_path, character):
  # RFC 8259 allows all but the control characters below 0x20 unescaped.
  text = json.dumps({'q': f'a{character}b'}, ensure_ascii=ord(character) < 32)
  lines = _lines(tmp_path, f'{text}\n{text}\r\n'.encode())
  assert [l.value for l in lines] == [{'q': f'a{character}b'}] * 2


def test_a_byte_order_mark_and_blank_lines_are_skipped(tmp_path):
  data = b'\xef\xbb\xbf\n \r\n{"a": 1}\n\n[2]'
  lines = _lines(tmp_path, data)
  assert [(l.number, l.value) for l in lines] == [(3, {'a': 1}), (5, [2])]
  assert all(json.loads(data[l.start : l.start + l.length]) == l.value for l in lines)
  assert _lines(tmp_path, b'\xef\xbb\xbf{"a": 1}\n')[0].value == {'a': 1}
  assert _lines(tmp_path, b'') == []


@pytest.mark.parametrize(
  'line, why',
  [
    (b'{"a": NaN}', 'NaN is no JSON number'),
    (b'[Infinity]', 'Infinity is no JSON number'),
    (b'{"a": 1e999}', 'no float holds 1e999'),
    (b'[-1.5E+400]', 'no float holds -1.5E+400'),
    (b'[-Infinity]', '-Infinity is no JSON number'),
    ('{"a": "é"}'.encode('latin-1'), 'not UTF-8 text: byte 0xe9 at offset 7'),
    ('{"a": 1}'.encode('utf-16'), 'not UTF-8 text'),
    (b'{"a": 1} {"b": 2}', 'not JSON: Extra data'),
    (b"{'a': 1}", 'not JSON: '),
    (b'[' * 100_000, 'nested too deeply'),
    (b'{"a": ' + b'9' * 5000 + b'}', 'Exceeds the limit'),
  ],
)
def test_what_is_not_json_is_named_with_its_file_and_line(tmp_path, line, why):
  with pytest.raises(reading.FileError, match=rf't\.jsonl:2: .*{re.escape(why)}'):
    _lines(tmp_path, b'{"a": 1}\n' + line + b'\n')
  (tmp_path / 'x.json').write_bytes(line)
  with pytest.raises(reading.FileError, match=rf'x\.json: .*{re.escape(why)}'):
    reading.read_json(tmp_path / 'x.json')


def test_nan_can_be_allowed(tmp_path):
  (line,) = _lines(tmp_path, b'[NaN, -Infinity]\n', allows_nan=True)
  assert str(line.value) == '[nan, -inf]'


def test_a_torn_last_line_is_left_out_where_that_may_be(tmp_path):
  torn = b'{"step": 1}\n{"step": 2, "a'
  assert [l.value for l in _lines(tmp_path, torn, may_be_torn=True)] == [{'step': 1}]
  with pytest.raises(
    reading.FileError, match=r't\.jsonl:2: not JSON: .* \(column \d+\)$'
  ):
    _lines(tmp_path, torn)
  # A whole last line counts, and one that was ended is not torn.
  assert len(_lines(tmp_path, b'{"step": 1}', may_be_torn=True)) == 1
  with pytest.raises(reading.FileError, match=r't\.jsonl:1: not JSON'):
    _lines(tmp_path, b'{"step\n', may_be_torn=True)


def test_files_that_are_not_there_or_cannot_be_read(tmp_path):
  for read in (reading.read_json, lambda p: list(reading.json_lines(p))):
    with pytest.raises(FileNotFoundError):
      read(tmp_path / 'none.json')
    with pytest.raises(reading.FileError, match='is a directory, not a file'):
      read(tmp_path)
