"""Compares the quickstart with the same agent as a foreign driver over the endpoint.

  python experiments/benchmarks/served_quickstart.py --workdir=runs/served --steps=4
  python experiments/benchmarks/served_quickstart.py --drive=runs/served/served/p0.json

The first trains experiments/quickstart.py and then experiments/quickstart_served.py,
beside a driver, --pairs times in turn. The requests of the first run are named as a
session names them, so that both sample the same responses and do the same work: they
have to end in the same params_digest. It prints for each step the processor time of the
training process (without its tools' processes and the driver), in all and of its event
loop, where our own modules work, or else the endpoint. The rest is the update and the
engine; this takes longer for the same tokens where a slow agent leaves few sequences
to sample at once. Both sides get the flags --config.FIELD=VALUE.

The second is the driver: it makes the modules and tools of the quickstart, asks the
planner over HTTP, and goes on with a run that was killed and started again.
"""

import argparse
import asyncio
import collections
import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import runpy
import statistics
import subprocess
import sys
import time

import httpx
from etils import epath

from agentflow_jax import records
from agentflow_jax.agents import language_model, rollout, served_session
from agentflow_jax.agents.endpoints import connections
from agentflow_jax.assembly import engine_model, model_files
from agentflow_jax.assembly import system as system_lib
from agentflow_jax.config import loading, schema
from agentflow_jax.files import reading

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_CONFIGS = {'inside': 'quickstart', 'served': 'quickstart_served'}
_NAMING = '--name_as_sessions'


class _Remote(engine_model.EngineModel):
  """The planner behind the base URL of a session; it counts tokens here."""

  def __init__(self, tokenizer, http: connections.Clients, base_url: str):
    engine: object = None  # Nothing is sampled here.
    super().__init__(engine, tokenizer)  # pyright: ignore[reportArgumentType]  # See above.
    self._http, self._base_url = http, base_url

  async def generate(self, prompt, sampling, request_key, tools=()):
    del request_key, tools
    messages = [{'role': s.role, 'content': s.text} for s in records.joined(prompt)]
    body = {'model': 'policy', 'messages': messages}
    body['max_tokens'] = sampling.max_new_tokens
    async with self._http.one() as client:
      got = await client.post(f'{self._base_url}/chat/completions', json=body)
    if got.status_code != 200:
      raise language_model.Unreachable(got.text)
    choice = got.json()['choices'][0]
    text, reason = choice['message']['content'], choice['finish_reason']
    return records.Completion(text, finish_reason=reason)


class _Driver:
  """The quickstart's agent, for the sessions of a run."""

  def __init__(self, directory: epath.Path):
    config = loading.load(str(_ROOT / 'experiments' / 'quickstart.py'))
    self._tokenizer = model_files.load(config.planner.directory).tokenizer
    endpoint = schema.EndpointConfig(base_url='http://127.0.0.1/v1', model='policy')
    config = dataclasses.replace(
      config,
      planner=dataclasses.replace(config.planner, backend='endpoint'),
      agent=dataclasses.replace(config.agent, endpoint=endpoint),
    )
    self._system = system_lib.build(config, directory)
    tasks = self._system.tasks
    self._tasks = {t.id: t for t in (*tasks.train, *tasks.validation, *tasks.test)}

  async def work(self, path: pathlib.Path) -> None:
    """Solves the tasks of a run until it ends, over and over if it begins again."""
    while True:
      try:
        said = json.loads(path.read_text())
        await self._drive(said['url'], said['driver_key'])
      except* (OSError, httpx.TransportError):  # Also out of the group of tasks.
        await asyncio.sleep(0.2)  # The run has not begun, or was killed.

  async def _drive(self, url: str, key: str) -> None:
    headers = {'Authorization': f'Bearer {key}'}
    # It takes long to make a context of TLS, and there is no TLS.
    make = functools.partial(httpx.AsyncClient, base_url=url, timeout=300, verify=False)
    async with (
      contextlib.aclosing(connections.Clients(make)) as http,
      asyncio.TaskGroup() as solving,
    ):
      while True:
        async with http.one() as client:
          got = await client.post('/tasks', headers=headers, json={'most': 256})
        if got.status_code != 200:
          break
        for said in got.json()['tasks']:
          solving.create_task(self._solve(http, headers, said))
    raise httpx.TransportError('the run has ended')

  async def _solve(self, http: connections.Clients, headers, said) -> None:
    model = _Remote(self._tokenizer, http, said['base_url'])
    agent = dataclasses.replace(
      self._system.agent,
      planner=dataclasses.replace(self._system.planner, model=model),
      count_tokens=language_model.text_counter(model),
    )
    task = self._tasks[said['task']['id']]
    key = records.RequestKey(0, records.Purpose.SOLVE, 0, task.id, 0)
    try:
      done = await rollout.rollout(agent, task, key)
      what, value = 'failure', done.detail or done.status.value
      if done.status.is_policy:
        is_answer = done.status is records.Status.ANSWERED
        what, value = 'answer', done.answer if is_answer else ''
      path = f'/sessions/{said["session"]}/{what}'
      async with http.one() as client:
        await client.post(path, json={what: value}, headers=headers)
    except httpx.TransportError:
      pass  # The run was killed.


def _cpu_seconds(pid: int) -> tuple[float, float]:
  """Returns the processor time of a process without its children, and of its loop."""
  found = []
  for path in (f'/proc/{pid}/stat', f'/proc/{pid}/task/{pid}/stat'):
    fields = pathlib.Path(path).read_text().rpartition(')')[2].split()
    found.append((int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK'))
  return found[0], found[1]


def _name_as_sessions() -> None:
  """Gives the requests of our own modules the keys that sessions would give them."""
  generate = engine_model.EngineModel.generate
  times = collections.Counter()

  async def named(self, prompt, sampling, request_key, tools=()):
    rollout_key = dataclasses.replace(
      request_key, turn=0, module=records.RequestKey.module, attempt=0
    )
    name = served_session.digest('policy', tuple(self.render(prompt, tools)), sampling)
    number = times[rollout_key, name]
    times[rollout_key, name] += 1
    key = served_session.request_key(rollout_key, name, number)
    return await generate(self, prompt, sampling, key, tools)

  engine_model.EngineModel.generate = named


def _train(
  name: str, workdir: pathlib.Path, flags: list[str]
) -> tuple[str, list[tuple[float, float]]]:
  """Trains one side; returns its params_digest, and processor time by step [s]."""
  program = ['-m', 'agentflow_jax.train']
  if name == 'inside':
    program = [__file__, _NAMING]
  config = f'--config=experiments/{_CONFIGS[name]}.py'
  process = subprocess.Popen(
    [sys.executable, *program, config, f'--workdir={workdir}', *flags], cwd=_ROOT
  )
  path, times = workdir / 'metrics.jsonl', []
  while process.poll() is None:
    try:
      now = _cpu_seconds(process.pid)
    except (OSError, IndexError):
      break
    lines = list(reading.json_lines(path, may_be_torn=True)) if path.exists() else []
    times += [now] * (len(lines) - len(times))
    time.sleep(0.02)
  if process.wait():
    sys.exit(f'{name} ended with status {process.returncode}')
  digest = json.loads((workdir / 'summary.json').read_text())['params_digest']
  return digest, [(b[0] - a[0], b[1] - a[1]) for a, b in zip(times, times[1:])]


def _one(name: str, workdir: pathlib.Path, flags: list[str]):
  """Trains one side, beside a driver where it needs one; prints and returns times."""
  with contextlib.ExitStack() as stack:
    if name == 'served':
      drive = [sys.executable, __file__, f'--drive={workdir / "served" / "p0.json"}']
      driver = subprocess.Popen([*drive, f'--workdir={workdir.parent}'], cwd=_ROOT)
      stack.callback(driver.kill)
    digest, times = _train(name, workdir, flags)
  said = ' '.join(f'{whole:.2f} ({loop:.2f})' for whole, loop in times)
  print(f'{name}: processor seconds a step (of the event loop) {said}', flush=True)
  return digest, times


def _compare(workdir: pathlib.Path, pairs: int, flags: list[str]) -> None:
  if any((workdir / f'{name}_0').exists() for name in _CONFIGS):
    sys.exit(f'{workdir} has runs already, which would not be made again')
  digests, shares = set(), []
  for pair in range(pairs):
    # Either side is first as often, because other work on the machine changes.
    names = sorted(_CONFIGS, reverse=pair % 2 == 1)
    sides = {name: _one(name, workdir / f'{name}_{pair}', flags) for name in names}
    digests |= {digest for digest, _ in sides.values()}
    for inside, served in zip(sides['inside'][1], sides['served'][1], strict=True):
      shares.append([(b - a) / inside[0] for a, b in zip(inside, served)])
  if len(digests) > 1:
    sys.exit(f'the runs did not do the same work: {digests}')
  print(f'all runs did the same work: params_digest {digests.pop()}')
  for what, more in zip(('process', 'event loop'), zip(*shares)):
    print(
      f'{what}: {statistics.median(more):+.1%} of the processor time of a step inside,'
      f' median of {len(more)} pairs of steps from {min(more):+.1%} to {max(more):+.1%}'
    )


def main() -> None:
  if sys.argv[1:2] == [_NAMING]:
    del sys.argv[1]
    _name_as_sessions()
    runpy.run_module('agentflow_jax.train', run_name='__main__')
    return
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument('--workdir', default='runs/served_quickstart')
  parser.add_argument('--steps', type=int, default=4, help='the first is not counted')
  parser.add_argument('--pairs', type=int, default=1, help='runs of either side')
  parser.add_argument('--drive', default='', help='the run file of a driver')
  arguments, flags = parser.parse_known_args()
  if arguments.steps < 2 or not all(flag.startswith('--config.') for flag in flags):
    parser.error('--steps is 2 or more, and other flags are --config.FIELD=VALUE')
  workdir = pathlib.Path(arguments.workdir).absolute()
  if arguments.drive:
    asyncio.run(
      _Driver(epath.Path(workdir / 'driver')).work(pathlib.Path(arguments.drive))
    )
  evaluation = ('every=0', 'start_and_final=false', 'controls=false')
  flags += [f'--config.train.steps={arguments.steps}']
  flags += [f'--config.evaluation.{one}' for one in evaluation]
  _compare(workdir, arguments.pairs, flags)


if __name__ == '__main__':
  main()
