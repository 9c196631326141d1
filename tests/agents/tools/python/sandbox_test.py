"""Tests of starting, bounding and reaping a program's process."""

import asyncio
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest

from agentflow_jax.agents.tools import base
from agentflow_jax.agents.tools.python import sandbox

_LIMITS = sandbox.Limits(wall_seconds=20.0, output_bytes=1000)
_SHORT = sandbox.Limits(wall_seconds=0.5, output_bytes=1000)


def _run(program: str, limits=_LIMITS, **kwargs) -> sandbox.Finished:
  kwargs.setdefault('environment', {})
  command = [sys.executable, '-ISc', program]
  return asyncio.run(sandbox.run_process(command, limits, **kwargs))


def _descriptors() -> set[str]:
  return set(os.listdir('/proc/self/fd'))


def _children() -> set[int]:
  done = subprocess.run(
      ['ps', '-o', 'pid=', '--ppid', str(os.getpid())],
      capture_output=True, text=True, check=False,
  )  # fmt: skip
  found = map(int, done.stdout.split())
  # ps lists itself, which is gone by now.
  return {pid for pid in found if os.path.exists(f'/proc/{pid}')}


def _alive(pid: int) -> bool:
  try:
    status = pathlib.Path(f'/proc/{pid}/stat').read_text()
  except FileNotFoundError:
    return False
  return status.rpartition(')')[2].split()[0] != 'Z'


def test_returns_output_and_status():
  finished = _run('import sys; print("a"); print("b", file=sys.stderr); sys.exit(3)')
  assert finished == sandbox.Finished(3, b'a\n', b'b\n')


def test_a_signal_is_a_negative_status():
  assert _run('import os; os.kill(os.getpid(), 9)').returncode == -9


def test_environment_input_and_directory_are_what_was_given():
  program = 'import os, sys\nprint(dict(os.environ), os.getcwd(), sys.stdin.read())'
  said = _run(program, environment={'A': 'b', 'LC_ALL': 'C'}).stdout
  assert said == b"{'A': 'b', 'LC_ALL': 'C'} / \n"


def test_no_other_descriptor_is_inherited():
  reader, writer = os.pipe()
  os.set_inheritable(reader, True)
  try:
    program = 'import os; print(os.listdir("/proc/self/fd"))'
    said = _run(program).stdout
  finally:
    os.close(reader)
    os.close(writer)
  assert said == b"['0', '1', '2', '3']\n"  # 3 is the directory being listed


def test_time_is_bounded_and_earlier_output_kept():
  finished = _run('import time; print("a", flush=True); time.sleep(99)', _SHORT)
  assert (finished.stdout, finished.stopped) == (b'a\n', 'time')
  assert finished.returncode == -9


@pytest.mark.parametrize(
  'stream, stopped, sizes',
  [('stdout', 'output', (1000, 0)), ('stderr', 'errors', (0, 64 * 1024))],
)
def test_output_is_bounded(stream, stopped, sizes):
  program = f'import sys\nwhile True: sys.{stream}.write("x" * 999)'
  finished = _run(program)
  assert finished.stopped == stopped
  assert (len(finished.stdout), len(finished.stderr)) == sizes


def test_a_program_that_dies_slowly_is_not_waited_for(monkeypatch):
  # It goes on writing after the bound, more than asyncio buffers, and its end
  # is noticed after that of its standard error.
  kill = sandbox._kill

  def kill_late(process):
    asyncio.get_running_loop().call_later(0.2, kill, process)

  monkeypatch.setattr(sandbox, '_kill', kill_late)
  program = 'import os\nos.close(2)\nwhile True: print("x" * 9999)'
  assert _run(program).stopped == 'output'


def test_output_of_exactly_the_bound_is_not_cut():
  finished = _run('print("x" * 999)')
  assert (len(finished.stdout), finished.stopped) == (1000, '')


def test_the_whole_group_is_killed():
  program = (
    'import subprocess, sys, time\n'
    'p = subprocess.Popen(["sleep", "60"], stdout=subprocess.DEVNULL, '
    'stderr=subprocess.DEVNULL)\n'
    'print(p.pid, flush=True)\ntime.sleep(60)'
  )
  finished = _run(program, _SHORT, environment={'PATH': os.environ['PATH']})
  pid = int(finished.stdout)
  deadline = time.monotonic() + 5
  while _alive(pid) and time.monotonic() < deadline:
    time.sleep(0.01)
  assert not _alive(pid)


def test_cancellation_kills_and_reaps():
  started = {}

  async def main():
    before = _children()
    task = asyncio.create_task(
      sandbox.run_process(['sleep', '60'], _LIMITS, environment={})
    )
    while not (fresh := _children() - before):
      await asyncio.sleep(0.01)
    started['pid'] = fresh.pop()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
      await task

  asyncio.run(main())
  assert not os.path.exists(f'/proc/{started["pid"]}')


def test_cancelled_while_it_starts_a_group_is_killed_as_well(tmp_path):
  """asyncio itself would wait for the pipes, which a grandchild has, too."""
  file = tmp_path / 'pid'
  program = f'sleep 60 & echo $! > {file}; wait'

  async def main():
    before = _children()
    task = asyncio.create_task(
      sandbox.run_process(
        ['sh', '-c', program], _LIMITS, environment={'PATH': os.environ['PATH']}
      )
    )
    while not _children() - before:  # Then its pipes are not connected yet.
      await asyncio.sleep(0)
    deadline = time.monotonic() + 10
    while not (file.exists() and file.read_text().endswith('\n')):
      assert time.monotonic() < deadline
      time.sleep(0.01)  # The loop stands still.
    task.cancel()
    await asyncio.wait([task], timeout=10)
    ended = task.done()
    if not ended:
      os.kill(int(file.read_text()), signal.SIGKILL)
    with pytest.raises(asyncio.CancelledError):
      await task
    assert ended

  asyncio.run(main())


def test_nothing_is_left_over():
  async def main():
    programs = [
        'print(1)', 'raise ValueError', 'while True: print("x" * 99)',
        'import time; time.sleep(60)', 'import os; os.kill(os.getpid(), 11)',
        'import os; os.close(1); os.close(2)',
    ]  # fmt: skip
    await asyncio.gather(
      *(
        sandbox.run_process([sys.executable, '-ISc', p], _SHORT, environment={})
        for p in programs * 3
      )
    )
    return threading.active_count()

  descriptors, children = _descriptors(), _children()
  threads = threading.active_count()
  asyncio.run(main())
  deadline = time.monotonic() + 5
  while threading.active_count() > threads and time.monotonic() < deadline:
    time.sleep(0.01)
  assert threading.active_count() <= threads
  assert _descriptors() == descriptors
  assert _children() == children


def test_a_command_that_is_not_there_is_an_outage():
  with pytest.raises(base.ToolUnreachable, match='cannot start'):
    asyncio.run(sandbox.run_process(['/nowhere'], _LIMITS, environment={}))


def test_decoding_never_fails():
  assert sandbox.decode(b'a\xff\xc3\xa9') == 'a\ufffdé'


@pytest.mark.parametrize(
  'status, said',
  [
    (137, 'the program was ended by SIGKILL'),
    (-11, 'the program was ended by SIGSEGV'),
    (152, 'the program used more than 5 s of processor time'),
    (7, 'the program exited with status 7'),
    (255, 'the program exited with status 255'),
  ],
)
def test_describes_an_exit(status, said):
  assert sandbox.describe_exit(status, sandbox.Limits()) == said


@pytest.mark.parametrize('field', ['wall_seconds', 'memory_bytes'])
def test_limits_are_positive(field):
  with pytest.raises(ValueError, match=field):
    sandbox.Limits(**{field: 0})
