"""SQLite worlds: what calls may do, what changed, and what no chance decides."""

import asyncio
import contextlib
import dataclasses
import json
import random
import sqlite3
import subprocess
import sys

import pytest

from agentflow_jax import records
from agentflow_jax.agents.environments import answer_judge, base, checks
from agentflow_jax.agents.environments.sqlite import database, differences
from agentflow_jax.agents.environments.sqlite import environment as environments
from agentflow_jax.agents.environments.sqlite import seeds
from agentflow_jax.agents.tools import base as tools_base
from tests.agents.environments import toy_world


@pytest.fixture
def db():
  made = database.Database(toy_world.SEED.pages)
  yield made
  made.close()


def _play(*calls, environment=None, task=None, ending=None):
  """Makes calls (tool, arguments) in an episode; returns what came of it."""

  async def main():
    episode = await (environment or toy_world.make()).open(
      task or toy_world.task(), toy_world.key()
    )
    made, said = [], []
    for tool, arguments in calls:
      try:
        text, error = await episode.tools[tool].call(arguments), None
      except tools_base.BadArguments as e:
        text, error = str(e), records.ToolErrorKind.ARGUMENTS
      said.append(text)
      made.append((records.ToolCall(tool, arguments), records.ToolResult(text, error)))
    end = ending or records.Ending(
      records.Status.ANSWERED, 'done', tuple(made), episode.ended
    )
    verdict, digest = await episode.verify(end), await episode.digest()
    assert verdict == await episode.verify(end) and digest == await episode.digest()
    await episode.close()
    return verdict, digest, said

  return asyncio.run(main())


_DONE = [('move', {'thing': 'T1', 'shelf': 'S2'}), ('finish', {'summary': 'moved'})]


def test_a_task_that_is_done_passes_all_checks():
  verdict, digest, said = _play(*_DONE)
  assert verdict.success and verdict.pass_fraction == 1.0 and not verdict.violations
  assert verdict.changed == ('remark/move T1: added', 'thing/T1: shelf "S1" -> "S2"')
  assert said == ['T1 is on S2 now', 'moved'] and len(digest) == 64
  assert [r.vacuous for r in verdict.results] == [False, True, False]


def test_doing_nothing_passes_what_held_before_only():
  verdict, digest, _ = _play()
  assert [r.passed for r in verdict.results] == [False, True, False]
  assert verdict.pass_fraction == 0.0 and verdict.changed == ()
  assert digest == toy_world.SEED.sha256


@pytest.mark.parametrize(
  ('calls', 'failing', 'violations'),
  [
    (
      [('sell', {'thing': 'T3'}), *_DONE],
      'only',
      ('sale/1: added (id=1, thing="T3", price=20)',),
    ),
    (
      [('move', {'thing': 'T2', 'shelf': 'S2'}), *_DONE],
      'only',
      ('thing/T2: shelf "S1" -> "S2"',),
    ),
    (_DONE[:1], 'finished', ()),
    ([_DONE[0], ('refuse', {'rule': 'a', 'about': 'T1'})], 'finished', ()),
    ([('move', {'thing': 'T1', 'shelf': 'S1'}), _DONE[1]], 'moved', ()),
  ],
)
def test_each_check_fails_for_its_own_reason(calls, failing, violations):
  verdict, _, _ = _play(*calls)
  assert [r.name for r in verdict.results if not r.passed] == [failing]
  assert verdict.violations == violations


def test_a_call_that_fails_takes_back_what_it_wrote():
  verdict, digest, said = _play(('move', {'thing': 'T9', 'shelf': 'S2'}))
  assert 'find it by its name' in said[0] and verdict.changed == ()
  assert digest == toy_world.SEED.sha256


@pytest.mark.parametrize(
  'arguments', [{'thing': 'T1', 'shelf': 'S9'}, {'thing': 'T1', 'shelf': ''}]
)
def test_a_broken_constraint_is_text_for_the_model(arguments):
  verdict, _, (said,) = _play(('move', arguments))
  assert 'FOREIGN KEY' in said and verdict.changed == ()


def test_nothing_is_called_after_the_end():
  _, _, said = _play(*_DONE, ('sell', {'thing': 'T1'}))
  assert said[-1] == 'the episode has ended'


def test_one_episode_does_not_see_another():
  async def main():
    environment = toy_world.make()
    first, second = [
      await environment.open(toy_world.task(), toy_world.key(i)) for i in range(2)
    ]
    await first.tools['move'].call({'thing': 'T1', 'shelf': 'S2'})
    return await first.digest(), await second.digest()

  one, other = asyncio.run(main())
  assert one != other == toy_world.SEED.sha256


def test_a_state_is_a_value_that_another_episode_goes_on_from():
  async def main():
    environment, task = toy_world.make(), toy_world.task()
    first = await environment.open(task, toy_world.key())
    await first.tools['move'].call({'thing': 'T1', 'shelf': 'S2'})
    state = first.state()
    await first.tools['sell'].call({'thing': 'T1'})
    fork = await environment.open(task, toy_world.key(), state)
    await fork.tools['finish'].call({'summary': ''})
    ended = await environment.open(task, toy_world.key(), fork.state())
    with pytest.raises(tools_base.BadArguments):
      await ended.tools['sell'].call({'thing': 'T1'})
    with pytest.raises(ValueError, match='no state'):
      await environment.open(task, toy_world.key(), state[1:])
    verdict = await fork.verify(
      records.Ending(records.Status.ANSWERED, '', (), fork.ended)
    )
    return verdict, await fork.digest()

  verdict, digest = asyncio.run(main())
  assert verdict.success and verdict.changed == (
    'remark/move T1: added',
    'thing/T1: shelf "S1" -> "S2"',
  )
  assert digest == _play(*_DONE)[1], 'what was written before the fork counts'


@pytest.mark.parametrize(
  ('sql', 'words'),
  [
    ("attach database '/tmp/x.db' as x", 'only statements'),
    ('detach database main', 'only statements'),
    ('pragma writable_schema = on', 'only statements'),
    ('pragma table_info(thing)', 'only statements'),
    ("select load_extension('x')", 'load_extension'),
    ('select random()', 'random'),
    ('select hex(randomblob(4))', 'randomblob'),
    ('select sqlite_version()', 'sqlite_version'),
    ('select sqlite_source_id()', 'sqlite_source_id'),
    ("select date('now')", 'date'),
    ("select date(x'6e6f77')", 'date'),
    ("select datetime('now' || char(0))", 'datetime'),
    ("select strftime('%s', x'6e6f77')", 'strftime'),
    ("select datetime('2031-01-01', 'localtime' || char(0))", 'datetime'),
    ("select date(' NOW ')", 'date'),
    ('select date()', 'date'),
    ("select datetime('2031-01-01', 'localtime')", 'datetime'),
    ("select strftime('%s', 'now')", 'strftime'),
    ("select strftime('%s')", 'strftime'),
    ('select unixepoch()', 'unixepoch'),
    ("select time('subsec')", 'time'),
    ('select julianday()', 'julianday'),
    ('select current_timestamp', 'current_timestamp'),
    ('select current_date', 'current_date'),
    ('create table x (y)', 'only statements'),
    ('create temp table x (y)', 'only statements'),
    ('drop table sale', 'only statements'),
    ('alter table sale add column x', 'only statements'),
    ("update sqlite_master set sql = ''", 'sqlite_master'),
    ('begin', 'only statements'),
    ('commit', 'only statements'),
    ('savepoint x', 'only statements'),
    ('vacuum', 'VACUUM'),
    ("vacuum into '/tmp/x.db'", 'VACUUM'),
    ('reindex', 'only statements'),
    ('analyze', 'only statements'),
    ('select 1; select 2', 'one statement'),
    ("select 'a", 'unrecognized'),
    ('select * from nowhere', 'no such table'),
    (
      'with recursive n(i) as (select 1 union all select i + 1 from n)'
      ' select count(*) from n',
      'steps',
    ),
    (
      'with recursive n(i) as (select 1 union all select i + 1 from n limit 20000)'
      ' select i from n',
      'ask for less',
    ),
    ('select zeroblob(100000000)', 'too big'),
    ("select printf('%.*c', 100000000, 'x')", None),
    ("select replace(hex(zeroblob(4000)), '0', '0123456789')", 'too big'),
    (
      'with recursive n(i) as (select 1 union all select i + 1 from n limit 9000)'
      ' select hex(zeroblob(9000)) from n',
      'ask for less',
    ),
    ("select 'x' like '" + '%' * 200 + "'", 'pattern too complex'),
    ("select instr(zeroblob(400000), x'01')", 'too big'),
    ('select ' + '(' * 300 + '1' + ')' * 300, None),
    ('select 1 -- ' + 'x' * 200_000, 'too large'),
  ],
)
def test_statements_cannot_reach_beyond_their_rows(
  db, sql, words, tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  try:
    with db.call():
      found = db.rows(sql)
  except database.Refused as e:
    assert words is None or words.lower() in str(e).lower(), str(e)
  else:
    assert words is None and len(repr(found)) < 2_000_000
  assert db.value('select count(*) from thing') == 3
  assert not list(tmp_path.iterdir())


def test_dates_that_depend_on_their_arguments_are_computed(db):
  assert db.value("select date('2031-01-30', '+3 days')") == '2031-02-02'
  assert db.value("select strftime('%Y', '2031-05-06')") == '2031'
  assert db.value("select julianday('2031-01-02') - julianday('2031-01-01')") == 1.0
  assert db.value("select date('x')") is None


def test_the_queries_of_checks_write_nothing():
  task = toy_world.task(
    (
      toy_world.state('writes', "update thing set shelf = 'S2' returning shelf", 'S2'),
      toy_world.MOVED,
    )
  )
  verdict, digest, _ = _play(task=task)
  assert 'cannot be written' in verdict.results[0].detail
  assert not verdict.results[1].passed and digest == toy_world.SEED.sha256


def test_a_check_stops_at_its_steps_and_the_next_one_is_made():
  endless = (
    'with recursive n(i) as (select 1 union all select i + 1 from n)'
    ' select max(i) from n'
  )
  task = toy_world.task((toy_world.state('endless', endless, 1), toy_world.MOVED))
  verdict, _, _ = _play(*_DONE, task=task)
  assert [r.passed for r in verdict.results] == [False, True]
  assert 'steps' in verdict.results[0].detail


@pytest.mark.parametrize(
  ('schema', 'words'),
  [
    ('create table a (t text default current_timestamp)', 'clock'),
    ('create table a (t default (CURRENT_DATE))', 'clock'),
    ('create table a (i integer primary key autoincrement)', 'max'),
    ('create virtual table a using fts5(t)', 'virtual'),
    ('create temp table a (t)', 'temporary'),
    ("attach '/tmp/x.db' as x", 'not authorized'),
    ('create table a (', 'incomplete'),
  ],
)
def test_a_schema_that_is_no_value_is_refused(schema, words):
  with pytest.raises(seeds.SeedError, match=words):
    seeds.Seed.of(schema, {})


def test_a_schema_may_say_these_words_in_texts_and_comments():
  schema = "-- current_date\ncreate table a (t text default 'autoincrement');"
  assert seeds.Seed.of(schema, {'a': [['x']]}).pages


@pytest.mark.parametrize(
  ('rows', 'words'),
  [
    ({'sale': [['x', 'T1', 5]]}, 'datatype'),
    ({'sale': [['1', 'T1', 5]]}, 'is stored as'),
    ({'thing': [['T1', 'cup', 'S9', 1]]}, 'foreign key'),
    ({'thing': [['T1', 'cup', 'S1', -1]]}, 'CHECK'),
    ({'shelf': [['S1', 'a'], ['S1', 'b']]}, 'UNIQUE'),
    ({'shelves': []}, 'no such table'),
    ({'shelf': [['S1', object()]]}, 'no value'),
    ({'shelf': [['S1']]}, 'bindings'),
  ],
)
def test_rows_that_do_not_fit_are_refused(rows, words):
  shelves = {'shelf': [['S1', 'upper']]}
  with pytest.raises(seeds.SeedError, match=words):
    _ = seeds.Seed.of(toy_world.SCHEMA, shelves | rows).pages


def test_a_seed_is_its_rows_in_any_order():
  rows = {name: list(reversed(found)) for name, found in toy_world.ROWS.items()}
  other = seeds.Seed.of(toy_world.SCHEMA, rows)
  assert other.sha256 == toy_world.SEED.sha256 and other.pages == toy_world.SEED.pages


def _between(table, before, after):
  return differences.in_words(
    table, differences.pairs(table, before.rows[table.name], after.rows[table.name])
  )


def test_changes_of_a_seed_are_rows_set_added_and_removed():
  changed = toy_world.SEED.changed(
    [
      {'table': 'thing', 'key': ['T1'], 'set': {'price': 9}},
      {'table': 'thing', 'key': ['T2'], 'set': None},
      {'table': 'shelf', 'key': ['S3'], 'set': {'name': 'far'}},
    ]
  )
  with contextlib.closing(database.Database(changed.pages)) as opened:
    assert opened.rows('select id, price from thing order by id') == [
      ('T1', 9),
      ('T3', 20),
    ]
    assert opened.value("select name from shelf where id = 'S3'") == 'far'
  same = seeds.Seed.of(changed.schema, changed.rows)
  assert same.sha256 == changed.sha256 != toy_world.SEED.sha256
  found = [
    str(change)
    for table in changed.tables
    for change in sorted(_between(table, toy_world.SEED, changed))
  ]
  assert found == [
    'shelf/S3: added (id="S3", name="far")',
    'thing/T1: price 5 -> 9',
    'thing/T2: removed',
  ]


@pytest.mark.parametrize(
  'change',
  [
    {'table': 'things', 'key': ['T1'], 'set': None},
    {'table': 'thing', 'key': ['T1', 'T2'], 'set': None},
    {'table': 'thing', 'key': ['T9'], 'set': None},
    {'table': 'thing', 'key': ['T9'], 'set': {'name': 'x'}},
    {'table': 'thing', 'key': ['T1'], 'set': {'colour': 'x'}},
    {'table': 'remark', 'key': [], 'set': {'said': 'x'}},
    {'table': 'thing', 'set': {}},
    {'table': 'thing', 'key': ['T1'], 'set': 3},
  ],
)
def test_a_change_that_does_not_fit_is_named(change):
  with pytest.raises(seeds.SeedError, match='thing|remark'):
    toy_world.SEED.changed([change])


def test_rows_without_a_key_are_counted():
  table = next(t for t in toy_world.SEED.tables if t.name == 'remark')
  found = sorted(
    differences.in_words(
      table, differences.pairs(table, [('a',), ('b',)], [('b',), ('b',)])
    )
  )
  assert list(map(str, found)) == ['remark/a: removed', 'remark/b: added']


def test_a_digest_reads_rows_and_not_the_order_of_writes():
  moves = [('move', {'thing': f'T{i}', 'shelf': 'S2'}) for i in (1, 2)]
  assert _play(*moves)[1] == _play(*reversed(moves))[1]
  assert _play(*moves)[1] != _play(moves[0])[1]


def test_writing_the_same_value_changes_nothing():
  def touch(db: database.Database) -> str:
    """Writes a value as it was."""
    db.rows("update thing set shelf = 'S1' where id = 'T1'")
    return 'done'

  environment = toy_world.make(actions=(environments.Action(touch),))
  verdict, digest, _ = _play(('touch', {}), environment=environment)
  assert digest == toy_world.SEED.sha256 and verdict.changed == ()


@pytest.mark.parametrize(
  ('before', 'after', 'more', 'changed'),
  [
    (
      'references shelf (id)',
      'references shelf (id) on delete cascade',
      '',
      ('shelf/S1: removed', 'thing/T1: removed', 'thing/T2: removed'),
    ),
    (
      'text not null references shelf (id)',
      'text references shelf (id) on delete set null',
      '',
      (
        'shelf/S1: removed',
        'thing/T1: shelf "S1" -> null',
        'thing/T2: shelf "S1" -> null',
      ),
    ),
    (
      'shelf text not null references shelf (id)',
      'shelf text not null',
      'create trigger t after delete on shelf begin insert into remark'
      " values ('gone'); end;",
      ('remark/gone: added', 'shelf/S1: removed'),
    ),
  ],
)
def test_what_foreign_keys_and_triggers_write_is_a_change(before, after, more, changed):
  seed = seeds.Seed.of(toy_world.SCHEMA.replace(before, after) + more, toy_world.ROWS)

  def drop(db: database.Database) -> str:
    """Drops the upper shelf."""
    db.rows("delete from shelf where id = 'S1'")
    return 'dropped'

  environment = toy_world.make(
    actions=(environments.Action(drop),), seed_of={'toy': seed}.__getitem__
  )
  task = toy_world.task((), state={'seed': 'toy', 'sha256': seed.sha256})
  verdict, _, _ = _play(('drop', {}), environment=environment, task=task)
  assert verdict.changed == changed


@pytest.mark.parametrize(
  ('fields', 'words'),
  [
    ({'state': {'seed': 'toy', 'sha256': 'x'}}, 'make the tasks again'),
    (
      {
        'state': {
          'seed': 'toy',
          'sha256': toy_world.SEED.sha256,
          'changes': [{'table': 'x', 'key': [], 'set': None}],
        }
      },
      'x',
    ),
    ({'tools': ('find', 'search')}, "no tool 'search'"),
    (
      {
        'checks': (
          records.Check(
            'r', 'response', {'sql_query': 'select 1', 'comparison_prompt': 'polite?'}
          ),
        )
      },
      'judge',
    ),
    ({'checks': (records.Check('r', 'reward', {}),)}, 'no reward'),
    ({'checks': (records.Check('r', 'state', {}),)}, 'query'),
    ({'feasible': False, 'checks': (toy_world.ONLY,)}, 'ending'),
  ],
)
def test_a_task_that_cannot_be_opened_is_named_at_start(fields, words):
  with pytest.raises(ValueError, match=words) as error:
    toy_world.make().check(toy_world.task(**fields))
  assert str(error.value).startswith("task 't': ")


def test_checks_that_hold_before_anything_is_done_are_warned_of():
  there = toy_world.state('there', 'select count(*) from thing', 3)
  task = toy_world.task((there, toy_world.MOVED, toy_world.FINISHED))
  assert toy_world.make().check(task) == [
    "task 't': check 'there' holds before anything is done"
  ]
  declined = dataclasses.replace(
    task, world=dataclasses.replace(task.world, feasible=False)
  )
  assert not toy_world.make().check(declined), 'nothing is to be done there'


def test_seeds_are_read_from_files(tmp_path):
  (tmp_path / 'one.json').write_text(toy_world.rows_of(toy_world.SEED))
  (tmp_path / 'bad.json').write_text('{"schema": 1')
  (tmp_path / 'short.json').write_text('{"schema": ""}')
  read = environments.seeds_below(tmp_path)
  assert read('one').sha256 == toy_world.SEED.sha256
  for name, words in (
    ('two', 'two.json'),
    ('bad', 'bad.json'),
    ('short', 'short.json'),
    ('../one', 'no name'),
    ('', 'no name'),
  ):
    with pytest.raises(seeds.SeedError, match=words):
      read(name)


def test_answers_are_rated_by_a_judge():
  class Judge(answer_judge.AnswerJudge):
    async def rate(self, condition, facts, answer, key):
      assert (condition, json.loads(facts), key) == ('polite?', 3, toy_world.key())
      if answer == 'lost':
        raise base.JudgeUnreachable('judge: down')
      return 7 if answer == 'done' else 6

  task = toy_world.task(
    (
      records.Check(
        'r',
        'response',
        {'sql_query': 'select count(*) from thing', 'comparison_prompt': 'polite?'},
      ),
    )
  )
  environment = toy_world.make(judge=Judge(None))
  for answer, passed in (('done', True), ('no', False)):
    verdict, _, _ = _play(
      environment=environment,
      task=task,
      ending=records.Ending(records.Status.ANSWERED, answer),
    )
    assert verdict.results[0].passed is passed
  with pytest.raises(base.JudgeUnreachable):
    _play(
      environment=environment,
      task=task,
      ending=records.Ending(records.Status.ANSWERED, 'lost'),
    )


def test_many_random_histories_are_the_same_in_another_process():
  """Whatever the hash seed, and whenever it is."""
  program = f"""
import sys
sys.path[:0] = {[p for p in sys.path if p]!r}
from tests.agents.environments.sqlite import sqlite_test
print(sqlite_test._histories())
"""
  outs = {
    subprocess.run(
      [sys.executable, '-c', program],
      check=True,
      capture_output=True,
      text=True,
      env={'PYTHONHASHSEED': seed},
    ).stdout.strip()
    for seed in ('1', '2')
  }
  assert outs == {_histories()}


def _histories() -> str:
  rng, digests = random.Random(0), []
  for _ in range(20):
    calls = [
      rng.choice(
        [
          (
            'move',
            {'thing': f'T{rng.randint(1, 4)}', 'shelf': f'S{rng.randint(1, 3)}'},
          ),
          ('sell', {'thing': f'T{rng.randint(1, 3)}'}),
          ('find', {'name': 'pot'}),
        ]
      )
      for _ in range(6)
    ]
    verdict, digest, said = _play(*calls)
    digests.append((digest, said, verdict.changed))
  return str(seeds.digest_rows([(json.dumps(digests),)]))


def test_the_pages_are_a_database_of_sqlite(tmp_path):
  path = tmp_path / 'x.db'
  path.write_bytes(toy_world.SEED.pages)
  with contextlib.closing(sqlite3.connect(path)) as connection:
    assert connection.execute('select count(*) from thing').fetchone() == (3,)


def test_a_change_sorts_by_table_and_key():
  assert checks.Change('a', '2', 'added') < checks.Change('b', '1', 'added')


def test_json_is_read(db):
  assert db.rows("select value from json_each('[1, 2]') order by key") == [(1,), (2,)]
  assert db.value("""select json_extract('{"a": [7]}', '$.a[0]')""") == 7


def test_a_call_that_takes_too_long_is_the_environments_fault(db, monkeypatch):
  monkeypatch.setattr(database, '_MAX_SECONDS', -1.0)
  with pytest.raises(database.OutOfTime):
    with db.call():
      db.rows(
        'with recursive n(i) as (select 1 union all select i + 1 from n limit 9999)'
        ' select max(i) from n'
      )


def test_a_write_that_is_stopped_leaves_nothing_behind():
  """SQLite then takes back the whole transaction, with the call's own savepoint."""

  def fill(db: database.Database, number: int) -> str:
    """Adds remarks.

    Args:
      number: how many.
    """
    db.rows("insert into remark values ('before')")
    db.rows(
      'insert into remark with recursive n(i) as (select 1 union all select i + 1'
      ' from n where i < ?) select i from n',
      number,
    )
    return 'filled'

  def swallow(db: database.Database) -> str:
    """Goes on after what was refused."""
    db.rows("insert into remark values ('before')")
    with contextlib.suppress(database.Refused):
      db.rows("insert or rollback into thing values ('T1', 'x', 'S1', 1)")
    return 'done'

  environment = toy_world.make(
    actions=(environments.Action(fill), environments.Action(swallow))
  )
  verdict, digest, said = _play(
    ('fill', {'number': 10**8}),
    ('swallow', {}),
    ('fill', {'number': 2}),
    environment=environment,
  )
  assert 'steps' in said[0] and 'took back' in said[1] and said[2] == 'filled'
  assert verdict.changed == (
    'remark/1: added',
    'remark/2: added',
    'remark/before: added',
  )
  assert digest != toy_world.SEED.sha256


def test_rows_with_a_key_of_null_are_all_seen():
  table = next(t for t in toy_world.SEED.tables if t.name == 'thing')
  rows = [(None, f'cup {i}', 'S1', 1) for i in range(3)]
  found = differences.pairs(table, rows[:1], [rows[0], rows[1], rows[1], rows[2]])
  assert sorted(found, key=repr) == [(None, rows[1]), (None, rows[1]), (None, rows[2])]
  with pytest.raises(seeds.SeedError, match='key of null'):
    seeds.Seed.of(toy_world.SCHEMA, {'shelf': [[None, 'upper']]})


@pytest.mark.parametrize(
  'more',
  [
    "insert into remark values ('x');",
    'insert into remark values (random());',
    'create table t (d text check (d = date(d)));',
    'create table t (i, d text default (Random ()));',
    "create table t (d text default (strftime('%s')));",
    'create table t (v text default (sqlite_version()));',
  ],
)
def test_a_schema_writes_no_rows_and_uses_no_chance(more):
  with pytest.raises(seeds.SeedError):
    _ = seeds.Seed.of(toy_world.SCHEMA + more, toy_world.ROWS).pages


def test_rows_that_a_schema_makes_are_not_there():
  schema = toy_world.SCHEMA + 'create table copied as select 1 as one;'
  seed = seeds.Seed.of(schema, toy_world.ROWS)
  with contextlib.closing(database.Database(seed.pages)) as opened:
    assert opened.rows('select * from copied') == [], 'rows stand in the rows'


def test_a_trigger_that_writes_while_pages_are_made_is_noticed():
  schema = (
    toy_world.SCHEMA
    + """
  create trigger log after insert on thing
  begin insert into remark values ('new'); end;
  """
  )
  with pytest.raises(seeds.SeedError, match="'remark'.*3 instead of 0"):
    _ = seeds.Seed.of(schema, toy_world.ROWS).pages


def test_a_schema_that_never_ends_is_refused():
  endless = (
    'create view v as with recursive n(i) as (select 1 union all select i + 1 from n)'
    ' select i from n; create table t (i); create index x on t (i)'
  )
  assert seeds.Seed.of(endless, {}).pages, 'a view is read by nobody here'
  with pytest.raises(seeds.SeedError):
    seeds.Seed.of(
      'create table t as select * from (with recursive n(i) as (select 1'
      ' union all select i + 1 from n) select i from n)',
      {},
    )


def test_an_integer_that_no_row_holds_is_named():
  with pytest.raises(seeds.SeedError, match="'sale'"):
    _ = seeds.Seed.of(toy_world.SCHEMA, {'sale': [[1, 'T1', 2**70]]}).pages


def test_checks_that_can_never_pass_are_noticed_at_start():
  task = toy_world.task((toy_world.state('typo', 'select nme from thing', 1),))
  assert toy_world.make().check(task) == [
    "task 't': check 'typo' cannot be made: the query fails: no such column: nme"
  ]
  for rule, words in (
    ({'table': 'things'}, "no table 'things'"),
    ({'table': 'thing', 'columns': ['colour']}, "no column 'colour' of 'thing'"),
    ({'table': 'thing', 'keys': [5]}, 'keys must be texts'),
  ):
    check = records.Check('u', 'unchanged', {'allowed': [rule]})
    with pytest.raises(ValueError, match=words):
      toy_world.make().check(toy_world.task((check,)))


def test_a_world_without_a_seed_is_named():
  for state in ({}, {'seed': ['toy']}):
    with pytest.raises(ValueError, match='no "seed"'):
      toy_world.make().check(toy_world.task(state=state))
