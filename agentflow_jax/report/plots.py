"""The report's pictures: each an <svg>, or '' where there is nothing to see."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import axes, ticker

from agentflow_jax.report import data, names, svg
from agentflow_jax.rollouts import intervals

# Evaluation -> (legend, colour), in the order that bars and rows stand in.
PLANNERS = {
  'control_oracle_planner': ('oracle planner', svg.ORACLE),
  'final': ('trained planner', svg.AFTER),
  'start': ('before training', svg.BEFORE),
  'control_frozen_planner': ('frozen planner', svg.TEAL),
  'control_blind_planner': ('trained planner without tool results', svg.RED),
  'control_random_planner': ('random planner', svg.RANDOM),
  'control_refusing_planner': ('always refusing planner', svg.MUTED),
  'control_empty_planner': ('empty planner', svg.EMPTY),
}
_STACK = (svg.AFTER, svg.RANDOM, svg.ORACLE, svg.EMPTY, svg.TEAL, svg.RED, svg.BEFORE)
_HEALTH = {
  'update/loss': 'loss [nats]',
  'update/kl': 'KL to the reference [nats]',
  'update/entropy': 'entropy [nats]',
  'update/clip_frac_high': 'clipped above, share of targets',
  'update/ratio_max': 'largest probability ratio',
  'update/grad_norm': 'gradient norm before clipping',
  'update/logprob_gap/max': 'max |logprob - behavior_logprob|',
}
_WIDE = (9.4, 3.5)
_HALF = (4.6, 2.7)
_TALL = (4.6, 3.4)  # A wide picture for a telephone.
_GAP = 'update/logprob_gap/max'


def reward_and_accuracy(run: data.Run) -> str:
  """Mean training reward and validation accuracy over steps, with bands."""
  reward = run.series('reward/mean')
  sampled = run.series('eval/accuracy')
  greedy = run.series('eval/accuracy_greedy')
  if not (reward[0] or sampled[0] or greedy[0]):
    return ''

  def paint(canvas):
    ax = canvas.subplots()
    _band(ax, run, 'reward/ci_low', 'reward/ci_high', svg.RANDOM)
    _line(ax, reward, svg.RANDOM, 'training reward')
    _band(ax, run, 'eval/accuracy_ci_low', 'eval/accuracy_ci_high', svg.AFTER)
    _line(ax, sampled, svg.AFTER, 'validation accuracy, sampled', 'o')
    _line(ax, greedy, svg.TEAL, 'validation accuracy, greedy', 's')
    ax.set_ylim(-0.02, 1.02)
    svg.percent_axis(ax.yaxis)
    svg.step_axis(ax)
    svg.legend(ax)

  label = 'Reward and evaluation accuracy over steps'
  return svg.responsive('curve', label, _WIDE, _TALL, paint)


def accuracy_by_hops(run: data.Run) -> str:
  """Bars of accuracy by number of hops: before, after and the controls."""
  shown = {
    name: evaluation
    for name in PLANNERS
    if (evaluation := run.evaluations.get(name)) and evaluation.by_hops
  }
  if not shown:
    return ''
  labels = {name: PLANNERS[name][0] for name in shown}
  start, frozen = shown.get('start'), shown.get('control_frozen_planner')
  if start and frozen and start.by_hops == frozen.by_hops:
    del shown['control_frozen_planner']
    labels['start'] += ' = frozen planner'
  hops = hop_order({h for e in shown.values() for h in e.by_hops})

  def paint(canvas):
    ax = canvas.subplots()
    width = 0.84 / len(shown)
    for i, (name, evaluation) in enumerate(shown.items()):
      color = PLANNERS[name][1]
      parts: list[Any] = [evaluation.by_hops.get(h) for h in hops]
      x = np.arange(len(hops)) + (i - (len(shown) - 1) / 2) * width
      keep = [j for j, part in enumerate(parts) if part is not None]
      means = np.array([parts[j].accuracy for j in keep])
      ends = np.array(
        [intervals.wilson_interval(parts[j].accuracy, parts[j].items) for j in keep]
      )
      ax.bar(x[keep], means, width * 0.86, color=color, label=labels[name])
      ax.errorbar(
        x[keep],
        means,
        np.abs(ends.T - means),
        fmt='o',
        color=svg.INK,
        markerfacecolor=color,  # Tells whose a bar of height 0 is.
        markersize=3.5,
        markeredgewidth=0.9,
        elinewidth=0.9,
        clip_on=False,
      )
    ticks = [_hop_label(h, shown.values()) for h in hops]
    if svg.is_narrow(canvas):
      ticks = [tick.replace(' (', '\n(') for tick in ticks]
    ax.set_xticks(range(len(hops)), ticks)
    ax.tick_params('x', length=0, pad=7)
    ax.grid(visible=False, axis='x')
    ax.set_ylim(0, 1.02)
    svg.percent_axis(ax.yaxis)
    svg.legend(ax)

  label = 'Accuracy by number of hops, with intervals'
  return svg.responsive('hops', label, _WIDE, _TALL, paint)


def tool_usage(run: data.Run) -> str:
  """Calls of each tool per rollout, before and after training."""
  pair = [
    (legend, color, run.evaluations[name])
    for name, legend, color in (
      ('start', 'before', svg.BEFORE),
      ('final', 'after', svg.AFTER),
    )
    if name in run.evaluations and run.evaluations[name].rollouts
  ]
  tools = sorted({tool for *_, e in pair for tool in e.tools}, reverse=True)
  if not tools:
    return ''

  def paint(canvas):
    ax = canvas.subplots()
    height = 0.8 / len(pair)
    for i, (legend, color, evaluation) in enumerate(pair):
      calls = [evaluation.tools.get(t, 0) / evaluation.rollouts for t in tools]
      y = np.arange(len(tools)) - (i - (len(pair) - 1) / 2) * height
      bars = ax.barh(y, calls, height * 0.86, color=color, label=legend)
      ax.bar_label(bars, fmt='%.2f', padding=3, color=svg.MUTED)
    ax.set_yticks(range(len(tools)), tools)
    ax.margins(x=0.14)
    ax.grid(visible=False, axis='y')
    ax.set_xlabel('calls per rollout')
    svg.legend(ax)

  return svg.render('tools', 'Tool usage, before and after', _HALF, paint)


def over_steps(run: data.Run, key: str, name: str, label: str, *, percent=False) -> str:
  """One metric over the training steps; y starts at 0."""
  series = run.series(key)
  if not series[0]:
    return ''

  def paint(canvas):
    ax = canvas.subplots()
    _line(ax, series, svg.AFTER, label)
    _scale(ax, series[1], from_zero=True)
    if percent:
      svg.percent_axis(ax.yaxis)
    svg.step_axis(ax)

  return svg.render(name, f'{label} over steps', _HALF, paint)


def statuses(run: data.Run) -> str:
  """How the rollouts of each step ended, as stacked shares."""
  totals = run.totals('rollouts/status/')
  totals = {status: count for status, count in totals.items() if count}
  if not totals:
    return ''
  ranked = sorted(totals, key=lambda s: (-totals[s], s))
  named = ranked[: len(_STACK) - 1]
  lines = [
    line
    for line in run.metrics
    if any(f'rollouts/status/{status}' in line for status in ranked)
  ]

  def counts(which: Sequence[str]) -> np.ndarray:
    keys = [f'rollouts/status/{status}' for status in which]
    rows = [[line.get(key) or 0 for key in keys] for line in lines]
    return np.array(rows, np.float64).reshape(len(lines), len(keys)).sum(axis=1)

  layers = {status: counts([status]) for status in named}
  if ranked[len(named) :]:
    layers['all others'] = counts(ranked[len(named) :])
  total = np.maximum(counts(ranked), 1.0)

  def paint(canvas):
    ax = canvas.subplots()
    # Stairs, not slopes: a share is of a whole step.
    steps = np.array([line['step'] for line in lines], np.float64)
    edges = np.append(steps - 0.5, steps[-1] + 0.5)
    bottom = np.zeros(len(lines))
    for (status, layer), color in zip(layers.items(), _STACK, strict=False):
      top = bottom + layer / total
      label = names.status(status)
      ax.stairs(top, edges, baseline=bottom, fill=True, color=color, label=label)
      bottom = top
    ax.set_ylim(0, 1)
    ax.margins(x=0)
    svg.percent_axis(ax.yaxis)
    svg.step_axis(ax)
    canvas.legend(loc='outside upper left', ncols=min(2, len(layers)))

  return svg.render('statuses', 'How rollouts ended', (_HALF[0], 3.1), paint)


def time_spent(name: str, label: str, parts: Mapping[str, float]) -> str:
  """Horizontal bars of seconds by what they were spent on, largest first."""
  ranked = sorted(parts, key=lambda part: (parts[part], part))
  total = sum(parts.values())
  if total <= 0:
    return ''

  def paint(canvas):
    ax = canvas.subplots()
    seconds = [parts[part] for part in ranked]
    bars = ax.barh(ranked, seconds, 0.66, color=svg.AFTER)
    texts = [f'{s:,.1f} s  {s / total:.0%}' for s in seconds]
    ax.bar_label(bars, texts, padding=4, color=svg.MUTED)
    ax.margins(x=0.5 if svg.is_narrow(canvas) else 0.22)
    ax.grid(visible=False, axis='y')
    ax.set_xlabel('seconds')
    # The last label could stand beyond the edge.
    ax.xaxis.set_major_locator(ticker.MaxNLocator(4, prune='upper'))
    ax.xaxis.set_major_formatter(ticker.StrMethodFormatter('{x:,g}'))

  height = 0.75 + 0.3 * len(ranked)
  wide, narrow = (_WIDE[0], height), (_HALF[0], height)
  return svg.responsive(name, label, wide, narrow, paint)


def update_health(run: data.Run) -> list[tuple[str, str]]:
  """Returns (title, picture) of each of the optimizer's own metrics."""
  found = {key: run.series(key) for key in _HEALTH}
  if run.series('update/pg_loss')[0]:
    del found['update/loss']  # On policy it is -mean A: nothing to learn from.
  return [
    (_HEALTH[key], _health(key, series)) for key, series in found.items() if series[0]
  ]


def _health(key: str, series) -> str:
  def paint(canvas):
    ax = canvas.subplots()
    _line(ax, series, svg.AFTER, key)
    _scale(ax, series[1])
    svg.step_axis(ax)
    if key == _GAP and not any(series[1]):
      ax.set_yticks([0], [names.gap(0.0)])

  name = key.replace('/', '-').replace('_', '-')
  return svg.render(name, f'{_HEALTH[key]} over steps', _HALF, paint)


def hop_order(hops: set[str]) -> list[str]:
  """Numbers by size, then whatever else there is by name."""
  return sorted(hops, key=lambda h: (not h.isdecimal(), len(h), h))


def _hop_label(hops: str, evaluations) -> str:
  noun = 'hop' if hops == '1' else 'hops'
  slices = [e.by_hops[hops] for e in evaluations if hops in e.by_hops]
  counts = [part.items for part in slices]
  count = '-'.join(map(str, dict.fromkeys((min(counts), max(counts)))))
  return f'{hops} {noun} (n = {count})'


def _line(ax: axes.Axes, series, color: str, label: str, marker='') -> None:
  steps, values = series
  if steps:
    lonely = 'o' if len(steps) == 1 else ''
    ax.plot(steps, values, color=color, label=label, marker=marker or lonely, ms=4)


def _band(ax: axes.Axes, run: data.Run, low: str, high: str, color):
  lows = dict(zip(*run.series(low), strict=True))
  highs = dict(zip(*run.series(high), strict=True))
  steps = sorted(lows.keys() & highs.keys())
  ax.fill_between(
    steps,
    [lows[step] for step in steps],
    [highs[step] for step in steps],
    color=color,
    alpha=0.18,
    linewidth=0,
  )


def _scale(ax: axes.Axes, values: Sequence[float], from_zero: bool = False) -> None:
  """Sets the limits and the labels of the y axis.

  A label says the value itself: none of it is written apart, at the end of the axis.
  A constant is drawn as one: its value is the only label, beside 0.
  """
  low, high = min(values), max(values)
  ax.yaxis.set_major_formatter(ticker.FuncFormatter(lambda y, _: f'{y:,.6g}'))
  ax.yaxis.set_major_locator(ticker.MaxNLocator(5))
  if low == high:
    ends = sorted([0.0, 2 * low]) if low else [-1.0, 1.0]
    ax.set_ylim(*ends)
    ax.set_yticks(sorted({0.0, low}))
  elif from_zero:
    ax.set_ylim(min(0.0, 1.08 * low), 1.08 * high)
