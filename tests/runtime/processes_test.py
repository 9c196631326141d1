"""Several processes: what they share, tell each other, and how they end."""

import asyncio
import os
import random
import signal
import time

import numpy as np
import pytest
from etils import epath
from jax.experimental import multihost_utils

from agentflow_jax.config import schema
from agentflow_jax.runtime import exits, processes as processes_lib

Processes = processes_lib.Processes


class _Together(Processes):
  """One of several whose others say what a test says."""

  def __init__(self, others, index=0):
    super().__init__(index, 1 + len(others))
    self._others = others
    self.said = []

  def exchange(self, payload=b''):
    self.said.append(payload)
    everything = [o(payload) if callable(o) else o for o in self._others]
    everything.insert(self.index, payload)
    return everything


@pytest.mark.parametrize('total', [0, 1, 3, 8, 9, 256])
@pytest.mark.parametrize('count', [1, 2, 4, 7])
def test_shares_are_everything_once_and_even(total, count):
  shares = [Processes(i, count).share(total) for i in range(count)]
  assert [unit for share in shares for unit in share] == list(range(total))
  sizes = [len(s) for s in shares]
  assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(
  'lengths, chunks',
  [
    ((0, 0), []),
    ((3, 1), [1 << 16]),
    ((0, 1 << 16), [1 << 16]),
    ((70_000, (1 << 16) + 1), [1 << 17]),
    # 36 MiB and a byte: two of the largest, and the next power of two of the rest.
    ((36 * 2**20 + 1, 5), [1 << 24, 1 << 24, 1 << 23]),
    ((100_000_000, 99_999_999), [1 << 24] * 5 + [1 << 24]),
  ],
)
def test_a_few_collectives_carry_any_length(lengths, chunks, monkeypatch):
  payloads = [random.Random(n).randbytes(n) for n in lengths]
  processes, carried = Processes(0, 2), []

  def gather(mine):
    if not mine.shape:
      return np.array(lengths)
    at, size = sum(carried), len(mine)
    carried.append(size)
    theirs = np.zeros(size, np.uint8)
    part = payloads[1][at : at + size]
    theirs[: len(part)] = np.frombuffer(part, np.uint8)
    return np.stack([mine, theirs])

  monkeypatch.setattr(multihost_utils, 'process_allgather', gather)
  assert processes.exchange(payloads[0]) == payloads
  assert carried == chunks


async def _give(value):
  return value


def test_everybody_gets_what_everybody_has():
  processes = _Together([b'\0b', b'\0'])
  assert asyncio.run(processes.gathered(_give(b'a'))) == [b'a', b'b', b'']


def test_another_s_failure_ends_this_one_and_says_why():
  for code in (2, 75):
    processes = _Together([b'\0', bytes([1, code]) + b'no corpus'])
    with pytest.raises(
      exits.ProcessFailed, match='process 2 of 3 failed: no corpus'
    ) as failed:
      asyncio.run(processes.gathered(_give(b'a')))
    assert exits.code_of(failed.value) == code


def test_the_others_hear_of_a_failure_which_is_raised_here():
  async def fail():
    raise ValueError('mine')

  processes = _Together([b'\0'])
  with pytest.raises(ValueError, match='mine'):
    asyncio.run(processes.gathered(fail()))
  # Nobody's mistake: the others exit so that they are run again.
  assert processes.said == [b'\1\x4bValueError: mine']

  async def fail_in_a_group():
    async with asyncio.TaskGroup() as running:
      running.create_task(fail())

  processes = _Together([b'\0'])
  with pytest.raises(ExceptionGroup):
    asyncio.run(processes.gathered(fail_in_a_group()))
  assert processes.said == [b'\1\x4bValueError: mine']


def test_one_that_is_told_to_stop_cancels_its_work_and_stops_all():
  cancelled = []

  async def work():
    try:
      await asyncio.sleep(60)
    except asyncio.CancelledError:
      cancelled.append(True)
      raise

  async def run(processes):
    processes.listen()
    try:
      asyncio.get_running_loop().call_later(0.1, os.kill, os.getpid(), signal.SIGTERM)
      await processes.gathered(work())
    finally:
      processes.deafen()

  start = time.monotonic()
  processes = _Together([b'\0'])
  with pytest.raises(exits.Preempted):
    asyncio.run(run(processes))
  assert cancelled and processes.said == [b'\2']
  assert time.monotonic() - start < 30  # It did not wait for the work.
  with pytest.raises(exits.Preempted):
    asyncio.run(_Together([b'\2']).gathered(_give(b'a')))
  with pytest.raises(exits.Preempted):
    asyncio.run(run(Processes()))


def test_what_is_done_once_is_done_by_the_first_alone():
  calls = []
  for index in (0, 1):
    processes = _Together([b'\0'], index)
    assert processes.alone(lambda: calls.append(1) or 7) == (None if index else 7)
    assert processes.first(lambda: calls.append(2) or 8) == 8
  assert calls == [1, 2, 2]


def test_what_fails_in_the_first_fails_in_all():
  def fail():
    raise schema.ConfigError('no such file')

  processes = _Together([b'\0'])
  with pytest.raises(schema.ConfigError, match='no such file'):
    processes.first(fail)
  assert processes.said == [b'\1\2ConfigError: no such file']
  with pytest.raises(exits.ProcessFailed, match='no such file'):
    _Together([b'\1\2no such file'], 1).first(lambda: 1)


def test_another_s_stop_is_seen_and_one_s_own_is_shown(tmp_path):
  async def work():
    await asyncio.sleep(60)

  for told in (True, False):
    processes = _Together([b'\0'])
    processes.stop_file = epath.Path(tmp_path / f'stop_{told}')
    if told:
      processes.stop_file.write_text('1')
    else:
      processes._stop.set()
    with pytest.raises(exits.Preempted):
      asyncio.run(processes.gathered(work()))
    assert processes.stop_file.exists()


def test_what_differs_between_processes_is_an_error_that_names_them():
  processes = Processes()
  processes.check_same('the config', 'a')
  same = _Together([lambda payload: payload])
  same.check_same('the config', 'a')
  with pytest.raises(schema.ConfigError, match='config of process 1 of 3'):
    _Together([b'else', lambda payload: payload]).check_same('the config', 'a')


def test_exit_codes_say_what_to_do():
  assert exits.code_of(schema.ConfigError('x')) == 2
  assert exits.code_of(exits.RunStopped('x')) == 3
  assert exits.code_of(exits.Preempted('x')) == 75
  assert exits.code_of(KeyError('x')) == 1


@pytest.mark.parametrize(
  'environ, several',
  [
    ({}, False),
    ({'SLURM_NTASKS': '4', 'SLURM_STEP_ID': '0'}, True),
    ({'SLURM_NTASKS': '4'}, False),  # salloc, and no srun.
    ({'SLURM_NTASKS': '1', 'SLURM_STEP_ID': '0'}, False),
    ({'OMPI_COMM_WORLD_SIZE': '2'}, True),
    ({'TPU_WORKER_HOSTNAMES': 'a,b'}, True),
    ({'TPU_WORKER_HOSTNAMES': 'localhost'}, False),
    ({'MEGASCALE_NUM_SLICES': '2'}, True),
  ],
)
def test_the_environment_says_whether_there_are_several(environ, several, monkeypatch):
  calls = []
  monkeypatch.setattr(
    processes_lib.jax.distributed, 'initialize', lambda *a, **k: calls.append((a, k))
  )
  processes_lib.initialize(environ=environ, heartbeat_seconds=7)
  expected = [((None, None, None), {'heartbeat_timeout_seconds': 7})]
  assert calls == expected * several
  processes_lib.initialize(environ=environ, distributed='off')
  assert calls == expected * several


def test_flags_say_it_too(monkeypatch):
  calls = []
  monkeypatch.setattr(
    processes_lib.jax.distributed, 'initialize', lambda *a, **unused_k: calls.append(a)
  )
  processes_lib.initialize('host:1234', 2, 0, environ={})
  processes_lib.initialize(distributed='on', environ={})
  assert calls == [('host:1234', 2, 0), (None, None, None)]


@pytest.mark.parametrize(
  'arguments, message',
  [
    (('host:1', 0, -1), 'belong together'),
    (('host:1', 2, 2), 'belong together'),
    (('', 2, 0), 'belong together'),
    (('host:1', 2, 0, 100, 'off'), 'ignored'),
  ],
)
def test_flags_that_contradict_each_other_are_an_error(arguments, message):
  with pytest.raises(schema.ConfigError, match=message):
    processes_lib.initialize(*arguments, environ={})


def test_where_nobody_knows_the_others_the_error_says_what_to_give(monkeypatch):
  def refuse(*unused_a, **unused_k):
    raise ValueError('coordinator_address should be defined.')

  def time_out(*unused_a, **unused_k):
    raise RuntimeError('DEADLINE_EXCEEDED')

  monkeypatch.setattr(processes_lib.jax.distributed, 'initialize', refuse)
  with pytest.raises(schema.ConfigError, match='--distributed=off'):
    processes_lib.initialize(distributed='on', environ={})
  # Who is late may come: run it again.
  monkeypatch.setattr(processes_lib.jax.distributed, 'initialize', time_out)
  with pytest.raises(exits.ProcessFailed) as failed:
    processes_lib.initialize(distributed='on', environ={})
  assert exits.code_of(failed.value) == 75


def test_a_step_that_hangs_ends_the_process(capfd):
  ended = []
  dog = exits.Watchdog(0.2, 'process 1 of 2', ended.append)
  time.sleep(0.5)
  assert not ended  # Nothing has begun.
  dog.begin('step 3')
  while not ended:
    time.sleep(0.01)
  assert ended == [exits.HUNG_CODE]
  assert 'process 1 of 2 hangs: step 3' in capfd.readouterr().err


def test_steps_in_time_end_nothing():
  ended = []
  dog = exits.Watchdog(0.6, 'process 0 of 1', ended.append)
  for i in range(8):
    dog.begin(f'step {i}')
    time.sleep(0.15)
  dog.rest()
  time.sleep(0.8)
  dog.close()
  assert not ended
