"""Presets: each makes a config that works, and none hides a mistake."""

import pytest

from agentflow_jax.agents.endpoints import client, presets, settings


@pytest.mark.parametrize('preset', sorted(presets.PRESETS))
def test_every_preset_makes_a_client(preset, monkeypatch):
  fields = {'model': 'm'}
  if preset == 'azure':  # Every resource has a URL of its own.
    with pytest.raises(ValueError, match='base_url'):
      presets.config(preset, **fields)
    fields['base_url'] = 'https://mine.openai.azure.com'
  config = presets.config(preset, **fields)
  if config.api_key_variable:
    assert config.base_url.startswith('https://')
    monkeypatch.delenv(config.api_key_variable, raising=False)
    with pytest.raises(ValueError, match=config.api_key_variable):
      client.EndpointClient(config)
    monkeypatch.setenv(config.api_key_variable, 'k')
  else:  # A server of one's own, which nobody else can reach.
    assert config.base_url.startswith('http://127.0.0.1:')
  client.EndpointClient(config)


def test_switching_thinking_at_a_provider_without_a_field_is_an_error():
  fields = {'model': 'm', 'base_url': 'http://h/v1', 'thinking': 'off'}
  sent = set()
  for preset in presets.PRESETS:
    try:
      sent.add((preset, presets.config(preset, **fields).thinking_field))
    except ValueError as e:
      assert "thinking='off'" in str(e)
  assert sent == {
    ('vllm', 'chat_template_kwargs'),
    ('sglang', 'chat_template_kwargs'),
    ('dashscope', 'enable_thinking'),
  }
  plain = presets.config('', **fields)
  assert plain.thinking_field == 'chat_template_kwargs'


def test_what_is_given_wins_and_what_is_empty_does_not():
  config = presets.config(
    'vllm',
    model='m',
    base_url='http://10.0.0.2:9000/v1',
    api_key_variable='',
    concurrency=3,
  )
  assert config.base_url == 'http://10.0.0.2:9000/v1'
  assert config.extended_sampling and config.concurrency == 3
  plain = presets.config('', model='m', base_url='http://h/v1')
  assert plain == settings.EndpointConfig('http://h/v1', 'm')


def test_an_unknown_preset_is_an_error():
  with pytest.raises(ValueError, match="'opnai'"):
    presets.config('opnai', model='m')
  with pytest.raises(ValueError, match='model must name'):
    presets.config('openai')
