"""How much an update saves by packing turn rows, on the same rows in one run.

  python experiments/benchmarks/packing.py [--rows=512] [--repeats=5]

Times the jitted Flow-GRPO update on turn rows of GeoHop's lengths, packed into
rows of T tokens, and one padded row a turn (what trainers of single turns do).
Prints tokens, FLOPs counted by hand, seconds and their ratio as JSON; the
repeats alternate, so that both see the same machine.
"""

import argparse
import dataclasses
import json
import time
from typing import Any

import jax
import numpy as np

from agentflow_jax.core import batch, flow_grpo, model, optimizer, sharding
from agentflow_jax.core import update

_MODEL = model.ModelConfig(
  vocab_size=896,
  d_model=128,
  n_layers=3,
  n_heads=4,
  n_kv_heads=2,
  head_dim=32,
  d_ff=320,
  max_positions=192,
  qk_norm=True,
)
_TOKENS = 192
_ROWS_PER_MICRO = 16


def main() -> None:
  """Runs both and prints the comparison."""
  parser = argparse.ArgumentParser(description=(__doc__ or '').partition('\n')[0])
  parser.add_argument('--rows', type=int, default=512)
  parser.add_argument('--repeats', type=int, default=5)
  arguments = parser.parse_args()
  rows = _rows(arguments.rows)
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  programs = {
    'packed': _Program(mesh, rows, _TOKENS, packed=True),
    'padded': _Program(mesh, rows, _TOKENS, packed=False),
  }
  for _ in range(arguments.repeats):
    for program in programs.values():
      program.run()
  found: dict[str, Any] = {name: p.figures() for name, p in programs.items()}
  found['seconds_ratio'] = found['padded']['seconds'] / found['packed']['seconds']
  found['flops_ratio'] = found['padded']['flops'] / found['packed']['flops']
  found['device'] = str(jax.devices()[0])
  print(json.dumps(found, indent=1))


def _rows(count: int) -> list[batch.TurnRow]:
  """Turn rows with prompts of 25 to 170 tokens and responses of 8."""
  rng = np.random.default_rng(0)
  lengths = np.clip(rng.lognormal(np.log(50), 0.5, count), 25, 170).astype(int)
  return [
    batch.TurnRow(
      prompt_ids=rng.integers(5, 800, n),
      response_ids=rng.integers(5, 800, 8),
      target_weight=1.0 / (8 * count),
      behavior_logprobs=np.full(8, -6.0, np.float32),
      advantage=float(rng.normal()),
    )
    for n in lengths
  ]


class _Program:
  """An update over the rows, in one of the two layouts."""

  def __init__(self, mesh, rows, tokens, packed):
    optimizer_config = optimizer.OptimizerConfig(1e-4)
    self._reference = model.init_params(_MODEL, jax.random.key(0))
    self._state = update.init_train_state(
      _MODEL, optimizer_config, mesh, jax.random.key(0), self._reference
    )
    self._update = update.make_update_fn(
      _MODEL, optimizer_config, flow_grpo.FlowGrpoConfig(), mesh
    )
    if packed:
      self._batch, packing = batch.pack(
        rows, tokens_per_row=tokens, rows_per_micro=_ROWS_PER_MICRO
      )
      self._micro = packing.n_micro
    else:
      self._batch, self._micro = _padded(rows, tokens)
    self._seconds = []
    self.run()
    self._seconds.clear()  # The first one compiled.

  def run(self) -> None:
    start = time.perf_counter()
    self._state, metrics = self._update(
      self._state, self._reference, self._batch, np.float32(np.inf)
    )
    jax.block_until_ready((self._state, metrics))
    self._seconds.append(time.perf_counter() - start)

  def figures(self):
    positions = self._micro * _ROWS_PER_MICRO * _TOKENS
    return {
      'positions': positions,
      'flops': positions * _flops_per_position(),
      'seconds': float(np.median(self._seconds)),
    }


def _padded(rows, tokens):
  """One row a turn: pack each group of B rows with room for one alone."""
  batches = [
    batch.pack([row], tokens_per_row=tokens, rows_per_micro=1, max_micro=1)[0]
    for row in rows
  ]
  n_micro = -(-len(rows) // _ROWS_PER_MICRO)
  spare = n_micro * _ROWS_PER_MICRO - len(rows)

  def join(*leaves):
    stacked = np.concatenate(leaves)
    fill = np.zeros((spare, *stacked.shape[1:]), stacked.dtype)
    return np.concatenate([stacked, fill]).reshape(n_micro, _ROWS_PER_MICRO, tokens)

  counts = [dataclasses.replace(b, n_micro=None) for b in batches]
  joined = jax.tree.map(join, *counts)
  temperature = np.where(joined.temperature > 0, joined.temperature, 1.0)
  joined = joined.replace(
    n_micro=np.int32(n_micro), temperature=temperature.astype(np.float32)
  )
  return joined, n_micro


def _flops_per_position() -> int:
  """Forward, backward (2 x) and reference forward, 2 FLOPs a multiply-add."""
  m = _MODEL
  projections = m.d_model * m.head_dim * 2 * (m.n_heads + m.n_kv_heads)
  attention = 2 * _TOKENS * m.n_heads * m.head_dim
  layer = projections + attention + 3 * m.d_model * m.d_ff
  return 4 * 2 * (m.n_layers * layer + m.vocab_size * m.d_model)


if __name__ == '__main__':
  main()
