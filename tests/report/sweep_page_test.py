"""The page of a sweep: what is pooled, what is compared, and where it leads."""

import json
import re

import pytest

from agentflow_jax.report import sweep


def _run(directory, name, config, points, final=None, report=True):
  run = directory / name
  run.mkdir(parents=True)
  (run / 'config.json').write_text(json.dumps(config))
  lines = [{'step': i, 'reward/mean': p} for i, p in enumerate(points, 1)]
  (run / 'metrics.jsonl').write_text(''.join(json.dumps(x) + '\n' for x in lines))
  if final is not None:
    (run / 'summary.json').write_text(json.dumps({'eval/accuracy_final': final}))
  if report:
    (run / 'report.html').write_text('a report')


@pytest.fixture(name='directory')
def _directory(tmp_path):
  for seed, final in ((0, 0.5), (1, 0.7)):
    _run(tmp_path, f'kl=0,seed={seed}', {'kl': 0, 'seed': seed}, [0.1, 0.3], final)
  _run(tmp_path, 'kl=<1>,seed=0', {'kl': '<1>', 'seed': 0}, [0.2], report=False)
  return tmp_path


def test_seeds_are_pooled_and_shares_are_percentages(directory):
  found = sweep.load(directory)
  header, rows = sweep.table(found, 'eval/accuracy_final')
  assert header == ['kl', 'runs done', 'eval/accuracy_final', '95% over seeds']
  # Mean 0.6, sd 0.1414, t of one degree 12.706: 1.27.
  assert rows[0] == ['0', '2 of 2', '60.0%', '[-67.1, 187.1]']
  assert rows[1] == ['<1>', '0 of 1', '-', '']
  _, rows = sweep.table(found, 'seconds/total')
  assert rows[0][2] == '-'


def test_the_page_leads_to_the_runs(directory):
  page = sweep.page(sweep.load(directory), 'eval/accuracy_final', 'reward/mean')
  assert re.findall('href="([^"#]*)"', page) == [
    'kl%3D0%2Cseed%3D0/report.html',
    'kl%3D0%2Cseed%3D1/report.html',
  ]
  assert '<1>' not in page and 'kl=&lt;1&gt;,seed=0' in page
  assert '<td>step 1</td>' in page
  assert '2 of 3 runs are done' in page and 'Student’s t' in page


def test_curves_are_means_over_seeds_of_what_differs_in_nothing_else(tmp_path):
  for lr in (1, 2):
    for kl in (0, 1):
      for seed in (0, 1, 2):
        points = [0.1 * lr + 0.01 * seed + 0.2 * kl] * 3
        config = {'lr': lr, 'kl': kl, 'seed': seed}
        _run(tmp_path, f'{lr}{kl}{seed}', config, points)
  page = sweep.page(sweep.load(tmp_path), 'eval/accuracy_final', 'reward/mean')
  titles = re.findall('<figure><h3>([^<]*)</h3>', page)
  assert titles == ['reward/mean by kl', 'reward/mean by lr', 'reward/mean by seed']
  first = page[page.index('reward/mean by kl') : page.index('reward/mean by lr')]
  assert 'kl=0 (3 seeds)' in first and 'kl=1 (3 seeds)' in first
  assert 'The runs with lr=2.' in first and 'kl=0 (6' not in first
