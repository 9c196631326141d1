"""Audits the tasks of the desk: do their checks tell right ways from wrong ones?

  python experiments/benchmarks/desk_audit.py --out=desk_audit.json

Generates the tasks (below --data_dir, or a temporary directory) and plays, through the
real tools, the right way of every task of --split, other right ways, and mutants: the
right way with a call dropped, another entity, another argument, a further call, an
early end, a refusal, the forbidden way and so on. Prints, and writes as JSON, how the
tasks are spread, how many mutants there are by operator, how many are excluded because
they end in the oracle's state in the oracle's way, and how many pass. Ends with 1 and
names what is wrong where a right way fails, a mutant passes, or a share is out of
bounds (see agents.environments.desk.audit.problems).
"""

import argparse
import asyncio
import contextlib
import json
import pathlib
import sys
import tempfile
import time

from etils import epath

from agentflow_jax.agents.environments.desk import audit, environment
from agentflow_jax.agents.environments.sqlite import environment as environments
from agentflow_jax.assembly import desk_data


def _arguments():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument('--tier', choices=('easy', 'plain', 'long'), default='easy')
  parser.add_argument(
    '--split', choices=('train', 'validation', 'test'), default='test'
  )
  parser.add_argument('--limit', type=int, default=0, help='0: all tasks')
  parser.add_argument('--data_dir', default='')
  parser.add_argument('--out', default='')
  return parser.parse_args()


def main():
  args = _arguments()
  with contextlib.ExitStack() as stack:
    directory = args.data_dir or stack.enter_context(tempfile.TemporaryDirectory())
    start = time.monotonic()
    splits, worlds = desk_data.load(epath.Path(directory), args.tier)
    print(f'tasks: {time.monotonic() - start:.0f} s', file=sys.stderr, flush=True)
    tasks = splits[args.split][: args.limit or None]
    made = environment.make(environments.seeds_below(worlds), args.tier)
    figures = asyncio.run(audit.audit(made, tasks))
  problems = audit.problems(figures)
  result = {
    'tier': args.tier,
    'split': args.split,
    'tasks': len(tasks),
    'seconds': time.monotonic() - start,
    'problems': problems,
    **figures,
  }
  text = json.dumps(result, indent=1, sort_keys=True)
  if args.out:
    pathlib.Path(args.out).write_text(text + '\n')
  print(text)
  if problems:
    raise SystemExit('; '.join(problems))


if __name__ == '__main__':
  main()
