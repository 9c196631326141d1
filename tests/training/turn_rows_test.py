import dataclasses

import numpy as np
import pytest

from agentflow_jax import records
from agentflow_jax.core import flow_grpo
from agentflow_jax.rollouts import totals
from agentflow_jax.training import turn_rows

_CONFIG = flow_grpo.FlowGrpoConfig()


def _turn(length, sampling=records.SamplingSpec(temperature=0.7)):
  completion = records.Completion(
    text='',
    prompt_ids=(1, 2),
    response_ids=tuple(range(3, 3 + length)),
    logprobs=(-0.5,) * length,
  )
  return records.Turn(completion, sampling)


def _group(rewards, lengths):
  """lengths[i] are the response lengths of rollout i's turns."""
  return records.Group(
    records.Task('t', 'q', ('a',), 'f1'),
    tuple(
      records.Trajectory(
        't', i, records.Status.ANSWERED, tuple(_turn(n) for n in lengths[i]), reward=r
      )
      for i, r in enumerate(rewards)
    ),
  )


def test_four_one_turn_wins_and_four_three_turn_losses():
  # mean 0.5, sample std sqrt(8 * 0.25 / 7) = 0.534522; 0.5 / 0.534522 = 0.9354.
  group = _group([1.0] * 4 + [0.0] * 4, [[5]] * 4 + [[5, 5, 5]] * 4)
  rows = turn_rows.flow_grpo_rows([group], _CONFIG)
  assert len(rows.rows) == 4 + 12
  found = [row.advantage for row in rows.rows]
  np.testing.assert_allclose(found, [0.93541] * 4 + [-0.93541] * 12, atol=1e-5)
  extra = rows.extras[0, 4]
  assert extra['advantage'] == pytest.approx(-0.93541, abs=1e-5)
  # 1 / (1 group * 8 rollouts * 3 turns * 5 tokens) for each of three turns.
  assert extra['weights'] == pytest.approx([1 / 120] * 3)
  # Over rows 4 of 16 rewards are 1: mean 0.25, sample std
  # sqrt((4 * 0.75^2 + 12 * 0.25^2) / 15) = 0.447214; 0.75 / 0.447214 = 1.6771.
  config = dataclasses.replace(_CONFIG, advantage_over='rows')
  found = [r.advantage for r in turn_rows.flow_grpo_rows([group], config).rows]
  np.testing.assert_allclose(found, [1.67705] * 4 + [-0.55902] * 12, atol=1e-5)


def test_weights_are_over_groups_rollouts_turns_and_tokens():
  groups = [
    _group([1.0, 0.0, None], [[4, 2], [1], [7]]),
    _group([1.0, 1.0], [[0, 3], [2]]),
  ]
  rows = turn_rows.flow_grpo_rows(groups, _CONFIG).rows
  # Q = 2; the rollout without reward counts nowhere: G = 2 and 2.
  # 1 / (2 * 2 * 2 turns * 4), ... / 2; 1 / (2 * 2 * 1 * 1); an empty turn has
  # weight 0 but counts in T: 1 / (2 * 2 * 2 * 3); 1 / (2 * 2 * 1 * 2).
  expected = [1 / 32, 1 / 16, 1 / 4, 0.0, 1 / 24, 1 / 8]
  np.testing.assert_allclose([r.target_weight for r in rows], expected)
  # The second group has no variance: advantage 0, its KL weight stays.
  assert [r.advantage for r in rows[3:]] == [0.0, 0.0, 0.0]
  assert all(r.temperature == 0.7 for r in rows)
  # Rollouts are told apart over all groups of the update.
  assert [r.rollout for r in rows] == [1, 1, 2, 3, 3, 4]
  assert all(r.fresh for r in rows)


@pytest.mark.parametrize(
  'sampling',
  [
    records.SamplingSpec(temperature=0.0),
    *(
      records.SamplingSpec(**fields)
      for fields in ({'top_k': 5}, {'top_p': 0.9}, {'min_p': 0.1})
    ),
  ],
)
def test_what_was_not_sampled_from_a_known_policy_never_trains(sampling):
  group = _group([1.0, 0.0], [[1], [1]])
  bad = dataclasses.replace(group.trajectories[0], turns=(_turn(2, sampling),))
  group = records.Group(group.task, (bad, group.trajectories[1]))
  with pytest.raises(ValueError, match='cannot be trained on'):
    turn_rows.flow_grpo_rows([group], _CONFIG)


def test_sets_become_rows_as_they_were_recorded():
  kept = records.KeptSets.of((2, 1, 3), (3, 9, 4, 7, 5, 6))
  turn = _turn(3, records.SamplingSpec(top_p=0.9))
  turn = dataclasses.replace(
    turn, completion=dataclasses.replace(turn.completion, kept=kept)
  )
  group = _group([1.0, 0.0], [[3], [1]])
  truncated = dataclasses.replace(group.trajectories[0], turns=(turn,))
  group = records.Group(group.task, (truncated, group.trajectories[1]))
  first, second = turn_rows.flow_grpo_rows([group], _CONFIG).rows
  # Of responses 3, 4, 5.
  assert first.kept.tolist() == [[3, 9, -1], [4, -1, -1], [7, 5, 6]]
  assert second.kept is None
  metrics = totals.collected([group])
  assert metrics['kept/mean'] == 2.0 and metrics['kept/max'] == 3
  assert 'kept/mean' not in totals.collected([_group([1.0], [[3]])])


def test_sets_of_another_response_never_train():
  turn = _turn(2, records.SamplingSpec(top_p=0.9))
  group = _group([1.0, 0.0], [[1], [1]])
  for counts, ids, message in (
    ((1,), (3,), 'kept: 1 for 2'),
    ((1, 1), (3, 9), 'token 1, 4, is not in'),
  ):
    kept = records.KeptSets.of(counts, ids)
    completion = dataclasses.replace(turn.completion, kept=kept)
    bad = dataclasses.replace(
      group.trajectories[0], turns=(dataclasses.replace(turn, completion=completion),)
    )
    with pytest.raises(ValueError, match=message):
      turn_rows.flow_grpo_rows(
        [records.Group(group.task, (bad, group.trajectories[1]))], _CONFIG
      )


def test_a_turn_without_logprobs_never_trains():
  completion = records.Completion('x', (1,), (2, 3), ())
  turn = records.Turn(completion, records.SamplingSpec())
  group = _group([1.0, 0.0], [[1], [1]])
  bad = dataclasses.replace(group.trajectories[0], turns=(turn,))
  with pytest.raises(ValueError, match='without recorded logprobs'):
    turn_rows.flow_grpo_rows(
      [records.Group(group.task, (bad, group.trajectories[1]))], _CONFIG
    )


def test_sft_weights_make_the_mean_over_response_tokens():
  rows = turn_rows.sft_rows([_turn(3), _turn(1)], prompt_weight=0.5)
  total = sum(r.target_weight * len(r.response_ids) for r in rows)
  assert total == pytest.approx(1.0)
  assert rows[0].prompt_weight == pytest.approx(0.5 / 4)


@pytest.mark.parametrize(
  'rewards, differ',
  [
    ([1.0, 0.0], True),
    ([1.0, None, 0.0], True),
    ([1.0, 1.0], False),
    ([0.0, 0.0], False),
    # A rollout that was not scored differs from none that was.
    ([1.0, None], False),
    ([0.0, None, None], False),
    ([None, None], False),
    ([None], False),
    ([1.0], False),
  ],
)
def test_a_group_has_variance_if_its_scored_rewards_differ(rewards, differ):
  group = _group(rewards, [[2]] * len(rewards))
  assert totals.has_variance(group) == differ
  # Where it has none, no advantage teaches anything.
  advantages = [
    row.advantage for row in turn_rows.flow_grpo_rows([group], _CONFIG).rows
  ]
  assert any(advantages) == differ
  assert totals.collected([group])['groups/no_variance'] == (not differ)


def test_sft_weighs_every_response_token_alike_whatever_its_row():
  # 2 + 6 response tokens: 1/8 each. A mean of row means would give 1/4, 1/12.
  short, long = turn_rows.sft_rows([_turn(2), _turn(6)], prompt_weight=0.0)
  assert short.target_weight == long.target_weight == 1 / 8


def _scored(terms):
  """A group whose rollouts have these values of the terms success and calls."""
  group = _group([t and 0.0 for t in terms], [[2]] * len(terms))
  weights = {'success': 1.0, 'calls': -0.4}
  return records.Group(
    group.task,
    tuple(
      dataclasses.replace(rollout, reward=score.reward if score else None, score=score)
      for rollout, score in zip(
        group.trajectories,
        (
          values
          and records.Score(
            {name: records.Term(v, weights[name]) for name, v in zip(weights, values)}
          )
          for values in terms
        ),
      )
    ),
  )


def test_terms_that_are_normalised_each_for_itself():
  config = flow_grpo.FlowGrpoConfig(terms='normalised')
  group = _scored([(1.0, 0.5), (1.0, 0.1), (0.0, 0.0), None])
  rows = turn_rows.flow_grpo_rows([group], config).rows
  (wanted,) = flow_grpo.term_advantages(
    [[(0.5, 1.0), (0.1, 1.0), (0.0, 0.0), None]], (-0.4, 1.0)
  )
  assert [row.advantage for row in rows] == list(wanted[:3])
  assert rows[0].advantage < rows[1].advantage and rows[2].advantage < 0


def test_one_term_is_enough_for_variance_where_each_is_normalised():
  # 0.4 * 0.5 more success for 0.5 more calls: the sums are equal.
  group = _scored([(0.2, 0.5), (0.0, 0.0)])
  assert group.trajectories[0].reward == group.trajectories[1].reward == 0.0
  assert not totals.has_variance(group)
  assert totals.has_variance(group, by_term=True)
  assert not totals.has_variance(_scored([(0.2, 0.5)] * 2), by_term=True)
  assert totals.collected([group], by_term=True)['groups/no_variance'] == 0


def test_terms_are_metrics_with_their_correlation_to_success():
  group = _scored([(1.0, 0.5), (1.0, 0.1), (0.0, 0.0), None])
  metrics = totals.collected([group])
  assert metrics['reward/part/success'] == pytest.approx(2 / 3)
  assert metrics['reward/part/calls'] == pytest.approx(-0.4 * 0.6 / 3)
  assert sum(
    v for k, v in metrics.items() if k.startswith('reward/part/')
  ) == pytest.approx(metrics['reward/mean'])
  calls, success = np.array([0.5, 0.1, 0.0]), np.array([1.0, 1.0, 0.0])
  calls, success = calls - calls.mean(), success - success.mean()
  wanted = (calls @ success) / np.sqrt((calls @ calls) * (success @ success))
  assert metrics['reward/correlation/calls'] == pytest.approx(wanted)
  same = totals.collected([_scored([(1.0, 0.5), (1.0, 0.1)])])
  assert 'reward/correlation/calls' not in same
