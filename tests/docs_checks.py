"""What the documentation is held to: links, fields, commands, flags, contracts.

Each check takes the texts of a repository and returns a list of problems, so that
docs_test.py can show on a small example that it is able to fail.
"""

import posixpath
import re
import shlex
import tomllib
from collections.abc import Iterator

from agentflow_jax.config import consistency, fields, loading, overrides, schema, unread
from tests import house_sources

_README_LINES = 200
_LINK = re.compile(r'!?\[[^\]]*\]\(([^()\s]+)\)')
_SPAN = re.compile(r'`([^`\n]+)`')
_FENCE = re.compile(r'^```(\w*)\n(.*?)^```', re.MULTILINE | re.DOTALL)
_HEADING = re.compile(r'^#+ (.+)$', re.MULTILINE)
_ROW = re.compile(r'^\| `([^`|]+)` \|.*\| ([^|]+) \|$', re.MULTILINE)
_DEFINED = re.compile(r"DEFINE_\w+\(\s*'(\w+)'")
_FLAG = re.compile(r'--([a-z]\w*)')
_FIELD = re.compile(r'([a-z_]+(?:\.[a-z]\w*)+)(?:=.*)?')
# Of files, which look like fields.
_SUFFIXES = ('.py', '.md', '.json', '.jsonl')
_CITED = re.compile(r'\bcontract (\d+)')
# Words of absl, bash and pytest, and operators of a shell.
_ALWAYS = frozenset({'help', 'verbosity', 'no-deps'})
_CONFIG_FLAGS = 'agentflow_jax/runtime/command_line.py'
_DESIGN = 'docs/design.md'


def pages(files: house_sources.Files) -> list[str]:
  """Returns the paths of all pages of the documentation."""
  top = [p for p in files if p.endswith('.md') and '/' not in p]
  return top + [p for p in files if p.startswith('docs/') and p.endswith('.md')]


def _prose(text: str) -> str:
  return _FENCE.sub('', text)


def _links(text: str) -> list[str]:
  return _LINK.findall(_SPAN.sub('', _prose(text)))


def _anchors(text: str) -> set[str]:
  """Returns the anchors of a page's headings, as GitHub makes them."""
  return {
    re.sub(r'[^\w\- ]', '', heading.strip().lower()).replace(' ', '-')
    for heading in _HEADING.findall(_prose(text))
  }


def external_links(files: house_sources.Files) -> set[str]:
  """Returns the addresses outside of the repository that pages link to."""
  found = {link for page in pages(files) for link in _links(files[page])}
  return {link for link in found if '://' in link}


def link_problems(files: house_sources.Files) -> list[str]:
  """Relative links name a file or directory, and anchors one of its headings."""
  places = set(files).union(*(_above(path) for path in files))
  problems = []
  for page in pages(files):
    for link in _links(files[page]):
      if '://' in link:
        continue
      name, _, anchor = link.partition('#')
      target = page
      if name:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(page), name))
      if target not in places:
        problems.append(f'{page}: {link}: there is no {target}')
      elif anchor and anchor not in _anchors(files.get(target, '')):
        problems.append(f'{page}: {link}: {target} has no heading #{anchor}')
  return problems


def _above(path: str) -> set[str]:
  parts = path.split('/')
  return {'/'.join(parts[:end]) for end in range(1, len(parts))}


def page_problems(files: house_sources.Files) -> list[str]:
  """The README is short, and leads to every page."""
  lines = len(files['README.md'].splitlines())
  problems = []
  if lines > _README_LINES:
    problems.append(f'README.md has {lines} lines, more than {_README_LINES}')
  linked = {
    posixpath.normpath(posixpath.join(posixpath.dirname(page), link.partition('#')[0]))
    for page in pages(files)
    for link in _links(files[page])
  }
  return problems + [
    f'no page links to {page}'
    for page in pages(files)
    if page != 'README.md' and page not in linked
  ]


def extra_problems(files: house_sources.Files) -> list[str]:
  """The table of extras in the README has all that a user may install."""
  project = tomllib.loads(files['pyproject.toml'])['project']
  rows = re.findall(r'^\| (`[^|]+) \|', files['README.md'], re.MULTILINE)
  named = {name for row in rows for name in _SPAN.findall(row)}
  return [
    f'README.md: the table of extras lacks {extra}'
    for extra in project['optional-dependencies']
    if extra not in named
  ]


def field_problems(files: house_sources.Files) -> list[str]:
  """Config fields in code font, such as `train.steps`, exist."""
  known = set(fields.every())
  known |= {
    '.'.join(name.split('.')[:end])
    for name in known
    for end in range(1, name.count('.') + 1)
  }
  tops = {name.partition('.')[0] for name in known}
  problems = []
  for page in pages(files):
    for span in _SPAN.findall(_prose(files[page])):
      match = _FIELD.fullmatch(span)
      if not match or match[1].partition('.')[0] not in tops:
        continue
      if match[1] not in known and not match[1].endswith(_SUFFIXES):
        problems.append(f'{page}: `{span}` is no field of the config')
  return problems


def flag_problems(files: house_sources.Files) -> list[str]:
  """Flags in code font, such as `--step_seconds`, are those of some program."""
  programs = [
    text
    for path, text in files.items()
    if path.startswith(('launch/', 'experiments/benchmarks/'))
    or path == _CONFIG_FLAGS
    or path.startswith('agentflow_jax/')
    and path.count('/') == 1
  ]
  known = _ALWAYS.union(
    *(_DEFINED.findall(text) for text in programs),
    *(_FLAG.findall(text) for text in programs),
    *(re.findall(r"'(\w+)'", text) for text in programs),
  )
  problems = []
  for page in pages(files):
    for span in _SPAN.findall(_prose(files[page])):
      for name in _FLAG.findall(span) if span.startswith('--') else ():
        if name != 'config' and name not in known:
          problems.append(f'{page}: `{span}`: no program has --{name}')
  return problems


def commands(text: str) -> Iterator[list[str]]:
  """Yields the commands of a page's bash blocks, split into words."""
  for language, block in _FENCE.findall(text):
    if language != 'bash':
      continue
    for line in block.replace('\\\n', ' ').splitlines():
      lexer = shlex.shlex(line, posix=True, punctuation_chars=';')
      lexer.whitespace_split = True
      words = list(lexer)
      while words:
        end = words.index(';') if ';' in words else len(words)
        yield words[:end]
        words = words[end + 1 :]


def command_problems(files: house_sources.Files) -> list[str]:
  """Commands in bash blocks name programs, flags, extras and fields that exist."""
  problems = []
  for page in pages(files):
    for words in commands(files[page]):
      problems += [f'{page}: {p}' for p in _command(words, files)]
  return problems


def _command(words: list[str], files: house_sources.Files) -> list[str]:
  if words[0].startswith('--config.'):
    words = ['python', '-m', 'agentflow_jax.train', *words]
  if '--' in words:
    at = words.index('--')
    rest = words[at + 1 :]
    problems = _command(words[:at], files)
    if rest[:1] == ['python']:
      return problems + _command(rest, files)
    wanted = [w.split('=')[1] for w in words[:at] if w.startswith('--program=')]
    program = f'agentflow_jax.{(wanted or ["train"])[0]}'
    return problems + _command(['python', '-m', program, *rest], files)
  if words[:2] == ['pip', 'install']:
    return _extras(words, files)
  while words and ('=' in words[0] and not words[0].startswith('-')):
    words = words[1:]  # A variable of the environment.
  if words[:2] == ['python', '-m'] and words[2].startswith('agentflow_jax.'):
    return _entry(words[2:], files)
  runs = {'python': 1, 'bash': 1, 'sbatch': 1}.get(words[0])
  if runs is None:
    return []
  scripts = [w for w in words[1:] if re.fullmatch(r'[\w./]+\.(?:py|sh|sbatch)', w)]
  if not scripts:
    return [f'{" ".join(words)}: names no program']
  script = scripts[0]
  if script not in files and not script.endswith('.sbatch'):
    return [f'there is no {script}']
  text = files.get(script, '')
  after = words[words.index(script) :]
  given = [name for word in after for name in _FLAG.findall(word.split('=')[0])]
  return [
    f'{script} has no --{name}'
    for name in given
    if text and not re.search(rf'\b{name}\b', text)
  ]


def _extras(words: list[str], files: house_sources.Files) -> list[str]:
  project = tomllib.loads(files['pyproject.toml'])['project']
  known = project['optional-dependencies']
  return [
    f'{" ".join(words)}: there is no extra {extra}'
    for word in words
    for named in re.findall(r'^\.\[(.*)\]$', word)
    for extra in named.split(',')
    if extra not in known
  ]


def _entry(words: list[str], files: house_sources.Files) -> list[str]:
  """Checks a command of the package: its flags, and that its config is accepted."""
  program = words[0].partition('.')[2]
  path = f'agentflow_jax/{program}.py'
  if path not in files:
    return [f'there is no program {words[0]}']
  known = _ALWAYS.union(_DEFINED.findall(files[path]))
  takes_config = 'takes_config=False' not in files[path]
  if takes_config:
    known |= set(_DEFINED.findall(files[_CONFIG_FLAGS]))
  given = [w for w in words[1:] if w.startswith('--')]
  problems, said, config = [], [], ''
  for flag in given:
    name, _, value = flag.removeprefix('--').partition('=')
    if name.startswith('config.') and takes_config:
      said.append((name.removeprefix('config.'), value))
    elif name not in known:
      problems.append(f'{words[0]} has no --{name}')
    elif name == 'config':
      config = value
  if problems or not said and config not in files:
    return problems
  # Without a config of the repository, the run in --workdir has one.
  example = config if config in files else 'experiments/quickstart.py'
  try:
    found = (
      loading.load(example, said)
      if config in files
      else overrides.override(loading.load(example), said)
    )
    if config in files:
      consistency.check(found)
      unread.check_flags(found, [name for name, _ in said])
  except schema.ConfigError as e:
    return [f'{" ".join(words)}: {e}']
  return []


# Launchers that print with --dry_run what they would do.
_DRY = (
  'launch/download_data.py',
  'launch/gke.sh',
  'launch/gpu_node.sh',
  'launch/local.py',
  'launch/setup_host.sh',
  'launch/tpu_vm.sh',
)
_TRAINS = ('--config=experiments/quickstart.py', '--workdir=gs://bucket/run')


def cheap_commands(text: str) -> Iterator[list[str]]:
  """Yields the commands of a page that a test can run, so that they change nothing.

  These are the launchers with --dry_run, and sweeps that print or submit their runs.
  FLAGS become flags of the train program.
  """
  for words in commands(text):
    if words[:1] == ['sbatch']:
      script = words.index('launch/slurm.sbatch')
      words = ['bash', words[script], '--dry_run', *words[script + 1 :]]
    elif len(words) > 1 and words[1] in _DRY:
      end = words.index('--') if '--' in words else len(words)
      words = [*words[:end], '--dry_run', *words[end:]]
    elif words[1:2] == ['launch/sweep.py'] and '--run' not in words:
      words = [
        re.sub(r'^(--submit=bash \S+ \w+)', r'\1 --dry_run', word).replace(
          '--submit=sbatch launch/slurm.sbatch',
          '--submit=bash launch/slurm.sbatch --dry_run',
        )
        for word in words
      ]
    else:
      continue
    flags = _TRAINS if 'FLAGS' in words else ()
    yield [*(word for word in words if word != 'FLAGS'), *flags]


def contract_problems(files: house_sources.Files) -> list[str]:
  """Contracts that the code cites are headings of the design."""
  headings = ' '.join(_HEADING.findall(files[_DESIGN])).lower()
  known = set(_CITED.findall(headings))
  return [
    f'{path} cites contract {number}, which {_DESIGN} does not have'
    for path, text in files.items()
    if path.endswith(('.py', '.md')) and not path.startswith('tests/docs_')
    for number in sorted(set(_CITED.findall(text)) - known)
  ]


def rooms(files: house_sources.Files) -> dict[str, set[str]]:
  """Returns the arrows of the table in the design: room -> rooms that it imports."""
  _, _, below = files[_DESIGN].partition('| room | what is in it | imports |')
  table, _, _ = below.partition('\n\n')
  return {
    room: set() if said == 'nothing' else set(said.split(', '))
    for room, said in _ROW.findall(table)
  }


def blocks(text: str, language: str) -> list[str]:
  """Returns the texts of a page's blocks of a language."""
  return [block for name, block in _FENCE.findall(text) if name == language]


def examples(text: str) -> dict[str, str]:
  """Returns the Python examples of a page: file name of the first comment -> text."""
  found = {}
  for language, block in _FENCE.findall(text):
    if language == 'python' and block.startswith('# '):
      name = block.split('\n', 1)[0].removeprefix('# ').strip()
      found[name] = block
  return found
