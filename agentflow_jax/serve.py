r"""Serves a model to OpenAI-compatible clients, or an environment to OpenEnv's.

  python -m agentflow_jax.serve --workdir=runs/quickstart --port=8000
  python -m agentflow_jax.serve --planner=DIRECTORY_OR_GGUF [--config=FILE]
  python -m agentflow_jax.serve --environment=desk [--split=validation]

A prompt and its response together may be as long as the model's context, or as what
fits in memory; flags for `engine` set other sizes. Of the config, `engine` is read, and
the directory, dtypes and attention of `planner`; for an environment, `task_set` and
`agent.environment`. A flag for anything else is an error. It listens on this machine
alone unless --host says otherwise.
"""

import sys

from absl import flags

from agentflow_jax.runtime import command_line

_WORKDIR = flags.DEFINE_string(
  'workdir',
  '',
  'A run, whose config and planner are used unless --config is given; data sets of'
  ' an environment are written below it.',
)
_HOST = flags.DEFINE_string('host', '127.0.0.1', 'The address to listen on.')
_PORT = flags.DEFINE_integer(
  'port', 8000, 'The port; 0 takes a free one.', lower_bound=0, upper_bound=65535
)
_HOST_NAMES = flags.DEFINE_list(
  'host_names',
  [],
  'Names in the header Host that are answered beside localhost, such as a'
  " proxy's. Checked where --host is this machine alone.",
)
_MODEL, _WORLDS = {}, {}  # Flags of a model, and of an environment.
_MODEL['planner'] = flags.DEFINE_string(
  'planner',
  '',
  'A model directory or GGUF file. Default: that of the run whose config is used,'
  " or else the config's own.",
)
_MODEL['name'] = flags.DEFINE_string('name', 'planner', "The model's name for clients.")
_MODEL['key_variable'] = flags.DEFINE_string(
  'api_key_variable',
  '',
  'Environment variable that holds the key which clients must send.',
)
_ENVIRONMENT = flags.DEFINE_string(
  'environment',
  '',
  'Serves an environment instead: desk, or PATH.py:CLASS with a config of its tasks.',
)
_WORLDS['split'] = flags.DEFINE_enum(
  'split', 'train', ['train', 'validation', 'test'], 'Tasks of the environment.'
)
_WORLDS['capacity'] = flags.DEFINE_integer(
  'max_concurrent_envs', 64, 'Largest number of episodes at once.', lower_bound=1
)
_WORLDS['idle_seconds'] = flags.DEFINE_float(
  'idle_seconds', 900.0, 'Time after which a silent connection is closed [s].', 0.001
)


def main(argv):
  kind = _ENVIRONMENT.value
  used, idle = (_WORLDS, _MODEL) if kind else (_MODEL, _WORLDS)
  command_line.refuse(idle.values(), 'with' if kind else 'without', _ENVIRONMENT)
  values = {k: flag.value for k, flag in used.items()}
  if not kind:
    values['planner'] = values['planner'] or command_line.planner_of_run()
  config = command_line.config_from_flags(argv, values.get('planner'), kind)
  command_line.say_differences(config)
  # Imported late: --help and config errors should not wait for JAX.
  from agentflow_jax.serving import server

  values |= dict(host=_HOST.value, port=_PORT.value, host_names=_HOST_NAMES.value)
  if kind:
    server.serve_environment(config, kind=kind, workdir=_WORKDIR.value, **values)
  else:
    server.serve(config, given=command_line.fields_given(), **values)


if __name__ == '__main__':
  sys.exit(command_line.run(main))
