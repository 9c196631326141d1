"""Compares three ways to make one agent: prompting, supervised, and Flow-GRPO.

  .venv/bin/python launch/three_ways.py --config=experiments/desk.py \
      --workdir=runs/three_ways [--seeds=3] [--flow_grpo.train.steps=24 ...]

Prompting samples as many rollouts as Flow-GRPO and trains nothing (algorithm=none).
Supervised training learns from those of them that succeeded (sft.rollouts). Flow-GRPO
is the config as it is. All three begin with the same planner, and are evaluated on the
same tasks with the same random keys. The table is printed, and written to
WORKDIR/three_ways.json.

The same command goes on where it was cut off. A way that fails (prompting may have no
success to learn from) has no figures in the table, and the exit code is its own.
"""

import argparse
import json
import pathlib
import subprocess
import sys

from agentflow_jax.files import reading, writing

_ROOT = pathlib.Path(__file__).resolve().parent.parent
_WAYS = ('prompting', 'supervised', 'flow_grpo')
_TRAIN = (sys.executable, '-m', 'agentflow_jax.train')
# Beginnings of flags, and the ways that they are for.
_SCOPES = {
  'config': _WAYS,
  'sampling': ('prompting', 'flow_grpo'),
  'supervised': ('supervised',),
  'flow_grpo': ('flow_grpo',),
}


def main() -> int:
  """Runs what has not been run, and prints the table."""
  parser = argparse.ArgumentParser(
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    epilog='Fields of the config: --config.FIELD=VALUE for all three ways,'
    ' --sampling.FIELD=VALUE for prompting and Flow-GRPO, and'
    ' --supervised.FIELD=VALUE or --flow_grpo.FIELD=VALUE for one.',
  )
  parser.add_argument('--config', required=True, help='file of the config')
  parser.add_argument('--workdir', default='runs/three_ways')
  parser.add_argument('--seeds', type=int, default=1, help='number of seeds, from 0')
  arguments, flags = parser.parse_known_args()
  if arguments.seeds < 1:
    parser.error('--seeds must be at least 1')
  fields = {way: [] for way in _WAYS}
  for flag in flags:
    scope, dot, field = flag.removeprefix('--').partition('.')
    if not flag.startswith('--') or not dot or '=' not in field or scope not in _SCOPES:
      parser.error(f'unknown flag {flag}; see --help')
    for way in _SCOPES[scope]:
      fields[way].append(f'--config.{field}')
  workdir = pathlib.Path(arguments.workdir).resolve()
  runs = {
    (seed, way): [
      f'--config={arguments.config}',
      f'--workdir={workdir}/seed_{seed}/{way}',
      f'--config.seed={seed}',
      *_own_fields(way, workdir / f'seed_{seed}' / 'prompting'),
      *fields[way],
    ]
    for seed in range(arguments.seeds)
    for way in _WAYS
  }
  _check(workdir, runs)
  rows, failed = [], 0
  for (seed, way), command in runs.items():
    summary = workdir / f'seed_{seed}' / way / 'summary.json'
    if not summary.exists():
      code = subprocess.run([*_TRAIN, *command], cwd=_ROOT, check=False).returncode
      if code:
        print(f'error: {way}, seed {seed}, ended with {code}', file=sys.stderr)
        rows.append({'way': way, 'seed': seed})
        failed = code
        continue
    row = _row(way, seed, reading.read_json(summary))
    if way == 'supervised':  # It learns from those of the run before it.
      row['rollouts'] = rows[-1].get('rollouts')
    rows.append(row)
  text = json.dumps(rows, indent=1)
  writing.write_whole(workdir / 'three_ways.json', text + '\n')
  print(_table(rows))
  return failed


def _check(workdir: pathlib.Path, runs: dict) -> None:
  """Refuses, before anything runs, flags that one way would refuse, and other runs.

  Args:
    workdir: directory of the comparison.
    runs: flags by seed and way.
  """
  path = workdir / 'flags.json'
  flags = {way: command for (_, way), command in runs.items()}
  said = {f'{way}, seed {seed}': command for (seed, way), command in runs.items()}
  if path.exists():
    before = reading.read_json(path)
    for name, command in said.items():
      if before.get(name, command) != command:
        raise SystemExit(
          f'error: {workdir} holds {name} with other flags: {before[name]}; give'
          ' another --workdir'
        )
    said = before | said
  for way, command in flags.items():
    code = subprocess.run(
      [*_TRAIN, *command, '--print_config'],
      cwd=_ROOT,
      check=False,
      stdout=subprocess.DEVNULL,
    ).returncode
    if code:
      raise SystemExit(f'error: {way} would refuse these flags')
  writing.write_whole(path, json.dumps(said, indent=1) + '\n')


def _own_fields(way: str, prompting: pathlib.Path) -> list[str]:
  """Returns the flags that make a way what it is."""
  if way == 'prompting':
    return ['--config.algorithm=none', '--config.train.rollout_records=all']
  if way == 'supervised':
    return ['--config.algorithm=sft', f'--config.sft.rollouts={prompting}']
  return []


def _row(way: str, seed: int, summary: dict) -> dict:
  """Returns a line of the table, from the summary of a run."""
  row = {'way': way, 'seed': seed, 'rollouts': summary['rollouts/requested']}
  for name, key in (
    ('sampled', 'eval/accuracy_final'),
    ('greedy', 'eval/accuracy_final_greedy'),
    ('gain', 'eval/gain'),
    ('gain_greedy', 'eval/gain_greedy'),
  ):
    if key not in summary:
      raise SystemExit(
        f'error: {way}, seed {seed}, has no {key}: the evaluations before and after'
        ' training are compared, so evaluation.start_and_final must be true'
      )
    row[name] = [summary[key + end] for end in ('', '/ci_low', '/ci_high')]
  row['params_digest'] = summary['params_digest']
  return row


def _table(rows: list[dict]) -> str:
  lines = [
    'Accuracy on the test tasks with its 95% interval; the gain over the planner that'
    ' all begin with is paired over tasks.',
    f'{"way":<12}{"seed":>5}{"rollouts":>10}{"sampled":>24}{"greedy":>24}'
    f'{"gain, sampled":>30}',
  ]
  for row in rows:
    if 'gain' not in row:
      lines.append(
        f'{row["way"]:<12}{row["seed"]:>5}{"-":>10}{"-":>24}{"-":>24}{"-":>30}'
      )
      continue
    cells = [
      f'{100 * mean:.1f}% [{100 * low:.1f}, {100 * high:.1f}]'
      for mean, low, high in (row['sampled'], row['greedy'])
    ]
    mean, low, high = row['gain']
    gain = f'{100 * mean:+.1f} points [{100 * low:+.1f}, {100 * high:+.1f}]'
    lines.append(
      f'{row["way"]:<12}{row["seed"]:>5}{row["rollouts"]:>10}{cells[0]:>24}'
      f'{cells[1]:>24}{gain:>30}'
    )
  return '\n'.join(lines)


if __name__ == '__main__':
  sys.exit(main())
