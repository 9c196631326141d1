"""Trains a planner.

  python -m agentflow_jax.train --config=experiments/X.py --workdir=DIR \
      [--config.a.b=value ...]

The same command again resumes a run that was stopped.
"""

import sys

from absl import app, flags, logging

from agentflow_jax.training import command

_WORKDIR = flags.DEFINE_string(
    'workdir', None, 'Where the run keeps everything; a path or gs:// URL.'
)
_QUIET = flags.DEFINE_bool('quiet', False, 'No progress bar.')


def main(argv):
  config = command.config_from_flags(argv)
  # Imported late: --help and config errors should not wait for JAX.
  from agentflow_jax.training import run

  logging.info('config %s, algorithm %s', config.name, config.algorithm)
  print(run.train(config, _WORKDIR.value, quiet=_QUIET.value))


if __name__ == '__main__':
  flags.mark_flag_as_required('workdir')
  sys.exit(command.run(main))
