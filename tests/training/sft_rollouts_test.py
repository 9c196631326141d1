"""Supervised training on the successful rollouts of a run."""

import dataclasses
import json

import pytest
from etils import epath

from agentflow_jax import records
from agentflow_jax.config import overrides, schema, unread
from agentflow_jax.rollouts import mistakes, rollout_files
from agentflow_jax.training import run, step_data
from agentflow_jax.weights import host_copies, model_directory
from tests.config import mini


def _sft(directory, rollouts, **changes):
  base = dataclasses.replace(
    mini.config(directory),
    algorithm='sft',
    train=schema.TrainConfig(steps=2, checkpoint_every=1),
    flow_grpo=schema.FlowGrpoConfig(),
    evaluation=schema.EvaluationConfig(every=0, start_and_final=False),
    sft=schema.SftConfig(rollouts=str(rollouts), rows_per_step=8),
  )
  return overrides.override(base, list(changes.items()))


@pytest.fixture(scope='module', name='made')
def _made(tmp_path_factory):
  """A run that samples rollouts and trains nothing."""
  directory = tmp_path_factory.mktemp('sampled')
  config = overrides.override(
    mini.config(directory / 'in', steps=2),
    [
      ('algorithm', 'none'),
      ('evaluation.every', '0'),
      ('evaluation.start_and_final', 'false'),
    ],
  )
  run.train(config, str(directory / 'out'), quiet=True)
  return directory


def _records(directory):
  return [
    (group.task, trajectory)
    for file in sorted((directory / 'rollouts').iterdir())
    for group in rollout_files.read(epath.Path(file))
    for trajectory in group.trajectories
  ]


def test_algorithm_none_samples_what_flow_grpo_does_and_keeps_the_planner(made):
  lines = (made / 'out' / 'metrics.jsonl').read_text().splitlines()
  for line in map(json.loads, lines):
    assert line['updates'] == 0 and line['rollouts/requested'] == 9
  config = mini.config(made / 'in')
  before, after = (
    host_copies.params_digest(
      model_directory.load(directory, model_directory.load_config(directory))
    )
    for directory in (config.planner.directory, made / 'out' / 'planner')
  )
  assert before == after


def test_it_learns_from_the_successes_and_from_nothing_else(made, tmp_path):
  found = _records(made / 'out')
  right = [t for _, t in found if mistakes.is_success(t)]
  assert 0 < len(right) < len(found)
  run.train(_sft(tmp_path / 'in', made / 'out'), str(tmp_path / 'out'), quiet=True)
  lines = (tmp_path / 'out' / 'metrics.jsonl').read_text().splitlines()
  turns = sum(len(t.turns) for t in right)
  assert [json.loads(line)['sft/turns'] for line in lines] == [turns, turns]
  kept = rollout_files.read(epath.Path(tmp_path / 'out' / 'traces.jsonl.zst'))
  assert [t for g in kept for t in g.trajectories] == right


def test_a_run_without_rollouts_or_successes_is_refused_by_name(tmp_path):
  for name in ('empty', 'failed'):
    (tmp_path / name / 'rollouts').mkdir(parents=True)
  failed = records.Trajectory('t', 0, records.Status.ANSWERED, (), reward=0.0)
  rollout_files.write(
    epath.Path(tmp_path / 'failed' / 'rollouts' / 'step_000001.p0.jsonl.zst'),
    [records.Group(records.Task('t', 'q', ('a',), 'f1'), (failed,))],
  )
  for name, match in (
    ('empty', 'there are no rollouts below'),
    ('failed', 'none of 1 rollouts'),
  ):
    config = _sft(tmp_path / 'in', tmp_path / name)
    with pytest.raises(schema.ConfigError, match=rf'sft.rollouts=.*{name}.*{match}'):
      run.train(config, str(tmp_path / f'out_{name}'), quiet=True)


@pytest.mark.parametrize(
  'field, value, said',
  [
    ('mention_marks', 'after', "agent.mention_marks is 'before', here 'after'"),
    ('number_mentions', 'false', 'agent.number_mentions is True'),
  ],
)
def test_rollouts_of_other_prompts_are_refused(made, tmp_path, field, value, said):
  config = _sft(tmp_path / 'in', made / 'out', **{f'agent.{field}': value})
  with pytest.raises(schema.ConfigError, match=rf'sft.rollouts=.*{said}'):
    step_data._check_same_prompts(str(made / 'out'), config)
  step_data._check_same_prompts(str(made / 'out'), mini.config(tmp_path / 'in'))


def test_tokens_of_another_tokenizer_are_refused(made, tmp_path):
  config = _sft(
    tmp_path / 'in',
    made / 'out',
    **{'planner.directory': str(mini.ROOT / 'experiments' / 'desk_planner')},
  )
  with pytest.raises(schema.ConfigError, match='sampled with another tokenizer'):
    run.train(config, str(tmp_path / 'out'), quiet=True)


@pytest.mark.parametrize('name', ['teacher.wrong_reference', 'sft.traces'])
def test_flags_of_scripted_rollouts_are_refused(tmp_path, name):
  with pytest.raises(schema.ConfigError, match=rf"{name}.*sft.rollouts=''"):
    unread.check_flags(_sft(tmp_path / 'in', tmp_path), [name])
