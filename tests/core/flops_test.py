"""Counted FLOPs against hand arithmetic and against XLA where it can count."""

import dataclasses

import jax
import numpy as np
import pytest

from agentflow_jax.core import batch as batch_lib
from agentflow_jax.core import flops
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


def _row(prompt, response):
  return batch_lib.TurnRow(np.array(prompt), np.array(response), 1.0)


def _batch(layout='forest', tokens=8):
  rows = [_row([5, 6], [8, 9]), _row([5, 6], [7, 9]), _row([1], [2])]
  return batch_lib.pack(rows, tokens_per_row=tokens, rows_per_micro=1, layout=layout)[0]


def test_useful_work_by_hand():
  # 1; 5 6 7; 8 after 5 6: 5 places. They see 1, 1, 2, 3, 3 tokens.
  turns = [([5, 6], [8, 9]), ([5, 6], [7, 9]), ([1], [2])]
  assert flops.useful(turns) == flops.Work(5, 1 + 1 + 2 + 3 + 3, 5)
  # A response without a token needs nothing.
  assert flops.useful([([5, 6, 7], []), *turns]) == flops.useful(turns)
  # Of the prompts the 6 is scored, once.
  assert flops.useful(turns, scores_prompts=True) == flops.Work(5, 10, 6)
  assert flops.useful([]) == flops.Work(0, 0, 0)


def test_useful_work_is_that_of_the_forest_in_one_row():
  rng = np.random.default_rng(0)
  rows = [
    _row(rng.integers(0, 2, rng.integers(1, 9)), rng.integers(0, 2, 4))
    for _ in range(40)
  ]
  batch, _ = batch_lib.pack(rows, tokens_per_row=512, rows_per_micro=1, layout='forest')
  ends, place = np.asarray(batch.subtree_end), np.arange(512)
  assert ends.shape == (1, 1, 512)
  assert flops.useful([(r.prompt_ids, r.response_ids) for r in rows]) == flops.Work(
    (ends > 0).sum(),
    np.where(ends > 0, ends - place, 0).sum(),
    (np.asarray(batch.responses) > 0).sum(),
  )


def test_utilisation_by_hand():
  # 6e12 FLOPs in 2 s on 3 devices of 4e12 FLOP/s: 1 of 4.
  assert flops.utilisation(6e12, 2.0, 3, 4e12) == 0.25


def test_done_work_by_hand():
  dense = flops.done(CONFIG, _batch(), logits_chunk=2)
  # 8 places, all pairs; 5 targets are three chunks of 2.
  assert dense == flops.Work(8, 64, 6)
  blocks = dataclasses.replace(CONFIG, attention='blocks')
  rows = [_row([1], [2]), _row(range(2, 8), [1]), _row(range(9, 48), [1, 2])]
  batch, _ = batch_lib.pack(rows, tokens_per_row=70, rows_per_micro=1, layout='forest')
  # Trees of 1, 6 and 40 places; 16 queries see 8 keys at a time. The third
  # tree begins in block 0 and ends in block 5 of keys, in block 2 of queries;
  # what lies behind sees nothing.
  assert flops.done(blocks, batch).pairs == 16 * 8 * (2 + 4 + 6)


def test_a_forward_pass_by_hand():
  # A token and layer: q, o 16 x 32 each, k, v 16 x 16 each, three of 16 x 32.
  layer = 2 * (2 * 16 * 32 + 2 * 16 * 16 + 3 * 16 * 32)
  # A pair: 4 heads of 8, twice. A target: 16 x 64.
  expected = 10 * 2 * layer + 100 * 2 * 2 * 2 * 4 * 8 + 3 * 2 * 16 * 64
  assert flops.forward(CONFIG, flops.Work(10, 100, 3)) == expected
  work = flops.Work(10, 100, 3)
  needed = flops.update_needed(CONFIG, work, reference=True)
  assert needed == 4 * expected
  logits, scores = 3 * 2 * 16 * 64, 100 * 2 * 2 * 4 * 8
  # Rows of 40 are dense: the logits alone are made again.
  done = flops.update_done(CONFIG, work, length=40, reference=False)
  assert done == 3 * expected + logits
  more = flops.update_done(
    dataclasses.replace(CONFIG, remat='full', attention='blocks'),
    work,
    length=40,
    reference=False,
  )
  layers = expected - logits
  assert more == 3 * expected + logits + scores + layers


@pytest.mark.slow
@pytest.mark.parametrize('reference', [False, True])
def test_xla_counts_the_same_where_nothing_loops_twice(reference):
  # One layer, one micro-batch, all logits at once: each loop has one pass.
  config = model.ModelConfig(
    vocab_size=512,
    d_model=128,
    n_layers=1,
    n_heads=4,
    n_kv_heads=2,
    head_dim=32,
    d_ff=512,
    max_positions=256,
  )
  batch, _ = batch_lib.pack(
    [_row(np.arange(100), np.arange(157))],
    tokens_per_row=256,
    rows_per_micro=1,
    max_micro=1,
    layout='forest',
  )
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  tx = optimizer.OptimizerConfig(1e-3)
  loss = losses.SftConfig()
  ref = None
  if reference:
    loss = flow_grpo.FlowGrpoConfig(kl_coef=0.1)
    ref = networks.params(config, 1)
  state = update.init_train_state(config, tx, mesh, jax.random.key(0))
  compiled = (
    update.make_update_fn(config, tx, loss, mesh)
    .lower(state, ref, batch, np.float32(1))
    .compile()
  )
  counted = flops.update_done(
    config, flops.done(config, batch), length=256, reference=reference
  )
  # Logits that are one chunk XLA forms once for both passes.
  counted -= 2 * 256 * 128 * 512
  # What XLA counts besides is element by element.
  assert 1 <= compiled.cost_analysis()['flops'] / counted < 1.12
