"""Launchers of pods and nodes: the commands that they would run."""

import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import threading

import pytest

_ROOT = pathlib.Path(__file__).parents[2]
_LAUNCH = _ROOT / 'launch'


def _run(script, *arguments, env=None, **options):
  # No installation, of which the train program would be asked about its flags.
  nowhere = {'AGENTFLOW_VENV': '/nowhere'}
  return subprocess.run(
    ['bash', str(_LAUNCH / script), *arguments],
    env=os.environ | nowhere | (env or {}),
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
  wait, live, archive, copy, python, install, start = said
  assert 'queued-resources describe n' in wait and 'pgrep' in live
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
  rule = job['podFailurePolicy']['rules'][0]
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
    (('gpu_node.sh', '--nodes=2', '--', '--workdir=w'), '--coordinator=HOST:PORT'),
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


# Stand for gcloud and kubectl: each call is one line of the file, and may fail.
_FAKE = """#!/usr/bin/env bash
printf '%s ' "$(basename "$0")" "$@" >>"$CALLS"
echo >>"$CALLS"
case "$*" in
  *describe*)
    n="$(grep -c describe "$CALLS")"
    read -ra states <<<"${STATES:-ACTIVE}"
    state="${states[$((n - 1))]:-${states[-1]}}"
    [[ "$state" == ERROR ]] && { echo 'ERROR: not found' >&2; exit 1; }
    echo "$state"
    ;;
esac
if [[ -n "${FAILS:-}" && "$*" == *$FAILS* ]]; then
  echo "ERROR: $FAILS" >&2
  exit 1
fi
if [[ "$*" == 'apply -f -' ]]; then cat >"$CALLS.yaml"; fi
"""


@pytest.fixture(name='cloud')
def _cloud(tmp_path):
  """Returns a function that runs a launcher, and tells its end and its calls."""
  for name in ('gcloud', 'kubectl', 'sleep'):
    path = tmp_path / 'bin' / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(_FAKE)
    path.chmod(0o755)
  calls = tmp_path / 'calls'

  def run(script, *arguments, **environment):
    calls.write_text('')
    path = f'{tmp_path / "bin"}:{os.environ["PATH"]}'
    environment = {'PATH': path, 'CALLS': str(calls)} | environment
    done = _run(script, *arguments, env=environment)
    return done, calls.read_text().splitlines()

  return run


_RUN = ('run', '--name=n', '--zone=z')
_FLAGS = ('--', '--config=x.py', '--workdir=gs://b/r')


def test_a_run_waits_for_its_slice(cloud):
  done, calls = cloud(
    'tpu_vm.sh', *_RUN, *_FLAGS, STATES='WAITING_FOR_RESOURCES ACTIVE'
  )
  assert done.returncode == 0, done.stderr
  assert 'n is WAITING_FOR_RESOURCES\nn is ACTIVE' in done.stderr
  verbs = [
    next(w for w in c.split() if w in ('describe', 'sleep', 'ssh', 'scp'))
    for c in calls
  ]
  # Looked at twice; then whether a run is live, the copy, Python, install and start.
  assert verbs == ['describe', 'sleep', 'describe', 'ssh', 'scp', 'ssh', 'ssh', 'ssh']


@pytest.mark.parametrize(
  'states, message',
  [
    ('FAILED', 'n is FAILED, and will not become ACTIVE'),
    ('WAITING_FOR_RESOURCES SUSPENDED', 'n is SUSPENDED, and will not become ACTIVE'),
    ('PROVISIONING', 'n is PROVISIONING after 60 s'),
    ('ERROR', 'not found'),
  ],
)
def test_a_slice_that_does_not_come_ends_the_launcher(cloud, states, message):
  done, calls = cloud('tpu_vm.sh', *_RUN, '--wait=60', *_FLAGS, STATES=states)
  assert done.returncode == 1 and message in done.stderr
  assert not any(' ssh ' in c or ' scp ' in c for c in calls)


def test_the_code_of_a_live_run_stays(cloud):
  # The worker's own shell says that a run is live.
  done, calls = cloud('tpu_vm.sh', *_RUN, *_FLAGS, FAILS='a run is live')
  assert done.returncode == 1
  assert len(calls) == 2 and 'pgrep' in calls[1]
  assert not any('rm -rf' in c for c in calls)
  done, calls = cloud('tpu_vm.sh', *_RUN, *_FLAGS, FAILS='scp')
  assert done.returncode == 1 and ' scp ' in calls[-1]


def test_what_a_worker_is_told_works_there(tmp_path):
  """The words for a worker's shell, with a process that looks like a live run."""
  said = _printed('tpu_vm.sh', 'run', *_VM, '--', '--workdir=gs://b/r')
  stop = _printed('tpu_vm.sh', 'stop', *_VM)
  live, told = (
    next(w for w in shlex.split(line) if w.startswith('--command='))[10:]
    for line in (said[1], stop[0])
  )
  # Named after the test's directory, so that no other run on this machine is meant.
  mark = f'{tmp_path}/launch/retry.sh'
  live, told = (x.replace('[l]aunch/retry.sh', f'[/]{mark[1:]}') for x in (live, told))
  assert subprocess.run(['bash', '-c', live], check=False).returncode == 0
  assert subprocess.run(['bash', '-c', told], check=False).returncode == 0
  script = pathlib.Path(mark)
  script.parent.mkdir()
  script.write_text('trap "exit 75" TERM; echo ready; while :; do sleep 0.1; done')
  process = subprocess.Popen(['bash', mark], stdout=subprocess.PIPE, text=True)
  try:
    assert process.stdout.readline() == 'ready\n'
    done = subprocess.run(
      ['bash', '-c', live], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1 and 'a run is live' in done.stderr
    reaper = threading.Thread(target=process.wait)
    reaper.start()
    assert subprocess.run(['bash', '-c', told], check=False).returncode == 0
    reaper.join(10)
    assert process.returncode == 75
  finally:
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_jobset_is_applied_or_its_failure_told(cloud, tmp_path):
  yaml = pytest.importorskip('yaml')
  arguments = [a for a in _GKE if a != '--dry_run'] + list(_FLAGS)
  done, calls = cloud('gke.sh', *arguments)
  assert done.returncode == 0 and calls == ['kubectl apply -f - ']
  assert yaml.safe_load((tmp_path / 'calls.yaml').read_text())['kind'] == 'JobSet'
  done, _ = cloud('gke.sh', *arguments, FAILS='apply')
  assert done.returncode == 1 and 'ERROR: apply' in done.stderr


def _rule(jobset, code=None, condition=None):
  """Returns what becomes of a JobSet when a pod ends so, as the controllers do it."""
  (slices,) = jobset['replicatedJobs']
  for i, rule in enumerate(slices['template']['spec']['podFailurePolicy']['rules']):
    codes = rule.get('onExitCodes', {}).get('values', [])
    conditions = [c['type'] for c in rule.get('onPodConditions', [])]
    if code in codes or condition in conditions:
      said = (
        f'Container train for pod d/p failed with exit code {code} matching FailJob'
      )
      reason, message = 'PodFailurePolicy', f'{said} rule at index {i}'
      break
  else:
    reason, message = 'BackoffLimitExceeded', 'Job has reached the limit'
  for rule in jobset['failurePolicy']['rules']:
    if reason in rule['onJobFailureReasons'] and any(
      re.search(p, message) for p in rule['onJobFailureMessagePatterns']
    ):
      return rule['action']
  return 'RestartJobSet'


def test_what_ends_a_pod_decides_what_is_counted():
  yaml = pytest.importorskip('yaml')
  jobset = yaml.safe_load('\n'.join(_printed('gke.sh', *_GKE, *_FLAGS)))['spec']
  uncounted = 'RestartJobSetAndIgnoreMaxRestarts'
  for code, action in ((2, 'FailJobSet'), (3, 'FailJobSet'), (75, uncounted)):
    assert _rule(jobset, code) == action
  for code in (1, 70, 134, 137):
    assert _rule(jobset, code) == 'RestartJobSet'
  assert _rule(jobset, 137, 'DisruptionTarget') == uncounted


def test_options_of_a_cluster():
  yaml = pytest.importorskip('yaml')
  more = ('--queue=team', '--spot', '--cpus=100', '--memory=200Gi')
  text = '\n'.join(_printed('gke.sh', *_GKE, *more, '--service_account=me', *_FLAGS))
  jobset = yaml.safe_load(text)
  assert jobset['metadata']['labels'] == {'kueue.x-k8s.io/queue-name': 'team'}
  (slices,) = jobset['spec']['replicatedJobs']
  pod = slices['template']['spec']['template']['spec']
  assert pod['serviceAccountName'] == 'me'
  assert pod['nodeSelector']['cloud.google.com/gke-spot'] == 'true'
  (toleration,) = pod['tolerations']
  assert toleration['key'] == 'cloud.google.com/gke-spot'
  resources = pod['containers'][0]['resources']
  assert resources['requests'] == {'cpu': '100', 'memory': '200Gi'}
  assert resources['limits'] == {'google.com/tpu': 4}
  plain = yaml.safe_load('\n'.join(_printed('gke.sh', *_GKE, *_FLAGS)))
  assert 'labels' not in plain['metadata']


@pytest.mark.parametrize(
  'arguments, message',
  [
    (('tpu_vm.sh', *_RUN, '--', '--config=x.py'), '--workdir is missing'),
    (('tpu_vm.sh', *_RUN, '--', '--workdir=runs/x'), 'has to be gs://'),
    (('tpu_vm.sh', *_RUN, '--', '--workdir', '/x'), 'has to be gs://'),
    (('tpu_vm.sh', 'create', '--name=My_Run', '--zone=z'), '--name=My_Run: a name has'),
    (('tpu_vm.sh', *_RUN, '--wait=day', *_FLAGS), '--wait=day'),
    (('tpu_vm.sh', *_RUN, '--secret=a-b', *_FLAGS), '--secret=a-b'),
    (('gke.sh', *_GKE, '--', '--workdir=runs/x'), 'has to be gs://'),
    (('gke.sh', *_GKE, f'--name={"n" * 41}', *_FLAGS), 'at most 40 characters'),
    (('gke.sh', *_GKE, '--queue=A', *_FLAGS), '--queue=A'),
    (('gke.sh', *_GKE, '--memory=much', *_FLAGS), '--memory=much'),
    (('gke.sh', *_GKE, '--chips_a_host=3', *_FLAGS), '16 chips'),
    (('gke.sh', *_GKE, '--slices=0', *_FLAGS), '--slices=0'),
    (('gpu_node.sh', '--', '--config=x.py'), '--workdir is missing'),
    (('gpu_node.sh', '--nodes=2', '--node=2', *_FLAGS), '--node=2 is none'),
    (('slurm.sbatch', '--config=x.py'), '--workdir is missing'),
  ],
)
def test_what_the_program_would_refuse_is_refused_before_anything_is_made(
  cloud, arguments, message
):
  done, calls = cloud(*[a for a in arguments if a != '--dry_run'])
  assert done.returncode == 2 and message in done.stderr
  assert len(done.stderr.splitlines()) == 1 and calls == []


def test_the_program_itself_looks_at_its_flags(cloud, tmp_path):
  program = tmp_path / 'venv' / 'bin' / 'python'
  program.parent.mkdir(parents=True)
  program.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
  program.chmod(0o755)
  where = {'AGENTFLOW_VENV': str(tmp_path / 'venv')}
  flags = ('--', '--workdir=gs://b/r', '--config=quickstart')
  done, calls = cloud('tpu_vm.sh', *_RUN, *flags, '--config.train.stepz=3', **where)
  assert done.returncode == 2 and 'stepz' in done.stderr and calls == []
  program.write_text(
    '#!/bin/sh\n[ "$*" = "-m agentflow_jax.train --workdir=gs://b/r'
    ' --config=quickstart --print_config" ]\n'
  )
  done, calls = cloud('tpu_vm.sh', *_RUN, *flags, **where)
  assert done.returncode == 0, done.stderr
  assert len(calls) == 6


def test_skypilot_starts_a_process_a_node(tmp_path):
  yaml = pytest.importorskip('yaml')
  task = yaml.safe_load((_LAUNCH / 'skypilot.yaml').read_text())
  assert task['resources']['job_recovery']['recover_on_exit_codes'] == [75]
  environment = {
    'SKYPILOT_NUM_NODES': '2',
    'SKYPILOT_NODE_RANK': '1',
    'SKYPILOT_NODE_IPS': '10.0.0.1\n10.0.0.2',
    'WORKDIR': 'gs://b/r',
    'FLAGS': '--config=x.py --quiet',
  }
  script = task['run'].replace('gpu_node.sh', 'gpu_node.sh --dry_run')
  done = subprocess.run(
    ['bash', '-c', script],
    env=os.environ | environment | {'AGENTFLOW_VENV': '/nowhere'},
    cwd=_ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout.splitlines()[-1].endswith(
    '--coordinator=10.0.0.1:8476 --num_processes=2 --process_id=1'
    ' --workdir=gs://b/r --config=x.py --quiet '
  )
