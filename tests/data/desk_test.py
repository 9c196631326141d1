"""Worlds and tasks of the desk, by the generator's own reading of them.

That their checks hold where the tools of the desk are used is shown in tests/assembly.
"""

import collections
import dataclasses
import datetime
import hashlib
import json
import os
import re
import subprocess
import sys

import pytest

from agentflow_jax.data import (
  desk,
  desk_goals,
  desk_rules,
  desk_samples,
  desk_tasks,
  desk_twins,
  desk_words,
  desk_worlds,
)

# The columns alone; the constraints are the environment's.
_SCHEMA = ''.join(
  f'create table {table} ({", ".join(next(iter(rows.values())))});'
  for table, rows in desk_worlds.generate('train', 1)[0].rows.items()
)
_SIZES = {
  'train': desk.Size(5, 260),
  'validation': desk.Size(5, 80),
  'test': desk.Size(5, 160),
}


def _digest(rows):
  return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()


def _policy(rules, tier, date):
  return json.dumps([rules, tier, date])


_PARTS = desk.Parts(_SCHEMA, _digest, _policy)


@pytest.fixture(scope='module')
def made():
  return {split: desk.generate(split, _PARTS, size=s) for split, s in _SIZES.items()}


@pytest.fixture(scope='module')
def tasks(made):
  return [task for _, found in made.values() for task in found]


def test_worlds_are_large_and_differ_in_their_rules():
  worlds = desk_worlds.generate('train', 10)
  for world in worlds:
    assert 600 <= sum(map(len, world.rows.values())) <= 2000
    assert len(world.rows) == 12
    assert len(world.rules) == desk_worlds.RULES_IN_FORCE
  said = [json.dumps(w.rules) for w in worlds]
  assert len(set(said)) == len(said)
  # Of ten worlds, each rule is in force in six.
  counts = collections.Counter(rule for w in worlds for rule in w.rules)
  assert set(counts.values()) == {6} and len(counts) == 10
  services = {w.rules['service']['days'] for w in worlds if 'service' in w.rules}
  assert len(services) > 1


def test_worlds_keep_their_rules():
  for world in desk_worlds.generate('validation'):
    tables = desk_rules.Tables(world.rows, world.date)
    loans = {p: len(x) for p, x in tables.loans_of.items()}
    assert max(loans.values()) <= world.rules.get('limit', {'loans': 3})['loans']
    assert not set(tables.open_loans) & set(tables.open_repairs)
    places = collections.Counter(
      (i['model'], i['site']) for i in world.rows['item'].values()
    )
    assert max(places.values()) == 1
    for unit in world.rows['unit']:
      assert tables.holder(unit, 'head') != tables.holder(unit, 'steward')
    home = world.rules.get('home')
    assert home is None or tables.named('site', home['site'])


def test_splits_share_no_names():
  names = {}
  for split in desk.SPLITS:
    worlds = desk_worlds.generate(split)
    assert len(worlds) == desk_worlds.WORLDS[split]
    names[split] = {n for w in worlds for n in desk_worlds.names_in(w)}
    assert all(re.fullmatch(r'[A-Z][a-z]+( [A-Z][a-z]+)?', n) for n in names[split])
  parts = {
    split: {w for n in found for w in n.split()} - {'Mini', 'Duo'}
    for split, found in names.items()
  }
  assert not parts['train'] & parts['test']
  assert not parts['train'] & parts['validation']
  assert not parts['validation'] & parts['test']


def test_names_of_training_are_many_and_do_not_tell_people_from_models():
  worlds = desk_worlds.generate('train')
  people = {r['name'] for w in worlds for r in w.rows['person'].values()}
  models = {r['name'] for w in worlds for r in w.rows['model'].values()}
  assert len(people) > 5000 and len(models) > 1500
  beginnings = {word[:3] for name in people for word in name.split()}
  known = [name[:3] in beginnings for name in models]
  assert sum(known) > 0.98 * len(known)


def test_splits_share_no_worlds_and_no_held_out_words(made):
  seeds = {
    split: {t.world.state['seed'] for t in found} for split, (_, found) in made.items()
  }
  assert not seeds['train'] & seeds['test'] and not seeds['train'] & seeds['validation']
  for split in ('train', 'validation'):
    assert {t.tags['held_out'] for t in made[split][1]} == {'no'}
    assert not {t.tags['composition'] for t in made[split][1]} & {*desk_words.HELD_OUT}
  new = collections.Counter(t.tags['new'] for t in made['test'][1])
  assert set(new) == {'nothing', 'wording', 'composition', 'both'}
  assert 0.3 < 1 - new['nothing'] / new.total() < 0.6


def test_families_have_enough_wordings_and_none_twice():
  for name, wordings in desk_words.WORDINGS.items():
    whole = {*wordings.known, *wordings.held_out}
    assert len(whole) == len(wordings.known) + len(wordings.held_out), name
    assert len(wordings.held_out) >= 2, name
    if name != 'return broken':  # A part of the family 'return'.
      assert len(wordings.known) >= 12, name
  assert set(desk_words.WORDINGS) == set(desk_samples.COMPOSITIONS)


def test_shares(tasks):
  assert {t.tags['family'] for t in tasks} == set(desk_tasks.FAMILIES)
  assert {t.tags['composition'] for t in tasks} == set(desk_samples.COMPOSITIONS)
  infeasible = [t for t in tasks if not t.world.feasible]
  assert 0.24 < len(infeasible) / len(tasks) < 0.31
  rules = collections.Counter(t.tags['rule'] for t in infeasible)
  assert set(rules) == {*desk_twins.FORBIDS, desk_twins.AMBIGUOUS}
  assert max(rules.values()) <= 0.2 * len(infeasible)
  assert {t.tags['kind'] for t in tasks} == {
    'feasible',
    'forbidden',
    'partial',
    'ambiguous',
  }
  calls = [len(json.loads(t.tags['solution'])) for t in tasks]
  assert [str(n) for n in calls] == [t.tags['calls'] for t in tasks]
  assert min(calls) >= 2 and max(calls) <= 9
  assert sum(n - 1 >= 3 for n in calls) >= 0.7 * len(calls)


def test_queries_are_short_and_name_no_keys(tasks):
  for task in tasks:
    assert len(task.query.split()) <= 30
    assert not re.search(r'\b[A-Z]\d+\b', task.query)
    assert '{' not in task.query
    assert task.query[0].isupper() and task.query[-1] in '.?'


def _calls(task, tag):
  return [(c['tool'], c['arguments']) for c in json.loads(task.tags[tag])]


def test_twins_share_their_words_and_differ_by_one_row(tasks):
  feasible = {(t.query, t.world.state['seed']): t for t in tasks if t.world.feasible}
  twins = [t for t in tasks if not t.world.feasible]
  assert twins
  for twin in twins:
    sibling = feasible[twin.query, twin.world.state['seed']]
    assert sibling.world.state['changes'] == []
    assert len(twin.world.state['changes']) == 1
    assert twin.world.policy == sibling.world.policy
    assert _calls(twin, 'tempting') == _calls(sibling, 'solution')
    assert twin.world.state['sha256'] == sibling.world.state['sha256']


def test_a_change_changes_a_row_that_is_there(made):
  for rows, tasks in made.values():
    columns = desk.columns_of(_SCHEMA)
    for task in tasks:
      for change in task.world.state['changes']:
        names = columns[change['table']]
        found = [
          dict(zip(names, row))
          for row in rows[task.world.state['seed']][change['table']]
        ]
        (before,) = [r for r in found if [r['id']] == change['key']]
        assert any(before[c] != v for c, v in change['set'].items())


def test_infeasible_tasks_end_by_the_one_rule(tasks):
  for task in tasks:
    end = json.loads(task.tags['solution'])[-1]
    spec = next(c.spec for c in task.world.checks if c.kind == 'ending')
    if task.world.feasible:
      assert end == {'tool': 'finish', 'arguments': {}}
      assert spec == {'ended': 'finish'}
      assert any(c.kind == 'state' for c in task.world.checks)
    else:
      assert end['arguments']['rule'] == task.tags['rule']
      assert spec['rule'] == [task.tags['rule']]
      assert end['arguments']['about'] in spec['about']
      in_force = json.loads(task.world.policy)[0]
      assert task.tags['rule'] in {*in_force, 'ambiguous'}
    partial = task.tags['kind'] == 'partial'
    has_state = any(c.kind == 'state' for c in task.world.checks)
    assert has_state == (partial or task.world.feasible)


def test_checks_name_no_row_that_is_to_be_created(made):
  for rows, tasks in made.values():
    known = {
      name: {row[0] for table in tables.values() for row in table}
      for name, tables in rows.items()
    }
    for task in tasks:
      for check in task.world.checks:
        keys = re.findall(r'\b[A-Z]\d+\b', json.dumps(check.spec))
        assert set(keys) <= known[task.world.state['seed']]


def test_no_two_tasks_are_equal(made):
  for _, tasks in made.values():
    assert len({t.id for t in tasks}) == len(tasks)
    said = [
      (t.query, t.world.state['seed'], json.dumps(t.world.state['changes']))
      for t in tasks
    ]
    assert len(set(said)) == len(said)


def test_written_tasks_are_read_again(tmp_path, made):
  sizes = {s: desk.Size(2, 12) for s in desk.SPLITS}
  worlds = desk.write(tmp_path, _PARTS, sizes=sizes)
  rows, tasks = desk.generate('test', _PARTS, size=sizes['test'])
  assert desk.load(tmp_path, 'test') == tasks
  for name, tables in rows.items():
    said = json.loads((worlds / f'{name}.json').read_text())
    assert said == {'schema': _SCHEMA, 'rows': tables}
  stamp = (tmp_path / 'test.jsonl').stat().st_mtime_ns
  assert desk.write(tmp_path, _PARTS, sizes=sizes) == worlds
  assert (tmp_path / 'test.jsonl').stat().st_mtime_ns == stamp
  with pytest.raises(ValueError, match='another data set'):
    desk.write(tmp_path, _PARTS, 'plain', sizes)


def test_worlds_that_are_used_up(monkeypatch):
  monkeypatch.setattr(desk_tasks, '_TURNS', 0.5)
  worlds = desk_worlds.generate('train', 1)
  with pytest.raises(ValueError, match='ask for more worlds'):
    desk_tasks.generate('train', worlds, 400)


def test_distractors_are_shown_in_order_and_repeatably(tasks):
  tools = [f'other_{i:02d}' for i in range(30)]
  task = next(t for t in tasks if t.tags['kind'] == 'forbidden')
  needed = {
    c['tool'] for tag in ('solution', 'tempting') for c in json.loads(task.tags[tag])
  }
  tools = sorted([*tools, *needed, 'refuse', 'finish'], key=lambda t: t[::-1])
  narrowed = desk.narrowed(task, tools, 5)
  shown = narrowed.world.tools
  assert len(set(shown) - needed) == 5 and needed <= set(shown)
  assert list(shown) == [t for t in tools if t in shown]
  assert desk.narrowed(task, tools, 5) == narrowed
  assert set(desk.narrowed(task, tools, 99).world.tools) == set(tools)


def _judged(task, tag='solution'):
  """Returns the rules that are judged before calls, by the tool that is called."""
  found = []
  for call in json.loads(task.tags[tag]):
    for thought in call.get('why', ()):
      if thought.endswith((' ok', ' no')):
        found.append((call['tool'], *thought.split()))
  return found


def test_thoughts_judge_as_the_rules_do(tasks):
  """A service that is due sends what comes back to repair, and forbids nothing."""
  refusals = 0
  for task in tasks:
    refused = {
      rule
      for tool, rule, *_, judged in _judged(task)
      if judged == 'no'
      and (tool, rule) != ('return_item', 'service')
      and not (tool == 'refuse' and rule == 'service' != task.tags['rule'])
    }
    wanted = task.tags['rule']
    assert refused == ({wanted} if wanted not in ('', 'ambiguous') else set()), task
    refusals += bool(refused)
    if 'tempting' in task.tags:
      tempting = _judged(task, 'tempting')
      assert all(
        said[-1] == 'ok' or said[:2] == ('return_item', 'service') for said in tempting
      )
      assert {s[1] for s in _judged(task) if s[-1] == 'no'} <= {
        s[1] for s in tempting
      } | ({wanted} if wanted == 'approval' else set())
  assert refusals > 10


def test_thoughts_are_facts_of_the_rows():
  rules = {
    'limit': {'loans': 2},
    'late': {},
    'approval': {'role': 'head'},
    'service': {'days': 5},
    'training': {'category': 'laser'},
    'visitor': {'days': 4},
    'home': {'site': 'Pier'},
  }
  said = [w.in_words() for w in desk_rules.weighed(_TO_VISITOR, _tables(), rules)]
  assert [s.split()[0] for s in said] == list(rules)
  assert said[-1].startswith('home Pier Pier ') and said[-1].endswith(' no')
  tempting = [
    w.in_words(obeyed=False) for w in desk_rules.weighed(_TO_VISITOR, _tables(), rules)
  ]
  assert all(s.endswith(' ok') for s in tempting)
  assert [s[:-3] for s in tempting] == [s[:-3] for s in said]


_PROGRAM = """
import hashlib, json
from agentflow_jax.data import desk_tasks, desk_worlds
worlds = desk_worlds.generate('test', 3)
drafts = desk_tasks.generate('test', worlds, 40)
print(hashlib.sha256(repr((worlds, drafts)).encode()).hexdigest())
"""


def test_the_seed_of_hashes_does_not_matter():
  found = {
    subprocess.run(
      [sys.executable, '-c', _PROGRAM],
      check=True,
      capture_output=True,
      text=True,
      env={**os.environ, 'PYTHONHASHSEED': seed},
    ).stdout
    for seed in ('1', '2')
  }
  assert len(found) == 1 and len(found.pop().strip()) == 64


# Rules by hand, on a world that is small enough to count.

_TODAY = datetime.date(2031, 3, 10)
_ROWS = {
  'unit': [('U1', 'Optics'), ('U2', 'Survey')],
  'person': [
    ('P1', 'Ada Holt', 'U1', 'head'),
    ('P2', 'Bo Lund', 'U1', 'steward'),
    ('P3', 'Cy Marsh', 'U1', 'member'),
    ('P4', 'Di North', 'U2', 'visitor'),
  ],
  'site': [('S1', 'Pier', 'U1'), ('S2', 'Quay', 'U1'), ('S3', 'Dock', 'U2')],
  'model': [('M1', 'Arlo', 'laser', 1000), ('M2', 'Brio', 'pump', 999)],
  'item': [
    ('I1', 'M1', 'S1', '2031-03-15'),
    ('I2', 'M2', 'S1', '2031-03-13'),
    ('I3', 'M2', 'S3', '2031-03-14'),
    ('I4', 'M2', 'S2', '2031-05-01'),
  ],
  'training': [
    ('T1', 'P3', 'laser', '2031-03-10'),
    ('T2', 'P4', 'laser', '2031-03-09'),
  ],
  'loan': [
    ('L1', 'P3', 'I2', '2031-03-01', '2031-03-10', None, 1),
    ('L2', 'P4', 'I4', '2031-03-01', '2031-03-09', None, 0),
  ],
  'approval': [
    ('A1', 'P3', 'I1', 'P1', '2031-03-01'),
    ('A2', 'P4', 'I1', 'P2', '2031-03-01'),
  ],
  'repair': [('W1', 'I3', 'fault', 'no', '2031-03-01', 'open', None, None)],
  'request': [],
  'notice': [],
  'event_log': [],
}


def _tables(**more):
  columns = desk.columns_of(_SCHEMA)
  return desk_rules.Tables(
    {
      table: {row[0]: dict(zip(columns[table], row)) for row in rows}
      for table, rows in {**_ROWS, **more}.items()
    },
    _TODAY,
  )


_LEND = desk_rules.Goal('lend', person='P3', item='I1', days=5)
_TO_VISITOR = desk_rules.Goal('lend', person='P4', item='I1', days=5)


@pytest.mark.parametrize(
  'goal, rules, broken',
  [
    # P3 has one open loan, so a second one makes two.
    (_LEND, {'limit': {'loans': 2}}, []),
    (_LEND, {'limit': {'loans': 1}}, [('limit', 'P3')]),
    # P3's loan is due today, P4's was due yesterday.
    (_LEND, {'late': {}}, []),
    (_TO_VISITOR, {'late': {}}, [('late', 'P4')]),
    # The head approved of P3, the steward of P4.
    (_LEND, {'approval': {'role': 'head'}}, []),
    (_LEND, {'approval': {'role': 'steward'}}, [('approval', 'I1')]),
    (_TO_VISITOR, {'approval': {'role': 'steward'}}, []),
    # Five days are left until the service of I1.
    (_LEND, {'service': {'days': 4}}, []),
    (_LEND, {'service': {'days': 5}}, [('service', 'I1')]),
    # P3's training expires today, P4's expired yesterday.
    (_LEND, {'training': {'category': 'laser'}}, []),
    (_LEND, {'training': {'category': 'pump'}}, []),
    (_TO_VISITOR, {'training': {'category': 'laser'}}, [('training', 'P4')]),
    (_TO_VISITOR, {'visitor': {'days': 5}}, []),
    (_TO_VISITOR, {'visitor': {'days': 4}}, [('visitor', 'P4')]),
    (_LEND, {'visitor': {'days': 4}}, []),
    # Pier belongs to the unit of P3.
    (_LEND, {'home': {'site': 'Pier'}}, []),
    (_TO_VISITOR, {'home': {'site': 'Pier'}}, [('home', 'I1')]),
    (_TO_VISITOR, {'home': {'site': 'Quay'}}, []),
    (desk_rules.Goal('transfer', item='I1', site='S2'), {'home': {'site': 'Pier'}}, []),
    (
      desk_rules.Goal('transfer', item='I1', site='S3'),
      {'home': {'site': 'Pier'}},
      [('home', 'I1')],
    ),
    (
      desk_rules.Goal('transfer', item='I1', site='S2'),
      {'service': {'days': 5}},
      [('service', 'I1')],
    ),
    (
      desk_rules.Goal('extend', person='P3', loan='L1', days=3),
      {'extension': {'times': 2}, 'late': {}},
      [],
    ),
    (
      desk_rules.Goal('extend', person='P3', loan='L1', days=3),
      {'extension': {'times': 1}},
      [('extension', 'L1')],
    ),
    (
      desk_rules.Goal('extend', person='P4', loan='L2', days=3),
      {'late': {}},
      [('late', 'P4')],
    ),
    (
      desk_rules.Goal('repair', item='I3', repair='W1', result='fixed'),
      {'test': {}},
      [('test', 'W1')],
    ),
    (desk_rules.Goal('repair', item='I3', repair='W1', result='fixed'), {}, []),
    (
      desk_rules.Goal('return', person='P3', item='I2', loan='L1'),
      {'late': {}, 'service': {'days': 9}},
      [],
    ),
  ],
)
def test_what_rules_forbid(goal, rules, broken):
  assert desk_rules.breaks(goal, _tables(), rules) == broken


def _tools(plan):
  return [call.tool for call in plan.calls]


def test_a_returned_item_that_is_due_goes_to_repair_with_a_notice():
  rules = {'service': {'days': 3}, 'notice': {'event': 'opened', 'role': 'steward'}}
  said = desk_goals.Said('return', person='Cy Marsh', model='Brio')
  plan = desk_goals.plan([said], _tables(), rules)
  assert _tools(plan) == [
    'find_person',
    'list_loans',
    'return_item',
    'open_repair',
    'get_unit',
    'send_notice',
    'finish',
  ]
  assert dict(plan.calls[3].arguments) == {'item': 'I2', 'reason': 'service'}
  assert dict(plan.calls[5].arguments) == {'person': 'P2', 'about': 'I2'}
  later = desk_goals.plan([said], _tables(), {'service': {'days': 2}})
  assert _tools(later) == ['find_person', 'list_loans', 'return_item', 'finish']
  broken = desk_goals.Said('return', person='Cy Marsh', model='Brio', reason='fault')
  assert (
    'Send I2 to repair, reason fault.'
    in desk_goals.plan([broken], _tables(), {}).text()
  )


_SWAP = (
  desk_goals.Said('return', person='Cy Marsh', model='Brio'),
  desk_goals.Said('lend', person='Cy Marsh', model='Arlo', site='Pier', days=4),
)


def test_what_was_returned_counts_no_more():
  plan = desk_goals.plan(_SWAP, _tables(), {'limit': {'loans': 1}})
  assert plan.kind == 'feasible'


def test_the_lawful_goal_is_done_and_an_exchange_is_one_goal():
  rules = {'approval': {'role': 'steward'}}
  plan = desk_goals.plan(_SWAP, _tables(), rules)
  assert plan.kind == 'partial' and 'return_item' in _tools(plan)
  assert dict(plan.calls[-1].arguments) == {'rule': 'approval', 'about': 'I1'}
  plan = desk_goals.plan(_SWAP, _tables(), rules, at_once=True)
  assert plan.kind == 'forbidden'
  assert _tools(plan) == ['find_person', 'list_loans', 'find_item', 'refuse']


def test_a_goal_that_needs_a_forbidden_one_is_left_out():
  saids = (
    desk_goals.Said('repair', model='Brio', site='Dock', result='fixed'),
    desk_goals.Said('transfer', to='Pier', same=True),
  )
  plan = desk_goals.plan(saids, _tables(), {'test': {}})
  assert plan.kind == 'forbidden'
  assert _tools(plan) == ['find_item', 'get_repair', 'refuse']
  assert desk_goals.plan(saids, _tables(), {}).kind == 'feasible'


def test_words_that_fit_two_rows():
  twice = _tables(person=[*_ROWS['person'], ('P9', 'Cy Marsh', 'U2', 'member')])
  plan = desk_goals.plan(_SWAP, twice, {})
  assert plan.kind == 'ambiguous' and _tools(plan) == ['find_person', 'refuse']
  assert plan.checks[-1].spec['about'] == ['P3', 'P9']
  told = [dataclasses.replace(s, unit='Optics') for s in _SWAP]
  assert desk_goals.plan(told, twice, {}).kind == 'feasible'


def test_the_oldest_open_request_is_meant():
  requests = [
    ('R1', 'P4', 'M1', 'S1', '2031-03-05', 4, 'open'),
    ('R2', 'P3', 'M1', 'S1', '2031-03-01', 6, 'open'),
    ('R3', 'P1', 'M1', 'S1', '2031-02-01', 5, 'declined'),
  ]
  said = desk_goals.Said('grant', model='Arlo', site='Pier')
  plan = desk_goals.plan([said], _tables(request=requests), {})
  assert dict(plan.calls[3].arguments) == {'person': 'P3', 'item': 'I1', 'days': '6'}
  assert dict(plan.calls[4].arguments) == {'request': 'R2', 'state': 'granted'}
  requests[0] = ('R1', 'P4', 'M1', 'S1', '2031-03-01', 4, 'open')
  plan = desk_goals.plan([said], _tables(request=requests), {})
  assert plan.kind == 'ambiguous' and set(plan.checks[-1].spec['about']) == {'R1', 'R2'}


def test_words_that_fit_nothing():
  with pytest.raises(desk_goals.Missing):
    desk_goals.plan(
      [desk_goals.Said('return', person='Nobody', model='Arlo')], _tables(), {}
    )
  with pytest.raises(desk_goals.Missing, match='cannot be carried out'):
    desk_goals.plan(
      [desk_goals.Said('lend', person='Ada Holt', model='Brio', site='Pier', days=3)],
      _tables(),
      {},
    )


def test_dates_call_for_more_reads():
  said = desk_goals.Said('lend', person='Cy Marsh', model='Arlo', site='Pier', days=4)
  rules = {'late': {}, 'approval': {'role': 'head'}, 'training': {'category': 'laser'}}
  easy = desk_goals.plan([said], _tables(), rules, 'easy')
  assert _tools(easy) == ['find_person', 'find_item', 'create_loan', 'finish']
  plain = desk_goals.plan([said], _tables(), rules, 'plain')
  assert _tools(plain) == [
    'find_person',
    'get_person',
    'list_loans',
    'find_item',
    'get_item',
    'get_training',
    'get_unit',
    'create_loan',
    'finish',
  ]
  assert easy.checks == plain.checks
