"""States of a workdir: each is one clear error, or works."""

import os
import signal
import subprocess
import sys

import pytest
from etils import epath

from agentflow_jax.config import schema
from agentflow_jax.runtime import exits, workdirs


def _file(path):
  path.write_text('mine')
  return path


# What makes the state below a directory and returns --workdir, and what is said.
_STATES = {
  'empty': (lambda d: '', 'is empty: name a directory'),
  'blank': (lambda d: '  ', 'is empty: name a directory'),
  'file': (lambda d: _file(d / 'f'), '/f'),
  'below_file': (lambda d: _file(d / 'f') / 'runs', '/f: not a directory'),
  'far_below_file': (lambda d: _file(d / 'f') / 'a/b/c', 'not a directory'),
  'nul': (lambda d: f'{d}/a\0b', 'null byte'),
  'long': (lambda d: d / ('x' * 300), 'name too long'),
  'not_permitted': (lambda d: '/sys/agentflow_runs', '/sys/agentflow_runs'),
}


@pytest.mark.parametrize('state', _STATES)
def test_a_workdir_that_cannot_be_is_one_line(tmp_path, state):
  make, said = _STATES[state]
  with pytest.raises(schema.ConfigError) as caught:
    workdirs.opened(str(make(tmp_path)))
  message = str(caught.value)
  assert '--workdir' in message and said.lower() in message.lower()
  assert '\n' not in message
  assert exits.code_of(caught.value) == 2


def test_links_in_circles_and_to_nothing(tmp_path):
  (tmp_path / 'circle').symlink_to(tmp_path / 'circle')
  (tmp_path / 'gone').symlink_to(tmp_path / 'nowhere')
  for name in ('circle', 'gone'):
    with pytest.raises(schema.ConfigError, match=name):
      workdirs.opened(str(tmp_path / name))


@pytest.mark.parametrize(
  'name', ['checkpoints', 'journal', 'rollouts', 'evaluations', 'planner']
)
def test_a_file_where_a_directory_should_be(tmp_path, name):
  _file(tmp_path / name)
  with pytest.raises(schema.ConfigError, match=f'{name} should be a directory'):
    workdirs.opened(str(tmp_path))
  assert (tmp_path / name).read_text() == 'mine'


@pytest.mark.parametrize('name', ['config.json', 'metrics.jsonl', 'lock'])
def test_a_directory_where_a_file_should_be(tmp_path, name):
  (tmp_path / name).mkdir()
  with pytest.raises(schema.ConfigError, match=f'{name} should be a file'):
    workdirs.opened(str(tmp_path))


def test_a_missing_workdir_is_made_and_another_s_files_stay(tmp_path):
  _file(tmp_path / 'notes.txt')
  made = workdirs.opened(str(tmp_path / 'a' / 'b'))
  assert made.is_dir()
  assert workdirs.opened(str(tmp_path)).is_dir()
  assert (tmp_path / 'notes.txt').read_text() == 'mine'


_HOLDER = """
import sys, time
from etils import epath
from agentflow_jax.runtime import workdirs
with workdirs.locked(epath.Path(sys.argv[1])):
  print('held', flush=True)
  time.sleep(60)
"""


def test_the_lock_names_its_holder_and_dies_with_it(tmp_path):
  with subprocess.Popen(
    [sys.executable, '-c', _HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True
  ) as holder:
    assert holder.stdout.readline() == 'held\n'
    with pytest.raises(schema.ConfigError) as caught:
      with workdirs.locked(epath.Path(tmp_path)):
        pass
    message = str(caught.value)
    assert f'in use by process {holder.pid} on {os.uname().nodename}' in message
    assert '\n' not in message
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with workdirs.locked(epath.Path(tmp_path)):
      assert f'process {os.getpid()} ' in (tmp_path / 'lock').read_text()


def test_a_process_may_lock_again_what_it_let_go(tmp_path):
  for _ in range(2):
    with workdirs.locked(epath.Path(tmp_path)):
      with pytest.raises(schema.ConfigError, match='in use by process'):
        with workdirs.locked(epath.Path(tmp_path)):
          pass


def test_an_object_store_has_no_lock_and_says_so(caplog):
  with workdirs.locked(epath.Path('gs://bucket/run')):
    pass
  assert 'gs://bucket/run cannot be locked' in caplog.text
