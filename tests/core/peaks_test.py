"""Where the peak of a device comes from."""

import types

import jax
import pytest

from agentflow_jax.core import peaks, published


def _devices(kind, platform='tpu'):
  return [types.SimpleNamespace(device_kind=kind, platform=platform)] * 4


@pytest.mark.parametrize(
  ('kind', 'name'),
  [
    ('TPU v5', 'v5p'),
    ('TPU v5 lite', 'v5e'),
    ('TPU v6 lite', 'v6e'),
    ('NVIDIA H100 80GB HBM3', 'h100'),
    ('NVIDIA H200', 'h200'),
  ],
)
def test_a_known_chip_has_the_published_throughput(kind, name):
  found = peaks.of_devices(_devices(kind), 'bfloat16')
  assert found == peaks.Peak(
    published.CHIPS[name].flops, f'nominal: dense bfloat16 of {name}'
  )


def test_what_the_user_states_counts():
  found = peaks.of_devices(_devices('TPU v5'), 'bfloat16', 5e12)
  assert found == peaks.Peak(5e12, 'given by metrics.peak_flops')


def test_elsewhere_a_product_is_measured_and_shared_by_virtual_devices(monkeypatch):
  asked = []
  monkeypatch.setattr(
    peaks, '_measured_once', lambda dtype: asked.append(dtype) or 16e9
  )
  found = peaks.of_devices(jax.devices(), 'float32')
  assert asked == ['float32'] and jax.local_device_count() == 8
  assert found.flops == 2e9 and found.source.startswith('measured: fastest float32')
  found = peaks.of_devices(_devices('NVIDIA X', 'gpu'), 'bfloat16')
  assert found.flops == 16e9


def test_a_measured_product_has_a_throughput():
  assert peaks.measured('float32', (64,)) > 0
