"""The tools of the desk, in the order in which they are shown."""

from collections.abc import Callable
from typing import Literal

from agentflow_jax.agents.environments import base
from agentflow_jax.agents.environments.desk import displays, reads, writes
from agentflow_jax.agents.environments.sqlite import environment

Tier = Literal['easy', 'plain', 'long']
# Names of the tools that read, and of those that write.
READS = (
  'find_person',
  'get_person',
  'find_item',
  'get_item',
  'list_loans',
  'get_request',
  'list_requests',
  'get_training',
  'get_unit',
  'get_repair',
)
WRITES = (
  'create_loan',
  'extend_loan',
  'return_item',
  'transfer_item',
  'open_repair',
  'close_repair',
  'set_request_state',
  'send_notice',
)
ENDINGS = ('finish', 'refuse')
_ENDS: dict[Callable[..., str], base.Ended] = {
  writes.finish: 'finish',
  writes.refuse: 'refuse',
}


def of_tier(tier: Tier) -> tuple[environment.Action, ...]:
  """Returns the 20 tools; those that read show what a tier shows.

  Raises:
    ValueError: there is no such tier.
  """
  shown = {'easy': displays.Easy, 'plain': displays.Plain, 'long': displays.Plain}
  if tier not in shown:
    raise ValueError(f'tier must be one of {", ".join(shown)}: {tier!r}')
  found = reads.Reads(shown[tier]())
  return tuple(
    environment.Action(function, _ENDS.get(function, ''))
    for function in (
      *(getattr(found, name) for name in READS),
      *(getattr(writes, name) for name in WRITES),
      *_ENDS,
    )
  )
