"""What the house is held to: targets, arrows, requirements, names, tests.

Each check takes the texts of a repository and returns a list of problems, so
that house_test.py can show on a small example that it is able to fail.
"""

import ast
import re
import sys
import tomllib
from collections.abc import Iterable, Iterator

from packaging import requirements
from packaging import utils

from tests import house_sources

# The arrows of docs/design.md, which docs_test.py compares. A room may import itself.
ARROWS = {
  'files': set(),
  'records': set(),
  'core': set(),
  'inference': {'core', 'records'},
  'agents': {'files', 'records'},
  'external': {'agents', 'files', 'inference'},
  'weights': {'core', 'files'},
  'data': {'files', 'records'},
  'tokenization': {'files', 'records'},
  'config': {'agents', 'inference', 'core', 'records', 'files'},
  'runtime': {'config', 'agents', 'weights', 'core', 'files'},
  'rollouts': {'runtime', 'agents', 'records', 'files'},
  'assembly': {
    'runtime',
    'config',
    'agents',
    'data',
    'external',
    'tokenization',
    'inference',
    'weights',
    'core',
    'records',
    'files',
  },
  'serving': {'assembly', 'config', 'agents', 'records', 'files'},
  'report': {'rollouts', 'files'},
  'evaluation': {
    'serving',
    'assembly',
    'rollouts',
    'report',
    'runtime',
    'config',
    'agents',
    'weights',
    'records',
    'files',
  },
  'training': {
    'evaluation',
    'serving',
    'report',
    'assembly',
    'rollouts',
    'runtime',
    'config',
    'agents',
    'inference',
    'core',
    'weights',
    'records',
    'files',
  },
  'sizing': {'training', 'assembly', 'config', 'inference', 'core', 'weights', 'files'},
  'entry points': {
    'sizing',
    'training',
    'evaluation',
    'serving',
    'assembly',
    'rollouts',
    'runtime',
    'config',
    'records',
  },
  'experiments': {'config', 'records'},
  'benchmarks': {
    'training',
    'assembly',
    'config',
    'agents',
    'inference',
    'weights',
    'core',
    'records',
    'files',
  },
  'launch': {'config', 'files', 'report'},
  'docs': {'config'},
}
_THIRD_PARTY = {
  'files': {'etils', 'gguf', 'numpy'},
  'records': set(),
  'core': {'jax', 'flax', 'optax', 'numpy'},
  'launch': set(),
}  # Rooms whose third-party imports the design lists.
_NEVER = {'agents': {'jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint'}}
# Options that launchers pass, and what must be installed to understand them.
_OPTIONS = {'--dist=loadfile': 'pytest-xdist'}
_ENTRY_LINES = 100
_MOST_IGNORES = 30
_IGNORE = re.compile(r'  # pyright: ignore\[\w+\]  # \w.*\.$')
# First words that make an entry of a docstring's Args or Attributes a fragment, and
# no noun phrase: prepositions, some relative words, and auxiliary verbs.
_FRAGMENTS = frozenset(
  'about above across after against along among around as at before behind below'
  ' beneath beside besides between beyond by despite down during except for from in'
  ' inside into like near of off on onto out outside over past per since than through'
  ' throughout till to toward towards under underneath unlike until up upon via with'
  ' within without'
  ' how see so what whatever where who whoever'
  ' am are be been being can cannot could did do does had has have is may might must'
  ' ought shall should was were will would'.split()
)
_ENTRY = re.compile(r'(\*{0,2}\w+(?:, \*{0,2}\w+)*):\s+([A-Za-z][\w\'-]*)')
_SECTION = re.compile(r'( *)(?:Args|Attributes):$')
_MACHINE_PATH = re.compile(r'(?<![\w.$}/])/(?:home|mnt|opt|root|Users|work)/\w')


def target_problems(files: house_sources.Files) -> list[str]:
  """Every .py file is in exactly one target, and deps are the imports."""
  paths = house_sources.python_files(files)
  targets = house_sources.parse_build(files['BUILD'], paths)
  problems, owner = [], {}
  for target in targets:
    for source in target.srcs:
      if source not in files:
        problems.append(f':{target.name} names {source}, which is not there')
      if source in owner:
        problems.append(f'{source} is in {owner[source]} and :{target.name}')
      owner[source] = f':{target.name}'
    if not target.srcs:
      problems.append(f':{target.name} has no sources')
    if (
      target.rule == 'py_binary'
      and f'main = "{target.srcs[0]}"' not in (files['BUILD'])
    ):
      problems.append(f':{target.name} does not name its main file')
  problems += [f'{p} is in no target' for p in paths if p not in owner]
  names = [t.name for t in targets]
  problems += [f':{n} is defined twice' for n in {*names} if names.count(n) > 1]
  for target in targets:
    needed = set()
    for source in set(target.srcs) & set(files):
      imported = house_sources.imports_of(source, files)
      needed |= {owner[f] for f in imported.files if f in owner}
      needed |= {_label(d) for d in imported.distributions}
    if target.rule == 'py_test':
      needed.add('@pypi//pytest')  # Its main module.
    needed.discard(f':{target.name}')
    have = set(target.deps)
    problems += [f':{target.name} lacks dep {d}' for d in sorted(needed - have)]
    problems += [f':{target.name} has idle dep {d}' for d in sorted(have - needed)]
  return problems + _cycles(targets)


def _label(distribution: str) -> str:
  return f'@pypi//{distribution.replace("-", "_")}'


def _cycles(targets: list[house_sources.Target]) -> list[str]:
  """Bazel refuses a circle of targets."""
  left = {f':{t.name}': {d for d in t.deps if d[0] == ':'} for t in targets}
  while free := [n for n, deps in left.items() if not deps & set(left)]:
    for name in free:
      del left[name]
  return [f'targets depend on each other: {sorted(left)}'] if left else []


def import_problems(files: house_sources.Files) -> list[str]:
  """Names under our packages that do not exist, and relative imports."""
  return [
    f'{path} imports {name}, which is no file here'
    for path in house_sources.python_files(files)
    for name in sorted(house_sources.imports_of(path, files).unknown)
  ]


def _room(path: str) -> str:
  """The room of a file; '' for the package itself."""
  parts = path.split('/')
  if parts[0] == 'tests':
    return 'tests'
  if parts[0] != 'agentflow_jax':
    return 'benchmarks' if parts[1:2] == ['benchmarks'] else parts[0]
  if parts[-1] == '__init__.py' and len(parts) < 4:
    return ''  # Empty, and imported with every module of its package.
  if len(parts) == 2:
    return 'records' if parts[1] == 'records.py' else 'entry points'
  return parts[1]


def _reach(room: str) -> set[str]:
  below = set(ARROWS[room])
  return below.union(*map(_reach, below)) | {room}


def _allowed(path: str) -> set[str]:
  """The rooms that a file may import: for a test, what its room can reach."""
  if not path.startswith('tests/'):
    return ARROWS[_room(path)] | {_room(path)} if _room(path) else set()
  room = path.split('/')[1]
  if room == 'training':
    room = 'entry points'
  everything = set(ARROWS)
  return {'tests'} | (_reach(room) if room in ARROWS else everything)


def arrow_problems(files: house_sources.Files) -> list[str]:
  """Imports that docs/design.md does not list."""
  problems = []
  for path in house_sources.python_files(files):
    imported, room = house_sources.imports_of(path, files), _room(path)
    if room and room != 'tests' and room not in ARROWS:
      problems.append(f'{path}: docs/design.md knows no room {room}')
      continue
    allowed = _allowed(path) | {''}
    for other in sorted(imported.files):
      if _room(other) not in allowed:
        problems.append(f'{path} imports {other}: no such arrow')
    third = set(imported.distributions)
    wrong = third & _NEVER.get(room, set())
    wrong |= third - _THIRD_PARTY.get(room, third)
    problems += [f'{path} ({room}) imports {d}' for d in sorted(wrong)]
  return problems


def docstring_problems(files: house_sources.Files) -> list[str]:
  """Entries of Args and Attributes that begin as fragments do, such as "of the run".

  An entry is a noun phrase with a head of its own: "work directory of the run".
  """
  problems = []
  for path in house_sources.python_files(files):
    if path.startswith('tests/'):
      continue
    for node in ast.walk(ast.parse(files[path])):
      if isinstance(
        node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
      ):
        problems += [
          f'{path}: {getattr(node, "name", "the module")}: {name}: {word} ...'
          for name, word in _entries(ast.get_docstring(node) or '')
          if word.lower() in _FRAGMENTS
        ]
  return problems


def _entries(docstring: str) -> Iterator[tuple[str, str]]:
  """Yields the names of each entry of Args and Attributes, and its first word."""
  indent, lines = None, docstring.splitlines()
  for i, line in enumerate(lines):
    depth = len(line) - len(line.lstrip())
    if section := _SECTION.fullmatch(line):
      indent = len(section[1]) + 2
    elif line.strip() and indent is not None and depth < indent:
      indent = None
    elif depth == indent:
      # The first word may stand on the next line.
      entry = _ENTRY.match(line.strip() + ' ' + ''.join(lines[i + 1 : i + 2]).strip())
      if entry:
        yield entry[1], entry[2]


def _requirements(lines: Iterable[str]) -> dict[str, str]:
  found = {}
  for line in lines:
    if line.split('#')[0].strip():
      requirement = requirements.Requirement(line)
      name = utils.canonicalize_name(requirement.name)
      found[name] = str(requirement.specifier)
  return found


def assignment_problems(files: house_sources.Files) -> list[str]:
  """Nothing of ours is assigned to an attribute of one of our modules.

  Such an assignment changes that module for everyone, mostly by mistake.
  """
  problems = []
  for path in house_sources.python_files(files):
    if not path.startswith('agentflow_jax/'):
      continue
    tree = ast.parse(files[path])
    modules = {
      alias.asname or alias.name
      for node in ast.walk(tree)
      if isinstance(node, ast.ImportFrom)
      and (node.module or '').startswith('agentflow_jax')
      for alias in node.names
    }
    problems += [
      f'{path}:{node.lineno} assigns to {ast.unparse(node)}'
      for node in ast.walk(tree)
      if isinstance(node, ast.Attribute)
      and isinstance(node.ctx, ast.Store)
      and isinstance(node.value, ast.Name)
      and node.value.id in modules
    ]
  return problems


def requirement_problems(files: house_sources.Files) -> list[str]:
  """Third-party names are those of requirements.txt and the extras."""
  project = tomllib.loads(files['pyproject.toml'])['project']
  core = _requirements(files['requirements.txt'].splitlines())
  extras = {
    extra: set(_requirements(lines)) - {project['name']}
    for extra, lines in project['optional-dependencies'].items()
  }
  users = set(core).union(*(v for k, v in extras.items() if k != 'test'))
  used_by_package, used_by_tests, problems = set(), set(), []
  for path in house_sources.python_files(files):
    used = house_sources.imports_of(path, files).distributions
    if path.startswith('agentflow_jax/'):
      used_by_package |= used
      early = house_sources.imported_at_once(path, files) - set(core)
      if path.startswith('agentflow_jax/serving/'):
        early = set()  # A room that only its own entry point opens, late.
      problems += [
        f'{path} imports {d}, which is not in requirements.txt' for d in early
      ]
    else:
      used_by_tests |= used
  problems += [
    f'{d} is imported, but in neither requirements.txt nor an extra'
    for d in sorted(used_by_package - users)
  ]
  problems += [
    f'{d} is imported by tests, but not in [test]'
    for d in sorted(used_by_tests - users - extras['test'])
  ]
  used = used_by_package | used_by_tests
  launchers = [v for k, v in files.items() if k.startswith('launch/')]
  used |= {d for option, d in _OPTIONS.items() if any(option in x for x in launchers)}
  problems += [
    f'{d} is required, but nothing imports it'
    for d in sorted(users.union(extras['test']) - used)
  ]
  problems += [
    f'{d} is in requirements.txt and in [{extra}]'
    for extra, names in extras.items()
    for d in sorted(names & set(core) - {'jax', 'etils'})  # Extras of theirs.
  ]
  lines = files['requirements.txt'].splitlines()
  for before, line in zip(['', *lines], lines):
    if line and line[0] != '#' and not before.startswith('# '):
      problems.append(f'requirements.txt: no comment says what {line} is for')
  return problems


def install_problems(files: house_sources.Files) -> list[str]:
  """What users are told to install is what the extra of that name holds.

  And never this project by its name: nobody has registered it, and whoever does
  would be installed.
  """
  project = tomllib.loads(files['pyproject.toml'])['project']
  extras = {
    extra: {_name_with_extras(line) for line in lines}
    for extra, lines in project['optional-dependencies'].items()
  }
  by_name = re.compile(rf'install[^\n]*{re.escape(project["name"])}\b')
  told = re.compile(r'pip install ((?:[^\s()`]+ )+)\(the extra `(\w+)`\)')
  problems = []
  for path, text in files.items():
    if path == 'tests/house_test.py':  # It holds what must be found.
      continue
    # Over the ends of the literals of one message.
    joined = re.sub(r'[\'"]\n\s*f?[\'"]', '', text)
    problems += [
      f'{path}: {match[0]!r} names a distribution that is not ours'
      for match in by_name.finditer(joined)
    ]
    for match in told.finditer(joined):
      names = {n.strip('\'"') for n in match[1].split()}
      if names != extras.get(match[2]):
        problems.append(
          f'{path}: {match[0]!r}, but the extra holds'
          f' {sorted(extras.get(match[2], ()))}'
        )
  return problems


def _name_with_extras(line: str) -> str:
  requirement = requirements.Requirement(line)
  named = ','.join(sorted(requirement.extras))
  return requirement.name + (f'[{named}]' if named else '')


def package_problems(files: house_sources.Files) -> list[str]:
  """A wheel holds every package, and has a command for every entry point."""
  settings = tomllib.loads(files['pyproject.toml'])
  tool = settings['tool']['setuptools']
  paths = house_sources.python_files(files)
  rooms = {
    path.rpartition('/')[0].replace('/', '.')
    for path in paths
    if path.startswith('agentflow_jax/')
  }
  listed = set(tool['packages']) - set(tool['package-dir'])
  entries = {
    f'agentflow-{path.split("/")[1].removesuffix(".py").replace("_", "-")}'
    for path in paths
    if _room(path) == 'entry points'
  }
  commands = set(settings['project']['scripts'])
  return [
    *(f'pyproject.toml does not list the package {p}' for p in sorted(rooms - listed)),
    *(f'pyproject.toml lists {p}, which is not there' for p in sorted(listed - rooms)),
    *(f'pyproject.toml has no script {c}' for c in sorted(entries - commands)),
    *(
      f'pyproject.toml has {c}, but no such entry point'
      for c in sorted(commands - entries)
    ),
  ]


def ignore_problems(files: house_sources.Files) -> list[str]:
  """Lines that pyright passes over are few, and say which rule and why."""
  lines = [
    (f'{path}:{number}', line)
    for path in house_sources.python_files(files)
    if not path.startswith('tests/')
    for number, line in enumerate(files[path].splitlines(), 1)
    if re.search(r'#\s*(pyright|type):', line)
  ]
  problems = [
    f'{place} needs the form # pyright: ignore[RULE]  # REASON'
    for place, line in lines
    if not _IGNORE.search(line)
  ]
  if len(lines) > _MOST_IGNORES:
    problems.append(f'{len(lines)} lines are ignored, of {_MOST_IGNORES}')
  return problems


def lock_problems(files: house_sources.Files) -> list[str]:
  """Bazel's lock holds every @pypi label, at versions that we ask for."""
  locked = {}
  for line in files['requirements_lock.txt'].splitlines():
    if line.split('#')[0].strip():
      name, _, version = line.split(';')[0].strip().partition('==')
      locked.setdefault(utils.canonicalize_name(name), []).append(version)
  labels = set(re.findall(r'"@pypi//(\w+)"', files['BUILD']))
  problems = [
    f'@pypi//{n} is not in requirements_lock.txt'
    for n in sorted(labels)
    if n.replace('_', '-') not in locked
  ]
  project = tomllib.loads(files['pyproject.toml'])['project']
  lines = files['requirements.txt'].splitlines()
  wanted = _requirements(lines + project['optional-dependencies']['test'])
  for name in sorted(set(wanted) & set(locked)):
    specifier = requirements.SpecifierSet(wanted[name])
    if not all(v in specifier for v in locked[name]):
      problems.append(f'requirements_lock.txt has {name} not {specifier}')
  return problems


def name_problems(files: house_sources.Files) -> list[str]:
  """Modules and packages that shadow one of the standard library."""
  problems = []
  for path in house_sources.python_files(files):
    *directories, file = path.split('/')
    for name in {*directories, file.removesuffix('.py')} - {'__init__'}:
      if name in sys.stdlib_module_names:
        problems.append(f'{path}: {name} is a module of the standard library')
  return problems


def path_problems(files: house_sources.Files) -> list[str]:
  """Absolute paths of somebody's machine."""
  return [
    f'{path}:{number}: {line.strip()}'
    for path, text in files.items()
    for number, line in enumerate(text.splitlines(), 1)
    if _MACHINE_PATH.search(line)
  ]


def entry_point_problems(files: house_sources.Files) -> list[str]:
  """Entry points are short, and, with other programs, what py_binary is for."""
  paths = house_sources.python_files(files)
  targets = house_sources.parse_build(files['BUILD'], paths)
  binaries = {s for t in targets if t.rule == 'py_binary' for s in t.srcs}
  entries = {p for p in paths if _room(p) == 'entry points'}
  problems = [f'{p} is no py_binary' for p in sorted(entries - binaries)]
  programs = entries | {
    p
    for p in paths
    if p.startswith(
      ('launch/', 'docs/', 'experiments/benchmarks/', 'experiments/own_tasks/')
    )
  }
  problems += [f'{p} is no entry point' for p in sorted(binaries - programs)]
  return problems + [
    f'{p} has {lines} lines; an entry point has fewer than {_ENTRY_LINES}'
    for p in sorted(entries)
    if (lines := len(files[p].splitlines())) >= _ENTRY_LINES
  ]


def mirror_problems(files: house_sources.Files) -> list[str]:
  """tests/ mirrors the rooms, and holds tests and what they import."""
  paths = house_sources.python_files(files)
  rooms = {
    '/'.join(p.split('/')[1:-1])
    for p in paths
    if p.startswith('agentflow_jax/') and not p.endswith('/__init__.py')
  } - {''}
  tests = [p for p in paths if p.startswith('tests/')]
  tested = {'/'.join(p.split('/')[1:-1]) for p in tests if p.endswith('_test.py')} - {
    ''
  }
  imported = [house_sources.imports_of(p, files).files for p in tests]
  helped = set().union(*imported)
  problems = [f'room {r} has no tests' for r in sorted(rooms - tested)]
  problems += [
    f'tests/{r} mirrors no room'
    for r in sorted(tested - rooms - {'experiments', 'launch'})
  ]
  return problems + [
    f'{p} is neither a test nor imported by one'
    for p in tests
    if not p.endswith(('_test.py', '/__init__.py'))
    # Programs that write goldens; they are run by hand.
    and '/make_' not in p
    and p not in helped
  ]
