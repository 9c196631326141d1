"""The part of the report on rollouts in worlds."""

import math
from collections.abc import Mapping
from typing import Any

from agentflow_jax.files import reading
from agentflow_jax.report import data, markup, plots, tables

# (heading, figure of an evaluation's world, how it is shown).
_COLUMNS = (
  ('success', 'success', tables.percent),
  ('pass fraction', 'pass_fraction', tables.percent),
  ('refusals, infeasible tasks', 'refusal_recall', tables.percent),
  ('refusals, feasible tasks', 'false_refusals', tables.percent),
  ('rollouts with violations', 'violating', tables.percent),
  ('violations a rollout', 'violations', '{:.2f}'.format),
  ('calls a rollout', 'calls', '{:.1f}'.format),
  ('ms in the environment', 'environment_seconds', lambda s: f'{1000 * s:.1f}'),
)
_NOTE = (
  'Over scored rollouts. Success: all checks of the task passed. Pass fraction: '
  'passed checks among those that fail before anything is done, and the ending. '
  'A violation is a changed row that no check allows. Calls that a program makes '
  'count.'
)


def sections(run: data.Run) -> list[str]:
  """Returns the tables of a run whose tasks have worlds; [] without worlds."""
  found = {
    title: evaluation.world
    for name, (title, _) in plots.PLANNERS.items()
    if (evaluation := run.evaluations.get(name)) and evaluation.world
  }
  if not found:
    return []
  rows = [
    [markup.text(title), *(_shown(world, *column[1:]) for column in _COLUMNS)]
    for title, world in found.items()
  ]
  return [
    markup.table(['planner', *(c[0] for c in _COLUMNS)], rows),
    f'<p class="note">{markup.text(_NOTE)}</p>',
    *(
      _parts(title, fact, run)
      for title, fact in (
        ('Success by family', 'by_family'),
        ('Success by whether the task can be carried out', 'by_feasible'),
        ('Success on held-out compositions', 'by_held_out'),
      )
    ),
  ]


def _parts(title: str, fact: str, run: data.Run) -> str:
  """Returns the rates before and after training by a fact of the tasks."""
  sides = [
    (run.evaluations[name].world.get(fact) or {}) if name in run.evaluations else {}
    for name in ('start', 'final')
  ]
  rows = [
    [markup.text(value)]
    + [
      _shown(side.get(value) or {}, name, tables.percent)
      for side in sides
      for name in ('success', 'pass_fraction')
    ]
    + [f'{(sides[1] or sides[0]).get(value, {}).get("rollouts", 0):,}']
    for value in sorted({v for side in sides for v in side})
  ]
  if not rows:
    return ''
  header = [
    '',
    'success before',
    'pass fraction before',
    'success after',
    'pass fraction after',
    'rollouts',
  ]
  table = markup.table(header, rows, full=False)
  return f'<details open><summary>{markup.text(title)}</summary>{table}</details>'


def _shown(world: Mapping[str, Any], name: str, form) -> str:
  value = reading.number(world.get(name))
  return form(value) if math.isfinite(value) else '-'
