"""Parameters as safetensors, beside the config.json that describes them."""

import dataclasses
import json
import os

import flax.traverse_util
import jax
import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy
from etils import epath

from agentflow_jax.core import model

_WEIGHTS = 'model.safetensors'
_CONFIG = 'config.json'
_STORED = {'F32': np.float32, 'F16': np.float16, 'BF16': ml_dtypes.bfloat16}
_DTYPES = {'float32': np.float32, 'bfloat16': ml_dtypes.bfloat16}


class CheckpointError(ValueError):
  """Weights that are missing, broken, or not those of the configured model."""


def save(
    directory: str | os.PathLike[str],
    config: model.ModelConfig,
    params: model.Params,
    dtype: str = 'float32',
) -> None:
  """Writes parameters and their config to a directory.

  Args:
    directory: created where absent.
    config: the network.
    params: its parameters; fetched to the host.
    dtype: what they are rounded to, 'float32' or 'bfloat16'.
  """
  path = epath.Path(directory)
  path.mkdir(parents=True, exist_ok=True)
  flat = flax.traverse_util.flatten_dict(params, sep='.')
  tensors = {
      name: np.asarray(jax.device_get(leaf)).astype(_DTYPES[dtype])
      for name, leaf in sorted(flat.items())
  }
  text = json.dumps(dataclasses.asdict(config), indent=2, sort_keys=True)
  (path / _CONFIG).write_text(text + '\n')
  # A process that is killed meanwhile leaves no half of a file by that name.
  partial = path / (_WEIGHTS + '.partial')
  partial.write_bytes(safetensors.numpy.save(tensors))
  partial.replace(path / _WEIGHTS)


def load_config(directory: str | os.PathLike[str]) -> model.ModelConfig:
  """Reads what network a directory holds.

  Raises:
    CheckpointError: the file is missing or does not describe a network.
  """
  path = epath.Path(directory) / _CONFIG
  try:
    return model.ModelConfig(**json.loads(path.read_text()))
  except FileNotFoundError as e:
    raise CheckpointError(
        f'{path} does not exist; a planner directory holds {_CONFIG},'
        f' {_WEIGHTS} and a tokenizer'
    ) from e
  except (TypeError, ValueError) as e:
    raise CheckpointError(f'{path} does not describe a model: {e}') from e


def load(
    directory: str | os.PathLike[str], config: model.ModelConfig
) -> model.Params:
  """Reads parameters as the config wants them.

  Args:
    directory: where `save` wrote.
    config: the network; decides names, shapes and the dtype.

  Returns:
    Host arrays of param_dtype, in the tree of `init_params`.

  Raises:
    CheckpointError: missing, broken, or of another network; names the tensor.
  """
  path = epath.Path(directory) / _WEIGHTS
  try:
    tensors = {
        name: _array(tensor)
        for name, tensor in safetensors.deserialize(path.read_bytes())
    }
  except FileNotFoundError as e:
    raise CheckpointError(f'{path} does not exist') from e
  except (safetensors.SafetensorError, KeyError) as e:
    raise CheckpointError(
        f'{path} is not a safetensors file, was cut off, or holds a dtype'
        f' other than {sorted(_STORED)}: {e}'
    ) from e
  shapes = jax.eval_shape(
      lambda key: model.init_params(config, key), jax.random.key(0)
  )
  wanted = flax.traverse_util.flatten_dict(shapes, sep='.')
  for name in sorted(set(wanted) ^ set(tensors)):
    lacks = 'lacks' if name in wanted else 'has an unknown'
    raise CheckpointError(f'{path} {lacks} tensor {name!r}')
  for name, shape in wanted.items():
    if tensors[name].shape != shape.shape:
      raise CheckpointError(
          f'{path}: {name} has shape {tensors[name].shape}, the config wants'
          f' {shape.shape}'
      )
  flat = {n: tensors[n].astype(wanted[n].dtype) for n in wanted}
  return flax.traverse_util.unflatten_dict(flat, sep='.')


def _array(tensor) -> np.ndarray:
  """A stored tensor as an array; safetensors' NumPy loader has no bfloat16."""
  flat = np.frombuffer(tensor['data'], _STORED[tensor['dtype']])
  return flat.reshape(tensor['shape'])
