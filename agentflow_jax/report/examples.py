"""Example trajectories: which questions are shown, and how they read."""

import dataclasses
from collections.abc import Sequence

from agentflow_jax.report import data, markup, names, plots
from agentflow_jax.rollouts import evaluated_items

_TEXT_LIMIT = 3000  # Characters of one text; the rest is in the files.

# What became of a question, and how much it teaches a reader about training.
_CHANGES = {
  ('wrong', 'right'): 0,
  ('right', 'right'): 1,
  ('wrong', 'wrong'): 2,
  ('right', 'wrong'): 3,
}


@dataclasses.dataclass(frozen=True)
class Pair:
  """One question before and after training; None where it was not asked."""

  before: evaluated_items.Item | None
  after: evaluated_items.Item | None

  @property
  def item(self) -> evaluated_items.Item:
    item = self.after or self.before
    assert item is not None  # It was asked once at least.
    return item

  @property
  def hops(self) -> str:
    """Number of hops of the question; '' where it is not known."""
    return self.item.tags.get('hops', '')

  @property
  def change(self) -> tuple[str, str]:
    return verdict(self.before), verdict(self.after)


def verdict(item: evaluated_items.Item | None) -> str:
  """'right' (a reward of at least 1/2), 'wrong', 'not scored', 'not asked'."""
  if item is None:
    return 'not asked'
  if item.reward is None:
    return 'not scored'
  return 'right' if item.reward >= 0.5 else 'wrong'


def pair_up(run: data.Run) -> list[Pair]:
  """Questions of the sampled evaluations by id, else of the greedy ones.

  A question that was asked in several trials counts with its first.
  """
  for pair in (('start', 'final'), ('start_greedy', 'final_greedy')):
    sides = []
    for name in pair:
      evaluation = run.evaluations.get(name)
      items = evaluation.items if evaluation else ()
      sides.append({item.id: item for item in reversed(items)})
    before, after = sides
    if before or after:
      ids = sorted(before.keys() | after.keys())
      return [Pair(before.get(i), after.get(i)) for i in ids]
  return []


def choose(pairs: Sequence[Pair], count: int = 3) -> list[Pair]:
  """Up to `count` pairs: one per number of hops, then further ones in turn.

  Within a number of hops: wrong before and right after first, then the one
  with most turns after, then by id. Deterministic.
  """

  def merit(pair: Pair):
    turns = len(pair.after.turns) if pair.after else 0
    return _CHANGES.get(pair.change, len(_CHANGES)), -turns, pair.item.id

  queues = {}
  for pair in sorted(pairs, key=merit):
    queues.setdefault(pair.hops, []).append(pair)
  order = plots.hop_order(set(queues))
  chosen = []
  while len(chosen) < count and any(queues.values()):
    for hops in order:
      if queues[hops] and len(chosen) < count:
        chosen.append(queues[hops].pop(0))
  return chosen


def transitions(pairs: Sequence[Pair]) -> str:
  """A table of what became of the questions that were scored both times."""
  rows = []
  for before in ('right', 'wrong'):
    counts = [
      sum(pair.change == (before, after) for pair in pairs)
      for after in ('right', 'wrong')
    ]
    rows.append([f'{before} before', *map(str, counts), str(sum(counts))])
  if not sum(int(row[-1]) for row in rows):
    return ''
  return markup.table(['', 'right after', 'wrong after', 'questions'], rows, full=False)


def render(pair: Pair, index: int) -> str:
  """One question with its two trajectories side by side."""
  item = pair.item
  hops = f' · hops: {markup.text(pair.hops)}' if pair.hops else ''
  sides = ''.join(
    f'<div class="side"><h3>{title}</h3>{_trajectory(side)}</div>'
    for title, side in (('Before', pair.before), ('After', pair.after))
    if side is not None
  )
  return (
    '<div class="example">'
    f'<p class="note">Example {index} · {_cut(item.id)}{hops}</p>'
    f'<p class="question said">{_cut(item.query)}</p>'
    f'<p class="note said">Expected answer: {_cut(item.gold)}</p>'
    f'<div class="sides">{sides}</div></div>'
  )


def _trajectory(item: evaluated_items.Item) -> str:
  turns = ''.join(_turn(turn, i) for i, turn in enumerate(item.turns, start=1))
  kind = verdict(item)
  reward = '' if item.reward is None else f', reward {item.reward:g}'
  detail = ''
  if item.detail:
    detail = f'<p class="note said">{_cut(item.detail)}</p>'
  answer = _cut(item.answer) if item.answer else '(none)'
  return (
    f'<ol class="turns">{turns}</ol>'
    f'<div class="answer {kind}"><h4>Answer: {kind}{reward}</h4>'
    f'<p class="said">{answer}</p>'
    f'<p class="note">status: {markup.text(names.status(item.status))}</p>'
    f'{detail}{_changes(item)}</div>'
  )


def _changes(item: evaluated_items.Item) -> str:
  """Returns what a rollout changed in its world, and what no check allows."""
  world = item.world
  if world is None or not world.changed:
    return ''
  rows = ''.join(
    f'<li class="{"bad" if change in world.violations else "said"}">{_cut(change)}</li>'
    for change in world.changed
  )
  return f'<h4>Changed</h4><ul>{rows}</ul>'


def _turn(turn: evaluated_items.Turn, index: int) -> str:
  parts = [f'<h4>Turn {index} · planner</h4>', _pre(turn.planner)]
  if turn.parse_error:
    parts += [
      '<h4 class="bad">This plan could not be read</h4>',
      _pre(turn.parse_error, failed=True),
    ]
  for one in turn.calls:
    if one.tool:
      parts += ['<h4>Tool call</h4>', _pre(_call(one))]
    if one.tool or one.result:
      title = 'Tool failed' if one.failed else 'Result'
      mark = ' class="bad"' if one.failed else ''
      parts += [f'<h4{mark}>{title}</h4>', _pre(one.result, failed=one.failed)]
  if turn.verdict:
    said = f'<p class="note said">{_cut(turn.verdict)}</p>'
    parts.append(f'<h4>Verifier</h4>{said}')
  return '<li>' + ''.join(parts) + '</li>'


def _call(call: evaluated_items.Call) -> str:
  """The call as it reads best: a program keeps its lines."""
  shown = []
  for name, value in call.arguments.items():
    if isinstance(value, str) and '\n' in value:
      shown.append(f'{name}=\n{value}\n')
    else:
      shown.append(f'{name}={value!r}')
  return f'{call.tool}({", ".join(shown)})'


def _cut(value: str) -> str:
  return markup.text(value, _TEXT_LIMIT)


def _pre(value: str, failed: bool = False) -> str:
  mark = ' class="failed"' if failed else ''
  shown = _cut(value) if value else '(empty)'
  # A newline right after <pre> would be swallowed by the HTML parser.
  return f'<pre{mark}>\n{shown}</pre>'
