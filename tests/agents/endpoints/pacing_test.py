"""The rate limit and the circuit breaker, by a clock of our own."""

import asyncio

import pytest

from agentflow_jax.agents.endpoints import pacing


class Clock:
  """Time that passes when somebody sleeps, and only then."""

  def __init__(self):
    self.now = 100.0

  def __call__(self):
    return self.now

  async def sleep(self, seconds):
    self.now += seconds


def test_a_pacer_keeps_its_rate_in_every_window():
  clock = Clock()
  pacer = pacing.Pacer(60, clock, clock.sleep)
  times = []

  async def run():
    for i in range(10):
      if i == 4:
        await clock.sleep(30)  # What is not asked for is not saved up.
      await pacer.wait()
      times.append(clock.now - 100)

  asyncio.run(run())
  assert times == pytest.approx([0, 1, 2, 3, 33, 34, 35, 36, 37, 38])


def test_amounts_take_their_share():
  clock = Clock()
  pacer = pacing.Pacer(600, clock, clock.sleep)  # A tenth of a second each.
  times = []

  async def run():
    for amount in (50, 1000, 1, 1):  # More than a minute's worth passes, too.
      await pacer.wait(amount)
      times.append(clock.now - 100)

  asyncio.run(run())
  assert times == pytest.approx([0, 5, 105, 105.1])


def test_those_who_ask_at_once_go_one_by_one():
  waits = []

  async def sleep(seconds):
    waits.append(seconds)

  async def run():
    pacer = pacing.Pacer(30, lambda: 0.0, sleep)
    await asyncio.gather(*(pacer.wait() for _ in range(4)))
    await pacing.Pacer(0, lambda: 0.0, sleep).wait(10**9)

  asyncio.run(run())
  assert waits == pytest.approx([2, 4, 6])


def test_who_is_cancelled_while_it_waits_has_spent_nothing():
  clock = Clock()

  async def run():
    pacer = pacing.Pacer(1, clock, asyncio.sleep)  # A minute each.
    await pacer.wait()
    for _ in range(3):
      with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
          await pacer.wait()
    clock.now += 60
    async with asyncio.timeout(5):
      await pacer.wait()

  asyncio.run(run())


def _passes(breaker):
  try:
    breaker.enter()
  except pacing.CircuitOpen:
    return False
  return True


def test_a_breaker_opens_probes_and_closes():
  clock = Clock()
  breaker = pacing.Breaker(3, 10.0, clock)
  for _ in range(2):  # Not in a row.
    assert _passes(breaker)
    breaker.failed('x')
    breaker.failed('x')
    breaker.succeeded()
  for _ in range(3):
    assert _passes(breaker)
    breaker.failed('status 500')
  with pytest.raises(pacing.CircuitOpen, match='3 .*status 500') as caught:
    breaker.enter()
  assert caught.value.seconds == pytest.approx(10)
  clock.now += 9.9
  assert not _passes(breaker)
  clock.now += 0.2
  # One of many tries, and fails: the others wait for another ten seconds.
  assert [_passes(breaker) for _ in range(3)] == [True, False, False]
  breaker.failed('still')
  clock.now += 9.8
  assert not _passes(breaker)
  clock.now += 0.3
  assert _passes(breaker)
  breaker.succeeded()
  assert all(_passes(breaker) for _ in range(5))


def test_a_breaker_of_no_limit_never_opens():
  breaker = pacing.Breaker(0, 10.0, Clock())
  for _ in range(100):
    breaker.failed('x')
    assert _passes(breaker)
