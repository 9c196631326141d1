"""The launchers, with a Python that only writes down what it is asked to do."""

import os
import pathlib
import shutil
import subprocess

import pytest

_ROOT = pathlib.Path(__file__).parents[2]
_LOG = 'python.log'
# The tests are shared among processes; later options of a user win.
_SHARED = '--numprocesses=4 --maxprocesses=4 --dist=loadfile --no-loadscope-reorder'
# Stands for python: knows its version and of 2 cores, makes environments of copies of
# itself, and fails where FAIL says so.
_PYTHON = """#!/bin/bash
log="$LOG"
case "$*" in
  *cpu_count*) echo 2; exit ;;
  "-c "*) exit "${OLD:-0}" ;;
  "-m pip --version") exit 0 ;;
esac
echo "$PWD: $*" >>"$log"
[[ -z "${FAIL:-}" || "$*" != *"$FAIL"* ]] || exit 1
if [[ "$1 $2" == "-m venv" ]]; then
  mkdir -p "$3/bin"
  cp "$0" "$3/bin/python"
fi
"""


@pytest.fixture(name='checkout')
def _checkout(tmp_path):
  """A copy of what the launchers need, its path with a space in it."""
  root = tmp_path / 'check out'
  shutil.copytree(_ROOT / 'launch', root / 'launch')
  for name in ('pyproject.toml', 'requirements.txt', 'requirements_lock.txt'):
    shutil.copy(_ROOT / name, root)
  fake = tmp_path / 'fake_python'
  fake.write_text(_PYTHON)
  fake.chmod(0o755)
  return root


def _run(checkout, script, *arguments, **environment):
  """Runs a launcher from elsewhere; returns it and what python was asked."""
  log = checkout.parent / _LOG
  log.unlink(missing_ok=True)
  done = subprocess.run(
    ['bash', str(checkout / 'launch' / script), *arguments],
    cwd=checkout.parent,
    env={
      'PATH': os.environ['PATH'],
      'LOG': str(log),
      'PYTHON': str(checkout.parent / 'fake_python'),
      **environment,
    },
    stdin=subprocess.DEVNULL,
    capture_output=True,
    text=True,
    check=False,
  )
  return done, log.read_text().splitlines() if log.exists() else []


_TRAIN = (
  '-m agentflow_jax.train --config=experiments/quickstart.py --workdir=runs/quickstart'
)


def test_quickstart_installs_and_trains(checkout):
  done, asked = _run(checkout, 'quickstart.sh', '--config.seed=1', '--x=a b')
  assert done.returncode == 0, done.stderr
  venv, elsewhere = checkout / '.venv', checkout.parent
  assert asked == [
    f'{elsewhere}: -m venv {venv}',
    f'{elsewhere}: -m pip install --quiet --disable-pip-version-check '
    f'--editable {checkout}',
    f'{checkout}: {_TRAIN} --config.seed=1 --x=a b',
  ]


def test_what_is_installed_is_kept_until_requirements_change(checkout):
  _run(checkout, 'quickstart.sh')
  _, asked = _run(checkout, 'quickstart.sh')
  assert asked == [f'{checkout}: {_TRAIN}']
  with (checkout / 'requirements.txt').open('a') as file:
    file.write('# More.\nmore\n')
  _, asked = _run(checkout, 'quickstart.sh')
  assert ['-m pip install' in a for a in asked] == [True, False]


def test_the_extra_is_installed_once_more(checkout):
  _run(checkout, 'quickstart.sh')
  _, asked = _run(checkout, 'test.sh', '--', 'tests/core', '-k', 'a b')
  assert asked[0].endswith(f'--editable {checkout}[test]')
  assert asked[1:] == [f'{checkout}: -m pytest {_SHARED} tests/core -k a b']


def test_a_failed_installation_is_not_taken_for_one(checkout):
  done, asked = _run(checkout, 'quickstart.sh', FAIL='pip install')
  assert done.returncode != 0
  assert not any('train' in a for a in asked)
  _, asked = _run(checkout, 'quickstart.sh')
  assert ['-m pip install' in a for a in asked] == [True, False]


def test_install_only_and_a_place_for_the_environment(checkout):
  done, asked = _run(checkout, 'test.sh', '--install_only', AGENTFLOW_VENV='some/venv')
  assert done.returncode == 0, done.stderr
  assert len(asked) == 2
  assert (checkout.parent / 'some/venv/bin/python').exists()
  assert not (checkout / '.venv').exists()


def test_pytest_s_exit_status_is_kept(checkout):
  done, _ = _run(checkout, 'test.sh', FAIL='-m pytest')
  assert done.returncode == 1


def test_an_old_python_is_refused_by_name(checkout):
  done, asked = _run(checkout, 'quickstart.sh', OLD='1')
  assert done.returncode != 0
  assert not asked
  assert 'Python 3.11 or later is needed' in done.stderr
  assert 'fake_python' in done.stderr


@pytest.mark.parametrize('script', ['quickstart.sh', 'test.sh'])
def test_help_does_nothing_else(checkout, script):
  done, asked = _run(checkout, script, '--help')
  assert done.returncode == 0
  assert f'bash launch/{script} [' in done.stdout
  assert 'set -euo' not in done.stdout
  assert not asked
  assert not (checkout / '.venv').exists()


def test_unknown_arguments_of_test_are_refused(checkout):
  done, asked = _run(checkout, 'test.sh', '--instal_only')
  assert done.returncode == 2
  assert 'unknown argument --instal_only' in done.stderr
  assert not asked


def test_ci_uses_a_fresh_environment_and_removes_it(checkout):
  shutil.copytree(_ROOT / '.ci', checkout / '.ci')
  scratch = checkout.parent / 'scratch'
  scratch.mkdir()
  done, asked = _run(
    checkout, '../.ci/run', 'tests', '--', 'tests/core', TMPDIR=str(scratch)
  )
  assert done.returncode == 0, done.stderr
  assert asked[-1] == f'{checkout}: -m pytest {_SHARED} tests/core'
  assert f'-m venv {scratch}/' in asked[0]
  assert not list(scratch.iterdir())
  assert not (checkout / '.venv').exists()


def test_ci_runs_all_jobs_and_names_those_that_failed(checkout):
  shutil.copytree(_ROOT / '.ci', checkout / '.ci')
  for name in ('agentflow_jax', 'experiments', 'LICENSE', 'README.md'):
    (checkout / name).touch()
  done, asked = _run(checkout, '../.ci/run', FAIL='--group')
  assert done.returncode == 1
  assert 'error: ruff and pyright cannot be installed' in done.stderr
  # The wheel's job fails as well: this Python builds none.
  assert done.stderr.endswith('failed: lint wheel\n')
  assert not any('ruff' in a for a in asked)
  assert any('-m pytest' in a for a in asked)
  assert any(' wheel --no-deps ' in a for a in asked)
  done, asked = _run(checkout, '../.ci/run', 'test')
  assert done.returncode == 2 and not asked
  assert 'there is no job test' in done.stderr


def test_lint_runs_all_checks_whatever_the_first_finds(checkout):
  done, asked = _run(checkout, 'lint.sh', FAIL='-m ruff')
  assert done.returncode == 1
  venv = checkout / '.venv'
  assert asked[-3:] == [
    f'{checkout}: -m ruff check',
    f'{checkout}: -m ruff format --diff --quiet',
    f'{checkout}: -m pyright --pythonpath {venv}/bin/python',
  ]
  assert asked[-4].endswith(f'--group {checkout}/pyproject.toml:lint')
  done, _ = _run(checkout, 'lint.sh')
  assert done.returncode == 0
  done, _ = _run(checkout, 'lint.sh', FAIL='-m pyright')
  assert done.returncode == 1


def test_a_host_gets_the_locked_versions(checkout):
  host = ('setup_host.sh', '--accelerator=cpu')
  done, asked = _run(checkout, *host)
  assert done.returncode == 0, done.stderr
  lock = checkout / 'requirements_lock.txt'
  assert f' --constraint {lock} --editable {checkout}[models,gcs]' in asked[1]
  _, asked = _run(checkout, *host)
  assert not any('pip' in a for a in asked)
  lock.write_text(lock.read_text() + '# Again.\n')
  _, asked = _run(checkout, *host)
  assert '-m pip install' in asked[0]
  # The tests run with the newest versions that are allowed.
  _, asked = _run(checkout, 'test.sh')
  assert not any('--constraint' in a for a in asked)
