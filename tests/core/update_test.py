"""The jitted update: invariance, the guard, donation, accumulation."""

import collections
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from agentflow_jax.core import batch as batch_lib, flow_grpo, hlo, losses, model
from agentflow_jax.core import optimizer, sharding, update
from tests.core import oracle
from tests.core import networks

CONFIG = model.ModelConfig(
  vocab_size=64,
  d_model=16,
  n_layers=2,
  n_heads=4,
  n_kv_heads=2,
  head_dim=8,
  d_ff=32,
  max_positions=64,
)
LOSS = flow_grpo.FlowGrpoConfig(kl_coef=0.1)
SFT = losses.SftConfig()
INF = np.float32(np.inf)
# Without clipping and with b1 = 0 the first moment is the gradient itself.
PLAIN = optimizer.OptimizerConfig(1e-3, b1=0.0, b2=0.0, max_grad_norm=None)


@functools.cache
def _mesh(data=1, fsdp=1, tensor=1):
  devices = jax.devices()[: data * fsdp * tensor]
  return sharding.make_mesh(data, fsdp, tensor, devices)


@functools.cache
def _update_fn(loss=LOSS, mesh=(1, 1, 1), tx=PLAIN, chunk=None):
  return update.make_update_fn(CONFIG, tx, loss, _mesh(*mesh), chunk)


@functools.cache
def _score_fn():
  return update.make_score_fn(CONFIG, _mesh())


@functools.cache
def _host_params(seed=0):
  return jax.device_get(networks.params(CONFIG, seed))


def _state(mesh=(1, 1, 1), tx=PLAIN, seed=0):
  return update.init_train_state(
    CONFIG, tx, _mesh(*mesh), jax.random.key(0), _host_params(seed)
  )


@functools.cache
def _rows(perturb=0.3, seed=0, n=13):
  """Returns turn rows whose old logprobs are off policy by `perturb` nats."""
  rng = np.random.default_rng(seed)
  rows = []
  for index in range(n):
    prompt, response = int(rng.integers(2, 8)), int(rng.integers(1, 6))
    rows.append(
      batch_lib.TurnRow(
        rng.integers(0, 64, prompt),
        rng.integers(0, 64, response),
        target_weight=float(rng.random()) / n,
        behavior_logprobs=np.zeros(response, np.float32),
        advantage=float(rng.normal()),
        temperature=(0.7, 1.0, 1.3)[index % 3],
      )
    )
  batch, packing = _pack(rows)
  scores = _score_fn()(_host_params(), batch)
  return [
    dataclasses.replace(
      row,
      behavior_logprobs=np.asarray(x + perturb * rng.normal(size=len(x)), np.float32),
    )
    for row, x in zip(rows, batch_lib.unpack(packing, scores), strict=True)
  ]


def _pack(rows, tokens=16, rows_per_micro=8, **kwargs):
  return batch_lib.pack(
    rows,
    tokens_per_row=tokens,
    rows_per_micro=rows_per_micro,
    max_micro=kwargs.pop('max_micro', 2),
    **kwargs,
  )


def _gradient(rows, loss=LOSS, mesh=(1, 1, 1), chunk=None, **packing):
  """Returns the gradient, as Adam's first moment, and the metrics."""
  batch, _ = _pack(rows, **packing)
  ref = _host_params(1) if loss is not SFT and loss.kl_coef else None
  state, metrics = _update_fn(loss, mesh, PLAIN, chunk)(_state(mesh), ref, batch, INF)
  assert metrics['refused'] == 0
  moments = optax.tree_utils.tree_get(state.opt_state, 'mu')
  return jax.device_get(moments), jax.device_get(metrics)


def _assert_same(got, expected, tolerance=1e-5):
  """Asserts ||g - g'|| / ||g|| <= tolerance in every leaf."""
  for (path, a), b in zip(
    jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(expected), strict=True
  ):
    norm = np.linalg.norm(b)
    assert norm > 0, path
    assert np.linalg.norm(a - b) <= tolerance * norm, path


@functools.cache
def _baseline():
  return _gradient(_rows())


def test_the_baseline_is_off_policy_and_clips():
  _, metrics = _baseline()
  assert metrics['ratio_max'] > 1.3 and metrics['ratio_min'] < 0.8
  assert metrics['clip_frac_low'] > 0 and metrics['clip_frac_high'] > 0
  assert metrics['kl'] > 0


def test_loss_equals_the_float64_oracle_through_the_model():
  rows = _rows()
  ref_params, params = _host_params(1), _host_params()
  loss = 0.0
  for row in rows:
    ids = np.concatenate([row.prompt_ids, row.response_ids])[None]
    n, first = ids.shape[1] - 1, len(row.prompt_ids) - 1
    inputs = ids[:, :-1], np.arange(n)[None], np.ones((1, n), int)
    scores = [
      oracle.log_prob_of(
        oracle.transformer(CONFIG, p, *inputs),
        ids[:, 1:],
        np.full((1, n), row.temperature),
      )[0, first:]
      for p in (params, ref_params)
    ]
    ratio = np.exp(scores[0] - row.behavior_logprobs)
    surrogate = np.minimum(
      ratio * row.advantage, np.clip(ratio, 0.8, 1.3) * row.advantage
    )
    d = scores[1] - scores[0]
    loss += row.target_weight * (0.1 * (np.exp(d) - d - 1) - surrogate).sum()
  _, metrics = _baseline()
  assert abs(metrics['loss'] - loss) <= 1e-6 * max(1, abs(loss))


def test_gradient_does_not_depend_on_row_order():
  rows = _rows()
  order = np.random.default_rng(3).permutation(len(rows))
  _assert_same(_gradient([rows[i] for i in order])[0], _baseline()[0])


@pytest.mark.parametrize(
  'packing',
  [
    # One turn row a packed row; longer rows; many micro-batches.
    pytest.param(
      {'tokens': 12, 'rows_per_micro': 13, 'max_micro': 1}, marks=pytest.mark.slow
    ),
    {'tokens': 40, 'rows_per_micro': 2, 'max_micro': 4},
    pytest.param(
      {'tokens': 16, 'rows_per_micro': 1, 'max_micro': 16}, marks=pytest.mark.slow
    ),
  ],
)
def test_gradient_does_not_depend_on_packing(packing):
  grads, metrics = _gradient(_rows(), **packing)
  _assert_same(grads, _baseline()[0])
  for name, value in _baseline()[1].items():
    np.testing.assert_allclose(metrics[name], value, rtol=2e-5, atol=1e-6, err_msg=name)


def test_gradient_does_not_depend_on_the_pad_id_even_if_it_equals_eos():
  # Every response ends with the token that also pads.
  rows = [
    dataclasses.replace(row, response_ids=np.concatenate([row.response_ids[:-1], [2]]))
    for row in _rows()
  ]
  for got, expected in zip(
    jax.tree.leaves(_gradient(rows, pad_id=2)),
    jax.tree.leaves(_gradient(rows, pad_id=0)),
    strict=True,
  ):
    np.testing.assert_array_equal(got, expected)


def test_gradient_does_not_depend_on_micro_batches_that_are_not_used():
  batch, _ = _pack(_rows())
  assert batch.n_micro < len(batch.weights)
  # What lies in unused micro-batches must not even be read.
  batch.weights[int(batch.n_micro) :] = 1e9
  batch.advantages[int(batch.n_micro) :] = np.nan
  state, _ = _update_fn()(_state(), _host_params(1), batch, INF)
  _assert_same(
    jax.device_get(optax.tree_utils.tree_get(state.opt_state, 'mu')), _baseline()[0]
  )


@pytest.mark.slow
def test_gradient_does_not_depend_on_the_logits_chunk():
  for chunk in (4, 5):  # Of 5, the last is padded.
    _assert_same(_gradient(_rows(), chunk=chunk)[0], _baseline()[0])
  with pytest.raises(ValueError, match='logits_chunk'):
    _gradient(_rows(), chunk=0)


@pytest.mark.parametrize(
  'mesh',
  [
    (2, 2, 2),
    *(
      pytest.param(mesh, marks=pytest.mark.slow)
      for mesh in (
        (1, 1, 2),
        (2, 1, 1),
        (1, 2, 1),
        (1, 2, 2),
        (4, 1, 1),
        (1, 4, 1),
        (8, 1, 1),
        (1, 8, 1),
        (1, 4, 2),
      )
    ),
  ],
)
def test_gradient_does_not_depend_on_the_mesh(mesh):
  grads, metrics = _gradient(_rows(), mesh=mesh)
  _assert_same(grads, _baseline()[0])
  for name, value in _baseline()[1].items():
    np.testing.assert_allclose(metrics[name], value, rtol=2e-5, atol=1e-6, err_msg=name)


def test_what_crosses_data_does_so_once_an_update():
  """Not in the loops over micro-batches and layers: slices are far apart."""
  mesh = (4, 1, 1)
  batch, _ = _pack(_rows())
  text = (
    _update_fn(LOSS, mesh, PLAIN, None)
    .lower(_state(mesh), _host_params(1), batch, INF)
    .compile()
    .as_text()
  )
  found = collections.Counter()
  for line in text.splitlines():
    if line.startswith(('ENTRY ', '%')):
      where = line.split()[0]
    if kind := hlo.sent_by(line):
      found[where, kind] += 1
  assert set(found) == {('ENTRY', 'all-reduce')}  # Once an update.


@pytest.mark.slow
def test_sequence_ratios_do_not_depend_on_packing_or_mesh():
  loss = dataclasses.replace(LOSS, ratio_level='sequence')
  base, metrics = _gradient(_rows(), loss)
  assert abs(metrics['loss'] - _baseline()[1]['loss']) > 1e-4
  one_a_row = {'tokens': 12, 'rows_per_micro': 14, 'max_micro': 1}
  _assert_same(_gradient(_rows(), loss, **one_a_row)[0], base)
  _assert_same(_gradient(_rows(), loss, mesh=(2, 2, 2))[0], base)


def _metrics(batch, params=None, bound=1e-5):
  state = (
    _state()
    if params is None
    else update.init_train_state(CONFIG, PLAIN, _mesh(), jax.random.key(0), params)
  )
  before = jax.device_get(state)
  after, metrics = _update_fn()(state, _host_params(1), batch, np.float32(bound))
  return before, jax.device_get(after), jax.device_get(metrics)


def _same_bits(a, b):
  return all(
    np.array_equal(x, y, equal_nan=True)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  )


def test_on_policy_the_gap_is_within_1e_5():
  batch, _ = _pack(_rows(perturb=0.0))
  before, after, metrics = _metrics(batch)
  assert metrics['logprob_gap/max'] <= 1e-5
  assert metrics['refused'] == 0 and after.step == before.step + 1
  assert not _same_bits(before.params, after.params)


def _temperature(batch):
  return batch.replace(temperature=np.ones_like(batch.temperature))


def _shifted_mask(batch):
  return batch.replace(weights=np.roll(batch.weights, -1, axis=2))


def _leaky_mask(batch):
  # Every token sees all that came before it in its row.
  ends = np.where(batch.subtree_end > 0, batch.subtree_end.shape[-1], 0)
  return batch.replace(subtree_end=ends)


def _shifted_positions(batch):
  return batch.replace(positions=batch.positions * 2)


def _truncated(batch):
  # The sampler kept 90% of the mass and renormalised; the trainer does not.
  return batch.replace(
    behavior_logprobs=np.where(
      batch.weights > 0, batch.behavior_logprobs - np.float32(np.log(0.9)), 0
    )
  )


@pytest.mark.parametrize(
  'mutate', [_temperature, _shifted_mask, _leaky_mask, _shifted_positions, _truncated]
)
def test_the_gap_catches_what_is_not_the_sampled_policy(mutate):
  batch, _ = _pack(_rows(perturb=0.0))
  before, after, metrics = _metrics(mutate(batch))
  assert metrics['logprob_gap/max'] > 1e-3
  assert metrics['refused'] == update.REFUSED_GAP
  assert metrics['update_norm'] == 0
  assert _same_bits(before, after)
  # The same batch without a bound is taken: it is the bound that refused.
  assert _metrics(mutate(batch), bound=np.inf)[2]['refused'] == 0


def test_the_gap_catches_stale_parameters():
  batch, _ = _pack(_rows(perturb=0.0))
  # One small update later the recorded logprobs are of another policy.
  params = jax.tree.map(lambda x: x * np.float32(1.001), _host_params())
  before, after, metrics = _metrics(batch, params)
  assert metrics['refused'] == update.REFUSED_GAP
  assert _same_bits(before, after)


@pytest.mark.parametrize('bound', [1e-5, np.inf])
def test_a_gradient_that_is_not_finite_leaves_the_state(bound):
  batch, _ = _pack(_rows(perturb=0.0))
  place = tuple(np.argwhere(batch.weights > 0)[0])
  batch.advantages[place] = np.nan
  before, after, metrics = _metrics(batch, bound=bound)
  assert metrics['refused'] == update.REFUSED_NONFINITE
  assert _same_bits(before, after)


@pytest.mark.parametrize('bound', [1e-5, np.inf])
def test_a_gap_that_is_not_a_number_is_within_no_bound(bound):
  # The loss does not read what was recorded: a sampler's NaN shows there alone.
  batch, _ = _pack(_rows(perturb=0.0))
  batch = batch.replace(old_logprobs=_score_fn()(_host_params(), batch))
  assert _metrics(batch, bound=bound)[2]['refused'] == 0
  recorded = batch.behavior_logprobs.copy()
  recorded[tuple(np.argwhere(batch.weights > 0)[0])] = np.nan
  before, after, metrics = _metrics(
    batch.replace(behavior_logprobs=recorded), bound=bound
  )
  assert np.isnan(metrics['logprob_gap/max'])
  assert np.isfinite(metrics['grad_norm']) and np.isfinite(metrics['loss'])
  assert metrics['refused'] == update.REFUSED_GAP
  assert _same_bits(before, after)


def test_the_state_is_donated_and_the_callers_parameters_are_not():
  params = jax.tree.map(jnp.asarray, _host_params())
  state = update.init_train_state(CONFIG, PLAIN, _mesh(), jax.random.key(0), params)
  batch, _ = _pack(_rows())
  after, _ = _update_fn()(state, _host_params(1), batch, INF)
  assert all(x.is_deleted() for x in jax.tree.leaves(state.params))
  for tree in (params, after.params):
    assert not any(x.is_deleted() for x in jax.tree.leaves(tree))


def test_clipping_sees_the_total_gradient():
  rows = _rows()
  norm = float(_baseline()[1]['grad_norm'])
  tx = dataclasses.replace(PLAIN, max_grad_norm=norm / 3)
  batch, _ = _pack(rows, tokens=16, rows_per_micro=1, max_micro=16)
  state, metrics = _update_fn(tx=tx)(_state(tx=tx), _host_params(1), batch, INF)
  np.testing.assert_allclose(metrics['grad_norm'], norm, rtol=1e-5)
  moments = jax.device_get(optax.tree_utils.tree_get(state.opt_state, 'mu'))
  _assert_same(moments, jax.tree.map(lambda g: g / 3, _baseline()[0]))


def test_sft_gradient_equals_autodiff_of_the_plain_loss():
  rows = [dataclasses.replace(row, prompt_weight=0.01) for row in _rows()]

  ids = np.zeros((len(rows), 13), np.int32)
  real = np.zeros((len(rows), 12), np.int32)
  weights = np.zeros((len(rows), 12))
  for index, row in enumerate(rows):
    first, n = len(row.prompt_ids), len(row.prompt_ids) + len(row.response_ids)
    ids[index, :n] = np.concatenate([row.prompt_ids, row.response_ids])
    real[index, : n - 1] = n - 1
    weights[index, : first - 1] = 0.01
    weights[index, first - 1 : n - 1] = row.target_weight
  temperature = np.array([row.temperature for row in rows])[:, None, None]
  positions = np.broadcast_to(np.arange(12, dtype=np.int32), real.shape)

  @jax.jit
  def loss_fn(params):
    logits = model.forward(CONFIG, params, ids[:, :-1], positions, real)
    scores = jax.nn.log_softmax(logits / temperature)
    picked = jnp.take_along_axis(scores, ids[:, 1:, None], axis=-1)[..., 0]
    return -(weights * picked).sum()

  expected_loss, expected = jax.value_and_grad(loss_fn)(
    jax.tree.map(jnp.asarray, _host_params())
  )
  grads, metrics = _gradient(rows, SFT)
  np.testing.assert_allclose(metrics['loss'], expected_loss, rtol=1e-6)
  _assert_same(grads, expected)


@pytest.mark.exact
def test_state_is_born_sharded_and_the_same_on_every_mesh():
  tx = optimizer.OptimizerConfig(1e-3, weight_decay=0.1)
  states = [
    update.init_train_state(CONFIG, tx, _mesh(*mesh), jax.random.key(4))
    for mesh in ((1, 1, 1), (2, 2, 2))
  ]
  assert _same_bits(*(jax.device_get(state) for state in states))
  kernel = states[1].params['layers']['mlp']['up']['kernel']
  # [2, 16, 32] over fsdp = 2 and tensor = 2, and its moments likewise.
  assert kernel.addressable_shards[0].data.shape == (2, 8, 16)
  for name in ('mu', 'nu'):
    moment = optax.tree_utils.tree_get(states[1].opt_state, name)
    assert moment['layers']['mlp']['up']['kernel'].sharding == kernel.sharding


@pytest.mark.slow
def test_a_step_of_muon_does_not_depend_on_the_mesh():
  tx = optimizer.OptimizerConfig(1e-2, kind='muon')
  batch, _ = _pack(_rows())
  after = {}
  for mesh in ((1, 1, 1), (2, 2, 2)):
    after[mesh], _ = _update_fn(LOSS, mesh, tx)(
      _state(mesh, tx), _host_params(1), batch, INF
    )
  _assert_same(*(jax.device_get(s.params) for s in after.values()))
  kernel = after[2, 2, 2].params['layers']['mlp']['up']['kernel']
  assert kernel.addressable_shards[0].data.shape == (2, 8, 16)
  moments = optax.tree_utils.tree_get_all_with_path(after[2, 2, 2].opt_state, 'mu')
  held = [m['layers']['mlp']['up']['kernel'] for _, m in moments]
  # Adam's state has no moment of what Muon takes.
  (moment,) = [m for m in held if not isinstance(m, optax.MaskedNode)]
  assert moment.sharding == kernel.sharding


def test_what_does_not_fit_is_refused_at_once():
  batch, _ = _pack(_rows())
  with pytest.raises(ValueError, match='NoneType'):
    _update_fn()(_state(), None, batch, INF)
  with pytest.raises(ValueError, match='given but unused'):
    _update_fn(SFT)(_state(), _host_params(1), batch, INF)
  with pytest.raises(ValueError, match='evenly divide'):
    odd, _ = _pack(_rows(), rows_per_micro=7)
    _update_fn(mesh=(2, 1, 1))(_state((2, 1, 1)), _host_params(1), odd, INF)
  params = dict(_host_params())
  params['embedding'] = params['embedding'][:-1]
  with pytest.raises(ValueError, match=r'embedding.*\(64, 16\).*\(63, 16\)'):
    update.init_train_state(CONFIG, PLAIN, _mesh(), jax.random.key(0), params)


def test_recomputed_old_logprobs_make_ratios_one():
  batch, _ = _pack(_rows(perturb=0.5))
  scores = _score_fn()(_host_params(), batch)
  state, metrics = _update_fn()(
    _state(), _host_params(1), batch.replace(old_logprobs=scores), INF
  )
  assert abs(float(metrics['ratio_max']) - 1) < 1e-5
  assert abs(float(metrics['ratio_min']) - 1) < 1e-5
  assert metrics['logprob_gap/max'] > 0.1
  assert int(state.step) == 1


@pytest.mark.slow
def test_bfloat16_activations_train_float32_parameters():
  config = dataclasses.replace(CONFIG, dtype='bfloat16', remat='full')
  fn = update.make_update_fn(config, PLAIN, SFT, _mesh())
  state = update.init_train_state(
    config, PLAIN, _mesh(), jax.random.key(0), _host_params()
  )
  batch, _ = _pack(_rows())
  state, metrics = fn(state, None, batch, INF)
  assert metrics['refused'] == 0
  assert {x.dtype for x in jax.tree.leaves(state.params)} == {jnp.dtype('float32')}
  full = _gradient(_rows(), SFT)[1]
  np.testing.assert_allclose(metrics['loss'], full['loss'], rtol=2e-2)
