"""Mesh axes data / fsdp / tensor, and the one table that maps names to them.

Layers name their axes logically ('embed', 'heads', ...); only the tables below
know the mesh. Axes are of the Auto type: XLA propagates shardings from the
parameters, the batch, and the few activations that the model pins.
"""

import collections
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import sharding as jax_sharding
from jax.experimental import mesh_utils

from agentflow_jax.core import model
from agentflow_jax.core import primitives

PartitionSpec = jax_sharding.PartitionSpec
NamedSharding = jax_sharding.NamedSharding

MESH_AXES = ('data', 'fsdp', 'tensor')

# Logical axis of a parameter -> mesh axis that shards it, or None.
PARAM_RULES: dict[str, str | None] = {
  'layers': None,
  'vocab': 'tensor',
  'embed': 'fsdp',
  'heads': 'tensor',
  'kv_heads': 'tensor',
  'head_dim': None,
  'mlp': 'tensor',
  'norm': None,
  'lora': None,
}

# Logical axis of an activation -> mesh axes.
ACTIVATION_RULES: dict[str, str | tuple[str, ...] | None] = {
  'batch': ('data', 'fsdp'),
  'length': None,
  # Tokens between layers, where nothing else is left for 'tensor' to split
  # (sequence parallelism, arXiv 2205.05198): a row of 65,536 tokens then costs
  # each device its part of what the backward pass keeps.
  'stream': 'tensor',
  'heads': 'tensor',
  'mlp': 'tensor',
}


def make_mesh(
  data: int = -1, fsdp: int = 1, tensor: int = 1, devices: Sequence[Any] | None = None
) -> jax_sharding.Mesh:
  """Returns a mesh of all given devices; one axis may be -1, which fills.

  Args:
    data: devices along which rows are split and parameters are replicated.
    fsdp: devices along which rows and parameters are split.
    tensor: devices along which heads, MLP and vocabulary are split.
    devices: the devices; by default all of the job.

  Raises:
    ValueError: the axes do not multiply to the number of devices.
  """
  devices = list(jax.devices() if devices is None else devices)
  sizes = [data, fsdp, tensor]
  asked = dict(zip(MESH_AXES, sizes, strict=True))
  if any(size < 1 and size != -1 for size in sizes) or sizes.count(-1) > 1:
    raise ValueError(f'mesh axes must be positive, at most one -1: {asked}')
  if -1 in sizes:
    known = math.prod(size for size in sizes if size != -1)
    sizes[sizes.index(-1)] = len(devices) // known
  if math.prod(sizes) != len(devices):
    raise ValueError(f'mesh {asked} does not fit {len(devices)} devices')
  if devices[0].platform == 'tpu':
    return _of_tpus(sizes, devices)
  return jax.make_mesh(
    tuple(sizes),
    MESH_AXES,
    axis_types=(jax_sharding.AxisType.Auto,) * len(MESH_AXES),
    devices=devices,
  )


def _of_tpus(sizes, devices) -> jax_sharding.Mesh:
  """Returns a mesh in which each process has a box, where that can be.

  Its data axis alone crosses the network between slices.
  """
  data, fsdp, tensor = sizes
  slices = len({getattr(d, 'slice_index', 0) for d in devices})
  if data % slices:
    raise ValueError(
      f'mesh.data {data} must be a multiple of the {slices} slices: fsdp and'
      ' tensor stay within one'
    )
  by_slice = collections.defaultdict(list)
  for device in devices:
    by_slice[getattr(device, 'slice_index', 0)].append(device)
  shape = (data // slices, fsdp, tensor)
  return jax_sharding.Mesh(
    np.concatenate([_of_slice(shape, by_slice[i]) for i in sorted(by_slice)]),
    MESH_AXES,
    axis_types=(jax_sharding.AxisType.Auto,) * len(MESH_AXES),
  )


def _of_slice(shape, devices) -> np.ndarray:
  """Lays a slice's devices out along its torus; process by process if need be."""
  try:
    made = mesh_utils.create_device_mesh(shape, devices, contiguous_submeshes=True)
    if process_box(made, devices[0].process_index) is not None:
      return made
  except (ValueError, NotImplementedError):
    pass
  devices = sorted(devices, key=lambda d: (d.process_index, d.id))
  return np.array(devices).reshape(shape)


def process_box(devices: np.ndarray, process: int) -> tuple[int, ...] | None:
  """Returns how many devices a process has along each axis of a mesh.

  Args:
    devices: devices of the mesh, in three axes.
    process: index of the process.

  Returns:
    None where its devices, or those of another process, are no box at a multiple
    of its size.
  """
  owners = np.vectorize(lambda d: d.process_index, otypes=[int])(devices)
  places = np.argwhere(owners == process)
  inner = tuple(len(set(column)) for column in places.T)
  sizes = list(zip(owners.shape, inner, strict=True))
  if math.prod(inner) != len(places) or any(size % i for size, i in sizes):
    return None
  boxes = owners.reshape([n for size, i in sizes for n in (size // i, i)])
  # Every box of that size, at a multiple of it, has one owner.
  same = (boxes.max((1, 3, 5)) == boxes.min((1, 3, 5))).all()
  return inner if same else None


def replicated(mesh: jax_sharding.Mesh) -> NamedSharding:
  """Returns the sharding of a value that every device holds whole."""
  return NamedSharding(mesh, PartitionSpec())


def row_shards(mesh: jax_sharding.Mesh) -> int:
  """Returns into how many parts the rows of a batch are split."""
  return mesh.shape['data'] * mesh.shape['fsdp']


def batch_sharding(mesh: jax_sharding.Mesh, row_axis: int) -> NamedSharding:
  """Returns the sharding of an array whose axis `row_axis` counts rows."""
  return NamedSharding(
    mesh, PartitionSpec(*[None] * row_axis, ACTIVATION_RULES['batch'])
  )


def check_rows(mesh: jax_sharding.Mesh, rows: int) -> None:
  """Raises ValueError unless a micro-batch's rows divide over the mesh."""
  shards = row_shards(mesh)
  if rows % shards:
    raise ValueError(
      f'{rows} rows a micro-batch do not divide over data x fsdp = {shards}'
    )


def param_shardings(config: model.ModelConfig, mesh: jax_sharding.Mesh) -> Any:
  """Returns init_params' tree with a NamedSharding a leaf.

  Args:
    config: the network.
    mesh: mesh that make_mesh returned.

  Raises:
    ValueError: an axis of a parameter does not divide over its mesh axis.
  """
  shapes = model.param_shapes(config)

  def leaf(path, logical, shape):
    spec = [PARAM_RULES[name] for name in logical]
    for name, mesh_axis, size in zip(logical, spec, shape.shape, strict=True):
      if mesh_axis is not None and size % mesh.shape[mesh_axis]:
        raise ValueError(
          f'{jax.tree_util.keystr(path)}: axis {name!r} of size {size} does '
          f'not divide over {mesh_axis}={mesh.shape[mesh_axis]}'
        )
    return NamedSharding(mesh, PartitionSpec(*spec))

  return jax.tree_util.tree_map_with_path(
    leaf,
    model.logical_axes(config),
    shapes,
    is_leaf=lambda x: isinstance(x, PartitionSpec),
  )


class _OnMesh(model.Constrain):
  """Pins activations by ACTIVATION_RULES."""

  def __call__(self, x: jax.Array, axes: tuple[str | None, ...]) -> jax.Array:
    rules = ACTIVATION_RULES | {'batch': self.rows}
    spec = [None if name is None else rules[name] for name in axes]
    assert self.mesh is not None
    for i, name in enumerate(axes):
      if name == 'stream' and x.shape[i] % self.mesh.shape['tensor']:
        spec[i] = None
    return jax.lax.with_sharding_constraint(
      x, NamedSharding(self.mesh, PartitionSpec(*spec))
    )


def make_constrain(mesh: jax_sharding.Mesh) -> model.Constrain:
  """Returns what pins activations to the mesh, for model.hidden_states."""
  return _OnMesh(mesh)


class _WithinData(_OnMesh):
  """The same within a shard_map over 'data'.

  XLA's partitioner (JAX 0.10.2) aborts at gathers of what the other axes split,
  so these are written out.
  """

  def _mapped(self, f, takes):
    rows = PartitionSpec(self.rows)
    return jax.shard_map(
      f,
      mesh=self.mesh,
      in_specs=(takes, rows),
      out_specs=rows,
      axis_names={*self.rows, 'tensor'},
      check_vma=False,
    )

  def lookup(self, table, ids):
    size = table.shape[0]

    def local(table, ids):
      table = jax.lax.all_gather(table, 'fsdp', axis=1, tiled=True)
      at = ids - jax.lax.axis_index('tensor') * len(table)
      is_here = (at >= 0) & (at < len(table))
      found = primitives.take_rows(table, at, 'clip')
      found = jax.lax.psum(jnp.where(is_here[..., None], found, 0), 'tensor')
      return jnp.where(((ids >= 0) & (ids < size))[..., None], found, jnp.nan)

    return self._mapped(local, PartitionSpec('tensor', 'fsdp'))(table, ids)

  def pick(self, x, places):
    local = super().pick
    return self._mapped(local, PartitionSpec(self.rows))(x, places)


def constrain_within_data() -> model.Constrain:
  """Returns what pins activations to the other axes, in a shard_map over 'data'."""
  return _WithinData(jax.sharding.get_abstract_mesh(), ('fsdp',))


def put(value: Any, sharding: jax_sharding.Sharding) -> jax.Array:
  """Puts a value that every process has on devices of any of them."""
  value = np.asarray(value)
  # Cut on the host: device_put would compile a program that cuts on a device.
  return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])


def put_batch(batch: Any, mesh: jax_sharding.Mesh, row_axis: int = 1) -> Any:
  """Puts host arrays on the mesh, split over rows; scalars on every device.

  Every process has the whole batch, and sends its own devices their rows.
  """

  def put_one(x):
    if np.ndim(x) <= row_axis:
      return put(x, replicated(mesh))
    check_rows(mesh, x.shape[row_axis])
    return put(x, batch_sharding(mesh, row_axis))

  return jax.tree.map(put_one, batch)
