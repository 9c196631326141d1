"""One table and one page of all runs of a sweep.

  python launch/collect.py --sweep=DIR [--metric=NAME] [--curve=reward/mean] \\
      [--out=DIR/sweep.html]

Reads what runs leave below DIR: config.json, metrics.jsonl, summary.json. Runs that
differ in the seed alone are pooled: the mean over seeds, and a 95% interval (Student's
t over seeds; none where there is one). The page stands on its own: the table, for every
knob that varies the curves of its values with seeds averaged, and the runs with links
to their reports.

Of a sweep of evaluations it reads what lies below RUN/evaluations; then the pictures
are of accuracy and turns over each knob.
"""

import argparse
import pathlib
import sys

from agentflow_jax.files import writing
from agentflow_jax.report import sweep, tables


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


def main():
  args = _arguments()
  directory = pathlib.Path(args.sweep)
  found = sweep.load(directory)
  if not found.runs:
    raise SystemExit(f'error: --sweep={args.sweep}: no run below it')
  metric = args.metric or (
    'accuracy' if found.of_evaluations else 'eval/accuracy_final'
  )
  header, rows = sweep.table(found, metric)
  print('\n'.join(tables.columns([header, *rows])))
  out = pathlib.Path(args.out or directory / 'sweep.html')
  writing.write_whole(out, sweep.page(found, metric, args.curve))
  print(f'\n{out}')
  return 0


if __name__ == '__main__':
  sys.exit(main())
