"""A released model as planner: trained for a step, and given back."""

import dataclasses
import json

import pytest

from agentflow_jax.assembly import model_files
from agentflow_jax.config import schema
from agentflow_jax.training import run
from agentflow_jax.weights import host_copies
from tests.assembly import released as released_lib


@pytest.fixture(name='released')
def _released(tmp_path):
  return released_lib.write(tmp_path / 'released')


@pytest.mark.slow
def test_a_released_model_is_trained_and_given_back(tmp_path, released, capsys):
  config = released_lib.config(
    tmp_path / 'in', released, steps=1, queries_per_step=2, group_size=2
  )
  config = dataclasses.replace(
    config,
    flow_grpo=dataclasses.replace(config.flow_grpo, kl_coef=0.1),
    evaluation=schema.EvaluationConfig(every=0, controls=False),
  )
  out = tmp_path / 'out'
  run.train(config, str(out))
  # 2 V D = 18,432 in and out, 7,040 in each of two layers, 32 in the last norm.
  assert '32,544 parameters, 32,544 trained; held: trained parameters and' in (
    capsys.readouterr().err
  )
  metrics = json.loads((out / 'metrics.jsonl').read_text())
  assert metrics['update/n_targets'] > 0
  assert metrics['update/logprob_gap/max'] <= 1e-5
  back = model_files.load(str(out / 'planner'))
  summary = json.loads((out / 'summary.json').read_text())
  assert host_copies.params_digest(back.params) == summary['params_digest']
  described = json.loads((out / 'planner' / 'config.json').read_text())
  assert described['architectures'] == ['Qwen2ForCausalLM']
  assert described['eos_token_id'] == 259  # What is not about the network.
  for name in ('tokenizer.json', 'tokenizer_config.json'):
    assert (out / 'planner' / name).read_bytes() == (released / name).read_bytes()
