r"""Writes a task file for a server of OpenEnv, and tries what its reset takes.

  python -m agentflow_jax.openenv_tasks --url=http://localhost:8000 --out=tasks.jsonl \
      --query="Guess the word." --reset=seed=0:99 [--reset='level=easy|hard']

Each combination of values becomes a row. A server drops arguments that it does not know
without a word, so each one is tried: one that changes no first observation is named,
and the file is written all the same (a seed may show only later).
"""

import sys

from absl import flags

from agentflow_jax.runtime import command_line

_URL = flags.DEFINE_string('url', None, 'Address of the server.')
_OUT = flags.DEFINE_string('out', 'tasks.jsonl', 'JSONL file that is written.')
_QUERY = flags.DEFINE_string('query', '', 'What is asked in every task.')
_RESET = flags.DEFINE_multi_string(
  'reset', [], 'An argument of reset: NAME=FIRST:LAST, or NAME=VALUE|VALUE.'
)
_SECONDS = flags.DEFINE_float(
  'seconds', 30.0, 'Time limit of an answer [s].', lower_bound=0.0
)


def main(argv):
  command_line.no_arguments(argv)
  # Imported late: --help should not wait for it.
  from agentflow_jax.assembly import openenv_tasks

  rows = openenv_tasks.rows(_QUERY.value, _RESET.value)
  url = command_line.given(_URL)
  tried = openenv_tasks.write(_OUT.value, url, rows, _SECONDS.value)
  print(f'{_OUT.value}: {len(rows)} tasks')
  print(f'{tried.style} server with {", ".join(tried.tools) or "no tools"}')
  if tried.heeded:
    print(f'changes the first observation: {", ".join(tried.heeded)}')
  if tried.ignored:
    print(f'changes no first observation: {", ".join(tried.ignored)}')


if __name__ == '__main__':
  sys.exit(command_line.run(main, requires='url', takes_config=False))
