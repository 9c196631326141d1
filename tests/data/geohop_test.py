import json
import math
import os
import subprocess
import sys

import pytest

from agentflow_jax.data import geohop, geohop_facts, geohop_questions


@pytest.fixture(scope='module')
def entities():
  return geohop_facts.load_entities()


@pytest.fixture(scope='module')
def questions(entities):
  # Fewer than in the data set: the same draws, stopped earlier.
  sizes = {'train': 2000, 'validation': 200, 'test': 300}
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(geohop_questions, 'SPLIT_SIZES', sizes)
    return {s: geohop_questions.generate(s, entities) for s in sizes}


def test_capitals_are_joined_by_alternate_name_too(entities):
  # GeoNames spells the city 'Kyiv' and the capital 'Kyiv'; Myanmar's capital
  # 'Nay Pyi Taw' is the city 'Naypyidaw', found by alternate name only.
  assert entities['Ukraine'].facts['capital'] == 'Kyiv'
  assert entities['Portugal'].facts['capital'] == 'Lisbon'
  assert entities['Myanmar'].facts['capital'] == 'Nay Pyi Taw'


def test_no_ambiguous_or_empty_fact_is_kept(entities):
  folded = [geohop_facts.fold(n) for n in entities]
  assert len(set(folded)) == len(folded)
  # San Jose, Victoria and Georgetown are several cities; Singapore is a country
  # and a city.
  for name in ('San José', 'Victoria', 'Georgetown', 'Singapore'):
    assert name not in entities
  for entity in entities.values():
    assert all(entity.facts.values())
    assert entity.facts.get('population') != '0'
    assert entity.facts.get('area') != '0'


def test_the_largest_neighbour_stays_in_the_split(entities):
  assert entities['Portugal'].facts['largest neighbour'] == 'Spain'
  # Norway borders Russia, the largest, which GeoNames puts in Europe; Egypt's
  # neighbours Israel and Palestine are in Asia, its largest one Sudan is not.
  assert entities['Norway'].facts['largest neighbour'] == 'Russia'
  for entity in entities.values():
    neighbour = entity.facts.get('largest neighbour')
    if neighbour:
      assert entities[neighbour].split == entity.split


def test_no_entity_on_a_path_is_in_two_splits(questions, entities):
  used = {}
  for split, found in questions.items():
    used[split] = set()
    for question in found:
      for step in question.steps:
        for text in (*step.arguments, step.value):
          if text in entities:
            used[split].add(text)
    assert all(entities[n].split == split for n in used[split])
  assert not used['train'] & used['test']
  assert not used['train'] & used['validation']
  assert not used['validation'] & used['test']


def test_answers_follow_from_the_facts(questions, entities):
  """Works each question out again from the raw facts, by its own words."""
  operators = {'+': '__add__', '-': '__sub__', '*': '__mul__'}
  checked = set()
  for question in questions['test']:
    for step in question.steps:
      if step.tool == 'search':
        (name,) = step.arguments
        assert entities[name].facts[step.what] == step.value
      else:
        a, b = map(int, step.arguments)
        value = a / b if step.what == '/' else getattr(a, operators[step.what])(b)
        assert math.isclose(float(step.value), value)
    assert question.answer == question.steps[-1].value
    checked.add(question.kind)
  assert len(checked) >= 20
  assert {q.hops for q in questions['test']} == {1, 2, 3}


def test_a_wrong_plan_cannot_reach_the_answer_by_returning(questions):
  for question in questions['train']:
    named = [s.value for s in question.steps]
    named += question.steps[0].arguments
    assert len(set(named)) == len(named)


def test_questions_are_the_same_every_time(questions, entities, monkeypatch):
  monkeypatch.setattr(geohop_questions, 'SPLIT_SIZES', {'test': 300})
  again = geohop_questions.generate('test', entities)
  assert again == questions['test']
  texts = [q.text for q in again]
  assert len(set(texts)) == len(texts)


def test_solutions_round_trip(questions):
  question = questions['test'][0]
  solution = question.solution()
  assert geohop_questions.parse_solution(solution) == question.steps


def test_the_data_set_is_array_record_and_needs_no_tensorflow(tmp_path, monkeypatch):
  sizes = {'train': 40, 'validation': 10, 'test': 10}
  monkeypatch.setattr(geohop_questions, 'SPLIT_SIZES', sizes)
  corpus = geohop.prepare(tmp_path)
  tasks = geohop.load(tmp_path, 'train')
  assert [t.id for t in tasks] == [f'train/{i:06d}' for i in range(40)]
  assert all(t.reward == 'match_or_number' and t.answers[0] for t in tasks)
  assert list(tmp_path.rglob('*.array_record*'))
  rows = [json.loads(l) for l in corpus.read_text().splitlines()]
  assert len({r['id'] for r in rows}) == len(rows)
  # The corpus tells facts and nothing of the questions.
  assert not any(t.query in r['text'] for t in tasks for r in rows)
  code = (
    'import sys\n'
    'from agentflow_jax.data import geohop\n'
    f'print(len(geohop.load({os.fspath(tmp_path)!r}, "test")))\n'
    'print("tensorflow" in sys.modules)\n'
  )
  done = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, check=True
  )
  assert done.stdout.split() == ['10', 'False']
