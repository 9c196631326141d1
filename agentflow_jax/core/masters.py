"""Float32 masters of parameters that are stored in bfloat16.

The spacing of bfloat16 values near 0.02 is 1.2e-4. An update of 1e-6 added to
such a value is rounded away, at every step again. Added to a float32 master it
stays, and the stored value moves once the updates add up to a spacing. So the
optimizer works on the master, and everything else (the forward pass, the
sampler, what a run exports) reads the master's rounding.
"""

from typing import Any, NamedTuple

import jax

from agentflow_jax.core import model
from agentflow_jax.core import primitives


class MasterState(NamedTuple):
  """Optimizer state of parameters that have a master.

  Attributes:
    master: tree of the parameters in float32.
    inner: state of the optimizer that works on the master.
  """

  master: Any
  inner: Any


def is_needed(config: model.ModelConfig) -> bool:
  """Returns whether what is trained needs a master.

  Float32 parameters are their own master, and so are LoRA's adapters, which are
  float32 under every param_dtype.
  """
  return config.param_dtype != 'float32' and not config.lora.rank


def rounding_of(master: Any, dtype: str) -> Any:
  """Returns the parameters of a master: its float32 values rounded to `dtype`.

  Args:
    master: float32 tree.
    dtype: param_dtype of the network.
  """
  return jax.tree.map(lambda x: primitives.rounded(x, dtype).astype(dtype), master)
