"""Hands parameters from a training mesh to the samplers of its processes.

Training splits parameters over the whole mesh, and every process samples on its
own devices alone. So each step's parameters go from the one layout to the other:
one jitted program over the mesh, after which a process finds all it needs on its
own devices. Nothing passes through a host.

Where activations are bfloat16, so is what is handed over, but for the scales of
norms: every product rounds its kernel to that anyway, so no bit of a sample
changes, and a sampler reads half as much.
"""

import functools
import math
from typing import Any

import jax
from jax import sharding as jax_sharding
import numpy as np

from agentflow_jax.core import launches
from agentflow_jax.core import model
from agentflow_jax.core import sharding

# Of a process's own mesh.
LOCAL_AXES = ('kv_heads', 'groups')


class Handover:
  """params over a mesh -> params over this process's devices.

  Every process of the mesh has to call it, in the same order as its other
  programs over the mesh.

  Attributes:
    local: a tree of this process's shardings, as the result has it.
  """

  def __init__(self, config: model.ModelConfig, mesh: jax_sharding.Mesh, split: bool):
    """Compiles nothing yet.

    Args:
      config: the network.
      mesh: mesh that sharding.make_mesh returned.
      split: whether a process's devices share the parameters (heads, MLP and
        vocabulary, where they divide); otherwise its first one has them all.
        Where there are more devices than key heads, several have each of these.

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
    if not split:
      inner = (1,) * len(inner)
    # A key head goes to as many devices as there are for each; its query heads,
    # the MLP and the vocabulary are split over those as well.
    kv_heads = math.gcd(config.n_kv_heads, math.prod(inner))
    names, shape, left = [], [], kv_heads
    for axis, size in zip(sharding.MESH_AXES, inner, strict=True):
      of_heads = math.gcd(left, size)
      left //= of_heads
      names += [f'{axis}_over_processes', f'{axis}_kv_heads', f'{axis}_groups']
      shape += [mesh.shape[axis] // size, of_heads, size // of_heads]
    # The same devices in the same order, so one program can have both layouts.
    whole = jax_sharding.Mesh(mesh.devices.reshape(shape), names)
    first, *_ = np.argwhere(
      np.vectorize(lambda d: d.process_index)(mesh.devices) == jax.process_index()
    )
    mine = mesh.devices[
      tuple(slice(at, at + size) for at, size in zip(first, inner, strict=True))
    ]
    mine = mine.reshape([n for i, n in enumerate(shape) if i % 3])
    self._mesh = jax_sharding.Mesh(
      mine.transpose(0, 2, 4, 1, 3, 5).reshape(kv_heads, -1), LOCAL_AXES
    )
    shapes = model.param_shapes(config)
    is_spec = lambda x: isinstance(x, jax_sharding.PartitionSpec)
    groups = config.n_heads // config.n_kv_heads

    def placed(mesh, of_heads, of_groups):
      """Returns shardings over a mesh, some of whose axes split what divides."""
      n_groups = self._mesh.shape[LOCAL_AXES[1]]

      def axes(name, size):
        if sharding.PARAM_RULES[name] != 'tensor':
          return None
        divides = {'heads': not groups % n_groups, 'kv_heads': False}.get(
          name, not size % self._mesh.size
        )
        if divides:
          return (*of_heads, *of_groups)
        return None if size % kv_heads else of_heads

      return jax.tree.map(
        lambda logical, shape: jax_sharding.NamedSharding(
          mesh, jax_sharding.PartitionSpec(*map(axes, logical, shape.shape))
        ),
        model.logical_axes(config),
        shapes,
        is_leaf=is_spec,
      )

    self.local = placed(self._mesh, LOCAL_AXES[:1], LOCAL_AXES[1:])
    self._laid_out = jax.jit(
      lambda tree: jax.tree_util.tree_map_with_path(
        functools.partial(_rounded, config), tree
      ),
      out_shardings=placed(whole, tuple(names[1::3]), tuple(names[2::3])),
    )

  def lower(self, params: Any) -> Any:
    """Returns the lowered program, for parameters that need not be there."""
    return self._laid_out.lower(params)

  def shapes(self, params: Any) -> Any:
    """Returns what a call returns, as jax.ShapeDtypeStruct."""
    return jax.tree.map(
      lambda x, to: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=to),
      jax.eval_shape(self._laid_out, params),
      self.local,
    )

  def __call__(self, params: Any) -> Any:
    """Returns the same values over this process's devices, in new arrays.

    Args:
      params: parameters over the mesh, in the layout of sharding.param_shardings.
    """
    mine = set(self._mesh.devices.flat)

    def local(x, to):
      shards = [s.data for s in x.addressable_shards if s.device in mine]
      return jax.make_array_from_single_device_arrays(x.shape, to, shards)

    with launches.in_turn(params):
      laid_out = self._laid_out(params)
    return jax.tree.map(local, laid_out, self.local)


def _rounded(config: model.ModelConfig, path, x: Any) -> Any:
  """Returns a parameter as the sampler reads it: in bfloat16, all but the scales."""
  if path[-1].key == 'scale' or config.dtype != 'bfloat16':
    return x
  return x.astype(config.dtype)
