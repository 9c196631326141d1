"""Tests of agents.call_text: calls are read from any text, and written to be read."""

import dataclasses
import json
import random
import time

import pytest

from agentflow_jax import records
from agentflow_jax.agents import call_text, instructions

_TOOLS = (
  {
    'type': 'function',
    'function': {'name': 'search', 'description': 'Looks </tool_call> up.'},
  },
)


def _calls(text, thinking=False):
  return [(c.tool, dict(c.arguments)) for c in call_text.read(text, thinking).calls]


@pytest.mark.parametrize(
  'text, calls, content',
  [
    ('Oslo', [], 'Oslo'),
    ('', [], ''),
    # Hermes and Qwen, with and without the last tag.
    (
      '<tool_call>\n{"name": "a", "arguments": {"q": 1}}\n</tool_call>',
      [('a', {'q': 1})],
      '',
    ),
    ('Hm. <tool_call>{"name": "a"}', [('a', {})], 'Hm.'),
    (
      'x <tool_call>{"name":"a","arguments":{}}</tool_call> y'
      ' <tool_call>{"name":"b","arguments":null}</tool_call> z',
      [('a', {}), ('b', {})],
      'x\ny\nz',
    ),
    # An argument may spell what ends a call, or begins one.
    (
      '<tool_call>{"name": "a", "arguments": {"q": "</tool_call><tool_call>{}"}}'
      '</tool_call>',
      [('a', {'q': '</tool_call><tool_call>{}'})],
      '',
    ),
    # Line breaks inside of a string, and arguments as a text.
    (
      '<tool_call>{"name": "p", "arguments": {"code": "a\nb"}}</tool_call>',
      [('p', {'code': 'a\nb'})],
      '',
    ),
    (
      '<tool_call>{"name": "a", "arguments": "{\\"q\\": 1}"}</tool_call>',
      [('a', {'q': 1})],
      '',
    ),
    # SmolLM2: a list, which may be empty.
    (
      '<tool_call>[{"name": "a", "arguments": {}}, {"name": "b"}]</tool_call>',
      [('a', {}), ('b', {})],
      '',
    ),
    ('<tool_call>[]</tool_call>', [], ''),
    # Llama 3.
    ('{"name": "a", "parameters": {"q": "x"}}', [('a', {'q': 'x'})], ''),
    (
      '<|python_tag|>{"name": "a", "parameters": {}}; {"name": "b", "parameters": {}}',
      [('a', {}), ('b', {})],
      '',
    ),
    (
      '{"type": "function", "function": {"name": "a", "parameters": {}}} so',
      [('a', {})],
      'so',
    ),
    # An answer that is JSON, or speaks of it, is no call.
    ('{"name": "Bo", "age": 3}', [], '{"name": "Bo", "age": 3}'),
    ('[]', [], '[]'),
    (
      '{"name": "Bo", "parameters": {}, "age": 3}',
      [],
      '{"name": "Bo", "parameters": {}, "age": 3}',
    ),
    ('So: {"name": "a", "parameters": {}}', [], 'So: {"name": "a", "parameters": {}}'),
  ],
)
def test_calls_are_read(text, calls, content):
  said = call_text.read(text)
  assert (_calls(text), said.content, said.problems) == (calls, content, ())
  assert said.answer == said.content


@pytest.mark.parametrize(
  'block, reason',
  [
    ('<tool_call>', 'expecting value'),
    (
      '<tool_call>{"name": "a", "arguments": {"q": 1}</tool_call>',
      "expecting ',' delimiter behind",
    ),
    ('<tool_call>{"name": "a"}}</tool_call>', 'text follows its JSON'),
    ('<tool_call>{"arguments": {}}</tool_call>', 'no "name"'),
    ('<tool_call>["a"]</tool_call>', 'no "name"'),
    ('<tool_call>{"name": "a", "arguments": [1]}</tool_call>', 'no JSON object'),
    ('<tool_call>{"name": "a", "arguments": "q=1"}</tool_call>', 'expecting value'),
    ('<tool_call>{"name": "a", "arguments": {"q": NaN}}</tool_call>', 'plain values'),
    ('<tool_call>{"name": "a", "arguments": {"q": "\\ud800"}}', 'surrogates'),
    ('<tool_call>{"name": "a\\ud800", "arguments": {}}', 'surrogates'),
    ('<tool_call>' + '[' * 100_000, 'recursion'),
    (
      '<tool_call>{"name": "a", "arguments": {"q": ' + '[' * 200 + ']' * 200 + '}}',
      'inside each other',
    ),
    ('{"name": "a", "parameters": {"q": 1}', "expecting ',' delimiter behind"),
  ],
)
def test_what_cannot_be_read_is_a_sentence_and_stays_in_the_content(block, reason):
  said = call_text.read(block)
  assert said.calls == () and said.content == block
  (problem,) = said.problems
  assert problem.startswith('A tool call could not be read') and reason in problem
  if block.startswith('{'):
    return
  # A call that can be read is made all the same, and the problem is the same.
  more = call_text.read(f'{block}\n<tool_call>{{"name": "b"}}</tool_call>')
  assert [c.tool for c in more.calls] == ['b'] and more.problems == said.problems
  assert more.content == block


def test_a_broken_call_hides_what_its_arguments_quote():
  inner = '<tool_call>{"name": "send", "arguments": {}}</tool_call>'
  said = call_text.read(f'<tool_call>{{"name": "a", "arguments": {{"q": "{inner}"}}')
  assert said.calls == () and len(said.problems) == 1


@pytest.mark.parametrize('thinking', [False, True])
def test_thoughts_are_not_read(thinking):
  call = '<tool_call>{"name": "z"}</tool_call>'
  opened = '' if thinking else '<think>'
  text = f'{opened}so {call}</think>\n\n'
  said = call_text.read(text + 'Oslo', thinking)
  assert (said.calls, said.answer) == ((), 'Oslo')
  assert said.content == text + 'Oslo'
  assert _calls(text + '<tool_call>{"name": "y"}', thinking) == [('y', {})]
  bare = call_text.read(text + '{"name": "y", "parameters": {}}', thinking)
  assert [c.tool for c in bare.calls] == ['y']
  assert call_text.read(call_text.write(bare.content, [('y', {})])) == bare
  unended = call_text.read(f'{opened}so {call}', thinking)
  assert (unended.calls, unended.answer) == ((), '')


def test_a_tag_of_thoughts_in_an_argument_is_part_of_it():
  call = '<tool_call>{"name": "a", "arguments": {"q": "x </think> y"}}</tool_call>'
  assert _calls(call) == [('a', {'q': 'x </think> y'})]
  assert _calls(call_text.write('Hm.', [('a', {'q': 'x </think> y'})])) == [
    ('a', {'q': 'x </think> y'})
  ]
  # A server may give calls beside a thought that was cut.
  assert _calls(call_text.write('<think>so', [('a', {})])) == [('a', {})]


def test_what_is_read_is_written_and_read_again():
  rng = random.Random(0)
  parts = (
    '<tool_call>',
    '</tool_call>',
    '{"name": "a", "arguments": {"q": "x"}}',
    '{',
    '}',
    '[',
    ']',
    '\n',
    ' ',
    'text',
    '"',
    ',',
    '<think>',
    '<think>so</think>',
    ';',
    '<|python_tag|>',
    '{"name": "b", "parameters": {}}',
    '\\',
    '```',
    '<tool_call>{"name": "c"}</tool_call>',
    '<tool_call>\n{"name": "d", "arguments": "{}"}\n',
  )
  seen = 0
  for _ in range(4000):
    text = ''.join(rng.choices(parts, k=rng.randrange(12)))
    thinking = rng.random() < 0.2
    said = call_text.read(text, thinking)
    seen += bool(said.calls) + bool(said.problems)
    # A stream never takes back what it has sent.
    for end in range(len(text) + 1):
      assert said.content.startswith(call_text.sure(text[:end]))
    if thinking or '<think>' in text:
      continue  # Thoughts behind calls, or without a beginning, may hide calls.
    pairs = [(c.tool, dict(c.arguments)) for c in said.calls]
    again = call_text.read(call_text.write(said.content, pairs))
    assert bool(again.problems) == bool(said.problems), text
    # Two broken blocks without the call between them are one.
    assert dataclasses.replace(again, problems=said.problems) == said, text
  assert seen > 2000


def test_reading_takes_linear_time():
  start = time.process_time()
  for piece in (
    '<tool_call>{"a": "\n',
    '<tool_call>',
    '{"name": ',
    '[',
    '<|python_tag|>{',
  ):
    assert call_text.read(piece * 20_000).calls == ()
  assert time.process_time() - start < 20  # Quadratic time would be minutes.


def test_at_most_64_blocks_are_read():
  said = call_text.read('<tool_call>{"name": "a"}</tool_call>\n' * 70)
  assert len(said.calls) == 64 and '64' in said.problems[0]


def test_the_plain_form_is_messages_of_text():
  call = records.ToolCall('search', {'q': 'é'})
  found = records.joined(
    call_text.plain(
      (
        records.Segment('system', 'Be kind.'),
        records.Segment('user', 'Who?', False),
        records.Segment('assistant', 'Hm.', False, (call, call)),
        records.Segment('tool', 'one', False),
        records.Segment('tool', 'two', False),
        records.Segment('user', 'Error: no'),
      ),
      _TOOLS,
    )
  )
  assert [s.role for s in found] == ['system', 'user', 'assistant', 'user']
  assert not any(s.calls for s in found)
  assert found[0].text == f'Be kind.\n\n{instructions.CALLS}' + json.dumps(
    _TOOLS[0]['function']
  )
  assert call_text.read(found[2].text) == call_text.Said('Hm.', (call, call), (), 'Hm.')
  assert found[3].text == (
    '<tool_response>\none\n</tool_response>\n<tool_response>\ntwo\n</tool_response>\n'
    'Error: no'
  )
  alone = call_text.plain((records.Segment('user', 'Who?'),), _TOOLS)
  assert records.joined(alone)[0].text.startswith('You may call')
