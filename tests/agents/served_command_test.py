"""Commands of agents: their answers, their limits and their ends."""

import asyncio
import os
import subprocess
import sys
import textwrap
import time

import pytest

from agentflow_jax.agents import served_command


def _command(tmp_path, text, **limits):
  path = tmp_path / 'agent.py'
  path.write_text(textwrap.dedent(text))
  limits = {'cpu_seconds': 60, 'memory_bytes': 2**32} | limits
  return served_command.Command((sys.executable, '-I', str(path)), **limits)


def _run(command, query='q'):
  return asyncio.run(command.run({'AGENTFLOW_QUERY': query}, query))


def test_the_last_line_is_the_answer_and_the_environment_is_small(
  tmp_path, monkeypatch
):
  monkeypatch.setenv('SECRET', 's')
  monkeypatch.setenv('WANTED', 'w')
  text = """
    import os, sys
    print('x' * 300_000, flush=True)
    print(sys.stdin.read(), os.environ['AGENTFLOW_QUERY'], 'SECRET' in os.environ,
          os.environ.get('WANTED'), sep='|')
    print()
  """
  done = _run(_command(tmp_path, text, environment=('WANTED',)), 'Näh?')
  assert (done.answer, done.failure) == ('Näh?|Näh?|False|w', '')


@pytest.mark.parametrize(
  'text, said',
  [
    ('raise ValueError("no")', 'status 1: ValueError: no'),
    ('import os; os.kill(os.getpid(), 9)', 'status -9'),
    ('while True: pass', 'status -'),
    ('x = bytearray(1 << 31)', 'MemoryError'),
  ],
)
def test_a_failure_has_a_reason(tmp_path, text, said):
  done = _run(_command(tmp_path, text, cpu_seconds=1, memory_bytes=2**30))
  assert said in done.failure and not done.answer


def test_what_does_not_start_is_a_failure(tmp_path):
  missing = served_command.Command((str(tmp_path / 'no'),), 1, 2**30)
  assert 'No such file' in _run(missing).failure
  command = _command(tmp_path, 'print(1)')
  assert 'does not start' in _run(command, 'a\0b').failure
  assert 'does not start' in _run(command, 'x' * (1 << 20)).failure


_LEAVES = """
  import os, subprocess, sys, time
  # A child that holds the pipes, and would outlive its parent.
  child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])
  with open(sys.argv[0] + '.pids', 'w') as file:
    file.write(f'{os.getpid()} {child.pid}')
  print('left')
"""


_RUNS = """
  import asyncio, sys
  from agentflow_jax.agents import served_command
  command = served_command.Command((sys.executable, '-I', sys.argv[1]), 60, 2**32)
  asyncio.run(command.run({}, ''))
"""


def _await_end(pids):
  for pid in pids:
    while True:
      try:
        with open(f'/proc/{pid}/stat') as file:
          if file.read().rpartition(')')[2].split()[0] == 'Z':
            break  # Its parent, init, has not noticed yet.
      except FileNotFoundError:
        break
      time.sleep(0.01)


@pytest.mark.skipif(sys.platform != 'linux', reason='reads /proc')
@pytest.mark.parametrize('hangs', [False, True])
def test_nothing_of_it_is_left(tmp_path, hangs):
  text = textwrap.dedent(_LEAVES) + ('time.sleep(600)\n' if hangs else '')
  command, pids = _command(tmp_path, text), tmp_path / 'agent.py.pids'

  async def run():
    running = asyncio.create_task(command.run({}, ''))
    if hangs:
      while not (pids.exists() and pids.read_text().count(' ')):
        await asyncio.sleep(0.01)
      running.cancel()
      with pytest.raises(asyncio.CancelledError):
        await running
      return None
    return await running

  done = asyncio.run(run())
  assert hangs or done.answer == 'left'
  _await_end(pids.read_text().split())
  assert not os.path.exists(f'/proc/{pids.read_text().split()[0]}')


@pytest.mark.skipif(sys.platform != 'linux', reason='the kernel of Linux does it')
def test_it_ends_with_the_run_however_that_ends(tmp_path):
  _command(tmp_path, _LEAVES.replace("print('left')", 'time.sleep(600)'))
  pids = tmp_path / 'agent.py.pids'
  run = subprocess.Popen(
    [sys.executable, '-c', textwrap.dedent(_RUNS), str(tmp_path / 'agent.py')]
  )
  while not (pids.exists() and pids.read_text().count(' ')):
    time.sleep(0.01)
  run.kill()
  run.wait()
  agent, child = pids.read_text().split()
  try:
    _await_end([agent])
  finally:
    os.kill(int(child), 9)  # Only the command itself is ended by the kernel.
