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
      ours(x, scale).astype(np.float32), plain(x, scale), rtol=2 * bound,
      atol=1e-6,
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
      lambda x, k: primitives.project(dtype, equation, x.astype(dtype), k),
      x, kernel,
  )
  expected = _gradients(
      lambda x, k: jnp.einsum(equation, x, k, precision='highest'), x, kernel
  )
  _assert_near(got, expected, bound)


def test_a_bfloat16_kernel_gradient_is_summed_in_float32():
  x = jnp.ones((1, 3001, 1), jnp.bfloat16)
  (d_kernel,) = jax.grad(
      lambda k: primitives.project(
          'bfloat16', 'btd,df->btf', x, k
      ).astype(jnp.float32).sum(),
      argnums=(0,),
  )(jnp.ones((1, 1)))
  assert d_kernel.item() == 3001  # bfloat16 knows no such number.
