"""Tests of sessions: names that live on over programs, and calls in these."""

import asyncio
import dataclasses
import json

import pytest

from agentflow_jax.agents.environments.programs import monty_sessions
from agentflow_jax.agents.environments.programs import replayed_sessions, sessions
from agentflow_jax.agents.tools import base
from agentflow_jax.agents.tools.python import sandbox

_LIMITS = sessions.Limits(
  sandbox.Limits(cpu_seconds=1.0, wall_seconds=10.0, output_bytes=200),
  state_bytes=20_000,
  calls=5,
)
_KINDS = {
  'monty': monty_sessions.MontySessions,
  'bubblewrap': replayed_sessions.ReplayedSessions,
}


class _Session:
  """A session, and the calls that its programs made."""

  def __init__(self, made, seed='seed'):
    self.made, self.state, self.calls = made, b'', []
    self.start = sessions.Start(('find', 'fail', 'stop'), seed, '2032-03-04')

  async def _call(self, name, positional, named):
    self.calls.append((name, list(positional), dict(named)))
    if name == 'fail':
      raise sessions.CallFailed('no such thing')
    if name == 'stop':
      raise sessions.Finished
    return f'found {len(self.calls)}'

  async def run(self, program):
    outcome = await self.made.run(self.state, program, self._call, self.start)
    self.state = outcome.state
    return outcome


def _replayed(limits=_LIMITS):
  try:
    return replayed_sessions.ReplayedSessions(limits)
  except base.ToolUnavailable as e:
    pytest.skip(str(e))


@pytest.fixture(scope='module', params=_KINDS)
def made(request):
  try:
    found = _KINDS[request.param](_LIMITS)
  except base.ToolUnavailable as e:
    pytest.skip(str(e))
  yield found
  asyncio.run(found.close())


@pytest.fixture
def run(made):
  """Runs programs in one session, and returns what came of the last one."""
  session = _Session(made)

  def run(*programs):
    for program in programs:
      outcome = asyncio.run(session.run(program))
    return outcome

  run.session = session
  return run


def test_names_functions_and_imports_live_on(run):
  outcome = run(
    'x = 2\nimport math\ndef double(n):\n  return n * x',
    'x = 5',
    'print(double(math.floor(3.7)))\nx',
  )
  assert (outcome.output, outcome.value, outcome.error) == ('15\n', '5', '')
  assert outcome.variables == {'x': 'int', 'math': 'module', 'double': 'function'}


def test_a_name_in_a_text_or_a_comprehension_is_none(run):
  outcome = run('words = ["a", "b"]\nsizes = [len(w) for w in words]  # total')
  assert outcome.variables == {'words': 'list', 'sizes': 'list'}
  assert 'NameError' in run('a').error and 'NameError' in run('total').error


@pytest.mark.parametrize(
  ('program', 'value'),
  [
    ('1 + 1', '2'),
    ('"text"', 'text'),
    ('[1, "a"]', "[1, 'a']"),
    ('None', ''),
    ('y = 3', ''),
    ('find("a")', 'found 1'),
    ('(', ''),
  ],
)
def test_the_value_of_the_last_line_is_shown(run, program, value):
  assert run(program).value == value


@pytest.mark.parametrize(
  'how',
  ['find("a", n=[1, (2, {"k": None})])', 'await find("a", n=[1, (2, {"k": None})])'],
)
def test_calls_with_and_without_await(run, how):
  outcome = run(f'x = {how}\nx.upper()')
  assert (outcome.value, outcome.error) == ('FOUND 1', '')
  (call,) = run.session.calls
  assert json.loads(json.dumps(call)) == ['find', ['a'], {'n': [1, [2, {'k': None}]]}]
  assert outcome.variables == {'x': 'str'}


def test_a_failed_call_is_an_exception_of_the_program(run):
  outcome = run('try:\n  fail(1)\nexcept ValueError as e:\n  print("caught", e)')
  assert outcome.output == 'caught no such thing\n' and not outcome.error
  outcome = run('before = 1\nfail(2)\nafter = 1')
  assert outcome.error == 'ValueError: no such thing (line 2)'
  assert not outcome.stopped
  assert run('before').value == '1' and 'NameError' in run('after').error


def test_an_error_names_its_line_and_keeps_names(run):
  outcome = run('kept = 1\n1 / 0\nlost = 2')
  assert outcome.error == 'ZeroDivisionError: division by zero (line 2)'
  assert run('kept').value == '1'
  assert run('x = (').error.startswith('SyntaxError')


def test_a_call_may_end_the_program(run):
  outcome = run('x = 1', 'x = 2\nfind("a")\nstop()\nfind("b")')
  assert outcome.finished and not outcome.stopped
  assert [name for name, _, _ in run.session.calls] == ['find', 'stop']


def test_what_is_killed_leaves_the_names_from_before(run):
  outcome = run('x = 1', 'x = 2\nfind("a")\nwhile True:\n  pass')
  assert outcome.stopped and outcome.error
  assert outcome.variables == {'x': 'int'}
  assert len(run.session.calls) == 1
  assert run('x').value == '1'
  assert len(run.session.calls) == 1  # Nothing is called again.


def test_a_state_that_is_too_large_is_not_kept(run):
  big = (
    'x = "a" * 30000' if run.session.made.name == 'monty' else (f'x = "{"a" * 30000}"')
  )
  outcome = run('x = 1', big)
  assert outcome.stopped and '20,000' in outcome.error
  assert run('x').value == '1'


def test_calls_are_bounded(run):
  outcome = run('for i in range(8):\n  find(i)')
  assert outcome.error.startswith(('RuntimeError', 'ValueError'))
  assert 'too many calls' in outcome.error
  assert len(run.session.calls) == 5


def test_output_is_bounded(run):
  outcome = run('print("é" * 300)\nx = 1')
  assert outcome.cut and outcome.output == 'é' * 100
  assert run('x').value == '1'


@pytest.mark.parametrize(
  'value',
  [
    'print',
    'b"bytes"',
    '10 ** 400',
    '{1, 2}',
    'float("nan")',
    '"a" * 30000',
    '["a" * 9000] * 3',
  ],
)
def test_arguments_are_what_json_holds(made, value):
  async def call(name, positional, named):
    return str(sessions.plain([positional, named]))

  start = sessions.Start(('find',), '')
  outcome = asyncio.run(made.run(b'', f'find({value})', call, start))
  assert outcome.error.startswith('ValueError'), outcome


@pytest.mark.parametrize(
  ('program', 'value'),
  [
    ('x = []\nfor i in range(60):\n  x = [x, x]\nx', '[[[[[['),
    ('x = []\nfor i in range(3000):\n  x = [x]\nx', '[[[[[['),
    ('{"b", "a", "c"}', "{'a', 'b', 'c'}"),
    ('(1,)', '(1,)'),
    ('set()', 'set()'),
    ('{"k": [1.5, None, True]}', "{'k': [1.5, None, True]}"),
    ('[10 ** 5000]', '[<a number of 16610 bits>]'),
  ],
)
def test_values_are_shown_up_to_a_bound(program, value):
  found = monty_sessions.MontySessions(dataclasses.replace(_LIMITS, state_bytes=2**20))
  outcome = asyncio.run(_Session(found).run(program))
  asyncio.run(found.close())
  assert outcome.value.startswith(value) and len(outcome.value) <= 2004
  assert not outcome.error


@pytest.mark.parametrize(
  'program',
  [
    'type = 5\nx = 1',
    'NameError = 5\nx = 1',
    'def type(x):\n  while True:\n    pass\nx = 1',
    'print("CO₂ and m²")\nx = 1',
    'x = "a" * (63 * 2 ** 20)',
    '__names__ = 3\nx = 1',
    'raise SyntaxError()',
    'for i in range(1200):\n  try:\n    nothing\n  except NameError:\n    pass',
  ],
)
def test_whatever_a_program_does_to_its_names_is_its_own_doing(made, program):
  session = _Session(made)
  asyncio.run(session.run(program))  # It raises nothing here.
  assert asyncio.run(session.run('1 + 1')).value == '2'


def test_a_program_that_only_breaks_off_has_failed():
  session = _Session(_replayed())
  program = (
    'import os\nfor f in range(3, 64):\n  try:\n'
    '    os.write(f, b\'{"x": 1}\\n\')\n  except OSError:\n    pass\n'
    'import select\nselect.select([], [], [])'
  )
  outcome = asyncio.run(session.run(program))
  assert outcome.stopped and outcome.error


def test_time_and_objects_of_cpython_are_repeatable():
  program = (
    'import asyncio, datetime, os, time, uuid\n'
    'def f(): pass\n'
    'await asyncio.sleep(5)\n'
    'print(f, object(), time.ctime(), time.localtime().tm_year, uuid.uuid1(),'
    ' uuid.uuid4(), os.getrandom(4), time.strftime("%Y"))\n'
    'now = datetime.datetime.now()\n'
    'print(isinstance(now, datetime.datetime), isinstance(now, datetime.date),'
    ' isinstance(datetime.date.today(), datetime.date), now + '
    'datetime.timedelta(1) > now)\n'
    'datetime.datetime.now(datetime.timezone.utc).isoformat()'
  )
  limits = dataclasses.replace(
    _LIMITS, program=dataclasses.replace(_LIMITS.program, output_bytes=2000)
  )
  made = _replayed(limits)
  found = [asyncio.run(_Session(made).run(program)) for _ in range(2)]
  assert found[0] == found[1] and not found[0].error
  assert found[0].output.endswith('True True True True\n')
  assert '<function f>' in found[0].output and '2032' in found[0].output
  assert found[0].value == '2032-03-04T00:00:00+00:00'


def test_cancelled_conversations_leave_no_socket_in_the_loop():
  made = _replayed(dataclasses.replace(_LIMITS, state_bytes=2**22, calls=200))

  async def call(name, positional, named):
    return 'x' * 20_000

  async def run():
    loop, start = asyncio.get_running_loop(), sessions.Start(('find',), '')
    first = await made.run(b'', 'for i in range(45):\n  find(i)', call, start)
    assert not first.error
    for seconds in (0.0, 0.001, 0.02, 0.1):
      running = asyncio.ensure_future(made.run(first.state, '1', call, start))
      await asyncio.sleep(seconds)
      # A fast machine may end the program before the last of these moments.
      if running.cancel():
        with pytest.raises(asyncio.CancelledError):
          await running
    await asyncio.sleep(0.1)
    left = [
      key for key in loop._selector.get_map().values() if key.fd != loop._ssock.fileno()
    ]
    assert not left
    assert (await made.run(b'', '1 + 1', call, start)).value == '2'

  asyncio.run(run())


def test_chance_and_clock_are_those_of_the_start(made):
  said = []
  for seed in ('a', 'a', 'b'):
    session = _Session(made, seed)
    outcomes = [
      asyncio.run(session.run(p))
      for p in (
        'import random\nrandom.random()',
        'random.random()',
        'import datetime\nstr(datetime.datetime.now())[:10]',
      )
    ]
    said.append([o.value for o in outcomes])
  assert said[0] == said[1] != said[2]
  assert said[0][0] != said[0][1] and said[0][2] == '2032-03-04'


def test_sessions_are_values(made):
  session = _Session(made)
  asyncio.run(session.run('x = [1]'))
  fork = _Session(made)
  fork.state = session.state
  asyncio.run(session.run('x.append(2)'))
  asyncio.run(fork.run('x.append(3)'))
  assert asyncio.run(session.run('x')).value == '[1, 2]'
  assert asyncio.run(fork.run('x')).value == '[1, 3]'


def test_what_a_call_raises_ends_the_program_and_is_raised(made):
  async def call(name, positional, named):
    raise base.ToolUnreachable('the host is down')

  start = sessions.Start(('find',), '')
  with pytest.raises(base.ToolUnreachable, match='the host is down'):
    asyncio.run(made.run(b'', 'try:\n  find()\nexcept Exception:\n  pass', call, start))


def test_a_cancelled_program_leaves_nothing_behind(made):
  async def call(name, positional, named):
    await asyncio.sleep(30)

  async def run():
    start = sessions.Start(('find',), '')
    running = asyncio.ensure_future(made.run(b'', 'find()', call, start))
    await asyncio.sleep(1.0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
      await running
    session = _Session(made)
    assert (await session.run('1 + 1')).value == '2'

  asyncio.run(run())


def test_a_repeated_program_that_calls_something_else_is_an_error():
  session = _Session(_replayed())
  asyncio.run(session.run('find("a")'))
  state = json.loads(session.state)
  state['programs'][0]['calls'][0]['call'] = ['find', ['b'], {}]
  session.state = json.dumps(state).encode()
  outcome = asyncio.run(session.run('x = 1'))
  assert outcome.forgotten and outcome.stopped and outcome.state == b''
  assert 'differently' in outcome.error
  said = sessions.observation(outcome, _LIMITS, ())
  assert 'All names are lost.' in said
  assert asyncio.run(session.run('1 + 1')).value == '2'


def test_a_repeated_program_that_does_not_call_again_is_an_error():
  session = _Session(_replayed())
  asyncio.run(session.run('x = 1'))
  state = json.loads(session.state)
  state['programs'][0]['calls'] = [
    {'call': ['find', [], {}], 'text': 'a', 'failed': False}
  ]
  session.state = json.dumps(state).encode()
  assert asyncio.run(session.run('2')).forgotten


def test_there_are_twelve_programs_at_most():
  session = _Session(_replayed())
  for i in range(12):
    asyncio.run(session.run(f'x = {i}'))
  outcome = asyncio.run(session.run('x = 12'))
  assert outcome.stopped and '12 programs' in outcome.error


@pytest.mark.parametrize(
  'said',
  [
    'not json',
    '{"call": 1}',
    '{"call": ["find", 1, {}]}',
    '{"done": 1}',
    '[1]',
    '{"done": {"output": 1}}',
    '[' * 5000,
    '{"call": ["open", [], {}]}',
  ],
)
def test_a_program_that_writes_to_our_socket_only_fails(said):
  """The socket is the one descriptor that a program inherits."""
  session = _Session(_replayed())
  program = (
    'import os, stat\n'
    'found = [f for f in range(3, 64) if os.path.exists("/") and is_socket(f)]\n'
    f'os.write(found[0], {said!r}.encode() + b"\\n")\n'
    'import select\nselect.select([], [], [])'
  )
  helper = (
    'import os, stat\ndef is_socket(f):\n  try:\n'
    '    return stat.S_ISSOCK(os.fstat(f).st_mode)\n  except OSError:\n'
    '    return False\n'
    'open_ = 0\nfor f in range(3, 64):\n  try:\n    os.fstat(f)\n    open_ += 1\n'
    '  except OSError:\n    pass\nopen_'
  )
  assert asyncio.run(session.run(helper)).value == '1'
  outcome = asyncio.run(session.run(program))
  assert outcome.stopped and outcome.error and not session.calls


def test_observation_bounds_what_it_lists():
  outcome = sessions.Outcome(
    b'',
    'out\n',
    value='v' * 5000,
    error='e' * 900,
    stopped=True,
    variables={f'n{i:02}': 'int' for i in range(30)},
  )
  said = sessions.observation(outcome, _LIMITS, ['find(a)', 'move(b)'])
  lines = said.split('\n')
  assert lines[0] == 'out' and lines[1] == 'v' * 2000
  assert lines[2] == f'The program failed: {"e" * 500}'
  assert lines[3:5] == [
    'Its names are lost; those from before are as they were.',
    'These calls were made, and stay made: find(a); move(b)',
  ]
  assert lines[5].startswith('Names: n00 (int), ') and lines[5].endswith(
    'n19 (int) and 10 more'
  )


def test_sets_are_shown_in_an_order_that_no_process_decides():
  said = [f'word {i}' for i in range(60)]
  wanted = '{' + ', '.join(sorted(map(repr, said))) + '}'
  assert sessions.shown(set(said)) == sessions.shown(set(said[::-1])) == wanted
