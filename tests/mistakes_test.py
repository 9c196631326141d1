"""Mistakes in flags, files and workdirs: one line, exit code 2, nothing compiled.

Each command runs in a child of its own, because absl keeps the flags of a process
in one place; a child is given all mistakes of its command, one after the other. Some
mistakes are made once more as a user makes them, with a real command.
"""

import json
import os
import socket
import subprocess
import sys

import pytest

from tests.config import mini

_QUICKSTART = 'experiments/quickstart.py'
_OWN = (
  '--config=experiments/own_tasks.py',
  '--workdir={new}',
  '--config.planner.directory={root}/experiments/geohop_planner',
  '--config.planner.max_prompt_tokens=176',
  '--config.engine.max_prompt_tokens=176',
  '--config.task_set.train={dir}/good.jsonl',
  '--config.task_set.evaluation={dir}/held_out.jsonl',
  '--config.agent.tools.corpus={dir}/articles',
)
_TRAIN = (f'--config={_QUICKSTART}', '--workdir={new}')

# Command, flags, what the message says. '{dir}' is where the files of `_files` are,
# '{new}' a workdir that does not exist, '{root}' the repository.
_MISTAKES = [
  (
    'train',
    ('--workdir={new}',),
    '--config is missing, and there is no run in {new}: give',
  ),
  ('train', ('--config=nowhere.py', '--workdir={new}'), 'no file nowhere.py'),
  ('train', ('--config={dir}', '--workdir={new}'), '--config: no file'),
  (
    'train',
    ('--config={dir}/syntax.py', '--workdir={new}'),
    'syntax.py, line 2: SyntaxError',
  ),
  (
    'train',
    ('--config={dir}/raises.py', '--workdir={new}'),
    "raises.py, line 3: KeyError: 'rate'",
  ),
  (
    'train',
    ('--config={dir}/refused.py', '--workdir={new}'),
    'refused.py, line 4: ConfigError: train.steps must be at least 1',
  ),
  (
    'train',
    ('--config={dir}/articles/../raises.py', '--workdir={new}'),
    "raises.py, line 3: KeyError: 'rate'",
  ),
  (
    'train',
    ('--config={dir}/imports.py', '--workdir={new}'),
    'imports.py, line 1: ModuleNotFoundError: No module named',
  ),
  ('train', ('--config={dir}/without.py', '--workdir={new}'), 'has no get_config()'),
  (
    'train',
    ('--config={dir}/returns.py', '--workdir={new}'),
    'get_config() returned dict',
  ),
  ('train', ('--config={dir}/broken.json', '--workdir={new}'), 'broken.json: not JSON'),
  (
    'train',
    ('--config={dir}/newer.json', '--workdir={new}'),
    'there is no field train.patience',
  ),
  (
    'train',
    (*_TRAIN, '--config.lr=1'),
    '--config.lr: there is no such field; did you mean'
    ' --config.optimizer.learning_rate?',
  ),
  ('train', (*_TRAIN, '--config.agent.plan_format=code'), 'agent.code.sandbox=monty'),
  ('train', (*_TRAIN, '--config.task_set.distractors=3'), 'task_set.distractors is'),
  (
    'train',
    (*_TRAIN, '--config.agent.environment.faults=0.1'),
    'agent.environment.faults is set, and nothing',
  ),
  ('train', (*_TRAIN, '--config.agent.environment.faults=2'), 'at least 0 and below 1'),
  ('train', (*_TRAIN, '--config.reward.weights={{"sucess": 1}}'), "no term 'sucess'"),
  (
    'train',
    (*_TRAIN, '--config.reward.weights={{"success": 1, "calls": -1}}'),
    'below the weight of success',
  ),
  (
    'train',
    (*_TRAIN, '--config.reward.weights={{"success": 1, "refusal": 0.1}}'),
    'reads the checks of a world',
  ),
  ('train', (*_TRAIN, '--config.reward.answer=f1'), 'it is for reward.weights'),
  ('train', (*_TRAIN, '--config.flow_grpo.terms=normalised'), 'needs terms'),
  (
    'train',
    (*_TRAIN, '--config.train.drop_solved=1', '--config.train.rollout_records=none'),
    'set train.rollout_records=all',
  ),
  ('train', (*_TRAIN, '--config.agent.code.calls=3'), 'it is for agent.code.sandbox'),
  ('train', (*_TRAIN, '--config.agent.code.sandbox=docker'), 'docker'),
  (
    'train',
    (*_TRAIN, '--config.agent.code.sandbox=monty', '--config.agent.code.calls=0'),
    'agent.code.calls must be positive',
  ),
  ('train', (*_TRAIN, '--config.train.step=1'), 'did you mean --config.train.steps'),
  ('train', (*_TRAIN, '--config.train.steps=many'), 'is not a int'),
  ('train', (*_TRAIN, '--config.train.steps=0'), 'train.steps must be at least 1'),
  ('train', (*_TRAIN, '--config.train.steps'), 'write --config.train.steps=VALUE'),
  ('train', (*_TRAIN, '--config.train=3'), 'name one of its fields'),
  ('train', (*_TRAIN, '--config.seed.x=3'), "'seed' has no fields"),
  (
    'train',
    (*_TRAIN, '--config.algorithm=ppo'),
    "must be one of ['flow_grpo', 'sft', 'none']",
  ),
  ('train', (*_TRAIN, '--config.optimizer.schedule=cosine'), 'total_steps goes with'),
  ('train', (*_TRAIN, '--config.sft.traces=3'), 'nothing would read it'),
  (
    'train',
    (*_TRAIN, '--learning_rate=1'),
    '--learning_rate: there is no such flag; did you mean',
  ),
  ('train', (*_TRAIN, 'runs/x'), "not a flag: 'runs/x'"),
  ('train', (f'--config={_QUICKSTART}',), '--workdir'),
  ('train', (f'--config={_QUICKSTART}', '--workdir='), '--workdir is empty'),
  (
    'train',
    (f'--config={_QUICKSTART}', '--workdir={dir}/good.jsonl'),
    'cannot be used',
  ),
  ('train', (*_TRAIN, '--profile_steps=x'), '--profile_steps'),
  ('train', (*_TRAIN, '--config.train.group_size=1'), 'train.group_size'),
  ('train', (*_TRAIN, '--config.train.mini_batches=5'), 'must divide'),
  (
    'train',
    (*_TRAIN, '--config.planner.sampling.max_new_tokens=64'),
    'exceeds engine.max_new_tokens',
  ),
  (
    'train',
    (*_TRAIN, '--config.planner.max_prompt_tokens=1000'),
    'batch.tokens_per_row 256 cannot hold',
  ),
  ('train', (*_TRAIN, '--config.planner.sampling.top_k=5'), 'set engine.max_kept'),
  ('train', (*_TRAIN, '--config.mesh.fsdp=3', '--config.mesh.data=1'), 'mesh: '),
  ('train', (*_OWN, '--config.agent.tools.enabled=search,bash'), "unknown tool 'bash'"),
  (
    'train',
    (*_TRAIN, '--config.agent.executor.backend=endpoint'),
    'agent.executor.backend is endpoint: set agent.endpoint.base_url',
  ),
  ('train', (*_TRAIN, '--config.planner.backend=endpoint'), 'cannot be trained'),
  ('train', (*_OWN, '--recording=replay'), '--recording=replay'),
  ('train', (*_OWN, '--config.planner.directory=nowhere'), 'nowhere'),
  ('train', (*_OWN, '--config.planner.directory={dir}/articles'), 'articles'),
  ('train', (*_OWN, '--config.planner.directory=wheel:nowhere'), 'nowhere'),
  (
    'train',
    (*_OWN, f'--config={_QUICKSTART}', '--config.task_set.kind=jsonl'),
    'the rule modules of this config can only answer questions like those of',
  ),
  (
    'train',
    (*_OWN, '--config.task_set.train={dir}/nowhere.jsonl'),
    'task_set.train: no task file',
  ),
  ('train', (*_OWN, '--config.task_set.train={dir}/articles'), 'is a directory'),
  (
    'train',
    (*_OWN, '--config.task_set.train={dir}/comma.jsonl'),
    'comma.jsonl:2: not JSON',
  ),
  (
    'train',
    (*_OWN, '--config.task_set.train={dir}/no_query.jsonl'),
    'no_query.jsonl:2: the field "query" is missing',
  ),
  (
    'train',
    (*_OWN, '--config.task_set.train={dir}/no_answer.jsonl'),
    'no_answer.jsonl:1: the field "answer" is missing',
  ),
  ('train', (*_OWN, '--config.task_set.train={dir}/latin.jsonl'), 'not UTF-8 text'),
  ('train', (*_OWN, '--config.task_set.train={dir}/empty.jsonl'), 'holds no task'),
  ('train', (*_OWN, '--config.task_set.train={dir}/twice.jsonl'), 'came before'),
  ('train', (*_OWN, '--config.task_set.evaluation='), 'task_set.evaluation'),
  ('train', (*_OWN, '--config.task_set.reward=best'), 'best'),
  ('train', (*_OWN, '--config.task_set.reward=nowhere.py:best'), 'nowhere.py'),
  ('train', (*_OWN, '--config.task_set.reward=judge'), 'needs a language model'),
  ('train', (*_OWN, '--config.agent.tools.corpus=nowhere'), 'nowhere'),
  ('train', (*_OWN, '--config.agent.tools.corpus={dir}/nothing'), 'nothing'),
  ('train', (*_OWN, '--config.agent.tools.own={dir}/returns.py:no_such'), 'no_such'),
  ('train', (*_OWN, '--config.agent.tools.mcp=files=nowhere-server'), 'nowhere-server'),
  ('train', (f'--config={_QUICKSTART}', '--workdir={dir}/run'), 'seed is 0, was 5'),
  (
    'train',
    (f'--config={_QUICKSTART}', '--workdir={dir}/broken_run'),
    'config.json: not JSON',
  ),
  ('evaluate', (*_TRAIN, '--limit=-1'), '--limit must be >= 0'),
  ('evaluate', (*_TRAIN, '--trials=0'), '--trials must be >= 1'),
  ('evaluate', (*_TRAIN, '--greedy', '--trials=3'), '--greedy trials'),
  ('evaluate', (*_TRAIN, '--data_dir={dir}'), '--data_dir needs --benchmark'),
  ('evaluate', (*_OWN, '--benchmark=mmlu', '--data_dir={dir}'), 'mmlu'),
  ('evaluate', (*_TRAIN, '--split=train'), '--split'),
  ('evaluate', _OWN, '{new}/planner'),
  ('solve', (f'--config={_QUICKSTART}', '--workdir={new}'), '--query'),
  ('solve', (*_OWN, '--query='), '--query'),
  ('solve', (*_OWN, '--query=x', '--planner=nowhere'), 'nowhere'),
  ('solve', ('--workdir={dir}/good_run', '--query=x'), 'has no planner yet'),
  # The wheel that the config names does not have to be there.
  (
    'solve',
    ('--config=local_model', '--config.planner.directory={new}.gguf', '--query=x'),
    '{new}.gguf does not exist',
  ),
  ('serve', ('--workdir={dir}/good_run',), 'has no planner yet'),
  (
    'serve',
    ('--environment=desk', '--planner=x'),
    '--planner: nothing reads it with --environment',
  ),
  (
    'serve',
    (f'--config={_QUICKSTART}', '--idle_seconds=5'),
    '--idle_seconds: nothing reads it without --environment',
  ),
  (
    'serve',
    ('--environment=desk', '--config.train.steps=5'),
    'serving an environment does not read it, only task_set',
  ),
  ('serve', ('--environment=x.py:Y',), 'give the --config that has its tasks'),
  (
    'train',
    (*_TRAIN, '--config.agent.withheld_tools=search'),
    'agent.withheld_tools is set, and nothing in this config reads it',
  ),
  ('serve', (f'--config={_QUICKSTART}', '--port=99999'), '--port'),
  ('serve', (f'--config={_QUICKSTART}', '--port={taken}'), 'choose another --port'),
  (
    'serve',
    (f'--config={_QUICKSTART}', '--api_key_variable=NO_SUCH_KEY'),
    'NO_SUCH_KEY holds no key',
  ),
  (
    'serve',
    (f'--config={_QUICKSTART}', '--config.train.steps=3'),
    'serving does not read it',
  ),
  ('export', ('--model=experiments/geohop_planner',), '--out'),
  ('export', ('--workdir={new}', '--out={new}/out'), '{new}'),
  ('export', ('--model=gone', '--out={new}'), 'gone'),
  ('export', ('--out={new}',), '--model'),
  ('export', (f'--config={_QUICKSTART}', '--out={new}'), 'reads no config'),
  ('trajectories', ('--workdir={new}',), 'there are no rollouts below'),
  ('trajectories', ('--workdir={new}', '--reward=x'), '--reward=x'),
  ('trajectories', ('--workdir={new}', '--status=bad'), '--status'),
  ('trajectories', ('--workdir={new}', '--steps=3'), 'did you mean --step?'),
  ('serve', ('--workdir={new}',), 'and there is no run in {new}: give'),
  (
    'serve',
    (f'--config={_QUICKSTART}', '--environment=desk'),
    'set --config.agent.environment.kind=desk, or give another --config',
  ),
  (
    'train',
    ('--config=experiments/own_tasks_warm_start.py', *_OWN[1:]),
    'task_set.train: no row demonstrates a plan',
  ),
  ('preflight', (f'--config={_QUICKSTART}', '--topology=v99:4'), 'v99'),
]
# Those that are made with a real command, too.
_REAL = (0, 3, 10, 20, 38, 41, 43, 54, 55, len(_MISTAKES) - 1)

_CHILD = """
import contextlib, importlib, io, json, sys
from absl import app, flags
import jax
from agentflow_jax.runtime import clocks, command_line
name, mistakes = sys.argv[1], json.load(sys.stdin)
sys.argv = [f'{name}.py']
main = importlib.import_module(f'agentflow_jax.{name}')
source = open(main.__file__).read()
import time
compilations, found = clocks.Compilations(), []
for argv in mistakes:
  flags.FLAGS.unparse_flags()
  for flag in flags.FLAGS:
    flags.FLAGS[flag].unparse()
  sys.argv, before = [f'{name}.py', *argv], compilations.count
  err, code = io.StringIO(), None
  with contextlib.redirect_stderr(err), contextlib.redirect_stdout(io.StringIO()):
    try:
      exec(source[source.index("if __name__ == '__main__':"):].replace(
          "if __name__ == '__main__':", 'if True:'), vars(main))
    except SystemExit as e:
      code = e.code
  found.append([code, err.getvalue(), compilations.count - before])
print(json.dumps(found))
"""


def _files(directory):
  """Writes the files that the mistakes name."""
  texts = {
    'syntax.py': 'x = 1\ndef get_config(:\n',
    'raises.py': "def get_config():\n  settings = {}\n  return settings['rate']\n",
    'imports.py': 'import no_such_module_of_mine\n',
    'refused.py': 'from agentflow_jax.config import schema as c\n\n'
    'def get_config():\n'
    "  return c.Config(name='x', train=c.TrainConfig(steps=0))\n",
    'without.py': 'x = 1\n',
    'returns.py': 'def get_config():\n  return {}\n',
    'broken.json': '{"name": ',
    'newer.json': '{"name": "x", "train.patience": 3}',
    'good.jsonl': '{"query": "Who leads Amo?", "answer": "Ann"}\n' * 1
    + '{"query": "Who leads Bim?", "answer": "Bob"}\n',
    'held_out.jsonl': '{"query": "Who leads Cos?", "answer": "Cid"}\n',
    'comma.jsonl': '{"query": "a", "answer": "b"}\n{"query": "c", "answer": "d",}\n',
    'no_query.jsonl': '{"query": "a", "answer": "b"}\n{"answer": "b"}\n',
    'no_answer.jsonl': '{"query": "a"}\n',
    'empty.jsonl': '\n',
    'twice.jsonl': '{"id": "x", "query": "a", "answer": "b"}\n' * 2,
    'articles/a.txt': 'Ann leads Amo.\n',
    'broken_run/config.json': '{"name"',
    'good_run/config.json': '{"name": "x", "optimizer.learning_rate": 1}',
  }
  for name, text in texts.items():
    path = directory / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
  (directory / 'nothing').mkdir()
  (directory / 'latin.jsonl').write_bytes(b'{"query": "caf\xe9", "answer": "b"}\n')
  (directory / 'run').mkdir()
  (directory / 'run' / 'config.json').write_text(
    json.dumps({'name': 'quickstart', 'seed': 5})
  )


@pytest.fixture(name='places', scope='module')
def _places(tmp_path_factory):
  directory = tmp_path_factory.mktemp('mistakes')
  _files(directory)
  with socket.socket() as taken:
    taken.bind(('127.0.0.1', 0))
    taken.listen()
    yield {
      'dir': str(directory),
      'new': str(directory / 'new'),
      'root': str(mini.ROOT),
      'taken': str(taken.getsockname()[1]),
    }


def _filled(flags, places):
  return [flag.format(**places) for flag in flags]


def _environment():
  return os.environ | {
    'PYTHONPATH': str(mini.ROOT),
    'JAX_PLATFORMS': 'cpu',
    'XLA_FLAGS': '',
  }


@pytest.mark.parametrize('command', sorted({c for c, _, _ in _MISTAKES}))
def test_a_mistake_is_one_line_before_anything_compiles(command, places):
  mistakes = [m for m in _MISTAKES if m[0] == command]
  done = subprocess.run(
    [sys.executable, '-c', _CHILD, command],
    input=json.dumps([_filled(flags, places) for _, flags, _ in mistakes]),
    cwd=mini.ROOT,
    env=_environment(),
    capture_output=True,
    text=True,
    check=False,
    timeout=300,
  )
  assert done.returncode == 0, done.stderr
  wrong = []
  for (_, flags, words), (code, said, compiled) in zip(
    mistakes, json.loads(done.stdout.splitlines()[-1]), strict=True
  ):
    (*notes, last) = said.splitlines() or ['']
    good = (
      code == 2
      and not notes
      and last.startswith('error: ')
      and words.format(**places) in last
      and not compiled
    )
    if not good:
      wrong.append((flags, words, code, said[-600:], compiled))
  assert not wrong, json.dumps(wrong, indent=1)


@pytest.mark.parametrize('place', _REAL)
def test_a_command_says_it_the_same(place, places):
  command, flags, words = _MISTAKES[place]
  done = subprocess.run(
    [sys.executable, '-m', f'agentflow_jax.{command}', *_filled(flags, places)],
    cwd=mini.ROOT,
    env=_environment(),
    capture_output=True,
    text=True,
    check=False,
    timeout=120,
  )
  assert done.returncode == 2, done.stderr
  (line,) = done.stderr.splitlines()
  assert line.startswith('error: ') and words.format(**places) in line


def test_the_table_is_long_enough():
  assert len(_MISTAKES) >= 45 and len(set(_REAL)) == 10
