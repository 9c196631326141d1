"""Delivers the steps of a run to experiment trackers, when a commit covers them.

Each tracker has a thread and a child process here, so that a step never waits for one:
a tracker that is slow, or fails, is behind, and gets the steps later. What it holds is
known to the tracker alone (training.tracker_clients), and so a run that goes on
continues there.
"""

import contextlib
import importlib.util
import json
import os
import pathlib
import platform
import random
import re
import secrets
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from etils import epath

from agentflow_jax.config import schema, written
from agentflow_jax.files import paths, reading, writing
from agentflow_jax.rollouts import rollout_files, showing

DIRECTORY = 'trackers'
_ROWS = 8  # Of a table of trajectories.
_BATCH = 100  # Steps of one delivery, at most.
_COMMAND = (sys.executable, '-m', 'agentflow_jax.training.tracker_worker')
_REMEDIES = {
  'wandb': 'pip install wandb (the extra `wandb`)',
  'mlflow': 'pip install mlflow (the extra `mlflow`)',
  'trackio': 'pip install trackio (the extra `trackio`)',
}

Line = Mapping[str, Any]
# From the number of a step to its table of trajectories, if it has one.
TableOf = Callable[[int], Mapping[str, Any] | None]


class _Failed(Exception):
  """A delivery failed; says why."""


def check_installed(config: schema.MetricsConfig) -> None:
  """Raises ConfigError where the library of a tracker is missing."""
  for name in config.beyond_tensorboard:
    if importlib.util.find_spec(name) is None:
      raise schema.ConfigError(
        f'metrics.trackers={name}: its library is missing: {_REMEDIES[name]}'
      )


class Delivery:
  """Delivers lines of metrics.jsonl to one tracker, in order, each once.

  Attributes:
    sent: last step that the tracker holds, as far as it is known.
  """

  def __init__(
    self,
    name: str,
    hello: Mapping[str, Any],
    seconds: float,
    table_of: TableOf = lambda step: None,
    command: Sequence[str] = _COMMAND,
    log: str = os.devnull,
  ):
    """Starts nothing before the first line is covered.

    Args:
      name: name of the tracker.
      hello: first message to the child, see tracker_worker.
      seconds: longest time of one delivery, and of the end of the run [s].
      table_of: function that returns the table of a step.
      command: program of the child.
      log: path of the file that gets what the child prints.
    """
    self.sent = 0
    self._name, self._hello, self._seconds = name, hello, seconds
    self._table_of, self._command, self._log = table_of, command, log
    self._wake = threading.Condition()
    self._lines: Sequence[Line] = ()
    self._asked = 0  # Number of calls of `cover`.
    self._closing: bool | None = None  # Whether the run is done, once it closes.
    self._problems: list[str] = []
    self._last_problem = ''
    self._child: subprocess.Popen | None = None
    self._is_known = False  # Whether `sent` is what the tracker said.
    self._unread = b''
    self._thread: threading.Thread | None = None

  def cover(self, lines: Sequence[Line]) -> None:
    """Has the lines delivered that are not yet; returns at once.

    Args:
      lines: all lines of the run that a commit covers.
    """
    with self._wake:
      self._lines, self._asked = tuple(lines), self._asked + 1
      self._wake.notify()
    if self._thread is None and lines:
      self._thread = threading.Thread(
        target=self._run, name=f'tracker {self._name}', daemon=True
      )
      self._thread.start()

  def problems(self) -> list[str]:
    """Returns what went wrong since the last call, for the user."""
    with self._wake:
      found, self._problems = self._problems, []
    return found

  def close(self, done: bool, until: float) -> None:
    """Delivers the rest, and ends the child.

    Args:
      done: whether the run has no more steps.
      until: time of time.monotonic after which the rest is left [s].
    """
    if self._thread is None:
      return
    with self._wake:
      self._closing = done
      self._wake.notify()
    self._thread.join(max(until - time.monotonic(), 0.0))
    if self._thread.is_alive():
      if (child := self._child) is not None:
        _end(child)  # The thread sees that, and cleans up.
      self._thread.join(1.0)
      self._problem(f'no answer within {self._seconds:g} s')

  def _run(self) -> None:
    seen = 0
    while True:
      with self._wake:
        self._wake.wait_for(
          lambda seen=seen: self._asked > seen or self._closing is not None
        )
        seen, lines, closing = self._asked, self._lines, self._closing
      try:
        self._deliver(lines)
        if closing is not None and self._child is not None:
          self._ask({'close': closing})
      except (_Failed, OSError, ValueError) as e:
        self._problem(str(e))
      if closing is not None:
        self._kill()
        return

  def _deliver(self, lines: Sequence[Line]) -> None:
    if self.sent < len(lines):
      if self._child is None:
        self._start()
      if not self._is_known:
        self.sent, self._is_known = self._ask({'steps': []})['sent'], True
    while self.sent < len(lines):
      batch = lines[self.sent : self.sent + _BATCH]
      self.sent = self._ask({'steps': [self._step(line) for line in batch]})['sent']
      self._last_problem = ''

  def _step(self, line: Line) -> dict[str, Any]:
    return {
      'step': line['step'],
      'metrics': {k: v for k, v in line.items() if k != 'step'},
      'table': self._table_of(line['step']),
    }

  def _start(self) -> None:
    with open(self._log, 'ab') as log:
      self._child = subprocess.Popen(
        self._command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        env=os.environ | {'PYTHONPATH': os.pathsep.join(p for p in sys.path if p)},
        start_new_session=True,
      )
    self._unread = b''
    self._write(self._hello)

  def _write(self, message: Mapping[str, Any]) -> None:
    assert self._child is not None and self._child.stdin is not None
    self._child.stdin.write(json.dumps(message).encode() + b'\n')
    self._child.stdin.flush()

  def _ask(self, message: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the answer to a message.

    Raises:
      _Failed: the tracker failed, or the child ended or gave no answer in time; in
        the last two cases the child is gone.
    """
    try:
      self._write(message)
      answer = self._read()
    except (_Failed, OSError, ValueError) as e:
      self._kill()
      raise _Failed(str(e)) from e
    if 'error' in answer:
      self._is_known = False
      raise _Failed(answer['error'])
    return answer

  def _read(self) -> dict[str, Any]:
    child, until = self._child, time.monotonic() + self._seconds
    assert child is not None and child.stdout is not None
    descriptor = child.stdout.fileno()
    while b'\n' not in self._unread:
      left = until - time.monotonic()
      if left <= 0 or not select.select([descriptor], [], [], left)[0]:
        raise _Failed(f'no answer within {self._seconds:g} s')
      data = os.read(descriptor, 1 << 16)
      if not data:
        raise _Failed(f'its process ended with code {child.wait()}')
      self._unread += data
    line, _, self._unread = self._unread.partition(b'\n')
    return json.loads(line)

  def _kill(self) -> None:
    child, self._child, self._is_known = self._child, None, False
    if child is None:
      return
    _end(child)
    child.wait()
    for pipe in (child.stdin, child.stdout):
      with contextlib.suppress(OSError):
        if pipe is not None:
          pipe.close()

  def _problem(self, why: str) -> None:
    """Notes a problem for the user, but not the same one after every commit."""
    with self._wake:
      if why == self._last_problem:
        return
      self._last_problem = why
      where = '' if self._log == os.devnull else f' ({self._log} has its messages)'
      self._problems.append(
        f'{self._name} has got {self.sent} of {len(self._lines)} committed steps:'
        f' {why}{where}. The next commit, or the same command again, sends the rest'
      )


def _end(child: subprocess.Popen) -> None:
  """Kills a child with the processes that it started."""
  with contextlib.suppress(ProcessLookupError):
    os.killpg(child.pid, signal.SIGKILL)


class Trackers:
  """The trackers of a run, in the process that writes."""

  def __init__(self, deliveries: Sequence[Delivery] = (), seconds: float = 0.0):
    self._deliveries, self._seconds = deliveries, seconds

  def cover(self, lines: Sequence[Line]) -> list[str]:
    """Has committed lines delivered, without waiting; returns what went wrong."""
    for delivery in self._deliveries:
      delivery.cover(lines)
    return self._problems()

  def close(self, done: bool) -> list[str]:
    """Waits until everything is delivered, and returns what went wrong.

    Args:
      done: whether the run has no more steps.
    """
    until = time.monotonic() + self._seconds
    for delivery in self._deliveries:
      delivery.close(done, until)
    return self._problems()

  def _problems(self) -> list[str]:
    return [said for delivery in self._deliveries for said in delivery.problems()]


def of_run(
  config: schema.Config, workdir: epath.Path, records_of: Callable[[int], epath.Path]
) -> Trackers:
  """Returns the trackers of a run; nothing is started before the first commit.

  Args:
    config: config of the run.
    workdir: work directory of the run, which keeps the id of the run in trackers.
    records_of: function from a step (from 0) to the file of its rollouts.
  """
  metrics = config.metrics
  if not metrics.beyond_tensorboard:
    return Trackers()
  directory = workdir / DIRECTORY
  directory.mkdir(parents=True, exist_ok=True)
  is_local = paths.is_local(workdir)
  run = {
    'id': _run_id(directory),
    'name': config.name,
    'project': metrics.project or 'agentflow_jax',
    'config': {k: _without_password(v) for k, v in written.flat(config).items()},
    'facts': facts(),
    'directory': os.path.abspath(directory) if is_local else str(directory),
  }

  def table_of(step):
    every = metrics.trajectories_every
    if not every or step % every:
      return None
    return table(records_of(step - 1), step, config.seed)

  return Trackers(
    [
      Delivery(
        name,
        {'tracker': name, 'run': run},
        metrics.tracker_seconds,
        table_of,
        log=str(directory / f'{name}.log') if is_local else os.devnull,
      )
      for name in metrics.beyond_tensorboard
    ],
    metrics.tracker_seconds,
  )


def _run_id(directory: epath.Path) -> str:
  """Returns the id of a run in trackers; the first call draws it."""
  path = directory / 'run.json'
  if not path.exists():
    writing.write_whole(path, json.dumps({'id': secrets.token_hex(4)}) + '\n')
  return reading.read_json(path)['id']


def _without_password(value: Any) -> Any:
  """Returns a value of the config; the user and password of addresses are left out."""
  if isinstance(value, str):
    return re.sub(r'://[^/@\s]*@', '://', value)
  return value


def facts() -> dict[str, Any]:
  """Returns the commit and the machine of a run, by name."""
  device = jax.devices()[0]
  root = pathlib.Path(__file__).resolve().parents[2]
  commit = 'unknown'
  if (root / '.git').exists():
    with contextlib.suppress(OSError, subprocess.SubprocessError):
      commit = subprocess.run(
        ['git', 'describe', '--always', '--dirty', '--abbrev=12', '--exclude=*'],
        cwd=root,
        check=True,
        capture_output=True,
        text=True,
        timeout=10,
      ).stdout.strip()
  return {
    'commit': commit,
    'host': socket.gethostname(),
    'platform': platform.platform(),
    'python': platform.python_version(),
    'jax': jax.__version__,
    'device': device.device_kind,
    'devices': jax.device_count(),
    'processes': jax.process_count(),
  }


def table(path: epath.Path, step: int, seed: int) -> dict[str, Any] | None:
  """Returns a table of some rollouts of a step, always the same.

  Args:
    path: file of the rollouts of the step.
    step: number of the step, from 1.
    seed: seed of the run.

  Returns:
    Fields of tracker_clients.Table; None where the file cannot be read.
  """
  try:
    found = [
      (group.task, trajectory)
      for group in rollout_files.read(path)
      for trajectory in group.trajectories
    ]
  except (OSError, rollout_files.RecordError):
    return None
  chosen = random.Random(f'{seed}/table/{step}').sample(
    range(len(found)), min(_ROWS, len(found))
  )
  return {
    'columns': ['step', 'task', 'rollout', 'query', 'status', 'reward', 'text'],
    'data': [
      [
        step,
        task.id,
        done.rollout,
        task.query,
        done.status.value,
        done.reward,
        showing.in_words(step, task, done),
      ]
      for task, done in (found[i] for i in sorted(chosen))
    ],
  }
