"""Runs what the main job is accepted by, and keeps the figures.

  .venv/bin/python launch/acceptance.py --workdir=runs/acceptance \
      [--only=seeds,resume,tests] [--seeds=5] [--kills=20] [--config=FILE]

Resumable: a part that holds is not run again; each writes its figures to
WORKDIR/COMMIT/acceptance.json as soon as it has them, so that none outlives what
it was measured on. Knows flags and files, nothing of the package's inside.

  seeds   the quickstart for each seed, and whether the gain is what it must be
  resume  a short run, killed (SIGKILL) at random moments again and again, must
          end with the same parameters, rollouts and metrics as an unbroken one;
          of experiments/quickstart.py, or of another config, such as desk.py
  tests   exactness, on-policy, conservation and sandbox: the tests that say so
"""

import argparse
import hashlib
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

from agentflow_jax.files import reading, writing

_ROOT = pathlib.Path(__file__).resolve().parent.parent
_CONFIG = _ROOT / 'experiments' / 'quickstart.py'
_SHORT = (
  '--config.train.steps=6',
  '--config.train.queries_per_step=6',
  '--config.train.group_size=4',
  '--config.train.checkpoint_every=2',
  '--config.evaluation.every=3',
  '--config.evaluation.controls=false',
  '--config.task_set.validation_items=12',
  '--config.task_set.test_items=12',
)
_TESTS = {
  'exactness': ['tests/core'],
  'on_policy': ['tests/training/on_policy_test.py', 'tests/inference'],
  'conservation': ['tests/agents/rollout_test.py'],
  'sandbox': ['tests/agents/tools'],
}
# Sampled accuracy at the end; its gain over the sampled accuracy at the start, and
# over the better of sampled and greedy there; seconds of a run on 2 quiet cores.
_FINAL, _GAIN, _GAIN_OVER_BEST, _SECONDS = 0.84, 0.55, 0.25, 600


def main() -> int:
  """Runs the asked parts; the exit code says whether all hold."""
  parser = argparse.ArgumentParser(description=(__doc__ or '').partition('\n')[0])
  parser.add_argument('--workdir', default='runs/acceptance')
  parser.add_argument('--only', default='seeds,resume,tests')
  parser.add_argument('--seeds', type=int, default=5)
  parser.add_argument('--kills', type=int, default=20)
  parser.add_argument('--config', default=str(_CONFIG))
  arguments = parser.parse_args()
  workdir = pathlib.Path(arguments.workdir).resolve() / _commit()
  workdir.mkdir(parents=True, exist_ok=True)
  figures = Figures(workdir / 'acceptance.json')
  parts = {
    'seeds': lambda: _seeds(workdir, figures, arguments.seeds),
    'resume': lambda: _resume(workdir, figures, arguments.kills, arguments.config),
    'tests': lambda: _tests(figures),
  }
  asked = arguments.only.split(',')
  unknown = [a for a in asked if a not in parts]
  if unknown:
    parser.error(f'--only: unknown {unknown}; there are {list(parts)}')
  for name in asked:
    parts[name]()
  failed = [k for k, v in figures.values.items() if not v['holds']]
  print(json.dumps(figures.values, indent=1))
  print(f'FAILED: {failed}' if failed else 'all hold')
  return 1 if failed else 0


class Figures:
  """What is known so far, on disk after every change."""

  def __init__(self, path: pathlib.Path):
    self._path = path
    self.values = reading.read_json(path) if path.exists() else {}

  def done(self, name: str) -> bool:
    return self.values.get(name, {}).get('holds', False)

  def set(self, name: str, holds: bool, **figures) -> None:
    self.values[name] = {'holds': bool(holds), **figures}
    writing.write_whole(self._path, json.dumps(self.values, indent=1))
    print(f'{name}: {self.values[name]}', flush=True)


def _commit() -> str:
  """The commit that the figures are of, and whether more has changed."""
  described = subprocess.run(
    ['git', 'describe', '--always', '--dirty', '--abbrev=12', '--exclude=*'],
    cwd=_ROOT,
    check=True,
    capture_output=True,
    text=True,
  )
  return described.stdout.strip()


def _command(
  workdir: pathlib.Path, *more: str, config: str = str(_CONFIG)
) -> list[str]:
  return [
    sys.executable,
    '-m',
    'agentflow_jax.train',
    f'--config={config}',
    f'--workdir={workdir}',
    *more,
  ]


def _seeds(workdir, figures, seeds) -> None:
  """The quickstart's gain over its warm start, for every seed."""
  for seed in range(seeds):
    name = f'seed_{seed}'
    if figures.done(name):
      continue
    run = workdir / name
    start = time.monotonic()
    subprocess.run(_command(run, f'--config.seed={seed}'), check=True, cwd=_ROOT)
    seconds = time.monotonic() - start
    s = reading.read_json(run / 'summary.json')
    best_start = max(s['eval/accuracy_start'], s['eval/accuracy_start_greedy'])
    final, low = s['eval/accuracy_final'], s['eval/accuracy_final/ci_low']
    gain = final - s['eval/accuracy_start']
    apart = all(low > s[f'control/{c}_planner/ci_high'] for c in ('random', 'frozen'))
    holds = (
      final >= _FINAL
      and gain >= _GAIN
      and final - best_start >= _GAIN_OVER_BEST
      and apart
      and s['control/oracle_planner'] >= 0.98
      and s['control/empty_planner'] <= 0.05
      and s['control/frozen_planner'] == s['eval/accuracy_start']
      and s['compiles/after_warmup'] == 0
      and seconds < _SECONDS
      and sum(v for k, v in s.items() if k.startswith('rollouts/status/'))
      == s['rollouts/requested']
    )
    names = [k for k in s if k.startswith(('eval/', 'control/'))]
    figures.set(
      name,
      holds,
      seconds=round(seconds, 1),
      gain=gain,
      gain_over_best=final - best_start,
      params_digest=s['params_digest'],
      compiles_after_warmup=s['compiles/after_warmup'],
      **{k: s[k] for k in sorted(names)},
    )


def _resume(workdir, figures, kills, config) -> None:
  """Kills a short run until it has ended, over and over, and compares."""
  name = 'resume'
  if pathlib.Path(config).resolve() != _CONFIG:
    name = f'resume_{pathlib.Path(config).stem}'
  if figures.done(name):
    return
  whole = workdir / f'{name}_whole'
  shutil.rmtree(whole, ignore_errors=True)
  seconds = _run_whole(whole, config)
  wanted = fingerprint(whole)
  rng = random.Random(0)
  killed, moments, runs = 0, [], 0
  while killed < kills:
    broken = workdir / f'{name}_broken'
    shutil.rmtree(broken, ignore_errors=True)
    if runs:
      # The first is broken from its first second on; the others, which find
      # the data set and the compiled programs, where it trains.
      for kept in ('data', 'xla_cache'):
        shutil.copytree(whole / kept, broken / kept)
      if runs == 1:
        seconds = _run_whole(broken, config)
        for path in broken.iterdir():
          if path.name not in ('data', 'xla_cache'):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    while True:
      moment = rng.uniform(0, seconds) if killed < kills else None
      if _killed_at(broken, moment, config):
        killed += 1
        moments.append(round(moment or 0.0, 2))
        continue
      break
    runs += 1
    got = fingerprint(broken)
    differs = sorted(k for k in wanted if got.get(k) != wanted[k])
    if differs or set(got) != set(wanted):
      figures.set(name, False, kills=killed, runs=runs, differs=differs)
      return
  figures.set(
    name,
    True,
    kills=killed,
    runs=runs,
    moments_seconds=moments,
    params_digest=wanted['params_digest'],
  )


def _run_whole(workdir, config) -> float:
  """Runs it unbroken; returns the seconds that it took."""
  start = time.monotonic()
  subprocess.run(_command(workdir, *_SHORT, config=config), check=True, cwd=_ROOT)
  return time.monotonic() - start


def _killed_at(workdir, seconds: float | None, config: str) -> bool:
  """Runs; kills it after so many seconds. False where it ended before."""
  process = subprocess.Popen(
    _command(workdir, *_SHORT, config=config),
    cwd=_ROOT,
    start_new_session=True,
    stdout=subprocess.DEVNULL,
  )
  try:
    code = process.wait(seconds)
  except subprocess.TimeoutExpired:
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return True
  if code:
    raise RuntimeError(f'the run ended with code {code}')
  return False


def fingerprint(workdir: pathlib.Path) -> dict[str, str]:
  """What two equal runs must agree on: all but times and rates.

  Returns:
    name -> text or digest: the parameters, every metrics line, every rollout
    file and every evaluation, with what the clock wrote taken out.
  """
  found = {}
  summary = reading.read_json(workdir / 'summary.json')
  found['params_digest'] = summary['params_digest']
  for i, line in enumerate(reading.json_lines(workdir / 'metrics.jsonl')):
    kept = {
      k: v for k, v in line.value.items() if not k.startswith(('seconds/', 'rate/'))
    }
    found[f'metrics/{i}'] = json.dumps(kept, sort_keys=True)
  reader = [
    sys.executable,
    '-m',
    'agentflow_jax.rollouts.rollout_files',
    str(workdir / 'rollouts'),
  ]
  text = subprocess.run(
    reader, check=True, capture_output=True, text=True, cwd=_ROOT
  ).stdout
  found |= dict(line.split('\t') for line in text.splitlines())
  for path in sorted((workdir / 'evaluations').glob('*.json')):
    value = _without_times(reading.read_json(path, allows_nan=True))
    text = json.dumps(value, sort_keys=True)
    found[path.name] = hashlib.sha256(text.encode()).hexdigest()
  return found


def _without_times(value):
  """Leaves out what the clock wrote, at any depth."""
  if isinstance(value, list):
    return [_without_times(v) for v in value]
  if not isinstance(value, dict):
    return value
  return {
    k: _without_times(v)
    for k, v in value.items()
    if not (k.startswith('seconds') or k.endswith('_seconds'))
  }


def _tests(figures) -> None:
  """The tests that hold the other lines of the acceptance."""
  for name, paths in _TESTS.items():
    result = subprocess.run(
      [sys.executable, '-m', 'pytest', '-q', '-rs', *paths],
      cwd=_ROOT,
      capture_output=True,
      text=True,
      check=False,
    )
    lines = result.stdout.strip().splitlines() or ['nothing printed']
    skipped = [x for x in lines if x.startswith('SKIPPED')]
    figures.set(name, result.returncode == 0, pytest=lines[-1], skipped=skipped)


if __name__ == '__main__':
  sys.exit(main())
