"""What cannot work, or would be ignored, is an error at start."""

import asyncio
import dataclasses

import jax
import pytest
from etils import epath

from agentflow_jax import records
from agentflow_jax.agents import rollout
from agentflow_jax.assembly import local_model, system as system_lib
from agentflow_jax.config import consistency, loading
from agentflow_jax.config import overrides as overrides_lib, schema
from agentflow_jax.core import sharding
from tests.assembly import pointers
from tests.config import mini

_BASE = loading.load(str(mini.ROOT / 'experiments' / 'quickstart.py'))


def test_the_shipped_configs_pass():
  consistency.check(_BASE)
  for name in ('geohop_warm_start', 'smollm2_geohop', 'tool_calls'):
    path = mini.ROOT / 'experiments' / f'{name}.py'
    consistency.check(loading.load(str(path)))


def test_the_endpoint_config_needs_only_to_be_told_where():
  config = loading.load(str(mini.ROOT / 'experiments' / 'endpoint.py'))
  with pytest.raises(schema.ConfigError, match='agent.endpoint.preset'):
    consistency.check(config)
  for preset in ('openai', 'vllm'):
    where = [
      ('agent.endpoint.preset', preset),
      ('agent.endpoint.model', 'm'),
      ('planner.sampling.temperature', '0'),  # Nothing is trained.
    ]
    consistency.check(overrides_lib.override(config, where))


@pytest.mark.parametrize(
  'overrides, message',
  [
    ({'planner.sampling.top_p': '0.9'}, 'set engine.max_kept'),
    ({'planner.sampling.min_p': '0.1'}, 'turn top_k, top_p and min_p off'),
    (
      {'planner.sampling.top_k': '9', 'engine.max_kept': '8'},
      'top_k 9 exceeds engine.max_kept, 8',
    ),
    ({'planner.sampling.temperature': '0'}, 'greedy responses'),
    ({'train.group_size': '1'}, 'no advantage'),
    ({'optimizer.kind': 'muon', 'planner.lora.rank': '4'}, 'works on whole matrices'),
    (
      {
        'planner.backend': 'endpoint',
        'planner.sampling.top_k': '5',
        'agent.endpoint.preset': 'openai',
        'agent.endpoint.model': 'm',
      },
      'planner.sampling: top_k and min_p',
    ),
    (
      {'agent.verifier.backend': 'endpoint', 'agent.endpoint.preset': 'openai'},
      'agent.endpoint: model must name',
    ),
    ({'batch.tokens_per_row': '64'}, 'cannot hold'),
    ({'planner.max_prompt_tokens': '225'}, 'exceeds engine.max_prompt_tokens'),
    (
      {
        'planner.backend': 'endpoint',
        'agent.endpoint.base_url': 'http://x',
        'planner.sampling.stop_after': 'plan',
      },
      'planner.sampling.stop_after: only',
    ),
    (
      {'agent.generator.sampling.stop_after': 'plan'},
      'agent.generator.sampling.stop_after: only',
    ),
    ({'planner.sampling.max_new_tokens': '33'}, 'engine.max_new_tokens'),
    ({'agent.verifier.backend': 'frozen'}, 'agent.verifier.sampling'),
    ({'agent.verifier.backend': 'endpoint'}, 'set agent.endpoint.base_url'),
    ({'agent.verifier.backend': 'none'}, 'is not one of'),
    ({'agent.analyst.backend': 'rule'}, 'is not one of'),
    ({'agent.tools.enabled': 'search,generalist'}, 'a language model'),
    ({'agent.verbs': 'find'}, 'name two'),
    ({'agent.endpoint.base_url': 'http://x/v1'}, 'nothing in this config'),
    (
      {'planner.thinking': 'on', 'planner.directory': ''},
      'planner.thinking is set, and nothing in this config reads it',
    ),
    (
      {
        'planner.thinking': 'off',
        'planner.backend': 'endpoint',
        'planner.directory': 'x',
        'agent.endpoint.base_url': 'http://x',
      },
      'planner.thinking is set, and nothing in this config reads it',
    ),
    ({'task_set.kind': 'desk'}, 'set agent.environment.kind=desk'),
    ({'agent.environment.kind': 'desk'}, 'set task_set.kind=desk'),
    ({'agent.verifier.backend': 'world'}, 'is for tasks in worlds'),
    ({'agent.analyst.backend': 'oracle'}, 'is for tasks in worlds'),
    (
      {'agent.plan_format': 'tool_calls'},
      'agent.executor_templates is set, and nothing reads it',
    ),
    ({'agent.plan_format': 'code'}, 'agent.code.sandbox=monty'),
    (
      {
        'agent.plan_format': 'code',
        'agent.code.sandbox': 'monty',
        'agent.verifier.backend': 'world',
        'agent.executor.backend': 'fields',
      },
      'leave agent.executor as it is',
    ),
    (
      {'agent.plan_format': 'code', 'agent.code.sandbox': 'monty'},
      'agent.verifier.backend=rule reads sub-goals',
    ),
    (
      {'agent.code.sandbox': 'bubblewrap', 'agent.rollout.max_turns': '13'},
      'set agent.rollout.max_turns=12',
    ),
    (
      {'reward.weights': '{"success": 1, "answer": 0.1}'},
      'reward.answer names the reward of the term answer',
    ),
    (
      {'reward.weights': '{"success": 1, "answer": 0.1}', 'reward.answer': 'checks'},
      'reads no answer',
    ),
    (
      {'reward.weights': '{"success": 1, "answer": 0.1}', 'reward.answer': 'judge'},
      'reward.answer=judge needs a language model',
    ),
    (
      {
        'reward.weights': '{"success": 1, "calls": -0.1}',
        'flow_grpo.terms': 'normalised',
        'flow_grpo.advantage_over': 'rows',
      },
      'leave flow_grpo.advantage_over',
    ),
    ({'planner.sampling.stop_after': 'code'}, 'it is plan, or empty'),
    ({'agent.code.sandbox': 'monty'}, 'nothing writes programs'),
    (
      {
        'agent.plan_format': 'code',
        'agent.code.sandbox': 'monty',
        'agent.verifier.backend': 'world',
      },
      'task_set.kind=geohop write no programs',
    ),
    ({'agent.generator.backend': 'world'}, 'is not one of'),
    ({'agent.verifier.backend': 'fields'}, 'is not one of'),
    ({'agent.executor.backend': 'oracle'}, 'is not one of'),
    ({'task_set.tier': 'plain'}, 'task_set.tier is set, and nothing'),
    (
      {'agent.environment.judge.preset': 'openai'},
      'agent.environment.judge is set, and nothing',
    ),
    ({'task_set.train': 'x.jsonl'}, 'nothing in this config reads it'),
    ({'task_set.reward': 'f1'}, 'nothing in this config reads it'),
    ({'agent.executor_templates': '{"serch": "{context}"}'}, "no tool ['serch']"),
  ],
)
def test_what_cannot_work_or_is_not_read_is_refused(overrides, message):
  config = overrides_lib.override(_BASE, list(overrides.items()))
  with pytest.raises(schema.ConfigError) as error:
    consistency.check(config)
  assert message in str(error.value)


def test_showing_the_plan_of_a_task_is_for_evaluations():
  config = overrides_lib.override(
    schema.load_config('experiments/desk_warm_start.py'),
    [('agent.analyst.backend', 'oracle')],
  )
  consistency.check(config)
  with pytest.raises(schema.ConfigError, match='for the command evaluate'):
    consistency.check_trains(config)


def test_truncation_is_taken_where_sets_are_recorded_or_nothing_needs_them():
  for name, value in (('top_k', '8'), ('top_p', '0.9'), ('min_p', '0.1')):
    consistency.check(
      overrides_lib.override(
        _BASE, [(f'planner.sampling.{name}', value), ('engine.max_kept', '8')]
      )
    )
  warm = loading.load(str(mini.ROOT / 'experiments' / 'geohop_warm_start.py'))
  # The teacher's turns are trained on; evaluation alone samples.
  consistency.check(overrides_lib.override(warm, [('planner.sampling.top_p', '0.9')]))


def test_more_ids_than_the_vocabulary_are_an_error_at_start(tmp_path):
  config = overrides_lib.override(
    mini.config(tmp_path),
    [('planner.sampling.top_p', '0.9'), ('engine.max_kept', '5000')],
  )
  with pytest.raises(schema.ConfigError, match='engine.max_kept 5000'):
    system_lib.build(config, epath.Path(tmp_path))


def test_a_warm_start_needs_tasks_that_can_teach(tmp_path):
  config = dataclasses.replace(mini.config(tmp_path), algorithm='sft')
  consistency.check(config)  # Rows may demonstrate plans.
  config = dataclasses.replace(
    config, task_set=schema.TaskSetConfig(kind='benchmark', evaluation='x')
  )
  with pytest.raises(schema.ConfigError, match='must be geohop, desk or jsonl'):
    consistency.check(config)


def test_an_endpoint_that_cannot_work_is_an_error_at_start(tmp_path, monkeypatch):
  monkeypatch.delenv('OPENAI_API_KEY', raising=False)
  base = mini.config(tmp_path)
  role = schema.ModuleConfig('endpoint')

  def build(**settings):
    config = dataclasses.replace(
      base,
      agent=dataclasses.replace(
        base.agent, generator=role, endpoint=schema.EndpointConfig(**settings)
      ),
    )
    system_lib.build(config, epath.Path(tmp_path))

  with pytest.raises(schema.ConfigError, match='OPENAI_API_KEY'):
    build(preset='openai', model='m')
  with pytest.raises(schema.ConfigError, match='preset must be one of'):
    build(preset='opnai', model='m')
  with pytest.raises(schema.ConfigError, match='model must name'):
    build(preset='vllm')
  with pytest.raises(schema.ConfigError, match='endpoint.preset'):
    build()


def test_a_frozen_module_runs_in_the_process_without_a_later_compilation(tmp_path):
  config = mini.config(tmp_path)
  frozen = schema.ModuleConfig(
    'frozen', schema.SamplingSpec(top_p=0.9, max_new_tokens=8)
  )
  config = dataclasses.replace(
    config,
    agent=dataclasses.replace(config.agent, generator=frozen),
    engine=dataclasses.replace(config.engine, max_prompt_tokens=224),
  )

  async def run():
    system = system_lib.build(config, epath.Path(tmp_path))
    try:
      system.warmup()
      engines = system.model.engine, system.model.frozen_engine
      # Nothing is trained: the parameters are held once for all.
      held = [pointers.of(t.params) for t in (system.model, *engines)]
      assert held[0] == held[1] == held[2] and pointers.are_apart(held[0])
      before = [engine.compilations for engine in engines]
      key = records.RequestKey(0, records.Purpose.SOLVE, 0, '', 0)
      plan = 'Sub-Goal: answer capital\nContext: Spain\nTool Name: search'
      agent = system.with_script(lambda *_: plan)
      done = await rollout.rollout(agent, system.tasks.test[1], key)
      after = [engine.compilations for engine in engines]
      return done, before, after, system.model.frozen_engine.stats()
    finally:
      await system.close()

  done, before, after, stats = asyncio.run(run())
  assert before == after
  assert stats.completed == 1
  assert done.status is records.Status.ANSWERED
  # It reads the memory that the turn left; its words are on record.
  (said,) = done.modules
  assert 'The capital of Spain is Madrid.' in said.prompts[0]
  assert said.output == done.answer


@pytest.mark.parametrize(
  'axes, count, hands_over',
  [
    ({}, 1, False),
    ({'data': 2}, 2, True),
    ({'fsdp': 4, 'data': 1}, 4, True),
    ({'sampler_devices': -1}, 1, True),
  ],
)
def test_parameters_of_several_devices_go_to_the_sampler_on_devices(
  axes, count, hands_over
):
  config = dataclasses.replace(_BASE, mesh=schema.MeshConfig(**axes))
  found = {k: v for k, v in axes.items() if k != 'sampler_devices'}
  mesh = sharding.make_mesh(**found, devices=jax.devices()[:count])
  assert local_model.hands_over(config, mesh) == hands_over


def test_a_mesh_of_two_devices_hands_over_to_one(tmp_path):
  config = mini.config(tmp_path)
  mesh = sharding.make_mesh(data=1, fsdp=2, devices=jax.devices()[:2])
  system = system_lib.build(config, epath.Path(tmp_path), mesh)
  try:
    assert system.model.handover is not None
    system.model.sample_from(system.model.params, 1)
    assert system.model.engine.params_version == 1
    for x in jax.tree.leaves(system.model.engine.params):
      assert x.devices() == {jax.devices()[0]}
  finally:
    asyncio.run(system.close())


def test_compiled_programs_are_kept_in_a_workdir(tmp_path):
  name = 'jax_compilation_cache_dir'
  before, found = getattr(jax.config, name), []
  try:
    for given, workdir in (
      (None, epath.Path(tmp_path)),
      (None, epath.Path('gs://bucket/run')),
      ('/elsewhere', epath.Path(tmp_path)),
    ):
      jax.config.update(name, given)
      system_lib._cache_compilations(workdir)
      found.append(getattr(jax.config, name))
  finally:
    jax.config.update(name, before)
  assert found == [str(tmp_path / 'xla_cache'), None, '/elsewhere']


def test_a_mesh_that_does_not_fit_is_an_error_at_start(tmp_path):
  config = mini.config(tmp_path)
  for mesh in ({'fsdp': 3}, {'fsdp': 1, 'tensor': 8}):
    wrong = dataclasses.replace(
      config, mesh=dataclasses.replace(schema.MeshConfig(data=1), **mesh)
    )
    with pytest.raises(schema.ConfigError, match='mesh: '):
      system_lib.build(wrong, epath.Path(tmp_path), local_model.make_mesh(wrong))
