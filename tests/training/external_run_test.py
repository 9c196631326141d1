"""Runs whose planner is sampled by a server that has the real network."""

import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from agentflow_jax.assembly import model_files, system as system_lib
from agentflow_jax.config import schema
from agentflow_jax.core import model
from agentflow_jax.runtime import exits
from agentflow_jax.training import resuming, run
from tests.config import mini
from tests.external import fake_server

_PLANNER = mini.ROOT / 'experiments' / 'geohop_planner'
_LENGTH = 192


class Network:
  """The served network: logits from whatever directory was loaded last."""

  def __init__(self):
    self._forward = {}
    self.load(_PLANNER)

  def load(self, path):
    loaded = model_files.load(str(path))
    self._params, self._config = loaded.params, loaded.config

  def logits(self, ids):
    config = self._config
    if config not in self._forward:
      positions = jnp.arange(_LENGTH)[None]

      @jax.jit
      def forward(params, ids, count):
        ends = jnp.where(positions < count, count, 0)
        return model.forward(config, params, ids, positions, ends)[0]

      self._forward[config] = forward
    padded = np.zeros((1, _LENGTH), np.int32)
    padded[0, : len(ids)] = ids
    found = self._forward[config](self._params, padded, len(ids))
    return np.asarray(found, np.float64)[: len(ids)]


class Dying(fake_server.FakeServer):
  """Closes every connection after some responses."""

  def __init__(self, policy, responses):
    super().__init__(policy)
    self._left = responses

  def _sampled(self, prompt, body):
    self._left -= 1
    if self._left < 0:
      self.faults.add('dead')
    return super()._sampled(prompt, body)


def _config(directory, *servers, learning_rate=3e-3, **train):
  base = mini.config(directory, **dict(steps=2, checkpoint_every=1) | train)
  return dataclasses.replace(
    base,
    planner=dataclasses.replace(
      base.planner,
      sampler='external',
      external=schema.ExternalConfig(
        servers=tuple(s.url for s in servers), patience_seconds=1.0, probes=4
      ),
    ),
    flow_grpo=dataclasses.replace(
      base.flow_grpo, old_logprobs='recompute', importance_cap=2.0
    ),
    optimizer=dataclasses.replace(base.optimizer, learning_rate=learning_rate),
    evaluation=schema.EvaluationConfig(every=0, start_and_final=False, controls=False),
  )


def _lines(workdir):
  path = pathlib.Path(workdir) / 'metrics.jsonl'
  return [json.loads(line) for line in path.read_text().splitlines()]


def test_commands_that_do_not_train_say_what_to_do(tmp_path):
  with fake_server.FakeServer(fake_server.Table(np.zeros((4, 4)))) as server:
    config = _config(tmp_path, server)
    with pytest.raises(schema.ConfigError, match='planner.sampler=engine'):
      system_lib.build(config, epath.Path(tmp_path))
    assert not server.requests


def test_a_run_may_go_on_with_other_servers(tmp_path):
  with fake_server.FakeServer(fake_server.Table(np.zeros((4, 4)))) as server:
    config = _config(tmp_path, server)
  change = resuming.Change('planner.external.servers', ['http://a'], ['http://b'])
  assert change.is_allowed(config)
  change = resuming.Change('planner.sampler', 'engine', 'external')
  assert not change.is_allowed(config)


@pytest.mark.slow
def test_steps_are_sampled_by_a_server_that_gets_the_weights(tmp_path):
  with fake_server.FakeServer(Network()) as server:
    config = _config(tmp_path / 'in', server)
    run.train(config, str(tmp_path / 'run'), quiet=True)
    lines = _lines(tmp_path / 'run')
    for line in lines:
      assert line['update/logprob_gap/max'] < 1e-5
      assert line['external/servers'] == 1 and line['external/probe_gap'] < 1e-5
    assert any(line['external/told_apart'] for line in lines)
    assert not any(name.startswith('rate/rollout/') for name in lines[0])
    # Before the first step, and after every one.
    assert server.paths().count('/collective_rpc') == 1 + 2 + 1
    served = model_files.load(server.loaded)
    trained = model_files.load(str(tmp_path / 'run' / 'planner'))
    np.testing.assert_array_equal(
      served.params['embedding'], trained.params['embedding']
    )
    # The head stands apart, for servers that keep a copy of a tied one.
    np.testing.assert_array_equal(served.params['head'], trained.params['embedding'].T)


@pytest.mark.slow
def test_a_reload_that_did_not_happen_stops_the_run(tmp_path):
  class Once(fake_server.FakeServer):
    def _load(self, path, answer):
      if self.loaded:
        self.faults.add('old_weights')
      return super()._load(path, answer)

  with Once(Network()) as server:
    config = _config(tmp_path / 'in', server)
    with pytest.raises(exits.RunStopped, match='weights before'):
      run.train(config, str(tmp_path / 'run'), quiet=True)
    # A step without two different rewards changes nothing, and passes.
    path = tmp_path / 'run' / 'metrics.jsonl'
    assert not path.exists() or len(_lines(tmp_path / 'run')) < 2


@pytest.mark.slow
def test_the_last_server_that_dies_ends_rollouts_in_infrastructure(tmp_path):
  with Dying(Network(), 8) as server:
    config = _config(tmp_path / 'in', server)
    with pytest.raises(exits.RunStopped, match='could be scored'):
      run.train(config, str(tmp_path / 'run'), quiet=True)


@pytest.mark.slow
def test_log_probabilities_of_another_temperature_are_found_at_start(tmp_path):
  with fake_server.FakeServer(Network()) as server:
    server.faults = {'raw_logprobs'}
    config = _config(tmp_path / 'in', server)
    sampling = dataclasses.replace(config.planner.sampling, temperature=0.5)
    config = dataclasses.replace(
      config, planner=dataclasses.replace(config.planner, sampling=sampling)
    )
    with pytest.raises(schema.ConfigError, match='processed_logprobs'):
      run.train(config, str(tmp_path / 'run'), quiet=True)
