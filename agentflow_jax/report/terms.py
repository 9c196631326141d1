"""The part of the report on a reward of several terms."""

import statistics

from agentflow_jax.report import data, markup

_PREFIX = 'reward/part/'
# Steps at either end whose mean is shown.
_ENDS = 5
_NOTE = (
  'Weighted terms of the training reward, means over the scored rollouts of the '
  'first and the last steps; they add up to the mean reward. The correlation is that '
  'of a term’s value with success, within a step, mean over the steps in which both '
  'vary.'
)


def sections(run: data.Run) -> list[str]:
  """Returns the table of a run whose reward has several terms; [] for others."""
  names = sorted(
    {
      key.removeprefix(_PREFIX)
      for line in run.metrics
      for key in line
      if key.startswith(_PREFIX)
    }
  )
  if not names:
    return []
  rows = []
  for name in names:
    _, values = run.series(_PREFIX + name)
    first, last = values[:_ENDS], values[-_ENDS:]
    if not values:
      continue
    _, found = run.series(f'reward/correlation/{name}')
    rows.append(
      [
        markup.text(name),
        f'{statistics.fmean(first):.3f}',
        f'{statistics.fmean(last):.3f}',
        f'{statistics.fmean(last) - statistics.fmean(first):+.3f}',
        f'{statistics.fmean(found):+.2f}' if found else '-',
      ]
    )
  count = min(_ENDS, len(run.metrics))
  header = [
    'term',
    f'first {count} steps',
    f'last {count} steps',
    'change',
    'correlation with success',
  ]
  return [markup.table(header, rows), f'<p class="note">{markup.text(_NOTE)}</p>']
