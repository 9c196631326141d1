"""Evaluates a planner on held-out tasks.

  python -m agentflow_jax.evaluate --config=experiments/X.py --workdir=DIR \
      [--planner=DIR] [--split=test] [--limit=N] [--trials=N | --greedy]

Evaluates the planner that a run in --workdir ended with, or --planner. Writes
evaluations/NAME.json below the workdir and prints the accuracy.
"""

import sys

from absl import flags

from agentflow_jax.training import command

_WORKDIR = flags.DEFINE_string(
    'workdir', None, 'A run, and where results go; a path or gs:// URL.'
)
_PLANNER = flags.DEFINE_string(
    'planner', '', "A planner directory; '' for the run's own, WORKDIR/planner."
)
_SPLIT = flags.DEFINE_enum(
    'split', 'test', ['validation', 'test'], 'Which tasks.'
)
_LIMIT = flags.DEFINE_integer(
    'limit', None, "Tasks at most, instead of the config's; 0 for all."
)
_TRIALS = flags.DEFINE_integer('trials', 1, 'Sampled rollouts a task.')
_GREEDY = flags.DEFINE_bool('greedy', False, 'Temperature 0 instead.')
_NAME = flags.DEFINE_string('name', 'evaluation', 'Name of the result file.')


def main(argv):
  config = command.config_from_flags(argv)
  # Imported late: --help and config errors should not wait for JAX.
  from agentflow_jax.training import single

  options = single.EvaluateOptions(
      planner=_PLANNER.value,
      split=_SPLIT.value,
      limit=_LIMIT.value,
      trials=_TRIALS.value,
      greedy=_GREEDY.value,
      name=_NAME.value,
  )
  print(single.evaluate(config, _WORKDIR.value, options))


if __name__ == '__main__':
  flags.mark_flag_as_required('workdir')
  sys.exit(command.run(main))
