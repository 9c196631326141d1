"""Chips to compile for, whether they are there or not."""

import dataclasses
import os
from collections.abc import MutableMapping, Sequence
from typing import Any

from agentflow_jax.config import schema
from agentflow_jax.core import published

_STAND_INS = '--xla_force_host_platform_device_count'


@dataclasses.dataclass(frozen=True)
class Topology:
  """What --topology names.

  Attributes:
    platform: 'tpu', 'gpu' or 'cpu'.
    kind: kind of chip, a name in core.published.CHIPS.
    shape: shape as the TPU runtime names it; '' elsewhere.
    count: number of chips; 0 for TPUs, whose runtime says.
  """

  platform: str
  kind: str
  shape: str
  count: int

  @property
  def chip(self) -> published.Chip:
    return published.CHIPS[self.kind]

  @property
  def is_estimate(self) -> bool:
    """Whether programs are compiled for something else in its stead."""
    return self.platform == 'gpu'


def parse(text: str) -> Topology:
  """Parses 'v5p:4x4x4', 'gpu:h100:8' or 'cpu:8'.

  Raises:
    ConfigError: none of these.
  """
  kind, _, rest = text.partition(':')
  platform = 'tpu'
  if kind in ('gpu', 'cpu'):
    platform = kind
    if kind == 'gpu':
      kind, _, rest = rest.partition(':')
    most = 8 if platform == 'gpu' else 1 << 20  # Of one node, one process.
    if kind in published.CHIPS and rest.isdigit() and 1 <= int(rest) <= most:
      return Topology(platform, kind, '', int(rest))
  elif kind in ('v5p', 'v5e', 'v6e') and all(
    n.isdigit() and int(n) for n in rest.split('x')
  ):
    return Topology(platform, kind, rest, 0)
  raise schema.ConfigError(
    f'--topology={text}: give a TPU such as v5p:4x4x4, v5e:8x8 or v6e:4x4;'
    ' gpu:h100:8 or gpu:h200:8 (one node) for an estimate; or cpu:8'
  )


def host_of(topology: Topology, chips: int) -> Topology:
  """Returns what one host of a TPU topology is, alone.

  A compiler takes the chips of a program for a topology of their own.

  Args:
    topology: topology of a slice.
    chips: number of chips of the host.

  Raises:
    ConfigError: no host has so many.
  """
  shapes = {1: '1x1', 4: '2x2', 8: '2x4'}
  if chips not in shapes:
    raise schema.ConfigError(
      f'--topology: a host of {chips} chips is none of {sorted(shapes)}'
    )
  shape = shapes[chips] + ('x1' if topology.kind == 'v5p' else '')
  return dataclasses.replace(topology, shape=shape)


def prepare(topology: Topology, environ: MutableMapping[str, str] = os.environ) -> None:
  """Sets what has to be set before jax touches a device: none is needed."""
  import jax

  # Both: the first is read when jax is imported.
  environ['JAX_PLATFORMS'] = 'cpu'
  jax.config.update('jax_platforms', 'cpu')
  if topology.platform == 'tpu':  # libtpu must not look for a TPU.
    environ.setdefault('TPU_SKIP_MDS_QUERY', '1')
    environ.setdefault('TPU_WORKER_HOSTNAMES', 'localhost')
    environ.setdefault('TPU_ACCELERATOR_TYPE', 'none')
    environ.setdefault('TPU_HOST_BOUNDS', '1,1,1')  # Else a warning of libtpu.
    # No TPU is opened, so that several may compile at the same time.
    environ.setdefault('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')
    return
  flags = [
    f for f in environ.get('XLA_FLAGS', '').split() if not f.startswith(_STAND_INS)
  ]
  environ['XLA_FLAGS'] = ' '.join([*flags, f'{_STAND_INS}={topology.count}'])


def devices(topology: Topology, slices: int = 1) -> Sequence[Any]:
  """Returns devices to compile for.

  Args:
    topology: topology of a slice.
    slices: number of TPU slices of that shape.

  Raises:
    ConfigError: there is no such topology, or no compiler for it.
  """
  import jax
  from jax.experimental import topologies

  if topology.platform != 'tpu':
    if slices > 1:
      raise schema.ConfigError('--num_slices is of TPU topologies')
    found = jax.devices('cpu')
    if len(found) < topology.count:
      raise schema.ConfigError(
        f'--topology: {topology.count} virtual devices are wanted and'
        f' {len(found)} are there: jax was up already'
      )
    return found[: topology.count]
  name = f'{topology.kind}:{topology.shape}'
  more = {'num_slices': slices} if slices > 1 else {}
  try:
    return topologies.get_topology_desc(
      topology_name=name, platform='tpu', **more
    ).devices
  except (RuntimeError, ValueError, TypeError) as e:
    hint = ''
    if 'not installed' in str(e):
      hint = " (the compiler is the extra `preflight`: pip install 'jax[tpu]')"
    raise schema.ConfigError(f'--topology={name}: {e}{hint}') from e
