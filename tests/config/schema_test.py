import dataclasses

import pytest

from agentflow_jax.config import consistency, loading
from agentflow_jax.config import overrides as overrides_lib, schema
from tests.config import mini

_CONFIG = schema.Config(name='x')


def _set(name, value):
  return overrides_lib.override(_CONFIG, [(name, value)])


def test_overrides_parse_by_the_field_s_type():
  assert _set('seed', '7').seed == 7
  assert _set('train.max_logprob_gap', '1e-3').train.max_logprob_gap == 1e-3
  assert _set('evaluation.controls', 'false').evaluation.controls is False
  assert _set('batch.shorter_rows', '8,16').batch.shorter_rows == (8, 16)
  assert _set('agent.tools.enabled', 'python').agent.tools.enabled == ('python',)
  assert _set('optimizer.max_grad_norm', 'none').optimizer.max_grad_norm is None
  assert _set('optimizer.max_grad_norm', '0.5').optimizer.max_grad_norm == 0.5
  templates = _set('agent.executor_templates', '{"search": "{context}"}')
  assert templates.agent.executor_templates == {'search': '{context}'}


def test_fields_that_belong_together_may_come_in_any_order():
  pairs = [('optimizer.schedule', 'cosine'), ('optimizer.total_steps', '9')]
  for overrides in (pairs, pairs[::-1]):
    config = overrides_lib.override(_CONFIG, overrides)
    assert config.optimizer.total_steps == 9
  with pytest.raises(schema.ConfigError, match='optimizer.schedule=cosin'):
    overrides_lib.override(_CONFIG, pairs[:1])


def test_of_the_same_field_the_last_value_counts():
  config = overrides_lib.override(_CONFIG, [('seed', '1'), ('seed', '2')])
  assert config.seed == 2


def test_an_override_leaves_everything_else():
  before = overrides_lib.flatten(_CONFIG)
  after = overrides_lib.flatten(_set('train.group_size', '4'))
  assert {k for k in before if before[k] != after[k]} == {'train.group_size'}


@pytest.mark.parametrize(
  'name, value, message',
  [
    ('trian.steps', '1', 'did you mean --config.train.steps?'),
    ('train.setps', '1', 'did you mean --config.train.steps'),
    ('train', '1', 'name one of its fields'),
    ('seed.x', '1', 'has no fields'),
    ('train.steps', 'many', 'is not a int'),
    ('train.steps', '0', 'must be at least 1'),
    ('batch.block', '0', 'must be at least 1'),
    ('batch.tokens_per_row', '-1', 'must be at least 1'),
    ('train.mini_batches', '5', 'must divide'),
    ('evaluation.controls', 'yes', 'true or false'),
    ('algorithm', 'ppo', 'must be one of'),
    ('planner.sampling.top_p', '0', 'top_p must lie in'),
    ('planner.sampling.stop_after', 'end', "must be one of ['', 'plan', 'code']"),
    ('flow_grpo.importance_cap', '2', "needs old_logprobs='recompute'"),
    ('flow_grpo.rejection_high', '2', "needs old_logprobs='recompute'"),
    ('flow_grpo.importance_level', 'rollout', 'only with an importance_cap'),
    ('flow_grpo.rejection_level', 'sequence', 'only with rejection_low'),
    ('flow_grpo.surrogate', 'ppo', 'must be one of'),
    ('agent.executor_templates', '[1]', 'JSON object'),
    ('agent.executor_templates', 'x', 'is not JSON'),
    ('teacher.wrong_what', '1.5', 'must be a probability'),
  ],
)
def test_bad_overrides_name_the_field_and_the_remedy(name, value, message):
  with pytest.raises(schema.ConfigError, match='(?s).*') as error:
    _set(name, value)
  assert message in str(error.value)


def test_a_config_file_of_the_user_s_own(tmp_path):
  path = tmp_path / 'mine.py'
  path.write_text(
    'from agentflow_jax.config import schema as c\n'
    'def get_config():\n'
    "  return c.Config(name='mine', seed=3)\n"
  )
  config = loading.load(str(path), [('seed', '4'), ('train.steps', '9')])
  assert (config.name, config.seed, config.train.steps) == ('mine', 4, 9)


@pytest.mark.parametrize(
  'text, message',
  [
    (None, 'no file'),
    ('x = 1\n', 'has no get_config'),
    ('def get_config():\n  return 1\n', 'get_config() returned int'),
  ],
)
def test_a_broken_config_file_is_named(tmp_path, text, message):
  path = tmp_path / 'mine.py'
  if text is not None:
    path.write_text(text)
  with pytest.raises(schema.ConfigError) as error:
    loading.load(str(path))
  assert message in str(error.value) and 'mine.py' in str(error.value)


def test_overrides_are_taken_out_of_the_command_line():
  others, overrides = overrides_lib.split_overrides(
    ['prog', '--config=a.py', '--config.a.b=c=d', '-config.e=', '--x']
  )
  assert others == ['prog', '--config=a.py', '--x']
  assert overrides == [('a.b', 'c=d'), ('e', '')]
  with pytest.raises(schema.ConfigError, match='write --config.a=VALUE'):
    overrides_lib.split_overrides(['--config.a', '3'])


def test_every_field_of_every_config_can_be_flattened_and_is_frozen():
  flat = overrides_lib.flatten(_CONFIG)
  assert 'planner.sampling.temperature' in flat
  assert not any(dataclasses.is_dataclass(v) for v in flat.values())
  with pytest.raises(dataclasses.FrozenInstanceError):
    _CONFIG.train.steps = 3


def test_defaults_are_what_a_config_has_that_sets_nothing():
  plain = schema.Config(name='x')
  flat = overrides_lib.flatten(plain)
  assert overrides_lib.defaults(plain) == {k: v for k, v in flat.items() if k != 'name'}
  # Also where this config sets something, and below a part that it adds.
  found = overrides_lib.defaults(_set('train.group_size', '4'))
  assert found['train.group_size'] == flat['train.group_size'] == 8


_QUEUE = [
  ('queue.size', '8'),
  ('flow_grpo.old_logprobs', 'recompute'),
  ('flow_grpo.rejection_high', '2'),
]


def _checked(pairs):
  config = loading.load(str(mini.ROOT / 'experiments' / 'quickstart.py'), pairs)
  consistency.check(config)
  return config


@pytest.mark.parametrize(
  'pairs, message',
  [
    (_QUEUE[:1], 'set flow_grpo.old_logprobs=recompute'),
    (_QUEUE[:2], 'set a correction'),
    (_QUEUE + [('train.rollout_records', 'none')], 'train.rollout_records=all'),
    (_QUEUE + [('train.refill_rounds', '1')], 'set one of them to 0'),
    (_QUEUE + [('queue.share', '0.01')], 'less than one of'),
    ([('queue.uses', '2')], 'queue is set, and nothing'),
    (_QUEUE + [('queue.uses', '0')], 'queue.uses must be at least 1'),
    (_QUEUE + [('queue.share', '1.5')], 'queue.share must be'),
    (_QUEUE + [('queue.max_gap', 'nan')], 'queue.max_gap must be finite'),
    (
      _QUEUE + [('queue.reward_low', '0.6'), ('queue.reward_high', '0.5')],
      'must not be above',
    ),
  ],
)
def test_a_queue_that_could_not_work_is_refused(pairs, message):
  with pytest.raises(schema.ConfigError, match=message):
    _checked(pairs)


def test_a_queue_with_all_that_it_needs_is_taken():
  assert _checked(_QUEUE).queue.size == 8


@pytest.mark.parametrize(
  'kind, plan_format, has_scripts',
  [
    ('geohop', 'fields', True),
    ('desk', 'code', True),
    ('jsonl', 'fields', False),
    ('desk', 'tool_calls', False),
    ('geohop', 'tool_calls', False),
  ],
)
def test_scripts_need_tasks_with_solutions_and_write_plans(
  kind, plan_format, has_scripts
):
  config = dataclasses.replace(
    _CONFIG,
    task_set=schema.TaskSetConfig(kind=kind),
    agent=schema.AgentConfig(plan_format=plan_format),
  )
  assert config.has_scripts == has_scripts
  assert config.task_set.has_solutions == (kind != 'jsonl')
