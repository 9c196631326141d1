"""What an update of a model needs of a TPU topology, without one.

  pip install 'agentflow-jax[preflight]'
  python experiments/benchmarks/compile_update.py --topology=v5p:2x2x4 \
      --mesh=1,4,4 --model=qwen2.5-7b --tokens_per_row=20480 --out=FILE.json

Compiles the Flow-GRPO update ahead of time and writes JSON: bytes a chip by
kind against the chip's memory, collectives of one micro-batch by kind (count and
bytes, loops counted), its FLOPs a chip, and what a forest of the made up groups
shares. Exits with 1 where it does not fit.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import time

# Before jax is imported: the host has no TPU, and libtpu must not look for one.
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')
os.environ.setdefault('TPU_WORKER_HOSTNAMES', 'localhost')
os.environ.setdefault('TPU_ACCELERATOR_TYPE', 'none')

import jax  # pylint: disable=wrong-import-position
import numpy as np  # pylint: disable=wrong-import-position
from jax.experimental import topologies  # pylint: disable=wrong-import-position

# pylint: disable=wrong-import-position
from agentflow_jax.core import batch, flops, flow_grpo, hlo, lora, model
from agentflow_jax.core import optimizer, published, sharding, update
# pylint: enable=wrong-import-position

# GiB that a program may use of a chip (published: 95, 16 and 32 GB; what XLA
# refuses programs beyond).
_MEMORY = {'v5p': 95.7, 'v5e': 15.75, 'v6e': 31.25}
_GIB = 1 << 30
_REMEDY = (
    'more fsdp or tensor, shorter rows, --lora_rank, --mu_dtype=bfloat16 or'
    ' --param_dtype=bfloat16 would help'
)


def _arguments():
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument('--topology', required=True, help='such as v5e:8x8')
  parser.add_argument(
      '--mesh', required=True, help='data,fsdp,tensor; they multiply to all chips'
  )
  parser.add_argument(
      '--model', choices=sorted(published.MODELS), default='qwen2.5-7b'
  )
  parser.add_argument('--tokens_per_row', type=int, default=20480)
  parser.add_argument(
      '--rows_per_micro', type=int, default=0, help='0: data x fsdp'
  )
  parser.add_argument('--remat', choices=('none', 'dots', 'full'), default='full')
  parser.add_argument(
      '--attention', choices=('blocks', 'pallas'), default='pallas'
  )
  parser.add_argument(
      '--param_dtype', choices=('float32', 'bfloat16'), default='float32'
  )
  parser.add_argument(
      '--mu_dtype', choices=('float32', 'bfloat16'), default='float32'
  )
  parser.add_argument('--lora_rank', type=int, default=0)
  parser.add_argument('--kl_coef', type=float, default=1e-3)
  parser.add_argument('--layers', type=int, default=0, help='0: all')
  for name, value in (
      ('group_size', 8), ('turns', 3), ('prompt_len', 4096),
      ('memory_len', 512), ('response_len', 512),
  ):
    parser.add_argument(f'--{name}', type=int, default=value)
  parser.add_argument('--out', default='')
  return parser.parse_args()


def _group(args, rng):
  """Returns the turn rows of one group, random ids."""
  draw = lambda n: rng.integers(0, 1000, n)
  prompt, tail, rows = draw(args.prompt_len - 8), draw(8), []
  for _ in range(args.group_size):
    memory = np.zeros(0, np.int64)
    for _ in range(args.turns):
      rows.append(batch.TurnRow(
          np.concatenate([prompt, memory, tail]), draw(args.response_len), 1.0
      ))
      memory = np.concatenate([memory, draw(args.memory_len)])
  return rows


def _placed(tree, shardings):
  return jax.tree.map(
      lambda x, s: jax.ShapeDtypeStruct(np.shape(x), x.dtype, sharding=s),
      tree, shardings,
  )


def _bytes(tree):
  """Bytes of the arrays on one device."""
  return sum(
      int(np.prod(x.sharding.shard_shape(x.shape))) * x.dtype.itemsize
      for x in jax.tree.leaves(tree)
  )


def _lower(args, config, mesh, packed):
  """Returns the lowered update and the arguments that stay resident."""
  tx = optimizer.OptimizerConfig(1e-6, mu_dtype=args.mu_dtype)
  loss = flow_grpo.FlowGrpoConfig(kl_coef=args.kl_coef)
  shapes = jax.eval_shape(
      lambda key: update.init_train_state(config, tx, mesh, key),
      jax.random.key(0),
  )
  state = _placed(shapes, update.state_shardings(config, tx, mesh))
  reference = None
  if args.kl_coef or args.lora_rank:
    base = update.base_of(config)
    reference = _placed(
        jax.eval_shape(
            lambda: model.init_params(base, jax.random.key(0))
        ),
        sharding.param_shardings(base, mesh),
    )
  rows = sharding.batch_sharding(mesh, row_axis=1)
  arrays = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(
          np.shape(x), np.asarray(x).dtype,
          sharding=rows if np.ndim(x) else sharding.replicated(mesh),
      ),
      packed,
  )
  lowered = update.make_update_fn(config, tx, loss, mesh).lower(
      state, reference, arrays, jax.ShapeDtypeStruct((), np.float32)
  )
  return lowered, {
      'trained parameters': state.params, 'optimizer state': state.opt_state,
      'reference and base': reference,
  }


def main():
  args = _arguments()
  kind = args.topology.split(':')[0]
  if kind not in _MEMORY:
    raise SystemExit(f'--topology: {kind} is none of {sorted(_MEMORY)}')
  axes = [int(n) for n in args.mesh.split(',')]
  try:
    devices = topologies.get_topology_desc(
        topology_name=args.topology, platform='tpu'
    ).devices
    mesh = sharding.make_mesh(*axes, devices=devices)
  except (RuntimeError, ValueError, TypeError) as e:
    raise SystemExit(
        f'--topology={args.topology} --mesh={args.mesh}: {e}\n(libtpu comes'
        " with pip install 'agentflow-jax[preflight]')"
    ) from e
  config = published.MODELS[args.model]
  config = dataclasses.replace(
      config, dtype='bfloat16', param_dtype=args.param_dtype, remat=args.remat,
      attention=args.attention, lora=lora.LoraConfig(rank=args.lora_rank),
      max_positions=max(config.max_positions, args.tokens_per_row),
      n_layers=args.layers or config.n_layers,
  )
  rows = args.rows_per_micro or axes[0] * axes[1]
  rng, groups = np.random.default_rng(0), []
  for _ in range(rows):  # One group a row.
    groups += _group(args, rng)
  packed, packing = batch.pack(
      groups, tokens_per_row=args.tokens_per_row, rows_per_micro=rows,
      layout='forest',
  )
  start = time.monotonic()
  lowered, resident = _lower(args, config, mesh, packed)
  try:
    compiled = lowered.compile()
  except jax.errors.JaxRuntimeError as e:
    if 'RESOURCE_EXHAUSTED' not in str(e):
      raise
    said = ' '.join(str(e).split())[:400]
    raise SystemExit(f'does not fit a {kind}: {said}\n{_REMEDY}') from e
  seconds = time.monotonic() - start
  memory = compiled.memory_analysis()
  held = {name: _bytes(tree) for name, tree in resident.items()}
  # What is alive at the worst moment, arguments included; temp_size would count
  # places that are used one after the other.
  needs = memory.peak_memory_in_bytes
  counted = flops.update_done(
      config,
      flops.done(
          config, packed, row_shards=axes[0] * axes[1], vocab_shards=axes[2]
      ),
      length=args.tokens_per_row, reference=bool(args.kl_coef),
  )
  result = {
      'arguments': vars(args),
      'jax': jax.__version__,
      'chips': len(devices),
      'gib_a_chip': {
          **{name: size / _GIB for name, size in held.items()},
          'gradients, activations': (
              needs - memory.argument_size_in_bytes
          ) / _GIB,
          'peak': needs / _GIB,
          'there': _MEMORY[kind],
      },
      'tflops_a_chip': counted / packing.n_micro / len(devices) / 1e12,
      'collectives': {
          name: {'count': sent.count, 'gib': sent.bytes / _GIB}
          for name, sent in hlo.collectives(compiled.as_text()).items()
      },
      'tokens_a_micro_batch': rows * args.tokens_per_row,
      'tokens_shared': packing.n_row_tokens / packing.n_tokens,
      'fill': packing.fill,
      'compile_seconds': seconds,
  }
  text = json.dumps(result, indent=1)
  if args.out:
    pathlib.Path(args.out).write_text(text + '\n')
  print(text)
  if needs > _MEMORY[kind] * _GIB:
    raise SystemExit(
        f'does not fit: {needs / _GIB:.1f} GiB a chip of {_MEMORY[kind]}\n'
        + _REMEDY
    )


if __name__ == '__main__':
  main()
