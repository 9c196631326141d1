"""Rows in one piece: against float64, and parts read once for all rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agentflow_jax.core import model
from agentflow_jax.core import primitives
from agentflow_jax.inference import gathered
from agentflow_jax.inference import pages

P, K, G, E = 16, 2, 3, 8
_MODEL = model.ModelConfig(
  vocab_size=16,
  d_model=48,
  n_layers=2,
  n_heads=K * G,
  n_kv_heads=K,
  head_dim=E,
  d_ff=16,
  max_positions=2000,
)


def _reference(q, keys, values, starts):
  """softmax(q k / sqrt(E)) v in float64; keys and values [B, K, S, E]."""
  out = np.zeros(q.shape)
  for b, start in enumerate(starts):
    k, v = (np.asarray(x[b, :, : start + 1], np.float64) for x in (keys, values))
    scores = np.einsum('kge,kse->kgs', q[b, :, :, 0], k) / np.sqrt(E)
    weights = np.exp(scores - scores.max(axis=2, keepdims=True))
    weights /= weights.sum(axis=2, keepdims=True)
    out[b, :, :, 0] = np.einsum('kgs,kse->kge', weights, v)
  return out


@pytest.mark.parametrize(
  'slots, sizes',
  [(128, (128,)), (512, (512,)), (640, (256, 256, 128)), (1024, (256,) * 4)],
)
def test_parts_cover_all_slots(slots, sizes):
  assert gathered.parts(slots) == sizes
  assert gathered.make_store(_MODEL, 3, slots).slots == slots


@pytest.mark.parametrize('kv_dtype, atol', [('', 1e-6), ('int8', 0.05)])
@pytest.mark.parametrize('slots', [128, 640])
def test_what_is_gathered_and_put_is_attended_to(slots, kv_dtype, atol):
  """Rows of some lengths at once, in a layer that is not the first."""
  rng = np.random.default_rng(0)
  draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)
  n = slots // P
  lengths = np.array([1, slots // 2, slots - 1, 7], np.int32)
  pool = pages.make_pool(_MODEL, 4 * n + 1, P, kv_dtype)
  new = draw(K, 2 * (4 * n + 1), P, E), draw(K, 2 * (4 * n + 1), P, E)
  exact = [x[:, 4 * n + 1 :] for x in new]
  pool = (
    pages.Pool(*new)
    if not kv_dtype
    else pages.new_tokens(
      kv_dtype,
      *(jnp.asarray(x) for x in (new[0].transpose(1, 0, 3, 2), new[1].swapaxes(0, 1))),
    )
  )
  tables = (1 + rng.permutation(4 * n).reshape(4, n)).astype(np.int32)
  store = jax.tree.map(lambda x: x + 1e3, gathered.make_store(_MODEL, 4, slots))
  # The last row is none that is gathered now.
  store = jax.jit(gathered.gather, static_argnames='dtype')(
    store, pool, gathered.Fresh(tables, np.array([2, 0, 1, 3]), 3), dtype='float32'
  )
  cache = gathered.Cache(
    store=store,
    starts=lengths,
    live=np.array([True, True, True, False]),
    common=np.int32(0),
    row=np.int32(0),
    kv_dtype=kv_dtype,
  )
  q, k, v = draw(4, K, G, 1, E), draw(4, K, E, 1), draw(4, K, 1, E)
  got, cache = jax.jit(lambda cache, *arrays: cache.attend('float32', 1, *arrays))(
    cache, q, k, v
  )
  keys, values = (
    x[:, tables].reshape(K, 4, slots, E).swapaxes(0, 1).copy() for x in exact
  )
  for b, length in enumerate(lengths):
    keys[b, :, length], values[b, :, length] = k[b, :, :, 0], v[b, :, 0]
  expected = _reference(q, keys, values, lengths)
  np.testing.assert_allclose(got[:3], expected[:3], atol=atol)
  # What is not live was put nowhere; nor was anything in the other layer.
  for before, after in zip(jax.tree.leaves(store), jax.tree.leaves(cache.store)):
    np.testing.assert_array_equal(before[:, 3], after[:, 3])
  assert all(
    (a == b).all()
    for a, b in zip(
      store.keys[0] + store.values[0], cache.store.keys[0] + cache.store.values[0]
    )
  )


def _parts_in_common(rows=5):
  rng = np.random.default_rng(1)
  draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)
  q, k, v = draw(rows, K, G, 1, E), draw(rows, K, 640, E), draw(rows, K, 640, E)
  for x in (k, v):
    x[:, :, :512] = x[3, :, :512]
  starts = np.array([512, 639, 600, 550, 513], np.int32)
  split = lambda x: tuple(
    part.copy() for part in np.split(x.swapaxes(0, 1), (256, 512), axis=2)
  )
  return q, k, v, starts, (split(k), split(v))


@pytest.mark.parametrize('common', [None, 0, 1, 2])
def test_parts_that_rows_have_in_common_are_read_of_one_of_them(common):
  q, k, v, starts, (keys, values) = _parts_in_common()
  # Of that one alone: the others' may be anything.
  others = np.arange(5) != 3
  for parts in (keys, values):
    for part in parts[: common or 0]:
      part[:, others] = np.nan
  got = jax.jit(gathered.attend, static_argnums=0)(
    'float32',
    q,
    tuple(x.swapaxes(2, 3) for x in keys),
    values,
    starts,
    common,
    np.int32(3),
  )
  np.testing.assert_allclose(got, _reference(q, k, v, starts), atol=1e-6)


def test_a_product_that_is_rounded_otherwise_is_not_shared(monkeypatch):
  # Not the cached one: what it finds here must not stay.
  shares = gathered.shares_bits.__wrapped__
  assert isinstance(shares('float32', 4, K, G, 64, 640), bool)
  product = primitives.float32_product

  def otherwise(dtype, equation, a, b):
    out = product(dtype, equation, a, b)
    return out * (1 + 2e-7) if equation == 'kqs,kse->kqe' else out

  monkeypatch.setattr(primitives, 'float32_product', otherwise)
  assert not shares('float32', 4, K, G, 64, 640)
