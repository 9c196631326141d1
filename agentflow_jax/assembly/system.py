"""Builds what a run needs from its config: planner, modules, tools, tasks."""

import contextlib
import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any

import jax
from absl import logging
from etils import epath

from agentflow_jax.agents import calling, instructions, language_model, modules
from agentflow_jax.agents import prompts
from agentflow_jax.agents import recording as recording_lib, references, renaming
from agentflow_jax.agents import rollout
from agentflow_jax.agents.endpoints import client as client_lib
from agentflow_jax.agents.rewards import parts as parts_lib, registry
from agentflow_jax.agents.tools.search import passages
from agentflow_jax.assembly import endpoints, engine_model, external_planner
from agentflow_jax.assembly import model_files
from agentflow_jax.assembly import own_modules, renamed_solutions
from agentflow_jax.assembly import rewards as rewards_lib
from agentflow_jax.assembly import rule_reach, scripted_planners, task_sets, toolbox
from agentflow_jax.assembly import withheld_tools, worlds
from agentflow_jax.config import consistency, roles as roles_lib, schema
from agentflow_jax.core import device_time, handover as handover_lib, model
from agentflow_jax.core import sharding
from agentflow_jax.files import old_names, paths
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
_UNBOUNDED = 1 << 30  # Tokens of a prompt.
_WEIGHT = 5  # Times that texts of worlds count beside queries.


@dataclasses.dataclass
class System:
  """A run's parts; `close` it.

  Where no model samples in this process, all that belongs to one is None.

  Attributes:
    config: the run's.
    model_config: the planner's network.
    params: parameters the run starts from, over `mesh`. One copy serves the
      reference policy, the frozen planner and the frozen modules; but frozen
      modules hold copies of layers that they read apart, and of everything
      where `handover` is set. In a run that does not train, all engines sample
      from these parameters, which are in the layout that engines read. They
      must never be donated.
    mesh: devices that hold them.
    tokenizer: the planner's.
    described: config.json of the model that the run starts from, if any.
    tasks: the tasks.
    engine: samples the planner being trained; None where it is an endpoint. It may
      be servers, see `served`.
    frozen_engine: samples the planner as it was before training; None where no
      module needs it.
    planner: the planner, over `engine` or the endpoint.
    agent: the system that rollouts run.
    rewards: every reward that a task names.
    parts: reward of training rollouts by terms; None where it is the task's.
    tool_notices: sentences for the user about how tools run on this machine.
    clients: clients of endpoints.
    processes: processes of the run; rollouts are shared between them.
    handover: brings parameters from `mesh` to this process's sampler; None where
      the engine's own copy does.
    samplers: models over the engines of this process: 'planner' and 'frozen', where
      there are such.
    served: hands parameters to the servers that sample the planner; None where an
      engine of this process does.
  """

  config: schema.Config
  model_config: model.ModelConfig | None
  params: model.Params | None
  mesh: jax.sharding.Mesh | None
  tokenizer: tokenizers.Tokenizer | None
  described: Mapping[str, Any] | None
  tasks: task_sets.TaskSet
  engine: engine_lib.Engine | external_planner.ExternalSampler | None
  frozen_engine: engine_lib.Engine | None
  planner: modules.ModelPlanner
  agent: rollout.Agent
  rewards: registry.Rewards
  parts: parts_lib.Parts | None = None
  tool_notices: list[str] = dataclasses.field(default_factory=list)
  clients: tuple[client_lib.EndpointClient, ...] = ()
  processes: processes_lib.Processes = dataclasses.field(
    default_factory=processes_lib.Processes
  )
  handover: handover_lib.Handover | None = None
  samplers: Mapping[str, engine_model.EngineModel] = dataclasses.field(
    default_factory=dict
  )
  served: external_planner.Serving | None = None

  def sample_from(self, params: model.Params, version: int) -> dict[str, float]:
    """Gives the planner's engine parameters that lie over `mesh`.

    All processes have to call it. The caller may donate them afterwards.

    Returns:
      Metrics of how servers took them; none of an engine in this process.

    Raises:
      RunStopped: a server proved to sample from other parameters.
    """
    if self.served is not None:
      try:
        return self.served.hand_over(params, version)
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

  @property
  def trained_agent(self) -> rollout.Agent:
    """The agent of training rollouts, whose reward may have several terms."""
    if self.parts is None:
      return self.agent
    return dataclasses.replace(
      self.agent, reward=self.parts, forfeit=self.parts.nothing
    )

  def with_script(
    self, script: scripted_planners.Script, names: renaming.Names | None = None
  ) -> rollout.Agent:
    """Returns the same agent with a scripted planner in the planner's place.

    Args:
      script: script of the planner.
      names: new names of the tools, which the planner then knows; None for their own.
    """
    tasks = self.tasks
    assert self.tokenizer is not None
    solutions = scripted_planners.solutions_of(
      (*tasks.train, *tasks.validation, *tasks.test)
    )
    agent, composes = self.agent, self.planner
    if names is not None:
      agent = renaming.renamed(agent, names)
      solutions = {
        task: renamed_solutions.RenamedSolution(solution, names)
        for task, solution in solutions.items()
      }
      # New names may be long in the planner's tokens; a script reads no prompt.
      composes = dataclasses.replace(composes, max_prompt_tokens=_UNBOUNDED)
    planner = scripted_planners.ScriptedPlanner(
      script, solutions, composes, self.tokenizer
    )
    return dataclasses.replace(agent, planner=planner)

  def notices(self) -> list[str]:
    """Returns what a user should know of how this machine runs the system."""
    engine = self.frozen_engine if self.served else self.engine or self.frozen_engine
    found = [] if engine is None else [choices.said(engine.config)]
    if self.config.agent.code.sandbox != 'off':
      code = self.config.agent.code
      found.append(
        f'code: programs run in {code.sandbox}; one that takes more than'
        f' {code.seconds:g} s of processor time is stopped, so a slower machine may'
        ' give another result'
      )
    if self.config.agent.plan_format == 'tool_calls' and self.engine is not None:
      model: Any = self.planner.model  # The engine's.
      if not model.calls_as_trained:
        found.append(
          'tool calls: the model has no chat template that shows tools in a syntax'
          ' that is read here, so they are written in a plain form (docs/tools.md)'
        )
    return found + self.tool_notices

  def endpoint_usage(self) -> dict[str, float]:
    """Returns what the endpoint's requests of this process came to, flat."""
    return {
      name: value
      for client in self.clients
      for name, value in endpoints.usage(client).items()
    }

  def warmup(self) -> None:
    """Compiles what the planner's and the frozen modules' requests need.

    Otherwise a rollout would wait for the compiler, within its deadline.
    """
    if isinstance(self.engine, engine_lib.Engine):
      self.engine.warmup(truncates=(self.config.planner.sampling.truncates,))
    if self.frozen_engine is not None:
      roles = roles_lib.roles(self.config).values()
      asked = {r.sampling.truncates for r in roles if r.backend == 'frozen'}
      if self.config.agent.served.frozen:
        asked |= {False, True}  # What an agent may ask.
      self.frozen_engine.warmup(truncates=sorted(asked))

  async def close(self) -> None:
    """Ends threads, processes and connections."""
    for tool in self.agent.tools.values():
      if tool.close is not None:
        await tool.close()
    for client in self.clients:
      await client.aclose()
    await self.rewards.aclose()
    if self.agent.environment is not None:
      await self.agent.environment.close()
    if self.agent.recording is not None:
      self.agent.recording.close()
    if self.served is not None:
      await self.served.sampler.aclose()
    for engine in (self.engine, self.frozen_engine):
      if isinstance(engine, engine_lib.Engine):
        engine.close()


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


def build(
  config: schema.Config,
  workdir: epath.Path,
  mesh: jax.sharding.Mesh | None = None,
  processes: processes_lib.Processes | None = None,
  *,
  reads_tasks: bool = True,
) -> System:
  """Builds a run's parts. Whatever cannot work is an error here, at start.

  Args:
    config: the run's.
    workdir: data sets and a tokenizer trained for the run go below it.
    mesh: devices that hold the parameters of a run that trains; None for one that
      does not: they are then on the device that samples, once.
    processes: processes of a run that trains in several; each has to call it.
    reads_tasks: whether the caller reads the tasks. Otherwise they are loaded only
      where a tokenizer has to be trained on them.

  Raises:
    ConfigError, CheckpointError, ToolUnavailable, CorpusError: name the remedy.
  """
  consistency.check(config)
  if mesh is None and roles_lib.samples_outside(config):
    raise schema.ConfigError(
      'planner.sampler=external is for training; here set planner.sampler=engine,'
      ' which samples in this process, or serve WORKDIR/planner and set'
      ' planner.backend=endpoint'
    )
  _cache_compilations(workdir)
  processes = processes or processes_lib.Processes()
  tasks = processes.first(lambda: _tasks(config, workdir, reads_tasks))
  trains = mesh is not None
  with contextlib.ExitStack() as stack:
    recording = _recording(config, workdir, processes)
    if recording is not None:
      stack.callback(recording.close)
    judges = []
    is_served = config.agent.kind == 'served'
    box = toolbox.Toolbox(
      schema.ToolsConfig(enabled=()) if is_served else config.agent.tools,
      tasks,
      processes.count,
      recording,
      needs_one=not (
        config.agent.environment.kind or config.agent.code.sandbox != 'off' or is_served
      ),
    )
    # Before the model, which takes longer to load than a mistake to find. Together:
    # a process that fails here must not leave the others in what comes next.
    rewards, environment, tools, gazetteer = processes.together(
      lambda: (
        _rewards(config, tasks, recording, processes, judges),
        worlds.make(
          config,
          tasks,
          recording,
          processes.count,
          judges,
          _local(workdir / 'environment' / f'p{processes.index}'),
        ),
        box.make(),
        _gazetteer(config, tasks, box),
      )
    )
    worlds.check_names(environment, tools)
    tasks = withheld_tools.applied(tasks, environment, config.agent.withheld_tools)
    loaded = None
    if roles_lib.uses_engine(config):
      mesh = mesh or _sampling_mesh(config)
      loaded = _start(config, tasks, workdir, mesh, processes, environment)
    samplers = _samplers(config, loaded, mesh, trains, stack)
    loaded, served = samplers.loaded, None
    if roles_lib.samples_outside(config):
      assert loaded is not None
      served = external_planner.make(config, loaded, workdir, processes.count)
    engine = served.sampler if served else samplers.engine
    models = _models(
      config,
      loaded and loaded.tokenizer,
      engine,
      samplers.frozen,
      recording,
      processes.count,
    )
    kind = modules.ModelPlanner
    if config.agent.plan_format == 'tool_calls':
      kind = calling.CallingPlanner
    planner = kind(
      model=models['planner'],
      sampling=config.planner.sampling,
      prompt=_prompt(config),
      max_prompt_tokens=config.planner.max_prompt_tokens,
    )
    tools = box.completed(tools, models)
    notices = [tool.notice for tool in tools.values() if tool.notice]
    if config.agent.code.sandbox != 'off':
      environment = worlds.with_programs(config, environment, tools, recording)
      tools = {}  # They are functions of programs now.
    agent = _agent(
      config, planner, models, tools, gazetteer, rewards, recording, environment
    )
    system = System(
      config=config,
      model_config=loaded and loaded.config,
      params=loaded and loaded.params,
      mesh=mesh,
      tokenizer=loaded and loaded.tokenizer,
      described=loaded and loaded.described,
      tasks=tasks,
      engine=engine,
      frozen_engine=samplers.frozen,
      planner=planner,
      agent=agent,
      rewards=rewards,
      parts=rewards_lib.parts(config.reward, rewards),
      tool_notices=notices,
      clients=(
        *((models['endpoint'],) if 'endpoint' in models else ()),
        *box.clients,
        *judges,
      ),
      processes=processes,
      handover=samplers.handover,
      samplers={
        name: found
        for name, found in models.items()
        if isinstance(found, engine_model.EngineModel)
      },
      served=served,
    )
    stack.pop_all()  # From here on `System.close` ends them.
  return system


def _tasks(
  config: schema.Config, workdir: epath.Path, is_read: bool
) -> task_sets.TaskSet:
  """Returns the tasks of a run; without them, only the corpus that it reads."""
  data = str(workdir / 'data')
  trains_tokenizer = (
    roles_lib.uses_engine(config)
    and not config.planner.directory
    and not (workdir / tokenizers.FILE).exists()
  )
  if is_read or trains_tokenizer:
    return task_sets.load(
      config.task_set, data, worlds.of_rows(config.agent.environment.kind)
    )
  tools = config.agent.tools
  searches = 'search' in tools.enabled and not tools.corpus
  return task_sets.without_tasks(config.task_set, data, searches)


def _local(path: epath.Path) -> str:
  """Returns a path of this machine's disk; '' for one elsewhere."""
  return '' if '://' in str(path) else str(path)


def _prompt(config: schema.Config) -> prompts.PromptConfig:
  """Returns how planner prompts are written: each format has its instructions."""
  prompt, form = config.planner.prompt, config.agent.plan_format
  if form != 'fields' and prompt.system == instructions.PLANNER:
    # The policy of a task is all that the single model of tool_calls is told.
    own = instructions.PLANNER_OF_PROGRAMS if form == 'code' else ''
    return dataclasses.replace(prompt, system=own)
  return prompt


def _sampling_mesh(config: schema.Config) -> jax.sharding.Mesh:
  """Returns the mesh of a run that does not train: the devices that sample."""
  count = config.mesh.sampler_devices
  devices = jax.local_devices()[: None if count == -1 else count]
  return sharding.make_mesh(data=1, fsdp=-1, devices=devices)


@dataclasses.dataclass
class _Samplers:
  """What samples from the model of a run; all None where no model does.

  Attributes:
    loaded: the model, whose parameters are in the layout that engines read where
      the run does not train.
    engine: engine of the planner; None where the planner is an endpoint.
    frozen: engine of the frozen modules; None where there are none.
    handover: brings trained parameters to the engines; None where they are copied.
  """

  loaded: model_files.Model | None = None
  engine: engine_lib.Engine | None = None
  frozen: engine_lib.Engine | None = None
  handover: handover_lib.Handover | None = None


def _samplers(config, loaded, mesh, trains, stack) -> _Samplers:
  """Makes the engines of a run; `stack` closes them."""
  if loaded is None:
    return _Samplers()
  if not roles_lib.samples_inside(config):
    return _Samplers(loaded=loaded)
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
  made = _Samplers(loaded=loaded, handover=handover)
  if config.planner.backend == 'engine' and not roles_lib.samples_outside(config):
    made.engine = stack.enter_context(
      _engine(loaded, config.engine, sampled, sharding=where, copy=copy)
    )
  if roles_lib.uses_frozen(config):
    # Nothing of it is trained on: it keeps what its roles ask for.
    shapes = dataclasses.replace(config.engine, max_kept=0)
    made.frozen = stack.enter_context(
      _engine(loaded, shapes, sampled, name='frozen', sharding=where, copy=False)
    )
  return made


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


def _gazetteer(config, tasks, box) -> references.Gazetteer | None:
  """Returns the names that mentions are numbered by, if they are."""
  if not config.agent.number_mentions:
    return None
  titles = () if box.corpus is None else box.corpus.titles
  found = references.Gazetteer(titles, marks=config.agent.mention_marks)
  if box.corpus is None:
    return found
  rule_reach.check(config, (*tasks.train, *tasks.test), found)
  return found


def _cache_compilations(workdir: epath.Path) -> None:
  """Keeps programs that took a second to compile in a workdir of this machine.

  The next start from it is quick.
  """
  if getattr(jax.config, 'jax_compilation_cache_dir', None) is None and (
    paths.is_local(workdir)
  ):
    jax.config.update('jax_compilation_cache_dir', str(workdir / 'xla_cache'))


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


def _rewards(config, tasks, recording, processes, clients) -> registry.Rewards:
  """Returns the rewards that tasks name, which have what these need."""
  every = (*tasks.train, *tasks.validation, *tasks.test)
  answer = config.reward.answer
  names = {task.reward for task in every} | ({answer} if answer else set())
  rewards = rewards_lib.make(
    config.task_set, sorted(names), recording, processes.count, clients
  )
  try:
    for task in every:
      rewards.check(task)
    if answer:
      for task in tasks.train:
        rewards.check(dataclasses.replace(task, reward=answer))
  except ValueError as e:
    raise schema.ConfigError(str(e)) from e
  return rewards


def _recording(config, workdir, processes) -> recording_lib.Recording | None:
  """Opens the recording of tools' and endpoints' answers, if there is one."""
  mode = config.agent.recording
  if mode == 'off':
    return None
  directory = config.agent.recording_directory or str(
    old_names.place(workdir, 'recording')
  )
  if not paths.is_local(directory):
    raise schema.ConfigError(
      f'--recording: {directory} is not local: name a directory of this'
      ' machine with --recording_directory'
    )
  try:
    return recording_lib.Recording(
      directory, replays=mode == 'replay', process=processes.index
    )
  except recording_lib.RecordingError as e:
    raise schema.ConfigError(f'--recording={mode}: {e}') from e


def _models(config, tokenizer, engine, frozen, recording, processes):
  """Language models by backend; every role goes through the same protocol."""
  models = {}
  if engine is not None:
    models['planner'] = engine_model.EngineModel(engine, tokenizer)
  if frozen is not None:
    models['frozen'] = engine_model.EngineModel(frozen, tokenizer)
  if roles_lib.has_endpoint(config):
    models['endpoint'] = endpoints.connect(
      config.agent.endpoint, 'agent.endpoint', recording, processes
    )
  if engine is None:
    models['planner'] = models['endpoint']
  return models


def _agent(
  config, planner, models, tools, gazetteer, rewards, recording, environment
) -> rollout.Agent:
  """Composes the agent from its config."""
  agent = config.agent

  def backed(name: str, rule, modelled):
    role = getattr(agent, name)
    if role.own:
      return own_modules.load(role, name, models)
    if role.backend in ('rule', 'fields', 'world'):
      return rule
    return modelled(models[role.backend], role.sampling)

  analyst = None
  if agent.analyst.backend == 'oracle':
    analyst = modules.OracleAnalyst()
  elif agent.analyst.backend != 'none':
    analyst = modules.ModelAnalyst(
      models[agent.analyst.backend], agent.analyst.sampling.max_new_tokens
    )
  return rollout.Agent(
    planner=planner,
    executor=backed('executor', _executor(agent), modules.ModelExecutor),
    verifier=backed(
      'verifier',
      modules.WorldVerifier()
      if agent.verifier.backend == 'world'
      else modules.RuleVerifier(agent.verbs[-1]),
      modules.ModelVerifier,
    ),
    generator=backed('generator', modules.RuleGenerator(), modules.ModelGenerator),
    tools=tools,
    reward=rewards,
    count_tokens=language_model.text_counter(planner.model),
    config=agent.rollout,
    analyst=analyst,
    gazetteer=gazetteer,
    recording=recording,
    environment=environment,
    plan_format=agent.plan_format,
    unknown_tool=agent.unknown_tool,
  )


def _executor(agent: schema.AgentConfig) -> modules.Executor:
  """Returns the executor that asks no model."""
  if agent.plan_format == 'code':
    return modules.CodeExecutor()
  if agent.executor.backend == 'fields':
    return modules.FieldExecutor()
  return modules.RuleExecutor(agent.executor_templates, agent.verbs)
