"""Which modules of a config use a language model, and which kind."""

from agentflow_jax.config import schema

MODULES = ('executor', 'verifier', 'generator')  # One's own can take their places.
ROLES = (*MODULES, 'analyst')


def roles(config: schema.Config) -> dict[str, schema.ModuleConfig]:
  """Returns everything that a frozen model may play, by its field's name."""
  found = {f'agent.{name}': getattr(config.agent, name) for name in ROLES}
  return found | {'agent.tools.generalist': config.agent.tools.generalist}


def uses_endpoint(config: schema.Config) -> bool:
  """Returns whether anything is behind the endpoint."""
  return config.planner.backend == 'endpoint' or any(
    role.backend == 'endpoint' for role in roles(config).values()
  )


def samples_outside(config: schema.Config) -> bool:
  """Returns whether servers sample the planner that is trained."""
  return config.planner.backend == 'engine' and config.planner.sampler == 'external'


def samples_inside(config: schema.Config) -> bool:
  """Returns whether an engine of this process samples anything."""
  planner = config.planner.backend == 'engine' and not samples_outside(config)
  return planner or uses_frozen(config)


def uses_engine(config: schema.Config) -> bool:
  """Returns whether any model is in this process, to sample or to be trained."""
  return config.planner.backend == 'engine' or uses_frozen(config)


def uses_frozen(config: schema.Config) -> bool:
  """Returns whether the planner before training samples, too."""
  return config.agent.served.frozen or any(
    role.backend == 'frozen' for role in roles(config).values()
  )


def has_endpoint(config: schema.Config) -> bool:
  """Returns whether it says where the endpoint is."""
  return bool(config.agent.endpoint.base_url or config.agent.endpoint.preset)
