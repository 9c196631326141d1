"""What keeps a run from learning is said, and such a run ends."""

import dataclasses
import json

import pytest

from agentflow_jax import records
from agentflow_jax.agents import fakes, memory as memory_lib, modules
from agentflow_jax.agents import numbered_memory, prompts, references
from agentflow_jax.config import schema
from agentflow_jax.runtime import exits
from agentflow_jax.training import diagnosis, query_lengths, run
from tests.config import mini

_CONFIG = schema.Config(name='x')
_LENGTHS = query_lengths.QueryLengths(10, 0, 15004, 256)


def _line(step=1, equal=4, **statuses):
  requested = sum(statuses.values())
  line = {f'rollouts/status/{s.value}': 0 for s in records.Status}
  line |= {f'rollouts/status/{name}': n for name, n in statuses.items()}
  return line | {
    'step': step,
    'rollouts/requested': requested,
    'groups/requested': 4,
    'groups/no_variance': equal,
    'reward/mean': 0.0,
  }


@pytest.mark.parametrize(
  ('line', 'status'),
  [
    (_line(prompt_too_long=8), 'prompt_too_long'),
    (_line(prompt_too_long=7, answered=1), None),
    # Rewards differ, so it can be learned from, however all of them ended.
    (_line(unparseable_plan=8, equal=3), None),
    (_line(answered=8), None),
    ({'step': 1, 'sft/rows': 3}, None),
    # Answered all the same, and rightly.
    (_line(out_of_turns=8) | {'reward/mean': 1.0}, None),
    (_line(prompt_too_long=6, aborted_late=2), 'prompt_too_long'),
    (_line(aborted_late=8), None),
  ],
)
def test_a_step_fails_where_all_rollouts_end_in_one_failing_status(line, status):
  found = diagnosis.failed_as(line)
  assert (found and found.value) == status


def test_a_step_that_trained_on_queued_groups_taught_something():
  line = _line(answered=8)
  (said,) = diagnosis.of_step(line, _CONFIG, _LENGTHS)
  assert 'nothing to learn from' in said
  reused = line | {'queue/reused': 2}
  assert diagnosis.of_step(reused, _CONFIG, _LENGTHS) == []
  assert diagnosis.of_run([reused], _CONFIG, _LENGTHS) == []
  # A planner that only fails still stops the run: what it samples teaches nothing.
  failing = _line(prompt_too_long=8) | {'queue/reused': 2}
  assert diagnosis.failing_steps([failing] * 3) == 3
  (said,) = diagnosis.of_run([failing], _CONFIG, _LENGTHS)
  assert 'every rollout failed in one way' in said


def test_failing_steps_are_counted_from_the_last_one_in_one_status():
  bad, other = _line(tool_error=8), _line(deadline=8)
  good = _line(answered=8, equal=2)
  for lines, count in (
    ([], 0),
    ([bad, bad, good], 0),
    ([bad, good, bad, bad], 2),
    ([bad, bad, other], 1),
    ([other, bad, bad, bad], 3),
  ):
    assert diagnosis.failing_steps(lines) == count


@pytest.mark.parametrize(
  ('status', 'words'),
  [
    (
      'prompt_too_long',
      'the longest query has 15,004 tokens, and planner.max_prompt_tokens is 256',
    ),
    ('truncated_response', 'planner.sampling.max_new_tokens is 256'),
    ('out_of_turns', 'agent.rollout.max_turns='),
    ('unparseable_plan', 'algorithm=sft'),
    ('deadline', 'agent.rollout.deadline_seconds is'),
  ],
)
def test_a_warning_has_the_numbers_and_the_field_to_change(status, words):
  config = dataclasses.replace(
    _CONFIG,
    planner=schema.PlannerConfig(sampling=schema.SamplingSpec(max_new_tokens=256)),
  )
  equal, failed = diagnosis.of_step(_line(**{status: 256}), config, _LENGTHS)
  assert 'in none of the 4 groups' in equal
  assert failed.startswith(f'256 of 256 rollouts ended {status}: ')
  assert words in failed


def test_a_step_that_teaches_is_not_warned_of():
  assert not diagnosis.of_step(_line(answered=8, equal=3), _CONFIG, _LENGTHS)
  (only,) = diagnosis.of_step(_line(answered=7, deadline=1), _CONFIG, _LENGTHS)
  assert 'different rewards' in only


def test_a_run_is_summed_up():
  lines = [_line(1, 4, answered=8), _line(2, 4, tool_error=8), _line(3, 1, answered=8)]
  equal, failed = diagnosis.of_run(lines, _CONFIG, _LENGTHS)
  assert equal.startswith('In 2 of 3 steps no group')
  assert failed.startswith('In 1 of 3 steps') and 'Step 2: 8 of 8' in failed
  assert not diagnosis.of_run(lines[2:], _CONFIG, _LENGTHS)


@pytest.mark.parametrize(
  'start', [memory_lib.start, numbered_memory.Numbering(references.Gazetteer(['Oslo']))]
)
@pytest.mark.parametrize('longest', range(1, 60, 2))
def test_queries_that_do_not_fit_are_counted_exactly(longest, start):
  """At every length around the limit it is what the planner itself says."""
  planner = modules.ModelPlanner(
    fakes.FakeLanguageModel({}), records.SamplingSpec(), prompts.PromptConfig(), 100
  )
  queries = ['w ' * n for n in (1, 3, longest)] + ['Oslo 1 Rome 2 ' * longest]
  tasks = [records.Task(str(i), q, (), '') for i, q in enumerate(queries)]

  def is_too_long(task):
    key = records.RequestKey(0, records.Purpose.TRAIN, 0, task.id, 0)
    memory = start(task.query)
    try:
      planner.compose(modules.View(task.id, memory, (), key))
    except modules.language_model.PromptTooLong:
      return True
    return False

  found = query_lengths.measure(planner, (), tasks, start)
  assert found.queries == 4 and found.limit == 100
  assert found.too_long == sum(map(is_too_long, tasks))


class _Quarters:
  """A model with a token for four characters, wherever texts meet."""

  def count_tokens(self, prompt):
    return -(-sum(len(s.text) for s in prompt) // 4)


@pytest.mark.parametrize('more', range(10))
def test_many_queries_are_counted_as_the_whole_prompt_has_tokens(more):
  config = prompts.PromptConfig(tail='t' * more)
  memory = memory_lib.Memory('x' * 150)
  limit = _Quarters().count_tokens(prompts.planner_prompt(config, (), memory)) + more
  planner = modules.ModelPlanner(_Quarters(), records.SamplingSpec(), config, limit)
  # Longer ones that fit, so that those at the limit are not among the longest.
  tasks = [records.Task(str(n), 'x' * n, (), '') for n in range(1, 400)]
  fits = [
    planner.model.count_tokens(
      prompts.planner_prompt(planner.prompt, (), memory_lib.Memory(task.query))
    )
    <= limit
    for task in tasks
  ]
  found = query_lengths.measure(planner, (), tasks)
  assert 100 < found.too_long == fits.count(False) < 399
  assert found.longest == 100


def test_a_run_whose_queries_cannot_fit_stops_where_a_resumed_one_does(
  tmp_path, capsys
):
  config = mini.config(tmp_path / 'in', steps=6)
  path = tmp_path / 'in' / 'tasks.jsonl'
  rows = [json.loads(line) for line in path.read_text().splitlines()]
  path.write_text(
    ''.join(
      json.dumps(row | {'query': 'word ' * 3000 + row['query']}) + '\n' for row in rows
    )
  )
  config = dataclasses.replace(
    config,
    agent=dataclasses.replace(config.agent, number_mentions=False),
    evaluation=schema.EvaluationConfig(every=0, start_and_final=False, controls=False),
  )
  workdir = tmp_path / 'out'
  for _ in range(2):  # The second resumes what the first committed.
    with pytest.raises(exits.RunStopped) as stopped:
      run.train(config, str(workdir), quiet=True)
    assert exits.code_of(stopped.value) == 3
    assert 'after 3 steps in a row' in str(stopped.value)
    said = capsys.readouterr().err
    assert '8 of 8 queries do not fit into planner.max_prompt_tokens=176' in said
    lines = (workdir / 'metrics.jsonl').read_text().splitlines()
    assert len(lines) == 3
  for words in ('9 of 9 rollouts ended prompt_too_long', 'the longest query has'):
    assert words in str(stopped.value)
    assert words in (workdir / 'report.html').read_text()
