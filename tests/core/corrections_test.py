"""Corrections against NumPy float64 loops over rollouts, turns and tokens."""

import dataclasses
import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from agentflow_jax.core import batch as batch_lib
from agentflow_jax.core import corrections, flow_grpo, losses, model
from agentflow_jax.core import optimizer, sharding, update
from tests.core import oracle

BASE = flow_grpo.FlowGrpoConfig(kl_coef=0.05, old_logprobs='recompute')
LEVELS = ('token', 'sequence', 'rollout')
BANDS = {'token': (0.7, 1.4), 'sequence': (0.8, 1.25), 'rollout': (0.83, 1.2)}


def _options():
  """Every correction, alone and with the others."""
  yield 'off', BASE
  for level in LEVELS:
    low, high = BANDS[level]
    cap = {'importance_cap': 1.1, 'importance_level': level}
    band = {'rejection_level': level, 'rejection_low': low, 'rejection_high': high}
    yield f'cap_{level}', dataclasses.replace(BASE, **cap)
    yield f'band_{level}', dataclasses.replace(BASE, **band)
    yield (
      f'low_{level}',
      dataclasses.replace(BASE, rejection_level=level, rejection_low=low),
    )
    yield f'cispo_{level}', dataclasses.replace(BASE, surrogate='cispo', **cap, **band)
  # IcePop: the weight is c itself within the bounds.
  yield (
    'icepop',
    dataclasses.replace(
      BASE, rejection_low=0.7, rejection_high=1.4, importance_cap=1.4
    ),
  )
  yield (
    'token_weight_of_kept_rollouts',
    dataclasses.replace(
      BASE,
      importance_cap=1.1,
      rejection_level='rollout',
      rejection_low=0.83,
      rejection_high=1.2,
    ),
  )
  yield 'cispo', dataclasses.replace(BASE, surrogate='cispo')
  yield (
    'gspo',
    dataclasses.replace(
      BASE,
      ratio_level='sequence',
      importance_cap=1.1,
      importance_level='sequence',
      kl_coef=0.0,
    ),
  )


OPTIONS = dict(_options())

# Lengths of the responses of rollouts; an empty one; one rollout without any token.
ROLLOUTS = ([3, 0, 4], [2], [5, 1], [6, 2, 2], [0], [4, 4], [1, 7])


@dataclasses.dataclass
class Turn:
  """Float32 arrays of one turn, and its rollout."""

  rollout: int
  weight: float
  advantage: float
  logprobs: np.ndarray
  old: np.ndarray
  behavior: np.ndarray
  ref: np.ndarray


def _turns(seed=0):
  """Turns of fresh and of stale rollouts, by turns; masked tokens among them."""
  rng = np.random.default_rng(seed)
  turns = []
  for i, lengths in enumerate(ROLLOUTS):
    # A whole rollout drifts one way, as a policy does that has changed.
    drift = {1: 0.35, 3: -0.3, 5: 0.05}.get(i, 0.0)
    spread = 2e-6 if i % 2 == 0 else 0.25
    for n in lengths:
      old = -3 * rng.random(n)
      turns.append(
        Turn(
          i,
          float(np.float32(rng.random() / 20)),
          float(np.float32(rng.normal())),
          *(
            x.astype(np.float32)
            for x in (
              old + 0.3 * rng.normal(size=n),
              old,
              old - drift - spread * rng.normal(size=n),
              old + 0.3 * rng.normal(size=n),
            )
          ),
        )
      )
  return turns


def _ratio(turns, turn, j, level):
  """c of one target, by the definition of its level."""
  if level == 'token':
    own = [(turn, j)]
  elif level == 'sequence':
    own = [(turn, k) for k in range(len(turn.old))]
  else:
    own = [
      (t, k) for t in turns if t.rollout == turn.rollout for k in range(len(t.old))
    ]
  gaps = [float(t.old[k]) - float(t.behavior[k]) for t, k in own]
  return math.exp(math.fsum(gaps) / len(gaps))


def _oracle(config, turns):
  """Returns (loss, sum of |terms|), and the same of d loss / d logprob."""
  loss = size = 0.0
  found, near = [], []
  for turn in turns:
    n = len(turn.old)
    gradient, sizes = np.zeros(n), np.zeros(n)
    logprobs = turn.logprobs.astype(np.float64)
    log_ratios = logprobs - turn.old
    for j in range(n):
      c = 1.0
      if config.importance_cap is not None:
        c = min(_ratio(turns, turn, j, config.importance_level), config.importance_cap)
      if config.rejection_low is not None or config.rejection_high is not None:
        judged = _ratio(turns, turn, j, config.rejection_level)
        for edge, outside in (
          (config.rejection_low, lambda x, e: x < e),
          (config.rejection_high, lambda x, e: x > e),
        ):
          if edge is not None:
            near.append(abs(judged - edge))
            c = 0.0 if outside(judged, edge) else c
        if c == 0.0:
          continue
      low, high = 1 - config.clip_low, 1 + config.clip_high
      shared = config.ratio_level == 'sequence'
      rho = math.exp(log_ratios.mean() if shared else log_ratios[j])
      near += [abs(rho - low), abs(rho - high)]
      clipped = min(max(rho, low), high)
      w, a = turn.weight, turn.advantage
      if config.surrogate == 'cispo':
        policy, slope = clipped * a * logprobs[j], clipped * a
      else:
        policy = min(rho * a, clipped * a)
        slope = rho * a if rho * a <= clipped * a else 0.0
      d = float(turn.ref[j]) - logprobs[j]
      loss += w * (config.kl_coef * (math.exp(d) - d - 1) - c * policy)
      size += w * (config.kl_coef * (math.exp(d) + abs(d) + 1) + abs(c * policy))
      if shared:
        gradient -= w * c * slope / n
        sizes += abs(w * c * slope / n)
      else:
        gradient[j] -= w * c * slope
        sizes[j] += abs(w * c * slope)
      gradient[j] += w * config.kl_coef * (1 - math.exp(d))
      sizes[j] += w * config.kl_coef * (1 + math.exp(d))
    found.append((gradient, sizes))
  assert min(near, default=1.0) >= 1e-4  # Of edges.
  return loss, size, found


def _rows(turns):
  return [
    batch_lib.TurnRow(
      np.arange(3),
      np.arange(len(t.old)),
      t.weight,
      behavior_logprobs=t.behavior,
      old_logprobs=t.old,
      advantage=t.advantage,
      rollout=t.rollout,
      fresh=t.rollout % 2 == 0,
    )
    for t in turns
  ]


def _importance(config, turns):
  return corrections.importance_of(
    config,
    [t.old for t in turns],
    [t.behavior for t in turns],
    [t.rollout for t in turns],
  )


def _loss_of(config, turns):
  """Returns the loss's sums and its gradient, a float array for each turn."""
  batch, packing = batch_lib.pack(_rows(turns), tokens_per_row=16, rows_per_micro=8)
  assert packing.n_micro == 1
  if config.corrects:
    batch = batch.replace(
      importance=batch_lib.placed(packing, _importance(config, turns), batch.weights)
    )
  place = lambda values: batch_lib.placed(packing, values, batch.weights)[0]
  micro = jax.tree.map(jnp.asarray, batch.micro(0))
  ref = place([t.ref for t in turns]) if config.kl_coef else None

  def loss(logprobs):
    scores = losses.Scores(logprobs, *[jnp.ones_like(logprobs)] * 2)
    return losses.flow_grpo_loss(config, scores, ref, micro)

  (_, sums), gradient = jax.value_and_grad(loss, has_aux=True)(
    jnp.asarray(place([t.logprobs for t in turns]))
  )
  assert not np.asarray(gradient)[np.asarray(micro.weights) == 0].any()
  return sums, batch_lib.unpack(packing, gradient[None])


@pytest.mark.parametrize('name', OPTIONS)
def test_loss_and_gradient_equal_the_float64_oracle(name):
  config, turns = OPTIONS[name], _turns()
  loss, size, gradients = _oracle(config, turns)
  sums, got = _loss_of(config, turns)
  assert abs(float(sums.loss) - loss) <= 1e-6 * size
  for mine, (gradient, sizes) in zip(got, gradients, strict=True):
    assert (np.abs(mine - gradient) <= 1e-6 * sizes).all()
  metrics = losses.metrics_of(sums)
  counting = [c for x in _importance(config, turns) for c in x if c > 0]
  total = sum(len(t.old) for t in turns)
  assert metrics['rejected_frac'] == pytest.approx(1 - len(counting) / total, abs=1e-6)
  assert metrics['importance_mean'] == pytest.approx(np.mean(counting), rel=1e-6)
  if config.rejects:
    assert 0.04 < metrics['rejected_frac'] < 0.6


def test_every_option_is_another_loss():
  turns = _turns()
  values = [_oracle(config, turns)[0] for config in OPTIONS.values()]
  gaps = [abs(a - b) for a, b in itertools.combinations(values, 2)]
  assert min(gaps) > 1e-5


def test_rejection_by_hand():
  """One rollout of two responses; every d is a logarithm of a small number."""
  old = [np.log([0.5, 0.5]), np.log([0.5])]
  behavior = [np.log([0.25, 1.0]), np.log([1 / 16])]
  # Tokens: 2, 1/2; 8. Responses: 1; 8. The rollout: (2 * 1/2 * 8)^(1/3) = 2.

  def importance(**changes):
    config = dataclasses.replace(BASE, **changes)
    return [
      x.tolist() for x in corrections.importance_of(config, old, behavior, [7, 7])
    ]

  close = lambda got, want: [pytest.approx(x, rel=1e-6) for x in want] == got
  assert close(importance(importance_cap=4.0), [[2, 0.5], [4]])
  assert close(
    importance(importance_cap=4.0, importance_level='sequence'), [[1, 1], [4]]
  )
  assert close(
    importance(importance_cap=4.0, importance_level='rollout'), [[2, 2], [2]]
  )
  assert close(importance(rejection_high=3.0), [[1, 1], [0]])
  assert close(importance(rejection_low=0.6, rejection_high=3.0), [[1, 0], [0]])
  assert close(importance(rejection_low=2.5, rejection_level='sequence'), [[0, 0], [1]])
  assert close(importance(rejection_high=1.9, rejection_level='rollout'), [[0, 0], [0]])
  assert close(importance(rejection_high=2.1, rejection_level='rollout'), [[1, 1], [1]])
  # IcePop.
  assert close(
    importance(rejection_low=0.6, rejection_high=3.0, importance_cap=3.0), [[2, 0], [0]]
  )


def test_a_tiny_weight_is_no_rejection_and_a_huge_one_is_finite():
  config = dataclasses.replace(BASE, importance_cap=2.0)
  (got,) = corrections.importance_of(
    config, [np.array([-900.0, 0.0])], [np.array([0.0, -900.0])], [0]
  )
  assert 0 < got[0] < 1e-30 and got[1] == 2.0


def test_what_is_no_number_is_rejected_or_stays_one():
  old, behavior = [np.array([-1.0, -1.0])], [np.array([np.nan, -1.0])]
  capped = dataclasses.replace(BASE, importance_cap=2.0)
  (got,) = corrections.importance_of(capped, old, behavior, [0])
  assert np.isnan(got[0]) and got[1] == 1
  banded = dataclasses.replace(capped, rejection_high=2.0)
  (got,) = corrections.importance_of(banded, old, behavior, [0])
  assert got.tolist() == [0, 1]


def test_decisions_do_not_depend_on_the_order_of_rows():
  turns = _turns()
  order = np.random.default_rng(5).permutation(len(turns))
  for config in OPTIONS.values():
    straight = _importance(config, turns)
    mixed = _importance(config, [turns[i] for i in order])
    for place, i in enumerate(order):
      np.testing.assert_allclose(mixed[place], straight[i], rtol=1e-6)


def test_the_gap_is_of_fresh_targets_whether_or_not_they_count():
  """A stale row may differ, and a correction hides no fresh one that does."""
  config = dataclasses.replace(BASE, rejection_low=0.9, rejection_high=1.1)
  turns = _turns()

  def gap(turns):
    batch, packing = batch_lib.pack(_rows(turns), tokens_per_row=16, rows_per_micro=8)
    rows = _rows(turns)
    batch = batch.replace(
      importance=batch_lib.placed(packing, _importance(config, turns), batch.weights),
      fresh=batch_lib.placed(
        packing,
        [np.full(len(r.response_ids), r.fresh) for r in rows],
        batch.weights > 0,
      ),
    )
    micro = jax.tree.map(jnp.asarray, batch.micro(0))
    logprobs = batch_lib.placed(packing, [t.old for t in turns], batch.weights)
    scores = losses.Scores(*[jnp.asarray(logprobs[0])] * 3)
    _, sums = losses.flow_grpo_loss(config, scores, scores.logprobs, micro)
    return losses.metrics_of(sums), sums

  metrics, sums = gap(turns)
  fresh = [t for t in turns if t.rollout % 2 == 0]
  exact = [abs(x) for t in fresh for x in t.old - t.behavior]
  assert sums.policy.n_fresh == len(exact) < sums.n_targets
  assert metrics['logprob_gap/max'] == pytest.approx(max(exact), rel=1e-3)
  assert metrics['logprob_gap/mean'] == pytest.approx(np.mean(exact), rel=1e-3)
  assert metrics['logprob_gap/p99'] <= max(exact) * 1.001 < 1e-4
  assert metrics['logprob_gap/p99'] > max(exact) / 2
  # One fresh token that was recorded wrongly is rejected, and seen.
  turns[0].behavior = turns[0].behavior + np.float32([0, 2.0, 0])
  metrics, after = gap(turns)
  assert after.policy.rejected == sums.policy.rejected + 1
  assert metrics['logprob_gap/max'] == pytest.approx(2.0, rel=1e-5)


def test_placed_is_the_inverse_of_unpack():
  rng = np.random.default_rng(0)
  rows = _rows(_turns())
  for layout in ('rows', 'forest'):
    batch, packing = batch_lib.pack(
      rows, tokens_per_row=64, rows_per_micro=2, layout=layout
    )
    values = [rng.random(len(r.response_ids)) for r in rows]
    placed = batch_lib.placed(packing, values, np.zeros(batch.weights.shape))
    for got, value in zip(batch_lib.unpack(packing, placed), values):
      np.testing.assert_array_equal(got, value)
    assert np.count_nonzero(placed) == sum(map(len, values))


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'importance_cap': 0.0}, 'importance_cap must be finite and > 0'),
    ({'rejection_low': 2.0, 'rejection_high': 1.0}, 'must be below'),
    ({'rejection_high': math.inf}, 'rejection_high must be finite'),
    ({'importance_level': 'rollout'}, 'read only with an importance_cap'),
    ({'rejection_level': 'rollout'}, 'read only with rejection_low'),
    ({'rejection_low': 0.5, 'old_logprobs': 'behavior'}, 'recompute'),
    ({'importance_cap': 2.0, 'old_logprobs': 'behavior'}, 'recompute'),
    ({'surrogate': 'cispo', 'ratio_level': 'sequence'}, 'token ratios'),
    ({'surrogate': 'ppo'}, 'surrogate must be one of'),
    ({'rejection_level': 'group'}, 'rejection_level must be one of'),
  ],
)
def test_what_would_be_ignored_or_leaves_nothing_is_refused(changes, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(BASE, **changes)


NETWORK = model.ModelConfig(
  vocab_size=32,
  d_model=16,
  n_layers=1,
  n_heads=4,
  n_kv_heads=2,
  head_dim=8,
  d_ff=32,
  max_positions=64,
)
# Without clipping and with b1 = 0 the first moment is the gradient itself.
PLAIN = optimizer.OptimizerConfig(1e-3, b1=0.0, b2=0.0, max_grad_norm=None)


@functools.cache
def _network_params(kind):
  """Parameters that are trained, those before the step, and the reference."""
  shapes = model.param_shapes(NETWORK)
  rng, other = np.random.default_rng(0), np.random.default_rng(len(kind))
  spread = 0.0 if kind == 'trained' else 0.15

  def leaf(path, shape):
    values = rng.normal(size=shape.shape) / 4
    if 'scale' in jax.tree_util.keystr(path):
      values += 1
    return (values * (1 + spread * other.normal(size=shape.shape))).astype('f4')

  return jax.tree_util.tree_map_with_path(leaf, shapes)


def _scored(kind, row):
  """Float64 log probabilities of a row's response."""
  ids = np.concatenate([row.prompt_ids, row.response_ids])[None]
  n = ids.shape[1] - 1
  logits = oracle.transformer(
    NETWORK,
    _network_params(kind),
    ids[:, :-1],
    np.arange(n)[None],
    np.ones((1, n), int),
  )
  scores = oracle.log_prob_of(logits, ids[:, 1:], np.ones((1, n)))[0]
  return scores[len(row.prompt_ids) - 1 :]


@functools.cache
def _sampled():
  """Rows of three groups: turns repeat the prompts of the turns before them."""
  rng = np.random.default_rng(11)
  rows, turns = [], []
  for group in range(3):
    begin = rng.integers(0, 32, 4)
    for i in range(4):
      number, prompt = 4 * group + i, begin
      stale = number % 2 == 1
      drift = {1: 0.35, 3: -0.3, 5: 0.05, 7: 0.3}.get(number, -0.02)
      advantage = float(np.float32(rng.normal()))
      for _ in range(int(rng.integers(1, 4))):
        n = int(rng.integers(1, 5))
        row = batch_lib.TurnRow(
          prompt,
          rng.integers(0, 32, n),
          target_weight=float(np.float32(rng.random() / 20)),
          advantage=advantage,
          rollout=number,
          fresh=not stale,
        )
        old = _scored('old', row).astype('f4')
        noise = 0.25 * rng.normal(size=n) + drift if stale else np.zeros(n)
        behavior = (old - noise).astype('f4')
        rows.append(dataclasses.replace(row, behavior_logprobs=behavior))
        turns.append(
          Turn(
            number,
            row.target_weight,
            advantage,
            _scored('trained', row),
            old,
            behavior,
            _scored('reference', row),
          )
        )
        prompt = np.concatenate([prompt, row.response_ids, [1, 2]])
  return rows, turns


def _updated(config, layout, mesh=(1, 1, 1), tokens=40, rows_per_micro=8):
  """Returns gradient and metrics of an update, as the trainer makes one."""
  rows, _ = _sampled()
  devices = jax.devices()[: math.prod(mesh)]
  on = sharding.make_mesh(*mesh, devices)
  packed, packing = batch_lib.pack(
    rows,
    tokens_per_row=tokens,
    rows_per_micro=rows_per_micro,
    max_micro=8,
    layout=layout,
  )
  old = batch_lib.unpack(packing, _score_fn(mesh)(_network_params('old'), packed))
  placed = functools.partial(batch_lib.placed, packing)
  packed = packed.replace(
    old_logprobs=placed(old, packed.weights),
    fresh=placed(
      [np.full(len(r.response_ids), r.fresh) for r in rows], packed.weights > 0
    ),
  )
  if config.corrects:
    packed = packed.replace(
      importance=placed(
        corrections.importance_of(
          config, old, [r.behavior_logprobs for r in rows], [r.rollout for r in rows]
        ),
        packed.weights,
      )
    )
  state = update.init_train_state(
    NETWORK, PLAIN, on, jax.random.key(0), _network_params('trained')
  )
  state, metrics = _update_fn(config, mesh)(
    state,
    _network_params('reference') if config.kl_coef else None,
    packed,
    np.float32(np.inf),
  )
  moments = optax.tree_utils.tree_get(state.opt_state, 'mu')
  return jax.device_get(moments), jax.device_get(metrics)


@functools.cache
def _update_fn(config, mesh):
  devices = jax.devices()[: math.prod(mesh)]
  return update.make_update_fn(
    NETWORK, PLAIN, config, sharding.make_mesh(*mesh, devices)
  )


@functools.cache
def _score_fn(mesh):
  devices = jax.devices()[: math.prod(mesh)]
  return update.make_score_fn(NETWORK, sharding.make_mesh(*mesh, devices))


@functools.cache
def _expected(config):
  """The loss and its gradient: sum over targets of slope x d logprob / d theta."""
  rows, turns = _sampled()
  loss, size, slopes = _oracle(config, turns)
  longest = max(len(r.prompt_ids) + len(r.response_ids) for r in rows)
  ids = np.zeros((len(rows), longest), np.int32)
  slope = np.zeros((len(rows), longest - 1))
  for i, (row, (found, _)) in enumerate(zip(rows, slopes, strict=True)):
    first = len(row.prompt_ids) - 1
    n = first + 1 + len(found)
    ids[i, :n] = np.concatenate([row.prompt_ids, row.response_ids])
    slope[i, first : n - 1] = found
  positions = np.broadcast_to(np.arange(longest - 1, dtype=np.int32), slope.shape)
  ends = np.full(slope.shape, longest - 1, np.int32)  # Causal order hides the rest.
  return (
    loss,
    size,
    _weighed_gradient()(
      jax.tree.map(jnp.asarray, _network_params('trained')),
      ids,
      positions,
      ends,
      slope.astype('f4'),
    ),
  )


@functools.cache
def _weighed_gradient():
  def weighed(params, ids, positions, ends, slope):
    logits = model.forward(NETWORK, params, ids[:, :-1], positions, ends)
    scores = jax.nn.log_softmax(logits)
    picked = jnp.take_along_axis(scores, ids[:, 1:, None], axis=-1)[..., 0]
    return (slope * picked).sum()

  return jax.jit(jax.grad(weighed))


def _check_update(name, **where):
  config = OPTIONS[name]
  loss, size, expected = _expected(config)
  gradient, metrics = _updated(config, **where)
  assert abs(metrics['loss'] - loss) <= 1e-5 * size
  if config.rejects:
    assert metrics['rejected_frac'] > 0
  for (path, got), want in zip(
    jax.tree_util.tree_leaves_with_path(gradient),
    jax.tree.leaves(expected),
    strict=True,
  ):
    norm = np.linalg.norm(want)
    assert norm > 0, path
    assert np.linalg.norm(got - want) <= 1e-5 * norm, path


_LAYOUTS = (
  {'layout': 'forest'},
  {'layout': 'rows'},
  {'layout': 'rows', 'tokens': 24, 'rows_per_micro': 8},
  {'layout': 'forest', 'tokens': 24, 'rows_per_micro': 8},
)


@pytest.mark.parametrize('where', _LAYOUTS[:2])
def test_an_update_equals_the_oracle_in_forests_and_rows(where):
  _check_update('cispo_rollout', **where)


@pytest.mark.slow
@pytest.mark.parametrize('name', OPTIONS)
def test_every_correction_equals_the_oracle_through_the_model(name):
  for where in _LAYOUTS:
    _check_update(name, **where)


@pytest.mark.slow
@pytest.mark.parametrize(
  'mesh', [(2, 1, 1), (1, 2, 1), (1, 1, 2), (4, 1, 1), (1, 2, 2), (2, 2, 2), (1, 8, 1)]
)
@pytest.mark.parametrize('name', ['cap_sequence', 'cispo_rollout'])
def test_every_mesh_makes_the_same_update(name, mesh):
  for where in _LAYOUTS[:2]:
    _check_update(name, mesh=mesh, **where)
