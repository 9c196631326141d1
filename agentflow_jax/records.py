"""What the text world and the array world both speak. Standard library only.

A rollout is stored as facts (ids, log probabilities, texts, timings, one
`Status`); everything that can be derived from them is a property or a
function, so a record on disk never disagrees with itself.
"""

import dataclasses
import enum
import hashlib
import json
import numbers
import struct
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal

# Names of the tags around a model's thoughts, as a regular expression; agents read
# them in responses (agents.thoughts), and data in chat templates.
THOUGHT_TAGS = 'think(?:ing)?|thoughts?|reasoning|seed:think'

# Logits divided by a lower temperature do not stay finite in float32.
_LEAST_TEMPERATURE = 1e-6
# Float32 holds no larger number, and a logit of -inf by inf is no number.
_LARGEST_TEMPERATURE = 1e38
# The smallest positive number that float32 holds exactly.
_LEAST_TOP_P = 2**-126


@dataclasses.dataclass(frozen=True)
class Segment:
  """A piece of a prompt with one author.

  Attributes:
    role: 'system', 'user' or 'assistant'; what a chat template calls a role. In a
      conversation with tool calls also 'tool', for the result of one call; results
      stand behind the calls, in the order of the calls.
    text: the piece itself.
    trusted: False for whatever a model, a tool or a server returned. No text of
      an untrusted segment ever becomes a control token.
    calls: tool calls that an assistant makes behind its text.
  """

  role: str
  text: str
  trusted: bool = True
  calls: 'tuple[ToolCall, ...]' = ()


def joined(prompt: Sequence[Segment]) -> list[Segment]:
  """Returns a prompt with neighbouring segments of one role as one segment each.

  What a tool returned, and text with calls behind it, is joined to nothing.
  """
  found: list[Segment] = []
  for segment in prompt:
    last = found[-1] if found else None
    if (
      last is None
      or segment.role != last.role
      or segment.role == 'tool'
      or (segment.calls or last.calls)
    ):
      found.append(segment)
    else:
      found[-1] = dataclasses.replace(
        last, text=last.text + segment.text, trusted=last.trusted and segment.trusted
      )
  return found


@dataclasses.dataclass(frozen=True)
class SamplingSpec:
  """How a response is sampled, and the distribution its log probs are of.

  Attributes:
    temperature: divisor of the logits, from 1e-6 to 1e38; 0 is greedy (log
      probs are then those at temperature 1, and such a response never trains).
    top_k: number of most likely tokens that are kept; 0 for all.
    top_p: probability mass of the smallest set of tokens that is kept; 1 for all.
    min_p: least probability of a token that is kept, as a fraction of the largest
      one; 0 for all.
    max_new_tokens: longest response [tokens].
    stop: texts that end the response; they stay in it.
    stop_after: part of the response that ends it: 'plan' for the line that completes
      a plan (see agents.plan.end_of), 'code' for the end of the first fenced block
      (see agents.plan.end_of_code), '' to go on until the model ends it.
  """

  temperature: float = 1.0
  top_k: int = 0
  top_p: float = 1.0
  min_p: float = 0.0
  max_new_tokens: int = 256
  stop: tuple[str, ...] = ()
  stop_after: Literal['', 'plan', 'code'] = ''

  def __post_init__(self):
    for name in ('temperature', 'top_p', 'min_p'):
      value = getattr(self, name)
      if not isinstance(value, numbers.Real):
        raise ValueError(
          f'{name} must be a number, not {type(value).__name__}: {value!r}'
        )
    if not 0.0 <= self.temperature < float('inf'):
      raise ValueError(f'temperature must be finite and >= 0: {self.temperature}')
    if 0.0 < self.temperature < _LEAST_TEMPERATURE:
      raise ValueError(
        f'temperature must be 0 (greedy) or at least {_LEAST_TEMPERATURE}:'
        f' {self.temperature}'
      )
    if self.temperature > _LARGEST_TEMPERATURE:
      raise ValueError(
        f'temperature must be at most {_LARGEST_TEMPERATURE}: {self.temperature}'
      )
    for name in ('top_k', 'max_new_tokens'):
      value = getattr(self, name)
      if not isinstance(value, numbers.Integral):
        raise ValueError(
          f'{name} must be an integer, not {type(value).__name__}: {value!r}'
        )
    if self.top_k < 0:
      raise ValueError(f'top_k must be >= 0 (0 keeps all): {self.top_k}')
    if not 0.0 < self.top_p <= 1.0:
      raise ValueError(f'top_p must lie in (0, 1]: {self.top_p}')
    if self.top_p < _LEAST_TOP_P:
      raise ValueError(
        f'top_p must be at least {_LEAST_TOP_P}: {self.top_p}; top_k=1 keeps one token'
      )
    if not 0.0 <= self.min_p <= 1.0:
      raise ValueError(f'min_p must lie in [0, 1]: {self.min_p}')
    if self.max_new_tokens < 1:
      raise ValueError(f'max_new_tokens must be >= 1: {self.max_new_tokens}')
    if isinstance(self.stop, str) or not all(
      isinstance(text, str) and text for text in self.stop
    ):
      raise ValueError(
        f'stop must be a sequence of texts, none of them empty: {self.stop!r}'
      )
    if self.stop_after not in ('', 'plan', 'code'):
      raise ValueError(f"stop_after must be '', 'plan' or 'code': {self.stop_after!r}")

  @property
  def truncates(self) -> bool:
    # What is nearer to keeping all than that is no truncation in float32.
    top_p, min_p = self.top_p < 1 - 2**-25, self.min_p >= 2**-126
    return self.top_k > 0 or top_p or min_p


class Purpose(enum.Enum):
  """What randomness is for; two purposes never share a key."""

  TRAIN = 'train'
  EVALUATE = 'evaluate'
  SOLVE = 'solve'
  SFT = 'sft'
  SERVE = 'serve'


@dataclasses.dataclass(frozen=True)
class RequestKey:
  """Names one request, and so its randomness (never arrival order).

  Attributes:
    seed: the run's seed.
    purpose: training and evaluation never share randomness.
    step: optimizer step the rollout was started for (0 in evaluation).
    query: the task's id.
    rollout: index in the group; in evaluation the trial.
    turn: turn of the rollout, from 0.
    module: 'planner', 'executor', 'verifier', 'generator', 'analysis', ...
    attempt: retries of the same call, from 0; for a tool, number of the call in a
      response that makes several.
  """

  seed: int
  purpose: Purpose
  step: int
  query: str
  rollout: int
  turn: int = 0
  module: str = 'planner'
  attempt: int = 0

  def words(self) -> tuple[int, int]:
    """Two uint32 words that fold every field; the same on every machine."""
    fields = (
      self.seed,
      self.purpose.value,
      self.step,
      self.query,
      self.rollout,
      self.turn,
      self.module,
      self.attempt,
    )
    digest = hashlib.blake2b(repr(fields).encode(), digest_size=8).digest()
    return struct.unpack('<II', digest)


@dataclasses.dataclass(frozen=True)
class KeptSets:
  """What each token of a response was drawn from, where sampling truncated.

  In bytes, because there may be many: 4 a number, little-endian.

  Attributes:
    counts: int32, the size of each token's set.
    ids: int32, the token ids of all sets, one set after the other, the most
      likely first.
  """

  counts: bytes
  ids: bytes

  def __post_init__(self):
    if min(self._numbers(self.counts), default=1) < 1:
      raise ValueError('kept: a set is empty')
    total = sum(self._numbers(self.counts))
    if 4 * total != len(self.ids):
      raise ValueError(f'kept: sets of {total} ids, {len(self.ids)} bytes')

  @classmethod
  def of(cls, counts: Sequence[int], ids: Sequence[int]) -> 'KeptSets':
    """Returns what says the same as sequences of numbers."""
    return cls(*(struct.pack(f'<{len(x)}i', *x) for x in (counts, ids)))

  def numbers(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Returns counts and ids, see `of`."""
    return self._numbers(self.counts), self._numbers(self.ids)

  @staticmethod
  def _numbers(data: bytes) -> tuple[int, ...]:
    return struct.unpack(f'<{len(data) // 4}i', data)


@dataclasses.dataclass(frozen=True)
class Completion:
  """What a language model returned for one request.

  Attributes:
    text: decoded response, without the stop token.
    prompt_ids: token ids that were conditioned on; empty from an endpoint.
    response_ids: token ids as sampled, up to and including the stop.
    logprobs: log probability of each response id under the sampling distribution
      [nats].
    finish_reason: 'stop' or 'length'.
    params_version: optimizer step of the parameters that sampled it.
    queue_seconds: time that the request waited before the device took it [s].
    model_seconds: time from then until the completion was there [s].
    kept: candidate set of each response id; None for all of the vocabulary, and where
      sets are not recorded.
    thoughts: reasoning that a server returned apart from its text. Thoughts
      inside the text stay there; agents.thoughts reads what stands behind them.
    thinking: whether the prompt ended inside an open thought, so that the text
      begins with the rest of that thought.
    stalled_seconds: part of model_seconds in which the device did something else
      than sampling (it compiled, took parameters, ran other programs); 0 from an
      endpoint.
  """

  text: str
  prompt_ids: tuple[int, ...] = ()
  response_ids: tuple[int, ...] = ()
  logprobs: tuple[float, ...] = ()
  finish_reason: str = 'stop'
  params_version: int = 0
  queue_seconds: float = 0.0
  model_seconds: float = 0.0
  kept: KeptSets | None = None
  thoughts: str = ''
  thinking: bool = False
  stalled_seconds: float = 0.0


CheckKind = Literal['state', 'response', 'calls', 'unchanged', 'ending', 'reward']


@dataclasses.dataclass(frozen=True)
class Check:
  """One condition that the end of a rollout in a world has to meet.

  Attributes:
    name: name of the check in reports; names may repeat within a task.
    kind: kind of the facts that are checked. 'state': the result of a query of the
      world's final state. 'response': the answer, by a language model as judge.
      'calls': the tool calls. 'unchanged': the rows that changed. 'ending': the end
      of the episode. 'reward': the number that the environment itself returned.
    spec: JSON object with the condition; its fields depend on the kind, see
      agents.environments.checks.
  """

  name: str
  kind: CheckKind
  spec: Mapping[str, Any]

  def __post_init__(self):
    if self.kind not in typing.get_args(CheckKind):
      raise ValueError(
        f'check {self.name!r}: kind must be one of'
        f' {", ".join(typing.get_args(CheckKind))}: {self.kind!r}'
      )
    _check_json(self.spec, f'check {self.name!r}: spec')


@dataclasses.dataclass(frozen=True)
class World:
  """The world in which a task is carried out; no module ever reads it.

  Attributes:
    environment: name of the environment that opens it.
    state: JSON object with what the environment needs to open an episode, such as
      the name and the sha256 of a seed, and changes to it. Never the seed itself.
    policy: rules of the world, which modules see as a text between the tool cards
      and the query; may be empty.
    tools: names of the tools that are shown, in this order; empty for all tools of
      the environment, in its order.
    checks: conditions on the end of a rollout.
    plan: plan for people and for the experiment `agent.analyst.backend=oracle`; it
      reaches no prompt otherwise.
    feasible: whether the task can be carried out within the policy; None where that
      is not known.
  """

  environment: str
  state: Mapping[str, Any]
  policy: str = ''
  tools: tuple[str, ...] = ()
  checks: tuple[Check, ...] = ()
  plan: str = ''
  feasible: bool | None = None

  def __post_init__(self):
    _check_json(self.state, f'world of {self.environment!r}: state')

  @classmethod
  def of(cls, said: Mapping[str, Any]) -> 'World':
    """Returns the world of a JSON object with these fields.

    Raises:
      TypeError, ValueError: a field is unknown, missing or malformed.
    """
    return cls(
      **(
        dict(said)
        | {
          'tools': tuple(said.get('tools', ())),
          'checks': tuple(Check(**check) for check in said.get('checks', ())),
        }
      )
    )


def _check_json(value: Any, name: str) -> None:
  """Raises ValueError where a value would come back from JSON as another one."""
  try:
    same = json.loads(json.dumps(value, allow_nan=False)) == value
  except (TypeError, ValueError, RecursionError) as e:
    raise ValueError(f'{name} is no JSON: {e}') from e
  if not same or not isinstance(value, Mapping):
    raise ValueError(f'{name} must be a JSON object with lists, not tuples')


@dataclasses.dataclass(frozen=True, repr=False)
class Task:
  """One query with what is needed to check its answer.

  Attributes:
    id: name of the task, unique in its task set.
    query: query of the user.
    answers: acceptable answers; a reward decides what equals means.
    reward: name of the reward that scores it (agents.rewards).
    tags: facts for reports (hops, kind, ...); no module ever reads them.
    world: world in which the task is carried out; None for a question whose tools
      have no state.
  """

  id: str
  query: str
  answers: tuple[str, ...]
  reward: str
  tags: Mapping[str, str] = dataclasses.field(default_factory=dict)
  world: World | None = None

  @property
  def its_world(self) -> World:
    """The world, for code that only sees tasks with one.

    Raises:
      ValueError: the task has no world.
    """
    if self.world is None:
      raise ValueError(f'task {self.id!r} has no world')
    return self.world

  def __repr__(self) -> str:
    # Digests of task sets are taken of this text: a field that was added later is
    # left out at its default, so that the digests of older runs stay.
    fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
    if self.world is None:
      del fields['world']
    return f'Task({", ".join(f"{k}={v!r}" for k, v in fields.items())})'


@dataclasses.dataclass(frozen=True)
class ToolCall:
  """One call: a tool's name and JSON-like arguments."""

  tool: str
  arguments: Mapping[str, Any]


class ToolErrorKind(enum.Enum):
  """Who caused a tool's error: the call's arguments, or a host.

  The tool's own, or that of a language model behind it.
  """

  ARGUMENTS = 'arguments'
  UNREACHABLE = 'unreachable'
  MODEL_UNREACHABLE = 'model_unreachable'


@dataclasses.dataclass(frozen=True)
class ToolResult:
  """What a tool returned; on an error, text says what to do differently.

  Attributes:
    text: text for the model.
    error: cause of an error; None where there was none.
    seconds: wall time of the call.
    counts: counts of events on the way that reports show, by name (hosts that are
      blocked, results that quote the query).
    inner: calls that a program made inside this call, in order, with their results;
      empty where the call ran no program.
  """

  text: str
  error: ToolErrorKind | None = None
  seconds: float = 0.0
  counts: Mapping[str, int] = dataclasses.field(default_factory=dict)
  inner: 'tuple[tuple[ToolCall, ToolResult], ...]' = ()


class Status(enum.Enum):
  """How a rollout ended: exactly one for every requested rollout."""

  # POLICY: scored, usually 0.
  ANSWERED = 'answered'
  REFUSED = 'refused'  # The episode was ended by declining the task.
  OUT_OF_TURNS = 'out_of_turns'
  UNPARSEABLE_PLAN = 'unparseable_plan'
  TRUNCATED_RESPONSE = 'truncated_response'
  PROMPT_TOO_LONG = 'prompt_too_long'
  TOOL_ERROR = 'tool_error'
  DEADLINE = 'deadline'
  # INFRASTRUCTURE: reward None, outside the statistics.
  MODEL_UNREACHABLE = 'model_unreachable'
  TOOL_UNREACHABLE = 'tool_unreachable'
  REWARD_UNREACHABLE = 'reward_unreachable'
  ENVIRONMENT_UNREACHABLE = 'environment_unreachable'
  MODULE_FAILED = 'module_failed'
  DEADLINE_INFRASTRUCTURE = 'deadline_infrastructure'
  # Neither did anything wrong: enough others of its group were done before.
  ABORTED_LATE = 'aborted_late'

  @property
  def is_policy(self) -> bool:
    return self in _POLICY


_POLICY = frozenset(
  {
    Status.ANSWERED,
    Status.REFUSED,
    Status.OUT_OF_TURNS,
    Status.UNPARSEABLE_PLAN,
    Status.TRUNCATED_RESPONSE,
    Status.PROMPT_TOO_LONG,
    Status.TOOL_ERROR,
    Status.DEADLINE,
  }
)


@dataclasses.dataclass(frozen=True)
class CheckResult:
  """What one check of a world came to.

  Attributes:
    name: name of the check.
    kind: kind of the check.
    passed: whether the condition holds; None where it could not be checked.
    detail: text for people: what was found.
    vacuous: whether the condition already holds before anything was done, so that
      meeting it is no progress.
  """

  name: str
  kind: CheckKind
  passed: bool | None
  detail: str = ''
  vacuous: bool = False


@dataclasses.dataclass(frozen=True)
class Verdict:
  """What all checks of a world came to, and what the rollout changed in it.

  Attributes:
    results: results, in the order of the task's checks.
    changed: changes of the state, sorted, in words: 'table/key: column a -> b'.
    violations: those of `changed` that no check allows.
    reward: number that the environment itself returned; None where it returns none.
  """

  results: tuple[CheckResult, ...]
  changed: tuple[str, ...] = ()
  violations: tuple[str, ...] = ()
  reward: float | None = None

  @property
  def success(self) -> bool:
    """Whether there are checks, and all of them passed."""
    return bool(self.results) and all(r.passed for r in self.results)

  @property
  def pass_fraction(self) -> float | None:
    """Share of passed checks among those that fail before anything was done.

    None where there is no such check.
    """
    counted = [r for r in self.results if not r.vacuous]
    if not counted:
      return None
    return sum(bool(r.passed) for r in counted) / len(counted)


@dataclasses.dataclass(frozen=True)
class Ending:
  """What a rollout came to, as checks and rewards read it.

  Attributes:
    status: status of the rollout.
    answer: answer of the generator; '' where there is none.
    calls: tool calls that were made, in order, with their results; calls that a
      program made stand behind the call of the program.
    ended: kind of the episode's end: 'finish', 'refuse', or 'environment' where the
      environment ended it by itself; '' where it did not end.
    turns: turns of the rollout.
  """

  status: Status
  answer: str = ''
  calls: tuple[tuple[ToolCall, ToolResult], ...] = ()
  ended: str = ''
  turns: 'tuple[Turn, ...]' = ()


@dataclasses.dataclass(frozen=True)
class Term:
  """One term of a reward, which counts weight * value."""

  value: float
  weight: float = 1.0


@dataclasses.dataclass(frozen=True)
class Score:
  """A reward as the weighted sum of named terms.

  Attributes:
    terms: terms by name, in the order of their names.
  """

  terms: Mapping[str, Term]

  def __post_init__(self):
    object.__setattr__(self, 'terms', dict(sorted(self.terms.items())))

  @property
  def reward(self) -> float:
    """The sum of weight * value in float64, in the order of the names."""
    return float(sum(t.weight * t.value for t in self.terms.values()))


@dataclasses.dataclass(frozen=True)
class ModuleCall:
  """What a frozen module read and wrote.

  Attributes:
    module: 'executor', 'verifier' or 'generator'.
    output: its text, as the module's protocol returns it: the executor's whole
      text, with its thoughts; the verifier's verdict and the generator's answer,
      without theirs.
    seconds: wall time.
    prompts: prompts of the model behind it, one per attempt. Empty for a rule, which
      reads the turn's plan and the memory.
    shortened: number of memory entries that were shortened to make room in these
      prompts.
  """

  module: str
  output: str
  seconds: float = 0.0
  prompts: tuple[str, ...] = ()
  shortened: int = 0


@dataclasses.dataclass(frozen=True)
class Turn:
  """One planner turn and what came of it.

  Attributes:
    completion: the planner's sampled response.
    sampling: the spec it was sampled with.
    parse_error: reason why the plan could not be read; empty when it could.
    call: the tool call that the executor made, if any.
    result: result of the tool, if it was called.
    modules: input and output of the executor and the verifier.
    memory: the entry that this turn added to memory, as rendered.
    shortened: number of older entries that were shortened to make room in the planner's
      prompt.
    more: further calls of the same response, in order, with their results, where
      one response may make several (agent.plan_format=tool_calls). As for the first
      call, either may be None.
  """

  completion: Completion
  sampling: SamplingSpec
  parse_error: str = ''
  call: ToolCall | None = None
  result: ToolResult | None = None
  modules: tuple[ModuleCall, ...] = ()
  memory: str = ''
  shortened: int = 0
  more: tuple[tuple[ToolCall | None, ToolResult | None], ...] = ()

  @property
  def attempts(self) -> tuple[tuple[ToolCall | None, ToolResult | None], ...]:
    """All that the response tried to call, in order, with the results.

    A call is None where none could be made of what was written, a result where the
    call ended the rollout.
    """
    if self.call is None and self.result is None:
      return self.more
    return ((self.call, self.result), *self.more)

  @property
  def results(self) -> tuple[ToolResult, ...]:
    """Results of the response, in order; not those inside a program."""
    return tuple(result for _, result in self.attempts if result is not None)

  @property
  def calls(self) -> tuple[tuple[ToolCall, ToolResult], ...]:
    """Calls that were made, with their results; a program's calls follow it."""
    return tuple(
      pair
      for call, result in self.attempts
      if call is not None and result is not None
      for pair in ((call, result), *result.inner)
    )


@dataclasses.dataclass(frozen=True)
class Trajectory:
  """A finished rollout.

  Attributes:
    task_id: name of the task.
    rollout: index in its group (or trial).
    status: end of the rollout.
    turns: planner turns, in order.
    analysis: the query analysis that opened memory, shared by the group.
    answer: the generator's answer; empty when there is none.
    modules: input and output of the generator, where it was asked.
    reward: outcome reward; None outside the statistics.
    score: terms of the reward; None where the reward is a plain number.
    detail: text for people about the status (an error, the parse failure).
    seconds: wall time by what it was spent on [s].
    verdict: results of the checks of the task's world; None without a world, and
      where the checks were not made.
    digest: digest of the final state of the world; '' without one, and where the
      environment does not know it.
    briefing: policy that the environment gave the modules at the start, where it is
      another text than the policy of the task.
    undelivered: responses that were sampled for an agent that is not ours
      (agent.kind=served) and that did not reach it whole. They decided nothing, so
      they are no turns and are not trained on.
  """

  task_id: str
  rollout: int
  status: Status
  turns: tuple[Turn, ...]
  analysis: str = ''
  answer: str = ''
  modules: tuple[ModuleCall, ...] = ()
  reward: float | None = None
  score: Score | None = None
  detail: str = ''
  seconds: Mapping[str, float] = dataclasses.field(default_factory=dict)
  verdict: Verdict | None = None
  digest: str = ''
  briefing: str = ''
  undelivered: tuple[Turn, ...] = ()


@dataclasses.dataclass(frozen=True)
class Group:
  """The G rollouts of one task in one step."""

  task: Task
  trajectories: tuple[Trajectory, ...]
