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
    np.array([5, 6, 7]),
    np.array([8, 9]),
    target_weight=0.25,
    behavior_logprobs=np.array([-1.0, -2.0], np.float32),
    advantage=-1.0,
    temperature=0.5,
  )
  batch, packing = batch_lib.pack([row], tokens_per_row=6, rows_per_micro=2, block=6)
  # Five ids take four places: the last is a target only.
  assert batch.token_ids[0, 0].tolist() == [5, 6, 7, 8, 0, 0]
  assert batch.positions[0, 0].tolist() == [0, 1, 2, 3, 0, 0]
  assert batch.subtree_end[0, 0].tolist() == [4, 4, 4, 4, 0, 0]
  # In blocks, a target lies where its parent does.
  assert batch.parents[0, 0].tolist() == [0, 1, 2, 3, 4, 5]
  assert batch.targets[0, 0].tolist() == [0, 0, 8, 9, 0, 0]
  assert batch.responses[0, 0].tolist() == [0, 0, 1, 1, 0, 0]
  assert batch.weights[0, 0].tolist() == [0, 0, 0.25, 0.25, 0, 0]
  assert batch.advantages[0, 0].tolist() == [0, 0, -1, -1, 0, 0]
  assert batch.behavior_logprobs[0, 0].tolist() == [0, 0, -1, -2, 0, 0]
  assert batch.old_logprobs[0, 0].tolist() == [0, 0, -1, -2, 0, 0]
  assert batch.temperature[0, 0].tolist() == [1, 1, 0.5, 0.5, 1, 1]
  assert not batch.subtree_end[0, 1].any() and not batch.weights[0, 1].any()
  assert batch.n_micro == 1 and packing.n_targets == 2 and packing.n_tokens == 4


def test_a_forest_by_hand():
  def row(prompt, response, **fields):
    return batch_lib.TurnRow(
      np.array(prompt),
      np.array(response),
      target_weight=0.5,
      behavior_logprobs=-np.arange(1.0, 1 + len(response), dtype=np.float32),
      **fields,
    )

  rows = [
    row([5, 6], [8, 9], advantage=2.0),  # 5 6 8, and 9 as a target
    row([5, 6], [7, 9], advantage=-1.0),
    row([5, 6], [8, 9], advantage=1.0),  # The first one's twin.
    row([5, 6, 7, 4], [3], temperature=0.5),  # Goes on from the second.
    row([1], [2]),
    row([5, 6, 7], []),
  ]
  batch, packing = batch_lib.pack(
    rows, tokens_per_row=8, rows_per_micro=1, layout='forest'
  )
  # By their tokens: 1; 5 6 7; 5 6 7 4; 5 6 8; 5 6 8. The last is only a target.
  assert batch.token_ids[0, 0].tolist() == [1, 5, 6, 7, 4, 8, 0, 0]
  assert batch.positions[0, 0].tolist() == [0, 0, 1, 2, 3, 2, 0, 0]
  assert batch.subtree_end[0, 0].tolist() == [1, 6, 6, 5, 5, 6, 0, 0]
  # Targets by turn row: 8 9, 7 9, 8 9, 3, 2.
  assert batch.targets[0, 0].tolist() == [8, 9, 7, 9, 8, 9, 3, 2]
  assert batch.parents[0, 0].tolist() == [2, 5, 2, 3, 2, 5, 4, 0]
  assert batch.responses[0, 0].tolist() == [1, 1, 2, 2, 3, 3, 4, 5]
  assert batch.advantages[0, 0].tolist() == [2, 2, -1, -1, 1, 1, 0, 0]
  assert batch.temperature[0, 0].tolist() == [1] * 6 + [0.5, 1]
  assert batch.old_logprobs[0, 0].tolist() == [-1, -2, -1, -2, -1, -2, -1, -1]
  assert (packing.n_tokens, packing.n_row_tokens) == (6, 3 + 3 + 3 + 4 + 1)
  assert packing.n_empty == 1 and packing.n_targets == 8
  # One target more does not fit, and the row begins anew with what it shares.
  more, packing = batch_lib.pack(
    rows + [row([5, 6, 9], [9])], tokens_per_row=8, rows_per_micro=1, layout='forest'
  )
  assert more.token_ids[1, 0].tolist() == [5, 6, 9] + [0] * 5
  assert more.subtree_end[1, 0].tolist() == [3, 3, 3] + [0] * 5
  assert packing.n_tokens == 6 + 3 and more.n_micro == 2


@pytest.mark.parametrize('layout', ['rows', 'forest'])
def test_sets_lie_where_their_targets_do(layout):
  rows = [
    batch_lib.TurnRow(
      np.array([5, 6]), np.array([8, 9]), 1.0, kept=np.array([[8, 2, -1], [1, 3, 9]])
    ),
    batch_lib.TurnRow(np.array([5, 6]), np.array([7]), 1.0, prompt_weight=1.0),
    batch_lib.TurnRow(
      np.array([5, 6]), np.zeros(0, int), 1.0, kept=np.zeros((0, 0), int)
    ),
  ]
  batch, packing = batch_lib.pack(
    rows, tokens_per_row=8, rows_per_micro=1, layout=layout, max_kept=4
  )
  assert batch.kept.shape == (1, 1, 8, 4) and batch.kept.dtype == np.int32
  first, second, _ = batch_lib.unpack(packing, batch.kept)
  assert first.tolist() == [[8, 2, -1, -1], [1, 3, 9, -1]]
  assert second.tolist() == [[-1] * 4]
  assert (batch.kept >= 0).sum() == 5
  np.testing.assert_array_equal(
    (batch.kept == batch.targets[..., None]).any(-1).sum(), 2
  )
  # Shapes do not depend on what rows have; without sets there is no array.
  none, _ = batch_lib.pack(
    rows[1:], tokens_per_row=8, rows_per_micro=1, layout=layout, max_kept=4
  )
  assert none.kept.shape == batch.kept.shape and (none.kept == -1).all()
  none, _ = batch_lib.pack(rows[1:], tokens_per_row=8, rows_per_micro=1, layout=layout)
  assert none.kept is None
  for most in (0, 2):
    with pytest.raises(ValueError, match=f'row 0.*3 ids.*max_kept={most}'):
      batch_lib.pack(
        rows, tokens_per_row=8, rows_per_micro=1, layout=layout, max_kept=most
      )


def test_prompt_weight_scores_the_prompt_but_its_first_token():
  row = _row(3, 2, prompt_weight=0.1)
  for layout in ('rows', 'forest'):
    batch, _ = batch_lib.pack([row], tokens_per_row=4, rows_per_micro=1, layout=layout)
    np.testing.assert_allclose(batch.weights[0, 0], [0.1, 0.1, 0.5, 0.5])
    assert batch.targets[0, 0].tolist() == [*row.prompt_ids[1:], *row.response_ids]


def _some_rows(seed, count=40, ids=50):
  """Turn rows of which many begin alike, some empty, some the same."""
  rng = np.random.default_rng(seed)
  rows, prompts = [], [rng.integers(0, ids, 1)]
  for i in range(count):
    kept = prompts[rng.integers(len(prompts))]
    kept = kept[: rng.integers(1, len(kept) + 1)]
    prompt = np.concatenate([kept, rng.integers(0, ids, rng.integers(0, 5))])
    prompts.append(prompt[:11])
    response = rng.integers(0, ids, rng.integers(0, 9))
    rows.append(
      batch_lib.TurnRow(
        prompts[-1],
        response,
        target_weight=0.5,
        advantage=float(i),
        behavior_logprobs=-rng.random(len(response)).astype(np.float32),
      )
    )
    if i % 7 == 0:
      rows.append(rows[-1])
  return rows


@pytest.mark.parametrize('layout', ['rows', 'forest'])
@pytest.mark.parametrize('seed', range(6))
def test_every_target_is_scored_by_its_own_row(seed, layout):
  # With few ids, rows share more; with one, a row begins another.
  rows = _some_rows(seed, ids=(50, 3, 1)[seed % 3])
  batch, packing = batch_lib.pack(
    rows, tokens_per_row=20, rows_per_micro=4, pad_id=3, layout=layout
  )
  place = np.arange(20)
  scored = np.zeros(batch.weights.shape, int)
  for row, where in zip(rows, packing.places, strict=True):
    at = (where.micro, where.row)
    ids = [*row.prompt_ids, *row.response_ids]
    if not len(row.response_ids):
      assert not len(where.path)
      continue
    assert batch.token_ids[at][where.path].tolist() == ids[:-1]
    targets = slice(where.first, where.first + where.n_response)
    scored[at][targets] += 1
    assert batch.targets[at][targets].tolist() == row.response_ids.tolist()
    assert len(set(batch.responses[at][targets])) == 1
    np.testing.assert_array_equal(
      batch.parents[at][targets], where.path[len(row.prompt_ids) - 1 :]
    )
    # What each token sees is the row up to itself, whatever lies between.
    for depth, i in enumerate(where.path):
      sees = np.flatnonzero((place <= i) & (i < batch.subtree_end[at]))
      assert sees.tolist() == where.path[: depth + 1].tolist()
      assert batch.positions[at][i] == depth
  assert scored.max() == 1
  np.testing.assert_array_equal(scored > 0, batch.weights > 0)
  np.testing.assert_array_equal(scored > 0, batch.responses > 0)
  assert packing.n_targets == sum(len(row.response_ids) for row in rows)
  assert packing.n_empty == sum(not len(row.response_ids) for row in rows)
  assert packing.n_row_tokens == sum(row.places for row in rows)
  for back, row in zip(
    batch_lib.unpack(packing, batch.behavior_logprobs), rows, strict=True
  ):
    np.testing.assert_array_equal(back, row.behavior_logprobs)
  written = [(w.micro, w.row, p) for w in packing.places for p in w.path[w.shared :]]
  if layout == 'rows':
    assert packing.n_tokens == packing.n_row_tokens
  else:  # Within a packed row nothing stands twice.
    assert packing.n_tokens < packing.n_row_tokens
    prefixes = {
      (w.micro, w.row, *row.prompt_ids, *row.response_ids)[: 2 + n]
      for row, w in zip(rows, packing.places, strict=True)
      for n in range(1, row.places + 1)
    }
    assert len(prefixes) == packing.n_tokens
  assert len(written) == len(set(written)) == packing.n_tokens


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
  batch, packing = batch_lib.pack(rows, tokens_per_row=20, rows_per_micro=1, block=8)
  assert [(p.micro, p.path[0]) for p in packing.places] == [
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
    rows = [_row(int(n), 3, seed=i) for i, n in enumerate(rng.integers(1, 60, size=50))]
    batch, packing = batch_lib.pack(
      rows, tokens_per_row=64, rows_per_micro=4, block=block
    )
    used = np.zeros(batch.weights.shape, int)
    for row, place in zip(rows, packing.places, strict=True):
      assert len(place.path) == row.places
      used[place.micro, place.row, place.path] += 1
      first, last = place.path[0], place.path[-1]
      assert first % block == 0 or first // block == last // block
    assert used.max() == 1
    np.testing.assert_array_equal(used > 0, batch.subtree_end > 0)
  for fields in ({'block': 0}, {'block': 8, 'layout': 'forest'}):
    with pytest.raises(ValueError, match='block must be at least 1'):
      batch_lib.pack(rows, tokens_per_row=64, rows_per_micro=4, **fields)


def test_micro_batches_are_rounded_up_to_a_power_of_two():
  rows = [_row(9, 2, seed=i) for i in range(5)]
  batch, packing = batch_lib.pack(rows, tokens_per_row=10, rows_per_micro=1)
  assert batch.token_ids.shape == (8, 1, 10) and batch.n_micro == 5
  batch, _ = batch_lib.pack(rows, tokens_per_row=10, rows_per_micro=1, max_micro=6)
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
  batch, packing = batch_lib.pack([_row(4, 0)], tokens_per_row=8, rows_per_micro=2)
  assert packing.n_empty == 1 and batch.n_micro == 1
  assert not batch.weights.any() and not batch.subtree_end.any()
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
    ({'kept': np.zeros((1, 3), int)}, 'kept: 1 for 2'),
    ({'kept': np.full((2, 3), 50)}, 'response token 0.*not in the set'),
    ({'kept': np.zeros((2, 0), int)}, 'not in the set'),
  ],
)
def test_bad_rows_are_refused(fields, message):
  with pytest.raises(ValueError, match=message):
    _row(4, 2, **fields)
  with pytest.raises(ValueError, match='prompt'):
    _row(0, 2)


def test_a_set_that_begins_with_padding_is_refused():
  # It would be read as all of the vocabulary.
  with pytest.raises(ValueError, match='not in the set'):
    batch_lib.TurnRow(np.array([1]), np.array([2]), 1.0, kept=np.array([[-1, 2]]))


def test_the_row_length_that_pads_least_is_taken():
  def packed(n, lengths=(16, 8, 4)):
    rows = [batch_lib.TurnRow(np.full(3, i), np.array([1]), 1.0) for i in range(n)]
    batch, packing = batch_lib.pack_tightest(
      rows, lengths, rows_per_micro=2, max_micro=8
    )
    return batch.token_ids.shape[-1], packing.n_micro

  # Rows of 3 places, two packed rows a micro-batch.
  assert packed(2) == (4, 1)  # 8 places in place of 32.
  assert packed(4) == (8, 1)  # Two of 8 hold two each; of 4, 2 micro-batches.
  assert packed(10) == (16, 1)
  assert packed(10, (8, 4)) == (4, 5)  # 5 x 8 places; of rows of 8, 3 x 16.
  assert packed(1, (4, 2)) == (4, 1)  # Rows of 2 hold none.
  with pytest.raises(ValueError, match='tokens_per_row=2'):
    packed(1, (2,))


def test_a_prompt_token_that_rows_share_is_one_target_with_both_weights():
  rows = [
    batch_lib.TurnRow(np.array([1, 2, 3, 4]), np.array([9]), 1.0, prompt_weight=0.5),
    batch_lib.TurnRow(np.array([1, 2, 3, 5]), np.array([8]), 1.0, prompt_weight=0.5),
    batch_lib.TurnRow(np.array([1, 2]), np.array([7, 6]), 1.0, prompt_weight=0.25),
  ]
  for order in ((0, 1, 2), (2, 1, 0), (1, 2, 0)):
    batch, packing = batch_lib.pack(
      [rows[i] for i in order], tokens_per_row=16, rows_per_micro=1, layout='forest'
    )
    weights, targets = batch.weights[0, 0], batch.targets[0, 0]
    found = sorted((int(t), float(w)) for t, w in zip(targets, weights) if w > 0)
    assert found == [
      (2, 1.25),
      (3, 1.0),
      (4, 0.5),
      (5, 0.5),
      (6, 1.0),
      (7, 1.0),
      (8, 1.0),
      (9, 1.0),
    ]
    assert packing.n_targets == 8 and packing.n_tokens == 6
    # Each stands behind the token before it.
    parents = batch.token_ids[0, 0][batch.parents[0, 0]]
    before = {(int(t), int(p)) for t, p, w in zip(targets, parents, weights) if w > 0}
    assert before == {(2, 1), (3, 2), (4, 3), (5, 3), (7, 2), (6, 7), (8, 5), (9, 4)}


def test_rows_of_other_temperatures_share_no_prompt_token():
  rows = [
    batch_lib.TurnRow(
      np.array([1, 2]), np.array([3]), 1.0, prompt_weight=0.5, temperature=t
    )
    for t in (0.5, 1.0)
  ]
  fits = {'tokens_per_row': 16, 'rows_per_micro': 1}
  assert batch_lib.pack(rows, **fits)[1].n_targets == 4
  with pytest.raises(ValueError, match='differ in temperature'):
    batch_lib.pack(rows, layout='forest', **fits)
