"""Parameters as a Hugging Face directory: config.json and safetensors.

The one layout of a planner directory, ours or a released model's: what is saved
here, vLLM and transformers load, and what they load is read here.
"""

import dataclasses
import functools
import json
import math
import os
import re
from collections.abc import Mapping
from typing import Any

import flax.traverse_util
import jax
import ml_dtypes
import numpy as np
from absl import logging
from etils import epath

from agentflow_jax.core import model
from agentflow_jax.files import reading, writing
from agentflow_jax.weights import families, tensors

CONFIG = 'config.json'
_HEAD, _EMBEDDING = 'lm_head.weight', 'model.embed_tokens.weight'
_ROWS = 4096  # Rows of head and embedding that are compared at a time.
_DTYPES = {'float32': np.float32, 'bfloat16': ml_dtypes.bfloat16}
_SHARD_BYTES = 5 * 10**9
# Fields of config.json that are sizes of tensors, or counts of them.
_SIZES = (
  'head_dim',
  'hidden_size',
  'intermediate_size',
  'num_attention_heads',
  'num_hidden_layers',
  'num_key_value_heads',
  'vocab_size',
)


class CheckpointError(ValueError):
  """Weights that are missing, broken, or not those of the configured model."""


def read_config(directory: str | os.PathLike[str]) -> dict[str, Any]:
  """Returns a directory's config.json.

  Raises:
    CheckpointError: it is missing, or no JSON object.
  """
  path = epath.Path(directory) / CONFIG
  try:
    with reading.boundary(path, CheckpointError):
      described = reading.read_json(path)
      if not isinstance(described, dict):
        raise CheckpointError(f'{path} does not describe a model: no object')
      return described
  except FileNotFoundError as e:
    raise CheckpointError(
      f'{path} does not exist; a model directory holds {CONFIG},'
      f' {tensors.SINGLE} and a tokenizer'
    ) from e


def load_config(directory: str | os.PathLike[str]) -> model.ModelConfig:
  """Reads what network a directory holds; in float32, see families.

  Where config.json says that the head is the embedding, and the tensors hold
  another head, the network has that head, and a warning says so.

  Raises:
    CheckpointError: config.json is missing, or describes a network that is not
      supported; or the tensors beside it are broken.
  """
  path = epath.Path(directory) / CONFIG
  described = read_config(directory)
  try:
    if _holds_tensors(directory):
      _check_sizes(described, tensors.SafetensorsDirectory(directory))
    config = families.from_hugging_face(described)
    if config.tie_embeddings and _holds_another_head(directory):
      logging.warning(
        '%s says tie_word_embeddings, and the %s beside it differs from the'
        ' embedding: the head is kept apart',
        path,
        _HEAD,
      )
      config = dataclasses.replace(config, tie_embeddings=False)
    return config
  except tensors.TensorError as e:
    raise CheckpointError(f'{directory}: {e}') from e
  except CheckpointError:
    raise
  except families.UnsupportedModel as e:
    raise CheckpointError(f'{path}: {e}') from e
  except KeyError as e:
    raise CheckpointError(f'{path} does not describe a model: no {e}') from e
  except (
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
  ) as e:
    raise CheckpointError(f'{path} does not describe a model: {e}') from e


def _holds_tensors(directory: str | os.PathLike[str]) -> bool:
  """Returns whether there is more than a config.json, as preflight reads it."""
  path = epath.Path(directory)
  return any((path / name).exists() for name in (tensors.SINGLE, tensors.INDEX))


def _check_sizes(described: Mapping[str, Any], stored: tensors.Tensors) -> None:
  """Raises ValueError where a size could belong to no tensor that is there.

  Before anything is computed from it: a size that is wrong by a thousand would
  take all memory before the shapes could be compared.
  """
  elements = sum(math.prod(shape) for shape in stored.shapes.values())
  for name in _SIZES:
    value = described.get(name)
    if isinstance(value, int) and value > elements:
      raise ValueError(
        f'{name} is {value:,}, and the tensors beside it hold {elements:,} elements'
      )
  layers = described.get('num_hidden_layers')
  if isinstance(layers, int) and layers > len(stored.shapes):
    raise ValueError(
      f'num_hidden_layers is {layers:,}, and there are {len(stored.shapes)} tensors'
    )


def _holds_another_head(directory: str | os.PathLike[str]) -> bool:
  """Returns whether a directory's head is there and is not its embedding."""
  if not _holds_tensors(directory):
    return False
  return not _is_tied(tensors.SafetensorsDirectory(directory))


def _is_tied(stored: tensors.Tensors) -> bool:
  """Returns whether the head equals the embedding, where there are both."""
  if not {_HEAD, _EMBEDDING} <= set(stored.shapes):
    return True
  shape = stored.shapes[_HEAD]
  if shape != stored.shapes[_EMBEDDING]:
    return False
  for start in range(0, shape[0], _ROWS):
    rows = (start, min(start + _ROWS, shape[0]))
    head, embedding = (
      stored.read(name, [rows, (0, shape[1])]).astype(np.float32)
      for name in (_HEAD, _EMBEDDING)
    )
    if not np.array_equal(head, embedding, equal_nan=True):
      return False
  return True


def load(
  directory: str | os.PathLike[str], config: model.ModelConfig, shardings: Any = None
) -> model.Params:
  """Reads parameters as the config wants them.

  Args:
    directory: directory of config.json and safetensors.
    config: config of the network; decides shapes and the dtype.
    shardings: init_params' tree with a Sharding a leaf: each device's part is
      read straight from the files, by the process that holds it. None returns
      host arrays.

  Returns:
    The tree of `init_params`, of param_dtype.

  Raises:
    CheckpointError: missing, broken, or of another network; names the tensor.
  """
  try:
    stored = tensors.SafetensorsDirectory(directory)
    return read(stored, config, shardings)
  except tensors.TensorError as e:
    raise CheckpointError(f'{directory}: {e}') from e


def read(
  stored: tensors.Tensors, config: model.ModelConfig, shardings: Any = None
) -> model.Params:
  """Like `load`, from tensors of released names wherever they lie.

  Raises:
    TensorError: one is missing, of another shape, or nothing we know.
  """
  leaves = _leaves(config)
  _check(stored, leaves)
  if config.tie_embeddings and not _is_tied(stored):
    raise tensors.TensorError(
      f'{_HEAD} differs from {_EMBEDDING}, and the config says that they are'
      ' tied: set tie_word_embeddings to false'
    )
  if shardings is not None:
    shardings = flax.traverse_util.flatten_dict(shardings, sep='.')
  flat = {}
  for ours, leaf in leaves.items():
    if shardings is None:
      everything = tuple(slice(0, n) for n in leaf.shape)
      flat[ours] = leaf.read(stored, everything)
    else:
      flat[ours] = jax.make_array_from_callback(
        leaf.shape,
        shardings[ours],
        lambda index, leaf=leaf: leaf.read(stored, index or ()),
      )
  return flax.traverse_util.unflatten_dict(flat, sep='.')


def save(
  directory: str | os.PathLike[str],
  config: model.ModelConfig,
  params: model.Params,
  dtype: str = 'float32',
  shard_bytes: int = _SHARD_BYTES,
  others: Mapping[str, Any] | None = None,
) -> None:
  """Writes parameters and their config.json to a directory.

  Fetches one parameter at a time to the host.

  Args:
    directory: created where absent.
    config: the network.
    params: its parameters.
    dtype: dtype that they are rounded to, 'float32' or 'bfloat16'.
    shard_bytes: largest size of one file [bytes].
    others: further entries of config.json (token ids, ...), as they were read.

  Raises:
    families.UnsupportedModel: no released family is such a network.
  """
  path = epath.Path(directory)
  described = families.to_hugging_face(config, dtype)
  # transformers 5 has other names for what it says twice then.
  kept = set(others or ()) - {'rope_parameters', 'dtype'}
  described = {k: v for k, v in (others or {}).items() if k in kept} | described
  text = json.dumps(described, indent=2, sort_keys=True)
  path.mkdir(parents=True, exist_ok=True)
  flat = flax.traverse_util.flatten_dict(params, sep='.')
  outputs = []
  for ours, leaf in _leaves(config).items():
    outputs += leaf.outputs(flat[ours])
  tensors.write(path, outputs, _DTYPES[dtype], shard_bytes)
  writing.write_whole(path / CONFIG, text + '\n')


def untied(
  config: model.ModelConfig, params: model.Params
) -> tuple[model.ModelConfig, model.Params]:
  """Returns the same function as a network whose head is apart from its embedding.

  Some servers keep a copy of a tied head when they load other weights.

  Args:
    config: the network; one without a tied head is returned as it is.
    params: its parameters.
  """
  if not config.tie_embeddings:
    return config, params
  head = params['embedding'].T
  return dataclasses.replace(config, tie_embeddings=False), {**params, 'head': head}


@dataclasses.dataclass(frozen=True)
class _Leaf:
  """One of our parameters, and the released tensors that it is made of.

  Attributes:
    shape: shape of our parameter, with a leading axis of layers where `theirs` has a
      place for the layer's number.
    dtype: dtype of our parameter.
    theirs: name of the released tensor.
    groups: letters of our axes that are merged in each axis of a released tensor,
      outermost first.
    letters: letters of our axes, without that of layers.
  """

  shape: tuple[int, ...]
  dtype: np.dtype
  theirs: str
  groups: tuple[str, ...]
  letters: str

  @property
  def layered(self) -> bool:
    return '{}' in self.theirs

  @property
  def sizes(self) -> Mapping[str, int]:
    shape = self.shape[1:] if self.layered else self.shape
    return dict(zip(self.letters, shape, strict=True))

  def names(self) -> list[str]:
    """The released tensors, by layer."""
    if not self.layered:
      return [self.theirs]
    return [self.theirs.format(i) for i in range(self.shape[0])]

  def their_shape(self) -> tuple[int, ...]:
    return tuple(math.prod(self.sizes[c] for c in group) for group in self.groups)

  def read(self, stored, index: tuple[slice, ...]) -> np.ndarray:
    """Returns self[index], reading no more than that takes."""
    spans = [s.indices(n)[:2] for s, n in zip(index, self.shape, strict=True)]
    names = self.names()
    if not self.layered:
      return self._read_one(stored, names[0], spans)
    (first, last), *spans = spans
    shape = (last - first, *(b - a for a, b in spans))
    block = np.empty(shape, self.dtype)
    for i, name in enumerate(names[first:last]):
      block[i] = self._read_one(stored, name, spans)
    return block

  def _read_one(self, stored, name, spans) -> np.ndarray:
    span = dict(zip(self.letters, spans, strict=True))
    ranges = []
    for group in self.groups:
      inner = math.prod(self.sizes[c] for c in group[1:])
      start, stop = span[group[0]]
      whole = all(span[c] == (0, self.sizes[c]) for c in group[1:])
      if not whole:  # Else a block of ours would be many pieces of theirs.
        raise ValueError(f'{name}: an inner axis of {group} may not be split')
      ranges.append((start * inner, stop * inner))
    block = stored.read(name, ranges)
    split = ''.join(self.groups)
    block = block.reshape([span[c][1] - span[c][0] for c in split])
    block = block.transpose([split.index(c) for c in self.letters])
    return np.ascontiguousarray(block.astype(self.dtype))

  def outputs(self, value) -> list[tensors.Output]:
    """The released tensors that a value of this leaf is written as."""

    def make(i):
      part = np.asarray(jax.device_get(value[i] if self.layered else value))
      split = ''.join(self.groups)
      part = part.transpose([self.letters.index(c) for c in split])
      return part.reshape(self.their_shape())

    return [
      tensors.Output(name, self.their_shape(), lambda i=i: make(i))
      for i, name in enumerate(self.names())
    ]


@functools.lru_cache(maxsize=8)
def _leaves(config: model.ModelConfig) -> Mapping[str, _Leaf]:
  """Returns our name -> how it is stored, in a fixed order."""
  shapes: dict[Any, Any] = flax.traverse_util.flatten_dict(
    model.param_shapes(config), sep='.'
  )
  leaves = {}
  for ours, (theirs, layout) in families.tensor_names(config).items():
    merged, letters = layout.split('->')
    groups = tuple(a or b for a, b in re.findall(r'\((\w+)\)|(\w)', merged))
    shape = shapes.pop(ours)
    leaves[ours] = _Leaf(shape.shape, shape.dtype, theirs, groups, letters)
  assert not shapes, f'no released name for {sorted(shapes)}'
  return leaves


def _check(stored: tensors.Tensors, leaves: Mapping[str, _Leaf]) -> None:
  """Raises TensorError unless the files hold exactly these tensors."""
  wanted = {
    name: leaf.their_shape() for leaf in leaves.values() for name in leaf.names()
  }
  for name, shape in wanted.items():
    if name == _HEAD and name not in stored.shapes:
      raise tensors.TensorError(
        f'lacks tensor {name!r}: the config says that it is not tied to the'
        ' embedding; if it is, set tie_word_embeddings to true'
      )
    if name not in stored.shapes:
      raise tensors.TensorError(f'lacks tensor {name!r}')
    if tuple(stored.shapes[name]) != shape:
      raise tensors.TensorError(
        f'{name} has shape {tuple(stored.shapes[name])}, the config wants {shape}'
      )
  # A tied head is stored twice by some, rotary tables by older releases.
  known = re.compile(r'lm_head\.weight|.*\.rotary_emb\.inv_freq')
  if 'head' in leaves:
    known = re.compile(r'.*\.rotary_emb\.inv_freq')
  for name in sorted(set(stored.shapes) - set(wanted)):
    if not known.fullmatch(name):
      raise tensors.TensorError(f'has an unknown tensor {name!r}')
