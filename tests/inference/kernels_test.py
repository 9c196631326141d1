"""JAX's kernels over our pages, against float64; and through the engine."""

import functools

import jax
import jax.numpy as jnp
from jax.experimental.pallas import tpu as pltpu
import numpy as np
import pytest

from agentflow_jax.core import handover
from agentflow_jax.inference import kernels
from agentflow_jax.inference import pages

P = 16


def _case(heads, kv_heads, dim, lengths, blocks, seed=0):
  """Returns q, a pool, tables, and float64 [B, H, E] of what attends."""
  rng = np.random.default_rng(seed)
  rows, per_row = len(lengths), blocks * pages.BLOCK // P
  q = rng.standard_normal((rows, kv_heads, heads // kv_heads, 1, dim))
  n = rows * per_row + 1
  tables = rng.permutation(np.arange(1, n)).reshape(rows, per_row)
  k, v = (rng.standard_normal((kv_heads, n, P, dim)) for _ in range(2))
  as_read = lambda x: jnp.asarray(x, jnp.bfloat16)
  q, k, v = map(as_read, (q, k, v))
  expected = np.zeros((rows, kv_heads, heads // kv_heads, dim))
  wide = [np.asarray(x, np.float64) for x in (q[:, :, :, 0], k, v)]
  for b, length in enumerate(lengths):
    mine = [x[:, tables[b]].reshape(kv_heads, -1, dim) for x in wide[1:]]
    keys, values = (x[:, :length] for x in mine)
    scores = np.einsum('kge,kse->kgs', wide[0][b], keys) / np.sqrt(dim)
    weights = np.exp(scores - scores.max(axis=2, keepdims=True))
    weights /= weights.sum(axis=2, keepdims=True)
    expected[b] = np.einsum('kgs,kse->kge', weights, values)
  # What nobody reads may be anything that is finite.
  k, v = (x.at[:, 0].set(1e4) for x in (k, v))
  return q, pages.Pool(k, v), tables.astype(np.int32), expected


def _error(got, expected):
  got = np.asarray(got, np.float64)[:, :, :, 0]
  return np.linalg.norm(got - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize('heads, kv_heads, dim', [(14, 2, 64), (4, 2, 128)])
def test_the_kernel_for_gpus_equals_float64(heads, kv_heads, dim):
  lengths = [1, 16, 129, 384, 250]
  q, pool, tables, expected = _case(heads, kv_heads, dim, lengths, 3)
  got = jax.jit(kernels.attend)(q, pool, tables, np.array(lengths, np.int32) - 1)
  assert got.dtype == np.float32 and got.shape == q.shape
  assert _error(got, expected) < 6e-3


def test_the_kernel_for_gpus_splits_long_rows_into_whole_blocks():
  # 17 blocks: nine splits of two, the last of which is padded.
  lengths = [2176, 2049, 1]
  q, pool, tables, expected = _case(2, 1, 16, lengths, 17)
  got = jax.jit(kernels.attend)(q, pool, tables, np.array(lengths, np.int32) - 1)
  assert _error(got, expected) < 6e-3


def test_the_kernel_for_gpus_reads_pages_of_int8():
  lengths = [40, 128]
  q, pool, tables, expected = _case(4, 2, 64, lengths, 1)
  pool = pages.Pool(
    *(
      x
      for pair in zip(pages._as_int8(pool.keys), pages._as_int8(pool.values))
      for x in pair
    )
  )
  got = jax.jit(kernels.attend)(q, pool, tables, np.array(lengths, np.int32) - 1)
  assert 1e-3 < _error(got, expected) < 2e-2


@pytest.mark.parametrize('heads', [8, 6])
def test_heads_may_be_split_over_devices(heads):
  """Key heads over two, and the query heads of each where they divide."""
  lengths = [40, 129]
  q, pool, tables, expected = _case(heads, 2, 16, lengths, 2)
  mesh = jax.sharding.Mesh(
    np.array(jax.devices()[:4]).reshape(2, 2), handover.LOCAL_AXES
  )
  attend = jax.jit(functools.partial(kernels.attend, mesh=mesh))
  got = attend(q, pool, tables, np.array(lengths, np.int32) - 1)
  assert len(got.sharding.device_set) == 4
  assert _error(got, expected) < 6e-3


def test_the_kernel_for_tpus_equals_float64():
  lengths = [129, 16]
  q, pool, tables, expected = _case(4, 2, 128, lengths, 2)

  @jax.jit
  def attend(q, pool, tables, lengths):
    q = (q[:, :, :, 0] / np.sqrt(128)).astype(q.dtype).reshape(2, 4, 128)
    return kernels._tpu(q, pool, tables, lengths)

  with pltpu.force_tpu_interpret_mode():
    got = attend(q, pool, tables, np.array(lengths, np.int32))
  assert _error(got.reshape(q.shape), expected) < 6e-3


@pytest.mark.parametrize('platform', ['tpu', 'cuda'])
def test_the_kernels_lower_for_their_platform(platform):
  q, pool, tables, _ = _case(4, 2, 128, [5, 9], 2)
  lowered = (
    jax.jit(kernels.attend)
    .trace(q, pool, tables, np.array([4, 8], np.int32))
    .lower(lowering_platforms=(platform,))
  )
  name = {'tpu': 'tpu_custom_call', 'cuda': 'triton'}[platform]
  assert name in lowered.as_text()


@pytest.mark.parametrize(
  'platform, dtype, kv_dtype, dim, says',
  [
    ('cuda', 'float32', '', 64, 'bfloat16'),
    ('tpu', 'bfloat16', 'int8', 128, 'int8'),
    ('tpu', 'bfloat16', '', 64, '128'),
    ('cuda', 'bfloat16', '', 96, 'power of two'),
    ('rocm', 'bfloat16', '', 64, 'CUDA'),
  ],
)
def test_where_there_is_no_kernel_it_says_why(platform, dtype, kv_dtype, dim, says):
  assert says in kernels.lacks(platform, dtype, kv_dtype, dim)
  assert not kernels.lacks('cuda', 'bfloat16', 'int8', 64)
  assert not kernels.lacks('tpu', 'bfloat16', '', 128)
