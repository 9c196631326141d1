"""Tests of the python tool over its backends; escapes have their own file."""

import asyncio
import contextlib
import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from agentflow_jax.agents.tools import base
from agentflow_jax.agents.tools.python import bubblewrap, monty, python_tool
from agentflow_jax.agents.tools.python import sandbox


def _make(backend: str, *args, **kwargs) -> base.Tool:
  try:
    return python_tool.make(backend, *args, **kwargs)
  except base.ToolUnavailable as error:
    pytest.skip(str(error))


def _call(tool: base.Tool, code: str) -> str:
  return asyncio.run(tool.call({'code': code}))


@pytest.fixture(name='tool', scope='module', params=['bubblewrap', 'monty'])
def _tool(request):
  return _make(request.param)


def test_card_has_one_required_argument(tool):
  assert tool.card.name == 'python'
  (argument,) = tool.card.arguments
  assert (argument.name, argument.type, argument.required) == (
      'code', 'string', True,
  )  # fmt: skip
  base.check_arguments(tool.card, {'code': 'print(1)'})
  assert '5 s of processor time' in tool.card.limits


def test_card_says_what_the_backend_can_do():
  assert 'numpy, sympy, mpmath; no network' in _make('bubblewrap').card.limits
  assert 'no numpy' in _make('monty').card.limits


@pytest.mark.parametrize(
    'code, error',
    [
        ('1 / 0', 'ZeroDivisionError: division by zero (line 1)'),
        ('x = 1\n\nprint(y)', "NameError: name 'y' is not defined (line 3)"),
        ('def f():\n  return [][1]\n\nf()',
         'IndexError: list index out of range (line 2)'),
        ('raise ValueError("a\\nb")', 'ValueError: a b (line 1)'),
        ('import nowhere',
         "ModuleNotFoundError: No module named 'nowhere' (line 1)"),
        ('def f(n):\n  return f(n)\nf(0)', 'RecursionError: maximum recursion '
         'depth exceeded (line 2)'),
    ],
)  # fmt: skip
def test_a_failure_is_one_line_for_the_model(tool, code, error):
  with pytest.raises(base.BadArguments) as caught:
    _call(tool, code)
  assert str(caught.value) == f'the program failed: {error}'


def test_a_syntax_error_names_its_line(tool):
  with pytest.raises(base.BadArguments, match=r'SyntaxError: .*\(line 2\)'):
    _call(tool, 'x = 1\ny = = 2')


def test_what_was_printed_before_a_failure_is_kept(tool):
  with pytest.raises(base.BadArguments) as caught:
    _call(tool, 'print("half")\n1 / 0')
  assert str(caught.value).endswith('before that it printed:\nhalf')


def test_long_errors_are_shortened(tool):
  with pytest.raises(base.BadArguments) as caught:
    _call(tool, 'raise ValueError("x" * 10000)')
  assert len(str(caught.value)) < 600


def test_endless_errors_are_a_failure(tool):
  with pytest.raises(base.BadArguments, match='endless error messages'):
    _call(tool, 'import sys\nwhile True: print("x" * 1000, file=sys.stderr)')


def test_no_output_says_so(tool):
  assert 'printed nothing' in _call(tool, '1 + 1')


def test_state_is_not_kept_between_programs(tool):
  assert _call(tool, 'x = 1\nprint(x)') == '1'
  with pytest.raises(base.BadArguments, match='NameError'):
    _call(tool, 'print(x)')


@pytest.mark.parametrize(
    'code, reason',
    [
        ('', 'empty'), (' \n', 'empty'), ('print("\0")', 'null'),
        ('print("\ud800")', 'UTF-8'), ('#' * 70000, '65536 at most'),
    ],
)  # fmt: skip
def test_refuses_what_is_no_program(tool, code, reason):
  with pytest.raises(base.BadArguments, match=reason):
    _call(tool, code)


def test_a_program_of_the_greatest_length_runs(tool):
  code = 'print(1)\n' + '#é' * ((65536 - 9) // 3)
  assert _call(tool, code) == '1'


def test_output_beyond_the_limit_is_cut(tool):
  said = _call(tool, 'print("x" * 5000)')
  assert said == 'x' * 4000 + '\n... (cut: the program printed over 4000 bytes)'


def test_sets_print_in_the_same_order_every_time():
  tool = _make('bubblewrap')
  code = 'print({str(i) for i in range(50)})'
  assert len({_call(tool, code) for _ in range(3)}) == 1


def test_waiting_for_a_turn_is_not_a_programs_time():
  # 10 x 0.4 s one after another is more than the 3.5 s that each may take.
  tool = _make('bubblewrap', sandbox.Limits(wall_seconds=3.5), concurrency=1)
  code = 'import time\ntime.sleep(0.4)\nprint(1)'

  async def main():
    return await asyncio.gather(*(tool.call({'code': code}) for _ in range(10)))

  assert asyncio.run(main()) == ['1'] * 10


@pytest.mark.parametrize('concurrency', [1, 3])
def test_so_many_run_at_a_time(monkeypatch, concurrency):
  running, seen = [], []

  class Fake:
    name, card_limits = 'fake', 'none'

    def __init__(self, limits):
      del limits

    async def run(self, program):
      running.append(program)
      seen.append(len(running))
      await asyncio.sleep(0)
      running.remove(program)
      return sandbox.Outcome(program)

  monkeypatch.setattr(bubblewrap, 'Bubblewrap', Fake)
  tool = python_tool.make('bubblewrap', concurrency=concurrency)

  async def main():
    return await asyncio.gather(*(tool.call({'code': str(i)}) for i in range(20)))

  assert asyncio.run(main()) == [str(i) for i in range(20)]
  assert max(seen) == concurrency


def test_without_a_bounded_file_system_nothing_can_be_written(monkeypatch):
  monkeypatch.setattr(bubblewrap, '_mounting', lambda limits: [])
  tool = _make('bubblewrap')
  assert 'no files, no input' in tool.card.limits
  assert _call(tool, 'import os\nprint(os.listdir("/"))').count('tmp') == 0
  with pytest.raises(base.BadArguments, match='Read-only file system'):
    _call(tool, 'open("here", "w")')


@pytest.mark.parametrize('missing', ['unshare', 'mount'])
def test_without_the_program_that_mounts_there_is_no_tmp(monkeypatch, missing):
  which = bubblewrap.shutil.which
  monkeypatch.setattr(
    bubblewrap.shutil, 'which', lambda n: None if n == missing else which(n)
  )
  assert bubblewrap._mounting(sandbox.Limits()) == []


def test_time_zones_are_known():
  tool = _make('bubblewrap')
  program = (
    'import datetime, zoneinfo\n'
    'zone = zoneinfo.ZoneInfo("America/New_York")\n'
    'print(datetime.datetime(2024, 7, 1, tzinfo=zone).utcoffset())'
  )
  assert _call(tool, program) == '-1 day, 20:00:00'


@pytest.mark.parametrize(
  'sent',
  [
    '\ufeffprint(1)',
    '```python\nprint(1)\n```',
    '\n```\nprint(1)\n```\n\n',
    '```py title="a.py"\nprint(1)',
    '\ufeff```python\r\nprint(1)\r\n```',
    '~~~python\n\ufeffprint(1)\n~~~',
    '````python\nprint("""\n```\n"""[5:] or 1)\n````',
  ],
)
def test_fences_and_byte_order_marks_are_taken_off(tool, sent):
  assert _call(tool, sent) == '1'


def test_a_fence_inside_a_program_is_part_of_it(tool):
  program = 'x = """\n```\nprint(1)\n```\n"""\nprint(len(x))'
  assert _call(tool, program) == '18'
  assert _call(tool, f'```\n{program}\n```') == '18'


@pytest.mark.parametrize(
  'program',
  ['import sys\nsys.stdout.write("a")', 'from collections import OrderedDict'],
)
def test_montys_card_names_what_models_often_use_and_it_lacks(program):
  tool = _make('monty')
  name = 'sys.stdout.write' if 'sys' in program else 'OrderedDict'
  with pytest.raises(base.BadArguments, match='write|OrderedDict'):
    _call(tool, program)  # Once it is there, it should leave the card.
  assert f'no {name}' in tool.card.limits


_ORPHAN = """
import asyncio
from agentflow_jax.agents.tools.python import monty, python_tool, sandbox
if not {has_setpriv}:
  monty._ending_with_parent = lambda: ()
limits = sandbox.Limits(cpu_seconds=60, wall_seconds=60)
tool = python_tool.make('monty', limits)
print('ready', flush=True)
asyncio.run(tool.call({{'code': 'x = {marker}\\nwhile True: pass'}}))
"""


def _processes_with(marker: str) -> list[str]:
  found = []
  for path in pathlib.Path('/proc').glob('[0-9]*/cmdline'):
    with contextlib.suppress(OSError):
      if marker in path.read_bytes().decode(errors='replace'):
        found.append(path.parent.name)
  return found


@pytest.mark.skipif(not os.path.isdir('/proc/self'), reason='reads /proc')
@pytest.mark.parametrize('has_setpriv', [True, False])
def test_montys_process_ends_with_ours(has_setpriv):
  _make('monty')
  marker = str(10**12 + 2 * os.getpid() + has_setpriv)
  with subprocess.Popen(
    [sys.executable, '-c', _ORPHAN.format(marker=marker, has_setpriv=has_setpriv)],
    stdout=subprocess.PIPE,
    cwd=pathlib.Path(__file__).parents[4],
  ) as process:
    assert process.stdout.readline() == b'ready\n'
    until = time.monotonic() + 60
    ours = {str(process.pid)}
    while not set(_processes_with(marker)) - ours and time.monotonic() < until:
      time.sleep(0.02)
    assert set(_processes_with(marker)) - ours
    process.kill()
  until = time.monotonic() + 10  # Its own limit is a minute.
  while (left := _processes_with(marker)) and time.monotonic() < until:
    time.sleep(0.02)
  assert not left


def test_no_turn_in_time_is_an_outage():
  tool = _make('monty', concurrency=1, queue_seconds=0.2)

  async def main():
    slow = asyncio.create_task(
      tool.call({'code': 'import time\ntime.sleep(2)\nprint(1)'})
    )
    await asyncio.sleep(0)
    with pytest.raises(base.ToolUnreachable, match='no sandbox was free'):
      await tool.call({'code': 'print(2)'})
    return await slow

  assert asyncio.run(main()) == '1'
  # The turn that was waited for in vain was not used up, in another loop too.
  assert _call(tool, 'print(3)') == '3'


def test_nothing_is_left_over(tool):
  async def main():
    codes = ['print(1)', '1 / 0', 'while True: print(1)', 'raise SystemExit']
    calls = [tool.call({'code': c}) for c in codes * 4]
    await asyncio.gather(*calls, return_exceptions=True)
    late = asyncio.create_task(tool.call({'code': 'import time\ntime.sleep(60)'}))
    await asyncio.sleep(0.3)
    late.cancel()
    await asyncio.gather(late, return_exceptions=True)

  def state():
    return set(os.listdir('/proc/self/fd')), _descendants(os.getpid())

  before, threads = state(), threading.active_count()
  asyncio.run(main())
  deadline = time.monotonic() + 5
  while time.monotonic() < deadline:
    if state() == before and threading.active_count() <= threads:
      return
    time.sleep(0.02)
  assert state() == before
  assert threading.active_count() <= threads


def _descendants(pid: int) -> set[int]:
  children = {}
  for stat in pathlib.Path('/proc').glob('[0-9]*/stat'):
    try:
      fields = stat.read_text().rpartition(')')[2].split()
    except (FileNotFoundError, ProcessLookupError):
      continue
    children.setdefault(int(fields[1]), set()).add(int(stat.parent.name))
  found, todo = set(), [pid]
  while todo:
    fresh = children.get(todo.pop(), set()) - found
    found |= fresh
    todo += fresh
  return found


def test_programs_die_with_this_process():
  _make('bubblewrap')
  program = textwrap.dedent("""
      import asyncio
      from agentflow_jax.agents.tools.python import python_tool
      tool = python_tool.make('bubblewrap')
      async def main():
        task = asyncio.create_task(
            tool.call({'code': 'import time\\ntime.sleep(14)'}))
        await asyncio.sleep(0.5)
        print('started', flush=True)
        await task
      asyncio.run(main())
  """)
  trainer = subprocess.Popen([sys.executable, '-c', program], stdout=subprocess.PIPE)
  assert trainer.stdout.readline() == b'started\n'
  sandboxes = _descendants(trainer.pid)
  assert len(sandboxes) >= 2  # bwrap and what it runs
  trainer.send_signal(signal.SIGKILL)
  trainer.wait()
  trainer.stdout.close()
  deadline = time.monotonic() + 5
  while time.monotonic() < deadline and any(map(_running, sandboxes)):
    time.sleep(0.02)
  assert not [pid for pid in sandboxes if _running(pid)]


def _running(pid: int) -> bool:
  try:
    stat = pathlib.Path(f'/proc/{pid}/stat').read_text()
  except (FileNotFoundError, ProcessLookupError):
    return False
  return stat.rpartition(')')[2].split()[0] != 'Z'


def test_auto_takes_the_first_that_works(monkeypatch):
  _make('monty')

  def broken(limits):
    raise base.ToolUnavailable(f'broken with {limits.cpu_seconds}')

  monkeypatch.setattr(bubblewrap, 'Bubblewrap', broken)
  assert 'no numpy' in python_tool.make('auto').card.limits
  with pytest.raises(base.ToolUnavailable, match='bubblewrap: broken with 5.0'):
    python_tool.make('bubblewrap')
  monkeypatch.setattr(monty, 'Monty', broken)
  with pytest.raises(base.ToolUnavailable, match='bubblewrap: .*; monty: '):
    python_tool.make('auto')


def test_remedies_are_named(monkeypatch):
  monkeypatch.setattr(bubblewrap.shutil, 'which', lambda name: None)
  with pytest.raises(base.ToolUnavailable, match='apt-get install bubblewrap'):
    python_tool.make('bubblewrap')
  monkeypatch.setattr(monty.importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(base.ToolUnavailable, match='pip install pydantic-monty'):
    python_tool.make('monty')


def test_a_bwrap_that_cannot_make_namespaces_is_refused(monkeypatch, tmp_path):
  _make('bubblewrap')
  fake = tmp_path / 'bwrap'
  fake.write_text('#!/bin/sh\necho "bwrap: No permissions" >&2\nexit 1\n')
  fake.chmod(0o755)
  monkeypatch.setattr(bubblewrap.shutil, 'which', lambda name: str(fake))
  with pytest.raises(base.ToolUnavailable, match='No permissions'):
    python_tool.make('bubblewrap')


def test_a_sandbox_that_does_not_hold_is_refused(monkeypatch):
  _make('bubblewrap')
  whole = bubblewrap._command  # pylint: disable=protected-access

  def leaking(*args):
    head, *rest = whole(*args)
    at = head.index('--remount-ro')
    return [*head[:at], '--ro-bind', '/etc', '/etc', *head[at:]], *rest

  monkeypatch.setattr(bubblewrap, '_command', leaking)
  with pytest.raises(base.ToolUnavailable, match='does not hold'):
    python_tool.make('bubblewrap')


def test_a_sandbox_that_breaks_later_is_an_outage(monkeypatch, tool):
  async def broken(*args, **kwargs):
    del args, kwargs
    return sandbox.Finished(125, b'', b'bwrap: out of memory')

  monkeypatch.setattr(sandbox, 'run_process', broken)
  with pytest.raises(base.ToolUnreachable, match='out of memory'):
    _call(tool, 'print(1)')


def test_no_descriptor_left_is_an_outage(monkeypatch):
  tool = _make('bubblewrap')

  def refused(*args):
    raise OSError(24, f'Too many open files {args}')

  monkeypatch.setattr(bubblewrap.os, 'memfd_create', refused)
  with pytest.raises(base.ToolUnreachable, match='Too many open files'):
    _call(tool, 'print(1)')


@pytest.mark.parametrize(
  'arguments', [{'backend': 'docker'}, {'concurrency': 0}, {'queue_seconds': 0}]
)
def test_arguments_are_checked(arguments):
  with pytest.raises(ValueError):
    python_tool.make(**arguments)
