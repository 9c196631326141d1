"""The house stands as BUILD and docs/design.md say, and each check can fail."""

import pathlib
import shutil
import subprocess
import sys

import pytest

from tests import house_checks
from tests import house_sources

_ROOT = pathlib.Path(__file__).parents[1]
_CHECKS = (
  house_checks.target_problems,
  house_checks.import_problems,
  house_checks.arrow_problems,
  house_checks.assignment_problems,
  house_checks.docstring_problems,
  house_checks.requirement_problems,
  house_checks.install_problems,
  house_checks.package_problems,
  house_checks.ignore_problems,
  house_checks.lock_problems,
  house_checks.name_problems,
  house_checks.path_problems,
  house_checks.entry_point_problems,
  house_checks.mirror_problems,
)

# A small house that is in order, and what each change makes of it.
_BUILD = """
load("@rules_python//python:defs.bzl", "py_binary", "py_library", "py_test")

py_library(
    name = "package",
    srcs = ["agentflow_jax/__init__.py"],
)

py_library(
    name = "records",
    srcs = ["agentflow_jax/records.py"],
    deps = [":package"],
)

py_library(
    name = "agents",
    srcs = glob(["agentflow_jax/agents/**/*.py"]),
    deps = [
        ":package",
        ":records",
        "@pypi//math_verify",
    ],
)

py_library(
    name = "core",
    srcs = glob(["agentflow_jax/core/*.py"], exclude = ["*/core/x.py"]),
    deps = [
        ":package",
        "@pypi//numpy",
    ],
)

py_binary(
    name = "train",
    srcs = ["agentflow_jax/train.py"],
    main = "agentflow_jax/train.py",
    deps = [
        ":package",
        ":records",
    ],
)

py_test(
    name = "tests",
    srcs = glob(["tests/**/*.py"]),
    main_module = "pytest",
    deps = [
        ":agents",
        ":package",
        "@pypi//pytest",
    ],
)
"""
_PYPROJECT = """
[project]
name = "agentflow-jax"
[project.scripts]
agentflow-train = "agentflow_jax.runtime.scripts:main"
[project.optional-dependencies]
tools = ["math-verify>=0.8"]
test = ["agentflow-jax[tools]", "pytest>=8"]
[tool.setuptools]
packages = ["agentflow_jax", "agentflow_jax.agents", "agentflow_jax.core", "x"]
package-dir = { x = "experiments" }
"""
_HOUSE = {
  'BUILD': _BUILD,
  'pyproject.toml': _PYPROJECT,
  'requirements.txt': '# Arrays.\nnumpy>=2.0\n',
  'requirements_lock.txt': 'math-verify==0.9\nnumpy==2.1\npytest==8.4\n',
  'agentflow_jax/__init__.py': '',
  'agentflow_jax/records.py': 'import dataclasses\n',
  'agentflow_jax/agents/__init__.py': '',
  'agentflow_jax/agents/plan.py': (
    'from agentflow_jax import records\ndef f():\n  import math_verify\n'
  ),
  'agentflow_jax/core/__init__.py': '',
  'agentflow_jax/core/model.py': 'import numpy as np\n',
  'agentflow_jax/train.py': 'from agentflow_jax import records\n',
  'tests/conftest.py': 'import pytest\n',
  'tests/agents/plan_test.py': 'from agentflow_jax.agents import plan\n',
  'tests/core/model_test.py': 'from tests.core import oracle\n',
  'tests/core/oracle.py': '',
}


def _append(path: str, text: str) -> dict[str, str]:
  return {path: _HOUSE.get(path, '') + text}


def _replace(path: str, old: str, new: str) -> dict[str, str]:
  assert old in _HOUSE[path]
  return {path: _HOUSE[path].replace(old, new)}


def _documented(section: str) -> str:
  return f'def g(x):\n  """G.\n\n  {section}\n  """\n'


_PLAN = 'agentflow_jax/agents/plan.py'
_MODEL = 'agentflow_jax/core/model.py'
_MUTATIONS = [
  # (check, change, problem that it must report)
  ('target', {'launch/x.py': ''}, 'launch/x.py is in no target'),
  ('target', {'agentflow_jax/core/x.py': ''}, 'core/x.py is in no target'),
  (
    'target',
    _replace('BUILD', '**/*.py"]),\n    main_m', 'a*/*.py"]),\n  m'),
    'oracle.py is in no target',
  ),
  (
    'target',
    _replace('BUILD', 'core/*.py"]', 'core/*.py", "*/train.py"]'),
    'train.py is in :core and :train',
  ),
  (
    'target',
    _replace('BUILD', '/records.py', '/record.py'),
    'names agentflow_jax/record.py, which is not there',
  ),
  (
    'target',
    _replace('BUILD', '    main = "agentflow_jax/train.py",\n', ''),
    ':train does not name its main file',
  ),
  (
    'target',
    _replace('BUILD', 'name = "core"', 'name = "agents"'),
    ':agents is defined twice',
  ),
  ('target', _append(_MODEL, 'import jax\n'), ':core lacks dep @pypi//jax'),
  (
    'target',
    _append(_PLAN, 'def g():\n  import absl.flags\n'),
    ':agents lacks dep @pypi//absl_py',
  ),
  (
    'target',
    _append(_PLAN, 'importlib.util.find_spec("bm25s")'),
    ':agents lacks dep @pypi//bm25s',
  ),
  (
    'target',
    _append(_PLAN, 'from agentflow_jax.core import model'),
    ':agents lacks dep :core',
  ),
  ('target', _replace(_MODEL, 'numpy', 'math'), 'idle dep @pypi//numpy'),
  (
    'target',
    _replace(
      'BUILD',
      '/records.py"],\n    deps = [":package"]',
      '/records.py"],\n    deps = [":agents"]',
    ),
    "targets depend on each other: [':agents', ':records'",
  ),
  (
    'import',
    _append(_PLAN, 'from agentflow_jax import nothing'),
    'plan.py imports agentflow_jax.nothing',
  ),
  ('import', _append(_PLAN, 'from . import memory'), 'plan.py imports .memory'),
  (
    'arrow',
    _append(_MODEL, 'from agentflow_jax import records'),
    'core/model.py imports agentflow_jax/records.py',
  ),
  (
    'arrow',
    _append(_PLAN, 'def g():\n  from agentflow_jax.core import model'),
    'plan.py imports agentflow_jax/core/model.py',
  ),
  ('arrow', _append(_PLAN, 'import jax.numpy'), 'plan.py (agents) imports jax'),
  ('arrow', _append(_MODEL, 'import httpx'), 'model.py (core) imports httpx'),
  (
    'arrow',
    _append('agentflow_jax/records.py', 'import numpy'),
    'records.py (records) imports numpy',
  ),
  (
    'arrow',
    _append(_PLAN, 'from tests.core import oracle'),
    'plan.py imports tests/core/oracle.py',
  ),
  (
    'arrow',
    _append('agentflow_jax/__init__.py', 'from agentflow_jax import records'),
    '__init__.py imports agentflow_jax/records.py',
  ),
  (
    'arrow',
    _append('tests/agents/plan_test.py', 'from agentflow_jax.core import model'),
    'plan_test.py imports agentflow_jax/core/model.py',
  ),
  (
    'arrow',
    {'experiments/e.py': 'from agentflow_jax.core import model\n'},
    'experiments/e.py imports agentflow_jax/core/model.py',
  ),
  (
    'arrow',
    {'launch/l.py': 'from agentflow_jax import records\n'},
    'launch/l.py imports agentflow_jax/records.py',
  ),
  ('arrow', {'agentflow_jax/cellar/wine.py': ''}, 'knows no room cellar'),
  (
    'assignment',
    _append(_PLAN, 'from agentflow_jax import records\nrecords.Task = 3\n'),
    'assigns to records.Task',
  ),
  (
    'docstring',
    _append(_PLAN, _documented('Args:\n    x: of it.')),
    'plan.py: g: x: of ...',
  ),
  (
    'docstring',
    _append(_PLAN, _documented('Attributes:\n    x, *y: What is.')),
    'plan.py: g: x, *y: What ...',
  ),
  (
    'docstring',
    _append(_PLAN, _documented('Args:\n    x:\n      is it.')),
    'plan.py: g: x: is ...',
  ),
  (
    'docstring',
    _append(_PLAN, _documented('Args:\n    a: text\n      of it.\n\n    x: so many.')),
    'plan.py: g: x: so ...',
  ),
  (
    'docstring',
    _append(_PLAN, _documented('Args:\n    x: how it is.\n    y: see `z`.')),
    'plan.py: g: x: how ...',
  ),
  (
    'docstring',
    _append(_PLAN, _documented('Args:\n    x: see `z`.')),
    'plan.py: g: x: see ...',
  ),
  (
    'docstring',
    {'launch/l.py': '"""L.\n\nArgs:\n  x: must be there.\n"""\n'},
    'launch/l.py: the module: x: must ...',
  ),
  (
    'requirement',
    _append(_PLAN, 'import math_verify\n'),
    'plan.py imports math-verify, which is not in requirements.txt',
  ),
  (
    'requirement',
    _append(_PLAN, 'def g():\n  import sympy\n'),
    'sympy is imported, but in neither',
  ),
  (
    'requirement',
    _append('tests/core/oracle.py', 'import scipy'),
    'scipy is imported by tests, but not in [test]',
  ),
  (
    'requirement',
    _append(_PLAN, 'def g():\n  import pytest\n'),
    'pytest is imported, but in neither',
  ),
  (
    'requirement',
    _append('requirements.txt', '# Idle.\njax\n'),
    'jax is required, but nothing imports it',
  ),
  (
    'requirement',
    _append('requirements.txt', '# Twice.\nmath-verify\n'),
    'math-verify is in requirements.txt and in [tools]',
  ),
  (
    'requirement',
    _replace('requirements.txt', '# Arrays.', ''),
    'no comment says what numpy>=2.0 is for',
  ),
  (
    'install',
    _append(_PLAN, '"""pip install \'agentflow-jax[tools]\'"""'),
    'plan.py: "install \'agentflow-jax" names a distribution',
  ),
  (
    'install',
    _append(_PLAN, 'x = "pip install a (the extra `tools`)"'),
    "(the extra `tools`)', but the extra holds ['math-verify']",
  ),
  (
    'package',
    {'agentflow_jax/core/kernels/mask.py': ''},
    'does not list the package agentflow_jax.core.kernels',
  ),
  (
    'package',
    _replace('pyproject.toml', 'jax.agents', 'jax.agent'),
    'lists agentflow_jax.agent, which is not there',
  ),
  (
    'package',
    {'agentflow_jax/openenv_tasks.py': ''},
    'no script agentflow-openenv-tasks',
  ),
  (
    'package',
    _replace('pyproject.toml', '-train', '-trian'),
    'has agentflow-trian, but no such entry point',
  ),
  (
    'ignore',
    _append(_MODEL, 'x = y  # pyright: ignore\n'),
    'core/model.py:2 needs the form',
  ),
  (
    'ignore',
    _append(_MODEL, 'x = y  # pyright: ignore[reportX]\n'),
    'core/model.py:2 needs the form',
  ),
  (
    'ignore',
    _append(_MODEL, 'x = y  # type: ignore\n'),
    'core/model.py:2 needs the form',
  ),
  (
    'ignore',
    _append(_MODEL, 'x = y  # pyright: ignore[reportX]  # Why.\n' * 31),
    '31 lines are ignored, of 30',
  ),
  (
    'lock',
    _replace('requirements_lock.txt', 'numpy==2.1\n', ''),
    '@pypi//numpy is not in requirements_lock.txt',
  ),
  (
    'lock',
    _replace('requirements_lock.txt', 'numpy==2.1', 'numpy==1.9'),
    'requirements_lock.txt has numpy not >=2.0',
  ),
  ('name', {'tests/core/random.py': ''}, 'random is a module of the standard'),
  ('name', {'agentflow_jax/json/a.py': ''}, 'json is a module of the standard'),
  ('path', _append(_MODEL, 'PLACE = "' + '/'.join(['', 'home', 'me"'])), 'model.py:2'),
  (
    'entry_point',
    _append('agentflow_jax/train.py', 'f()\n' * 99),
    'train.py has 100 lines',
  ),
  ('entry_point', {'agentflow_jax/serve.py': ''}, 'serve.py is no py_binary'),
  (
    'entry_point',
    _replace(
      'BUILD', 'py_library(\n    name = "core"', 'py_binary(\n    name = "core"'
    ),
    'core/model.py is no entry point',
  ),
  (
    'mirror',
    {'agentflow_jax/core/kernels/mask.py': ''},
    'room core/kernels has no tests',
  ),
  ('mirror', {'tests/cellar/wine_test.py': ''}, 'tests/cellar mirrors no room'),
  (
    'mirror',
    _replace('tests/core/model_test.py', 'oracle', 'model'),
    'tests/core/oracle.py is neither a test nor imported by one',
  ),
]


@pytest.fixture(scope='module', name='files')
def _files():
  return house_sources.read_files(_ROOT)


def test_the_whole_repository_is_read(files):
  expected = {'BUILD', '.ci/run', 'launch/test.sh', 'tests/house_test.py'}
  assert expected <= set(files)
  assert not [p for p in files if 'site-packages' in p or p.startswith('runs/')]


@pytest.mark.parametrize('check', _CHECKS, ids=lambda check: check.__name__)
def test_the_house_is_in_order(files, check):
  assert check(files) == []


@pytest.mark.parametrize('check', _CHECKS, ids=lambda check: check.__name__)
def test_the_small_house_is_in_order(check):
  assert check(_HOUSE) == []


@pytest.mark.parametrize(
  ('name', 'change', 'problem'), _MUTATIONS, ids=[m[2] for m in _MUTATIONS]
)
def test_each_check_can_fail(name, change, problem):
  check = getattr(house_checks, f'{name}_problems')
  problems = check(_HOUSE | change)
  assert any(problem in p for p in problems), problems


def test_noun_phrases_and_other_sections_are_no_fragments():
  text = _documented(
    "Args:\n    x: name of it.\n    y: per-token weights.\n    z: 'a' or 'b'.\n\n"
    '  Returns:\n    x: of it.\n\n  Raises:\n    ValueError: is raised.'
  )
  assert house_checks.docstring_problems({'launch/l.py': text}) == []


def test_nothing_else_lies_at_the_top():
  """Such as a wheel that somebody downloaded here: it is no text to read."""
  listed = subprocess.run(
    ['git', 'ls-files'], cwd=_ROOT, capture_output=True, text=True, check=False
  )
  if listed.returncode:
    pytest.skip('no checkout of git')
  found = {path.partition('/')[0] for path in listed.stdout.splitlines()}
  always = {
    '.ci',
    '.dockerignore',
    '.git-blame-ignore-revs',
    '.gitignore',
    'BUILD',
    'LICENSE',
    'MODULE.bazel',
    'README.md',
    'agentflow_jax',
    'experiments',
    'launch',
    'pyproject.toml',
    'requirements.txt',
    'requirements_lock.txt',
    'tests',
  }
  assert always <= found
  assert found - always <= {'.github', 'CHANGELOG.md', 'CONTRIBUTING.md', 'docs'}


def test_globs_stay_in_their_directory():
  build = 'py_library(name = "a", srcs = glob(["a/*.py", "b/**/*.py"]))'
  paths = ['a/x.py', 'a/c/y.py', 'b/x.py', 'b/c/d/y.py', 'a/x.pyc', 'ba/x.py']
  (target,) = house_sources.parse_build(build, paths)
  assert target.srcs == ('a/x.py', 'b/x.py', 'b/c/d/y.py')


def test_build_must_be_literal():
  build = 'py_library(name = "a", srcs = [x for x in y])'
  with pytest.raises(ValueError):
    house_sources.parse_build(build, [])


# Agents and jax. The program imports every module of agents; with `absent`, in
# a world without the libraries of arrays on accelerators.
_IMPORT_AGENTS = """
import importlib, pkgutil, sys
absent = sys.argv[1] == 'absent'
names = {'jax', 'jaxlib', 'flax', 'optax', 'orbax', 'tensorstore'}

class Absent:
  def find_spec(self, name, path=None, target=None):
    if name.split('.')[0] in names:
      raise ModuleNotFoundError(f'{name} is absent')

if absent:
  sys.meta_path.insert(0, Absent())
import agentflow_jax.agents as agents
modules = [
    m.name
    for m in pkgutil.walk_packages(agents.__path__, 'agentflow_jax.agents.')
]
for module in modules:
  importlib.import_module(module)
  loaded = {m.split('.')[0] for m, value in sys.modules.items() if value}
  loaded &= names
  assert not loaded, f'{module} loads {sorted(loaded)}'
print(len(modules))
"""


def _import_agents(root: pathlib.Path, mode: str) -> subprocess.CompletedProcess[str]:
  return subprocess.run(
    [sys.executable, '-c', _IMPORT_AGENTS, mode],
    cwd=root,
    capture_output=True,
    text=True,
    check=False,
  )


@pytest.mark.parametrize('mode', ['absent', 'present'])
def test_agents_do_without_jax(files, mode):
  done = _import_agents(_ROOT, mode)
  assert done.returncode == 0, done.stderr
  modules = [p for p in files if p.startswith('agentflow_jax/agents/')]
  assert int(done.stdout) == len(modules) - 1  # Without agents/__init__.py.


@pytest.mark.parametrize(
  ('mode', 'problem'), [('absent', 'jax is absent'), ('present', 'agents.bad loads')]
)
def test_agents_that_import_jax_are_found(tmp_path, mode, problem):
  agents = tmp_path / 'agentflow_jax' / 'agents'
  agents.mkdir(parents=True)
  (agents / '__init__.py').touch()
  (agents.parent / '__init__.py').touch()
  (agents / 'bad.py').write_text('import jax\n')
  (tmp_path / 'jax.py').touch()  # Quicker than the real one.
  done = _import_agents(tmp_path, mode)
  assert done.returncode != 0
  assert problem in done.stderr


def _buildifier(directory: pathlib.Path) -> subprocess.CompletedProcess[str]:
  if shutil.which('buildifier') is None:
    pytest.skip('no buildifier on PATH; the npm @bazel/buildifier carries one')
  return subprocess.run(
    ['buildifier', '--mode=check', '--lint=warn', 'BUILD', 'MODULE.bazel'],
    cwd=directory,
    capture_output=True,
    text=True,
    check=False,
  )


def test_buildifier_finds_nothing():
  done = _buildifier(_ROOT)
  assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
  'change',
  [
    ('deps = [":package"],', 'deps = [ ":package" ],'),
    (
      'load("@rules_python//python:defs.bzl", "py_binary", ',
      'load("@rules_python//python:defs.bzl", "py_import", "py_binary", ',
    ),
  ],
  ids=['format', 'lint'],
)
def test_buildifier_can_find_something(tmp_path, change):
  build = (_ROOT / 'BUILD').read_text()
  assert change[0] in build
  (tmp_path / 'BUILD').write_text(build.replace(*change))
  (tmp_path / 'MODULE.bazel').write_text((_ROOT / 'MODULE.bazel').read_text())
  assert _buildifier(tmp_path).returncode != 0
