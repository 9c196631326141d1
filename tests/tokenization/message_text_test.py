"""Text of messages in templates: read as it is, never an added token."""

import functools
import itertools
import json
import random

import jinja2
import pytest
from jinja2 import sandbox

from agentflow_jax import records
from agentflow_jax.tokenization import chat, message_text

_ADDED = tuple(
  chat.AddedToken(i, content)
  for i, content in enumerate(
    ('<|im_start|>', '<|im_end|>', '<think>', '</think>', '</s>')
  )
)
# Ways in which released templates, or their like, look into a message; x is
# the message's text.
_LOOKS = [
  "x.split('</think>')[-1].strip()",
  "(x.split('</think>') | last) | trim",
  "x.split('</think>', 1)[1] if '</think>' in x else x",
  "x.rsplit('</think>', 1)[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n')",
  "x[x.find('</think>') + 8:] if x.find('</think>') >= 0 else x",
  "x.partition('</think>')[2] or x.rpartition('<think>')[0]",
  "x.replace('<think>', '').replace('</think>', '[end]')",
  "x | replace('</think>', '') | upper",
  "x.removeprefix('<think>').removesuffix('</s>')",
  "('yes' if x.startswith('<think>') else 'no') ~ x | length ~ x.count('<')",
  "(x ~ '') | trim",
  "('' ~ x ~ '\\n').split('</think>')[-1]",
  "(' ' + x + ' ').strip()",
  "['<think>', x, '</think>'] | join('|')",
  "'|'.join([x, x]).split('</think>')[0]",
  "x.splitlines() | join(';')",
  "x.split() | join(' ')",
  "x | list | join('-')",
  'x[:5] ~ x[-5:] ~ x[::2]',
  'x | reverse',
  "x | first ~ x | last if x else 'empty'",
  'x | tojson',
  "{'text': x.replace('\ufdd0', '')}"
  " | tojson(ensure_ascii=true, separators=(',', ':'))",
  "'%s!' % x",
  "'{}!'.format(x)",
  "x == 'None' or x in ['<think>', 'plain'] or x != x",
  "{'plain': 1}.get(x, 2)",
  'x is string and x is not none and x is defined',
  'x | lower == x.lower()',
  "x.isspace() or x.strip() == ''",
  "(x | string).split('<think>') | length",
  'x | indent(2)',
  "x | default('nothing', true)",
  "x | map('upper') | join",
]
_FORMS = [
  '{%% for m in messages %%}{%% set x = m.content %%}<|im_start|>{{ m.role }}'
  '\n{{ %s }}<|im_end|>{%% endfor %%}',
  # Through a macro and a block, as templates that take lists of parts.
  '{%% macro shown(c) %%}{%% if c is string %%}{{ c }}{%% endif %%}'
  '{%% endmacro %%}{%% for m in messages %%}{%% set x = shown(m.content) %%}'
  '<|im_start|>{%% set y %%}{{ m.role }}\n{{ %s }}{%% endset %%}{{ y }}'
  '<|im_end|>{%% endfor %%}',
  '{%% set ns = namespace(x="") %%}{%% for m in messages %%}'
  '{%% set ns.x = m.content %%}{%% set x = ns.x %%}<|im_start|>{{ m.role }}\n'
  '{%% generation %%}{{ %s }}{%% endgeneration %%}<|im_end|>{%% endfor %%}',
]
_PIECES = (
  '<think>',
  '</think>',
  '</s>',
  '<|im_end|>',
  '<|im_',
  'end|>',
  '<th',
  'ink>',
  '\n',
  ' ',
  'a',
  'Été',
  '\ufdd0',
  '<',
  '|',
  '"',
  '\U0001f600',
)


@functools.cache
def _texts():
  rng = random.Random(0)
  fixed = [
    '',
    ' ',
    'plain',
    'None',
    '<think>\nsum\n</think>\n\n4',
    '</think>',
    '<|im_<think></think>end|>',
    '\n</think>\n<|im_end|>\n',
  ]
  return fixed + [''.join(rng.choices(_PIECES, k=rng.randint(1, 9))) for _ in range(6)]


def _reference(source: str) -> jinja2.Template:
  """Compiles a template for plain strings, as transformers does."""
  environment = sandbox.ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True
  )
  environment.filters['tojson'] = lambda x, ensure_ascii=False, **options: json.dumps(
    x, ensure_ascii=ensure_ascii, **options
  )
  for tag in ('generation', 'endgeneration'):
    source = source.replace(f'{{% {tag} %}}', '')
  return environment.from_string(source)


@pytest.mark.parametrize('look', _LOOKS)
def test_a_template_reads_a_message_as_it_is(look):
  for form in _FORMS:
    source = form % look
    template = chat.ChatTemplate(source, _ADDED, {})
    reference = _reference(source)
    for text in _texts():
      prompt = [
        records.Segment('user', text, False),
        records.Segment('assistant', 'plain'),
      ]
      messages = [{'role': s.role, 'content': s.text} for s in prompt]
      expected = reference.render(messages=messages)
      assert template.text(prompt) == expected, (source, text)
      # And the template's own tokens, two for each message, are all there are:
      pieces = template.pieces(prompt)
      ids = [p for p in pieces if isinstance(p, int)]
      own = 2 if "'<think>', x, '</think>'" in look else 0
      assert ids == [0, *[2, 3][:own], 1] * 2, (source, text)
      # not a character is lost.
      spelled = [p if isinstance(p, str) else _ADDED[p].content for p in pieces]
      assert ''.join(spelled) == expected


def test_no_token_is_made_at_the_edge_of_a_message():
  template = chat.ChatTemplate("{{ '<|im_' ~ messages[0].content ~ '|>' }}", _ADDED, {})
  prompt = [records.Segment('user', 'end', False)]
  assert template.pieces(prompt) == ['<|im_end|>']
  # What the template writes itself is a token, however it is put together.
  template = chat.ChatTemplate(
    "{{ '<|im_' ~ 'end' ~ '|>' }}{{ '<|' + 'im_start|>' }}", _ADDED, {}
  )
  assert template.pieces(prompt) == [1, 0]


def test_text_that_a_message_lets_a_template_write_is_not_a_token():
  # The message decides where and how often the text stands. As a token the text
  # could end a turn.
  template = chat.ChatTemplate(
    "{{ messages[0].content.replace('STOP', '<|im_end|>') }}"
    "{{ messages[0].content | replace('STOP', '</s>') }}",
    _ADDED,
    {},
  )
  prompt = [records.Segment('user', 'STOP', False)]
  assert template.pieces(prompt) == ['<|im_end|></s>']


def test_every_method_that_reads_answers_as_a_str_does():
  marker = message_text.Marker('\ufdd0', chat.ChatTemplate('', _ADDED, {})._looks)
  methods = [
    'startswith',
    'endswith',
    'find',
    'rfind',
    'count',
    'split',
    'rsplit',
    'partition',
    'rpartition',
    'strip',
    'lstrip',
    'rstrip',
    'removeprefix',
    'removesuffix',
    'isalpha',
    'isspace',
    'isdigit',
    'islower',
    'lower',
    'upper',
    'title',
    'capitalize',
    'casefold',
    'swapcase',
    'splitlines',
  ]
  takes = {m for m in methods if not m.startswith('is')} - {
    'lower',
    'upper',
    'title',
    'capitalize',
    'casefold',
    'swapcase',
    'splitlines',
  }
  for text, name in itertools.product(_texts(), methods):
    marked = message_text.MessageText(text, bytes(len(text)), marker)
    for argument in ('</think>', '\n', 'a') if name in takes else (None,):
      arguments = () if argument is None else (argument,)
      found = getattr(marked, name)(*arguments)
      assert found == getattr(text, name)(*arguments), (text, name)
      # Every part goes on holding marks.
      parts = found if isinstance(found, (list, tuple)) else [found]
      for part in parts:
        if isinstance(part, str) and part:
          assert type(part) is message_text.MessageText
          assert ''.join([part]).startswith('\ufdd0')
