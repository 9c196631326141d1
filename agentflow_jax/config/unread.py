"""Settings that nothing would read are errors at start (contract 7)."""

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from agentflow_jax.config import own_code, roles, schema


# What plans and the modules around them read, and one model that calls tools does not.
_OF_PLANS = (
  'agent.executor',
  'agent.verifier',
  'agent.generator',
  'agent.executor_templates',
  'agent.verbs',
  'agent.number_mentions',
  'agent.unknown_tool',
  'agent.rollout.verdict_tokens',
  'agent.rollout.answer_when_out_of_turns',
  'planner.prompt.tail',
  'planner.prompt.cards',
)


# Whether an answer counts that comes behind the last turn; of served agents, too.
_ANSWERS_LATE = 'agent.rollout.answer_when_out_of_turns'
# What our own modules and tools read, and an agent that is not ours does not.
_OF_MODULES = (
  *(n for n in _OF_PLANS if n != _ANSWERS_LATE and not n.startswith('planner.')),
  'agent.analyst',
  'agent.tools',
  'agent.plan_format',
  'agent.mention_marks',
  'agent.rollout.entry_tokens',
  'agent.rollout.verify_seconds',
  'planner.prompt',
)


def check_values(config: schema.Config) -> None:
  """Refuses fields that were set, by whomever, and that nothing would read.

  Raises:
    ConfigError: names the field.
  """
  default = schema.Config(name='')
  for name, is_read in _readers(config).items():
    if not is_read and _value(config, name) != _value(default, name):
      raise schema.ConfigError(f'{name} is set, and nothing in this config reads it')
  model = config.planner.model
  if model and model.lora != schema.LoraConfig():
    raise schema.ConfigError(
      'planner.model.lora is set, and nothing reads it; set planner.lora'
    )
  others: tuple[str, ...] = ()
  why = ''
  if config.agent.kind == 'served':
    others = _OF_MODULES
    why = 'agent.kind=served the agent has modules and tools of its own'
  elif config.agent.plan_format == 'tool_calls':
    others = _OF_PLANS
    why = 'agent.plan_format=tool_calls one model calls the tools and writes the answer'
  for name in others:
    if _value(config, name) != _value(default, name):
      raise schema.ConfigError(f'{name} is set, and nothing reads it: with {why}')
  _check_judges(config)
  _check_templates(config)
  scripted = config.algorithm == 'sft' and config.sft.is_scripted
  if scripted and config.task_set.kind not in ('geohop', 'desk', 'jsonl'):
    raise schema.ConfigError(
      'algorithm=sft learns from a scripted teacher, or from rows with "plans":'
      ' task_set.kind must be geohop, desk or jsonl'
    )


def _readers(config: schema.Config) -> dict[str, bool]:
  """Returns whether a config reads a field, or what is below it, by dotted name.

  Fields that are not named are read always, or refused as flags only, see
  `check_flags`.
  """
  agent, kind = config.agent, config.task_set.kind
  rewards = (config.task_set.reward, config.reward.answer)
  one_file = kind in ('jsonl', 'benchmark')
  rows = one_file or config.task_set.evaluates_own_rows
  world = agent.environment.kind
  called = world in ('enterpriseops', 'openenv') or own_code.is_own(world)
  asks = roles.uses_endpoint(config)
  tracks = config.metrics.beyond_tensorboard
  found = {
    'task_set.train': one_file or kind == 'enterpriseops',
    'task_set.evaluation': not config.task_set.has_solutions,
    'task_set.reward_seconds': any(map(own_code.is_own, rewards)),
    'task_set.judge': 'judge' in rewards,
    'task_set.benchmark': kind in ('benchmark', 'mixture'),
    'task_set.mixture': kind == 'mixture',
    'agent.withheld_tools': bool(world),
    'agent.environment.faults': world == 'desk',
    'agent.environment.judge': world in ('desk', 'enterpriseops'),
    'agent.environment.seconds': called,
    'agent.environment.concurrency': called and world != 'openenv',
    'agent.endpoint.base_url': asks,
    'agent.endpoint.preset': asks,
    'agent.tools.corpus': 'search' in agent.tools.enabled,
    # The chat template of a model in this process.
    'planner.thinking': roles.uses_engine(config) and bool(config.planner.directory),
    'queue': bool(config.queue.size),
    'planner.external': config.planner.sampler == 'external',
    'agent.served': agent.kind == 'served',
  }
  for group, names, is_read in (
    ('task_set', ('reward', 'columns', 'revision'), rows),
    ('task_set', ('tier', 'distractors'), kind == 'desk'),
    ('agent.environment', ('url', 'capacity', 'total'), world == 'openenv'),
    ('agent.environment', ('seeds', 'servers'), world == 'enterpriseops'),
    ('agent.tools', ('own_seconds', 'own_concurrency'), bool(agent.tools.own)),
    (
      'agent.served',
      ('environment', 'cpu_seconds', 'memory_bytes'),
      bool(agent.served.command),
    ),
    ('metrics', ('project', 'trajectories_every', 'tracker_seconds'), bool(tracks)),
  ):
    found |= {f'{group}.{name}': is_read for name in names}
  return found


def _check_judges(config: schema.Config) -> None:
  """Refuses judges and embeddings that are configured without an address."""
  agent, judge = config.agent, config.task_set.judge
  for name, one in (
    ('evaluation.judge', config.evaluation.judge),
    ('task_set.judge', judge),
    ('agent.environment.judge', agent.environment.judge),
    ('agent.tools.search_embeddings', agent.tools.search_embeddings),
  ):
    if one != type(one)() and not (one.base_url or one.preset):
      raise schema.ConfigError(
        f'{name} has no address: set {name}.base_url or {name}.preset'
      )
  rewards = (config.task_set.reward, config.reward.answer)
  if 'judge' in rewards and not (judge.base_url or judge.preset):
    field = 'task_set.reward' if config.task_set.reward == 'judge' else 'reward.answer'
    raise schema.ConfigError(
      f'{field}=judge needs a language model: set task_set.judge.base_url or'
      ' task_set.judge.preset'
    )


def _check_templates(config: schema.Config) -> None:
  """Refuses templates for tools that are not there."""
  tools = config.agent.tools
  own = {own_code.parse(one, 'agent.tools.own').name for one in tools.own}
  templates = set(config.agent.executor_templates) - set(tools.enabled) - own
  if templates and templates - {'search', 'python', 'generalist'}:
    raise schema.ConfigError(
      f'agent.executor_templates: no tool {sorted(templates)} is enabled'
    )


def _value(config: schema.Config, name: str) -> Any:
  """Returns the value of a field, by its dotted name."""
  return functools.reduce(getattr, name.split('.'), config)


def check_flags(config: schema.Config, names: Iterable[str]) -> None:
  """Refuses flags that nothing would read.

  Stricter than `check_values`: a config may inherit settings of another
  algorithm, but a flag is always meant.

  Args:
    config: config with the flags applied.
    names: dotted names of the fields that flags set.

  Raises:
    ConfigError: names the flag and what would read it.
  """
  unread = dict(_unread(config))
  for name in names:
    for prefix, reader in unread.items():
      if _is_at(name, prefix):
        raise schema.ConfigError(
          f'--config.{name}: nothing would read it; it is for {reader}'
        )


_SERVED = (
  'engine',
  'planner.directory',
  'planner.dtype',
  'planner.param_dtype',
  'planner.attention',
  'planner.thinking',
)


def check_serves(names: Iterable[str], planner: str = '') -> None:
  """Refuses flags that are nothing to a model without a run around it.

  Args:
    names: names of flags, see `check_flags`.
    planner: planner that is served instead of the config's own; '' for that.

  Raises:
    ConfigError: names the flag.
  """
  for name in names:
    _check_served(name, 'serving', _SERVED)
    if name == 'engine.max_kept':
      raise schema.ConfigError(
        f'--config.{name}: serving does not read it; it is for training'
      )
    if name == 'planner.directory' and planner:
      raise schema.ConfigError(
        f'--config.{name}: serving does not read it beside --planner'
      )


_SERVED_WORLDS = (
  'task_set',
  'agent.environment',
  'agent.rollout.verify_seconds',
  'seed',
)


def check_serves_worlds(names: Iterable[str]) -> None:
  """Refuses flags that are nothing to an environment without an agent.

  Args:
    names: names of flags, see `check_flags`.

  Raises:
    ConfigError: names the flag.
  """
  for name in names:
    _check_served(name, 'serving an environment', _SERVED_WORLDS)


def _check_served(name: str, what: str, read: Sequence[str]) -> None:
  if not any(_is_at(name, field) for field in read):
    raise schema.ConfigError(
      f'--config.{name}: {what} does not read it, only {", ".join(read)}'
    )


def _is_at(name: str, field: str) -> bool:
  """Returns whether a flag sets a field, or one below it."""
  return name == field or name.startswith(f'{field}.')


def _unread(config: schema.Config) -> Iterator[tuple[str, str]]:
  """Yields fields (and all below them) that are idle, and what reads them."""
  if config.algorithm == 'sft':
    yield from _unread_by_sft(config)
  else:
    yield from _unread_by_rollouts(config)
  yield from _unread_of_queue(config)
  yield from _unread_of_tools(config.agent.tools)
  yield from _unread_of_agent(config)
  yield from _unread_of_modules(config)
  yield from _unread_of_planner(config)


def _unread_by_rollouts(config: schema.Config) -> Iterator[tuple[str, str]]:
  for name in ('sft', 'teacher'):
    yield name, 'algorithm=sft'
  if config.algorithm == 'none':
    trains = 'an algorithm that trains'
    for name in (
      'optimizer',
      'batch',
      'queue',
      'train.max_logprob_gap',
      'train.mean_logprob_gap',
      'train.p99_logprob_gap',
      'train.mini_batches',
      'planner.lora',
    ):
      yield name, trains
    for field in dataclasses.fields(config.flow_grpo):
      if field.name != 'terms':  # It says which groups count as equal.
        yield f'flow_grpo.{field.name}', trains


def _unread_by_sft(config: schema.Config) -> Iterator[tuple[str, str]]:
  yield 'flow_grpo', 'algorithm=flow_grpo'
  yield 'queue', 'algorithm=flow_grpo'
  yield 'reward', 'algorithm=flow_grpo'
  if not config.sft.is_scripted:
    field = 'rollouts' if config.sft.rollouts else 'chats'
    for name in ('teacher', 'sft.traces'):
      yield name, f"scripted rollouts, so sft.{field}=''"
  elif not config.task_set.has_solutions:
    yield 'teacher', 'task_set.kind=geohop or desk'
  elif config.task_set.kind == 'desk':
    for name in ('search_instead', 'python_instead', 'wrong_what'):
      yield f'teacher.{name}', 'task_set.kind=geohop'
  else:
    for name in ('wrong_tool', 'wrong_way'):
      yield f'teacher.{name}', 'task_set.kind=desk'
  if config.sft.rollouts_per_step:
    yield 'sft.rows_per_step', 'sft.rollouts_per_step=0'
  for name in (
    'queries_per_step',
    'group_size',
    'mini_batches',
    'refill_rounds',
    'extra_rollouts',
    'max_logprob_gap',
    'mean_logprob_gap',
    'p99_logprob_gap',
    'rollout_records',
    'stop_after_failing_steps',
    'drop_solved',
    'drop_hopeless',
  ):
    yield f'train.{name}', 'algorithm=flow_grpo'


def _unread_of_queue(config: schema.Config) -> Iterator[tuple[str, str]]:
  if not config.queue.size:
    for field in dataclasses.fields(config.queue):
      if field.name != 'size':
        yield f'queue.{field.name}', 'queue.size > 0'


def _unread_of_tools(tools: schema.ToolsConfig) -> Iterator[tuple[str, str]]:
  if 'search' not in tools.enabled:
    for name in (
      'results',
      'index',
      'embeddings',
      'candidates',
      'query_prefix',
      'passage_prefix',
      'passage_chars',
    ):
      yield f'agent.tools.search_{name}', 'the tool search'
  for name in ('api', 'thinking', 'cache', 'completion_price'):
    yield f'agent.tools.search_embeddings.{name}', 'models that write text'
  if not (tools.search_embeddings.base_url or tools.search_embeddings.preset):
    for name in ('candidates', 'query_prefix', 'passage_prefix'):
      yield f'agent.tools.search_{name}', 'agent.tools.search_embeddings'
  if 'python' not in tools.enabled:
    for name in ('backend', 'seconds', 'concurrency'):
      yield f'agent.tools.python_{name}', 'the tool python'
  if 'generalist' not in tools.enabled:
    yield 'agent.tools.generalist', 'the tool generalist'
  if not {'wikipedia', 'web_page', 'web_search'} & set(tools.enabled):
    for name in ('web', 'web_results'):
      yield f'agent.tools.{name}', 'the tools wikipedia, web_page, web_search'
  if 'wikipedia' not in tools.enabled:
    yield 'agent.tools.wikipedia_url', 'the tool wikipedia'
  if 'web_search' not in tools.enabled:
    for name in ('engine', 'key_variable', 'url', 'model'):
      yield f'agent.tools.web_search_{name}', 'the tool web_search'
  if not tools.mcp:
    for name in ('tools', 'environment', 'token_variable', 'seconds'):
      yield f'agent.tools.mcp_{name}', 'agent.tools.mcp'


def _unread_of_agent(config: schema.Config) -> Iterator[tuple[str, str]]:
  if not config.reward.weights:
    yield 'reward.answer', 'reward.weights'
  if config.agent.plan_format == 'code':
    yield 'agent.unknown_tool', 'agent.plan_format=fields'
  if not config.agent.number_mentions:
    yield 'agent.mention_marks', 'agent.number_mentions'
  if config.agent.plan_format == 'tool_calls':
    for name in _OF_PLANS:
      yield name, 'agent.plan_format=fields or code'
  if config.agent.kind == 'served':
    for name in _OF_MODULES:
      yield name, 'agent.kind=modules'
  else:
    yield 'agent.served', 'agent.kind=served'
  if not config.agent.served.command:
    for name in ('environment', 'cpu_seconds', 'memory_bytes'):
      yield f'agent.served.{name}', 'agent.served.command'
  if config.agent.code.sandbox == 'off':
    yield 'agent.code', 'agent.code.sandbox'
  if not config.agent.environment.kind:
    yield 'agent.environment.judge', 'agent.environment.kind'
    yield 'agent.rollout.verify_seconds', 'agent.environment.kind'
  if config.agent.recording == 'off':
    yield 'agent.recording_directory', '--recording=record or replay'


def _unread_of_modules(config: schema.Config) -> Iterator[tuple[str, str]]:
  found = roles.roles(config)
  for name, role in found.items():
    if role.backend not in ('frozen', 'endpoint') or role.own:
      yield f'{name}.sampling', 'a built-in module with a language model'
  for name in ('temperature', 'top_k', 'top_p', 'min_p', 'stop'):
    # One greedy call a query, shared by its group.
    yield f'agent.analyst.sampling.{name}', 'the other modules'
  if config.agent.executor.backend != 'rule' or config.agent.executor.own:
    yield 'agent.executor_templates', 'agent.executor.backend=rule'
  if config.agent.verifier.backend == 'world':
    yield 'agent.rollout.verdict_tokens', 'a verifier that says something'
    if config.agent.executor.backend == 'fields':
      yield 'agent.verbs', 'agent.executor.backend=rule or agent.verifier.backend=rule'


def _unread_of_planner(config: schema.Config) -> Iterator[tuple[str, str]]:
  if not roles.uses_endpoint(config):
    yield 'agent.endpoint', 'a module with backend=endpoint'
  if not roles.uses_engine(config):
    for name in (
      'directory',
      'dtype',
      'param_dtype',
      'remat',
      'attention',
      'lora',
      'model',
      'vocab_size',
      'thinking',
    ):
      yield f'planner.{name}', 'a model in this process'
    yield 'engine', 'a model in this process'
  elif config.planner.backend != 'engine' or (not config.planner.sampling.truncates):
    yield (
      'engine.max_kept',
      ('a planner with sampling.top_k, sampling.top_p or sampling.min_p'),
    )
  if config.planner.sampler != 'external':
    yield 'planner.external', 'planner.sampler=external'
  elif roles.samples_outside(config):
    yield 'train.max_logprob_gap', 'planner.sampler=engine'
    if not roles.samples_inside(config):
      for field in dataclasses.fields(config.engine):
        if field.name != 'max_kept':
          yield f'engine.{field.name}', 'planner.sampler=engine, or a frozen module'
      yield 'mesh.sampler_devices', 'planner.sampler=engine, or a frozen module'
  if not config.planner.lora.rank:
    for name in ('alpha', 'targets'):
      yield f'planner.lora.{name}', 'planner.lora.rank > 0'
  if config.planner.directory:
    yield 'planner.vocab_size', 'a planner that starts from nothing'
