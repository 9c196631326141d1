"""report.html and the closing table of a run, from its machine-readable files.

The page is one file that opens anywhere: pictures are inline SVG, there is no
script, and nothing is fetched. The same files give the same bytes.
"""

import math
from collections.abc import Mapping, Sequence

from etils import epath

from agentflow_jax.files import reading, writing
from agentflow_jax.report import data, examples, markup, mistakes, names, plots
from agentflow_jax.report import tables, terms, worlds

_EXAMPLES = 3

# What a reader needs to know of each figure: (figure, what it is over).
_DENOMINATORS = (
  (
    'Accuracy',
    'the mean over questions of the mean reward of their scored rollouts'
    ' (one rollout a question unless the evaluation says otherwise). A'
    ' rollout that failed by itself (an unreadable plan, a truncated'
    ' response, out of turns, a tool error that its arguments caused, past'
    ' its deadline) is scored and stays in the denominator. A rollout that'
    ' an unreachable model, tool or judge ended has no reward and is in no'
    ' denominator; the column "unscored" counts these. Where there are any,'
    ' the accuracy over all requested rollouts stands beside it, in which'
    ' these count as wrong.',
  ),
  (
    'Sampled and greedy',
    'sampled is at the training temperature; greedy takes the most likely'
    ' token. The frozen planner is what training started from, sampled once'
    ' more; the other controls are rules and have one accuracy.',
  ),
  (
    'Intervals',
    '95%. Of an accuracy: percentile bootstrap over questions; where all'
    ' end alike it has no width, which is no certainty. Of a number of'
    ' hops: Wilson score over its scored questions. Of the gain: bootstrap'
    ' over questions scored both times, each with both rewards.',
  ),
  (
    'Training reward',
    'the mean over the scored rollouts of one step, on training questions;'
    ' its interval resamples the step’s groups. Validation accuracy is on'
    ' questions that are never trained on.',
  ),
  (
    'Tool-call error rate',
    'calls that returned an error among all calls that returned, whatever'
    ' became of the rollout.',
  ),
  (
    'Turns and tool calls per rollout',
    'over all rollouts that were asked for, scored or not.',
  ),
)


def write_report(workdir: epath.PathLike, warnings: Sequence[str] = ()) -> epath.Path:
  """Writes <workdir>/report.html and returns its path.

  Args:
    workdir: work directory of the run.
    warnings: sentences that say why the run cannot learn, for the top of the page.

  Raises:
    data.ReportError: there is nothing to report, or a file is broken.
  """
  path = epath.Path(workdir) / 'report.html'
  writing.write_whole(path, render(data.load(workdir), warnings))
  return path


def terminal_table(workdir: epath.PathLike) -> str:
  """The table of accuracies as plain text, for the end of a program.

  Raises:
    data.ReportError: there is nothing to report, or a file is broken.
  """
  return tables.terminal(data.load(workdir))


def render(run: data.Run, warnings: Sequence[str] = ()) -> str:
  """The whole page as HTML, with warnings at its top."""
  return markup.page(
    f'Training report: {run.name}',
    [
      _opening(run, warnings),
      markup.section('Accuracy', *_accuracy(run)),
      markup.section('Other evaluations', *_others(run)),
      markup.section('Worlds', *worlds.sections(run)),
      markup.section('What went wrong', *mistakes.sections(run)),
      markup.section('Terms of the reward', *terms.sections(run)),
      markup.section('Training', *_training(run)),
      markup.section('Where the time went', *_time(run)),
      markup.section('Trajectories', *_examples(run)),
      markup.section('The warm start’s teacher', _teacher(run)),
      markup.section('What the figures are over', _definitions()),
      markup.section('The run', _identity(run)),
    ],
  )


def _opening(run: data.Run, warnings: Sequence[str]) -> str:
  table = {row.name: row for row in tables.rows(run)}
  start, final = table.get('start'), table.get('final')
  gain = tables.gain(run)
  if final and final.sampled and start and start.sampled:
    before, after = start.sampled.point, final.sampled.point
    lead = (
      f'The planner answered {before} of the evaluation questions right '
      f'before training, and {after} after it.'
    )
    if gain:
      lead += f' Gain: {tables.gain_text(gain)}.'
  elif final and (final.sampled or final.greedy):
    found = final.sampled or final.greedy
    lead = (
      f'The planner answered {found.point} of the evaluation questions right'
      ' at the end.'
    )
  else:
    lead = (
      'This run has no final evaluation: it is still going, or it was '
      'stopped. The page shows what there is so far.'
    )
  return (
    f'<h1>{markup.text(run.name or "run")}: training report</h1>'
    + ''.join(
      f'\n<p class="warning"><b>Warning.</b> {markup.text(one)}</p>' for one in warnings
    )
    + f'\n<p class="lead">{markup.text(lead)}</p>\n{_tiles(run)}'
  )


def _tiles(run: data.Run) -> str:
  tiles = []
  if run.metrics:
    tiles.append(('training steps', f'{run.metrics[-1]["step"]:,}'))
  requested = run.totals('rollouts/').get('requested')
  if requested:
    tiles.append(('training rollouts', f'{requested:,.0f}'))
    seconds = run.totals('seconds/').get('rollout')
    if seconds:
      tiles.append(('rollouts a second', f'{requested / seconds:.1f}'))
  total = sum(_seconds(run).values())
  if total:
    minutes, seconds = divmod(round(total), 60)
    tiles.append(('wall time', f'{minutes} min {seconds} s'))
  gap = run.series('update/logprob_gap/max')[1]
  if gap:
    tiles.append(('largest log-prob gap [nats]', names.gap(max(gap))))
  cells = ''.join(
    f'<div class="tile"><b>{markup.text(value)}</b>'
    f'<span>{markup.text(name)}</span></div>'
    for name, value in tiles
  )
  return f'<div class="tiles">{cells}</div>' if cells else ''


def _accuracy(run: data.Run) -> list[str]:
  rows = tables.rows(run)
  cells = []
  for row in rows:
    e = row.evaluation
    cells.append(
      [
        markup.text(row.label),
        _estimate(row.sampled),
        _estimate(row.greedy),
        str(e.rollouts) if e else '-',
        str(e.unscored) if e and e.items else '-',
        f'{e.turns_mean:.2f}' if e and math.isfinite(e.turns_mean) else '-',
        tables.percent(e.tool_error_rate) if e else '-',
      ]
    )
  header = (
    'planner',
    'sampled',
    'greedy',
    'rollouts',
    'unscored',
    'turns',
    'tool errors',
  )
  planners = [row.name for row in rows]
  key = planners.index('final') if 'final' in planners else None
  checks = ''.join(
    f'<li><b class="{"good" if ok else "bad"}">{"holds" if ok else "FAILS"}'
    f'</b> <span>{markup.text(what)}</span></li>'
    for ok, what in tables.checks(run)
  )
  splits = sorted({row.evaluation.split for row in rows if row.evaluation})
  note = f'Split: {", ".join(splits)}. Brackets hold 95% intervals.'
  return [
    markup.table(header, cells, key_row=key),
    f'<p class="note">{markup.text(note)}</p>' if cells else '',
    f'<ul class="checks">{checks}</ul>' if checks else '',
    markup.figure(
      'Accuracy by number of hops',
      plots.accuracy_by_hops(run),
      'Sampled accuracy of the questions that need so many hops; whiskers '
      'are 95% intervals.',
    ),
  ]


def _others(run: data.Run) -> list[str]:
  """The evaluations that a user asked for, beside those of the run itself."""
  own = {f'{name}{suffix}' for name in plots.PLANNERS for suffix in ('', '_greedy')}
  rows = []
  for name in sorted(set(run.evaluations) - own):
    e = run.evaluations[name]
    sampling = 'greedy' if e.temperature == 0 else f'temperature {e.temperature:g}'
    found = tables.Estimate(e.accuracy, e.ci_low, e.ci_high, e.accuracy_over_requested)
    rows.append(
      [
        markup.text(names.evaluation(name)),
        markup.text(e.split or '-'),
        sampling if math.isfinite(e.temperature) else '-',
        _estimate(found),
        f'{e.rollouts:,}',
        str(e.unscored),
        f'{e.turns_mean:.2f}' if math.isfinite(e.turns_mean) else '-',
      ]
    )
  header = ('evaluation', 'split', 'sampling', 'accuracy', 'rollouts', 'unscored')
  return [markup.table([*header, 'turns'], rows)]


def _estimate(estimate: tables.Estimate) -> str:
  """A table cell: the mean, its interval smaller."""
  mean, _, ends = str(estimate).partition(' ')
  return f'{mean} <small>{ends}</small>' if ends else mean


def _training(run: data.Run) -> list[str]:
  return [
    markup.figure(
      'Reward and accuracy over steps',
      plots.reward_and_accuracy(run),
      'Bands are 95% intervals: of a step’s mean reward over its groups, '
      'of an accuracy over the validation questions.',
    ),
    markup.grid(
      [
        markup.figure(
          'Tool usage, before and after',
          plots.tool_usage(run),
          'Sampled evaluations of the same questions.',
        ),
        markup.figure(
          'Tool-call error rate',
          plots.over_steps(
            run,
            'rollouts/tool_error_rate',
            'tool-errors',
            'Tool-call error rate',
            percent=True,
          ),
          'Failed calls among all calls of a training step.',
        ),
        markup.figure(
          'Turns per rollout',
          plots.over_steps(run, 'rollouts/turns_mean', 'turns', 'Turns per rollout'),
          'Planner turns, mean over a training step.',
        ),
        markup.figure(
          'Response length',
          plots.over_steps(
            run, 'tokens/response_mean', 'response-length', 'Tokens a response'
          ),
          'The planner’s tokens a turn, mean over a training step.',
        ),
        markup.figure(
          'How rollouts ended',
          plots.statuses(run),
          'Shares of the rollouts that a step asked for.',
        ),
      ]
    ),
    _status_table(run),
    _met(run),
    markup.grid(
      markup.figure(title, picture) for title, picture in plots.update_health(run)
    ),
  ]


def _status_table(run: data.Run) -> str:
  counts: dict[str, Mapping[str, float]] = {'training': run.totals('rollouts/status/')}
  for name in ('start', 'final'):
    if name in run.evaluations:
      title = f'evaluation: {plots.PLANNERS[name][0]}'
      counts[title] = run.evaluations[name].status
  seen = {status for column in counts.values() for status in column}
  order = sorted(seen, key=lambda s: (-counts['training'].get(s, 0), s))
  rows = [
    [markup.text(names.status(status))]
    + [f'{column.get(status, 0):,.0f}' for column in counts.values()]
    for status in order
    if any(column.get(status) for column in counts.values())
  ]
  if not rows:
    return ''
  rows.append(['all'] + [f'{sum(column.values()):,.0f}' for column in counts.values()])
  table = markup.table(['status', *counts], rows, key_row=len(rows) - 1, full=False)
  return f'<details open><summary>Rollouts by status</summary>{table}</details>'


def _met(run: data.Run) -> str:
  """What tool calls met in training that a reader should know of."""
  counts = run.totals('tool_counts/')
  if not counts:
    return ''
  rows = [[markup.text(n), f'{c:,.0f}'] for n, c in sorted(counts.items())]
  table = markup.table(['tool calls met', 'times'], rows, full=False)
  return (
    '<details open><summary>What tool calls met: hosts that are blocked,'
    ' results that quote the whole query</summary>'
    f'{table}</details>'
  )


def _time(run: data.Run) -> list[str]:
  return [
    markup.figure(
      'Wall time',
      plots.time_spent('time', 'Where the time went', _seconds(run)),
      'Of the whole run; after a resume, of all training steps and of what '
      'else the last process did.'
      if run.facts('seconds/')
      else 'Summed over the training steps so far.',
    ),
    markup.figure(
      'Inside the rollouts',
      plots.time_spent(
        'rollout-time', 'What rollouts waited for', _rollout_seconds(run)
      ),
      'Summed over all training rollouts. They run side by side, so these '
      'sums exceed the wall time.',
    ),
    markup.grid(
      [
        markup.figure(
          label,
          plots.over_steps(
            run, f'rate/{name}', name.replace('_', '-'), label, percent=percent
          ),
          note,
        )
        for name, label, percent, note in _ENGINE
      ]
    ),
  ]


# What the sampler did: metric, label, whether it is a share, what it says.
_ENGINE = (
  (
    'prefix_hits',
    'Prompt tokens found in the cache',
    True,
    'Of all prompt tokens of a step; they were read once before.',
  ),
  (
    'device_idle',
    'Device idle with work pending',
    True,
    'Of the time in which the sampler had requests in its slots.',
  ),
  (
    'slots_used',
    'Slots used',
    True,
    'Of engine.slots, over the time in which any was.',
  ),
  (
    'pages_used',
    'Pages used',
    True,
    'Of the room for keys and values, what requests needed, over that time.',
  ),
  (
    'decode_tokens_per_second',
    'Tokens sampled per second',
    False,
    'Over the time that the device was decoding.',
  ),
  (
    'prefill_tokens_per_second',
    'Prompt tokens read per second',
    False,
    'Over the time that the device was reading; those in the cache are none.',
  ),
  (
    'queue_seconds_per_request',
    'Seconds until a request had a slot',
    False,
    'Mean over the requests of a step.',
  ),
  (
    'first_token_seconds_per_request',
    'Seconds until its first token',
    False,
    'Likewise; the wait for the slot is a part of it.',
  ),
)


def _seconds(run: data.Run) -> dict[str, float]:
  """Wall time [s] by what it was spent on: disjoint parts, by name."""
  found = {
    name: seconds
    for name, value in run.facts('seconds/').items()
    if '/' not in name and math.isfinite(seconds := reading.number(value))
  }
  found = found or run.totals('seconds/')
  # What the parts are of, where that was measured too.
  return _with_rest(found, max(found.pop('step', 0.0), found.pop('total', 0.0)))


def _rollout_seconds(run: data.Run) -> dict[str, float]:
  """Likewise what rollouts took, summed over all of them."""
  found = run.totals('seconds/rollout_sum/', nested=True)
  return _with_rest(found, found.pop('total', 0.0))


def _with_rest(parts: dict[str, float], whole: float) -> dict[str, float]:
  rest = whole - sum(parts.values())
  return parts | {'everything else': rest} if rest > 0 else parts


def _examples(run: data.Run) -> list[str]:
  pairs = examples.pair_up(run)
  chosen = examples.choose(pairs, _EXAMPLES)
  if not chosen:
    return []
  note = (
    'Chosen to show what changed, so not a fair sample (the table above is '
    'of all questions): one for each number of hops where there are enough, '
    'wrong before and right after where there is one, then the one with most '
    'turns. Right means a reward of at least one half.'
  )
  return [
    examples.transitions(pairs),
    f'<p class="note">{markup.text(note)}</p>',
    *(examples.render(p, i) for i, p in enumerate(chosen, start=1)),
  ]


def _teacher(run: data.Run) -> str:
  facts = sorted(run.facts('teacher/').items())
  if not facts:
    return ''
  note = (
    'The warm start was trained on traces of a scripted teacher that knows '
    'the format and errs at these rates, so that it is a real baseline.'
  )
  return f'<p>{note}</p>' + markup.facts(
    (name.replace('_', ' '), _rate(value)) for name, value in facts
  )


def _rate(value: object) -> str:
  share = reading.number(value)
  if isinstance(value, float) and 0 <= share <= 1:
    return tables.percent(share)
  return str(value)


def _definitions() -> str:
  return (
    '<dl>'
    + ''.join(
      f'<dt>{markup.text(name)}</dt><dd>{markup.text(what)}</dd>'
      for name, what in _DENOMINATORS
    )
    + '</dl>'
  )


def _identity(run: data.Run) -> str:
  known = ('params_digest', 'compiles/after_warmup')
  pairs = [(key, run.summary[key]) for key in known if key in run.summary]
  config = sorted(run.facts('config/').items())
  parts = markup.facts(pairs)
  if config:
    parts += (
      f'<details><summary>Configuration</summary>{markup.facts(config)}</details>'
    )
  return parts
