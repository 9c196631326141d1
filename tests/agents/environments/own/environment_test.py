"""Environments of a user's own classes, synchronous and asynchronous."""

import asyncio
import pathlib

import pytest

from agentflow_jax import records
from agentflow_jax.agents import own_functions, own_instances, rollout
from agentflow_jax.agents.environments import base, episodes
from agentflow_jax.agents.environments.own import environment as own
from agentflow_jax.agents.tools import base as tools_base
from tests.agents.environments import players

_ROOT = pathlib.Path(__file__).resolve().parents[4]
_TILL = _ROOT / 'experiments' / 'own_environment.py'
_SHAPES = '''
import asyncio
import functools
import os
import threading
import time


class Base:
  """Counts."""

  def reset(self, start: int = 0, **row):
    self.count, self.row, self.reward = start, row, 0.0

  def add(self, n: int = 1) -> str:
    """Adds.

    Args:
      n: number to add.
    """
    if n < 0:
      raise ValueError('n is not negative')
    self.count += n
    self.reward = self.count / 10
    return f'{self.count}'

  def _hidden(self):
    pass


class Counter(Base):
  def seen(self) -> dict:
    """Returns everything."""
    return {'row': self.row, 'pid': os.getpid()}

  def hang(self, seconds: float) -> str:
    """Hangs.

    Args:
      seconds: time to wait [s].
    """
    self.count = 99
    time.sleep(seconds)
    return 'awake'

  def crash(self) -> str:
    """Crashes."""
    self.count = 99
    os._exit(3)

  def bug(self) -> str:
    """Has a bug."""
    self.count = 99
    raise RuntimeError('oh')

  def end(self, how: str) -> str:
    """Ends.

    Args:
      how: kind of the end.
    """
    self.done, self.answer = {'true': True}.get(how, how), f'by {how}'
    return 'ended'


class Seeded(Base):
  def reset(self, query: str, seed: int, answers: list):
    super().reset()
    self.said = [query, seed, answers]
    return f'seed {seed}'

  def verify(self, answer: str, calls: list) -> dict:
    self.count = 1000
    return {'answered': answer == 'yes', 'called': len(calls) > 0}


class Held(Base):
  def reset(self):
    super().reset()
    self.lock = threading.Lock()


class Living(Base):
  closed = []

  async def reset(self, start: int = 0):
    super().reset(start)
    self.lock = threading.Lock()
    await asyncio.sleep(0)

  async def hang(self, seconds: float) -> str:
    """Hangs.

    Args:
      seconds: time to wait [s].
    """
    await asyncio.sleep(seconds)
    return 'awake'

  async def bug(self) -> str:
    """Has a bug."""
    raise RuntimeError('oh')

  async def verify(self):
    return self.count >= 3

  def close(self):
    self.closed.append(self.count)


class Closed(Base):
  def close(self):
    with open(self.row['path'], 'a') as file:
      file.write(f'{self.count}\\n')


class BadlyClosed(Base):
  async def reset(self, hang: bool = False):
    self.hang = hang
    raise ConnectionError('no host')

  async def close(self):
    if self.hang:
      await asyncio.sleep(60)
    self.connection.close()


class Remade(Base):
  def reset(self, **row):
    super().reset()
    self.lock = threading.Lock()

  def __getstate__(self):
    return {k: v for k, v in self.__dict__.items() if k != 'lock'}

  def __setstate__(self, state):
    self.__dict__.update(state, lock=threading.Lock())


class Slotted:
  __slots__ = ('count', 'reward')

  def reset(self):
    self.count, self.reward = 0, 0.0

  def add(self) -> str:
    """Adds."""
    self.count += 1
    return f'{self.count}'


def hiding(function):
  @functools.wraps(function)
  def call(*args):
    return function(*args)
  return call


class Hidden(Base):
  @hiding
  async def more(self) -> str:
    """Adds."""


class Static(Base):
  @staticmethod
  def more(n: int) -> str:
    """Adds."""


class NoReset:
  def add(self) -> str:
    """Adds."""


class NoTool:
  def reset(self):
    pass


class Needy(Base):
  def __init__(self, size):
    pass


class Untyped(Base):
  def more(self, n):
    """Adds."""


NOT_A_CLASS = 3
'''


@pytest.fixture(scope='module', name='path')
def _path(tmp_path_factory):
  path = tmp_path_factory.mktemp('own') / 'shapes.py'
  path.write_text(_SHAPES)
  return str(path)


def _task(row, query='Do it.', answers=()):
  world = records.World('own', {'row': row}, checks=(own.CHECK,))
  return records.Task('t', query, tuple(answers), 'environment', world=world)


_KEY = records.RequestKey(0, records.Purpose.TRAIN, 1, 't', 0)
_END = records.Ending(records.Status.ANSWERED, 'yes')


def _with(path, name, use, row=(), *, seconds=20.0, concurrency=2, state=None):
  """Opens an episode, and returns what `use` returns of it."""

  async def run():
    made = own.OwnEnvironment(path, name, seconds=seconds, concurrency=concurrency)
    try:
      episode = await made.open(_task(dict(row)), _KEY, state)
      try:
        return await use(episode)
      finally:
        await episode.close()
    finally:
      await made.close()

  return asyncio.run(run())


async def _call(episode, name, **arguments):
  tool = episode.tools[name]
  return await tool.call(tools_base.check_arguments(tool.card, arguments))


def test_public_methods_are_tools_and_keep_their_instance(path):
  async def use(episode):
    assert list(episode.tools) == ['add', 'seen', 'hang', 'crash', 'bug', 'end']
    assert episode.tools['add'].card.purpose == 'Adds.'
    assert await _call(episode, 'add', n=3) == '8'
    assert await _call(episode, 'add') == '9'
    seen = await _call(episode, 'seen')
    verdict = await episode.verify(_END)
    return seen, verdict

  seen, verdict = _with(path, 'Counter', use, {'start': 5, 'other': [1, {'a': None}]})
  assert '"row": {"other": [1, {"a": null}]}' in seen
  assert verdict.reward == 0.9 and not verdict.success
  assert verdict.changed == ('count: 5 -> 9', 'reward: 0.0 -> 0.9')


def test_what_a_class_refuses_is_text_and_changes_nothing(path):
  async def use(episode):
    with pytest.raises(tools_base.BadArguments, match='add: n is not negative'):
      await _call(episode, 'add', n=-1)
    with pytest.raises(tools_base.BadArguments, match="argument 'm'"):
      await _call(episode, 'add', m=1)
    return await _call(episode, 'add')

  assert _with(path, 'Counter', use) == '1'


@pytest.mark.parametrize(
  'call, match',
  [
    (('bug', {}), 'RuntimeError: oh'),
    (('crash', {}), 'its process ended'),
    (('hang', {'seconds': 60.0}), 'took longer than 2 s'),
  ],
)
def test_a_failed_call_is_the_worlds_and_leaves_other_rollouts_alone(path, call, match):
  async def run():
    made = own.OwnEnvironment(path, 'Counter', seconds=2.0, concurrency=1)
    first, second = [await made.open(_task({'start': i}), _KEY) for i in (1, 2)]
    with pytest.raises(tools_base.ToolUnreachable, match=match):
      await _call(first, call[0], **call[1])
    # The same process made both; the value of the call before is what is left.
    found = await _call(first, 'add'), await _call(second, 'add')
    await made.close()
    return found

  assert asyncio.run(run()) == ('2', '3')


@pytest.mark.parametrize(
  'how, ended', [('true', 'environment'), ('finish', 'finish'), ('refuse', 'refuse')]
)
def test_the_attribute_done_ends_an_episode(path, how, ended):
  async def use(episode):
    assert episode.ended == '' and episode.answer is None
    await _call(episode, 'end', how=how)
    with pytest.raises(tools_base.BadArguments, match='has ended'):
      await _call(episode, 'add')
    return episode.ended, episode.answer

  assert _with(path, 'Counter', use) == (ended, f'by {how}')


def test_an_unknown_end_is_a_failure_that_names_it(path):
  async def use(episode):
    with pytest.raises(tools_base.ToolUnreachable, match="done is 'maybe'"):
      await _call(episode, 'end', how='maybe')

  _with(path, 'Counter', use)


def test_reset_and_verify_get_what_they_name(path):
  async def use(episode):
    first = await episode.verify(_END)
    second = await episode.verify(
      records.Ending(
        records.Status.ANSWERED,
        'no',
        ((records.ToolCall('add', {'n': 1}), records.ToolResult('1')),),
      )
    )
    # Checks look at a copy.
    assert await _call(episode, 'add') == '1'
    return episode.brief.policy, first, second

  policy, first, second = _with(path, 'Seeded', use)
  # That of the task: all its rollouts have the same.
  assert policy == f'seed {base.seed_of(_task({}))}'
  assert [(r.name, r.passed) for r in first.results] == [
    ('answered', True),
    ('called', False),
  ]
  assert [r.passed for r in second.results] == [False, True]
  assert first.reward == 0.0


def test_the_same_key_and_calls_give_the_same_digest_and_states_fork(path):
  async def use(episode):
    await _call(episode, 'add', n=4)
    return await episode.digest(), episode.state()

  digest, state = _with(path, 'Counter', use)
  assert (digest, 64) == (_with(path, 'Counter', use)[0], len(digest))

  async def go_on(episode):
    found = await _call(episode, 'add')
    return found, (await episode.verify(_END)).changed

  assert _with(path, 'Counter', go_on, state=state) == (
    '5',
    ('count: 4 -> 5', 'reward: 0.4 -> 0.5'),
  )
  with pytest.raises(ValueError, match="no state of a user's episode"):
    _with(path, 'Counter', go_on, state=state[:-1] + b'x')


def test_an_asynchronous_class_lives_in_the_loop(path):
  async def use(episode):
    assert await _call(episode, 'add', n=2) == '2'
    with pytest.raises(tools_base.ToolUnreachable, match='longer than 0.2 s'):
      await _call(episode, 'hang', seconds=60.0)
    with pytest.raises(tools_base.ToolUnreachable, match='RuntimeError: oh'):
      await _call(episode, 'bug')
    with pytest.raises(tools_base.BadArguments, match='not negative'):
      await _call(episode, 'add', n=-1)
    assert episode.state() is None and await episode.digest() == ''
    before = await episode.verify(_END)
    await _call(episode, 'add')
    return before.success, (await episode.verify(_END)).success

  assert _with(path, 'Living', use, seconds=0.2) == (False, True)
  assert own_functions.load(path, 'Living').closed[-1] == 3


@pytest.mark.parametrize(
  'name, match',
  [
    ('NoReset', 'needs a method reset'),
    ('NoTool', 'needs a public method'),
    ('Needy', "__init__ needs 'size'"),
    ('Untyped', "'n' needs an annotation"),
    ('Hidden', 'hides that Hidden.more is asynchronous'),
    ('Static', 'Static.more is a static method'),
    ('NOT_A_CLASS', 'is no class'),
    ('Missing', "has no 'Missing'"),
  ],
)
def test_a_class_that_lacks_something_is_refused_by_name(path, name, match):
  with pytest.raises(own_functions.LoadError, match=match):
    own.OwnEnvironment(path, name, seconds=1.0, concurrency=1)


@pytest.mark.parametrize(
  'name, row, match',
  [
    ('Seeded', {'price': 3}, "takes no argument 'price'"),
    ('Counter', None, 'has no "row"'),
  ],
)
def test_rows_that_reset_does_not_take_are_refused(path, name, row, match):
  made = own.OwnEnvironment(path, name, seconds=1.0, concurrency=1)
  task = _task({})
  if row is None:
    task = records.Task('t', '', (), 'environment', world=records.World('own', {}))
  else:
    task = _task(row)
  with pytest.raises(ValueError, match=match):
    made.check(task)


def test_close_is_called_once_an_episode(path, tmp_path):
  async def use(episode):
    await _call(episode, 'add', n=2)

  _with(path, 'Closed', use, {'path': str(tmp_path / 'closed')})
  assert (tmp_path / 'closed').read_text() == '2\n'


@pytest.mark.parametrize('hang', [False, True])
def test_a_close_that_fails_or_hangs_hides_no_error(path, hang, monkeypatch):
  monkeypatch.setattr(episodes, '_CLOSE_SECONDS', 0.2)
  with pytest.raises(base.Unreachable, match='ConnectionError: no host'):
    _with(path, 'BadlyClosed', None, {'hang': hang})


@pytest.mark.parametrize(
  'name, changed',
  [('Remade', ('count: 0 -> 1', 'reward: 0.0 -> 0.1')), ('Slotted', ())],
)
def test_what_a_class_leaves_out_is_no_change(path, name, changed):
  async def use(episode):
    await _call(episode, 'add')
    return (await episode.verify(_END)).changed

  assert _with(path, name, use) == changed


def test_an_instance_that_cannot_be_kept_names_its_attribute(path):
  async def use(episode):
    del episode

  with pytest.raises(base.Unreachable, match='lock cannot be kept between two calls'):
    _with(path, 'Held', use)


@pytest.mark.parametrize(
  'said, reward, checks',
  [
    (True, 1.0, {'verify': True}),
    (False, 0.0, {'verify': False}),
    (0.5, 0.5, {'verify': False}),
    (2, 2.0, {'verify': True}),
    ({'a': True, 'b': True}, 1.0, {'a': True, 'b': True}),
    ({'a': True, 'b': False}, 0.0, {'a': True, 'b': False}),
  ],
)
def test_verify_returns_a_bool_a_number_or_checks(said, reward, checks):
  assert own_instances.judged(said) == (reward, checks)


@pytest.mark.parametrize(
  'said', [None, 'yes', float('nan'), float('inf'), {}, {'a': 1}, {1: True}]
)
def test_other_verdicts_are_refused(said):
  with pytest.raises(ValueError):
    own_instances.judged(said)


def _played(*plans, row=None):
  async def run():
    made = own.OwnEnvironment(str(_TILL), 'Till', seconds=20.0, concurrency=1)
    task = _task(row or {'price': 35, 'coins': [20, 10, 5, 5]})
    try:
      return await rollout.rollout(players.agent(made, *plans), task, _KEY)
    finally:
      await made.close()

  return asyncio.run(run())


def test_the_shipped_example_is_played_as_a_rollout():
  pay = [('pay', f'coin={coin}') for coin in (20, 10, 5)]
  done = _played(*pay, ('leave', ''))
  assert (done.status, done.reward) == (records.Status.ANSWERED, 1.0)
  assert done.verdict.success and done.verdict.reward == 1.0
  assert 'paid: 0 -> 35' in done.verdict.changed
  assert done.briefing.startswith('The price is 35. Your coins are')
  too_much = _played(('pay', 'coin=20'), *pay[1:], ('pay', 'coin=5'), ('leave', ''))
  assert too_much.reward == 0.0
  assert {r.name: r.passed for r in too_much.verdict.results} == {
    'paid in full': True,
    'left': True,
    'not a coin too many': False,
  }
  lacking = _played(('pay', 'coin=50'), ('leave', ''))
  assert lacking.turns[0].result.text == 'pay: you have no coin of 50'


def test_many_episodes_share_few_processes(path):
  async def run():
    made = own.OwnEnvironment(path, 'Counter', seconds=20.0, concurrency=2)
    episodes = await asyncio.gather(
      *(made.open(_task({'start': i}), _KEY) for i in range(32))
    )
    for _ in range(3):
      await asyncio.gather(*(_call(e, 'add') for e in episodes))
    found = await asyncio.gather(*(_call(e, 'add') for e in episodes))
    pids = {(await _call(e, 'seen')).rpartition('"pid": ')[2] for e in episodes}
    await made.close()
    return found, pids

  found, pids = asyncio.run(run())
  assert found == [f'{i + 4}' for i in range(32)] and len(pids) <= 2
