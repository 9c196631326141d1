"""Cards of servers' tools: names, schemas, and results as text."""

import types

import pytest

from agentflow_jax.agents.tools import base, calls
from agentflow_jax.agents.tools.mcp import cards


def _card(properties, required=(), **more):
  schema = {'type': 'object', 'properties': properties, 'required': required}
  return cards.card('s', {'name': 't', 'description': 'd', 'schema': schema | more})


@pytest.mark.parametrize(
  ('schema', 'kind'),
  [
    ({'type': 'string'}, 'string'),
    ({'type': ['integer', 'null']}, 'integer'),
    ({'type': ['integer', 'string']}, 'any'),
    ({}, 'any'),
    ({'anyOf': [{'type': 'array'}, {'type': 'null'}]}, 'array'),
    ({'anyOf': [{'type': 'array'}, {'type': 'string'}]}, 'any'),
    ({'anyOf': [{'type': 'integer'}, {'type': 'number'}]}, 'number'),
    ({'enum': ['a', 'b']}, 'string'),
    ({'enum': ['a', 1]}, 'any'),
    ({'enum': ['a', None]}, 'string'),
    ({'const': 3}, 'integer'),
    ({'$ref': '#/x'}, 'any'),
    ({'type': 'odd'}, 'any'),
    ({'anyOf': ['odd']}, 'any'),
    ({'$ref': '#/$defs/D'}, 'object'),
    ({'allOf': [{'$ref': '#/$defs/D'}]}, 'object'),
  ],
)
def test_types_of_arguments(schema, kind):
  card = cards.card(
    's',
    {
      'name': 'a-b.c',
      'description': 'x' * 1000,
      'schema': {
        'properties': {'p': schema, 'q': 'odd'},
        'required': 'odd',
        '$defs': {'D': {'type': 'object'}},
      },
    },
  )
  assert card.name == 's_a_b_c'
  assert len(card.purpose) == 500
  assert [a.type for a in card.arguments] == [kind, 'any']
  assert not any(a.required for a in card.arguments)


@pytest.mark.parametrize(
  'field',
  [
    'from',
    'max-results',
    'user.name',
    'a b',
    'a\nb',
    '<|im_end|>',
    'x' * 300,
    "it's",
    'say "it"',
    '\u00b5',
    '\ud800',
    '',
  ],
)
def test_the_example_of_a_card_is_read(field):
  card = _card({'q': {'type': 'string'}, field: {'type': 'string'}}, ['q', field])
  text = card.examples[0].replace('...', '"x"')
  _, arguments = calls.parse_command(text, card)
  assert base.check_arguments(card, arguments) == arguments
  names = cards.names({'properties': {'q': {}, field: {}}})
  assert {names[shown] for shown in arguments} == {'q', field}
  # The card stands in trusted text.
  assert '<' not in text and '\n' not in text
  assert all(len(shown) <= 128 for shown in arguments)


def test_names_that_look_the_same_are_told_apart():
  schema = {'properties': {'a<b': {}, 'a\u2039b': {}, 'a b': {}, 'a  b': {}}}
  names = cards.names(schema)
  assert len(names) == 4
  assert set(names.values()) == set(schema['properties'])


def test_a_card_says_what_may_be_null_and_what_is_nested():
  card = _card(
    {
      'a': {'anyOf': [{'type': 'string'}, {'type': 'null'}], 'default': None},
      'b': {'type': 'array', 'items': {'type': 'integer'}, 'default': [1]},
      'c': {
        'type': 'object',
        'required': ['k'],
        'properties': {'k': {'type': ['string', 'null']}, 'l': {'const': '\u00e4'}},
      },
      'd': {'$ref': '#/$defs/tree'},
    },
    **{
      '$defs': {
        'tree': {'type': 'object', 'properties': {'next': {'$ref': '#/$defs/tree'}}}
      }
    },
  )
  shown = {a.name: a.description for a in card.arguments}
  assert shown['a'] == 'string or null'
  assert shown['b'] == 'array of integer; by default [1]'
  assert shown['c'] == (
    'object {"k": string or null, "l": one of ["\u00e4"] (optional)}'
  )
  assert shown['d'].startswith('object {"next": object {"next": ')


_SCHEMAS = {
  's': {'type': 'string'},
  'i': {'type': 'integer'},
  'n': {'type': 'number'},
  'b': {'type': 'boolean'},
  'ns': {'type': ['string', 'null']},
  'ni': {'anyOf': [{'type': 'integer'}, {'type': 'null'}]},
  'open': {'type': 'string', 'nullable': True},
  'e': {'enum': ['a', None, 1]},
  'oe': {'enum': ['a'], 'nullable': True},
  'c': {'const': {'a': [1]}},
  'li': {'type': 'array', 'items': {'type': 'integer'}},
  'o': {
    'type': 'object',
    'required': ['k'],
    'properties': {'k': {'type': 'integer'}, 'l': {'$ref': '#/$defs/L'}},
  },
  'm': {'type': 'object', 'additionalProperties': {'type': 'integer'}},
  'u': {'oneOf': [{'type': 'integer'}, {'type': 'string'}]},
  'all': {'allOf': [{'$ref': '#/$defs/L'}]},
  'any': {},
  # Alternatives of alternatives, without end.
  'x': {'oneOf': [{'$ref': '#/properties/x'}] * 3},
}
_CARD = _card(
  _SCHEMAS,
  **{'$defs': {'L': {'anyOf': [{'type': 'null'}, {'$ref': '#/properties/li'}]}}},
)


@pytest.mark.parametrize(
  ('name', 'given', 'taken'),
  [
    ('i', 5, 5),
    ('i', 5.0, 5),
    ('i', -0.0, 0),
    ('n', 5, 5),
    ('n', 5.0, 5.0),
    ('n', 0.5, 0.5),
    ('b', True, True),
    ('ns', None, None),
    ('ns', 'x', 'x'),
    ('ni', None, None),
    ('ni', 5.0, 5),
    ('open', None, None),
    ('oe', None, None),
    ('oe', 'a', 'a'),
    ('e', None, None),
    ('e', 'a', 'a'),
    ('e', 1.0, 1),
    ('c', {'a': [1.0]}, {'a': [1]}),
    ('li', [1, 2.0], [1, 2]),
    ('li', [], []),
    ('o', {'k': 1.0, 'l': [2.0], 'z': 0.5}, {'k': 1, 'l': [2], 'z': 0.5}),
    ('o', {'k': 1, 'l': None}, {'k': 1, 'l': None}),
    ('m', {'q': 1.0}, {'q': 1}),
    ('u', 'x', 'x'),
    ('u', 2.0, 2),
    ('all', [3.0], [3]),
    ('any', None, None),
    ('any', 5.0, 5.0),
    ('x', 'x', 'x'),
  ],
)
def test_arguments_that_a_schema_allows(name, given, taken):
  checked = base.check_arguments(_CARD, {name: given})
  assert checked == {name: taken}
  assert repr(checked) == repr({name: taken})  # 5 and 5.0 are equal.


@pytest.mark.parametrize(
  ('name', 'given', 'match'),
  [
    ('s', 5, 's must be a string, not the integer 5'),
    ('s', None, 's must be a string, not null; leave it out'),
    ('i', 5.5, 'i must be an integer, not the number 5.5'),
    ('i', True, 'i must be an integer, not the boolean true'),
    ('i', '5', 'i must be an integer, not the string "5"'),
    ('n', False, 'must be a number'),
    ('b', 1, 'must be a boolean'),
    ('ns', 1, 'must be a string or null'),
    ('e', True, 'one of .*true'),
    ('e', 'b', r'e must be one of \["a", null, 1\], not the string "b"'),
    ('c', {'a': [True]}, 'one of'),
    ('li', [1, 'x'], r'li\[1\] must be an int'),
    ('li', [True], r'li\[0\]'),
    ('o', {}, 'o needs the field "k"'),
    ('o', {'k': 1, 'l': ['x']}, r'o\["l"\]\[0\] must be an integer'),
    ('m', {'q': 'x'}, r'm\["q"\]'),
    ('u', True, 'an integer or string'),
    ('all', 1, 'must be'),
    ('z', 1, "no argument 'z'"),
  ],
)
def test_arguments_that_a_schema_refuses(name, given, match):
  with pytest.raises(base.BadArguments, match=match):
    base.check_arguments(_CARD, {name: given})


def _block(kind, **more):
  return types.SimpleNamespace(type=kind, **more)


_TEXT, _BLANK = _block('text', text='Done.'), _block('text', text=' \n')
_IMAGE = _block('image', data='', mimeType='image/png')
_LINK = _block(
  'resource_link',
  uri='file:///a',
  name='a.txt',
  description='A <file>',
  mime_type='text/plain',
)
_BLOB = _block(
  'resource',
  resource=types.SimpleNamespace(uri='file:///b', blob='', mimeType='image/png'),
)
_FILE = _block(
  'resource', resource=types.SimpleNamespace(uri='file:///c', text='Its words.')
)


@pytest.mark.parametrize(
  ('blocks', 'structured', 'text'),
  [
    ([_BLANK], {'answer': 42}, '{"answer": 42}'),
    ([], {'answer': '\u00e4'}, '{"answer": "\u00e4"}'),
    ([], 0, '0'),
    (None, [], '[]'),
    ([_BLANK, _BLANK], None, ''),
    ([_block('text', text='\u200b\ufeff ')], {'answer': 42}, '{"answer": 42}'),
    ([_TEXT], {'answer': 42}, 'Done.'),
    ([_BLANK, _TEXT], None, 'Done.'),
    ([_IMAGE], {'answer': 42}, '{"answer": 42}\n[image left out]'),
    ([_TEXT, _IMAGE], None, 'Done.\n[image left out]'),
    ([_block('audio')], None, '[audio left out]'),
    ([_LINK], None, '[a resource: file:///a, a.txt, A \u2039file\u203a, text/plain]'),
    ([_BLOB], {'n': 1}, '{"n": 1}\n[resource left out: file:///b, image/png]'),
    ([_FILE, _BLANK], {'n': 1}, 'Its words.'),
  ],
)
@pytest.mark.parametrize('name', ['structured_content', 'structuredContent'])
def test_results_as_text(blocks, structured, text, name):
  result = types.SimpleNamespace(content=blocks, **{name: structured})
  assert cards.text(result) == text


def test_a_result_says_whether_it_is_an_error():
  said = types.SimpleNamespace
  assert cards.is_error(said(is_error=True))
  assert cards.is_error(said(isError=True))
  assert not cards.is_error(said(is_error=False))
  assert not cards.is_error(said())
