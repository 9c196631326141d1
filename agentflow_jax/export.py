"""Writes a planner as a directory that vLLM and transformers load.

  python -m agentflow_jax.export --workdir=DIR --out=DIR [--dtype=bfloat16]
  python -m agentflow_jax.export --model=DIR_OR_GGUF --out=DIR
  python -m agentflow_jax.export --workdir=DIR --adapter --out=DIR

Exports the planner that the run in --workdir ended with, or any model that
`planner.directory` of a config may name. Writes config.json, safetensors in
shards, and the tokenizer's files. --out must not hold a model yet. With --adapter it
writes the low-rank adapters of a run with planner.lora.rank alone, for PEFT, vLLM and
SGLang.
"""

import sys

from absl import flags

from agentflow_jax.runtime import command_line

_WORKDIR = flags.DEFINE_string(
  'workdir', '', 'A finished run, whose planner is exported.'
)
_MODEL = flags.DEFINE_string(
  'model', '', 'Instead: a model directory, or the path of a GGUF file.'
)
_OUT = flags.DEFINE_string('out', None, 'The directory to write.')
_DTYPE = flags.DEFINE_enum(
  'dtype',
  'stored',
  ['stored', 'float32', 'bfloat16'],
  "Type that tensors are rounded to; 'stored' keeps their own.",
)
_SHARD_GB = flags.DEFINE_float(
  'shard_gb', 5.0, 'The most that one file holds [10^9 bytes].', lower_bound=0.001
)
_UNTIED = flags.DEFINE_bool(
  'untied',
  False,
  'Writes an output head that is tied to the embedding as a tensor of its own, for'
  ' servers that are given new weights while they run (docs/engines.md).',
)
_ADAPTER = flags.DEFINE_bool(
  'adapter', False, "Exports the run's adapters alone, in PEFT's format."
)


def main(argv):
  command_line.no_arguments(argv)
  # Imported late: --help and mistaken flags should not wait for JAX.
  from agentflow_jax.assembly import model_export

  out = command_line.given(_OUT)
  if _ADAPTER.value:
    print(
      model_export.export_adapter(workdir=_WORKDIR.value, out=out, dtype=_DTYPE.value)
    )
    return
  print(
    model_export.export(
      model=_MODEL.value,
      workdir=_WORKDIR.value,
      out=out,
      dtype=_DTYPE.value,
      shard_bytes=int(_SHARD_GB.value * 1e9),
      untied=_UNTIED.value,
    )
  )


if __name__ == '__main__':
  sys.exit(command_line.run(main, requires='out', takes_config=False))
