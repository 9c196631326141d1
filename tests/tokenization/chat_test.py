"""Chat templates: sandboxed, deterministic, and honest about what fails."""

import json

import pytest

from agentflow_jax import records
from agentflow_jax.tokenization import chat
from tests.tokenization import byte_tokenizer

_END = chat.AddedToken(7, '<|end|>')


def _template(source, added=(_END,), **variables):
  return chat.ChatTemplate(source, added, variables)


def _user(text):
  return [records.Segment('user', text, False)]


def test_runs_of_one_role_are_one_message():
  prompt = [
    records.Segment('system', 'a'),
    records.Segment('system', 'b'),
    records.Segment('user', 'c'),
    records.Segment('assistant', 'd'),
    records.Segment('user', 'e', False),
    records.Segment('user', 'f'),
  ]
  template = _template(
    '{% for m in messages %}[{{ m.role }}:{{ m.content }}]{% endfor %}'
  )
  assert template.text(prompt) == '[system:ab][user:c][assistant:d][user:ef]'


def test_pieces_are_cut_at_the_templates_own_tokens_alone():
  template = _template('{{ messages[0].content }}<|end|>x<|end|>')
  assert template.pieces(_user('a<|end|>b')) == ['a<|end|>b', 7, 'x', 7]
  assert template.pieces(_user('')) == [7, 'x', 7]


def test_a_token_may_take_the_white_space_beside_it():
  mask = chat.AddedToken(3, '<mask>', lstrip=True, rstrip=True)
  template = _template('a  <mask> \n{{ messages[0].content }}', (mask,))
  assert template.pieces(_user('b <mask>')) == ['a', 3, 'b <mask>']


def test_a_token_strips_the_white_space_of_messages_beside_it():
  mask = chat.AddedToken(3, '<mask>', lstrip=True, rstrip=True)
  template = _template(
    '{{ messages[0].content }}<mask>{{ messages[0].content }}', (mask,)
  )
  assert template.pieces(_user(' a\n ')) == [' a', 3, 'a\n ']


def test_the_longest_of_two_tokens_counts():
  tokens = (chat.AddedToken(1, '<a>'), chat.AddedToken(2, '<a><b>'))
  template = _template('<a><b><a>{{ messages[0].content }}', tokens)
  assert template.pieces(_user('<a><b>')) == [2, 1, '<a><b>']


@pytest.mark.parametrize(
  'source',
  [
    "{{ ''.__class__.__mro__ }}",
    "{{ messages.__init__.__globals__['__builtins__'] }}",
    '{% set _ = messages.append(1) %}{{ messages }}',
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "{{ raise_exception('roles must alternate') }}",
    '{{ undefined.field.field }}',
    "{% include '/etc/passwd' %}",
  ],
)
def test_a_template_reaches_nothing_but_its_messages(source):
  with pytest.raises(chat.TemplateError, match='chat template failed'):
    _template(source).text(_user('x'))


def test_a_template_reads_no_clock():
  template = _template(
    '{% if strftime_now is defined %}{{ strftime_now("%Y") }}{% else %}fixed{% endif %}'
  )
  assert template.text(_user('x')) == 'fixed'


def test_a_date_that_a_template_insists_on_is_always_the_same():
  template = _template("{{ strftime_now('%d %B %Y') }}")
  assert template.text(_user('x')) == '01 January 2025'


def test_what_transformers_offers_a_template_is_there():
  template = _template(
    '{% for m in messages %}{% if m.role == "system" %}{% continue %}'
    '{% endif %}{% generation %}{% set x = m.content %}[{{ x }}]'
    '{% endgeneration %}{% if m.content == "b" %}{% break %}{% endif %}'
    '{% endfor %}\n'
    '  {% if true %}\n'  # Blocks take their indentation and line's end.
    '{{ tools is none and documents is none and x is not defined }}\n'
    '  {% endif %}\n'
    '{{ {"b": 1, "a": "<"} | tojson(sort_keys=true, indent=1) }}'
  )
  prompt = [
    records.Segment(role, text)
    for role, text in zip(('system', 'user', 'assistant', 'user'), 'sabc')
  ]
  assert template.text(prompt) == ('[a][b]True\n{\n "a": "<",\n "b": 1\n}')


def test_json_is_written_as_transformers_writes_it():
  template = _template('{{ messages | tojson }}')
  assert template.text(_user('é<')) == '[{"role": "user", "content": "é<"}]'


def test_what_cannot_be_told_from_text_is_refused():
  with pytest.raises(chat.TemplateError, match='one character'):
    _template('x', (chat.AddedToken(1, '@'),))
  with pytest.raises(chat.TemplateError, match='does not compile'):
    _template('{% for %}')


_TAIL = (
  '{% for m in messages %}[{{ m.content }}]{% endfor %}'
  '{% if add_generation_prompt %}bot:REPLY{% endif %}'
)


@pytest.mark.parametrize(
  'reply, opens',
  [
    ('', False),
    ('<think>', True),
    ('<think>\n', True),
    ('<thinking> \n\n', True),
    ('<reasoning>', True),
    ('<think>\n\n</think>\n\n', False),
    ('<think>\nOkay', True),  # Its thoughts were begun, too.
    ('</think>', False),
    ('<thought>', True),
    ('[THINK]', True),
    ('[THINK][/THINK]', False),
    ('<b>', False),
  ],
)
def test_an_opener_at_the_end_of_a_prompt_is_known(reply, opens):
  added = (_END, chat.AddedToken(8, '<think>'), chat.AddedToken(9, '</think>'))
  for tokens in ((), added):
    template = _template(_TAIL.replace('REPLY', reply), tokens)
    assert template.opens_thought is opens


def test_an_opener_of_a_template_that_wants_a_system_message_is_known():
  wants = "{% if messages[0].role != 'system' %}{{ raise_exception('no') }}{% endif %}"
  template = _template(wants + _TAIL.replace('REPLY', '<think>'))
  assert template.opens_thought
  assert not _template("{{ raise_exception('no') }}").opens_thought
  # An opener in the messages is not one behind them.
  assert not _template('<think>{{ messages[0].content }}').opens_thought


# As Qwen3's, DeepSeek-V3.1's, Granite's and SmolLM3's templates switch.
_SWITCHES = {
  '{%- if enable_thinking is defined and enable_thinking is false %}'
  '<think>\n\n</think>{% endif %}': (False, False, False),
  '{% if not thinking is defined %}{% set thinking = false %}{% endif %}'
  '{% if thinking %}<think>{% else %}</think>{% endif %}': (False, True, False),
  '{% if thinking %}<think>{% endif %}': (False, True, False),
  '{% if enable_thinking is not defined %}{% set enable_thinking = true %}'
  '{% endif %}{{ "<think>" if enable_thinking else "<think></think>" }}': (
    True,
    True,
    False,
  ),
}


@pytest.mark.parametrize('source, opens', _SWITCHES.items())
def test_thinking_is_switched_by_the_templates_own_variable(source, opens):
  whole = '{{ messages[0].content }}' + source
  texts = []
  for thinking, wanted in zip(('auto', 'on', 'off'), opens, strict=True):
    template = chat.ChatTemplate(whole, (), {}, thinking)
    assert template.opens_thought is wanted, thinking
    texts.append(template.text(_user('x')))
  assert texts[1] != texts[2] and texts[0] in texts[1:]


@pytest.mark.parametrize(
  'source',
  [
    'x',
    '{% set enable_thinking = 1 %}{{ enable_thinking }}',
    '{{ messages[0].thinking }}',
  ],
)
def test_a_switch_that_the_template_does_not_read_is_refused(source):
  for thinking in ('on', 'off'):
    with pytest.raises(chat.TemplateError, match="set thinking to 'auto'"):
      chat.ChatTemplate(source, (), {}, thinking)
  chat.ChatTemplate(source, (), {}, 'auto')


_FUNCTION = {
  'type': 'function',
  'function': {
    'name': 'look<|end|>',
    'description': 'Looks <|end|> up.',
    'parameters': {
      'type': 'object',
      'properties': {'<|end|>': {'type': 'string', 'enum': ['<|end|>']}},
    },
  },
}
_CALLS = (
  records.ToolCall('look<|end|>', {'<|end|>': ['<|end|>', {'é"': '\n'}]}),
  records.ToolCall('b', {}),
)
_CONVERSATION = (
  records.Segment('user', 'Who?<|end|>', False),
  records.Segment('assistant', 'Hm.<|end|>', False, _CALLS),
  records.Segment('tool', 'one<|end|>', False),
  records.Segment('tool', 'two', False),
)
# One call in a message, in JSON without tags, as Llama 3's templates have it.
_SINGLE = (
  '{% for t in tools or [] %}{{ t | tojson(indent=1) }}{% endfor %}'
  '{% for m in messages %}{% if "tool_calls" in m %}'
  '{% if m.tool_calls | length != 1 %}{{ raise_exception("one at once") }}{% endif %}'
  '{% set f = m.tool_calls[0].function %}[assistant]<|end|>'
  '{"name": "{{ f.name }}", "parameters": {{ f.arguments | tojson }}}<|end|>'
  '{% elif m.role == "tool" %}[ipython]{{ {"output": m.content} | tojson }}<|end|>'
  '{% else %}[{{ m.role }}]{{ m.content | trim }}<|end|>{% endif %}{% endfor %}'
)


def test_tools_calls_and_results_are_rendered_and_none_becomes_a_token():
  template = _template(byte_tokenizer.TOOLS_TEMPLATE.replace('<|im_end|>', '<|end|>'))
  pieces = template.pieces(_CONVERSATION, (_FUNCTION,))
  assert pieces.count(7) == 5  # A message each: system, user, assistant, two results.
  text = ''.join(p if isinstance(p, str) else '#' for p in pieces)
  assert json.dumps(_FUNCTION) in text
  arguments = '{"<|end|>": ["<|end|>", {"é\\"": "\\n"}]}'
  assert f'{{"name": "look<|end|>", "arguments": {arguments}}}' in text
  assert 'Result: one<|end|>#' in text
  assert text.index('Result: one') < text.index('Result: two')
  # The text of messages alone is what it was.
  assert template.pieces(_CONVERSATION[:1]) == [
    '<|im_start|>user\nWho?<|end|>',
    7,
    '\n<|im_start|>assistant\n',
  ]


def test_escapes_of_json_cannot_make_a_token():
  token = chat.AddedToken(3, '\\n')  # A backslash, which JSON writes for a line break.
  template = _template(
    '{{ tools | tojson }}{{ messages[0].content | tojson }}', (token,)
  )
  (text,) = template.pieces(_user('a\nb'), ({'x': '\n'},))
  assert text == '[{"x": "\\n"}]"a\\nb"'


def test_a_template_that_takes_one_call_gets_each_in_a_message_of_its_own():
  template = _template(_SINGLE)
  text = template.text(_CONVERSATION)
  assert text.count('[assistant]') == text.count('[ipython]') == 2
  assert text.index('"name": "look') < text.index('one') < text.index('"name": "b"')
  assert template.pieces(_CONVERSATION, (_FUNCTION,)).count(7) == 7


@pytest.mark.parametrize(
  'source, shown',
  [
    (
      byte_tokenizer.TOOLS_TEMPLATE.replace('<|im_end|>', '<|end|>'),
      '<|im_start|>assistant\n<tool_call>\n{"name": "probe_name", "arguments":'
      ' {"probe_argument": "probe_value_0"}}\n</tool_call>',
    ),
    (
      _SINGLE,
      '{"name": "probe_name", "parameters": {"probe_argument": "probe_value_0"}}',
    ),
    # These leave out tools, calls, or results; the last one fails.
    ('{% for m in messages %}{{ m.content }}{% endfor %}', ''),
    ('{{ tools }}{% for m in messages %}{{ m.content }}{% endfor %}', ''),
    ('{{ messages | tojson }}', ''),
    ('{{ tools }}{% for m in messages %}{{ m.tool_calls[0].id }}{% endfor %}', ''),
    ('{{ raise_exception("no") }}', ''),
  ],
)
def test_a_template_is_asked_how_it_shows_a_call(source, shown):
  assert _template(source).shown_call == shown


def test_ids_and_names_of_results_are_those_of_their_calls():
  template = _template(
    '{% for m in messages %}{% for c in m.tool_calls or [] %}{{ c.id }} {% endfor %}'
    '{% if m.role == "tool" %}={{ m.tool_call_id }} {{ m.name }} {% endif %}'
    '{% endfor %}{{ tools | tojson }}'
  )
  calls = tuple(records.ToolCall(n, {}) for n in 'ab')
  turn = (
    records.Segment('assistant', '', False, calls),
    records.Segment('tool', 'x'),
    records.Segment('tool', 'y'),
  )
  template._joins_calls = True
  assert template.text(turn * 2) == (
    'call00000 call00001 =call00000 a =call00001 b '
    'call00002 call00003 =call00002 a =call00003 b null'
  )
