"""Own tools, rewards and modules in a config: what is built, and what is refused."""

import asyncio
import dataclasses
import json

import pytest
from etils import epath

from agentflow_jax import records
from agentflow_jax.agents import language_model
from agentflow_jax.assembly import own_modules, rewards, system as system_lib
from agentflow_jax.assembly import task_sets
from agentflow_jax.config import consistency, loading, overrides, own_code, schema
from agentflow_jax.config import unread
from tests.agents.endpoints import http_server
from tests.config import mini

_EXAMPLES = str(mini.ROOT / 'experiments' / 'own_code.py')
_BASE = loading.load(str(mini.ROOT / 'experiments' / 'quickstart.py'))
_TASK = records.Task('t', 'Which?', ('Oslo',), 'judge')


def _with(**values):
  return overrides.override(
    _BASE, [(name.replace('__', '.'), value) for name, value in values.items()]
  )


@pytest.mark.parametrize(
  'values, said',
  [
    ({'agent__tools__own': 'convert_length'}, 'write PATH.py:NAME'),
    ({'agent__tools__own': 'a.txt:f'}, 'write PATH.py:NAME'),
    ({'agent__tools__own': 'a.py:f()'}, 'write PATH.py:NAME'),
    ({'agent__generator__own': 'a.py'}, 'agent.generator.own'),
    ({'agent__analyst__own': 'a.py:f'}, 'agent.analyst.own: only executor'),
    ({'agent__tools__generalist__own': 'a.py:f'}, 'agent.tools.generalist.own: only'),
    ({'agent__tools__own_seconds': '3'}, 'own_seconds is set, and nothing'),
    ({'agent__tools__own_concurrency': '3'}, 'own_concurrency is set, and nothing'),
  ],
)
def test_what_names_no_code_or_is_not_read_is_refused(values, said):
  with pytest.raises(schema.ConfigError, match=said):
    consistency.check(_with(**values))


@pytest.mark.parametrize(
  'changes, said',
  [
    ({'reward_seconds': 3.0}, 'reward_seconds is set, and nothing'),
    ({'reward': 'a.txt:f'}, 'task_set.reward.*PATH.py:NAME'),
    ({'reward': 'judge'}, 'needs a language model: set task_set.judge'),
    (
      {'judge': schema.EndpointConfig(preset='vllm', model='m')},
      'task_set.judge is set, and nothing',
    ),
  ],
)
def test_so_are_rewards(tmp_path, changes, said):
  config = mini.config(tmp_path)
  config = dataclasses.replace(
    config, task_set=dataclasses.replace(config.task_set, **changes)
  )
  with pytest.raises(schema.ConfigError, match=said):
    consistency.check(config)


def test_templates_may_be_of_own_tools_and_sampling_is_of_built_in_modules():
  own = {'agent__tools__own': f'{_EXAMPLES}:count_letters'}
  config = dataclasses.replace(
    _with(**own),
    agent=dataclasses.replace(
      _with(**own).agent, executor_templates={'count_letters': '{context}'}
    ),
  )
  consistency.check(config)
  config = _with(agent__generator__own=f'{_EXAMPLES}:LastResult')
  with pytest.raises(schema.ConfigError, match='a built-in module'):
    unread.check_flags(config, ['agent.generator.sampling.temperature'])
  config = _with(agent__tools__enabled='python')
  with pytest.raises(schema.ConfigError, match='the tool search'):
    unread.check_flags(config, ['agent.tools.search_passage_chars'])


def _built(tmp_path, config):
  built = system_lib.build(config, epath.Path(tmp_path / 'out'))
  asyncio.run(built.close())
  return built


@pytest.mark.parametrize(
  'name, source, said',
  [
    ('search', 'def search(x: str):\n  """S."""', "a tool 'search' already"),
    ('wikipedia', 'def wikipedia(x: str):\n  """W."""', 'already'),
    ('f', 'def f(x): pass', 'agent.tools.own: .*needs a docstring'),
    ('g', '1 / 0', 'agent.tools.own: .*ZeroDivisionError'),
  ],
)
def test_tools_that_cannot_be_had_are_refused(tmp_path, name, source, said):
  path = tmp_path / 'mine.py'
  path.write_text(source)
  config = overrides.override(
    mini.config(tmp_path / 'in'), [('agent.tools.own', f'{path}:{name}')]
  )
  with pytest.raises(schema.ConfigError, match=said):
    _built(tmp_path, config)


def test_the_examples_are_built_beside_what_there_is(tmp_path):
  config = overrides.override(
    mini.config(tmp_path / 'in'),
    [
      ('agent.tools.own', f'{_EXAMPLES}:convert_length,{_EXAMPLES}:count_letters'),
      ('agent.generator.own', f'{_EXAMPLES}:LastResult'),
      ('task_set.reward', f'{_EXAMPLES}:right_and_brief'),
    ],
  )
  consistency.check(config)
  built = _built(tmp_path, config)
  assert list(built.agent.tools) == [
    'search',
    'python',
    'convert_length',
    'count_letters',
  ]
  assert type(built.agent.generator).__name__ == 'LastResult'
  assert own_code.digests(config).keys() == {_EXAMPLES}


_MODULES = """
class Good:
  async def answer(self, view): return 'g'

good = Good()

class WithModel:
  def __init__(self, model): self.model = model
  async def answer(self, view): return 'm'

def make(): return Good()
class Blocks:
  def answer(self, view): return 'b'
class Other:
  async def judge(self, view, plan, entry): return True, ''
class Broken:
  def __init__(self): raise RuntimeError('no luck')
number = 3
"""


@pytest.mark.parametrize('name', ['Good', 'good', 'make'])
def test_a_module_is_an_object_or_what_makes_one(tmp_path, name):
  (tmp_path / 'm.py').write_text(_MODULES)
  role = schema.ModuleConfig(own=f'{tmp_path}/m.py:{name}')
  made = own_modules.load(role, 'generator', {})
  assert asyncio.run(made.answer(None)) == 'g'


def test_one_that_takes_a_model_is_given_that_of_its_backend(tmp_path):
  (tmp_path / 'm.py').write_text(_MODULES)
  role = schema.ModuleConfig(backend='frozen', own=f'{tmp_path}/m.py:WithModel')
  assert own_modules.load(role, 'generator', {'frozen': 'F'}).model == 'F'


@pytest.mark.parametrize(
  'name, backend, said',
  [
    ('Blocks', 'rule', 'needs `async def answer`'),
    ('Other', 'rule', 'needs `async def answer`'),
    ('number', 'rule', 'needs `async def answer`'),
    ('Broken', 'rule', 'RuntimeError: no luck'),
    ('Missing', 'rule', "has no 'Missing'"),
    ('WithModel', 'rule', "backend to 'frozen' or 'endpoint'"),
    ('Good', 'frozen', 'backend is set, and Good takes no argument'),
  ],
)
def test_what_is_no_module_is_refused(tmp_path, name, backend, said):
  (tmp_path / 'm.py').write_text(_MODULES)
  role = schema.ModuleConfig(backend=backend, own=f'{tmp_path}/m.py:{name}')
  with pytest.raises(schema.ConfigError, match=said):
    own_modules.load(role, 'generator', {'frozen': 'F'})


def test_tasks_of_an_own_reward_need_no_answer(tmp_path):
  path = tmp_path / 't.jsonl'
  path.write_text('{"query": "Write a haiku."}\n{"query": "And?", "answer": "x"}\n')
  tasks = task_sets.read_jsonl(str(path), f'{_EXAMPLES}:right_and_brief')
  assert [t.answers for t in tasks] == [(), ('x',)]
  with pytest.raises(schema.ConfigError, match='"answer" is missing'):
    task_sets.read_jsonl(str(path), 'exact_match')


def _judged(reply, answer='It is Oslo.'):
  with http_server.Server(reply) as server:
    config = schema.TaskSetConfig(
      kind='jsonl',
      reward='judge',
      judge=schema.EndpointConfig(base_url=server.url, model='m', max_attempts=1),
    )
    clients = []
    made = rewards.make(config, ['judge'], None, clients=clients)

    async def main():
      try:
        return await made(_TASK, records.Ending(records.Status.ANSWERED, answer))
      finally:
        await clients[0].aclose()

    return asyncio.run(main()), server.requests


@pytest.mark.parametrize('correct', [True, False])
def test_a_judge_s_verdict_is_the_reward(correct):
  reply = http_server.completion(
    json.dumps({'analysis': 'because', 'correct': correct})
  )
  reward, requests = _judged(http_server.Reply(body=reply))
  assert reward == float(correct)
  sent = json.dumps(requests[0][2])
  assert 'It is Oslo.' in sent and 'Which?' in sent
  reward, requests = _judged(http_server.Reply(body=reply), answer=' ')
  assert reward == 0.0 and not requests


@pytest.mark.parametrize(
  'reply',
  [
    http_server.Reply(status=500),
    http_server.Reply(body=http_server.completion('I cannot tell.')),
  ],
)
def test_a_judge_without_a_verdict_gives_no_reward(reply):
  with pytest.raises(language_model.Unreachable, match='judge'):
    _judged(reply)


def test_a_judge_needs_acceptable_answers():
  config = schema.TaskSetConfig(
    kind='jsonl',
    reward='judge',
    judge=schema.EndpointConfig(base_url='http://127.0.0.1:1/v1', model='m'),
  )
  made = rewards.make(config, ['judge'], None)
  with pytest.raises(ValueError, match='needs answers'):
    made.check(dataclasses.replace(_TASK, answers=()))
