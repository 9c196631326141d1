"""Tools of a user's own: cards of functions, and what becomes of their calls."""

import asyncio
import json
import os
import pathlib
import subprocess
import sys
import time
from typing import Any, Literal, Optional

import pytest

from agentflow_jax import records
from agentflow_jax.agents import fakes, language_model, own_functions, rollout
from agentflow_jax.agents.tools import base, own_tool

_ROOT = pathlib.Path(__file__).resolve().parents[3]
_KEY = records.RequestKey(0, records.Purpose.TRAIN, 0, 't', 0)
_TASK = records.Task('t', 'Which one?', ('x',), 'match')
_FILE = '''
import asyncio, os, subprocess, sys, time
from agentflow_jax.agents.tools import base

def double(number: int) -> int:
  """Doubles a number."""
  print('this is not the result')
  return 2 * number

def refuses(text: str) -> str:
  """Refuses."""
  raise ValueError(f'no {text} here')

def refuses_as_built_in_tools_do(text: str) -> str:
  """Refuses."""
  raise base.BadArguments(f'no {text} here')

def raises(text: str) -> str:
  """Raises."""
  return {}[text]

def hangs(text: str) -> str:
  """Hangs."""
  child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])
  open(text, 'w').write(f'{os.getpid()} {child.pid}')
  while True:
    pass

def exits(text: str) -> str:
  """Ends its process."""
  os._exit(3)

def large(text: str) -> str:
  """Returns ten megabytes."""
  return text * 10_000_000

def sees(text: str) -> list:
  """Returns what it sees."""
  return [os.environ.get(text), os.getcwd()]

def reads(text: str) -> str:
  """Reads its standard input, as programs that it starts do."""
  said = sys.stdin.read()
  return text + subprocess.run(['cat'], capture_output=True, text=True).stdout + said

def cycle(text: str) -> list:
  """Returns a value that is no JSON."""
  value = []
  value.append(value)
  return value

def awaits(text: str) -> str:
  """Returns what has to be awaited."""
  return aio_double(3)

def backtracks(text: str) -> str:
  """Holds the interpreter's lock."""
  import re
  open(text, 'w').write(str(os.getpid()))
  return str(re.match('(a+)+$', 'a' * 60 + 'b'))

async def aio_double(number: int) -> int:
  """Doubles a number."""
  return 2 * number

async def aio_refuses(text: str) -> str:
  """Refuses."""
  raise ValueError(f'no {text} here')

async def aio_raises(text: str) -> str:
  """Raises."""
  return {}[text]

async def aio_hangs(text: str) -> str:
  """Hangs."""
  open(text, 'w').write(f'{os.getpid()}')
  await asyncio.sleep(600)

async def aio_large(text: str) -> str:
  """Returns ten megabytes."""
  return text * 10_000_000
'''


@pytest.fixture(name='path')
def _path(tmp_path):
  path = tmp_path / 'mine.py'
  path.write_text(_FILE)
  return str(path)


def _tool(path, name, seconds=30.0):
  return own_tool.make(path, name, seconds=seconds, processes=2)


def _call(tool, **arguments):
  async def main():
    try:
      return await tool.call(arguments)
    finally:
      await tool.close()

  return asyncio.run(main())


@pytest.mark.parametrize('prefix', ['', 'aio_'])
def test_what_a_function_returns_is_the_result(path, prefix):
  assert _call(_tool(path, f'{prefix}double'), number=21) == '42'


@pytest.mark.parametrize(
  'name', ['refuses', 'aio_refuses', 'refuses_as_built_in_tools_do']
)
def test_a_value_error_is_text_for_the_model(path, name):
  with pytest.raises(base.BadArguments, match='^no luck here$'):
    _call(_tool(path, name), text='luck')


@pytest.mark.parametrize('name', ['raises', 'aio_raises', 'exits'])
def test_every_other_error_is_the_tools(path, name):
  with pytest.raises(base.ToolUnreachable, match=name):
    _call(_tool(path, name), text='x')


def test_what_is_no_result_is_the_functions_mistake(path):
  for name, said in (('cycle', 'Circular'), ('awaits', 'awaitable')):
    with pytest.raises(base.ToolUnreachable, match=said):
      _call(_tool(path, name), text='x')


def test_its_standard_input_is_empty(path):
  assert _call(_tool(path, 'reads', seconds=20.0), text='x') == 'x'


def test_a_process_that_ended_between_two_calls_is_started_again(path):
  tool = _tool(path, 'sees')
  children = next(
    cell.cell_contents
    for cell in tool.call.__closure__
    if isinstance(cell.cell_contents, own_functions.Own)
  )._children

  async def main():
    first = await tool.call({'text': 'X'})
    (pid,) = children.pids
    os.kill(pid, 9)
    await asyncio.sleep(0.5)
    second = await tool.call({'text': 'X'})
    await tool.close()
    return first, second

  first, second = asyncio.run(main())
  assert first == second


def test_code_that_changes_in_a_run_is_not_run(path):
  tool = _tool(path, 'double')
  pathlib.Path(path).write_text(_FILE.replace('2 * number', '3 * number'))
  with pytest.raises(language_model.Unreachable, match='changed since the run began'):
    _call(tool, number=2)


def test_a_decorator_that_hides_what_it_decorates_is_refused(tmp_path):
  path = tmp_path / 'mine.py'
  path.write_text(
    'import functools\n'
    'def hides(f):\n'
    '  @functools.wraps(f)\n'
    '  def g(*a, **k): return f(*a, **k)\n'
    '  return g\n'
    '@hides\n'
    'async def f(x: str) -> str:\n  """F."""\n  return x\n'
  )
  with pytest.raises(own_functions.LoadError, match='a decorator hides'):
    _tool(str(path), 'f')


def test_a_call_sees_what_whoever_started_the_run_sees(path, monkeypatch):
  monkeypatch.setenv('MINE', 'ours')
  said = json.loads(_call(_tool(path, 'sees'), text='MINE'))
  assert said == ['ours', os.getcwd()]


def test_one_process_serves_many_calls_and_two_serve_two_at_a_time(path):
  tool = _tool(path, 'double')

  async def main():
    first = [await tool.call({'number': i}) for i in range(3)]
    both = await asyncio.gather(*(tool.call({'number': i}) for i in range(9)))
    await tool.close()
    return first, both

  first, both = asyncio.run(main())
  assert first == ['0', '2', '4'] and both == [str(2 * i) for i in range(9)]


def _alive(pid):
  try:
    status = pathlib.Path(f'/proc/{pid}/stat').read_text()
  except FileNotFoundError:
    return False
  return status.rpartition(')')[2].split()[0] != 'Z'


def _gone(where):
  until = time.monotonic() + 5
  pids = [int(p) for p in where.read_text().split() if int(p) != os.getpid()]
  while any(map(_alive, pids)) and time.monotonic() < until:
    time.sleep(0.02)
  return not any(map(_alive, pids))


_ON_PROC = pytest.mark.skipif(not os.path.isdir('/proc/self'), reason='reads /proc')


@_ON_PROC
@pytest.mark.parametrize('name', ['hangs', 'aio_hangs'])
def test_one_that_hangs_is_ended_with_all_that_it_started(path, name, tmp_path):
  with pytest.raises(base.ToolUnreachable, match='took longer than 5 s'):
    _call(_tool(path, name, seconds=5.0), text=str(tmp_path / 'pids'))
  assert _gone(tmp_path / 'pids')


_ORPHAN = """
import asyncio
from agentflow_jax.agents.tools import own_tool
tool = own_tool.make({path!r}, 'backtracks', seconds=600, processes=1)
asyncio.run(tool.call({{'text': {where!r}}}))
"""


@_ON_PROC
@pytest.mark.skipif(sys.platform != 'linux', reason='asks the kernel of Linux')
def test_a_process_ends_with_ours_whatever_it_does(path, tmp_path):
  where = tmp_path / 'pids'
  with subprocess.Popen(
    [sys.executable, '-c', _ORPHAN.format(path=path, where=str(where))], cwd=_ROOT
  ) as process:
    until = time.monotonic() + 60
    while not (where.exists() and where.read_text()) and time.monotonic() < until:
      time.sleep(0.05)
    process.kill()
  assert _gone(where)


@_ON_PROC
@pytest.mark.parametrize('name', ['hangs', 'aio_hangs'])
def test_one_that_is_cancelled_is_ended_too(path, name, tmp_path):
  tool, where = _tool(path, name), tmp_path / 'pids'

  async def main():
    call = asyncio.create_task(tool.call({'text': str(where)}))
    while not where.exists() or len(where.read_text().split()) < (
      2 if name == 'hangs' else 1
    ):
      await asyncio.sleep(0.02)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
      await call
    ended = _gone(where)
    await tool.close()
    return ended

  assert asyncio.run(main())


@pytest.mark.parametrize(
  'name, status, part',
  [
    ('refuses', records.Status.OUT_OF_TURNS, 'no x here'),
    ('aio_refuses', records.Status.OUT_OF_TURNS, 'no x here'),
    ('raises', records.Status.TOOL_UNREACHABLE, 'KeyError'),
    ('aio_raises', records.Status.TOOL_UNREACHABLE, 'KeyError'),
    ('exits', records.Status.TOOL_UNREACHABLE, 'its process ended'),
    ('hangs', records.Status.TOOL_UNREACHABLE, 'took longer'),
    ('aio_hangs', records.Status.TOOL_UNREACHABLE, 'took longer'),
    ('large', records.Status.OUT_OF_TURNS, 'xxx'),
    ('aio_large', records.Status.OUT_OF_TURNS, 'xxx'),
  ],
)
def test_a_rollout_ends_with_the_status_of_built_in_tools(
  path, name, status, part, tmp_path
):
  where = str(tmp_path / 'pids') if 'hangs' in name else 'x'
  tool = _tool(path, name, seconds=3.0)
  plan = f'Sub-Goal: find {where}\nContext:\nTool Name: {name}'
  model = fakes.FakeLanguageModel({'planner': [plan]})
  agent = fakes.make_agent(
    model, [tool], rollout.RolloutConfig(max_turns=1, entry_tokens=30)
  )

  async def main():
    done = await rollout.rollout(agent, _TASK, _KEY)
    await tool.close()
    return done

  done = asyncio.run(main())
  assert done.status in (
    {status, records.Status.TOOL_ERROR}
    if status is records.Status.OUT_OF_TURNS
    else {status}
  )
  said = done.detail + ''.join(t.result.text for t in done.turns if t.result)
  assert part in said and len(said) < 2 << 20
  assert (done.reward is None) == (status is records.Status.TOOL_UNREACHABLE)


def _documented(
  a: str,
  b: int,
  c: float = 1.5,
  d: Optional[bool] = None,  # noqa: UP045 (as users write it)
  e: Literal['x', 'y'] = 'x',
  f: list[int] | None = None,
  *,
  g: dict[str, float] = {},  # noqa: B006 (as users write it)
  h: Any = None,
):
  """Does something
  in two lines.

  It cannot do everything.

  Args:
    a: the first,
      over two lines.
    e: one of two.
  """


def test_a_card_is_read_from_annotations_and_docstring():
  card = own_tool.card_of(_documented, 'documented')
  assert card.purpose == 'Does something in two lines.'
  assert card.limits == 'It cannot do everything.'
  assert [(a.name, a.type, a.required) for a in card.arguments] == [
    ('a', 'string', True),
    ('b', 'integer', True),
    ('c', 'number', False),
    ('d', 'boolean', False),
    ('e', 'string', False),
    ('f', 'array', False),
    ('g', 'object', False),
    ('h', 'any', False),
  ]
  assert card.arguments[0].description == 'the first, over two lines.'
  assert card.examples == ('execution = tool.execute(a="...", b=1)',)
  right = {'a': 'x', 'b': 3.0, 'e': 'y', 'f': [1], 'd': None, 'g': {'k': 1}}
  assert base.check_arguments(card, right)['b'] == 3
  for wrong in ({'e': 'z'}, {'f': ['x']}, {'g': {'k': 'v'}}, {'b': 'x'}, {'i': 1}):
    with pytest.raises(base.BadArguments):
      base.check_arguments(card, {'a': 'x', 'b': 1} | wrong)


@pytest.mark.parametrize(
  'source, said',
  [
    ('def f(x: str): return x', 'needs a docstring'),
    ('def f(x):\n  """F."""', "'x' needs an annotation"),
    ('def f(*x: str):\n  """F."""', r'\*args and'),
    ('def f(x: set):\n  """F."""', 'are supported'),
    ('def f(x: "Nothing"):\n  """F."""', 'cannot be resolved'),
    ('def f(x: "list["):\n  """F."""', 'cannot be resolved'),
    ('import functools\nf = functools.partial(print)', 'is no function'),
    ('import sys\nsys.exit(3)', 'SystemExit'),
    ('f = 3', 'is no function'),
    ('def g(): pass', "has no 'f'"),
    ('def f(:', 'SyntaxError'),
    ('import nowhere_at_all', 'nowhere_at_all'),
    ('raise RuntimeError("no")', 'RuntimeError: no'),
    (None, 'No such file'),
  ],
)
def test_what_is_no_tool_is_said_at_start(tmp_path, source, said):
  path = tmp_path / 'bad.py'
  if source is not None:
    path.write_text(source)
  with pytest.raises(own_functions.LoadError, match=said) as e:
    _tool(str(path), 'f')
  assert str(path) in str(e.value)


def test_the_examples_work():
  path = str(_ROOT / 'experiments' / 'own_code.py')
  tool = _tool(path, 'convert_length')
  assert tool.card.arguments[1].schema.said == {'enum': ['m', 'km', 'ft', 'mi']}
  assert _call(tool, value=2.0, unit='mi', to='km') == '3.21869 km'
  with pytest.raises(base.BadArguments, match='not negative'):
    _call(_tool(path, 'convert_length'), value=-1.0, unit='m', to='m')
  letters = _tool(path, 'count_letters')
  assert _call(letters, text='a b-a', letter='a') == '2'
  assert _call(letters, text='a b-a') == '3'


def test_the_version_is_that_of_the_file(path):
  before = _tool(path, 'double').version
  pathlib.Path(path).write_text(_FILE + '\n')
  assert _tool(path, 'double').version != before
