"""Solutions of tasks for renamed tools: the instrument of such an evaluation.

A solution that knows the new names has to do as well with them as it does without.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from agentflow_jax.agents import modules, plan as plan_lib, renaming
from agentflow_jax.assembly import scripted_planners

_FIELD = re.compile(r'(\A|;\s*)(\w+)(?=\s*=)')


@dataclasses.dataclass(frozen=True)
class RenamedSolution:
  """A solution that sees tools under their own names, and writes the new ones.

  Attributes:
    solution: solution that knows the tools' own names.
    names: new names.
  """

  solution: scripted_planners.Solution
  names: renaming.Names

  def right(self, view: modules.View) -> str:
    """See scripted_planners.Solution."""
    return self._written(view, self.solution.right(self._before(view)))

  def noisy(self, view: modules.View, rng: Any, errors: Any) -> str:
    """See scripted_planners.Solution."""
    return self._written(view, self.solution.noisy(self._before(view), rng, errors))

  def uniform(self, view: modules.View, rng: Any) -> str:
    """See scripted_planners.Solution."""
    return self._written(view, self.solution.uniform(self._before(view), rng))

  def _before(self, view: modules.View) -> modules.View:
    """Returns what a planner sees, with the tools' own names."""
    entries = []
    for entry in view.memory.entries:
      card = self.names.card_before(entry.tool)
      if card is not None:
        new = self.names.of(card).arguments
        back = {value: key for key, value in new.items()}
        entry = dataclasses.replace(
          entry, tool=card.name, context=_in_fields(entry.context, back)
        )
      entries.append(entry)
    cards = tuple(self.names.card_before(c.name) or c for c in view.cards)
    memory = dataclasses.replace(view.memory, entries=tuple(entries))
    return dataclasses.replace(view, memory=memory, cards=cards)

  def _written(self, view: modules.View, text: str) -> str:
    """Returns a plan with the new names."""
    own = {
      card.name: self.names.of(card)
      for card in (self.names.card_before(c.name) or c for c in view.cards)
    }
    plan = plan_lib.parse(text, tuple(own))
    new = own[plan.tool]
    return dataclasses.replace(
      plan, tool=new.name, context=_in_fields(plan.context, new.arguments)
    ).render()


def _in_fields(context: str, names: Mapping[str, str]) -> str:
  """Returns 'name=value; name=value' with other names."""
  return _FIELD.sub(lambda m: f'{m[1]}{names.get(m[2], m[2])}', context)
