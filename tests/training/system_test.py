"""What cannot work, or would be ignored, is an error at start."""

import dataclasses

import pytest

from agentflow_jax.training import config as config_lib
from agentflow_jax.training import system
from tests.training import mini

_BASE = config_lib.load(str(mini.ROOT / 'experiments' / 'quickstart.py'))


def test_the_shipped_configs_pass():
  system.check(_BASE)
  warm = mini.ROOT / 'experiments' / 'geohop_warm_start.py'
  system.check(config_lib.load(str(warm)))


@pytest.mark.parametrize(
    'overrides, message',
    [
        ({'planner.sampling.top_p': '0.9'}, 'must be off'),
        ({'planner.sampling.temperature': '0'}, 'greedy responses'),
        ({'train.group_size': '1'}, 'no advantage'),
        ({'batch.tokens_per_row': '64'}, 'cannot hold'),
        ({'planner.max_prompt_tokens': '225'}, 'exceeds the largest'),
        ({'planner.sampling.max_new_tokens': '33'}, 'engine.max_new_tokens'),
        ({'agent.verifier.backend': 'frozen'}, 'agent.verifier.sampling'),
        ({'agent.verifier.backend': 'endpoint'}, 'set agent.endpoint.base_url'),
        ({'agent.verifier.backend': 'none'}, 'is not one of'),
        ({'agent.analyst.backend': 'rule'}, 'is not one of'),
        ({'agent.tools.enabled': 'search,generalist'}, 'a language model'),
        ({'agent.verbs': 'find'}, 'name two'),
        ({'agent.endpoint.base_url': 'http://x/v1'}, 'nothing in this config'),
        ({'task_set.train': 'x.jsonl'}, 'nothing in this config reads it'),
        ({'task_set.reward': 'f1'}, 'nothing in this config reads it'),
        (
            {'agent.executor_templates': '{"serch": "{context}"}'},
            "no tool ['serch']",
        ),
    ],
)
def test_what_cannot_work_or_is_not_read_is_refused(overrides, message):
  config = config_lib.override(_BASE, list(overrides.items()))
  with pytest.raises(config_lib.ConfigError) as error:
    system.check(config)
  assert message in str(error.value)


def test_a_warm_start_needs_the_teacher_s_tasks(tmp_path):
  config = dataclasses.replace(mini.config(tmp_path), algorithm='sft')
  with pytest.raises(config_lib.ConfigError, match='must be geohop'):
    system.check(config)
