"""Worlds of the desk: rows of people, things and loans, and the rules in force.

The rows of a world keep its rules: nobody holds more open loans than the limit, for
example. Names of people and models are composed of other syllables in every split.
Those of training are many, and do not tell people from models: a planner that knew
them by their syllables could not work with the people and models of another split.
"""

import dataclasses
import datetime
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Row = dict[str, Any]

WORLDS = {'train': 128, 'validation': 8, 'test': 16}
RULES_IN_FORCE = 6
CATEGORIES = ('laser', 'drone', 'camera', 'meter', 'pump')
HIGH_VALUE = 1000
_FIRST_DAY = datetime.date(2031, 1, 1)

_SITES = (
  'North',
  'South',
  'East',
  'West',
  'Harbor',
  'Hill',
  'Mill',
  'Bridge',
  'Lake',
  'Tower',
  'Garden',
  'Square',
  'Station',
  'Forest',
  'Meadow',
  'Canal',
)
_UNITS = (
  'Optics',
  'Survey',
  'Media',
  'Marine',
  'Botany',
  'Acoustics',
  'Geology',
  'Robotics',
  'Chemistry',
  'Archive',
  'Weather',
  'Design',
)
# Syllables by split: beginnings and ends of first names, of last names, of models.
_SYLLABLES = {
  'validation': (
    'Wi Go Ye Zo',
    'bert ka fus rin',
    'Ulm Pax Osk Yor',
    'stad gren vik low',
    'Yar Ged Wis Ult',
    'bon dem kir zel',
  ),
  'test': (
    'Ha Du Pe Ily Que Cy',
    'go ris lena mas dor',
    'Ack Ru Chim Ost Nev Byl',
    'field ova quist dal hem',
    'Qua Hyl Osm Fip Jad',
    'dron tis wick lam mur',
  ),
}
# The parts of a syllable, of which the names of training are drawn.
_ONSETS = 'B Br C D Dr F G Gr H J K L M N P R S St T Tr V W Z'.split()
_VOWELS = 'aeiou'
_CODAS = ('', '', 'n', 'r', 'l', 's', 'm', 'x')
_ENDS_OF_MODELS = ('', '', ' Mini', ' Duo')
# Names of training: as many as leave most worlds with names of their own.
_TRAIN_PEOPLE, _TRAIN_MODELS = 20_000, 6_000
# Every parameter of every rule, with the values that a world draws from; None for
# the name of one of its sites.
_PARAMETERS: Mapping[str, Mapping[str, Sequence[Any] | None]] = {
  'limit': {'loans': (2, 3)},
  'late': {},
  'approval': {'role': ('head', 'steward')},
  'service': {'days': (3, 4, 5, 6, 7, 8)},
  'training': {'category': CATEGORIES},
  'visitor': {'days': (3, 4, 5, 6, 7, 8)},
  'extension': {'times': (1, 2)},
  'home': {'site': None},
  'test': {},
  'notice': {'event': ('moved', 'opened', 'closed'), 'role': ('head', 'steward')},
}
_LONGEST_SERVICE = 30
_MOST_LATE = 9


@dataclasses.dataclass(frozen=True)
class World:
  """A world.

  Attributes:
    name: name of its seed.
    split: split of its names.
    date: date that stands still.
    rules: parameters of the rules in force, by the rules' names.
    rows: rows by table and key.
  """

  name: str
  split: str
  date: datetime.date
  rules: Mapping[str, Mapping[str, Any]]
  rows: Mapping[str, Mapping[str, Row]]


def generate(split: str, count: int | None = None) -> list[World]:
  """Returns the worlds of a split, the same ones every time.

  Args:
    split: 'train', 'validation' or 'test'.
    count: number of worlds; None for all of the split.
  """
  count = WORLDS[split] if count is None else count
  names = _Names(split)
  return [_Maker(f'{split}-{i:03d}', split, names, i).world() for i in range(count)]


class _Names:
  """All names of a split, in a fixed order."""

  def __init__(self, split: str):
    rng = random.Random(f'desk/names/{split}')
    if split == 'train':
      self.people, self.models = _names_of_training(rng)
      return
    parts = [text.split() for text in _SYLLABLES[split]]
    first = [a + b for a in parts[0] for b in parts[1]]
    last = [a + b for a in parts[2] for b in parts[3]]
    self.people = [f'{a} {b}' for a in first for b in last]
    self.models = [
      a + b + end
      for a in parts[4]
      for b in parts[5]
      for end in dict.fromkeys(_ENDS_OF_MODELS)
    ]
    rng.shuffle(self.people)
    rng.shuffle(self.models)


def _names_of_training(rng: random.Random) -> tuple[list[str], list[str]]:
  """Returns the names of people and of models, all of the same syllables."""
  taken = {s.lower() for texts in _SYLLABLES.values() for t in texts for s in t.split()}
  taken |= {word.lower() for word in (*_SITES, *_UNITS, *CATEGORIES)}
  syllables = [o + v + c for o in _ONSETS for v in _VOWELS for c in _CODAS]
  syllables = [s for s in syllables if s.lower() not in taken]

  def word() -> str:
    while True:
      made = rng.choice(syllables) + rng.choice(syllables).lower()
      if made.lower() not in taken:
        return made

  people = dict.fromkeys(f'{word()} {word()}' for _ in range(_TRAIN_PEOPLE))
  models = dict.fromkeys(
    word() + rng.choice(_ENDS_OF_MODELS) for _ in range(_TRAIN_MODELS)
  )
  return list(people), list(models)


class _Maker:
  """Makes the rows of one world; every method adds the rows of one table."""

  def __init__(self, name: str, split: str, names: _Names, index: int):
    self._rng = random.Random(f'desk/world/{name}')
    self._name, self._split, self._names = name, split, names
    self._date = _FIRST_DAY + datetime.timedelta(self._rng.randrange(1200))
    self._rows: dict[str, dict[str, Row]] = {}
    self._rules = self._drawn_rules(index)

  def world(self) -> World:
    """Returns the world."""
    self._add_places_and_people()
    self._add_items()
    self._add_trainings()
    self._add_loans()
    self._add_repairs()
    self._add_approvals()
    self._add_requests()
    self._add_notices_and_events()
    home = self._rules.get('home')
    if home is not None:
      home['site'] = self._rng.choice(self._all('site'))['name']
    return World(self._name, self._split, self._date, self._rules, self._rows)

  def _drawn_rules(self, index: int) -> dict[str, dict[str, Any]]:
    """Draws six rules, each of them in force in equally many worlds."""
    names = list(_PARAMETERS)
    # Two worlds in a row leave eight different rules out.
    rng = random.Random(f'desk/rules/{self._split}/{index // 5}')
    rng.shuffle(names)
    names = names * 2
    at = 4 * (index % 5) % len(_PARAMETERS)
    out = names[at : at + len(_PARAMETERS) - RULES_IN_FORCE]
    return {
      name: {
        key: self._rng.choice(values) if values else ''
        for key, values in parameters.items()
      }
      for name, parameters in _PARAMETERS.items()
      if name not in out
    }

  def _add_places_and_people(self) -> None:
    rng = self._rng
    for name in rng.sample(_UNITS, 4):
      self._add('unit', 'U', name=name)
    units = [u['id'] for u in self._all('unit')]
    for i, name in enumerate(rng.sample(_SITES, 8)):
      self._add('site', 'S', name=name, unit=units[i % 4])
    roles = [(u, r) for u in units for r in ('head', 'steward')]
    roles += [(units[i % 4], 'visitor' if i % 4 == 0 else 'member') for i in range(48)]
    rng.shuffle(roles)
    names = rng.sample(self._names.people, len(roles))
    for (unit, role), name in zip(roles, names):
      self._add('person', 'P', name=name, unit=unit, role=role)
    # Two names belong to two people, whom their units tell apart.
    for _ in range(2):
      person = rng.choice(self._all('person'))
      other = rng.choice([u for u in units if u != person['unit']])
      self._add('person', 'P', name=person['name'], unit=other, role='member')

  def _add_items(self) -> None:
    rng = self._rng
    for i, name in enumerate(rng.sample(self._names.models, 18)):
      high = i % 5 < 2
      worth = 100 * (rng.randint(10, 60) if high else rng.randint(1, 9))
      self._add(
        'model',
        'M',
        name=name,
        category=CATEGORIES[i % 5 if i < 10 else i % 3],
        worth=worth,
      )
    places = [(m['id'], s['id']) for m in self._all('model') for s in self._all('site')]
    for model, site in sorted(rng.sample(places, 92)):
      self._add(
        'item',
        'I',
        model=model,
        site=site,
        service_due=self._day(rng.randint(1, _LONGEST_SERVICE)),
      )

  def _add_trainings(self) -> None:
    rng = self._rng
    for person in self._all('person'):
      for category in rng.sample(CATEGORIES, rng.choice((0, 1, 1, 2, 2))):
        days = rng.randint(-200, -5) if rng.random() < 0.2 else rng.randint(5, 400)
        self._add(
          'training',
          'T',
          person=person['id'],
          category=category,
          expires=self._day(days),
        )

  def _add_loans(self) -> None:
    """Adds open loans that keep the limit, and loans of the past."""
    rng = self._rng
    most = self._rules.get('limit', {}).get('loans', 3)
    most_extensions = self._rules.get('extension', {}).get('times', 2)
    people, items = self._all('person'), self._all('item')
    rng.shuffle(items)
    held: dict[str, list[str]] = {p['id']: [] for p in people}
    late = {p['id'] for p in rng.sample(people, 8)}
    for item in items[:38]:
      able = [
        p
        for p in people
        if len(held[p['id']]) < most and item['model'] not in held[p['id']]
      ]
      person = rng.choice(able)['id']
      is_late = person in late and not held[person]
      held[person].append(item['model'])
      days = -rng.randint(1, _MOST_LATE) if is_late else rng.randint(1, 14)
      self._add(
        'loan',
        'L',
        person=person,
        item=item['id'],
        start=self._day(-rng.randint(20, 40)),
        due=self._day(days),
        returned=None,
        extensions=rng.randint(0, most_extensions),
      )
    for _ in range(120):
      start = rng.randint(60, 300)
      due = start - rng.randint(2, 20)
      self._add(
        'loan',
        'L',
        person=rng.choice(people)['id'],
        item=rng.choice(items)['id'],
        start=self._day(-start),
        due=self._day(-due),
        returned=self._day(-due - rng.randint(-8, 1)),
        extensions=rng.randint(0, 2),
      )
    self._shuffle('loan', 'L')

  def _add_repairs(self) -> None:
    rng = self._rng
    items = self._all('item')
    lent = {x['item'] for x in self._all('loan') if x['returned'] is None}
    free = [i for i in items if i['id'] not in lent]
    for item in rng.sample(free, 18):
      self._add(
        'repair',
        'W',
        item=item['id'],
        reason=rng.choice(('service', 'fault')),
        tested='no' if rng.random() < 0.3 else 'yes',
        opened=self._day(-rng.randint(1, 30)),
        state='open',
        closed=None,
        result=None,
      )
    for _ in range(40):
      opened = rng.randint(40, 300)
      self._add(
        'repair',
        'W',
        item=rng.choice(items)['id'],
        reason=rng.choice(('service', 'fault')),
        tested='yes',
        opened=self._day(-opened),
        state='closed',
        closed=self._day(-opened + rng.randint(1, 30)),
        result=rng.choice(('fixed', 'fine')),
      )
    self._shuffle('repair', 'W')

  def _add_approvals(self) -> None:
    """Adds one or two approvals for items of high value, most by the right role."""
    rng = self._rng
    right = self._rules.get('approval', {}).get('role', 'head')
    other = 'steward' if right == 'head' else 'head'
    people = [p for p in self._all('person') if p['role'] in ('member', 'visitor')]
    for item in self._all('item'):
      if self._rows['model'][item['model']]['worth'] < HIGH_VALUE:
        continue
      unit = self._rows['site'][item['site']]['unit']
      for person in rng.sample(people, rng.choice((1, 1, 1, 2))):
        role = other if rng.random() < 0.25 else right
        approver = next(
          p['id']
          for p in self._all('person')
          if p['unit'] == unit and p['role'] == role
        )
        self._add(
          'approval',
          'A',
          person=person['id'],
          item=item['id'],
          approver=approver,
          made=self._day(-rng.randint(1, 50)),
        )

  def _add_requests(self) -> None:
    """Adds open requests on different days, where an item of the model stands."""
    rng = self._rng
    people = [p['id'] for p in self._all('person') if p['role'] != 'head']
    approved: dict[str, list[str]] = {}
    for approval in self._all('approval'):
      approved.setdefault(approval['item'], []).append(approval['person'])
    lent = {x['item'] for x in self._all('loan') if x['returned'] is None}
    lent |= {x['item'] for x in self._all('repair') if x['state'] == 'open'}
    free = [i for i in self._all('item') if i['id'] not in lent]
    for item in rng.sample(free, 22):
      count = rng.choice((1, 2, 2, 3))
      days = sorted(rng.sample(range(1, 30), count), reverse=True)
      for i, waited in enumerate(days):
        able = approved.get(item['id'], people) if i == 0 else people
        self._add(
          'request',
          'R',
          person=rng.choice(able),
          model=item['model'],
          site=item['site'],
          made=self._day(-waited),
          days=rng.randint(2, 12),
          state='open',
        )
    for _ in range(30):
      item = rng.choice(self._all('item'))
      self._add(
        'request',
        'R',
        person=rng.choice(people),
        model=item['model'],
        site=item['site'],
        made=self._day(-rng.randint(30, 300)),
        days=rng.randint(2, 12),
        state=rng.choice(('granted', 'declined', 'hold')),
      )
    self._shuffle('request', 'R')

  def _add_notices_and_events(self) -> None:
    rng = self._rng
    people, items = self._all('person'), self._all('item')
    for _ in range(50):
      self._add(
        'notice',
        'N',
        person=rng.choice(people)['id'],
        about=rng.choice(items)['id'],
        text='please have a look',
        sent=self._day(-rng.randint(1, 300)),
      )
    self._add('event_log', 'E', date=self._day(0), kind='today', about='')
    for loan in self._all('loan'):
      self._add('event_log', 'E', date=loan['start'], kind='lent', about=loan['id'])

  def _add(self, table: str, letter: str, **values: Any) -> None:
    rows = self._rows.setdefault(table, {})
    key = f'{letter}{len(rows) + 1}'
    rows[key] = {'id': key, **values}

  def _shuffle(self, table: str, letter: str) -> None:
    """Numbers the rows of a table anew, in any order."""
    rows = self._all(table)
    self._rng.shuffle(rows)
    self._rows[table] = {
      f'{letter}{i + 1}': {**row, 'id': f'{letter}{i + 1}'}
      for i, row in enumerate(rows)
    }

  def _all(self, table: str) -> list[Row]:
    return list(self._rows.get(table, {}).values())

  def _day(self, days: int) -> str:
    return (self._date + datetime.timedelta(days)).isoformat()


def rows_of(
  world: World, columns: Mapping[str, Sequence[str]]
) -> dict[str, list[list[Any]]]:
  """Returns the rows of a world as lists.

  Args:
    world: world.
    columns: columns of every table, in the order of the schema.
  """
  return {
    table: [[row[c] for c in names] for row in world.rows[table].values()]
    for table, names in columns.items()
  }


def names_in(world: World) -> Iterator[str]:
  """Yields the names of a world that no other split has."""
  for table in ('person', 'model'):
    for row in world.rows[table].values():
      yield row['name']
