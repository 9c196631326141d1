"""What an engine chooses where its config leaves it open."""

import dataclasses

import jax
import pytest

from agentflow_jax.core import model, published
from agentflow_jax.inference import api, choices, engine
from tests.core import networks

_SMALL = model.ModelConfig(
  vocab_size=64,
  d_model=32,
  n_layers=2,
  n_heads=4,
  n_kv_heads=2,
  head_dim=8,
  d_ff=48,
  max_positions=4096,
)
_LARGE = published.MODELS['smollm2-135m']


def _chosen(network=_LARGE, platform='cpu', gathered=True, cores=2, **given):
  found = choices.chosen(api.EngineConfig(**given), network, platform, gathered, cores)
  return (
    found.lanes,
    found.prefill_pieces,
    found.piece_tokens,
    found.prefill_burst,
    found.read_share,
    found.company_chunks,
  )


def test_the_rule():
  assert _chosen() == (2, 2, 112, 64, 1.0, 0.0)
  assert _chosen(cores=1) == (1, 1, 112, 64, 1.0, 0.0)
  assert _chosen(gathered=False) == (1, 1, 112, 64, 1.0, 0.0)
  assert _chosen(slots=3) == (1, 1, 112, 64, 1.0, 0.0)
  assert _chosen(network=_SMALL) == (1, 8, 32, 16, 0.5, 2.0)
  for platform in ('gpu', 'tpu'):
    for network in (_SMALL, _LARGE):
      assert _chosen(network, platform, cores=64) == (1, 16, 128, 64, 1.0, 0.0)
  # 32 does not divide 112.
  assert _chosen(page_tokens=32) == (2, 2, 96, 64, 1.0, 0.0)
  assert _chosen(max_prompt_tokens=40) == (2, 2, 48, 64, 1.0, 0.0)


@pytest.mark.parametrize(
  ('given', 'found'),
  [
    ({'lanes': 1}, (1, 1, 112, 64, 1.0, 0.0)),
    ({'lanes': 4}, (4, 4, 112, 64, 1.0, 0.0)),
    ({'prefill_pieces': 5}, (1, 5, 112, 64, 1.0, 0.0)),
    ({'piece_tokens': 16, 'read_share': 0.25}, (2, 2, 16, 64, 0.25, 0.0)),
    ({'prefill_burst': 3}, (2, 2, 112, 3, 1.0, 0.0)),
    ({'company_chunks': 1.0}, (2, 2, 112, 64, 1.0, 1.0)),
  ],
)
def test_what_is_given_stays(given, found):
  assert _chosen(**given) == found


def test_the_size_of_a_network_is_that_of_its_kernels():
  for network in (_SMALL, dataclasses.replace(_LARGE, n_layers=2)):
    shapes = model.param_shapes(network)
    kernels = sum(
      leaf.size
      for path, leaf in jax.tree_util.tree_leaves_with_path(shapes['layers'])
      if 'kernel' in jax.tree_util.keystr(path)
    )
    assert choices._block_parameters(network) == kernels


def test_an_engine_has_nothing_open_and_says_what_it_chose():
  params = networks.params(_SMALL)
  with engine.Engine(_SMALL, api.EngineConfig(slots=2), params) as made:
    assert choices.said(made.config) == (
      'engine.lanes=1, engine.prefill_pieces=8, engine.piece_tokens=32,'
      ' engine.prefill_burst=16, engine.read_share=0.5, engine.company_chunks=2'
    )
