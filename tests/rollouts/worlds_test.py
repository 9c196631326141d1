"""Rollouts in worlds: what is shown, how they end, and that nothing stays open."""

import asyncio
import collections
import dataclasses
import threading
from concurrent import futures

import pytest

from agentflow_jax import records
from agentflow_jax.agents import fakes, modules, numbered_memory, recording
from agentflow_jax.agents import references, rollout
from agentflow_jax.agents.environments import base, episodes
from agentflow_jax.agents.tools import base as tools_base
from agentflow_jax.rollouts import collect
from agentflow_jax.runtime import processes
from tests.agents.environments import toy_world

Status = records.Status
_MOVE = toy_world.plan('move', thing='T1', shelf='S2')
_FINISH = toy_world.plan('finish', summary='moved it')
_REFUSE = toy_world.plan('refuse', rule='late', about='T1')


def _agent(*plans, environment=None, tools=(), **fields):
  config = fields.pop('config', {})
  return fakes.make_agent(
    fakes.FakeLanguageModel({'planner': plans}),
    tools,
    rollout.RolloutConfig(**({'max_turns': 4} | config)),
    executor=modules.FieldExecutor(),
    verifier=modules.WorldVerifier(),
    environment=environment or toy_world.make(),
    **fields,
  )


def _run(agent, task=None):
  return asyncio.run(rollout.rollout(agent, task or toy_world.task(), toy_world.key()))


def test_a_rollout_is_judged_by_what_it_changed():
  done = _run(_agent(_MOVE, _FINISH))
  assert (done.status, done.reward, done.answer) == (Status.ANSWERED, 1.0, 'moved it')
  assert done.verdict.success and 'thing/T1: shelf "S1" -> "S2"' in done.verdict.changed
  assert len(done.digest) == 64 and len(done.turns) == 2
  assert {'environment/open', 'environment/verify', 'tool/move'} <= set(done.seconds)
  assert done.turns[1].memory.startswith('2. finish: do; summary=moved it -> moved it')


def test_refusing_is_a_status_of_its_own_and_is_scored():
  declined = records.Check(
    'declined', 'ending', {'ended': 'refuse', 'rule': ['late'], 'about': ['T1']}
  )
  task = toy_world.task((declined, toy_world.ONLY), feasible=False)
  done = _run(_agent(_REFUSE), task)
  assert (done.status, done.reward) == (Status.REFUSED, 1.0)
  assert done.status.is_policy
  assert _run(_agent(_MOVE, _REFUSE), task).reward == 1.0, 'a move is allowed here'
  assert _run(_agent(_REFUSE)).reward == 0.0, 'it could have been done'


@pytest.mark.parametrize(
  ('plans', 'config', 'status', 'passed'),
  [
    ((_MOVE,), {}, Status.OUT_OF_TURNS, True),
    ((_MOVE, 'no plan'), {}, Status.UNPARSEABLE_PLAN, True),
    (
      (toy_world.plan('move', thing='T9', shelf='S1'),),
      {'max_turns': 1},
      Status.TOOL_ERROR,
      False,
    ),
  ],
)
def test_checks_are_made_after_every_status_of_the_policy(
  plans, config, status, passed
):
  done = _run(_agent(*plans, config=config))
  assert (done.status, done.reward) == (status, 0.0)
  assert done.verdict.results[0].passed is passed and done.digest


def test_a_world_whose_checks_hold_needs_no_ending():
  """Such as where an agent just stops, as in EnterpriseOps-Gym."""
  task = toy_world.task((toy_world.MOVED, toy_world.ONLY))
  done = _run(_agent(_MOVE), task)
  assert (done.status, done.reward) == (Status.OUT_OF_TURNS, 1.0)
  # The format is part of the task.
  assert _run(_agent(_MOVE, 'no plan'), task).reward == 0.0


def test_modules_see_the_policy_before_the_query_and_nothing_else_of_the_world():
  model = fakes.FakeLanguageModel({'planner': [_MOVE, _FINISH], 'generator': ['moved']})
  agent = dataclasses.replace(
    _agent(),
    generator=modules.ModelGenerator(model, records.SamplingSpec()),
    planner=dataclasses.replace(_agent().planner, model=model),
  )
  task = toy_world.task(plan='find it, then move it SECRET')
  done = _run(agent, task)
  assert done.answer == 'moved'
  for prompt, _, key in model.requests:
    text = ''.join(s.text for s in prompt)
    assert 'SECRET' not in text and toy_world.SEED.sha256 not in text
    assert text.index('Policy: Cups may be moved.') < text.index('Query: Move')
    if key.module == 'planner':
      assert text.index('Tools:') < text.index('refuse:') < text.index('Policy: ')
    (policy,) = [s for s in prompt if s.text == 'Cups may be moved.']
    assert not policy.trusted


def test_a_policy_is_never_shortened():
  long = 'Cups may be moved. ' * 40
  task = toy_world.task(policy=long)
  done = _run(_agent(_MOVE, _FINISH, max_prompt_tokens=400), task)
  assert done.reward == 1.0
  done = _run(_agent(_MOVE, max_prompt_tokens=100), toy_world.task(policy=long))
  assert done.status is Status.PROMPT_TOO_LONG and done.verdict is not None


def test_the_planners_plan_may_refer_to_names_and_keys_by_number():
  agent = _agent(
    toy_world.plan('find', name='#1'),
    toy_world.plan('move', thing='#3', shelf='#2'),
    _FINISH,
    start_memory=numbered_memory.Numbering(references.Gazetteer(())),
  )
  done = _run(agent)
  assert done.turns[0].memory == '1. find: do; name=#1 -> #3 T1 on #4 S1'
  assert done.turns[1].call.arguments == {'thing': 'T1', 'shelf': 'S2'}
  assert done.reward == 1.0


def test_only_the_tools_that_a_world_names_are_there_in_its_order():
  task = toy_world.task(tools=('finish', 'find'))
  agent = _agent(_MOVE)
  done = _run(agent, task)
  assert done.status is Status.UNPARSEABLE_PLAN and 'move' in done.detail
  prompt = ''.join(s.text for s in agent.planner.model.requests[0][0])
  assert prompt.index('finish') < prompt.index('find:') and 'sell' not in prompt


def test_tools_without_state_stand_beside_those_of_the_world():
  search = tools_base.Tool(
    tools_base.Card('search', 'finds', (tools_base.Argument('query', 'q'),)), _echo
  )
  agent = _agent(toy_world.plan('search', query='cups'), _MOVE, _FINISH, tools=[search])
  done = _run(agent)
  assert [t.result.text for t in done.turns][0] == 'cups' and done.reward == 1.0


async def _echo(arguments):
  return arguments['query']


def test_a_tool_of_both_is_an_error_of_ours():
  other = tools_base.Tool(tools_base.Card('move', 'moves', ()), _echo)
  done = _run(_agent(_MOVE, tools=[other]))
  assert done.status is Status.MODULE_FAILED and "'move'" in done.detail


def test_the_oracles_plan_stands_where_an_analysis_stands():
  async def main():
    agent = dataclasses.replace(_agent(_MOVE, _FINISH), analyst=modules.OracleAnalyst())
    analysis, failed = await rollout.analyse(agent, toy_world.task(), toy_world.key())
    assert failed is None
    done = await rollout.rollout(agent, toy_world.task(), toy_world.key(), analysis)
    return agent, done

  agent, done = asyncio.run(main())
  assert done.analysis == 'find the red cup, move it, finish'
  prompt = ''.join(s.text for s in agent.planner.model.requests[0][0])
  assert prompt.index('Query:') < prompt.index('Analysis: find the red cup')


def test_an_analyst_sees_the_policy_and_the_tools_of_the_world():
  model = fakes.FakeLanguageModel({'analysis': ['look first']})
  opened = Faults(toy_world.make(), lambda key: '')
  agent = dataclasses.replace(
    _agent(_MOVE, environment=opened), analyst=modules.ModelAnalyst(model)
  )
  found = asyncio.run(rollout.analyse(agent, toy_world.task(), toy_world.key()))
  text = ''.join(s.text for s in model.requests[0][0])
  assert found == ('look first', None) and opened.open_now == 0
  assert 'Policy: Cups' in text and 'sell: ' in text


# What may go wrong, and how a rollout then ends. None: the rollout is cancelled.
_FAULTS = {
  '': {Status.ANSWERED},
  'open': {Status.ENVIRONMENT_UNREACHABLE},
  'open_bug': {Status.ENVIRONMENT_UNREACHABLE},
  'capacity': {Status.ENVIRONMENT_UNREACHABLE},
  'slow': {Status.DEADLINE_INFRASTRUCTURE},
  'slow_call': {Status.DEADLINE_INFRASTRUCTURE, Status.ENVIRONMENT_UNREACHABLE},
  'lost': {Status.ENVIRONMENT_UNREACHABLE},
  'verify': {Status.ENVIRONMENT_UNREACHABLE},
  'verify_unknown': {Status.ENVIRONMENT_UNREACHABLE},
  'verify_slow': {Status.ENVIRONMENT_UNREACHABLE},
  'judge': {Status.REWARD_UNREACHABLE},
  'bug': {Status.ENVIRONMENT_UNREACHABLE},
  'close': {Status.ANSWERED},
  'close_slow': {Status.ANSWERED},
}


@dataclasses.dataclass
class Faults:
  """An environment that fails as `fault_of` says, and counts open episodes."""

  inner: object
  fault_of: object
  open_now: int = 0
  opened: int = 0
  name: str = 'toy'
  version: str = '1'
  capacity: int | None = None
  cards: tuple = ()

  def check(self, task):
    return self.inner.check(task)

  async def open(self, task, key, state=None):
    fault = self.fault_of(key)
    if fault == 'open':
      raise base.Unreachable('connection refused')
    if fault == 'open_bug':
      raise KeyError('frame')
    if fault == 'capacity':
      raise base.Unreachable('capacity reached')
    if fault == 'slow':
      await asyncio.sleep(30)
    episode = await self.inner.open(task, key, state)
    self.open_now += 1
    self.opened += 1
    return _Faulty(self, episode, fault)

  async def close(self):
    assert self.open_now == 0


class _Faulty:
  def __init__(self, owner, inner, fault):
    self._owner, self._inner, self._fault = owner, inner, fault
    self.brief = inner.brief
    self.tools = dict(inner.tools)
    self._is_open = True
    if fault in ('lost', 'bug', 'slow_call'):
      self.tools['finish'] = dataclasses.replace(inner.tools['finish'], call=self._fail)

  @property
  def ended(self):
    return self._inner.ended

  @property
  def answer(self):
    return self._inner.answer

  @property
  def outside(self):
    return self._inner.outside

  async def _fail(self, arguments):
    del arguments
    if self._fault == 'lost':
      raise tools_base.ToolUnreachable('socket closed')
    if self._fault == 'slow_call':
      await asyncio.sleep(30)
    raise ZeroDivisionError('in the tool')

  async def verify(self, ending):
    if self._fault == 'verify':
      raise base.Unreachable('HTTP 502')
    if self._fault == 'verify_slow':
      await asyncio.sleep(30)
    if self._fault == 'judge':
      raise base.JudgeUnreachable('judge: down')
    found = await self._inner.verify(ending)
    if self._fault == 'verify_unknown':
      first = dataclasses.replace(found.results[0], passed=None, detail='no gym')
      return dataclasses.replace(found, results=(first, *found.results[1:]))
    return found

  async def digest(self):
    return await self._inner.digest()

  def state(self):
    return self._inner.state()

  async def close(self):
    assert self._is_open, 'closed twice'
    self._is_open = False
    self._owner.open_now -= 1
    await self._inner.close()
    if self._fault == 'close':
      raise OSError('already gone')
    if self._fault == 'close_slow':
      await asyncio.sleep(30)


@pytest.mark.parametrize('fault', _FAULTS)
def test_each_fault_has_its_status(fault, monkeypatch):
  monkeypatch.setattr(episodes, '_CLOSE_SECONDS', 0.1)
  environment = Faults(toy_world.make(), lambda key: fault)
  config = {'deadline_seconds': 0.3, 'verify_seconds': 0.2}
  done = _run(_agent(_MOVE, _FINISH, environment=environment, config=config))
  assert done.status in _FAULTS[fault], done
  assert (done.reward is None) is (not done.status.is_policy)
  assert environment.open_now == 0
  if fault:
    assert done.detail or done.status is Status.ANSWERED


@pytest.mark.parametrize('fault', ['verify', 'judge', 'verify_slow'])
def test_where_the_reward_does_not_depend_on_checks_they_may_fail(fault):
  environment = Faults(toy_world.make(), lambda key: fault)
  config = {'verify_seconds': 0.1}
  done = _run(_agent(_MOVE, 'no plan', environment=environment, config=config))
  assert (done.status, done.reward) == (Status.UNPARSEABLE_PLAN, 0.0)
  assert done.verdict is None and environment.open_now == 0


def test_a_miss_of_a_replay_ends_the_run_and_not_the_rollout():
  class Missing(Faults):
    async def open(self, task, key, state=None):
      if self.fault_of(key) == 'open':
        raise recording.Miss('not recorded')
      episode = await super().open(task, key, state)

      async def verify(ending):
        raise recording.Miss('not recorded')

      episode.verify = verify
      return episode

  for fault in ('', 'open'):
    environment = Missing(toy_world.make(), lambda key, fault=fault: fault)
    with pytest.raises(recording.Miss):
      _run(_agent(_MOVE, _FINISH, environment=environment))
    assert environment.open_now == 0


def test_calls_of_a_world_are_made_again_and_never_recorded():
  """A recorded answer would leave out what the call writes."""

  class Recording:
    async def tool_result(self, *_):
      raise AssertionError('asked')

  done = _run(_agent(_MOVE, _FINISH, recording=Recording()))
  assert done.reward == 1.0 and 'thing/T1: shelf "S1" -> "S2"' in done.verdict.changed


def test_a_second_cancellation_does_not_interrupt_the_closing():
  environment = Faults(toy_world.make(), lambda key: 'slow_call')
  closed = []

  async def main():
    agent = _agent(_MOVE, _FINISH, environment=environment)
    running = asyncio.create_task(
      rollout.rollout(agent, toy_world.task(), toy_world.key())
    )
    while not environment.open_now:
      await asyncio.sleep(0.01)

    async def slowly(self, close=_Faulty.close):
      await asyncio.sleep(0.05)
      await close(self)
      closed.append(True)

    _Faulty.close, kept = slowly, _Faulty.close
    try:
      running.cancel()
      await asyncio.sleep(0.01)
      running.cancel()
      with pytest.raises(asyncio.CancelledError):
        await running
      await asyncio.sleep(0.1)
    finally:
      _Faulty.close = kept

  asyncio.run(main())
  assert closed and environment.open_now == 0


def test_five_hundred_rollouts_with_faults_are_all_accounted_for(monkeypatch):
  """A fifth of the groups also has more rollouts than it waits for."""
  monkeypatch.setattr(episodes, '_CLOSE_SECONDS', 0.1)
  kinds = [k for k in _FAULTS if k != 'close_slow']

  def fault_of(key):
    if key.query.startswith('late'):
      return '' if key.rollout < 8 else 'slow'
    return kinds[sum(key.words()) % len(kinds)]

  environment = Faults(toy_world.make(), fault_of)
  config = {'deadline_seconds': 1.0, 'verify_seconds': 0.5}
  agent = _agent(_MOVE, _FINISH, environment=environment, config=config)

  async def main():
    groups = []
    for name, count, extra in (('t', 40, 0), ('late', 10, 2)):
      groups += await collect.groups(
        agent,
        [toy_world.task(task_id=f'{name}{i}') for i in range(count)],
        group_size=10 - extra,
        extra=extra,
        key=toy_world.key(),
        limit=asyncio.Semaphore(64),
        processes=processes.Processes(),
      )
    return groups

  groups = asyncio.run(main())
  ended = [t for group in groups for t in group.trajectories]
  counts = collections.Counter(t.status for t in ended)
  assert len(ended) == 500 == sum(counts.values())
  assert {
    Status.ANSWERED,
    Status.ENVIRONMENT_UNREACHABLE,
    Status.REWARD_UNREACHABLE,
    Status.DEADLINE_INFRASTRUCTURE,
    Status.ABORTED_LATE,
  } <= counts.keys()
  for done in ended:
    assert (done.reward is None) is (not done.status.is_policy)
  assert environment.open_now == 0 and environment.opened > 300


def test_a_cancelled_rollout_closes_its_episode():
  environment = Faults(toy_world.make(), lambda key: 'slow_call')
  agent = _agent(_MOVE, _FINISH, environment=environment)

  async def main():
    running = asyncio.create_task(
      rollout.rollout(agent, toy_world.task(), toy_world.key())
    )
    while not environment.open_now:
      await asyncio.sleep(0.01)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
      await running

  asyncio.run(main())
  assert environment.open_now == 0


def test_rollouts_at_once_are_those_one_by_one():
  """Digests, answers and rewards, in any order."""
  plans = [
    [_MOVE, _FINISH],
    [_FINISH],
    [_REFUSE],
    [toy_world.plan('sell', thing='T2'), _FINISH],
  ]
  tasks = [toy_world.task(task_id=f't{i}') for i in range(16)]

  async def one(i, rollout_index):
    agent = _agent(*plans[(i + rollout_index) % 4])
    done = await rollout.rollout(
      agent, tasks[i], toy_world.key(rollout_index, tasks[i].id)
    )
    return done.status, done.digest, done.answer, done.reward, done.verdict

  async def at_once(order):
    found = await asyncio.gather(*(one(*pair) for pair in order))
    return dict(zip(order, found))

  async def in_turn(order):
    return {pair: await one(*pair) for pair in order}

  order = [(i, j) for i in range(16) for j in range(4)]
  alone = asyncio.run(in_turn(order))
  assert asyncio.run(at_once(order)) == alone
  assert asyncio.run(at_once(order[::-1])) == alone
  assert len({digest for _, digest, *_ in alone.values()}) == 3


class _OfTwo(processes.Processes):
  """One of two processes, which live in two threads of a test."""

  def __init__(self, index, said, barrier):
    super().__init__(index, 2)
    self._said, self._barrier = said, barrier

  def exchange(self, payload=b''):
    self._said[self.index] = payload
    self._barrier.wait(60)
    found = list(self._said)
    self._barrier.wait(60)
    return found


@dataclasses.dataclass
class _ByKey:
  """A planner whose plans depend on the rollout's key alone."""

  async def plan(self, view):
    await asyncio.sleep(0)
    plans = [_MOVE, toy_world.plan('sell', thing='T2'), _FINISH, _REFUSE]
    text = plans[sum(view.key_of('planner').words()) % len(plans)]
    return records.Completion(text), records.SamplingSpec()


def test_two_processes_get_the_rollouts_of_one():
  """Digests, verdicts and rewards, through the bytes that processes exchange."""
  tasks = [toy_world.task(task_id=f't{i}') for i in range(8)]
  said, barrier = [b'', b''], threading.Barrier(2)

  def collected(mine):
    async def main():
      agent = dataclasses.replace(_agent(''), planner=_ByKey())
      return await collect.groups(
        agent,
        tasks,
        group_size=8,
        key=toy_world.key(),
        limit=asyncio.Semaphore(16),
        processes=mine,
      )

    return asyncio.run(main())

  def timeless(groups):
    return [
      (t.status, t.digest, t.answer, t.reward, t.verdict)
      for g in groups
      for t in g.trajectories
    ]

  alone = timeless(collected(processes.Processes()))
  with futures.ThreadPoolExecutor(2) as pool:
    both = list(pool.map(collected, [_OfTwo(i, said, barrier) for i in range(2)]))
  assert [timeless(groups) for groups in both] == [alone, alone]
  assert both[0][3].task == tasks[3], 'worlds are exchanged, too'
  assert len(alone) == 64 and len({digest for _, digest, *_ in alone}) > 3
  assert {reward for *_, reward, _ in alone} == {0.0, 1.0}
