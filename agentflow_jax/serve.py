r"""Serves a model to OpenAI-compatible clients.

  python -m agentflow_jax.serve --config=experiments/quickstart.py \
      --planner=runs/quickstart/planner --port=8000
  python -m agentflow_jax.serve --workdir=runs/quickstart

Of the config, `engine` (shapes) and of `planner` the directory, dtypes and attention
are read; a flag for anything else is an error. It listens on this machine alone
unless --host says otherwise.
"""

import sys

from absl import flags

from agentflow_jax.runtime import command_line

_WORKDIR = flags.DEFINE_string(
    'workdir', '',
    'A run, whose config and planner are used unless --config is given.',
)
_PLANNER = flags.DEFINE_string(
    'planner', '',
    'A model directory or GGUF file. Default: that of the run whose config is used,'
    " or else the config's own.",
)
_HOST = flags.DEFINE_string('host', '127.0.0.1', 'The address to listen on.')
_PORT = flags.DEFINE_integer(
    'port', 8000, 'The port; 0 takes a free one.', lower_bound=0, upper_bound=65535
)
_NAME = flags.DEFINE_string('name', 'planner', 'What clients call the model.')
_KEY = flags.DEFINE_string(
    'api_key_variable', '',
    'Environment variable that holds the key which clients must send.',
)
_HOST_NAMES = flags.DEFINE_list(
    'host_names', [],
    'Names in the header Host that are answered beside localhost, such as a'
    " proxy's. Checked where --host is this machine alone.",
)


def main(argv):
  planner = _PLANNER.value or command_line.planner_of_run()
  config = command_line.config_from_flags(argv, serves=planner)
  command_line.say_differences(config)
  # Imported late: --help and config errors should not wait for JAX.
  from agentflow_jax.serving import server

  server.serve(
      config,
      planner=planner,
      name=_NAME.value,
      host=_HOST.value,
      port=_PORT.value,
      key_variable=_KEY.value,
      host_names=_HOST_NAMES.value,
  )


if __name__ == '__main__':
  sys.exit(command_line.run(main))
