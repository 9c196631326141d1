"""GGUF files (llama.cpp's): what network one holds, and its tensors.

Quantised tensors are given as float32, a block of rows at a time.
"""

import math
import os
from typing import Any

import numpy as np

from agentflow_jax.core import model
from agentflow_jax.files import gguf_container, reading
from agentflow_jax.weights import families, tensors

_ARCHITECTURES = {
  'llama': 'LlamaForCausalLM',
  'qwen2': 'Qwen2ForCausalLM',
  'qwen3': 'Qwen3ForCausalLM',
}
_EMBEDDING = 'model.embed_tokens.weight'
_NAMES = {
  'token_embd.weight': _EMBEDDING,
  'output_norm.weight': 'model.norm.weight',
  'output.weight': 'lm_head.weight',
}
_LAYER_NAMES = {
  'attn_norm.weight': 'input_layernorm.weight',
  'ffn_norm.weight': 'post_attention_layernorm.weight',
  'attn_q_norm.weight': 'self_attn.q_norm.weight',
  'attn_k_norm.weight': 'self_attn.k_norm.weight',
  'attn_output.weight': 'self_attn.o_proj.weight',
  'ffn_gate.weight': 'mlp.gate_proj.weight',
  'ffn_up.weight': 'mlp.up_proj.weight',
  'ffn_down.weight': 'mlp.down_proj.weight',
} | {
  f'attn_{p}.{kind}': f'self_attn.{p}_proj.{kind}'
  for p in 'qkv'
  for kind in ('weight', 'bias')
}
_ROPE_DIVISORS = 'rope_freqs.weight'
_QUANTISED = ('F32', 'F16', 'BF16', 'Q8_0', 'Q4_0', 'Q4_1', 'Q4_K', 'Q6_K')


class GGUFFile:
  """A GGUF file's network and tensors, by their released names.

  Attributes:
    config: the network, in float32.
    shapes: released name -> shape.
  """

  def __init__(self, path: str | os.PathLike[str]):
    """Reads the metadata.

    Raises:
      TensorError: missing, broken, or of a quantisation that we lack.
      UnsupportedModel: another architecture, or an option that we lack.
      ModuleNotFoundError: the package gguf is not installed.
    """
    self._path = os.fspath(path)
    try:
      with reading.boundary(self._path, tensors.TensorError, families.UnsupportedModel):
        self._read(gguf_container.open_gguf(self._path))
    except FileNotFoundError as e:
      raise tensors.TensorError(f'{self._path} does not exist') from e

  def _read(self, reader: Any) -> None:
    fields = {
      k: f.contents()
      for k, f in reader.fields.items()
      if not k.startswith('tokenizer.')
    }
    self._stored = {}
    divisors = ()
    for tensor in reader.tensors:
      if tensor.name == _ROPE_DIVISORS:
        divisors = tuple(float(x) for x in tensor.data)
        continue
      kind = tensor.tensor_type.name
      if kind not in _QUANTISED:
        raise tensors.TensorError(
          f'{self._path}: {tensor.name} is quantised as {kind}; there are'
          f' {", ".join(_QUANTISED)}'
        )
      self._stored[_released_name(tensor.name)] = tensor
    # GGUF states the innermost axis first.
    self.shapes = {
      name: tuple(int(n) for n in reversed(t.shape)) for name, t in self._stored.items()
    }
    self.config = self._read_config(fields, divisors)
    # llama.cpp rotates neighbours where released code rotates halves, so its
    # converter reorders the rows of q and k, of this architecture only.
    self._reordered = fields['general.architecture'] == 'llama'

  def _read_config(
    self, fields: dict[str, Any], divisors: tuple[float, ...]
  ) -> model.ModelConfig:
    kind = fields.get('general.architecture')
    if kind not in _ARCHITECTURES:
      raise families.UnsupportedModel(
        f'{self._path}: architecture {kind!r} is not supported; there are'
        f' {sorted(_ARCHITECTURES)}'
      )

    def get(name, default=None):
      value = fields.get(f'{kind}.{name}', default)
      if value is None:
        raise tensors.TensorError(f'{self._path} has no {kind}.{name}')
      return value

    def size(name, default=None):
      """Returns a size, which cannot exceed the elements of all tensors."""
      value = get(name, default)
      if not isinstance(value, int) or not 0 < value <= elements:
        raise tensors.TensorError(
          f'{self._path}: {kind}.{name} is {value!r}, but all tensors together'
          f' have {elements:,} elements'
        )
      return value

    elements = sum(math.prod(shape) for shape in self.shapes.values())
    if get('expert_count', 0):
      raise families.UnsupportedModel(
        f'{self._path}: mixtures of experts are not supported'
      )
    if _EMBEDDING not in self.shapes:
      raise tensors.TensorError(f'{self._path} has no token_embd.weight')
    width, heads = size('embedding_length'), size('attention.head_count')
    config = {
      'architectures': [_ARCHITECTURES[kind]],
      'vocab_size': self.shapes[_EMBEDDING][0],
      'hidden_size': width,
      'intermediate_size': size('feed_forward_length'),
      'num_hidden_layers': size('block_count'),
      'num_attention_heads': heads,
      'num_key_value_heads': size('attention.head_count_kv', heads),
      'head_dim': size('attention.key_length', width // heads),
      'max_position_embeddings': get('context_length'),
      'rms_norm_eps': _decimal(get('attention.layer_norm_rms_epsilon')),
      'rope_theta': _decimal(get('rope.freq_base', 1e4)),
      'tie_word_embeddings': 'lm_head.weight' not in self.shapes,
    }
    scaling = get('rope.scaling.type', 'none')
    if scaling != 'none':
      config['rope_scaling'] = {
        'rope_type': scaling,
        'factor': _decimal(get('rope.scaling.factor')),
        'original_max_position_embeddings': get('rope.scaling.original_context_length'),
      }
    network = families.from_hugging_face(config)
    if divisors:
      network = families.with_rope_divisors(network, divisors)
    return network

  def read(self, name, ranges):
    tensor = self._stored.get(name)
    if tensor is None:
      raise tensors.TensorError(f'{self._path} has no tensor {name!r}')
    (first, last), *rest = ranges
    from gguf import quants  # What opened the file.

    block = quants.dequantize(
      np.asarray(tensor.data[first:last]), tensor.tensor_type
    ).reshape(last - first, *self.shapes[name][1:])
    if self._reordered and name.endswith(('q_proj.weight', 'k_proj.weight')):
      half = self.config.head_dim // 2
      block = block.reshape(-1, half, 2, *block.shape[1:])
      block = block.swapaxes(1, 2).reshape(last - first, *block.shape[3:])
    return block[:, *(slice(a, b) for a, b in rest)]


def _released_name(name: str) -> str:
  if name in _NAMES:
    return _NAMES[name]
  parts = name.split('.', 2)
  if len(parts) == 3 and parts[0] == 'blk' and parts[2] in _LAYER_NAMES:
    return f'model.layers.{parts[1]}.{_LAYER_NAMES[parts[2]]}'
  return name


def _decimal(value: float) -> float:
  """The decimal number that a stored float32 stands for: 1e-05, not 9.99e-06."""
  return float(str(np.float32(value)))
