"""Compares training with a queue, without one, and with further queries instead.

  python experiments/benchmarks/sample_queue.py --run
  python experiments/benchmarks/sample_queue.py --sweep=runs/sweeps/quickstart_queue

Reads the runs of `experiments/quickstart_queue.py` (its sweep: three ways, 8 seeds
each) and prints a table. With --run it first runs those that are not done; what is
interrupted goes on. For each way it says

  rollouts   rollouts until the validation accuracy first reaches --goal (sampled, one
             evaluation in two steps): the median over the seeds that reach it, and how
             many do
  fewer      of the seeds that both ways have, how many need fewer rollouts than without
             a queue; a run that never reaches the goal needs more than any other
  at equal   mean validation accuracy at the number of rollouts with which the queue's
             run of the same seed reached the goal
  final      mean accuracy on the test tasks after the last step
  gain       mean difference of it to the run without a queue of the same seed, and the
             lower end of its 95% bootstrap interval over seeds
"""

import argparse
import json
import math
import pathlib
import statistics
import subprocess
import sys

import numpy as np

from agentflow_jax.files import reading

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_CONFIG = 'experiments/quickstart_queue.py'
_WAYS = ('queue', 'without', 'refill')


def _arguments():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument('--sweep', default='runs/sweeps/quickstart_queue')
  parser.add_argument('--goal', type=float, default=0.8)
  parser.add_argument('--run', action='store_true', help='first run what is not done')
  parser.add_argument('--out', default='', help='JSON file of the figures')
  return parser.parse_args()


def _runs(sweep):
  """Returns (way, seed) -> (lines, summary) of the runs that are done."""
  found = {}
  for path in sorted(sweep.glob('*/summary.json')):
    config = reading.read_json(path.with_name('config.json'), allows_nan=True)
    way = (
      'queue'
      if config['queue.size']
      else ('refill' if config['train.refill_rounds'] else 'without')
    )
    lines = [l.value for l in reading.json_lines(path.with_name('metrics.jsonl'))]
    found[way, config['seed']] = lines, reading.read_json(path, allows_nan=True)
  return found


def _curve(lines):
  """Returns (rollouts so far, validation accuracy) of every evaluation."""
  curve, rollouts = [], 0
  for line in lines:
    rollouts += line['rollouts/requested']
    if 'eval/accuracy' in line:
      curve.append((rollouts, line['eval/accuracy']))
  return curve


def _reached(lines, goal):
  """Returns the rollouts until the goal; infinity where it is not reached."""
  return next((n for n, accuracy in _curve(lines) if accuracy >= goal), math.inf)


def _figures(runs, goal):
  """Returns one dict of figures for each way."""
  figures = {}
  for way in _WAYS:
    mine = {seed: run for (name, seed), run in runs.items() if name == way}
    if not mine:
      continue
    needed = {seed: _reached(lines, goal) for seed, (lines, _) in mine.items()}
    reached = [n for n in needed.values() if n < math.inf]
    fewer, pairs, gains, equal = 0, 0, [], []
    for seed, (lines, summary) in sorted(mine.items()):
      if ('without', seed) in runs:
        other, result = runs['without', seed]
        pairs += 1
        fewer += needed[seed] < _reached(other, goal)
        gains.append(summary['eval/accuracy_final'] - result['eval/accuracy_final'])
      if ('queue', seed) in runs:
        limit = _reached(runs['queue', seed][0], goal)
        at = [a for n, a in _curve(lines) if n <= limit]
        if limit < math.inf and at:
          equal.append(at[-1])
    drawn = np.random.default_rng(0).choice(gains or [0.0], (10_000, max(pairs, 1)))
    figures[way] = {
      'runs': len(mine),
      'reached': len(reached),
      'rollouts': statistics.median(reached) if reached else None,
      'fewer': fewer,
      'pairs': pairs,
      'at_equal': statistics.fmean(equal) if equal else None,
      'final': statistics.fmean(s['eval/accuracy_final'] for _, s in mine.values()),
      'gain': statistics.fmean(gains) if gains else None,
      'gain_low': float(np.quantile(drawn.mean(axis=1), 0.025)) if gains else None,
      'reused': sum(l.get('queue/reused', 0) for ls, _ in mine.values() for l in ls),
    }
  return figures


def _table(figures):
  said = lambda x, form: '-' if x is None else format(x, form)
  rows = [('way', 'runs', 'rollouts', 'fewer', 'at equal', 'final', 'gain', 'reused')]
  for way, f in figures.items():
    rows.append(
      (
        way,
        str(f['runs']),
        f'{said(f["rollouts"], ".0f")} ({f["reached"]})',
        f'{f["fewer"]} of {f["pairs"]}',
        said(f['at_equal'], '.1%'),
        said(f['final'], '.1%'),
        f'{said(f["gain"], "+.1%")} (low {said(f["gain_low"], "+.1%")})',
        str(f['reused']),
      )
    )
  widths = [max(map(len, column)) for column in zip(*rows)]
  return '\n'.join(
    '  '.join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip()
    for row in rows
  )


def main():
  args = _arguments()
  if args.run:
    done = subprocess.run(
      [
        sys.executable,
        'launch/sweep.py',
        f'--config={_CONFIG}',
        f'--workdir={args.sweep}',
        '--run',
        '--',
        '--config.evaluation.controls=false',
      ],
      cwd=_ROOT,
      check=False,
    )
    if done.returncode:
      raise SystemExit(done.returncode)
  runs = _runs(_ROOT / args.sweep)
  if not runs:
    raise SystemExit(f'error: no finished run below {args.sweep}; give --run')
  figures = _figures(runs, args.goal)
  if args.out:
    pathlib.Path(args.out).write_text(json.dumps(figures, indent=1) + '\n')
  print(_table(figures))


if __name__ == '__main__':
  main()
