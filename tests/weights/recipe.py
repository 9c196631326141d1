"""Small models of every family, the same in transformers and here.

Tensors are made from their names, so that goldens need no weights in the
repository: `make_goldens.py` gives them to transformers, the tests to us.
"""

import json
import pathlib
import zlib
from collections.abc import Mapping

import gguf
import numpy as np
import safetensors.numpy

_Types = gguf.GGMLQuantizationType

_BASE = {
  'vocab_size': 61,
  'hidden_size': 32,
  'intermediate_size': 40,
  'num_hidden_layers': 2,
  'num_attention_heads': 4,
  'num_key_value_heads': 2,
  'max_position_embeddings': 128,
  'rms_norm_eps': 1e-5,
  'rope_theta': 10000.0,
  'hidden_act': 'silu',
  'tie_word_embeddings': False,
}
_LLAMA3 = {
  'rope_type': 'llama3',
  'factor': 8.0,
  'low_freq_factor': 1.0,
  'high_freq_factor': 4.0,
  'original_max_position_embeddings': 32,
}
_YARN = {'rope_type': 'yarn', 'factor': 4.0, 'original_max_position_embeddings': 32}


def _of(model_type: str, architecture: str, **changes):
  return _BASE | {'model_type': model_type, 'architectures': [architecture], **changes}


# name -> config.json, as the released ones are written.
MODELS = {
  'llama': _of('llama', 'LlamaForCausalLM', rope_theta=500000.0),
  'llama_tied': _of('llama', 'LlamaForCausalLM', tie_word_embeddings=True),
  'llama_scaled': _of('llama', 'LlamaForCausalLM', head_dim=16, rope_scaling=_LLAMA3),
  'smollm2_9_3': _of(
    'llama',
    'LlamaForCausalLM',
    hidden_size=72,
    num_attention_heads=9,
    num_key_value_heads=3,
    tie_word_embeddings=True,
    rope_theta=100000.0,
  ),
  'qwen2': _of('qwen2', 'Qwen2ForCausalLM', rope_theta=1000000.0),
  'qwen2_28_4': _of(
    'qwen2',
    'Qwen2ForCausalLM',
    hidden_size=112,
    num_attention_heads=28,
    num_key_value_heads=4,
  ),
  'qwen2_tied_yarn': _of(
    'qwen2',
    'Qwen2ForCausalLM',
    hidden_size=64,
    rope_scaling=_YARN,
    tie_word_embeddings=True,
    use_sliding_window=False,
  ),
  'qwen3': _of(
    'qwen3', 'Qwen3ForCausalLM', head_dim=12, rms_norm_eps=1e-6, attention_bias=False
  ),
  'qwen3_tied': _of('qwen3', 'Qwen3ForCausalLM', head_dim=16, tie_word_embeddings=True),
}
# Longer than the scaled models' original context.
TOKEN_IDS = np.random.default_rng(0).integers(0, 61, (2, 96))
KEPT = np.array([0, 1, 30, 31, 32, 63, 94, 95])  # Positions with goldens.


def tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
  """Returns a tensor's float32 values; norms lie around 1."""
  rng = np.random.default_rng(zlib.crc32(name.encode()))
  values = rng.normal(size=shape)
  if name.endswith('norm.weight'):
    values = 1 + 0.3 * values
  elif name.endswith('.bias'):
    values = 0.5 * values
  else:
    values = values / np.sqrt(shape[-1])
  return values.astype(np.float32)


def shapes(config: Mapping) -> dict[str, tuple[int, ...]]:
  """Returns the released names and shapes that a config.json means."""
  d, f = config['hidden_size'], config['intermediate_size']
  heads, kv_heads = config['num_attention_heads'], config['num_key_value_heads']
  e = config.get('head_dim', d // heads)
  found = {
    'model.embed_tokens.weight': (config['vocab_size'], d),
    'model.norm.weight': (d,),
  }
  if not config['tie_word_embeddings']:
    found['lm_head.weight'] = (config['vocab_size'], d)
  for i in range(config['num_hidden_layers']):
    layer = {
      'input_layernorm.weight': (d,),
      'post_attention_layernorm.weight': (d,),
      'self_attn.q_proj.weight': (heads * e, d),
      'self_attn.k_proj.weight': (kv_heads * e, d),
      'self_attn.v_proj.weight': (kv_heads * e, d),
      'self_attn.o_proj.weight': (d, heads * e),
      'mlp.gate_proj.weight': (f, d),
      'mlp.up_proj.weight': (f, d),
      'mlp.down_proj.weight': (d, f),
    }
    if config['model_type'] == 'qwen2':
      layer['self_attn.q_proj.bias'] = (heads * e,)
      layer['self_attn.k_proj.bias'] = (kv_heads * e,)
      layer['self_attn.v_proj.bias'] = (kv_heads * e,)
    if config['model_type'] == 'qwen3':
      layer['self_attn.q_norm.weight'] = (e,)
      layer['self_attn.k_norm.weight'] = (e,)
    found |= {f'model.layers.{i}.{k}': v for k, v in layer.items()}
  return found


def write_released(directory: pathlib.Path, name: str, **changes) -> pathlib.Path:
  """Writes a model of MODELS as others release it, with safetensors."""
  config = MODELS[name] | changes
  directory.mkdir(parents=True, exist_ok=True)
  (directory / 'config.json').write_text(json.dumps(config))
  tensors = {k: tensor(k, v) for k, v in shapes(config).items()}
  safetensors.numpy.save_file(tensors, directory / 'model.safetensors')
  return directory


# As llama.cpp's converter names them.
_GGUF_NAMES = {
  'model.embed_tokens.weight': 'token_embd.weight',
  'model.norm.weight': 'output_norm.weight',
  'lm_head.weight': 'output.weight',
  'input_layernorm.weight': 'attn_norm.weight',
  'post_attention_layernorm.weight': 'ffn_norm.weight',
  'self_attn.q_proj': 'attn_q',
  'self_attn.k_proj': 'attn_k',
  'self_attn.v_proj': 'attn_v',
  'self_attn.o_proj': 'attn_output',
  'self_attn.q_norm': 'attn_q_norm',
  'self_attn.k_norm': 'attn_k_norm',
  'mlp.gate_proj': 'ffn_gate',
  'mlp.up_proj': 'ffn_up',
  'mlp.down_proj': 'ffn_down',
  'model.layers.': 'blk.',
}


def write_gguf(
  path: pathlib.Path,
  name: str,
  kind=_Types.F32,
  extra=(),
  metadata=(),
  architecture=None,
  **changes,
) -> pathlib.Path:
  """Writes a model as llama.cpp's converter would.

  Args:
    path: of the file.
    name: of MODELS.
    kind: what matrices are quantised as.
    extra: (name, values) of further tensors.
    metadata: (method, value) of the writer's further calls.
    architecture: other than the model's.
    **changes: to its config.json.
  """
  config = MODELS[name] | changes
  architecture = architecture or config['model_type']
  heads, kv_heads = config['num_attention_heads'], config['num_key_value_heads']
  head_dim = config.get('head_dim', config['hidden_size'] // heads)
  writer = gguf.GGUFWriter(path, architecture)
  writer.add_embedding_length(config['hidden_size'])
  writer.add_feed_forward_length(config['intermediate_size'])
  writer.add_block_count(config['num_hidden_layers'])
  writer.add_head_count(heads)
  writer.add_head_count_kv(kv_heads)
  writer.add_key_length(head_dim)
  writer.add_context_length(config['max_position_embeddings'])
  writer.add_layer_norm_rms_eps(config['rms_norm_eps'])
  writer.add_rope_freq_base(config['rope_theta'])
  for method, value in metadata:
    getattr(writer, method)(value)
  for released, shape in shapes(config).items():
    values = tensor(released, shape)
    if architecture == 'llama' and ('q_proj' in released or 'k_proj' in released):
      # Neighbours are rotated there: rows (half, j) become (j, half).
      values = values.reshape(-1, 2, head_dim // 2, shape[1])
      values = values.swapaxes(1, 2).reshape(shape)
    stored = released
    for theirs, ours in _GGUF_NAMES.items():
      stored = stored.replace(theirs, ours)
    if kind is _Types.F32 or values.ndim == 1:
      writer.add_tensor(stored, values)
    else:
      data = gguf.quants.quantize(values, kind)
      writer.add_tensor(stored, data, raw_dtype=kind)
  for stored, values in extra:
    writer.add_tensor(stored, values)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return path
