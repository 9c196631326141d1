r"""Trains a planner.

  python -m agentflow_jax.train --config=experiments/X.py --workdir=DIR \
      [--config.a.b=value ...]

The same command again resumes a run that was stopped.

Several processes train together when each runs this command: on TPU pods (with
--distributed=on), GKE and Slurm they find each other; elsewhere give each
--coordinator, --num_processes and --process_id. They share --workdir.

Exit codes: 0 done; 2 a mistake in flags or files; 3 the run stopped itself; 70 a
step hung; 75 told to stop (SIGTERM), with all that was done committed, no space
left, or another process failed. After 70 and 75 the same command goes on.
"""

import sys

from absl import flags, logging

from agentflow_jax.runtime import command_line

_WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Where the run keeps everything; a path or gs:// URL.'
)
_QUIET = flags.DEFINE_bool('quiet', False, 'No progress bar.')
_DISTRIBUTED = flags.DEFINE_enum(
  'distributed',
  'auto',
  ['auto', 'on', 'off'],
  'Whether this process is one of several. auto: yes if the flags below or the'
  ' cluster environment say so.',
)
_COORDINATOR = flags.DEFINE_string(
  'coordinator', '', 'host:port of process 0; needed outside a known cluster.'
)
_NUM_PROCESSES = flags.DEFINE_integer(
  'num_processes',
  0,
  'Number of processes; 0: from the cluster environment.',
  lower_bound=0,
)
_PROCESS_ID = flags.DEFINE_integer(
  'process_id',
  -1,
  'Number of this process, from 0; -1: from the cluster.',
  lower_bound=-1,
)
_HEARTBEAT_SECONDS = flags.DEFINE_integer(
  'heartbeat_seconds',
  100,
  'Seconds without a heartbeat of a process until all exit.',
  lower_bound=1,
)
_STEP_SECONDS = flags.DEFINE_float(
  'step_seconds',
  0.0,
  'Time limit of a step [s]; the process then exits. 0: none.',
  lower_bound=0.0,
)
_PROFILE_STEPS = flags.DEFINE_string(
  'profile_steps',
  '',
  'Steps to trace, such as 10:12; TensorBoard shows WORKDIR/tensorboard.',
)


def main(argv):
  config = command_line.config_from_flags(argv)
  # Imported late: --help and config errors should not wait for JAX.
  from agentflow_jax.runtime import processes, profiling
  from agentflow_jax.training import run

  profiled = profiling.Steps.parse(_PROFILE_STEPS.value)
  processes.initialize(
    _COORDINATOR.value,
    _NUM_PROCESSES.value,
    _PROCESS_ID.value,
    _HEARTBEAT_SECONDS.value,
    _DISTRIBUTED.value,
  )
  logging.info('config %s, algorithm %s', config.name, config.algorithm)
  table = run.train(
    config,
    command_line.given(_WORKDIR),
    quiet=_QUIET.value,
    step_seconds=_STEP_SECONDS.value,
    profiled=profiled,
  )
  if table:  # Process 0 has it.
    print(table)


if __name__ == '__main__':
  sys.exit(command_line.run(main, requires='workdir'))
