"""Chat templates that ask for too much, and those that do not."""

import tracemalloc

import pytest

from agentflow_jax import records
from agentflow_jax.tokenization import chat

_BOMBS = [
  "{{ 'x' * 10**10 }}",
  "{{ 10**10 * 'x' }}",
  '{{ [0] * 10**10 }}',
  '{{ messages[0].content * 10**9 }}',
  "{% set ns = namespace(s='x') %}{% for i in range(60) %}"
  '{% set ns.s = ns.s ~ ns.s %}{% endfor %}',
  "{% set ns = namespace(s='x') %}{% for i in range(60) %}"
  '{% set ns.s = ns.s + ns.s %}{% endfor %}',
  '{% set ns = namespace(s=[0]) %}{% for i in range(60) %}'
  '{% set ns.s = ns.s + ns.s %}{% endfor %}',
  "{% set ns = namespace(s='x') %}{% for i in range(60) %}"
  "{% set ns.s = [ns.s, ns.s]|join('') %}{% endfor %}",
  "{% set ns = namespace(s='x') %}{% for i in range(60) %}"
  "{% set ns.s = ''.join([ns.s, ns.s]) %}{% endfor %}",
  "{% set s = 'x' * 100000 %}{{ s.replace('x', s) }}",
  "{% set s = 'x' * 100000 %}{{ s|replace('', s) }}",
  "{% set s = 'x' * 100000 %}{{ s.join(range(100000)|map('string')) }}",
  "{{ 'x'.center(10**10) }}",
  "{{ 'x'.ljust(10**10) }}",
  "{{ 'x'.rjust(width=10**10) }}",
  "{{ 'x'.zfill(10**10) }}",
  r"{{ '\t'.expandtabs(10**10) }}",
  "{{ 'x'|center(10**10) }}",
  "{{ 'x'|center }}{{ 'x'|indent(10**10, true) }}",
  '{{ [1]|batch(10**10, 0)|list }}',
  '{{ [1]|slice(10**10)|list }}',
  '{{ [1]|tojson(indent=10**10) }}',
  "{{ '%09999999999d' % 1 }}",
  "{{ '%*d' % (10**10, 1) }}",
  "{{ '%9999999999s'|format('x') }}",
  "{{ '%.9999999999f'|format(1.0) }}",
  "{{ '{:9999999999}'.format(1) }}",
  "{{ '{:{}}'.format(1, 10**10) }}",
  "{{ '{x:9999999999}'.format_map({'x': 1}) }}",
  "{{ ('{:9999999999}'|attr('format'))(1) }}",
  '{{ 9**(9**9) }}',
  '{{ 2**(-10**10) }}',
  '{% set ns = namespace(n=10**100) %}{% for i in range(60) %}'
  '{% set ns.n = ns.n * ns.n %}{% endfor %}',
  "{{ 'x'.translate({120: 'y'}) }}",
  '{{ lipsum(n=10**6) }}',
  "{{ '%(a)99999999d' % {'a': 1} }}",
  "{{ '{:{w}}'.format('a', w='99999999') }}",
  "{{ '{0:{1[0]}}'.format('a', [99999999]) }}",
  "{{ '{0:{1}{1}{1}}'.format('a', 999) }}",
  "{% set ns = namespace(s='xxxx') %}{% for i in range(30) %}"
  "{% set ns.s = '%s%s' % (ns.s, ns.s) %}{% endfor %}",
  "{% set ns = namespace(s='xxxx') %}{% for i in range(30) %}"
  "{% set ns.s = '{0}{0}'.format(ns.s) %}{% endfor %}",
  "{{ ('\\n' * 10000)|indent(9999, blank=true) }}",
  r"{{ ('\t' * 10000).expandtabs(9999) }}",
  """{% set ns = namespace(s='"') %}{% for i in range(60) %}"""
  '{% set ns.s = ns.s|tojson %}{% endfor %}',
  "{{ messages[0].content.replace(old='', new='y' * 1000000) }}",
  '{% set ns = namespace(s=[0]) %}{% for i in range(60) %}'
  '{% set ns.s = [ns.s, ns.s] %}{% endfor %}{{ ns.s|string }}',
  '{% set ns = namespace(s=[0]) %}{% for i in range(60) %}'
  '{% set ns.s = [ns.s, ns.s] %}{% endfor %}{{ ns.s }}',
  '{% set ns = namespace(s=[0]) %}{% for i in range(60) %}'
  "{% set ns.s = [ns.s, ns.s] %}{% endfor %}{{ 'x' ~ ns.s }}",
  '{% set ns = namespace(s=[0]) %}{% for i in range(60) %}'
  '{% set ns.s = {1: ns.s, 2: ns.s} %}{% endfor %}{{ ns.s|tojson }}',
  '{% set a = [0] * 100000 %}{{ ([a] * 1000)|sum(start=[])|length }}',
  '{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}',
  "{% for i in range(1000) %}{% set x = 'y' * 1000000 %}{% endfor %}",
  '{% for i in range(90000) recursive %}{{ loop([1, 2]) }}{% endfor %}',
  '{{ range(10**9)|list }}',
]


@pytest.mark.parametrize('source', _BOMBS)
def test_what_asks_for_too_much_is_an_error(source):
  tracemalloc.start()
  try:
    with pytest.raises(chat.TemplateError):
      template = chat.ChatTemplate(source, [], {})
      template.pieces([records.Segment('user', 'a question')])
    _, peak = tracemalloc.get_traced_memory()
  finally:
    tracemalloc.stop()
  assert peak < 100 << 20


def test_one_that_waits_for_a_real_question_is_stopped_then():
  """What a template does may depend on what it is asked."""
  loops = '{% for i in range(99999) %}{% for j in range(9) %}{% endfor %}{% endfor %}'
  source = f"{{% if messages[0].content != 'probe' %}}{loops}{{% endif %}}x"
  template = chat.ChatTemplate(source, [], {})
  with pytest.raises(chat.TooCostly, match='100000 iterations'):
    template.pieces([records.Segment('user', 'a question')])


def test_long_chats_are_within_the_bounds():
  source = '{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}{% endfor %}'
  template = chat.ChatTemplate(source, [], {})
  prompt = [
    records.Segment(('user', 'assistant')[i % 2], 'word ' * 100) for i in range(5000)
  ]
  assert len(template.text(prompt)) > 2_000_000


@pytest.mark.parametrize(
  'source, written',
  [
    ("{{ '-' * 20 }}", '-' * 20),
    ("{{ '%05d' % 42 }}|{{ '%s: %s'|format('a', 7) }}", '00042|a: 7'),
    ("{{ '{:>5}|{x}'.format('a', x=3) }}", '    a|3'),
    ("{{ 'a'|center(5) }}|{{ 'a'.rjust(3) }}", '  a  |  a'),
    ("{{ 'a\nb'|indent(2) }}", 'a\n  b'),
    ('{{ 2**10 }} {{ 2**0.5 > 1 }} {{ 7 % 4 }} {{ 3 * 4 }}', '1024 True 3 12'),
    ('{{ [1] + [2] }} {{ [0] * 2 }}', '[1, 2] [0, 0]'),
    ("{{ 'aXbX'.replace('X', '--') }}{{ 'aX'|replace('X', 'b') }}", 'a--b--ab'),
    ("{{ {'a': 1}|tojson(indent=2) }}", '{\n  "a": 1\n}'),
    ('{{ 20000|string }} {{ 123456|tojson }} {{ [98765]|join }}', '20000 123456 98765'),
    ('{{ [1, 2]|sum }} {{ [[1], [2]]|sum(start=[]) }}', '3 [1, 2]'),
    ("{{ 'x' ~ 12345678 ~ [3] }} {{ 12345678 }}", 'x12345678[3] 12345678'),
    (
      "{{ '{:,}'.format(1234567) }} {{ '{{x}} {}'.format(50000) }}",
      '1,234,567 {x} 50000',
    ),
    ("{{ '%(a)s %%' % {'a': 70000} }} {{ '%d' % 80000 }}", '70000 % 80000'),
    ("{{ 'x' ~ messages[0].content + '!' }}", 'xa question!'),
  ],
)
def test_ordinary_operations_are_as_in_python(source, written):
  template = chat.ChatTemplate(source, [], {})
  assert template.text([records.Segment('user', 'a question')]) == written
