"""The part of the report on what went wrong in failed rollouts."""

import math

from agentflow_jax.files import reading
from agentflow_jax.report import data, markup, tables
from agentflow_jax.rollouts import mistakes

_LEVELS = {'calls': '1, calls', 'completion': '2, completion', 'state': '3, state'}
_NOTE = (
  'Each failed rollout has one first cause: its first mistake that no later turn '
  'made good. First causes, successes and rollouts without a reward add up to all '
  'rollouts. '
  '"With it" counts rollouts that have the mistake at all, successes included. The '
  'levels are those of arXiv 2604.00835: single calls, completion, and acting in a '
  'world with state, rules and hostile content.'
)


def sections(run: data.Run) -> list[str]:
  """Returns the table of mistakes before and after training; [] without failures."""
  sides = [
    run.evaluations[name].mistakes if name in run.evaluations else {}
    for name in ('start', 'final')
  ]
  rows = []
  for level, labels in mistakes.LEVELS.items():
    for label in labels:
      counts = [
        side.get(kind, {}).get(label.value, 0)
        for side in sides
        for kind in ('first_causes', 'labels')
      ]
      if any(counts):
        rows.append(
          [_LEVELS[level], markup.text(label.value), *(f'{n:,}' for n in counts)]
        )
  if not rows:
    return []
  for title, name in (
    ('rollouts', 'rollouts'),
    ('successes', 'success'),
    ('without a reward', 'unscored'),
  ):
    counts = [f'{side[name]:,}' if side else '-' for side in sides]
    rows.append(['', title, counts[0], '', counts[1], ''])
  for level, title, name in (
    ('1, calls', 'calls that their tool accepted', 'calls_valid'),
    ('1, calls', 'declined exactly if forbidden', 'no_call_right'),
  ):
    values = [reading.number(side.get(name)) for side in sides]
    if any(map(math.isfinite, values)):
      shown = [tables.percent(value) for value in values]
      rows.append([level, title, shown[0], '', shown[1], ''])
  header = [
    'level',
    'mistake',
    'first cause before',
    'with it before',
    'first cause after',
    'with it after',
  ]
  return [markup.table(header, rows), f'<p class="note">{markup.text(_NOTE)}</p>']
