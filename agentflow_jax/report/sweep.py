"""The page of a sweep: a table and pictures of several runs, with seeds pooled.

Like a run's report it is one file without a script, which links to the runs' own.
"""

import collections
import dataclasses
import json
import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from agentflow_jax.files import old_names, reading
from agentflow_jax.report import markup, svg
from agentflow_jax.rollouts import evaluation_files, intervals

_SEED = 'seed'
_EVALUATION = 'evaluation'
_WIDE, _NARROW = (9.4, 3.5), (4.6, 4.0)
_COLORS = (
  svg.AFTER,
  svg.RANDOM,
  svg.ORACLE,
  svg.EMPTY,
  svg.TEAL,
  svg.RED,
  svg.BEFORE,
  svg.INK,
)
_STYLES = ('-', '--', ':', '-.')
# Beginnings of names of metrics that are shares.
_SHARES = ('accuracy', 'eval/accuracy', 'reward/mean', 'control/')
_NOTE = (
  'Runs that differ in the seed alone are pooled: the figure is their mean. Brackets'
  ' hold its 95% interval by Student’s t over the seeds, which takes them for'
  ' independent draws of one normal distribution; one seed has none. It says how much'
  ' another set of seeds could differ, not how much another set of questions could.'
)
_NOTE_EVALUATIONS = (
  'Evaluations that differ in the seed alone are pooled, as above. In the pictures,'
  ' whiskers are each evaluation’s own 95% interval, over its questions.'
)


@dataclasses.dataclass(frozen=True)
class Run:
  """One run of a sweep, or one evaluation of it.

  Attributes:
    name: name of its directory.
    config: fields of its config by dotted name.
    lines: lines of metrics.jsonl; none of an evaluation.
    summary: its figures; None while it is not done.
    page: path of its own report below the sweep; '' where there is none.
  """

  name: str
  config: Mapping[str, Any]
  lines: Sequence[Mapping[str, Any]]
  summary: Mapping[str, Any] | None
  page: str = ''

  def points(self, metric: str) -> dict[int, float]:
    """Returns a metric by step."""
    return {line['step']: line[metric] for line in self.lines if metric in line}


@dataclasses.dataclass(frozen=True)
class Sweep:
  """Runs, or evaluations, below one directory.

  Attributes:
    name: name of the directory.
    runs: runs, by name.
    of_evaluations: whether they are evaluations.
  """

  name: str
  runs: Sequence[Run]
  of_evaluations: bool

  @property
  def varied(self) -> list[str]:
    """Fields of the configs that are not the same in all runs."""
    fields = sorted({name for run in self.runs for name in run.config})
    text = lambda run, name: json.dumps(run.config.get(name))
    return [n for n in fields if len({text(run, n) for run in self.runs}) > 1]

  @property
  def knobs(self) -> list[str]:
    """Fields that vary, without the seed."""
    return [name for name in self.varied if name != _SEED]


def load(directory: pathlib.Path) -> Sweep:
  """Reads what runs, or else evaluations, left below a directory; maybe nothing."""
  runs = _runs(directory) if directory.is_dir() else []
  if runs or not directory.is_dir():
    return Sweep(directory.name, runs, False)
  return Sweep(directory.name, _evaluations(directory), True)


def _runs(directory: pathlib.Path) -> list[Run]:
  found = []
  for path in sorted(directory.glob('*/config.json')):
    run = path.parent
    summary, metrics = run / 'summary.json', run / 'metrics.jsonl'
    lines = (
      reading.json_lines(metrics, may_be_torn=True, allows_nan=True)
      if metrics.exists()
      else ()
    )
    found.append(
      Run(
        name=run.name,
        config=old_names.config(reading.read_json(path, allows_nan=True)),
        lines=[old_names.metrics(line.value) for line in lines],
        summary=old_names.metrics(reading.read_json(summary, allows_nan=True))
        if summary.exists()
        else None,
        page=f'{run.name}/report.html' if (run / 'report.html').exists() else '',
      )
    )
  return found


def _evaluations(directory: pathlib.Path) -> list[Run]:
  """Returns evaluations: each result is its own summary."""
  found = []
  for path in sorted(directory.glob(f'*/{evaluation_files.DIRECTORY}/*.json')):
    file = evaluation_files.read(epath.Path(path))
    name = path.parts[-3]
    report = directory / name / 'report.html'
    config = file.config | {_EVALUATION: file.name}
    page = f'{name}/report.html' * report.exists()
    found.append(Run(name, config, (), file.figures, page))
  return found


def table(sweep: Sweep, metric: str) -> tuple[list[str], list[list[str]]]:
  """Returns a header and a row for each setting: knobs, runs done, the metric."""
  over = f'{metric}{"/" if "/" in metric else "_"}over_requested'
  shows_both = any(run.summary and over in run.summary for run in sweep.runs)
  rows = []
  for key, runs in _groups(sweep).items():
    done = [run.summary for run in runs if run.summary is not None]
    values = [summary[metric] for summary in done if metric in summary]
    row = [*key, f'{len(done)} of {len(runs)}', _figure(values, metric), '']
    if found := intervals.mean_interval(values):
      ends = [_shown(end, metric, unit='') for end in found[1:]]
      row[-1] = f'[{ends[0]}, {ends[1]}]'
    if shows_both:
      row.append(_figure([s[over] for s in done if over in s], metric))
    rows.append(row)
  header = [*sweep.knobs, 'runs done', metric, '95% over seeds']
  return header + ['over requested'] * shows_both, rows


def _groups(sweep: Sweep) -> dict[tuple[str, ...], list[Run]]:
  """Returns the runs of each setting; they differ in the seed alone."""
  groups = collections.defaultdict(list)
  for run in sweep.runs:
    groups[tuple(str(run.config.get(k)) for k in sweep.knobs)].append(run)
  return groups


def _is_share(metric: str) -> bool:
  return metric.startswith(_SHARES)


def _figure(values: Sequence[float], metric: str) -> str:
  return _shown(statistics.fmean(values), metric) if values else '-'


def _shown(value: float, metric: str, unit: str = '%') -> str:
  return f'{100 * value:.1f}{unit}' if _is_share(metric) else f'{value:.4g}'


def page(sweep: Sweep, metric: str, curve: str) -> str:
  """Returns the whole page as HTML.

  Args:
    sweep: the runs.
    metric: figure of the table.
    curve: metric of metrics.jsonl whose curves are drawn.
  """
  header, rows = table(sweep, metric)
  cells = [[markup.text(cell) for cell in row] for row in rows]
  note = _NOTE + (f' {_NOTE_EVALUATIONS}' if sweep.of_evaluations else '')
  fields = [k for k in sweep.varied or [_SEED] if k != _EVALUATION]
  pictures = [
    _scaling(sweep, field, f'k{i}')
    if sweep.of_evaluations
    else _curves(sweep, field, curve, f'k{i}')
    for i, field in enumerate(fields)
  ]
  done = sum(run.summary is not None for run in sweep.runs)
  what = 'evaluations' if sweep.of_evaluations else 'runs'
  return markup.page(
    f'Sweep: {sweep.name}',
    [
      f'<h1>{markup.text(sweep.name)}: sweep</h1>\n<p class="lead">'
      f'{done} of {len(sweep.runs)} {what} are done.</p>',
      markup.section(
        'Settings', markup.table(header, cells), f'<p class="note">{note}</p>'
      ),
      markup.section('Pictures', *pictures),
      markup.section('Runs', _list(sweep, metric)),
    ],
  )


def _list(sweep: Sweep, metric: str) -> str:
  """The runs one by one, with links to their reports."""
  rows = []
  for run in sweep.runs:
    title = markup.link(run.page, run.name) if run.page else markup.text(run.name)
    state = 'done'
    if run.summary is None:
      state = f'step {run.lines[-1]["step"]:,}' if run.lines else 'not begun'
    values = [run.summary[metric]] if run.summary and metric in run.summary else []
    row = [title, state, _figure(values, metric)]
    if sweep.of_evaluations:
      row.insert(1, markup.text(run.config[_EVALUATION]))
    rows.append(row)
  header = ['run', 'state', metric]
  if sweep.of_evaluations:
    header.insert(1, _EVALUATION)
  return markup.table(header, rows)


def _curves(sweep: Sweep, field: str, curve: str, name: str) -> str:
  """Curves of a metric for the values of one field, seeds averaged."""
  others = [k for k in sweep.knobs if k != field]
  setting = lambda run: tuple(str(run.config.get(k)) for k in others)
  # Only settings that differ in nothing else are compared.
  counts = collections.Counter(setting(run) for run in sweep.runs)
  fixed = max(counts, key=lambda key: (counts[key], key))
  by_value = collections.defaultdict(list)
  for run in sweep.runs:
    if setting(run) == fixed and run.points(curve):
      by_value[str(run.config.get(field))].append(run.points(curve))
  if not by_value:
    return ''

  def paint(canvas):
    axes = canvas.subplots()
    for i, (value, runs) in enumerate(sorted(by_value.items(), key=_order)):
      color = _COLORS[i % len(_COLORS)]
      style = _STYLES[i // len(_COLORS) % len(_STYLES)]
      # As far as all of them are.
      steps = sorted(set.intersection(*map(set, runs)))
      values = np.array([[points[s] for s in steps] for points in runs])
      label = f'{field}={value}'
      if len(runs) > 1:
        label += f' ({len(runs)} seeds)'
        axes.fill_between(
          steps, values.min(0), values.max(0), color=color, alpha=0.15, linewidth=0
        )
      axes.plot(steps, values.mean(0), style, color=color, label=label)
    axes.set_xlabel('step')
    axes.set_ylabel(curve)
    svg.step_axis(axes)
    if _is_share(curve):
      svg.percent_axis(axes.yaxis)
    svg.legend(axes)

  caption = []
  if any(len(runs) > 1 for runs in by_value.values()):
    caption.append('Means over seeds; bands go from the lowest to the highest seed.')
  if others:
    said = ', '.join(f'{k}={v}' for k, v in zip(others, fixed))
    caption.append(f'The runs with {said}.')
  picture = svg.responsive(name, f'{curve} by {field}', _WIDE, _NARROW, paint)
  return markup.figure(f'{curve} by {field}', picture, ' '.join(caption))


def _order(pair: tuple[str, Any]) -> tuple[int, float, str]:
  """Puts numbers by size before other values by name."""
  try:
    return 0, float(pair[0]), ''
  except ValueError:
    return 1, 0.0, pair[0]


def _scaling(sweep: Sweep, field: str, name: str) -> str:
  """Accuracy, with its interval, and turns over the values of one field."""
  rank = lambda value: _order((value, None))
  values = sorted({str(run.config.get(field)) for run in sweep.runs}, key=rank)
  is_numeric = all(rank(value)[0] == 0 for value in values)
  place = {v: float(v) if is_numeric else i for i, v in enumerate(values)}

  def paint(canvas):
    above, below = canvas.subplots(2, 1, sharex=True, height_ratios=[3, 2])
    kinds = sorted({run.config[_EVALUATION] for run in sweep.runs})
    for i, kind in enumerate(kinds):
      found = [
        (place[str(run.config.get(field))], run.summary)
        for run in sweep.runs
        if run.config[_EVALUATION] == kind
        and run.summary
        and run.summary['items_scored']
      ]
      found.sort(key=lambda pair: pair[0])
      if not found:
        continue
      color = _COLORS[i % len(_COLORS)]
      x = [p for p, _ in found]
      y = [v['accuracy'] for _, v in found]
      spread = [
        [a - v['ci_low'] for a, (_, v) in zip(y, found)],
        [v['ci_high'] - a for a, (_, v) in zip(y, found)],
      ]
      above.errorbar(x, y, spread, marker='o', capsize=3, color=color, label=kind)
      turns = [v['turns_mean'] for _, v in found]
      below.plot(x, turns, marker='o', color=color)
    above.set_ylabel('accuracy')
    above.set_ylim(-0.02, 1.02)
    svg.percent_axis(above.yaxis)
    svg.legend(above)
    below.set_ylabel('mean turns')
    below.set_xlabel(field)
    below.set_xticks([place[v] for v in values], values)

  label = f'accuracy and turns by {field}'
  picture = svg.responsive(name, label, (9.4, 5), (4.6, 5), paint)
  return markup.figure(f'Accuracy and turns by {field}', picture)
