"""A flag that nothing would read is an error, and no other is."""

import pytest

from agentflow_jax.config import loading, overrides, schema, unread
from tests.config import mini

_QUICKSTART = str(mini.ROOT / 'experiments' / 'quickstart.py')
_WARM = str(mini.ROOT / 'experiments' / 'geohop_warm_start.py')
_DESK_WARM = str(mini.ROOT / 'experiments' / 'desk_warm_start.py')


def _check(path, *pairs):
  config = loading.load(path, pairs)
  unread.check_flags(config, [name for name, _ in pairs])


@pytest.mark.parametrize(
  'path, pairs',
  [
    (_QUICKSTART, [('sft.traces', '5')]),
    (_QUICKSTART, [('teacher.wrong_what', '0.1')]),
    (_WARM, [('teacher.wrong_tool', '0.1')]),
    (_DESK_WARM, [('teacher.wrong_what', '0.1')]),
    (_QUICKSTART, [('agent.rollout.verify_seconds', '5')]),
    (_DESK_WARM, [('agent.executor_templates', '{"finish": "x"}')]),
    (_WARM, [('flow_grpo.kl_coef', '0')]),
    (_WARM, [('train.group_size', '4')]),
    (_WARM, [('queue.share', '0.2')]),
    (_WARM, [('train.max_logprob_gap', '1')]),
    (
      _QUICKSTART,
      [('agent.tools.search_results', '3'), ('agent.tools.enabled', 'python')],
    ),
    (
      _QUICKSTART,
      [('agent.tools.python_seconds', '3'), ('agent.tools.enabled', 'search')],
    ),
    *(
      (_QUICKSTART, [(name, value), ('algorithm', 'none')])
      for name, value in (
        ('optimizer.learning_rate', '1e-3'),
        ('batch.tokens_per_row', '256'),
        ('train.mini_batches', '2'),
        ('train.max_logprob_gap', '1'),
        ('planner.lora.rank', '4'),
        ('flow_grpo.kl_coef', '0'),
        ('queue.size', '4'),
        ('sft.traces', '5'),
      )
    ),
    (_QUICKSTART, [('agent.tools.search_candidates', '9')]),
    (
      _QUICKSTART,
      [('agent.mention_marks', 'after'), ('agent.number_mentions', 'false')],
    ),
    (_QUICKSTART, [('agent.tools.search_query_prefix', 'query: ')]),
    (
      _QUICKSTART,
      [
        ('agent.tools.search_embeddings.cache', 'x'),
        ('agent.tools.search_embeddings.base_url', 'http://a/v1'),
      ],
    ),
    (_QUICKSTART, [('agent.tools.generalist.backend', 'frozen')]),
    (_QUICKSTART, [('agent.verifier.sampling.temperature', '1')]),
    (
      _QUICKSTART,
      [
        ('agent.analyst.sampling.temperature', '1'),
        ('agent.analyst.backend', 'frozen'),
      ],
    ),
    (
      _QUICKSTART,
      [
        ('agent.executor_templates', '{"search": "{context}"}'),
        ('agent.executor.backend', 'frozen'),
      ],
    ),
    (_QUICKSTART, [('agent.endpoint.model', 'm')]),
    (_QUICKSTART, [('planner.vocab_size', '500')]),
    (_QUICKSTART, [('engine.max_kept', '64')]),
    (
      _QUICKSTART,
      [
        ('engine.max_kept', '64'),
        ('planner.backend', 'endpoint'),
        ('planner.sampling.top_p', '0.9'),
        ('agent.verifier.backend', 'frozen'),
      ],
    ),
    (_QUICKSTART, [('engine.slots', '32'), ('planner.backend', 'endpoint')]),
    (_QUICKSTART, [('planner.directory', 'd'), ('planner.backend', 'endpoint')]),
  ],
)
def test_an_idle_flag_is_named(path, pairs):
  with pytest.raises(schema.ConfigError) as caught:
    _check(path, *pairs)
  assert f'--config.{pairs[0][0]}: nothing would read it' in str(caught.value)


@pytest.mark.parametrize(
  'path, pairs',
  [
    (_WARM, [('sft.traces', '5'), ('teacher.wrong_what', '0.1')]),
    (
      _DESK_WARM,
      [('teacher.wrong_tool', '0.1'), ('agent.rollout.verify_seconds', '5')],
    ),
    (_WARM, [('planner.vocab_size', '500'), ('train.steps', '3')]),
    (_QUICKSTART, [('flow_grpo.kl_coef', '0'), ('train.group_size', '4')]),
    (_QUICKSTART, [('planner.sampling.min_p', '0.1'), ('engine.max_kept', '64')]),
    (
      _QUICKSTART,
      [
        ('planner.backend', 'endpoint'),
        ('agent.endpoint.model', 'm'),
        ('agent.endpoint.cache', 'c'),
        ('planner.sampling.top_p', '0.9'),
      ],
    ),
    (
      _QUICKSTART,
      [
        ('planner.backend', 'endpoint'),
        ('engine.slots', '32'),
        ('agent.verifier.backend', 'frozen'),
      ],
    ),
    (
      _QUICKSTART,
      [
        ('agent.verifier.backend', 'frozen'),
        ('agent.verifier.sampling.temperature', '1'),
      ],
    ),
    (
      _QUICKSTART,
      [
        ('agent.analyst.backend', 'frozen'),
        ('agent.analyst.sampling.max_new_tokens', '8'),
      ],
    ),
    (
      _QUICKSTART,
      [
        ('agent.generator.backend', 'endpoint'),
        ('agent.endpoint.preset', 'vllm'),
        ('agent.endpoint.model', 'm'),
      ],
    ),
  ],
)
def test_a_flag_that_is_read_passes(path, pairs):
  _check(path, *pairs)


def test_every_idle_name_is_a_field():
  for path in (_QUICKSTART, _WARM):
    config = loading.load(path)
    names = set(overrides.flatten(config))
    for prefix, _ in unread._unread(config):
      assert any(n == prefix or n.startswith(f'{prefix}.') for n in names)


def test_serving_reads_shapes_and_dtypes_alone():
  unread.check_serves(['engine.slots', 'planner.directory', 'planner.dtype'])
  for name in (
    'mesh.fsdp',
    'train.steps',
    'planner.sampling.top_p',
    'planner.remat',
    'engine.max_kept',
    'agent.recording',
  ):
    with pytest.raises(schema.ConfigError, match=f'--config.{name}: serving'):
      unread.check_serves([name])
  with pytest.raises(schema.ConfigError, match='beside --planner'):
    unread.check_serves(['planner.directory'], 'runs/mine/planner')
  names = overrides.flatten(loading.load(_QUICKSTART))
  for prefix in unread._SERVED:
    assert any(n == prefix or n.startswith(f'{prefix}.') for n in names)


@pytest.mark.parametrize(
  'name, value',
  [
    ('task_set.train', 'a.jsonl'),
    ('task_set.evaluation', 'a.jsonl'),
    ('task_set.reward_seconds', '7'),
    ('task_set.judge.model', 'm'),
    ('task_set.benchmark', 'nq'),
    ('task_set.mixture.natural_questions.path', 'a'),
    ('task_set.reward', 'exact_match'),
    ('task_set.columns', '{"query": "q"}'),
    ('task_set.tier', 'long'),
    ('task_set.distractors', '3'),
    ('agent.withheld_tools', 'search'),
    ('agent.environment.faults', '0.5'),
    ('agent.environment.judge.model', 'm'),
    ('agent.environment.seconds', '7'),
    ('agent.environment.concurrency', '7'),
    ('agent.environment.url', 'http://a'),
    ('agent.environment.capacity', '7'),
    ('agent.environment.total', 'true'),
    ('agent.environment.seeds', 'a'),
    ('agent.environment.servers', 'a=http://a'),
    ('agent.endpoint.base_url', 'http://a'),
    ('agent.endpoint.preset', 'openai'),
    ('agent.tools.own_seconds', '7'),
    ('agent.tools.own_concurrency', '7'),
    ('agent.served.frozen', 'true'),
    ('metrics.project', 'p'),
    ('metrics.trajectories_every', '7'),
    ('metrics.tracker_seconds', '7'),
    ('planner.thinking', 'off'),
    ('planner.external.model', 'm'),
  ],
)
def test_a_value_that_nothing_reads_is_refused_in_a_config_file_too(name, value):
  base = schema.Config(name='plain', task_set=schema.TaskSetConfig(kind='geohop'))
  unread.check_values(base)
  with pytest.raises(schema.ConfigError, match='is set, and nothing') as refused:
    unread.check_values(overrides.override(base, [(name, value)]))
  assert name.startswith(str(refused.value).partition(' ')[0])
