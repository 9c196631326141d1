import pytest

from agentflow_jax.files import writing


def test_text_and_bytes_are_written_and_directories_made(tmp_path):
  path = tmp_path / 'a' / 'b.txt'
  writing.write_whole(path, 'é\u2028\n')
  assert path.read_bytes() == 'é\u2028\n'.encode()
  writing.write_whole(str(path), b'\x00\xff')
  assert path.read_bytes() == b'\x00\xff'
  assert [p.name for p in path.parent.iterdir()] == ['b.txt']


def test_what_fails_in_between_leaves_the_old_file_and_nothing_else(tmp_path):
  path = tmp_path / 'x.json'
  writing.write_whole(path, 'old')
  with pytest.raises(KeyError, match='why'):
    with writing.whole_file(path) as file:
      file.write(b'half')
      file.flush()
      # A reader in between sees the old content.
      assert path.read_text() == 'old'
      raise KeyError('why')
  assert path.read_text() == 'old'
  assert [p.name for p in tmp_path.iterdir()] == ['x.json']


def test_a_text_with_a_lone_surrogate_writes_nothing(tmp_path):
  path = tmp_path / 'x.txt'
  writing.write_whole(path, 'old')
  with pytest.raises(UnicodeEncodeError):
    writing.write_whole(path, 'a\ud800')
  assert path.read_text() == 'old'
  assert [p.name for p in tmp_path.iterdir()] == ['x.txt']


def test_a_place_that_cannot_be_written_is_an_os_error(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(OSError):
    writing.write_whole(tmp_path / 'file' / 'x.txt', 'text')
