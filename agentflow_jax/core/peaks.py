"""The peak of a device that the utilisation of a run is a share of."""

import dataclasses
import functools
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from agentflow_jax.core import published

# Widths of the products that are measured: large enough that a launch counts little,
# and on CPU small enough that a run may measure them at start.
_CPU_WIDTHS, _WIDTHS = (512, 1024), (4096, 8192)


@dataclasses.dataclass(frozen=True)
class Peak:
  """Throughput of one device.

  Attributes:
    flops: throughput [FLOP/s].
    source: origin of the number, in words.
  """

  flops: float
  source: str


def of_devices(
  devices: Sequence[jax.Device],  # pyright: ignore[reportInvalidTypeForm]  # jax assigns the class.
  dtype: str,
  given: float = 0.0,
) -> Peak:
  """Returns the peak of one of the devices that a run trains on.

  Args:
    devices: devices of the run, all of one kind.
    dtype: dtype that the network computes in.
    given: throughput that the user states [FLOP/s]; 0 for the published dense
      bfloat16 throughput of the chip, or for the fastest product that is measured
      here where core.published does not know the chip.
  """
  if given:
    return Peak(given, 'given by metrics.peak_flops')
  kind = devices[0].device_kind
  for name, chip in published.CHIPS.items():
    if kind in chip.kinds:
      return Peak(chip.flops, f'nominal: dense bfloat16 of {name}')
  flops = _measured_once(dtype)
  if devices[0].platform == 'cpu':
    # Virtual devices of a host are the same cores.
    flops /= jax.local_device_count()
  return Peak(flops, f'measured: fastest {dtype} product on {kind} at start')


def measured(dtype: str, widths: Sequence[int] = ()) -> float:
  """Returns the most FLOP/s that a product reached on this process's first device.

  Args:
    dtype: dtype of the factors; sums are float32.
    widths: widths n of the products n x n x n that are tried; empty for a choice by
      the kind of the device.
  """
  if not widths:
    widths = _CPU_WIDTHS if jax.default_backend() == 'cpu' else _WIDTHS
  product = jax.jit(
    lambda a: jnp.matmul(
      a,
      a,
      precision='highest' if dtype == 'float32' else None,
      preferred_element_type=jnp.float32,
    )
  )
  best = 0.0
  for n in widths:
    a = jnp.ones((n, n), dtype)
    jax.block_until_ready(product(a))
    for _ in range(3):
      start = time.perf_counter()
      jax.block_until_ready(product(a))
      best = max(best, 2 * n**3 / (time.perf_counter() - start))
  return best


_measured_once = functools.cache(measured)
