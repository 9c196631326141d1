"""Parameters in and out: to the same bits, into any sharding, loudly."""

import dataclasses
import functools
import json
import pathlib
import subprocess
import sys

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from agentflow_jax.core import model, sharding
from agentflow_jax.weights import model_directory

_CONFIG = model.ModelConfig(
  vocab_size=24,
  d_model=16,
  n_layers=2,
  n_heads=4,
  n_kv_heads=2,
  head_dim=4,
  d_ff=32,
  max_positions=32,
  tie_embeddings=False,
  qkv_bias=True,
)


@functools.cache
def _params(config=_CONFIG, seed=0):
  return jax.jit(model.init_params, static_argnums=0)(config, jax.random.key(seed))


@pytest.fixture
def saved(tmp_path):
  model_directory.save(tmp_path, _CONFIG, _params())
  return tmp_path, _params()


def test_parameters_come_back_to_the_same_bits(saved):
  path, params = saved
  assert model_directory.load_config(path) == _CONFIG
  jax.tree.map(
    np.testing.assert_array_equal, model_directory.load(path, _CONFIG), params
  )
  assert {p.name for p in path.iterdir()} == {'config.json', 'model.safetensors'}


@pytest.mark.parametrize('axes', [(8, 1, 1), (2, 2, 2), (1, 4, 2), (1, 8, 1)])
def test_every_device_reads_its_own_part(saved, axes):
  path, params = saved
  mesh = sharding.make_mesh(*axes)
  shardings = sharding.param_shardings(_CONFIG, mesh)
  loaded = model_directory.load(path, _CONFIG, shardings)
  jax.tree.map(np.testing.assert_array_equal, loaded, params)
  jax.tree.map(lambda x, s: _same(x.sharding, s), loaded, shardings)


def _same(found, wanted):
  assert found == wanted


def test_no_more_is_read_than_a_device_holds(saved, monkeypatch):
  """On a mesh that splits every matrix, the files are read about once."""
  path, params = saved
  read = []
  original = model_directory.tensors.SafetensorsDirectory.read

  def counting(self, name, ranges):
    block = original(self, name, ranges)
    read.append(block.nbytes)
    return block

  monkeypatch.setattr(model_directory.tensors.SafetensorsDirectory, 'read', counting)
  mesh = sharding.make_mesh(1, 4, 2)
  shardings = sharding.param_shardings(_CONFIG, mesh)
  loaded = model_directory.load(path, _CONFIG, shardings)
  held = sum(
    shard.data.nbytes
    for leaf in jax.tree.leaves(loaded)
    for shard in leaf.addressable_shards
  )
  # Equal parts are read once and copied to each device that holds them.
  assert sum(x.nbytes for x in jax.tree.leaves(params)) <= sum(read) <= held


def test_bfloat16_is_what_rounding_gives(saved, tmp_path):
  _, params = saved
  model_directory.save(tmp_path / 'b', _CONFIG, params, 'bfloat16')
  loaded = model_directory.load(tmp_path / 'b', _CONFIG)
  jax.tree.map(
    lambda a, b: np.testing.assert_array_equal(
      a, np.asarray(b).astype(ml_dtypes.bfloat16).astype(np.float32)
    ),
    loaded,
    params,
  )
  assert loaded['embedding'].dtype == np.float32
  config = json.loads((tmp_path / 'b' / 'config.json').read_text())
  assert config['torch_dtype'] == 'bfloat16'


def test_a_bfloat16_checkpoint_goes_through_byte_by_byte(tmp_path):
  params = _params(seed=1)
  model_directory.save(tmp_path / 'a', _CONFIG, params, 'bfloat16')
  loaded = model_directory.load(tmp_path / 'a', _CONFIG)
  model_directory.save(tmp_path / 'b', _CONFIG, loaded, 'bfloat16')
  name = 'model.safetensors'
  assert (tmp_path / 'a' / name).read_bytes() == (tmp_path / 'b' / name).read_bytes()
  kept = dataclasses.replace(_CONFIG, param_dtype='bfloat16')
  assert model_directory.load(tmp_path / 'a', kept)['head'].dtype == 'bfloat16'


def test_one_file_of_an_earlier_save_does_not_outlive_its_shards(saved):
  path, params = saved
  model_directory.save(path, _CONFIG, params, shard_bytes=4000)
  assert not (path / 'model.safetensors').exists()
  index = json.loads((path / 'model.safetensors.index.json').read_text())
  files = set(index['weight_map'].values())
  assert len(files) > 2
  assert index['metadata']['total_size'] == sum(
    x.nbytes for x in jax.tree.leaves(params)
  )
  for file in files:
    assert (path / file).stat().st_size < 4000 + 2000  # Data and header.
  loaded = model_directory.load(path, _CONFIG)
  jax.tree.map(np.testing.assert_array_equal, loaded, params)
  model_directory.save(path, _CONFIG, params)
  assert not (path / 'model.safetensors.index.json').exists()


def test_a_tied_head_that_was_stored_is_not_read(tmp_path):
  config = dataclasses.replace(_CONFIG, tie_embeddings=True)
  params = _params(config)
  model_directory.save(tmp_path, config, params)
  file = tmp_path / 'model.safetensors'
  tensors = safetensors.numpy.load_file(file)
  tensors['lm_head.weight'] = tensors['model.embed_tokens.weight']
  safetensors.numpy.save_file(tensors, file)
  loaded = model_directory.load(tmp_path, config)
  jax.tree.map(np.testing.assert_array_equal, loaded, params)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_a_head_of_its_own_is_kept_whatever_the_config_says(tmp_path, dtype, caplog):
  params = _params()
  model_directory.save(tmp_path, _CONFIG, params, dtype)
  described = json.loads((tmp_path / 'config.json').read_text())
  described['tie_word_embeddings'] = True
  (tmp_path / 'config.json').write_text(json.dumps(described))
  config = model_directory.load_config(tmp_path)
  assert config == _CONFIG
  assert 'the head is kept apart' in caplog.text
  head = model_directory.load(tmp_path, config)['head']
  np.testing.assert_array_equal(
    head, np.asarray(params['head']).astype(dtype).astype(np.float32)
  )
  # Nor is it dropped for a caller that insists.
  tied = dataclasses.replace(_CONFIG, tie_embeddings=True)
  with pytest.raises(model_directory.CheckpointError, match='lm_head.weight differs'):
    model_directory.load(tmp_path, tied)


def test_an_equal_head_is_tied_and_one_other_number_is_not(tmp_path, monkeypatch):
  monkeypatch.setattr(model_directory, '_ROWS', 5)  # Of 24.
  tied = dataclasses.replace(_CONFIG, tie_embeddings=True)
  params = _params(tied)
  model_directory.save(tmp_path, tied, params)
  file = tmp_path / 'model.safetensors'
  tensors = safetensors.numpy.load_file(file)
  head = tensors['model.embed_tokens.weight'].copy()
  for last, expected in ((head[-1, -1], True), (7.0, False)):
    head[-1, -1] = last
    safetensors.numpy.save_file(tensors | {'lm_head.weight': head}, file)
    assert model_directory.load_config(tmp_path).tie_embeddings is expected


def test_a_head_that_is_missing_is_named(tmp_path):
  tied = dataclasses.replace(_CONFIG, tie_embeddings=True)
  model_directory.save(tmp_path, tied, _params(tied))
  described = json.loads((tmp_path / 'config.json').read_text())
  for stated in ({'tie_word_embeddings': False}, {'tie_word_embeddings': None}):
    (tmp_path / 'config.json').write_text(json.dumps(described | stated))
    config = model_directory.load_config(tmp_path)
    with pytest.raises(
      model_directory.CheckpointError, match='set tie_word_embeddings to true'
    ):
      model_directory.load(tmp_path, config)


def test_a_missing_directory_is_named(tmp_path):
  with pytest.raises(model_directory.CheckpointError, match='gone.config.json'):
    model_directory.load_config(tmp_path / 'gone')
  with pytest.raises(model_directory.CheckpointError, match='holds neither'):
    model_directory.load(tmp_path / 'gone', _CONFIG)


def test_a_config_that_is_none_is_named(saved):
  path, _ = saved
  for text in ('{', '[]', '{"vocab_size": 3}'):
    (path / 'config.json').write_text(text)
    with pytest.raises(model_directory.CheckpointError, match='config.json'):
      model_directory.load_config(path)


@pytest.mark.parametrize('cut', [100, 10**4, -4])
def test_a_torn_file_is_named(saved, cut):
  path, _ = saved
  file = path / 'model.safetensors'
  file.write_bytes(file.read_bytes()[:-cut] if cut > 0 else b'what')
  with pytest.raises(model_directory.CheckpointError, match='cut off'):
    model_directory.load(path, _CONFIG)


def test_a_torn_or_missing_shard_is_named(saved):
  path, params = saved
  model_directory.save(path, _CONFIG, params, shard_bytes=4000)
  second = sorted(path.glob('model-00002*'))[0]
  whole = second.read_bytes()
  second.write_bytes(whole[:-1])
  # Known from the headers, before a tensor is read.
  with pytest.raises(model_directory.tensors.TensorError, match='the file was cut'):
    model_directory.tensors.SafetensorsDirectory(path)
  with pytest.raises(model_directory.CheckpointError, match=second.name):
    model_directory.load(path, _CONFIG)
  second.unlink()
  with pytest.raises(
    model_directory.CheckpointError, match=f'{second.name} does not exist'
  ):
    model_directory.load(path, _CONFIG)


@pytest.mark.parametrize(
  'index',
  [
    '{',
    '{}',
    '{"weight_map": {}}',
    '{"weight_map": []}',
    '{"weight_map": {"a": "../b.safetensors"}}',
    '{"weight_map": {"nowhere": "model.safetensors"}}',
  ],
)
def test_a_broken_index_is_named(saved, index):
  path, _ = saved
  (path / 'model.safetensors.index.json').write_text(index)
  with pytest.raises(model_directory.CheckpointError, match='index.json'):
    model_directory.load(path, _CONFIG)


@pytest.mark.parametrize(
  'header',
  [
    b'[]',
    b'{"a": 3}',
    b'\xff\xfe',
    b'{"a": {"dtype": "I4", "shape": [1], "data_offsets": [0, 1]}}',
    b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 8]}}',
    b'{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, -4]}}',
    b'{"a": {"dtype": "F32", "shape": [9], "data_offsets": [0, 36]}}',
  ],
)
def test_a_broken_header_is_named(saved, header):
  path, _ = saved
  data = len(header).to_bytes(8, 'little') + header + b'12345678'
  (path / 'model.safetensors').write_bytes(data)
  with pytest.raises(
    model_directory.CheckpointError, match='broken header|lacks tensor'
  ):
    model_directory.load(path, _CONFIG)


@pytest.mark.parametrize(
  'change, message',
  [
    ({'d_ff': 64}, 'has shape'),
    ({'n_layers': 3}, "lacks tensor 'model.layers.2"),
    ({'n_layers': 1}, "unknown tensor 'model.layers.1"),
    ({'tie_embeddings': True, 'vocab_size': 25}, 'embed_tokens.weight has'),
    ({'qkv_bias': False}, 'unknown tensor'),
    ({'qkv_bias': False, 'qk_norm': True}, "lacks tensor '.*q_norm"),
  ],
)
def test_weights_of_another_network_name_the_tensor(saved, change, message):
  path, _ = saved
  other = dataclasses.replace(_CONFIG, **change)
  with pytest.raises(model_directory.CheckpointError, match=message):
    model_directory.load(path, other)


_PEAK = """
import os, resource, sys
os.environ['XLA_FLAGS'] = '--xla_force_host_platform_device_count=8'
os.environ['JAX_PLATFORMS'] = 'cpu'
import jax
from agentflow_jax.core import model, sharding
from agentflow_jax.weights import model_directory

def peak():
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

config = model_directory.load_config(sys.argv[1])
mesh = sharding.make_mesh(1, 8, 1)
shardings = sharding.param_shardings(config, mesh)
jax.block_until_ready(jax.device_put(1.0))
before = peak()
loaded = jax.block_until_ready(model_directory.load(sys.argv[1], config, shardings))
held = sum(
    s.data.nbytes for x in jax.tree.leaves(loaded) for s in x.addressable_shards
)
print((peak() - before) / held, held)
"""


@pytest.mark.slow
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_loading_onto_a_mesh_holds_little_more_than_its_result(tmp_path, dtype):
  config = model.ModelConfig(
    vocab_size=16384,
    d_model=1024,
    n_layers=6,
    n_heads=16,
    n_kv_heads=8,
    head_dim=64,
    d_ff=4096,
    max_positions=64,
    tie_embeddings=False,
  )
  shapes = model.param_shapes(config)
  params = jax.tree.map(lambda s: np.full(s.shape, 0.5, s.dtype), shapes)
  model_directory.save(tmp_path, config, params, dtype)
  done = subprocess.run(
    [sys.executable, '-c', _PEAK, str(tmp_path)],
    capture_output=True,
    text=True,
    check=True,
    cwd=pathlib.Path(__file__).parents[2],
  )
  ratio, held = map(float, done.stdout.split())
  assert held > 4e8
  assert ratio < 1.3, ratio
