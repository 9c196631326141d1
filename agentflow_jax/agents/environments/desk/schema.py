"""Tables of the desk.

The keys of a table are one capital letter and a number. Dates are texts YYYY-MM-DD.
Whether an item is free follows from its open loan and its open repair, and is stored
nowhere else. The world's date is the date of the one event of the kind 'today'.
"""

# Letter of a key -> table of the key.
LETTERS = {
  'U': 'unit',
  'P': 'person',
  'S': 'site',
  'M': 'model',
  'I': 'item',
  'T': 'training',
  'L': 'loan',
  'R': 'request',
  'A': 'approval',
  'W': 'repair',
  'N': 'notice',
  'E': 'event_log',
}
CATEGORIES = ('laser', 'drone', 'camera', 'meter', 'pump')
# A model is of high value from this worth on.
HIGH_VALUE = 1000

SQL = """
create table unit (
  id text primary key check (id glob 'U[0-9]*'),
  name text not null unique
);
create table person (
  id text primary key check (id glob 'P[0-9]*'),
  name text not null,
  unit text not null references unit (id),
  role text not null check (role in ('head', 'steward', 'member', 'visitor'))
);
create table site (
  id text primary key check (id glob 'S[0-9]*'),
  name text not null unique,
  unit text not null references unit (id)
);
create table model (
  id text primary key check (id glob 'M[0-9]*'),
  name text not null unique,
  category text not null
    check (category in ('laser', 'drone', 'camera', 'meter', 'pump')),
  worth integer not null check (worth > 0)
);
create table item (
  id text primary key check (id glob 'I[0-9]*'),
  model text not null references model (id),
  site text not null references site (id),
  service_due text not null check (service_due glob '[0-9]*-[0-9]*-[0-9]*')
);
create table training (
  id text primary key check (id glob 'T[0-9]*'),
  person text not null references person (id),
  category text not null
    check (category in ('laser', 'drone', 'camera', 'meter', 'pump')),
  expires text not null,
  unique (person, category)
);
create table loan (
  id text primary key check (id glob 'L[0-9]*'),
  person text not null references person (id),
  item text not null references item (id),
  start text not null,
  due text not null check (due >= start),
  returned text check (returned >= start),
  extensions integer not null check (extensions between 0 and 9)
);
create unique index open_loan on loan (item) where returned is null;
create index loan_of_person on loan (person);
create table request (
  id text primary key check (id glob 'R[0-9]*'),
  person text not null references person (id),
  model text not null references model (id),
  site text not null references site (id),
  made text not null,
  days integer not null check (days between 1 and 60),
  state text not null check (state in ('open', 'granted', 'declined', 'hold'))
);
create table approval (
  id text primary key check (id glob 'A[0-9]*'),
  person text not null references person (id),
  item text not null references item (id),
  approver text not null references person (id),
  made text not null
);
create table repair (
  id text primary key check (id glob 'W[0-9]*'),
  item text not null references item (id),
  reason text not null check (reason in ('service', 'fault')),
  tested text not null check (tested in ('yes', 'no')),
  opened text not null,
  state text not null check (state in ('open', 'closed')),
  closed text,
  result text check (result in ('fixed', 'fine')),
  check ((state = 'closed') = (closed is not null)),
  check ((state = 'closed') = (result is not null))
);
create unique index open_repair on repair (item) where state = 'open';
create table notice (
  id text primary key check (id glob 'N[0-9]*'),
  person text not null references person (id),
  about text not null,
  text text not null,
  sent text not null
);
create table event_log (
  id text primary key check (id glob 'E[0-9]*'),
  date text not null,
  kind text not null check (kind in (
    'today', 'lent', 'extended', 'returned', 'moved', 'repair opened',
    'repair closed', 'request', 'notice'
  )),
  about text not null
);
create unique index one_today on event_log (kind) where kind = 'today';
"""
