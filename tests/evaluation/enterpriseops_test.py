"""Scores of EnterpriseOps-Gym against those of the published scripts.

enterpriseops_goldens.json was made once by benchmark/executor.py and compute_score.py
of ServiceNow/EnterpriseOps-Gym at the commit that it names, from the synthetic runs
that it holds; no part of those scripts is here.
"""

import hashlib
import json
import pathlib

import pytest
from etils import epath

from agentflow_jax import records
from agentflow_jax.evaluation import enterpriseops

_GOLDENS = json.loads(
  (pathlib.Path(__file__).parent / 'enterpriseops_goldens.json').read_text()
)


def _group(number, said):
  """The rollouts of a task, as its environment would judge them."""
  made = []
  for i, one in enumerate(said['checks']):
    spec = {'gym_name': one['gym']} if one['gym'] else {}
    name = one['name'] or f'verifier_{i + 1}'
    made.append(records.Check(name, one['kind'], spec))
  state = {
    'servers': [{'name': n, 'url': 'u', 'seed': 's'} for n in said['servers']],
    'selected': [],
    'restricted': [],
  }
  task = records.Task(
    f'oracle/csm/{number}',
    'q',
    (),
    'checks',
    {'mode': 'oracle', 'domain': 'csm'},
    records.World('enterpriseops', state, checks=tuple(made)),
  )
  rollouts = []
  for i, passed in enumerate(said['runs']):
    if passed is None:
      rollouts.append(
        records.Trajectory(
          task.id, i, records.Status.ENVIRONMENT_UNREACHABLE, (), detail='lost'
        )
      )
      continue
    verdict = records.Verdict(
      tuple(
        # What asks a server that is not there cannot be made.
        records.CheckResult(
          check.name,
          check.kind,
          passed_one
          and (
            check.kind == 'calls'
            or check.spec.get('gym_name') in (None, *said['servers'])
          ),
        )
        for check, passed_one in zip(made, passed)
      )
    )
    rollouts.append(
      records.Trajectory(
        task.id,
        i,
        records.Status.ANSWERED,
        (),
        reward=float(verdict.success),
        verdict=verdict,
      )
    )
  return records.Group(task, tuple(rollouts))


_GROUPS = [_group(i, golden['input']) for i, golden in enumerate(_GOLDENS['tasks'])]


def test_the_inputs_are_those_that_were_scored():
  assert len(_GOLDENS['tasks']) >= 40
  for golden in _GOLDENS['tasks']:
    text = json.dumps(golden['input'], sort_keys=True)
    assert hashlib.sha256(text.encode()).hexdigest() == golden['sha256']


def test_the_parity_score_is_the_published_one():
  for group, golden in zip(_GROUPS, _GOLDENS['tasks'], strict=True):
    found = enterpriseops.result_of(group)['statistics']
    for name in (
      'overall_success_rate',
      'verifier_level_pass_rate',
      'pass_at_1',
      'total_verifiers_checked',
    ):
      assert found[name] == golden[name], (group.task.id, name)
  total, found = _GOLDENS['total'], enterpriseops.scores(_GROUPS)
  assert found['tasks'] == total['total_files']
  parity = found['parity']
  assert 100 * parity['success'] == pytest.approx(total['avg_overall_success_rate'])
  assert 100 * parity['verifier_pass_rate'] == pytest.approx(
    total['avg_verifier_pass_rate']
  )


def test_the_strict_score_differs_where_it_says():
  differs = 0
  for golden, group in zip(_GOLDENS['tasks'], _GROUPS, strict=True):
    said = golden['input']
    names = [c['name'] or f'verifier_{i + 1}' for i, c in enumerate(said['checks'])]
    quirk = (
      len(set(names)) < len(names)
      or not names
      or None in said['runs']
      or any(c['gym'] not in (None, *said['servers']) for c in said['checks'])
    )
    scored = [run for run in said['runs'] if run is not None]
    found = enterpriseops.scores([group])
    assert found['errors'] == len(said['runs']) - len(scored)
    if not scored:
      assert found['strict']['success'] is None
      continue
    if not quirk:
      assert found['strict']['success'] == found['parity']['success']
      assert found['strict']['verifier_pass_rate'] == pytest.approx(
        found['parity']['verifier_pass_rate']
      )
      continue
    made = [
      c['kind'] == 'calls' or c['gym'] in (None, *said['servers'])
      for c in said['checks']
    ]
    right = [bool(names) and all(p and m for p, m in zip(run, made)) for run in scored]
    assert found['strict']['success'] == sum(right) / len(right)
    differs += found['strict']['success'] != found['parity']['success']
  assert differs > 5


def test_results_are_written_as_the_published_scorer_reads_them(tmp_path):
  place = enterpriseops.write(epath.Path(tmp_path), _GROUPS)
  files = sorted((place / 'oracle' / 'csm').glob('results_*.json'))
  assert len(files) == len(_GROUPS)
  rates, errors = [], 0
  for file in files:  # As compute_score.py does.
    said = json.loads(file.read_text())
    rates.append(said['statistics']['overall_success_rate'])
    errors += any(run.get('error') for run in said['runs'])
  total = _GOLDENS['total']
  assert 100 * sum(rates) / len(rates) == pytest.approx(
    total['avg_overall_success_rate']
  )
  assert errors == total['files_with_errors']


def test_results_of_an_earlier_evaluation_are_removed(tmp_path):
  for groups in (_GROUPS, _GROUPS[:1]):
    place = enterpriseops.write(epath.Path(tmp_path / 'x'), groups)
  assert [p.name for p in (place / 'oracle' / 'csm').iterdir()] == ['results_0.json']


def test_scores_are_by_mode_and_domain_and_shown():
  found = enterpriseops.by_mode_and_domain(_GROUPS)
  assert list(found) == ['all', 'oracle/csm'] and found['all'] == found['oracle/csm']
  text = enterpriseops.table(found)
  assert text.count('\n') == 2 and f'{found["all"]["parity"]["success"]:.1%}' in text
  assert enterpriseops.scores([])['strict']['success'] is None
