"""Supervised training on a file of chats."""

import dataclasses
import json

import pytest

from agentflow_jax.config import overrides, schema, unread
from agentflow_jax.training import run
from tests.config import mini


def _sft(directory, count, words=1, **changes):
  """A run of two steps over chats of one to three answers."""
  file = directory / 'chats.jsonl'
  directory.mkdir(parents=True, exist_ok=True)
  said = [
    (
      {'role': 'user', 'content': f'{i}?' * words},
      {'role': 'assistant', 'content': f'{i}.'},
    )
    for i in range(3)
  ]
  rows = [
    {'messages': [m for pair in said[: 1 + i % 3] for m in pair]} for i in range(count)
  ]
  file.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  base = dataclasses.replace(
    mini.config(directory),
    algorithm='sft',
    train=schema.TrainConfig(steps=2, checkpoint_every=1),
    flow_grpo=schema.FlowGrpoConfig(),
    evaluation=schema.EvaluationConfig(every=0, start_and_final=False),
    sft=schema.SftConfig(chats=str(file), rows_per_step=8),
  )
  return overrides.override(base, list(changes.items()))


def _metrics(directory):
  lines = (directory / 'metrics.jsonl').read_text().splitlines()
  return [json.loads(line) for line in lines]


@pytest.mark.slow
def test_it_goes_on_after_the_file_is_gone(tmp_path):
  config = _sft(tmp_path / 'in', 6, **{'train.steps': '1'})
  run.train(config, str(tmp_path / 'out'), quiet=True)
  (tmp_path / 'in' / 'chats.jsonl').unlink()
  config = overrides.override(config, [('train.steps', '2')])
  run.train(config, str(tmp_path / 'out'), quiet=True)
  assert [line['sft/turns'] for line in _metrics(tmp_path / 'out')] == [12, 12]


@pytest.mark.slow
def test_it_learns_the_answers(tmp_path):
  config = _sft(tmp_path / 'in', 6, **{'train.steps': '4'})
  run.train(config, str(tmp_path / 'out'), quiet=True)
  lines = _metrics(tmp_path / 'out')
  # Chats of 1, 2 and 3 answers, twice.
  assert [line['sft/turns'] for line in lines] == [12] * 4
  assert [line['sft/rows'] for line in lines] == [8] * 4
  assert lines[-1]['update/loss'] < lines[0]['update/loss'] - 0.5


@pytest.mark.parametrize(
  'changes, reason',
  [
    (
      {'words': 2000},
      '12 of 12 answers do not fit.*has .* tokens.*raise batch.tokens_per_row.*nothing',
    ),
    (
      {'sft.rollouts_per_step': '2', 'agent.rollout.max_turns': '2'},
      'a chat has 3 answers.*agent.rollout.max_turns=2',
    ),
  ],
)
def test_a_file_that_cannot_be_learned_from_is_refused(tmp_path, changes, reason):
  config = _sft(tmp_path / 'in', 6, **changes)
  with pytest.raises(schema.ConfigError, match=reason):
    run.train(config, str(tmp_path / 'out'), quiet=True)


def test_two_sources_and_flags_of_scripted_rollouts_are_refused(tmp_path):
  with pytest.raises(schema.ConfigError, match='both set'):
    schema.SftConfig(rollouts='a', chats='b')
  for name in ('teacher.wrong_reference', 'sft.traces'):
    with pytest.raises(schema.ConfigError, match=rf"{name}.*sft.chats=''"):
      unread.check_flags(_sft(tmp_path / 'in', 1), [name])
