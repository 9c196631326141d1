r"""Prints the rollouts of a run: what was planned, called, found and answered.

  python -m agentflow_jax.trajectories --workdir=DIR \
      [--step=3 --reward=0 --status=tool_error --first_cause=grounding --task=ID] \
      [--slowest=5] [--jsonl | --format=verl]
  python -m agentflow_jax.trajectories --workdir=NEW --format=verl --from=ROWS.jsonl

--jsonl prints a line of JSON for each turn; docs/training.md lists its fields.
"""

import functools
import json
import sys
from typing import Any

from absl import flags
from etils import epath

from agentflow_jax import records
from agentflow_jax.rollouts import mistakes
from agentflow_jax.runtime import command_line

_WORKDIR = flags.DEFINE_string('workdir', None, 'The run.')
_STEP = flags.DEFINE_integer(
  'step',
  None,
  'The training step, from 1; 0 for all. Default: the newest.',
  lower_bound=0,
)
_REWARD = flags.DEFINE_string(
  'reward', None, "Only rollouts with this reward; 'none' for those without one."
)
_STATUS = flags.DEFINE_enum(
  'status', None, [s.value for s in records.Status], 'Only rollouts that ended so.'
)
_FIRST_CAUSE = flags.DEFINE_enum(
  'first_cause',
  None,
  [label.value for label in mistakes.Label],
  'Only failed rollouts whose first cause is this mistake.',
)
_TASK = flags.DEFINE_string('task', '', 'Only rollouts of the task with this id.')
_LIMIT = flags.DEFINE_integer(
  'limit', 20, 'The most rollouts to print; 0 for all. --jsonl prints all.', 0
)
_SLOWEST = flags.DEFINE_integer(
  'slowest', 0, 'Only so many rollouts of a step, the slowest; 0 for all.', 0
)
_CHOICE = (_STEP, _REWARD, _STATUS, _FIRST_CAUSE, _TASK, _SLOWEST)
_JSONL = flags.DEFINE_bool('jsonl', False, 'Prints JSON lines, one a turn.')
_FORMAT = flags.DEFINE_enum(
  'format',
  None,
  ['verl', 'openenv'],
  'Prints JSON lines in the format of another trainer, with ids and log probabilities.',
)
_FROM = flags.DEFINE_string('from', '', 'Rows to write as rollouts into a new workdir.')


def main(argv):
  command_line.no_arguments(argv)
  # Imported late: --help should not wait for it.
  from agentflow_jax.rollouts import exchange, showing

  workdir = epath.Path(command_line.given(_WORKDIR))
  form: Any = _FORMAT.value
  idle = (_JSONL, _LIMIT) if form else (_FROM,)
  command_line.refuse(idle, 'with' if form else 'without', _FORMAT)
  if _FROM.value:
    command_line.refuse(_CHOICE, 'with', _FROM)
    print(*exchange.import_rows(epath.Path(_FROM.value), form, workdir), sep='\n')
    return
  rows_of = showing.rows if _JSONL.value else None
  rows_of = functools.partial(exchange.rows, form) if form else rows_of
  wanted = showing.Wanted(
    step=_STEP.value,
    status=records.Status(_STATUS.value) if _STATUS.value else None,
    reward=showing.reward_of(_REWARD.value),
    task=_TASK.value,
    first_cause=_FIRST_CAUSE.value or '',
    slowest=_SLOWEST.value,
  )
  shown, found = 0, 0
  with command_line.quiet_pipe():
    for one in showing.find(workdir, wanted):
      found += 1
      if rows_of is not None:
        for row in rows_of(*one):
          print(json.dumps(row))
      elif not _LIMIT.value or shown < _LIMIT.value:
        print(showing.in_words(*one), end='\n\n')
        shown += 1
    if rows_of is None:
      more = f'; --limit={found} shows all' if found > shown else ''
      print(f'{shown} of {found} rollouts that fit{more}')


if __name__ == '__main__':
  sys.exit(command_line.run(main, requires='workdir', takes_config=False))
