"""Renamed tools are the same functions, and everything else sees their own names."""

import asyncio
import dataclasses

import pytest

from agentflow_jax import records
from agentflow_jax.agents import fakes, modules, recording, renaming, rollout
from agentflow_jax.agents.environments.desk import actions, new_names
from tests.agents.environments import toy_world

_NAMES = {
  'move': renaming.NewName(
    'carry', 'Carries a thing.', {'thing': 'what', 'shelf': 'to'}
  ),
  'finish': renaming.NewName('done', arguments={'summary': 'report'}),
  'refuse': renaming.NewName(
    'decline', arguments={'rule': 'because', 'about': 'concerning'}
  ),
}
_MOVE = toy_world.plan('carry', what='T1', to='S2')
_FINISH = toy_world.plan('done', report='moved it')
_CALLS = records.Check(
  'used', 'calls', {'selected_tools': ['move', 'finish'], 'minimum_tool_calls': 2}
)


def _agent(plans, **more):
  return fakes.make_agent(
    fakes.FakeLanguageModel({'planner': plans}),
    (),
    rollout.RolloutConfig(max_turns=4, answer_when_out_of_turns=False),
    **(
      {
        'executor': modules.FieldExecutor(),
        'verifier': modules.WorldVerifier(),
        'environment': toy_world.make(),
      }
      | more
    ),
  )


def _played(plans, task=None, names=_NAMES, **more):
  agent = renaming.renamed(_agent(plans, **more), renaming.Names(names))
  return asyncio.run(rollout.rollout(agent, task or toy_world.task(), toy_world.key()))


def test_checks_see_the_own_names_and_records_the_new_ones():
  checks = (toy_world.MOVED, toy_world.ONLY, toy_world.FINISHED, _CALLS)
  done = _played([_MOVE, _FINISH], toy_world.task(checks))
  assert done.status is records.Status.ANSWERED and done.reward == 1.0
  assert [turn.call for turn in done.turns] == [
    records.ToolCall('carry', {'what': 'T1', 'to': 'S2'}),
    records.ToolCall('done', {'report': 'moved it'}),
  ]
  assert done.turns[0].memory.startswith('1. carry: do')
  # The same world as that of the own names.
  own = asyncio.run(
    rollout.rollout(
      _agent(
        [
          toy_world.plan('move', thing='T1', shelf='S2'),
          toy_world.plan('finish', summary='moved it'),
        ]
      ),
      toy_world.task(checks),
      toy_world.key(),
    )
  )
  assert own.digest == done.digest and own.verdict == done.verdict


def test_the_arguments_of_an_ending_are_checked_under_their_own_names():
  check = records.Check(
    'ending', 'ending', {'ended': 'refuse', 'rule': ['price'], 'about': ['T1']}
  )
  task = toy_world.task((check,), feasible=False)
  right = toy_world.plan('decline', because='price', concerning='T1')
  wrong = toy_world.plan('decline', because='T1', concerning='price')
  assert [_played([plan], task).reward for plan in (right, wrong)] == [1.0, 0.0]


def test_a_planner_that_knows_only_the_own_names_names_no_tool():
  plan = toy_world.plan('move', thing='T1', shelf='S2')
  done = _played([plan])
  assert done.status is records.Status.UNPARSEABLE_PLAN and done.reward == 0.0
  assert "unknown tool 'move'; the tools are ['carry'" in done.detail
  told = _played([plan] * 4, unknown_tool='tell')
  assert told.reward == 0.0
  assert [turn.result.counts for turn in told.turns] == [{'unknown_tool': 1}] * 4
  # The name alone is not enough, either.
  done = _played([toy_world.plan('carry', thing='T1', shelf='S2')] * 4)
  assert "has no argument 'thing'" in done.turns[0].result.text


def test_a_card_says_all_of_it_in_new_names():
  names = renaming.Names(_NAMES)
  (card,) = [names.card(a.card) for a in toy_world.ACTIONS if a.name == 'move']
  assert (card.name, card.purpose) == ('carry', 'Carries a thing.')
  assert [a.name for a in card.arguments] == ['what', 'to']
  assert card.examples == ('execution = tool.execute(what="...", to="...")',)
  (kept,) = [names.card(a.card) for a in toy_world.ACTIONS if a.name == 'sell']
  assert kept == next(a.card for a in toy_world.ACTIONS if a.name == 'sell')


def test_policies_and_errors_mention_new_names_and_words_stay_words():
  names = renaming.Names(
    _NAMES | {'sell': renaming.NewName('move'), 'find': renaming.NewName('look_for')}
  )
  tuple(map(names.card, [a.card for a in toy_world.ACTIONS]))
  for before, after in (
    ('Forbidden: refuse(rule, id).', 'Forbidden: decline(rule, id).'),
    ('Refuse, or refuse politely.', 'Refuse, or refuse politely.'),
    ('call finish; then finish', 'call done; then finish'),
    ('move: no row', 'carry: no row'),
    ('sell(T1), move(T1)', 'move(T1), carry(T1)'),
    ('remove(T1)', 'remove(T1)'),
  ):
    assert names.text(before) == after
  task = toy_world.task(policy='Forbidden: refuse(rule, id).')
  done = _played([toy_world.plan('sell', thing='T9')] * 4, task)
  assert done.briefing == 'Forbidden: decline(rule, id).'


def test_what_a_tool_refuses_mentions_its_new_name():
  names = {'sell': renaming.NewName('part_with')}
  done = _played([toy_world.plan('part_with', thing='T9')] * 4, names=names)
  assert done.turns[0].result.text.startswith('part_with: ')


def test_tools_without_state_are_renamed_with_the_templates_of_a_rule():
  async def score(task, ending, verdict):
    return float([call.tool for call, _ in ending.calls] == ['search'])

  agent = fakes.make_agent(
    fakes.FakeLanguageModel(
      {'planner': ['Sub-Goal: answer it\nContext: Spain\nTool Name: look_up']}
    ),
    (fakes.make_tool(fakes.echo),),
    reward=score,
    executor=modules.RuleExecutor({'search': 'about {context}'}, ('find', 'answer')),
  )
  agent = renaming.renamed(agent, renaming.Names(renaming.BUNDLED, all_of_them=True))
  task = records.Task('t', 'q', ('a',), 'f1')
  done = asyncio.run(rollout.rollout(agent, task, toy_world.key()))
  (turn,) = done.turns
  assert turn.call == records.ToolCall('look_up', {'words': 'about Spain'})
  assert turn.result.text == 'found about Spain' and done.reward == 1.0


def test_made_up_names_are_a_function_of_the_name():
  cards = [a.card for a in toy_world.ACTIONS]
  first, second = (
    [renaming.Names({}, all_of_them=True).card(c) for c in cards] for _ in range(2)
  )
  assert first == second
  assert len({c.name for c in first}) == 5 and not {c.name for c in first} & {
    c.name for c in cards
  }
  assert [a.name for a in first[1].arguments] == ['value_1', 'value_2']
  assert [c.purpose for c in first] == [c.purpose for c in cards]


@pytest.mark.parametrize(
  'names, match',
  [
    ({'move': renaming.NewName('sell')}, "two tools would be called 'sell'"),
    (
      {'move': renaming.NewName('carry', '', {'thing': 'x', 'shelf': 'x'})},
      "two arguments of carry would be called 'x'",
    ),
  ],
)
def test_names_that_meet_are_refused(names, match):
  with pytest.raises(ValueError, match=match):
    renaming.renamed(_agent([]), renaming.Names(names))


@pytest.mark.parametrize(
  'fields, match',
  [
    (('',), 'a name has letters'),
    (('a b',), 'a name has letters'),
    ((5,), 'a name has letters'),
    (('9a',), 'a name has letters'),
    (('a', '', {'x': 'y z'}), 'a name has letters'),
    (('a', 5), '"purpose" must be'),
    (('a', '', ['x']), '"arguments" an object'),
  ],
)
def test_malformed_names_are_refused(fields, match):
  with pytest.raises(ValueError, match=match):
    renaming.NewName(*fields)


def test_tools_and_arguments_that_are_not_there_are_named():
  cards = [a.card for a in toy_world.ACTIONS]
  renaming.Names(_NAMES).check(cards)
  for names, match in (
    ({'fly': renaming.NewName('x')}, "no tool 'fly'; there are find"),
    ({'move': renaming.NewName('x', '', {'y': 'z'})}, "move has no argument 'y'"),
  ):
    with pytest.raises(ValueError, match=match):
      renaming.Names(names).check(cards)


def test_programs_are_refused():
  agent = dataclasses.replace(_agent([]), plan_format='code')
  with pytest.raises(ValueError, match='not in programs'):
    renaming.renamed(agent, renaming.Names(_NAMES))


def test_a_clash_that_only_an_episode_shows_is_infrastructure_and_leaves_it_closed():
  class Hidden:
    """The toy environment, which does not tell its tools before an episode."""

    cards, closed = (), 0

    def __init__(self):
      self._inner = toy_world.make()
      self.name, self.version, self.capacity = 'toy', '1', None

    async def open(self, task, key, state=None):
      episode = await self._inner.open(task, key, state)
      close = episode.close

      async def closed():
        self.closed += 1
        await close()

      episode.close = closed
      return episode

  hidden = Hidden()
  done = _played([], names={'move': renaming.NewName('sell')}, environment=hidden)
  assert done.status is records.Status.ENVIRONMENT_UNREACHABLE and hidden.closed == 1


def test_new_names_of_the_desk_cover_it_and_give_nothing_away():
  for tier in ('easy', 'plain', 'long'):
    cards = {a.name: a.card for a in actions.of_tier(tier)}
    assert cards.keys() == new_names.NEW_NAMES.keys()
    names = renaming.Names(new_names.NEW_NAMES)
    names.check(cards.values())
    new = list(map(names.card, cards.values()))
    renaming.check_distinct(new)
    for before, after in zip(cards.values(), new):
      said = new_names.NEW_NAMES[before.name]
      assert not set(before.name.split('_')) & set(after.name.split('_'))
      assert after.purpose != before.purpose and after.name not in cards
      assert said.arguments.keys() == {a.name for a in before.arguments}
      assert not set(said.arguments) & set(said.arguments.values())


def test_calls_of_a_world_are_not_recorded_under_new_names_either(tmp_path):
  kept = recording.Recording(str(tmp_path / 'recording'), replays=False)
  done = _played([_MOVE, _FINISH], recording=kept)
  kept.close()
  assert done.reward == 1.0
  written = [p.read_bytes() for p in (tmp_path / 'recording').rglob('*') if p.is_file()]
  assert not any(b'carry' in data or b'is on S2' in data for data in written)
