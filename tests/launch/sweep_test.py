"""Sweeps: which runs, in which order, and the page that they end in."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest

_ROOT = pathlib.Path(__file__).parents[2]
# Stands for a launcher: does what the train program leaves, or fails.
_LAUNCHER = """
import json, pathlib, sys
flags = dict(f.lstrip('-').split('=', 1) for f in sys.argv[1:])
workdir = pathlib.Path(flags['workdir'])
workdir.mkdir(parents=True, exist_ok=True)
config = {k.removeprefix('config.'): v for k, v in flags.items() if '.' in k}
(workdir / 'config.json').write_text(json.dumps(config))
mark = workdir / 'tried'
if flags.get('config.kl') == '1' and not mark.exists():
  mark.touch()
  sys.exit(75)
score = int(config['seed']) / 10 + float(config['kl'])
with open(workdir / 'metrics.jsonl', 'w') as f:
  for step in (1, 2):
    f.write(json.dumps({'step': step, 'reward/mean': score * step}) + '\\n')
(workdir / 'summary.json').write_text(json.dumps({'eval/accuracy_final': score}))
"""


@pytest.fixture(name='config')
def _config(tmp_path):
  path = tmp_path / 'six.py'
  path.write_text(
    'from agentflow_jax.config import sweep\n'
    'def get_config(): ...\n'
    'def get_sweep():\n'
    "  return sweep.grid({'kl': [0, 1], 'seed': [0, 1, 2]})\n"
  )
  (tmp_path / 'launcher.py').write_text(_LAUNCHER)
  return path


def _launch(program, *flags):
  return subprocess.run(
    [sys.executable, str(_ROOT / 'launch' / program), *flags],
    cwd=_ROOT,
    capture_output=True,
    text=True,
    check=False,
  )


def test_the_commands_are_printed(config):
  done = _launch('sweep.py', f'--config={config}', '--', '--config.train.steps=3')
  assert done.returncode == 0, done.stderr
  lines = done.stdout.splitlines()
  assert len(lines) == 6
  assert lines[1] == (
    f'python -m agentflow_jax.train --config={config}'
    ' --workdir=runs/sweeps/six/kl=0,seed=1 --config.kl=0 --config.seed=1'
    ' --config.train.steps=3'
  )


def test_a_shipped_config_is_named_as_elsewhere():
  by_name = _launch('sweep.py', '--config=ablations', '--only=seed=0')
  by_path = _launch('sweep.py', '--config=experiments/ablations.py', '--only=seed=0')
  assert by_name.returncode == 0, by_name.stderr
  assert by_name.stdout == by_path.stdout
  assert '--workdir=runs/sweeps/ablations/' in by_name.stdout
  seeds = _launch('sweep.py', '--config=quickstart').stdout.splitlines()
  assert [line.partition('--config.')[2] for line in seeds] == [
    f'seed={i}' for i in range(5)
  ]


def test_a_launcher_is_given_a_name_that_clouds_take(config, tmp_path):
  told = tmp_path / 'told'
  script = tmp_path / 'launcher.sh'
  script.write_text(f'echo "$1 $JAX_COMPILATION_CACHE_DIR" >>{told}')
  flags = (f'--config={config}', f'--workdir={tmp_path}/Out')
  submit = f'--submit=bash {script} --name={{name}}'
  environment = {k: v for k, v in os.environ.items() if not k.startswith('JAX_COMP')}
  done = subprocess.run(
    [sys.executable, str(_ROOT / 'launch' / 'sweep.py'), *flags, submit],
    cwd=_ROOT,
    env=environment,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  names, caches = zip(*(line.split() for line in told.read_text().splitlines()))
  assert len({*names}) == 6
  for name in names:
    assert re.fullmatch(r'--name=six-kl-[01]-seed-[012]-[0-9a-f]{6}', name)
  # All runs share what they compile.
  assert {*caches} == {f'{tmp_path}/Out/xla_cache'}


def test_what_is_done_is_skipped_and_what_failed_is_tried_again(config, tmp_path):
  flags = (
    f'--config={config}',
    f'--workdir={tmp_path}/out',
    f'--submit={sys.executable} {tmp_path}/launcher.py',
  )
  first = _launch('sweep.py', *flags)
  assert first.returncode == 1
  assert '3 of 6 failed' in first.stdout
  again = _launch('sweep.py', *flags)
  assert again.returncode == 0
  assert again.stdout.count('done before') == 3
  assert again.stdout.count('submitting') == 3


def test_one_table_and_one_page(config, tmp_path):
  flags = (
    f'--config={config}',
    f'--workdir={tmp_path}/out',
    f'--submit={sys.executable} {tmp_path}/launcher.py',
  )
  _launch('sweep.py', *flags, '--only=kl=0|seed=0')
  done = _launch('collect.py', f'--sweep={tmp_path}/out')
  assert done.returncode == 0, done.stderr
  rows = [re.split(r'  +', line.strip()) for line in done.stdout.splitlines()[:4]]
  assert rows[0] == ['kl', 'runs done', 'eval/accuracy_final', '95% over seeds']
  # 0, 0.1, 0.2: mean 0.1, sd 0.1, t of two degrees 4.303: 0.248 over sqrt(3).
  assert rows[2] == ['0', '3 of 3', '10.0%', '[-14.8, 34.8]']
  assert rows[3] == ['1', '0 of 1', '-']
  page = (tmp_path / 'out' / 'sweep.html').read_text()
  assert page.count('<svg') == 4  # kl and seed, wide and for a telephone.
  assert 'http://' not in page and 'https://' not in page and '<script' not in page
  assert 'Student’s t over the seeds' in page


@pytest.mark.parametrize(
  'program, flags, message',
  [
    ('sweep.py', ['--config=none.py'], 'no file none.py'),
    ('sweep.py', ['--config=quickstrat'], "'quickstrat' is neither a file nor"),
    ('sweep.py', ['--config=geohop_warm_start'], 'has no get_sweep()'),
    (
      'sweep.py',
      ['--config=experiments/ablations.py', '--submit=no_such_launcher'],
      'cannot run no_such_launcher',
    ),
    ('collect.py', ['--sweep=nowhere'], 'no run below it'),
  ],
)
def test_a_mistake_is_one_clear_line(program, flags, message):
  done = _launch(program, *flags)
  assert done.returncode != 0
  assert message in done.stderr and len(done.stderr.splitlines()) == 1


def test_json_of_a_torn_line_is_left_out(tmp_path):
  run = tmp_path / 'sweep' / 'seed=0'
  run.mkdir(parents=True)
  (run / 'config.json').write_text(json.dumps({'seed': 0}))
  (run / 'metrics.jsonl').write_text('{"step": 1, "reward/mean": 0.5}\n{"st')
  done = _launch('collect.py', f'--sweep={tmp_path}/sweep')
  assert done.returncode == 0, done.stderr
  assert '0 of 1' in done.stdout


_SMALL = """
import dataclasses, pathlib
from agentflow_jax.config import schema as c

def get_config():
  base = c.load_module('experiments/quickstart.py').get_config()
  return dataclasses.replace(
      base,
      task_set=dataclasses.replace(
          base.task_set, validation_items=8, test_items=8
      ),
      train=c.TrainConfig(
          steps=3, queries_per_step=3, group_size=3, checkpoint_every=1
      ),
      evaluation=c.EvaluationConfig(every=0, controls=False),
  )

def get_sweep():
  return c.sweep.grid({'flow_grpo.kl_coef': [0, 0.01], 'seed': [0, 1, 2]})
"""


@pytest.mark.slow
def test_six_real_runs_killed_in_the_second_and_started_again(tmp_path):
  (tmp_path / 'small.py').write_text(_SMALL)
  out = tmp_path / 'out'
  flags = [
    sys.executable,
    str(_ROOT / 'launch' / 'sweep.py'),
    f'--config={tmp_path / "small.py"}',
    f'--workdir={out}',
    '--run',
    '--',
    '--quiet',
  ]
  second = out / 'flow_grpo.kl_coef=0,seed=1'
  with open(tmp_path / 'log', 'wb') as log:
    sweep = subprocess.Popen(
      flags, cwd=_ROOT, stdout=log, stderr=log, start_new_session=True
    )
    deadline = time.monotonic() + 300
    while not (second / 'checkpoints' / '1').exists():
      assert time.monotonic() < deadline and sweep.poll() is None
      time.sleep(0.05)
    os.killpg(sweep.pid, signal.SIGKILL)
    sweep.wait()
  assert not (second / 'summary.json').exists()
  again = subprocess.run(flags, cwd=_ROOT, capture_output=True, text=True, check=False)
  assert again.returncode == 0, again.stderr
  assert again.stdout.count('done before') == 1
  done = _launch('collect.py', f'--sweep={out}')
  assert done.returncode == 0, done.stderr
  assert done.stdout.count('3 of 3') == 2
  lines = (second / 'metrics.jsonl').read_text().splitlines()
  assert [json.loads(line)['step'] for line in lines] == [1, 2, 3]
  page = (out / 'sweep.html').read_text()
  assert page.count('<svg') == 4
  # Each run has a report, which the page links to.
  assert page.count('/report.html">') == 6


# Stands for agentflow_jax.evaluate: leaves a result, or is cut off once.
_EVALUATE = """
import json, pathlib, sys
flags = dict(f.lstrip('-').split('=', 1) for f in sys.argv[1:])
turns = int(flags['config.turns'])
results = pathlib.Path(flags['workdir']) / 'evaluations'
journal = results / 'journal' / 'x'
(results / '..' / 'starts').open('a').write('.') if results.exists() else None
journal.mkdir(parents=True, exist_ok=True)
if turns == 5 and not (results / 'cut').exists():
  (results / 'cut').touch()
  sys.exit(75)
for name in ('aime24', '2wiki'):
  (results / f'{name}.json').write_text(json.dumps({
      'config': {'turns': turns, 'kind': 'x'}, 'accuracy': turns / 10,
      'accuracy_over_requested': turns / 20,
      'ci_low': turns / 10 - 0.1, 'ci_high': turns / 10 + 0.1,
      'items_scored': 4, 'turns_mean': turns / 2}))
journal.rmdir()
"""


def test_a_sweep_of_evaluations_ends_in_a_table_and_pictures(tmp_path):
  config = tmp_path / 'turns.py'
  config.write_text(
    'from agentflow_jax.config import sweep\n'
    'def get_config(): ...\n'
    'def get_sweep():\n'
    "  return sweep.grid({'turns': [3, 5, 10]})\n"
  )
  (tmp_path / 'evaluate.py').write_text(_EVALUATE)
  flags = [f'--config={config}', f'--workdir={tmp_path}/out', '--program=evaluate']
  done = _launch('sweep.py', *flags)
  assert 'python -m agentflow_jax.evaluate --config=' in done.stdout
  submit = f'--submit={sys.executable} {tmp_path}/evaluate.py'
  first = _launch('sweep.py', *flags, submit)
  assert first.returncode == 1 and 'turns=5' in first.stdout.splitlines()[-1]
  second = _launch('sweep.py', *flags, submit)
  assert second.returncode == 0
  assert second.stdout.count('done before') == 2  # The one cut off goes on.
  page = _launch('collect.py', f'--sweep={tmp_path}/out')
  assert page.returncode == 0, page.stderr
  rows = [line.split() for line in page.stdout.splitlines()]
  assert rows[0][:2] == ['evaluation', 'turns']
  assert rows[0][-2:] == ['over', 'requested']
  assert ['aime24', '5', '1', 'of', '1', '50.0%', '25.0%'] in rows
  assert ['2wiki', '10', '1', 'of', '1', '100.0%', '50.0%'] in rows
  html = (tmp_path / 'out' / 'sweep.html').read_text()
  assert html.count('<svg') == 2 and 'Accuracy and turns by turns' in html


def test_a_reader_that_stops_reading_is_no_error():
  reading, writing = os.pipe()
  os.close(reading)
  with os.fdopen(writing, 'w') as output:
    done = subprocess.run(
      [sys.executable, str(_ROOT / 'launch' / 'sweep.py'), '--config=quickstart'],
      stdout=output,
      stderr=subprocess.PIPE,
      text=True,
      check=False,
    )
  assert (done.returncode, done.stderr) == (-signal.SIGPIPE, '')
