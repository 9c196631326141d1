"""Settings that have no place around another agent than our four modules."""

import dataclasses

import pytest

from agentflow_jax.config import consistency, overrides, schema, unread

_BASE = schema.Config(
  name='calls',
  task_set=schema.TaskSetConfig(kind='jsonl', train='a', evaluation='b'),
  agent=schema.AgentConfig(plan_format='tool_calls'),
  engine=schema.EngineConfig(max_new_tokens=256),
  batch=schema.BatchConfig(tokens_per_row=512),
)


def _changed(*pairs):
  return overrides.override(_BASE, pairs)


def test_a_run_of_one_model_is_possible():
  consistency.check(_BASE)
  consistency.check_trains(_BASE)
  consistency.check(
    _changed(
      ('planner.backend', 'endpoint'),
      ('agent.endpoint.base_url', 'http://x/v1'),
      ('agent.endpoint.model', 'm'),
    )
  )
  consistency.check(
    _changed(('agent.analyst.backend', 'frozen'), ('planner.prompt.system', 'Be kind.'))
  )
  desk = dataclasses.replace(
    _BASE,
    task_set=schema.TaskSetConfig(kind='desk'),
    agent=dataclasses.replace(
      _BASE.agent, environment=schema.EnvironmentConfig(kind='desk')
    ),
  )
  consistency.check(desk)


@pytest.mark.parametrize(
  'name, value',
  [
    ('agent.executor.backend', 'frozen'),
    ('agent.executor.own', 'x.py:y'),
    ('agent.verifier.backend', 'world'),
    ('agent.generator.backend', 'frozen'),
    ('agent.executor_templates', '{"search": "{context}"}'),
    ('agent.verbs', 'find,say'),
    ('agent.number_mentions', 'true'),
    ('agent.unknown_tool', 'tell'),
    ('agent.rollout.verdict_tokens', '9'),
    ('agent.rollout.answer_when_out_of_turns', 'false'),
    ('planner.prompt.tail', 'Now.'),
    ('planner.prompt.cards', 'names'),
  ],
)
def test_what_plans_alone_read_is_refused(name, value):
  config = _changed(
    *(
      (
        ('agent.environment.kind', 'desk'),
        ('task_set.kind', 'desk'),
        ('task_set.train', ''),
        ('task_set.evaluation', ''),
      )
      if value == 'world'
      else ()
    ),
    (name, value),
  )
  with pytest.raises(schema.ConfigError, match='is set, and nothing reads it') as e:
    consistency.check(config)
  assert str(e.value).split()[0] in name  # It or the module that it is of.
  # A flag is meant, also at the value that stands there anyway.
  with pytest.raises(schema.ConfigError, match='nothing would read it'):
    unread.check_flags(_BASE, [name])


@pytest.mark.parametrize(
  'pairs, remedy',
  [
    ((('agent.code.sandbox', 'monty'),), 'agent.plan_format=code'),
    ((('planner.sampling.stop_after', 'plan'),), 'leave it empty'),
    (
      (
        ('planner.backend', 'endpoint'),
        ('agent.endpoint.api', 'completions'),
        ('agent.endpoint.base_url', 'http://x/v1'),
        ('agent.endpoint.model', 'm'),
      ),
      'agent.endpoint.api=chat',
    ),
    ((('algorithm', 'sft'),), 'set sft.rollouts'),
  ],
)
def test_what_cannot_work_names_the_remedy(pairs, remedy):
  with pytest.raises(schema.ConfigError, match=remedy):
    consistency.check(_changed(*pairs))


_SERVED = dataclasses.replace(_BASE, agent=schema.AgentConfig(kind='served'))


@pytest.mark.parametrize(
  'pairs, named',
  [
    ((('planner.backend', 'endpoint'),), 'planner.backend=engine'),
    ((('agent.code.sandbox', 'monty'),), 'agent.code.sandbox'),
    ((('algorithm', 'sft'),), 'sft.rollouts'),
    ((('agent.plan_format', 'tool_calls'),), 'agent.plan_format'),
    ((('agent.tools.enabled', 'python'),), 'agent.tools'),
    ((('agent.verbs', 'a,b'),), 'agent.verbs'),
    ((('agent.analyst.backend', 'frozen'),), 'agent.analyst'),
    ((('agent.rollout.entry_tokens', '7'),), 'agent.rollout.entry_tokens'),
    ((('planner.prompt.system', 'Be kind.'),), 'planner.prompt'),
    ((('agent.served.cpu_seconds', '7'),), 'agent.served.cpu_seconds'),
  ],
)
def test_what_an_agent_that_is_not_ours_does_not_read_is_refused(pairs, named):
  with pytest.raises(schema.ConfigError, match=named):
    consistency.check(overrides.override(_SERVED, pairs))


def test_an_agent_that_is_not_ours_is_possible():
  changed = (
    ('agent.served.command', 'a b'),
    ('agent.served.cpu_seconds', '7'),
    ('agent.served.frozen', 'true'),
    ('agent.rollout.answer_when_out_of_turns', 'false'),
    ('agent.rollout.max_turns', '9'),
  )
  good = overrides.override(_SERVED, changed)
  consistency.check(good)
  consistency.check_trains(good)
  unread.check_flags(good, [name for name, _ in changed])
  for name in ('agent.tools.python_seconds', 'planner.prompt.tail', 'agent.verbs'):
    with pytest.raises(schema.ConfigError, match=name):
      unread.check_flags(good, [name])
  with pytest.raises(schema.ConfigError, match='agent.served.frozen'):
    unread.check_flags(_BASE, ['agent.served.frozen'])
  with pytest.raises(schema.ConfigError, match='agent.served is set'):
    served = schema.ServedConfig(frozen=True)
    consistency.check(
      dataclasses.replace(_BASE, agent=schema.AgentConfig(served=served))
    )
  with pytest.raises(schema.ConfigError, match='agent.served.port'):
    schema.ServedConfig(port=70000)


def test_rows_of_the_engine_hold_a_prompt_and_a_response():
  base = overrides.override(
    schema.Config(
      name='plans',
      task_set=schema.TaskSetConfig(kind='jsonl', train='a', evaluation='b'),
    ),
    [('engine.max_new_tokens', '256'), ('batch.tokens_per_row', '512')],
  )
  longest = base.planner.max_prompt_tokens + base.planner.sampling.max_new_tokens
  enough = overrides.override(base, [('engine.row_tokens', str(longest))])
  consistency.check(enough)
  short = overrides.override(base, [('engine.row_tokens', str(longest - 1))])
  with pytest.raises(schema.ConfigError, match=f'row_tokens {longest - 1} cannot hold'):
    consistency.check(short)
