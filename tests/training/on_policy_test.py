"""Contract 1: the trainer scores what was sampled as the sampler did."""

import asyncio
import dataclasses

import jax
import numpy as np
import pytest
from etils import epath

from agentflow_jax import records
from agentflow_jax.assembly import local_model, system as system_lib
from agentflow_jax.config import loading, overrides
from agentflow_jax.core import batch, sharding, update
from agentflow_jax.inference import api, engine
from agentflow_jax.rollouts import collect, rollout_files
from agentflow_jax.runtime import exits, processes
from agentflow_jax.training import trainer as trainer_lib, turn_rows
from tests.config import mini


@pytest.fixture(scope='module')
def live(tmp_path_factory):
  """Live rollouts of the shipped planner, and a function that makes trainers."""
  directory = tmp_path_factory.mktemp('on_policy')
  config = mini.config(directory)
  system = system_lib.build(
    config, epath.Path(directory), local_model.make_mesh(config)
  )

  async def collected():
    return await collect.groups(
      system.agent,
      system.tasks.train,
      group_size=4,
      key=records.RequestKey(0, records.Purpose.TRAIN, 0, '', 0),
      limit=asyncio.Semaphore(64),
      processes=system.processes,
    )

  groups = asyncio.run(collected())
  rows = turn_rows.flow_grpo_rows(groups, config.flow_grpo).rows
  trainer = trainer_lib.Trainer(system)
  yield system, rows, trainer, trainer.state
  asyncio.run(system.close())


@pytest.fixture(scope='module')
def truncated(tmp_path_factory):
  """As `live`, of a planner that truncates: what rolls out, and a trainer."""
  directory = tmp_path_factory.mktemp('truncated')
  config = overrides.override(
    mini.config(directory),
    [('planner.sampling.top_p', '0.9'), ('engine.max_kept', '8')],
  )
  system = system_lib.build(
    config, epath.Path(directory), local_model.make_mesh(config)
  )
  system.warmup()
  trainer = trainer_lib.Trainer(system)
  yield system, trainer, trainer.state
  asyncio.run(system.close())


def _truncated_rows(system, **sampling):
  """Rollouts of the planner, sampled so, as they are read from a journal."""
  planner = system.agent.planner
  spec = dataclasses.replace(planner.sampling, **sampling)
  planner = dataclasses.replace(planner, sampling=spec)
  groups = asyncio.run(
    collect.groups(
      dataclasses.replace(system.agent, planner=planner),
      system.tasks.train,
      group_size=4,
      key=records.RequestKey(0, records.Purpose.TRAIN, 0, '', 0),
      limit=asyncio.Semaphore(64),
      processes=processes.Processes(),  # One an event loop.,
    )
  )
  data = rollout_files.to_bytes(groups)
  assert rollout_files.from_bytes(data, 'journal') == groups
  return turn_rows.flow_grpo_rows(
    rollout_files.from_bytes(data, 'journal'), system.config.flow_grpo
  ).rows


def test_the_engine_knows_of_the_rollouts_at_work(live):
  system, *_ = live
  assert system.agent.at_work == system.model.samplers['planner'].calling


@pytest.mark.slow
@pytest.mark.parametrize(
  'spec, most',
  [
    ({'top_p': 0.9}, None),
    ({'top_p': 1.0, 'top_k': 5}, 5),
    ({'top_p': 1.0, 'min_p': 0.05}, None),
    # So much mass takes more than max_kept.
    ({'top_p': 0.99999, 'temperature': 3.0}, 8),
  ],
)
def test_truncated_rollouts_are_on_policy_within_1e_5(truncated, spec, most):
  system, trainer, state = truncated
  compiled = system.model.engine.compilations
  rows = _truncated_rows(system, **spec)
  assert system.model.engine.compilations == compiled
  sizes = np.concatenate([(row.kept >= 0).sum(axis=1) for row in rows])
  assert sizes.max() == most if most else 1 < sizes.max() < 8
  metrics = _step((system, rows, trainer, state), rows)
  assert metrics['update/logprob_gap/max'] <= 1e-5
  # One mini-batch: the policy is the one that sampled.
  for name in ('ratio_mean', 'ratio_min', 'ratio_max'):
    assert abs(metrics[f'update/{name}'] - 1) <= 1e-5
  assert metrics['update/n_targets'] == sum(len(r.response_ids) for r in rows)


@pytest.mark.slow
def test_a_trainer_that_ignores_the_sets_is_stopped(truncated):
  system, trainer, state = truncated
  rows = _truncated_rows(system)
  ignorant = [dataclasses.replace(row, kept=None) for row in rows]
  with pytest.raises(exits.RunStopped, match='scores the sampled tokens'):
    _step((system, rows, trainer, state), ignorant)


@pytest.mark.slow
def test_sets_that_lack_an_id_are_caught(truncated):
  system, trainer, state = truncated
  rows = _truncated_rows(system)

  def narrower(row):
    kept = np.full_like(row.kept, -1)
    for to, ids, token in zip(kept, row.kept, row.response_ids, strict=True):
      others = ids[(ids >= 0) & (ids != token)][:-1]
      to[: len(others) + 1] = [token, *others]
    return dataclasses.replace(row, kept=kept)

  with pytest.raises(exits.RunStopped, match='scores the sampled tokens'):
    _step((system, rows, trainer, state), [narrower(row) for row in rows])


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


def test_shapes_of_the_main_job_are_on_policy_within_the_bound(live):
  # Prompts of every length that the main job has, in its buckets and its
  # packed rows, on the one device of a laptop.
  config = loading.load(str(mini.ROOT / 'experiments' / 'quickstart.py'))
  system, live_rows, _, _ = live
  ids = np.concatenate([row.prompt_ids for row in live_rows])
  rng = np.random.default_rng(0)
  n_prompts = 2 * config.engine.slots
  longest = config.planner.max_prompt_tokens
  lengths = np.linspace(20, longest, n_prompts).astype(int)
  starts = rng.integers(0, len(ids) - longest, n_prompts)
  requests = [
    api.Request(
      prompt_ids=tuple(ids[start : start + length].tolist()),
      key_words=(i, 7),
      sampling=records.SamplingSpec(
        max_new_tokens=config.planner.sampling.max_new_tokens
      ),
    )
    for i, (start, length) in enumerate(zip(starts, lengths, strict=True))
  ]
  sampler = engine.Engine(system.model.config, config.engine, system.model.params)

  async def sample():
    return await asyncio.gather(*map(sampler.generate, requests))

  try:
    results = asyncio.run(sample())
  finally:
    sampler.close()
  packed, packing = batch.pack(
    [
      batch.TurnRow(
        prompt_ids=np.array(request.prompt_ids),
        response_ids=np.array(result.response_ids),
        target_weight=1.0,
        behavior_logprobs=np.array(result.logprobs, np.float32),
      )
      for request, result in zip(requests, results, strict=True)
    ],
    tokens_per_row=config.batch.tokens_per_row,
    rows_per_micro=config.batch.rows_per_micro,
    block=config.batch.block,
  )
  one_device = sharding.make_mesh(devices=jax.devices()[:1])
  score = update.make_score_fn(system.model.config, one_device)
  scored = batch.unpack(packing, score(jax.device_get(system.model.params), packed))
  recorded = batch.unpack(packing, packed.behavior_logprobs)
  assert packing.n_targets > 1000
  # The same bits on some CPUs; on an AMD EPYC up to 2e-6 apart.
  np.testing.assert_allclose(
    np.concatenate(scored),
    np.concatenate(recorded),
    rtol=0,
    atol=config.train.max_logprob_gap,
  )
  assert config.train.max_logprob_gap == 1e-5


def test_the_bound_is_what_stops_the_run(live):
  _, rows, trainer, _ = live
  old = trainer.bounds
  trainer.bounds = dataclasses.replace(old, max=1e-12)
  try:
    with pytest.raises(exits.RunStopped, match='max_logprob_gap'):
      _step(live, rows)
  finally:
    trainer.bounds = old


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
  with pytest.raises(exits.RunStopped, match='scores the sampled tokens'):
    _step(live, [mutation(row) for row in rows])


def test_a_stale_parameter_version_is_caught(live):
  _, rows, trainer, _ = live
  _step(live, rows)
  newer = jax.tree.map(lambda x: x.copy(), trainer.state.params)
  with pytest.raises(exits.RunStopped, match='scores the sampled tokens'):
    _step(live, rows, params=newer)


def test_a_refused_update_leaves_the_state(live):
  _, rows, trainer, state = live
  with pytest.raises(exits.RunStopped):
    _step(live, [_temperature(row) for row in rows])
  jax.tree.map(np.testing.assert_array_equal, trainer.state, state)
