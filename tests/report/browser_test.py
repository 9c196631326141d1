"""The pages in a headless browser: no figure is cut, in any width or colour.

The environment variable CHROMIUM names the browser, such as chromium. Run with -m slow.
"""

import html
import json
import os
import re
import subprocess

import pytest

from agentflow_jax.report import page, sweep
from tests.report import report_test

pytestmark = [
  pytest.mark.slow,
  pytest.mark.skipif(
    not os.environ.get('CHROMIUM'), reason='CHROMIUM names no browser'
  ),
]
# Measures a page in a frame of some width: the page itself allows no script.
_MEASURES = """<!doctype html><meta charset="utf-8"><body style="margin:0">
<iframe id="f" src="page.html" style="width:WIDTHpx;height:9000px;border:0"></iframe>
<pre id="out"></pre>
<script>
const shown = e => e.getClientRects().length > 0;
document.getElementById('f').onload = event => {
  const view = event.target.contentWindow, page = view.document, wrong = [];
  const say = (what, where) => wrong.push(what + ': ' + where);
  if (page.documentElement.scrollWidth > WIDTH) say('the page is wider', WIDTH);
  let texts = 0, pictures = 0;
  for (const figure of page.querySelectorAll('figure')) {
    const title = figure.querySelector('h3').textContent;
    if (figure.scrollWidth > figure.clientWidth + 1) say('cut', title);
    const drawn = [...figure.querySelectorAll('svg')].filter(shown);
    if (drawn.length !== 1) say(drawn.length + ' pictures', title);
    for (const svg of drawn) {
      pictures += 1;
      const box = svg.getBoundingClientRect();
      if (box.right > WIDTH) say('beyond the edge', title);
      for (const text of svg.querySelectorAll('text')) {
        const at = text.getBoundingClientRect();
        texts += 1;
        if (at.left < box.left - 1 || at.right > box.right + 1 ||
            at.top < box.top - 1 || at.bottom > box.bottom + 1)
          say('a text is cut', title + ': ' + text.textContent);
        if (at.height < 7) say('a text is too small', title + ': ' + text.textContent);
      }
      const ticks = [...svg.querySelectorAll('[id*=ytick] text')];
      if (new Set(ticks.map(t => t.textContent)).size < ticks.length)
        say('two labels are the same', title);
    }
  }
  for (const grid of page.querySelectorAll('.grid')) {
    const last = grid.lastElementChild.getBoundingClientRect();
    if (Math.abs(last.right - grid.getBoundingClientRect().right) > 2)
      say('a hole', grid.lastElementChild.textContent.slice(0, 40));
  }
  const color = view.getComputedStyle(page.body).backgroundColor;
  document.getElementById('out').textContent = JSON.stringify(
    {wrong, texts, pictures, color});
};
</script>"""


def _measured(directory, source, width, dark):
  """Returns what is wrong with a page, and how much of it was looked at."""
  (directory / 'page.html').write_text(source, encoding='utf-8')
  outer = directory / 'outer.html'
  outer.write_text(_MEASURES.replace('WIDTH', str(width)))
  command = [os.environ['CHROMIUM'], '--headless', '--no-sandbox', '--disable-gpu']
  command += ['--allow-file-access-from-files', '--virtual-time-budget=10000']
  command += [f'--user-data-dir={directory / "profile"}']
  command += [f'--blink-settings=preferredColorScheme={0 if dark else 1}']
  done = subprocess.run(
    [*command, '--window-size=1400,1000', '--dump-dom', outer.as_uri()],
    capture_output=True,
    text=True,
    timeout=120,
    check=True,
  )
  found = re.search(r'<pre id="out">(.+?)</pre>', done.stdout)
  assert found, done.stdout[-500:]
  return json.loads(html.unescape(found.group(1)))


def _report(directory):
  run = report_test.write_complete(directory / 'run')
  path = run / 'metrics.jsonl'
  lines = [json.loads(line) for line in path.read_text().splitlines()]
  more = {
    'rate/prefix_hits': 0.9,  # Constants, one of them 0.
    'rate/device_idle': 0.0,
    'rate/queue_seconds_per_request': 1e-7,
    'update/logprob_gap/max': 0.0,
    'rollouts/status/unparseable_plan': 3,
    'rollouts/status/deadline_infrastructure': 2,
  }
  for i, line in enumerate(lines):
    line |= more | {'rate/pages_used': 0.01 + 0.002 * i, 'rate/slots_used': 0.5}
  path.write_text(''.join(json.dumps(line) + '\n' for line in lines))
  page.write_report(run)
  return (run / 'report.html').read_text(encoding='utf-8')


def _sweep(directory):
  for rate in ('0.0001', '0.0003'):
    for seed in range(3):
      run = directory / 'sweep' / f'optimizer.learning_rate={rate},seed={seed}'
      run.mkdir(parents=True)
      config = {'optimizer.learning_rate': float(rate), 'seed': seed}
      (run / 'config.json').write_text(json.dumps(config))
      points = [
        {'step': s, 'reward/mean': 0.2 + s * float(rate) * 80 + seed / 50}
        for s in range(1, 25)
      ]
      (run / 'metrics.jsonl').write_text('\n'.join(map(json.dumps, points)) + '\n')
      done = {'eval/accuracy_final': 0.6 + seed / 50}
      (run / 'summary.json').write_text(json.dumps(done))
  found = sweep.load(directory / 'sweep')
  return sweep.page(found, 'eval/accuracy_final', 'reward/mean')


@pytest.fixture(scope='module', name='sources')
def _sources(tmp_path_factory):
  directory = tmp_path_factory.mktemp('pages')
  return {'report': _report(directory), 'sweep': _sweep(directory)}


@pytest.mark.parametrize('dark', [False, True])
@pytest.mark.parametrize('width', [390, 1280])
@pytest.mark.parametrize('kind', ['report', 'sweep'])
def test_no_figure_is_cut(tmp_path, sources, kind, width, dark):
  found = _measured(tmp_path, sources[kind], width, dark)
  assert found['wrong'] == []
  assert found['pictures'] >= 2 and found['texts'] > 20
  shade = sum(map(int, re.findall(r'\d+', found['color'])[:3])) / 3
  assert shade < 64 if dark else shade > 192


def test_a_cut_figure_is_found(tmp_path, sources):
  wide = sources['report'].replace(
    'figure svg { display', 'figure svg { min-width: 50rem; display'
  )
  wrong = _measured(tmp_path, wide, 390, False)['wrong']
  assert any(one.startswith('cut: ') for one in wrong)
  left = sources['report'].replace('grid-column: 1 / -1', 'color: inherit')
  wrong = _measured(tmp_path, left, 1280, False)['wrong']
  assert any(one.startswith('a hole: ') for one in wrong)
