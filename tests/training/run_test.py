"""The main job, small: it runs, resumes to the same bits, and refuses a mix."""

import dataclasses
import json
import pathlib

import pytest

from agentflow_jax.assembly import model_files
from agentflow_jax.config import loading, overrides, schema
from agentflow_jax.evaluation import command, evaluate as evaluation
from agentflow_jax.runtime import exits
from agentflow_jax.training import evaluations, resuming, run, trainer
from agentflow_jax.weights import host_copies
from tests.config import mini


class _Killed(BaseException):
  """Ends a run without any of its own clean-up counting."""


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  directory = tmp_path_factory.mktemp('whole')
  # The learning rate is so high that a few steps change the planner's words.
  config = overrides.override(
    mini.config(directory / 'in'),
    [
      ('optimizer.learning_rate', '3e-3'),
      ('evaluation.trials', '2'),
      ('evaluation.controls', 'true'),
      ('metrics.device_hour_dollars', '3.6'),
    ],
  )
  table = run.train(config, str(directory / 'out'), quiet=True)
  return config, directory / 'out', table


def test_everything_a_run_promises_is_there(whole):
  _, workdir, table = whole
  summary = json.loads((workdir / 'summary.json').read_text())
  for name in (
    'eval/accuracy_start',
    'eval/accuracy_final',
    'eval/accuracy_start_greedy',
    'eval/accuracy_final_greedy',
    'rollouts/requested',
    'compiles/after_warmup',
    'params_digest',
    'seconds/rollout',
    'seconds/update',
    'seconds/total',
  ):
    assert name in summary
  assert summary['rollouts/requested'] == 4 * 3 * 3
  for suffix in ('', '_greedy'):  # The same tasks, each once: the means' difference.
    before, after = (
      summary[f'eval/accuracy_{name}{suffix}'] for name in ('start', 'final')
    )
    assert summary[f'eval/gain{suffix}'] == pytest.approx(after - before, abs=1e-12)
    assert summary[f'eval/gain{suffix}/items'] == 3
  statuses = [v for k, v in summary.items() if k.startswith('rollouts/status/')]
  assert sum(statuses) == summary['rollouts/requested']
  assert summary['peak/flops_per_device'] > 0
  assert 'seconds/slowest/total' not in summary  # Means do not add up.
  # 8 devices at 0.1 cents a second.
  assert summary['dollars'] == pytest.approx(8e-3 * summary['seconds/total'])
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  assert [json.loads(l)['step'] for l in lines] == [1, 2, 3, 4]
  assert all(json.loads(l)['update/logprob_gap/max'] <= 1e-5 for l in lines)
  for line in map(json.loads, lines):
    failed = sum(n for k, n in line.items() if k.startswith('first_cause/'))
    right = line['reward/mean'] * line['rollouts/scored']
    assert line['rollouts/scored'] == failed + round(right)
    for name in ('prefix_hits', 'device_idle', 'slots_used', 'pages_used'):
      assert 0 <= line[f'rate/{name}'] <= 1
    for name in (
      'prefill_tokens_per_second',
      'decode_tokens_per_second',
      'tokens_per_decode_step',
      'queue_seconds_per_request',
      'first_token_seconds_per_request',
    ):
      assert line[f'rate/{name}'] > 0
    assert 0 < line['seconds/rollout/engine'] <= line['seconds/rollout']
    for phase in ('rollout', 'update'):
      assert line[f'rate/{phase}/mfu'] > 0
      assert line[f'rate/{phase}/tokens_per_second_per_device'] > 0
    assert 0 < line['seconds/slowest/planner'] <= line['seconds/slowest/total']
    assert line['rate/dollars'] > 0
  for path in (workdir / 'evaluations').iterdir():
    temperature = json.loads(path.read_text())['temperature']
    scripted = path.name.startswith(('control_empty', 'control_random'))
    samples = not (scripted or 'greedy' in path.name)
    assert temperature == (1.0 if samples else 0.0)
  assert len(list((workdir / 'rollouts').iterdir())) == 4
  assert (workdir / 'report.html').exists() and 'greedy' in table
  # What a user takes away stands on its own.
  names = {p.name for p in (workdir / 'planner').iterdir()}
  assert names == {
    'accuracy.json',
    'config.json',
    'model.safetensors',
    'tokenizer.model',
  }


def _items(workdir, name):
  """Returns an evaluation's answers, rewards and plans by (task, trial)."""
  path = workdir / 'evaluations' / f'{name}.json'
  return {
    (item['id'], item['trial']): (
      item['answer'],
      item['reward'],
      [t['planner'] for t in item['turns']],
    )
    for item in json.loads(path.read_text())['items']
  }


def test_the_final_accuracy_is_that_of_the_planner_that_a_user_takes_away(
  whole, tmp_path
):
  config, workdir, _ = whole
  options = command.EvaluateOptions(planner=str(workdir / 'planner'))
  for name, asked in (
    ('final_greedy', dataclasses.replace(options, greedy=True)),
    ('final', dataclasses.replace(options, trials=2)),
  ):
    command.evaluate(config, str(tmp_path), asked)
    assert _items(workdir, name) == _items(tmp_path, 'evaluation')
    # Otherwise it could be the planner before training.
    assert _items(workdir, name) != _items(workdir, name.replace('final', 'start'))


def test_the_frozen_control_is_the_planner_that_training_started_from(whole):
  _, workdir, _ = whole
  frozen = _items(workdir, 'control_frozen_planner')
  assert frozen == _items(workdir, 'start') != _items(workdir, 'final')


def test_start_final_and_controls_ask_every_item_as_often_as_configured(whole):
  _, workdir, _ = whole
  for name in ('start', 'final', 'control_frozen_planner'):
    items = _items(workdir, name)
    assert sorted({trial for _, trial in items}) == [0, 1]
    assert len(items) == 3 * 2
    # Two samples, not one twice.
    assert any(items[k, 0] != items[k, 1] for k, _ in items)
  for name in ('start_greedy', 'final_greedy'):
    # Greedy trials would all be the same.
    assert {trial for _, trial in _items(workdir, name)} == {0}


@pytest.mark.parametrize(
  'step',
  [pytest.param(0, marks=pytest.mark.slow), 2, pytest.param(3, marks=pytest.mark.slow)],
)
def test_a_run_that_was_cut_off_ends_in_the_same_bits(
  whole, tmp_path, monkeypatch, step
):
  """Cut before the update of `step`, when its rollouts are in the journal."""
  config, workdir, _ = whole
  original, calls = trainer.Trainer.step, []

  def cut(self, mini_batches):
    calls.append(None)
    if len(calls) == step + 1:
      raise _Killed
    return original(self, mini_batches)

  # As the launchers give it: relative.
  monkeypatch.chdir(tmp_path)
  relative, broken = pathlib.Path('out'), tmp_path / 'out'
  with monkeypatch.context() as patch:
    patch.setattr(trainer.Trainer, 'step', cut)
    with pytest.raises(_Killed):
      run.train(config, str(relative), quiet=True)
  assert list((broken / 'journal').iterdir())
  run.train(config, str(relative), quiet=True)
  assert mini.fingerprint(broken) == mini.fingerprint(workdir)
  # The seconds of both processes are in the summary.
  summary = json.loads((broken / 'summary.json').read_text())
  lines = (broken / 'metrics.jsonl').read_text().splitlines()
  rollout = sum(json.loads(line)['seconds/rollout'] for line in lines)
  assert rollout - 1e-6 <= summary['seconds/rollout'] <= summary['seconds/total']
  # Only the first process evaluated the start, if a commit says so.
  assert summary['seconds/evaluate_start'] > 0


@pytest.mark.slow
def test_refilled_groups_end_in_the_same_bits_as_well(tmp_path, monkeypatch):
  config = mini.config(tmp_path / 'in', steps=2, refill_rounds=2)
  lines = _whole_and_cut(config, tmp_path, monkeypatch)
  assert sum(line['groups/dropped'] for line in lines) > 0


@pytest.mark.slow
@pytest.mark.parametrize('temperature', ['0', '1'])
def test_a_run_that_only_samples_ends_in_the_same_records(
  tmp_path, monkeypatch, temperature
):
  config = mini.config(tmp_path / 'in', steps=2)
  config = overrides.override(
    config, [('algorithm', 'none'), ('planner.sampling.temperature', temperature)]
  )
  for line in _whole_and_cut(config, tmp_path, monkeypatch):
    assert line['updates'] == 0 and line['rollouts/scored'] == 9


@pytest.mark.slow
def test_a_planner_that_truncates_ends_in_the_same_bits_as_well(tmp_path, monkeypatch):
  config = mini.config(tmp_path / 'in', steps=2)
  config = overrides.override(
    config,
    [
      ('planner.sampling.top_p', '0.9'),
      ('engine.max_kept', '8'),
      ('flow_grpo.old_logprobs', 'recompute'),
    ],
  )
  lines = _whole_and_cut(config, tmp_path, monkeypatch)
  for line in lines:
    assert 1 < line['kept/mean'] < line['kept/max'] <= 8
    assert line['update/logprob_gap/max'] <= 1e-5
  summary = json.loads((tmp_path / 'whole' / 'summary.json').read_text())
  # Rollouts, and evaluations sampled and greedy.
  assert summary['compiles/after_warmup'] == 0


@pytest.mark.slow
def test_bfloat16_parameters_end_in_the_same_bits_as_well(tmp_path, monkeypatch):
  # Cut after the commit of step 1, which holds the float32 master.
  config = mini.config(tmp_path / 'in', steps=2, checkpoint_every=1)
  config = overrides.override(config, [('planner.param_dtype', 'bfloat16')])
  lines = _whole_and_cut(config, tmp_path, monkeypatch)
  for line in lines:
    assert line['update/logprob_gap/max'] <= 1e-5
    assert line['update/update_norm'] > 0 and line['update/applied_norm'] > 0
  summary = json.loads((tmp_path / 'whole' / 'summary.json').read_text())
  assert summary['compiles/after_warmup'] == 0
  # What is exported is what was sampled from last.
  planner = model_files.load(
    str(tmp_path / 'whole' / 'planner'), param_dtype='bfloat16'
  )
  assert planner.stored_dtype == 'bfloat16'
  assert summary['params_digest'] == host_copies.params_digest(planner.params)


def _whole_and_cut(config, tmp_path, monkeypatch):
  """Holds a run against one cut off in its second step; returns its metrics."""
  run.train(config, str(tmp_path / 'whole'), quiet=True)
  lines = (tmp_path / 'whole' / 'metrics.jsonl').read_text().splitlines()
  calls, original = [], trainer.Trainer.step

  def cut(self, mini_batches):
    calls.append(None)
    if len(calls) == 2:
      raise _Killed
    return original(self, mini_batches)

  with monkeypatch.context() as patch:
    patch.setattr(trainer.Trainer, 'step', cut)
    with pytest.raises(_Killed):
      run.train(config, str(tmp_path / 'cut'), quiet=True)
  assert list((tmp_path / 'cut' / 'journal').iterdir())
  run.train(config, str(tmp_path / 'cut'), quiet=True)
  assert mini.fingerprint(tmp_path / 'cut') == mini.fingerprint(tmp_path / 'whole')
  return [json.loads(line) for line in lines]


@pytest.mark.slow
def test_stopped_in_an_evaluation_a_run_keeps_its_step(whole, tmp_path, monkeypatch):
  """Step 2 is done, its evaluation is not: it is made up for.

  No rollout of step 3 is in the journal: all that follows is sampled from what
  the commit holds.
  """
  config, workdir, _ = whole
  broken = tmp_path / 'out'

  async def stop(unused_self):
    raise exits.Preempted('SIGTERM')

  with monkeypatch.context() as patch:
    patch.setattr(evaluations.Evaluations, 'during', stop)
    with pytest.raises(exits.Preempted):
      run.train(config, str(broken), quiet=True)
  assert (broken / 'checkpoints' / '2').exists()
  assert not list((broken / 'journal').iterdir())
  calls, versions = [], []
  original, evaluate = trainer.Trainer.step, evaluation.evaluate

  async def seen(*args, **kwargs):
    found = await evaluate(*args, **kwargs)
    versions.append(
      {
        turn.completion.params_version
        for g in found.groups
        for t in g.trajectories
        for turn in t.turns
      }
    )
    return found

  monkeypatch.setattr(
    trainer.Trainer, 'step', lambda self, rows: calls.append(1) or original(self, rows)
  )
  monkeypatch.setattr(evaluation, 'evaluate', seen)
  run.train(config, str(broken), quiet=True)
  assert len(calls) == 2  # Steps 3 and 4.
  # Sampled and greedy, after the steps 2 and 4 and of the final planner.
  assert versions[:6] == [{2}, {2}, {4}, {4}, {4}, {4}]
  assert mini.fingerprint(broken) == mini.fingerprint(workdir)


@pytest.mark.slow
def test_another_seed_is_another_run(whole, tmp_path):
  config, workdir, _ = whole
  other = dataclasses.replace(config, seed=1)
  run.train(other, str(tmp_path / 'out'), quiet=True)
  got = mini.fingerprint(tmp_path / 'out')
  wanted = mini.fingerprint(workdir)
  assert got['params_digest'] != wanted['params_digest']
  assert got['step_000001.p0.jsonl.zst'] != wanted['step_000001.p0.jsonl.zst']


def test_a_workdir_whose_config_lacks_newer_fields_goes_on(tmp_path):
  """A field that came later counts as its default, and as nothing else."""
  path = mini.ROOT / 'experiments' / 'quickstart.py'
  config = loading.load(str(path))
  flat = json.loads(json.dumps(overrides.flatten(config), default=str))
  for missing in (
    'train.keep_checkpoints',
    'planner.lora.rank',
    'agent.tools.generalist.backend',
  ):
    older = {k: v for k, v in flat.items() if k != missing}
    (tmp_path / 'config.json').write_text(json.dumps(older))
    resuming.check_same_run(config, tmp_path)
  changed = overrides.override(config, [('agent.tools.generalist.backend', 'endpoint')])
  with pytest.raises(schema.ConfigError, match='is "endpoint", was "none"'):
    resuming.check_same_run(changed, tmp_path)


def test_a_workdir_of_another_config_is_refused(whole):
  config, workdir, _ = whole
  other = overrides.override(
    config,
    [
      ('seed', '9'),
      ('train.group_size', '4'),
      ('optimizer.learning_rate', '1'),
      ('flow_grpo.kl_coef', '0.5'),
      ('planner.max_prompt_tokens', '170'),
      ('agent.rollout.max_turns', '3'),
      ('train.steps', '9'),
    ],
  )
  with pytest.raises(schema.ConfigError) as refused:
    run.train(other, str(workdir), quiet=True)
  said = str(refused.value)
  for name in (
    'seed is 9, was 0',
    'train.group_size',
    'optimizer.learning_rate',
    'flow_grpo.kl_coef',
    'planner.max_prompt_tokens',
    'agent.rollout.max_turns',
  ):
    assert name in said
  # Steps may change, and nobody is told to delete what took hours.
  assert 'train.steps' not in said and 'delete' not in said


@pytest.mark.slow
def test_a_run_that_is_made_longer_is_the_run_that_was_as_long_at_once(
  whole, tmp_path, capsys
):
  config, workdir, _ = whole
  short = overrides.override(
    config,
    [
      ('train.steps', '2'),
      ('evaluation.start_and_final', 'false'),
      ('evaluation.controls', 'false'),
      ('evaluation.every', '0'),
    ],
  )
  run.train(short, str(tmp_path / 'out'))
  longer = overrides.override(
    short,
    [
      ('train.steps', '4'),
      ('engine.decode_chunk', '4'),
      ('name', 'longer'),
      ('evaluation.start_and_final', 'true'),
    ],
  )
  digest = mini.fingerprint(tmp_path / 'out')['params_digest']
  capsys.readouterr()
  run.train(longer, str(tmp_path / 'out'))
  said = capsys.readouterr().err
  assert 'resuming after step 2 of 4' in said
  assert 'from step 3 on train.steps is 4 (it was 2)' in said
  assert 'from step 3 on engine.decode_chunk is 4 (it was 8)' in said
  got, wanted = mini.fingerprint(tmp_path / 'out'), mini.fingerprint(workdir)
  assert got['params_digest'] == wanted['params_digest']
  for name in [n for n in wanted if n.startswith('step_')]:
    assert got[name] == wanted[name]
  lines = (tmp_path / 'out' / 'config_changes.jsonl').read_text().splitlines()
  assert {'from_step': 3, 'field': 'train.steps', 'before': 2, 'now': 4} in map(
    json.loads, lines
  )
  # An evaluation that only the longer run asks for is of where it all began.
  for name in ('start', 'final'):
    assert _items(tmp_path / 'out', name) == _items(workdir, name)
  # What the shorter run ended with is kept, and stands for nothing else.
  kept = tmp_path / 'out' / 'earlier' / 'step_000002_0'
  assert json.loads((kept / 'summary.json').read_text())['params_digest'] == digest
  assert (kept / 'planner' / 'model.safetensors').exists()
  written = json.loads((tmp_path / 'out' / 'config.json').read_text())
  assert written['train.steps'] == 4
  with pytest.raises(schema.ConfigError, match='4 steps are done'):
    run.train(short, str(tmp_path / 'out'), quiet=True)
  run.train(longer, str(tmp_path / 'out'))
  assert 'finished before: 4 of 4 steps' in capsys.readouterr().err


def test_a_planner_behind_an_endpoint_is_never_trained(tmp_path):
  base = mini.config(tmp_path / 'in')
  config = dataclasses.replace(
    base,
    planner=dataclasses.replace(base.planner, backend='endpoint'),
    agent=dataclasses.replace(
      base.agent,
      endpoint=schema.EndpointConfig(base_url='http://127.0.0.1:9/v1', model='m'),
    ),
  )
  with pytest.raises(schema.ConfigError, match='cannot be trained'):
    run.train(config, str(tmp_path / 'trained'))
  assert not (tmp_path / 'trained').exists()


@pytest.mark.slow
def test_a_run_with_extra_rollouts_accounts_for_all_of_them(tmp_path):
  config = mini.config(tmp_path / 'in', steps=2, extra_rollouts=2)
  run.train(config, str(tmp_path / 'out'), quiet=True)
  lines = [
    json.loads(l) for l in (tmp_path / 'out' / 'metrics.jsonl').read_text().splitlines()
  ]
  for line in lines:
    assert line['rollouts/requested'] == 3 * (3 + 2)
    assert line['rollouts/scored'] == 3 * 3
    assert line['rollouts/status/aborted_late'] == 3 * 2
    statuses = [v for k, v in line.items() if k.startswith('rollouts/status/')]
    assert sum(statuses) == 15
