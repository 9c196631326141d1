"""What an update costs with turn rows as a forest, and apart.

  python experiments/benchmarks/update.py --layout=forest --out=forest.json
  python experiments/benchmarks/update.py --layout=rows --out=rows.json

Made up groups by default: a group's rollouts share the first prompt, turn t + 1
begins with turn t's prompt but its tail, and every response is of its own. Or
--trace=FILE, JSONL of a turn a line: group, rollout, turn, prompt_ids,
response_ids, behavior_logprobs (or null), reward. Parameters are random.

Writes JSON: seconds by phase (median, min, max), tokens, FLOPs as core/flops.py
counts them, mfu and matmul_peak_share (useful FLOPs, and all that are computed, as
shares of the fastest product of this process), memory, and the gradient by leaf (norm
and a random projection), to compare layouts by.
"""

import argparse
import dataclasses
import hashlib
import json
import pathlib
import resource
import sys
import time

import jax
import numpy as np
import optax

from agentflow_jax.core import batch, flops, flow_grpo, model
from agentflow_jax.core import optimizer, peaks, published, sharding, update
from agentflow_jax.files import reading

MODELS = published.MODELS | {
  'tiny': model.ModelConfig(
    vocab_size=512,
    d_model=64,
    n_layers=2,
    n_heads=4,
    n_kv_heads=2,
    head_dim=16,
    d_ff=128,
    max_positions=8192,
  )
}
_FIELDS = {
  'group',
  'rollout',
  'turn',
  'prompt_ids',
  'response_ids',
  'reward',
  'behavior_logprobs',
}
_WIDTHS = (1024, 2048, 4096)  # Of the products that the peak is measured with.
# Without clipping and with b1 = 0 Adam's first moment is the gradient itself.
_OPTIMIZER = optimizer.OptimizerConfig(1e-6, b1=0.0, max_grad_norm=None)


def _arguments():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument('--model', choices=sorted(MODELS), default='smollm2-135m')
  parser.add_argument('--trace', default='')
  for name, value in (
    ('group_size', 8),
    ('turns', 3),
    ('prompt_len', 1024),
    ('memory_len', 96),
    ('response_len', 128),
    ('groups', 1),
    ('repeats', 3),
  ):
    parser.add_argument(f'--{name}', type=int, default=value)
  parser.add_argument(
    '--micro_tokens',
    type=int,
    default=0,
    help='tokens of a micro-batch, one packed row; 0: what the group needs,'
    ' 16,384 at most',
  )
  parser.add_argument('--layout', choices=('forest', 'rows'), default='forest')
  parser.add_argument('--dtype', choices=('float32', 'bfloat16'), default='float32')
  parser.add_argument('--remat', choices=('none', 'dots', 'full'), default='none')
  parser.add_argument(
    '--attention', choices=('auto', 'dense', 'blocks', 'pallas'), default='auto'
  )
  parser.add_argument('--kl_coef', type=float, default=1e-3)
  parser.add_argument('--out', default='')
  return parser.parse_args()


def _made_up(args, vocab_size):
  """Yields trace lines of groups that share what AgentFlow's prompts share."""
  rng = np.random.default_rng(0)
  draw = lambda n: rng.integers(0, vocab_size, n).tolist()
  tail = draw(8)
  for group in range(args.groups):
    prompt = draw(args.prompt_len - len(tail))
    for rollout in range(args.group_size):
      memory = []
      for turn in range(args.turns):
        yield {
          'group': group,
          'rollout': rollout,
          'turn': turn,
          'prompt_ids': prompt + memory + tail,
          'response_ids': draw(args.response_len),
          'behavior_logprobs': None,
          'reward': float(rollout % 2),
        }
        memory = memory + draw(args.memory_len)


def _turn_rows(lines):
  """Returns TurnRows with advantages and weights, as training makes them."""
  lines = sorted(lines, key=lambda l: (l['group'], l['rollout'], l['turn']))
  groups = {}
  for line in lines:
    groups.setdefault(line['group'], {}).setdefault(line['rollout'], []).append(line)
  rollouts = [list(group.values()) for group in groups.values()]
  rewards = [[turns[0]['reward'] for turns in group] for group in rollouts]
  weights = flow_grpo.target_weights(
    [[[len(t['response_ids']) for t in r] for r in g] for g in rollouts],
    [[r is not None for r in g] for g in rewards],
  )
  rows = []
  for q, group in enumerate(rollouts):
    advantages = flow_grpo.advantages(rewards[q])
    for i, turns in enumerate(group):
      for t, line in enumerate(turns):
        logprobs = line['behavior_logprobs']
        rows.append(
          batch.TurnRow(
            np.array(line['prompt_ids']),
            np.array(line['response_ids']),
            target_weight=float(weights[q][i][t]),
            behavior_logprobs=None
            if logprobs is None
            else np.array(logprobs, np.float32),
            advantage=float(advantages[i]),
          )
        )
  return rows


def _row_length(rows, layout):
  """Returns T: what all rows need as a forest, or some rows apart; <= 16,384."""
  if layout == 'forest':
    total = int(
      batch.pack(rows, tokens_per_row=1 << 20, rows_per_micro=1, layout='forest')[
        1
      ].n_tokens
    )
  else:
    total = max(r.places for r in rows) * 4
  longest = max(r.places for r in rows)
  return -(-max(min(total, 16384), longest) // 128) * 128


def _spread(seconds):
  return {'median': float(np.median(seconds)), 'min': min(seconds), 'max': max(seconds)}


def _gradient(moments):
  """Returns leaf -> (norm, projection on a random direction)."""
  found = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(moments):
    name = jax.tree_util.keystr(path)
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], 'big')
    leaf = np.asarray(leaf, np.float64)
    direction = np.random.default_rng(seed).choice([-1.0, 1.0], leaf.shape)
    found[name] = [float(np.linalg.norm(leaf)), float((leaf * direction).sum())]
  return found


def _read(args, vocab_size):
  """Returns the TurnRows of the trace, or of made up groups."""
  if not args.trace:
    return _turn_rows(list(_made_up(args, vocab_size)))
  lines = []
  try:
    for line in reading.json_lines(args.trace):
      if not isinstance(line.value, dict):
        raise SystemExit(f'{line.where}: no JSON object')
      if missing := _FIELDS - line.value.keys():
        raise SystemExit(f'{line.where}: lacks {sorted(missing)}')
      lines.append(line.value)
  except reading.FileError as e:
    raise SystemExit(str(e)) from None
  if not lines:
    raise SystemExit(f'{args.trace}: holds no turn')
  return _turn_rows(lines)


def _measure(args, config, rows, length):
  """Runs the update; returns packing, gradient, metrics, seconds, memory."""
  pack = lambda: batch.pack(
    rows, tokens_per_row=length, rows_per_micro=1, layout=args.layout
  )
  packed, packing = pack()
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  params = model.init_params(config, jax.random.key(0))
  loss = flow_grpo.FlowGrpoConfig(kl_coef=args.kl_coef)
  reference = params if args.kl_coef else None
  state = update.init_train_state(config, _OPTIMIZER, mesh, jax.random.key(0), params)
  compiled = (
    update.make_update_fn(config, _OPTIMIZER, loss, mesh)
    .lower(state, reference, packed, np.float32(np.inf))
    .compile()
  )
  scores = None
  if any(row.behavior_logprobs is None for row in rows):  # Then on policy.
    scores = np.asarray(update.make_score_fn(config, mesh)(state.params, packed))
  seconds = {'pack': [], 'update': [], 'total': []}
  for repeat in range(args.repeats + 1):
    start = time.perf_counter()
    packed, packing = pack()
    if scores is not None:
      packed = dataclasses.replace(
        packed, behavior_logprobs=scores, old_logprobs=scores
      )
    middle = time.perf_counter()
    state, metrics = compiled(state, reference, packed, np.float32(np.inf))
    jax.block_until_ready((state, metrics))
    end = time.perf_counter()
    if not repeat:  # The first one warms up, and has the gradient to compare.
      first = jax.device_get(metrics)
      gradient = _gradient(
        jax.device_get(optax.tree_utils.tree_get(state.opt_state, 'mu'))
      )
      continue
    seconds['pack'].append(middle - start)
    seconds['update'].append(end - middle)
    seconds['total'].append(end - start)
    print(f'{repeat}/{args.repeats}: {end - start:.1f} s', file=sys.stderr)
  return packed, packing, gradient, first, seconds, compiled.memory_analysis()


def main():
  args = _arguments()
  config = dataclasses.replace(
    MODELS[args.model], dtype=args.dtype, remat=args.remat, attention=args.attention
  )
  rows = _read(args, config.vocab_size)
  length = args.micro_tokens or _row_length(rows, args.layout)
  # Before and after: on a shared machine it is not the same all the time.
  peak = peaks.measured(args.dtype, _WIDTHS)
  packed, packing, gradient, first, seconds, memory = _measure(
    args, config, rows, length
  )
  peak = max(peak, peaks.measured(args.dtype, _WIDTHS))
  reference = bool(args.kl_coef)
  counted = flops.update_done(
    config, flops.done(config, packed), length=length, reference=reference
  )
  useful = flops.update_needed(
    config,
    flops.useful([(r.prompt_ids, r.response_ids) for r in rows]),
    reference=reference,
  )
  result = {
    'arguments': vars(args),
    'device': jax.devices()[0].device_kind,
    'tokens_per_row': length,
    'micro_batches': packing.n_micro,
    'tokens_rows': packing.n_row_tokens,
    'tokens_unique': packing.n_tokens,
    'tokens_padded': packing.n_micro * length - packing.n_tokens,
    'targets': packing.n_targets,
    'flops': counted,
    'flops_useful': useful,
    'seconds': {k: _spread(v) for k, v in seconds.items()},
    'matmul_peak_flops': peak,
    'mfu': flops.utilisation(
      useful, float(np.median(seconds['update'])), devices=1, peak=peak
    ),
    'matmul_peak_share': counted / np.median(seconds['update']) / peak,
    'peak_memory_bytes': (memory.temp_size_in_bytes + memory.argument_size_in_bytes),
    'peak_host_bytes': (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024),
    'loss': float(first['loss']),
    'grad_norm': float(first['grad_norm']),
    'gradient': gradient,
  }
  if args.out:
    pathlib.Path(args.out).write_text(json.dumps(result, indent=1) + '\n')
  shown = {k: v for k, v in result.items() if k not in ('gradient', 'arguments')}
  print(json.dumps(shown, indent=1))


if __name__ == '__main__':
  main()
