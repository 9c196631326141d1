"""What cannot work is an error before anything is loaded."""

import dataclasses

from agentflow_jax.agents.endpoints import presets
from agentflow_jax.agents.environments.programs import replayed_sessions
from agentflow_jax.agents.rewards import parts
from agentflow_jax.config import own_code, roles as roles_lib, schema, unread


# Implementations that only one of the modules has.
_FURTHER = {'executor': {'fields'}, 'verifier': {'world'}}


# Kinds of tasks that an environment of the same name opens the worlds of.
_WORLDS = ('desk', 'enterpriseops')


def check(config: schema.Config) -> None:
  """Refuses what the chosen parts would ignore or cannot do (contract 7).

  Raises:
    ConfigError: names the field.
  """
  if config.planner.backend == 'engine':
    _check_training(config)
    _check_lengths(config)
  if config.planner.sampler == 'external':
    _check_external(config)
  if config.queue.size and config.algorithm == 'flow_grpo':
    _check_queue(config)
  _check_metrics(config)
  _check_sources(config.task_set.mixture)
  _check_worlds(config)
  if config.agent.kind == 'served':
    _check_served(config)
  elif config.agent.plan_format == 'tool_calls':
    _check_calls(config)
  else:
    _check_programs(config)
  _check_reward(config)
  _check_modules(config)
  unread.check_values(config)
  if roles_lib.uses_endpoint(config):
    _check_endpoint(config)


def check_trains(config: schema.Config) -> None:
  """Refuses what cannot be trained.

  Raises:
    ConfigError: names the field.
  """
  if config.planner.backend != 'engine':
    raise schema.ConfigError(
      'planner.backend=endpoint gives no token ids, so it cannot be trained;'
      ' evaluate and solve can use it'
    )
  if config.agent.analyst.backend == 'oracle':
    raise schema.ConfigError(
      'agent.analyst.backend=oracle shows the planner the plan of each task, so it'
      ' is for the command evaluate; set none, frozen or endpoint to train'
    )


def _check_external(config: schema.Config) -> None:
  """Refuses servers that could not sample what is trained on honestly."""
  planner, grpo = config.planner, config.flow_grpo
  external = planner.external
  if planner.backend != 'engine':
    raise schema.ConfigError(
      'planner.sampler=external samples a planner that is trained here: set'
      ' planner.backend=engine'
    )
  if not external.servers:
    raise schema.ConfigError(
      'planner.sampler=external: set planner.external.servers, such as'
      ' http://127.0.0.1:8000'
    )
  if config.algorithm == 'sft':
    raise schema.ConfigError(
      'planner.sampler=external samples the rollouts of flow_grpo; algorithm=sft'
      ' learns from others: set planner.sampler=engine'
    )
  if config.algorithm == 'flow_grpo' and grpo.old_logprobs != 'recompute':
    raise schema.ConfigError(
      'planner.sampler=external: servers round otherwise than the trainer does: set'
      ' flow_grpo.old_logprobs=recompute'
    )
  if config.algorithm == 'flow_grpo' and not grpo.corrects:
    raise schema.ConfigError(
      'planner.sampler=external: what servers sample is slightly off policy: set a'
      ' correction, such as flow_grpo.importance_cap=2'
    )
  if config.algorithm == 'none':
    raise schema.ConfigError(
      "planner.sampler=external proves weights with the trainer's scores, and"
      ' algorithm=none scores nothing: set planner.sampler=engine'
    )
  if external.hand_over == 'adapter' and not planner.lora.rank:
    raise schema.ConfigError(
      'planner.external.hand_over=adapter: only a run that trains adapters has one: set'
      ' planner.lora.rank, or planner.external.hand_over=directory'
    )
  if external.hand_over == 'adapter' and external.api == 'vllm' and not external.model:
    raise schema.ConfigError(
      'planner.external.hand_over=adapter: set planner.external.model, the name of the'
      ' model on the servers (--served-model-name)'
    )


def _check_metrics(config: schema.Config) -> None:
  """Refuses tables of trajectories where none are recorded."""
  if config.metrics.trajectories_every and (
    config.algorithm == 'sft' or config.train.rollout_records != 'all'
  ):
    raise schema.ConfigError(
      'metrics.trajectories_every shows recorded rollouts of training steps: it needs'
      ' train.rollout_records=all, and algorithm=flow_grpo or none'
    )


def _check_sources(mixture: schema.MixtureConfig) -> None:
  """Refuses rewards of a mix that need more than their name."""
  for name, source in mixture.own().items():
    if source.reward == 'judge' or own_code.is_own(source.reward):
      raise schema.ConfigError(
        f'task_set.mixture.sources: {name}.reward={source.reward}: a source of a mix'
        ' takes built-in rewards only; train on it alone with task_set.kind=jsonl'
      )


def _check_training(config: schema.Config) -> None:
  """Refuses sampling and groups that nothing could be learned from."""
  sampling, train = config.planner.sampling, config.train
  kept = config.engine.max_kept
  if config.algorithm == 'flow_grpo' and sampling.truncates and not kept:
    raise schema.ConfigError(
      'planner.sampling: top_k, top_p or min_p truncates, and the trainer has'
      ' to know what each token was drawn from: set engine.max_kept, the ids'
      ' that are recorded with each (such as 64), or turn top_k, top_p and'
      ' min_p off'
    )
  if kept and sampling.top_k > kept:
    raise schema.ConfigError(
      f'planner.sampling.top_k {sampling.top_k} exceeds engine.max_kept,'
      f' {kept}, which is how many tokens a request that truncates keeps'
    )
  if config.algorithm == 'flow_grpo' and sampling.temperature == 0:
    raise schema.ConfigError(
      'planner.sampling.temperature: greedy responses cannot be trained on (evaluate'
      ' and solve are greedy with --greedy, whatever the temperature is)'
    )
  if config.optimizer.kind == 'muon' and config.planner.lora.rank:
    raise schema.ConfigError(
      'optimizer.kind=muon works on whole matrices of the layers, and with'
      ' planner.lora.rank none of these is trained; use adam'
    )
  if config.algorithm == 'flow_grpo' and train.group_size < 2:
    raise schema.ConfigError('train.group_size: one rollout a group has no advantage')


def _check_queue(config: schema.Config) -> None:
  """Refuses a queue whose groups could not be trained on honestly, or never are."""
  grpo, train, queue = config.flow_grpo, config.train, config.queue
  if grpo.old_logprobs != 'recompute':
    raise schema.ConfigError(
      'queue.size: groups of earlier steps need log probabilities under the'
      ' parameters of the step that trains on them: set'
      ' flow_grpo.old_logprobs=recompute'
    )
  if not grpo.corrects:
    raise schema.ConfigError(
      'queue.size: groups of earlier steps were sampled by another policy: set a'
      ' correction, such as flow_grpo.importance_cap=2 or'
      ' flow_grpo.rejection_high=2'
    )
  if train.rollout_records != 'all':
    raise schema.ConfigError(
      'queue.size: a run that goes on reads its queue from the records of earlier'
      ' steps: set train.rollout_records=all'
    )
  if train.refill_rounds:
    raise schema.ConfigError(
      'queue.size and train.refill_rounds both replace groups without variance: set'
      ' one of them to 0'
    )
  if int(queue.share * train.queries_per_step) < 1:
    raise schema.ConfigError(
      f'queue.share={queue.share}: that is less than one of'
      f' train.queries_per_step={train.queries_per_step} groups; raise it, or set'
      ' queue.size=0'
    )


def _check_lengths(config: schema.Config) -> None:
  """Refuses prompts that no program of the engine or the update could hold."""
  longest = config.planner.max_prompt_tokens + config.planner.sampling.max_new_tokens
  if config.algorithm != 'none' and longest > config.batch.tokens_per_row:
    raise schema.ConfigError(
      f'batch.tokens_per_row {config.batch.tokens_per_row} cannot hold a'
      f' prompt and response of {longest} tokens'
    )
  outside = roles_lib.samples_outside(config)
  if not outside and (
    config.planner.max_prompt_tokens > config.engine.max_prompt_tokens
  ):
    raise schema.ConfigError(
      'planner.max_prompt_tokens exceeds engine.max_prompt_tokens,'
      f' {config.engine.max_prompt_tokens}'
    )


def _check_endpoint(config: schema.Config) -> None:
  """Refuses an endpoint that could not be asked what it would be asked."""
  try:
    found = presets.config(**dataclasses.asdict(config.agent.endpoint))
  except ValueError as e:
    raise schema.ConfigError(f'agent.endpoint: {e}') from e
  asked = {
    name: role.sampling
    for name, role in roles_lib.roles(config).items()
    if role.backend == 'endpoint' and name != 'agent.analyst'
  }
  if config.planner.backend == 'endpoint':
    asked['planner'] = config.planner.sampling
  for name, sampling in asked.items():
    if (sampling.top_k or sampling.min_p) and not found.extended_sampling:
      raise schema.ConfigError(
        f"{name}.sampling: top_k and min_p are no part of OpenAI's interface;"
        " presets of servers of one's own (vllm, sglang) have them"
      )


def _check_worlds(config: schema.Config) -> None:
  """Refuses tasks in worlds that nothing opens, and what needs worlds without them."""
  kind, tasks = config.agent.environment.kind, config.task_set.kind
  if tasks in _WORLDS and kind != tasks:
    raise schema.ConfigError(
      f'task_set.kind={tasks} has tasks in worlds: set agent.environment.kind={tasks}'
    )
  own = own_code.is_own(kind)
  if kind not in ('', 'openenv', *_WORLDS) and not own:
    raise schema.ConfigError(
      f'agent.environment.kind={kind}: give {", ".join(_WORLDS)} or openenv, or'
      ' PATH.py:CLASS for a class of your own'
    )
  own = own or kind == 'openenv'
  if kind == 'openenv' and not config.agent.environment.url:
    raise schema.ConfigError(
      'agent.environment.kind=openenv needs the address of a server: set'
      ' agent.environment.url'
    )
  if own and tasks != 'jsonl':
    raise schema.ConfigError(
      f'agent.environment.kind={kind} begins its episodes with the fields of your own'
      f' rows, and task_set.kind={tasks} has none: set task_set.kind=jsonl'
    )
  if config.task_set.reward == 'environment' and not own:
    raise schema.ConfigError(
      'task_set.reward=environment is the number that a class of your own or a server'
      ' of OpenEnv returns: set agent.environment.kind=PATH.py:CLASS, or openenv'
    )
  if kind in _WORLDS and tasks != kind:
    raise schema.ConfigError(
      f'agent.environment.kind={kind} opens worlds, and no task of'
      f' task_set.kind={tasks} has one: set task_set.kind={kind}'
    )
  for name, backend in (('verifier', 'world'), ('analyst', 'oracle')):
    programs = name == 'verifier' and config.agent.code.sandbox != 'off'
    if not (kind or programs) and getattr(config.agent, name).backend == backend:
      raise schema.ConfigError(
        f'agent.{name}.backend={backend} is for tasks in worlds: set'
        ' agent.environment.kind'
      )


def _check_reward(config: schema.Config) -> None:
  """Refuses terms of a reward under which a failure could pay."""
  weights, answer = config.reward.weights, config.reward.answer
  normalised = (
    config.algorithm == 'flow_grpo' and config.flow_grpo.terms == 'normalised'
  )
  if not weights:
    if normalised:
      raise schema.ConfigError(
        'flow_grpo.terms=normalised needs terms: set reward.weights'
      )
    return
  try:
    parts.check(weights, bool(config.agent.environment.kind))
  except ValueError as e:
    raise schema.ConfigError(f'reward.weights: {e}') from e
  if bool(answer) != bool(weights.get('answer')):
    raise schema.ConfigError(
      'reward.answer names the reward of the term answer: set both'
      ' reward.answer and a weight of answer in reward.weights, or neither'
    )
  if answer in ('checks', 'environment'):
    raise schema.ConfigError(
      f'reward.answer={answer} reads no answer: the terms success and pass_fraction'
      ' are of the checks of a world'
    )
  if normalised and config.flow_grpo.advantage_over == 'rows':
    raise schema.ConfigError(
      'flow_grpo.terms=normalised: advantages are over rollouts; leave'
      ' flow_grpo.advantage_over as it is'
    )


def _check_programs(config: schema.Config) -> None:
  """Refuses plans that are programs where nothing runs or reads them as such."""
  agent = config.agent
  most, turns = replayed_sessions.MOST_PROGRAMS, agent.rollout.max_turns
  if agent.code.sandbox == 'bubblewrap' and turns > most:
    raise schema.ConfigError(
      'agent.code.sandbox=bubblewrap runs all earlier programs of a rollout again'
      f' before each one, so a rollout has {most} at most: set'
      f' agent.rollout.max_turns={most}, or agent.code.sandbox=monty'
    )
  if agent.plan_format != 'code':
    modelled = agent.executor.backend in ('frozen', 'endpoint') or agent.executor.own
    if agent.code.sandbox != 'off' and not modelled:
      raise schema.ConfigError(
        'agent.code.sandbox: nothing writes programs, because'
        f' agent.executor.backend={agent.executor.backend} fills in arguments; set'
        ' agent.plan_format=code, or an executor with a language model'
      )
    if agent.code.sandbox != 'off' and config.task_set.has_solutions:
      raise schema.ConfigError(
        f'agent.code.sandbox: the scripted planners of task_set.kind='
        f'{config.task_set.kind} write calls, or, with agent.plan_format=code,'
        ' programs; set agent.plan_format=code'
      )
    return
  if agent.code.sandbox == 'off':
    raise schema.ConfigError(
      'agent.plan_format=code needs a sandbox that runs the programs: set'
      ' agent.code.sandbox=monty or agent.code.sandbox=bubblewrap'
    )
  if agent.executor != schema.ModuleConfig():
    raise schema.ConfigError(
      'agent.executor: with agent.plan_format=code the planner writes the program'
      ' itself; leave agent.executor as it is'
    )
  if agent.verifier.backend == 'rule' and not agent.verifier.own:
    raise schema.ConfigError(
      'agent.verifier.backend=rule reads sub-goals, and with agent.plan_format=code'
      ' there are none: set world, which lets final_answer end a rollout, or a model'
    )
  if config.task_set.kind == 'geohop':
    raise schema.ConfigError(
      'agent.plan_format=code: the scripted planners of task_set.kind=geohop write no'
      ' programs; use tasks of another kind'
    )


def _check_calls(config: schema.Config) -> None:
  """Refuses what has no place where one model calls the tools itself."""
  agent, planner = config.agent, config.planner
  if agent.code.sandbox != 'off':
    raise schema.ConfigError(
      'agent.code.sandbox runs programs, and with agent.plan_format=tool_calls the'
      ' model calls each tool itself; set agent.code.sandbox=off, or'
      ' agent.plan_format=code'
    )
  if planner.sampling.stop_after:
    raise schema.ConfigError(
      f'planner.sampling.stop_after={planner.sampling.stop_after}: with'
      ' agent.plan_format=tool_calls the model itself ends its responses; leave it'
      ' empty'
    )
  if planner.backend == 'endpoint' and agent.endpoint.api == 'completions':
    raise schema.ConfigError(
      'agent.endpoint.api=completions takes no tools, which'
      ' agent.plan_format=tool_calls needs; set agent.endpoint.api=chat'
    )
  if config.algorithm == 'sft' and config.sft.is_scripted:
    raise schema.ConfigError(
      'algorithm=sft: the scripted teachers and "plans" of rows write plans, and with'
      ' agent.plan_format=tool_calls there are none; set sft.rollouts, the workdir of'
      ' a run whose successful rollouts are learned from, or sft.chats'
    )


def _check_served(config: schema.Config) -> None:
  """Refuses what has no place around an agent that is not ours."""
  agent = config.agent
  if config.planner.backend != 'engine':
    raise schema.ConfigError(
      'agent.kind=served serves a planner of this process: set planner.backend=engine'
      ' (an agent can ask an endpoint itself)'
    )
  if agent.environment.kind or agent.code.sandbox != 'off':
    raise schema.ConfigError(
      'agent.kind=served: the agent has its own tools and worlds; leave'
      ' agent.environment.kind and agent.code.sandbox as they are'
    )
  if config.algorithm == 'sft' and not config.sft.rollouts:
    raise schema.ConfigError(
      'algorithm=sft: the scripted teachers and "plans" of rows write plans, and with'
      ' agent.kind=served there are none; set sft.rollouts, the workdir of a run whose'
      ' successful rollouts are learned from'
    )


def _check_modules(config: schema.Config) -> None:
  """Refuses modules that could not answer one request."""
  agent, sampling = config.agent, config.planner.sampling
  modelled = {'none', 'frozen', 'endpoint'}
  roles = {f'agent.{r}': (getattr(agent, r), modelled) for r in roles_lib.ROLES}
  for name in roles_lib.MODULES:
    roles[f'agent.{name}'] = (
      getattr(agent, name),
      {'rule', 'frozen', 'endpoint'} | _FURTHER.get(name, set()),
    )
  roles['agent.analyst'] = (agent.analyst, modelled | {'oracle'})
  roles['agent.tools.generalist'] = (agent.tools.generalist, modelled)
  limits = {}
  ending = {name: role.sampling.stop_after for name, (role, _) in roles.items()}
  if config.planner.backend != 'engine':
    ending['planner'] = sampling.stop_after
  if sampling.stop_after and config.planner.backend == 'engine':
    wanted = 'code' if agent.plan_format == 'code' else 'plan'
    if sampling.stop_after != wanted:
      raise schema.ConfigError(
        f'planner.sampling.stop_after={sampling.stop_after}: with'
        f' agent.plan_format={agent.plan_format} it is {wanted}, or empty'
      )
  for name, stop_after in ending.items():
    if stop_after:
      raise schema.ConfigError(
        f'{name}.sampling.stop_after: only a planner writes plans, and only'
        ' where planner.backend=engine is its end looked for; leave it empty'
      )
  if config.planner.backend == 'engine':
    if not roles_lib.samples_outside(config):
      limits['planner'] = sampling.max_new_tokens
  elif not roles_lib.has_endpoint(config):
    raise schema.ConfigError(
      'planner.backend is endpoint: set agent.endpoint.base_url, or'
      ' agent.endpoint.preset'
    )
  for name, (role, allowed) in roles.items():
    if role.backend not in allowed:
      raise schema.ConfigError(
        f'{name}.backend: {role.backend!r} is not one of {sorted(allowed)}'
      )
    if role.backend == 'endpoint' and not roles_lib.has_endpoint(config):
      raise schema.ConfigError(
        f'{name}.backend is endpoint: set agent.endpoint.base_url, or'
        ' agent.endpoint.preset'
      )
    if role.backend == 'frozen':
      limits[name] = role.sampling.max_new_tokens
  for name, tokens in limits.items():
    if tokens > config.engine.max_new_tokens:
      raise schema.ConfigError(
        f'{name}.sampling.max_new_tokens: {tokens} exceeds'
        f' engine.max_new_tokens, {config.engine.max_new_tokens}'
      )
    prompt = config.engine.max_prompt_tokens
    if name == 'planner':
      prompt = config.planner.max_prompt_tokens
    if prompt + tokens > config.engine.longest:
      raise schema.ConfigError(
        f'engine.row_tokens {config.engine.row_tokens} cannot hold a prompt of'
        f' {prompt} tokens and a response of {tokens} ({name})'
      )
  if 'generalist' in agent.tools.enabled:
    if agent.tools.generalist.backend == 'none':
      raise schema.ConfigError(
        'agent.tools.generalist.backend: the generalist needs a language'
        " model; set 'frozen' or 'endpoint', or take it out of"
        ' agent.tools.enabled'
      )
  for name in ('agent.analyst', 'agent.tools.generalist'):
    if roles[name][0].own:
      raise schema.ConfigError(
        f"{name}.own: only executor, verifier and generator can be of one's own"
      )
  own_code.names(config)
  if len(agent.verbs) < 2:
    raise schema.ConfigError(
      'agent.verbs: name two, one that finds out and one that answers'
    )
