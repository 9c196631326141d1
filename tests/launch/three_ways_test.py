"""The comparison of prompting, supervised training and Flow-GRPO."""

import importlib.util
import json
import subprocess
import sys

import pytest

from tests.config import mini

_PATH = mini.ROOT / 'launch' / 'three_ways.py'
_spec = importlib.util.spec_from_file_location('three_ways', _PATH)
three_ways = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(three_ways)


def _summary(gain: float, rollouts: int) -> dict:
  values = {'rollouts/requested': rollouts, 'params_digest': 'd'}
  for suffix in ('', '_greedy'):
    for end, by in (('', 0.0), ('/ci_low', -0.1), ('/ci_high', 0.1)):
      values[f'eval/accuracy_final{suffix}{end}'] = 0.5 + gain + by
      values[f'eval/gain{suffix}{end}'] = gain + by
  return values


@pytest.fixture(name='ran')
def _ran(monkeypatch):
  """The commands that were run; each writes a summary at once."""
  commands = []

  def run(command, **_):
    if '--print_config' in command:
      return subprocess.CompletedProcess(command, int('--config.bad=1' in command))
    commands.append(command)
    (workdir,) = [c.partition('=')[2] for c in command if c.startswith('--workdir=')]
    way = workdir.rpartition('/')[2]
    said = _summary(
      {'prompting': 0.0, 'supervised': 0.1, 'flow_grpo': 0.3}[way],
      0 if way == 'supervised' else 48,
    )
    if '--config.fails=1' in command:
      return subprocess.CompletedProcess(command, 3)
    path = mini.pathlib.Path(workdir)
    path.mkdir(parents=True)
    (path / 'summary.json').write_text(json.dumps(said))
    return subprocess.CompletedProcess(command, 0)

  monkeypatch.setattr(three_ways.subprocess, 'run', run)
  return commands


def _main(monkeypatch, *flags):
  monkeypatch.setattr(sys, 'argv', ['three_ways.py', '--config=c.py', *flags])
  return three_ways.main()


def test_each_way_gets_its_fields_and_is_run_once(ran, monkeypatch, tmp_path, capsys):
  flags = (
    f'--workdir={tmp_path}',
    '--seeds=2',
    '--config.task_set.test_items=9',
    '--sampling.train.group_size=4',
    '--supervised.sft.rows_per_step=8',
    '--flow_grpo.train.steps=3',
  )
  assert _main(monkeypatch, *flags) == 0
  assert len(ran) == 6
  prompting, supervised, flow = ran[:3]
  assert '--config.algorithm=none' in prompting
  assert {
    '--config.algorithm=sft',
    '--config.sft.rows_per_step=8',
    f'--config.sft.rollouts={tmp_path}/seed_0/prompting',
  } <= {*supervised}
  for command, has in ((prompting, True), (supervised, False), (flow, True)):
    assert ('--config.train.group_size=4' in command) == has
    assert '--config.task_set.test_items=9' in command
    assert ('--config.train.steps=3' in command) == (command is flow)
  assert '--config.seed=1' in ran[3]
  rows = json.loads((tmp_path / 'three_ways.json').read_text())
  # Supervised training learns from the rollouts of prompting.
  assert [row['rollouts'] for row in rows] == [48] * 6
  shown = capsys.readouterr().out
  assert '+30.0 points [+20.0, +40.0]' in shown and '80.0% [70.0, 90.0]' in shown
  assert _main(monkeypatch, *flags) == 0 and len(ran) == 6
  with pytest.raises(SystemExit, match='holds flow_grpo, seed 0 with other flags'):
    _main(monkeypatch, *flags[:-1], '--flow_grpo.train.steps=4')
  assert len(ran) == 6


def test_a_way_that_fails_leaves_the_others(ran, monkeypatch, tmp_path, capsys):
  code = _main(monkeypatch, f'--workdir={tmp_path}', '--supervised.fails=1')
  assert code == 3 and len(ran) == 3
  shown = capsys.readouterr()
  assert 'error: supervised, seed 0, ended with 3' in shown.err
  lines = shown.out.splitlines()
  assert lines[-2].split() == ['supervised', '0', '-', '-', '-', '-']
  assert lines[-1].startswith('flow_grpo')


def test_flags_that_one_way_refuses_are_refused_before_any_run(
  ran, monkeypatch, tmp_path
):
  with pytest.raises(SystemExit, match='flow_grpo would refuse'):
    _main(monkeypatch, f'--workdir={tmp_path}', '--flow_grpo.bad=1')
  assert not ran


@pytest.mark.parametrize('flag', ['--steps=3', '--config.x', '--other.a=b', 'x'])
def test_a_flag_of_no_way_is_refused(ran, monkeypatch, tmp_path, capsys, flag):
  with pytest.raises(SystemExit) as ended:
    _main(monkeypatch, f'--workdir={tmp_path}', flag)
  assert ended.value.code == 2 and not ran
  assert f'unknown flag {flag}' in capsys.readouterr().err


def test_runs_without_both_evaluations_are_named(ran, monkeypatch, tmp_path):
  (tmp_path / 'seed_0' / 'prompting').mkdir(parents=True)
  (tmp_path / 'seed_0' / 'prompting' / 'summary.json').write_text(
    '{"rollouts/requested": 3}'
  )
  with pytest.raises(SystemExit, match='prompting, seed 0.*start_and_final must be'):
    _main(monkeypatch, f'--workdir={tmp_path}')
  assert not ran


@pytest.mark.slow
def test_three_ways_of_a_small_run(tmp_path):
  """About a minute: real runs of the quickstart, whose sizes are cut."""
  done = subprocess.run(
    [
      sys.executable,
      str(_PATH),
      '--config=experiments/quickstart.py',
      f'--workdir={tmp_path}',
      '--config.train.steps=2',
      '--config.task_set.validation_items=8',
      '--config.task_set.test_items=40',
      '--config.evaluation.controls=false',
      '--config.evaluation.every=0',
      '--sampling.train.queries_per_step=8',
      '--sampling.train.group_size=4',
      '--supervised.sft.rows_per_step=32',
    ],
    cwd=mini.ROOT,
    check=False,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr[-2000:]
  rows = json.loads((tmp_path / 'three_ways.json').read_text())
  assert [row['way'] for row in rows] == ['prompting', 'supervised', 'flow_grpo']
  assert [row['rollouts'] for row in rows] == [64] * 3
  assert rows[0]['gain'] == [0.0, 0.0, 0.0]
  assert len({row['params_digest'] for row in rows}) == 3
