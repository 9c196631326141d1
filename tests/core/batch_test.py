"""Packing: nothing lost, nothing moved, deterministic."""

import numpy as np
import pytest

from agentflow_jax.core import batch as batch_lib


def _row(prompt, response, seed=0, **fields):
  rng = np.random.default_rng(seed)
  fields = {
      'target_weight': 0.5,
      'behavior_logprobs': -rng.random(response).astype(np.float32),
      'advantage': 1.5,
      'temperature': 0.7,
  } | fields
  return batch_lib.TurnRow(
      rng.integers(0, 50, prompt), rng.integers(0, 50, response), **fields
  )


def test_one_row_by_hand():
  row = batch_lib.TurnRow(
      np.array([5, 6, 7]), np.array([8, 9]), target_weight=0.25,
      behavior_logprobs=np.array([-1.0, -2.0], np.float32), advantage=-1.0,
      temperature=0.5,
  )
  batch, packing = batch_lib.pack([row], tokens_per_row=6, rows_per_micro=2)
  # Five ids take four places: the last is a target only.
  assert batch.token_ids[0, 0].tolist() == [5, 6, 7, 8, 0, 0]
  assert batch.targets[0, 0].tolist() == [6, 7, 8, 9, 0, 0]
  assert batch.positions[0, 0].tolist() == [0, 1, 2, 3, 0, 0]
  assert batch.segment_ids[0, 0].tolist() == [1, 1, 1, 1, 0, 0]
  assert batch.weights[0, 0].tolist() == [0, 0, 0.25, 0.25, 0, 0]
  assert batch.advantages[0, 0].tolist() == [0, 0, -1, -1, 0, 0]
  assert batch.behavior_logprobs[0, 0].tolist() == [0, 0, -1, -2, 0, 0]
  assert batch.old_logprobs[0, 0].tolist() == [0, 0, -1, -2, 0, 0]
  assert batch.temperature[0, 0].tolist() == [0.5] * 4 + [1, 1]
  assert not batch.segment_ids[0, 1].any() and not batch.weights[0, 1].any()
  assert batch.n_micro == 1 and packing.n_targets == 2 and packing.n_tokens == 4


def test_prompt_weight_scores_the_prompt_but_its_first_token():
  row = _row(3, 2, prompt_weight=0.1)
  batch, _ = batch_lib.pack([row], tokens_per_row=4, rows_per_micro=1)
  np.testing.assert_allclose(batch.weights[0, 0], [0.1, 0.1, 0.5, 0.5])


@pytest.mark.parametrize('seed', range(5))
def test_every_row_has_a_place_of_its_own(seed):
  rng = np.random.default_rng(seed)
  rows = [
      _row(int(rng.integers(1, 12)), int(rng.integers(0, 9)), seed=i,
           advantage=float(i), old_logprobs=None)
      for i in range(40)
  ]
  batch, packing = batch_lib.pack(
      rows, tokens_per_row=20, rows_per_micro=4, pad_id=3
  )
  used = np.zeros(batch.weights.shape, int)
  for row, place in zip(rows, packing.places, strict=True):
    end = place.start + place.length
    at = (place.micro, place.row, slice(place.start, end))
    used[at] += 1
    if not len(row.response_ids):
      assert place.length == 0
      continue
    ids = [*row.prompt_ids, *row.response_ids]
    assert batch.token_ids[at].tolist() == ids[:-1]
    assert batch.targets[at].tolist() == ids[1:]
    assert batch.positions[at].tolist() == list(range(len(ids) - 1))
    assert len(set(batch.segment_ids[at])) == 1
    assert batch.weights[at].sum() == 0.5 * len(row.response_ids)
  assert used.max() == 1
  np.testing.assert_array_equal(used > 0, batch.segment_ids > 0)
  assert packing.n_targets == sum(len(row.response_ids) for row in rows)
  assert packing.n_empty == sum(not len(row.response_ids) for row in rows)
  for back, row in zip(
      batch_lib.unpack(packing, batch.behavior_logprobs), rows, strict=True
  ):
    np.testing.assert_array_equal(back, row.behavior_logprobs)
  # Distinct turn rows of one packed row have distinct segments.
  for segments in batch.segment_ids.reshape(-1, 20):
    starts = np.flatnonzero(np.diff(np.concatenate([[0], segments])) != 0)
    real = [segments[s] for s in starts if segments[s]]
    assert len(real) == len(set(real))


def test_packing_is_deterministic_and_dense():
  rows = [_row(9, 2, seed=i) for i in range(4)] + [_row(3, 8, seed=9)]
  first, packing = batch_lib.pack(rows, tokens_per_row=20, rows_per_micro=2)
  again, _ = batch_lib.pack(rows, tokens_per_row=20, rows_per_micro=2)
  for name in batch_lib.TurnBatch.__dataclass_fields__:
    np.testing.assert_array_equal(getattr(first, name), getattr(again, name))
  # Five rows of 10 places, two a row of 20: three rows, two micro-batches.
  assert (packing.n_micro, packing.n_tokens, packing.fill) == (2, 50, 50 / 80)


def test_a_block_is_crossed_only_by_rows_that_start_one():
  # Prompt and one response token: `prompt` places. Blocks of 8, 8 and 4.
  rows = [_row(prompt, 1) for prompt in (5, 5, 9, 3, 3, 4, 20, 17)]
  batch, packing = batch_lib.pack(
      rows, tokens_per_row=20, rows_per_micro=1, block=8
  )
  assert [(p.micro, p.start) for p in packing.places] == [
      # By falling size: 20 fills a row, 17 leaves three places of its last
      # block, 9 seven of its second. There the first 5 goes; the next opens a
      # row, 4 fills the third row's last block, and 3 and 3 what is left.
      (2, 9), (3, 0), (2, 0), (1, 17), (3, 5), (2, 16), (0, 0), (1, 0),
  ]  # fmt: skip
  for values, row in zip(
      batch_lib.unpack(packing, batch.behavior_logprobs), rows, strict=True
  ):
    np.testing.assert_array_equal(values, row.behavior_logprobs)


def test_blocks_lose_and_overlay_nothing():
  rng = np.random.default_rng(1)
  for block in (1, 7, 16, 64, 100):
    rows = [
        _row(int(n), 3, seed=i)
        for i, n in enumerate(rng.integers(1, 60, size=50))
    ]
    batch, packing = batch_lib.pack(
        rows, tokens_per_row=64, rows_per_micro=4, block=block
    )
    used = np.zeros(batch.weights.shape, int)
    for row, place in zip(rows, packing.places, strict=True):
      assert place.length == row.places
      assert place.start + place.length <= 64
      used[place.micro, place.row, place.start :][: place.length] += 1
      first, last = place.start, place.start + place.length - 1
      assert first % block == 0 or first // block == last // block
    assert used.max() == 1
    np.testing.assert_array_equal(used > 0, batch.segment_ids > 0)
  with pytest.raises(ValueError, match='block must be at least 1: 0'):
    batch_lib.pack(rows, tokens_per_row=64, rows_per_micro=4, block=0)


def test_micro_batches_are_rounded_up_to_a_power_of_two():
  rows = [_row(9, 2, seed=i) for i in range(5)]
  batch, packing = batch_lib.pack(rows, tokens_per_row=10, rows_per_micro=1)
  assert batch.token_ids.shape == (8, 1, 10) and batch.n_micro == 5
  batch, _ = batch_lib.pack(
      rows, tokens_per_row=10, rows_per_micro=1, max_micro=6
  )
  assert batch.token_ids.shape == (6, 1, 10) and batch.n_micro == 5
  with pytest.raises(ValueError, match='need 5 micro-batches'):
    batch_lib.pack(rows, tokens_per_row=10, rows_per_micro=1, max_micro=4)
  assert packing.n_rows == 5


def test_a_row_that_does_not_fit_is_named():
  rows = [_row(4, 2), _row(9, 3)]
  with pytest.raises(ValueError, match='row 1: 9 prompt and 3 response'):
    batch_lib.pack(rows, tokens_per_row=10, rows_per_micro=1)
  batch_lib.pack(rows, tokens_per_row=11, rows_per_micro=1)  # 12 ids fit.


def test_rows_without_any_target_still_make_a_batch():
  batch, packing = batch_lib.pack(
      [_row(4, 0)], tokens_per_row=8, rows_per_micro=2
  )
  assert packing.n_empty == 1 and batch.n_micro == 1
  assert not batch.weights.any() and not batch.segment_ids.any()
  assert batch_lib.unpack(packing, batch.weights)[0].shape == (0,)
  with pytest.raises(ValueError, match='no rows'):
    batch_lib.pack([], tokens_per_row=8, rows_per_micro=2)


@pytest.mark.parametrize(
    'fields, message',
    [
        ({'temperature': 0.0}, 'temperature'),
        ({'target_weight': -1.0}, 'target_weight'),
        ({'target_weight': float('nan')}, 'target_weight'),
        ({'advantage': float('inf')}, 'advantage'),
        ({'behavior_logprobs': np.zeros(3, np.float32)}, 'behavior_logprobs'),
        ({'old_logprobs': np.zeros(1, np.float32)}, 'old_logprobs'),
    ],
)
def test_bad_rows_are_refused(fields, message):
  with pytest.raises(ValueError, match=message):
    _row(4, 2, **fields)
  with pytest.raises(ValueError, match='prompt'):
    _row(0, 2)
