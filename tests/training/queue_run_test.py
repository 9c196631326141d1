"""A run with a queue: killed anywhere, it ends in the unbroken run's bits."""

import dataclasses
import json

import pytest
from etils import epath

from agentflow_jax.config import overrides
from agentflow_jax.rollouts import rollout_files, totals
from agentflow_jax.runtime import exits
from agentflow_jax.training import run, trainer
from agentflow_jax.weights import checkpoints
from tests.config import mini

# Groups of 2 often have equal rewards, so that the queue is needed. The learning rate
# is so high that a few steps change the planner's words.
_SETTINGS = [
  ('optimizer.learning_rate', '1e-3'),
  ('evaluation.start_and_final', 'false'),
  ('evaluation.every', '0'),
  ('flow_grpo.old_logprobs', 'recompute'),
  ('flow_grpo.importance_cap', '2'),
  ('flow_grpo.importance_level', 'rollout'),
  ('queue.size', '3'),
  ('queue.uses', '2'),
  ('queue.share', '0.75'),
]


class _Killed(BaseException):
  """Ends a run without any of its own clean-up counting."""


def _config(directory, **train):
  train = {
    'steps': 6,
    'queries_per_step': 4,
    'group_size': 2,
    'mini_batches': 2,
  } | train
  return overrides.override(mini.config(directory, **train), _SETTINGS)


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  directory = tmp_path_factory.mktemp('queue')
  config = _config(directory / 'in')
  run.train(config, str(directory / 'out'), quiet=True)
  return config, directory / 'out'


def _lines(workdir):
  text = (workdir / 'metrics.jsonl').read_text()
  return [json.loads(line) for line in text.splitlines()]


@pytest.mark.slow
def test_reused_groups_are_trained_on_and_in_no_count(whole):
  _, workdir = whole
  lines = _lines(workdir)
  assert sum(line['queue/reused'] for line in lines) >= 3
  assert max(line['queue/age_max'] for line in lines) >= 2
  for line in lines:
    assert line['rollouts/requested'] == 8 and line['groups/requested'] == 4
    assert line['queue/saved'] == 2 * line['queue/reused']
    assert line['groups/dropped'] == line['queue/reused']
    assert line['update/logprob_gap/max'] <= 1e-5
  names = sorted((workdir / 'rollouts').iterdir())
  groups = [g for name in names for g in rollout_files.read(epath.Path(name))]
  assert len(names) == 6 and len(groups) == 6 * 4


# Updates (two a step), commits (after steps 2, 4 and 6) and writes of records, of
# which the first that is reached ends the process.
_MOMENTS = [
  *((trainer.Trainer, 'step', n) for n in (1, 2, 3, 4, 5, 6)),
  *((checkpoints.Checkpoints, 'save', n) for n in (1, 2)),
  *((rollout_files, 'write', n) for n in (2, 17, 30)),
]


@pytest.mark.slow
@pytest.mark.parametrize(
  'where, name, number', _MOMENTS, ids=[f'{n}_{i}' for _, n, i in _MOMENTS]
)
def test_killed_anywhere_a_run_with_a_queue_ends_in_the_same_bits(
  whole, tmp_path, monkeypatch, where, name, number
):
  config, workdir = whole
  original, calls = getattr(where, name), []

  def cut(*args, **kwargs):
    calls.append(None)
    if len(calls) == number:
      raise _Killed
    return original(*args, **kwargs)

  with monkeypatch.context() as patch:
    patch.setattr(where, name, cut)
    with pytest.raises((_Killed, BaseExceptionGroup)):
      run.train(config, str(tmp_path), quiet=True)
  run.train(config, str(tmp_path), quiet=True)
  assert mini.fingerprint(tmp_path) == mini.fingerprint(workdir)


def _edit(path, change):
  """Writes the record of a step or of a group anew, with changed turns."""
  recorded = rollout_files.read_all(epath.Path(path))
  groups = [
    dataclasses.replace(
      g,
      trajectories=tuple(
        dataclasses.replace(t, turns=tuple(map(change, t.turns)))
        for t in g.trajectories
      ),
    )
    for g in recorded.groups
  ]
  names = {'advantage', 'weights', 'checksum'}
  extras = {
    place: {k: v for k, v in extra.items() if k in names}
    for place, extra in recorded.extras.items()
  }
  header = {k: v for k, v in recorded.header.items() if k != 'schema'}
  rollout_files.write(epath.Path(path), groups, extras, header=header)


def _shifted(turn):
  completion = dataclasses.replace(
    turn.completion, logprobs=tuple(x - 0.01 for x in turn.completion.logprobs)
  )
  return dataclasses.replace(turn, completion=completion)


@pytest.mark.slow
def test_altered_records_stop_the_run(tmp_path, monkeypatch):
  """A fresh group in the journal, and then a queued one in a committed record."""
  config = _config(tmp_path / 'in', steps=4)
  workdir, original, calls = tmp_path / 'out', trainer.Trainer.step, []

  def cut(self, mini_batches):
    calls.append(None)
    if len(calls) == 3:
      raise _Killed
    return original(self, mini_batches)

  with monkeypatch.context() as patch:
    patch.setattr(trainer.Trainer, 'step', cut)
    with pytest.raises(_Killed):
      run.train(config, str(workdir), quiet=True)
  # Step 3 is in the journal. A group with variance is always trained on.
  varied = [
    path
    for path in sorted((workdir / 'journal').iterdir())
    if totals.has_variance(rollout_files.read(epath.Path(path))[0])
  ]
  assert varied
  for path in varied:
    data = path.read_bytes()
    _edit(path, _shifted)
    with pytest.raises(exits.RunStopped, match='max_logprob_gap'):
      run.train(config, str(workdir), quiet=True)
    path.write_bytes(data)
  held = rollout_files.read_all(
    epath.Path(workdir / 'rollouts' / 'step_000002.p0.jsonl.zst')
  ).header['queue']
  step, _, _ = held[0]
  path = workdir / 'rollouts' / f'step_{step + 1:06d}.p0.jsonl.zst'
  _edit(path, _shifted)
  with pytest.raises(rollout_files.RecordError, match='altered'):
    run.train(config, str(workdir), quiet=True)
