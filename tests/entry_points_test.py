"""The commands, as a user calls them: help, and one clear line for a mistake."""

import http.server
import json
import os
import signal
import subprocess
import sys
import threading

import httpx
import pytest
from etils import epath

from agentflow_jax import records
from agentflow_jax.config import fields
from agentflow_jax.rollouts import rollout_files
from tests.config import mini

_QUICKSTART = 'experiments/quickstart.py'


def _run(module, *flags):
  return subprocess.run(
    [sys.executable, '-m', f'agentflow_jax.{module}', *flags],
    cwd=mini.ROOT,
    capture_output=True,
    text=True,
    check=False,
  )


@pytest.mark.parametrize(
  'module, flag',
  [
    ('train', '--config'),
    ('evaluate', '--config'),
    ('solve', '--config'),
    ('export', '--model'),
    ('serve', '--port'),
    ('trajectories', '--status'),
    ('openenv_tasks', '--reset'),
  ],
)
def test_help_says_what_and_how(module, flag):
  done = _run(module, '--help')
  assert done.returncode == 0 and not done.stderr
  assert f'\n  python -m agentflow_jax.{module}' in done.stdout
  assert f'\n  {flag}=' in done.stdout
  takes_config = module not in ('export', 'trajectories', 'openenv_tasks')
  assert ('--config=VALUE' in done.stdout) == takes_config
  assert ('print_config\n' in done.stdout) == takes_config


def test_the_help_of_a_config_has_every_field_with_its_value():
  done = _run('train', f'--config={_QUICKSTART}', '--config.train.steps=7', '--help')
  assert done.returncode == 0 and not done.stderr
  for name, field in fields.every().items():
    if name.startswith('planner.model.'):  # Which is none there.
      continue
    assert f'\n  --config.{name}=' in done.stdout
    assert field.meaning.split()[0] in done.stdout
  at = done.stdout.index('--config.train.steps=7\n')
  shown = done.stdout[at:].split('\n')[1]
  assert shown.strip().startswith('integer; default 40; number of training steps')


def test_a_printed_config_can_be_given_back(tmp_path):
  flags = ['--config.train.steps=7', '--recording=record', '--print_config']
  done = _run('train', f'--config={_QUICKSTART}', *flags)
  assert done.returncode == 0, done.stderr
  path = tmp_path / 'mine.json'
  path.write_text(done.stdout)
  again = _run('train', f'--config={path}', '--print_config')
  assert again.stdout == done.stdout
  assert json.loads(done.stdout)['train.steps'] == 7
  assert json.loads(done.stdout)['agent.recording'] == 'record'


def test_serve_answers_until_it_is_interrupted():
  flags = [f'--config={_QUICKSTART}', '--port=0', '--name=geo']
  flags += ['--config.engine.max_prompt_tokens=96', '--config.engine.slots=8']
  server = subprocess.Popen(
    [sys.executable, '-m', 'agentflow_jax.serve', *flags],
    cwd=mini.ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  try:
    name, _, url = server.stdout.readline().split()
    assert name == 'geo' and url.startswith('http://127.0.0.1:')
    with httpx.Client(base_url=url, timeout=60) as client:
      answer = client.post(
        '/completions', json={'model': 'geo', 'prompt': 'Query: ', 'max_tokens': 4}
      )
      assert answer.status_code == 200, answer.text
      assert answer.json()['usage']['completion_tokens'] <= 4
    # A port that is taken is one clear line, before any model is loaded.
    port = url.rpartition(':')[2].removesuffix('/v1')
    refused = _run('serve', f'--config={_QUICKSTART}', f'--port={port}')
    assert refused.returncode == 2
    assert f'cannot listen on 127.0.0.1 port {port}' in refused.stderr
    flags.append('--config.mesh.fsdp=2')
    refused = _run('serve', *flags)
    assert refused.returncode == 2
    assert '--config.mesh.fsdp: serving does not read it' in refused.stderr
    server.send_signal(signal.SIGINT)
    assert server.wait(30) == 0
    assert 'Traceback' not in server.stderr.read()
  finally:
    server.kill()
    server.wait()
    server.stdout.close()
    server.stderr.close()


def test_serve_offers_an_environment_until_it_is_interrupted(tmp_path):
  rows = tmp_path / 'rows.jsonl'
  rows.write_text('{"query": "Pay.", "price": 15, "coins": [10, 5]}\n')
  kind = 'experiments/own_environment.py:Till'
  flags = [f'--environment={kind}', f'--config={_QUICKSTART}', '--port=0']
  flags += [
    f'--config.{k}={v}'
    for k, v in {
      'agent.environment.kind': kind,
      'task_set.kind': 'jsonl',
      'task_set.train': rows,
      'task_set.evaluation': rows,
      'task_set.reward': 'environment',
    }.items()
  ]
  server = subprocess.Popen(
    [sys.executable, '-m', 'agentflow_jax.serve', *flags],
    cwd=mini.ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  try:
    said = server.stdout.readline()
    assert said.startswith('Till at http://127.0.0.1:') and '1 tasks' in said
    answer = httpx.post(f'{said.split()[2].rstrip(",")}/reset', timeout=60).json()
    assert 'The price is 15' in answer['observation']['policy']
    server.send_signal(signal.SIGINT)
    assert server.wait(30) == 0
    assert 'Traceback' not in server.stderr.read()
  finally:
    server.kill()
    server.wait()
    server.stdout.close()
    server.stderr.close()


def test_trajectories_prints_text_or_json_lines(tmp_path):
  task = records.Task('a', 'Why?', ('42',), 'f1')
  lost = records.Trajectory('a', 0, records.Status.DEADLINE, (), reward=1 / 3)
  path = epath.Path(tmp_path) / 'rollouts' / 'step_000002.p0.jsonl.zst'
  rollout_files.write(path, [records.Group(task, (lost,) * 3)])
  done = _run('trajectories', f'--workdir={tmp_path}', '--limit=1')
  assert done.returncode == 0, done.stderr
  assert done.stdout.startswith('== step 2, task a, rollout 0: deadline')
  assert done.stdout.endswith('1 of 3 rollouts that fit; --limit=3 shows all\n')
  done = _run('trajectories', f'--workdir={tmp_path}', '--jsonl', '--reward=0.333333')
  assert [json.loads(line)['query'] for line in done.stdout.splitlines()] == [
    'Why?'
  ] * 3


@pytest.mark.slow
def test_the_benchmark_of_sampling_measures_both_engines(tmp_path):
  out = tmp_path / 'out.json'
  done = subprocess.run(
    [
      sys.executable,
      'experiments/benchmarks/generate.py',
      '--model=tiny',
      '--requests=4',
      '--group_size=2',
      '--turns=2',
      '--prompt_len=64',
      '--shared_prefix=32',
      '--memory_len=16',
      '--new_tokens=4',
      '--slots=4',
      '--piece_tokens=16',
      '--tool_latency=fixed:0',
      '--score=2',
      f'--out={out}',
    ],
    cwd=mini.ROOT,
    capture_output=True,
    text=True,
    check=True,
    timeout=300,
  )
  found = json.loads(out.read_text())
  assert json.loads(done.stdout) == found
  paged, simple = found['paged'], found['simple']
  # Cards, two queries, the tail behind them, and memory and tail of each rollout.
  assert paged['unique_prompt_tokens'] == 32 + 2 * (24 + 8) + 4 * (16 + 8)
  assert paged['prefill_tokens'] < simple['prefill_tokens'] / 2
  assert paged['compilations'] == 0 < paged['decode_steps']
  assert paged['logprob_gap']['max'] < 1e-4
  for name in (
    'prefix_hit_rate',
    'slots_used',
    'pages_used',
    'device_idle_share',
    'prefill_share_of_matmul_peak',
    'prefill_share_of_bandwidth',
    'decode_share_of_matmul_peak',
    'decode_share_of_bandwidth',
  ):
    assert 0 <= paged[name] <= 1
  for name in ('queue_seconds', 'first_token_seconds', 'seconds_over_unique'):
    assert paged[name] > 0
  assert {paged['prefill_limit'], paged['decode_limit']} <= {'matmul_peak', 'bandwidth'}
  assert found['times_the_rollouts_per_minute'] == pytest.approx(
    simple['seconds'] / paged['seconds']
  )


class _Completions(http.server.BaseHTTPRequestHandler):
  """Says that it wrote as many tokens as it was asked for."""

  protocol_version, asked = 'HTTP/1.1', []

  def do_GET(self):
    self._answer({'data': [{'id': 'it'}]})

  def do_POST(self):
    body = json.loads(self.rfile.read(int(self.headers['Content-Length'])))
    self.asked.append(body)
    self._answer({'usage': {'completion_tokens': body['max_tokens']}})

  def _answer(self, value):
    data = json.dumps(value).encode()
    self.send_response(200)
    self.send_header('Content-Length', str(len(data)))
    self.end_headers()
    self.wfile.write(data)

  def log_message(self, *unused):
    pass


@pytest.mark.slow
def test_the_benchmark_of_sampling_gives_servers_the_same_work():
  with http.server.ThreadingHTTPServer(('127.0.0.1', 0), _Completions) as server:
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f'http://127.0.0.1:{server.server_address[1]}/v1'
    done = subprocess.run(
      [
        sys.executable,
        'experiments/benchmarks/generate.py',
        '--model=tiny',
        '--requests=4',
        '--group_size=2',
        '--turns=2',
        '--prompt_len=64',
        '--shared_prefix=32',
        '--memory_len=16',
        '--new_tokens=4',
        '--slots=4',
        '--tool_latency=fixed:0',
        '--repeats=2',
        f'--servers=a={url},b={url}',
      ],
      cwd=mini.ROOT,
      capture_output=True,
      text=True,
      check=True,
      timeout=300,
    )
    server.shutdown()
  found = json.loads(done.stdout)
  assert {k: len(v) for k, v in found['seconds'].items()} == {
    'paged': 2,
    'a': 2,
    'b': 2,
    'simple': 2,
  }
  assert set(found['times']) == {'a', 'b', 'simple'}
  assert found['settings'].startswith('engine.lanes=1')
  asked = [tuple(b['prompt']) for b in _Completions.asked if b['max_tokens'] == 4]
  assert len(asked) == 2 * 2 * 8
  # Each server is asked the same in a repeat, and something else in the next one.
  assert set(asked[:8]) == set(asked[8:16]) and not set(asked[:8]) & set(asked[16:])


def test_export_writes_the_shipped_planner(tmp_path):
  out = tmp_path / 'out'
  done = _run('export', '--model=experiments/geohop_planner', f'--out={out}')
  assert done.returncode == 0, done.stderr
  assert '459,520 parameters in float32' in done.stdout
  for name in ('model.safetensors', 'tokenizer.model'):
    shipped = mini.ROOT / 'experiments' / 'geohop_planner' / name
    assert (out / name).read_bytes() == shipped.read_bytes()


@pytest.mark.slow
def test_solve_shows_the_steps_and_the_answer(tmp_path):
  config = mini.config(tmp_path / 'in')
  done = _run(
    'solve',
    f'--config={_QUICKSTART}',
    f'--workdir={tmp_path}',
    '--query=What is the capital of Spain?',
    '--config.task_set.kind=jsonl',
    '--config.task_set.train=/nowhere/tasks.jsonl',  # Nothing reads them.
    '--config.task_set.evaluation=/nowhere/tasks.jsonl',
    f'--config.agent.tools.corpus={config.agent.tools.corpus}',
  )
  assert done.returncode == 0, done.stderr
  assert not (tmp_path / 'data').exists()  # No data set is built, either.
  assert 'Query: What is the capital of Spain?' in done.stdout
  assert 'Sub-Goal:' in done.stdout and 'Answer: ' in done.stdout
  assert 'passages indexed' not in done.stderr  # Only --verbosity=0 tells.
  assert 'python: programs run in ' in done.stdout
  # A planner that cannot say what is wanted: no answer, and what to change.
  flags = [f for f in done.args[3:] if 'query' not in f]
  done = _run(
    'solve', *flags, '--query=Why?', '--config.planner.sampling.max_new_tokens=1'
  )
  assert done.returncode == 1, done.stderr
  assert 'Answer: none  (truncated_response)' in done.stdout
  assert 'planner.sampling.max_new_tokens is 1; raise it' in done.stdout


def test_evaluate_writes_what_it_prints(tmp_path):
  config = mini.config(tmp_path / 'in')
  done = _run(
    'evaluate',
    f'--config={_QUICKSTART}',
    f'--workdir={tmp_path}',
    '--planner=experiments/geohop_planner',
    '--limit=3',
    '--greedy',
    '--name=mine',
    '--config.task_set.kind=jsonl',
    f'--config.task_set.train={config.task_set.train}',
    f'--config.task_set.evaluation={config.task_set.evaluation}',
    f'--config.agent.tools.corpus={config.agent.tools.corpus}',
  )
  assert done.returncode == 0, done.stderr
  value = json.loads((tmp_path / 'evaluations' / 'mine.json').read_text())
  assert value['items_requested'] == 3
  assert f'accuracy {value["accuracy"]:.1%}' in done.stdout


def test_the_table_of_queues_compares_runs_of_one_seed(tmp_path):
  """Two seeds with and without a queue; two evaluations of 100 rollouts each."""

  def write(way, seed, accuracies, size, refill=0):
    directory = tmp_path / f'{way}{seed}'
    directory.mkdir()
    (directory / 'config.json').write_text(
      json.dumps({'queue.size': size, 'train.refill_rounds': refill, 'seed': seed})
    )
    (directory / 'summary.json').write_text(
      json.dumps({'eval/accuracy_final': accuracies[-1]})
    )
    (directory / 'metrics.jsonl').write_text(
      ''.join(
        json.dumps(
          {
            'step': i + 1,
            'rollouts/requested': 100,
            'eval/accuracy': accuracy,
            'queue/reused': 3 if size else 0,
          }
        )
        + '\n'
        for i, accuracy in enumerate(accuracies)
      )
    )

  write('queue', 0, [0.8, 0.9], 64)
  write('queue', 1, [0.5, 0.85], 64)
  write('without', 0, [0.6, 0.8], 0)
  write('without', 1, [0.7, 0.75], 0)
  program = 'experiments/benchmarks/sample_queue.py'
  done = subprocess.run(
    [sys.executable, program, f'--sweep={tmp_path}', f'--out={tmp_path}/out'],
    cwd=mini.ROOT,
    capture_output=True,
    text=True,
    check=False,
    env=os.environ | {'PYTHONPATH': str(mini.ROOT)},
  )
  assert done.returncode == 0, done.stderr
  queue, without = done.stdout.splitlines()[1:]
  assert queue.split() == [
    'queue',
    '2',
    '150',
    '(2)',
    '2',
    'of',
    '2',
    '82.5%',
    '87.5%',
    '+10.0%',
    '(low',
    '+10.0%)',
    '12',
  ]
  assert without.split()[:5] == ['without', '2', '200', '(1)', '0']
  figures = json.loads((tmp_path / 'out').read_text())
  assert figures['without']['at_equal'] == pytest.approx((0.6 + 0.75) / 2)


@pytest.mark.slow
def test_the_quickstart_ends_in_the_same_bits_over_the_endpoint(tmp_path):
  program = 'experiments/benchmarks/served_quickstart.py'
  flags = ('train.queries_per_step=4', 'train.group_size=4')
  done = subprocess.run(
    [
      sys.executable,
      program,
      f'--workdir={tmp_path}',
      '--steps=2',
      *(f'--config.{one}' for one in flags),
    ],
    cwd=mini.ROOT,
    capture_output=True,
    text=True,
    check=False,
    env=os.environ | {'PYTHONPATH': str(mini.ROOT)},
  )
  assert done.returncode == 0, done.stdout + done.stderr
  assert 'all runs did the same work: params_digest ' in done.stdout
  updates = [
    json.loads((tmp_path / side / 'metrics.jsonl').read_text().splitlines()[-1])
    for side in ('inside_0', 'served_0')
  ]
  assert updates[0]['batch/tokens'] == updates[1]['batch/tokens'] > 0
