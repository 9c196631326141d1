"""A model that answers requests of others, without a run around it."""

import contextlib
import dataclasses
from collections.abc import Collection, Iterator

import jax

from agentflow_jax.assembly import engine_model, model_files, serving_shapes
from agentflow_jax.config import schema
from agentflow_jax.core import sharding
from agentflow_jax.inference import engine as engine_lib, pages as pages_lib


@contextlib.contextmanager
def opened(
  config: schema.Config, directory: str, given: Collection[str] | None = None
) -> Iterator[engine_model.EngineModel]:
  """Loads a model, compiles its shapes, and yields it.

  Args:
    config: config whose `engine`, and whose dtypes and `thinking` of `planner`,
      are read. engine.max_kept counts as 0: nothing is trained here, so that no
      request's candidate set is limited or recorded.
    directory: the model, as in `planner.directory`.
    given: dotted names of the fields that flags set; the other sizes of the engine are
      then those of the model's context, see serving_shapes. None keeps all sizes.

  Raises:
    ConfigError, CheckpointError: name the remedy.
  """
  mesh = sharding.make_mesh(devices=jax.local_devices()[:1])
  loaded = model_files.load(
    directory,
    lambda network: sharding.param_shardings(network, mesh),
    config.planner.thinking,
    **model_files.runtime_of(config.planner),
  )
  shapes = dataclasses.replace(config.engine, max_kept=0)
  try:
    if given is not None:
      shapes = serving_shapes.fitted(
        shapes,
        loaded.config,
        pages_lib.pool_sharding(loaded.params),
        {name.removeprefix('engine.') for name in given if name.startswith('engine.')},
        serving_shapes.free_bytes(loaded.params),
      )
    engine = engine_lib.Engine(
      loaded.config,
      shapes,
      engine_lib.as_read(loaded.config, shapes, loaded.params),
      copy=False,
    )
  except schema.ConfigError:
    raise
  except ValueError as e:
    raise schema.ConfigError(f'engine: {e}') from e
  with engine:
    engine.warmup(with_top=True)
    yield engine_model.EngineModel(engine, loaded.tokenizer)
