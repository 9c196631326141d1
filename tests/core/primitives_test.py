"""Hand-written gradients against automatic differentiation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agentflow_jax.core import primitives

_EPS = 1e-3


def _gradients(f, *arrays):
  """Gradients of sum(f(*arrays) * w), for random w."""
  w = jax.random.normal(jax.random.key(9), jax.eval_shape(f, *arrays).shape)
  return jax.jit(
    jax.grad(
      lambda *a: jnp.sum(f(*a).astype(jnp.float32) * w),
      argnums=tuple(range(len(arrays))),
    )
  )(*arrays)


def _assert_near(got, expected, tolerance):
  for x, y in zip(got, expected, strict=True):
    assert x.dtype == y.dtype
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    assert np.linalg.norm(x - y) <= tolerance * np.linalg.norm(y)


@pytest.mark.parametrize('dtype, bound', [('float32', 1e-6), ('bfloat16', 0.01)])
def test_the_gradients_of_rms_norm(dtype, bound):
  x = 3 * jax.random.normal(jax.random.key(0), (2, 5, 16))
  scale = jax.random.normal(jax.random.key(1), (16,))

  def plain(x, scale):
    mean_square = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
    return x / jnp.sqrt(mean_square + _EPS) * scale

  def ours(x, scale):
    return primitives.rms_norm(dtype, _EPS, x.astype(dtype), scale)

  np.testing.assert_allclose(
    ours(x, scale).astype(np.float32), plain(x, scale), rtol=2 * bound, atol=1e-6
  )
  _assert_near(_gradients(ours, x, scale), _gradients(plain, x, scale), bound)


@pytest.mark.parametrize(
  'equation, shape, kernel',
  [
    ('btd,df->btf', (2, 5, 16), (16, 32)),
    ('btf,fd->btd', (2, 5, 32), (32, 16)),
    ('btd,dhe->bthe', (2, 5, 16), (16, 4, 8)),
    ('bthe,hed->btd', (2, 5, 4, 8), (4, 8, 16)),
  ],
)
@pytest.mark.parametrize('dtype, bound', [('float32', 1e-6), ('bfloat16', 0.01)])
def test_the_gradients_of_a_product(equation, shape, kernel, dtype, bound):
  x = jax.random.normal(jax.random.key(0), shape)
  kernel = jax.random.normal(jax.random.key(1), kernel)
  got = _gradients(
    lambda x, k: primitives.project(dtype, equation, x.astype(dtype), k), x, kernel
  )
  expected = _gradients(
    lambda x, k: jnp.einsum(equation, x, k, precision='highest'), x, kernel
  )
  _assert_near(got, expected, bound)


def test_a_bfloat16_kernel_gradient_is_summed_in_float32():
  x = jnp.ones((1, 3001, 1), jnp.bfloat16)
  (d_kernel,) = jax.grad(
    lambda k: (
      primitives.project('bfloat16', 'btd,df->btf', x, k).astype(jnp.float32).sum()
    ),
    argnums=(0,),
  )(jnp.ones((1, 1)))
  assert d_kernel.item() == 3001  # bfloat16 knows no such number.


@pytest.mark.parametrize('mode', ['fill', 'clip'])
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_the_gradient_of_a_row_that_is_read_often_is_its_whole_sum(dtype, mode):
  table = jnp.arange(8, dtype=dtype).reshape(4, 2)
  ids = jnp.array([[0] * 1000 + [2], [0] * 999 + [2, 3]])
  rows, pull = jax.vjp(lambda table: primitives.take_rows(table, ids, mode), table)
  np.testing.assert_array_equal(rows, np.asarray(table)[ids])
  (gradient,) = pull(jnp.full(rows.shape, 0.5, dtype))
  assert gradient.dtype == dtype
  # 1,999 and 2 halves, and one; bfloat16 rounds 999.5 to 1000. Added up in
  # bfloat16 the first would stop at 128.
  first = 999.5 if dtype == 'float32' else 1000
  np.testing.assert_array_equal(
    np.asarray(gradient, np.float32)[:, 0], [first, 0, 1, 0.5]
  )


def test_an_id_outside_the_table_reads_what_the_mode_says():
  table = jnp.array([[1.0], [2.0]], jnp.bfloat16)
  read = lambda mode: np.asarray(
    primitives.take_rows(table, jnp.array([1, 2, 7]), mode), np.float32
  )[:, 0]
  np.testing.assert_array_equal(read('fill'), [2, np.nan, np.nan])
  np.testing.assert_array_equal(read('clip'), [2, 2, 2])
