"""The requests of SGLang's server (read in SGLang 0.5.23).

Its `sampling_seed` is not sent: most of its sampling backends refuse it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from agentflow_jax.external import calls
from agentflow_jax.inference import api


class SGLang:
  """Requests and answers of SGLang, see calls.Server."""

  def health(self) -> calls.Call:
    return calls.Call('/health')

  def sample(self, request: api.Request, model: str, max_kept: int) -> calls.Call:
    sampling = request.sampling
    params: dict[str, Any] = {
      'temperature': sampling.temperature,
      'top_k': calls.top_k_of(request, max_kept) or -1,
      'top_p': sampling.top_p,
      'min_p': sampling.min_p,
      'max_new_tokens': sampling.max_new_tokens,
      'stop_token_ids': list(request.stop_ids),
      # The model's own end is among them, if it is meant to be one.
      'ignore_eos': True,
      'no_stop_trim': True,
    }
    body: dict[str, Any] = {
      'input_ids': list(request.prompt_ids),
      'sampling_params': params,
      'return_logprob': True,
      'logprob_start_len': -1,
    }
    if sampling.truncates:
      body['return_sampling_mask'] = True
    return calls.Call('/generate', body | _adapter(model))

  def read_sample(self, answer: Any, request: api.Request) -> calls.Sampled:
    meta = calls.get(answer, 'meta_info')
    _check_prompt(meta, request.prompt_ids)
    ids = calls.ids_of(calls.get(answer, 'output_ids'), 'output_ids')
    pairs = _pairs(meta, 'output_token_logprobs')
    if [token for _, token in pairs] != list(ids):
      raise calls.BadAnswer('the log probabilities are those of other ids')
    logprobs: Sequence[Any] = [logprob for logprob, _ in pairs]
    kept = None
    if request.sampling.truncates:
      kept = tuple(
        calls.ids_of(one, 'output_token_sampling_mask')
        for one in _list(meta, 'output_token_sampling_mask')
      )
      # Of the truncated distribution; the others are of the whole one.
      logprobs = [
        one[0] if isinstance(one, list) and len(one) == 1 else one
        for one in _list(meta, 'output_token_sampling_logprobs')
      ]
    reason = calls.get(meta, 'finish_reason', 'type')
    if reason not in ('stop', 'length'):
      raise calls.BadAnswer(f'the response ended with {str(reason)[:80]!r}')
    return calls.Sampled(
      ids=ids,
      logprobs=calls.logprobs_of(logprobs, 'logprobs'),
      is_cut=reason == 'length',
      versions=_versions(meta),
      kept=kept,
    )

  def score(self, ids: Sequence[int], model: str) -> calls.Call:
    body = {
      'input_ids': list(ids),
      'sampling_params': {'temperature': 1.0, 'max_new_tokens': 1},
      'return_logprob': True,
      'logprob_start_len': 0,
    }
    return calls.Call('/generate', body | _adapter(model))

  def read_score(self, answer: Any, ids: Sequence[int]) -> calls.Scored:
    meta = calls.get(answer, 'meta_info')
    _check_prompt(meta, ids)
    pairs = _pairs(meta, 'input_token_logprobs')
    if [token for _, token in pairs] != list(ids):
      raise calls.BadAnswer('the log probabilities are those of other ids')
    found = [logprob for logprob, _ in pairs[1:]]
    return calls.Scored(calls.logprobs_of(found, 'logprobs'), _versions(meta))

  def load(self, path: str, label: str):
    body = {
      'model_path': path,
      'weight_version': label,
      # It waits for the requests that are running.
      'abort_all_requests': False,
      'flush_cache': True,
    }
    return (calls.Call('/update_weights_from_disk', body, calls.succeeded),), ()

  def load_adapter(self, path: str, label: str) -> Sequence[calls.Call]:
    body = {'lora_name': label, 'lora_path': path}
    return (calls.Call('/load_lora_adapter', body, calls.succeeded),)

  def unload_adapter(self, label: str) -> Sequence[calls.Call]:
    body = {'lora_name': label}
    return (calls.Call('/unload_lora_adapter', body, calls.succeeded),)


def _adapter(model: str) -> dict[str, Any]:
  return {'lora_path': model} if model else {}


def _versions(meta: Mapping[str, Any]) -> tuple[str, ...]:
  spans = calls.versions_of(meta.get('weight_versions'))
  one = meta.get('weight_version')
  return spans or (() if one is None else (str(one),))


def _check_prompt(meta: Any, ids: Sequence[int]) -> None:
  """Compares lengths: the ids of the prompt are not in every answer."""
  count = calls.get(meta, 'prompt_tokens')
  if count != len(ids):
    raise calls.BadAnswer(
      f'a prompt of {str(count)[:20]} tokens was read, and {len(ids)} were sent'
    )


def _list(meta: Any, name: str) -> list[Any]:
  found = calls.get(meta, name)
  if not isinstance(found, list):
    raise calls.BadAnswer(f'{name} is no list')
  return found


def _pairs(meta: Any, name: str) -> list[tuple[Any, Any]]:
  """Returns pairs of a log probability and an id."""
  return [(calls.get(one, 0), calls.get(one, 1)) for one in _list(meta, name)]
