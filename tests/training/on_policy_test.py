"""Contract 1: the trainer scores what was sampled as the sampler did."""

import asyncio
import dataclasses

import jax
import numpy as np
import pytest
from etils import epath

from agentflow_jax import records
from agentflow_jax.core import sharding
from agentflow_jax.training import batches, collect, run, system
from tests.training import mini


@pytest.fixture(scope='module')
def live(tmp_path_factory):
  """Live rollouts of the shipped planner, and a function that makes trainers."""
  directory = tmp_path_factory.mktemp('on_policy')
  config = mini.config(directory)
  parts = system.build(config, epath.Path(directory))

  async def collected():
    return await collect.groups(
        parts.agent,
        parts.tasks.train,
        group_size=4,
        key=records.RequestKey(0, records.Purpose.TRAIN, 0, '', 0),
        limit=asyncio.Semaphore(64),
    )

  groups = asyncio.run(collected())
  rows = batches.flow_grpo_rows(groups, config.flow_grpo).rows
  mesh = sharding.make_mesh(**dataclasses.asdict(config.mesh))
  trainer = run.Trainer(parts, mesh)
  yield parts, rows, trainer, trainer.state
  asyncio.run(parts.close())


def _step(live, rows, params=None):
  """One update of a trainer whose state is as it was at the start."""
  _, _, trainer, state = live
  copy = jax.tree.map(lambda x: x.copy(), state)
  if params is not None:
    copy = dataclasses.replace(copy, params=params)
  trainer.state = copy
  return trainer.step((tuple(rows),))


def test_live_rollouts_are_on_policy_within_1e_5(live):
  _, rows, _, _ = live
  assert len(rows) > 20
  metrics = _step(live, rows)
  assert 0 < metrics['update/logprob_gap/max'] <= 1e-5
  assert metrics['update/n_targets'] == sum(len(r.response_ids) for r in rows)
  assert metrics['updates'] == 1


def test_the_bound_is_what_stops_the_run(live):
  _, rows, trainer, _ = live
  tight = dataclasses.replace(
      trainer._config.train, max_logprob_gap=1e-12
  )
  old = trainer._config
  trainer._config = dataclasses.replace(old, train=tight)
  try:
    with pytest.raises(run.RunStopped, match='max_logprob_gap'):
      _step(live, rows)
  finally:
    trainer._config = old


def _temperature(row):
  return dataclasses.replace(row, temperature=row.temperature * 1.1)


def _shifted(row):
  logprobs = np.roll(row.behavior_logprobs, 1)
  return dataclasses.replace(row, behavior_logprobs=logprobs)


def _truncated(row):
  # What a sampler with top-p would record: renormalised over 95% of the mass.
  logprobs = row.behavior_logprobs - np.float32(np.log(0.95))
  return dataclasses.replace(row, behavior_logprobs=logprobs)


@pytest.mark.parametrize('mutation', [_temperature, _shifted, _truncated])
def test_another_distribution_is_caught(live, mutation):
  _, rows, _, _ = live
  with pytest.raises(run.RunStopped, match='scores the sampled tokens'):
    _step(live, [mutation(row) for row in rows])


def test_a_stale_parameter_version_is_caught(live):
  _, rows, trainer, state = live
  _step(live, rows)
  newer = jax.tree.map(lambda x: x.copy(), trainer.state.params)
  with pytest.raises(run.RunStopped, match='scores the sampled tokens'):
    _step(live, rows, params=newer)


def test_a_refused_update_leaves_the_state(live):
  _, rows, trainer, state = live
  with pytest.raises(run.RunStopped):
    _step(live, [_temperature(row) for row in rows])
  jax.tree.map(np.testing.assert_array_equal, trainer.state, state)
