"""The documentation agrees with the code, and its examples run."""

import asyncio
import json
import os
import pathlib
import subprocess
import sys

import pytest

from agentflow_jax import records
from agentflow_jax.agents import memory, modules
from agentflow_jax.agents.environments.own import environment as own_environment
from agentflow_jax.agents.rewards import own_reward
from agentflow_jax.agents.tools import base, own_tool
from agentflow_jax.assembly import own_modules, task_sets
from agentflow_jax.config import consistency, loading, schema
from docs import make_config
from tests import docs_checks
from tests import house_checks
from tests import house_sources

_ROOT = pathlib.Path(__file__).parents[1]
_CHECKS = (
  docs_checks.link_problems,
  docs_checks.page_problems,
  docs_checks.extra_problems,
  docs_checks.field_problems,
  docs_checks.flag_problems,
  docs_checks.command_problems,
  docs_checks.contract_problems,
)
# Addresses that pages link to. They are not opened by a test.
_EXTERNAL = {
  'https://arxiv.org/abs/2510.05592',
  'https://github.com/containers/bubblewrap',
  'https://pypi.org/project/pydantic-monty/',
  'https://www.geonames.org',
}

# A small documentation that is in order, and what each change makes of it.
_SMALL = {
  'README.md': (
    '# A project\n\n[design](docs/design.md#contract-1-one-policy) sets'
    ' `train.steps`, `planner.lora` and `--quiet`.\n\n'
    "```bash\npip install -e '.[web]'; bash launch/run.sh --dry_run --"
    ' --workdir=D\n'
    'python -m agentflow_jax.train --config=X.py --config.train.steps=3 \\\n'
    '    --quiet  # again\n```\n\n| `web` | the web |\n'
  ),
  'docs/design.md': '# Design\n\n### Contract 1: one policy\n\n[up](../README.md)\n',
  'launch/run.sh': '--dry_run\n',
  'agentflow_jax/train.py': (
    "# contract 1\nflags.DEFINE_bool(\n    'quiet', False)\n"
    "flags.DEFINE_string('workdir', None)\n"
  ),
  'agentflow_jax/runtime/command_line.py': "flags.DEFINE_string(\n  'config', None)",
  'pyproject.toml': '[project.optional-dependencies]\nweb = []\n',
}
_MUTATIONS = [
  # (check, path, old, new, problem that it must report)
  ('link', 'README.md', 'docs/design.md#', 'docs/desing.md#', 'no docs/desing.md'),
  ('link', 'README.md', '#contract-1-one', '#contract-one', 'has no heading'),
  ('link', 'docs/design.md', '../README', 'README', 'there is no docs/README.md'),
  ('page', 'README.md', '# A', '\n' * 200 + '# A', 'more than 200'),
  (
    'page',
    'README.md',
    '[design](docs/design.md#contract-1-one-policy)',
    'It',
    'no page links to docs/design.md',
  ),
  ('extra', 'README.md', '`web`', '`wed`', 'the table of extras lacks web'),
  ('field', 'README.md', '`train.steps`', '`train.step`', '`train.step` is no field'),
  ('field', 'README.md', '`planner.lora`', '`planner.lora.q=1`', 'is no field'),
  ('flag', 'README.md', '`--quiet`', '`--silent`', 'no program has --silent'),
  ('command', 'README.md', '--quiet  #', '--silent  #', 'train has no --silent'),
  (
    'command',
    'README.md',
    'agentflow_jax.train',
    'agentflow_jax.drain',
    'no program agentflow_jax.drain',
  ),
  ('command', 'README.md', 'train.steps=3', 'train.step=3', 'no such field'),
  ('command', 'README.md', 'train.steps=3', 'train.steps=x', 'is not a int'),
  ('command', 'README.md', 'launch/run.sh', 'launch/runs.sh', 'no launch/runs.sh'),
  ('command', 'README.md', '--dry_run', '--dry', 'launch/run.sh has no --dry'),
  ('command', 'README.md', '--workdir=D', '--word=D', 'train has no --word'),
  ('command', 'README.md', '[web]', '[wed]', 'there is no extra wed'),
  (
    'contract',
    'agentflow_jax/train.py',
    'contract 1',
    'contract 9',
    'cites contract 9',
  ),
]


@pytest.fixture(scope='module', name='files')
def _files():
  return house_sources.read_files(_ROOT)


@pytest.mark.parametrize('check', _CHECKS, ids=lambda check: check.__name__)
def test_the_documentation_is_in_order(files, check, monkeypatch):
  monkeypatch.chdir(_ROOT)
  assert check(files) == []


@pytest.mark.parametrize('check', _CHECKS, ids=lambda check: check.__name__)
def test_the_small_documentation_is_in_order(check, monkeypatch):
  monkeypatch.chdir(_ROOT)
  assert check(_SMALL) == []


@pytest.mark.parametrize(
  ('name', 'path', 'old', 'new', 'problem'), _MUTATIONS, ids=[m[4] for m in _MUTATIONS]
)
def test_each_check_can_fail(name, path, old, new, problem, monkeypatch):
  monkeypatch.chdir(_ROOT)
  assert old in _SMALL[path]
  changed = _SMALL | {path: _SMALL[path].replace(old, new)}
  problems = getattr(docs_checks, f'{name}_problems')(changed)
  assert any(problem in p for p in problems), problems


def test_a_command_whose_config_is_refused_is_found(monkeypatch):
  """Each field exists, but nothing would open such worlds."""
  monkeypatch.chdir(_ROOT)
  block = (
    '```bash\npython -m agentflow_jax.train --config=experiments/quickstart.py'
    ' --config.agent.environment.kind=desk\n```\n'
  )
  files = house_sources.read_files(_ROOT) | {'README.md': block}
  assert any(
    p.startswith('README.md: agentflow_jax.train --config=experiments/quickstart.py')
    for p in docs_checks.command_problems(files)
  )


def test_addresses_outside_are_those_that_are_listed(files):
  assert docs_checks.external_links(files) == _EXTERNAL


def test_the_rooms_of_the_design_are_those_that_the_house_tests(files):
  assert docs_checks.rooms(files) == house_checks.ARROWS


def test_the_list_of_fields_is_current():
  assert make_config.PATH.read_text() == make_config.page(), (
    'run python docs/make_config.py'
  )


# Commands and rows, as a reader copies them.


def _cheap(files, page, tmp_path):
  """Writes the configs of a page's examples, and returns its cheap commands."""
  examples = docs_checks.examples(files[page])
  for name, text in examples.items():
    (tmp_path / name).write_text(text)
  return [
    [
      word.replace('--config=', f'--config={tmp_path}/')
      if word.removeprefix('--config=') in examples
      else word
      for word in words
    ]
    for words in docs_checks.cheap_commands(files[page])
  ]


@pytest.mark.parametrize(
  ('page', 'count'),
  [('docs/scaling.md', 11), ('docs/tasks.md', 1), ('docs/extending.md', 1)],
)
def test_the_cheap_commands_of_a_page_run(files, page, count, tmp_path):
  found = _cheap(files, page, tmp_path)
  assert len(found) == count
  for words in found:
    if words[0] == 'python':
      words[0] = sys.executable
    if any(word.startswith('--submit=') for word in words):
      words.append('--only=seed=0')
    done = subprocess.run(
      words,
      cwd=_ROOT,
      env=os.environ | {'PYTHONPATH': str(_ROOT), 'AGENTFLOW_VENV': '/nowhere'},
      stdin=subprocess.DEVNULL,
      capture_output=True,
      text=True,
      check=False,
    )
    assert done.returncode == 0 and done.stdout, (words, done.stderr)


def test_the_rows_of_the_tasks_page_are_read(files, tmp_path):
  blocks = docs_checks.blocks(files['docs/tasks.md'], 'json')
  (tmp_path / 'rows.jsonl').write_text(''.join(blocks))
  tasks = task_sets.read_jsonl(str(tmp_path / 'rows.jsonl'), 'contains')
  assert [task.answers for task in tasks] == [
    ('38500000',),
    ('Portugal', 'the Portuguese Republic'),
    ('38500000',),
  ]
  assert len(json.loads(tasks[2].tags['plans'])) == 1


# The Python examples of docs/extending.md.


@pytest.fixture(name='written')
def _written(files, tmp_path):
  """Writes the examples and returns their directory."""
  examples = docs_checks.examples(files['docs/extending.md'])
  for name, text in examples.items():
    (tmp_path / name).write_text(text)
  assert {p.name for p in tmp_path.iterdir()} == {
    'my_tools.py',
    'my_reward.py',
    'my_generator.py',
    'my_environment.py',
    'write_tasks.py',
    'my_config.py',
  }
  return tmp_path


def test_the_tool_of_the_page_runs(written):
  tool = own_tool.make(
    str(written / 'my_tools.py'), 'convert_temperature', seconds=30, processes=1
  )

  async def call(**arguments):
    return await tool.call(base.check_arguments(tool.card, arguments))

  async def run():
    assert tool.card.name == 'convert_temperature'
    assert tool.card.purpose.startswith('Converts a temperature')
    assert await call(degrees=100, to='fahrenheit') == '212.0 fahrenheit'
    assert await call(degrees=212, to='celsius') == '100.0 celsius'
    with pytest.raises(base.BadArguments, match='unknown scale'):
      await call(degrees=1, to='kelvin')
    await tool.close()

  asyncio.run(run())


def test_the_reward_of_the_page_runs(written):
  path = str(written / 'my_reward.py')
  reward = own_reward.make('mine', path, 'right_and_short', seconds=30, processes=1)
  task = records.Task('t', 'Which?', ('Oslo',), 'mine')

  async def run():
    found = await reward(task, 'It is Oslo.'), await reward(task, 'Rome ' * 9)
    await reward.aclose()
    return found

  right, wrong = asyncio.run(run())
  assert right == {'right': 1.0, 'short': 0.1} and wrong == {'right': 0.0, 'short': 0.0}


class _Model:
  """Returns what it is asked."""

  async def generate(self, prompt, sampling, key):
    assert key.module == 'generator' and sampling.max_new_tokens == 24
    assert [s.trusted for s in prompt] == [True, False]
    return records.Completion(f' {prompt[1].text} ')


def test_the_module_of_the_page_runs(written):
  role = schema.ModuleConfig('frozen', own=f'{written / "my_generator.py"}:Brief')
  module = own_modules.load(role, 'generator', {'frozen': _Model()})
  key = records.RequestKey(0, records.Purpose.SOLVE, 0, 't', 0)
  view = modules.View('t', memory.Memory('Which?'), (), key)
  assert asyncio.run(module.answer(view)) == 'Which?'


def test_the_environment_of_the_page_runs(written):
  environment = own_environment.OwnEnvironment(
    str(written / 'my_environment.py'), 'Till', seconds=30, concurrency=1
  )
  row = {'price': 35, 'coins': [20, 10, 5, 5]}
  task = records.Task(
    't',
    'Pay the coffee.',
    (),
    'environment',
    world=records.World('Till', {'row': row}, checks=(own_environment.CHECK,)),
  )

  async def run():
    key = records.RequestKey(0, records.Purpose.TRAIN, 0, 't', 0)
    episode = await environment.open(task, key)
    assert episode.brief.policy.startswith('The price is 35.')
    for coin in (20, 10, 5):
      await episode.tools['pay'].call({'coin': coin})
    with pytest.raises(base.BadArguments, match='no coin of 20'):
      await episode.tools['pay'].call({'coin': 20})
    await episode.tools['leave'].call({})
    verdict = await episode.verify(records.Ending(records.Status.ANSWERED))
    await episode.close()
    await environment.close()
    return episode.ended, verdict

  ended, verdict = asyncio.run(run())
  assert ended and verdict.success and verdict.reward == 1


def test_the_tasks_of_the_page_can_be_read(written, monkeypatch):
  monkeypatch.chdir(written)
  names = {'__name__': '__main__'}
  exec((written / 'write_tasks.py').read_text(), names)
  train = task_sets.read_jsonl('train.jsonl', 'contains')
  test = task_sets.read_jsonl('test.jsonl', 'contains')
  assert [t.answers for t in train + test] == [(c,) for c in names['CAPITALS'].values()]
  assert len(json.loads(train[0].tags['plans'])) == 1 and not train[1].tags


def test_the_config_of_the_page_is_accepted(written, monkeypatch):
  monkeypatch.chdir(_ROOT)
  path = str(written / 'my_config.py')
  config = loading.load(path, [('flow_grpo.kl_coef', '0.5')])
  consistency.check(config)
  assert (config.name, config.seed, config.train.steps) == ('my_config', 7, 10)
  runs = schema.load_module(path).get_sweep()
  assert len(runs) == 6
  assert loading.load(path, list(runs[-1].items())).seed == 1
