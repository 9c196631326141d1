"""Solves one query and prints the steps as they happen.

  python -m agentflow_jax.solve --config=experiments/quickstart.py \
      --planner=runs/quickstart/planner \
      --query="What is the population of the capital of Portugal?"
"""

import sys

from absl import flags

from agentflow_jax.runtime import command_line

_QUERY = flags.DEFINE_string('query', None, 'What to ask.')
_PLANNER = flags.DEFINE_string(
    'planner', '', "A planner directory; '' for the config's own."
)
_WORKDIR = flags.DEFINE_string(
    'workdir', 'runs/solve', 'Where data sets are kept.'
)
_GREEDY = flags.DEFINE_bool('greedy', True, 'Temperature 0.')


def main(argv):
  config = command_line.config_from_flags(argv)
  # Imported late: --help and config errors should not wait for JAX.
  from agentflow_jax.evaluation import solving

  solving.solve(
      config,
      _QUERY.value,
      workdir=_WORKDIR.value,
      planner=_PLANNER.value,
      greedy=_GREEDY.value,
      emit=lambda text: print(text, flush=True),
  )


if __name__ == '__main__':
  flags.mark_flag_as_required('query')
  sys.exit(command_line.run(main))
