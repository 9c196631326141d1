"""Known endpoints by name: where they are, and how each differs from OpenAI's.

A preset only fills in fields of an `settings.EndpointConfig`; every one
of them can be set otherwise.
"""

from collections.abc import Mapping
from typing import Any

from agentflow_jax.agents.endpoints import settings

_LOCAL = {'extended_sampling': True}
# Requests have no field that switches a model's thinking.
_NO_SWITCH = {'thinking_field': ''}
PRESETS: Mapping[str, Mapping[str, Any]] = {
  'openai': {
    'base_url': 'https://api.openai.com/v1',
    'api_key_variable': 'OPENAI_API_KEY',
    'token_limit_field': 'max_completion_tokens',
  }
  | _NO_SWITCH,
  # base_url is the resource's own: https://NAME.openai.azure.com.
  'azure': {
    'api_key_variable': 'AZURE_OPENAI_API_KEY',
    'azure_api_version': '2024-10-21',
    'token_limit_field': 'max_completion_tokens',
  }
  | _NO_SWITCH,
  'dashscope': {
    'base_url': 'https://dashscope.aliyuncs.com/compatible-mode/v1',
    'api_key_variable': 'DASHSCOPE_API_KEY',
    'thinking_field': 'enable_thinking',
  },
  'deepseek': {
    'base_url': 'https://api.deepseek.com/v1',
    'api_key_variable': 'DEEPSEEK_API_KEY',
    'send_seed': False,
  }
  | _NO_SWITCH,
  'fireworks': {
    'base_url': 'https://api.fireworks.ai/inference/v1',
    'api_key_variable': 'FIREWORKS_API_KEY',
  }
  | _NO_SWITCH,
  'gemini': {
    'base_url': 'https://generativelanguage.googleapis.com/v1beta/openai',
    'api_key_variable': 'GEMINI_API_KEY',
    'send_seed': False,
  }
  | _NO_SWITCH,
  'groq': {
    'base_url': 'https://api.groq.com/openai/v1',
    'api_key_variable': 'GROQ_API_KEY',
  }
  | _NO_SWITCH,
  'mistral': {
    'base_url': 'https://api.mistral.ai/v1',
    'api_key_variable': 'MISTRAL_API_KEY',
    'send_seed': False,
  }
  | _NO_SWITCH,
  'openrouter': {
    'base_url': 'https://openrouter.ai/api/v1',
    'api_key_variable': 'OPENROUTER_API_KEY',
  }
  | _NO_SWITCH,
  'together': {
    'base_url': 'https://api.together.ai/v1',
    'api_key_variable': 'TOGETHER_API_KEY',
  }
  | _NO_SWITCH,
  # Servers of one's own, at their default ports.
  'vllm': {'base_url': 'http://127.0.0.1:8000/v1'} | _LOCAL,
  'sglang': {'base_url': 'http://127.0.0.1:30000/v1'} | _LOCAL,
  'ollama': {'base_url': 'http://127.0.0.1:11434/v1'} | _NO_SWITCH,
  'agentflow_jax': ({'base_url': 'http://127.0.0.1:8000/v1'} | _LOCAL | _NO_SWITCH),
}


def config(preset: str, **fields: Any) -> settings.EndpointConfig:
  """Returns the config of a preset with further fields.

  Args:
    preset: a name of PRESETS; '' for none.
    **fields: fields of an EndpointConfig; they win over the preset's, unless they are
      empty.

  Raises:
    ValueError: no such preset, or a config that cannot work.
  """
  if preset and preset not in PRESETS:
    raise ValueError(f'preset must be one of {sorted(PRESETS)}: {preset!r}')
  chosen = {k: v for k, v in fields.items() if v not in ('', None)}
  merged: dict[str, Any] = {'base_url': '', 'model': ''}
  merged |= dict(PRESETS.get(preset, {})) | chosen
  return settings.EndpointConfig(**merged)
