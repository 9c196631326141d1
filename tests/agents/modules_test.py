"""Tests of agents.modules."""

import asyncio
import dataclasses

import pytest

from agentflow_jax import records
from agentflow_jax.agents import fakes
from agentflow_jax.agents import language_model
from agentflow_jax.agents import memory as memory_lib
from agentflow_jax.agents import modules, numbered_memory
from agentflow_jax.agents import plan as plan_lib
from agentflow_jax.agents import prompts
from agentflow_jax.agents import references
from agentflow_jax.agents.tools import base

TOOL = fakes.make_tool(fakes.echo)
KEY = records.RequestKey(1, records.Purpose.TRAIN, 2, 'task', 3, turn=1)
PLAN = plan_lib.Plan('find capital', 'of {sub_goal}', 'search')
GREEDY = records.SamplingSpec(temperature=0)


def _view(*results, query='q', start=memory_lib.start):
  memory = start(query)
  for result in results:
    result, memory = memory.read(result, len, 1000)
    memory = memory.append(memory_lib.Entry('search', 'g', 'c', result))
  return modules.View('task', memory, (TOOL.card,), KEY)


def test_model_verifier_asks_once_more_for_a_conclusion():
  entry = memory_lib.Entry('search', 'g', 'c', 'found')
  for script, wanted, asked in (
    (['Perhaps.', 'Conclusion: STOP'], (True, 'stop'), 2),
    (['Conclusion: STOP'], (True, 'stop'), 1),
    (['Perhaps.', 'Who knows?', 'STOP'], (False, 'continue: Who knows?'), 2),
  ):

    async def reply(key, script=script):
      return script[key.attempt]

    model = fakes.FakeLanguageModel({'verifier': [reply]})
    verifier = modules.ModelVerifier(model, GREEDY)
    assert asyncio.run(verifier.judge(_view(), PLAN, entry)) == wanted
    assert [key.attempt for _, _, key in model.requests] == [0, 1][:asked]
    prompts_ = model.prompts_of('verifier')
    assert all('found' in p for p in prompts_)
    assert ['no conclusion' in p for p in prompts_] == [False, True][:asked]


def test_rule_executor_fills_its_template_once():
  executor = modules.RuleExecutor({'search': '{sub_goal}|{context}'}, ('find',))
  call, _ = asyncio.run(executor.command(_view(), PLAN, TOOL.card))
  # The plan's own braces are text.
  assert call == records.ToolCall('search', {'query': 'capital|of {sub_goal}'})


def test_model_executor_reads_the_command_and_tries_again():
  model = fakes.FakeLanguageModel({'executor': ['no command']})
  executor = modules.ModelExecutor(model, GREEDY)
  with pytest.raises(base.BadArguments, match='no call of the form'):
    asyncio.run(executor.command(_view(), PLAN, TOOL.card))
  assert [key.attempt for _, _, key in model.requests] == [0, 1]
  assert 'refused: no call' in model.prompts_of('executor')[1]
  for command in (
    '```python\nexecution = tool.execute(\n  query="Oslo",  # it\n)\n```',
    'execution = tool.execute("Oslo")',
  ):
    model.script = {'executor': [command]}
    call, said = asyncio.run(executor.command(_view(), PLAN, TOOL.card))
    assert call == records.ToolCall('search', {'query': 'Oslo'})
    assert said == command


@pytest.mark.parametrize(
  'sub_goal, failed, expected',
  [
    ('answer capital', False, (True, 'stop')),
    ('Answer: capital', False, (True, 'stop')),
    ('find the answer', False, (False, 'continue')),
    ('answering', False, (False, 'continue')),
    ('answer capital', True, (False, 'continue: it failed')),
  ],
)
def test_rule_verifier_stops_where_the_plan_said_so(sub_goal, failed, expected):
  plan = dataclasses.replace(PLAN, sub_goal=sub_goal)
  entry = memory_lib.Entry('search', sub_goal, '', 'r', failed=failed)
  assert asyncio.run(modules.RuleVerifier().judge(_view(), plan, entry)) == expected


def test_model_verifier_sees_the_entry_that_it_judges():
  model = fakes.FakeLanguageModel({'verifier': ['Conclusion: STOP']})
  verifier = modules.ModelVerifier(model, GREEDY)
  entry = memory_lib.Entry('search', 'g', 'c', 'the new result')
  stop, _ = asyncio.run(verifier.judge(_view('old'), PLAN, entry))
  assert stop
  assert '2. search: g; c -> the new result' in model.prompts_of('verifier')[0]


def test_rule_generator_answers_with_what_was_found_last():
  view = _view('Norway', ' it is #12 now ')
  failed = memory_lib.Entry('search', 'g', 'c', 'no', failed=True)
  view = dataclasses.replace(view, memory=view.memory.append(failed))
  generator = modules.RuleGenerator()
  assert asyncio.run(generator.answer(view)) == 'it is #12 now'
  assert asyncio.run(generator.answer(_view())) == ''


def test_frozen_models_never_see_marks():
  model = fakes.FakeLanguageModel({'generator': [' Oslo '], 'analysis': ['a']})
  view = _view('Oslo', start=numbered_memory.Numbering(references.Gazetteer(['Oslo'])))
  generator = modules.ModelGenerator(model, GREEDY)
  assert asyncio.run(generator.answer(view)) == 'Oslo'
  assert asyncio.run(modules.ModelAnalyst(model).analyse(view)) == 'a'
  assert not any('#1' in p for p in model.prompts_of('generator'))
  _, sampling, key = model.requests[-1]
  assert sampling.temperature == 0
  assert (key.module, key.rollout, key.turn) == ('analysis', 0, 0)


_DRAFT = '<think>\nPerhaps tool.execute(query="Berlin"). Conclusion: STOP\n'


@pytest.mark.parametrize(
  'before, thinking',
  [
    (f'{_DRAFT}</think>\n\n', False),
    (_DRAFT.removeprefix('<think>') + '</think>\n', False),
    (_DRAFT.removeprefix('<think>') + '</think>\n', True),
  ],
)
def test_every_module_reads_what_stands_behind_the_thoughts(before, thinking):
  entry = memory_lib.Entry('search', 'g', 'c', 'found')

  def model(said):
    text = before + said
    names = ('executor', 'verifier', 'generator', 'analysis')
    return fakes.FakeLanguageModel({n: [text] for n in names}, thinking=thinking)

  command = 'execution = tool.execute(query="Oslo")'
  executor = modules.ModelExecutor(model(command), GREEDY)
  call, said = asyncio.run(executor.command(_view(), PLAN, TOOL.card))
  assert call.arguments == {'query': 'Oslo'}
  assert said == before + command  # The record keeps everything.
  verifier = modules.ModelVerifier(model('No.\nConclusion: CONTINUE'), GREEDY)
  assert asyncio.run(verifier.judge(_view(), PLAN, entry)) == (False, 'continue: No.')
  generator = modules.ModelGenerator(model(' Oslo\n'), GREEDY)
  assert asyncio.run(generator.answer(_view())) == 'Oslo'
  analyst = modules.ModelAnalyst(model('It asks for a city.'))
  assert asyncio.run(analyst.analyse(_view())) == 'It asks for a city.'


@pytest.mark.parametrize('thinking', [False, True])
def test_a_module_whose_thought_never_ends_has_no_output(thinking):
  text = _DRAFT.removeprefix('<think>') if thinking else _DRAFT
  names = ('executor', 'verifier', 'generator', 'analysis')
  model = fakes.FakeLanguageModel(
    {n: [text] for n in names}, 'length', thinking=thinking
  )
  with pytest.raises(base.BadArguments, match='no call'):
    asyncio.run(modules.ModelExecutor(model, GREEDY).command(_view(), PLAN, TOOL.card))
  entry = memory_lib.Entry('search', 'g', 'c', 'found')
  verifier = modules.ModelVerifier(model, GREEDY)
  assert asyncio.run(verifier.judge(_view(), PLAN, entry)) == (False, 'continue')
  assert asyncio.run(modules.ModelGenerator(model, GREEDY).answer(_view())) == ''
  assert asyncio.run(modules.ModelAnalyst(model).analyse(_view())) == ''


def _planner(model, tokens):
  return modules.ModelPlanner(
    model, records.SamplingSpec(), prompts.PromptConfig('', 'Go.'), tokens, 3
  )


def test_an_overflowing_prompt_shortens_older_entries_and_counts_them():
  model = fakes.FakeLanguageModel({'planner': ['x']})
  view = _view('a ' * 40, 'b ' * 40, query='a long query, never shortened')
  whole = _planner(model, 1000)
  tokens = fakes.count_words(whole.compose(view))
  assert view.counts['shortened'] == 0
  text = ''.join(s.text for s in _planner(model, tokens - 1).compose(view))
  assert view.counts['shortened'] == 1
  assert text.count('a ') < 40 and text.count('b ') >= 40
  assert 'a long query, never shortened' in text
  with pytest.raises(language_model.PromptTooLong, match='more than 5'):
    _planner(model, 5).compose(view)


def test_the_planner_asks_with_its_own_key_and_spec():
  model = fakes.FakeLanguageModel({'planner': ['one', 'two']})
  completion, sampling = asyncio.run(_planner(model, 1000).plan(_view()))
  assert completion.text == 'two'  # of turn 1
  assert sampling == records.SamplingSpec()
  assert model.requests[0][2] == KEY


_FIELDS = base.Card(
  'move',
  'moves',
  (
    base.Argument('thing', ''),
    base.Argument('days', '', 'integer'),
    base.Argument('at', '', 'number', required=False),
    base.Argument('gently', '', 'boolean', required=False),
    base.Argument('to', '', 'array', required=False),
    base.Argument('more', '', 'any', required=False),
  ),
)


@pytest.mark.parametrize(
  ('context', 'arguments'),
  [
    ('thing=T1; days=3', {'thing': 'T1', 'days': 3}),
    (' thing = a pot ;days=3 ; ', {'thing': 'a pot', 'days': 3}),
    ('thing=5; days=5', {'thing': '5', 'days': 5}),
    ('thing=a=b; days=-1; at=0.5', {'thing': 'a=b', 'days': -1, 'at': 0.5}),
    ('thing=; days=3; gently=true', {'thing': '', 'days': 3, 'gently': True}),
    ('thing=x; days=1; to=["a", "b"]', {'thing': 'x', 'days': 1, 'to': ['a', 'b']}),
    ('thing=x; days=1; more=T1', {'thing': 'x', 'days': 1, 'more': 'T1'}),
    ('thing=x; days=1; more="T1"', {'thing': 'x', 'days': 1, 'more': '"T1"'}),
    ('thing=x; days=1; more=[1]', {'thing': 'x', 'days': 1, 'more': [1]}),
    ('thing=a; b, c;; days=1;', {'thing': 'a; b, c;', 'days': 1}),
    ('thing=x; days=1; to=["a;b"]', {'thing': 'x', 'days': 1, 'to': ['a;b']}),
  ],
)
def test_fields_are_read_in_the_types_of_the_card(context, arguments):
  plan = plan_lib.Plan('do', context, 'move')
  call, said = asyncio.run(modules.FieldExecutor().command(_view(), plan, _FIELDS))
  assert (call.tool, call.arguments, said) == ('move', arguments, '')
  assert base.check_arguments(_FIELDS, call.arguments) == arguments


@pytest.mark.parametrize(
  ('context', 'words'),
  [
    ('move the pot', 'name=value'),
    ('thing=T1; quickly', "'days'"),
    ('=T1', 'name=value'),
    ('thing=T1; thing=T2; days=1', 'twice'),
    ('thing=T1; days=soon', 'days'),
    ('thing=T1; days=1.5', 'days'),
    ('thing=T1; days=true', 'days'),
    ('thing=T1', "'days'"),
    ('thing=T1; days=1; shelf=S1', "'shelf'"),
    ('', "'thing'"),
    ('thing=x; days=' + '[' * 100_000, 'days'),
    ('thing=x; days=' + '[' * 600 + ']' * 600, 'days'),
    ('thing=x; days=' + '9' * 5_000, 'days'),
  ],
)
def test_fields_that_fit_no_card_are_text_for_the_model(context, words):
  plan = plan_lib.Plan('do', context, 'move')
  with pytest.raises(base.BadArguments, match=words):
    call, _ = asyncio.run(modules.FieldExecutor().command(_view(), plan, _FIELDS))
    base.check_arguments(_FIELDS, call.arguments)


def test_a_call_that_is_nested_too_deep_stays_a_text():
  """A record of it could not be written."""
  nested = '[' * 700 + ']' * 700
  plan = plan_lib.Plan('do', f'thing=x; days=1; more={nested}', 'move')
  call, _ = asyncio.run(modules.FieldExecutor().command(_view(), plan, _FIELDS))
  assert call.arguments['more'] == nested
  card = base.Card('ping', '', ())
  with pytest.raises(base.BadArguments, match='leave the context empty'):
    asyncio.run(
      modules.FieldExecutor().command(_view(), plan_lib.Plan('do', 'now', 'ping'), card)
    )


def test_the_verifier_of_worlds_never_stops():
  entry = memory_lib.Entry('search', 'answer', 'c', 'found')
  plan = plan_lib.Plan('answer it', '', 'search')
  judged = modules.WorldVerifier().judge(_view(), plan, entry)
  assert asyncio.run(judged) == (False, '')
