"""Tests of clients that make few requests each."""

import asyncio
import collections

import pytest

from agentflow_jax.agents.endpoints import connections


class _Client:
  is_closed = False

  async def aclose(self):
    self.is_closed = True


class _Asked:
  """Requests of made up clients, which wait until they are told to end."""

  def __init__(self, most=None):
    self.made = []
    self.clients = connections.Clients(self._make, most)
    self.used = collections.Counter()
    self.may_end = asyncio.Event()

  def _make(self):
    self.made.append(_Client())
    return self.made[-1]

  async def ask(self):
    async with self.clients.one() as client:
      self.used[self.made.index(client)] += 1
      await self.may_end.wait()


async def _started(asked, count):
  asking = [asyncio.ensure_future(asked.ask()) for _ in range(count)]
  for _ in range(3):
    await asyncio.sleep(0)
  return asking


def test_a_client_makes_eight_requests_at_once_and_is_used_again():
  async def main():
    asked = _Asked()
    asking = await _started(asked, 20)
    assert asked.used == {0: 8, 1: 8, 2: 4}
    asked.may_end.set()
    await asyncio.gather(*asking)
    await asked.ask()
    assert asked.used == {0: 9, 1: 8, 2: 4}
    await asked.clients.aclose()
    assert [client.is_closed for client in asked.made] == [True] * 3

  asyncio.run(main())


@pytest.mark.parametrize('fails', [False, True])
def test_others_wait_until_one_has_ended(fails):
  async def main():
    asked = _Asked(most=3)
    asking = await _started(asked, 5)
    assert asked.used.total() == 3
    if fails:
      asking[0].cancel()
    asked.may_end.set()
    await asyncio.gather(*asking, return_exceptions=True)
    assert asked.used == {0: 5}

  asyncio.run(main())
