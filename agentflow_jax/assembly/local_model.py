"""The planner's model in this process: its parameters, and what samples from them."""

import contextlib
import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any

import jax
from absl import logging
from etils import epath

from agentflow_jax.agents.tools.search import passages
from agentflow_jax.assembly import engine_model, external_planner, model_files
from agentflow_jax.assembly import task_sets, worlds
from agentflow_jax.config import roles as roles_lib, schema
from agentflow_jax.core import device_time, handover as handover_lib, model
from agentflow_jax.core import sharding
from agentflow_jax.inference import choices, engine as engine_lib
from agentflow_jax.runtime import exits, processes as processes_lib
from agentflow_jax.tokenization import tokenizers

# What a tokenizer trained for a run always keeps whole: the format of plans and
# of memory (a plan is then 8 tokens), and the marks of mentions.
_FORMAT_SYMBOLS = ('Sub-Goal: ', '\nContext: ', '\nTool Name: ', ' -> ', ' | ')
_FIXED_TEXTS = (
  'Tools:',
  'Query:',
  'search: finds the passages of a text collection that match a query.',
  'python: runs a program and returns what it prints.',
  'continue: it failed',
  'find value; #1 + #2 -> - * /',
  'search python continue stop |',
  'the program failed: NameError: name is not defined; SyntaxError: invalid syntax',
)
_REFERENCE_SYMBOLS = tuple(f'#{i}' for i in range(1, 17))
# Worlds mention more.
_MORE_REFERENCES = tuple(f'#{i}' for i in range(17, 41))
# Days and counts, which a small planner compares: as digits it hardly learns to.
_COUNTS = tuple(f' {i}' for i in range(32))
_WEIGHT = 5  # Times that texts of worlds count beside queries.


@dataclasses.dataclass
class LocalModel:
  """The model that a run starts from, and its samplers; `close` it.

  Attributes:
    config: config of the network.
    params: parameters the run starts from, over `mesh`. One copy serves the
      reference policy, the frozen planner and the frozen modules; but frozen
      modules hold copies of layers that they read apart, and of everything
      where `handover` is set. In a run that does not train, all engines sample
      from these parameters, which are in the layout that engines read. They
      must never be donated.
    mesh: devices that hold them.
    tokenizer: the planner's.
    described: config.json of the model that the run starts from, if any.
    engine: sampler of the planner; None where the planner is an endpoint. It may be
      servers, see `servers`.
    frozen_engine: sampler of the planner as it was before training; None where
      nothing needs it.
    handover: brings parameters from `mesh` to this process's sampler; None where
      the engine's own copy does.
    servers: hands parameters to the servers that sample the planner; None where an
      engine of this process does.
    samplers: models over `engine` and `frozen_engine`, as 'planner' and 'frozen',
      where there are such.
  """

  config: model.ModelConfig
  params: model.Params
  mesh: jax.sharding.Mesh
  tokenizer: tokenizers.Tokenizer
  described: Mapping[str, Any]
  engine: engine_lib.Engine | external_planner.ExternalSampler | None = None
  frozen_engine: engine_lib.Engine | None = None
  handover: handover_lib.Handover | None = None
  servers: external_planner.Servers | None = None

  def __post_init__(self):
    engines = {'planner': self.engine, 'frozen': self.frozen_engine}
    self.samplers = {
      name: engine_model.EngineModel(engine, self.tokenizer)
      for name, engine in engines.items()
      if engine is not None
    }

  def sample_from(self, params: model.Params, version: int) -> dict[str, float]:
    """Gives the planner's sampler parameters that lie over `mesh`.

    All processes have to call it. The caller may donate them afterwards.

    Returns:
      Metrics of how servers took them; none of an engine in this process.

    Raises:
      RunStopped: a server proved to sample from other parameters.
    """
    if self.servers is not None:
      try:
        return self.servers.hand_over(params, version)
      except external_planner.Refuted as e:
        raise exits.RunStopped(str(e)) from e
    assert isinstance(self.engine, engine_lib.Engine)
    if self.handover is None:
      self.engine.update_params(params, version)
    else:
      with device_time.METER.used():
        handed = self.handover(params)
      self.engine.update_params(handed, version, copy=False)
    return {}

  def notices(self) -> list[str]:
    """Returns what a user should know of how this machine samples."""
    return [choices.said(engine.config) for engine in self._engines()[:1]]

  def warmup(self, config: schema.Config) -> None:
    """Compiles what the planner's and the frozen modules' requests need."""
    if isinstance(self.engine, engine_lib.Engine):
      self.engine.warmup(truncates=(config.planner.sampling.truncates,))
    if self.frozen_engine is not None:
      roles = roles_lib.roles(config).values()
      asked = {r.sampling.truncates for r in roles if r.backend == 'frozen'}
      if config.agent.served.frozen:
        asked |= {False, True}  # What an agent may ask.
      self.frozen_engine.warmup(truncates=sorted(asked))

  async def close(self) -> None:
    """Ends threads and connections."""
    if self.servers is not None:
      await self.servers.sampler.aclose()
    for engine in self._engines():
      engine.close()

  def _engines(self) -> list[engine_lib.Engine]:
    """Returns the engines of this process, the planner's first."""
    found = (self.engine, self.frozen_engine)
    return [one for one in found if isinstance(one, engine_lib.Engine)]


def make_mesh(config: schema.Config) -> jax.sharding.Mesh:
  """Returns the mesh that a run trains on.

  Raises:
    ConfigError: it does not fit the devices.
  """
  axes = dataclasses.asdict(config.mesh)
  del axes['sampler_devices']
  try:
    return sharding.make_mesh(**axes)
  except ValueError as e:
    raise schema.ConfigError(f'mesh: {e}') from e


def make(
  config: schema.Config,
  tasks: task_sets.TaskSet,
  workdir: epath.Path,
  mesh: jax.sharding.Mesh | None,
  processes: processes_lib.Processes,
  environment: Any,
  stack: contextlib.ExitStack,
) -> LocalModel:
  """Loads the model that a run starts from, and makes its samplers.

  Args:
    config: the run's.
    tasks: tasks that a tokenizer is trained on where there is none yet.
    workdir: place of such a tokenizer.
    mesh: devices that hold the parameters of a run that trains; None for one that
      does not.
    processes: processes of the run; each has to call it.
    environment: environment whose words such a tokenizer keeps whole, or None.
    stack: exit stack that closes the engines if something fails later.

  Raises:
    ConfigError, CheckpointError: name the remedy.
  """
  trains = mesh is not None
  mesh = mesh or _sampling_mesh(config)
  loaded = _start(config, tasks, workdir, mesh, processes, environment)
  made = {}
  if roles_lib.samples_inside(config):
    _check_model(config, loaded.config)
    handover, sampled, where, copy = None, loaded.params, None, trains
    if hands_over(config, mesh):
      handover = _handover(config, loaded, mesh)
      sampled, where = handover(loaded.params), handover.local
      copy = False  # It is one.
    if not trains:
      # Only engines read these, so they are held once, in the engines' layout.
      sampled = _as_read(loaded, config.engine, sampled)
      where = jax.tree.map(lambda x: x.sharding, sampled)
      loaded = dataclasses.replace(loaded, params=sampled)
    made['handover'] = handover
    if config.planner.backend == 'engine' and not roles_lib.samples_outside(config):
      made['engine'] = stack.enter_context(
        _engine(loaded, config.engine, sampled, sharding=where, copy=copy)
      )
    if roles_lib.uses_frozen(config):
      # Nothing of it is trained on: it keeps what its roles ask for.
      shapes = dataclasses.replace(config.engine, max_kept=0)
      made['frozen_engine'] = stack.enter_context(
        _engine(loaded, shapes, sampled, name='frozen', sharding=where, copy=False)
      )
  if roles_lib.samples_outside(config):
    servers = external_planner.make(config, loaded, workdir, processes.count)
    made |= {'servers': servers, 'engine': servers.sampler}
  return LocalModel(
    loaded.config, loaded.params, mesh, loaded.tokenizer, loaded.described, **made
  )


def _sampling_mesh(config: schema.Config) -> jax.sharding.Mesh:
  """Returns the mesh of a run that does not train: the devices that sample."""
  count = config.mesh.sampler_devices
  devices = jax.local_devices()[: None if count == -1 else count]
  return sharding.make_mesh(data=1, fsdp=-1, devices=devices)


def _check_model(config: schema.Config, network: model.ModelConfig) -> None:
  """Refuses sizes of the engine that the model does not have."""
  if config.engine.max_prompt_tokens > network.max_positions:
    raise schema.ConfigError(
      f'engine.max_prompt_tokens {config.engine.max_prompt_tokens}: the'
      f' model reads {network.max_positions} tokens at most'
    )
  if config.engine.max_kept > network.vocab_size:
    raise schema.ConfigError(
      f'engine.max_kept {config.engine.max_kept}: the vocabulary has'
      f' {network.vocab_size} tokens'
    )


def hands_over(config: schema.Config, mesh: jax.sharding.Mesh) -> bool:
  """Says whether a Handover brings parameters to the sampler.

  Where it does not, mesh and sampler are one device. From several to one
  jax.device_put would go through the host.
  """
  return mesh.size > 1 or config.mesh.sampler_devices == -1


def _as_read(loaded, config, params):
  try:
    return engine_lib.as_read(loaded.config, config, params)
  except ValueError as e:
    raise schema.ConfigError(f'engine: {e}') from e


def _engine(loaded, config, params, **kwargs) -> engine_lib.Engine:
  try:
    return engine_lib.Engine(loaded.config, config, params, **kwargs)
  except ValueError as e:
    raise schema.ConfigError(f'engine: {e}') from e


def _handover(config, loaded, mesh) -> handover_lib.Handover:
  """Returns what brings parameters from the mesh to this process's devices."""
  try:
    return handover_lib.Handover(
      loaded.config, mesh, split=config.mesh.sampler_devices == -1
    )
  except ValueError as e:
    raise schema.ConfigError(f'mesh: {e}') from e


def _start(config, tasks, workdir, mesh, processes, environment) -> model_files.Model:
  """Returns the model to start from, over the mesh."""
  planner = config.planner

  def place(network):
    try:
      return sharding.param_shardings(network, mesh)
    except ValueError as e:
      raise schema.ConfigError(f'mesh: {e}') from e

  runtime = model_files.runtime_of(planner)
  if planner.directory:
    if planner.model is not None:
      raise schema.ConfigError(
        'planner.model is ignored where planner.directory is set: the'
        ' directory says which network it holds'
      )
    return model_files.load(planner.directory, place, planner.thinking, **runtime)
  if planner.model is None:
    raise schema.ConfigError('planner: set directory, or model')
  if runtime:
    raise schema.ConfigError(
      f'planner.{next(iter(runtime))} is of a planner.directory: where'
      ' planner.model is set, set it there'
    )
  path = workdir / tokenizers.FILE

  def make():
    if not path.exists():
      logging.info('training a tokenizer for this run')
      said = worlds.Vocabulary((), ())
      symbols = _FORMAT_SYMBOLS
      if config.agent.number_mentions:
        symbols += _REFERENCE_SYMBOLS
      if environment is not None:
        said = worlds.vocabulary(environment, tasks.train)
        symbols += _MORE_REFERENCES + _COUNTS + said.symbols
      tokenizers.train_sentencepiece(
        itertools.chain(_texts(config, tasks), said.texts * _WEIGHT),
        path,
        planner.vocab_size,
        symbols=symbols,
      )

  processes.first(make)
  tokenizer = tokenizers.SentencePieceTokenizer(path)
  model_config = dataclasses.replace(planner.model, vocab_size=tokenizer.vocab_size)
  params = jax.tree.map(
    sharding.put,
    model.init_params(model_config, jax.random.key(config.seed)),
    place(model_config),
  )
  return model_files.Model(model_config, params, tokenizer, {})


def _texts(config, tasks):
  """What a tokenizer is trained on: passages, training queries, prompts."""
  if tasks.corpus:
    for passage in passages.load_corpus(tasks.corpus).passages:
      yield passage.text
  for task in tasks.train:
    yield task.query
  # Words of the prompts' own text come in every prompt, so they weigh more.
  fixed = [config.planner.prompt.tail, *config.agent.verbs, *_FIXED_TEXTS]
  for _ in range(5000):
    yield from fixed
