"""Sharing what rows begin with changes neither loss nor gradient, only cost."""

import dataclasses
import functools

import jax
import numpy as np
import optax
import pytest

from agentflow_jax.core import batch as batch_lib
from agentflow_jax.core import flow_grpo
from agentflow_jax.core import losses
from agentflow_jax.core import model
from agentflow_jax.core import optimizer
from agentflow_jax.core import sharding
from agentflow_jax.core import update
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
BLOCKS = dataclasses.replace(CONFIG, attention='blocks')
FULL = dataclasses.replace(CONFIG, remat='full')
LOSS = flow_grpo.FlowGrpoConfig(kl_coef=0.1)
GSPO = dataclasses.replace(LOSS, ratio_level='sequence')
SFT = losses.SftConfig()
# Without clipping and with b1 = 0 the first moment is the gradient itself.
PLAIN = optimizer.OptimizerConfig(1e-3, b1=0.0, b2=0.0, max_grad_norm=None)


@functools.cache
def _mesh(data=1, fsdp=1, tensor=1):
  devices = jax.devices()[: data * fsdp * tensor]
  return sharding.make_mesh(data, fsdp, tensor, devices)


@functools.cache
def _update_fn(loss, mesh, chunk, config):
  return update.make_update_fn(config, PLAIN, loss, _mesh(*mesh), chunk)


@functools.cache
def _params(seed=0):
  return jax.device_get(networks.params(CONFIG, seed))


def _rows(depth, seed=0, prompt_weight=0.0):
  """Turn rows of a random tree of that depth, off policy, in random order."""
  rng = np.random.default_rng([seed, depth])
  rows = []

  def grow(prefix, level):
    prompt = np.concatenate([prefix, rng.integers(0, 64, rng.integers(1, 4))])
    for _ in range(rng.integers(1, 4)):  # Several responses to one prompt.
      n = int(rng.integers(0, 4))
      rows.append(
        batch_lib.TurnRow(
          prompt,
          rng.integers(0, 3, n),
          target_weight=float(rng.random()) / 20,
          behavior_logprobs=-4 + rng.normal(size=n).astype(np.float32),
          advantage=float(rng.normal()),
          # A token of a prompt may be a target of several rows at once.
          temperature=1.0 if prompt_weight else float(rng.choice([0.7, 1.0, 1.3])),
          prompt_weight=prompt_weight,
        )
      )
    if level < depth:
      for _ in range(2 if level < 3 else 1):
        # Some go on after less than all of it, as inside a chat template.
        grow(prompt[: rng.integers(1, len(prompt) + 1)], level + 1)

  grow(np.zeros(0, np.int64), 1)
  rows += [rows[0], rows[-1]]
  return [rows[i] for i in rng.permutation(len(rows))]


def _gradient(
  rows,
  layout,
  loss=LOSS,
  mesh=(1, 1, 1),
  tokens=40,
  rows_per_micro=2,
  chunk=None,
  config=CONFIG,
):
  """Returns the gradient, the metrics and the packing."""
  batch, packing = batch_lib.pack(
    rows,
    tokens_per_row=tokens,
    rows_per_micro=rows_per_micro,
    max_micro=64,
    layout=layout,
  )
  state = update.init_train_state(
    config, PLAIN, _mesh(*mesh), jax.random.key(0), _params()
  )
  ref = _params(1) if isinstance(loss, flow_grpo.FlowGrpoConfig) else None
  state, metrics = _update_fn(loss, mesh, chunk, config)(
    state, ref, batch, np.float32(np.inf)
  )
  moments = optax.tree_utils.tree_get(state.opt_state, 'mu')
  return jax.device_get(moments), jax.device_get(metrics), packing


def _assert_same(got, expected, tolerance=1e-5, other=()):
  """Asserts ||g - g'|| / ||g|| <= tolerance in every leaf, and equal metrics.

  Args:
    got, expected: results of `_gradient`.
    tolerance: largest relative error.
    other: names of metrics that differ.
  """
  for (path, a), b in zip(
    jax.tree_util.tree_leaves_with_path(got[0]),
    jax.tree.leaves(expected[0]),
    strict=True,
  ):
    norm = np.linalg.norm(b)
    assert norm > 0, path
    assert np.linalg.norm(a - b) <= tolerance * norm, path
  for name, value in expected[1].items():
    if name in other:
      continue
    np.testing.assert_allclose(
      got[1][name], value, rtol=2 * tolerance, atol=1e-6, err_msg=name
    )


@pytest.mark.parametrize('depth', range(1, 7))
def test_a_forest_has_the_gradient_of_its_rows(depth):
  rows = _rows(depth)
  apart, shared = (_gradient(rows, layout) for layout in ('rows', 'forest'))
  assert apart[1]['ratio_max'] > 1.3 and apart[1]['ratio_min'] < 0.8
  assert shared[2].n_tokens < shared[2].n_row_tokens == apart[2].n_tokens
  _assert_same(shared, apart)


@pytest.mark.parametrize(
  'fields',
  [
    # Forests cut over many packed rows, each with its prefix again.
    {'tokens': 24, 'rows_per_micro': 1, 'chunk': 4},
    pytest.param({'mesh': (2, 2, 2), 'rows_per_micro': 8}, marks=pytest.mark.slow),
    # Blocks of 8: attention over branches that begin and end within them.
    {'config': BLOCKS, 'mesh': (1, 2, 2), 'rows_per_micro': 4},
    *(
      pytest.param(fields, marks=pytest.mark.slow)
      for fields in (
        {'tokens': 24, 'rows_per_micro': 8},
        {'tokens': 60, 'rows_per_micro': 1, 'chunk': 1},
        {'mesh': (2, 1, 1)},
        {'mesh': (1, 2, 2), 'rows_per_micro': 4, 'chunk': 5},
        {'mesh': (1, 4, 2), 'rows_per_micro': 4},
        {'config': FULL, 'chunk': 10},
        {'config': BLOCKS},
        {'config': BLOCKS, 'tokens': 64, 'rows_per_micro': 1},
        {'config': dataclasses.replace(BLOCKS, remat='dots'), 'tokens': 96},
        {'config': BLOCKS, 'mesh': (2, 2, 2), 'rows_per_micro': 4},
      )
    ),
  ],
)
def test_nor_does_it_depend_on_how_it_is_cut_and_spread(fields):
  rows = _rows(5)
  _assert_same(_gradient(rows, 'forest', **fields), _gradient(rows, 'rows'))


def test_one_token_prompts_and_twins():
  rows = [dataclasses.replace(row, prompt_ids=row.prompt_ids[:1]) for row in _rows(3)]
  _assert_same(_gradient(rows, 'forest'), _gradient(rows, 'rows'))
  # Eight rollouts that say the same: one branch, and eight times the targets.
  rows = [
    dataclasses.replace(
      rows[0],
      response_ids=np.array([1, 2]),
      behavior_logprobs=np.array([-1, -2], np.float32),
      advantage=advantage,
    )
    for advantage in (1.0, -1.0, 0.5, 2.0, -2.0, 0.25, 3.0, -0.5)
  ]
  shared = _gradient(rows, 'forest')
  assert shared[2].n_tokens == 2 and shared[2].n_targets == 16
  _assert_same(shared, _gradient(rows, 'rows'))


@pytest.mark.parametrize(
  'loss',
  [pytest.param(GSPO, id='gspo'), pytest.param(SFT, id='sft', marks=pytest.mark.slow)],
)
def test_sequence_ratios_and_prompt_tokens_too(loss):
  rows = _rows(4, prompt_weight=0.01 if loss is SFT else 0.0)
  apart, shared = _gradient(rows, 'rows', loss), _gradient(rows, 'forest', loss)
  # A token of a prompt that rows share is one target, with the weights of all.
  other = ('entropy', 'n_targets') if loss is SFT else ()
  _assert_same(shared, apart, other=other)
  if loss is SFT:
    distinct = {
      (*row.prompt_ids[: i + 1],) for row in rows for i in range(1, len(row.prompt_ids))
    }
    responses = sum(len(row.response_ids) for row in rows)
    assert shared[1]['n_targets'] < apart[1]['n_targets']
    # A prompt that goes on in another packed row is repeated there.
    assert shared[1]['n_targets'] >= len(distinct) + responses


def test_bfloat16_activations_agree_to_their_own_precision():
  config = dataclasses.replace(CONFIG, dtype='bfloat16')
  rows = _rows(4)
  apart = _gradient(rows, 'rows', config=config)
  shared = _gradient(rows, 'forest', config=config)
  exact = _gradient(rows, 'rows')
  for a, b, c in zip(
    *(jax.tree.leaves(g[0]) for g in (shared, apart, exact)), strict=True
  ):
    norm = np.linalg.norm(c)
    # Sharing loses less than bfloat16 does.
    assert np.linalg.norm(a - b) <= np.linalg.norm(b - c) + 1e-3 * norm
    assert np.linalg.norm(a - c) <= 0.05 * norm


def test_no_array_of_tokens_and_vocabulary_is_made():
  config = dataclasses.replace(CONFIG, vocab_size=1 << 15)
  params = networks.params(config)
  batch, _ = batch_lib.pack(
    [batch_lib.TurnRow(np.arange(200) % 64, np.arange(56) % 64, 1.0)],
    tokens_per_row=256,
    rows_per_micro=1,
    max_micro=1,
    layout='forest',
  )
  state = update.init_train_state(config, PLAIN, _mesh(), jax.random.key(0), params)

  def temporaries(chunk):
    compiled = (
      update.make_update_fn(config, PLAIN, SFT, _mesh(), chunk)
      .lower(state, None, batch, np.float32(1))
      .compile()
    )
    return compiled.memory_analysis().temp_size_in_bytes

  logits = 256 * config.vocab_size * 4
  # All at once they and what is made of them exist; by 8, 1/32 of each does.
  assert temporaries(256) > logits
  assert temporaries(8) < logits / 2
