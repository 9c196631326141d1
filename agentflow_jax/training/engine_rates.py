"""What the engine did in a step, as rates: they depend on the clock."""

from agentflow_jax.inference import api


def rates(before: api.EngineStats, after: api.EngineStats) -> dict[str, float]:
  """Returns a step's rates from the engine's totals before and after it.

  'seconds/engine' is what the device took to sample: of 'seconds/rollout', the
  rest is tools and the host.

  Tokens a second are over the time that the device was busy with them; shares
  lie in [0, 1]; what nothing was divided by is left out.
  """

  def spent(name):
    return getattr(after, name) - getattr(before, name)

  device = spent('prefill_seconds') + spent('decode_seconds')
  found = {
      'prefill_tokens_per_second': ('prefill_tokens', 'prefill_seconds'),
      'decode_tokens_per_second': ('sampled_tokens', 'decode_seconds'),
      'prefix_hits': ('hit_tokens', 'prompt_tokens'),
      'tokens_per_decode_step': ('sampled_tokens', 'decode_steps'),
      'queue_seconds_per_request': ('queue_seconds', 'requests'),
      'first_token_seconds_per_request': ('first_token_seconds', 'requests'),
  }
  out = {
      f'rate/{name}': spent(part) / spent(whole)
      for name, (part, whole) in found.items() if spent(whole) > 0
  }
  if spent('pending_seconds') > 0:
    idle = 1 - device / spent('pending_seconds')
    out['rate/device_idle'] = max(idle, 0.0)
    out['seconds/engine'] = device
  if after.pages:
    out['rate/pages_used'] = 1 - after.free_pages / after.pages
  return out
