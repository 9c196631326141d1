r"""Solves one query and prints the steps as they happen.

  python -m agentflow_jax.solve --config=experiments/quickstart.py \
      --planner=runs/quickstart/planner \
      --query="What is the population of the capital of Portugal?"
  python -m agentflow_jax.solve --workdir=runs/quickstart --query="..."

Exit codes: 0 with an answer; 1 without one, and the output says why and what to
change; 2 a mistake in flags or files.
"""

import sys

from absl import flags

from agentflow_jax.runtime import command_line

_QUERY = flags.DEFINE_string('query', None, 'What to ask.')
_PLANNER = flags.DEFINE_string(
  'planner',
  '',
  'A planner directory. Default: that of the run whose config is used, or else the'
  " config's own.",
)
_WORKDIR = flags.DEFINE_string(
  'workdir',
  'runs/solve',
  'A run, whose config and planner are used unless --config is given; or where data'
  ' sets are kept.',
)
_GREEDY = flags.DEFINE_bool('greedy', True, 'Temperature 0.')


def main(argv):
  config = command_line.config_from_flags(argv)
  command_line.say_differences(config)
  # Imported late: --help and config errors should not wait for JAX.
  from agentflow_jax.evaluation import solving

  trajectory = solving.solve(
    config,
    command_line.given(_QUERY),
    workdir=_WORKDIR.value,
    planner=_PLANNER.value or command_line.planner_of_run(),
    greedy=_GREEDY.value,
    emit=lambda text: print(text, flush=True),
  )
  sys.exit(0 if trajectory.answer else 1)


if __name__ == '__main__':
  sys.exit(command_line.run(main, requires='query'))
