"""One evaluation, as the command asks for it."""

import dataclasses
import json

import pytest

from agentflow_jax.training import config as config_lib
from agentflow_jax.training import single
from tests.training import mini


def test_limits_count_tasks_and_may_exceed_the_configs(tmp_path):
  config = mini.config(tmp_path / 'in')
  planner = config.planner.directory
  # The config says 3 of the 8 tasks.
  for limit, items in ((None, 3), (5, 5), (0, 8)):
    options = single.EvaluateOptions(planner=planner, limit=limit, greedy=True)
    line = single.evaluate(config, str(tmp_path / 'out'), options)
    assert f'of {items} tasks' in line
    result = json.loads(
        (tmp_path / 'out' / 'evaluations' / 'evaluation.json').read_text()
    )
    assert result['items_requested'] == items


@pytest.mark.parametrize(
    'changes, message',
    [
        ({'limit': -1}, '--limit must be >= 0'),
        ({'greedy': True, 'trials': 2}, 'greedy trials'),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path, changes, message):
  options = dataclasses.replace(single.EvaluateOptions(), **changes)
  with pytest.raises(config_lib.ConfigError, match=message):
    single.evaluate(mini.config(tmp_path), str(tmp_path), options)
