"""Tests of agents.numbered_memory."""

import asyncio
import re

import pytest

from agentflow_jax import records
from agentflow_jax.agents import memory as memory_lib, modules, numbered_memory
from agentflow_jax.agents import plan as plan_lib, references
from agentflow_jax.agents.environments import base as environments
from agentflow_jax.agents.tools import base

OSLO = numbered_memory.Numbering(references.Gazetteer(['Oslo']))


def _words(text):
  return len(text.split())


def test_start_marks_query_and_analysis_and_breaks_their_marks():
  start = numbered_memory.Numbering(references.Gazetteer(['Oslo', 'York']))
  memory = start('Is #7 Oslo?', 'See #1 York.', environments.Brief('Never #1 Oslo.'))
  assert memory.query == 'Is # #1 7 #2 Oslo?'
  assert memory.analysis == 'See # #3 1 #4 York.'
  assert memory.policy == 'Never # 1 Oslo.'
  assert memory.plain().query == 'Is # 7 Oslo?'
  assert numbered_memory.mentions(memory) == ('7', 'Oslo', '1', 'York')


def test_a_world_adds_its_own_names_and_keys():
  brief = environments.Brief(names=('red cup',), keys=r'T\d+')
  assert OSLO('5 red cup T7 Oslo', brief=brief).query == '5 #1 red cup #2 T7 #3 Oslo'
  assert OSLO('5 red cup T7 Oslo').query == '#1 5 red cup T7 #2 Oslo'


def test_plain_writes_every_field_in_plain_words():
  memory = OSLO('Oslo?').append(
    memory_lib.Entry('t', 'find #1', 'c #1', '#1 Oslo', verdict='#1 it is')
  )
  assert memory.plain().entries[0] == memory_lib.Entry(
    't', 'find Oslo', 'c Oslo', 'Oslo', verdict='Oslo it is'
  )


def test_only_a_result_gets_marks_and_no_text_forges_one():
  memory, plan = OSLO('Oslo?'), plan_lib.Plan('find #1', 'of #1', 'tool #1')
  entry, memory = memory.entry(plan, records.ToolResult('#1 in Oslo: 5'), _words, 9)
  memory = memory.judged(entry, 'as #1 says of Oslo', _words, 9)
  assert memory.entries == (
    memory_lib.Entry(
      'tool # 1',
      'find #1',
      'of #1',
      '# #2 1 in #1 Oslo: #3 5',
      False,
      'as # 1 says of Oslo',
    ),
  )
  assert numbered_memory.mentions(memory) == ('Oslo', '1', '5')


def test_a_plan_is_read_by_what_its_numbers_mean():
  memory = OSLO('Oslo 7')
  plan = plan_lib.Plan('find #1', '#2 of #1', 'tool')
  assert memory.plain_plan(plan) == plan_lib.Plan('find Oslo', '7 of Oslo', 'tool')
  programs = numbered_memory.Numbering(OSLO.gazetteer, in_programs=True)
  plan = plan_lib.Plan('find #1', "f(#2, #1, '#1')", 'tool')
  assert programs('Oslo 7').plain_plan(plan).context == "f(7, 'Oslo', '#1')"
  with pytest.raises(base.BadArguments, match='#3 refers to nothing'):
    memory.plain_plan(plan_lib.Plan('find #3', '', 'tool'))


def test_marks_after_the_cut_get_no_number():
  text = ' '.join(map(str, range(100, 200)))
  marked, memory = OSLO('').read(text, _words, 12)
  assert _words(marked) <= 12
  assert len(numbered_memory.mentions(memory)) == len(re.findall(r'#\d+', marked))


@pytest.mark.parametrize(
  'generator', [numbered_memory.MentionGenerator(), modules.RuleGenerator()]
)
def test_a_generator_answers_in_plain_words(generator):
  def answer(*results):
    memory = numbered_memory.Numbering(references.Gazetteer(['Oslo', 'Norway']))('q')
    for text, failed in results:
      text, memory = memory.mark(text)
      memory = memory.append(memory_lib.Entry('t', '', '', text, failed=failed))
    return asyncio.run(generator.answer(modules.View('task', memory, (), None)))

  found, is_last = ('#9 of Norway is Oslo.', False), ('Norway 5', True)
  is_rule = type(generator) is modules.RuleGenerator
  assert answer(found, is_last) == ('# 9 of Norway is Oslo.' if is_rule else 'Oslo')
  assert answer((' no name ', False)) == 'no name'
  assert answer(is_last) == answer() == ''


def test_a_plain_memory_has_no_mentions_and_texts_stay():
  memory = memory_lib.start('Oslo 5')
  assert numbered_memory.mentions(memory) == ()
  assert numbered_memory.resolved(memory, 'of #1') == 'of #1'
  assert numbered_memory.resolved(OSLO('Oslo'), 'of #1', literal=True) == "of 'Oslo'"
