import asyncio
import dataclasses
import random
import types

from agentflow_jax import records
from agentflow_jax.agents import call_text, memory, modules, numbered_memory, plan
from agentflow_jax.agents import references
from agentflow_jax.agents.tools import base
from agentflow_jax.assembly import call_solutions, geohop_solutions, scripted_planners
from agentflow_jax.config import schema
from agentflow_jax.data import geohop_questions
from tests.agents.environments import toy_world

_CARDS = tuple(
  base.Card(n, '', (base.Argument('x', ''),)) for n in ('search', 'python')
)
_GAZETTEER = references.Gazetteer(['France', 'Paris', 'Lyon'])
_STEPS = (
  geohop_questions.Step('search', 'capital', ('France',), 'Paris'),
  geohop_questions.Step('search', 'population', ('Paris',), '2100000'),
  geohop_questions.Step('python', '*', ('2100000', '3'), '6300000'),
)


def _view(*entries):
  state = numbered_memory.Numbering(_GAZETTEER)('Capital of France, times 3?')
  for tool, sub_goal, context, result, failed in entries:
    marked, state = state.mark(result)
    state = state.append(memory.Entry(tool, sub_goal, context, marked, failed=failed))
  key = records.RequestKey(0, records.Purpose.TRAIN, 0, 't', 0)
  return modules.View('t', state, _CARDS, key)


_SOLUTION = geohop_solutions.GeohopSolution(_STEPS)


def _plan(script, view, solution=_SOLUTION, seed=0):
  text = script(view, solution, random.Random(seed))
  return plan.parse(text, ('search', 'python'))


def test_the_oracle_takes_the_steps_in_turn_and_points_at_mentions():
  view = _view()
  assert _plan(scripted_planners.oracle, view) == plan.Plan(
    'find capital', '#1', 'search'
  )
  found = ('search', 'find capital', '#1', 'It is Paris.', False)
  assert _plan(scripted_planners.oracle, _view(found)) == plan.Plan(
    'find population', '#3', 'search'
  )
  then = ('search', 'find population', '#3', 'It is 2100000.', False)
  assert _plan(scripted_planners.oracle, _view(found, then)) == plan.Plan(
    'answer value', '#4 * #2', 'python'
  )


def test_a_failed_or_wrong_step_is_not_done():
  for wrong in (
    ('search', 'find capital', '#1', 'It is Paris.', True),
    ('search', 'find area', '#1', '551500', False),
    ('search', 'find capital', '#2', 'Paris', False),
    ('python', 'find capital', '#1', 'Paris', False),
  ):
    step, is_last = geohop_solutions.next_step(_view(wrong), _STEPS)
    assert step == _STEPS[0] and not is_last


def test_a_perfect_teacher_is_the_oracle():
  perfect = scripted_planners.make_teacher(schema.TeacherConfig(0, 0, 0, 0, 0, 0))
  for seed in range(20):
    right = _plan(scripted_planners.oracle, _view())
    assert _plan(perfect, _view(), seed=seed) == right


def test_the_teacher_errs_as_often_as_configured():
  teacher = scripted_planners.make_teacher(
    schema.TeacherConfig(
      search_instead=0.5,
      python_instead=0.25,
      wrong_what=0,
      wrong_reference=0,
      early_answer=0.4,
      late_answer=0,
    )
  )
  plans = [_plan(teacher, _view(), seed=s) for s in range(4000)]
  # 4000 draws: a share p is known within 3 * sqrt(p (1 - p) / 4000) < 0.024.
  python = sum(p.tool == 'python' for p in plans) / 4000
  early = sum(p.sub_goal.startswith('answer') for p in plans) / 4000
  assert abs(python - 0.25) < 0.024
  assert abs(early - 0.4) < 0.024


def test_the_random_planner_is_uniform_over_tools_and_mentions():
  plans = [_plan(scripted_planners.uniform, _view(), seed=s) for s in range(4000)]
  searches = [p for p in plans if p.tool == 'search']
  assert abs(len(searches) / 4000 - 0.5) < 0.024
  first = sum(p.context == '#1' for p in searches) / len(searches)
  # Two mentions are visible: France and 3. 3 sigma of 2000 draws is 0.034.
  assert abs(first - 0.5) < 0.034


def test_the_empty_planner_says_nothing():
  assert scripted_planners.empty(_view(), _SOLUTION, random.Random(0)) == ''


_CALLS = call_solutions.parse("""[
  {"tool": "find", "arguments": {"name": "red cup"}},
  {"tool": "move", "arguments": {"thing": "T1", "shelf": "S2"}},
  {"tool": "finish", "arguments": {"summary": "done"}}
]""")


def _world_view(*entries):
  known = references.Gazetteer(['red cup'], r'[ST]\d+')
  state = numbered_memory.Numbering(known)('Move the red cup to S2.')
  for tool, context, result, failed in entries:
    marked, state = state.mark(result)
    state = state.append(memory.Entry(tool, 'do', context, marked, failed=failed))
  key = records.RequestKey(0, records.Purpose.TRAIN, 0, 't', 0)
  cards = tuple(action.card for action in toy_world.ACTIONS)
  return modules.View('t', state, cards, key)


def _call(script, view, seed=0):
  text = script(view, _CALLS, random.Random(seed))
  found = plan.parse(text, [card.name for card in view.cards])
  assert found.sub_goal == 'do'
  return found.tool, found.context


def test_the_oracle_makes_the_calls_of_a_world_in_turn():
  found = ('find', 'name=#1', 'T1 on S1', False)
  moved = ('move', 'thing=#3; shelf=#2', 'T1 is on S2 now', False)
  oracle = scripted_planners.oracle
  assert _call(oracle, _world_view()) == ('find', 'name=#1')
  assert _call(oracle, _world_view(found)) == ('move', 'thing=#3; shelf=#2')
  assert _call(oracle, _world_view(found, moved)) == ('finish', 'summary=done')
  failed = (*moved[:3], True)
  assert _call(oracle, _world_view(found, failed)) == ('move', 'thing=#3; shelf=#2')


def test_a_teacher_of_a_world_errs_as_often_as_configured():
  perfect = scripted_planners.make_teacher(schema.TeacherConfig(0, 0, 0, 0, 0, 0))
  view = _world_view(('find', 'name=#1', 'T1 on S1', False))
  right = _call(scripted_planners.oracle, view)
  assert {_call(perfect, view, s) for s in range(20)} == {right}
  for errors, low, high in (
    # A uniform tool is the right one in a fifth of the draws, with arguments that
    # are right in (1/4)^2 of these.
    ({'wrong_tool': 0.5}, 0.5, 0.5 + 0.5 / 80),
    ({'early_answer': 0.4}, 0.6, 0.6),
    # Each of two arguments is drawn with 0.2, and then right in 1 of 4 draws.
    ({'wrong_reference': 0.2}, 0.85**2, 0.85**2),
  ):
    teacher = scripted_planners.make_teacher(
      schema.TeacherConfig(
        0,
        0,
        0,
        **({'wrong_reference': 0, 'early_answer': 0, 'late_answer': 0} | errors),
      )
    )
    share = sum(_call(teacher, view, s) == right for s in range(4000)) / 4000
    assert low - 0.024 < share < high + 0.024, errors


def test_a_uniform_planner_of_a_world_calls_every_tool():
  calls = {_call(scripted_planners.uniform, _world_view(), s) for s in range(400)}
  assert {tool for tool, _ in calls} == {a.name for a in toy_world.ACTIONS}
  assert ('move', 'thing=#2; shelf=#1') in calls


def test_a_random_model_calls_a_tool_and_then_answers_half_of_the_time():
  planner = scripted_planners.RandomPlanner(
    types.SimpleNamespace(sampling=records.SamplingSpec()), ('a', 'b'), 'tool_calls'
  )
  view, seen = _view(), []
  for turn in range(40):
    key = dataclasses.replace(view.key, turn=turn)
    result = records.Segment('tool', 'It is Paris.', False)
    now = dataclasses.replace(view, key=key, messages=(result,) if turn else ())
    completion, _ = asyncio.run(planner.plan(now))
    seen.append(call_text.read(completion.text))
  assert {c.tool for said in seen for c in said.calls} == {'search', 'python'}
  assert {c.arguments['x'] for said in seen for c in said.calls} == {
    'Capital of France, times 3?'
  }
  assert {said.answer for said in seen if not said.calls} == {'It is Paris.'}
  assert seen[0].calls and not all(said.calls for said in seen)
