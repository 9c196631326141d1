"""Environments whose worlds are SQLite databases in memory."""

import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

from etils import epath

from agentflow_jax import records
from agentflow_jax.agents.environments import answer_judge, base, checks
from agentflow_jax.agents.environments.sqlite import database, differences, seeds
from agentflow_jax.agents.tools import base as tools_base, own_tool
from agentflow_jax.files import reading

_STATE = b'sqlite episode 1\n'
# Worlds whose pages are kept: a group's rollouts, and those of others meanwhile.
_KEPT = 512
_FAILS = 'the query fails'


@dataclasses.dataclass(frozen=True)
class Action:
  """A tool of a world.

  Attributes:
    function: function of the database and of the call's arguments, which returns
      the text for the model. Its name, docstring and annotations are the tool's
      card, see tools.own_tool. Its queries say ORDER BY wherever they may find more
      than one row. It raises tools.base.BadArguments for what the model has to do
      differently; what it wrote is then taken back.
    ends: kind of the end that a call brings about when it succeeds; '' for none.
  """

  function: Callable[..., str]
  ends: base.Ended = ''

  @property
  def name(self) -> str:
    return self.function.__name__

  @functools.cached_property
  def card(self) -> tools_base.Card:
    """The card that the modules read."""
    return own_tool.card_of(self.function, self.name, bound=1)


@dataclasses.dataclass(frozen=True)
class SqliteEnvironment:
  """Opens worlds in databases.

  The state of a world is {"seed": name of a seed, "sha256": digest of its rows,
  "changes": list of changed rows, see Seed.changed}; changes may be missing.

  Attributes:
    name: name that worlds refer to.
    version: version of the tools: a result depends on it.
    actions: tools, in the order in which they are shown.
    seed_of: function from the name of a seed to the seed; raises SeedError.
    names_of: function from a seed to the names that plans may refer to by number.
    keys: regular expression of keys and dates, see Brief.
    judge: judge of 'response' checks; None where no task has one.
    capacity: largest number of open episodes in this process; None for no limit.
    faults: probability that a call fails before it does anything, and asks to be
      tried again; drawn from the rollout's key and the number of the call.
  """

  name: str
  version: str
  actions: Sequence[Action]
  seed_of: Callable[[str], seeds.Seed]
  names_of: Callable[[seeds.Seed], tuple[str, ...]] = lambda seed: ()
  keys: str = ''
  judge: answer_judge.AnswerJudge | None = None
  capacity: int | None = None
  faults: float = 0.0
  _start: Callable[[str, str], seeds.Seed] = dataclasses.field(
    init=False, repr=False, compare=False
  )
  _names: Callable[[str], tuple[str, ...]] = dataclasses.field(
    init=False, repr=False, compare=False
  )
  _known: dict[str, tuple[records.World, tuple[records.CheckResult, ...]]] = (
    dataclasses.field(init=False, repr=False, compare=False)
  )

  def __post_init__(self):
    for name, function in (('_start', self._changed), ('_names', self._named)):
      object.__setattr__(self, name, functools.lru_cache(_KEPT)(function))
    # Task id -> (world, results at start).
    object.__setattr__(self, '_known', {})

  def check(self, task: records.Task) -> list[str]:
    """See Environment.check."""
    world = task.its_world
    try:
      checks.validate_world(world)
      unknown = sorted(set(world.tools) - {a.name for a in self.actions})
      if unknown:
        raise ValueError(
          f'{self.name} has no tool {unknown[0]!r}; it has'
          f' {", ".join(a.name for a in self.actions)}'
        )
      results = self.at_start(task)
      for check in world.checks:
        if check.kind == 'response' and self.judge is None:
          raise ValueError(
            f'check {check.name!r} of kind "response" needs a judge: set'
            ' agent.environment.judge'
          )
        if 'gym_name' in check.spec:
          raise ValueError(
            f'check {check.name!r}: a world of {self.name} has one database, and no'
            ' gym_name'
          )
        if check.kind == 'reward':
          raise ValueError(
            f'check {check.name!r}: {self.name} returns no reward of its own'
          )
      self._check_rules(world)
    except (ValueError, database.OutOfTime) as e:
      raise ValueError(f'task {task.id!r}: {e}') from e
    said = {
      result.name: 'holds before anything is done'
      if result.passed
      else f'cannot be made: {result.detail}'
      for result in results
      if result.kind in ('state', 'calls')
      and (
        result.detail.startswith(_FAILS)
        or (result.passed and world.feasible is not False)
      )
    }
    return [f'task {task.id!r}: check {k!r} {v}' for k, v in said.items()]

  @property
  def cards(self) -> tuple[tools_base.Card, ...]:
    """See Environment.cards."""
    return tuple(action.card for action in self.actions)

  def _check_rules(self, world: records.World) -> None:
    """Raises ValueError where a list of allowed changes names what there is not."""
    tables = {t.name: t for t in self.start_of(world).tables}
    for check in world.checks:
      for rule in check.spec.get('allowed', ()):
        table = tables.get(rule['table'])
        unknown = set(rule.get('columns', ())) - set(table.columns if table else ())
        if table is None or unknown:
          what = (
            f'table {rule["table"]!r}'
            if table is None
            else (f'column {min(unknown)!r} of {rule["table"]!r}')
          )
          raise ValueError(f'check {check.name!r}: there is no {what}')

  async def open(
    self, task: records.Task, key: records.RequestKey, state: bytes | None = None
  ) -> base.Episode:
    """See Environment.open."""
    return _Episode(self, task, key, state)

  async def close(self) -> None:
    """See Environment.close."""

  def start_of(self, world: records.World) -> seeds.Seed:
    """Returns the state in which a world starts.

    Raises:
      ValueError: there is no such seed, its rows are not those that the task was
        made with, or the changes do not fit it.
    """
    state = world.state
    if not isinstance(state.get('seed'), str):
      raise ValueError('its world has no "seed", the name of a seed, in "state"')
    changes = json.dumps(state.get('changes', []))
    start = self._start(state.get('seed', ''), changes)
    wanted = state.get('sha256')
    found = (start.origin or start).sha256
    if wanted != found:
      raise ValueError(
        f'the seed {state.get("seed")!r} has the sha256 {found}, and the task was'
        f' made with {wanted}: make the tasks again, or restore the seed'
      )
    return start

  def _changed(self, name: str, changes: str) -> seeds.Seed:
    seed, changed = self.seed_of(name), json.loads(changes)
    return seed.changed(changed) if changed else seed

  def names(self, world: records.World) -> tuple[str, ...]:
    """Returns the names of a world's people and things."""
    return self._names(world.state['seed'])

  def _named(self, name: str) -> tuple[str, ...]:
    return tuple(self.names_of(self.seed_of(name)))

  def at_start(self, task: records.Task) -> tuple[records.CheckResult, ...]:
    """Returns what the checks of a task come to before anything is done.

    A check that only an answer or an ending can meet does not pass.
    """
    world, known = self._known.get(task.id, (None, ()))
    if world == task.world:
      return known
    nothing = records.Ending(records.Status.OUT_OF_TURNS)
    found = []
    with _opened(self.start_of(task.its_world).pages) as seed:
      for check in task.its_world.checks:
        if check.kind == 'state':
          result = _queried(check, seed)
        elif check.kind == 'calls':
          result = checks.of_calls(check, nothing)
        else:
          result = records.CheckResult(
            check.name, check.kind, check.kind == 'unchanged'
          )
        found.append(result)
    self._known[task.id] = task.its_world, tuple(found)
    return tuple(found)


class _Episode:
  """One open world, see base.Episode."""

  def __init__(self, environment, task, key, state):
    self._environment, self._task, self._key = environment, task, key
    self._known = None  # What differs, and after how many writes.
    self._chance = random.Random(repr(key.words())) if environment.faults else None
    self._start = environment.start_of(task.world)
    self.ended: base.Ended = ''
    self.answer, self.outside = None, frozenset()
    pages, everything = self._start.pages, False
    if state is not None:
      ended, pages = _read_state(state)
      self.ended, everything = ended, True
    self._database = database.Database(pages)
    if everything:  # Which tables were written before is not known.
      self._database.written.update(t.name for t in self._start.tables)
    world = task.world
    self.brief = base.Brief(
      world.policy,
      environment.names(world),
      environment.keys,
      str(world.state.get('date', '')),
    )
    actions = {a.name: a for a in environment.actions}
    self.tools = {
      name: tools_base.Tool(
        actions[name].card,
        functools.partial(self._call, actions[name]),
        # Work is bounded by steps; time runs out only where a tool is broken.
        timeout=60.0,
        version=environment.version,
      )
      for name in world.tools or actions
    }

  async def verify(self, ending: records.Ending) -> records.Verdict:
    """See Episode.verify."""
    changes, violations = (
      sorted(
        change
        for table, found in self._differences()
        for change in differences.in_words(table, found)
      ),
      set(),
    )
    world, results = self._task.world, []
    with _opened(self._database.pages()) as final:
      for check in world.checks:
        if check.kind == 'state':
          result = _queried(check, final)
        elif check.kind == 'calls':
          result = checks.of_calls(check, ending)
        elif check.kind == 'ending':
          result = checks.of_ending(check, ending)
        elif check.kind == 'unchanged':
          result, found = checks.of_changes(check, changes)
          violations.update(map(str, found))
        else:
          result = await self._rated(check, final, ending.answer)
        results.append(result)
    before = self._environment.at_start(self._task)
    return records.Verdict(
      tuple(
        dataclasses.replace(result, vacuous=bool(start.passed))
        for result, start in zip(results, before)
      ),
      tuple(map(str, changes)),
      tuple(sorted(violations)),
    )

  async def digest(self) -> str:
    """See Episode.digest."""
    return differences.digest(
      self._start,
      [(table.name, pair) for table, found in self._differences() for pair in found],
    )

  def state(self) -> bytes:
    """See Episode.state."""
    return _STATE + self.ended.encode() + b'\n' + self._database.pages()

  async def close(self) -> None:
    """See Episode.close."""
    self._database.close()

  def _differences(self) -> list[tuple[seeds.Table, list[differences.Pair]]]:
    """Returns the rows that differ from the start, by table."""
    changes = self._database.changes
    if self._known is None or self._known[0] != changes:
      tables = {t.name: t for t in self._start.tables}
      found = [
        (
          tables[name],
          differences.pairs(
            tables[name], self._start.rows[name], self._database.table(name)
          ),
        )
        # Statements of triggers and of foreign keys are among the written ones.
        for name in sorted(self._database.written)
      ]
      self._known = changes, found
    return self._known[1]

  async def _call(self, action: Action, arguments: Mapping[str, Any]) -> str:
    if self.ended:
      raise tools_base.BadArguments('the episode has ended')
    if self._chance and self._chance.random() < self._environment.faults:
      tools_base.count('faults')
      raise tools_base.BadArguments(f'{action.name} is busy: try again')
    try:
      with self._database.call():
        said = action.function(self._database, **arguments)
    except database.Refused as e:
      raise tools_base.BadArguments(f'{action.name}: {e}') from e
    except database.OutOfTime as e:
      raise tools_base.ToolUnreachable(f'{action.name}: {e}') from e
    self.ended = action.ends
    return said

  async def _rated(self, check, final, answer) -> records.CheckResult:
    """Has an answer rated beside the result of the check's query."""
    try:
      facts = _result(check.spec['sql_query'], final)
    except database.Refused as e:
      return checks.failed(check, str(e))
    return await self._environment.judge.check(check, facts, answer, self._key)


@contextlib.contextmanager
def _opened(pages: bytes) -> Iterator[database.Database]:
  """Opens a database whose rows the body can only read."""
  opened = database.Database(pages, read_only=True)
  try:
    yield opened
  finally:
    opened.close()


def _queried(check: records.Check, final: database.Database) -> records.CheckResult:
  """Makes a 'state' check on a database."""
  try:
    return checks.compared(check, _result(check.spec['query'], final))
  except database.Refused as e:  # Published so: an exception is a failed check.
    return checks.failed(check, f'{_FAILS}: {e}')


def _result(query: str, final: database.Database) -> Any:
  """Returns the result of a query of a task file, as checks compare it."""
  with final.call():
    return checks.result_value(*final.described(query))


def _read_state(state: bytes) -> tuple[base.Ended, bytes]:
  """Reads what `_Episode.state` wrote; raises ValueError."""
  ended, _, pages = state.removeprefix(_STATE).partition(b'\n')
  if not state.startswith(_STATE):
    raise ValueError('this is no state of an episode of a SQLite world')
  return cast(base.Ended, ended.decode()), pages


def seeds_below(directory: str | os.PathLike[str]) -> Callable[[str], seeds.Seed]:
  """Returns a function that reads DIRECTORY/NAME.json, each file once.

  A file is {"schema": SQL, "rows": {table: list of rows}}.
  """

  @functools.lru_cache(None)
  def read(name: str) -> seeds.Seed:
    if not name or name != pathlib.PurePath(name).name or name.startswith('.'):
      raise seeds.SeedError(f'{name!r} is no name of a seed')
    path = epath.Path(directory) / f'{name}.json'
    if not path.exists():
      raise seeds.SeedError(f'there is no seed {path}')
    with reading.boundary(path, seeds.SeedError):
      said = reading.read_json(path)
      return seeds.Seed.of(said['schema'], said['rows'])

  return read
