"""Bounds on the gap between sampler and trainer."""

import numpy as np
import pytest

from agentflow_jax.core import gap_bounds

_GAPS = np.concatenate([np.full(98, 0.01), [0.2, 0.5]])


def test_each_bound_is_named_with_its_field():
  within = gap_bounds.GapBounds(max=0.5, p99=0.21, mean=0.02)
  assert within.exceeded(_GAPS) == ''
  for field, bound in (('max', 0.49), ('p99', 0.19), ('mean', 0.01)):
    said = gap_bounds.GapBounds(**{field: bound}).exceeded(_GAPS)
    assert f'train.{field}_logprob_gap' in said and f'{bound:.3g}' in said
  assert gap_bounds.GapBounds().exceeded(np.zeros(0)) == ''
  assert gap_bounds.GapBounds().exceeded(np.array([np.nan]))


def test_defaults_are_of_the_dtype_and_the_sampler():
  inside = gap_bounds.of('float32', largest=1e-5)
  outside = gap_bounds.of('float32', outside=True, largest=1e-5)
  assert inside.max == 1e-5 and outside.max == np.inf
  # Servers are measured against float32's noise; a proof needs it to be small.
  assert outside.p99 < inside.p99 < gap_bounds.of('bfloat16', largest=1.0).p99
  given = gap_bounds.of('bfloat16', outside=True, mean=1e-3, p99=2e-3)
  assert (given.mean, given.p99) == (1e-3, 2e-3)
  in_a_byte = gap_bounds.of('float32', kv_dtype='int8', largest=1.0)
  assert in_a_byte.mean == in_a_byte.p99 == np.inf
  np.testing.assert_array_equal(
    gap_bounds.GapBounds(3.0, 2.0, 1.0).array(), np.array([3, 2, 1], np.float32)
  )
  with pytest.raises(KeyError):
    gap_bounds.of('float16')
