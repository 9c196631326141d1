"""Tests of the parser of written tool calls."""

import json

import hypothesis
from hypothesis import strategies
import pytest

from agentflow_jax.agents.tools import base
from agentflow_jax.agents.tools import calls

_CARD = base.Card(
  name='search',
  purpose='p',
  arguments=(base.Argument('query', 'q'), base.Argument('k', 'k', 'integer')),
)


@pytest.mark.parametrize(
    'text, tool, arguments',
    [
        ('execution = tool.execute(query="a b", k=3)', None,
         {'query': 'a b', 'k': 3}),
        ('{"name": "search", "arguments": {"query": "a b", "k": 3}}', 'search',
         {'query': 'a b', 'k': 3}),
        ('<tool_call>\n{"name": "search", "arguments": {"query": "x"}}\n'
         '</tool_call>', 'search', {'query': 'x'}),
        ('{"tool": "tool", "parameters": "{\\"query\\": \\"x\\"}"}', None,
         {'query': 'x'}),
        ('{"analysis": "a", "command": "execution = tool.execute(query=\\"x\\")"'
         '}', None, {'query': 'x'}),
        ('{"name": "search", "arguments": {"query": "cut sho', 'search',
         {'query': 'cut sho'}),
        ('tool.execute(query="x")  # the first one', None, {'query': 'x'}),
        ('execution = search.execute(\n    query="x",  # what\n    k=-2,\n)',
         'search', {'query': 'x', 'k': -2}),
        ('```python\nexecution = tool.execute(query="x")\n```', None,
         {'query': 'x'}),
        ('Generated command:\n```\nexecution = tool.execute(query="x")\n```\n'
         'This searches for x.', None, {'query': 'x'}),
        ('```python\nexecution = tool.execute(query="x")', None,
         {'query': 'x'}),
        ('I would run `tool.execute(query="x")` now.', None, {'query': 'x'}),
        ('Run tool.execute(query="(x", k=[1, (2, 3)]) and stop.', None,
         {'query': '(x', 'k': [1, [2, 3]]}),
        ('  execution = tool.execute(query="x")\n  print(execution)', None,
         {'query': 'x'}),
        ('a = tool.execute(query="x")\nb = tool.execute(query="y")', None,
         {'query': 'x'}),
        ('query = "long"\nexecution = tool.execute(query=query)', None,
         {'query': 'long'}),
        ('tool.execute(code="""a = 1\nprint(f"{a})")\n""")', None,
         {'code': 'a = 1\nprint(f"{a})")\n'}),
        ('tool.execute(query="a" "b")', None, {'query': 'ab'}),
        ('tool.execute(**{"query": "x"}, k=None)', None,
         {'query': 'x', 'k': None}),
        ('tool.execute(flag=True, x=1.5, d={"a": [1]})', None,
         {'flag': True, 'x': 1.5, 'd': {'a': [1]}}),
        ('tool.execute()', None, {}),
        ('if True:\n  r = tool.execute(query="x")', None, {'query': 'x'}),
        ('await tool . execute ( query = "ü" )', None, {'query': 'ü'}),
        (r'tool.execute(query="\d+")', None, {'query': '\\d+'}),
    ],
)  # fmt: skip
def test_reads_calls(text, tool, arguments):
  assert calls.parse_command(text) == (tool, arguments)


def test_arguments_alone_need_a_card():
  text = "```json\n{'query': 'x', 'k': 3,}\n```"
  assert calls.parse_command(text, _CARD) == (None, {'query': 'x', 'k': 3})
  with pytest.raises(base.BadArguments, match='no call of the form'):
    calls.parse_command(text)
  card = base.Card('s', 'p', (base.Argument('maxResults', 'm', 'integer'),))
  assert calls.parse_command('{"maxResults": 3}', card) == (None, {'maxResults': 3})


def test_positional_arguments_need_a_card():
  assert calls.parse_command('tool.execute("x", k=2)', _CARD) == (
      None, {'query': 'x', 'k': 2},
  )  # fmt: skip
  with pytest.raises(base.BadArguments, match='name every argument'):
    calls.parse_command('tool.execute("x")')
  with pytest.raises(base.BadArguments, match='at most 2'):
    calls.parse_command('tool.execute("x", 1, 2)', _CARD)
  with pytest.raises(base.BadArguments, match="'query' is given twice"):
    calls.parse_command('tool.execute("x", query="y")', _CARD)


@pytest.mark.parametrize(
  'text, reason',
  [
    ('', 'no call'),
    ('search for lakes', 'no call'),
    ('print("x")', 'no call'),
    ('tool.execute(query="x', 'cannot be read'),
    ('tool.execute(query="x"', 'cannot be read'),
    ('tool.execute(query=)', 'cannot be read'),
    ('tool.execute(query="x", query="y")', 'twice'),
    ('tool.execute(query=open("f").read())', 'plain value'),
    ('tool.execute(query=f"{1}")', 'plain value'),
    ('tool.execute(query="a" + "b")', 'plain value'),
    ('tool.execute(query=undefined)', 'plain value'),
    ('x = open("f")\ntool.execute(query=x)', 'plain value'),
    ('tool.execute(query=b"x")', 'plain value'),
    ('tool.execute(query={1, 2})', 'plain value'),
    ('tool.execute(query=1j)', 'plain value'),
    ('tool.execute(query=1e999)', 'plain value'),
    ('tool.execute(query={1: 2})', 'plain value'),
    (r'tool.execute(query="\ud800")', 'plain value'),
    ('tool.execute(query=0x' + 'f' * 5000 + ')', 'plain value'),
    ('tool.execute(*[1])', 'name every argument'),
    ('tool.execute(**[1])', 'dictionary'),
    ('tool.execute(**{"a": 1}, a=2)', 'twice'),
    ('tool.execute(q=' + '[' * 3000 + ']' * 3000 + ')', 'cannot be read'),
    ('tool.execute(q=' + '-' * 9000 + '1)', 'cannot be read'),
    ('tool.execute(q=\0)', 'cannot be read'),
    ('x' * 16_001, 'at most'),
    ('{"name": "search", "arguments": ["x"]}', 'no call'),
    ('{"name": "search", "arguments": {"query": NaN}}', 'plain values'),
    ('{"name": "search", "arguments": {"query": "\\ud800"}}', 'plain'),
    ('{"command": "search for it"}', 'no call'),
    ('It takes {"query": "..."}, so\ntool.execute(query="cut', 'cannot be'),
    ('tool.execute(query="He said "x" {"query": "y"}")', 'cannot be read'),
  ],
)
def test_says_why_a_command_cannot_be_read(text, reason):
  with pytest.raises(base.BadArguments, match=reason):
    calls.parse_command(text)


_NAMES_OF_FIELDS = (
  'from',
  'max-results',
  'user.name',
  'a b',
  'say "it"',
  "it's",
  'a\\b',
  'gr\u00f6\u00dfe',
  '\u65e5\u672c',
  '\ufb01eld',
  '\u00b5',
  '',
  '9x',
  'None',
  '$ref',
  '#',
  'a=b',
  ')',
  '**',
  '`',
  '```',
  'query',
  'a\u2028b',
)


@pytest.mark.parametrize('name', _NAMES_OF_FIELDS)
def test_a_written_example_is_read(name):
  written = calls.example(['plain', name]).replace('...', '"x"')
  for text in (written, f'Now:\n```python\n{written}  # so\n```\nDone.'):
    assert calls.parse_command(text) == (None, {'plain': 'x', name: 'x'})


@pytest.mark.parametrize(
  ('text', 'arguments'),
  [
    ('tool.execute("a", **{"from": 1})', {'q': 'a', 'from': 1}),
    ('tool.execute(**{"from": 1}, q="a")', {'from': 1, 'q': 'a'}),
    ('tool.execute(**{"from": 1}, **{"q": "a"})', {'from': 1, 'q': 'a'}),
    ('a = {"from": 1}\ntool.execute(**a)', {'from': 1}),
    ('a = 1\ntool.execute(**{"from": a})', {'from': 1}),
    # Python would read this keyword as U+03BC.
    (
      'tool.execute(\u00b5=[true, {"a": null}], q=false)',
      {'\u00b5': [True, {'a': None}], 'q': False},
    ),
    ('{"from": 1}', {'from': 1}),
    ('Now \u2028 tool.execute(q="a\u2028b") and done', {'q': 'a\u2028b'}),
    ('tool.execute(q="""a\n  \nb""")', {'q': 'a\n  \nb'}),
  ],
)
def test_names_that_are_no_python_names(text, arguments):
  card = base.Card(
    's', 'p', tuple(base.Argument(n, '') for n in ('q', 'from', '\u00b5'))
  )
  assert calls.parse_command(text, card) == (None, arguments)


@pytest.mark.parametrize(
  ('text', 'reason'),
  [
    ('tool.execute(q="a", **{"q": "b"})', "'q' is given twice"),
    ('tool.execute(**{"q": "a", "q": "b"})', "'q' is given twice"),
    ('tool.execute(q={"k": 1, "k": 2})', "'k' is given twice"),
    ('tool.execute(**{1: 2})', 'strings as its keys'),
    ('tool.execute(**{f"{1}": 2})', 'strings as its keys'),
    ('tool.execute(**{**{"q": 1}})', 'strings as its keys'),
    ('tool.execute(**dict(q=1))', 'strings as its keys'),
    ('tool.execute(**{"from": open("f")})', 'from must be a plain value'),
    (r'tool.execute(**{"\ud800": 1})', 'plain value'),
    ('tool.execute(from="x")', r'write it as .*\*\*\{"from": \.\.\.\}'),
    # What is too much to try is named.
    ('```\nnothing\n```\n' * 9, 'of the 9 pieces'),
    ('{"q": ' + '"x" ' * 1000 + '}', 'as JSON it cannot be read either'),
  ],
)
def test_an_error_says_why_a_command_cannot_be_read(text, reason):
  card = base.Card('s', 'p', (base.Argument('q', ''), base.Argument('from', '')))
  with pytest.raises(base.BadArguments, match=reason):
    calls.parse_command(text, card)


def test_nothing_is_executed(tmp_path):
  target = tmp_path / 'written'
  act = f'open({str(target)!r}, "w")'
  for text in (
    f'tool.execute(query={act})',
    f'{act}\ntool.execute(query="x")',
    f'tool.execute(query=[{act}])',
    f'x = {act}\ntool.execute(query=x)',
    f'tool.execute(query=f"{{{act}}}")',
    f'tool.execute(**{{"query": {act}}})',
    f'tool.execute(**{{{act}: "x"}})',
    f'tool.execute(**{act})',
  ):
    try:
      calls.parse_command(text)
    except base.BadArguments:
      pass
  assert not target.exists()


_VALUES = strategies.recursive(
  strategies.none()
  | strategies.booleans()
  | strategies.integers(-(2**70), 2**70)
  | strategies.floats(allow_nan=False, allow_infinity=False)
  | strategies.text(strategies.characters(exclude_categories=['Cs'])),
  lambda inner: (
    strategies.lists(inner, max_size=3)
    | strategies.dictionaries(strategies.text('abc', max_size=3), inner, max_size=3)
  ),
  max_leaves=6,
)
_NAMES = strategies.from_regex(r'[a-z]{1,8}_x', fullmatch=True)
_TEXTS = strategies.text(max_size=200) | strategies.lists(
    strategies.sampled_from([
        'tool', '.execute(', ')', '(', '"', "'", '"""', '\\', '\n', '  ', '```',
        '```python\n', '`', '=', ',', 'query', '**', '*', '{', '}', '[', ']',
        '#', 'f"', '0x', '9' * 50, 'lambda:', '\0', '\t', '\f', ':=', 'é', ';',
    ]),
    max_size=40,
).map(''.join)  # fmt: skip


@hypothesis.settings(max_examples=200, deadline=None)
@hypothesis.given(strategies.dictionaries(_NAMES, _VALUES, max_size=4))
def test_any_arguments_survive_the_way_back(arguments):
  written = ', '.join(f'{name}={value!r}' for name, value in arguments.items())
  for text in (
    f'execution = tool.execute({written})',
    f'Now:\n```python\nexecution = tool.execute({written})  # so\n```\nDone.',
  ):
    if '```' in written:
      continue
    assert calls.parse_command(text) == (None, arguments)


@hypothesis.settings(max_examples=500, deadline=None)
@hypothesis.given(_TEXTS)
def test_any_text_is_a_call_or_a_reason(text):
  try:
    tool, arguments = calls.parse_command(text)
  except base.BadArguments as error:
    assert str(error)
  else:
    assert tool is None or tool.isidentifier()
    json.dumps(arguments, allow_nan=False).encode()


@pytest.mark.parametrize(
  'text, thinking',
  [
    ('<think>\ntool.execute(query="draft")?\n</think>\n\n{}', False),
    ('tool.execute(query="draft")?\n</think>\n{}', False),
    ('tool.execute(query="draft")?\n</think>\n{}', True),
    ('<think>' + 'x' * 20_000 + '</think>{}', False),
  ],
)
def test_a_call_that_thoughts_mention_is_not_read(text, thinking):
  for said in (
    'tool.execute(query="x")',
    '```python\ntool.execute(query="x")\n```',
    '{"name": "tool", "arguments": {"query": "x"}}',
  ):
    found = calls.parse_command(text.replace('{}', said), _CARD, thinking)
    assert found == (None, {'query': 'x'})
  with pytest.raises(base.BadArguments):
    calls.parse_command(text.partition('</think>')[0], _CARD, True)


def test_an_argument_may_hold_tags():
  text = 'tool.execute(query="write <think>x</think>")'
  assert calls.parse_command(text, _CARD)[1] == {'query': 'write <think>x</think>'}
