"""Rotary positions, and how released models stretch them to long contexts."""

import dataclasses
import math
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class RopeScaling:
  """How the rotary frequencies f_i = theta^(-2i/E) are changed.

  Attributes:
    kind: 'llama3': frequencies of fewer than `low_freq_factor` turns within
      the original context are divided by `factor`, those of more than
      `high_freq_factor` stay, and between the two the divided and the plain
      one are mixed linearly in the number of turns (Llama 3.1).
      'yarn': likewise between `beta_slow` and `beta_fast` turns, but linearly
      in the index i; and cos and sin are multiplied by `attention_factor`
      (arXiv 2309.00071, "NTK-by-parts"; Qwen2.5's long-context setting).
      'divisors': f_i is divided by divisors[i], as GGUF files say it.
    factor: ratio of the new context's length to the original one's.
    original_max_positions: length of the context of pretraining [tokens].
    low_freq_factor: number of turns below which 'llama3' divides.
    high_freq_factor: number of turns above which 'llama3' leaves a frequency.
    beta_fast: number of turns above which 'yarn' leaves a frequency.
    beta_slow: number of turns below which 'yarn' divides.
    attention_factor: factor of cos and sin with 'yarn'; None for its paper's
      0.1 ln(factor) + 1.
    divisors: the E/2 divisors of 'divisors'.
  """

  kind: Literal['llama3', 'yarn', 'divisors']
  factor: float = 1.0
  original_max_positions: int = 0
  low_freq_factor: float = 1.0
  high_freq_factor: float = 4.0
  beta_fast: float = 32.0
  beta_slow: float = 1.0
  attention_factor: float | None = None
  divisors: tuple[float, ...] = ()

  def __post_init__(self):
    object.__setattr__(self, 'divisors', tuple(self.divisors))
    if self.kind not in ('llama3', 'yarn', 'divisors'):
      raise ValueError(f'rope_scaling: unknown kind {self.kind!r}')
    if self.kind == 'divisors':
      if not all(d > 0 for d in self.divisors):
        raise ValueError(f'rope_scaling: divisors must be > 0: {self.divisors}')
    elif self.factor < 1 or self.original_max_positions < 1:
      raise ValueError(
        f'rope_scaling needs factor >= 1 and original_max_positions >= 1: {self}'
      )
    if not self.low_freq_factor < self.high_freq_factor:
      raise ValueError(
        f'rope_scaling: low_freq_factor must be below high_freq_factor: {self}'
      )
    if not 0 < self.beta_slow < self.beta_fast:
      raise ValueError(f'rope_scaling: beta_slow must be below beta_fast: {self}')


def scaled_frequencies(
  theta: float, head_dim: int, scaling: RopeScaling
) -> tuple[np.ndarray, float]:
  """Returns float64[E/2] frequencies [radians a token] and cos, sin's factor.

  Args:
    theta: the base.
    head_dim: E.
    scaling: scaling of the plain frequencies.

  Raises:
    ValueError: there are not E/2 divisors.
  """
  index = np.arange(head_dim // 2, dtype=np.float64)
  plain = theta ** (-2.0 * index / head_dim)
  if scaling.kind == 'divisors':
    if len(scaling.divisors) != len(plain):
      raise ValueError(
        f'rope_scaling has {len(scaling.divisors)} divisors, head_dim'
        f' {head_dim} needs {len(plain)}'
      )
    return plain / np.array(scaling.divisors), 1.0
  stretched = plain / scaling.factor
  context = scaling.original_max_positions
  if scaling.kind == 'llama3':
    turns = context * plain / (2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    keep = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return keep * plain + (1 - keep) * stretched, 1.0

  def index_of(turns):
    """The (fractional) index whose frequency makes so many turns."""
    return head_dim * math.log(context / (2 * math.pi * turns)) / (2 * math.log(theta))

  first = max(math.floor(index_of(scaling.beta_fast)), 0)
  last = min(math.ceil(index_of(scaling.beta_slow)), head_dim - 1)
  # Where both are one index, the step is as steep as released code has it.
  keep = 1 - np.clip((index - first) / max(last - first, 1e-3), 0.0, 1.0)
  factor = scaling.attention_factor
  if factor is None:
    factor = 0.1 * math.log(scaling.factor) + 1.0
  return keep * plain + (1 - keep) * stretched, factor


def tables(
  theta: float, head_dim: int, scaling: RopeScaling | None, positions: Array
) -> tuple[Array, Array]:
  """Returns float32 (cos, sin)[B, T, 1, E/2] of position * frequency.

  Args:
    theta: the base.
    head_dim: E.
    scaling: scaling of the frequencies, or None.
    positions: int32[B, T].
  """
  factor = 1.0
  if scaling is None:
    half = head_dim // 2
    exponent = jnp.arange(half, dtype=jnp.float32) * (-2.0 / head_dim)
    frequency = jnp.power(jnp.float32(theta), exponent)
  else:
    scaled, factor = scaled_frequencies(theta, head_dim, scaling)
    frequency = jnp.asarray(scaled, jnp.float32)
  angle = positions.astype(jnp.float32)[:, :, None, None] * frequency
  if factor == 1.0:
    return jnp.cos(angle), jnp.sin(angle)
  return jnp.cos(angle) * factor, jnp.sin(angle) * factor


def rotate(x: Array, table: tuple[Array, Array]) -> Array:
  """Rotates the pairs (x[i], x[i + E/2]) of x[B, T, heads, E]."""
  cos, sin = table
  first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  y = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
  return y.astype(x.dtype)
