"""GGUF files: the network that they say, their tensors by released names."""

import dataclasses

import gguf
import jax
import numpy as np
import pytest

from agentflow_jax.core import model, rope
from agentflow_jax.weights import families, gguf_files, model_directory, tensors
from tests.weights import recipe

_Types = gguf.GGMLQuantizationType


def _expected(name: str, **changes) -> dict[str, np.ndarray]:
  shapes = recipe.shapes(recipe.MODELS[name] | changes)
  return {k: recipe.tensor(k, v) for k, v in shapes.items()}


@pytest.mark.parametrize('name', ['llama', 'smollm2_9_3', 'qwen2', 'qwen3_tied'])
def test_a_file_holds_the_released_tensors(tmp_path, name):
  file = gguf_files.GGUFFile(recipe.write_gguf(tmp_path / 'x.gguf', name))
  config = families.from_hugging_face(recipe.MODELS[name])
  assert file.config == config
  wanted = _expected(name)
  assert set(file.shapes) == set(wanted)
  for tensor, values in wanted.items():
    assert file.shapes[tensor] == values.shape
    ranges = [(0, n) for n in values.shape]
    np.testing.assert_array_equal(file.read(tensor, ranges), values)
  params = model_directory.read(file, file.config)
  directory = tmp_path / 'released'
  model_directory.save(directory, config, params)
  jax.tree.map(
    np.testing.assert_array_equal, model_directory.load(directory, config), params
  )


# The largest error, as a part of a block's largest weight: half a step, and the
# rounding of the step itself to float16.
@pytest.mark.parametrize(
  'kind, error',
  [
    (_Types.F16, 2**-11),
    (_Types.BF16, 2**-8),
    (_Types.Q8_0, 0.5 / 127 + 2**-11),
    (_Types.Q4_0, 1 / 7),
    (_Types.Q4_1, 1 / 7),
  ],
)
def test_quantised_tensors_are_close_and_read_by_parts(tmp_path, kind, error):
  # Blocks have 32 weights: widths that they divide.
  name, changes = 'qwen2_tied_yarn', {'intermediate_size': 64}
  path = recipe.write_gguf(tmp_path / 'x.gguf', name, kind, **changes)
  wanted = _expected(name, **changes)
  file = gguf_files.GGUFFile(path)
  for tensor, values in wanted.items():
    whole = file.read(tensor, [(0, n) for n in values.shape])
    assert whole.dtype == np.float32
    if values.ndim == 1:
      np.testing.assert_array_equal(whole, values)
      continue
    limit = error * np.abs(values).max()
    assert 0 < np.abs(whole - values).max() <= limit
    part = file.read(tensor, [(3, 9), (5, 31)])
    np.testing.assert_array_equal(part, whole[3:9, 5:31])


@pytest.mark.parametrize('kind', [_Types.Q4_K, _Types.Q6_K])
def test_blocks_of_256_are_read_by_parts(tmp_path, kind):
  # The package cannot write these: random blocks, against its own reading.
  block, size = gguf.GGML_QUANT_SIZES[kind]
  rng = np.random.default_rng(0)
  data = rng.integers(0, 256, (6, 2 * size), np.uint8)
  data[:, ::size] = 0  # No scale of a block may be infinite.
  path = recipe.write_gguf(tmp_path / 'x.gguf', 'llama')
  writer = gguf.GGUFWriter(path, 'qwen2')
  writer.add_embedding_length(2 * block)
  writer.add_head_count(4)
  writer.add_feed_forward_length(8)
  writer.add_block_count(1)
  writer.add_context_length(8)
  writer.add_layer_norm_rms_eps(1e-6)
  writer.add_tensor('token_embd.weight', data, raw_dtype=kind)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  file = gguf_files.GGUFFile(path)
  name = 'model.embed_tokens.weight'
  assert file.shapes[name] == (6, 2 * block)
  whole = gguf.quants.dequantize(data, kind)
  part = file.read(name, [(1, 4), (200, 300)])
  np.testing.assert_array_equal(part, whole[1:4, 200:300])


def test_llama_3s_divisors_are_known_by_name(tmp_path):
  scaling = model.RopeScaling('llama3', factor=32.0, original_max_positions=8192)
  config = dataclasses.replace(
    families.from_hugging_face(recipe.MODELS['llama']), rope_scaling=scaling
  )
  plain, _ = rope.scaled_frequencies(
    config.rope_theta,
    config.head_dim,
    model.RopeScaling('divisors', divisors=(1.0,) * 4),
  )
  scaled, _ = rope.scaled_frequencies(config.rope_theta, config.head_dim, scaling)
  divisors = (plain / scaled).astype(np.float32)
  path = recipe.write_gguf(
    tmp_path / 'x.gguf', 'llama', extra=[('rope_freqs.weight', divisors)]
  )
  assert gguf_files.GGUFFile(path).config.rope_scaling == scaling
  other = np.array([1, 2, 3, 3.5], np.float32)
  path = recipe.write_gguf(
    tmp_path / 'y.gguf', 'llama', extra=[('rope_freqs.weight', other)]
  )
  kept = gguf_files.GGUFFile(path).config.rope_scaling
  assert kept == model.RopeScaling('divisors', divisors=(1, 2, 3, 3.5))
  with pytest.raises(families.UnsupportedModel, match='divisors'):
    families.to_hugging_face(gguf_files.GGUFFile(path).config, 'float32')


def test_yarn_is_read(tmp_path):
  path = recipe.write_gguf(
    tmp_path / 'x.gguf',
    'qwen2',
    metadata=[
      ('add_rope_scaling_type', gguf.RopeScalingType.YARN),
      ('add_rope_scaling_factor', 4.0),
      ('add_rope_scaling_orig_ctx_len', 32),
    ],
  )
  scaling = gguf_files.GGUFFile(path).config.rope_scaling
  assert scaling == model.RopeScaling('yarn', factor=4.0, original_max_positions=32)


def test_what_cannot_be_read_is_named(tmp_path):
  with pytest.raises(tensors.TensorError, match='does not exist'):
    gguf_files.GGUFFile(tmp_path / 'gone.gguf')
  path = recipe.write_gguf(tmp_path / 'x.gguf', 'llama')
  whole = path.read_bytes()
  for cut in (3, 200, len(whole) // 2):
    path.write_bytes(whole[:cut])
    with pytest.raises(tensors.TensorError, match='not a GGUF file|cut off'):
      gguf_files.GGUFFile(path)
  path.write_bytes(b'GGML' + whole[4:])
  with pytest.raises(tensors.TensorError, match='not a GGUF file'):
    gguf_files.GGUFFile(path)
  recipe.write_gguf(path, 'llama', architecture='gemma2')
  with pytest.raises(families.UnsupportedModel, match="'gemma2'"):
    gguf_files.GGUFFile(path)
  recipe.write_gguf(path, 'llama', metadata=[('add_expert_count', 8)])
  with pytest.raises(families.UnsupportedModel, match='experts'):
    gguf_files.GGUFFile(path)
  recipe.write_gguf(path, 'llama', extra=[('blk.0.unheard_of', np.ones(2, np.float32))])
  file = gguf_files.GGUFFile(path)
  with pytest.raises(tensors.TensorError, match='unheard_of'):
    model_directory.read(file, file.config)
  with pytest.raises(tensors.TensorError, match='no tensor'):
    file.read('nothing', [(0, 1)])
