r"""The quickstart with a queue of earlier groups, and what it is compared with.

  python -m agentflow_jax.train --config=experiments/quickstart_queue.py \
      --workdir=runs/queue
  python experiments/benchmarks/sample_queue.py --run      # 24 runs, and their table

Groups without variance are replaced by groups of the last four steps, at most half of a
step, each once more, with truncated importance weights (docs/corrections.md). The sweep
has the queue, no queue, and two rounds of further queries instead, with 8 seeds each;
all three have the same correction.

Measured with 8 seeds each: the validation accuracy, sampled over 100 questions, first
reached 80% after 2,048 rollouts with the queue, 2,560 without, and 3,136 with further
queries at the median; but only 2 seeds needed fewer with the queue than without, 5 as
many, and one more. The final accuracy is 93.0, 91.7 and 94.3%: 1.3 points more with the
queue (95% above -0.6), 2.7 with further queries (above +0.9), which take 16,986
rollouts in 30 steps instead of 7,680. A run with the queue trained on 267 groups again.
See docs/performance.md.
"""

import dataclasses
import pathlib

from agentflow_jax.config import schema as c

_HERE = pathlib.Path(__file__).parent


def get_config() -> c.Config:
  base = c.load_module(str(_HERE / 'quickstart.py')).get_config()
  return dataclasses.replace(
    base,
    name='quickstart_queue',
    flow_grpo=dataclasses.replace(
      base.flow_grpo, old_logprobs='recompute', importance_cap=2.0
    ),
    evaluation=dataclasses.replace(base.evaluation, every=2),
    queue=c.QueueConfig(size=64),
  )


def get_sweep() -> list[dict[str, str]]:
  ways = [
    {'queue.size': '64'},
    {'queue.size': '0'},
    {'queue.size': '0', 'train.refill_rounds': '2'},
  ]
  return c.sweep.product(ways, c.sweep.grid({'seed': list(range(8))}))
