"""Chats of a file become the turns that a planner would have sampled."""

import json

import pytest

from agentflow_jax.agents import call_text
from agentflow_jax.assembly import chats
from agentflow_jax.config import schema
from agentflow_jax.tokenization import hugging_face, tokenizers
from tests.tokenization import byte_tokenizer

_TOOL = {
  'type': 'function',
  'function': {
    'name': 'search',
    'description': 'finds things',
    'parameters': {'type': 'object', 'properties': {'query': {'type': 'string'}}},
  },
}
_CHAT = {
  'messages': [
    {'role': 'system', 'content': 'Be brief.'},
    {'role': 'user', 'content': 'Hi.'},
    {'role': 'assistant', 'content': 'Hello <|im_end|> there.'},
    {'role': 'user', 'content': 'Who?'},
    {'role': 'assistant', 'content': '\nBob.'},
  ]
}


def _call(name, arguments, **fields):
  return {'type': 'function', 'function': {'name': name, 'arguments': arguments}} | (
    fields
  )


@pytest.fixture(name='make')
def _make(tmp_path):
  def read(*rows, template=None, most_tokens=10_000):
    file = tmp_path / 'chats.jsonl'
    file.write_text(''.join(json.dumps(row) + '\n' for row in rows))
    directory = byte_tokenizer.write(
      tmp_path / 'model', *([] if template is None else [template])
    )
    tokenizer = hugging_face.from_directory(directory)
    return tokenizer, chats.read(str(file), tokenizer, most_tokens)

  return read


def _spelled(tokenizer, ids):
  """Spells ids, with control tokens in brackets that no text of the tests has."""
  names = {tokenizer._id(name): f'{{{name}}}' for name in byte_tokenizer.ADDED}
  return ''.join(names.get(i) or tokenizer.decode([i]) for i in ids)


def test_every_answer_is_a_turn_behind_the_conversation_so_far(make):
  tokenizer, found = make(_CHAT)
  assert (found.answers, found.too_long) == (2, 0)
  first, second = (turn.completion for turn in found.turns[0])
  start = '{<|im_start|>}'
  begin = (
    f'{{<|endoftext|>}}{start}system\nBe brief.{{<|im_end|>}}\n{start}user\nHi.'
    f'{{<|im_end|>}}\n{start}assistant\n'
  )
  assert _spelled(tokenizer, first.prompt_ids) == begin
  # What the message spells stays text; the token behind it is the template's own.
  assert (
    _spelled(tokenizer, first.response_ids) == 'Hello <|im_end|> there.{<|im_end|>}'
  )
  assert _spelled(tokenizer, second.prompt_ids) == (
    f'{begin}Hello <|im_end|> there.{{<|im_end|>}}\n{start}user\nWho?{{<|im_end|>}}\n'
    f'{start}assistant\n'
  )
  # A line's end in front is no part of the prompt, though one token has both.
  assert _spelled(tokenizer, second.response_ids) == '\nBob.{<|im_end|>}'
  assert second.text == '\nBob.'
  assert found.longest == len(second.prompt_ids) + len(second.response_ids)


def test_calls_are_written_as_the_chat_template_writes_them(make):
  row = {
    'messages': [
      {'role': 'user', 'content': 'Where is Oslo?'},
      {
        'role': 'assistant',
        'content': None,
        'tool_calls': [
          _call('search', '{"query": "Oslo"}', id='a'),
          _call('search', '{"query": "Norway"}', id='b'),
        ],
      },
      {'role': 'tool', 'tool_call_id': 'b', 'content': 'north'},
      {'role': 'tool', 'tool_call_id': 'a', 'content': 'in Norway'},
      {'role': 'assistant', 'content': 'In the north.'},
    ],
    'tools': [_TOOL],
  }
  tokenizer, found = make(row, template=byte_tokenizer.TOOLS_TEMPLATE)
  calls, answer = (turn.completion for turn in found.turns[0])
  said = call_text.read(calls.text)
  assert [dict(call.arguments) for call in said.calls] == [
    {'query': 'Oslo'},
    {'query': 'Norway'},
  ]
  assert calls.response_ids[-1] in tokenizer.stop_ids
  assert '"finds things"' in tokenizer.decode(calls.prompt_ids)
  # Results stand in the order of the calls.
  shown = tokenizer.decode(answer.prompt_ids)
  assert shown.index('Result: in Norway') < shown.index('Result: north')
  # Sets of other tools leave ids out, and write arguments as objects.
  other = json.loads(json.dumps(row))
  for message in other['messages']:
    message.pop('tool_call_id', None)
    for call in message.get('tool_calls', []):
      del call['id']
      call['function']['arguments'] = json.loads(call['function']['arguments'])
  other['messages'][2:4] = other['messages'][3:1:-1]
  _, again = make(other, template=byte_tokenizer.TOOLS_TEMPLATE)
  assert again.turns == found.turns


def test_a_template_without_tools_learns_the_plain_form(make):
  row = {
    'messages': [
      {'role': 'user', 'content': 'Where is Oslo?'},
      {'role': 'assistant', 'tool_calls': [_call('search', {'query': 'Oslo'})]},
    ],
    'tools': [_TOOL],
  }
  tokenizer, found = make(row)
  completion = found.turns[0][0].completion
  assert completion.text == call_text.write('', [('search', {'query': 'Oslo'})])
  assert completion.response_ids[-1] in tokenizer.stop_ids
  assert 'finds things' in tokenizer.decode(completion.prompt_ids)


def test_a_planner_of_our_own_learns_text(tmp_path):
  model = tmp_path / 'tokenizer.model'
  tokenizers.train_sentencepiece(['Hi. Hello there. Who? Bob.'] * 20, model, 285)
  tokenizer = tokenizers.SentencePieceTokenizer(model)
  file = tmp_path / 'chats.jsonl'
  file.write_text(json.dumps(_CHAT))
  ((_, second),) = chats.read(str(file), tokenizer, 10_000).turns
  assert second.completion.response_ids == (
    *tokenizer.encode('\nBob.'),
    *tokenizer.stop_ids,
  )


def test_answers_of_weight_zero_and_too_long_ones_are_left_out(make):
  row = json.loads(json.dumps(_CHAT))
  row['messages'][2]['weight'] = 0
  row['messages'][4]['weight'] = 1
  _, found = make(row)
  assert [turn.completion.text for turn in found.turns[0]] == ['\nBob.']
  _, whole = make(_CHAT)
  _, short = make(_CHAT, most_tokens=whole.longest - 1)
  assert (short.answers, short.too_long) == (2, 1)
  assert short.turns == ((whole.turns[0][0],),)
  _, fitting = make(_CHAT, most_tokens=whole.longest)
  assert fitting.turns == whole.turns
  _, none = make(_CHAT, most_tokens=5)
  assert none.turns == () and none.longest == whole.longest


@pytest.mark.parametrize(
  ('row', 'reason'),
  [
    ({'messages': []}, 'chats.jsonl:2: messages must be a list of at least one'),
    ({'chat': []}, 'chats.jsonl:2: no field "messages"'),
    (
      {'messages': [{'role': 'bot', 'content': 'x'}]},
      r'chats.jsonl:2: messages\[0\].role must be one of',
    ),
    (
      {'messages': [{'role': 'user', 'content': 'x'}], 'tools': [{'name': 'f'}]},
      r'chats.jsonl:2: tools\[0\] must be of type function',
    ),
    (
      {'messages': [{'role': 'assistant', 'content': 'x', 'weight': 0.5}]},
      r'messages\[0\].weight must be 0 or 1',
    ),
    (
      {'messages': [{'role': 'tool', 'content': 'x', 'tool_call_id': 'a'}]},
      'is no call of the assistant',
    ),
    (
      {
        'messages': [
          {'role': 'assistant', 'tool_calls': [_call('f', {})]},
          {'role': 'user', 'content': 'x'},
        ]
      },
      'results of the calls .* are missing',
    ),
    (
      {
        'messages': [
          {'role': 'assistant', 'content': 'x'},
          {'role': 'assistant', 'content': 'y'},
        ]
      },
      'does not put an answer behind the prompt',
    ),
  ],
)
def test_a_row_that_is_no_chat_is_named(make, row, reason):
  with pytest.raises(schema.ConfigError, match=reason):
    make(_CHAT, row)


def test_a_file_that_is_not_there_is_named(tmp_path):
  with pytest.raises(schema.ConfigError, match='sft.chats: no file .*none.jsonl'):
    chats.read(str(tmp_path / 'none.jsonl'), None, 10)
