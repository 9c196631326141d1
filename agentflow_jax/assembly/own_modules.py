"""Loads a user's own executor, verifier or generator."""

import inspect
from collections.abc import Mapping
from typing import Any

from agentflow_jax.agents import language_model, own_functions
from agentflow_jax.config import own_code, schema

# The method of each module that a rollout calls; see the protocols of agents.modules.
_METHODS = {'executor': 'command', 'verifier': 'judge', 'generator': 'answer'}


def load(
  role: schema.ModuleConfig,
  name: str,
  models: Mapping[str, language_model.LanguageModel],
) -> Any:
  """Returns a user's own module.

  Args:
    role: settings of the module. Its `own` names an object with the module's
      asynchronous method (`command`, `judge` or `answer`, see agents.modules), or a
      class or function that returns such an object. A class or function with an
      argument `model` is given the language model that `backend` names.
    name: name of the module: 'executor', 'verifier' or 'generator'.
    models: language models by backend.

  Raises:
    ConfigError: the code cannot be loaded, or the object is not such a module.
  """
  field, method = f'agent.{name}.own', _METHODS[name]
  where = own_code.parse(role.own, field)
  try:
    made = own_functions.load(where.path, where.name)
  except own_functions.LoadError as e:
    raise schema.ConfigError(f'{field}: {e}') from e
  is_maker = inspect.isclass(made) or not hasattr(made, method)
  takes_model = is_maker and callable(made) and 'model' in _parameters(made)
  if takes_model and role.backend not in ('frozen', 'endpoint'):
    raise schema.ConfigError(
      f'{field}: {where.name} takes a language model: set agent.{name}.backend to'
      " 'frozen' or 'endpoint'"
    )
  if not takes_model and role.backend != 'rule':
    raise schema.ConfigError(
      f'agent.{name}.backend is set, and {where.name} takes no argument `model`:'
      ' leave it out'
    )
  if is_maker and callable(made):
    try:
      made = made(**({'model': models[role.backend]} if takes_model else {}))
    except Exception as e:  # This is a user's code.
      raise schema.ConfigError(
        f'{field}: {where.name} raised {type(e).__name__}: {e}'
      ) from e
  if not inspect.iscoroutinefunction(getattr(made, method, None)):
    raise schema.ConfigError(
      f'{field}: {where.name} needs `async def {method}`, as'
      f' agents.modules.{name.capitalize()} describes it'
    )
  return made


def _parameters(made: Any) -> Mapping[str, inspect.Parameter]:
  try:
    return inspect.signature(made).parameters
  except (TypeError, ValueError):  # Such as of a class written in C.
    return {}
