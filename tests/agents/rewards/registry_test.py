"""Rewards by name, their checks of tasks, and real benchmarks' answers."""

import asyncio
import json
import pathlib
import random
import subprocess
import sys

import pytest

from agentflow_jax import records
from agentflow_jax.agents.rewards import registry

# Beside the repository where the project is developed; not part of it.
BENCHMARKS = pathlib.Path(__file__).parents[4] / 'shared/data/benchmarks'


def task(reward, answers, query='q'):
  return records.Task('t', query, tuple(answers), reward)


def _ending(answer):
  return records.Ending(records.Status.ANSWERED, answer)


def score(reward, answers, answer, query='q'):
  async def run():
    found = registry.get(reward)
    try:
      return await found(task(reward, answers, query), answer)
    finally:
      await found.aclose()

  return asyncio.run(run())


@pytest.mark.parametrize(
  ('reward', 'answers', 'said', 'other'),
  [
    ('exact_match', ['Paris'], 'Paris', 'Rome'),
    ('f1', ['Paris'], 'Paris', 'Rome'),
    ('number', ['12'], '12', '13'),
    ('exact_number', ['12'], '12', '13'),
    ('match_or_number', ['12'], '12', '13'),
    ('short_answer', ['Paris'], 'Paris', 'Rome'),
    ('choice', ['A'], 'A', 'B'),
  ],
)
def test_every_reward_reads_what_stands_behind_the_thoughts(
  reward, answers, said, other
):
  query = 'Which?\nA. Paris\nB. Rome'
  of = lambda answer: score(reward, answers, answer, query)
  assert of(f'<think>\n{other}?\n</think>\n\n{said}') == 1
  assert of(f'{other}?</think>{said}') == 1
  assert of(f'<think>{said}?</think>{other}') == 0
  assert of(f'<think>{said}') == 0


def test_the_names():
  assert registry.names() == (
    'checks',
    'choice',
    'contains',
    'environment',
    'exact_match',
    'exact_number',
    'f1',
    'game24',
    'match_or_number',
    'number',
    'short_answer',
    'symbolic',
  )
  # What is used in other files by name says the name back.
  for name in registry.names():
    assert registry.get(name).name == name


@pytest.mark.parametrize(
  ('name', 'hint'),
  [
    ('exactmatch', "did you mean 'exact_match'"),
    ('match_or_numbers', "did you mean 'match_or_number'"),
    ('zzz', 'there are'),
    ('', 'there are'),
  ],
)
def test_an_unknown_name_is_an_error_with_a_hint(name, hint):
  with pytest.raises(ValueError, match=hint):
    registry.get(name)


@pytest.mark.parametrize(
  ('reward', 'answers', 'answer', 'expected'),
  [
    ('match_or_number', ['Paris'], 'paris.', 1),
    ('match_or_number', ['Paris'], 'Lyon', 0),
    ('match_or_number', ['2.5'], 'by a factor of 2.501', 1),
    ('match_or_number', ['2.5'], '2.51', 0),
    ('match_or_number', ['2.5'], '2.5 or 3', 0),
    ('match_or_number', ['15'], '1.5', 0),
    ('match_or_number', ['15'], '1-5', 0),
    ('match_or_number', ['two', '2'], 'Two', 1),
    ('match_or_number', ['two', '2'], '2.0', 1),
    ('match_or_number', ['U2'], 'u2', 1),
    ('match_or_number', ['U2'], '2', 0),
    ('match_or_number', ['Paris'], '', 0),
    ('match_or_number', ['1999'], '1998', 1),
    ('short_answer', ['1999'], '1998', 0),
    ('short_answer', ['19.99'], '19.98', 1),
    ('number', ['1000'], '1000.9', 1),
    ('number', ['1000'], '<answer>1000</answer> of 3000', 1),
    ('exact_number', ['1000'], '1000.9', 0),
    ('exact_number', ['2007'], 'in 2007', 1),
    ('exact_number', ['2007'], 'in 2008', 0),
    ('exact_match', ['Paris'], 'the Paris', 1),
    ('f1', ['New York City'], 'new york', 0.8),
  ],
)
def test_scores(reward, answers, answer, expected):
  assert score(reward, answers, answer) == pytest.approx(expected)


@pytest.mark.parametrize(
  ('reward', 'answers'),
  [
    ('exact_match', []),
    ('exact_match', ['x', ' ']),
    ('f1', []),
    ('match_or_number', ['']),
    ('number', ['many']),
    ('exact_number', []),
    ('choice', ['A']),
    ('game24', []),
    ('symbolic', []),
  ],
)
def test_a_task_that_lacks_what_its_reward_needs_is_named(reward, answers):
  with pytest.raises(ValueError, match="task 't'"):
    registry.get(reward).check(task(reward, answers))
  with pytest.raises(ValueError, match="task 't'"):
    score(reward, answers, 'A')


def test_rewards_pick_by_the_tasks_name():
  async def run():
    rewards = registry.Rewards(['number', 'exact_match', 'number'])
    rewards.check(task('number', ['5']))
    with pytest.raises(ValueError, match='number'):
      rewards.check(task('number', ['many']))
    with pytest.raises(ValueError, match='this run has'):
      await rewards(task('f1', ['5']), _ending('5'))
    found = [
      await rewards(task('number', ['5']), _ending('5.0 km')),
      await rewards(task('exact_match', ['5']), _ending('5.0 km')),
    ]
    await rewards.aclose()
    return found

  assert asyncio.run(run()) == [1, 0]
  with pytest.raises(ValueError, match='did you mean'):
    registry.Rewards(['gama24'])


def test_closing_ends_the_symbolic_child():
  from agentflow_jax.agents.rewards import symbolic

  made = []
  original = symbolic.Checker

  class Spy(original):
    def __init__(self):
      super().__init__()
      made.append(self)

  async def run():
    rewards = registry.Rewards(['symbolic', 'f1'])
    assert await rewards(task('symbolic', ['1/2']), _ending('0.5')) == 1
    assert made[0].pid is not None
    await rewards.aclose()
    assert made[0].pid is None

  symbolic.Checker = Spy
  try:
    asyncio.run(run())
  finally:
    symbolic.Checker = original


def test_rewards_leave_jax_and_sympy_out():
  program = (
    'import sys\n'
    'from agentflow_jax.agents.rewards import registry\n'
    'registry.get("match_or_number")\n'
    'bad = {"jax", "sympy", "numpy"} & set(sys.modules)\n'
    'sys.exit(str(bad) if bad else 0)\n'
  )
  root = pathlib.Path(__file__).parents[3]
  subprocess.run([sys.executable, '-c', program], check=True, cwd=root)


def benchmark(name, reward):
  path = BENCHMARKS / name / 'data.json'
  if not path.exists():
    pytest.skip(f'no benchmark data at {BENCHMARKS.parent.name}/{name}')
  tasks = []
  for row in json.loads(path.read_text()):
    answer = row['answer']
    answers = answer if isinstance(answer, list) else [answer]
    tasks.append(
      records.Task(str(row['pid']), row['query'], tuple(map(str, answers)), reward)
    )
  return tasks


@pytest.mark.parametrize(
  ('name', 'reward', 'chance'),
  [
    ('bamboogle', 'exact_match', 0.02),
    ('hotpotqa', 'exact_match', 0.05),  # yes and no recur
    ('musique', 'f1', 0.05),
    ('musique', 'short_answer', 0.03),
    ('2wiki', 'short_answer', 0.10),  # yes and no recur
    ('medqa', 'choice', 0.03),
    ('aime24', 'exact_number', 0.05),
    ('amc23', 'exact_number', 0.10),
    ('aime24', 'symbolic', 0.05),
    ('amc23', 'symbolic', 0.10),
    ('gameof24', 'game24', 0.01),
  ],
)
def test_benchmark_answers_score_against_themselves_only(name, reward, chance):
  tasks = benchmark(name, reward)

  async def run():
    rewards = registry.Rewards([reward])
    right = [await rewards(t, _ending(a)) for t in tasks for a in t.answers]
    # Spelt otherwise, so that equal text is not all that is recognised.
    said = [f'<answer> {t.answers[0]}. </answer>' for t in tasks]
    framed = [await rewards(t, _ending(s)) for t, s in zip(tasks, said, strict=True)]
    others = list(tasks)
    random.Random(0).shuffle(others)
    wrong = [
      await rewards(t, _ending(o.answers[0]))
      for t, o in zip(tasks, others, strict=True)
      if t.id != o.id
    ]
    await rewards.aclose()
    return right, framed, wrong

  right, framed, wrong = asyncio.run(run())
  assert min(right) == 1.0
  assert min(framed) == 1.0
  assert sum(wrong) / len(wrong) <= chance


def test_medqa_letters_and_positions():
  tasks = benchmark('medqa', 'choice')

  async def run():
    reward = registry.get('choice')
    totals = dict.fromkeys('ABCD', 0.0)
    for t in tasks:
      for position, letter in enumerate('ABCD', 1):
        by_letter = await reward(t, f'The answer is ({letter}).')
        assert by_letter == await reward(t, letter.lower())
        totals[letter] += by_letter
        if not any(c.isdigit() for c in t.query.split('\nA. ')[-1]):
          assert by_letter == await reward(t, str(position))
    return totals

  totals = asyncio.run(run())
  # Every question has one right letter, and no letter is right always.
  assert sum(totals.values()) == len(tasks)
  assert max(totals.values()) < 0.5 * len(tasks)


def test_the_reward_of_checks_reads_the_verdict_and_not_the_answer():
  rewards = registry.Rewards(['checks'])
  world = records.World('w', {}, checks=(records.Check('a', 'ending', {}),))
  asked = records.Task('t', 'q', (), 'checks', world=world)
  rewards.check(asked)
  with pytest.raises(ValueError, match="'t'.*needs a world with checks"):
    rewards.check(task('checks', ['5']))

  async def score(*passed):
    results = tuple(records.CheckResult('a', 'ending', p) for p in passed)
    return await rewards(asked, _ending('5'), records.Verdict(results))

  found = [asyncio.run(score(*p)) for p in ((True,), (True, True), (True, False), ())]
  assert found == [1.0, 1.0, 0.0, 0.0]


def test_the_reward_of_an_environment_is_the_number_that_it_returned():
  rewards = registry.Rewards(['environment'])

  def asked(kind):
    world = records.World('w', {}, checks=(records.Check('a', kind, {}),))
    return records.Task('t', 'q', (), 'environment', world=world)

  rewards.check(asked('reward'))
  with pytest.raises(ValueError, match='needs an environment that returns one'):
    rewards.check(asked('ending'))
  verdict = records.Verdict((), reward=-0.25)
  found = rewards(asked('reward'), _ending('5'), verdict)
  assert asyncio.run(found) == -0.25
