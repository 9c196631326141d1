"""Builds what a run needs from its config: planner, modules, tools, tasks."""

import contextlib
import dataclasses
from typing import Any

import jax
from etils import epath

from agentflow_jax.agents import calling, instructions, language_model, memory
from agentflow_jax.agents import modules, numbered_memory, prompts
from agentflow_jax.agents import recording as recording_lib, references, renaming
from agentflow_jax.agents import rollout
from agentflow_jax.agents.endpoints import client as client_lib
from agentflow_jax.agents.rewards import parts as parts_lib, registry
from agentflow_jax.assembly import endpoints, engine_model, local_model
from agentflow_jax.assembly import own_modules, renamed_solutions
from agentflow_jax.assembly import rewards as rewards_lib
from agentflow_jax.assembly import rule_reach, scripted_planners, task_sets, toolbox
from agentflow_jax.assembly import withheld_tools, worlds
from agentflow_jax.config import consistency, roles as roles_lib, schema
from agentflow_jax.files import old_names, paths
from agentflow_jax.runtime import processes as processes_lib
from agentflow_jax.tokenization import tokenizers


_UNBOUNDED = 1 << 30  # Tokens of a prompt.


@dataclasses.dataclass
class System:
  """A run's parts; `close` it.

  Attributes:
    config: the run's.
    tasks: the tasks.
    planner: the planner, over `local` or an endpoint.
    agent: the system that rollouts run.
    rewards: every reward that a task names.
    local: model in this process; None where endpoints play all modules.
    parts: reward of training rollouts by terms; None where it is the task's.
    tool_notices: sentences for the user about how tools run on this machine.
    clients: clients of endpoints.
    processes: processes of the run; rollouts are shared between them.
  """

  config: schema.Config
  tasks: task_sets.TaskSet
  planner: modules.ModelPlanner
  agent: rollout.Agent
  rewards: registry.Rewards
  local: local_model.LocalModel | None = None
  parts: parts_lib.Parts | None = None
  tool_notices: list[str] = dataclasses.field(default_factory=list)
  clients: tuple[client_lib.EndpointClient, ...] = ()
  processes: processes_lib.Processes = dataclasses.field(
    default_factory=processes_lib.Processes
  )

  @property
  def model(self) -> local_model.LocalModel:
    """The model in this process, for code that only runs where there is one.

    Raises:
      ValueError: there is none.
    """
    if self.local is None:
      raise ValueError('no model is in this process')
    return self.local

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
      script, solutions, composes, self.model.tokenizer
    )
    return dataclasses.replace(agent, planner=planner)

  def notices(self) -> list[str]:
    """Returns what a user should know of how this machine runs the system."""
    found = [] if self.local is None else self.local.notices()
    if self.config.agent.code.sandbox != 'off':
      code = self.config.agent.code
      found.append(
        f'code: programs run in {code.sandbox}; one that takes more than'
        f' {code.seconds:g} s of processor time is stopped, so a slower machine may'
        ' give another result'
      )
    if self.config.agent.plan_format == 'tool_calls':
      model = self.planner.model
      if isinstance(model, engine_model.EngineModel) and not model.calls_as_trained:
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
    if self.local is not None:
      self.local.warmup(self.config)

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
    if self.local is not None:
      await self.local.close()


def build(
  config: schema.Config,
  workdir: epath.Path,
  mesh: jax.sharding.Mesh | None = None,
  processes: processes_lib.Processes | None = None,
  *,
  reads_tasks: bool = True,
) -> System:
  """Builds a run's parts. Whatever cannot work is an error here, at start.

  It is long because the order counts: what is quick to refuse comes before the model.

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
  if mesh is not None:
    task_sets.check_demonstrations(config, tasks.train)
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
    local = None
    if roles_lib.uses_engine(config):
      local = local_model.make(
        config, tasks, workdir, mesh, processes, environment, stack
      )
    models = _models(config, local, recording, processes.count)
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
      tasks=tasks,
      planner=planner,
      agent=agent,
      rewards=rewards,
      local=local,
      parts=rewards_lib.parts(config.reward, rewards),
      tool_notices=notices,
      clients=(
        *((models['endpoint'],) if 'endpoint' in models else ()),
        *box.clients,
        *judges,
      ),
      processes=processes,
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


def _models(
  config, local: local_model.LocalModel | None, recording, processes
) -> dict[str, Any]:
  """Language models by backend; every role goes through the same protocol."""
  models: dict[str, Any] = {}
  if local is not None:
    models |= local.samplers
  if roles_lib.has_endpoint(config):
    models['endpoint'] = endpoints.connect(
      config.agent.endpoint, 'agent.endpoint', recording, processes
    )
  if 'planner' not in models:
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
  start_memory: memory.Start = memory.start
  generator = modules.RuleGenerator()
  if gazetteer is not None:
    start_memory = numbered_memory.Numbering(gazetteer, agent.plan_format == 'code')
    generator = numbered_memory.MentionGenerator()
  at_work = contextlib.nullcontext
  if isinstance(planner.model, engine_model.EngineModel):
    at_work = planner.model.calling
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
    generator=backed('generator', generator, modules.ModelGenerator),
    tools=tools,
    reward=rewards,
    count_tokens=language_model.text_counter(planner.model),
    config=agent.rollout,
    analyst=analyst,
    start_memory=start_memory,
    recording=recording,
    environment=environment,
    plan_format=agent.plan_format,
    unknown_tool=agent.unknown_tool,
    at_work=at_work,
  )


def _executor(agent: schema.AgentConfig) -> modules.Executor:
  """Returns the executor that asks no model."""
  if agent.plan_format == 'code':
    return modules.CodeExecutor()
  if agent.executor.backend == 'fields':
    return modules.FieldExecutor()
  return modules.RuleExecutor(agent.executor_templates, agent.verbs)
