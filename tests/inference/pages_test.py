"""Pages against plain forward passes; where they lie never shows."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agentflow_jax.core import model
from agentflow_jax.inference import pages

CONFIG = model.ModelConfig(
  vocab_size=61,
  d_model=24,
  n_layers=2,
  n_heads=4,
  n_kv_heads=2,
  head_dim=8,
  d_ff=40,
  max_positions=400,
)
FAMILIES = {
  'qwen2': {'qkv_bias': True, 'rope_theta': 1e6},
  'qwen3': {'qk_norm': True, 'tie_embeddings': False},
  'one_kv_head': {'n_kv_heads': 1},
}
P = 8
_FORWARD = jax.jit(model.forward, static_argnums=0)
_COPY = jax.jit(pages.copy_pages, static_argnums=1)


@functools.partial(jax.jit, static_argnums=0)
def _call(config, params, pool, ids, starts, tables, writes):
  """Returns logits [B, T, V] and the pool with the new tokens."""
  cache = pages.Cache(
    pool=pool, n_layers=config.n_layers, starts=starts, tables=tables, writes=writes
  )
  positions = starts[:, None] + jnp.arange(ids.shape[1])
  hidden, cache = model.hidden_states_cached(config, params, ids, positions, cache)
  return model.unembed(config, params, hidden), cache.pool


def _make(**changes):
  config = dataclasses.replace(CONFIG, **changes)
  params = jax.jit(model.init_params, static_argnums=0)(config, jax.random.key(0))
  rng = np.random.default_rng(1)
  return config, jax.tree.map(
    lambda x: jnp.asarray(x + 0.2 * rng.standard_normal(x.shape), x.dtype), params
  )


def _whole(config, params, ids):
  """float32 [B, T, V] by one plain forward pass."""
  positions = np.broadcast_to(np.arange(ids.shape[1], dtype=np.int32), ids.shape)
  ends = np.full_like(ids, ids.shape[1])
  return np.asarray(_FORWARD(config, params, ids, positions, ends))


@pytest.fixture(name='_by_blocks')
def _by_blocks_fixture(monkeypatch):
  """Tables of 256 slots are short enough to be gathered whole; now they're not."""
  monkeypatch.setattr(pages, 'MAX_DENSE', 0)
  jax.clear_caches()  # Of what was traced the other way.
  yield
  jax.clear_caches()


def _tables(rows, places):
  """Pages of each row's slots: 32 a row, drawn from `places`, never 0."""
  return np.array(places, np.int32)[: rows * 32].reshape(rows, 32)


def _read(config, params, pool, ids, tables, lengths, piece=16):
  """Reads the first lengths[b] tokens of every row, a piece at a time.

  Rows are of one call, but of different lengths and so, in the end, unused.
  """
  rows = len(ids)
  logits = np.zeros((*ids.shape, config.vocab_size), np.float32)
  for start in range(0, max(lengths), piece):
    part = np.zeros((rows, piece), np.int32)
    writes = np.zeros((rows, piece // P), np.int32)
    for b in range(rows):
      new = ids[b, start : min(start + piece, lengths[b])]
      part[b, : len(new)] = new
      used = -(-len(new) // P)
      writes[b, :used] = tables[b, start // P : start // P + used]
    starts = np.full(rows, start, np.int32)
    got, pool = _call(config, params, pool, part, starts, tables, writes)
    for b in range(rows):
      n = min(piece, max(lengths[b] - start, 0))
      logits[b, start : start + n] = got[b, :n]
  return logits, pool


def _spoilt_pool(config, count):
  """Pages full of what nobody may read."""
  pool = pages.make_pool(config, count, P)
  return jax.tree.map(lambda x: x + 3, pool)


@pytest.mark.parametrize(
  'family', ['qwen2', pytest.param('qwen3', marks=pytest.mark.slow)]
)
def test_reading_and_decoding_equal_whole_forward_passes(family):
  _check_reading_and_decoding(family)


@pytest.mark.slow
def test_reading_and_decoding_by_blocks_equal_whole_forward_passes(_by_blocks):
  _check_reading_and_decoding('one_kv_head')


def _check_reading_and_decoding(family):
  config, params = _make(**FAMILIES[family])
  rng = np.random.default_rng(0)
  ids = rng.integers(0, 61, (3, 200), np.int32)
  expected = _whole(config, params, ids)
  lengths = [121, 40, 3]
  tables = _tables(3, rng.permutation(np.arange(1, 97)))
  logits, pool = _read(config, params, _spoilt_pool(config, 97), ids, tables, lengths)
  for row, length in enumerate(lengths):
    np.testing.assert_allclose(logits[row, :length], expected[row, :length], atol=2e-5)
  rows = np.arange(3)
  for step in range(20):  # Over the edge of a block of 128, and of pages.
    at = np.array(lengths, np.int32) + step
    got, pool = _call(
      config,
      params,
      pool,
      ids[rows, at][:, None],
      at,
      tables,
      tables[rows, at // P][:, None],
    )
    np.testing.assert_allclose(got[:, 0], expected[rows, at], atol=2e-5)


@pytest.mark.exact
def test_where_pages_lie_and_what_lies_about_never_shows():
  _check_where_pages_lie()


@pytest.mark.exact
@pytest.mark.slow
def test_nor_does_it_where_blocks_are_gone_over(_by_blocks):
  _check_where_pages_lie()


def _check_where_pages_lie():
  config, params = _make()
  rng = np.random.default_rng(1)
  ids = rng.integers(0, 61, (3, 200), np.int32)
  lengths = [150, 80, 33]
  found = []
  for seed in (0, 1):
    places = np.random.default_rng(seed).permutation(np.arange(1, 97))
    tables = _tables(3, places)
    pool = jax.tree.map(lambda x, seed=seed: x * seed, _spoilt_pool(config, 97))
    others = ids.copy()
    others[1] = np.random.default_rng(seed).integers(0, 61, 200)
    found.append(_read(config, params, pool, others, tables, lengths)[0])
  assert found[0][0].any() and found[0][2].any()
  assert (found[0][0] == found[1][0]).all() and (found[0][2] == found[1][2]).all()
  assert (found[0][1] != found[1][1]).any()


def test_a_piece_sees_the_pieces_of_its_row_in_the_same_call():
  config, params = _make()
  ids = np.random.default_rng(2).integers(0, 61, (1, 48), np.int32)
  expected = _whole(config, params, ids)
  table = _tables(1, np.arange(5, 37))
  got, _ = _call(
    config,
    params,
    _spoilt_pool(config, 40),
    ids.reshape(3, 16),
    np.array([0, 16, 32], np.int32),
    np.repeat(table, 3, axis=0),
    table[0, :6].reshape(3, 2),
  )
  np.testing.assert_allclose(got.reshape(48, 61), expected[0], atol=2e-5)


def test_rows_may_share_pages_and_go_on_behind_a_copy():
  config, params = _make()
  rng = np.random.default_rng(3)
  ids = np.repeat(rng.integers(0, 61, (1, 60), np.int32), 2, axis=0)
  ids[1, 52:] += 1
  ids %= 61
  expected = _whole(config, params, ids)
  table = _tables(1, np.arange(1, 33))
  _, pool = _read(
    config, params, _spoilt_pool(config, 60), ids, np.repeat(table, 2, axis=0), [52, 0]
  )
  # Six pages are shared; the seventh holds slots 48 to 51, and is copied.
  tables = np.repeat(table, 2, axis=0)
  tables[0, 6:8], tables[1, 6:8] = [40, 41], [50, 51]
  pairs = np.array([[7, 40], [7, 50], [1, 2]], np.int32)
  pool = _COPY(pool, config.n_layers, pages.Copies(pairs, np.int32(2)))
  rows = np.arange(2)
  for at in range(52, 60):
    got, pool = _call(
      config,
      params,
      pool,
      ids[:, at][:, None],
      np.full(2, at, np.int32),
      tables,
      tables[rows, at // P][:, None],
    )
    np.testing.assert_allclose(got[:, 0], expected[:, at], atol=2e-5)


@pytest.mark.parametrize('kv_dtype', ['', 'int8'])
@pytest.mark.parametrize('length', [1, 2 * P])
def test_pages_are_written_alike_in_turn_and_at_once(length, kv_dtype):
  config, _ = _make()
  rng = np.random.default_rng(8)
  pool = pages.make_pool(config, 20, P, kv_dtype)
  pool = jax.tree.map(
    lambda x: jnp.asarray(rng.integers(-9, 9, x.shape), x.dtype), pool
  )
  draw = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)
  new = pages.new_tokens(kv_dtype, draw(3, 2, 8, length), draw(3, 2, length, 8))
  writes = np.array([[4, 5], [9, 3], [7, 2]], np.int32)[:, : max(length // P, 1)]
  starts = jnp.array([3, 13, 24], jnp.int32)
  arrays = pool, new, 20, starts, jnp.asarray(writes)
  one, other = pages._write_in_turn(*arrays), pages._write_at_once(*arrays)
  for x, y, before in zip(*map(jax.tree.leaves, (one, other, pool))):
    assert (x == y).all()
    # Of the second layer alone, and a token or two pages of each row.
    changed = np.argwhere(np.asarray(x != before).any(axis=(0, 3)))
    if length == 1:
      assert changed.tolist() == [[24, 3], [27, 0], [29, 5]]
    else:
      assert {page - 20 for page, _ in changed} == {2, 3, 4, 5, 7, 9}


def test_copies_are_of_every_layer_and_of_nothing_else():
  config, _ = _make()
  pool = pages.make_pool(config, 5, P)
  pool = jax.tree.map(lambda x: x + jnp.arange(10).reshape(1, 10, 1, 1), pool)
  pairs = np.array([[4, 1], [1, 2], [3, 0]], np.int32)
  copies = pages.Copies(pairs, np.int32(2))
  # One after the other: 4 to 1, and that to 2.
  _check_pages(_COPY(pool, 2, copies), [0, 4, 4, 3, 4, 5, 9, 9, 8, 9])
  # From a pool of more pages, which stays as it is: 4 to 1, and 1 to 2.
  other = pages.make_pool(config, 6, P)
  other = jax.tree.map(lambda x: x - jnp.arange(12).reshape(1, 12, 1, 1), other)
  _check_pages(_COPY(pool, 2, copies, other), [0, -4, -1, 3, 4, 5, -10, -7, 8, 9])


@pytest.mark.parametrize('tokens', [P, 1])  # Read, or decoded.
def test_what_is_not_finite_is_not_left_where_all_look(tokens):
  config, _ = _make()
  pool = pages.make_pool(config, 5, P)
  new = jax.tree.map(
    lambda x: jnp.ones((x.shape[0], 2, tokens, x.shape[3]), x.dtype), pool
  )
  new = jax.tree.map(lambda x: x.at[:, 1].set(jnp.nan), new)
  writes = np.array([[3], [pages.SCRATCH]])
  got = jax.jit(pages.write)(pool, new, 5, np.zeros(2, np.int32), writes)
  for x in jax.tree.leaves(got):
    assert (x[:, 5 + 3, :tokens] == 1).all() and x.sum() == x[:, 8].sum()


def _check_pages(pool, expected):
  for x in jax.tree.leaves(pool):
    assert (x == np.array(expected).reshape(1, -1, 1, 1)).all()


@pytest.mark.slow
def test_bfloat16_is_near():
  config, params = _make(head_dim=64, d_model=128, n_layers=1)
  half = dataclasses.replace(config, dtype='bfloat16')
  rng = np.random.default_rng(4)
  ids = rng.integers(0, 61, (2, 160), np.int32)
  expected = _whole(config, params, ids)
  pool = pages.make_pool(half, 70, P)
  assert pool.keys.dtype == pool.values.dtype == jnp.bfloat16
  logits, _ = _read(half, params, pool, ids, _tables(2, np.arange(1, 65)), [160, 160])
  # 8 bits of mantissa, a few roundings in a row.
  error = np.linalg.norm(logits - expected)
  assert 1e-4 < error / np.linalg.norm(expected) < 0.02


def test_int8_is_off_by_half_a_step_at_most():
  config, params = _make(n_layers=1)
  rng = np.random.default_rng(5)
  ids = rng.integers(0, 61, (2, 64), np.int32)
  tables = _tables(2, np.arange(1, 65))
  expected, plain = _read(
    config, params, pages.make_pool(config, 70, P), ids, tables, [64, 64]
  )
  logits, pool = _read(
    config, params, pages.make_pool(config, 70, P, 'int8'), ids, tables, [64, 64]
  )
  assert pool.keys.dtype == pool.values.dtype == jnp.int8
  for got, scales, exact in (
    (pool.keys, pool.key_scales, plain.keys),
    (pool.values, pool.value_scales, plain.values),
  ):
    used = np.asarray(exact, np.float64)[:, tables[:, :8]]
    scales = np.asarray(scales, np.float64)[:, tables[:, :8]]
    got = np.asarray(got, np.float64)[:, tables[:, :8]] * scales
    largest = np.abs(used).max(axis=-1, keepdims=True)
    assert (largest > 0).all()
    np.testing.assert_allclose(scales * 127, largest, rtol=1e-6)
    error = np.abs(got - used)
    assert (error <= largest / 254 * 1.001).all()
    assert error.max() > (largest / 254).min() / 2  # As coarse as a byte is.
  error = np.linalg.norm(logits - expected) / np.linalg.norm(expected)
  assert 1e-4 < error < 0.02


@pytest.mark.parametrize('bad', [np.nan, np.inf])
def test_int8_does_not_hide_what_is_not_finite(bad):
  config, params = _make(n_layers=1)
  params['layers']['attention']['v']['kernel'] *= bad
  logits, _ = _read(
    config,
    params,
    pages.make_pool(config, 70, P, 'int8'),
    np.ones((1, 16), np.int32),
    _tables(1, np.arange(1, 33)),
    [16],
  )
  assert not np.isfinite(logits).any()
