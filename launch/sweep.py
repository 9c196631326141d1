"""Runs the runs of a config's get_sweep(): printed, in turn, or submitted.

  python launch/sweep.py --config=FILE_OR_NAME [--workdir=runs/sweeps/NAME] \
      [--program=evaluate] [--only=PATTERN] \
      [--run | --submit='sbatch launch/slurm.sbatch'] [-- FLAGS]

Prints each run's command. With --run they run here, one after the other; the ones
that are done (WORKDIR/RUN/summary.json; of --program=evaluate, results below
WORKDIR/RUN/evaluations) are skipped, one that was interrupted goes on, and one that
fails is tried again, --retries times. With --submit each run that is not done is
handed to a launcher: the words, then the run's flags. In the words, {name} is a name
of the run that clouds take, such as
--submit='bash launch/gke.sh run --name={name} --image=I ... --'.

FLAGS go to every run. A run's name is made of its overrides. The runs share compiled
programs, in WORKDIR/xla_cache of this machine, unless JAX_COMPILATION_CACHE_DIR says
where.
"""

import argparse
import hashlib
import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys

from agentflow_jax.config import schema, shipped

_ROOT = pathlib.Path(__file__).resolve().parent.parent
_FINAL = (2, 3)  # A mistake in flags or files; the run stopped itself.
_LONGEST_NAME = 120
_LONGEST_CLOUD_NAME = 40  # What launch/gke.sh takes.


def _arguments():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument('--config', required=True)
  parser.add_argument('--workdir', default='')
  parser.add_argument('--program', default='train', choices=['train', 'evaluate'])
  parser.add_argument('--only', default='', help='a regular expression')
  how = parser.add_mutually_exclusive_group()
  how.add_argument('--run', action='store_true')
  how.add_argument('--submit', default='')
  parser.add_argument('--retries', type=int, default=1)
  parser.add_argument('flags', nargs='*')
  return parser.parse_args()


def _sweep(path):
  """Returns a config file's overrides; it is trusted code."""
  try:
    module = schema.load_module(path)
  except schema.ConfigError as e:
    raise SystemExit(f'error: {e}') from e
  if not hasattr(module, 'get_sweep'):
    raise SystemExit(
      f'error: --config: {path} has no get_sweep(); docs/scaling.md shows one'
    )
  return module.get_sweep()


def _name(overrides):
  """Returns a directory's name that says what a run varies."""
  text = ','.join(f'{k}={v}' for k, v in overrides.items()) or 'base'
  name = re.sub(r'[^A-Za-z0-9_.,=+-]', '_', text)
  if name != text or len(name) > _LONGEST_NAME:
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    name = f'{name[:_LONGEST_NAME]}-{digest}'
  return name


def _cloud_name(stem, name):
  """Returns a run's name in letters, digits and hyphens, as clouds take it."""
  text = f'{stem}-{name}'
  slug = re.sub('[^a-z0-9]+', '-', text.lower()).strip('-')
  if not slug[0].isalpha():
    slug = f'r-{slug}'
  # Different names may be spelled alike now.
  digest = hashlib.sha256(text.encode()).hexdigest()[:6]
  return f'{slug[: _LONGEST_CLOUD_NAME - 7].rstrip("-")}-{digest}'


def _environment(workdir):
  """Returns the environment of the runs, in which they share compiled programs."""
  if '://' in workdir:
    return None
  return {'JAX_COMPILATION_CACHE_DIR': str(_ROOT / workdir / 'xla_cache')} | os.environ


def _is_done(run, program):
  """Says whether a run has nothing left to do."""
  if program == 'train':
    return (run / 'summary.json').exists()
  # One that was cut off keeps a journal.
  results = run / 'evaluations'
  return any(results.glob('*.json')) and not any(results.glob('journal/*'))


def main():
  args = _arguments()
  try:
    args.config = shipped.path_of(args.config)
  except schema.ConfigError as e:
    raise SystemExit(f'error: {e}') from e
  if not pathlib.Path(args.config).is_file():
    raise SystemExit(f'error: --config: no file {args.config}')
  # Runs start in the checkout, this program anywhere.
  args.config = str(pathlib.Path(args.config).resolve())
  if args.config.startswith(f'{_ROOT}/'):
    args.config = args.config.removeprefix(f'{_ROOT}/')
  stem = pathlib.Path(args.config).stem
  workdir = args.workdir.rstrip('/') or f'runs/sweeps/{stem}'
  runs = {}
  for overrides in _sweep(str(_ROOT / args.config)):
    name = _name(overrides)
    if name in runs:
      raise SystemExit(f'error: {args.config}: get_sweep() has {name} twice')
    if re.search(args.only, name):
      runs[name] = [
        f'--config={args.config}',
        f'--workdir={workdir}/{name}',
        *(f'--config.{k}={v}' for k, v in overrides.items()),
        *args.flags,
      ]
  if not runs:
    raise SystemExit(f'error: no run of {args.config} matches {args.only!r}')
  module = f'agentflow_jax.{args.program}'
  if not (args.run or args.submit):
    # So that a reader such as `head` may stop reading.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    for flags in runs.values():
      print(shlex.join(['python', '-m', module, *flags]))
    return 0
  failed = []
  for i, (name, flags) in enumerate(runs.items(), 1):
    where = f'[{i}/{len(runs)}] {name}'
    if '://' not in workdir and _is_done(_ROOT / workdir / name, args.program):
      print(f'{where}: done before', flush=True)
      continue
    command = [sys.executable, '-m', module]
    if args.submit:
      words = shlex.split(args.submit)
      command = [word.replace('{name}', _cloud_name(stem, name)) for word in words]
    attempts = 1 if args.submit else 1 + args.retries
    for _ in range(attempts):
      print(f'{where}: {"submitting" if args.submit else "running"}', flush=True)
      try:
        done = subprocess.run(
          [*command, *flags], cwd=_ROOT, env=_environment(workdir), check=False
        )
      except OSError as e:
        raise SystemExit(f'error: cannot run {command[0]}: {e.strerror}') from e
      code = done.returncode
      if code in (0, *_FINAL):
        break
      print(f'{where}: ended with {code}', flush=True)
    if code:
      failed.append(name)
  if failed:
    print(f'{len(failed)} of {len(runs)} failed: {"; ".join(failed)}')
  return 1 if failed else 0


if __name__ == '__main__':
  sys.exit(main())
