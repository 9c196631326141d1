"""Launchers of pods and nodes: the commands that they would run."""

import pathlib
import re
import shutil
import subprocess
import sys

import pytest

_ROOT = pathlib.Path(__file__).parents[2]
_LAUNCH = _ROOT / 'launch'


def _run(script, *arguments, **options):
  return subprocess.run(
    ['bash', str(_LAUNCH / script), *arguments],
    capture_output=True,
    text=True,
    check=False,
    stdin=subprocess.DEVNULL,
    **options,
  )


def _printed(script, *arguments):
  done = _run(script, *arguments)
  assert done.returncode == 0, done.stderr
  return done.stdout.splitlines()


@pytest.mark.skipif(
  shutil.which('shellcheck') is None, reason='shellcheck is not installed'
)
def test_shellcheck_finds_nothing():
  scripts = [*_LAUNCH.glob('*.sh'), *_LAUNCH.glob('*.sbatch'), _ROOT / '.ci/run']
  assert len(scripts) >= 8
  done = subprocess.run(
    [
      'shellcheck',
      '--shell=bash',
      '--external-sources',
      f'--source-path={_LAUNCH}',
      *map(str, scripts),
    ],
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
  'script',
  ['tpu_vm.sh', 'gke.sh', 'gpu_node.sh', 'setup_host.sh', 'retry.sh', 'slurm.sbatch'],
)
def test_help_is_the_header(script):
  said = _printed(script, '--help')
  assert any(f'launch/{script}' in line for line in said)
  assert not any(line.startswith(('#', 'set ')) for line in said)


_VM = ('--name=n', '--zone=z', '--dry_run')
_SSH = 'gcloud compute tpus tpu-vm ssh n --zone=z'


def test_a_slice_is_asked_for():
  assert _printed('tpu_vm.sh', 'create', *_VM, '--type=v5p-32', '--spot') == [
    'gcloud compute tpus queued-resources create n --node-id=n --zone=z'
    ' --accelerator-type=v5p-32 --runtime-version=v2-alpha-tpuv5 --spot '
  ]
  (said,) = _printed(
    'tpu_vm.sh', 'create', *_VM, '--type=v5litepod-64', '--project=p', '--runtime=mine'
  )
  assert '--project=p' in said and '--runtime-version=mine' in said


def test_every_worker_gets_the_commit_and_starts_the_run():
  said = _printed(
    'tpu_vm.sh',
    'run',
    *_VM,
    '--secret=API_KEY',
    '--',
    '--config=experiments/x.py',
    '--workdir=gs://b/r',
    '--config.name=a b',
  )
  archive, copy, python, install, start = said
  assert 'python3.11' in python
  assert re.match(r'git -C \S+ archive --format=tar.gz --output=\S+ HEAD', archive)
  assert copy.startswith('gcloud compute tpus tpu-vm scp ')
  assert '--worker=all' in copy
  # What a shell on the worker is given, unquoted by a shell.
  install, start = (
    subprocess.run(
      ['bash', '-c', f'printf "%s\\n" {line}'],
      capture_output=True,
      text=True,
      check=True,
    ).stdout
    for line in (install, start)
  )
  assert 'launch/setup_host.sh --accelerator=tpu' in install
  assert '--worker=all' in start
  assert (
    'export API_KEY="$(gcloud secrets versions access latest'
    ' --secret=API_KEY)"' in start
  )
  assert (
    'bash launch/retry.sh -- $HOME/agentflow_venv/bin/python -m'
    ' agentflow_jax.train --distributed=on --config=experiments/x.py'
    ' --workdir=gs://b/r --config.name=a\\ b >' in start
  )


def test_it_is_looked_after():
  assert _printed('tpu_vm.sh', 'status', *_VM) == [
    'gcloud compute tpus queued-resources describe n --zone=z'
    ' --format=value\\(state.state\\) '
  ]
  (logs,) = _printed('tpu_vm.sh', 'logs', *_VM)
  assert logs.startswith(f'{_SSH} --worker=0') and 'train.log' in logs
  (stop,) = _printed('tpu_vm.sh', 'stop', *_VM)
  assert stop.startswith(f'{_SSH} --worker=all')
  (delete,) = _printed('tpu_vm.sh', 'delete', *_VM)
  assert 'queued-resources delete n --zone=z --force --quiet' in delete


_GKE = (
  'run',
  '--name=n',
  '--image=i:1',
  '--accelerator=tpu-v5p-slice',
  '--topology=2x2x4',
  '--dry_run',
)


def test_a_jobset_starts_again_but_for_what_is_final():
  yaml = pytest.importorskip('yaml')
  text = '\n'.join(
    _printed(
      'gke.sh',
      *_GKE,
      '--slices=2',
      '--secret=keys',
      '--',
      '--workdir=gs://b/r',
      '--config.name=say "a: b"',
    )
  )
  jobset = yaml.safe_load(text)['spec']
  assert jobset['failurePolicy']['maxRestarts'] == 20
  (slices,) = jobset['replicatedJobs']
  job = slices['template']['spec']
  assert slices['replicas'] == 2
  assert job['parallelism'] == job['completions'] == 4  # 16 chips, 4 a host.
  (rule,) = job['podFailurePolicy']['rules']
  assert rule['action'] == 'FailJob' and rule['onExitCodes']['values'] == [2, 3]
  pod = job['template']['spec']
  (container,) = pod['containers']
  assert container['args'] == [
    '--distributed=on',
    '--workdir=gs://b/r',
    '--config.name=say "a: b"',
  ]
  assert container['envFrom'] == [{'secretRef': {'name': 'keys'}}]
  assert container['resources']['limits'] == {'google.com/tpu': 4}
  assert pod['nodeSelector']['cloud.google.com/gke-tpu-topology'] == '2x2x4'


def test_a_jobset_is_looked_after_and_its_image_built():
  assert _printed('gke.sh', 'status', '--name=n', '--dry_run') == [
    'kubectl get jobset n '
  ]
  assert _printed('gke.sh', 'delete', '--name=n', '--dry_run') == [
    'kubectl delete jobset n '
  ]
  (logs,) = _printed('gke.sh', 'logs', '--name=n', '--dry_run')
  assert 'jobset-name=n' in logs
  build, push = _printed('gke.sh', 'build', '--image=i:1', '--dry_run')
  assert 'launch/Dockerfile' in build and push == 'docker push i:1 '


def test_a_node_is_one_process():
  *_, alone = _printed('gpu_node.sh', '--dry_run', '--', '--workdir=w')
  assert alone.endswith('-m agentflow_jax.train --workdir=w ')
  install, one = _printed(
    'gpu_node.sh',
    '--dry_run',
    '--nodes=4',
    '--node=2',
    '--coordinator=h:1',
    '--',
    '--workdir=w',
  )
  assert install.endswith('setup_host.sh --accelerator=gpu ')
  assert '--coordinator=h:1 --num_processes=4 --process_id=2 --workdir=w' in one


def test_slurm_starts_a_process_a_node():
  (said,) = _printed('slurm.sbatch', '--dry_run', '--workdir=w')
  assert said.startswith('srun --kill-on-bad-exit=1')
  assert said.endswith('-m agentflow_jax.train --workdir=w ')
  options = (_LAUNCH / 'slurm.sbatch').read_text()
  assert '#SBATCH --requeue' in options and '#SBATCH --signal=TERM@' in options


@pytest.mark.parametrize(
  'arguments, message',
  [
    (('tpu_vm.sh', 'fly'), 'unknown action fly'),
    (('tpu_vm.sh', 'create', '--zone=z'), '--name is missing'),
    (('tpu_vm.sh', 'create', *_VM), '--type is missing'),
    (('tpu_vm.sh', 'create', *_VM, '--type=v9-8'), '--runtime is missing'),
    (('tpu_vm.sh', 'run', *_VM), 'flags are missing'),
    (('tpu_vm.sh', 'run', '--nmae=n'), 'unknown argument --nmae=n'),
    (('gke.sh', 'run', '--name=n', '--', 'x'), '--image is missing'),
    (('gke.sh', *_GKE, '--topology=many', '--', 'x'), 'not like 2x2x4'),
    (('gpu_node.sh', '--nodes=2', '--', 'x'), '--coordinator=HOST:PORT'),
    (('gpu_node.sh',), 'flags are missing'),
    (('setup_host.sh', '--accelerator=abacus'), 'unknown argument'),
    (('retry.sh', '--times=1'), 'nothing to run'),
  ],
)
def test_a_mistake_is_one_clear_line(arguments, message):
  done = _run(*arguments)
  assert done.returncode == 2
  assert message in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize('kind', ['tpu', 'gpu', 'cpu'])
def test_a_host_gets_the_jax_of_its_accelerator(kind):
  (said,) = _printed('setup_host.sh', f'--accelerator={kind}', '--dry_run')
  extra = 'models,gcs' if kind == 'cpu' else f'models,gcs,{kind}'
  assert said == f'install this checkout with the extras {extra}'


def _counting(tmp_path, codes):
  """Returns a command that ends with these codes, one after the other."""
  script = tmp_path / 'command.py'
  script.write_text(
    'import pathlib, sys\n'
    f'path, codes = pathlib.Path({str(tmp_path / "count")!r}), {codes!r}\n'
    'n = int(path.read_text()) if path.exists() else 0\n'
    'path.write_text(str(n + 1))\n'
    'sys.exit(codes[min(n, len(codes) - 1)])\n'
  )
  return sys.executable, str(script)


@pytest.mark.parametrize(
  'codes, times, code, calls',
  [
    ([0], 3, 0, 1),
    ([75, 70, 134, 0], 3, 0, 4),
    ([75, 2, 0], 3, 2, 2),
    ([3], 3, 3, 1),
    ([75], 2, 75, 3),
  ],
)
def test_what_goes_on_is_run_again(tmp_path, codes, times, code, calls):
  command = _counting(tmp_path, codes)
  done = _run('retry.sh', f'--times={times}', '--wait=0', '--', *command)
  assert done.returncode == code, done.stderr
  assert int((tmp_path / 'count').read_text()) == calls


def test_who_is_told_to_stop_does_not_run_again(tmp_path):
  script = tmp_path / 'command.py'
  script.write_text(
    'import signal, sys, time\n'
    'signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))\n'
    'print("ready", flush=True)\n'
    'time.sleep(60)\n'
  )
  retry = subprocess.Popen(
    ['bash', str(_LAUNCH / 'retry.sh'), '--wait=0', '--', sys.executable, str(script)],
    stdout=subprocess.PIPE,
    text=True,
  )
  assert retry.stdout.readline() == 'ready\n'
  retry.terminate()
  assert retry.wait(30) == 75
  assert retry.stdout.read() == ''
