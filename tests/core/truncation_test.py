"""The update over the sets that tokens were drawn from: oracle and invariance."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from agentflow_jax.core import batch as batch_lib
from agentflow_jax.core import flow_grpo
from agentflow_jax.core import logprobs
from agentflow_jax.core import lora
from agentflow_jax.core import model
from agentflow_jax.core import optimizer
from agentflow_jax.core import sharding
from agentflow_jax.core import update
from tests.core import oracle
from tests.core import networks

CONFIG = model.ModelConfig(
  vocab_size=64,
  d_model=16,
  n_layers=1,
  n_heads=2,
  n_kv_heads=2,
  head_dim=8,
  d_ff=32,
  max_positions=64,
)
LOSS = flow_grpo.FlowGrpoConfig(kl_coef=0.1)
INF = np.float32(np.inf)
# Without clipping and with b1 = 0 the first moment is the gradient itself.
PLAIN = optimizer.OptimizerConfig(1e-3, b1=0.0, b2=0.0, max_grad_norm=None)
SIZE = 6


@functools.cache
def _mesh(data=1, fsdp=1, tensor=1):
  devices = jax.devices()[: data * fsdp * tensor]
  return sharding.make_mesh(data, fsdp, tensor, devices)


@functools.cache
def _update_fn(mesh=(1, 1, 1)):
  return update.make_update_fn(CONFIG, PLAIN, LOSS, _mesh(*mesh))


@functools.cache
def _host_params(seed=0):
  return jax.device_get(networks.params(CONFIG, seed))


def _logits(params, row):
  """float64[A, V] before each response token, by the oracle."""
  ids = np.concatenate([row.prompt_ids, row.response_ids])[None, :-1]
  n = ids.shape[1]
  logits = oracle.transformer(
    CONFIG, params, ids, np.arange(n)[None], np.ones((1, n), int)
  )
  return logits[0, len(row.prompt_ids) - 1 :]


def _keep(row):
  """bool[A, V]"""
  if row.kept is None:
    return np.ones((len(row.response_ids), 64), bool)
  return np.array([np.isin(np.arange(64), ids) for ids in row.kept])


def _scores(params, row):
  """float64[A]: log probabilities over the sets."""
  return oracle.log_prob_of(
    _logits(params, row),
    row.response_ids,
    np.full(len(row.response_ids), row.temperature),
    _keep(row),
  )


def _sampled(rng, prompt, length, temperature, top_p):
  """A turn row drawn as the sampler does it, in float64."""
  ids, kept = [], []
  for _ in range(length):
    row = batch_lib.TurnRow(np.array(prompt), np.array([*ids, 0]), 1.0)
    z = _logits(_host_params(), row)[-1] / temperature
    probs = np.exp(z - z.max())
    probs /= probs.sum()
    order = np.argsort(-probs)
    before = np.cumsum(probs[order]) - probs[order]
    some = order[before < top_p][:SIZE]
    ids.append(rng.choice(some, p=probs[some] / probs[some].sum()))
    kept.append(np.pad(some, (0, SIZE - len(some)), constant_values=-1))
  row = batch_lib.TurnRow(
    np.array(prompt),
    np.array(ids),
    target_weight=float(rng.random()) / 13,
    advantage=float(rng.normal()),
    temperature=temperature,
    kept=np.array(kept),
  )
  return dataclasses.replace(
    row, behavior_logprobs=_scores(_host_params(), row).astype(np.float32)
  )


@functools.cache
def _rows():
  """Rows as sampled; they share prompts, and one keeps all of V."""
  rng = np.random.default_rng(0)
  prompts = [rng.integers(0, 64, n).tolist() for n in (3, 5)]
  rows = [
    _sampled(
      rng,
      prompts[i % 2],
      int(rng.integers(1, 6)),
      (0.7, 1.0, 1.3)[i % 3],
      (0.02, 0.3, 0.9)[i % 3],
    )
    for i in range(12)
  ]
  sizes = np.concatenate([(row.kept >= 0).sum(axis=1) for row in rows])
  assert sizes.min() == 1 and sizes.max() == SIZE
  last = batch_lib.TurnRow(np.array([1, 2]), np.array([3, 4]), 0.03)
  scores = _scores(_host_params(), last).astype(np.float32)
  return *rows, dataclasses.replace(last, behavior_logprobs=scores, advantage=1.0)


@functools.cache
def _off_policy():
  rng = np.random.default_rng(1)
  return [
    dataclasses.replace(
      row,
      old_logprobs=np.float32(
        row.behavior_logprobs + 0.3 * rng.normal(size=len(row.response_ids))
      ),
    )
    for row in _rows()
  ]


def _pack(rows, tokens=12, rows_per_micro=8, **kwargs):
  settings = {'max_micro': 2, 'max_kept': SIZE} | kwargs
  return batch_lib.pack(
    rows, tokens_per_row=tokens, rows_per_micro=rows_per_micro, **settings
  )


def _updated(batch, mesh=(1, 1, 1), bound=INF):
  """Returns the gradient, as Adam's first moment, and the metrics."""
  state = update.init_train_state(
    CONFIG, PLAIN, _mesh(*mesh), jax.random.key(0), _host_params()
  )
  state, metrics = _update_fn(mesh)(state, _host_params(1), batch, bound)
  moments = optax.tree_utils.tree_get(state.opt_state, 'mu')
  return jax.device_get(moments), jax.device_get(metrics)


@functools.cache
def _baseline():
  return _updated(_pack(_off_policy())[0])


def _assert_same(got, expected, tolerance=1e-5):
  """Asserts ||g - g'|| / ||g|| <= tolerance in every leaf."""
  for (path, a), b in zip(
    jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(expected), strict=True
  ):
    norm = np.linalg.norm(b)
    assert norm > 0, path
    assert np.linalg.norm(a - b) <= tolerance * norm, path


def test_loss_and_metrics_equal_the_float64_oracle():
  loss, entropy, kl, ratios, gaps = 0.0, [], 0.0, [], []
  for row in _off_policy():
    scores, ref = (_scores(_host_params(seed), row) for seed in (0, 1))
    ratio = np.exp(scores - row.old_logprobs)
    surrogate = np.minimum(
      ratio * row.advantage, np.clip(ratio, 0.8, 1.3) * row.advantage
    )
    d = ref - scores
    kl += row.target_weight * (np.exp(d) - d - 1).sum()
    loss -= row.target_weight * surrogate.sum()
    masked = np.where(_keep(row), _logits(_host_params(), row), -np.inf)
    entropy += oracle.entropy_of(masked, np.full(len(ratio), row.temperature)).tolist()
    ratios += ratio.tolist()
    gaps += np.abs(scores - row.behavior_logprobs).tolist()
  _, metrics = _baseline()
  assert np.isfinite(kl) and kl > 0
  for name, expected in {
    'loss': loss + 0.1 * kl,
    'kl': kl,
    'entropy': np.mean(entropy),
    'ratio_mean': np.mean(ratios),
    'ratio_max': np.max(ratios),
    'ratio_min': np.min(ratios),
    'n_targets': len(ratios),
  }.items():
    np.testing.assert_allclose(
      metrics[name], expected, rtol=1e-5, atol=1e-6, err_msg=name
    )
  assert metrics['clip_frac_low'] > 0 and metrics['clip_frac_high'] > 0
  assert metrics['logprob_gap/max'] <= 1e-5


@pytest.mark.slow
def test_the_gradient_equals_autodiff_of_the_plain_definition():
  rows = _off_policy()

  @jax.jit
  def loss_fn(params):
    total = 0.0
    for row in rows:
      ids = np.concatenate([row.prompt_ids, row.response_ids])[None, :-1]
      n = ids.shape[1]
      ratio_and_ref = []
      for p in (params, _host_params(1)):
        logits = model.forward(CONFIG, p, ids, np.arange(n)[None], np.full((1, n), n))[
          0, len(row.prompt_ids) - 1 :
        ]
        scaled = jnp.where(_keep(row), logits / row.temperature, -jnp.inf)
        ratio_and_ref.append(
          jnp.take_along_axis(
            jax.nn.log_softmax(scaled), row.response_ids[:, None], axis=-1
          )[:, 0]
        )
      scores, ref = ratio_and_ref
      ratio = jnp.exp(scores - row.old_logprobs)
      surrogate = jnp.minimum(
        ratio * row.advantage, jnp.clip(ratio, 0.8, 1.3) * row.advantage
      )
      d = ref - scores
      k3 = jnp.exp(d) - d - 1
      total += row.target_weight * jnp.sum(0.1 * k3 - surrogate)
    return total

  expected = jax.grad(loss_fn)(jax.tree.map(jnp.asarray, _host_params()))
  _assert_same(_baseline()[0], expected)


@pytest.mark.parametrize(
  'packing',
  [
    {'tokens': 40, 'rows_per_micro': 2, 'max_micro': 4, 'layout': 'forest'},
    {'max_kept': SIZE + 5},
    *(
      pytest.param(packing, marks=pytest.mark.slow)
      for packing in (
        {'layout': 'forest'},
        {'block': 4},
        {'tokens': 40, 'rows_per_micro': 2, 'max_micro': 4},
      )
    ),
  ],
)
def test_gradient_does_not_depend_on_packing(packing):
  grads, metrics = _updated(_pack(_off_policy(), **packing)[0])
  _assert_same(grads, _baseline()[0])
  for name, value in _baseline()[1].items():
    np.testing.assert_allclose(metrics[name], value, rtol=2e-5, atol=1e-6, err_msg=name)


def test_gradient_depends_on_the_order_neither_of_rows_nor_within_sets():
  rows, rng = _off_policy(), np.random.default_rng(2)

  def shuffled(row):
    if row.kept is None:
      return row
    kept = np.full_like(row.kept, -1)
    for to, ids in zip(kept, row.kept, strict=True):
      ids = rng.permutation(ids[ids >= 0])
      to[: len(ids)] = ids
    return dataclasses.replace(row, kept=kept)

  mixed = [shuffled(rows[i]) for i in rng.permutation(len(rows))]
  _assert_same(_updated(_pack(mixed)[0])[0], _baseline()[0])


@pytest.mark.parametrize(
  'mesh',
  [
    (2, 2, 2),
    *(
      pytest.param(mesh, marks=pytest.mark.slow)
      for mesh in ((1, 1, 2), (2, 1, 1), (8, 1, 1), (1, 8, 1))
    ),
  ],
)
@pytest.mark.parametrize(
  'layout', ['forest', pytest.param('rows', marks=pytest.mark.slow)]
)
def test_gradient_does_not_depend_on_the_mesh(mesh, layout):
  batch, _ = _pack(_off_policy(), layout=layout)
  grads, metrics = _updated(sharding.put_batch(batch, _mesh(*mesh)), mesh)
  _assert_same(grads, _baseline()[0])
  for name, value in _baseline()[1].items():
    np.testing.assert_allclose(metrics[name], value, rtol=2e-5, atol=1e-6, err_msg=name)


def test_on_policy_the_ratio_is_1_and_without_the_sets_the_kept_mass():
  rows = _rows()
  _, metrics = _updated(_pack(rows)[0], bound=np.float32(1e-5))
  assert metrics['refused'] == update.ACCEPTED
  assert metrics['logprob_gap/max'] <= 1e-5
  for name in ('ratio_mean', 'ratio_min', 'ratio_max'):
    np.testing.assert_allclose(metrics[name], 1.0, atol=1e-5, err_msg=name)
  # What a trainer does that knows nothing of the sets: the sampled tokens' mass
  # over all of V is that over the set, times the mass kept.
  mass = []
  for row in rows:
    z = _logits(_host_params(), row) / row.temperature
    probs = np.exp(z - z.max(axis=-1, keepdims=True))
    probs /= probs.sum(axis=-1, keepdims=True)
    mass += (probs * _keep(row)).sum(axis=-1).tolist()
  batch, _ = _pack(rows)
  ignorant = batch.replace(kept=np.full_like(batch.kept, -1))
  _, metrics = _updated(ignorant)
  np.testing.assert_allclose(metrics['ratio_mean'], np.mean(mass), rtol=1e-5)
  assert np.mean(mass) < 0.5
  _, metrics = _updated(ignorant, bound=np.float32(1e-5))
  assert metrics['refused'] == update.REFUSED_GAP


@pytest.mark.slow
def test_a_batch_whose_sets_are_all_of_v_is_a_batch_without():
  rows = [dataclasses.replace(row, kept=None) for row in _off_policy()]
  with_none, metrics = _updated(_pack(rows, max_kept=0)[0])
  as_sets, _ = _updated(_pack(rows)[0])
  _assert_same(as_sets, with_none)
  assert abs(metrics['loss'] - _baseline()[1]['loss']) > 1e-3


def test_recomputed_old_logprobs_are_over_the_sets():
  score = update.make_score_fn(CONFIG, _mesh())
  batch, packing = _pack(_rows())
  for found, row in zip(
    batch_lib.unpack(packing, score(_host_params(), batch)), _rows(), strict=True
  ):
    np.testing.assert_allclose(found, _scores(_host_params(), row), atol=1e-5)


@pytest.mark.slow
def test_adapters_are_trained_over_the_sets():
  config = dataclasses.replace(CONFIG, lora=lora.LoraConfig(rank=2))
  state = update.init_train_state(
    config, PLAIN, _mesh(), jax.random.key(0), _host_params()
  )
  fn = update.make_update_fn(config, PLAIN, LOSS, _mesh())
  batch, _ = _pack(_rows())
  _, metrics = fn(state, _host_params(), batch, np.float32(1e-5))
  # New adapters add up to nothing: what is trained is what sampled.
  assert metrics['refused'] == update.ACCEPTED
  assert metrics['kl'] == 0 and metrics['grad_norm'] > 0


def test_the_sets_of_the_sampler_are_those_of_these_tests():
  for row in _rows()[:-1]:
    n = len(row.response_ids)
    top_p = {0.7: 0.02, 1.0: 0.3, 1.3: 0.9}[row.temperature]
    got = logprobs.kept_ids(
      _logits(_host_params(), row),
      np.full(n, row.temperature),
      np.zeros(n, int),
      np.full(n, top_p),
      np.zeros(n),
      SIZE,
    )
    np.testing.assert_array_equal(got, row.kept)
