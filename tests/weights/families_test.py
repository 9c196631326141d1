"""Released families: config.json in and out, logits equal to transformers'."""

import json
import pathlib

import jax
import numpy as np
import pytest
import safetensors.numpy

from agentflow_jax.core import model
from agentflow_jax.weights import families, model_directory
from tests.weights import recipe
from tests.core import networks

_GOLDENS = pathlib.Path(__file__).parent / 'goldens' / 'logits.npz'
_FORWARD = jax.jit(model.forward, static_argnums=0)


def _logits(directory) -> np.ndarray:
  config = model_directory.load_config(directory)
  params = model_directory.load(directory, config)
  ids = recipe.TOKEN_IDS.astype(np.int32)
  positions = np.broadcast_to(np.arange(ids.shape[1], dtype=np.int32), ids.shape)
  return np.asarray(
    _FORWARD(config, params, ids, positions, np.full_like(ids, ids.shape[1]))
  )[:, recipe.KEPT]


@pytest.mark.parametrize('name', recipe.MODELS)
def test_logits_equal_those_of_transformers(tmp_path, name):
  expected = np.load(_GOLDENS)[name]
  assert np.abs(expected).max() > 1
  np.testing.assert_allclose(
    _logits(recipe.write_released(tmp_path, name)), expected, rtol=0, atol=1e-4
  )


@pytest.mark.parametrize('name', recipe.MODELS)
def test_what_is_saved_reads_back_as_the_same_model(tmp_path, name):
  source = recipe.write_released(tmp_path / 'a', name)
  config = model_directory.load_config(source)
  params = model_directory.load(source, config)
  model_directory.save(tmp_path / 'b', config, params, shard_bytes=9000)
  assert model_directory.load_config(tmp_path / 'b') == config
  again = model_directory.load(tmp_path / 'b', config)
  jax.tree.map(np.testing.assert_array_equal, again, params)
  assert len(list((tmp_path / 'b').glob('*.safetensors'))) > 2
  # And every tensor has its released name and bytes.
  found = {}
  for file in (tmp_path / 'b').glob('*.safetensors'):
    found |= safetensors.numpy.load_file(file)
  wanted = recipe.shapes(recipe.MODELS[name])
  assert set(found) == set(wanted)
  for tensor, shape in wanted.items():
    np.testing.assert_array_equal(found[tensor], recipe.tensor(tensor, shape))


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('name', recipe.MODELS)
def test_what_is_saved_loads_in_transformers(tmp_path, name, dtype):
  transformers = pytest.importorskip('transformers')
  torch = pytest.importorskip('torch')
  source = recipe.write_released(tmp_path / 'a', name)
  config = model_directory.load_config(source)
  params = model_directory.load(source, config)
  out = tmp_path / 'b'
  model_directory.save(out, config, params, dtype, shard_bytes=9000)
  net = (
    transformers.AutoModelForCausalLM.from_pretrained(
      out, attn_implementation='eager', dtype=getattr(torch, dtype)
    )
    .float()
    .eval()
  )
  with torch.no_grad():
    theirs = net(torch.from_numpy(recipe.TOKEN_IDS)).logits.numpy()
  np.testing.assert_allclose(_logits(out), theirs[:, recipe.KEPT], rtol=0, atol=1e-4)


def test_released_configs_mean_what_they_say():
  # The numbers of the released config.json files.
  llama = families.from_hugging_face(
    {
      'architectures': ['LlamaForCausalLM'],
      'model_type': 'llama',
      'vocab_size': 128256,
      'hidden_size': 3072,
      'intermediate_size': 8192,
      'num_hidden_layers': 28,
      'num_attention_heads': 24,
      'num_key_value_heads': 8,
      'head_dim': 128,
      'hidden_act': 'silu',
      'max_position_embeddings': 131072,
      'rms_norm_eps': 1e-05,
      'rope_theta': 500000.0,
      'tie_word_embeddings': True,
      'attention_bias': False,
      'mlp_bias': False,
      'pretraining_tp': 1,
      'rope_scaling': {
        'factor': 32.0,
        'high_freq_factor': 4.0,
        'low_freq_factor': 1.0,
        'original_max_position_embeddings': 8192,
        'rope_type': 'llama3',
      },
    }
  )
  assert (llama.n_heads, llama.n_kv_heads, llama.head_dim) == (24, 8, 128)
  assert llama.rope_scaling.kind == 'llama3'
  # Stated after stretching, and below 32 x 8192.
  assert llama.max_positions == 131072 and llama.tie_embeddings
  qwen = families.from_hugging_face(
    {
      'architectures': ['Qwen2ForCausalLM'],
      'model_type': 'qwen2',
      'vocab_size': 152064,
      'hidden_size': 3584,
      'intermediate_size': 18944,
      'num_hidden_layers': 28,
      'num_attention_heads': 28,
      'num_key_value_heads': 4,
      'hidden_act': 'silu',
      'max_position_embeddings': 32768,
      'max_window_layers': 28,
      'rms_norm_eps': 1e-06,
      'rope_theta': 1000000.0,
      'sliding_window': 131072,
      'tie_word_embeddings': False,
      'use_sliding_window': False,
      'rope_scaling': {
        'type': 'yarn',
        'factor': 4.0,
        'original_max_position_embeddings': 32768,
      },
    }
  )
  assert qwen.head_dim == 128 and qwen.qkv_bias and not qwen.qk_norm
  assert qwen.max_positions == 131072


def test_configs_of_transformers_5_are_read():
  old = recipe.MODELS['llama_scaled']
  new = {k: v for k, v in old.items() if not k.startswith('rope_')}
  new['rope_parameters'] = old['rope_scaling'] | {'rope_theta': old['rope_theta']}
  assert families.from_hugging_face(new) == families.from_hugging_face(old)


_SCALING = {'rope_type': 'yarn', 'factor': 4.0, 'original_max_position_embeddings': 32}


@pytest.mark.parametrize(
  'name, change',
  [
    ('llama', {'architectures': None}),
    ('llama', {'architectures': []}),
    ('qwen3', {'model_type': None}),
    ('llama', {'hidden_act': 'swish'}),
    ('llama', {'hidden_act': None, 'hidden_activation': 'silu'}),
    ('llama', {'attention_bias': None, 'mlp_bias': None}),
    # An option of other families; q, k and v have biases all the same.
    ('qwen2', {'attention_bias': True}),
    ('qwen2', {'attention_bias': False}),
    ('qwen3', {'attention_bias': False}),
    ('llama', {'quantization_config': None}),
    ('llama', {'rope_scaling': None}),
    ('llama', {'rope_scaling': {'type': 'default'}}),
    ('llama', {'rope_scaling': {'rope_type': 'default', 'factor': None}}),
    (
      'llama',
      {
        'rope_parameters': {
          'rope_type': 'default',
          'rope_theta': 500000.0,
          'partial_rotary_factor': 1.0,
        }
      },
    ),
    (
      'llama',
      {
        'rope_theta': None,
        'rope_parameters': {
          'full_attention': {'rope_type': 'default', 'rope_theta': 500000.0}
        },
      },
    ),
    ('llama', {'partial_rotary_factor': None}),
    ('qwen2', {'use_sliding_window': False, 'sliding_window': 8}),
    ('qwen2', {'sliding_window': 8, 'max_window_layers': 0}),
    ('qwen2', {'use_sliding_window': True, 'sliding_window': None}),
    (
      'qwen2',
      {'use_sliding_window': True, 'sliding_window': 8, 'max_window_layers': 2},
    ),
    ('qwen2', {'use_sliding_window': True, 'sliding_window': 8}),
    (
      'qwen2',
      {'use_sliding_window': True, 'sliding_window': 128, 'max_window_layers': 0},
    ),
    (
      'qwen2',
      {
        'use_sliding_window': True,
        'sliding_window': 8,
        'max_window_layers': 0,
        'layer_types': ['full_attention'] * 2,
      },
    ),
    (
      'qwen3',
      {
        'layer_types': ['full_attention', 'sliding_attention'],
        'use_sliding_window': True,
        'sliding_window': 4096,
      },
    ),
  ],
)
def test_options_that_change_nothing_are_accepted(name, change):
  config = recipe.MODELS[name]
  assert families.from_hugging_face(config | change) == (
    families.from_hugging_face(config)
  )


def test_options_of_the_scaling_that_are_null_have_their_default():
  base = recipe.MODELS['qwen2']
  plain = families.from_hugging_face(base | {'rope_scaling': _SCALING})
  nulls = dict.fromkeys(('attention_factor', 'beta_fast', 'beta_slow', 'mscale'))
  assert plain == families.from_hugging_face(base | {'rope_scaling': _SCALING | nulls})


@pytest.mark.parametrize(
  'change, message',
  [
    (
      {'architectures': ['Qwen2ForCausalLM']},
      "'Qwen2ForCausalLM'.*'llama' are of different models.*'qwen2'",
    ),
    ({'model_type': 'qwen3'}, "LlamaForCausalLM.*'qwen3'.*'llama'"),
    ({'model_type': 'mistral'}, "LlamaForCausalLM.*'mistral'"),
    ({'architectures': ['MistralForCausalLM']}, "Mistral.*'llama'"),
    ({'architectures': None, 'model_type': None}, 'model_type None'),
    ({'hidden_act': None, 'hidden_activation': 'gelu'}, 'hidden_activation'),
    (
      {'sliding_window': 127, 'use_sliding_window': True, 'max_window_layers': 1},
      'sliding window',
    ),
    (
      {'sliding_window': 8, 'layer_types': ['full_attention', 'sliding_attention']},
      'sliding window',
    ),
    ({'layer_types': ['full_attention', 'linear_attention']}, 'linear_att'),
    (
      {
        'rope_parameters': {
          'rope_type': 'default',
          'rope_theta': 1e4,
          'partial_rotary_factor': 0.5,
        }
      },
      'partial_rotary',
    ),
    ({'architectures': ['MixtralForCausalLM']}, 'MixtralForCausalLM'),
    ({'architectures': ['Qwen3MoeForCausalLM']}, 'Qwen3MoeForCausalLM'),
    ({'architectures': [], 'model_type': 'gpt2'}, 'gpt2'),
    ({'hidden_act': 'gelu'}, 'hidden_act'),
    ({'attention_bias': True}, 'attention_bias'),
    ({'mlp_bias': True}, 'mlp_bias'),
    ({'use_sliding_window': True, 'max_window_layers': 0}, 'use_sliding_win'),
    ({'layer_types': ['full_attention', 'sliding_attention']}, 'sliding'),
    ({'rope_scaling': {'rope_type': 'dynamic', 'factor': 2.0}}, 'dynamic'),
    ({'rope_scaling': {'rope_type': 'yarn', 'factor': 2, 'mscale': 1}}, 'mscale'),
    ({'quantization_config': {'bits': 4}}, 'quantised'),
    ({'hidden_size': None}, 'does not describe'),
    ({'num_key_value_heads': 3}, 'n_kv_heads 3 must divide'),
  ],
)
def test_what_is_not_supported_is_named(tmp_path, change, message):
  config = recipe.MODELS['llama'] | change
  (tmp_path / 'config.json').write_text(json.dumps(config))
  with pytest.raises(model_directory.CheckpointError, match=message):
    model_directory.load_config(tmp_path)


def test_a_missing_field_is_named(tmp_path):
  config = dict(recipe.MODELS['llama'])
  del config['vocab_size']
  (tmp_path / 'config.json').write_text(json.dumps(config))
  with pytest.raises(model_directory.CheckpointError, match="no 'vocab_size'"):
    model_directory.load_config(tmp_path)


def test_no_family_has_both_bias_and_qk_norm(tmp_path):
  config = model.ModelConfig(
    vocab_size=8,
    d_model=8,
    n_layers=1,
    n_heads=2,
    n_kv_heads=1,
    head_dim=4,
    d_ff=8,
    max_positions=8,
    qkv_bias=True,
    qk_norm=True,
  )
  params = networks.params(config)
  with pytest.raises(families.UnsupportedModel, match='both'):
    model_directory.save(tmp_path / 'x', config, params)
  assert not (tmp_path / 'x').exists()
