"""Tests of agents.plan: every shape of pitfalls.md, and a fuzzer's."""

import re

import hypothesis
from hypothesis import strategies as st
import pytest

from agentflow_jax.agents import plan as plan_lib
from tests.agents import cpu_limit

TOOLS = ('search', 'python', 'Wiki_Search')
EXPECTED = plan_lib.Plan('find the capital', 'France', 'search', 'it is asked')


@pytest.mark.parametrize(
  'text',
  [
    # As the prompt asks for it.
    'Justification: it is asked\nSub-Goal: find the capital\n'
    'Context: France\nTool Name: search',
    # Numbered sections, whose next number is no part of a context.
    '1. Justification: it is asked\n2. Sub-Goal: find the capital\n'
    '3. Context: France\n4. Tool Name: search',
    '1) Justification: it is asked\n\n(2) Sub-Goal: find the capital\n\n'
    '3.\nContext: France\n4.\nTool Name: search\n',
    # Back-ticks.
    'Justification: it is asked\nSub-Goal: `find the capital`\n'
    'Context: `France`\nTool Name: `search`',
    '```\nJustification: it is asked\nSub-Goal: find the capital\n'
    'Context: France\nTool Name: search\n```',
    '`Justification`: it is asked\n`Sub-Goal`: find the capital\n'
    '`Context`: France\n`Tool Name`: search',
    # Bold, in every place that models put the stars.
    '**Justification:** it is asked\n**Sub-Goal:** find the capital\n'
    '**Context:** France\n**Tool Name:** search',
    '**Justification**: it is asked\n**Sub-Goal**: find the capital\n'
    '**Context**: France\n**Tool Name**: **search**',
    '**Justification: it is asked**\n**Sub-Goal: find the capital**\n'
    '**Context: France**\n**Tool Name: search**',
    '- **Justification:**it is asked\n- **Sub-Goal:**find the capital\n'
    '- **Context:**France\n- **Tool Name:**search',
    # Headings, with and without a colon.
    '### Justification\nit is asked\n\n### Sub-Goal\nfind the capital\n\n'
    '### Context\nFrance\n\n### Tool Name\nsearch',
    '## 1. Justification:\nit is asked\n## 2. Sub-Goal:\nfind the capital\n'
    '## 3. Context:\nFrance\n## 4. **Tool Name**:\n`search`',
    # JSON, as OpenAI's structured output and as small models write it.
    '{"justification": "it is asked", "context": "France",'
    ' "sub_goal": "find the capital", "tool_name": "search"}',
    'My plan:\n```json\n{"Justification": "it is asked",\n"Sub-Goal":'
    ' "find the capital",\n"Context": "France", "Tool Name": "search",\n}',
    '{"sub_goal": "think", "tool": "python"}\nBetter:\n'
    '{"justification": "it is asked", "context": "France",'
    ' "sub_goal": "find the capital", "tool": "search"}',
    # Lower case, upper case, other spellings.
    'justification: it is asked\nsub-goal: find the capital\n'
    'context: France\ntool name: search',
    'JUSTIFICATION: it is asked\nSUB-GOAL: find the capital\n'
    'CONTEXT: France\nTOOL NAME: SEARCH',
    'Justification: it is asked\nSubgoal: find the capital\n'
    'Context: France\nTool: search',
    'justification: it is asked\nsub_goal: find the capital\n'
    'context: France\ntool_name: search',
    'Justification： it is asked\nSub‑Goal： find the capital\n'
    'Context： France\nSelected Tool： search',
    # A trailing sentence.
    'Justification: it is asked\nSub-Goal: find the capital\n'
    'Context: France\nTool Name: search\n\nThis will find it with python.',
    'Justification: it is asked\nSub-Goal: find the capital\n'
    'Context: France\nTool Name: search. It knows facts.',
    'Justification: it is asked\nSub-Goal: find the capital\n'
    'Context: France\nTool Name: I would use the search tool',
    # Thinking aloud first, another order, quotes, Windows line ends.
    'Sub-Goal: hm\nTool Name: python\n\nNo:\nJustification: it is asked\n'
    'Sub-Goal: find the capital\nContext: France\nTool Name: search',
    'Tool Name: search\nContext: "France"\nSub-Goal: "find the capital"\n'
    'Justification: it is asked',
    'Justification: it is asked\r\nSub-Goal: find the capital\r\n'
    'Context: France\r\nTool Name: search\r\n',
  ],
)
def test_reads_every_shape_that_models_write(text):
  assert plan_lib.parse(text, TOOLS) == EXPECTED


def _context(text):
  response = f'Sub-Goal: s\nContext: {text}\nTool Name: search'
  return plan_lib.parse(response, TOOLS).context


def test_context_ends_before_the_next_number():
  # The "c\n3." of AgentFlow's own regular expression.
  text = '1. Sub-Goal: s\n2. Context: c\n3. Tool Name: search'
  assert plan_lib.parse(text, TOOLS).context == 'c'


def test_an_object_that_a_plan_quotes_is_text():
  quoted = '{"sub_goal": "other", "tool": "python"}'
  for text in (
    f'Sub-Goal: read {quoted}\nContext: y\nTool Name: search',
    f'Sub-Goal: read\nContext: {quoted}\nTool Name: search',
  ):
    plan = plan_lib.parse(text, TOOLS)
    assert plan.tool == 'search' and quoted in plan.sub_goal + plan.context
  text = '{"sub_goal": "g", "tool": "search", "context": {"city": "Paris"}}'
  assert plan_lib.parse(text, TOOLS).context == '{"city": "Paris"}'


@pytest.mark.parametrize(
  'context',
  [
    'a\nb\n\n- c: d',
    '"New York" population',
    "'a' + 'b'",
    '2 ** 3 * 4',
    'the "best"',
    'x = 3\ntool = 5\ncontext = 7',
    'f(*args) or `ls`',
  ],
)
def test_context_is_kept_as_written(context):
  assert _context(context) == context


def test_a_fence_in_the_context_is_no_part_of_it():
  assert _context('```python\nprint(1)\n```') == 'print(1)'


def test_a_missing_justification_and_context_are_empty():
  plan = plan_lib.parse('Sub-Goal: s\nTool Name: wiki_search', TOOLS)
  assert plan == plan_lib.Plan('s', '', 'Wiki_Search', '')


@pytest.mark.parametrize(
  'text, why',
  [
    ('', 'no field'),
    ('I do not know.', 'no field'),
    ('Tool Name: search', 'no sub-goal'),
    ('Sub-Goal: **\nTool Name: search', 'no sub-goal'),
    ('Sub-Goal: s\nContext: c', 'names no tool'),
    ('Sub-Goal: s\nTool Name:', "unknown tool ''"),
    ('Sub-Goal: s\nTool Name: browser', "unknown tool 'browser'.*python"),
    ('Sub-Goal: s\nTool Name: researching', 'unknown tool'),
    ('Sub-Goal: s\nTool Name: the search or python', 'several tools'),
    ('Sub-Goal: s\nTool Name: do not use search', 'rejects the tool'),
    ('{"sub_goal": "s", "tool": ["search", "python"]}', 'several tools'),
    ('<think>Sub-Goal: s\nTool Name: search', 'nothing behind'),
    (
      f'Sub-Goal: s\nContext: {"c" * 30_000}\nTool Name: search',
      '30,039 characters; a plan has 20,000 at most',
    ),
    (
      '{"sub_goal": "s", "tool": "search", "context": "' + 'c' * 30_000 + '"}',
      '20,000 at most',
    ),
  ],
)
def test_says_why_it_cannot_be_read(text, why):
  with pytest.raises(plan_lib.PlanError, match=why):
    plan_lib.parse(text, TOOLS)


def test_thoughts_are_no_part_of_a_plan():
  draft = 'Sub-Goal: draft\nContext: hm\nTool Name: python\n'
  for text, thinking in (
    (f'<think>\n{draft}</think>\n\n{{}}', False),
    (f'<think>\n{draft}' + 'x' * 50_000 + '</think>{}', False),
    (f'{draft}</think>\n{{}}', False),
    (f'{draft}</think>\n{{}}', True),
    (f'<reasoning>{draft}</reasoning>{{}}', False),
  ):
    said = (
      'Justification: it is asked\nSub-Goal: find the capital\n'
      'Context: France\nTool Name: search'
    )
    response = text.replace('{}', said)
    assert plan_lib.parse(response, TOOLS, thinking) == EXPECTED
    # A draft that a closing tag turns into thoughts later is in doubt.
    with pytest.raises(plan_lib.PlanError):
      plan_lib.parse(text.removesuffix('</think>{}'), TOOLS, True)


def test_no_tag_in_a_context_is_a_thought():
  assert _context('write <think>x</think>') == 'write <think>x</think>'


_line = st.from_regex(r'[A-Za-z0-9#][ -~]{0,30}[A-Za-z0-9]', fullmatch=True)
_NAMES = re.compile('tool|context|goal|justif', re.IGNORECASE)
_free = _line.filter(lambda text: not _NAMES.search(text))


@hypothesis.given(st.builds(plan_lib.Plan, _free, _free, st.sampled_from(TOOLS), _free))
@hypothesis.settings(deadline=None, max_examples=100)
def test_reads_what_it_renders(plan):
  assert plan_lib.parse(plan.render(), TOOLS) == plan


@pytest.mark.parametrize(
  'text',
  [
    'Justification: it is asked\nSub-Goal: find the capital\n'
    'Context: France\nTool Name: search\n',
    '1. Justification: it is asked\n2. Sub-Goal: find the capital\n'
    '3. Context: France\n4.\nTool Name: search\n',
    '```\nJustification: it is asked\nSub-Goal: find the capital\n'
    'Context: France\nTool Name: search\n',
    '**Justification:** it is asked\n**Sub-Goal:** find the capital\n'
    '**Context:** France\n**Tool Name:** search\n',
    '### Justification\nit is asked\n\n### Sub-Goal\nfind the capital\n\n'
    '### Context\nFrance\n\n### Tool Name\n```text\nsearch\n',
    'Justification: it is asked\r\nSub-Goal: find the capital\r\n'
    'Context: France\r\nTool Name:\r\nsearch\r\n',
  ],
)
def test_the_end_of_a_plan_is_that_of_its_last_field(text):
  for after in ('', 'This will find it.', '\n```\n', 'Sub-Goal: more\n'):
    assert plan_lib.end_of(text + after) == len(text)
  for count in range(len(text)):
    assert plan_lib.end_of(text[:count]) is None
  assert plan_lib.parse(text, TOOLS) == EXPECTED


@pytest.mark.parametrize(
  'text',
  [
    '{"justification": "it is asked",\n"sub_goal": "find the capital",\n'
    '"tool_name": "search",\n"context": "France"}\n',
    # Another order: the context is still to come.
    'Sub-Goal: find the capital\nTool Name: search\nContext: France\n'
    'Justification: it is asked\n',
    # No tool of its own line: its end is not known before the model's.
    'Justification: it is asked\nSub-Goal: find the capital\nContext: France\n'
    'Tool Name: I would use the search tool\n',
  ],
)
def test_where_the_end_of_a_plan_is_in_doubt_there_is_none(text):
  assert plan_lib.end_of(text) is None
  assert plan_lib.parse(text, TOOLS) == EXPECTED


@pytest.mark.parametrize(
  'context',
  [
    'the last result was\n{\n  "tool": "python",\n  "output": 3\n}',
    'catalogue:\n- Tool: hammer\n- Tool: saw',
    'code:\n```python\nprint(1)\n```',
    '\n\n- a\n- b',
    '',
  ],
)
def test_what_is_cut_at_the_end_reads_as_the_whole(context):
  text = f'Sub-Goal: s\nContext: {context}\nTool Name: search\n'
  end = plan_lib.end_of(text + 'It knows facts.\n')
  assert end in (None, len(text))
  assert (end is None) == ('{' in context)
  assert plan_lib.parse(text[:end], TOOLS).tool == 'search'
  for before in (
    '<think>\nSub-Goal: hm\nContext: c\nTool Name: python\n</think>\n',
    # The instructions, repeated.
    'Sub-Goal: what to find out\nContext: all\nTool Name: the name of one\n',
  ):
    whole = before + text
    end = plan_lib.end_of(whole)
    assert end in (None, len(whole))


def test_the_end_of_a_plan_is_not_that_of_a_draft_in_thoughts():
  plan = 'Sub-Goal: s\nContext: c\nTool Name: search\n'
  for thoughts in (
    f'<think>\n{plan}</think>\n',
    f'<reasoning>{plan}</reasoning>',
    f'<think>{plan}<think>{plan}</think>{plan}</think>\n',
  ):
    for count in range(len(thoughts + plan)):
      assert plan_lib.end_of((thoughts + plan)[:count]) is None
    assert plan_lib.end_of(thoughts + plan + 'more') == len(thoughts + plan)
  # The prompt opened the thought.
  text = f'{plan}</think>\n{plan}'
  assert plan_lib.end_of(plan, thinking=True) is None
  assert plan_lib.end_of(text, thinking=True) == len(text)
  # Thoughts in the middle: in doubt.
  assert plan_lib.end_of(f'Sub-Goal: s\n<think>\n{plan}</think>\n') is None


def test_a_plan_is_not_read_out_of_thoughts_behind_it():
  text = (
    'Sub-Goal: s\nContext: c\nTool Name: search\n'
    '<think>\nOr this:\nTool Name: python\n</think>\n'
  )
  assert plan_lib.parse(text, TOOLS).tool == 'search'


_pieces = st.sampled_from(
  [
    'Sub-Goal',
    'Context',
    'Tool Name',
    'Justification',
    ':',
    '：',
    '\n',
    '**',
    '`',
    '```',
    '#',
    '1.',
    '(2)',
    ' ',
    '"',
    "'",
    'search',
    'python',
    '-',
    '\0',
    '\ud800',
    'İ',
    'x',
    '<think>',
    '</think>',
    'or',
  ]
)


@hypothesis.given(st.text() | st.lists(_pieces, max_size=40).map(''.join))
@hypothesis.settings(deadline=None, max_examples=400)
def test_any_text_is_a_plan_or_a_plan_error(text):
  try:
    plan = plan_lib.parse(text, TOOLS)
  except plan_lib.PlanError as e:
    assert str(e)
  else:
    assert plan.tool in TOOLS and plan.sub_goal.strip()


@hypothesis.given(st.lists(_pieces, max_size=40).map(''.join))
@hypothesis.settings(deadline=None, max_examples=400)
def test_more_text_never_moves_the_end_of_a_plan(text):
  ends = [plan_lib.end_of(text[:count]) for count in range(len(text) + 1)]
  found = {end for end in ends if end is not None}
  assert len(found) <= 1
  for end in found:
    assert ends == [None] * end + [end] * (len(text) + 1 - end)


@pytest.mark.parametrize(
  'piece',
  [
    '\n',
    ' ',
    '*',
    '`',
    '# ',
    '"',
    '1.\n',
    '1. ',
    '\n ',
    '```\n',
    '> -',
    'context',
    'context\n',
    'sub ',
    'tool\n',
    'selected\n',
    'tool:',
    '_*',
    '(9)',
    '"*',
    '\t\r\n',
  ],
)
def test_takes_time_in_proportion_to_the_text(piece):
  # Quadratic work would take minutes here.
  with cpu_limit.cpu_limit(1.0, f'parsing repeated {piece!r}'):
    for text in (piece, 'Context:' + piece, '1.' + piece, 'Tool' + piece):
      whole = (text + piece * 20_000)[:20_000]
      with pytest.raises(plan_lib.PlanError):
        plan_lib.parse(whole, TOOLS)
      assert plan_lib.end_of(whole) is None


@pytest.mark.parametrize(
  ('text', 'thought', 'program'),
  [
    ('First a look.\n```python\nx = 1\n```', 'First a look.', 'x = 1'),
    ('```\nx = 1\n\ny = 2\n```\nThen more.', 'Then more.', 'x = 1\n\ny = 2'),
    ('```py\nx = 1', '', 'x = 1'),
    ('  ~~~python\nx = """\n```\n"""\n~~~', '', 'x = """\n```\n"""'),
    ('````\n```\nx\n```\n````', '', '```\nx\n```'),
    ('<think>\n```\ny\n```\n</think>\n```\nx\n```', '', 'x'),
    ('```x = 1``` is said\n```python\nx = 1\n```', '```x = 1``` is said', 'x = 1'),
  ],
)
def test_a_program_stands_in_one_fenced_block(text, thought, program):
  plan = plan_lib.parse_code(text, 'code')
  assert (plan.sub_goal, plan.context, plan.tool) == (thought, program, 'code')


@pytest.mark.parametrize(
  ('text', 'said'),
  [
    ('', 'no fenced block'),
    ('x = 1', 'no fenced block'),
    ('```\n\n```', 'is empty'),
    ('```', 'is empty'),
    ('```\na\n```\n```\nb\n```', '2 fenced blocks'),
    ('<think>\n```\na\n```\n</think>', 'thoughts and nothing'),
  ],
)
def test_other_responses_are_no_programs(text, said):
  with pytest.raises(plan_lib.PlanError, match=said):
    plan_lib.parse_code(text, 'code')


@hypothesis.given(st.text() | st.lists(_pieces, max_size=40).map(''.join))
@hypothesis.settings(deadline=None, max_examples=200)
def test_any_text_is_a_program_or_a_plan_error(text):
  try:
    plan = plan_lib.parse_code(text, 'code')
  except plan_lib.PlanError as e:
    assert str(e)
  else:
    assert plan.context.strip()


@hypothesis.given(st.lists(_pieces, max_size=40).map(''.join))
@hypothesis.settings(deadline=None, max_examples=200)
def test_more_text_never_moves_the_end_of_a_program(text):
  ends = [plan_lib.end_of_code(text[:count]) for count in range(len(text) + 1)]
  found = {end for end in ends if end is not None}
  assert len(found) <= 1
  for end in found:
    assert ends == [None] * end + [end] * (len(text) + 1 - end)


@pytest.mark.parametrize('piece', ['```', '```\n', ' ```x\n', '\t', '~~~\n', '\n'])
def test_a_program_is_read_in_time_in_proportion_to_the_text(piece):
  with cpu_limit.cpu_limit(1.0, f'reading repeated {piece!r}'):
    whole = (piece * 20_000)[:20_000]
    plan_lib.end_of_code(whole)
    with pytest.raises(plan_lib.PlanError):
      plan_lib.parse_code(whole + '\n```\n```\n```', 'code')


def test_a_plan_may_name_a_tool_that_is_none():
  text = 'Sub-Goal: find it\nContext: x=1\nTool Name: lend or\n  borrow'
  with pytest.raises(plan_lib.PlanError) as error:
    plan_lib.parse(text, TOOLS)
  plan = plan_lib.parse(text, TOOLS, any_tool=True)
  assert (plan.sub_goal, plan.context) == ('find it', 'x=1')
  assert plan.tool.startswith('lend') and '\n' not in plan.tool
  assert plan.problem == str(error.value)
  named = plan_lib.parse(f'Sub-Goal: a\nTool Name: {TOOLS[0]}', TOOLS, any_tool=True)
  assert (named.tool, named.problem) == (TOOLS[0], '')
  with pytest.raises(plan_lib.PlanError):
    plan_lib.parse('Tool Name: lend', TOOLS, any_tool=True)
