r"""Evaluates a planner on held-out tasks.

  python -m agentflow_jax.evaluate --config=experiments/X.py --workdir=DIR \
      [--planner=DIR] [--split=test] [--limit=N] [--trials=N | --greedy] \
      [--protocol=paper] [--controls] [--injection=bundled] [--tools=renamed] \
      [--benchmark=NAME --data_dir=PATH]

Evaluates the planner that a run in --workdir ended with, or --planner, on the
config's own tasks or on a published benchmark. Writes evaluations/NAME.json below
the workdir and prints the accuracy. Cut off, the same command goes on.
"""

import sys

from absl import flags

from agentflow_jax.runtime import command_line

_WORKDIR = flags.DEFINE_string(
  'workdir', None, 'A run, and where results go; a path or gs:// URL.'
)
_FLAGS = {}  # Those that are fields of EvaluateOptions.
_FLAGS['planner'] = flags.DEFINE_string(
  'planner', '', "A planner directory; '' for the run's own, WORKDIR/planner."
)
_FLAGS['split'] = flags.DEFINE_enum(
  'split', 'test', ['validation', 'test'], 'Which tasks.'
)
_FLAGS['limit'] = flags.DEFINE_integer(
  'limit', None, "Tasks at most, instead of the config's; 0 for all."
)
_FLAGS['trials'] = flags.DEFINE_integer(
  'trials', None, "Sampled rollouts a task; the protocol's, or 1."
)
_FLAGS['protocol'] = flags.DEFINE_enum(
  'protocol',
  'config',
  ['config', 'paper'],
  'paper: at most 10 turns, temperature 0.7, three trials.',
)
_FLAGS['greedy'] = flags.DEFINE_bool('greedy', False, 'Temperature 0 instead.')
_FLAGS['name'] = flags.DEFINE_string('name', '', 'Name of the result file.')
_FLAGS['benchmark'] = flags.DEFINE_string(
  'benchmark',
  '',
  'Asks a benchmark instead: 2wiki, aime24, amc23, bamboogle, gaia, gameof24,'
  ' gpqa, hotpotqa, medqa, musique, several by commas, or all; or enterpriseops.',
)
_FLAGS['data_dir'] = flags.DEFINE_string(
  'data_dir',
  '',
  'Its JSON file, or a directory of NAME/data.json; of enterpriseops its rows or a'
  ' directory of task files.',
)
_FLAGS['controls'] = flags.DEFINE_bool(
  'controls', False, 'Evaluates the planner before training and a random one, too.'
)
_FLAGS['injection'] = flags.DEFINE_string(
  'injection',
  '',
  'Evaluates once more for each strategy of hostile texts that are planted into tool'
  " results and cards: 'bundled', or a JSONL file of"
  ' {"strategy", "place", "text"}.',
)
_FLAGS['tools'] = flags.DEFINE_string(
  'tools',
  '',
  "Evaluates once more with renamed tools: 'renamed', or a JSON file, see README.md.",
)


def main(argv):
  config = command_line.config_from_flags(argv)
  command_line.say_differences(config)
  # Imported late: --help and config errors should not wait for JAX.
  from agentflow_jax.evaluation import command

  options = command.EvaluateOptions(**{k: flag.value for k, flag in _FLAGS.items()})
  print(command.evaluate(config, command_line.given(_WORKDIR), options))


if __name__ == '__main__':
  sys.exit(command_line.run(main, requires='workdir'))
