"""Texts of policies."""

import re
import typing

import pytest

from agentflow_jax.agents.environments.desk import policy, writes
from tests.agents.environments.desk import small_world

_ALL = {
  'limit': {'loans': 3},
  'late': {},
  'approval': {'role': 'steward'},
  'service': {'days': 7},
  'training': {'category': 'camera'},
  'visitor': {'days': 6},
  'extension': {'times': 2},
  'home': {'site': 'Pier'},
  'test': {},
  'notice': {'event': 'closed', 'role': 'head'},
}


def test_ten_rules_are_those_that_refuse_takes():
  hints = typing.get_type_hints(writes.refuse)['rule']
  assert set(typing.get_args(hints)) == {*policy.RULES, policy.AMBIGUOUS}
  assert len(policy.RULES) == 10


def test_a_short_policy_is_short_and_holds_the_parameters():
  # The six rules with the most words.
  longest = sorted(_ALL, key=lambda r: -len(policy.render({r: _ALL[r]}).split()))[:6]
  text = policy.render({name: _ALL[name] for name in longest})
  assert len(text.split()) <= 72
  assert policy.render(small_world.RULES).splitlines()[:2] == [
    'limit (person): at most 2 open loans.',
    'late (person): no loan or extension with a late loan.',
  ]
  assert 'after opening a repair, notify the head.' in policy.render(small_world.RULES)


@pytest.mark.parametrize('tier', ['easy', 'plain', 'long'])
@pytest.mark.parametrize('name', sorted(_ALL))
def test_every_tier_says_rules_in_force_and_no_others(name, tier):
  text = policy.render({name: _ALL[name]}, tier, small_world.DATE)
  said = re.findall(r'^([a-z]+)(?: \(\w+\))?:', text, re.MULTILINE)
  if tier == 'long':
    said = [w.lower() for w in re.findall(r'^([A-Z]+)\. ', text, re.MULTILINE)]
  assert said == [name]
  for value in _ALL[name].values():
    assert policy.EVENTS.get(value, str(value)) in text
  assert '{' not in text
  assert (small_world.DATE in text) == (tier != 'easy')


def test_the_guide_is_long():
  words = len(policy.render(small_world.RULES, 'long', small_world.DATE).split())
  assert 2000 < words < 2700


@pytest.mark.parametrize(
  'rules, words',
  [
    ({'speed': {}}, "no rule 'speed'"),
    ({'limit': {}}, "'loans'"),
    ({'late': {'days': 1}}, 'late'),
  ],
)
def test_wrong_rules_are_refused(rules, words):
  with pytest.raises(ValueError, match=words):
    policy.render(rules)
