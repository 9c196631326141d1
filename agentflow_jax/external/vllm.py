"""The requests of vLLM's server (read in vLLM 0.32).

It has to be started with --enable-scale-out and --logprobs-mode processed_logprobs,
and with VLLM_SERVER_DEV_MODE=1 in its environment to take weights.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from agentflow_jax.external import calls
from agentflow_jax.inference import api

_GENERATE = '/inference/v1/generate'
# It fails while requests that were just cancelled still hold pages.
_RESETS = 20


class Vllm:
  """Requests and answers of vLLM, see calls.Server."""

  def health(self) -> calls.Call:
    return calls.Call('/health')

  def sample(self, request: api.Request, model: str, max_kept: int) -> calls.Call:
    sampling = request.sampling
    params: dict[str, Any] = {
      'temperature': sampling.temperature,
      'top_k': calls.top_k_of(request, max_kept),
      'top_p': sampling.top_p,
      'min_p': sampling.min_p,
      'max_tokens': sampling.max_new_tokens,
      'seed': calls.seed_of(request),
      'stop_token_ids': list(request.stop_ids),
      # The model's own end is among them, if it is meant to be one.
      'ignore_eos': True,
      'logprobs': 0,  # The sampled token's alone.
    }
    return calls.Call(_GENERATE, _body(request.prompt_ids, model, params))

  def read_sample(self, answer: Any, request: api.Request) -> calls.Sampled:
    _check_prompt(answer, request.prompt_ids)
    choice = calls.get(answer, 'choices', 0)
    ids = calls.ids_of(calls.get(choice, 'token_ids'), 'token_ids')
    content = _list(choice, 'logprobs', 'content')
    if [calls.get(one, 'token_id') for one in content] != list(ids):
      raise calls.BadAnswer('the log probabilities are those of other ids')
    logprobs = [calls.get(one, 'logprob') for one in content]
    reason = calls.get(choice, 'finish_reason')
    if reason not in ('stop', 'length'):
      raise calls.BadAnswer(f'the response ended with {str(reason)[:80]!r}')
    kept = choice.get('sampling_mask')
    if kept is not None:
      kept = tuple(
        calls.ids_of(one, 'sampling_mask') for one in _list(choice, 'sampling_mask')
      )
    return calls.Sampled(
      ids=ids,
      logprobs=calls.logprobs_of(logprobs, 'logprobs'),
      is_cut=reason == 'length',
      versions=calls.versions_of(choice.get('weight_versions')),
      kept=kept,
    )

  def score(self, ids: Sequence[int], model: str) -> calls.Call:
    params = {'temperature': 0.0, 'max_tokens': 1, 'prompt_logprobs': 0}
    return calls.Call(_GENERATE, _body(ids, model, params))

  def read_score(self, answer: Any, ids: Sequence[int]) -> calls.Scored:
    _check_prompt(answer, ids)
    places = _list(answer, 'prompt_logprobs')
    if len(places) != len(ids):
      raise calls.BadAnswer(f'{len(places)} log probabilities of {len(ids)} ids')
    found = [
      calls.get(place, str(token), 'logprob')
      for token, place in zip(ids[1:], places[1:], strict=True)
    ]
    choice = calls.get(answer, 'choices', 0)
    versions = calls.get(choice, 'weight_versions') if choice else None
    return calls.Scored(
      calls.logprobs_of(found, 'prompt_logprobs'), calls.versions_of(versions)
    )

  def load(self, path: str, label: str):
    reload = {'method': 'reload_weights', 'kwargs': {'weights_path': path}}
    return (
      calls.Call('/pause?mode=wait', {}),
      calls.Call('/collective_rpc', reload),
      calls.Call('/reset_prefix_cache', {}, _reset, _RESETS),
      calls.Call('/update_weight_version', {'new_version': label}, calls.succeeded),
    ), (calls.Call('/resume', {}),)

  def load_adapter(self, path: str, label: str) -> Sequence[calls.Call]:
    body = {'lora_name': label, 'lora_path': path}
    return (calls.Call('/v1/load_lora_adapter', body),)

  def unload_adapter(self, label: str) -> Sequence[calls.Call]:
    return (calls.Call('/v1/unload_lora_adapter', {'lora_name': label}),)


def _body(ids: Sequence[int], model: str, params: Mapping[str, Any]) -> dict[str, Any]:
  body: dict[str, Any] = {
    'token_ids': list(ids),
    'sampling_params': dict(params),
    'return_token_ids': True,
    'output_mode': 'tokens',
  }
  return body | ({'model': model} if model else {})


def _reset(answer: Any) -> None:
  """Takes an answer of 200 that says nothing, and refuses success: false."""
  if isinstance(answer, Mapping) and answer.get('success') is False:
    calls.succeeded(answer)


def _check_prompt(answer: Any, ids: Sequence[int]) -> None:
  if calls.ids_of(calls.get(answer, 'prompt_token_ids'), 'prompt_token_ids') != (
    tuple(ids)
  ):
    raise calls.BadAnswer('another prompt was read than the one that was sent')


def _list(answer: Any, *path: str) -> list[Any]:
  found = calls.get(answer, *path)
  if not isinstance(found, list):
    raise calls.BadAnswer(f'{".".join(path)} is no list')
  return found
