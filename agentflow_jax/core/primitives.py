"""Products and norms, with gradients written by hand where XLA's are slow."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

Array = jax.Array
# A field of a program's input: a jax.Array in the program, and a np.ndarray where the
# host fills it. The union of both would be right in neither.
HostArray = Any


def precision_of(dtype: str) -> jax.lax.Precision | None:
  """Returns that of a product of activations: the highest in 'float32'."""
  return jax.lax.Precision.HIGHEST if dtype == 'float32' else None


def rounded(x: Array, dtype: Any) -> Array:
  """Returns float32 x at the nearest values of a dtype, ties to even.

  A later cast to that dtype changes no value. The cast alone would not be
  enough where its result is read as float32 again: XLA may leave out a cast
  there and back.

  Args:
    x: float32[...].
    dtype: floating-point dtype of the result's values, or its name.
  """
  info = jnp.finfo(dtype)
  return jax.lax.reduce_precision(x, info.nexp, info.nmant)


def float32_product(dtype: str, equation: str, a: Array, b: Array) -> Array:
  """Returns einsum(a, b) of activations, summed and returned in float32.

  Args:
    dtype: dtype of the activations; for 'float32' the product has the highest
      precision.
    equation: equation of the einsum.
    a, b: the activations.
  """

  def product(a, b):
    return jnp.einsum(
      equation, a, b, precision=precision_of(dtype), preferred_element_type=jnp.float32
    )

  if dtype == 'float32':
    return product(a, b)
  # XLA's CPU has no such product of bfloat16 operands; in float32 it is exact.
  return jax.lax.platform_dependent(
    a,
    b,
    cpu=lambda a, b: product(a.astype(jnp.float32), b.astype(jnp.float32)),
    default=product,
  )


def _projected(dtype, equation, x, kernel) -> Array:
  return jnp.einsum(equation, x, kernel.astype(dtype), precision=precision_of(dtype))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def project(dtype: str, equation: str, x: Array, kernel: Array) -> Array:
  """Returns einsum(x, kernel), computed and returned in `dtype`.

  Args:
    dtype: dtype of the activations.
    equation: equation of the einsum; no axis is summed within one operand.
    x: dtype[...].
    kernel: kernel of any dtype; its gradient is summed in float32, and has its dtype.
  """
  return _projected(dtype, equation, x, kernel)


def _project_forward(dtype, equation, x, kernel):
  # Not `project`: remat 'dots' keeps the products that it can see.
  return _projected(dtype, equation, x, kernel), (x, kernel)


def _project_backward(dtype, equation, saved, d_y):
  x, kernel = saved
  operands, y_axes = equation.split('->')
  x_axes, kernel_axes = operands.split(',')
  d_x = _projected(dtype, f'{y_axes},{kernel_axes}->{x_axes}', d_y, kernel)
  # Both are read by columns; XLA's CPU transposes the first of the two, and
  # does over whatever made it, element by element: so the smaller one comes
  # first (measured: the whole backward pass takes half the time).
  pairs = [(x_axes, x), (y_axes, d_y)]
  (axes, first), (other_axes, second) = sorted(pairs, key=lambda p: p[1].size)
  d_kernel = float32_product(
    dtype, f'{axes},{other_axes}->{kernel_axes}', first, second
  )
  return d_x, d_kernel.astype(kernel.dtype)


project.defvjp(_project_forward, _project_backward)


def take_rows(table: Array, ids: Array, mode: str = 'fill') -> Array:
  """Returns table[ids]: [V, D], [...] to [..., D].

  The gradient of a row is summed over the ids in float32, also for a bfloat16
  table: in bfloat16 a sum of ones would not get beyond 256.

  Args:
    table: [V, D].
    ids: int32[...].
    mode: 'fill' gives NaN where an id is outside, 'clip' the nearest row.
  """
  if table.dtype == jnp.float32:
    return jnp.take(table, ids, axis=0, mode=mode)
  if mode == 'clip':
    ids = jnp.clip(ids, 0, table.shape[0] - 1)
  return _taken(table.shape[0], table.dtype.name, table, ids)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _taken(size, dtype, table, ids):
  del size, dtype  # Of the table, for the backward pass.
  return jnp.take(table, ids, axis=0, mode='fill')


def _taken_forward(size, dtype, table, ids):
  return _taken(size, dtype, table, ids), ids


def _taken_backward(size, dtype, ids, d_rows):
  d_table = jnp.zeros((size, d_rows.shape[-1]), jnp.float32)
  d_table = d_table.at[ids].add(d_rows.astype(jnp.float32), mode='drop')
  return d_table.astype(dtype), None


_taken.defvjp(_taken_forward, _taken_backward)


def _sum_last(x: Array) -> Array:
  # A product with ones, not a sum: XLA's CPU sums a short axis in an order that
  # depends on the other axes, and sampler and trainer differ in those.
  return jnp.einsum(
    '...d,d->...',
    x,
    jnp.ones(x.shape[-1], jnp.float32),
    precision=jax.lax.Precision.HIGHEST,
  )[..., None]


def _rescaled(eps: float, x: Array) -> tuple[Array, Array]:
  """Returns x / sqrt(mean(x^2) + eps) and that factor, in float32."""
  x = x.astype(jnp.float32)
  mean_square = _sum_last(jnp.square(x)) / x.shape[-1]
  factor = jax.lax.rsqrt(mean_square + eps)
  return x * factor, factor


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def rms_norm(dtype: str, eps: float, x: Array, scale: Array) -> Array:
  """Returns x / sqrt(mean(x^2) + eps) * scale, computed in float32.

  Args:
    dtype: dtype of the result.
    eps: term that is added to the mean square.
    x: [..., D].
    scale: [D].
  """
  y, _ = _rescaled(eps, x)
  return (y * scale.astype(jnp.float32)).astype(dtype)


def _rms_norm_forward(dtype, eps, x, scale):
  return rms_norm(dtype, eps, x, scale), (x, scale)


def _rms_norm_backward(dtype, eps, saved, d_y):
  """With h = x f: dx = f (dh - h mean(dh h)), d scale = sum over tokens dy h."""
  del dtype  # That of d_y.
  x, scale = saved
  y, factor = _rescaled(eps, x)
  d_y = d_y.astype(jnp.float32)
  d_h = d_y * scale.astype(jnp.float32)
  d_x = factor * (d_h - y * _sum_last(d_h * y) / x.shape[-1])
  # A product with ones here, too: XLA's CPU sums over rows one by one. (Axes
  # apart: merged, they could not stay sharded as they are.)
  axes = 'abcefg'[: x.ndim - 1]
  d_scale = jnp.einsum(
    f'{axes},{axes}d->d',
    jnp.ones(x.shape[:-1], jnp.float32),
    d_y * y,
    precision=jax.lax.Precision.HIGHEST,
  )
  return d_x.astype(x.dtype), d_scale.astype(scale.dtype)


rms_norm.defvjp(_rms_norm_forward, _rms_norm_backward)
