"""Low-rank adapters (LoRA, arXiv 2106.09685): W' = W + (alpha / rank) A B.

A layer adds A B to its kernel and then multiplies once, so what is trained is
exactly what `merge` hands to the sampler and writes to disk. That costs a
product of d_in x rank x d_out a layer, little where there are thousands of
tokens. The base W is never written: it is the reference policy and the frozen
modules, too.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from agentflow_jax.core import primitives

Array = jax.Array

# Names of the factors beside their 'kernel'.
A, B = 'lora_a', 'lora_b'
TARGETS = ('q', 'k', 'v', 'o', 'gate', 'up', 'down')


@dataclasses.dataclass(frozen=True)
class LoraConfig:
  """Which kernels have adapters.

  Attributes:
    rank: rank r of the adapters' factors; 0 trains the parameters themselves.
    alpha: numerator of the factor alpha / rank that the product A B is multiplied by.
    targets: names of the kernels with adapters, of q, k, v, o (attention) and gate,
      up, down (MLP).
  """

  rank: int = 0
  alpha: float = 16.0
  targets: tuple[str, ...] = TARGETS

  def __post_init__(self):
    if self.rank < 0:
      raise ValueError(f'rank must be >= 0: {self.rank}')
    if not 0 < self.alpha < float('inf'):
      raise ValueError(f'alpha must be positive and finite: {self.alpha}')
    unknown = sorted(set(self.targets) - set(TARGETS))
    if unknown or not self.targets:
      raise ValueError(f'targets must be of {TARGETS}: {self.targets}')

  def adapts(self, name: str) -> bool:
    """Returns whether the kernel of that name has an adapter."""
    return bool(self.rank) and name in self.targets


def merged(config: LoraConfig, kernel: Array, a: Array, b: Array) -> Array:
  """Returns float32 W + (alpha / rank) A B, rounded to the kernel's dtype.

  Gradients pass through the rounding.

  Args:
    config: alpha and rank.
    kernel: [*d_in, *d_out].
    a: float32[*d_in, rank].
    b: float32[rank, *d_out].
  """
  product = jnp.tensordot(a, b, 1, precision=jax.lax.Precision.HIGHEST)
  exact = kernel.astype(jnp.float32) + config.alpha / config.rank * product
  if kernel.dtype == jnp.float32:
    return exact
  rounded = primitives.rounded(exact, kernel.dtype)
  return exact + jax.lax.stop_gradient(rounded - exact)


def split(params: Mapping[str, Any]) -> tuple[Any, Any]:
  """Returns the tree without adapters, and the adapters' tree."""
  base, adapters = {}, {}
  for name, value in params.items():
    if name in (A, B):
      adapters[name] = value
    elif isinstance(value, Mapping):
      base[name], below = split(value)
      if below:
        adapters[name] = below
    else:
      base[name] = value
  return base, adapters


def join(base: Mapping[str, Any], adapters: Mapping[str, Any]) -> Any:
  """Returns the tree that `split` takes apart."""
  joined = dict(base)
  for name, value in adapters.items():
    joined[name] = join(base[name], value) if name in base else value
  return joined


def merge(config: LoraConfig, base: Any, adapters: Any) -> Any:
  """Returns the base's tree with every adapter added to its kernel.

  Args:
    config: alpha and rank.
    base: parameters without adapters; kernels [L, *d_in, *d_out].
    adapters: adapters, as `split` returns them.
  """

  def walk(base, adapters):
    if A not in adapters:
      return {
        name: walk(value, adapters[name]) if name in adapters else value
        for name, value in base.items()
      }
    kernel = base['kernel']
    # Layer by layer, as in training: a product of all rounds otherwise.
    whole = jax.lax.map(
      lambda layer: merged(config, *layer).astype(kernel.dtype),
      (kernel, adapters[A], adapters[B]),
    )
    return {**base, 'kernel': whole}

  return walk(base, adapters)


def distance(config: LoraConfig, base: Any, old: Any, new: Any) -> Array:
  """Returns the norm of merge(new) - merge(old), float32[].

  Args:
    config: alpha and rank.
    base: parameters without adapters; kernels [L, *d_in, *d_out].
    old, new: adapters, as `split` gives them.
  """

  def squares(layer):
    kernel, old, new = layer
    old, new = (
      primitives.rounded(merged(config, kernel, *x), kernel.dtype) for x in (old, new)
    )
    return jnp.sum(jnp.square(new - old))

  def walk(base, old, new):
    if A not in old:
      return sum(walk(base[name], old[name], new[name]) for name in old)
    # Layer by layer, so that no second copy of the kernels is needed.
    return jnp.sum(
      jax.lax.map(squares, (base['kernel'], (old[A], old[B]), (new[A], new[B])))
    )

  return jnp.sqrt(walk(base, old, new))
