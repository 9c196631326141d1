import json

import jax
import numpy as np
import pytest

from agentflow_jax.core import model
from agentflow_jax.weights import parameters

_CONFIG = model.ModelConfig(
    vocab_size=12, d_model=8, n_layers=2, n_heads=2, n_kv_heads=1, head_dim=4,
    d_ff=16, max_positions=32,
)


@pytest.fixture
def saved(tmp_path):
  params = model.init_params(_CONFIG, jax.random.key(0))
  parameters.save(tmp_path, _CONFIG, params)
  return tmp_path, params


def test_parameters_come_back_to_the_same_bits(saved):
  path, params = saved
  assert parameters.load_config(path) == _CONFIG
  jax.tree.map(
      np.testing.assert_array_equal, parameters.load(path, _CONFIG), params
  )


def test_bfloat16_is_what_rounding_gives(saved, tmp_path):
  _, params = saved
  parameters.save(tmp_path / 'b', _CONFIG, params, 'bfloat16')
  loaded = parameters.load(tmp_path / 'b', _CONFIG)
  # 8 bits of mantissa: within 2^-9 of the value, and of param_dtype again.
  jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=2**-8), loaded, params
  )
  assert loaded['embedding'].dtype == np.float32
  assert not np.array_equal(loaded['embedding'], params['embedding'])


def test_a_missing_directory_is_named(tmp_path):
  with pytest.raises(parameters.CheckpointError, match='gone.config.json'):
    parameters.load_config(tmp_path / 'gone')
  with pytest.raises(parameters.CheckpointError, match='model.safetensors'):
    parameters.load(tmp_path / 'gone', _CONFIG)


def test_a_config_that_is_none_is_named(saved):
  path, _ = saved
  for text in ('{', '[]', '{"vocab_size": 3}'):
    (path / 'config.json').write_text(text)
    with pytest.raises(parameters.CheckpointError, match='config.json'):
      parameters.load_config(path)


def test_a_torn_file_is_named(saved):
  path, _ = saved
  file = path / 'model.safetensors'
  file.write_bytes(file.read_bytes()[:-100])
  with pytest.raises(parameters.CheckpointError, match='cut off'):
    parameters.load(path, _CONFIG)


@pytest.mark.parametrize(
    'change, message',
    [
        ({'d_ff': 32}, 'has shape'),
        ({'n_layers': 1}, 'has shape'),
        ({'tie_embeddings': False}, "lacks tensor 'head'"),
        ({'qkv_bias': True}, 'lacks tensor'),
    ],
)
def test_weights_of_another_network_name_the_tensor(saved, change, message):
  path, _ = saved
  other = model.ModelConfig(
      **json.loads((path / 'config.json').read_text()) | change
  )
  with pytest.raises(parameters.CheckpointError, match=message):
    parameters.load(path, other)
