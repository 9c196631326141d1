"""A short run on the desk: controls, records, report, and what no prompt may hold."""

import asyncio
import dataclasses
import functools
import json
import random

import pytest
from etils import epath

from agentflow_jax import records
from agentflow_jax.agents import language_model, memory, modules, rollout
from agentflow_jax.agents.environments import base as environments
from agentflow_jax.agents.environments.desk import mutants
from agentflow_jax.assembly import call_solutions, desk_data, scripted_planners
from agentflow_jax.assembly import system as system_lib, withheld_tools, worlds
from agentflow_jax.config import loading, schema
from agentflow_jax.core import flow_grpo
from agentflow_jax.data import desk
from agentflow_jax.evaluation import command, evaluate as evaluation, other_tools
from agentflow_jax.rollouts import rollout_files
from agentflow_jax.tokenization import tokenizers
from agentflow_jax.training import query_lengths, run, turn_rows
from tests.config import mini

_TASKS = 12


@pytest.fixture(autouse=True, scope='module')
def _small():
  """Few worlds and tasks: writing all of them takes 20 seconds."""
  with pytest.MonkeyPatch.context() as patch:
    sizes = {split: desk.Size(2, _TASKS) for split in desk.SPLITS}
    patch.setattr(desk, 'write', functools.partial(desk.write, sizes=sizes))
    yield


def _config(**changes) -> schema.Config:
  base = loading.load(str(mini.ROOT / 'experiments' / 'desk_warm_start.py'))
  model = dataclasses.replace(
    base.planner.model,
    d_model=16,
    n_layers=1,
    n_heads=2,
    n_kv_heads=2,
    head_dim=8,
    d_ff=16,
    attention='dense',
  )
  return dataclasses.replace(
    base,
    algorithm='flow_grpo',
    planner=dataclasses.replace(
      base.planner,
      model=model,
      sampling=dataclasses.replace(base.planner.sampling, max_new_tokens=4),
    ),
    mesh=schema.MeshConfig(data=8, fsdp=1, tensor=1),
    engine=dataclasses.replace(base.engine, slots=8),
    train=schema.TrainConfig(steps=1, queries_per_step=2, group_size=2),
    evaluation=schema.EvaluationConfig(every=0, start_and_final=False),
    **changes,
  )


@pytest.fixture(name='done', scope='module')
def _done(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('desk') / 'run'
  run.train(_config(), str(workdir))
  return workdir


def _withheld() -> schema.Config:
  base = _config()
  return dataclasses.replace(
    base, agent=dataclasses.replace(base.agent, withheld_tools=('extend_loan',))
  )


@pytest.mark.slow
def test_withheld_tools_are_unknown_to_training_and_renamed_ones_work(tmp_path):
  config = _withheld()
  system = system_lib.build(config, epath.Path(tmp_path))
  needs = withheld_tools.needing(system.tasks.test, ('extend_loan',))
  assert 0 < len(needs) < len(system.tasks.test) == _TASKS
  assert 0 < len(system.tasks.train) < _TASKS
  for task in system.tasks.train:
    assert 'extend_loan' not in task.world.tools and len(task.world.tools) == 19
    assert 'extend_loan' not in str(task.tags)
  assert all(not task.world.tools for task in system.tasks.test)
  # It is no word of the planner, either, as the other tools are.
  words = [
    len(system.model.tokenizer.encode(name)) for name in ('extend_loan', 'get_item')
  ]
  assert words[0] > words[1]

  async def played(names):
    return await evaluation.evaluate(
      system.with_script(scripted_planners.oracle, names),
      system.tasks.test,
      name='x',
      split='test',
      seed=0,
      processes=system.processes,
    )

  async def both():
    names = other_tools.read('renamed', config)
    found = [await played(None), await played(names)]
    await system.close()
    return found

  own, renamed = asyncio.run(both())
  assert own.accuracy == renamed.accuracy == 1.0
  called = [other.file().tools for other in (own, renamed)]
  assert called[0].keys().isdisjoint(called[1])
  assert sum(called[0].values()) == sum(called[1].values())


@pytest.mark.slow
def test_a_table_of_seen_renamed_and_unseen_tools(tmp_path):
  config = _withheld()
  run.train(config, str(tmp_path), quiet=True)
  options = command.EvaluateOptions(greedy=True, tools='renamed', controls=True)
  said = command.evaluate(config, str(tmp_path), options)
  path = tmp_path / 'evaluations' / 'evaluation.json'
  table = json.loads(path.read_text())['tools_shown']
  assert list(table) == ['seen', 'renamed', 'unseen', 'oracle']
  assert table['seen']['tasks'] == table['renamed']['tasks']
  assert table['seen']['tasks'] + table['unseen']['tasks'] == _TASKS
  assert table['oracle']['success'] == 1.0 and table['oracle']['tasks'] == _TASKS
  assert 'oracle' in said and 'unseen' in said


def _code_config(**changes):
  base = _config()
  return dataclasses.replace(
    base,
    agent=dataclasses.replace(
      base.agent,
      executor=schema.ModuleConfig(),
      plan_format='code',
      code=schema.CodeConfig(sandbox='monty'),
    ),
    reward=schema.RewardConfig(
      {'success': 1.0, 'pass_fraction': 0.3, 'format': 0.1, 'calls': -0.1}
    ),
    **changes,
  )


@pytest.mark.slow
def test_a_run_of_programs_with_a_reward_of_several_terms(tmp_path):
  run.train(_code_config(), str(tmp_path / 'run'))
  oracle = _evaluation(tmp_path / 'run', 'oracle')
  assert oracle['accuracy'] == 1.0 and oracle['world']['violations'] == 0.0
  for name in ('empty', 'random', 'refusing', 'blind', 'frozen'):
    assert _evaluation(tmp_path / 'run', name)['accuracy'] <= 0.1, name
  # What programs call is counted, and the programs themselves.
  tools = oracle['tools']
  assert tools['code'] >= 2 * _TASKS and tools['finish'] + tools['refuse'] == _TASKS
  (line,) = (tmp_path / 'run' / 'metrics.jsonl').read_text().splitlines()
  metrics = json.loads(line)
  terms = {k: v for k, v in metrics.items() if k.startswith('reward/part/')}
  assert len(terms) == 4
  assert sum(terms.values()) == pytest.approx(metrics['reward/mean'], abs=1e-12)
  (path,) = (tmp_path / 'run' / 'rollouts').iterdir()
  for group in rollout_files.read(epath.Path(path)):
    for trajectory in group.trajectories:
      assert trajectory.score.reward == trajectory.reward
  report = (tmp_path / 'run' / 'report.html').read_text()
  assert 'Terms of the reward' in report and 'pass_fraction' in report


def _spam(view, solution, rng):
  del view, solution, rng
  return '```python\npass\n```'


def _finishes(view, solution, rng):
  del view, solution, rng
  return '```python\nfinish()\n```'


def _each_once(view, solution, rng):
  """Calls the tools in order, each in a turn of its own, on uniform mentions."""
  del solution
  cards = call_solutions._cards(view)
  card = cards[len(view.memory.entries) % len(cards)]
  return call_solutions._write(view, card.name, call_solutions._drawn(view, card, rng))


def test_planners_that_do_nothing_useful_gain_nothing_over_a_random_one(tmp_path):
  system = system_lib.build(_code_config(), epath.Path(tmp_path))
  scripts = {
    'random': scripted_planners.uniform,
    'spam': _spam,
    'finishes': _finishes,
    'each': _each_once,
    'refusing': scripted_planners.make_refusing(system.tasks.train),
    'oracle': scripted_planners.oracle,
    'teacher': scripted_planners.make_teacher(
      schema.TeacherConfig(
        wrong_tool=0.1,
        wrong_reference=0.1,
        early_answer=0.1,
        late_answer=0.1,
        wrong_way=0.5,
      )
    ),
  }

  async def played(script):
    planner = system.with_script(script).planner
    agent = dataclasses.replace(system.trained_agent, planner=planner)
    return await asyncio.gather(
      *(
        rollout.rollout(
          agent,
          task,
          records.RequestKey(0, records.Purpose.EVALUATE, 0, task.id, trial),
        )
        for task in system.tasks.test
        for trial in range(3)
      )
    )

  async def main():
    found = {name: await played(script) for name, script in scripts.items()}
    await system.close()
    return found

  means, played_by = {}, asyncio.run(main())
  for name, done in played_by.items():
    assert all(t.reward == t.score.reward for t in done)
    success = [t.score.terms['success'].value for t in done]
    means[name] = sum(success) / len(done), sum(t.reward for t in done) / len(done)
  assert means['oracle'][0] == 1.0 and means['oracle'][1] > 1.2
  for name in ('spam', 'finishes', 'each', 'refusing'):
    assert means[name][0] <= means['random'][0] + 0.02, means
    assert means[name][1] <= means['random'][1] + 0.02, means
  # Normalised each for itself, the terms still teach success.
  groups = [
    records.Group(task, tuple(played_by['teacher'][3 * i : 3 * i + 3]))
    for i, task in enumerate(system.tasks.test)
  ]
  advantages = turn_rows._advantages(
    groups, flow_grpo.FlowGrpoConfig(terms='normalised')
  )
  by_success = {True: [], False: []}
  for group, found in zip(groups, advantages):
    for done, advantage in zip(group.trajectories, found):
      by_success[done.score.terms['success'].value == 1.0].append(advantage)
  won, lost = (sum(v) / len(v) for v in (by_success[True], by_success[False]))
  assert won > 0 > lost


def _evaluation(workdir, name):
  path = workdir / 'evaluations' / f'control_{name}_planner.json'
  return json.loads(path.read_text())


def test_the_controls_stand_where_they_have_to(done):
  oracle = _evaluation(done, 'oracle')
  assert oracle['accuracy'] == 1.0 and oracle['items_scored'] == _TASKS
  assert oracle['world']['violations'] == 0.0
  for name in ('empty', 'random', 'refusing', 'blind', 'frozen'):
    assert _evaluation(done, name)['accuracy'] <= 0.1, name
  assert _evaluation(done, 'refusing')['status'].get('refused', 0) >= _TASKS / 2
  changed = [item['changed'] for item in oracle['items']]
  assert any(c.startswith('loan/') for found in changed for c in found)


def test_summary_report_and_metrics_know_of_worlds(done):
  summary = json.loads((done / 'summary.json').read_text())
  assert summary['control/oracle_planner/world/success'] == 1.0
  assert 'teacher/wrong_way' in summary
  assert '<h2>Worlds</h2>' in (done / 'report.html').read_text()
  (line,) = (done / 'metrics.jsonl').read_text().splitlines()
  assert json.loads(line)['world/rollouts'] == 4


def test_first_causes_successes_and_the_unscored_are_all_rollouts(done):
  summary = json.loads((done / 'summary.json').read_text())
  assert summary['control/refusing_planner/mistakes/first_causes/false refusal'] > 0
  for path in (done / 'evaluations').glob('*.json'):
    found = json.loads(path.read_text())
    said = found['mistakes']
    causes = sum(said['first_causes'].values())
    assert found['rollouts_requested'] == said['rollouts'], path.name
    assert said['rollouts'] == said['unscored'] + said['success'] + causes
    assert said['success'] == sum(i['reward'] == 1.0 for i in found['items'])
    of_items = [i['first_cause'] for i in found['items'] if i['first_cause']]
    assert len(of_items) == causes
  (line,) = map(json.loads, (done / 'metrics.jsonl').read_text().splitlines())
  causes = sum(n for k, n in line.items() if k.startswith('first_cause/'))
  assert line['rollouts/scored'] == causes + 4 * line['reward/mean']


def test_no_prompt_holds_a_plan_a_solution_or_a_seed(done):
  tokenizer = tokenizers.SentencePieceTokenizer(done / tokenizers.FILE)
  (path,) = (done / 'rollouts').iterdir()
  prompts = []
  for group in rollout_files.read(epath.Path(path)):
    world = group.task.world
    hidden = [world.plan.splitlines()[0], world.state['seed'], world.state['sha256']]
    for trajectory in group.trajectories:
      assert trajectory.verdict is not None and trajectory.digest
      for turn in trajectory.turns:
        text = tokenizer.decode(list(turn.completion.prompt_ids))
        prompts.append(text)
        assert group.task.query.split()[0] in text and world.policy[:40] in text
        assert not any(secret in text for secret in hidden)
  assert len(prompts) >= 4


@pytest.fixture(name='system', scope='module')
def _system(done):
  system = system_lib.build(dataclasses.replace(_config(), seed=0), epath.Path(done))
  yield system
  system.model.engine.close()


def test_tasks_may_show_few_other_tools(system):
  directory = epath.Path(system.tasks.worlds).parent
  every, _ = desk_data.load(directory, 'easy')
  few, _ = desk_data.load(directory, 'easy', 3)
  for task, narrowed in zip(every['test'], few['test'], strict=True):
    tools = narrowed.world.tools
    needed = {'finish', 'refuse'} | {
      call.tool
      for tag in ('solution', 'tempting')
      for call in call_solutions.parse(task.tags.get(tag, '[]')).calls
    }
    assert needed <= set(tools) and len(tools) == len(needed) + 3
    assert narrowed.id == task.id and narrowed.query == task.query


def test_tools_and_arguments_are_single_tokens(system):
  for text in ('find_person', 'create_loan', 'person=', 'about=', '#23'):
    assert len(system.model.tokenizer.encode(text)) == 1, text


def test_queries_that_do_not_fit_beside_a_policy_are_counted(system):
  planner, cards = system.planner, system.agent.environment.cards
  tasks = system.tasks.train

  def too_long(limit):
    return query_lengths.measure(
      dataclasses.replace(planner, max_prompt_tokens=limit),
      (),
      tasks,
      system.agent.start_memory,
      cards,
    ).too_long

  whole = []
  for task in tasks:
    brief = environments.Brief(policy=task.world.policy)
    state = system.agent.start_memory(task.query, '', brief)
    view = modules.View(task.id, state, cards, None)
    whole.append(planner.model.count_tokens(planner.compose(view)))
  for limit in (min(whole) - 1, sorted(whole)[3], max(whole) - 1, max(whole)):
    assert too_long(limit) == sum(tokens > limit for tokens in whole), limit
  assert language_model.text_counter(planner.model)(tasks[0].query) < min(whole) / 2


def test_a_blind_planner_sees_no_result(system):
  entry = memory.Entry('find_person', 'do', 'name=#1', '#2 P7 secret')
  state = memory.start('q').append(entry)
  seen = []

  class Planner:
    async def plan(self, view):
      seen.append(view.memory.entries[0])

  planner = scripted_planners.BlindPlanner(Planner())
  with pytest.raises(StopIteration):
    planner.plan(modules.View('t', state, (), None)).send(None)
  assert seen == [dataclasses.replace(entry, result='...')]


def test_the_refusing_planner_takes_the_commonest_rule(system):
  tasks = system.tasks.train
  rules = [mutants.solution_of(t)[-1].arguments.get('rule') for t in tasks]
  said = [r for r in rules if r]
  wanted = min(set(said), key=lambda r: (-said.count(r), r))
  state = memory.start('q')
  view = modules.View('t', state, system.agent.environment.cards, None)
  text = scripted_planners.make_refusing(tasks)(view, None, random.Random(0))
  assert f'rule={wanted}' in text and 'Tool Name: refuse' in text


def test_the_teacher_may_take_the_forbidden_way(system):
  tagged = [t for t in system.tasks.train if 'tempting' in t.tags]
  task = tagged[0]
  solution = scripted_planners.solutions_of([task])[task.id]
  tempting = call_solutions.parse(task.tags['tempting']).calls
  assert solution.tempting == tempting and solution.calls[-1].tool == 'refuse'
  assert tempting[-1].tool == 'finish'


def test_names_that_two_tools_have_are_an_error_at_start(system):
  worlds.check_names(system.agent.environment, ['search'])
  worlds.check_names(None, ['finish'])
  with pytest.raises(schema.ConfigError, match="'finish', too"):
    worlds.check_names(system.agent.environment, ['search', 'finish'])


def test_a_judge_that_nothing_asks_is_an_error_at_start(system):
  config = _config()
  settings = schema.EnvironmentConfig(
    'desk', schema.EndpointConfig(base_url='http://127.0.0.1:9/v1', model='m')
  )
  config = dataclasses.replace(
    config, agent=dataclasses.replace(config.agent, environment=settings)
  )
  with pytest.raises(schema.ConfigError, match='no task has a check of kind'):
    worlds.make(config, system.tasks, None, 1, [])


def test_more_rollouts_than_an_environment_holds_are_an_error_at_start(
  system, monkeypatch
):
  small = dataclasses.replace(system.agent.environment, capacity=2)
  monkeypatch.setattr(worlds.desk, 'make', lambda *_, **__: small)
  with pytest.raises(schema.ConfigError, match='train.concurrent_rollouts=2'):
    worlds.make(_config(), system.tasks, None, 1, [])


def test_a_data_set_that_is_broken_names_its_directory(done, tmp_path):
  (tmp_path / 'desk.json').write_text('{"version"')
  with pytest.raises(schema.ConfigError, match='written anew'):
    desk_data.load(epath.Path(tmp_path), 'easy')
