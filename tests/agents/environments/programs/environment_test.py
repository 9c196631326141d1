"""Tests of the environment of programs: around a world, and around none."""

import asyncio
import collections
import dataclasses

import pytest

from agentflow_jax import records
from agentflow_jax.agents import fakes, language_model, modules, rollout, tool_calls
from agentflow_jax.agents.environments.programs import environment, monty_sessions
from agentflow_jax.agents.environments.programs import sessions
from agentflow_jax.agents.tools import base
from agentflow_jax.agents.tools.python import sandbox
from tests.agents.environments import toy_world

_LIMITS = sessions.Limits(sandbox.Limits(cpu_seconds=2.0))
_KEY = records.RequestKey(0, records.Purpose.TRAIN, 0, 't', 0)
_TASK = records.Task('t', 'How many?', ('3',), 'match')
_FIND = base.Card(
  'search',
  'Finds.',
  (base.Argument('query', 'words'), base.Argument('most', 'number', 'integer', False)),
)


@pytest.fixture(scope='module')
def programs():
  made = monty_sessions.MontySessions(_LIMITS)
  yield made
  asyncio.run(made.close())


def _search(**others):
  calls = []

  async def call(arguments):
    calls.append(dict(arguments))
    if arguments['query'] == 'bad':
      raise base.BadArguments('no such query')
    if arguments['query'] == 'down':
      raise base.ToolUnreachable('the host is down')
    return f'found {arguments["query"]}'

  return base.Tool(_FIND, call, **others), calls


def _alone(programs, **others):
  tool, calls = _search()
  return environment.CodeEnvironment(
    programs, _LIMITS, None, {'search': tool}, **others
  ), calls


async def _run(episode, program):
  call = records.ToolCall('code', {'code': program})
  return await tool_calls.made(episode.tools['code'], call, _KEY)


def _ran(made, *texts, task=_TASK, state=None):
  async def run():
    episode = await made.open(task, _KEY, state)
    results = [await _run(episode, text) for text in texts]
    return episode, results

  return asyncio.run(run())


def test_calls_of_programs_are_noted_with_their_results(programs):
  made, _ = _alone(programs)
  _, (result,) = _ran(
    made,
    'a = search("x", 3)\ntry:\n  search(query="bad")\nexcept ValueError:\n  pass\na',
  )
  assert result.error is None
  assert [(c.tool, c.arguments, r.text, r.error) for c, r in result.inner] == [
    ('search', {'query': 'x', 'most': 3}, 'found x', None),
    ('search', {'query': 'bad'}, 'no such query', records.ToolErrorKind.ARGUMENTS),
  ]
  assert result.text == 'found x\nNames: a (str)'


@pytest.mark.parametrize(
  ('call', 'said'),
  [
    ('search()', "search needs the argument 'query'"),
    ('search(1)', 'search'),
    ('search("a", 1, 2)', 'search takes 2 arguments: query, most'),
    ('search("a", query="b")', "'query' is given twice"),
    ('search("a", mots=1)', "no argument 'mots'"),
    ('search("a", most="many")', 'most'),
    ('find("a")', "name 'find' is not defined"),
  ],
)
def test_wrong_calls_are_exceptions_that_say_what_is_wrong(programs, call, said):
  made, calls = _alone(programs)
  _, (result,) = _ran(made, call)
  assert result.error is records.ToolErrorKind.ARGUMENTS
  assert said in result.text and not calls


def test_none_stands_for_an_argument_that_may_be_left_out(programs):
  made, calls = _alone(programs)
  _ran(made, 'search("a", None)')
  assert calls == [{'query': 'a'}]


def test_a_host_that_is_down_ends_the_rollout(programs):
  made, _ = _alone(programs)
  _, (result,) = _ran(made, 'try:\n  search("down")\nexcept Exception:\n  pass')
  assert result.error is records.ToolErrorKind.UNREACHABLE
  assert 'the host is down' in result.text


@pytest.mark.parametrize(
  ('value', 'answer'),
  [('"Oslo"', 'Oslo'), ('3', '3'), ('[1, "a"]', '[1, "a"]'), ('None', 'null')],
)
def test_a_final_answer_ends(programs, value, answer):
  made, calls = _alone(programs)
  episode, (result, late) = _ran(
    made, f'final_answer({value})\nsearch("late")', 'search("later")'
  )
  assert (episode.ended, episode.answer) == ('finish', answer)
  assert result.error is None and not calls
  assert late.error is records.ToolErrorKind.ARGUMENTS and 'ended' in late.text


def test_writes_of_a_program_that_is_killed_are_listed_and_stay(programs):
  made = environment.CodeEnvironment(programs, _LIMITS, toy_world.make())
  task = toy_world.task()
  episode, (result, after) = _ran(
    made, 'move("T1", "S2")\nwhile True:\n  pass', 'find(name="red cup")', task=task
  )
  assert result.counts == {'programs_stopped': 1}
  assert "stay made: move(thing='T1', shelf='S2')" in result.text
  assert 'T1 on S2' in after.text
  verdict = asyncio.run(episode.verify(records.Ending(records.Status.OUT_OF_TURNS)))
  assert any('T1' in change for change in verdict.changed)
  assert asyncio.run(episode.digest())


def test_a_world_that_ends_in_a_program_ends_the_program(programs):
  made = environment.CodeEnvironment(programs, _LIMITS, toy_world.make())
  episode, (result,) = _ran(
    made, 'x = finish("done")\nmove("T1", "S2")', task=toy_world.task()
  )
  assert (episode.ended, episode.answer) == ('finish', None)
  assert [c.tool for c, _ in result.inner] == ['finish']


def test_a_state_is_gone_on_from_and_only_ours(programs):
  made = environment.CodeEnvironment(programs, _LIMITS, toy_world.make())
  task = toy_world.task()
  episode, _ = _ran(made, 'x = 7\nmove("T1", "S2")', task=task)
  state = episode.state()
  fork, (result,) = _ran(made, 'print(x, find("red cup"))', task=task, state=state)
  assert result.text.startswith('7 T1 on S2')
  assert asyncio.run(fork.digest()) == asyncio.run(episode.digest())
  for forged in (b'', state[:-1], state[32:], bytes(32) + state[32:], state + b'x'):
    with pytest.raises(ValueError, match='no state of a code episode'):
      asyncio.run(made.open(task, _KEY, forged))


@pytest.mark.parametrize('name', ['final_answer', 'print', 'for', 'find item', 'a-b'])
def test_tools_that_programs_cannot_call_by_name_are_refused(name):
  with pytest.raises(ValueError, match='give it another name'):
    environment.check_functions(['search', name])


def test_what_failed_inside_a_program_is_named(programs):
  """A tool without state is no world, and a language model is neither."""
  made, _ = _alone(programs)
  agent, _ = _agent(made, _block('search("down")'))
  done = asyncio.run(rollout.rollout(agent, _TASK, _KEY))
  assert done.status is records.Status.TOOL_UNREACHABLE

  async def call(arguments):
    raise language_model.Unreachable('the model is down')

  made = environment.CodeEnvironment(
    programs, _LIMITS, toy_world.make(), {'search': base.Tool(_FIND, call)}
  )
  agent, _ = _agent(made, _block('search("a")'))
  done = asyncio.run(rollout.rollout(agent, toy_world.task(), _KEY))
  assert done.status is records.Status.MODEL_UNREACHABLE


def test_the_card_shows_functions_as_python_does(programs):
  made, _ = _alone(programs)
  (card,) = made.cards
  full = modules.prompts.render_card(card)
  assert 'search(query: str, most: int = None): Finds.' in full
  assert 'final_answer(answer: any): Ends the work' in full
  assert modules.prompts.render_card(card, 'names') == 'code\nsearch\nfinal_answer'


def _agent(made, *replies, **others):
  model = fakes.FakeLanguageModel({'planner': replies, 'generator': ['written']})
  config = rollout.RolloutConfig(max_turns=len(replies), entry_tokens=60)
  agent = fakes.make_agent(model, [], config, **others)
  return dataclasses.replace(
    agent,
    environment=made,
    plan_format='code',
    tools={},
    executor=modules.CodeExecutor(),
    verifier=modules.WorldVerifier(),
    generator=modules.ModelGenerator(model, records.SamplingSpec()),
  ), model


def test_a_page_that_quotes_the_query_is_noticed_inside_a_program(programs):
  query = 'Which river flows past the oldest town hall of the north?'
  made, _ = _alone(programs)
  agent, _ = _agent(made, _block(f'x = search({query!r})\nlen(x)'))
  task = dataclasses.replace(_TASK, query=query)
  done = asyncio.run(rollout.rollout(agent, task, _KEY))
  assert query not in done.turns[0].result.text
  assert done.turns[0].result.counts == {'quotes_query': 1}


def _block(program, thought='Next.'):
  return f'{thought}\n```python\n{program}\n```'


def test_a_rollout_of_programs_that_answers(programs):
  made, calls = _alone(programs)
  agent, model = _agent(
    made, _block('x = search("a")\nx'), _block('final_answer("found a")', '')
  )
  task = dataclasses.replace(_TASK, answers=('found a',))
  done = asyncio.run(rollout.rollout(agent, task, _KEY))
  assert (done.status, done.answer, done.reward) == (
    records.Status.ANSWERED,
    'found a',
    1.0,
  )
  assert not model.prompts_of('generator')
  assert [len(t.result.inner) for t in done.turns] == [1, 0]
  assert done.turns[0].memory == (
    '1. code: Next.; x = search("a")\nx -> found a\nNames: x (str)'
  )
  assert calls == [{'query': 'a'}]


def test_a_rollout_without_a_block_is_unparseable(programs):
  made, _ = _alone(programs)
  agent, _ = _agent(made, 'I will search for it.')
  done = asyncio.run(rollout.rollout(agent, _TASK, _KEY))
  assert done.status is records.Status.UNPARSEABLE_PLAN
  assert 'no fenced block' in done.detail


def test_a_rollout_out_of_turns_is_answered_by_the_generator(programs):
  made, _ = _alone(programs)
  agent, _ = _agent(made, _block('x = 1'))
  done = asyncio.run(rollout.rollout(agent, _TASK, _KEY))
  assert (done.status, done.answer) == (records.Status.OUT_OF_TURNS, 'written')


def test_many_rollouts_at_once_are_those_one_by_one(programs):
  made = environment.CodeEnvironment(programs, _LIMITS, toy_world.make())
  replies = (
    _block('import random\nx = random.choice(["T1", "T2", "T3"])\nprint(x)'),
    _block('move(x, "S2" if x < "T3" else "S1")'),
    _block('finish("done")'),
  )
  agent, _ = _agent(made, *replies)
  task = toy_world.task()

  async def run(numbers, at_once):
    limit = asyncio.Semaphore(at_once)

    async def one(number):
      async with limit:
        key = dataclasses.replace(_KEY, rollout=number)
        return await rollout.rollout(agent, task, key)

    done = await asyncio.gather(*(one(n) for n in numbers))
    return {n: (d.status, d.digest, d.reward) for n, d in zip(numbers, done)}

  many = asyncio.run(run(range(32), 32))
  assert many == asyncio.run(run(range(31, -1, -1), 1))
  assert len({digest for _, digest, _ in many.values()}) == 3
  assert collections.Counter(s for s, _, _ in many.values()) == {
    records.Status.ANSWERED: 32
  }
