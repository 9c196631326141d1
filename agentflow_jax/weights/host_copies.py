"""Parameters of a mesh as NumPy arrays, and their digest."""

import hashlib
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from agentflow_jax.core import launches


def gather_to_host(params: Any) -> Any:
  """Returns parameters as NumPy arrays; all processes have to call it."""

  def fetched(x):
    if not isinstance(x, jax.Array) or (
      x.is_fully_addressable or x.is_fully_replicated
    ):
      return np.asarray(x)
    if x.ndim < 3:
      with launches.in_turn(x):
        return multihost_utils.process_allgather(x, tiled=True)
    # Layer by layer: a device gets all of what is gathered.
    assert isinstance(x.sharding, jax.sharding.NamedSharding)
    whole = jax.jit(
      lambda x, i: x[i],
      out_shardings=jax.sharding.NamedSharding(
        x.sharding.mesh, jax.sharding.PartitionSpec()
      ),
    )
    layers = []
    for i in range(x.shape[0]):
      with launches.in_turn(x):
        layer = whole(x, i)
      layers.append(np.asarray(layer))
    return np.stack(layers)

  return jax.tree.map(fetched, params)


def params_digest(params: Any) -> str:
  """SHA-256 over the names, dtypes, shapes and bytes of all parameters."""
  digest = hashlib.sha256()
  for path, leaf in jax.tree_util.tree_leaves_with_path(gather_to_host(params)):
    array = np.ascontiguousarray(leaf)
    name = jax.tree_util.keystr(path)
    digest.update(f'{name} {array.dtype} {array.shape}'.encode())
    digest.update(array.tobytes())
  return digest.hexdigest()
