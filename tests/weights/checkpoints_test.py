import jax
import numpy as np
import pytest
from etils import epath

from agentflow_jax.core import model, optimizer, sharding, update
from agentflow_jax.weights import checkpoints, model_directory

_OPTIMIZER = optimizer.OptimizerConfig(1e-3)


def _state(key, d_ff=16, devices=1, tx=_OPTIMIZER):
  config = model.ModelConfig(
    vocab_size=16,
    d_model=8,
    n_layers=2,
    n_heads=2,
    n_kv_heads=2,
    head_dim=4,
    d_ff=d_ff,
    max_positions=32,
  )
  mesh = sharding.make_mesh(fsdp=devices, devices=jax.devices()[:devices])
  return update.init_train_state(config, tx, mesh, jax.random.key(key))


@pytest.fixture
def saved(tmp_path):
  store = checkpoints.Checkpoints(epath.Path(tmp_path) / 'c', keep=2)
  yield store
  store.close()


def test_a_commit_restores_state_and_run_to_the_same_bits(saved):
  state = _state(0)
  saved.save(4, state, {'cursor': 4, 'metrics': [{'step': 1, 'x': 0.1}]})
  restored, run = saved.restore(4, _state(1))
  jax.tree.map(np.testing.assert_array_equal, restored, state)
  assert run == {'cursor': 4, 'metrics': [{'step': 1, 'x': 0.1}]}


def test_an_optimizer_state_that_is_a_pair_restores_too(saved):
  pair = optimizer.OptimizerConfig(1e-3, max_grad_norm=None)
  state = _state(0, tx=pair)
  assert len(state.opt_state) == 2
  saved.save(1, state, {})
  restored, _ = saved.restore(1, _state(1, tx=pair))
  jax.tree.map(np.testing.assert_array_equal, restored, state)


def test_the_state_of_muon_restores_onto_another_mesh(saved):
  muon = optimizer.OptimizerConfig(1e-3, kind='muon')
  state = _state(0, tx=muon)
  # Zeros would be equal whatever came back.
  state = jax.tree.map(lambda x: x + 1, state)
  saved.save(1, state, {})
  restored, _ = saved.restore(1, _state(1, devices=2, tx=muon))
  jax.tree.map(np.testing.assert_array_equal, restored, state)


def test_only_the_newest_commits_are_kept(saved, tmp_path):
  assert saved.latest is None
  for step in (1, 2, 3):
    saved.save(step, _state(step), {})
  assert saved.latest == 3
  names = {p.name for p in (tmp_path / 'c').iterdir()}
  assert names == {'2', '3'}


def test_a_half_written_commit_does_not_count(saved, tmp_path):
  saved.save(1, _state(0), {})
  (tmp_path / 'c' / '2.orbax-checkpoint-tmp').mkdir()
  again = checkpoints.Checkpoints(epath.Path(tmp_path) / 'c', keep=2)
  assert again.latest == 1
  again.close()


def test_a_commit_restores_onto_another_mesh(saved):
  state = _state(0)
  saved.save(1, state, {})
  restored, _ = saved.restore(1, _state(1, devices=2))
  kernel = restored.params['layers']['mlp']['up']['kernel']
  assert len(kernel.sharding.device_set) == 2
  jax.tree.map(np.testing.assert_array_equal, restored, state)


def test_a_commit_of_another_model_is_one_clear_error(saved):
  saved.save(1, _state(0), {})
  with pytest.raises(model_directory.CheckpointError, match='step 1'):
    saved.restore(1, _state(0, d_ff=32))


def test_a_broken_commit_is_one_clear_error(saved, tmp_path):
  saved.save(1, _state(0), {})
  for path in (tmp_path / 'c' / '1' / 'state').rglob('*'):
    if path.is_file():
      path.write_bytes(b'broken')
  with pytest.raises(model_directory.CheckpointError, match='delete .*c/1'):
    saved.restore(1, _state(1))
