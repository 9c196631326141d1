"""Chat templates: sandboxed, deterministic, and honest about what fails."""

import pytest

from agentflow_jax import records
from agentflow_jax.data import chat

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


def test_json_is_written_as_transformers_writes_it():
  template = _template('{{ messages | tojson }}')
  assert template.text(_user('é<')) == '[{"role": "user", "content": "é<"}]'


def test_what_cannot_be_told_from_text_is_refused():
  with pytest.raises(chat.TemplateError, match='one character'):
    _template('x', (chat.AddedToken(1, '@'),))
  with pytest.raises(chat.TemplateError, match='does not compile'):
    _template('{% for %}')
