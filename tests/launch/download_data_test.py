"""launch/download_data.py against a real local server of files."""

import http.server
import pathlib
import re
import subprocess
import sys
import threading

import pytest

_PROGRAM = pathlib.Path(__file__).parents[2] / 'launch/download_data.py'
_QUESTIONS = b'{"question": "who", "golden_answers": ["Ada"]}\n' * 1000
_NQ = 'nq/train.jsonl'


class _Handler(http.server.BaseHTTPRequestHandler):
  """Serves one body at every path, with ranges."""

  def do_GET(self):  # pylint: disable=invalid-name
    server = self.server
    asked = self.headers.get('Range')
    server.seen.append((self.path, asked))
    if server.status != 200:
      return self.send_error(server.status)
    start = 0
    if asked and server.ranges:
      start = int(re.fullmatch(r'bytes=(\d+)-', asked)[1])
      if start >= len(server.body):
        self.send_response(416)
        self.send_header('Content-Range', f'bytes */{len(server.body)}')
        self.send_header('Content-Length', '0')
        return self.end_headers()
    self.send_response(206 if start else 200)
    if server.says_length:
      self.send_header('Content-Length', str(len(server.body) - start))
    self.end_headers()
    self.wfile.write(server.body[start : server.cut])

  def log_message(self, *args):
    del args


@pytest.fixture
def server():
  with http.server.ThreadingHTTPServer(('127.0.0.1', 0), _Handler) as made:
    made.seen, made.body, made.status = [], _QUESTIONS, 200
    made.ranges, made.cut, made.says_length = True, None, True
    thread = threading.Thread(target=made.serve_forever)
    thread.start()
    try:
      yield made
    finally:
      made.shutdown()
      thread.join()


def _run(server, tmp_path, *flags):
  host, port = server.server_address
  return subprocess.run(
    [
      sys.executable,
      _PROGRAM,
      f'--dir={tmp_path}',
      f'--base_url=http://{host}:{port}/',
      *flags,
    ],
    capture_output=True,
    text=True,
    timeout=60,
    check=False,
  )


def test_all_files_come_and_are_not_asked_for_again(server, tmp_path):
  done = _run(server, tmp_path)
  assert done.returncode == 0, done.stderr
  names = {_NQ, *(f'deepmath/train-{i:05d}-of-00010.parquet' for i in range(10))}
  found = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob('*') if p.is_file()}
  assert found == names
  assert all((tmp_path / n).read_bytes() == _QUESTIONS for n in names)
  # Each file of its own: none is brought twice under two names.
  assert len({path for path, _ in server.seen}) == len(names)
  again = _run(server, tmp_path)
  assert again.returncode == 0
  assert len(server.seen) == len(names)


def test_one_of_both_and_a_dry_run(server, tmp_path):
  dry = _run(server, tmp_path, '--dry_run')
  assert dry.returncode == 0
  assert dry.stdout.count('from http://127.0.0.1') == 11
  assert not server.seen
  assert not list(tmp_path.iterdir())
  assert _run(server, tmp_path, '--only=nq').returncode == 0
  assert [path.rpartition('/')[2] for path, _ in server.seen] == ['train.jsonl']


@pytest.mark.parametrize('ranges', [True, False])
def test_a_file_that_was_cut_off_goes_on(server, tmp_path, ranges):
  server.cut = 20_000
  first = _run(server, tmp_path, '--only=nq')
  assert first.returncode == 1
  assert f'cut off at byte 20000 of {len(_QUESTIONS)}' in first.stderr
  assert not (tmp_path / _NQ).exists()
  server.cut, server.ranges = None, ranges
  assert _run(server, tmp_path, '--only=nq').returncode == 0
  assert server.seen[-1][1] == 'bytes=20000-'
  assert (tmp_path / _NQ).read_bytes() == _QUESTIONS
  assert not list(tmp_path.rglob('*.partial'))


@pytest.mark.parametrize(('extra', 'code', 'said'), [(0, 0, ''), (1, 1, 'delete that')])
def test_a_partial_file_of_the_whole_size(server, tmp_path, extra, code, said):
  partial = tmp_path / f'{_NQ}.partial'
  partial.parent.mkdir()
  partial.write_bytes(_QUESTIONS + b' ' * extra)
  done = _run(server, tmp_path, '--only=nq')
  assert done.returncode == code
  assert said in done.stderr
  assert (tmp_path / _NQ).exists() == (code == 0)


def test_errors_are_one_line_that_names_the_file(server, tmp_path):
  server.status = 404
  missing = _run(server, tmp_path, '--only=nq')
  server.status = 200
  for server.says_length in (True, False):
    large = _run(server, tmp_path, '--only=nq', '--max_gib=0.00001')
    assert large.returncode == 1
    assert '--max_gib' in large.stderr
    assert large.stderr.count('\n') == 1
  assert missing.returncode == 1
  assert re.fullmatch(
    r'error: http://\S+/nq/train.jsonl: 404 .*moved\?\n', missing.stderr
  )
  gone = subprocess.run(
    [
      sys.executable,
      _PROGRAM,
      f'--dir={tmp_path}',
      '--only=nq',
      '--base_url=http://127.0.0.1:1',
    ],
    capture_output=True,
    text=True,
    timeout=60,
    check=False,
  )
  assert gone.returncode == 1
  assert 'No network?' in gone.stderr
  assert 'Traceback' not in gone.stderr
  assert not (tmp_path / _NQ).exists()
