"""Hands parameters from a training mesh to the samplers of its processes.

Training splits parameters over the whole mesh, and every process samples on its
own devices alone. So each step's parameters go from the one layout to the other:
one jitted program over the mesh, after which a process finds all it needs on its
own devices. Nothing passes through a host.

Where activations are bfloat16, so is what is handed over, but for the scales of
norms: every product rounds its kernel to that anyway, so no bit of a sample
changes, and a sampler reads half as much.
"""

from typing import Any

import jax
from jax import sharding as jax_sharding
import numpy as np

from agentflow_jax.core import launches
from agentflow_jax.core import model
from agentflow_jax.core import sharding

_TENSOR = 'tensor'


class Handover:
  """params over a mesh -> params over this process's devices.

  Every process of the mesh has to call it, in the same order as its other
  programs over the mesh.

  Attributes:
    local: a tree of this process's shardings, as the result has it.
  """

  def __init__(
      self, config: model.ModelConfig, mesh: jax_sharding.Mesh, split: bool
  ):
    """Compiles nothing yet.

    Args:
      config: the network.
      mesh: from sharding.make_mesh.
      split: whether a process's devices share the parameters (heads, MLP and
        vocabulary, where they divide); otherwise its first one has them all.

    Raises:
      ValueError: a process's devices are no box of the mesh.
    """
    inner = sharding.process_box(mesh.devices, jax.process_index())
    if inner is None:
      raise ValueError(
          'the devices of a process have to be a box of the mesh'
          f' {dict(mesh.shape)}: make mesh.tensor, or mesh.tensor x mesh.fsdp, a'
          ' multiple or a divisor of the devices of a process'
      )
    names, shape = [], []
    for axis, size in zip(sharding.MESH_AXES, inner, strict=True):
      names += [f'{axis}_over_processes', axis]
      shape += [mesh.shape[axis] // size, size]
    # The same devices in the same order, so one program can have both layouts.
    whole = jax_sharding.Mesh(mesh.devices.reshape(shape), names)
    mine = [d for d in mesh.devices.flat if d.process_index == jax.process_index()]
    if not split:
      mine = mine[:1]
    self._mesh = jax_sharding.Mesh(np.array(mine), (_TENSOR,))
    shapes = jax.eval_shape(
        lambda: model.init_params(config, jax.random.key(0))
    )
    is_spec = lambda x: isinstance(x, jax_sharding.PartitionSpec)

    def spec(axes):
      def leaf(logical, shape):
        return jax_sharding.PartitionSpec(*(
            axes
            if sharding.PARAM_RULES[name] == _TENSOR and not size % len(mine)
            else None
            for name, size in zip(logical, shape.shape, strict=True)
        ))
      return jax.tree.map(
          leaf, model.logical_axes(config), shapes, is_leaf=is_spec
      )

    def placed(mesh, axes):
      return jax.tree.map(
          lambda s: jax_sharding.NamedSharding(mesh, s), spec(axes),
          is_leaf=is_spec,
      )

    self.local = placed(self._mesh, _TENSOR)

    def rounded(path, x):
      if path[-1].key == 'scale' or config.dtype != 'bfloat16':
        return x
      return x.astype(config.dtype)

    self._laid_out = jax.jit(
        lambda tree: jax.tree_util.tree_map_with_path(rounded, tree),
        out_shardings=placed(whole, tuple(names[1::2]) if split else None),
    )

  def lower(self, params: Any) -> Any:
    """Returns the lowered program, for parameters that need not be there."""
    return self._laid_out.lower(params)

  def shapes(self, params: Any) -> Any:
    """Returns what a call returns, as jax.ShapeDtypeStruct."""
    return jax.tree.map(
        lambda x, to: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=to),
        jax.eval_shape(self._laid_out, params), self.local,
    )

  def __call__(self, params: Any) -> Any:
    """Returns the same values over this process's devices, in new arrays.

    Args:
      params: as sharding.param_shardings lays them out over the mesh.
    """
    mine = set(self._mesh.devices.flat)

    def local(x, to):
      shards = [s.data for s in x.addressable_shards if s.device in mine]
      return jax.make_array_from_single_device_arrays(x.shape, to, shards)

    with launches.in_turn(params):
      laid_out = self._laid_out(params)
    return jax.tree.map(local, laid_out, self.local)
