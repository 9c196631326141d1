"""Chat templates: sandboxed, deterministic, and honest about what fails."""

import pytest

from agentflow_jax import records
from agentflow_jax.tokenization import chat

_END = chat.AddedToken(7, '<|end|>')


def _template(source, added=(_END,), **variables):
  return chat.ChatTemplate(source, added, variables)


def _user(text):
  return [records.Segment('user', text, False)]


def test_runs_of_one_role_are_one_message():
  prompt = [
      records.Segment('system', 'a'), records.Segment('system', 'b'),
      records.Segment('user', 'c'), records.Segment('assistant', 'd'),
      records.Segment('user', 'e', False), records.Segment('user', 'f'),
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
      '{% if strftime_now is defined %}{{ strftime_now("%Y") }}'
      '{% else %}fixed{% endif %}'
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
  assert template.text(prompt) == (
      '[a][b]True\n{\n "a": "<",\n "b": 1\n}'
  )


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
  wants = (
      "{% if messages[0].role != 'system' %}{{ raise_exception('no') }}"
      '{% endif %}'
  )
  template = _template(wants + _TAIL.replace('REPLY', '<think>'))
  assert template.opens_thought
  assert not _template("{{ raise_exception('no') }}").opens_thought
  # An opener in the messages is not one behind them.
  assert not _template('<think>{{ messages[0].content }}').opens_thought


# As Qwen3's, DeepSeek-V3.1's, Granite's and SmolLM3's templates switch.
_SWITCHES = {
    "{%- if enable_thinking is defined and enable_thinking is false %}"
    '<think>\n\n</think>{% endif %}': (False, False, False),
    '{% if not thinking is defined %}{% set thinking = false %}{% endif %}'
    '{% if thinking %}<think>{% else %}</think>{% endif %}':
        (False, True, False),
    '{% if thinking %}<think>{% endif %}': (False, True, False),
    '{% if enable_thinking is not defined %}{% set enable_thinking = true %}'
    '{% endif %}{{ "<think>" if enable_thinking else "<think></think>" }}':
        (True, True, False),
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
    ['x', '{% set enable_thinking = 1 %}{{ enable_thinking }}',
     '{{ messages[0].thinking }}'],
)
def test_a_switch_that_the_template_does_not_read_is_refused(source):
  for thinking in ('on', 'off'):
    with pytest.raises(chat.TemplateError, match="set thinking to 'auto'"):
      chat.ChatTemplate(source, (), {}, thinking)
  chat.ChatTemplate(source, (), {}, 'auto')
