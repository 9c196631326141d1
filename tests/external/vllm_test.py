"""Requests and answers of vLLM, against what a real server said.

The transcript is of vLLM 0.32 on CPU, in a run of the quickstart's planner.
"""

import json
import pathlib

import pytest

from agentflow_jax import records
from agentflow_jax.external import calls, vllm
from agentflow_jax.inference import api

_SAID = json.loads((pathlib.Path(__file__).parent / 'vllm_transcript.json').read_text())


def _of(kind):
  return [one for one in _SAID if one['kind'] == kind]


def _request(body):
  params = body['sampling_params']
  seed = params['seed'] << 1
  return api.Request(
    prompt_ids=tuple(body['token_ids']),
    key_words=(seed >> 32, seed & (2**32 - 1)),
    sampling=records.SamplingSpec(
      temperature=params['temperature'], max_new_tokens=params['max_tokens']
    ),
    stop_ids=tuple(params['stop_token_ids']),
  )


@pytest.mark.parametrize('one', _of('sample'))
def test_a_real_answer_is_read(one):
  request = _request(one['body'])
  call = vllm.Vllm().sample(request, '', 0)
  assert (call.path, call.body) == (one['path'], one['body'])
  answer = json.loads(one['answer'])
  sampled = vllm.Vllm().read_sample(answer, request)
  choice = answer['choices'][0]
  assert list(sampled.ids) == choice['token_ids']
  content = choice['logprobs']['content']
  assert list(sampled.logprobs) == [c['logprob'] for c in content]
  assert sampled.is_cut == (choice['finish_reason'] == 'length')
  (label,) = sampled.versions
  (load,) = _of('/update_weight_version')
  assert label == load['body']['new_version']
  calls.check_sampled(sampled, request, 896)


@pytest.mark.parametrize('one', _of('score'))
def test_a_real_score_is_read(one):
  ids = one['body']['token_ids']
  assert vllm.Vllm().score(ids, '').body == one['body']
  answer = json.loads(one['answer'])
  scored = vllm.Vllm().read_score(answer, ids)
  assert len(scored.logprobs) == len(ids) - 1
  assert scored.logprobs[0] == answer['prompt_logprobs'][1][str(ids[1])]['logprob']
  with pytest.raises(calls.BadAnswer, match='another prompt'):
    vllm.Vllm().read_score(answer, ids[:-1])


def test_a_real_hand_over_is_what_is_sent():
  (load,) = _of('/collective_rpc')
  (name,) = _of('/update_weight_version')
  path = load['body']['kwargs']['weights_path']
  steps, after = vllm.Vllm().load(path, name['body']['new_version'])
  said = {one['path']: one for one in _SAID if one['kind'] not in ('sample', 'score')}
  assert [c.path for c in (*steps, *after)] == [p for p in said if p != '/health']
  for call in (*steps, *after):
    assert call.body == said[call.path]['body'], call.path
    call.check(json.loads(said[call.path]['answer']))


def test_sets_are_read_where_the_server_gives_them():
  one = _of('sample')[0]
  answer = json.loads(one['answer'])
  choice = answer['choices'][0]
  choice['sampling_mask'] = [[i, i + 1] for i in choice['token_ids']]
  sampled = vllm.Vllm().read_sample(answer, _request(one['body']))
  assert sampled.kept[0] == (choice['token_ids'][0], choice['token_ids'][0] + 1)


@pytest.mark.parametrize(
  'path, value',
  [
    (('choices', 0, 'logprobs', 'content', 0, 'logprob'), None),
    (('choices', 0, 'logprobs', 'content', 0, 'logprob'), 0.5),
    (('choices', 0, 'logprobs', 'content', 0, 'logprob'), float('-inf')),
    (('choices', 0, 'logprobs', 'content'), []),
    (('choices', 0, 'logprobs'), None),
    (('choices', 0, 'token_ids', 0), -1),
    (('choices', 0, 'token_ids', 0), '7'),
    (('choices', 0, 'token_ids'), None),
    (('choices', 0, 'finish_reason'), 'abort'),
    (('choices',), []),
    (('prompt_token_ids', 0), 1),
    (('prompt_token_ids',), None),
  ],
)
def test_an_answer_that_lacks_something_is_refused(path, value):
  one = _of('sample')[0]
  answer = json.loads(one['answer'])
  at = answer
  for key in path[:-1]:
    at = at[key]
  at[path[-1]] = value
  with pytest.raises(calls.BadAnswer):
    vllm.Vllm().read_sample(answer, _request(one['body']))
