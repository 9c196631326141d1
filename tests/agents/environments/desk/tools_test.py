"""Tools of the desk: what they show and write, and what they refuse."""

import contextlib
import json

import pytest

from agentflow_jax.agents.environments.desk import actions, environment, facts, schema
from agentflow_jax.agents.environments.sqlite import database, seeds
from agentflow_jax.agents.tools import base
from tests.agents.environments.desk import small_world


@pytest.fixture
def db():
  with contextlib.closing(database.Database(small_world.SEED.pages)) as made:
    yield made


def _call(db, tool, tier='easy', **arguments):
  """Makes a call as an episode makes it."""
  action = {a.name: a for a in actions.of_tier(tier)}[tool]
  arguments = base.check_arguments(action.card, arguments)
  with db.call():
    return action.function(db, **arguments)


def test_twenty_tools_have_cards():
  found = actions.of_tier('easy')
  names = [a.name for a in found]
  assert names == [*actions.READS, *actions.WRITES, *actions.ENDINGS]
  assert len(set(names)) == 20
  for action in found:
    assert action.card.purpose.endswith('.')
    assert all(a.description for a in action.card.arguments), action.name
    assert 'db' not in {a.name for a in action.card.arguments}
  assert {a.name: a.ends for a in found if a.ends} == {
    'finish': 'finish',
    'refuse': 'refuse',
  }


def test_an_unknown_tier_is_refused():
  with pytest.raises(ValueError, match='easy, plain, long'):
    actions.of_tier('hard')


@pytest.mark.parametrize(
  'tier, tool, arguments, text',
  [
    # Ada Holt has no loan; P3's laser training expires today and is valid, the one
    # for pumps expired yesterday.
    (
      'easy',
      'get_person',
      {'person': 'P3'},
      'P3 Cy Marsh, member of Optics, 1 open loans, 0 late, trained in laser',
    ),
    (
      'plain',
      'get_person',
      {'person': 'P3'},
      'P3 Cy Marsh, member of Optics, 1 open loans',
    ),
    (
      'easy',
      'find_person',
      {'name': 'Ada Holt'},
      'P1 Ada Holt, head of Optics, 0 open loans, 0 late, trained in nothing',
    ),
    ('plain', 'find_person', {'name': 'Ada Holt'}, 'P1 Ada Holt of Optics'),
    (
      'easy',
      'find_person',
      {'name': 'Cy Marsh'},
      'P3 Cy Marsh of Optics; P5 Cy Marsh of Survey; P10 Cy Marsh of Survey',
    ),
    (
      'easy',
      'find_person',
      {'name': 'Di North', 'unit': 'Survey'},
      'P4 Di North, visitor of Survey, 1 open loans, 1 late, trained in drone',
    ),
    (
      'easy',
      'find_person',
      {'name': 'Di North', 'unit': 'Optics'},
      'no person is called Di North in Optics',
    ),
    # P5 is head of Survey, and I1 belongs to Optics.
    (
      'easy',
      'get_item',
      {'item': 'I1'},
      'I1 Arlo, laser, high value, at Pier of Optics, free, service in 5 days,'
      ' approved by head for P3, by head of Survey for P4',
    ),
    (
      'plain',
      'get_item',
      {'item': 'I1'},
      'I1 Arlo, laser, worth 1000, at Pier of Optics, free, service due 2031-03-15,'
      ' approval A1 for P3 by P1, approval A2 for P4 by P5',
    ),
    (
      'easy',
      'find_item',
      {'model': 'Brio', 'site': 'Pier'},
      'I2 Brio, pump, low value, at Pier of Optics, lent to P3 as L1,'
      ' service in 2 days',
    ),
    (
      'easy',
      'find_item',
      {'model': 'Cleo', 'site': 'Quay'},
      'I5 Cleo, drone, low value, at Quay of Optics, in repair W1, service overdue',
    ),
    (
      'plain',
      'find_item',
      {'model': 'Cleo', 'site': 'Quay'},
      'I5 Cleo at Quay, in repair W1',
    ),
    (
      'easy',
      'find_item',
      {'model': 'Brio', 'site': 'Quay'},
      'I7 Brio at Quay, free; I8 Brio at Quay, free; I9 Brio at Quay, free;'
      ' I10 Brio at Quay, free; I11 Brio at Quay, free; ... 2 more',
    ),
    (
      'easy',
      'find_item',
      {'model': 'Arlo', 'site': 'Dock'},
      'there is no Arlo at Dock',
    ),
    ('easy', 'list_loans', {'of': 'P3'}, 'L1 I2 Brio due 4 extended 1 service 2'),
    ('easy', 'list_loans', {'of': 'I6'}, 'L2 I6 Cleo late 2 extended 0 service 10'),
    ('plain', 'list_loans', {'of': 'I6'}, 'L2 I6 Cleo to P4 due 2031-03-08 extended 0'),
    ('easy', 'list_loans', {'of': 'P1'}, 'P1 has no open loan'),
    # The easy tier lists the oldest first.
    (
      'easy',
      'list_requests',
      {'model': 'Brio', 'site': 'Dock'},
      'R2 of P3 waits 9 wants 5 days; R1 of P4 waits 5 wants 4 days',
    ),
    (
      'plain',
      'list_requests',
      {'model': 'Brio'},
      'R1 of P4 made 2031-03-05 wants 4 days; R2 of P3 made 2031-03-01 wants 5 days',
    ),
    ('easy', 'list_requests', {'model': 'Arlo'}, 'there is no open request for Arlo'),
    (
      'easy',
      'get_request',
      {'request': 'R3'},
      'R3 of P1 waits 68 wants 5 days, granted, for Brio at Dock',
    ),
    (
      'easy',
      'get_training',
      {'person': 'P3', 'category': 'laser'},
      'P3 is trained in laser',
    ),
    (
      'easy',
      'get_training',
      {'person': 'P3', 'category': 'pump'},
      'P3 is not trained in pump',
    ),
    (
      'plain',
      'get_training',
      {'person': 'P3', 'category': 'pump'},
      'P3 has pump training until 2031-03-09',
    ),
    (
      'plain',
      'get_training',
      {'person': 'P1', 'category': 'pump'},
      'P1 has no pump training',
    ),
    (
      'easy',
      'get_unit',
      {'unit': 'Optics'},
      'Optics: head P1, steward P2, sites Pier Quay',
    ),
    ('easy', 'get_repair', {'repair': 'W1'}, 'W1 of I5 Cleo, open, fault, tested'),
    (
      'plain',
      'get_repair',
      {'repair': 'W2'},
      'W2 of I4 Cleo, closed, service, tested yes, opened 2031-02-01',
    ),
  ],
)
def test_reads(db, tier, tool, arguments, text):
  assert _call(db, tool, tier, **arguments) == text
  assert not db.written


@pytest.mark.parametrize(
  'tool, arguments, text, table, row, event',
  [
    (
      'create_loan',
      {'person': 'P4', 'item': 'I1', 'days': '30'},
      'L4: I1 Arlo lent to P4 until 2031-04-09',
      'loan',
      ('L4', 'P4', 'I1', '2031-03-10', '2031-04-09', None, 0),
      ('lent', 'L4'),
    ),
    (
      'create_loan',
      {'person': 'P4', 'item': 'I1', 'days': 30},
      'L4: I1 Arlo lent to P4 until 2031-04-09',
      'loan',
      ('L4', 'P4', 'I1', '2031-03-10', '2031-04-09', None, 0),
      ('lent', 'L4'),
    ),
    (
      'extend_loan',
      {'loan': 'L2', 'days': '3'},
      'L2: I6 Cleo extended until 2031-03-11',
      'loan',
      ('L2', 'P4', 'I6', '2031-03-01', '2031-03-11', None, 1),
      ('extended', 'L2'),
    ),
    (
      'return_item',
      {'item': 'I2'},
      'L1: I2 Brio returned by P3',
      'loan',
      ('L1', 'P3', 'I2', '2031-03-01', '2031-03-14', '2031-03-10', 1),
      ('returned', 'L1'),
    ),
    (
      'transfer_item',
      {'item': 'I1', 'site': 'Dock'},
      'I1 Arlo moved to Dock of Survey',
      'item',
      ('I1', 'M1', 'S3', '2031-03-15'),
      ('moved', 'I1'),
    ),
    (
      'open_repair',
      {'item': 'I3', 'reason': 'fault'},
      'W3: I3 Brio of Survey is in repair',
      'repair',
      ('W3', 'I3', 'fault', 'no', '2031-03-10', 'open', None, None),
      ('repair opened', 'W3'),
    ),
    (
      'close_repair',
      {'repair': 'W1', 'result': 'fixed'},
      'W1: I5 Cleo of Optics is free, fixed',
      'repair',
      ('W1', 'I5', 'fault', 'yes', '2031-03-01', 'closed', '2031-03-10', 'fixed'),
      ('repair closed', 'W1'),
    ),
    (
      'set_request_state',
      {'request': 'R1', 'state': 'hold'},
      'R1 of P4 is hold',
      'request',
      ('R1', 'P4', 'M2', 'S3', '2031-03-05', 4, 'hold'),
      ('request', 'R1'),
    ),
    (
      'send_notice',
      {'person': 'P1', 'about': 'I5'},
      'N2: P1 has a notice about I5',
      'notice',
      ('N2', 'P1', 'I5', '', '2031-03-10'),
      ('notice', 'N2'),
    ),
  ],
)
def test_writes(db, tool, arguments, text, table, row, event):
  before = {name: set(db.table(name)) for name in small_world.ROWS}
  assert _call(db, tool, **arguments) == text
  after = {name: set(db.table(name)) for name in small_world.ROWS}
  assert {n for n in after if after[n] != before[n]} == {table, 'event_log'}
  assert after[table] - before[table] == {row}
  assert after['event_log'] - before['event_log'] == {('E2', small_world.DATE, *event)}


def test_an_item_that_came_back_can_be_lent_again(db):
  _call(db, 'return_item', item='I2')
  assert _call(db, 'create_loan', person='P1', item='I2', days='1').startswith('L4')


def test_endings_write_nothing(db):
  assert _call(db, 'finish') == 'finished'
  assert _call(db, 'finish', summary='all done') == 'finished'
  assert _call(db, 'refuse', rule='late', about='P4') == 'refused: late P4'
  assert not db.written


@pytest.mark.parametrize(
  'tool, arguments, words',
  [
    (
      'find_person',
      {'name': 'Ada Holt', 'unit': 'optics'},
      "no unit is called 'optics'; there are Optics, Survey",
    ),
    ('find_item', {'model': 'arlo'}, "no model is called 'arlo'; check its spelling"),
    ('find_item', {'model': 'Arlo', 'site': 'Peer'}, 'there are Dock, Pier, Quay'),
    ('get_person', {'person': 'P7'}, 'no person P7; find_person finds'),
    ('get_person', {'person': 'Ada Holt'}, 'P and a number; find_person finds'),
    ('get_person', {'person': 'P01'}, 'no id of a person'),
    ('get_person', {'person': 'I1'}, "'I1' is no id of a person"),
    ('get_item', {'item': 'P1'}, 'find_item finds the id of a model at a site'),
    ('list_loans', {'of': 'L1'}, 'neither a person nor an item'),
    ('list_loans', {'of': 'P99'}, 'no person P99'),
    ('list_requests', {'model': 'Brio', 'state': 'Open'}, 'state'),
    ('get_training', {'person': 'P3', 'category': 'Laser'}, 'category'),
    ('get_unit', {'unit': 'U1'}, "no unit is called 'U1'"),
    ('get_repair', {'repair': 'I5'}, 'get_item shows the repair'),
    (
      'create_loan',
      {'person': 'P1', 'item': 'I2', 'days': '3'},
      'lent to P3 as L1: it has to be returned first',
    ),
    (
      'create_loan',
      {'person': 'P1', 'item': 'I5', 'days': '3'},
      'in repair W1: the repair has to be closed first',
    ),
    ('create_loan', {'person': 'P1', 'item': 'I1', 'days': '0'}, 'from 1 to 60'),
    ('create_loan', {'person': 'P1', 'item': 'I1', 'days': '61'}, 'from 1 to 60'),
    ('create_loan', {'person': 'P1', 'item': 'I1', 'days': 'five'}, "not 'five'"),
    ('create_loan', {'person': 'P1', 'item': 'I1', 'days': '-3'}, "not '-3'"),
    ('create_loan', {'person': 'P1', 'item': 'I1'}, "needs the argument 'days'"),
    ('create_loan', {'person': 'P1', 'item': 'I77', 'days': '3'}, 'no item I77'),
    ('create_loan', {'person': 'P77', 'item': 'I1', 'days': '3'}, 'no person P77'),
    ('extend_loan', {'loan': 'L3', 'days': '3'}, 'only an open loan can be extended'),
    ('extend_loan', {'loan': 'L9', 'days': '3'}, 'list_loans shows'),
    ('return_item', {'item': 'I1'}, 'I1 is not lent'),
    ('transfer_item', {'item': 'I1', 'site': 'Pier'}, 'at Pier already'),
    ('transfer_item', {'item': 'I2', 'site': 'Dock'}, 'returned first'),
    ('transfer_item', {'item': 'I1', 'site': 'S3'}, "no site is called 'S3'"),
    ('open_repair', {'item': 'I5', 'reason': 'fault'}, 'in repair W1'),
    ('open_repair', {'item': 'I1', 'reason': 'Service'}, 'reason'),
    ('close_repair', {'repair': 'W2', 'result': 'fine'}, 'closed already'),
    ('close_repair', {'repair': 'W1', 'result': 'ok'}, 'result'),
    ('set_request_state', {'request': 'R3', 'state': 'granted'}, 'granted already'),
    ('set_request_state', {'request': 'R1', 'state': 'done'}, 'state'),
    ('send_notice', {'person': 'P1', 'about': 'Arlo'}, 'such as P3'),
    ('send_notice', {'person': 'P1', 'about': 'I99'}, 'no item I99'),
    ('refuse', {'rule': 'Late', 'about': 'P4'}, 'rule'),
    ('refuse', {'rule': 'late', 'about': 'P99'}, 'no person P99'),
    ('refuse', {'rule': 'late', 'about': ''}, 'no id'),
    ('refuse', {'rule': 'late'}, "needs the argument 'about'"),
  ],
)
def test_wrong_calls_say_what_to_do_and_write_nothing(db, tool, arguments, words):
  before = {name: sorted(map(str, db.table(name))) for name in small_world.ROWS}
  with pytest.raises(base.BadArguments) as error:
    _call(db, tool, **arguments)
  assert words in str(error.value)
  after = {name: sorted(map(str, db.table(name))) for name in small_world.ROWS}
  assert before == after


def test_a_notice_is_sent_once_a_day(db):
  _call(db, 'send_notice', person='P1', about='I5', text='first')
  with pytest.raises(base.BadArguments, match='one is enough'):
    _call(db, 'send_notice', person='P1', about='I5', text='second')
  _call(db, 'send_notice', person='P2', about='I5')


def test_the_tools_know_no_policy(db):
  # P4 is a late visitor from another unit without an approval that counts.
  for days in ('60', '60'):
    _call(db, 'create_loan', person='P4', item='I1', days=days)
    _call(db, 'return_item', item='I1')
  assert db.value('select max(extensions) from loan where id = ?', 'L2') == 0
  for _ in range(3):
    _call(db, 'extend_loan', loan='L2', days='60')


@pytest.mark.parametrize('tier', ['easy', 'plain'])
def test_the_order_of_rows_does_not_matter(tier):
  """Every read says the same where SQLite turns unordered rows around."""
  reads = [
    ('find_person', {'name': 'Cy Marsh'}),
    ('get_person', {'person': 'P3'}),
    ('find_item', {'model': 'Brio'}),
    ('get_item', {'item': 'I1'}),
    ('list_loans', {'of': 'P3'}),
    ('list_requests', {'model': 'Brio'}),
    ('get_unit', {'unit': 'Optics'}),
    ('find_item', {'model': 'Cleo'}),
    ('return_item', {'item': 'I2'}),
    ('create_loan', {'person': 'P4', 'item': 'I2', 'days': '2'}),
    ('list_loans', {'of': 'P4'}),
  ]
  said = []
  for turned in ('off', 'on'):
    with contextlib.closing(database.Database(small_world.SEED.pages)) as db:
      connection = db._connection  # pylint: disable=protected-access
      connection.set_authorizer(None)
      connection.execute(f'pragma reverse_unordered_selects = {turned}')
      connection.set_authorizer(db._authorize)  # pylint: disable=protected-access
      unordered = db.rows('select id from person')
      said.append([_call(db, tool, tier, **given) for tool, given in reads])
      said[-1].append(sorted(db.table('event_log')))
    said.append(unordered)
  first, order, second, other = said
  assert order != other  # Or the pragma would show nothing.
  assert first == second


def test_new_keys_go_on_from_the_largest_number(db):
  # P10 is the largest of seven; as texts, 'P6' would be.
  assert facts.new_key(db, 'person') == 'P11'
  assert facts.new_key(db, 'item') == 'I14'


def test_names_and_keys_of_the_environment():
  made = small_world.make()
  assert made.name == 'desk'
  assert environment.names_of(small_world.SEED) == tuple(
    sorted(
      row[1]
      for table in ('model', 'person', 'site', 'unit')
      for row in {r[1]: r for r in small_world.ROWS[table]}.values()
    )
  )
  assert small_world.make('easy').version != small_world.make('plain').version


def test_the_schema_refuses_impossible_rows():
  wrong = [
    ('item', ['I20', 'M9', 'S1', '2031-03-15']),  # No such model.
    ('loan', ['L9', 'P1', 'I2', '2031-03-01', '2031-03-14', None, 0]),  # Lent.
    ('person', ['P9', 'Xi Yu', 'U1', 'boss']),
    ('event_log', ['E2', '2031-03-11', 'today', '']),  # Two dates.
    ('repair', ['W9', 'I1', 'fault', 'yes', '2031-03-01', 'closed', None, None]),
  ]
  for table, row in wrong:
    rows = json.loads(json.dumps(small_world.ROWS))
    rows[table].append(row)
    with pytest.raises(seeds.SeedError, match='rows of'):
      _ = seeds.Seed.of(schema.SQL, rows).pages
  assert len(small_world.SEED.tables) == 12
  assert not small_world.SEED.spreads
