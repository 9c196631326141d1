"""The typed configuration of a run: every field of it, and what it means.

A config file is Python with `get_config() -> Config` (and optionally
`get_sweep() -> list of override dicts`); it is trusted code, loaded by path. All
that it needs is one import:

  from agentflow_jax.config import schema as c

and `c.load_module` where it starts from another config file.
"""

import dataclasses
import importlib.util
import pathlib
import types
from collections.abc import Mapping
from typing import Literal

from agentflow_jax import records
from agentflow_jax.agents import prompts, rollout
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
class SourceConfig:
  """One source of a mix.

  Attributes:
    path: JSONL or parquet: a file, a directory of shards, a pattern, or a comma
      list of these (agentflow_jax.data.rows).
    weight: its share of the queries is weight / sum of weights; 0 leaves it out.
    items: its first rows that are used; 0 for all.
  """

  path: str = ''
  weight: int = 0
  items: int = 0

  def __post_init__(self):
    for name in ('weight', 'items'):
      if getattr(self, name) < 0:
        raise ConfigError(f'task_set.mixture: {name} must not be negative')


@dataclasses.dataclass(frozen=True)
class MixtureConfig:
  """What is trained on at once (agentflow_jax.data.mixtures says the formats).

  Attributes:
    natural_questions: Natural Questions, as FlashRAG writes it.
    deepmath: DeepMath-103K.
  """

  natural_questions: SourceConfig = SourceConfig()
  deepmath: SourceConfig = SourceConfig()


@dataclasses.dataclass(frozen=True)
class TaskSetConfig:
  """Where queries come from.

  Attributes:
    kind: 'geohop', or 'jsonl' for a user's own tasks: a row is {"query": ...,
      "answer": a string or a list of alternatives}, and optionally "id"; or
      'benchmark' for held-out tasks of a published one; or 'mixture' to train on
      several data sets at once, with such held-out tasks.
    benchmark: for 'benchmark' and 'mixture', its name, a comma list of them, or
      'all' of the directory (agentflow_jax.data.benchmarks).
    train: for 'jsonl' and 'benchmark', the path of the training tasks, as for
      'jsonl'.
    mixture: for 'mixture', what is trained on.
    evaluation: but for 'geohop', the path of held-out tasks; where `benchmark`
      names them its file, or a directory of NAME/data.json.
    reward: for 'jsonl' and 'benchmark', the reward's name
      (agentflow_jax.agents.rewards); a benchmark's and a mixture's own tasks
      have theirs.
    validation_items: tasks of the evaluations during training, of each
      benchmark; 0 for all.
    test_items: tasks of the evaluations before and after; likewise.
  """

  kind: Literal['geohop', 'jsonl', 'benchmark', 'mixture'] = 'geohop'
  benchmark: str = ''
  train: str = ''
  mixture: MixtureConfig = MixtureConfig()
  evaluation: str = ''
  reward: str = 'match_or_number'
  validation_items: int = 100
  test_items: int = 400


@dataclasses.dataclass(frozen=True)
class PlannerConfig:
  """The trained model.

  Attributes:
    backend: 'engine' for a model in this process; 'endpoint' for one behind
      `agent.endpoint`, which `solve` and `evaluate` can use and training
      cannot: it gives no token ids.
    directory: the model to start from: a directory of config.json,
      safetensors and a tokenizer, or a GGUF file; '' to start from nothing,
      with `model` and `vocab_size` below.
    dtype, param_dtype, remat, attention: of the directory's network, as in
      ModelConfig; None keeps its defaults (float32, nothing recomputed, auto).
      Training with param_dtype 'bfloat16' keeps a float32 master beside them,
      see core.masters: more memory for the trainer, less for every other copy.
    lora: adapters to train in the parameters' place (lora.rank > 0).
    model: the network to initialise where there is no directory; its vocabulary
      is that of the tokenizer, which is trained on the task set's texts.
    vocab_size: of that tokenizer.
    sampling: how the planner is sampled in training and sampled evaluation. With
      top_k, top_p or min_p it trains over the sets that tokens were drawn from,
      which engine.max_kept records.
    max_prompt_tokens: longer prompts shorten old memory entries, then fail.
    prompt: how prompts are written.
    thinking: whether the directory's chat template is told to let the model
      think before it answers ('on', 'off'); 'auto' leaves that to the template.
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


@dataclasses.dataclass(frozen=True)
class ModuleConfig:
  """Who plays one of the frozen modules.

  Attributes:
    backend: 'rule', 'frozen' (the planner as it was before training, in this
      process), 'endpoint', or for the analyst 'none'.
    sampling: of a model behind it.
  """

  backend: Literal['rule', 'frozen', 'endpoint', 'none'] = 'rule'
  sampling: SamplingSpec = SamplingSpec(temperature=0.0)


@dataclasses.dataclass(frozen=True)
class EndpointConfig:
  """An OpenAI-compatible server for modules with backend 'endpoint'.

  Attributes:
    preset: a name of agents.endpoints.presets (openai, azure, together, vllm, ollama,
      ...), which fills in what is left empty below; '' for none.
    base_url: up to and including '/v1'.
    model: the model's name there.
    api: 'chat', or 'completions' for a model without a chat template.
    thinking: whether the server is told to let the model think before it answers
      ('on', 'off'); 'auto' tells it nothing. 'on' and 'off' are errors where
      the preset's provider, or api='completions', has no field for the switch.
    api_key_variable: environment variable that holds the key; '' for the
      preset's, or none.
    timeout_seconds: of one request.
    concurrency: requests under way at once.
    max_attempts: at one request.
    requests_per_minute, tokens_per_minute: limits to keep; 0 for none.
    prompt_price, completion_price: of a million tokens; for the accounts.
    cache: a file of answers to keep between runs; '' for none.
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
class ToolsConfig:
  """Which tools are on the table, and their limits.

  Attributes:
    enabled: names, in the order of their cards: 'search', 'python',
      'generalist', 'wikipedia', 'web_page', 'web_search'.
    corpus: what search reads: a directory or a JSONL file; '' for the task
      set's own corpus.
    search_results: passages a search returns.
    search_index: a directory where the index of a large JSONL corpus is kept,
      and mapped into memory from; '' to make one in memory at each start.
    search_embeddings: an endpoint with /embeddings that orders by meaning what
      search finds by words; unset for none. Its `api` and `cache` are not read.
    search_candidates: passages that it orders.
    search_query_prefix, search_passage_prefix: put before each, as the model of
      the embeddings wants it.
    python_backend: 'bubblewrap', 'monty', or 'auto' for the first that works.
    python_seconds: wall time of one program.
    python_concurrency: programs at once; 0 for one a core.
    generalist: who answers as the generalist; 'none' where it is not enabled.
    web: what the web's tools may reach, and how politely.
    web_results: passages or sources that a call of theirs returns.
    wikipedia_url: of a MediaWiki.
    web_search_engine: see agents.tools.web.engines.
    web_search_key_variable, web_search_url, web_search_model: '' for the
      engine's usual ones.
    mcp: MCP servers whose tools are added: 'NAME=URL' or 'NAME=COMMAND LINE'.
    mcp_tools: the ones of them that are wanted, as NAME_TOOL; empty for all.
    mcp_environment: variables of this environment that started servers get.
    mcp_token_variable: of this environment, with the bearer token of URLs.
    mcp_seconds: of one call.
  """

  enabled: tuple[str, ...] = ('search', 'python')
  corpus: str = ''
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
class AgentConfig:
  """The system around the planner.

  Attributes:
    executor, verifier, generator, analyst: who plays the frozen modules.
    executor_templates: see agents.modules.RuleExecutor.
    verbs: leading words of a sub-goal that rule modules know: the first says
      that a step finds something out, the last that it answers the query.
    number_mentions: mark names of the corpus and numbers as #1, #2, ... so that
      plans can point at them.
    rollout: limits of a rollout.
    tools: the tools.
    endpoint: for modules that use one.
    recording: 'record' keeps what every tool and endpoint answers, 'replay'
      answers from there and asks nobody; --recording says the same.
    recording_directory: local directory of the recording; '' for `recording` in
      the workdir.
  """

  executor: ModuleConfig = ModuleConfig()
  verifier: ModuleConfig = ModuleConfig()
  generator: ModuleConfig = ModuleConfig()
  analyst: ModuleConfig = ModuleConfig(backend='none')
  executor_templates: Mapping[str, str] = dataclasses.field(
      default_factory=dict
  )
  verbs: tuple[str, ...] = ('find', 'answer')
  number_mentions: bool = False
  rollout: RolloutConfig = RolloutConfig()
  tools: ToolsConfig = ToolsConfig()
  endpoint: EndpointConfig = EndpointConfig()
  recording: Literal['off', 'record', 'replay'] = 'off'
  recording_directory: str = ''


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """Devices along each axis of the mesh, over all processes; -1 fills.

  Attributes:
    data: rows are split, parameters are whole. The only axis that may lie
      between slices.
    fsdp: rows and parameters are split.
    tensor: heads, MLP and vocabulary are split.
    sampler_devices: of each process, that its samplers are split over: 1, or -1
      for all it has.
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
    tokens_per_row: T; turn rows are packed into rows of this length.
    shorter_rows: other lengths; each step takes the one that pads least. Every
      length is one more program to compile before step 0.
    rows_per_micro: B; rows of one micro-batch over the whole mesh. So a
      micro-batch's budget is B x T tokens, whatever turn rows fill it.
    layout: 'forest' computes what turn rows share once; 'rows' computes every
      turn row apart. Loss and gradient are the same.
    block: of layout 'rows': a turn row starts at a multiple of this or lies
      between two, see core.batch.pack; None packs tighter.
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
    steps: optimizer batches (flow_grpo: each with its own rollouts).
    queries_per_step: Q, groups a step.
    group_size: G, rollouts a query.
    extra_rollouts: that each group starts beyond G. When G are scored the others
      are aborted: they have no reward and count as 'aborted_late'. Which ones
      these are is the clock's choice, so that such a run is not the same again
      (contract 4), and learns from what is quick.
    mini_batches: optimizer updates a step, each over whole groups.
    refill_rounds: how often, at most, a step draws other queries for groups whose
      rewards are all equal and so teach nothing. What is still missing then is
      made up by such groups. All that was sampled is in the metrics and records.
    max_logprob_gap: the largest |logprob - behavior_logprob| before the first
      update of a step; beyond it the run stops.
    concurrent_rollouts: rollouts under way at once.
    checkpoint_every: steps between commits; the last step always commits.
    keep_checkpoints: commits kept.
    rollout_records: 'all' keeps every turn's ids and texts, 'none' keeps none.
  """

  steps: int = 40
  queries_per_step: int = 32
  group_size: int = 8
  extra_rollouts: int = 0
  mini_batches: int = 1
  refill_rounds: int = 0
  max_logprob_gap: float = 1e-5
  concurrent_rollouts: int = 256
  checkpoint_every: int = 5
  keep_checkpoints: int = 2
  rollout_records: Literal['all', 'none'] = 'all'

  def __post_init__(self):
    for name in ('steps', 'queries_per_step', 'group_size', 'mini_batches',
                 'concurrent_rollouts', 'checkpoint_every', 'keep_checkpoints'):
      if getattr(self, name) < 1:
        raise ConfigError(f'train.{name} must be at least 1')
    for name in ('refill_rounds', 'extra_rollouts'):
      if getattr(self, name) < 0:
        raise ConfigError(f'train.{name} must not be negative')
    if self.queries_per_step % self.mini_batches:
      raise ConfigError(
          f'train.mini_batches {self.mini_batches} must divide'
          f' train.queries_per_step {self.queries_per_step}: mini-batches are'
          ' whole groups'
      )


@dataclasses.dataclass(frozen=True)
class TeacherConfig:
  """How badly the scripted teacher of GeoHop plans; it knows the format.

  Attributes:
    search_instead: P(searching where the step is arithmetic).
    python_instead: P(computing where the step is a look-up).
    wrong_what: P(a uniformly drawn attribute or operator).
    wrong_reference: P(a uniformly drawn mention), for each one.
    early_answer: P(claiming that a step answers when it does not).
    late_answer: P(not claiming it when it does).
  """

  search_instead: float = 0.5
  python_instead: float = 0.1
  wrong_what: float = 0.25
  wrong_reference: float = 0.25
  early_answer: float = 0.5
  late_answer: float = 0.1

  def __post_init__(self):
    for field in dataclasses.fields(self):
      if not 0 <= getattr(self, field.name) <= 1:
        raise ConfigError(f'teacher.{field.name} must be a probability')


@dataclasses.dataclass(frozen=True)
class SftConfig:
  """Supervised warm start on traces of the teacher.

  Attributes:
    traces: rollouts of the teacher that are collected, one a task.
    rows_per_step: turn rows in a batch.
    prompt_weight: weight of a prompt token beside 1 of a response token.
    loss: see core.losses.
  """

  traces: int = 12000
  rows_per_step: int = 512
  prompt_weight: float = 0.0
  loss: SftLossConfig = SftLossConfig()


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
  """What is evaluated when.

  Attributes:
    every: training steps between validation evaluations; 0 for none.
    start_and_final: evaluate the test tasks before and after.
    controls: the oracle, empty, random and frozen planners on the test tasks.
    trials: rollouts an item when sampling.
    judge: a language model that the command `evaluate` has grade the answers
      too, beside the rule; none unless it says where it is.
  """

  every: int = 10
  start_and_final: bool = True
  controls: bool = True
  trials: int = 1
  judge: EndpointConfig = EndpointConfig()


@dataclasses.dataclass(frozen=True)
class Config:
  """A whole run. Rooms bring their own parts."""

  name: str
  algorithm: Literal['flow_grpo', 'sft'] = 'flow_grpo'
  seed: int = 0
  task_set: TaskSetConfig = TaskSetConfig()
  planner: PlannerConfig = PlannerConfig()
  agent: AgentConfig = AgentConfig()
  engine: EngineConfig = EngineConfig()
  flow_grpo: FlowGrpoConfig = FlowGrpoConfig()
  optimizer: OptimizerConfig = OptimizerConfig(1e-6)
  mesh: MeshConfig = MeshConfig()
  batch: BatchConfig = BatchConfig()
  train: TrainConfig = TrainConfig()
  teacher: TeacherConfig = TeacherConfig()
  sft: SftConfig = SftConfig()
  evaluation: EvaluationConfig = EvaluationConfig()


def load_module(path: str) -> types.ModuleType:
  """Runs a config file, which is trusted code, and returns its module.

  A config file that starts from another one calls it, and changes what that
  one's `get_config()` returns with dataclasses.replace.

  Args:
    path: path of the Python file.

  Raises:
    ConfigError: no such file, an import in it that fails, or no `get_config`.
  """
  file = pathlib.Path(path)
  if not file.is_file():
    raise ConfigError(f'--config: no file {path}')
  spec = importlib.util.spec_from_file_location(f'config_{file.stem}', file)
  if spec is None or spec.loader is None:
    raise ConfigError(f'--config: {path} is not a Python file')
  module = importlib.util.module_from_spec(spec)
  try:
    spec.loader.exec_module(module)
  except ImportError as e:
    raise ConfigError(f'--config: {path} cannot be loaded: {e}') from e
  if not hasattr(module, 'get_config'):
    raise ConfigError(f'--config: {path} has no get_config()')
  return module
