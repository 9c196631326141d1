"""Adapters in PEFT's format, against PEFT's own product and a plain one."""

import json
import re

import numpy as np
import pytest

from agentflow_jax.core import lora as lora_lib, model
from agentflow_jax.weights import adapter_files, model_directory, tensors
from tests.core import networks

_NETWORK = model.ModelConfig(
  vocab_size=48,
  d_model=16,
  n_layers=2,
  n_heads=4,
  n_kv_heads=2,
  head_dim=8,
  d_ff=24,
  max_positions=64,
)


def _adapters(lora, params, seed=0):
  """Random factors beside every kernel that the config adapts."""
  rng = np.random.default_rng(seed)
  d_in = {'q': 1, 'k': 1, 'v': 1, 'o': 2, 'gate': 1, 'up': 1, 'down': 1}

  def walk(tree, name):
    found = {}
    for key, value in tree.items():
      if isinstance(value, dict):
        below = walk(value, key)
        if below:
          found[key] = below
      elif key == 'kernel' and lora.adapts(name):
        n, shape = value.shape[0], value.shape[1:]
        split = d_in[name]
        found[lora_lib.A] = rng.normal(size=(n, *shape[:split], lora.rank)) * 0.1
        found[lora_lib.B] = rng.normal(size=(n, lora.rank, *shape[split:])) * 0.1
    return {
      k: np.float32(v) if not isinstance(v, dict) else v for k, v in found.items()
    }

  return walk(params, '')


def _read(path):
  stored = tensors.SafetensorsDirectory(path, single=adapter_files.TENSORS)
  return {
    name: stored.read(name, [(0, n) for n in shape])
    for name, shape in stored.shapes.items()
  }


@pytest.mark.parametrize('targets', [lora_lib.TARGETS, ('q', 'down')])
def test_the_written_factors_are_the_merged_weights(tmp_path, targets):
  lora = lora_lib.LoraConfig(rank=3, alpha=6.0, targets=targets)
  params = networks.params(_NETWORK)
  adapters = _adapters(lora, params)
  merged = lora_lib.merge(lora, params, adapters)
  for name, tree in (('base', params), ('merged', merged)):
    model_directory.save(tmp_path / name, _NETWORK, tree)
  adapter_files.save(tmp_path / 'adapter', _NETWORK, lora, adapters, base='base')
  read = _read(tmp_path / 'adapter')
  described = json.loads((tmp_path / 'adapter' / adapter_files.CONFIG).read_text())
  assert described['r'] == 3 and described['lora_alpha'] == 6
  assert described['target_modules'] == sorted(f'{t}_proj' for t in targets)
  base, whole = (
    tensors.SafetensorsDirectory(tmp_path / name) for name in ('base', 'merged')
  )
  adapted = set()
  for name, shape in base.shapes.items():
    one, other = (
      stored.read(name, [(0, n) for n in shape]) for stored in (base, whole)
    )
    factor = f'base_model.model.{name.removesuffix(".weight")}'
    if f'{factor}.lora_A.weight' in read:
      adapted.add(re.search(r'(\w+)_proj', name)[1])
      a, b = read[f'{factor}.lora_A.weight'], read[f'{factor}.lora_B.weight']
      assert a.shape == (3, shape[1]) and b.shape == (shape[0], 3)
      one = one + 2.0 * b @ a
    np.testing.assert_allclose(one, other, rtol=0, atol=1e-6, err_msg=name)
  assert adapted == set(targets)
  assert len(read) == 2 * _NETWORK.n_layers * len(targets)


def test_adapters_are_copied_and_rounded(tmp_path):
  lora = lora_lib.LoraConfig(rank=2, targets=('o',))
  params = networks.params(_NETWORK)
  adapter_files.save(tmp_path / 'a', _NETWORK, lora, _adapters(lora, params))
  count = adapter_files.copy(tmp_path / 'a', tmp_path / 'b', 'bfloat16')
  first, second = _read(tmp_path / 'a'), _read(tmp_path / 'b')
  assert count == sum(x.size for x in first.values())
  for name, value in first.items():
    assert second[name].dtype.name == 'bfloat16'
    np.testing.assert_allclose(second[name].astype(np.float32), value, rtol=1e-2)
  with pytest.raises(model_directory.CheckpointError, match='no adapters'):
    adapter_files.copy(tmp_path, tmp_path / 'c', 'float32')


@pytest.mark.slow
def test_peft_loads_it_and_computes_the_same_logits(tmp_path):
  transformers = pytest.importorskip('transformers')
  torch = pytest.importorskip('torch')
  peft = pytest.importorskip('peft')
  lora = lora_lib.LoraConfig(rank=3, alpha=6.0)
  params = networks.params(_NETWORK)
  adapters = _adapters(lora, params)
  model_directory.save(tmp_path / 'base', _NETWORK, params)
  adapter_files.save(tmp_path / 'adapter', _NETWORK, lora, adapters)
  loaded = transformers.AutoModelForCausalLM.from_pretrained(
    tmp_path / 'base', dtype=torch.float32
  )
  loaded = peft.PeftModel.from_pretrained(loaded, str(tmp_path / 'adapter')).eval()
  ids = np.random.default_rng(1).integers(0, _NETWORK.vocab_size, (2, 20))
  with torch.no_grad():
    theirs = loaded(torch.tensor(ids)).logits.numpy()
    plain = loaded.get_base_model()
    with loaded.disable_adapter():
      without = plain(torch.tensor(ids)).logits.numpy()
  positions = np.broadcast_to(np.arange(20), ids.shape)
  ours = model.forward(
    _NETWORK,
    lora_lib.merge(lora, params, adapters),
    ids.astype(np.int32),
    positions,
    np.full(ids.shape, 20),
  )
  assert np.abs(theirs - without).max() > 1e-2
  np.testing.assert_allclose(np.asarray(ours), theirs, rtol=0, atol=1e-4)
