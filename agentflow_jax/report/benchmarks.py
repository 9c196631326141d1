"""Several benchmarks' accuracies in one table, beside those that the paper reports."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from agentflow_jax.files import writing
from agentflow_jax.report import markup, tables
from agentflow_jax.rollouts import evaluation_files

# Accuracy [%] of AgentFlow with Qwen2.5-7B, arXiv 2510.05592: with Flow-GRPO, and
# before it. Scored by a language model as the judge, with web search. Their means
# over search, math and science differ by 10.1, 19.8 and 7.0 points, and GAIA by
# 15.9, as the paper's first figure says.
PAPER: Mapping[str, tuple[float, float]] = {
  'bamboogle': (69.6, 58.4),
  '2wiki': (77.2, 60.0),
  'hotpotqa': (57.0, 51.3),
  'musique': (25.3, 19.2),
  'gaia': (33.1, 17.2),
  'aime24': (40.0, 16.7),
  'amc23': (61.5, 47.4),
  'gameof24': (53.0, 31.0),
  'gpqa': (47.0, 37.0),
  'medqa': (80.0, 76.0),
}
_HEADER = (
  'benchmark',
  'accuracy',
  '95% interval',
  'judge',
  'scored',
  'of',
  'over requested',
  'left out',
  'turns',
  'tool calls',
  'tool errors',
  'tokens',
  'seconds',
  'cost',
  'random',
  'frozen',
  'paper',
  'paper, untrained',
)
_NOTE = (
  'Accuracy by rule over the scored items, with its 95% bootstrap interval over'
  ' items, and by a judge where there is one; over requested: the same over all'
  " items, where a rollout that a host's failure left without a score counts as"
  ' 0. The paper: 7B, with web search, scored by a language'
  " model, so its columns are not the same measurement. Tokens (the planner's"
  ' responses) and seconds are of a mean rollout; cost is of all requests to'
  ' endpoints, by the prices in the config; random and frozen are the accuracies'
  ' of a planner that picks any tool, and of the one before training.'
)


def write(
  directory: epath.Path,
  name: str,
  values: Mapping[str, evaluation_files.EvaluationFile],
  controls: Mapping[str, Mapping[str, evaluation_files.EvaluationFile]],
  more: Mapping[str, Any],
) -> str:
  """Writes NAME.json and NAME.html and returns the table as text.

  Args:
    directory: directory that both files are written to.
    name: name of the files.
    values: benchmark -> file of its evaluation.
    controls: 'random' and 'frozen' -> the same of these planners, where asked.
    more: further entries of the JSON: protocol, seconds, cost.
  """
  rows = [
    _row(benchmark, file, {name: found[benchmark] for name, found in controls.items()})
    for benchmark, file in values.items()
  ]
  left_out = {'items', 'config', *more} - {'cost'}
  kept = {
    benchmark: {k: v for k, v in file.to_json().items() if k not in left_out}
    | {
      f'{name}_planner{key.removeprefix("accuracy")}': getattr(found[benchmark], key)
      for name, found in controls.items()
      for key in ('accuracy', 'accuracy_over_requested')
    }
    | {'paper': PAPER[benchmark][0], 'paper_untrained': PAPER[benchmark][1]}
    for benchmark, file in values.items()
  }
  writing.write_whole(
    directory / f'{name}.json', json.dumps({'benchmarks': kept, **more}, indent=1)
  )
  told = [(key, value) for key, value in more.items()]
  page = markup.page(
    name,
    [
      f'<h1>{markup.text(name)}</h1>',
      markup.table(_HEADER, [list(map(markup.text, r)) for r in rows]),
      f'<p class="note">{markup.text(_NOTE)}</p>',
      markup.section('The evaluation', markup.facts(told)),
    ],
  )
  writing.write_whole(directory / f'{name}.html', page)
  lines = tables.columns([_HEADER, *rows])
  return '\n'.join([*lines, _NOTE])


def _row(
  benchmark: str,
  file: evaluation_files.EvaluationFile,
  controls: Mapping[str, evaluation_files.EvaluationFile],
) -> Sequence[str]:
  percent = lambda share: f'{100 * share:.1f}'
  judged = file.judged.accuracy if file.judged else None
  is_scored = file.items_scored > 0
  paper, untrained = PAPER[benchmark]
  return (
    benchmark,
    percent(file.accuracy) if is_scored else '-',
    f'{percent(file.ci_low)} to {percent(file.ci_high)}' if is_scored else '-',
    '-' if judged is None else percent(judged),
    str(file.items_scored),
    str(file.items_requested),
    percent(file.accuracy_over_requested),
    str(file.items_left_out),
    f'{file.turns_mean:.2f}',
    str(sum(file.tools.values())),
    percent(file.tool_error_rate),
    f'{file.planner_tokens_mean:.0f}',
    f'{file.seconds_a_rollout:.1f}',
    f'{file.more["cost"]:.4g}',
    *(
      percent(controls[name].accuracy)
      if name in controls and controls[name].items_scored
      else '-'
      for name in ('random', 'frozen')
    ),
    f'{paper:.1f}',
    f'{untrained:.1f}',
  )
