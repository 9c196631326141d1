"""Which weights a server has, by hand-made scores."""

import numpy as np
import pytest

from agentflow_jax.external import proof

_BOUNDS = proof.Bounds(mean=0.01, p99=0.1)
_NEW = [np.array([-1.0, -2.0]), np.array([-3.0])]


def _judge(old, served):
  old = None if old is None else [np.array(x) for x in old]
  return proof.judge(_NEW, old, [np.array(x) for x in served], _BOUNDS)


def test_a_server_that_is_nearer_to_the_new_weights_is_proved():
  # The second token alone has moved by more than 0.3.
  verdict = _judge([[-1.2, -2.4], [-3.1]], [[-1.0, -2.0], [-3.003]])
  assert verdict.outcome == proof.Outcome.PROVED and verdict.told_apart == 1
  assert verdict.mean_gap == pytest.approx(0.001)


def test_a_server_with_the_weights_before_is_refuted():
  verdict = _judge([[-1.2, -2.4], [-3.1]], [[-1.2, -2.4], [-3.1]])
  assert verdict.outcome == proof.Outcome.REFUTED
  assert 'weights before' in verdict.said and '1 tokens' in verdict.said


def test_half_way_is_not_nearer():
  verdict = _judge([[-1.0, -2.5], [-3.0]], [[-1.0, -2.25], [-3.0]])
  assert verdict.outcome == proof.Outcome.REFUTED and 'before' in verdict.said


def test_what_moved_less_than_three_times_the_bound_tells_nothing():
  verdict = _judge([[-1.3, -2.3], [-3.299]], [[-1.0, -2.0], [-3.0]])
  assert verdict.outcome == proof.Outcome.INDISTINGUISHABLE
  assert verdict.told_apart == 0


def test_other_weights_than_either_are_refuted_by_the_mean():
  verdict = _judge([[-1.0, -2.4], [-3.0]], [[-1.0, -2.1], [-3.0]])
  assert verdict.outcome == proof.Outcome.REFUTED
  assert 'mean_logprob_gap' in verdict.said


def test_without_weights_before_the_mean_alone_counts():
  assert _judge(None, [[-1.0, -2.0], [-3.0]]).outcome == (
    proof.Outcome.INDISTINGUISHABLE
  )
  assert _judge(None, [[-1.0, -2.0], [-3.1]]).outcome == proof.Outcome.REFUTED


@pytest.mark.parametrize('old', [None, [[-1.2, -2.4], [-3.1]]])
def test_a_score_that_is_no_number_proves_nothing(old):
  verdict = _judge(old, [[-1.0, float('nan')], [-3.0]])
  assert verdict.outcome == proof.Outcome.REFUTED
