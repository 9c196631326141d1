"""A step of several mini-batches, held against its updates one by one."""

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from agentflow_jax.config import loading, schema
from agentflow_jax.core import batch, gap_bounds, model, sharding, update
from agentflow_jax.runtime import exits
from agentflow_jax.training import trainer as trainer_lib, update_shapes
from agentflow_jax.weights import checkpoints, host_copies, model_directory
from tests.config import mini
from tests.core import oracle
from tests.core import networks

_NETWORK = model.ModelConfig(
  vocab_size=32,
  d_model=16,
  n_layers=1,
  n_heads=2,
  n_kv_heads=1,
  head_dim=8,
  d_ff=24,
  max_positions=64,
)


@pytest.fixture(scope='module')
def base(tmp_path_factory):
  """The quickstart's settings, for a network of a few thousand weights."""
  config = mini.config(tmp_path_factory.mktemp('trainer'))
  assert (
    loading.load(str(mini.ROOT / 'experiments' / 'quickstart.py')).train.mini_batches
    == 2
  )
  return dataclasses.replace(
    config,
    batch=schema.BatchConfig(tokens_per_row=32, rows_per_micro=1),
    # Updates that a test can see.
    optimizer=dataclasses.replace(config.optimizer, learning_rate=1e-2),
    planner=dataclasses.replace(config.planner, directory=''),
    flow_grpo=dataclasses.replace(config.flow_grpo, kl_coef=0.0),
  )


@pytest.fixture(scope='module')
def trainer(base):
  return _trainer(base)


@functools.cache
def _mesh():
  return sharding.make_mesh(devices=jax.devices()[:1])


@functools.cache
def _params():
  return jax.device_get(networks.params(_NETWORK))


def _trainer(config, network=_NETWORK, params=None):
  return trainer_lib.Trainer(
    types.SimpleNamespace(
      config=config,
      model=types.SimpleNamespace(
        config=network,
        mesh=_mesh(),
        params=_params() if params is None else params,
        described={},
        tokenizer=types.SimpleNamespace(pad_id=0),
      ),
    )
  )


def _anew(trainer, network=_NETWORK, params=None, bound=1e-5):
  """Puts a trainer back to its start: cheaper than to compile another one."""
  config = trainer._config
  trainer.bounds = gap_bounds.GapBounds(max=bound)
  trainer.state = update.init_train_state(
    network,
    config.optimizer,
    _mesh(),
    jax.random.key(0),
    _params() if params is None else params,
  )
  return trainer


def _logprobs(params, row):
  """Float64 log probabilities of a row's response."""
  ids = np.concatenate([row.prompt_ids, row.response_ids])[None]
  n, first = ids.shape[1] - 1, len(row.prompt_ids) - 1
  logits = oracle.transformer(
    _NETWORK, params, ids[:, :-1], np.arange(n)[None], np.ones((1, n), int)
  )
  return oracle.log_prob_of(logits, ids[:, 1:], np.ones((1, n)))[0, first:]


@functools.cache
def _rows(seed):
  """Turn rows that `_params` sampled, of responses of several lengths."""
  rng = np.random.default_rng(seed)
  rows = []
  for length, advantage in ((3, 1.0), (5, -1.0), (2, 0.5)):
    row = batch.TurnRow(
      rng.integers(0, 32, 4), rng.integers(0, 32, length), 0.1, advantage=advantage
    )
    recorded = _logprobs(_params(), row).astype(np.float32)
    rows.append(dataclasses.replace(row, behavior_logprobs=recorded))
  return tuple(rows)


def _shifted(rows, by):
  """The same rows with recorded logprobs that are wrong by so many nats."""
  return tuple(
    dataclasses.replace(r, behavior_logprobs=r.behavior_logprobs + by) for r in rows
  )


@pytest.fixture(scope='module')
def alone(base, trainer):
  """What the two updates of a step give one by one, without a bound."""
  (fn,) = trainer._updates.values()
  state, metrics = _anew(trainer).state, []
  for rows in (_rows(0), _rows(1)):
    packed, _ = update_shapes.pack(base, rows)
    unbounded = gap_bounds.GapBounds().array()
    state, found = fn(state, None, sharding.put_batch(packed, _mesh()), unbounded)
    metrics.append({k: float(v) for k, v in found.items()})
  return jax.device_get(state), metrics


def test_a_step_is_its_mini_batches_one_after_the_other(trainer, alone):
  _anew(trainer)
  metrics = trainer.step((_rows(0), (), _rows(1)))  # One has no rows.
  state, (first, second) = alone
  jax.tree.map(np.testing.assert_array_equal, trainer.state, state)
  assert metrics['updates'] == 2 and metrics['batch/rows'] == 6
  # The second update's parameters did not sample: its gap is no fault.
  assert first['logprob_gap/max'] <= 1e-5 < 1e-2 < second['logprob_gap/max']
  means = set(first) - {'refused', 'n_targets', 'ratio_max', 'ratio_min'}
  for name in means:
    expected = (first[name] + second[name]) / 2
    if name.startswith('logprob_gap/'):
      expected = first[name]
    assert metrics[f'update/{name}'] == pytest.approx(expected, rel=1e-12), name
  assert metrics['update/n_targets'] == 3 + 5 + 2 + 3 + 5 + 2
  assert metrics['update/ratio_max'] == max(first['ratio_max'], second['ratio_max'])
  assert metrics['update/ratio_min'] == min(first['ratio_min'], second['ratio_min'])
  assert 'update/refused' not in metrics
  assert {'update/update_norm', 'update/applied_norm'} <= set(metrics)


def test_the_gap_is_checked_at_the_first_update_alone(trainer):
  # Off policy in the second: no reason to stop, however far.
  metrics = _anew(trainer).step((_rows(0), _shifted(_rows(1), 0.5)))
  assert metrics['update/logprob_gap/max'] <= 1e-5
  before = jax.device_get(_anew(trainer).state)
  with pytest.raises(exits.RunStopped, match='max_logprob_gap'):
    trainer.step((_shifted(_rows(0), 0.5), _rows(1)))
  jax.tree.map(np.testing.assert_array_equal, trainer.state, before)


@pytest.fixture(scope='module')
def corrected(base):
  """A trainer that rejects whole rollouts, and has a queue."""
  return _trainer(
    dataclasses.replace(
      base,
      queue=schema.QueueConfig(size=4),
      flow_grpo=dataclasses.replace(
        base.flow_grpo,
        old_logprobs='recompute',
        rejection_level='rollout',
        rejection_low=0.8,
        rejection_high=1.25,
      ),
    )
  )


def test_recomputed_old_logprobs_are_the_first_parameters_own(corrected):
  """Else every ratio would be 1, and nothing would ever be clipped."""
  trainer = corrected
  # What was recorded differs, so the ratios do not come from there.
  wrong = tuple(_shifted(_rows(seed), 1e-3) for seed in (0, 1))
  metrics = _anew(trainer, bound=1e-2).step(wrong)
  _anew(trainer, bound=1e-2).step(wrong[:1])
  between = jax.device_get(trainer.params)
  ratios = np.concatenate(
    [np.exp(_logprobs(between, row) - _logprobs(_params(), row)) for row in _rows(1)]
  )
  assert ratios.max() > 1.01 and ratios.min() < 0.99
  for name, expected in (
    ('ratio_max', max(ratios.max(), 1.0)),
    ('ratio_min', min(ratios.min(), 1.0)),
    ('ratio_mean', (1.0 + ratios.mean()) / 2),
  ):
    assert metrics[f'update/{name}'] == pytest.approx(expected, abs=2e-5), name


def test_a_rollout_that_another_policy_sampled_is_rejected_whole(corrected):
  """Recorded 1 nat off in one of its two turns: on average off in both."""
  first, second, other = (
    dataclasses.replace(row, rollout=number)
    for row, number in zip(_rows(0), (1, 1, 2), strict=True)
  )
  (wrong,) = _shifted((second,), 1.0)
  metrics = _anew(corrected, bound=2.0).step(((first, other), (wrong,)))
  # The rows of a rollout are judged by what is in their own mini-batch.
  assert metrics['update/rejected_frac'] == 0.5
  metrics = _anew(corrected, bound=2.0).step(((first, wrong, other),))
  # 3 + 5 of 3 + 5 + 2 targets; the mean over the 8 is -5/8 nats.
  assert metrics['update/rejected_frac'] == pytest.approx(0.8)
  assert metrics['update/logprob_gap/max'] == pytest.approx(1.0, abs=1e-5)
  before = jax.device_get(_anew(corrected, bound=2.0).state.params)
  metrics = corrected.step(((first, wrong),))
  assert metrics['update/rejected_frac'] == 1 and metrics['update/grad_norm'] == 0
  jax.tree.map(np.testing.assert_array_equal, corrected.state.params, before)


@pytest.mark.parametrize('field', ['mean', 'p99'])
def test_mean_and_99th_percentile_are_bounded_too(trainer, corrected, field):
  """On the device in the first update, and on the host before all of them."""
  for one in (trainer, corrected):
    before = jax.device_get(_anew(one).state)
    one.bounds = gap_bounds.GapBounds(**{field: 0.01})
    with pytest.raises(exits.RunStopped, match=f'train.{field}_logprob_gap'):
      one.step((_shifted(_rows(0), 0.02), _rows(1)))
    jax.tree.map(np.testing.assert_array_equal, one.state, before)
    one.bounds = gap_bounds.GapBounds(**{field: 0.03})
    one.step((_shifted(_rows(0), 0.02),))


def test_with_a_correction_fresh_rows_of_every_mini_batch_are_checked(corrected):
  wrong = _shifted(_rows(1), 0.5)
  before = jax.device_get(_anew(corrected).state)
  with pytest.raises(exits.RunStopped, match='max_logprob_gap'):
    corrected.step((_rows(0), wrong))
  jax.tree.map(np.testing.assert_array_equal, corrected.state, before)
  nan = tuple(
    dataclasses.replace(r, behavior_logprobs=r.behavior_logprobs * np.nan)
    for r in _rows(1)
  )
  with pytest.raises(exits.RunStopped, match='max_logprob_gap'):
    corrected.step((_rows(0), nan))  # Before the first update.
  jax.tree.map(np.testing.assert_array_equal, corrected.state, before)


def test_the_gap_of_rows_of_earlier_steps_stops_nothing(corrected):
  wrong = _shifted(_rows(0), 0.1)
  stale = tuple(dataclasses.replace(row, fresh=False, rollout=9) for row in wrong)
  metrics = _anew(corrected).step((_rows(1) + stale, stale))
  assert 0 < metrics['update/logprob_gap/max'] <= 1e-5
  assert metrics['update/rejected_frac'] == 0
  # Beside them, a fresh row that is as far off stops the run.
  for mini_batches in ((_rows(1) + stale + wrong,), (_rows(1), stale + wrong)):
    with pytest.raises(exits.RunStopped, match='max_logprob_gap'):
      _anew(corrected).step(mini_batches)


def test_rows_are_scored_by_the_parameters_now(corrected):
  rows = _rows(0) + _rows(1)
  scores = _anew(corrected).logprobs_of(rows)
  for row, score in zip(rows, scores, strict=True):
    np.testing.assert_allclose(score, row.behavior_logprobs, atol=1e-5)
  corrected.step((_rows(0),))
  (moved, *_) = corrected.logprobs_of(rows)
  expected = _logprobs(jax.device_get(corrected.params), rows[0])
  np.testing.assert_allclose(moved, expected, atol=1e-5)
  assert np.abs(moved - scores[0]).max() > 1e-3


def _rounded(tree):
  return jax.tree.map(
    lambda x: np.asarray(x).astype(jnp.bfloat16), jax.device_get(tree)
  )


@pytest.mark.slow
def test_bfloat16_parameters_resume_with_their_master(base, tmp_path):
  network = dataclasses.replace(_NETWORK, param_dtype='bfloat16')
  params = _rounded(_params())
  trainer = _trainer(base, network, params)
  start = functools.partial(
    _anew,
    trainer,
    network,
    params,
    bound=10.0,  # Rounded weights sampled.
  )
  steps = ((_rows(0), _rows(1)), (_rows(2), _rows(3)))

  def committed():
    """The state now; the parameters that are sampled from are the rounding."""
    state = jax.device_get(trainer.state)
    jax.tree.map(
      np.testing.assert_array_equal,
      jax.device_get(trainer.params),
      _rounded(state.opt_state.master),
    )
    return state

  start()
  trainer.step(steps[0])
  between = committed()
  store = checkpoints.Checkpoints(epath.Path(tmp_path) / 'c', keep=1)
  store.save(1, trainer.state, {})
  trainer.step(steps[1])
  whole, digest = committed(), host_copies.params_digest(trainer.params)
  start()
  trainer.state, _ = store.restore(1, trainer.state)
  jax.tree.map(np.testing.assert_array_equal, committed(), between)
  trainer.step(steps[1])
  jax.tree.map(np.testing.assert_array_equal, committed(), whole)
  assert host_copies.params_digest(trainer.params) == digest
  # A commit without a master was written by an older version.
  state = trainer.state
  store.save(2, state.replace(opt_state=state.opt_state.inner), {})
  with pytest.raises(model_directory.CheckpointError, match='no float32 master'):
    store.restore(2, state)
  store.close()


@pytest.mark.parametrize('stored', ['float32', 'bfloat16'])
def test_a_master_starts_from_what_the_files_hold(base, tmp_path, monkeypatch, stored):
  model_directory.save(tmp_path, _NETWORK, _params(), stored)
  network = dataclasses.replace(_NETWORK, param_dtype='bfloat16')
  config = dataclasses.replace(
    base, planner=dataclasses.replace(base.planner, directory=str(tmp_path))
  )
  read = model_directory.load(tmp_path, network)
  made = []

  class Stop(Exception):
    """Ends the trainer's start before anything is compiled."""

  def stop(unused_config, unused_mesh):
    raise Stop

  original = update.init_train_state
  monkeypatch.setattr(
    update, 'init_train_state', lambda *args: made.append(original(*args)) or made[0]
  )
  monkeypatch.setattr(update, 'make_merge_fn', stop)
  with pytest.raises(Stop):
    trainer_lib.Trainer(
      types.SimpleNamespace(
        config=config,
        model=types.SimpleNamespace(
          config=network,
          mesh=_mesh(),
          params=read,
          described=model_directory.read_config(tmp_path),
        ),
      )
    )
  (state,) = made
  expected = _params() if stored == 'float32' else _rounded(_params())
  jax.tree.map(
    np.testing.assert_array_equal,
    state.opt_state.master,
    jax.tree.map(lambda x: np.asarray(x, np.float32), expected),
  )
  # The sampler of step 0 has what was read, the trainer the same bits.
  jax.tree.map(np.testing.assert_array_equal, state.params, read)
