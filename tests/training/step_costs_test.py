"""What a step costs, against arithmetic by hand and against the benchmark."""

import importlib.util
import json
import subprocess
import sys
import types

import jax
import numpy as np
import pytest

from agentflow_jax.config import schema
from agentflow_jax.core import batch, model, sharding
from agentflow_jax.training import step_costs
from tests.config import mini

_NETWORK = model.ModelConfig(
  vocab_size=64,
  d_model=16,
  n_layers=2,
  n_heads=4,
  n_kv_heads=2,
  head_dim=8,
  d_ff=32,
  max_positions=64,
)
# Multiply-adds of a token: in each of 2 layers q and o of 16 x 32, k and v of 16 x 16,
# and three products of the MLP of 16 x 32.
_TOKEN = 2 * (2 * 16 * 32 + 2 * 16 * 16 + 3 * 16 * 32)
# Of a query and a key that it sees: 2 layers, 4 heads of 8, scores and values.
_PAIR = 2 * 2 * 4 * 8
_TARGET = 16 * 64
# A prompt of 4 tokens with responses of 3 and 2. The last token of each is read by
# nothing, so 4 + 2 + 1 places; they see 1 + 2 + 3 + 4, 5 + 6 and 5 tokens.
_RESPONSES = [([1, 2, 3, 4], [5, 6, 7]), ([1, 2, 3, 4], [8, 9])]
_TOKENS = 4 + 2 + 1
_FORWARD = 2 * (_TOKENS * _TOKEN + (1 + 2 + 3 + 4 + 5 + 6 + 5) * _PAIR + 5 * _TARGET)


def _config(peak=1e6, price=0.0, kl_coef=1e-3, algorithm='flow_grpo'):
  return schema.Config(
    name='',
    algorithm=algorithm,
    flow_grpo=schema.FlowGrpoConfig(kl_coef=kl_coef),
    metrics=schema.MetricsConfig(peak_flops=peak, device_hour_dollars=price),
  )


def _costs(devices=8, **settings):
  mesh = sharding.make_mesh(devices=jax.devices()[:devices])
  return step_costs.Costs(_config(**settings), _NETWORK, mesh)


def _rows(responses=tuple(_RESPONSES), prompt_weight=0.0):
  return [
    batch.TurnRow(np.array(p), np.array(r), 1.0, prompt_weight=prompt_weight)
    for p, r in responses
  ]


def test_rollouts_by_hand():
  # 2 s on 8 devices of 1e6 FLOP/s; the frozen engine reads the same prompt anew.
  assert _costs().of_rollouts([_RESPONSES, _RESPONSES[:1]], 2.0) == {
    'rate/rollout/mfu': pytest.approx(
      (_FORWARD + 2 * (6 * _TOKEN + 21 * _PAIR + 3 * _TARGET)) / (2 * 8 * 1e6)
    ),
    'rate/rollout/tokens_per_second_per_device': (_TOKENS + 6) / 2 / 8,
  }


def test_padding_and_shared_prompts_are_no_useful_work():
  once = _costs().of_rollouts([_RESPONSES[:1]], 1.0)
  # Asked again, of the response only the logits are useful.
  again = _costs().of_rollouts([_RESPONSES[:1] * 2], 1.0)
  per_second = 'rate/rollout/tokens_per_second_per_device'
  assert again[per_second] == once[per_second]
  assert (again['rate/rollout/mfu'] - once['rate/rollout/mfu']) * 8e6 == (
    pytest.approx(2 * 3 * _TARGET)
  )


@pytest.mark.parametrize(
  ('settings', 'passes'), [({}, 4), ({'kl_coef': 0.0}, 3), ({'algorithm': 'sft'}, 3)]
)
def test_an_update_by_hand(settings, passes):
  # Forward, twice that backward, and the reference where there is a KL term; each
  # mini-batch reads the prompt anew.
  found = _costs(2, **settings).of_update([_rows(), _rows()], 4.0)
  assert found == {
    'rate/update/mfu': pytest.approx(2 * passes * _FORWARD / (4 * 2 * 1e6)),
    'rate/update/tokens_per_second_per_device': 2 * _TOKENS / 4 / 2,
  }


def test_scored_prompt_tokens_have_logits_too():
  plain = _costs(1, algorithm='sft').of_update([_rows()], 1.0)
  scored = _costs(1, algorithm='sft').of_update([_rows(prompt_weight=0.5)], 1.0)
  # Three tokens of the prompt, once, forward and backward.
  assert (scored['rate/update/mfu'] - plain['rate/update/mfu']) * 1e6 == (
    pytest.approx(3 * 2 * 3 * _TARGET)
  )


def test_a_step_without_work_has_no_rates():
  assert not _costs().of_rollouts([[], []], 1.0)
  assert not _costs().of_update([], 1.0)
  assert not _costs(algorithm='none').of_update([_rows()], 1.0)


def test_dollars_by_hand():
  # 8 devices for half an hour at 2 dollars.
  assert _costs(price=2.0).dollars(1800) == 8.0
  assert _costs().dollars(1800) is None


@pytest.mark.slow
def test_the_benchmark_of_the_update_says_the_same(tmp_path):
  path = mini.ROOT / 'experiments' / 'benchmarks' / 'update.py'
  shape = dict(
    group_size=2, turns=2, prompt_len=40, memory_len=6, response_len=5, groups=2
  )
  subprocess.run(
    [
      sys.executable,
      str(path),
      '--model=tiny',
      '--repeats=2',
      f'--out={tmp_path / "out.json"}',
      *(f'--{k}={v}' for k, v in shape.items()),
    ],
    cwd=mini.ROOT,
    check=True,
    capture_output=True,
    timeout=500,
  )
  said = json.loads((tmp_path / 'out.json').read_text())
  spec = importlib.util.spec_from_file_location('update_benchmark', path)
  benchmark = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(benchmark)
  network = benchmark.MODELS['tiny']
  lines = benchmark._made_up(types.SimpleNamespace(**shape), network.vocab_size)
  costs = step_costs.Costs(
    _config(peak=said['matmul_peak_flops']),
    network,
    sharding.make_mesh(devices=jax.devices()[:1]),
  )
  found = costs.of_update(
    [benchmark._turn_rows(list(lines))], said['seconds']['update']['median']
  )
  assert found['rate/update/mfu'] == pytest.approx(said['mfu'], rel=0.02)
