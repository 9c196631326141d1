r"""Says whether a run fits a topology, by compiling its programs without it.

  python -m agentflow_jax.preflight --config=experiments/X.py \
      --topology=v5p:4x4x4 [--num_slices=N] [--model=qwen2.5-7b] [--out=FILE]

TPU topologies need their compiler: pip install 'jax[tpu]' (the extra `preflight`).
gpu:h100:8 is an estimate, from programs for virtual CPU devices.

Exit codes: 0 fits; 1 does not, and the output says by how much and what may help;
2 a mistake in flags or files.
"""

import json
import pathlib
import sys

from absl import flags

from agentflow_jax.runtime import command_line
from agentflow_jax.sizing import topologies

_TOPOLOGY = flags.DEFINE_string(
  'topology', None, 'Such as v5p:4x4x4, v5e:8x8, gpu:h100:8 or cpu:8.'
)
_NUM_SLICES = flags.DEFINE_integer(
  'num_slices', 1, 'TPU slices of that topology.', lower_bound=1
)
_MODEL = flags.DEFINE_string(
  'model',
  '',
  'A released network, such as qwen2.5-7b, where planner.directory is not here.',
)
_OUT = flags.DEFINE_string('out', '', 'A JSON file to write.')


def main(argv):
  config = command_line.config_from_flags(argv)
  topology = topologies.parse(command_line.given(_TOPOLOGY))
  topologies.prepare(topology)
  # Imported late: a device is not to be touched before that.
  from agentflow_jax.sizing import fit

  try:
    report = fit.check(
      config,
      fit.network(config, _MODEL.value),
      topology,
      _NUM_SLICES.value,
      lambda text: print(text, file=sys.stderr, flush=True),
    )
  except fit.DoesNotFit as e:
    sys.stderr.write(f'{e}\n')
    sys.exit(1)
  if _OUT.value:
    pathlib.Path(_OUT.value).write_text(json.dumps(report, indent=1) + '\n')
  print(fit.table(report))
  sys.exit(0 if report['fits'] else 1)


if __name__ == '__main__':
  sys.exit(command_line.run(main, requires='topology'))
