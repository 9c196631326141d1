"""One table and one page of all runs of a sweep.

  python launch/collect.py --sweep=DIR [--metric=NAME] [--curve=reward/mean] \
      [--out=DIR/sweep.html]

Reads what runs leave below DIR: config.json, metrics.jsonl, summary.json. Runs that
differ in the seed alone are pooled: the mean over seeds, and a 95% interval (Student's
t over seeds; none where there is one). The page stands on its own: the table, and for
every knob that varies the curves of all runs, coloured by its value.

Of a sweep of evaluations it reads what lies below RUN/evaluations; then the pictures
are of accuracy and turns over each knob.
"""

import argparse
import collections
import html
import io
import json
import math
import pathlib
import statistics
import sys

import matplotlib

from agentflow_jax.files import old_names, reading, writing

matplotlib.use('svg')
from matplotlib import pyplot as plt  # pylint: disable=wrong-import-position

# Two-sided 95% points of Student's t, by degrees of freedom.
_T = (
  12.706,
  4.303,
  3.182,
  2.776,
  2.571,
  2.447,
  2.365,
  2.306,
  2.262,
  2.228,
  2.201,
  2.179,
  2.160,
  2.145,
  2.131,
  2.120,
  2.110,
  2.101,
  2.093,
  2.086,
)
_SEED = 'seed'
_EVALUATION = 'evaluation'


def _arguments():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument('--sweep', required=True)
  parser.add_argument(
    '--metric',
    default='',
    help='of the table: eval/accuracy_final, or accuracy of evaluations',
  )
  parser.add_argument('--curve', default='reward/mean')
  parser.add_argument('--out', default='')
  return parser.parse_args()


def _json_lines(path):
  """Returns a file's objects; a last line that is torn is left out."""
  if not path.exists():
    return []
  lines = reading.json_lines(path, may_be_torn=True, allows_nan=True)
  return [old_names.metrics(line.value) for line in lines]


def _runs(directory):
  """Returns the runs below a directory: (name, config, lines, summary)."""
  runs = []
  for path in sorted(directory.glob('*/config.json')):
    run = path.parent
    summary = run / 'summary.json'
    runs.append(
      (
        run.name,
        old_names.config(reading.read_json(path, allows_nan=True)),
        _json_lines(run / 'metrics.jsonl'),
        old_names.metrics(reading.read_json(summary, allows_nan=True))
        if summary.exists()
        else None,
      )
    )
  return runs


def _evaluations(directory):
  """Returns the same of evaluations: a result is its own summary."""
  runs = []
  for path in sorted(directory.glob('*/evaluations/*.json')):
    value = old_names.evaluation(reading.read_json(path, allows_nan=True))
    config = value.get('config', {}) | {_EVALUATION: path.stem}
    runs.append((path.parts[-3], config, [], value))
  return runs


def _varied(runs):
  """Returns the fields of the configs that are not the same in all runs."""
  names = sorted({name for _, config, _, _ in runs for name in config})
  text = lambda config, name: json.dumps(config.get(name))
  return [n for n in names if len({text(config, n) for _, config, _, _ in runs}) > 1]


def _interval(values):
  """Returns the mean, and half the width of its 95% interval or None."""
  mean = statistics.fmean(values)
  if len(values) < 2:
    return mean, None
  freedom = len(values) - 1
  t = _T[min(freedom, len(_T)) - 1]  # Wider than it need be, beyond.
  return mean, t * statistics.stdev(values) / math.sqrt(len(values))


def _rows(runs, varied, metric):
  """Returns the table: what varies, runs that are done, the metric."""
  knobs = [name for name in varied if name != _SEED]
  over = _over_requested(metric)
  shows_both = any(s and over in s for _, _, _, s in runs)
  groups = collections.defaultdict(list)
  for _, config, _, summary in runs:
    groups[tuple(str(config.get(k)) for k in knobs)].append(summary)
  rows = []
  for key, summaries in groups.items():
    done = [s for s in summaries if s is not None]
    values = [s[metric] for s in done if metric in s]
    row = [*key, f'{len(done)} of {len(summaries)}']
    if values:
      mean, half = _interval(values)
      row += [f'{mean:.4g}', '' if half is None else f'± {half:.2g}']
    else:
      row += ['-', '']
    if shows_both:
      both = [s[over] for s in done if over in s]
      row.append(f'{statistics.fmean(both):.4g}' if both else '-')
    rows.append(row)
  header = [*(knobs or []), 'runs done', metric, '95% over seeds']
  return header + ['over requested'] * shows_both, rows


def _over_requested(metric):
  """Returns the accuracy over all requested rollouts beside one over scored."""
  return f'{metric}{"/" if "/" in metric else "_"}over_requested'


def _text(header, rows):
  widths = [max(len(r[i]) for r in [header, *rows]) for i in range(len(header))]
  return '\n'.join(
    '  '.join(c.ljust(w) for c, w in zip(row, widths)).rstrip()
    for row in [header, *rows]
  )


def _picture(runs, knob, curve):
  """Returns an SVG: the curve of every run, coloured by a knob's value."""
  values = sorted({str(config.get(knob)) for _, config, _, _ in runs})
  figure, axes = plt.subplots(figsize=(7, 3.6))
  shown = set()
  for _, config, lines, _ in runs:
    value = str(config.get(knob))
    points = [(l['step'], l[curve]) for l in lines if curve in l]
    if not points:
      continue
    axes.plot(
      *zip(*points),
      color=f'C{values.index(value) % 10}',
      alpha=0.8,
      linewidth=1,
      label=None if value in shown else value,
    )
    shown.add(value)
  axes.set_xlabel('step')
  axes.set_ylabel(curve)
  if shown:
    axes.legend(title=knob, fontsize='small')
  return _svg(figure)


def _scaling(runs, knob):
  """Returns an SVG: accuracy, with its interval, and turns over a knob."""
  number = lambda v: isinstance(v, (int, float)) and not isinstance(v, bool)
  key = lambda v: (0, v, '') if number(v) else (1, 0, str(v))
  values = sorted({config.get(knob) for _, config, _, _ in runs}, key=key)
  is_numeric = all(map(number, values))
  place = {v: v if is_numeric else i for i, v in enumerate(values)}
  figure, (above, below) = plt.subplots(
    2, 1, figsize=(7, 5), sharex=True, height_ratios=[3, 2]
  )
  for name in sorted({config[_EVALUATION] for _, config, _, _ in runs}):
    found = sorted(
      (
        (place[config.get(knob)], value)
        for _, config, _, value in runs
        if config[_EVALUATION] == name and value['items_scored']
      ),
      key=lambda pair: pair[0],
    )
    if not found:
      continue
    x = [p for p, _ in found]
    y = [v['accuracy'] for _, v in found]
    spread = [
      [a - v['ci_low'] for a, (_, v) in zip(y, found)],
      [v['ci_high'] - a for a, (_, v) in zip(y, found)],
    ]
    above.errorbar(x, y, spread, marker='o', capsize=3, label=name)
    below.plot(x, [v['turns_mean'] for _, v in found], marker='o')
  above.set_ylabel('accuracy')
  above.set_ylim(-0.02, 1.02)
  above.legend(fontsize='small')
  below.set_ylabel('mean turns')
  below.set_xlabel(knob)
  below.set_xticks([place[v] for v in values], [str(v) for v in values])
  return _svg(figure)


def _svg(figure):
  figure.tight_layout()
  out = io.StringIO()
  figure.savefig(out, format='svg')
  plt.close(figure)
  svg = out.getvalue()
  return svg[svg.index('<svg') :]


def _page(name, header, rows, pictures):
  cells = lambda row, tag: ''.join(f'<{tag}>{html.escape(c)}</{tag}>' for c in row)
  body = ''.join(f'<tr>{cells(row, "td")}</tr>\n' for row in rows)
  figures = ''.join(f'<h2>{html.escape(knob)}</h2>\n{svg}\n' for knob, svg in pictures)
  return (
    '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
    f'<title>{html.escape(name)}</title>\n<style>'
    'body{font:15px sans-serif;margin:2em auto;max-width:60em}'
    'table{border-collapse:collapse}'
    'td,th{padding:.3em .8em;border-bottom:1px solid #ccc;text-align:left}'
    f'</style></head>\n<body><h1>{html.escape(name)}</h1>\n'
    f'<table><tr>{cells(header, "th")}</tr>\n{body}</table>\n{figures}'
    '</body></html>\n'
  )


def main():
  args = _arguments()
  directory = pathlib.Path(args.sweep)
  runs = _runs(directory) if directory.is_dir() else []
  metric, picture = 'eval/accuracy_final', None
  if not runs:
    runs = _evaluations(directory)
    metric, picture = 'accuracy', _scaling
  if not runs:
    raise SystemExit(f'error: --sweep={args.sweep}: no run below it')
  varied = _varied(runs)
  header, rows = _rows(runs, varied, args.metric or metric)
  print(_text(header, rows))
  # With one run, or none that differs, its curve is still worth a look.
  pictures = [
    (k, picture(runs, k) if picture else _picture(runs, k, args.curve))
    for k in varied or [_SEED]
    if k != _EVALUATION
  ]
  out = pathlib.Path(args.out or directory / 'sweep.html')
  writing.write_whole(out, _page(directory.name, header, rows, pictures))
  print(f'\n{out}')
  return 0


if __name__ == '__main__':
  sys.exit(main())
