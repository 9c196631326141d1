"""Runs a training command as several processes of this machine.

  python launch/local.py --processes=4 [--devices=2] [--grace=60] -- \
      python -m agentflow_jax.train --config=experiments/X.py --workdir=DIR

Each process gets --coordinator, --num_processes and --process_id; with --devices
each has so many virtual CPU devices, to try a mesh without its hardware. Lines of
output begin with the number of their process.

As soon as one process ends with an error or by a signal, the rest are ended, too:
SIGTERM, and SIGKILL --grace seconds later. So is who has not ended --grace seconds
after the first one, or after a signal that came from outside. The exit code is that of
the first one that failed: 75 and 70 mean that the same command goes on, and so does 1
where a process was killed.
"""

import argparse
import os
import signal
import socket
import subprocess
import sys
import threading
import time


def _arguments():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument('--processes', type=int, required=True)
  parser.add_argument('--devices', type=int, default=0)
  parser.add_argument('--grace', type=float, default=60.0)
  parser.add_argument('--dry_run', action='store_true')
  parser.add_argument('command', nargs=argparse.REMAINDER)
  args = parser.parse_args()
  args.command = args.command[args.command[:1] == ['--'] :]
  if not args.command:
    parser.error('nothing to run: give it after --')
  if args.processes < 1 or args.devices < 0:
    parser.error('--processes must be at least 1, --devices at least 0')
  return args


def _free_port():
  with socket.socket() as s:
    s.bind(('127.0.0.1', 0))
    return s.getsockname()[1]


def _environment(devices):
  environment = dict(os.environ)
  if devices:
    flags = environment.get('XLA_FLAGS', '').split()
    name = '--xla_force_host_platform_device_count'
    flags = [f for f in flags if not f.startswith(name)]
    environment['XLA_FLAGS'] = ' '.join([*flags, f'{name}={devices}'])
    environment['JAX_PLATFORMS'] = 'cpu'
  return environment


def _pump(index, stream):
  for line in stream:
    sys.stdout.write(f'[{index}] {line}')
    sys.stdout.flush()


def _described(index, code):
  how = (
    f'was ended by {signal.Signals(-code).name}'
    if code < 0
    else f'ended with exit code {code}'
  )
  return f'process {index} {how}'


class _Job:
  """The processes."""

  def __init__(self, commands, environment, grace):
    self.all = [
      subprocess.Popen(
        c,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors='replace',
        env=environment,
      )
      for c in commands
    ]
    self.pumps = [
      threading.Thread(target=_pump, args=(i, p.stdout), daemon=True)
      for i, p in enumerate(self.all)
    ]
    for i, (process, pump) in enumerate(zip(self.all, self.pumps)):
      print(f'process {i} is {process.pid}', flush=True)
      pump.start()
    self.told, self.deadline, self.grace = 0, None, grace

  def tell(self, number, unused_frame=None):
    """Passes a signal on; from now on the processes have so long to end."""
    self.told = number
    self.deadline = time.monotonic() + self.grace
    for p in self.all:
      if p.poll() is None:
        p.send_signal(number)

  def wait(self):
    """Returns the exit code of the job."""
    failed = 0
    while any(p.poll() is None for p in self.all):
      codes = [p.poll() for p in self.all]
      if self.deadline is None and any(c is not None for c in codes):
        # Together they end within moments, so who is late is lost.
        self.deadline = time.monotonic() + self.grace
      bad = [(i, c) for i, c in enumerate(codes) if c]
      if bad and not failed and not self.told:
        print(f'{_described(*bad[0])}: ending the others', flush=True)
        self.tell(signal.SIGTERM)
      if bad and not failed:
        failed = bad[0][1]
      if self.deadline is not None and time.monotonic() > self.deadline:
        late = [i for i, p in enumerate(self.all) if p.poll() is None]
        print(f'processes {late} did not end: killing them', flush=True)
        self.tell(signal.SIGKILL)
        failed = failed or 1
      time.sleep(0.1)
    for pump in self.pumps:
      pump.join(timeout=5)
    failed = failed or next((p.returncode for p in self.all if p.returncode), 0)
    return 1 if failed < 0 else failed


def main():
  args = _arguments()
  coordinator = f'127.0.0.1:{_free_port()}'
  commands = [
    [
      *args.command,
      f'--coordinator={coordinator}',
      f'--num_processes={args.processes}',
      f'--process_id={i}',
    ]
    for i in range(args.processes)
  ]
  if args.dry_run:
    for command in commands:
      print(' '.join(command))
    return 0
  try:
    job = _Job(commands, _environment(args.devices), args.grace)
  except OSError as e:
    print(
      f'error: cannot run {args.command[0]}: {e.strerror}; behind -- comes a command,'
      ' such as python -m agentflow_jax.train',
      file=sys.stderr,
    )
    return 2
  for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, job.tell)
  return job.wait()


if __name__ == '__main__':
  sys.exit(main())
