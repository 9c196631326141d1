"""A small tokenizer.json: bytes, five merges, four added tokens."""

import json
import pathlib

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

_TEMPLATE = (
  '{{ bos_token }}{% for m in messages %}<|im_start|>{{ m.role }}\n'
  '{{ m.content }}<|im_end|>\n{% endfor %}'
  '{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}'
)
# As those of Hermes and Qwen are built: tools in the system message, calls and results
# between tags.
TOOLS_TEMPLATE = (
  '{% if tools %}<|im_start|>system\n'
  '{% if messages[0].role == "system" %}{{ messages[0].content }}\n{% endif %}'
  'Tools:{% for t in tools %}\n{{ t | tojson }}{% endfor %}<|im_end|>\n{% endif %}'
  '{% for m in messages %}'
  '{% if m.role == "system" and tools %}'
  '{% elif m.role == "tool" %}<|im_start|>user\nResult: {{ m.content }}<|im_end|>\n'
  '{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}'
  '{% for c in m.tool_calls or [] %}\n<tool_call>\n{"name": "{{ c.function.name }}",'
  ' "arguments": {{ c.function.arguments | tojson }}}\n</tool_call>{% endfor %}'
  '<|im_end|>\n{% endif %}{% endfor %}'
  '{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}'
)
ADDED = ('<|endoftext|>', '<|im_start|>', '<|im_end|>', '<tool_call>')


def definition() -> dict:
  """A byte-level tokenizer.json with four added tokens, one not special."""
  alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
  merges = [('Ġ', 't'), ('h', 'e'), ('Ġt', 'he'), ('Ċ', 'Ċ'), ('<', '|')]
  pieces = alphabet + [a + b for a, b in merges]
  built = tokenizers.Tokenizer(
    models.BPE(vocab={p: i for i, p in enumerate(pieces)}, merges=merges)
  )
  built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  built.decoder = decoders.ByteLevel()
  for token in ADDED:
    kind = tokenizers.AddedToken(token, special=not token.startswith('<t'))
    (built.add_special_tokens if kind.special else built.add_tokens)([kind])
  return json.loads(built.to_str())


def write(directory: pathlib.Path, template: str = _TEMPLATE) -> pathlib.Path:
  """Writes tokenizer.json, and a config with a chat template."""
  directory.mkdir(parents=True, exist_ok=True)
  (directory / 'tokenizer.json').write_text(json.dumps(definition()))
  config = {
    'bos_token': {'content': '<|endoftext|>'},
    'eos_token': '<|im_end|>',
    'pad_token': '<|endoftext|>',
    'chat_template': template,
  }
  (directory / 'tokenizer_config.json').write_text(json.dumps(config))
  return directory
