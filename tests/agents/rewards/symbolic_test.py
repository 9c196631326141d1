"""Symbolic equivalence and the child process that judges it."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from agentflow_jax.agents import child_server
from agentflow_jax.agents import language_model
from agentflow_jax.agents.rewards import symbolic


def check(*pairs, limits=symbolic.Limits()):
  """Verdicts of one checker over (gold, answer) pairs."""

  async def run():
    checker = symbolic.Checker(limits)
    try:
      return [await checker.equal([g], a) for g, a in pairs]
    finally:
      await checker.aclose()

  return asyncio.run(run())


def test_equivalent_forms():
  pairs = [
    ('1/2', '0.5'),
    ('\\frac{1}{2}', '$\\frac{2}{4}$'),
    ('x^2-1', '(x-1)(x+1)'),
    ('33', 'The answer is 33'),
    ('1234', '1,234'),
    ('\\sqrt{8}', '\\boxed{2\\sqrt{2}}'),
    ('27', '<answer>$27$</answer>'),
    ('(1,2)', '(1, 2)'),
    ('\\{1,2\\}', '\\{2,1\\}'),
    ('\\frac{\\pi}{4}', '\\pi/4'),
    ('5', '2 + 3'),
    ('50', '50\\%'),
  ]
  assert check(*pairs) == [True] * len(pairs)


def test_different_values():
  pairs = [
    ('1/2', '0.51'),
    ('x^2-1', '(x-1)^2'),
    ('33', 'The answer is 34'),
    ('-5', '5'),
    ('27', '26 or 27'),
    ('27', '$26$ or $27$'),
    ('(1,2)', '(2,1)'),
    ('\\sqrt{2}', '1.414'),
    ('5', ''),
    ('5', 'no idea'),
    ('5', '5' * 3000),
  ]
  assert check(*pairs) == [False] * len(pairs)


def test_the_same_text_needs_no_child():
  async def run():
    checker = symbolic.Checker()
    assert await checker.equal(['x + 1'], 'x+1')
    assert not await checker.equal(['x + 1'], ' ')
    return checker.pid

  assert asyncio.run(run()) is None


@pytest.mark.parametrize('answer', ['(9^9)!', '(' * 1000, '\\sum_{n=1}^{10^{9}} 1/n'])
def test_a_check_that_hangs_is_wrong_and_the_next_one_works(answer):
  limits = symbolic.Limits(cpu_seconds=1.0)
  assert check(('7', answer), ('1/2', '0.5'), limits=limits) == [False, True]


def test_a_gold_that_is_no_mathematics_is_an_error():
  with pytest.raises(ValueError, match='no mathematics'):
    check(('', '5'))


def test_checks_from_many_coroutines_get_their_own_verdicts():
  async def run():
    checker = symbolic.Checker()
    pairs = [(str(i), f'{2 * i + i % 2}/2') for i in range(40)]
    verdicts = await asyncio.gather(*(checker.equal([g], a) for g, a in pairs))
    await checker.aclose()
    return verdicts

  # (2i + i%2)/2 equals i for even i only.
  assert asyncio.run(run()) == [i % 2 == 0 for i in range(40)]


def test_a_killed_child_is_replaced_and_none_is_left():
  async def run():
    checker = symbolic.Checker()
    assert await checker.equal(['1/2'], '0.5')
    first = checker.pid
    os.kill(first, signal.SIGKILL)
    assert await checker.equal(['1/2'], '0.5')
    second = checker.pid
    assert second != first
    await checker.aclose()
    assert checker.pid is None
    return first, second

  for pid in asyncio.run(run()):
    with pytest.raises(ProcessLookupError):
      os.kill(pid, 0)


def test_the_child_is_replaced_after_its_number_of_requests():
  async def run():
    checker = symbolic.Checker(symbolic.Limits(requests=3))
    pids = []
    for _ in range(6):
      assert await checker.equal(['1/2'], '0.5')
      pids.append(checker.pid)
    await checker.aclose()
    return pids

  pids = asyncio.run(run())
  assert [pids.index(p) for p in pids] == [0, 0, 0, 3, 3, 3]


def test_cancelling_a_check_never_gives_its_reply_to_another():
  async def run():
    checker = symbolic.Checker()
    assert await checker.equal(['1/2'], '0.5')
    child = checker.pid
    slow = asyncio.create_task(checker.equal(['7'], '(9^9)!'))
    await asyncio.sleep(0.2)
    slow.cancel()
    with pytest.raises(asyncio.CancelledError):
      await slow
    verdicts = [await checker.equal(['1/2'], a) for a in ('0.5', '0.6', '2/4')]
    await checker.aclose()
    return child, verdicts

  child, verdicts = asyncio.run(run())
  assert verdicts == [True, False, True]
  with pytest.raises(ProcessLookupError):
    os.kill(child, 0)


def test_a_stopped_child_is_infrastructure_not_a_verdict():
  async def run():
    checker = symbolic.Checker(symbolic.Limits(wall_seconds=0.5))
    original = checker._child._start

    async def start_and_stop():
      await original()
      os.kill(checker.pid, signal.SIGSTOP)

    checker._child._start = start_and_stop
    try:
      with pytest.raises(language_model.Unreachable, match='at 2 attempts'):
        await checker.equal(['1/2'], '0.5')
      assert checker.pid is None
    finally:
      await checker.aclose()

  asyncio.run(run())


def test_a_child_that_cannot_start_is_unreachable(monkeypatch, tmp_path):
  broken = tmp_path / 'broken.py'
  broken.write_text('import nowhere_to_be_found')
  monkeypatch.setattr(symbolic, '_WORKER', str(broken))
  said = "broken.py does not start: .*No module named 'nowhere_to_be_found'"
  with pytest.raises(language_model.Unreachable, match=said):
    check(('1/2', '0.5'))


def test_the_child_ends_when_its_parent_is_killed():
  program = (
    'import asyncio, time\n'
    'from agentflow_jax.agents.rewards import symbolic\n'
    'async def run():\n'
    '  checker = symbolic.Checker()\n'
    '  await checker.equal(["1/2"], "0.5")\n'
    '  print(checker.pid, flush=True)\n'
    '  time.sleep(60)\n'
    'asyncio.run(run())\n'
  )
  path = os.pathsep.join(p for p in sys.path if p)
  parent = subprocess.Popen(
    [sys.executable, '-c', program],
    stdout=subprocess.PIPE,
    env={**os.environ, 'PYTHONPATH': path},
  )
  child = int(parent.stdout.readline())
  parent.kill()
  parent.wait()
  parent.stdout.close()
  deadline = time.monotonic() + 20
  while time.monotonic() < deadline and _is_running(child):
    time.sleep(0.05)
  assert not _is_running(child)


def _is_running(pid: int) -> bool:
  """Whether a process runs; one that only waits to be reaped does not."""
  try:
    with open(f'/proc/{pid}/stat', encoding='ascii') as stat:
      return stat.read().rsplit(')', 1)[1].split()[0] != 'Z'
  except OSError:
    return False


def test_nothing_leaks_over_many_kills():
  async def run():
    before = len(os.listdir('/proc/self/fd'))
    for _ in range(3):
      checker = symbolic.Checker()
      await checker.equal(['1/2'], '0.5')
      await checker.aclose()
      await asyncio.sleep(0)
    return before, len(os.listdir('/proc/self/fd'))

  before, after = asyncio.run(run())
  assert after <= before


ESCAPES = (
  "open('/etc/passwd').read()",
  "open('/proc/self/environ').read()",
  f"open('/proc/{os.getpid()}/mem', 'rb').read(1)",
  "open(os.path.join(sys.prefix, 'written'), 'w')",
  "open('relative')",
  "os.open('/etc/passwd', 0)",
  "os.system('true')",
  'os.fork()',
  "os.execv('/bin/true', ['true'])",
  "os.posix_spawn('/bin/true', ['true'], {})",
  f'os.kill({os.getpid()}, 0)',
  "os.remove('/tmp/none')",
  "os.mkdir('/tmp/made')",
  "subprocess.run(['true'])",
  "socket.create_connection(('127.0.0.1', 9))",
  'socket.socket()',
  'ctypes.CDLL(None)',
  'resource.setrlimit(resource.RLIMIT_CPU, (1, 1))',
)


def test_the_armed_guard_closes_every_door():
  program = (
    'import json, os, sys, socket, subprocess, ctypes, resource, runpy\n'
    'worker = runpy.run_path(sys.argv[1], run_name="worker")\n'
    'guard = worker["_Guard"]()\n'
    'sys.addaudithook(guard)\n'
    'import wave, asyncio\n'
    'found = []\n'
    'for code in json.loads(sys.argv[2]):\n'
    '  compiled = compile(code, "attempt", "eval")\n'
    '  guard.armed = True\n'
    '  try:\n'
    '    eval(compiled)\n'
    '    outcome = "escaped"\n'
    '  except PermissionError as error:\n'
    '    outcome = str(error)[:6]\n'
    '  guard.armed = False\n'
    '  found.append(outcome)\n'
    'guard.armed = True\n'
    'import colorsys, decimal\n'  # A library module still loads.
    'guard.armed = False\n'
    'print(json.dumps(found))\n'
  )
  done = subprocess.run(
    # As the child is started: without what PYTHONPATH adds.
    [sys.executable, '-I', '-c', program, child_server.__file__, json.dumps(ESCAPES)],
    capture_output=True,
    check=True,
    text=True,
    timeout=60,
  )
  outcomes = dict(zip(ESCAPES, json.loads(done.stdout), strict=True))
  assert outcomes == dict.fromkeys(ESCAPES, 'closed')


def test_the_child_sees_no_environment(monkeypatch, tmp_path):
  monkeypatch.setenv('SECRET_KEY', 'hush')
  spy = tmp_path / 'spy.py'
  seen = tmp_path / 'seen.json'
  spy.write_text(
    f'import json, os\njson.dump(dict(os.environ), open({str(seen)!r}, "w"))\n'
  )
  monkeypatch.setattr(symbolic, '_WORKER', str(spy))
  with pytest.raises(language_model.Unreachable):
    check(('1/2', '0.5'))
  environment = json.loads(seen.read_text())
  assert 'SECRET_KEY' not in environment
  assert set(environment) <= {'PYTHONHASHSEED', 'PYTHONUTF8', 'LC_CTYPE'}


def test_code_in_an_answer_does_not_run(tmp_path):
  mark = tmp_path / 'mark'
  code = f"open('{mark}','w')"
  pairs = [
    ('5', said)
    for said in (
      code,
      f'1+{code}',
      f'(1*{code}+1)',
      f"__import__('os').system('touch {mark}')",
      f'$x$ 1/eval("{code}")',
      f'\\text{{{code}}}',
    )
  ]
  assert check(*pairs) == [False] * len(pairs)
  assert not mark.exists()
