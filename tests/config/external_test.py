"""What a run whose planner is sampled by servers needs, and would ignore."""

import pytest

from agentflow_jax.config import consistency, loading, schema, unread
from tests.config import mini

_QUICKSTART = str(mini.ROOT / 'experiments' / 'quickstart.py')
_SERVED = [
  ('planner.sampler', 'external'),
  ('planner.external.servers', 'http://127.0.0.1:8000,http://127.0.0.1:8001'),
  ('flow_grpo.old_logprobs', 'recompute'),
  ('flow_grpo.importance_cap', '2'),
]


def _check(pairs):
  config = loading.load(_QUICKSTART, pairs)
  consistency.check(config)
  unread.check_flags(config, [name for name, _ in pairs])
  return config


def test_a_run_with_servers_is_possible():
  config = _check(_SERVED + [('planner.external.api', 'sglang')])
  assert len(config.planner.external.servers) == 2
  consistency.check_trains(config)
  # Sets of truncating requests are recorded in any case.
  _check(_SERVED + [('planner.sampling.top_p', '0.9'), ('engine.max_kept', '8')])
  # A frozen module has an engine here.
  frozen = [('agent.verifier.backend', 'frozen'), ('engine.slots', '4')]
  _check(_SERVED + frozen + [('agent.verifier.sampling.max_new_tokens', '16')])


@pytest.mark.parametrize(
  'changes, said',
  [
    ([('planner.external.servers', '')], 'planner.external.servers'),
    ([('flow_grpo.old_logprobs', 'behavior')], 'recompute'),
    ([('flow_grpo.importance_cap', 'none')], 'correction'),
    ([('algorithm', 'none')], 'algorithm=none'),
    ([('planner.external.hand_over', 'adapter')], 'lora.rank'),
    (
      [('planner.external.hand_over', 'adapter'), ('planner.lora.rank', '4')],
      'planner.external.model',
    ),
    ([('engine.slots', '4')], 'engine.slots'),
    ([('engine.lanes', '2')], 'engine.lanes'),
    ([('mesh.sampler_devices', '-1')], 'sampler_devices'),
    ([('train.max_logprob_gap', '1')], 'train.max_logprob_gap'),
    ([('planner.backend', 'endpoint')], 'planner.backend=engine'),
  ],
)
def test_what_cannot_work_or_would_be_ignored_is_refused(changes, said):
  pairs = dict(_SERVED) | dict(changes)
  with pytest.raises(schema.ConfigError, match=said):
    _check(list(pairs.items()))


@pytest.mark.parametrize(
  'name, value',
  [
    ('servers', 'ftp://x'),
    ('servers', 'http://user:secret@x'),
    ('servers', 'http://x,http://x'),
    ('probes', '0'),
    ('timeout_seconds', '0'),
    ('concurrency', '0'),
  ],
)
def test_values_that_are_none_are_refused(name, value):
  pairs = dict(_SERVED) | {f'planner.external.{name}': value}
  with pytest.raises(schema.ConfigError, match='planner.external') as error:
    _check(list(pairs.items()))
  assert 'secret' not in str(error.value)


def test_servers_without_the_sampler_would_be_ignored():
  with pytest.raises(schema.ConfigError, match='planner.external'):
    _check([('planner.external.servers', 'http://127.0.0.1:8000')])
