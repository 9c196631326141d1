import asyncio
import dataclasses
import json

import pytest
from etils import epath

from agentflow_jax import records
from agentflow_jax.agents import fakes, judge
from agentflow_jax.evaluation import evaluate
from agentflow_jax.rollouts import evaluation_files
from agentflow_jax.runtime import processes


def _trajectory(reward, rollout=0, status=records.Status.ANSWERED, tools=()):
  turns = tuple(
    records.Turn(
      records.Completion('\ud800 plan'),
      records.SamplingSpec(),
      call=records.ToolCall(tool, {'query': 'x'}),
      result=records.ToolResult('y', error),
    )
    for tool, error in tools
  )
  return records.Trajectory('t', rollout, status, turns, reward=reward)


def _evaluation(*groups):
  return evaluate.Evaluation(
    'final',
    'test',
    1.0,
    tuple(
      records.Group(
        records.Task(
          str(i), 'q', ('a',), 'f1', {'hops': str(1 + i % 2), 'solution': 'secret'}
        ),
        trajectories,
      )
      for i, trajectories in enumerate(groups)
    ),
    1.0,
  )


def test_accuracy_is_over_items_and_leaves_unscored_trials_out():
  lost = records.Status.MODEL_UNREACHABLE
  result = _evaluation(
    (_trajectory(1.0), _trajectory(0.0, 1)),  # 0.5
    (_trajectory(1.0), _trajectory(None, 1, lost)),  # 1.0, not 0.5
    (_trajectory(None, 0, lost),),  # outside the average
  )
  assert result.scores == [0.5, 1.0]
  assert result.accuracy == 0.75
  value = result.file().to_json()
  assert (value['items_requested'], value['items_scored']) == (3, 2)
  assert (value['rollouts_requested'], value['rollouts_scored']) == (5, 3)
  # An unscored rollout counts as 0: (0.5 + 0.5 + 0) / 3.
  assert value['accuracy_over_requested'] == pytest.approx(1 / 3)
  assert value['status'] == {'answered': 3, 'model_unreachable': 2}
  assert value['by_hops'] == {
    '1': {
      'items': 1,
      'accuracy': 0.5,
      'items_requested': 2,
      'accuracy_over_requested': 0.25,
    },
    '2': {
      'items': 1,
      'accuracy': 1.0,
      'items_requested': 1,
      'accuracy_over_requested': 0.5,
    },
  }
  assert _evaluation((_trajectory(None, 0, lost),)).file().to_json()['by_hops'] == {}


def test_a_judge_has_both_denominators_too():
  lost = records.Status.MODEL_UNREACHABLE
  result = dataclasses.replace(
    _evaluation(
      (_trajectory(1.0), _trajectory(0.0, 1)),
      (_trajectory(1.0), _trajectory(None, 1, lost)),
      (_trajectory(None, 0, lost),),
    ),
    verdicts={
      ('0', 0): judge.Verdict(True, ''),
      ('0', 1): judge.Verdict(None, 'no answer'),
      ('1', 0): judge.Verdict(True, ''),
    },
  )
  value = result.file().to_json()
  assert (value['judge_accuracy'], value['judge_items']) == (1.0, 2)
  # One of two, one of two and none of one: (0.5 + 0.5 + 0) / 3.
  assert value['judge_accuracy_over_requested'] == pytest.approx(1 / 3)


def test_calls_and_errors_are_counted_by_tool():
  bad = records.ToolErrorKind.ARGUMENTS
  result = _evaluation(
    (
      _trajectory(0.0, tools=[('search', None), ('python', bad)]),
      _trajectory(1.0, 1, tools=[('search', None)]),
    )
  )
  value = result.file().to_json()
  assert value['tools'] == {'python': 1, 'search': 2}
  assert value['tool_error_rate'] == pytest.approx(1 / 3)
  assert value['turns_mean'] == 1.5


def test_a_result_file_survives_any_text_and_tells_no_solution(tmp_path):
  result = _evaluation((_trajectory(1.0, tools=[('search', None)]),))
  path = evaluation_files.write(epath.Path(tmp_path), result.file())
  text = path.read_text()
  assert '\\ud800 plan' in text and 'secret' not in text
  assert [p.name for p in path.parent.iterdir()] == ['final.json']


@pytest.mark.parametrize('greedy, temperature', [(True, 0.0), (False, 0.7)])
def test_greedy_is_temperature_0_in_every_request(greedy, temperature):
  # AgentFlow's evaluation never was: its planner sampled at 0.7.
  model = fakes.FakeLanguageModel({'planner': ['Sub-Goal: find x\nTool Name: search']})
  agent = fakes.make_agent(model, [fakes.make_tool(fakes.echo)])
  sampling = records.SamplingSpec(temperature=0.7, top_p=0.9)
  agent = dataclasses.replace(
    agent, planner=dataclasses.replace(agent.planner, sampling=sampling)
  )
  result = asyncio.run(
    evaluate.evaluate(
      agent,
      [records.Task('t', 'q', ('a',), 'r')],
      name='n',
      split='test',
      seed=0,
      processes=processes.Processes(),
      greedy=greedy,
    )
  )
  asked = [spec for _, spec, _ in model.requests]
  assert asked and {spec.temperature for spec in asked} == {temperature}
  assert {spec.top_p for spec in asked} == {0.9}
  turns = [u for g in result.groups for t in g.trajectories for u in t.turns]
  assert {turn.sampling.temperature for turn in turns} == {temperature}
  assert result.file().to_json()['temperature'] == temperature


def test_several_greedy_trials_are_refused():
  with pytest.raises(ValueError, match='greedy trials are all the same'):
    asyncio.run(
      evaluate.evaluate(
        None,
        [],
        name='x',
        split='test',
        seed=0,
        processes=processes.Processes(),
        trials=2,
        greedy=True,
      )
    )


def test_what_rollouts_did_to_their_worlds_is_there():
  world = records.World('w', {}, feasible=True)
  task = records.Task(
    't',
    'q',
    (),
    'checks',
    {'family': 'lend', 'solution': 'secret', 'tempting': 'secret'},
    world,
  )
  verdict = records.Verdict(
    (records.CheckResult('c', 'state', True),), ('a/1: added',), ('a/1: added',)
  )
  done = dataclasses.replace(
    _trajectory(1.0, tools=(('move', None),)), verdict=verdict, digest='ab'
  )
  result = dataclasses.replace(
    _evaluation((_trajectory(1.0),)), groups=(records.Group(task, (done,)),)
  )
  value = result.file().to_json()
  assert value['world']['success'] == 1.0 and value['world']['violations'] == 1.0
  assert value['world']['by_family'] == {
    'lend': {'rollouts': 1, 'success': 1.0, 'pass_fraction': 1.0}
  }
  (item,) = value['items']
  assert item['changed'] == item['violations'] == ['a/1: added']
  assert item['checks'][0]['name'] == 'c' and item['digest'] == 'ab'
  assert item['tags'] == {'family': 'lend'}
  assert 'world' not in _evaluation((_trajectory(1.0),)).file().to_json()


def _result(name='final') -> evaluate.Evaluation:
  """Two tasks: one in a world, with several calls in a response; one without."""
  refused = records.ToolResult('no #7', records.ToolErrorKind.ARGUMENTS)
  turn = records.Turn(
    records.Completion('do it', response_ids=(1, 2, 3)),
    records.SamplingSpec(),
    call=records.ToolCall('move', {'thing': 'cup', 'times': 2}),
    result=records.ToolResult('x' * 3000),
    modules=(records.ModuleCall('verifier', 'continue'),),
    more=((None, refused),),
  )
  world = records.World('w', {}, feasible=True)
  verdict = records.Verdict(
    (records.CheckResult('c', 'state', True),), ('a/1: added',), ('a/1: added',)
  )
  moved = records.Trajectory(
    'm',
    0,
    records.Status.ANSWERED,
    (turn,),
    answer='moved',
    reward=1.0,
    verdict=verdict,
    digest='ab',
    seconds={'total': 2.0},
  )
  lost = records.Trajectory('m', 1, records.Status.MODEL_UNREACHABLE, (), detail='gone')
  tags = {'hops': '2', 'kind': 'k', 'solution': 'secret', 'tempting': 'secret'}
  groups = (
    records.Group(
      records.Task('m', 'move 2', (), 'checks', tags, world), (moved, lost)
    ),
    records.Group(
      records.Task('q', 'who?', ('Ann', 'Bea'), 'f1'),
      (records.Trajectory('q', 0, records.Status.OUT_OF_TURNS, (), reward=0.0),),
    ),
  )
  verdicts = {('m', 0): judge.Verdict(True, 'yes'), ('q', 0): judge.Verdict(None, '')}
  return evaluate.Evaluation(name, 'test', 0.7, groups, 9.0, verdicts)


_MORE = {'config': {'seed': 1}, 'items_left_out': 3, 'cost': 0.5, 'web_allowed': []}


def test_a_file_is_read_as_it_was_written(tmp_path):
  file = _result().file(_MORE)
  path = evaluation_files.write(epath.Path(tmp_path), file)
  assert path == tmp_path / 'evaluations' / 'final.json'
  assert path == evaluation_files.path_of(epath.Path(tmp_path), 'final')
  found = evaluation_files.read(path)
  assert found == file and found.more == _MORE
  assert json.dumps(found.to_json(), indent=1) == path.read_text()
  assert (found.rollouts, found.unscored) == (3, 1)
  assert found.rewards == [('m', 1.0), ('m', None), ('q', 0.0)]
  assert found.config == {'seed': 1} and found.items_left_out == 3
  assert found.figures['accuracy'] == 0.5 and found.figures['cost'] == 0.5
  assert 'name' not in found.figures


def test_names_and_order_of_what_a_file_holds():
  """By hand: programs of users read these names."""
  value = _result().file(_MORE).to_json()
  assert list(value) == [
    *('name', 'split', 'temperature', 'accuracy', 'ci_low', 'ci_high'),
    *('accuracy_over_requested', 'items_requested', 'items_scored'),
    *('rollouts_requested', 'rollouts_scored', 'status', 'by_hops', 'by_kind'),
    *('tools', 'tool_error_rate', 'tool_counts', 'turns_mean', 'planner_tokens_mean'),
    *('seconds_a_rollout', 'seconds', 'mistakes', 'world', 'judge_accuracy'),
    *('judge_accuracy_over_requested', 'judge_ci_low', 'judge_ci_high', 'judge_items'),
    *('judge_unknown', 'judge_differs_from_rule', 'items', *_MORE),
  ]
  assert value['by_hops'] == {
    '2': {
      'items': 1,
      'accuracy': 1.0,
      'items_requested': 1,
      'accuracy_over_requested': 0.5,
    }
  }
  # Means over three rollouts: one turn, three tokens and two seconds.
  assert value['turns_mean'] == pytest.approx(1 / 3)
  assert (value['planner_tokens_mean'], value['seconds_a_rollout']) == (1.0, 2 / 3)
  moved, lost, asked = value['items']
  (turn,) = moved.pop('turns')
  call = {'tool': 'move', 'arguments': {'thing': 'cup', 'times': 2}}
  assert turn == {
    'planner': 'do it',
    'parse_error': '',
    **call,
    'result': 'x' * 2000,
    'failed': False,
    'verdict': 'continue',
    'more': [{'tool': None, 'arguments': {}, 'result': 'no #7', 'failed': True}],
  }
  (check,) = moved.pop('checks')
  assert check['name'] == 'c' and check['passed'] is True
  assert moved == {
    'id': 'm',
    'trial': 0,
    'query': 'move 2',
    'gold': '',
    'answer': 'moved',
    'reward': 1.0,
    'status': 'answered',
    'detail': '',
    'tags': {'hops': '2', 'kind': 'k'},
    'first_cause': None,
    'mistakes': ['arguments'],
    'changed': ['a/1: added'],
    'violations': ['a/1: added'],
    'digest': 'ab',
    'judge': True,
    'judge_analysis': 'yes',
  }
  assert (lost['reward'], lost['detail'], lost['judge']) == (None, 'gone', None)
  assert 'digest' not in lost and asked['gold'] == 'Ann | Bea'
