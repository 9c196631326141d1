"""Runs whose agent is not ours: it asks the run's own endpoint for the planner."""

import dataclasses
import json
import sys
import textwrap
import threading
import time

import httpx
import pytest

from agentflow_jax import records
from agentflow_jax.config import schema
from agentflow_jax.evaluation import command as evaluation_command, solving
from agentflow_jax.rollouts import rollout_files
from agentflow_jax.training import run, trainer
from tests.config import mini

# What an agent may be: it asks twice, the second time with the first response, and
# prints the second one as its answer.
_AGENT = """
  import json, os, urllib.request

  def ask(messages):
    request = urllib.request.Request(
      os.environ['OPENAI_BASE_URL'] + '/chat/completions',
      json.dumps({'model': 'policy', 'temperature': 0, 'messages': messages}).encode(),
      {'Content-Type': 'application/json'})
    with urllib.request.urlopen(request) as response:
      assert 'temperature' in response.headers['X-AgentFlow-Overridden']
      return json.load(response)['choices'][0]['message']['content']

  messages = [{'role': 'user', 'content': os.environ['AGENTFLOW_QUERY']}]
  first = ask(messages)
  messages.append({'role': 'assistant', 'content': first})
  messages.append({'role': 'user', 'content': '?'})
  print('thinking')
  print('42' if len(ask(messages)) % 2 else '43')
"""


def command(tmp_path, text):
  """Returns a command line that runs a Python program."""
  path = tmp_path / 'agent.py'
  path.write_text(textwrap.dedent(text))
  return f'{sys.executable} -I {path}'


def config(tmp_path, steps=2, served=schema.ServedConfig(), **rollout):
  """Returns a short run of an agent that is not ours."""
  base = mini.config(tmp_path / 'in', steps=steps, queries_per_step=2, group_size=2)
  limits = {'max_turns': 2, 'deadline_seconds': 60.0} | rollout
  return dataclasses.replace(
    base,
    agent=schema.AgentConfig(
      kind='served', served=served, rollout=schema.RolloutConfig(**limits)
    ),
    planner=dataclasses.replace(base.planner, prompt=schema.PromptConfig()),
    evaluation=schema.EvaluationConfig(every=0, start_and_final=False, controls=False),
  )


def groups(workdir, step=0):
  """Returns the groups of a step of a run."""
  path = workdir / 'rollouts' / f'step_{step + 1:06d}.p0.jsonl.zst'
  return rollout_files.read(path)


@pytest.mark.slow
def test_a_command_is_trained(tmp_path):
  served = schema.ServedConfig(command=command(tmp_path, _AGENT))
  run.train(config(tmp_path, served=served), str(tmp_path / 'out'), quiet=True)
  lines = (tmp_path / 'out' / 'metrics.jsonl').read_text().splitlines()
  for line in map(json.loads, lines):
    assert line['rollouts/scored'] == 4 and line['update/logprob_gap/max'] <= 1e-5
  for group in groups(tmp_path / 'out'):
    for rollout in group.trajectories:
      assert rollout.status is records.Status.ANSWERED, rollout.detail
      assert rollout.answer in ('42', '43') and not rollout.undelivered
      assert len(rollout.turns) == 2
      assert {t.sampling.temperature for t in rollout.turns} == {1.0}


def _driven(config, workdir, work):
  """Runs a config beside a driver: `work` gets a client and the run's file."""
  found = []

  def drive():
    path = workdir / 'served' / 'p0.json'
    deadline = time.monotonic() + 300
    while not path.exists():
      assert time.monotonic() < deadline
      time.sleep(0.02)
    said = json.loads(path.read_text())
    assert path.stat().st_mode & 0o777 == 0o600
    key = {'Authorization': f'Bearer {said["driver_key"]}'}
    with httpx.Client(base_url=said['url'], headers=key, timeout=60) as client:
      try:
        found.append(work(client))
      except httpx.TransportError as e:
        found.append(e)

  thread = threading.Thread(target=drive)
  thread.start()
  try:
    run.train(config, str(workdir), quiet=True)
  finally:
    thread.join(timeout=60)
  assert not thread.is_alive()
  return found[0]


def _ask(client, said, text, **body):
  body = {'model': 'policy', 'messages': [{'role': 'user', 'content': text}], **body}
  got = client.post(f'{said["base_url"]}/chat/completions', json=body)
  assert got.status_code == 200, got.text
  return got.json()['choices'][0]['message']['content']


def _rewarding(client):
  """Solves every task in turn; returns what the run said of them."""
  said = []
  while (got := client.post('/tasks')).status_code != 410:
    for one in got.json()['tasks']:
      said.append(one)
      text = _ask(client, one, one['task']['query'])
      _ask(client, one, 'Why?', model='frozen', temperature=0.5, top_p=0.9)
      body = {'reward': len(text) % 7 / 7, 'answer': text}
      client.post(f'/sessions/{one["session"]}/reward', json=body).raise_for_status()
  return said


@pytest.mark.slow
def test_a_driver_trains_and_evaluates_and_a_killed_run_ends_in_the_same_bits(
  tmp_path, monkeypatch
):
  base = config(tmp_path, served=schema.ServedConfig(frozen=True))
  whole = dataclasses.replace(
    base, evaluation=schema.EvaluationConfig(every=2, controls=True)
  )
  said = _driven(whole, tmp_path / 'whole', _rewarding)
  purposes = [one['purpose'] for one in said]
  assert purposes.count('train') == 2 * 4 and 'evaluate' in purposes
  assert all('Portugal' not in one['base_url'] for one in said)
  names = {p.stem for p in (tmp_path / 'whole' / 'evaluations').iterdir()}
  expected = {'start', 'start_greedy', 'final', 'final_greedy'}
  assert names == expected | {'control_frozen_planner'}
  final = json.loads((tmp_path / 'whole' / 'evaluations' / 'final.json').read_text())
  assert final['items_scored'] == 3 and final['turns_mean'] == 1
  assert (tmp_path / 'whole' / 'report.html').exists()
  assert not (tmp_path / 'whole' / 'served' / 'p0.json').exists()
  for group in groups(tmp_path / 'whole'):
    for rollout in group.trajectories:
      assert [m.module for m in rollout.modules] == ['frozen']

  class Killed(BaseException):
    pass

  step, old = trainer.Trainer.step, []

  def killing(self, batches):
    if not killing.is_done:
      killing.is_done = True
      raise Killed
    return step(self, batches)

  killing.is_done = False
  monkeypatch.setattr(trainer.Trainer, 'step', killing)
  with pytest.raises(Killed):
    _driven(whole, tmp_path / 'broken', lambda c: old.append(_killed(c)))

  def going_on(client):
    assert old[0]
    for session in old[0]:
      got = client.post(f'/sessions/{session}/v1/chat/completions', json={})
      assert got.status_code == 410, got.text
    return _rewarding(client)

  again = _driven(whole, tmp_path / 'broken', going_on)
  assert len(again) < len(said)  # The groups that were done are not asked again.
  summaries = [
    json.loads((tmp_path / name / 'summary.json').read_text())
    for name in ('whole', 'broken')
  ]
  assert len({s['params_digest'] for s in summaries}) == 1
  digests = [
    [rollout_files.digest(p) for p in sorted((tmp_path / n / 'rollouts').iterdir())]
    for n in ('whole', 'broken')
  ]
  assert digests[0] == digests[1] and len(digests[0]) == 2


def _killed(client):
  """Drives a run that is killed; returns the sessions that it opened."""
  sessions = []
  try:
    while (got := client.post('/tasks')).status_code != 410:
      for one in got.json()['tasks']:
        sessions.append(one['session'])
        text = _ask(client, one, one['task']['query'])
        _ask(client, one, 'Why?', model='frozen', temperature=0.5, top_p=0.9)
        body = {'reward': len(text) % 7 / 7, 'answer': text}
        client.post(f'/sessions/{one["session"]}/reward', json=body)
  except httpx.TransportError:
    pass
  return sessions


@pytest.mark.slow
def test_evaluate_and_solve_run_the_same_agent(tmp_path):
  served = schema.ServedConfig(command=command(tmp_path, _AGENT), frozen=True)
  base = config(tmp_path, served=served)
  planner, workdir = base.planner.directory, str(tmp_path / 'out')
  options = evaluation_command.EvaluateOptions(
    planner=planner, limit=2, trials=2, controls=True, name='mine'
  )
  said = evaluation_command.evaluate(base, workdir, options)
  assert 'random' not in said and 'frozen planner' in said
  value = json.loads((tmp_path / 'out' / 'evaluations' / 'mine.json').read_text())
  assert value['items_scored'] == 2 and value['turns_mean'] == 2
  lines = []
  done = solving.solve(
    base, 'What is 1 plus 1?', workdir=workdir, greedy=False, emit=lines.append
  )
  assert done.status is records.Status.ANSWERED and done.answer in ('42', '43')
  assert any('agents are served at http://127.0.0.1' in line for line in lines)
  assert len(done.turns) == 2 and done.reward == 0
  for flag in ('injection', 'tools'):
    wrong = dataclasses.replace(options, **{flag: 'bundled'})
    with pytest.raises(schema.ConfigError, match=f'--{flag} is for our own tools'):
      evaluation_command.evaluate(base, workdir, wrong)


def test_mistakes_show_before_a_model_is_loaded(tmp_path):
  base = config(tmp_path, served=schema.ServedConfig(command='no_such_program'))
  base = dataclasses.replace(
    base, planner=dataclasses.replace(base.planner, directory=str(tmp_path / 'none'))
  )
  for work in (
    lambda: run.train(base, str(tmp_path / 'out'), quiet=True),
    lambda: solving.solve(base, 'Q', workdir=str(tmp_path / 'out'), emit=print),
  ):
    with pytest.raises(schema.ConfigError, match='there is no such program'):
      work()
