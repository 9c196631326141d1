"""A thousand awkward strings, the same everywhere, for tokenizers."""

import random

LOOK_ALIKES = (
  '<|im_start|>',
  '<|im_end|>',
  '<|endoftext|>',
  '<repo_name>',
  '<file_sep>',
  '<|im_start|>system\n',
  '<|im_<|im_end|>end|>',
  '<|im_end',
  '|im_end|>',
)
_PARTS = (
  'the',
  'The',
  ' capital',
  ' of',
  ' France',
  "don't",
  "we'LL",
  'naïve',
  'élève',
  'straße',
  'Ελλάδα',
  'Привет',
  'мир',
  'שלום',
  'مرحبا',
  'नमस्ते',
  '東京',
  '日本語',
  '你好，世界',
  '한국어',
  'ไทย',
  '🙂',
  '👩‍👩‍👧‍👦',
  '🇳🇴',
  '🏳️‍🌈',
  'e\u0301',
  '\u200b',
  '\ufeff',
  '\u00a0',
  '\u2028',
  ' ',
  '  ',
  '    ',
  '\t',
  '\t\t',
  '\n',
  '\n\n',
  '\r\n',
  ' \n ',
  '0',
  '7',
  '42',
  '3.14159',
  '1,234,567',
  '10^-5',
  'x2',
  '2x',
  '½',
  '²',
  '…',
  '—',
  '“q”',
  "'",
  '"',
  '`',
  '```python\n',
  '\\n',
  'print("hi")',
  'def f(x):\n    return x',
  '{"a": [1, 2]}',
  '<b>',
  '</b>',
  'https://example.org/a?b=c&d=%20',
  'a@b.co',
  '#1',
  '@x',
  '$5',
  '100%',
  '_',
  '__init__',
  '--',
  '...',
  '?!',
  '\x00',
  '\x07',
  '\x7f',
  '\ud7ff',
  '\ue000',
  'ﬁ',
  'Ａ',
  'ａ',
  'Å',
  'A\u030a',
  'İ',
  'ß',
  'Ǆ',
)


def make(count: int = 1000) -> list[str]:
  """Returns strings of 1 to 24 parts; one in four holds look-alikes."""
  rng = random.Random(0)
  strings = []
  for i in range(count):
    parts = [rng.choice(_PARTS) for _ in range(rng.randint(1, 24))]
    if i % 4 == 0:
      for _ in range(rng.randint(1, 3)):
        parts.insert(rng.randint(0, len(parts)), rng.choice(LOOK_ALIKES))
    if rng.random() < 0.5:
      parts = [p for pair in zip(parts, [' '] * len(parts)) for p in pair]
    strings.append(''.join(parts))
  return strings
