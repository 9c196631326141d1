"""Answers as OpenAI-compatible servers write them."""

import dataclasses
import json

import pytest

from agentflow_jax import records
from agentflow_jax.agents import call_text
from agentflow_jax.agents.endpoints import openai_protocol, settings

_PROMPT = (records.Segment('user', 'q'),)
_KEY = records.RequestKey(1, records.Purpose.SOLVE, 0, 'q', 0)


def _parse(message, finish_reason='stop', **choice):
  choice |= {'message': message, 'finish_reason': finish_reason}
  return openai_protocol.parse(json.dumps({'choices': [choice]}).encode())


@pytest.mark.parametrize(
  'message, text, thoughts',
  [
    ({'content': 'Paris'}, 'Paris', ''),
    ({'content': None}, '', ''),
    ({'role': 'assistant', 'tool_calls': [{}]}, '', ''),
    # Parts: OpenAI's, Mistral's, Anthropic's.
    (
      {
        'content': [
          {'type': 'text', 'text': 'Pa'},
          'r',
          {'type': 'output_text', 'text': 'is'},
        ]
      },
      'Paris',
      '',
    ),
    ({'content': []}, '', ''),
    (
      {
        'content': [
          {
            'type': 'thinking',
            'thinking': [{'type': 'text', 'text': 'h'}, {'type': 'text', 'text': 'm'}],
          },
          {'type': 'text', 'text': 'Paris'},
          {'type': 'reference', 'reference_ids': [1]},
        ]
      },
      'Paris',
      'hm',
    ),
    (
      {
        'content': [
          {'type': 'thinking', 'thinking': 'hm', 'signature': 's'},
          {'type': 'redacted_thinking', 'data': 'x'},
          {'type': 'text', 'text': 'Paris'},
        ]
      },
      'Paris',
      'hm',
    ),
    # Fields of their own.
    ({'content': 'Paris', 'reasoning_content': 'hm'}, 'Paris', 'hm'),
    ({'content': 'Paris', 'reasoning': 'hm'}, 'Paris', 'hm'),
    ({'content': 'Paris', 'reasoning_content': None, 'reasoning': 'hm'}, 'Paris', 'hm'),
    ({'content': 'Paris', 'reasoning_content': 'hm', 'reasoning': 'hm'}, 'Paris', 'hm'),
    ({'content': None, 'reasoning_content': 'hm'}, '', 'hm'),
    ({'reasoning': 'hm'}, '', 'hm'),
    ({'content': 'Paris', 'reasoning': {'effort': 'low'}}, 'Paris', ''),
    # Other shapes: Bedrock's parts, OpenAI's assistants, a part alone.
    ({'content': [{'text': 'Paris'}, {'type': 'text', 'text': None}]}, 'Paris', ''),
    ({'content': [{'type': 'text', 'text': {'value': 'Paris'}}]}, 'Paris', ''),
    ({'content': {'type': 'text', 'text': 'Paris'}}, 'Paris', ''),
    (
      {'content': [{'type': 'tool_use', 'id': '1'}, {'type': 'text', 'text': 'Paris'}]},
      'Paris',
      '',
    ),
    (
      {
        'content': [
          {'type': 'reasoning', 'summary': [{'type': 'summary_text', 'text': 'hm'}]},
          {'type': 'output_text', 'text': 'Paris'},
        ]
      },
      'Paris',
      'hm',
    ),
    # Ollama, LiteLLM, OpenRouter, Copilot.
    ({'content': 'Paris', 'thinking': 'hm'}, 'Paris', 'hm'),
    ({'thinking': 'hm'}, '', 'hm'),
    (
      {'content': 'Paris', 'thinking_blocks': [{'type': 'thinking', 'thinking': 'hm'}]},
      'Paris',
      'hm',
    ),
    (
      {
        'content': 'Paris',
        'reasoning_details': [
          {'type': 'reasoning.text', 'text': 'h'},
          {'type': 'reasoning.encrypted', 'data': 'x'},
          {'type': 'reasoning.summary', 'summary': 'm'},
        ],
      },
      'Paris',
      'hm',
    ),
    ({'content': 'Paris', 'reasoning': {'content': 'hm'}}, 'Paris', 'hm'),
    ({'content': 'Paris', 'reasoning_text': 'hm'}, 'Paris', 'hm'),
    # Tags in the text stay there, for agents.thoughts.
    ({'content': '<think>hm</think>Paris'}, '<think>hm</think>Paris', ''),
  ],
)
def test_text_and_thoughts(message, text, thoughts):
  answer = _parse(message)
  assert (answer.text, answer.thoughts) == (text, thoughts)
  assert answer.is_whole == bool(text)


def test_thoughts_that_reached_their_length_are_no_answer():
  answer = _parse({'content': None, 'reasoning_content': 'It is Par'}, 'length')
  assert answer == openai_protocol.Answer(
    '', 'length', is_whole=False, thoughts='It is Par'
  )


@pytest.mark.parametrize(
  'reasons, expected',
  [
    (
      (
        None,
        '',
        'stop',
        'STOP',
        'eos',
        'eos_token',
        'end_turn',
        'stop_sequence',
        'COMPLETE',
        {'type': 'stop'},
        'FINISH_REASON_STOP',
        'stopSequence',
        'end_of_turn',
        'eot',
        '<|im_end|>',
        '</s>',
        '<eos>',
        ' stop ',
      ),
      ('stop', True),
    ),
    (
      (
        'length',
        'max_tokens',
        'MAX_TOKENS',
        'model_length',
        'max_output_tokens',
        'FINISH_REASON_MAX_TOKENS',
        'max-tokens',
        'maxTokens',
        'max_new_tokens',
        'context_length',
      ),
      ('length', True),
    ),
    (
      (
        'content_filter',
        'tool_calls',
        'function_call',
        'refusal',
        'SAFETY',
        'contentFilter',
        'tool-calls',
        'pause_turn',
      ),
      ('stop', False),
    ),
  ],
)
def test_finish_reasons_of_every_server(reasons, expected):
  for reason in reasons:
    answer = _parse({'content': 'Paris'}, reason)
    assert (answer.finish_reason, answer.is_whole) == expected, reason
    assert answer.text == 'Paris'


@pytest.mark.parametrize('reason', ['abort', 'error', 'banana', 7, ['stop']])
def test_an_unknown_finish_reason_is_an_error_that_names_it(reason):
  with pytest.raises(openai_protocol.BadAnswer) as error:
    _parse({'content': 'Paris'}, reason)
  assert repr(reason) in str(error.value)


@pytest.mark.parametrize(
  'message, why',
  [
    ({}, 'no completion'),
    ({'content': 5}, 'no text'),
    ({'content': {'parts': ['Paris']}}, 'None'),
    ({'content': [5]}, 'no completion'),
    ({'content': [{'type': 'image_url', 'url': 'x'}]}, "'image_url'"),
    ({'content': [{'type': 'text', 'text': 5}]}, "'text'"),
    ({'content': [{'text': {'values': 'Paris'}}]}, 'None'),
    ({'content': [{'type': 'thinking', 'thinking': 5}]}, 'no text'),
  ],
)
def test_an_error_says_why_a_message_is_no_completion(message, why):
  with pytest.raises(openai_protocol.BadAnswer, match=why):
    _parse(message)


def test_an_error_in_a_success_is_raised_with_the_server_s_message():
  for body in (
    {'error': {'message': 'maximum context length is 8', 'code': 400}},
    {'error': 'maximum context length is 8'},
    {'choices': [{'error': {'message': 'maximum context length is 8'}}]},
  ):
    with pytest.raises(openai_protocol.BadAnswer, match='holds an error') as e:
      openai_protocol.parse(json.dumps(body).encode())
    assert e.value.said == 'maximum context length is 8'


def _body(**fields):
  config = settings.EndpointConfig('http://h/v1', 'm', **fields)
  return openai_protocol.body(config, _PROMPT, records.SamplingSpec(), _KEY)


def test_the_switch_of_thinking_is_sent():
  plain = _body()
  assert 'chat_template_kwargs' not in plain and 'enable_thinking' not in plain
  for thinking, on in (('on', True), ('off', False)):
    sent = _body(thinking=thinking)
    assert sent.pop('chat_template_kwargs') == {'enable_thinking': on, 'thinking': on}
    assert sent == plain
    sent = _body(thinking=thinking, thinking_field='enable_thinking')
    assert sent.pop('enable_thinking') is on and sent == plain


_TOOL = {'type': 'function', 'function': {'name': 'f', 'parameters': {}}}


def test_a_conversation_with_tools_is_sent_as_openai_has_it():
  calls = (records.ToolCall('f', {'q': 'é'}), records.ToolCall('g', {}))
  turn = (
    records.Segment('assistant', 'Hm.', False, calls),
    records.Segment('tool', 'one', False),
    records.Segment('tool', 'two\ud800', False),
  )
  config = settings.EndpointConfig(base_url='http://x/v1', model='m')
  body = openai_protocol.body(
    config, (*_PROMPT, *turn, *turn), records.SamplingSpec(), _KEY, (_TOOL,)
  )
  assert body['tools'] == [_TOOL]
  first, second = body['messages'][1:4], body['messages'][4:]
  assert first == [
    {
      'role': 'assistant',
      'content': 'Hm.',
      'tool_calls': [
        {
          'id': 'call00000',
          'type': 'function',
          'function': {'name': 'f', 'arguments': '{"q": "é"}'},
        },
        {
          'id': 'call00001',
          'type': 'function',
          'function': {'name': 'g', 'arguments': '{}'},
        },
      ],
    },
    {'role': 'tool', 'content': 'one', 'tool_call_id': 'call00000'},
    {'role': 'tool', 'content': 'two\ufffd', 'tool_call_id': 'call00001'},
  ]
  assert [m.get('tool_call_id') for m in second] == [None, 'call00002', 'call00003']
  assert 'tools' not in openai_protocol.body(
    config, _PROMPT, records.SamplingSpec(), _KEY
  )
  with pytest.raises(ValueError, match='api=chat'):
    openai_protocol.body(
      dataclasses.replace(config, api='completions'),
      _PROMPT,
      records.SamplingSpec(),
      _KEY,
      (_TOOL,),
    )


def _with_calls(message, reason='tool_calls'):
  content = json.dumps({'choices': [{'message': message, 'finish_reason': reason}]})
  return openai_protocol.parse(content.encode(), with_calls=True)


@pytest.mark.parametrize(
  'function, call',
  [
    ({'name': 'f', 'arguments': '{"q": "x"}'}, ('f', {'q': 'x'})),
    ({'name': 'f', 'arguments': {'q': 'x'}}, ('f', {'q': 'x'})),
    ({'name': 'f', 'arguments': ''}, ('f', {})),
    ({'name': 'f', 'arguments': '{"q": '}, None),
    # No text of arguments can become another call.
    ({'name': 'f', 'arguments': '{}, "name": "g"'}, None),
    ({'name': None, 'arguments': '{}'}, None),
    ({'name': 'f', 'arguments': '{"q": ' + '[' * 990 + ']' * 990 + '}'}, None),
    ({'name': 'f', 'arguments': '{"q": ' + '[' * 10**5}, None),
  ],
)
def test_calls_of_a_server_are_read_from_the_text(function, call):
  answer = _with_calls({'content': 'Hm.', 'tool_calls': [{'function': function}]})
  said = call_text.read(answer.text)
  assert said.calls == (() if call is None else (records.ToolCall(*call),))
  assert len(said.problems) == (call is None) and said.content.startswith('Hm.')
  assert (answer.finish_reason, answer.is_whole) == ('stop', True)


def test_a_thought_that_was_cut_hides_no_call():
  calls = [{'function': {'name': 'f', 'arguments': '{}'}}]
  answer = _with_calls({'content': '<think>so', 'tool_calls': calls})
  assert [c.tool for c in call_text.read(answer.text).calls] == ['f']
  with pytest.raises(openai_protocol.BadAnswer):
    _with_calls({'content': '', 'tool_calls': [{}]})
  # Without tools nothing was asked for, and a call is no answer.
  assert not _parse({'content': None, 'tool_calls': calls}, 'tool_calls').is_whole
