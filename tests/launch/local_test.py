"""Several processes of this machine: what they are told, and how a job ends."""

import pathlib
import signal
import subprocess
import sys
import time

import pytest

_LOCAL = pathlib.Path(__file__).parents[2] / 'launch' / 'local.py'


def _start(tmp_path, program, *flags):
  script = tmp_path / 'program.py'
  script.write_text(
    'import os, signal, sys, time\n'
    'index = int(sys.argv[-1].partition("=")[2])\n' + program
  )
  return subprocess.Popen(
    [sys.executable, str(_LOCAL), *flags, '--', sys.executable, str(script)],
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def _run(tmp_path, program, *flags):
  job = _start(tmp_path, program, *flags)
  return job.communicate(timeout=60)[0], job.returncode


def test_each_process_knows_the_others_and_says_who_it_is(tmp_path):
  said, code = _run(
    tmp_path,
    'print(sys.argv[1:], os.environ["XLA_FLAGS"])\n',
    '--processes=2',
    '--devices=3',
  )
  assert code == 0
  for i in (0, 1):
    (line,) = [l for l in said.splitlines() if l.startswith(f'[{i}]')]
    assert "'--num_processes=2'" in line and f"'--process_id={i}'" in line
    assert '--xla_force_host_platform_device_count=3' in line
    assert "'--coordinator=127.0.0.1:" in line


@pytest.mark.parametrize(
  'ending, code, message',
  [
    ('sys.exit(3)', 3, 'process 1 ended with exit code 3'),
    ('os.kill(os.getpid(), signal.SIGKILL)', 1, 'was ended by SIGKILL'),
  ],
)
def test_one_that_fails_ends_the_others(tmp_path, ending, code, message):
  start = time.monotonic()
  said, got = _run(
    tmp_path, f'if index == 1:\n  {ending}\ntime.sleep(60)\n', '--processes=3'
  )
  assert got == code and message in said
  assert time.monotonic() - start < 30


def test_who_does_not_end_is_killed(tmp_path):
  said, code = _run(
    tmp_path,
    'signal.signal(signal.SIGTERM, signal.SIG_IGN)\n'
    'if index == 1:\n  sys.exit(75)\ntime.sleep(60)\n',
    '--processes=2',
    '--grace=1',
  )
  assert code == 75 and 'processes [0] did not end' in said


def test_who_is_late_when_others_are_done_is_killed(tmp_path):
  said, code = _run(
    tmp_path, 'if index == 1:\n  time.sleep(60)\n', '--processes=2', '--grace=1'
  )
  assert code == 1 and 'processes [1] did not end' in said


def test_a_signal_goes_to_all(tmp_path):
  job = _start(
    tmp_path,
    'signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))\n'
    'print("ready", flush=True)\ntime.sleep(60)\n',
    '--processes=2',
  )
  ready = 0
  while ready < 2:
    ready += 'ready' in job.stdout.readline()
  job.send_signal(signal.SIGTERM)
  assert job.wait(30) == 75


def test_nothing_to_run_is_a_mistake():
  done = subprocess.run(
    [sys.executable, str(_LOCAL), '--processes=2'],
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 2 and 'give it after --' in done.stderr


def test_a_command_that_does_not_exist_is_named_in_one_line():
  done = subprocess.run(
    [sys.executable, str(_LOCAL), '--processes=2', '--', '--config=x.py'],
    check=False,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 2 and not done.stdout
  (line,) = done.stderr.splitlines()
  assert line.startswith('error: cannot run --config=x.py: No such file')
