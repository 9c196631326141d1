"""Calls that fail now and then, before they do anything, and ask to be tried again."""

import asyncio

from agentflow_jax.agents.tools import base
from tests.agents.environments import toy_world


def _played(faults, rollout=0, calls=200):
  """Returns which calls failed, and how often the last thing was moved."""
  environment = toy_world.make(faults=faults)

  async def run():
    episode = await environment.open(toy_world.task(), toy_world.key(rollout))
    failed = []
    for i in range(calls):
      shelf = 'S1' if i % 2 else 'S2'
      try:
        await episode.tools['move'].call({'thing': 'T1', 'shelf': shelf})
        failed.append(False)
      except base.BadArguments as e:
        assert str(e) == 'move is busy: try again'
        failed.append(True)
    remarks = len(episode._database.table('remark'))
    await episode.close()
    return failed, remarks

  return asyncio.run(run())


def test_faults_come_as_often_as_said_and_do_nothing():
  failed, remarks = _played(0.3)
  # Binomial(200, 0.3): 60 on average, 6.5 its deviation.
  assert 40 <= sum(failed) <= 80
  assert remarks == 200 - sum(failed)
  assert not any(_played(0.0)[0])


def test_faults_are_those_of_the_rollout():
  assert _played(0.3) == _played(0.3)
  assert _played(0.3)[0] != _played(0.3, rollout=1)[0]


def test_a_call_that_is_tried_again_succeeds_in_the_end():
  failed, _ = _played(0.9)
  assert any(failed) and not all(failed)
