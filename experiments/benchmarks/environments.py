"""Measures what an environment costs: episodes of the desk, and turns of programs.

  python experiments/benchmarks/environments.py --out=environments.json

The desk: --tasks of the test tasks are carried out by their known solutions in
--group_size episodes each, all open at once. Processor time [ms] of an episode, in all
and by part, the mean and the share of it, and the memory that an open episode takes
[bytes], by the growth of the process.

Programs: --sessions sessions at once run four programs each in Monty, of which each
calls a function once. Programs a second, wall-clock, and the processor time of this
process for one [ms].
"""

import argparse
import asyncio
import collections
import contextlib
import json
import os
import pathlib
import sys
import tempfile
import time
from typing import Any

from etils import epath

from agentflow_jax import records
from agentflow_jax.agents.environments.desk import audit, environment, mutants
from agentflow_jax.agents.environments.programs import monty_sessions, sessions
from agentflow_jax.agents.environments.sqlite import environment as environments
from agentflow_jax.assembly import desk_data

_PROGRAMS = (
  'x = find(3)\ny = [1, 2, 3]\nprint(x, y)',
  'z = find(thing=x)\nprint(z)',
  'def next_of(a):\n  return a + 1\nw = next_of(3)\nprint(move(thing=w, place=2))',
  'print(find(x), w, y)',
)


def main():
  args = _arguments()
  result: dict[str, Any] = {'processors': os.cpu_count()}
  with contextlib.ExitStack() as stack:
    directory = args.data_dir or stack.enter_context(tempfile.TemporaryDirectory())
    splits, worlds = desk_data.load(epath.Path(directory), args.tier)
    made = environment.make(environments.seeds_below(worlds), args.tier)
    tasks = splits['test'][: args.tasks]
    result['desk'] = asyncio.run(_desk(made, tasks, args.group_size))
  result['programs'] = asyncio.run(_programs(args.sessions))
  said = json.dumps(result, indent=1)
  print(said)
  if args.out:
    pathlib.Path(args.out).write_text(said + '\n', encoding='utf-8')


def _arguments():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument('--tier', choices=('easy', 'plain', 'long'), default='easy')
  parser.add_argument('--tasks', type=int, default=32)
  parser.add_argument('--group_size', type=int, default=8)
  parser.add_argument('--sessions', type=int, default=256)
  parser.add_argument('--data_dir', default='', help='tasks are kept there')
  parser.add_argument('--out', default='')
  return parser.parse_args()


class _Clock:
  """Adds up the processor time of parts."""

  def __init__(self):
    self.seconds: dict[str, float] = collections.defaultdict(float)

  @contextlib.contextmanager
  def of(self, part):
    start = time.process_time()
    yield
    self.seconds[part] += time.process_time() - start


async def _desk(made, tasks, group_size):
  for task in tasks:
    made.at_start(task)  # Checked once at the start of a run.
  keys = [
    records.RequestKey(0, records.Purpose.EVALUATE, 0, task.id, rollout)
    for task in tasks
    for rollout in range(group_size)
  ]
  pairs = list(zip([t for t in tasks for _ in range(group_size)], keys, strict=True))
  clock, before = _Clock(), _resident()
  with clock.of('open'):
    episodes = [await made.open(task, key) for task, key in pairs]
  opened, calls = _resident(), 0
  for (task, _), episode in zip(pairs, episodes, strict=True):
    with clock.of('calls'):
      done = await audit.carried_out(episode, mutants.solution_of(task))
      ending = audit.ending_of(episode, done)
    with clock.of('verify'):
      verdict = await episode.verify(ending)
    with clock.of('digest'):
      await episode.digest()
    with clock.of('close'):
      await episode.close()
    assert verdict.success, task.id
    calls += len(done)
  count = len(pairs)
  return {
    'episodes': count,
    'calls': calls,
    'milliseconds': 1e3 * sum(clock.seconds.values()) / count,
    'parts': {part: 1e3 * s / count for part, s in clock.seconds.items()},
    'bytes': (opened - before) / count,
  }


def _resident() -> int:
  """Returns the resident memory of this process [bytes]."""
  pages = pathlib.Path('/proc/self/statm').read_text(encoding='utf-8').split()[1]
  return int(pages) * os.sysconf('SC_PAGE_SIZE')


async def _programs(count):
  made = monty_sessions.MontySessions(sessions.Limits())

  async def call(name, positional, named):
    del name, positional, named
    return 'found 12'

  start = sessions.Start(('find', 'move'), '1 2')

  async def one():
    state = b''
    for program in _PROGRAMS:
      outcome = await made.run(state, program, call, start)
      assert not outcome.error, outcome
      state = outcome.state

  try:
    await asyncio.gather(*(one() for _ in range(8)))  # Starts the workers.
    wall, processor = time.monotonic(), time.process_time()
    await asyncio.gather(*(one() for _ in range(count)))
    wall, processor = time.monotonic() - wall, time.process_time() - processor
  finally:
    await made.close()
  turns = count * len(_PROGRAMS)
  return {
    'programs': turns,
    'programs_per_second': turns / wall,
    'milliseconds': 1e3 * processor / turns,
  }


if __name__ == '__main__':
  sys.exit(main())
