"""What an engine did in a step, as rates: they depend on the clock."""

from agentflow_jax.inference import api


def rates(
  before: api.EngineStats, after: api.EngineStats, name: str = ''
) -> dict[str, float]:
  """Returns a step's rates from an engine's totals before and after it.

  'seconds/rollout/<name>_engine' is what this engine's thread waited for the
  device, a part of 'seconds/rollout'. Engines that share a device wait for each
  other, too: their seconds overlap.

  Tokens a second are over the time that the device was busy with them; slots and
  pages are shares of all that there are, over the time in which requests had
  some; shares lie in [0, 1]; what nothing was divided by is left out.

  Args:
    before: totals before the step.
    after: totals after the step.
    name: name of the engine in 'rate/<name>/...'; '' for the planner's, 'rate/...'.
  """

  def spent(total):
    return getattr(after, total) - getattr(before, total)

  prefix = f'rate/{name}/' if name else 'rate/'
  found = {
    'prefill_tokens_per_second': ('prefill_tokens', 'prefill_seconds'),
    'decode_tokens_per_second': ('sampled_tokens', 'decode_seconds'),
    'prefix_hits': ('hit_tokens', 'prompt_tokens'),
    'tokens_per_decode_step': ('sampled_tokens', 'decode_steps'),
    'queue_seconds_per_request': ('queue_seconds', 'requests'),
    'first_token_seconds_per_request': ('first_token_seconds', 'requests'),
  }
  out = {
    prefix + rate: spent(part) / spent(whole)
    for rate, (part, whole) in found.items()
    if spent(whole) > 0
  }
  pending = spent('pending_seconds')
  if pending > 0:
    device = spent('prefill_seconds') + spent('decode_seconds')
    out[f'{prefix}device_idle'] = max(1 - device / pending, 0.0)
    out[f'{prefix}slots_used'] = spent('slot_seconds') / pending / after.slots
    out[f'{prefix}pages_used'] = spent('page_seconds') / pending / after.pages
    out[f'seconds/rollout/{name and name + "_"}engine'] = device
  return out
