"""Questions of GeoHop: expression trees over facts, and how to ask them.

A question is a tree of look-ups and arithmetic. Its steps, in post-order, are
the tool calls of a perfect planner (one hop each); they travel beside the
question for the oracle and the teacher, and no module of the system reads them.
"""

import dataclasses
import itertools
import json
import random
from collections.abc import Iterator, Mapping, Sequence

from agentflow_jax.data import geohop_facts

SPLIT_SIZES = {'train': 24000, 'validation': 400, 'test': 600}

# How an operator is written, and computed for the reference answer.
_OPERATORS = {
  '+': lambda a, b: a + b,
  '-': lambda a, b: a - b,
  '*': lambda a, b: a * b,
  '/': lambda a, b: a / b,
}

# Two numbers closer than this, relative to the right one, count as the same
# answer here. Twice what the reward allows (agents.rewards.numeric), so that no
# rounding of a wrong value can earn the reward.
_SAME_NUMBER = 2e-3


@dataclasses.dataclass(frozen=True)
class Step:
  """One hop: a look-up of an attribute, or one arithmetic operation.

  Attributes:
    tool: 'search' or 'python'.
    what: the attribute, or the operator.
    arguments: the entity's name, or the two numbers, as text in the order of
      use; each was named in the question or found by an earlier step.
    value: finding of the step, as text.
  """

  tool: str
  what: str
  arguments: tuple[str, ...]
  value: str


@dataclasses.dataclass(frozen=True)
class Question:
  """A question with its answer and the steps that find it."""

  kind: str
  text: str
  answer: str
  steps: tuple[Step, ...]

  @property
  def hops(self) -> int:
    return len(self.steps)

  def solution(self) -> str:
    """The steps as JSON, for `parse_solution`."""
    return json.dumps([dataclasses.asdict(s) for s in self.steps])


def parse_solution(text: str) -> tuple[Step, ...]:
  """Reads what `Question.solution` wrote."""
  return tuple(
    Step(s['tool'], s['what'], tuple(s['arguments']), s['value'])
    for s in json.loads(text)
  )


@dataclasses.dataclass(frozen=True)
class _Kind:
  """A kind of question: how often, how it is asked, what it looks up.

  Attributes:
    name: the kind.
    weight: share of the questions.
    texts: ways to ask; {a} and {b} are the entities or numbers.
    a: type of a: 'country', 'city' or 'number'.
    b: type of b; '' where there is no second one.
    path_a: attributes looked up one after the other, from a.
    path_b: attributes looked up one after the other, from b.
    operator: operator that is applied to the two found values; '' where there is none.
    big_first: swap a and b so that the first value is the larger.
  """

  name: str
  weight: float
  texts: tuple[str, ...]
  a: str
  path_a: tuple[str, ...] = ()
  b: str = ''
  path_b: tuple[str, ...] = ()
  operator: str = ''
  big_first: bool = False


def _kind(name, weight, texts, a, path_a=(), **kwargs):
  return _Kind(name, weight, tuple(texts), a, tuple(path_a), **kwargs)


_CAPITAL, _POPULATION, _AREA = 'capital', 'population', 'area'
_NEIGHBOUR, _LARGEST, _COUNTRY = 'largest neighbour', 'largest city', 'country'
_BOTH_POPULATIONS = dict(path_b=(_POPULATION,))

KINDS = (
  # One hop, search alone.
  _kind('capital', 1, ['What is the capital of {a}?'], 'country', [_CAPITAL]),
  _kind(
    'population',
    1,
    ['What is the population of {a}?', 'How many people live in {a}?'],
    'country',
    [_POPULATION],
  ),
  _kind(
    'city_population',
    1,
    ['What is the population of {a}?', 'How many people live in {a}?'],
    'city',
    [_POPULATION],
  ),
  _kind('area', 1, ['What is the area of {a}?'], 'country', [_AREA]),
  _kind('country', 1, ['In which country is {a}?'], 'city', [_COUNTRY]),
  _kind(
    'neighbour', 0.5, ['What is the largest neighbour of {a}?'], 'country', [_NEIGHBOUR]
  ),
  _kind(
    'largest_city', 0.5, ['What is the largest city of {a}?'], 'country', [_LARGEST]
  ),
  # One hop, arithmetic alone.
  _kind('sum', 0.75, ['What is {a} plus {b}?'], 'number', b='number', operator='+'),
  _kind(
    'difference', 0.75, ['What is {a} minus {b}?'], 'number', b='number', operator='-'
  ),
  _kind(
    'product', 0.75, ['What is {a} times {b}?'], 'number', b='number', operator='*'
  ),
  _kind(
    'quotient',
    0.75,
    ['What is {a} divided by {b}?'],
    'number',
    b='number',
    operator='/',
  ),
  # Two hops, search alone.
  _kind(
    'capital_population',
    1.5,
    [
      'What is the population of the capital of {a}?',
      'How many people live in the capital of {a}?',
    ],
    'country',
    [_CAPITAL, _POPULATION],
  ),
  _kind(
    'neighbour_capital',
    1,
    ['What is the capital of the largest neighbour of {a}?'],
    'country',
    [_NEIGHBOUR, _CAPITAL],
  ),
  _kind(
    'neighbour_area',
    1,
    ['What is the area of the largest neighbour of {a}?'],
    'country',
    [_NEIGHBOUR, _AREA],
  ),
  _kind(
    'city_country_capital',
    1.5,
    ['What is the capital of the country of {a}?'],
    'city',
    [_COUNTRY, _CAPITAL],
  ),
  _kind(
    'city_country_population',
    1.5,
    [
      'What is the population of the country of {a}?',
      'How many people live in the country of {a}?',
    ],
    'city',
    [_COUNTRY, _POPULATION],
  ),
  # Two hops, search and then arithmetic.
  _kind(
    'population_times',
    1.5,
    ['What is the population of {a} times {b}?'],
    'city',
    [_POPULATION],
    b='number',
    operator='*',
  ),
  _kind(
    'area_plus',
    1.5,
    ['What is the area of {a} plus {b}?'],
    'country',
    [_AREA],
    b='number',
    operator='+',
  ),
  # Three hops, search alone.
  _kind(
    'neighbour_capital_population',
    1,
    ['What is the population of the capital of the largest neighbour of {a}?'],
    'country',
    [_NEIGHBOUR, _CAPITAL, _POPULATION],
  ),
  _kind(
    'city_country_capital_population',
    1.5,
    ['How many people live in the capital of the country of {a}?'],
    'city',
    [_COUNTRY, _CAPITAL, _POPULATION],
  ),
  # Three hops, search and then arithmetic.
  _kind(
    'population_ratio',
    1.5,
    ['By what factor is the population of {a} larger than that of {b}?'],
    'country',
    [_POPULATION],
    b='country',
    **_BOTH_POPULATIONS,
    operator='/',
    big_first=True,
  ),
  _kind(
    'area_ratio',
    1.5,
    ['By what factor is the area of {a} larger than that of {b}?'],
    'country',
    [_AREA],
    b='country',
    path_b=(_AREA,),
    operator='/',
    big_first=True,
  ),
  _kind(
    'city_population_sum',
    1.5,
    ['How many people live in {a} and {b} together?'],
    'city',
    [_POPULATION],
    b='city',
    **_BOTH_POPULATIONS,
    operator='+',
  ),
  _kind(
    'city_population_difference',
    1.5,
    ['How many more people live in {a} than in {b}?'],
    'city',
    [_POPULATION],
    b='city',
    **_BOTH_POPULATIONS,
    operator='-',
    big_first=True,
  ),
)


def generate(split: str, entities: Mapping[str, geohop_facts.Entity]) -> list[Question]:
  """Generates the questions of a split, without repeats.

  A question that a wrong plan would answer, too, is left out (`_is_forgiving`).

  Args:
    split: 'train', 'validation' or 'test'.
    entities: all entities; only those of the split are used.

  Returns:
    `SPLIT_SIZES[split]` questions (fewer where a split has fewer to ask); the
    same on every machine.

  Raises:
    KeyError: no such split.
  """
  wanted = SPLIT_SIZES[split]
  rng = random.Random(f'geohop/{split}')
  pools = {'country': [], 'city': []}
  for entity in entities.values():
    if entity.split == split:
      pools[entity.kind].append(entity.name)
  found = {}
  for question in _draw(rng, pools, entities, attempts=20 * wanted):
    found.setdefault(question.text, question)
    if len(found) == wanted:
      break
  return list(found.values())


def _draw(rng, pools, entities, attempts) -> Iterator[Question]:
  weights = [k.weight for k in KINDS]
  for _ in range(attempts):
    kind = rng.choices(KINDS, weights)[0]
    a = _pick(rng, kind.a, pools)
    b = _pick(rng, kind.b, pools) if kind.b else ''
    question = _build(rng, kind, a, b, entities) if a != b else None
    if question is not None:
      yield question


def _pick(rng, what, pools) -> str:
  if what == 'number':
    return str(rng.randint(2, 10 ** rng.randint(1, 4)))
  return rng.choice(pools[what])


def _build(rng, kind, a, b, entities) -> Question | None:
  """Builds one question, or None where a fact on its path is absent."""
  first = _follow(a, kind.path_a, entities)
  second = _follow(b, kind.path_b, entities) if b else []
  if first is None or second is None:
    return None
  value_a = first[-1].value if first else a
  value_b = second[-1].value if second else b
  if kind.big_first and int(value_a) < int(value_b):
    a, b, first, second = b, a, second, first
    value_a, value_b = value_b, value_a
  steps = first + second
  # A path that returns to where it was (a capital that names its country, a
  # neighbour's neighbour) would let a wrong plan score.
  named = [s.value for s in steps] + [a, b]
  if len(set(named)) < len(named):
    return None
  if kind.operator:
    number = _OPERATORS[kind.operator](int(value_a), int(value_b))
    steps = steps + [Step('python', kind.operator, (value_a, value_b), repr(number))]
  text = rng.choice(kind.texts).format(a=a, b=b)
  if _is_forgiving(steps, [n for n in (a, b) if n], entities):
    return None
  return Question(kind.name, text, steps[-1].value, tuple(steps))


def _is_forgiving(
  steps: Sequence[Step],
  asked: Sequence[str],
  entities: Mapping[str, geohop_facts.Entity],
) -> bool:
  """Whether a wrong plan would end with the right answer, or close to it.

  Wrong plans end with an entity or number of the question, with the value of a
  step before the last, with another fact of an entity on the path, or with
  another operation on the same two numbers.

  Args:
    steps: steps of a perfect planner; the last one finds the answer.
    asked: entities and numbers that the question names.
    entities: all entities.
  """
  last = steps[-1]
  wrong = [*asked, *(s.value for s in steps[:-1])]
  for name in dict.fromkeys(itertools.chain(asked, (s.value for s in steps))):
    if name in entities:
      wrong += [
        value
        for attribute, value in entities[name].facts.items()
        if (name, attribute) != (last.arguments[0], last.what)
      ]
  if last.tool == 'python':
    a, b = map(int, last.arguments)
    right = _OPERATORS[last.what]
    for operator in _OPERATORS.values():
      for x, y in ((a, b), (b, a)):
        # The same numbers in another order may be the same operation.
        if not (operator is right and right(x, y) == right(a, b)):
          wrong.append(repr(operator(x, y)))
  return any(_same(last.value, value) for value in wrong)


def _same(right: str, other: str) -> bool:
  """Whether two values are one answer: close numbers, or names up to case.

  Every value is the name of an entity, or a number as Python writes it.
  """
  try:
    number, said = float(right), float(other)
  except ValueError:
    return geohop_facts.fold(right) == geohop_facts.fold(other)
  return abs(number - said) <= _SAME_NUMBER * abs(number)


def _follow(
  name: str, path: Sequence[str], entities: Mapping[str, geohop_facts.Entity]
) -> list[Step] | None:
  """Looks attributes up one after the other; None where one is absent."""
  steps = []
  for attribute in path:
    entity = entities.get(name)
    if entity is None or attribute not in entity.facts:
      return None
    steps.append(Step('search', attribute, (name,), entity.facts[attribute]))
    name = entity.facts[attribute]
  return steps
