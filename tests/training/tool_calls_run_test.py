"""A run of one model that calls tools is trained as any other."""

import dataclasses
import json

import pytest

from agentflow_jax import records
from agentflow_jax.config import schema
from agentflow_jax.rollouts import rollout_files
from agentflow_jax.training import run
from etils import epath
from tests.assembly import released as released_lib
from tests.config import mini
from tests.tokenization import byte_tokenizer


_MODEL = schema.ModelConfig(
  vocab_size=512,
  d_model=64,
  n_layers=2,
  n_heads=4,
  n_kv_heads=2,
  head_dim=16,
  d_ff=128,
  max_positions=1024,
  qk_norm=True,
)


def _config(tmp_path, planner, steps=2):
  base = mini.config(tmp_path / 'in', steps=steps, queries_per_step=2, group_size=2)
  return dataclasses.replace(
    base,
    agent=schema.AgentConfig(
      plan_format='tool_calls',
      rollout=schema.RolloutConfig(max_turns=2, deadline_seconds=300.0),
      tools=dataclasses.replace(base.agent.tools, enabled=('search',)),
    ),
    planner=dataclasses.replace(
      base.planner,
      directory=planner,
      max_prompt_tokens=704,
      model=None if planner else _MODEL,
      vocab_size=512,
      sampling=schema.SamplingSpec(max_new_tokens=16),
      prompt=schema.PromptConfig(system='Answer.'),
    ),
    engine=dataclasses.replace(
      base.engine, max_prompt_tokens=704, max_new_tokens=16, slots=4
    ),
    batch=schema.BatchConfig(tokens_per_row=768, rows_per_micro=8),
    evaluation=schema.EvaluationConfig(every=0, start_and_final=False),
  )


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['template', 'sentencepiece'])
def test_responses_are_turns_that_are_trained(tmp_path, kind):
  planner = ''
  if kind == 'template':
    directory = released_lib.write(tmp_path / 'released')
    byte_tokenizer.write(directory, byte_tokenizer.TOOLS_TEMPLATE)
    planner = str(directory)
  config = _config(tmp_path, planner)
  run.train(config, str(tmp_path / 'out'), quiet=True)
  metrics = [
    json.loads(line)
    for line in (tmp_path / 'out' / 'metrics.jsonl').read_text().splitlines()
  ]
  assert metrics[-1]['update/logprob_gap/max'] <= 1e-5
  first = sorted(epath.Path(tmp_path / 'out' / 'rollouts').glob('*.zst'))[0]
  turns = [
    turn
    for group in rollout_files.read(first)
    for rollout in group.trajectories
    for turn in rollout.turns
  ]
  assert turns and all(t.completion.response_ids for t in turns)
  assert all(
    len(t.completion.logprobs) == len(t.completion.response_ids) for t in turns
  )
  ended = {
    rollout.status
    for group in rollout_files.read(first)
    for rollout in group.trajectories
  }
  assert ended <= {records.Status.ANSWERED, records.Status.TRUNCATED_RESPONSE}
  assert 'params_digest' in json.loads((tmp_path / 'out' / 'summary.json').read_text())
