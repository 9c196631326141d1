"""Chat templates that are tried in a child process before they are compiled."""

import asyncio
import time

import pytest

from agentflow_jax.agents import child
from agentflow_jax.assembly import chat_templates, model_files
from agentflow_jax.tokenization import chat, jinja_environment
from agentflow_jax.weights import model_directory
from tests.assembly import released

_LIMITS = child.Limits(cpu_seconds=1.0)
# Within the bounds on loops, and days long.
_LOOP = (
  '{% for a in range(90000) %}'
  "{% if range(99999)|map('string')|list|sort|length %}{% endif %}{% endfor %}"
)
_COSTLY = [
  '{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}',
  "{{ '%(a)2999999999d' % {'a': 1} }}",
  "{{ 'x' * 10**10 }}",
]
_TOKEN = chat.AddedToken(3, '<|a|>')


def _check(source, **changes):
  settings = {'added': [_TOKEN], 'variables': {}, 'thinking': 'auto'} | changes
  chat_templates.check(source, limits=_LIMITS, **settings)


def test_a_template_that_renders_passes():
  _check('<|a|>{{ bos_token }}{{ messages[0].content }}', variables={'bos_token': 'b'})


@pytest.mark.parametrize(
  'source, said',
  [
    (_LOOP, 'too much time or memory'),
    # Compiling it is where the time goes.
    ('{{ ' + '(' * 20_000 + ' }}', 'does not compile'),
    ('{% if %}', 'does not compile'),
    ('{{ messages[0].content ', 'does not compile'),
  ],
)
def test_one_that_harms_or_is_broken_is_one_error(source, said):
  with pytest.raises(chat.TemplateError, match=said):
    _check(source)


@pytest.mark.parametrize('source', _COSTLY)
def test_one_that_asks_for_too_much_is_refused_there(source):
  with pytest.raises(chat.TemplateError, match='asks for too much'):
    _check(source)


def test_one_that_cannot_switch_thinking_is_refused_there():
  with pytest.raises(chat.TemplateError, match='cannot switch thinking'):
    _check('{{ messages[0].content }}', thinking='off')


def test_it_can_be_checked_inside_an_event_loop():
  async def main():
    _check('{{ messages[0].content }}')

  asyncio.run(main())


def test_without_jinja_the_remedy_is_named(monkeypatch):
  def missing():
    raise ModuleNotFoundError('chat templates need jinja2: pip install jinja2')

  monkeypatch.setattr(jinja_environment, '_environment', missing)
  with pytest.raises(ModuleNotFoundError, match='pip install'):
    _check('{{ 1 }}')


def test_a_model_with_such_a_template_is_refused_before_its_weights_are_read(
  tmp_path, monkeypatch
):
  """In this process the template would never end."""
  directory = released.write(tmp_path / 'model')
  (directory / 'chat_template.jinja').write_text(_LOOP)
  monkeypatch.setattr(chat_templates.check, '__defaults__', (_LIMITS,))
  begun = time.monotonic()
  with pytest.raises(model_directory.CheckpointError, match='too much time') as e:
    model_files.load(str(directory))
  assert str(directory) in str(e.value)
  assert time.monotonic() - begun < 60
