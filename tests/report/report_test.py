"""The report of synthetic work directories: complete, partial and hostile."""

import html.parser
import json
import math
import re

import numpy as np
import pytest

from agentflow_jax.report import data as report_data, examples, names, page as report
from agentflow_jax.report import tables
from agentflow_jax.rollouts import evaluated_items

HOSTILE = '<script>alert("x")</script><img src=x onerror=y>\x1b[31m\x00\ud800&'
STEPS = 24
QUESTIONS = 90
VOID = {'meta', 'br', 'img', 'link', 'input', 'hr'}


def _turn(i, right, hostile=False):
  failed = not right and i == 1
  tool = 'search' if i == 0 or not right else 'python'
  code = 'a = 41_000_000\nb = 8_700_000\nprint(a / b)'
  return {
    'planner': HOSTILE if hostile else f'sub-goal: look up fact {i}\ntool: x',
    'parse_error': '',
    'tool': tool,
    'arguments': (
      {'query': 'population of Zürich'} if tool == 'search' else {'code': code}
    ),
    'result': HOSTILE if hostile else ('no match' if failed else '434,008'),
    'failed': failed,
    'verdict': 'continue: the second fact is missing' if i == 0 else 'stop',
  }


def _evaluation(name, accuracy, seed, hostile=False, temperature=1.0):
  """An evaluation of QUESTIONS items, 2 of them unscored in 'final'."""
  rng = np.random.default_rng(seed)
  items = []
  for i in range(QUESTIONS):
    hops = i % 3 + 1
    right = bool(rng.random() < accuracy * (1.1 - 0.08 * hops))
    turns = [_turn(t, right, hostile) for t in range(hops)]
    if not right and i % 5 == 0:
      turns[-1] |= {
        'tool': None,
        'arguments': {},
        'result': '',
        'parse_error': 'no line starts with "tool:"',
      }
    items.append(
      {
        'id': f'q{i:03d}',
        'query': HOSTILE if hostile else f'Which of two countries is {i}?',
        'gold': ['Austria', 'Republic of Austria'],
        'answer': HOSTILE if hostile else ('Austria' if right else 'Chad'),
        'reward': float(right),
        'status': 'answered' if right else 'out_of_turns',
        'detail': '',
        'tags': {'hops': str(hops), 'kind': 'larger'},
        'turns': turns,
      }
    )
  if name == 'final':
    for item in items[:2]:
      item |= {'reward': None, 'status': 'model_unreachable'}
  rewards = [item['reward'] for item in items if item['reward'] is not None]
  mean = sum(rewards) / len(rewards)
  half = 1.96 * math.sqrt(mean * (1 - mean) / len(rewards))
  by_hops = {}
  for hops in ('1', '2', '3'):
    part = [
      item['reward']
      for item in items
      if item['tags']['hops'] == hops and item['reward'] is not None
    ]
    by_hops[hops] = {'items': len(part), 'accuracy': sum(part) / len(part)}
  status = {}
  for item in items:
    status[item['status']] = status.get(item['status'], 0) + 1
  return {
    'name': name,
    'split': 'test',
    'temperature': temperature,
    'accuracy': mean,
    'ci_low': max(0.0, mean - half),
    'ci_high': min(1.0, mean + half),
    'accuracy_over_requested': sum(rewards) / len(items),
    'status': status,
    'by_hops': by_hops,
    'by_kind': {},
    'tools': {'search': 120, 'python': int(90 * accuracy)},
    'tool_error_rate': 0.4 * max(0.0, 1 - accuracy),
    'turns_mean': 2.0,
    'seconds': 3.5,
    'items': items,
  }


def _metrics():
  lines = []
  for step in range(1, STEPS + 1):
    share = 0.2 + 0.7 * (1 - math.exp(-step / 8))
    reward = share + 0.04 * math.sin(7 * step)
    line = {
      'step': step,
      'reward/mean': reward,
      'reward/ci_low': reward - 0.05,
      'reward/ci_high': reward + 0.05,
      'rollouts/requested': 256,
      'rollouts/scored': 255,
      'rollouts/status/answered': int(255 * share),
      'rollouts/status/out_of_turns': 255 - int(255 * share),
      'rollouts/status/model_unreachable': 1,
      'rollouts/status/deadline': 0,
      'rollouts/turns_mean': 2.8 - 0.03 * step,
      'tokens/response_mean': 12.5 - 0.1 * step,
      'tool_counts/web_blocked_host': 2,
      'rollouts/tool_error_rate': 0.3 * math.exp(-step / 6),
      'tools/search': 300,
      'tools/python': 10 * step,
      'update/kl': 0.002 * step,
      'update/entropy': 0.9 - 0.02 * step,
      'update/clip_frac_high': 0.01,
      'update/ratio_max': 1.4,
      'update/grad_norm': 0.5 + 1 / step,
      'update/logprob_gap/max': 2.4e-6,
      'seconds/rollout': 6.0,
      'seconds/update': 3.0,
      'seconds/checkpoint': 0.4,
      'seconds/evaluate': 2.0 if step % 4 == 0 else 0.0,
      'seconds/rollout_sum/planner': 500.0,
      'seconds/rollout_sum/tool/python': 90.0,
      'seconds/rollout_sum/total': 600.0,
      'seconds/rollout/engine': 5.0,
      'seconds/step': 10.0 if step % 4 else 12.0,
      'rate/rollouts_per_second': 42.0,
    }
    if step % 4 == 0:
      line |= {
        'eval/accuracy': share + 0.02,
        'eval/accuracy_ci_low': share - 0.06,
        'eval/accuracy_ci_high': share + 0.09,
        'eval/accuracy_greedy': share + 0.05,
      }
    lines.append(line)
  return lines


def _write(workdir, metrics=(), evaluations=(), summary=None):
  workdir.mkdir(parents=True, exist_ok=True)
  if metrics:
    text = ''.join(json.dumps(line) + '\n' for line in metrics)
    (workdir / 'metrics.jsonl').write_text(text)
  for evaluation in evaluations:
    (workdir / 'evaluations').mkdir(exist_ok=True)
    path = workdir / 'evaluations' / f'{evaluation["name"]}.json'
    path.write_text(json.dumps(evaluation))
  if summary is not None:
    (workdir / 'summary.json').write_text(json.dumps(summary))
  return workdir


def write_complete(workdir, hostile=False):
  """A whole run's files; also what the page is looked at with by eye."""
  start = _evaluation('start', 0.22, 1, hostile)
  evaluations = [
    start,
    start | {'name': 'control_frozen_planner'},
    _evaluation('final', 0.93, 2, hostile),
    _evaluation('start_greedy', 0.3, 3, temperature=0.0),
    _evaluation('final_greedy', 0.95, 4, temperature=0.0),
    _evaluation('control_oracle_planner', 1.3, 5),
    _evaluation('control_random_planner', 0.12, 6),
    _evaluation('control_empty_planner', 0.0, 7),
  ]
  summary = {
    'eval/accuracy_start': start['accuracy'],
    'rollouts/requested': 256 * STEPS,
    'seconds/total': 431.2,
    'seconds/setup': 12.0,
    'seconds/compile': 31.0,
    'seconds/rollout': 144.0,
    'seconds/update': 72.0,
    'seconds/checkpoint': 9.6,
    'seconds/evaluate': 12.0,
    'seconds/evaluate_final': 60.1,
    'seconds/rollout_sum/planner': 12000.0,
    'seconds/rollout/engine': 120.0,
    'compiles/after_warmup': 0,
    'params_digest': 'b2:0123456789abcdef',
    'teacher/wrong_tool': 0.5,
    'teacher/wrong_sub_goal': 0.35,
    'teacher/traces': 4000,
    'config/flow_grpo.clip_high': 0.3,
    'config/seed': 0,
  }
  return _write(workdir, _metrics(), evaluations, summary)


class _Page(html.parser.HTMLParser):
  """Collects tags, attributes and text, and checks that tags nest."""

  def __init__(self, source):
    super().__init__()
    self.tags, self.attributes, self.text, self._open = [], [], [], []
    self.feed(source)
    self.close()
    assert not self._open, f'never closed: {self._open}'

  def handle_starttag(self, tag, attrs):
    self.tags.append(tag)
    self.attributes += attrs
    if tag not in VOID:
      self._open.append(tag)

  def handle_startendtag(self, tag, attrs):
    self.tags.append(tag)
    self.attributes += attrs

  def handle_endtag(self, tag):
    assert self._open and self._open.pop() == tag, f'stray </{tag}>'

  def handle_data(self, data):
    if self._open[-1:] not in (['style'], ['title']):
      self.text.append(data)


def _read(path):
  source = path.read_text(encoding='utf-8')
  return source, _Page(source)


@pytest.fixture(name='complete', scope='module')
def _complete(tmp_path_factory):
  """A whole run whose report is written; most tests only look at it."""
  run = write_complete(tmp_path_factory.mktemp('runs') / 'quickstart')
  assert report.write_report(run) == run / 'report.html'
  return run


def test_what_the_sampler_did_is_shown(tmp_path):
  run = write_complete(tmp_path / 'run')
  path = run / 'metrics.jsonl'
  lines = [json.loads(line) for line in path.read_text().splitlines()]
  path.write_text(
    ''.join(
      json.dumps(line | {'rate/prefix_hits': 0.9, 'rate/device_idle': 0.2}) + '\n'
      for line in lines
    )
  )
  report.write_report(run)
  _, page = _read(run / 'report.html')
  labels = [v for k, v in page.attributes if k == 'aria-label']
  assert labels[-2:] == [
    'Prompt tokens found in the cache over steps',
    'Device idle with work pending over steps',
  ]


def test_where_the_time_went_is_the_whole_of_it(tmp_path):
  run = report_data.load(write_complete(tmp_path / 'run'))
  spent = report._seconds(run)
  assert 'engine' not in spent  # It is a part of the rollouts.
  assert sum(spent.values()) == pytest.approx(431.2)
  assert spent['everything else'] == pytest.approx(
    431.2 - 12.0 - 31.0 - 144.0 - 72.0 - 9.6 - 12.0 - 60.1
  )
  # Tools are there, and the whole is no bar beside its parts.
  assert report._rollout_seconds(run) == pytest.approx(
    {
      'planner': 500.0 * STEPS,
      'tool/python': 90.0 * STEPS,
      'everything else': 10.0 * STEPS,
    }
  )


def test_complete_run_shows_every_picture_and_three_examples(complete):
  source, page = _read(complete / 'report.html')
  every = [v for k, v in page.attributes if k == 'aria-label']
  labels = list(dict.fromkeys(every))
  # Four are there for a telephone, too.
  assert len(every) == len(labels) + 4 == source.count('<svg')
  assert labels == [
    'Accuracy by number of hops, with intervals',
    'Reward and evaluation accuracy over steps',
    'Tool usage, before and after',
    'Tool-call error rate over steps',
    'Turns per rollout over steps',
    'Tokens a response over steps',
    'How rollouts ended',
    'KL to the reference [nats] over steps',
    'entropy [nats] over steps',
    'clipped above, share of targets over steps',
    'largest probability ratio over steps',
    'gradient norm before clipping over steps',
    'max |logprob - behavior_logprob| over steps',
    'Where the time went',
    'What rollouts waited for',
  ]
  assert source.count('class="example"') == 3
  assert sorted(re.findall(r'hops: (\d)', source)) == ['1', '2', '3']
  text = ''.join(page.text)
  assert 'FAILS' not in text
  assert '7 min 11 s' in text  # 431.2 s.
  # 431.2 s less the 340.7 s of the parts; 90.5 / 431.2 = 21%.
  assert 'everything else' in text and '90.5 s  21%' in text
  assert '>deadline<' not in source  # No rollout ended so.
  assert '<td>out of turns</td>' in source and 'out_of_turns' not in source
  assert f'<td>web_blocked_host</td><td>{2 * STEPS}</td>' in re.sub(
    r'\s*\n\s*', '', re.sub(r'<td[^>]*>', '<td>', source)
  )
  assert 'before training = frozen planner' in text
  assert text.count('holds') == 8
  assert 'wrong tool' in text and '50.0%' in text and '4000' in text
  assert 'b2:0123456789abcdef' in text


def test_page_is_self_contained_and_without_script(complete):
  source, page = _read(complete / 'report.html')
  assert 'script' not in page.tags
  assert not any(name.startswith('on') for name, _ in page.attributes)
  assert 'http://' not in source and 'https://' not in source
  assert '@import' not in source
  links = {'href', 'src', 'xlink:href', 'data', 'srcset', 'action'}
  references = [v for k, v in page.attributes if k in links]
  assert references and all(v.startswith('#') for v in references)
  assert all(v.startswith('#') for v in re.findall(r'url\(([^)]*)\)', source))


def test_ids_are_unique_and_every_reference_has_one(complete):
  source, page = _read(complete / 'report.html')
  ids = [v for k, v in page.attributes if k == 'id']
  assert len(ids) == len(set(ids))
  used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', source))
  assert used == set(ids)


def test_pictures_take_every_colour_from_the_page(complete):
  source, _ = _read(complete / 'report.html')
  pictures = ''.join(re.findall(r'<svg.*?</svg>', source, re.DOTALL))
  assert not re.findall(r'#[0-9a-f]{6}\b', pictures)
  named = set(re.findall(r'var\((--[a-z]+)\)', pictures))
  for variable in named:
    # Twice or more: a light value and, but for the font, a dark one.
    expected = 1 if variable == '--sans' else 2
    assert source.count(f'{variable}: ') == expected, variable
  assert '--after' in named and '--sans' in named


def test_same_files_same_bytes(complete):
  first = (complete / 'report.html').read_bytes()
  assert report.write_report(complete).read_bytes() == first


def test_untrusted_text_is_shown_and_never_markup(tmp_path):
  run = write_complete(tmp_path / '<b>run', hostile=True)
  source, page = _read(report.write_report(run))
  assert 'script' not in page.tags and 'img' not in page.tags
  assert 'b' not in {k for k, _ in page.attributes}
  shown = HOSTILE.replace('\x1b', '\ufffd').replace('\x00', '\ufffd')
  shown = shown.replace('\ud800', '\ufffd')
  text = ''.join(page.text)
  # The query, both answers, and at the least one turn's plan and result.
  # (three examples; the other sections show no text of a model or a tool.)
  assert text.count(shown) >= 3 * 5
  assert '\x1b' not in source and '\x00' not in source
  assert '<b>run: training report' in text
  assert 'var(--after)' in source  # The page is whole, not cut at the NUL.


def test_untrusted_names_in_pictures_and_tables_are_escaped(tmp_path):
  final = _evaluation('final', 0.9, 2)
  final['tools'] = {'<script>': 3, '$x_1$': 2}
  final['status'] = {'<script>status': 90}
  lines = _metrics()
  for line in lines:
    line['rollouts/status/<script>'] = 2
    line['seconds/<script>'] = 1.0
  summary = {'teacher/<script>': '<script>', 'config/<script>': ['<script>']}
  run = _write(tmp_path / 'run', lines, [final], summary)
  source, page = _read(report.write_report(run))
  assert 'script' not in page.tags and '<script' not in source
  text = ''.join(page.text)
  assert text.count('<script>') >= 7
  assert '$x_1$' in text


@pytest.mark.parametrize('steps', [1, 2, 5])
def test_run_that_was_stopped_early(tmp_path, steps):
  run = _write(tmp_path / 'run', _metrics()[:steps])
  with (run / 'metrics.jsonl').open('a') as f:
    f.write('{"step": 99, "reward/me')  # Torn by a kill.
  source, page = _read(report.write_report(run))
  text = ''.join(page.text)
  assert 'no final evaluation' in text
  assert len(report_data.load(run).metrics) == steps
  assert 'Reward and evaluation accuracy over steps' in source
  assert 'class="example"' not in source
  assert f'training: last step {steps}, ' in report.terminal_table(run)


def test_evaluations_alone_make_a_report(tmp_path):
  run = _write(tmp_path / 'run', evaluations=[_evaluation('final', 0.9, 2)])
  source, page = _read(report.write_report(run))
  assert page.tags.count('svg') == 3  # Hops and tools.
  assert 'right at the end' in source
  assert 'Before</h3>' not in source


def test_supervised_run_shows_its_loss(tmp_path):
  lines = [
    {'step': step, 'update/loss': 2 / step, 'seconds/update': 1.0} for step in (1, 2, 3)
  ]
  run = _write(tmp_path / 'run', lines)
  source, page = _read(report.write_report(run))
  assert '>loss [nats]<' in source
  assert page.tags.count('svg') == 3  # The loss and the time.
  assert report.terminal_table(run) == 'training: last step 3\n'


def test_metrics_that_are_null_or_nan_are_absent(tmp_path):
  lines = _metrics()[:4]
  lines[1]['reward/mean'] = None
  lines[2]['reward/mean'] = math.nan
  run = report_data.load(_write(tmp_path / 'run', lines))
  steps, values = run.series('reward/mean')
  assert steps == [1, 4]
  assert values == [lines[0]['reward/mean'], lines[3]['reward/mean']]
  report.write_report(tmp_path / 'run')


def test_lines_of_one_step_are_merged(tmp_path):
  lines = [{'step': 2, 'a/x': 5}, {'step': 1, 'a/x': 1}, {'step': 1, 'a/y': 2}]
  lines += [{'step': 2, 'a/x': 7, 'a/x/part': 100}]
  run = report_data.load(_write(tmp_path / 'run', lines))
  assert run.series('a/x') == ([1, 2], [1.0, 7.0])
  assert run.totals('a/') == {'x': 8.0, 'y': 2.0}


def test_nothing_to_report_says_so(tmp_path):
  with pytest.raises(report_data.ReportError, match='nothing to report'):
    report.write_report(tmp_path)
  with pytest.raises(report_data.ReportError, match='nothing to report'):
    report.terminal_table(tmp_path / 'absent')
  assert not (tmp_path / 'report.html').exists()


@pytest.mark.parametrize(
  ('name', 'content', 'message'),
  [
    ('metrics.jsonl', '{"step": 1}\n{"s\n{"step": 3}', 'metrics.jsonl:2: not JSON'),
    ('metrics.jsonl', '{"reward/mean": 1}\n', 'metrics.jsonl:1: no object with'),
    ('summary.json', '{', 'summary.json: not JSON'),
    ('summary.json', '[]', 'summary.json: not a JSON object'),
    ('evaluations/final.json', '{"items"', 'final.json: not JSON'),
    ('evaluations/final.json', '{"items": [3]}', 'final.json: broken'),
  ],
)
def test_broken_files_are_named(tmp_path, name, content, message):
  run = _write(tmp_path / 'run', _metrics()[:1], [_evaluation('start', 0.5, 0)])
  (run / name).write_text(content)
  with pytest.raises(report_data.ReportError, match=message):
    report.write_report(run)


def test_terminal_table(tmp_path):
  evaluations = [
    {'name': 'start', 'accuracy': 0.25, 'ci_low': 0.2, 'ci_high': 0.3},
    {'name': 'final', 'accuracy': 0.875, 'ci_low': 0.8, 'ci_high': 0.9512},
    {'name': 'final_greedy', 'accuracy': 1.0, 'status': {'answered': 8}},
  ]
  summary = {'control/random_planner': 0.125}
  run = _write(tmp_path / 'run', evaluations=evaluations, summary=summary)
  # Copied by eye from the figures above; columns are as wide as their widest.
  assert report.terminal_table(run).splitlines() == [
    'planner                     sampled  greedy  rollouts',
    '---------------  ------------------  ------  --------',
    'trained planner  87.5% [80.0, 95.1]  100.0%         0',
    'before training  25.0% [20.0, 30.0]       -         0',
    'random planner                12.5%       -         -',
    'accuracy with its 95% interval over questions',
  ]


def test_accuracy_over_requested_stands_beside_the_other_where_they_differ(tmp_path):
  # 7 of 8 scored rollouts are right, and 2 more were not scored: 70%.
  final = {
    'name': 'final',
    'accuracy': 0.875,
    'ci_low': 0.8,
    'ci_high': 0.9512,
    'accuracy_over_requested': 0.7,
  }
  start = {'name': 'start', 'accuracy': 0.25, 'accuracy_over_requested': 0.25}
  summary = {
    'control/random_planner': 0.125,
    'control/random_planner/over_requested': 0.1,
  }
  run = _write(tmp_path / 'run', evaluations=[final, start], summary=summary)
  table = report.terminal_table(run)
  assert '87.5% [80.0, 95.1] (70.0% over all requested)' in table
  assert '12.5% (10.0% over all requested)' in table
  assert table.count('over all requested') == 2  # All of 'start' were scored.
  page = report.render(report_data.load(run))
  assert '<small>[80.0, 95.1] (70.0% over all requested)</small>' in page
  assert 'before training, and 87.5% (70.0% over all requested) after' in page


def _rewards(name, rewards):
  items = [{'id': f'q{i}', 'reward': r} for i, r in enumerate(rewards)]
  return {'name': name, 'items': items}


def test_gain_is_paired_over_questions_scored_both_times(tmp_path):
  # q0: 0 -> 1, q1: 1 -> 1, q2: 0 -> 0; q3 and q4 lack a reward on one side.
  # Mean of the differences 1, 0, 0 is 1/3.
  evaluations = [
    _rewards('start', [0, 1, 0, None, 1]),
    _rewards('final', [1, 1, 0, 1, None]),
  ]
  run = report_data.load(_write(tmp_path / 'run', evaluations=evaluations))
  gain = tables.gain(run)
  assert gain.questions == 3
  np.testing.assert_allclose(gain.difference.mean, 1 / 3, rtol=1e-12)
  assert gain.difference.low == 0.0  # No question became worse.
  assert gain.difference.high == 1.0
  assert tables.gain(run, '_greedy') is None


def test_trials_of_one_question_are_averaged_before_pairing(tmp_path):
  start = _rewards('start', [0, 0])
  start['items'] += [{'id': 'q0', 'reward': 1}]  # q0: (0 + 1) / 2.
  evaluations = [start, _rewards('final', [1, 1])]
  run = report_data.load(_write(tmp_path / 'run', evaluations=evaluations))
  gain = tables.gain(run)
  assert gain.questions == 2
  assert gain.difference.mean == 0.75  # (1/2 + 1) / 2.


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'control_frozen_planner': 0.26}, 'equals the start exactly'),
    ({'control_oracle_planner': 0.97}, 'oracle planner reaches 97.0%'),
    ({'control_empty_planner': 0.06}, 'empty planner reaches 6.0%'),
    ({'control_random_planner': 0.85}, 'apart from that of the random'),
    ({'start': 0.95, 'control_frozen_planner': 0.95}, '10.0 points below'),
  ],
)
def test_a_broken_control_fails_its_check(tmp_path, change, message):
  accuracy = {
    'start': 0.25,
    'final': 0.85,
    'control_frozen_planner': 0.25,
    'control_oracle_planner': 1.0,
    'control_empty_planner': 0.01,
    'control_random_planner': 0.1,
  }

  def failures(figures, folder):
    evaluations = [
      {'name': n, 'accuracy': a, 'ci_low': a - 0.05, 'ci_high': a + 0.05}
      for n, a in figures.items()
    ]
    run = report_data.load(_write(tmp_path / folder, evaluations=evaluations))
    return [what for ok, what in tables.checks(run) if not ok]

  assert not failures(accuracy, 'good')
  assert any(message in what for what in failures(accuracy | change, 'bad'))


def test_lost_rollouts_and_late_compilations_fail_their_checks(tmp_path):
  lines = _metrics()
  lines[3]['rollouts/status/answered'] -= 1
  summary = {'compiles/after_warmup': 2}
  run = report_data.load(_write(tmp_path / 'run', lines, summary=summary))
  failed = [what for ok, what in tables.checks(run) if not ok]
  # 24 steps of 256 rollouts are 6,144, and one of them is gone.
  assert failed == [
    '6,143 training rollouts ended with a status, of 6,144 requested',
    '2 programs were compiled after the warm-up',
  ]


def _pair(name, hops, before, after, turns=1):
  def item(reward, count):
    turns = (evaluated_items.Turn(),) * count
    return evaluated_items.Item(name, reward=reward, tags={'hops': hops}, turns=turns)

  return examples.Pair(item(before, 1), item(after, turns))


def test_examples_prefer_wrong_then_right_one_per_number_of_hops():
  pairs = [
    _pair('a', '1', 1.0, 1.0),
    _pair('b', '1', 0.0, 1.0),
    _pair('c', '2', 1.0, 0.0),
    _pair('d', '2', 0.0, 0.0),
    _pair('e', '10', 0.0, 1.0, turns=1),
    _pair('f', '10', 0.0, 1.0, turns=3),
    _pair('g', '10', None, 1.0, turns=9),
  ]
  names = [pair.item.id for pair in examples.choose(pairs)]
  assert names == ['b', 'd', 'f']
  more = [pair.item.id for pair in examples.choose(pairs, 6)]
  assert more == ['b', 'd', 'f', 'a', 'c', 'e']


def test_long_texts_are_cut_and_say_so(tmp_path):
  final = _evaluation('final', 0.9, 2)
  for item in final['items']:
    item['query'] = 'x' * 5000
  run = _write(tmp_path / 'run', evaluations=[final])
  source, _ = _read(report.write_report(run))
  assert '[2,000 more characters]' in source
  assert 'x' * 3001 not in source


def test_mistakes_stand_before_and_after_training(tmp_path):
  def with_mistakes(name, accuracy, seed, causes, labels):
    value = _evaluation(name, accuracy, seed)
    value['mistakes'] = {
      'rollouts': 9,
      'unscored': 2,
      'success': 7 - sum(causes.values()),
      'first_causes': causes,
      'labels': labels,
      'levels': {},
      'calls_valid': 0.25 + accuracy / 2,
      'no_call_right': None,
    }
    return value

  run = _write(
    tmp_path / 'run',
    evaluations=[
      with_mistakes('start', 0.25, 1, {'grounding': 4}, {'grounding': 5}),
      with_mistakes('final', 0.75, 2, {'late': 1}, {'grounding': 3, 'late': 1}),
    ],
  )
  source, _ = _read(report.write_report(run))
  part = source[source.index('<h2>What went wrong</h2>') :]
  for cells in (
    ('1, calls', 'grounding', '4', '5', '0', '3'),
    ('2, completion', 'late', '0', '0', '1', '1'),
    ('', 'rollouts', '9', '', '9', ''),
    ('', 'successes', '3', '', '6', ''),
    ('', 'without a reward', '2', '', '2', ''),
    ('1, calls', 'calls that their tool accepted', '37.5%', '', '62.5%', ''),
  ):
    assert ''.join(f'<td>{cell}</td>' for cell in cells) in part, cells
  assert 'declined exactly' not in part


def test_worlds_have_a_section_of_their_own(tmp_path):
  def with_world(name, success, seed):
    value = _evaluation(name, success, seed)
    rates = {'rollouts': 90, 'success': success, 'pass_fraction': 0.875}
    value['world'] = rates | {
      'refusal_recall': 0.625,
      'false_refusals': None,
      'violating': 0.25,
      'violations': 1.5,
      'calls': 4.25,
      'environment_seconds': 0.0025,
      'by_family': {'lend': rates, HOSTILE: rates},
      'by_feasible': {'no': rates},
      'by_held_out': {},
    }
    for item in value['items']:
      item |= {
        'changed': ['item/I7: state "free" -> "lent"', f'loan/L3: {HOSTILE}'],
        'violations': [f'loan/L3: {HOSTILE}'],
      }
    return value

  run = _write(
    tmp_path / 'run',
    evaluations=[with_world('start', 0.25, 1), with_world('final', 0.75, 2)],
  )
  source, _ = _read(report.write_report(run))
  assert '<h2>Worlds</h2>' in source and 'Success by family' in source
  for shown in ('25.0%', '75.0%', '87.5%', '62.5%', '1.50', '4.2', '2.5'):
    assert f'<td>{shown}</td>' in source, shown
  assert 'Success on held-out' not in source, 'nothing is held out there'
  assert source.count('item/I7: state') == 6, 'three examples, before and after'
  assert '<li class="bad">loan/L3: &lt;script&gt;' in source
  plain = _write(tmp_path / 'plain', evaluations=[_evaluation('final', 0.5, 1)])
  assert 'Worlds' not in _read(report.write_report(plain))[0]


def _with(run, **changes):
  """Changes all lines of a run's metrics."""
  path = run / 'metrics.jsonl'
  lines = [json.loads(line) for line in path.read_text().splitlines()]
  path.write_text(''.join(json.dumps(line | changes) + '\n' for line in lines))
  return _read(report.write_report(run))


def _labels(source, label):
  """Texts of the picture with an aria-label."""
  (picture,) = re.findall(rf'aria-label="{re.escape(label)}">(.*?)</svg>', source, re.S)
  return re.findall(r'<text[^>]*>([^<]*)</text>', picture)


def test_equal_bits_and_constants_are_told(tmp_path):
  run = write_complete(tmp_path / 'run')
  source, page = _with(
    run,
    **{
      'update/logprob_gap/max': 0.0,
      'rate/queue_seconds_per_request': 2.5e-7,
      'rate/slots_used': 0.5,
    },
  )
  text = ''.join(page.text)
  assert '0.0e+00' not in text and text.count('0: equal bits') == 2
  gap = _labels(source, 'max |logprob - behavior_logprob| over steps')
  assert gap[-1:] == ['0: equal bits'] or '0: equal bits' in gap
  # A constant is the only value beside 0, and no power of ten stands apart.
  queue = _labels(source, 'Seconds until a request had a slot over steps')
  assert '2.5e-07' in queue and '0' in queue
  assert not any(label.startswith('1e') for label in queue)
  slots = _labels(source, 'Slots used over steps')
  assert [label for label in slots if '%' in label] == ['0%', '50%']


def test_labels_of_small_shares_differ(tmp_path):
  run = write_complete(tmp_path / 'run')
  path = run / 'metrics.jsonl'
  lines = [json.loads(line) for line in path.read_text().splitlines()]
  lines = [line | {'rate/pages_used': 0.001 * line['step']} for line in lines]
  path.write_text(''.join(json.dumps(line) + '\n' for line in lines))
  source, _ = _read(report.write_report(run))
  labels = [one for one in _labels(source, 'Pages used over steps') if '%' in one]
  assert len(labels) == len(set(labels)) >= 4


def test_evaluations_that_were_asked_for_are_listed(tmp_path):
  run = write_complete(tmp_path / 'run')
  mine = _evaluation('mine_greedy', 0.5, 8, temperature=0.0) | {'split': 'validation'}
  (run / 'evaluations' / 'mine_greedy.json').write_text(json.dumps(mine))
  source, page = _read(report.write_report(run))
  text = ''.join(page.text)
  assert 'Other evaluations' in text
  row = re.search('<tr><td>mine greedy</td>(.*?)</tr>', source).group(1)
  assert '<td>validation</td><td>greedy</td>' in row
  assert f'{100 * mean_of(mine):.1f}%' in row
  assert (
    'Other evaluations'
    not in _read(report.write_report(write_complete(tmp_path / 'other')))[0]
  )


def mean_of(evaluation):
  return evaluation['accuracy']


def test_names_of_statuses_are_words():
  assert names.status('out_of_turns') == 'out of turns'
  assert names.status('unparseable_plan') == 'unreadable plan'
  assert names.gap(2.4e-6) == '2.4e-06'
