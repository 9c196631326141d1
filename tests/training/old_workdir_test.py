"""A workdir that an earlier version made resumes, evaluates and reports.

workdirs/c9feaec.tar.gz was made at commit c9feaec: a run of four steps that was
killed in the third, with two of its three groups in the journal. Its planner is
too small to plan. So rewards were made of the ids that it sampled, and every
fifth rollout has the status that was called judge_unreachable then.
"""

import collections
import dataclasses
import json
import pathlib
import tarfile

import pytest

from agentflow_jax import records
from agentflow_jax.config import schema
from agentflow_jax.evaluation import command
from agentflow_jax.files import old_names
from agentflow_jax.report import data, page
from agentflow_jax.rollouts import rollout_files
from agentflow_jax.training import run

_MADE = pathlib.Path(__file__).parent / 'workdirs' / 'c9feaec.tar.gz'
_UNREACHABLE = records.Status.REWARD_UNREACHABLE


def _set(part, name, value):
  """Returns a config, or a part of it, with one dotted field set."""
  head, _, rest = name.partition('.')
  if rest:
    inner = getattr(part, head)
    if inner is None:
      assert head == 'model'
      inner = schema.ModelConfig(
        vocab_size=8,
        d_model=8,
        n_layers=1,
        n_heads=1,
        n_kv_heads=1,
        head_dim=8,
        d_ff=8,
        max_positions=8,
      )
    if isinstance(inner, dict):
      return part
    return dataclasses.replace(part, **{head: _set(inner, rest, value)})
  if isinstance(value, list):
    value = tuple(value)
  return dataclasses.replace(part, **{head: value})


@pytest.fixture(name='workdir')
def _workdir(tmp_path, monkeypatch):
  with tarfile.open(_MADE) as archive:
    archive.extractall(tmp_path, filter='data')
  monkeypatch.chdir(tmp_path)  # Its config names tasks beside the workdir.
  return tmp_path / 'run'


@pytest.fixture(name='config')
def _config(workdir):
  """The run's config, as today's dataclasses hold it."""
  config = schema.Config(name='')
  written = json.loads((workdir / 'config.json').read_text())
  for name, value in old_names.config(written).items():
    config = _set(config, name, value)
  return config


def test_the_fixture_is_of_the_old_names(workdir):
  config = json.loads((workdir / 'config.json').read_text())
  assert config['agent.tool_cache'] == 'record'
  metrics = (workdir / 'metrics.jsonl').read_text()
  assert 'rollouts/status/judge_unreachable' in metrics
  assert len(list((workdir / 'journal').iterdir())) == 2


def test_rollouts_and_metrics_are_read_with_the_names_of_today(workdir):
  found = collections.Counter(
    t.status
    for path in sorted((workdir / 'rollouts').iterdir())
    for group in rollout_files.read(path)
    for t in group.trajectories
  )
  assert sum(found.values()) == 2 * 9 and found[_UNREACHABLE]
  counts = data.load(workdir).totals('rollouts/status/')
  assert counts['reward_unreachable'] == found[_UNREACHABLE]
  assert 'judge_unreachable' not in counts
  text = page.write_report(workdir).read_text()
  assert 'reward unreachable' in text and 'judge unreachable' not in text


@pytest.mark.slow
def test_the_run_resumes_evaluates_and_reports(workdir, config):
  before = data.load(workdir).totals('rollouts/status/')['reward_unreachable']
  in_journal = sum(
    t.status is _UNREACHABLE
    for path in (workdir / 'journal').iterdir()
    for group in rollout_files.read(path)
    for t in group.trajectories
  )
  assert in_journal == 2
  table = run.train(config, str(workdir), quiet=True)
  assert 'trained planner' in table
  summary = json.loads((workdir / 'summary.json').read_text())
  assert summary['steps'] == 4
  assert summary['rollouts/requested'] == 4 * 9
  # Nothing that was done is done again, nor lost.
  assert summary['rollouts/status/reward_unreachable'] == before + in_journal
  statuses = [v for k, v in summary.items() if k.startswith('rollouts/status/')]
  assert sum(statuses) == 4 * 9
  assert 'judge_unreachable' not in (workdir / 'metrics.jsonl').read_text()
  assert 'judge_unreachable' not in (workdir / 'summary.json').read_text()
  # The recording goes on where it lies.
  assert not (workdir / 'recording').exists()
  names = sorted(p.name for p in (workdir / 'tool_cache').iterdir())
  assert names == ['0000.0.jsonl', '0001.0.jsonl']
  line = command.evaluate(
    config, str(workdir), command.EvaluateOptions(limit=2, greedy=True)
  )
  assert 'over 2 scored of 2 tasks' in line


def test_another_config_is_still_refused(workdir, config):
  other = dataclasses.replace(
    config, agent=dataclasses.replace(config.agent, recording='off')
  )
  with pytest.raises(schema.ConfigError, match='agent.recording'):
    run.train(other, str(workdir), quiet=True)
