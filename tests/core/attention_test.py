"""Block attention against a dense NumPy float64 oracle."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agentflow_jax.core import attention
from agentflow_jax.core import attention_gpu
from agentflow_jax.core import attention_tpu
from agentflow_jax.core import attention_xla
from agentflow_jax.core import blocks as blocks_lib
from agentflow_jax.core import forest
from agentflow_jax.core import sharding

T = 64
BLOCKS = blocks_lib.Blocks(16, 8)


def _ends(kind, seed=0):
  """subtree_end[T] of a row of that kind."""
  rng = np.random.default_rng(seed)
  if kind == 'one':
    return np.full(T, T)
  if kind == 'padding':
    return np.zeros(T, int)
  if kind == 'apart':  # Segments that begin and end inside blocks, then padding.
    return np.r_[np.full(13, 13), np.full(20, 33), np.full(24, 57), np.zeros(7)]
  rows = [rng.integers(0, 2, rng.integers(1, 16)) for _ in range(20)]
  return forest.share(rows, [0] * 20, T, T).subtree_end[0]


KINDS = ('one', 'padding', 'apart', 'forest')


def _arrays(kinds, heads=6, kv_heads=2, dim=4, seed=0, stretch=1):
  """q, k, v and ends; with `stretch`, every token is as many."""
  rng = np.random.default_rng(seed)
  batch, length = len(kinds), T * stretch
  shapes = (
    (batch, kv_heads, heads // kv_heads, length, dim),
    (batch, kv_heads, dim, length),
    (batch, kv_heads, length, dim),
  )
  q, k, v = (rng.normal(size=s).astype(np.float32) for s in shapes)
  ends = np.stack([_ends(kind, i) for i, kind in enumerate(kinds)])
  ends = np.repeat(ends, stretch, axis=1) * stretch
  return q, k, v, ends.astype(np.int32)


def _oracle(q, k, v, ends, d_out):
  """Returns the result and the gradients of sum(result * d_out)."""
  q, k, v, d_out = (x.astype(np.float64) for x in (q, k, v, d_out))
  out, dq, dk, dv = np.zeros_like(q), *map(np.zeros_like, (q, k, v))
  for b, h, g in np.ndindex(q.shape[:3]):
    for i in range(q.shape[3]):
      seen = [j for j in range(i + 1) if i < ends[b, j]]
      if not seen:
        continue
      scale = 1 / np.sqrt(q.shape[-1])
      s = q[b, h, g, i] @ k[b, h][:, seen] * scale
      p = np.exp(s - s.max())
      p /= p.sum()
      out[b, h, g, i] = p @ v[b, h, seen]
      dp = v[b, h, seen] @ d_out[b, h, g, i]
      ds = p * (dp - p @ dp) * scale
      dq[b, h, g, i] = k[b, h][:, seen] @ ds
      dk[b, h][:, seen] += np.outer(q[b, h, g, i], ds)
      dv[b, h, seen] += np.outer(p, d_out[b, h, g, i])
  return out, (dq, dk, dv)


def _run(q, k, v, ends, d_out, dtype='float32', mesh=None, blocks=BLOCKS):
  def loss(*arrays):
    out = attention.attend_blocks(
      *(x.astype(dtype) for x in arrays), ends, blocks=blocks, dtype=dtype, mesh=mesh
    )
    return jnp.sum(out * d_out), out

  grads, out = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(q, k, v)
  return out, grads


@pytest.mark.parametrize('blocks', [(8, 8), (16, 8), (32, 16), (64, 64)])
def test_results_and_gradients_equal_the_float64_oracle(blocks):
  arrays = _arrays(KINDS)
  d_out = np.random.default_rng(1).normal(size=arrays[0].shape)
  out, grads = _run(*arrays, d_out, blocks=blocks_lib.Blocks(*blocks))
  expected, expected_grads = _oracle(*arrays, d_out)
  np.testing.assert_allclose(out, expected, atol=2e-6)
  for got, wanted in zip(grads, expected_grads, strict=True):
    np.testing.assert_allclose(got, wanted, atol=1e-5)
  assert not np.asarray(out[1]).any()  # Padding sees nothing.


@pytest.mark.parametrize('kernel', ['xla', 'pallas'])
def test_bfloat16_scores_are_not_scaled_by_a_rounded_number(kernel):
  # The first key has a score of 64 / sqrt(128), the others 0; its value is 1.
  q, k, v, ends = _arrays(('one',), 1, 1, dim=128, stretch=2)
  q, k, v = (np.zeros_like(x) for x in (q, k, v))
  q[..., 0], k[:, :, 0, 0], v[:, :, 0, 0] = 8.0, 8.0, 1.0
  blocks = blocks_lib.Blocks(128, 128, kernel)
  out, _ = _run(q, k, v, ends, np.ones_like(q), dtype='bfloat16', blocks=blocks)
  # The last token's result is 1 / (1 + 127 exp(-score)), all in float32.
  score = -np.log((1 / out[0, 0, 0, 127, 0] - 1) / 127)
  assert score == pytest.approx(64 / np.sqrt(128), abs=1e-5)


@pytest.mark.parametrize('heads', [(9, 3), (4, 1), (4, 4)])
def test_grouped_heads(heads):
  arrays = _arrays(('forest', 'apart'), *heads)
  d_out = np.random.default_rng(1).normal(size=arrays[0].shape)
  out, grads = _run(*arrays, d_out)
  expected, expected_grads = _oracle(*arrays, d_out)
  np.testing.assert_allclose(out, expected, atol=2e-6)
  for got, wanted in zip(grads, expected_grads, strict=True):
    np.testing.assert_allclose(got, wanted, atol=1e-5)


def test_bfloat16_is_near():
  arrays = _arrays(KINDS)
  d_out = np.random.default_rng(1).normal(size=arrays[0].shape)
  out, grads = _run(*arrays, d_out, dtype='bfloat16')
  expected, expected_grads = _oracle(*arrays, d_out)
  for got, wanted in zip((out, *grads), (expected, *expected_grads), strict=True):
    error = np.linalg.norm(got - wanted) / np.linalg.norm(wanted)
    assert 1e-5 < error < 0.02


@pytest.mark.parametrize('axes', [(4, 1, 1), (2, 2, 2), (1, 1, 2)])
def test_rows_and_heads_may_be_spread_over_a_mesh(axes):
  devices = jax.devices()[: int(np.prod(axes))]
  mesh = sharding.make_mesh(*axes, devices)
  arrays = _arrays(KINDS)
  d_out = np.random.default_rng(1).normal(size=arrays[0].shape)
  for got, wanted in zip(
    jax.tree.leaves(_run(*arrays, d_out, mesh=mesh)),
    jax.tree.leaves(_run(*arrays, d_out)),
    strict=True,
  ):
    np.testing.assert_allclose(got, wanted, atol=1e-6)


def test_what_nothing_sees_is_neither_read_nor_computed():
  q, k, v, ends = _arrays(('apart',))
  d_out = np.random.default_rng(1).normal(size=q.shape)
  expected, _ = _oracle(q, k, v, ends, d_out)
  # By 16 queries and 8 keys, the segments are keys 0-1, 1-4 and 4-7 (57 to 63
  # is padding); queries 16 to 31 see keys 13 to 31.
  which, count = attention_xla._lists(jnp.asarray(ends[0]), BLOCKS)
  assert [which[i, :c].tolist() for i, c in enumerate(count)] == [
    [0, 1],
    [1, 2, 3],
    [1, 2, 3, 4, 5],
    [4, 5, 6, 7],
  ]
  # The first block's keys are of no concern from block 2 on.
  k[..., :8] = np.nan
  out, _ = _run(q, k, v, ends, d_out)
  np.testing.assert_allclose(out[..., 16:, :], expected[..., 16:, :], atol=2e-6)


def test_rows_that_are_no_whole_blocks_are_padded():
  arrays = _arrays(('forest', 'one'))
  d_out = np.random.default_rng(1).normal(size=arrays[0].shape)
  out, grads = _run(*arrays, d_out, blocks=blocks_lib.Blocks(24, 12))
  # Other blocks add in another order, so the reference is the oracle.
  expected, expected_grads = _oracle(*arrays, d_out)
  np.testing.assert_allclose(out, expected, atol=2e-6)
  for got, wanted in zip(grads, expected_grads, strict=True):
    np.testing.assert_allclose(got, wanted, atol=1e-5)


@pytest.mark.parametrize('dtype, bound', [('float32', 2e-6), ('bfloat16', 0.01)])
@pytest.mark.parametrize(
  'heads',
  [(4, 2), *(pytest.param(h, marks=pytest.mark.slow) for h in ((1, 1), (3, 1)))],
)
def test_the_tpu_kernel_equals_the_float64_oracle(heads, dtype, bound):
  # Blocks of 128: 256 tokens are 2, of which the mask is whole, part, empty.
  arrays = _arrays(KINDS, *heads, dim=64, stretch=4)
  d_out = np.random.default_rng(1).normal(size=arrays[0].shape)
  blocks = blocks_lib.Blocks(128, 128, 'pallas')
  out, grads = _run(*arrays, d_out, dtype=dtype, blocks=blocks)
  expected, expected_grads = _oracle(*arrays, d_out)
  for got, wanted in zip((out, *grads), (expected, *expected_grads), strict=True):
    got = np.asarray(got, np.float64)
    assert np.linalg.norm(got - wanted) <= bound * np.linalg.norm(wanted)
  assert not np.asarray(out[1]).any()


@pytest.mark.parametrize(
  'heads',
  [(4, 2), *(pytest.param(h, marks=pytest.mark.slow) for h in ((1, 1), (3, 1)))],
)
def test_the_gpu_kernel_equals_the_float64_oracle(heads):
  q, k, v, ends = _arrays(('forest', 'apart'), *heads, dim=64, stretch=4)
  d_out = np.random.default_rng(1).normal(size=q.shape).astype(np.float32)
  out, gradients = _oracle(q, k, v, ends, d_out)
  for row, end in enumerate(ends):
    arrays = q[row] / 8, k[row], v[row], end  # By the root of 64.
    got, normaliser = attention_gpu.forward(*arrays, interpret=True)
    inner = np.sum(got * d_out[row], axis=-1)
    d_q, d_k, d_v = attention_gpu.backward(
      *arrays, normaliser, inner, d_out[row], interpret=True
    )
    expected = (out, *gradients)
    for x, y in zip((got, d_q / 8, d_k.transpose(0, 2, 1), d_v), expected, strict=True):
      assert np.linalg.norm(x - y[row]) <= 2e-6 * np.linalg.norm(y[row])
    assert not np.asarray(got)[:, :, end[: got.shape[2]] == 0].any()


@pytest.mark.parametrize('platform', ['tpu', 'cuda'])
def test_the_kernels_lower_for_their_platform(platform):
  q, k, v, ends = _arrays(('forest',), 4, 2, dim=64, stretch=4)
  blocks = blocks_lib.Blocks(128, 128, 'pallas')

  def gradients(*arrays):
    return jax.grad(
      lambda *a: attention.attend_blocks(
        *a, ends, blocks=blocks, dtype='bfloat16'
      ).sum(),
      argnums=(0, 1, 2),
    )(*(x.astype('bfloat16') for x in arrays))

  traced = jax.jit(gradients).trace(q, k, v)
  try:
    lowered = traced.lower(lowering_platforms=(platform,)).as_text()
  except RuntimeError as e:
    if 'No supported GPU' not in str(e):
      raise
    pytest.skip(f'JAX {jax.__version__} lowers for GPUs only where one is')
  for name in ('forward', 'queries', 'keys'):
    assert f'forest_attention_{name}' in lowered


def test_the_tpu_kernel_goes_along_what_is_seen_alone():
  ends = np.r_[np.full(200, 200), np.full(440, 640)]  # Blocks 0-1, and 1-4.
  needed, partial = attention_tpu._pairs(jnp.asarray(ends), 128)
  seen = [[0], [0, 1], [1, 2], [1, 2, 3], [1, 2, 3, 4]]
  assert [np.flatnonzero(row).tolist() for row in needed] == seen
  # What is whole: a block of keys behind, of the same tree to its last token.
  whole = np.argwhere(np.asarray(needed & ~partial)).tolist()
  assert whole == [[3, 2], [4, 2], [4, 3]]
  entries, count = attention_tpu._list(needed, partial)
  first, last = attention_tpu._FIRST, attention_tpu._LAST
  assert [
    (
      int(attention_tpu._row(e)),
      int(attention_tpu._column(e)),
      bool(e & first),
      bool(e & last),
    )
    for e in np.asarray(entries[: int(count)])
  ] == [(i, j, j == row[0], j == row[-1]) for i, row in enumerate(seen) for j in row]


def test_which_rows_are_cut_into_which_blocks():
  for length in (256, 1023):
    assert blocks_lib.blocks_of(length) is None
  for length in (1024, 4352, 18_464):
    assert blocks_lib.blocks_of(length) == blocks_lib.Blocks(256, 128)
  lengths = (5, 40, 96, 250, 520, 4000)
  assert [blocks_lib.blocks_of(n, 'blocks').keys for n in lengths] == [
    8,
    8,
    8,
    16,
    64,
    128,
  ]
  assert blocks_lib.blocks_of(4096, 'dense') is None
  kernel = blocks_lib.blocks_of(4096, 'pallas')
  assert kernel == blocks_lib.Blocks(512, 512, 'pallas')
  with pytest.raises(ValueError, match='square'):
    blocks_lib.Blocks(256, 128, 'pallas')
  with pytest.raises(ValueError, match='multiple'):
    blocks_lib.Blocks(12, 8)


def test_rows_on_a_gpu_are_gone_over_by_the_kernel(monkeypatch):
  assert blocks_lib.blocks_of(4096, head_dim=64).kernel == 'xla'

  def have(version):
    client = types.SimpleNamespace(platform_version=f'PJRT C API\n{version}')
    device = types.SimpleNamespace(platform='gpu', client=client)
    monkeypatch.setattr(jax, 'devices', lambda: [device])

  have('rocm 60300')
  assert blocks_lib.blocks_of(4096, head_dim=64).kernel == 'xla'
  have('cuda 12090')
  assert blocks_lib.blocks_of(4096, head_dim=64).kernel == 'pallas'
  assert blocks_lib.blocks_of(1000, head_dim=64) is None
  assert blocks_lib.blocks_of(4096, head_dim=32).kernel == 'xla'
  assert blocks_lib.blocks_of(4096, 'blocks', head_dim=64).kernel == 'xla'
