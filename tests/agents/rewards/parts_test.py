"""Tests of rewards of several terms: they add up, and failing never pays."""

import asyncio
import itertools

import hypothesis
from hypothesis import strategies as st
import pytest

from agentflow_jax import records
from agentflow_jax.agents.rewards import parts

_WEIGHTS = {
  'success': 1.0,
  'pass_fraction': 0.2,
  'unchanged': 0.1,
  'refusal': 0.1,
  'execution': 0.1,
  'format': 0.05,
  'calls': -0.2,
  'length': -0.1,
  'answer': 0.1,
}


def _task(feasible=True):
  world = records.World('toy', {}, checks=(), feasible=feasible)
  return records.Task('t', 'q', ('a',), 'checks', world=world)


def _turn(error=None, tokens=4, inner=0):
  completion = records.Completion('', response_ids=tuple(range(tokens)))
  call = records.ToolCall('find', {})
  result = records.ToolResult('', error)
  result = records.ToolResult('', error, inner=((call, result),) * inner)
  return records.Turn(
    completion, records.SamplingSpec(max_new_tokens=8), call=call, result=result
  )


def _ending(turns=(), ended='finish', answer=''):
  calls = tuple(c for t in turns for c in [(t.call, t.result), *t.result.inner])
  return records.Ending(records.Status.ANSWERED, answer, calls, ended, tuple(turns))


def _verdict(passed, changed=0):
  results = tuple(
    records.CheckResult(f'c{i}', 'state', p) for i, p in enumerate(passed)
  )
  extra = tuple(f'row {i}' for i in range(changed))
  return records.Verdict(results, extra, extra)


async def _checks(task, ending, verdict):
  return float(verdict.success)


async def _right(task, ending, verdict):
  return float(ending.answer in task.answers)


def _score(weights, task, ending, verdict, base=_checks):
  made = parts.Parts(base, weights, _right if 'answer' in weights else None)
  return asyncio.run(made(task, ending, verdict))


def test_terms_by_hand():
  bad = records.ToolErrorKind.ARGUMENTS
  turns = [_turn(), _turn(bad, inner=2), _turn(tokens=8), _turn(tokens=0)]
  score = _score(
    _WEIGHTS, _task(), _ending(turns, answer='a'), _verdict([True, False], 1)
  )
  assert {name: term.value for name, term in score.terms.items()} == {
    'success': 0.0,
    'pass_fraction': 0.5,
    'unchanged': 0.0,
    'refusal': 1.0,
    'execution': 0.75,
    'format': 1.0,
    'answer': 1.0,
    # Only a success is reduced by these.
    'calls': 0.0,
    'length': 0.0,
  }
  assert score.reward == pytest.approx(0.1 + 0.1 + 0.075 + 0.05 + 0.1)
  score = _score(_WEIGHTS, _task(), _ending(turns), _verdict([True, True]))
  assert score.terms['calls'].value == 6 / 20
  assert score.terms['length'].value == 16 / 32


def test_doing_nothing_useful_scores_nothing():
  held = records.CheckResult('held', 'state', True, vacuous=True)
  ended = records.CheckResult('ended', 'ending', True)
  missed = records.CheckResult('done', 'state', False)
  verdict = records.Verdict((held, ended, missed))
  turns = [_turn()] * 3
  score = _score(_WEIGHTS, _task(), _ending(turns), verdict)
  assert score.reward == 0.0 and not any(t.value for t in score.terms.values())
  more = records.Verdict((ended, missed, records.CheckResult('other', 'state', True)))
  assert _score(_WEIGHTS, _task(), _ending(turns), more).reward > 0.2
  # Without a world the answer alone is progress.
  weights = {'success': 1.0, 'execution': 0.5}
  for answer, reward in (('b', 0.0), ('a', 1.5)):
    ending = _ending(turns, answer=answer)
    assert _score(weights, _task(), ending, None, _right).reward == reward


@pytest.mark.parametrize(
  ('feasible', 'ended', 'value'),
  [
    (True, 'finish', 1),
    (True, 'refuse', 0),
    (False, 'refuse', 1),
    (False, 'finish', 0),
    (False, '', 0),
    (True, '', 1),
    (None, 'refuse', 0),
  ],
)
def test_refusals(feasible, ended, value):
  score = _score(
    {'success': 1.0, 'refusal': 0.5},
    _task(feasible),
    _ending(ended=ended),
    _verdict([True]),
  )
  assert score.terms['refusal'].value == value


def test_the_sum_is_that_of_the_record():
  score = _score(_WEIGHTS, _task(), _ending([_turn()] * 3), _verdict([True] * 3))
  total = 0.0
  for name in sorted(score.terms):
    total += score.terms[name].weight * score.terms[name].value
  assert score.reward == total


_values = st.integers(0, 4).flatmap(
  lambda n: st.tuples(
    st.lists(st.booleans(), min_size=1, max_size=3),
    st.integers(0, 2),
    st.sampled_from(['finish', 'refuse', '']),
    st.just(n),
    st.sampled_from([None, records.ToolErrorKind.ARGUMENTS]),
    st.integers(0, 8),
    st.sampled_from(['a', 'b']),
  )
)


@hypothesis.given(st.lists(_values, min_size=2, max_size=6), st.booleans())
@hypothesis.settings(deadline=None, max_examples=150)
def test_a_failure_never_scores_as_much_as_a_success(rollouts, feasible):
  scores = []
  for passed, changed, ended, count, error, tokens, answer in rollouts:
    verdict = _verdict(passed, changed)
    ending = _ending([_turn(error, tokens)] * count, ended, answer)
    scores.append(
      (verdict.success, _score(_WEIGHTS, _task(feasible), ending, verdict).reward)
    )
  for (won, more), (lost, less) in itertools.product(scores, scores):
    if won and not lost:
      assert more > less
  assert all(reward >= 0.0 for _, reward in scores)


def test_breaking_the_format_scores_nothing_in_every_term():
  made = parts.Parts(_checks, _WEIGHTS, _right)
  assert made.nothing.reward == 0.0
  assert set(made.nothing.terms) == set(_WEIGHTS)
  assert not any(t.value for t in made.nothing.terms.values())


@pytest.mark.parametrize(
  ('weights', 'said'),
  [
    ({'sucess': 1.0}, "no term 'sucess'"),
    ({'execution': 0.5}, 'success needs a weight'),
    ({'success': -1.0}, 'success needs a weight'),
    ({'success': 1.0, 'execution': 0.5, 'calls': -0.5}, 'below the weight of success'),
    ({'success': 1.0, 'refusal': 0.5}, 'reads the checks of a world'),
  ],
)
def test_weights_under_which_a_failure_could_pay_are_refused(weights, said):
  with pytest.raises(ValueError, match=said):
    parts.check(weights, worlds=False)
  parts.check(_WEIGHTS, worlds=True)


@pytest.mark.parametrize('value', [2.0, -0.1])
def test_a_reward_outside_of_0_and_1_has_no_terms(value):
  async def base(task, ending, verdict):
    return value

  with pytest.raises(ValueError, match=r'lies in \[0, 1\]'):
    _score({'success': 1.0}, _task(), _ending(), None, base)
