"""Tests of core.device_time: the users that time on devices is charged to."""

import types

import pytest

from agentflow_jax.core import device_time


@pytest.fixture(name='clock')
def _clock():
  return types.SimpleNamespace(now=10.0)


@pytest.fixture(name='meter')
def _meter(clock):
  return device_time.Meter(lambda: clock.now)


def test_each_user_is_charged_with_its_share(clock, meter):
  # A uses the devices from 10 to 19, B from 12 to 18, C from 14 to 16:
  # A alone 2 s, A and B 2 s, all three 2 s, A and B 2 s, A alone 1 s.
  a, b = device_time.User(meter), device_time.User(meter)
  with a:
    clock.now = 12.0
    with b:
      clock.now = 14.0
      with meter.used():
        clock.now = 16.0
      assert b.seconds == pytest.approx(2 / 2 + 2 / 3)  # On the way, too.
      clock.now = 18.0
    clock.now = 19.0
  assert a.seconds == pytest.approx(2 + 2 / 2 + 2 / 3 + 2 / 2 + 1)
  assert b.seconds == pytest.approx(2 / 2 + 2 / 3 + 2 / 2)


def test_time_without_work_is_charged_to_no_user(clock, meter):
  user = device_time.User(meter)
  clock.now = 20.0
  with user:
    clock.now = 21.0
  clock.now = 30.0
  with pytest.raises(KeyError), user:
    clock.now = 33.0
    raise KeyError
  clock.now = 50.0
  assert user.seconds == 1.0 + 3.0
