"""Low-rank adapters as a directory that PEFT, vLLM and SGLang load.

PEFT's product for a released kernel W [out, in] is W + (alpha / r) B A with A [r, in]
and B [out, r]. Ours is the same one, transposed and with axes of heads apart, see
core.lora; `families.tensor_names` says how.
"""

import json
import math
import os
import re
from typing import Any

import jax
import ml_dtypes
import numpy as np
from etils import epath

from agentflow_jax.core import lora as lora_lib, model
from agentflow_jax.files import writing
from agentflow_jax.weights import families, model_directory, tensors

CONFIG, TENSORS = 'adapter_config.json', 'adapter_model.safetensors'
DIRECTORY = 'adapter'  # Of a finished run, in its workdir.
_DTYPES = {'float32': np.float32, 'bfloat16': ml_dtypes.bfloat16}
_PREFIX = 'base_model.model.'


def save(
  directory: str | os.PathLike[str],
  config: model.ModelConfig,
  lora: lora_lib.LoraConfig,
  adapters: Any,
  dtype: str = 'float32',
  base: str = '',
) -> None:
  """Writes adapters and their adapter_config.json.

  Args:
    directory: directory to write; created where absent.
    config: network that the adapters are of.
    lora: rank, alpha and targets of the adapters.
    adapters: adapters, as `core.lora.split` returns them: float32[L, *d_in, rank] and
      float32[L, rank, *d_out].
    dtype: dtype that they are rounded to, 'float32' or 'bfloat16'.
    base: name of the model that they are added to; '' to name none.

  Raises:
    families.UnsupportedModel: no released family is such a network.
  """
  families.to_hugging_face(config, dtype)
  path = epath.Path(directory)
  path.mkdir(parents=True, exist_ok=True)
  outputs, modules = [], set()
  for ours, (theirs, layout) in families.tensor_names(config).items():
    *where, last = ours.split('.')
    found = adapters
    for part in where:
      found = found.get(part, {}) if isinstance(found, dict) else {}
    if last != 'kernel' or lora_lib.A not in found:
      continue
    released = theirs.removesuffix('.weight')
    modules.add(released.rpartition('.')[2])
    outputs += _outputs(released, layout, found[lora_lib.A], found[lora_lib.B])
  tensors.write_file(path / TENSORS, outputs, _DTYPES[dtype])
  described = {
    'peft_type': 'LORA',
    'task_type': 'CAUSAL_LM',
    'base_model_name_or_path': base or None,
    'r': lora.rank,
    'lora_alpha': int(lora.alpha) if lora.alpha.is_integer() else lora.alpha,
    'lora_dropout': 0.0,
    'bias': 'none',
    'fan_in_fan_out': False,
    'inference_mode': True,
    'target_modules': sorted(modules),
  }
  text = json.dumps(described, indent=2, sort_keys=True)
  writing.write_whole(path / CONFIG, text + '\n')


def copy(
  source: str | os.PathLike[str], directory: str | os.PathLike[str], dtype: str
) -> int:
  """Writes adapters again, rounded.

  Args:
    source: directory that `save` wrote.
    directory: directory to write; created where absent.
    dtype: dtype that they are rounded to, 'float32' or 'bfloat16'.

  Returns:
    The number of their elements.

  Raises:
    CheckpointError: `source` holds no adapters.
  """
  path = epath.Path(directory)
  try:
    stored = tensors.SafetensorsDirectory(source, single=TENSORS)
    described = (epath.Path(source) / CONFIG).read_text()
  except (tensors.TensorError, FileNotFoundError) as e:
    raise model_directory.CheckpointError(f'{source} holds no adapters: {e}') from e
  path.mkdir(parents=True, exist_ok=True)
  outputs = [
    tensors.Output(
      name,
      shape,
      lambda name=name, shape=shape: stored.read(name, [(0, n) for n in shape]),
    )
    for name, shape in stored.shapes.items()
  ]
  tensors.write_file(path / TENSORS, outputs, _DTYPES[dtype])
  writing.write_whole(path / CONFIG, described)
  return sum(math.prod(shape) for shape in stored.shapes.values())


def _outputs(released: str, layout: str, a: Any, b: Any) -> list[tensors.Output]:
  """Returns lora_A and lora_B of every layer.

  Args:
    released: name of the released kernel, with '{}' for the layer.
    layout: axes, theirs -> ours, see families.tensor_names.
    a: [L, *d_in, r].
    b: [L, r, *d_out].
  """
  merged, letters = layout.split('->')
  out_axes, in_axes = [x or y for x, y in re.findall(r'\((\w+)\)|(\w)', merged)]
  rank = a.shape[-1]
  # Ours has the axes of the input first, and each side in the order of theirs.
  assert letters == in_axes + out_axes, layout
  n_in, n_out = math.prod(a.shape[1:-1]), math.prod(b.shape[2:])

  def make_a(i):
    return np.asarray(jax.device_get(a[i])).reshape(n_in, rank).T

  def make_b(i):
    return np.asarray(jax.device_get(b[i])).reshape(rank, n_out).T

  found = []
  for i in range(a.shape[0]):
    name = _PREFIX + released.format(i)
    found.append(
      tensors.Output(f'{name}.lora_A.weight', (rank, n_in), lambda i=i: make_a(i))
    )
    found.append(
      tensors.Output(f'{name}.lora_B.weight', (n_out, rank), lambda i=i: make_b(i))
    )
  return found
